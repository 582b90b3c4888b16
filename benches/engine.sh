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
work=target/reference
cllm=target/release/cllm

cargo build --quiet --locked --release --package cllm
[ -f "$work/data/meta.json" ] || "$cllm" data reference --out "$work/data" > /dev/null
exec python3 - "$cllm" "$work" "${1:-5}" "${2:-15}" <<'PYTHON'
import json
import shutil
import subprocess
import sys
from statistics import median

cllm, work, runs, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
reference = ["--preset", "reference", "--data", f"{work}/data"]
# Name, flags, steps, numbers of workers. One sequence is an eighth of a batch's work.
CASES = [
    ("reference, 32 x 128", reference, steps, [1, 2, 8]),
    ("reference, 1 x 512", [*reference, "--block-size", "512", "--batch-size", "1"], 8 * steps, [1, 2]),
    ("tiny preset", ["--preset", "tiny"], 20 * steps, [1, 2]),
]


def run(flags, steps, workers):
    """One run's `done` event, with the speed of its steps.

    The first step touches fresh memory and is reported by itself; the last one reports
    the mean of those after it.
    """
    out = f"{work}/engine"
    shutil.rmtree(out, ignore_errors=True)
    command = [cllm, "train", *flags, "--max-steps", steps, "--warmup-steps", 5, "--eval-batches", 1]
    command += ["--sample-tokens", 0, "--log-interval", steps, "--threads", workers]
    command += ["--log-format", "json", "--out-dir", out]
    lines = subprocess.run(map(str, command), check=True, capture_output=True, text=True).stdout
    events = [json.loads(line) for line in lines.splitlines()]
    shutil.rmtree(out)
    done = next(event for event in events if event["event"] == "done")
    speed = [event["tokens_per_s"] for event in events if event["event"] == "step"][-1]
    return {**done, "speed": speed}


header = ["workers", "tokens/s", "speed", "busy", "queue+steal+wait", "data", "main CPU", "stolen"]
widths = [20, 8, 9, 8, 8, 17, 8, 9, 8]
print("".join(f"{text:>{width}}" for text, width in zip(["", *header], widths)))
for name, flags, length, counts in CASES:
    done = {workers: [] for workers in counts}
    for turn in range(runs):
        # The other way round every second turn: what drifts hits all alike.
        for workers in counts if turn % 2 == 0 else counts[::-1]:
            done[workers].append(run(flags, length, workers))
            speed = done[workers][-1]["speed"]
            print(f"{name}: run {turn + 1}, {workers} workers: {speed:.0f} tokens/s", file=sys.stderr)
    hashes = {event["weights_sha256"] for events in done.values() for event in events}
    if len(hashes) != 1:
        sys.exit(f"{name}: the weights differ: {hashes}")
    # Speeds against one worker in the same turn.
    speeds = {workers: [event["speed"] for event in events] for workers, events in done.items()}
    for workers, events in done.items():
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
