#!/usr/bin/env bash
# Trains the reference workload with each instruction set, and with products of bf16 where the
# CPU has them, in turns, and prints medians: tokens a second and the share of the peak that
# the same run measured at its start, of multiply-adds or of bf16 products. The losses stand
# beside them: a fast wrong step shows.
#
# Usage: benches/reference.sh [RUNS [THREADS]]   (5 runs of each on one, about ten minutes)
#
# For a quiet machine. Needs Python 3, nothing but its own library.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/common/prepare.sh
kinds=()
for isa in scalar avx avx2 avx512 amx; do
    # Without products of bf16 amx is avx512.
    if [ "$isa" != amx ] && "$cllm" plan --isa "$isa" > /dev/null 2>&1; then kinds+=("$isa"); fi
    # Not where bf16 is converted to f32 for every product, which the program says.
    if said=$("$cllm" plan --isa "$isa" --dtype bf16 2>&1 > /dev/null) && [ -z "$said" ]; then
        kinds+=("$isa-bf16")
    fi
done
exec python3 - "$cllm" "$data" "${1:-5}" "${2:-1}" "${kinds[@]}" <<'PYTHON'
import sys
from statistics import median

from runs import note, train, turns

cllm, data, runs, threads, *kinds = *sys.argv[1:3], int(sys.argv[3]), *sys.argv[4:]
reports = {kind: [] for kind in kinds}
for turn, kind in turns(runs, kinds):
    isa, _, dtype = kind.partition("-")
    flags = ["--preset", "reference", "--data", data, "--threads", threads]
    flags += ["--isa", isa, "--dtype", dtype or "f32"]
    report = train(cllm, flags, 4 if isa == "scalar" else 13).last
    reports[kind].append(report)
    note(f"run {turn} {kind:<11} {report['tokens_per_s']:8.0f} tokens/s  share {report['mfu']:.3f}")
print(f"{'kernels':<11} {'tokens/s':>12} {'share of peak':>16} {'last loss':>12}")
for kind, of in reports.items():
    speed, share, loss = (median(report[key] for report in of) for key in ("tokens_per_s", "mfu", "loss"))
    print(f"{kind:<11} {speed:>12.0f} {100 * share:>15.1f}% {loss:>12.4f}")
PYTHON
