#!/usr/bin/env bash
# Builds `cllm` as it is given away (the profile `dist`: small, stripped of symbols) with all features
# and without the default ones (training, evaluation and generation), prints what the files weigh
# beside the goals, and fails if one is heavier.
#
# Usage: benches/size.sh     (ten minutes the first time; leaves target/size)
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/size
fault=0

# NAME GOAL FLAGS...: sizes in MB of a million bytes.
measure() {
    local name=$1 goal=$2
    shift 2
    cargo build --quiet --locked --profile dist --package cllm --target-dir "$work" "$@"
    awk -v name="$name" -v size="$(wc -c < "$work/dist/cllm")" -v goal="$goal" 'BEGIN {
        missed = size > goal * 1e6
        printf "%-22s %6.2f MB   goal %4.1f MB%s\n", name, size / 1e6, goal, missed ? ", missed" : ""
        exit missed
    }' || fault=1
}

measure "default features" 10
measure "no default features" 5 --no-default-features
exit "$fault"
