#!/usr/bin/env bash
# Builds kernels and core for WebAssembly with Debian's compiler, and runs there, under Node.js, the kernels' tests, simd128
# against the scalar kernels and sums in f64, and a test of whole steps (tests/elsewhere.rs). Then a library without std
# (tests/wasm/), with vectors and without, trains to a hosted run's losses.
#
# Panics unwind by WebAssembly's exceptions, so what has to refuse something is run too, but for the one test that ends by
# its panic, which Rust's harness leaves out there. There are no threads; the runner and the interface for C are not built;
# engines other than that of Node.js, and browsers, are not tried.
#
# Usage: tests/wasm.sh     (ten minutes, once there is a compiler)
#
# Needs Rust, and Node.js (20 or later): the one that NODE names, or the system's. And what apt-get can get: Debian's Rust
# with its sources, a linker and a C library (900 MB, into target/wasm, without being installed).
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/support/rust.sh
work=$PWD/target/wasm
NODE=${NODE:-$(command -v node || true)}
if [ -z "$NODE" ]; then
    echo "no Node.js: NODE is to name one" >&2
    exit 77
fi
# Nothing is shown where they are not to be had: the exit code says so.
want_rust "$work/tools" rust-web-src lld-22 wasi-libc || exit 77
start_unpacked "$work/tools/wasm-ld" "$TOOLS/usr/lib/llvm-22/bin/wasm-ld"
libc=$TOOLS/usr/lib/wasm32-wasi

export RUSTC CARGO_INCREMENTAL=0
# Debian has no standard library for these targets; a stable compiler builds its own only if told that it may.
export RUSTC_BOOTSTRAP=1
"$RUSTC" --target wasm32-wasip1 --emit obj -o "$work/missing.o" tests/wasm/missing.rs
export CARGO_TARGET_WASM32_WASIP1_LINKER=$work/tools/wasm-ld
export CARGO_TARGET_WASM32_WASIP1_RUNNER="$NODE --no-warnings $PWD/tests/wasm/start.mjs"
# Exceptions as of before 2025, which older versions of Node.js know.
wasi="-D warnings -C panic=unwind -C llvm-args=-wasm-use-legacy-eh=true -C link-self-contained=no \
-C link-arg=$libc/crt1-command.o -C link-arg=$work/missing.o -L native=$libc"
# As in tests/aarch64.sh.
export CARGO_PROFILE_RELEASE_LTO=off
build=(--quiet --locked --release --target wasm32-wasip1 --target-dir "$work/build" -Zbuild-std=std,panic_unwind,test)

say() {
    printf '\n== %s (%d s)\n' "$1" "$SECONDS"
}

export CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS="$wasi -C target-feature=+simd128"
say "kernels"
"$CARGO" test "${build[@]}" --package cllm-kernels --lib --tests

say "whole steps"
"$CARGO" test "${build[@]}" --manifest-path tests/elsewhere/Cargo.toml --test elsewhere

say "without std"
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$work/tools/wasm-ld
for feature in +simd128 -simd128; do
    CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS="-D warnings -C target-feature=$feature" \
        "$CARGO" build --quiet --locked --release --target wasm32-unknown-unknown -Zbuild-std=core \
        --target-dir "$work/build$feature" --manifest-path tests/wasm/Cargo.toml
done
library=wasm32-unknown-unknown/release/wasm.wasm
export NODE WASM_SIMD128=$work/build+simd128/$library WASM_PLAIN=$work/build-simd128/$library
# By this system's Rust, for x86-64.
unset RUSTC RUSTC_BOOTSTRAP CARGO_PROFILE_RELEASE_LTO
cargo test --quiet --locked --release --target-dir "$work/build" --manifest-path tests/elsewhere/Cargo.toml --test wasm \
    -- --nocapture --include-ignored

printf '\n== done (%d s)\n' "$SECONDS"
