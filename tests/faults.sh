#!/usr/bin/env bash
# Real training, disturbed: runs of small models are killed, stopped and continued, have their disk filled, their
# files made read-only, their checkpoints and token shards cut and their bits flipped, their memory limited, their
# data taken away and their threads changed, at random moments. After each fault the run goes on to the same
# weights as an undisturbed one, or ends with a clear error and, once the cause is mended, goes on from its last
# good checkpoint. Ends with a table, and with an error if a run was lost, had other weights, hung, or ended in a
# way that says nothing.
#
# Usage: tests/faults.sh [FAULTS] [SEED]     (1,000 faults by default, half an hour or more on two cores)
#
# Needs Rust, Python 3.9 and Linux; works for an ordinary user and for root, who loses the right to ignore modes of
# files. A disk is full by a limit of the size of files (RLIMIT_FSIZE), and where the system lets one mount in a
# namespace of one's own (`unshare`), also by a small disk in memory that is filled. CLLM names a program that is
# built already, JOBS how many runs there are at a time, RUN the number of one run that is to be done again, ONLY a
# part of the names of the faults that are wanted, WORK another folder than target/faults. The seed is printed; it
# decides what is done to which run. What failed stays in that folder, with the log of what was done.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/support/program.sh
alone=()
for wrap in "unshare --mount" "unshare --user --map-root-user --mount"; do
    if $wrap true 2>/dev/null; then
        # shellcheck disable=SC2206
        alone=(env ALONE=1 $wrap)
        break
    fi
done
exec ${alone[@]+"${alone[@]}"} python3 tests/support/faults.py "$CLLM" "${WORK:-target/faults}" "$@"
