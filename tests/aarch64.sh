#!/usr/bin/env bash
# Builds kernels and core for 64-bit ARM with Debian's compiler, and runs there, in QEMU, the kernels' tests, NEON against
# the scalar kernels and sums in f64, and a test of whole steps (tests/elsewhere.rs). Then it looks at the machine code of
# the micro-kernel.
#
# An emulator says nothing of speed. And threads see one another's memory in the order of the x86-64 CPU below, which
# is stronger than what ARM promises: orders are for `.ci/loom`. The census of instructions is of x86-64 alone, and the
# runner is not built.
#
# Usage: tests/aarch64.sh
#
# Needs what apt-get can get: Debian's Rust, a linker and QEMU (190 MB, into target/aarch64, without being installed).
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/support/rust.sh
work=$PWD/target/aarch64
# Nothing is shown where they are not to be had: the exit code says so.
want_rust "$work/tools" gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user libstd-rust-web-dev:arm64 || exit 77
start_unpacked "$work/tools/qemu" "$TOOLS/usr/bin/qemu-aarch64"
start_unpacked "$work/tools/objdump" "$TOOLS/usr/bin/aarch64-linux-gnu-objdump"

export RUSTC CARGO_INCREMENTAL=0
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$TOOLS/usr/bin/aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$work/tools/qemu
# Programs that need no library of the machine's.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-D warnings -C target-feature=+crt-static \
-C link-arg=--sysroot=$TOOLS"
# Programs in an emulator are slow, so without the checks that tests have elsewhere. Code of link-time optimisation could
# not be looked at.
export CARGO_PROFILE_RELEASE_LTO=off
build=(--quiet --locked --release --target aarch64-unknown-linux-gnu --target-dir "$work/build")

say() {
    printf '\n== %s (%d s)\n' "$1" "$SECONDS"
}

say "kernels"
"$CARGO" test "${build[@]}" --package cllm-kernels --lib --tests

say "whole steps"
"$CARGO" test "${build[@]}" --manifest-path tests/elsewhere/Cargo.toml --test elsewhere

say "the machine code of the micro-kernel"
"$CARGO" build "${build[@]}" --package cllm-kernels
"$work/tools/objdump" --disassemble --demangle --no-show-raw-insn \
    "$work/build/aarch64-unknown-linux-gnu/release/libcllm_kernels.rlib" > "$work/kernels.txt"
# Of each function the piece without a jump or call with the most multiply-adds of vectors: how many they are, and how
# often the piece moves a vector to or from the stack. `.ci/census` looks closer, at x86-64 alone.
awk '
    function ends() {
        if (fused > most) { most = fused; moves = spills }
        fused = spills = 0
    }
    function tell(name) {
        ends()
        if (name ~ /::shells::neon::((single|rounded)::product|tile)$/) {
            printf "%s: %d multiply-adds of vectors in a row, %d vectors to or from the stack\n", name, most, moves
            # Four steps of four rows of four vectors.
            if (most < 64 || moves > 0) { print "    there should be 64, and none"; failed = 1 }
            neon++
        } else if (name ~ /::shells::scalar::/) {
            if (most > 0) { print name " is not scalar"; failed = 1 }
            scalar++
        }
        most = moves = 0
    }
    /^[0-9a-f]+ <.*>:$/ { tell(name); name = $0; gsub(/^[0-9a-f]+ <|>:$/, "", name); next }
    $2 ~ /^(b|b\..*|br|bl|blr|cbn?z|tbn?z|ret)$/ { ends(); next }
    $2 == "fmla" && $3 ~ /\.4s/ { fused++ }
    $2 ~ /^(ldr|str|ldp|stp|ldur|stur)$/ && $3 ~ /^q/ && /\[sp/ { spills++ }
    END {
        tell(name)
        if (neon < 3 || scalar < 20) { print "looked at " neon + 0 " and " scalar + 0 " functions"; failed = 1 }
        exit failed
    }
' "$work/kernels.txt"

printf '\n== done (%d s)\n' "$SECONDS"
