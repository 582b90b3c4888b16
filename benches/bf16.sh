#!/usr/bin/env bash
# What products of bf16 change in what is learned: whole runs of the small presets in fp32 and with
# `--dtype bf16`, on the text that the program carries and from the same seeds, and the losses on all
# validation data that they end with. Fails if a preset's bf16 loss, the mean over the seeds, is more than
# 0.5 % from that of fp32.
#
# Usage: benches/bf16.sh [SEEDS [THREADS [FLAG...]]]    (3 seeds on two threads, five to ten minutes)
#   benches/bf16.sh 3 2 --isa avx2      products of bf16 by conversion
#
# Flags are those of `cllm train`. Losses do not depend on the number of threads. Needs Python 3,
# nothing but its own library.
set -euo pipefail
cd "$(dirname "$0")/.."
cllm=${CLLM:-target/release/cllm}
[ -n "${CLLM:-}" ] || cargo build --quiet --locked --release --package cllm
seeds=${1:-3}
threads=${2:-2}
shift $(($# < 2 ? $# : 2))
export PYTHONPATH=benches/common PYTHONDONTWRITEBYTECODE=1
exec python3 - "$cllm" "$seeds" "$threads" "$@" <<'PYTHON'
import sys
import tempfile
from statistics import mean

from runs import finished

cllm, seeds, threads, *more = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
ALLOWED = 0.005


def val_loss(preset, dtype, seed):
    """The loss that a whole run ends with."""
    with tempfile.TemporaryDirectory() as out:
        command = [cllm, "train", "--preset", preset, "--dtype", dtype, "--seed", seed]
        command += ["--threads", threads, "--eval-batches", 0, "--sample-tokens", 0]
        command += ["--log-format", "json", "--out-dir", f"{out}/run", *more]
        return finished(command).done["val_loss"]


apart = {}
print(f"{'preset':<8} {'seed':>5} {'fp32':>9} {'bf16':>9} {'apart':>9}")
for preset in ("tiny", "fast"):
    pairs = []
    for seed in range(1, seeds + 1):
        pairs.append([val_loss(preset, dtype, seed) for dtype in ("f32", "bf16")])
        exact, rounded = pairs[-1]
        share = 100 * (rounded / exact - 1)
        print(f"{preset:<8} {seed:>5} {exact:>9.4f} {rounded:>9.4f} {share:>+7.2f} %", flush=True)
    exact, rounded = (mean(of) for of in zip(*pairs))
    apart[preset] = rounded / exact - 1
    print(f"{preset:<8} {'mean':>5} {exact:>9.4f} {rounded:>9.4f} {100 * apart[preset]:>+7.2f} %")
far = [preset for preset, share in apart.items() if abs(share) > ALLOWED]
if far:
    sys.exit(f"bf16.sh: {', '.join(far)}: more than {100 * ALLOWED} % from fp32")
PYTHON
