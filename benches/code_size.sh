#!/usr/bin/env bash
# Weighs the code of the smallest images that train (tests/freestanding, profile `small`): with scalar kernels
# and with those of AVX2. Runs both, which must reach the hosted run's loss to the bit
# (tests/freestanding/losses.txt), prints what each crate has of the code, and fails above the goals.
#
# Usage: benches/code_size.sh           (ten seconds the first time; leaves target/code_size)
#        benches/code_size.sh --each    also what each feature of cllm-core adds to either image (ten minutes)
#
# Code is what is in .text. Needs binutils (`size`, `nm`), x86-64 Linux, and for the second image a CPU with AVX2.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$root/target/code_size
image=$work/small/freestanding
fault=0

each=0
case ${1:-} in
    '') ;;
    --each) each=1 ;;
    *) echo "benches/code_size.sh: $1: use --each or nothing" >&2; exit 2 ;;
esac
for tool in size nm; do
    if ! command -v "$tool" > /dev/null; then
        echo "benches/code_size.sh: no $tool: install binutils" >&2
        exit 1
    fi
done

# FEATURES: the image with these.
build() {
    (cd tests/freestanding && cargo build --quiet --locked --profile small --no-default-features \
        --features "$1" --target-dir "$work")
}

# SECTION: its bytes in the image.
section() {
    size -A "$image" | awk -v name="$1" '$1 == name { print $2 }'
}

# ISA: whether the image reaches the hosted loss, and finds another one wrong.
check() {
    local loss other status
    loss=$(awk -v isa="$1" '$1 == isa { print $2 }' tests/freestanding/losses.txt)
    if [ "$1" = avx2 ] && ! grep -qw avx2 /proc/cpuinfo; then
        echo "not run: this CPU has no AVX2"
        return
    fi
    status=0
    "$image" "$1" "$loss" || status=$?
    if [ "$status" -ne 0 ]; then
        echo "benches/code_size.sh: the image for $1 ends with $status, not with the loss $loss:" \
            "see tests/freestanding/src/main.rs" >&2
        fault=1
    fi
    other=0000000000000000
    status=0
    "$image" "$1" "$other" || status=$?
    if [ "$status" -ne 1 ]; then
        echo "benches/code_size.sh: the image for $1 takes a wrong loss: it ends with $status" >&2
        fault=1
    fi
}

# ISA GOAL
weigh() {
    local code
    build "$1"
    check "$1"
    code=$(section .text)
    awk -v isa="$1" -v code="$code" -v data="$(section .rodata)" -v goal="$2" 'BEGIN {
        missed = code > goal * 1024
        printf "%-8s code %6.1f KiB   goal %3d KiB   constants %4.1f KiB%s\n", isa, code / 1024, goal,
            data / 1024, missed ? "   missed" : ""
        exit missed
    }' || fault=1
    # What is inlined counts for whoever has it inlined.
    nm -S -C -t d --defined-only "$image" | awk '$3 ~ /^[tTwW]$/ && NF >= 4 {
        size = $2 + 0
        name = $0
        sub(/^[^ ]+ [^ ]+ [^ ]+ /, "", name)
        gsub(/^<+(dyn |&|\[)*/, "", name)
        crate = name
        sub(/[^A-Za-z0-9_].*/, "", crate)
        if (crate ~ /^(mem|_start|bcmp|rust_)/) crate = "freestanding"
        if (crate == "cllm_core" || crate == "cllm_kernels") {
            split(name, part, "::")
            crate = crate "::" part[2]
        }
        sum[crate] += size
    }
    END { for (crate in sum) printf "    %-28s %7d\n", crate, sum[crate] }' | sort -k2,2nr
}

weigh scalar 64
weigh avx2 160
if [ "$each" -eq 1 ]; then
    printf '%-10s %18s %18s\n' feature "adds to scalar" "adds to avx2"
    declare -A base
    for isa in scalar avx2; do
        build "$isa"
        base[$isa]=$(section .text)
    done
    for feature in adapters documents dropout fresh halves llama optimizers pieces recompute workers default; do
        row=$(printf '%-10s' "$feature")
        for isa in scalar avx2; do
            build "$isa,cllm-core/$feature"
            row+=$(printf ' %16d B' "$(($(section .text) - base[$isa]))")
        done
        echo "$row"
    done
fi
exit "$fault"
