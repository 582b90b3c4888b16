#!/usr/bin/env bash
# Starts microcontrollers with 256 KiB of RAM (tests/microcontroller/) in QEMU: Cortex-M4 and M7, and a Cortex-M3 without an
# FPU. They train a model of characters from scratch, and the M4 adapters beside a larger one in its flash memory, and tell
# where each byte of their RAM went. The hashes have to be those of hosted runs. The hosted run from scratch goes on and
# has to beat a bigram model of the same text.
#
# Usage: tests/microcontroller.sh     (five minutes, once there are an emulator and a compiler)
#
# Needs Rust, and an emulator and a Rust for Cortex-M: those that QEMU_ARM and CARGO_THUMB name, the system's, or
# what apt-get can get (170 MB, into target/microcontroller, without being installed).
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/support/qemu.sh
. tests/support/thumb.sh
# Nothing is shown where there is none: the exit code says so.
want_qemu_arm target/microcontroller || exit 77
want_thumb target/microcontroller thumbv7em-none-eabihf thumbv7m-none-eabi || exit 77
export QEMU_ARM CARGO_THUMB
exec cargo test --quiet --locked --test microcontroller -- --nocapture --test-threads=1 --include-ignored
