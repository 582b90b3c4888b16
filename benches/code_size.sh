#!/usr/bin/env bash
# Weighs the code of the smallest images that train (tests/freestanding, profile `small`): with scalar kernels
# and with those of AVX2. Runs both, which must reach the hosted run's loss to the bit
# (tests/freestanding/losses.txt), prints what each crate has of the code, and fails above the goals, if an image is
# more than 1 % above the committed size (benches/code_size.txt), or if there is something of `core::fmt` or the words of a
# panic in it.
#
# Features of cllm-core are weighed in the scalar image, one by one.
#
# Usage: benches/code_size.sh           (a minute of CPU; leaves target/code_size)
#        benches/code_size.sh --few     of features all at once (the gate: a quarter of it)
#        benches/code_size.sh --each    also features in the image for AVX2 (100 s of CPU)
#        benches/code_size.sh --bless   all of these, and commits the sizes anew
#
# Code is what is in .text. Needs binutils (`size`, `nm`, `objcopy`), x86-64 Linux, and for the second image a CPU with AVX2.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/common/committed.sh
work=$PWD/target/code_size
image=$work/small/freestanding
baseline=benches/code_size.txt
fault=0

case ${1:-} in
    '' | --few | --each | --bless) ;;
    *) echo "benches/code_size.sh: $1: use --few, --each, --bless or nothing" >&2; exit 2 ;;
esac
for tool in size nm objcopy; do
    if ! command -v "$tool" > /dev/null; then
        echo "benches/code_size.sh: no $tool: install binutils" >&2
        exit 1
    fi
done

# FEATURES: the image with these, and its size.
build() {
    (cd tests/freestanding && cargo build --quiet --locked --profile small --no-default-features \
        --features "$1" --target-dir "$work")
    printf '%d\t%s\n' "$(section .text)" "$1" >> "$work/now"
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

# ISA: nothing formats texts in the image, and no panic has words: messages, and the names of sources that they are said
# with. Functions of `core::panicking` are there, whose words nobody reads: they end the program, in a few bytes each.
wordless() {
    local symbols panics
    symbols=$(nm -S -t d "$image")
    if [ "$(wc -l <<< "$symbols")" -lt 100 ] || ! grep -q 9cllm_core <<< "$symbols"; then
        echo "benches/code_size.sh: the image for $1 has no names of its functions: nothing can be looked for" >&2
        fault=1
    fi
    if grep 4core3fmt <<< "$symbols" >&2; then
        echo "benches/code_size.sh: the image for $1 formats texts: see above what is in it" >&2
        fault=1
    fi
    panics=$(awk '/4core9panicking/ { sum += $2 } END { print sum + 0 }' <<< "$symbols")
    if [ "$panics" -gt 128 ]; then
        echo "benches/code_size.sh: panics have $panics bytes of code in the image for $1" >&2
        fault=1
    fi
    objcopy -O binary -j .rodata -j .data -j .data.rel.ro "$image" "$work/constants"
    if ! grep -aq 'quick brown fox' "$work/constants"; then
        echo "benches/code_size.sh: the constants of the image for $1 are not found: its text is not among them" >&2
        fault=1
    fi
    if grep -aoE '[a-z_/]+\.rs|index out of bounds|called .[A-Z]|attempt to |assertion|range (start|end)|unreachable' \
        "$work/constants" >&2; then
        echo "benches/code_size.sh: panics have words in the image for $1: see above" >&2
        fault=1
    fi
}

# ISA GOAL
weigh() {
    local code
    build "$1"
    check "$1"
    wordless "$1"
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

mkdir -p "$work"
: > "$work/now"
weigh scalar 64
weigh avx2 160
with_features='scalar'
features='adapters documents dropout fresh halves llama optimizers pieces recompute workers default'
compared='^(scalar.*|avx2)$'
case ${1:-} in
    --few) features=default compared='^(scalar(,cllm-core/default)?|avx2)$' ;;
    --each | --bless) with_features='scalar avx2' compared= ;;
esac
for feature in $features; do
    for isa in $with_features; do
        build "$isa,cllm-core/$feature"
    done
done
if [ "${1:-}" = --bless ]; then
    bless "Bytes of code" benches/code_size.sh "$baseline" < "$work/now"
else
    judge "bytes of code" benches/code_size.sh "$baseline" 1 "$compared" < "$work/now" || fault=1
fi
exit "$fault"
