//! Trains a tiny model out of static memory in WebAssembly: no std, no allocator, nothing imported.
//!
//! `train(ISA)`, with a number of [`SETS`], gives 0 once it has trained, 2 if there are no such kernels, 3 if the memory
//! was too small, 4 on an error in a step; it traps on a panic. `first_loss()` and `last_loss()` are then what the hosted
//! run of `tests/wasm/hosted.rs` has to have as well.
#![no_std]

#[path = "../../freestanding/src/workload.rs"]
mod workload;

use cllm_core::{Isa, Kernels, Mode, Plan};
use core::cell::UnsafeCell;
use core::panic::PanicInfo;
use workload::{CONFIG, Failure, Memory, SHAPE};

/// Kernels by number.
const SETS: [Isa; 2] = [Isa::Scalar, Isa::Simd128];

/// What is kept between calls.
struct State {
    memory: Memory,
    losses: (f64, f64),
}

/// Static memory for one caller.
struct Cell(UnsafeCell<State>);

// SAFETY: an instance without shared memory has one thread.
unsafe impl Sync for Cell {}

static STATE: Cell = Cell(UnsafeCell::new(State { memory: Memory::new(), losses: (0.0, 0.0) }));

/// Trains with the kernels of this number and returns a status.
#[unsafe(no_mangle)]
extern "C" fn train(isa: u32) -> i32 {
    let Some(kernels) = SETS.get(isa as usize).copied().and_then(Kernels::for_isa) else {
        return 2;
    };
    // SAFETY: on the only thread, which is in no other of these functions: they do not call back.
    let state = unsafe { &mut *STATE.0.get() };
    let trained = Plan::new(&CONFIG, SHAPE, 1, Mode::Train, kernels)
        .map_err(Failure::Plan)
        .and_then(|plan| workload::train(&plan, kernels, &mut state.memory));
    match trained {
        Ok(losses) => state.losses = losses,
        Err(Failure::Plan(_)) => return 3,
        Err(Failure::Step(_)) => return 4,
    }
    0
}

/// The mean loss of the first step.
#[unsafe(no_mangle)]
extern "C" fn first_loss() -> f64 {
    // SAFETY: as in `train`.
    unsafe { (*STATE.0.get()).losses.0 }
}

/// The mean loss of the last step.
#[unsafe(no_mangle)]
extern "C" fn last_loss() -> f64 {
    // SAFETY: as in `train`.
    unsafe { (*STATE.0.get()).losses.1 }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}
