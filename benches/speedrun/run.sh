#!/usr/bin/env bash
# Time to a target loss: trains nanoGPT's model for CPUs with PyTorch for a minute, and a recipe of cllm's until it
# is as good, in turns. README.md beside this file has the protocol and what was seen.
#
# Usage: benches/speedrun/run.sh [--text PATH] [--seeds N] [--seconds S] [--recipe FILE] [--steps N] ...
#        benches/speedrun/run.sh ablate [--text PATH] [--seeds N] [--recipe FILE] [--without FLAGS]...
#
# PyTorch and its libraries are those of benches/peers/run.sh, set up if they are not there. For a quiet machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/support/python.sh
. benches/peers/tcmalloc.sh
want_python target/peers benches/peers/requirements.txt
want_tcmalloc target/peers
cargo build --quiet --locked --release --package cllm
PYTHONDONTWRITEBYTECODE=1 exec "$PYTHON" benches/speedrun/speedrun.py "$@"
