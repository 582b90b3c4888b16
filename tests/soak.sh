#!/usr/bin/env bash
# One run that goes on for a long time: killed (SIGKILL and SIGTERM in turns) and resumed ten times over the first
# two thirds, not over the last third. Watches the resident memory of each process, its open files, and how many
# tokens a second it trains on. Ends with a table, and with an error if resident memory grows by 1 % or more, open
# files grow, throughput drifts by 3 % or more beside that of a fresh run, or a session does not go on where the last
# one ended.
#
# Usage: tests/soak.sh [MINUTES]     (60 by default, on a machine that does nothing else)
#
# What is compared are medians, of windows of some seconds: of memory and open files, those of a session's last third
# with those of its second (the first is warm-up), of memory the later half of the sessions with the earlier, but for the
# first session; of throughput, all windows of the first third of the time with those of the last. Windows in which
# other programs had more than a twentieth of a CPU do not count; if most do not, tokens a second of the run's own
# CPU time are compared instead, which is said.
#
# Machines have moods that nobody inside of them sees. So in the middle of each session, and as often in the last one,
# the run is stopped for some windows and a control takes its place: the same training, begun anew. What is judged is
# how the run's throughput changes beside the control's, and both are printed: what the machine does is done to both,
# what comes with age to the run alone.
#
# Needs Rust, Python 3.9 and Linux. CLLM names a program that is built already, THREADS its threads (1 by default).
# The run stays in target/soak.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/support/program.sh
exec python3 tests/support/soak.py "$CLLM" target/soak "$@"
