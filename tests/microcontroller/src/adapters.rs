//! The same Cortex-M, which trains adapters beside a model that is larger than its RAM: that lies in flash memory,
//! which cannot be written.
#![no_std]
#![no_main]

mod adapt;
mod machine;
mod report;
mod workload;

use adapt::{Base, Lists, Memory, PLAN};
use cllm_core::{Kernels, LANES, Pool};
use machine::{Debugger, Static};
use workload::common::Failure;

/// Bytes that begin where a line does.
#[repr(C, align(64))]
struct Lines<T: ?Sized>(T);

/// The model, as `tests/microcontroller.rs` has written it: panels, other tensors, token table.
static BASE: &Lines<[u8]> = &Lines(*include_bytes!(concat!(env!("OUT_DIR"), "/base.bin")));
/// What is learnt.
static TEXT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/capitals.txt"));

static MEMORY: Static<Memory> = Static::new(Memory::new());
static LISTS: Static<Lists> = Static::new(Lists::new());

/// Where the machine comes to from its reset.
extern "C" fn main() -> ! {
    machine::protect();
    report::end(train(), &PLAN)
}

fn train() -> Result<[u8; 32], Failure> {
    let kernels = Kernels::scalar();
    let base = base().ok_or(Failure("there is no model in flash memory"))?;
    // SAFETY: `main` calls this once.
    let memory = unsafe { (MEMORY.take(), LISTS.take()) };
    adapt::train(kernels, memory, base, TEXT, &mut Debugger)
}

/// The model, if what is in flash memory has the size of one.
fn base() -> Option<Base<'static>> {
    let (panels, rest) = BASE.0.split_at_checked(PLAN.bytes(Pool::Packed))?;
    let (resident, table) = rest.split_at_checked(4 * PLAN.resident().arena_len())?;
    // SAFETY: any bytes are lines, and floats.
    let ((_, panels, _), (_, resident, _)) = unsafe { (panels.align_to(), resident.align_to()) };
    let is_whole = panels.len() == PLAN.lines(Pool::Packed) && resident.len().is_multiple_of(LANES);
    is_whole.then_some(Base { panels, resident, table })
}
