#!/usr/bin/env bash
# What `--recompute` saves and what it costs: the bytes of plans of the reference workload and of
# GPT-2 with and without it, then tokens a second of the reference workload in turns, with the
# loss of the last step beside them, which must be the same digits.
#
# Usage: benches/recompute.sh [RUNS [THREADS [DTYPE]]]   (5 runs of each on one, f32; two minutes)
#
# For a quiet machine. Needs Python 3, nothing but its own library.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/common/prepare.sh
exec python3 - "$cllm" "$data" "${1:-5}" "${2:-1}" "${3:-f32}" <<'PYTHON'
import json
import subprocess
import sys
from statistics import median

from runs import train, turns

cllm, data, runs, threads, dtype = *sys.argv[1:3], int(sys.argv[3]), *sys.argv[4:6]
MIB = 1 << 20
KINDS = {"without": "false", "--recompute": "true"}


def plan(preset, workers, recompute):
    command = [cllm, "plan", "--preset", preset, "--dtype", dtype, "--threads", str(workers)]
    command += ["--recompute", recompute, "--no-estimate", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


print(f"{'plan':<22} {'workers':>8} {'activations MiB':>16} {'total MiB':>12} {'recomputed GFLOP':>20}")
for preset in ("reference", "gpt2"):
    for workers in (1, 2):
        for name, recompute in KINDS.items():
            shown = plan(preset, workers, recompute)
            activations = shown["pools"]["activations"] / MIB
            print(
                f"{preset + ' ' + name:<22} {workers:>8} {activations:>16.1f} "
                f"{shown['total_bytes'] / MIB:>12.1f} {shown['recomputed_flops'] / 1e9:>20.1f}"
            )

flags = ["--preset", "reference", "--data", data, "--dtype", dtype, "--threads", threads]
measured = {name: [] for name in KINDS}
for _, name in turns(runs, KINDS):
    measured[name].append(train(cllm, [*flags, "--recompute", KINDS[name]], 13))
print(f"{f'reference, {dtype}':<22} {'workers':>8} {'tokens/s':>12} {'resident MiB':>16} {'last loss':>12}")
for name, of in measured.items():
    speed = median(run.speed for run in of)
    resident = median(run.done["peak_rss_bytes"] for run in of) / MIB
    print(f"{name:<22} {threads:>8} {speed:>12.0f} {resident:>16.0f} {of[0].last['loss']:>12.6f}")
losses = {run.last["loss"] for of in measured.values() for run in of}
if len(losses) != 1:
    sys.exit(f"the losses differ: {losses}")
PYTHON
