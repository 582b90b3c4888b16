#!/usr/bin/env bash
# Shows where the time of a reference step goes, as points of what the machine's peak would do:
# traces some steps, and prints for each operation its threads' time, what it computes a second,
# and how many percent of the step it takes beyond its time at the peak. Together with the share
# of the peak they are 100.
#
# Usage: benches/profile.sh [RUNS [THREADS [FLAG...]]]    (5 runs on two threads, about two minutes)
#   benches/profile.sh 5 1 --isa avx2
#   benches/profile.sh 5 2 --dtype bf16
#   benches/profile.sh 3 2 --n-layer 8 --n-embd 512 --block-size 2048 --batch-size 1
#
# Flags are those of `cllm train`. For a quiet machine. Needs Python 3, nothing but its own library.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/common/prepare.sh
runs=${1:-5}
threads=${2:-2}
shift $(($# < 2 ? $# : 2))
exec python3 - "$cllm" "$data" "$work/profile.json" "$runs" "$threads" "$@" <<'PYTHON'
import json
import sys
from collections import Counter
from statistics import median

from runs import note, train

cllm, data, path, runs, threads, *more = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]), *sys.argv[6:]
STEPS = 5


def operations(model: dict, tokens: int) -> dict[str, float]:
    """FLOP of a step by operation: those of `6 N` a token, and half of attention's square."""
    d, d_ff, layers = model["n_embd"], model["d_ff"], model["n_layer"]
    matrices = {"qkv": d * 3 * d, "attn_out": d * d, "fc": d * d_ff, "mlp_out": d * d_ff}
    flops = {}
    for name, weights in matrices.items():
        for kind in ("", " dX", " dW"):
            flops[name + kind] = 2.0 * tokens * layers * weights
    head = 2.0 * tokens * d * model["vocab_size"]
    flops |= {"logits, loss and dlogits": 2 * head, "head dW": head}
    square = tokens * layers * model["block_size"] * d
    return flops | {"attention": 2.0 * square, "attention backward": 4.0 * square}


profiles = []
for run in range(runs):
    flags = ["--preset", "reference", "--data", data, "--threads", threads, *more]
    done = train(cllm, [*flags, "--trace", path, "--trace-steps", STEPS], STEPS + 3)
    with open(path) as file:
        trace = json.load(file)
    about = trace["otherData"]
    flops = operations(about["model"], about["batch_size"] * about["model"]["block_size"])
    start = done.events["start"][-1]
    counted = sum(flops.values())
    if abs(counted / start["flops_per_step"] - 1) > 1e-3:
        sys.exit(f"profile.sh counts {counted:.4e} FLOP a step, cllm {start['flops_per_step']:.4e}")
    peak = start["peak_gflops"] * 1e9 / threads
    spans = Counter()
    for event in trace["traceEvents"]:
        if event.get("ph") == "X" and event["cat"] != "main":
            spans[event["name"]] += event["dur"] / 1e6 / about["steps"]
    whole = threads * about["costs"]["step_ns"] / 1e9
    spans["outside tiles"] = whole - sum(spans.values())
    profiles.append((peak, whole, spans))
    note(f"run {run + 1}: {1e3 * whole / threads:.1f} ms a step, {100 * counted / peak / whole:.1f} % of the peak")


def middle(of) -> float:
    return median(of(*profile) for profile in profiles)


share = middle(lambda peak, whole, spans: counted / peak / whole)
print(f"{threads} threads, peak {middle(lambda peak, *_: peak) / 1e9:.0f} GFLOP/s each, medians of {runs} runs")
print(f"{'operation':<28} {'thread-ms':>10} {'of the step':>12} {'of the peak':>12} {'points lost':>12}")
names = {name for _, _, spans in profiles for name in spans}
rows = []
for name in names:
    ms = middle(lambda peak, whole, spans: 1e3 * spans[name])
    part = middle(lambda peak, whole, spans: spans[name] / whole)
    work = flops.get(name, 0)
    speed = middle(lambda peak, whole, spans: work / peak / spans[name]) if work else None
    lost = middle(lambda peak, whole, spans: (spans[name] - work / peak) / whole)
    rows.append((lost, name, ms, part, speed))
for lost, name, ms, part, speed in sorted(rows, reverse=True):
    of_peak = f"{100 * speed:.1f} %" if speed else ""
    print(f"{name:<28} {ms:>10.2f} {100 * part:>10.1f} % {of_peak:>12} {100 * lost:>12.2f}")
print(f"{'together, and the peak itself':<28} {'':>31} {100 * share:>7.1f} % {100 * (1 - share):>11.2f}")
PYTHON
