#!/usr/bin/env bash
# Trains the reference workload with candle, burn and cllm in turns, on two threads and on one,
# and prints medians. Before that each peer goes through the 20 steps of the start file, and its
# losses must be cllm's. layers/README.md has more.
#
# Usage: benches/peers/layers.sh [RUNS [THREADS]]      (5 runs of each, "2 1", half an hour)
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-5}
threads=${2:-2 1}
work=target/peers-layers
start=target/peers/start/A.safetensors
data=target/reference/data
cllm=target/release/cllm
# A step of the peers takes seconds.
steps=3

cargo build --quiet --locked --release --package cllm
[ -f "$data/meta.json" ] || "$cllm" data reference --out "$data" > /dev/null
[ -f "$start" ] || python3 benches/peers/pytorch/works.py A
# Their passes over memory are made into vectors by the compiler, for the CPU that it is told.
RUSTFLAGS="-C target-cpu=native" cargo build --quiet --locked --release \
    --manifest-path benches/peers/layers/Cargo.toml --target-dir "$work"

field() {
    sed -n "s/.*\"$1\":\([0-9.e+-]*\).*/\1/p" | tail -n 1
}

median() {
    sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

printf '%-8s %7s %18s %18s\n' peer "loss 20" "losses differ by" "norms differ by"
for peer in candle burn; do
    # Ends the script if a loss differs by more than 1e-4, or a parameter got no gradient.
    "$work/release/peers-$peer" "$start" --steps 20 > "$work/$peer.json"
    printf '%-8s %7.4f %18s %18s\n' "$peer" "$(field loss < "$work/$peer.json")" \
        "$(field loss_difference < "$work/$peer.json")" \
        "$(field grad_norm_difference < "$work/$peer.json")"
done

time_peer() {
    RAYON_NUM_THREADS=$2 "$work/release/peers-$1" "$start" --steps "$steps" | field tokens_per_s
}

time_cllm() {
    rm -rf "$work/run"
    "$cllm" train --preset reference --tuning off --data "$data" --max-steps 13 --log-interval 13 \
        --threads "$1" --eval-batches 1 --sample-tokens 0 --log-format json \
        --out-dir "$work/run" > "$work/log"
    grep '"event":"step"' "$work/log" | field tokens_per_s
}

rm -rf "$work/figures" && mkdir -p "$work/figures"
for run in $(seq "$runs"); do
    for count in $threads; do
        order="candle burn cllm"
        if [ $((run % 2)) = 0 ]; then order="cllm burn candle"; fi
        for peer in $order; do
            figure=$(if [ "$peer" = cllm ]; then time_cllm "$count"; else time_peer "$peer" "$count"; fi)
            echo "$figure" >> "$work/figures/$peer.$count"
        done
        echo "run $run, threads: $count" >&2
    done
done
printf '\n%-8s %8s %10s %12s\n' peer threads tokens/s "cllm is"
for count in $threads; do
    for peer in candle burn cllm; do
        speed=$(median < "$work/figures/$peer.$count")
        ratio=$(paste "$work/figures/cllm.$count" "$work/figures/$peer.$count" \
            | awk '{ print $1 / $2 }' | median)
        printf '%-8s %8s %10.0f %11.1fx\n' "$peer" "$count" "$speed" "$ratio"
    done
done
