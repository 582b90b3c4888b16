#!/usr/bin/env bash
# What adapters save: fine-tuning a model of GPT-2 124M's shape, whole and by LoRA of rank 8 beside all
# matrices, in turns. Prints the planned and the resident memory, the speed, and the ratios of both; ends
# with an error if the first losses differ, for adapters add nothing at first.
#
# Usage: benches/adapters.sh [RUNS [DTYPE [SEQUENCES [TOKENS]]]]     (5 turns, bf16, 4 x 64; five minutes)
#
# Needs Rust and Python 3.9, 3 GB of memory and 4 GB of disk. CLLM names a binary to measure instead of
# building one, THREADS the number of threads (2), TARGETS what has an adapter (all-linear).
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/common/prepare.sh
exec python3 - "$cllm" "$data" "${1:-5}" "${2:-bf16}" "${3:-4}" "${4:-64}" "${THREADS:-2}" \
    "${TARGETS:-all-linear}" <<'PYTHON'
import subprocess
import sys
from pathlib import Path
from statistics import median

from runs import train, turns

cllm, data, runs, dtype, sequences, tokens, threads, targets = sys.argv[1:]
BASE = Path("target/reference/base")
GPT2 = ["--preset", "gpt2", "--vocab-size", 50257, "--batch-size", 1, "--block-size", 1024]
KINDS = {"whole": [], "adapters": ["--lora-rank", 8, "--lora-targets", targets]}
STEPS = 12

if not BASE.exists():
    # Any weights will do: one step from the seeded ones, at no rate.
    words = [cllm, "train", *GPT2, "--data", data, "--max-steps", 1, "--lr", 0, "--min-lr", 0]
    words += ["--warmup-steps", 0, "--eval-batches", 1, "--sample-tokens", 0, "--quiet", "--out-dir", BASE]
    words += ["--recompute", "true"]
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
flags = ["--base", BASE, "--data", data, "--dtype", dtype, "--threads", threads]
flags += ["--batch-size", sequences, "--block-size", tokens, "--val-fraction", 0]
measured = {name: [] for name in KINDS}
for _, name in turns(int(runs), KINDS):
    measured[name].append(train(cllm, [*flags, *KINDS[name]], STEPS))
shape = f"{dtype}, {sequences} x {tokens}, {targets}"
print(f"{shape:<28} {'planned MB':>12} {'resident MB':>12} {'tokens/s':>10} {'last loss':>10}")
of = {}
for name, done in measured.items():
    planned = done[0].events["start"][0]["planned_bytes"]["total"] / 1e6
    resident = median(run.done["peak_rss_bytes"] for run in done) / 1e6
    of[name] = resident, median(run.speed for run in done)
    print(
        f"{name:<28} {planned:>12.0f} {resident:>12.0f} {of[name][1]:>10.0f} "
        f"{done[0].last['loss']:>10.4f}"
    )
(memory, speed), (less, faster) = of["whole"], of["adapters"]
ratios = [b.speed / a.speed for a, b in zip(measured["whole"], measured["adapters"])]
print(f"memory {less / memory:.2f}, speed {faster / speed:.2f} (turns: {min(ratios):.2f} to {max(ratios):.2f})")
first = {run.events["step"][0]["loss"] for done in measured.values() for run in done}
if max(first) - min(first) > 1e-5 * max(first):
    sys.exit(f"the first losses differ: {first}")
PYTHON
