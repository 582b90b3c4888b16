#!/usr/bin/env bash
# Trains the reference workload with every number of workers, depth of prefetching and
# instruction set, prints the hash of the weights of each run and fails if two of one
# instruction set differ.
#
# Usage: benches/determinism.sh [STEPS [BATCH [WORKERS [PREFETCH [ISAS]]]]]
#   benches/determinism.sh                          50 steps of 32 sequences, all of it: hours
#   benches/determinism.sh 5 8                      shorter and smaller: about ten minutes
#   benches/determinism.sh 50 32 "1 2 8" 4 avx2     lists of values, each in quotes
set -euo pipefail
cd "$(dirname "$0")/.."
steps=${1:-50}
batch=${2:-32}
workers=${3:-1 2 3 4 7 8}
prefetch=${4:-1 16}
isas=${5:-scalar avx avx2 avx512}
. benches/common/prepare.sh

printf '%d steps of %d sequences of 128 tokens\n' "$steps" "$batch"
printf '%-8s %8s %9s %8s %8s  %s\n' kernels workers prefetch seconds stolen weights_sha256
failed=0
for isa in $isas; do
    if ! "$cllm" plan --isa "$isa" > /dev/null 2>&1; then
        printf '%-8s this CPU does not have it: skipped\n' "$isa"
        continue
    fi
    first=
    for n in $workers; do
        for depth in $prefetch; do
            rm -rf "$work/determinism"
            "$cllm" train --preset reference --tuning off --data "$data" --isa "$isa" --threads "$n" \
                --prefetch "$depth" --batch-size "$batch" --max-steps "$steps" --eval-batches 1 \
                --sample-tokens 0 --log-interval "$steps" --log-format json \
                --out-dir "$work/determinism" | grep '"event":"done"' > "$work/done.json"
            hash=$(sed 's/.*"weights_sha256":"\([0-9a-f]*\)".*/\1/' "$work/done.json")
            seconds=$(sed 's/.*"step_seconds":\([0-9.]*\).*/\1/' "$work/done.json")
            stolen=$(grep -o '"tiles_stolen":[0-9]*' "$work/done.json" |
                awk -F : '{ sum += $2 } END { print sum }')
            mark=
            if [ "${#hash}" -ne 64 ] || [ "$hash" != "${first:=$hash}" ]; then
                mark="   DIFFERS"
                failed=1
            fi
            printf '%-8s %8d %9d %8.1f %8d  %s%s\n' \
                "$isa" "$n" "$depth" "$seconds" "$stolen" "$hash" "$mark"
        done
    done
done
rm -rf "$work/determinism" "$work/done.json"
if [ "$failed" -ne 0 ]; then
    echo "the weights depend on the workers or on prefetching" >&2
    exit 1
fi
echo "the same weights in every run of an instruction set"
