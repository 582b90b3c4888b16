#!/usr/bin/env bash
# Builds `cllm` as it is given away (the profile `dist`: stripped of symbols) with all features and
# without the default ones (training, evaluation and generation), and prints what the files weigh
# beside the goals, which are told about and not enforced while they are not met.
#
# Usage: benches/size.sh     (a quarter of an hour the first time; leaves target/size)
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/size

# NAME GOAL FLAGS...: sizes in MB of a million bytes.
measure() {
    local name=$1 goal=$2
    shift 2
    cargo build --quiet --locked --profile dist --package cllm --target-dir "$work" "$@"
    awk -v name="$name" -v size="$(wc -c < "$work/dist/cllm")" -v goal="$goal" 'BEGIN {
        printf "%-22s %6.2f MB   goal %4.1f MB%s\n", name, size / 1e6, goal, size > goal * 1e6 ? ", missed" : ""
    }'
}

measure "default features" 10
measure "no default features" 5 --no-default-features
