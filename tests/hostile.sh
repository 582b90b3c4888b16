#!/usr/bin/env bash
# Files that anybody may have written, read by the built program: one good file of every kind that cllm
# reads is damaged in thousands of ways (cut, bits flipped, lengths of headers replaced, each value of JSON
# replaced by what it should not be, nested 100,000 deep, a million elements, no UTF-8, no file at all),
# and each copy is read in a process of its own. Ends with an error if one of them panics, is killed by a
# signal, takes more than 10 seconds of the CPU or 64 MB more than the file, fails with anything but
# lines that begin with `cllm: `, or is accepted although its checksums cannot be right.
#
# Usage: tests/hostile.sh [READER...]     (half an hour or more on two cores; names of readers or parts)
#
# Needs Rust, Python 3.9 and Linux. CLLM names a program that is built already, JOBS how many are run at
# a time. The damaged files of what failed are left in target/hostile/faults.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/support/program.sh
exec python3 tests/support/hostile.py "$CLLM" target/hostile "$@"
