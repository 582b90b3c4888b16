//! A Cortex-M with 256 KiB of RAM that trains a model of characters from scratch: no std, no allocator, no libc. It
//! tells through a debugger (semihosting) what it does, where each byte of its RAM went, and ends with a status.
//!
//! ```text
//! flash   vectors, program, constants, the text     4 MiB, cannot be written
//! RAM     stack (overflows into nothing), statics   256 KiB, all that there is: the MPU refuses the rest
//! ```
//! Status 0 is success, 17 an error, 18 a panic, 19 a fault: what it must end with if the argument is `below`,
//! `beyond` or `flash`, by which it overflows its stack, writes behind its RAM, or to flash.
//! `tests/microcontroller.rs` builds it, starts it in QEMU and compares with a hosted run.
#![no_std]
#![no_main]

mod machine;
mod report;
mod workload;

use cllm_core::Kernels;
use core::hint::black_box;
use machine::{Debugger, Static};
use workload::common::Failure;
use workload::{Lists, Memory};

/// The part of the text that is learnt from: `build.rs` has cut it.
static TEXT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/text.txt"));

static MEMORY: Static<Memory> = Static::new(Memory::new());
static LISTS: Static<Lists> = Static::new(Lists::new());

/// Where the machine comes to from its reset.
extern "C" fn main() -> ! {
    machine::protect();
    match machine::argument(&mut [0; 64]) {
        "below" => {
            overflow(0);
        }
        "beyond" => poke(machine::RAM + machine::RAM_BYTES),
        "flash" => poke(TEXT.as_ptr().addr()),
        _ => {}
    }
    report::end(train(), &workload::PLAN)
}

fn train() -> Result<[u8; 32], Failure> {
    let kernels = Kernels::scalar();
    // SAFETY: `main` calls this once.
    let memory = unsafe { (MEMORY.take(), LISTS.take()) };
    workload::train(kernels, memory, TEXT, &mut Debugger, |_| Ok(()))
}

/// Uses up the stack.
#[expect(unconditional_recursion, reason = "until a fault ends it")]
fn overflow(depth: usize) -> usize {
    let frame = black_box([depth; 64]);
    overflow(depth + 1) + black_box(frame)[0]
}

/// Writes to an address that is not to be written.
fn poke(at: usize) {
    // SAFETY: the MPU refuses it, or else what is there is nobody's or is not read any more.
    unsafe { core::ptr::with_exposed_provenance_mut::<u32>(at & !3).write_volatile(1) }
}
