#!/usr/bin/env bash
# Trains the reference workload with each instruction set, and with products of bf16 where the
# CPU has them, in turns, and prints medians: tokens a second and the share of the peak that
# the same run measured at its start, of multiply-adds or of bf16 products. The losses stand
# beside them: a fast wrong step shows.
#
# Usage: benches/reference.sh [RUNS [THREADS]]   (5 runs of each on one, about ten minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-5}
threads=${2:-1}
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

kinds=()
for isa in scalar avx avx2 avx512; do
    if "$cllm" plan --isa "$isa" > /dev/null 2>&1; then kinds+=("$isa"); fi
    # Not where bf16 is converted to f32 for every product, which the program says.
    if said=$("$cllm" plan --isa "$isa" --dtype bf16 2>&1 > /dev/null) && [ -z "$said" ]; then
        kinds+=("$isa-bf16")
    fi
done
rm -rf "$work/figures" && mkdir -p "$work/figures"
for run in $(seq "$runs"); do
    for kind in "${kinds[@]}"; do
        # The first step touches fresh memory and is reported by itself; the last one
        # reports the mean of those after it.
        steps=13
        [ "$kind" = scalar ] && steps=4
        dtype=f32
        [ "$kind" = "${kind%-bf16}" ] || dtype=bf16
        rm -rf "$work/run"
        "$cllm" train --preset reference --data "$work/data" --isa "${kind%-bf16}" --dtype "$dtype" \
            --max-steps "$steps" --threads "$threads" --log-interval "$steps" --eval-batches 1 \
            --sample-tokens 0 --log-format json --out-dir "$work/run" > "$work/log"
        for name in tokens_per_s mfu loss; do
            grep '"event":"step"' "$work/log" | field "$name" >> "$work/figures/$kind.$name"
        done
        printf 'run %s %-11s %8.0f tokens/s  share %.3f\n' "$run" "$kind" \
            "$(tail -n 1 "$work/figures/$kind.tokens_per_s")" \
            "$(tail -n 1 "$work/figures/$kind.mfu")" >&2
    done
done
printf '%-11s %12s %16s %12s\n' kernels tokens/s "share of peak" "last loss"
for kind in "${kinds[@]}"; do
    printf '%-11s %12.0f %15.1f%% %12.4f\n' "$kind" \
        "$(median < "$work/figures/$kind.tokens_per_s")" \
        "$(median < "$work/figures/$kind.mfu" | awk '{ print $1 * 100 }')" \
        "$(median < "$work/figures/$kind.loss")"
done
