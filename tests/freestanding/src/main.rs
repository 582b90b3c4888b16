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

use cllm_core::Kernels;
use core::cell::UnsafeCell;
use workload::{Failure, Memory};

/// Static memory for one caller.
struct Pool(UnsafeCell<Memory>);

// SAFETY: this process has one thread.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new(Memory::new()));

/// The kernels of the instruction set of this name, if the CPU has them.
#[cfg(feature = "named")]
fn kernels(isa: &[u8]) -> Option<&'static Kernels> {
    let isa = core::str::from_utf8(isa).ok()?.parse().ok()?;
    Kernels::for_isa(isa)
}

/// The kernels that are built in, if they are the ones of this name.
#[cfg(all(feature = "scalar", not(feature = "named")))]
fn kernels(isa: &[u8]) -> Option<&'static Kernels> {
    (isa == b"scalar").then(Kernels::scalar)
}

/// The kernels that are built in, if they are the ones of this name.
#[cfg(all(feature = "avx2", not(feature = "named"), not(feature = "scalar")))]
fn kernels(isa: &[u8]) -> Option<&'static Kernels> {
    // SAFETY: who starts the image built for AVX2 says that the CPU has it.
    (isa == b"avx2").then(|| unsafe { Kernels::assume_avx2() })
}

/// The value of 1 to 16 hexadecimal digits.
fn hex(digits: &[u8]) -> Option<u64> {
    let digit = |value: u64, byte: &u8| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    };
    let sound = (1..=16).contains(&digits.len());
    sound.then(|| digits.iter().try_fold(0, digit)).flatten()
}

/// With a plan that is made here, of the kernels that are found.
#[cfg(feature = "named")]
fn train(kernels: &'static Kernels, memory: &mut Memory) -> Result<(f64, f64), Failure> {
    use cllm_core::{Mode, Plan};
    use workload::{CONFIG, SHAPE};

    let plan = Plan::new(&CONFIG, SHAPE, 1, Mode::Train, kernels).map_err(Failure::Plan)?;
    workload::train(&plan, kernels, memory)
}

/// With the plan that the compiler has made: nothing of the planning is in the image.
#[cfg(not(feature = "named"))]
fn train(kernels: &'static Kernels, memory: &mut Memory) -> Result<(f64, f64), Failure> {
    use cllm_core::{KernelSet, Mode, Plan};
    use workload::{CONFIG, SHAPE};

    const SET: KernelSet =
        if cfg!(feature = "scalar") { KernelSet::SCALAR } else { KernelSet::AVX2 };
    static PLAN: Plan = Plan::fixed(&CONFIG, SHAPE, 1, Mode::Train, SET);
    workload::train(&PLAN, kernels, memory)
}

/// Runs the program and returns its exit status.
fn run(isa: &[u8], expected: &[u8]) -> i32 {
    let (Some(kernels), Some(expected)) = (kernels(isa), hex(expected)) else {
        return 2;
    };
    // SAFETY: called once, on the only thread.
    let memory = unsafe { &mut *POOL.0.get() };
    match train(kernels, memory) {
        Ok((first, last)) if last < first - 1.0 => i32::from(last.to_bits() != expected),
        Ok(_) => 5,
        Err(Failure::Plan(_)) => 3,
        Err(Failure::Step(_)) => 4,
    }
}
