#!/usr/bin/env bash
# How long a user waits for what `cllm train` shows off with: the whole of it as it is today, where nothing is said of
# model, data or recipe, against what it was before, the preset tiny, in turns. Whole processes, as they are without
# flags: with validations, samples and checkpoints. Ends with an error if today's validation loss is the higher one, or
# takes more than a third of the time.
#
# Usage: benches/speedrun/demo.sh [REPEATS]     (5 of each, two or three minutes on a quiet machine)
#
# Needs Rust and Python 3. The runs lie in target/speedrun-demo.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/support/program.sh
PYTHONDONTWRITEBYTECODE=1 exec python3 benches/speedrun/demo.py "$CLLM" "$@"
