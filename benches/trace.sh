#!/usr/bin/env bash
# Measures what recording a trace costs: the reference workload with and without --trace, every
# step recorded, in turns; prints the median of the turns' ratios.
#
# Usage: benches/trace.sh [RUNS [STEPS]]     (7 runs of 20 steps each way, about three minutes)
#
# For a quiet machine. Needs Python 3, nothing but its own library.
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/reference
cllm=target/release/cllm

cargo build --quiet --locked --release --package cllm
[ -f "$work/data/meta.json" ] || "$cllm" data reference --out "$work/data" > /dev/null
exec python3 - "$cllm" "$work" "${1:-7}" "${2:-20}" <<'PYTHON'
import json
import shutil
import subprocess
import sys
from statistics import median

cllm, work, runs, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def speed(more):
    """Tokens a second of the steps behind the first."""
    out = f"{work}/traced"
    shutil.rmtree(out, ignore_errors=True)
    command = [cllm, "train", "--preset", "reference", "--data", f"{work}/data", "--max-steps", steps]
    command += ["--warmup-steps", 5, "--eval-batches", 1, "--sample-tokens", 0, "--threads", 2]
    command += ["--log-interval", steps, "--log-format", "json", "--out-dir", out, *more]
    lines = subprocess.run(map(str, command), check=True, capture_output=True, text=True).stdout
    shutil.rmtree(out)
    events = [json.loads(line) for line in lines.splitlines()]
    return [event["tokens_per_s"] for event in events if event["event"] == "step"][-1]


traced = ["--trace", f"{work}/trace.json", "--trace-steps", steps]
ratios = []
for turn in range(runs):
    pair = {}
    for name, more in [("plain", []), ("traced", traced)][:: 1 if turn % 2 == 0 else -1]:
        pair[name] = speed(more)
    ratios.append(pair["plain"] / pair["traced"] - 1)
    print(f"run {turn + 1}: plain {pair['plain']:.0f}, traced {pair['traced']:.0f} tokens/s", file=sys.stderr)
print(f"a traced step takes {100 * median(ratios):+.2f} % more time (median of {runs} pairs)")
PYTHON
