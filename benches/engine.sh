#!/usr/bin/env bash
# Measures what more workers give, by runs of `cllm train` in turns, and prints medians:
# the reference workload with 1, 2 and 8 workers, one sequence of 512 tokens and the tiny
# preset with 1 and 2. All figures are from the reports of the runs themselves (the JSON
# line of the event `done`).
#
# Usage: benches/engine.sh [RUNS [STEPS]]     (5 runs of 15 steps, about fifteen minutes)
#
# For a quiet machine with two cores or more. Needs Python 3, nothing but its own library.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/common/prepare.sh
exec python3 - "$cllm" "$data" "${1:-5}" "${2:-15}" <<'PYTHON'
import sys
from statistics import median

from runs import note, train, turns

cllm, data, runs, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
reference = ["--preset", "reference", "--data", data]
# Name, flags, steps, numbers of workers. One sequence is an eighth of a batch's work.
CASES = [
    ("reference, 32 x 128", reference, steps, [1, 2, 8]),
    ("reference, 1 x 512", [*reference, "--block-size", "512", "--batch-size", "1"], 8 * steps, [1, 2]),
    ("tiny preset", ["--preset", "tiny"], 20 * steps, [1, 2]),
]

header = ["workers", "tokens/s", "speed", "busy", "queue+steal+wait", "data", "main CPU", "stolen"]
widths = [20, 8, 9, 8, 8, 17, 8, 9, 8]
print("".join(f"{text:>{width}}" for text, width in zip(["", *header], widths)))
for name, flags, length, counts in CASES:
    measured = {workers: [] for workers in counts}
    for turn, workers in turns(runs, counts):
        run = train(cllm, [*flags, "--threads", workers], length)
        measured[workers].append(run)
        note(f"{name}: run {turn}, {workers} workers: {run.speed:.0f} tokens/s")
    hashes = {run.done["weights_sha256"] for runs_of in measured.values() for run in runs_of}
    if len(hashes) != 1:
        sys.exit(f"{name}: the weights differ: {hashes}")
    # Speeds against one worker in the same turn.
    speeds = {workers: [run.speed for run in runs_of] for workers, runs_of in measured.items()}
    for workers, runs_of in measured.items():
        events = [run.done for run in runs_of]
        middle = lambda key: median(event[key] for event in events)
        speed = median(speeds[workers])
        ratio = median(this / one for one, this in zip(speeds[counts[0]], speeds[workers]))
        tiles = [(w["tiles"], w["tiles_stolen"]) for event in events for w in event["workers"]]
        stolen = sum(s for _, s in tiles) / sum(t for t, _ in tiles)
        cells = [name, f"{workers}", f"{speed:.0f}", f"x {ratio:.3f}"]
        shares = [middle(key) for key in ("utilisation", "overhead", "data", "main_cpu_share")]
        cells += [f"{100 * share:.2f} %" for share in (*shares, stolen)]
        print("".join(f"{text:>{width}}" for text, width in zip(cells, widths)), flush=True)
    if 8 in counts:
        slower = median(two / eight for eight, two in zip(speeds[8], speeds[2])) - 1
        print(f"{name}: 8 workers need {100 * slower:+.1f} % more time than 2")
PYTHON
