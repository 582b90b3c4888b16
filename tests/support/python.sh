# For the scripts that compare with programs in Python: source it.
#
# want_python WORK REQUIREMENTS: makes the folder WORK, and leaves in PYTHON a Python that has what is
# in the file REQUIREMENTS: the one that PYTHON names already, or else one of WORK/venv, which is made
# when it is not there or the file has changed.
want_python() {
    local work=$1 requirements=$2 wanted
    mkdir -p "$work"
    if [ -n "${PYTHON:-}" ]; then
        return
    fi
    PYTHON=$work/venv/bin/python
    wanted=$(sha256sum < "$requirements")
    if [ "$(cat "$work/venv.sha256" 2> /dev/null)" != "$wanted" ]; then
        python3 -m venv --clear "$work/venv"
        "$work/venv/bin/pip" install --quiet -r "$requirements"
        echo "$wanted" > "$work/venv.sha256"
    fi
}
