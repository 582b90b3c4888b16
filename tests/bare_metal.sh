#!/usr/bin/env bash
# Starts a machine without an operating system (tests/bare_metal/) in QEMU: it switches on its vector units, brings
# up its second core, trains a small model on both, and tells losses, a sample and the hash of the weights over its
# serial port. The hash has to be that of a hosted run on the same instruction set.
#
# Usage: tests/bare_metal.sh     (two minutes, once QEMU is there)
#
# Needs Rust, a CPU with AVX2 to compare with, and QEMU: the one that QEMU names, the system's, or what apt-get can get
# (18 MB, into target/bare_metal, without being installed). LIMIT: seconds that the test may take, its building aside.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/support/qemu.sh
# Nothing is shown where one of them is missing: the exit code says so.
if ! grep -qw avx2 /proc/cpuinfo; then
    echo "no CPU with AVX2 to compare with" >&2
    exit 77
fi
want_qemu target/bare_metal || exit 77
export QEMU
cargo test --quiet --locked --test bare_metal --no-run
exec ${LIMIT:+timeout "$LIMIT"} cargo test --quiet --locked --test bare_metal -- --nocapture the_machine
