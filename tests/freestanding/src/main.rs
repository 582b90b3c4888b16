//! Trains a tiny model out of static memory with nothing underneath but the kernel of
//! the system: no std, no allocator, no libc, no start files.
//!
//! Usage: `freestanding ISA LOSS`, with `LOSS` the hosted run's last loss as the 16 hex
//! digits of an `f64`. Exits 0 only if this run's last loss is the same bits, 1 if it is
//! not, 2 on wrong usage, 3 if the memory was too small, 4 on an error in a step, 5 if
//! the loss did not fall, 101 on a panic. `tests/freestanding.rs` builds and runs it.
#![no_std]
#![no_main]

mod memory;
mod system;
mod workload;

use cllm_core::{Isa, Kernels};
use core::cell::UnsafeCell;
use workload::{Failure, Memory};

/// Static memory for one caller.
struct Pool(UnsafeCell<Memory>);

// SAFETY: this process has one thread.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new(Memory::new()));

/// Runs the program and returns its exit status.
fn run(isa: &[u8], expected: &[u8]) -> i32 {
    let isa = core::str::from_utf8(isa).ok().and_then(|name| name.parse::<Isa>().ok());
    let expected = core::str::from_utf8(expected).ok();
    let expected = expected.and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let (Some(kernels), Some(expected)) = (isa.and_then(Kernels::for_isa), expected) else {
        return 2;
    };
    // SAFETY: called once, on the only thread.
    let memory = unsafe { &mut *POOL.0.get() };
    match workload::train(kernels, memory) {
        Ok((first, last)) if last < first - 1.0 => i32::from(last.to_bits() != expected),
        Ok(_) => 5,
        Err(Failure::Plan(_)) => 3,
        Err(Failure::Step(_)) => 4,
    }
}
