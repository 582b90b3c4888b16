//! The core of Crystalline for C: models are trained and run in memory that the caller hands over, on threads
//! that the caller owns.
//!
//! ```text
//! cllm_trainer_bytes      how much memory
//! cllm_trainer_create     in that memory: a handle
//! cllm_worker_run         any thread, at any time: works until the trainer is closed     (as many as there are)
//! cllm_trainer_initialise or cllm_trainer_load
//! for each step
//!     cllm_trainer_accumulate     once for each of its batches
//!     cllm_trainer_update
//! cllm_trainer_evaluate, cllm_trainer_save     between steps
//! cllm_trainer_close      workers come back: their threads are joined
//! cllm_trainer_destroy    the memory is the caller's again
//!
//! cllm_generator_bytes, cllm_generator_create     of a checkpoint
//! cllm_generator_add      what the text begins with
//! cllm_generator_next     a token, as often as there is room; or cllm_generator_logits, and a choice of one's own
//! cllm_generator_reset    the next text
//! cllm_generator_destroy
//! ```
//!
//! No thread has to serve: a step without workers is done by the thread that asks for it.
//!
//! **Memory.** Nothing is allocated. A handle lies at the beginning of the memory that it was created in. That
//! memory is neither moved, copied elsewhere nor written to until the handle is destroyed: the handle points into
//! itself. What other pointers point at is read or written during the call, and not kept; but for what a
//! `CllmIdle`'s `context` points at, which lives as long as a thread may wait by it. None of it lies in a handle's memory,
//! and what is written overlaps with nothing else. A call needs up to 64 KiB of stack, on every thread.
//!
//! **Threads.** One thread at a time calls the functions of a handle, whichever it is; a second one is sent away
//! with `CLLM_STATUS_BUSY`, as is a function of the trainer's own `CllmIdle` that calls into the handle it waits for.
//! `cllm_worker_run` is the exception: any thread calls it at any time between create and destroy. Destroying is
//! refused while a thread is in it; one that is about to call cannot be seen, so join threads first. Different
//! handles know nothing of one another. The bits of results do not depend on who works.
//!
//! **Floating point.** Threads that call have it as a program starts with it: rounding to nearest, and numbers below the
//! normal ones as they are. (Linking with `-ffast-math` changes that for a whole program, and so the results.)
//!
//! **Errors.** Functions return a `CllmStatus`, and put the words for people into the `CllmError` that they get,
//! unless that is null. A call that is refused has changed nothing (but for memory that a handle was to be created
//! in): batches of the step that were taken before still count, and a better call can follow. After `CLLM_STATUS_NOT_FINITE` weights are as before, and the step
//! begins anew. Pointers are checked for null and for alignment, and lengths against what is wanted; that a pointer
//! points at as much as its length says is the caller's promise.
//!
//! **Panics** end the program (`abort`): none crosses into C. There is no input that should cause one, and so no
//! call that gives `CLLM_STATUS_BROKEN` where it ends the program.
//!
//! **Targets** have pointers of 64 bits, and enumerations as large as `int`: do not compile with `-fshort-enums`.
//!
//! The library wants `memcpy`, `memmove`, `memset`, `memcmp` and `bcmp` of whoever links it, as compilers do, and
//! `abort`.
#![no_std]

#[cfg(not(target_pointer_width = "64"))]
compile_error!(
    "the C interface is for targets of 64-bit pointers: structures are laid out for them, and handles are marked by \
     64-bit atomics; on smaller machines use cllm-core itself, as tests/microcontroller does"
);

mod checkpoint;
mod config;
mod door;
mod error;
mod generator;
mod idle;
mod memory;
mod trainer;

pub use config::{CllmDtype, CllmIsa, CllmMode, CllmModel, CllmPlan, CllmUpdater};
pub use error::{CllmError, CllmStatus};
pub use generator::{CllmGenerator, CllmSampler};
pub use idle::CllmIdle;
pub use trainer::{CllmBatch, CllmLoss, CllmOptimizer, CllmTrainer, CllmUpdate};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    #[cfg(feature = "abort")]
    {
        unsafe extern "C" {
            fn abort() -> !;
        }
        // SAFETY: C's own, which does not come back.
        unsafe { abort() }
    }
    #[cfg(not(feature = "abort"))]
    loop {
        core::hint::spin_loop();
    }
}

/// The precompiled `core` names it; with `panic = "abort"` nobody calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
