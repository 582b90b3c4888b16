#!/usr/bin/env bash
# Counts the instructions of fixed pieces of work (core/benches/instructions.rs: kernels in
# scalar and AVX2 code, a small training step, the ring) under callgrind, prints them beside the
# committed counts of benches/instructions.txt, and fails if one is more than 2 % above.
#
# Usage: benches/instructions.sh [--bless]     (half a minute; --bless writes the counts anew)
#
# Counts depend on the code and the compiler, not on load, clock or number of CPUs
# (benches/common/committed.sh). Needs valgrind and a CPU with AVX2 (of AVX-512 valgrind knows nothing).
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/common/committed.sh
baseline=benches/instructions.txt
work=target/instructions

case ${1:-} in
    '' | --bless) ;;
    *) echo "benches/instructions.sh: $1: use --bless or nothing" >&2; exit 2 ;;
esac
if ! command -v valgrind > /dev/null; then
    echo "benches/instructions.sh: no valgrind: install it (Debian, Ubuntu: apt-get install valgrind)" >&2
    exit 1
fi

# As `.ci/no_std` builds kernels and core: they are there already.
export CARGO_PROFILE_RELEASE_LTO=off
program=$(cargo build --quiet --locked --release --package cllm-core --bench instructions \
    --target-dir target/no_std --message-format json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
rm -rf "$work" && mkdir -p "$work"
# Counts while `counted` runs, and writes a file each time that it returns: the counts of the
# cases in the order of their names.
valgrind --tool=callgrind --callgrind-out-file="$work/counts" --collect-atstart=no \
    --toggle-collect=instructions::counted --dump-after=instructions::counted \
    "$program" > "$work/names" 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
grep '^instructions: ' "$work/log" >&2 || true

number=0
while IFS= read -r name; do
    number=$((number + 1))
    count=$(sed -n 's/^totals: //p' "$work/counts.$number" 2> /dev/null || true)
    if [ "${count:-0}" -eq 0 ]; then
        echo "benches/instructions.sh: nothing was counted for $name: see $work" >&2
        exit 1
    fi
    printf '%s\t%s\n' "$count" "$name"
done < "$work/names" > "$work/now"

if [ "${1:-}" = --bless ]; then
    bless Instructions benches/instructions.sh "$baseline" < "$work/now"
else
    judge instructions benches/instructions.sh "$baseline" 2 < "$work/now"
fi
