#!/usr/bin/env bash
# Trains the reference workload on one thread with each instruction set, in turns, and
# prints medians: tokens a second and the share of the multiply-add peak that the same
# run measured at its start. The losses stand beside them: a fast wrong step shows.
#
# Usage: benches/reference.sh [RUNS]       (5 runs of each, about ten minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-5}
work=target/reference
cllm=target/release/cllm

cargo build --quiet --locked --release --package cllm
[ -f "$work/data/meta.json" ] || "$cllm" data reference --out "$work/data" > /dev/null

# One number of the last event that has it.
field() {
    sed -n "s/.*\"$1\":\([0-9.e+-]*\).*/\1/p" | tail -n 1
}

median() {
    sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

isas=()
for isa in scalar avx avx2 avx512; do
    if "$cllm" plan --isa "$isa" > /dev/null 2>&1; then isas+=("$isa"); fi
done
rm -rf "$work/figures" && mkdir -p "$work/figures"
for run in $(seq "$runs"); do
    for isa in "${isas[@]}"; do
        # The first step touches fresh memory and is reported by itself; the last one
        # reports the mean of those after it.
        steps=13
        [ "$isa" = scalar ] && steps=4
        rm -rf "$work/run"
        "$cllm" train --preset reference --data "$work/data" --isa "$isa" --max-steps "$steps" \
            --threads 1 --log-interval "$steps" --eval-batches 1 --sample-tokens 0 --log-format json \
            --out-dir "$work/run" > "$work/log"
        for name in tokens_per_s mfu loss; do
            grep '"event":"step"' "$work/log" | field "$name" >> "$work/figures/$isa.$name"
        done
        printf 'run %s %-6s %8.0f tokens/s  share %.3f\n' "$run" "$isa" \
            "$(tail -n 1 "$work/figures/$isa.tokens_per_s")" "$(tail -n 1 "$work/figures/$isa.mfu")" >&2
    done
done
printf '%-8s %12s %16s %12s\n' kernels tokens/s "share of peak" "last loss"
for isa in "${isas[@]}"; do
    printf '%-8s %12.0f %15.1f%% %12.4f\n' "$isa" "$(median < "$work/figures/$isa.tokens_per_s")" \
        "$(median < "$work/figures/$isa.mfu" | awk '{ print $1 * 100 }')" \
        "$(median < "$work/figures/$isa.loss")"
done
