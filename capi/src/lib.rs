//! The core of Crystalline for C: models are trained and run in memory that the caller hands over, on threads
//! that the caller owns.
//!
//! ```text
//! cllm_trainer_bytes      how much memory
//! cllm_trainer_create     in that memory: a handle
//! cllm_worker_run         any thread, at any time: works until the trainer is closed     (as many as there are)
//! cllm_trainer_initialise or cllm_trainer_load
//! cllm_trainer_accumulate, cllm_trainer_update, cllm_trainer_evaluate, cllm_trainer_save
//! cllm_trainer_close      workers come back
//! cllm_trainer_destroy    the memory is the caller's again
//! ```
//!
//! **Memory.** Nothing is allocated. A handle lies at the beginning of the memory that it was created in, which
//! has to stay where it is, and untouched, until the handle is destroyed.
//!
//! **Threads.** One thread at a time calls the functions of a handle; a second one is sent away with
//! `CLLM_STATUS_BUSY`. `cllm_worker_run` is the exception: any thread calls it at any time. The bits of results
//! do not depend on who works.
//!
//! **Errors.** Functions return a `CllmStatus`, and put the words for people into the `CllmError` that they get,
//! unless that is null. Pointers are checked for null and for alignment, and lengths against what is wanted;
//! that a pointer points at as much as its length says is the caller's promise.
//!
//! **Panics** end the program (`abort`): none crosses into C. There is no input that should cause one.
//!
//! The library wants `memcpy`, `memmove`, `memset`, `memcmp` and `bcmp` of whoever links it, as compilers do.
#![no_std]

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
