#!/usr/bin/env bash
# Records traces of the reference workload at 1 and 2 workers, and prints what `cllm simulate`
# makes of them beside what was measured:
#
# - check: each recorded step gone through again with its own tiles, on as many workers;
# - the medians of the tiles on as many workers, against the median step;
# - the tiles of one worker, cut for two, on two workers, against the median step of two.
#
# Then the prediction for 64 and 128 workers, of steps cut for as many and run on one, by the
# medians of the tiles and by the fastest of each. Other work on the machine makes medians
# differ from means, and from the fastest: run it alone.
#
# Usage: benches/simulate.sh [STEPS]       (15 steps of each, about four minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
steps=${1:-15}
. benches/common/prepare.sh
work=target/simulate
mkdir -p "$work"

# THREADS TILES-FOR
record() {
    rm -rf "$work/run"
    "$cllm" train --preset reference --tuning off --data "$data" --max-steps "$steps" --warmup-steps 5 \
        --eval-batches 1 --sample-tokens 0 --out-dir "$work/run" --threads "$1" \
        --tiles-for "$2" --trace "$work/$1-$2.json" --trace-steps "$steps" > /dev/null 2>&1
}

# FILE WORKERS KEY: a number of the only prediction, or of the recording.
number() {
    "$cllm" simulate --trace "$work/$1.json" --workers "$2" --json |
        sed -n "s/.*\"$3\":\([0-9.e+-]*\).*/\1/p"
}

compare() {
    awk -v name="$1" -v predicted="$2" -v measured="$3" 'BEGIN {
        printf "%-44s %10.2f ms %10.2f ms %+7.2f %%\n", name, predicted, measured,
            100 * (predicted / measured - 1)
    }'
}

record 1 1
record 1 2
record 2 2
printf '%-44s %13s %13s\n' "" predicted measured
for n in 1 2; do
    compare "$n worker(s), check: step by step" \
        "$(number "$n-$n" "$n" predicted_ms)" "$(number "$n-$n" "$n" measured_ms)"
    compare "$n worker(s), medians of tiles" \
        "$(number "$n-$n" "$n" step_ms)" "$(number "$n-$n" "$n" recorded_step_ms)"
done
compare "2 workers from a recording on 1" \
    "$(number 1-2 2 step_ms)" "$(number 2-2 2 recorded_step_ms)"
for n in 64 128; do
    record 1 "$n"
    printf '\n'
    "$cllm" simulate --trace "$work/1-$n.json" --workers "1,2,32,$n"
    printf '\n'
    "$cllm" simulate --trace "$work/1-$n.json" --workers "1,2,32,$n" --fastest
done
