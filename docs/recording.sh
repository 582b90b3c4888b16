#!/usr/bin/env bash
# Makes the README's pictures again: docs/images/training.svg, a recording of a terminal in which a small
# model is trained, evaluated and asked; and docs/images/report.png, the page of that run.
#
# Usage: docs/recording.sh     (two minutes, once the program is built and the browser there)
#
# The recording itself is left in target/recording/training.cast, for asciinema. In the picture, waits of
# more than a second are shortened to one. Needs Rust and Python 3.9, and for the page what
# tests/report.sh needs; PYTHON and CHROMIUM are as there, CLLM names a built program instead of
# building one.
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/recording
if [ -z "${CLLM:-}" ]; then
    cargo build --quiet --locked --release --package cllm
    CLLM=target/release/cllm
fi
rm -rf "$work"
mkdir -p "$work/bin" "$work/run" docs/images
ln -s "$(realpath "$CLLM")" "$work/bin/cllm"
PATH=$PWD/$work/bin:$PATH

python3 docs/support/record.py "$work/run" "$work/training.cast" <<'COMMANDS'
cllm train --tokenizer bpe:1000 --max-steps 600 --eval-interval 100 --sample-interval 200 --sample-tokens 60 --out-dir first
cllm eval --checkpoint first
cllm generate --checkpoint first --prompt "And God said" --tokens 80 --top-k 40
cllm report first
COMMANDS
python3 docs/support/play.py "$work/training.cast" docs/images/training.svg

. tests/support/python.sh
. tests/support/chromium.sh
want_python target/report tests/support/requirements-browser.txt
want_chromium target/report
"$PYTHON" docs/support/picture.py "$CHROMIUM" "$work/run/first/report.html" docs/images/report.png

# What a README is to load.
for limit in training.svg:300000 report.png:250000; do
    size=$(stat -c %s "docs/images/${limit%:*}")
    echo "docs/images/${limit%:*}: $size bytes"
    if [ "$size" -gt "${limit#*:}" ]; then
        echo "recording.sh: that is more than ${limit#*:} bytes" >&2
        exit 1
    fi
done
