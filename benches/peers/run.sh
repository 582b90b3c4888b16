#!/usr/bin/env bash
# Sets PyTorch up in target/peers, runs the same works with it and with cllm in turns, and
# prints a table of medians and ratios for each work. README.md beside this file has more.
#
# Usage: benches/peers/run.sh [--works A,B64,...] [--runs N] [--threads 1,2] [--llmc PATH] ...
#
# Needs Rust, Python 3.11 with venv and pip, and for torch.compile a C++ compiler. tcmalloc is
# taken from Debian's package where apt-get is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
. benches/peers/tcmalloc.sh
. tests/support/python.sh
peers=target/peers
want_python "$peers" benches/peers/requirements.txt
want_tcmalloc "$peers"
# llama.cpp is compared on generation alone.
if [[ " $* " == *E-* ]]; then
    wanted=$(sha256sum < benches/peers/requirements-llama.txt)
    if [ "$(cat "$peers/llama.sha256" 2> /dev/null)" != "$wanted" ]; then
        echo "run.sh: building benches/peers/requirements-llama.txt in $peers/llama" >&2
        rm -rf "$peers/llama"
        if python3 -m venv "$peers/llama" && CMAKE_ARGS="-DGGML_NATIVE=ON" "$peers/llama/bin/pip" \
                install --quiet --requirement benches/peers/requirements-llama.txt \
                2> "$peers/llama.log"; then
            echo "$wanted" > "$peers/llama.sha256"
        else
            rm -rf "$peers/llama"
            echo "run.sh: no llama.cpp: $(tail -n 1 "$peers/llama.log"); all of it in $peers/llama.log" >&2
        fi
    fi
fi
exec "$PYTHON" benches/peers/pytorch/compare.py "$@"
