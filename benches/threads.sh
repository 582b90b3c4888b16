#!/usr/bin/env bash
# Compares `--threads auto` with every fixed number of workers up to the CPUs, by runs of
# `cllm train` in turns, over presets and batch sizes, and prints how much slower than the
# best fixed number it is. Steps before its choice do not count, on either side.
#
# Usage: benches/threads.sh [RUNS]     (5 runs each, some fifteen minutes on two CPUs)
#
# For a quiet machine. Needs Python 3, nothing but its own library.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/common/prepare.sh
exec python3 - "$cllm" "$data" "${1:-5}" <<'PYTHON'
import os
import sys
from statistics import median

from runs import train, turns

cllm, data, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
cpus = len(os.sched_getaffinity(0))
sizes = [1, 2, 4, 8, 16, 32]
# Name, flags, tokens of a sequence, batch sizes, tokens a second to expect at least.
CASES = [
    ("tiny", ["--preset", "tiny"], 64, sizes, 20_000),
    ("reference", ["--preset", "reference", "--data", data], 128, sizes, 3_000),
    # GPT-2's blocks on bytes and short sequences, to be done in minutes.
    ("gpt2", ["--preset", "gpt2", "--tokenizer", "bytes", "--block-size", "64"], 64, [1], 100),
]
# Seconds to measure, at the least, and to leave for the search.
SECONDS = 1.0


def run(flags, batch, steps, threads):
    """Tokens a second of the run's last half, and how many workers it had."""
    done = train(cllm, [*flags, "--batch-size", batch, "--threads", threads], steps, steps // 2)
    found = [event["threads"] for event in done.events.get("threads", [])]
    if threads == "auto" and cpus > 1 and not found:
        sys.exit(f"{steps} steps of {batch} sequences were too few for the search")
    return done.speed, found[-1] if found else threads


worst = 0.0
for name, flags, tokens, batches, least in CASES:
    for batch in batches:
        # The search takes some three seconds at most, or a dozen steps.
        steps = 2 * max(10, int(2 * SECONDS * least * cpus / (batch * tokens)))
        speeds = {threads: [] for threads in [*range(1, cpus + 1), "auto"]}
        chosen = []
        for _, threads in turns(runs, speeds):
            speed, had = run(flags, batch, steps, threads)
            speeds[threads].append(speed)
            if threads == "auto":
                chosen.append(had)
        fixed = [threads for threads in speeds if threads != "auto"]
        best = max(fixed, key=lambda threads: median(speeds[threads]))
        slower = median(b / a for a, b in zip(speeds["auto"], speeds[best])) - 1
        worst = max(worst, slower)
        shown = ", ".join(f"{threads}: {median(speeds[threads]):.0f}" for threads in speeds)
        print(
            f"{name:<10} batch {batch:>2}  tokens/s {shown}  chose {sorted(set(chosen))}  "
            f"{100 * slower:+.1f} % behind {best}",
            flush=True,
        )
print(f"at most {100 * worst:.1f} % slower than the best fixed number")
PYTHON
