#!/usr/bin/env bash
# Measures what recording a trace costs: the reference workload with and without --trace, every
# step recorded, in turns; prints the median of the turns' ratios.
#
# Usage: benches/trace.sh [RUNS [STEPS]]     (7 runs of 20 steps each way, about three minutes)
#
# For a quiet machine. Needs Python 3, nothing but its own library.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/common/prepare.sh
exec python3 - "$cllm" "$data" "$work" "${1:-7}" "${2:-20}" <<'PYTHON'
import sys
from statistics import median

from runs import note, train, turns

cllm, data, work, runs, steps = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
KINDS = {
    "plain": [],
    "traced": ["--trace", f"{work}/trace.json", "--trace-steps", steps],
}
flags = ["--preset", "reference", "--data", data, "--threads", 2]
speeds = {name: [] for name in KINDS}
for turn, name in turns(runs, KINDS):
    speeds[name].append(train(cllm, [*flags, *KINDS[name]], steps).speed)
    note(f"run {turn}, {name}: {speeds[name][-1]:.0f} tokens/s")
ratio = median(plain / traced for plain, traced in zip(*speeds.values())) - 1
print(f"a traced step takes {100 * ratio:+.2f} % more time (median of {runs} pairs)")
PYTHON
