#!/usr/bin/env bash
# What `--recompute` saves and what it costs: the bytes of plans of the reference workload and of
# GPT-2 with and without it, then tokens a second of the reference workload in turns, with the
# loss of the last step beside them, which must be the same digits.
#
# Usage: benches/recompute.sh [RUNS [THREADS [DTYPE]]]   (5 runs of each on one, f32; two minutes)
# CLLM names another binary than the one that this builds.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-5}
threads=${2:-1}
dtype=${3:-f32}
work=target/reference
cllm=${CLLM:-target/release/cllm}

[ -n "${CLLM:-}" ] || cargo build --quiet --locked --release --package cllm
[ -f "$work/data/meta.json" ] || "$cllm" data reference --out "$work/data" > /dev/null

# One number of the last line that has it.
field() {
    sed -n "s/.*\"$1\":\([0-9.e+-]*\).*/\1/p" | tail -n 1
}

median() {
    sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

printf '%-22s %8s %16s %12s %20s\n' plan workers "activations MiB" "total MiB" "recomputed GFLOP"
for preset in reference gpt2; do
    for workers in 1 2; do
        for recompute in false true; do
            plan=$("$cllm" plan --preset "$preset" --dtype "$dtype" --threads "$workers" \
                --recompute "$recompute" --no-estimate --json)
            name=$preset
            [ "$recompute" = false ] || name="$preset --recompute"
            printf '%-22s %8s %16.1f %12.1f %20.1f\n' "$name" "$workers" \
                "$(field activations <<< "$plan" | awk '{ print $1 / 1048576 }')" \
                "$(field total_bytes <<< "$plan" | awk '{ print $1 / 1048576 }')" \
                "$(field recomputed_flops <<< "$plan" | awk '{ print $1 / 1e9 }')"
        done
    done
done

figures=$work/recompute
rm -rf "$figures" && mkdir -p "$figures"
for _ in $(seq "$runs"); do
    for recompute in false true; do
        rm -rf "$work/run"
        # The first step touches fresh memory and is reported by itself; the last one reports
        # the mean of those after it.
        "$cllm" train --preset reference --data "$work/data" --dtype "$dtype" --max-steps 13 \
            --threads "$threads" --recompute "$recompute" --log-interval 13 --eval-batches 1 \
            --sample-tokens 0 --log-format json --out-dir "$work/run" > "$work/log"
        for name in tokens_per_s loss; do
            grep '"event":"step"' "$work/log" | field "$name" >> "$figures/$recompute.$name"
        done
        grep '"event":"done"' "$work/log" | field peak_rss_bytes >> "$figures/$recompute.rss"
    done
done
printf '%-22s %8s %12s %16s %12s\n' "reference, $dtype" workers tokens/s "resident MiB" "last loss"
for recompute in false true; do
    name=without
    [ "$recompute" = false ] || name=--recompute
    printf '%-22s %8s %12.0f %16.0f %12.6f\n' "$name" "$threads" \
        "$(median < "$figures/$recompute.tokens_per_s")" \
        "$(median < "$figures/$recompute.rss" | awk '{ print $1 / 1048576 }')" \
        "$(median < "$figures/$recompute.loss")"
done
[ "$(sort -u "$figures"/*.loss | wc -l)" = 1 ] || {
    echo "the losses differ: $(sort -u "$figures"/*.loss | tr '\n' ' ')" >&2
    exit 1
}
