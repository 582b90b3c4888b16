//! How threads wait, said by C.

use cllm_core::{Idle, Spin};
use core::ffi::c_void;
use core::sync::atomic::AtomicU32;

/// How threads wait for work, and for one another. All functions may be called by any thread of the caller's, at
/// the same time; none may call into the handle that they wait for. A function that is null does nothing, and
/// `pause` and `stays` then say true.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CllmIdle {
    /// Handed to each of them.
    pub context: *mut c_void,
    /// One round of waiting awake, such as a yield to the system; `round` counts from 0 since there was work.
    /// False asks to be parked.
    pub pause: Option<unsafe extern "C" fn(context: *mut c_void, round: u32) -> bool>,
    /// Sleeps while `*word == seen`, until woken: looking and falling asleep are one step with regard to `wake`
    /// of the same word. May return for no reason. The word is read as an atomic one.
    pub park: Option<unsafe extern "C" fn(context: *mut c_void, word: *const u32, seen: u32)>,
    /// Wakes all that are parked on the word.
    pub wake: Option<unsafe extern "C" fn(context: *mut c_void, word: *const u32)>,
    /// Asked between runs, when there is nothing to do: false has `cllm_worker_run` return.
    pub stays: Option<unsafe extern "C" fn(context: *mut c_void) -> bool>,
    /// Whether a thread that asks for a step works on it too, on a seat of its own: a plan for it has one worker
    /// more than threads that serve. False: it only waits while there are workers.
    pub works: bool,
}

/// C's functions, or none of them: then threads wait awake.
#[derive(Clone, Copy)]
pub(crate) struct Waiting(pub(crate) Option<CllmIdle>);

// SAFETY: whoever hands a `CllmIdle` over promises that any thread may call its functions.
unsafe impl Sync for Waiting {}

impl Idle for Waiting {
    fn pause(&self, round: u32) -> bool {
        match self.0 {
            // SAFETY: the promise of who handed it over.
            Some(CllmIdle { context, pause: Some(pause), .. }) => unsafe { pause(context, round) },
            _ => Spin.pause(round),
        }
    }

    fn park(&self, word: &AtomicU32, seen: u32) {
        if let Some(CllmIdle { context, park: Some(park), .. }) = self.0 {
            // SAFETY: as for `pause`; the word lives as long as the call.
            unsafe { park(context, word.as_ptr(), seen) }
        }
    }

    fn wake(&self, word: &AtomicU32) {
        if let Some(CllmIdle { context, wake: Some(wake), .. }) = self.0 {
            // SAFETY: as for `park`.
            unsafe { wake(context, word.as_ptr()) }
        }
    }

    fn stays(&self) -> bool {
        match self.0 {
            // SAFETY: as for `pause`.
            Some(CllmIdle { context, stays: Some(stays), .. }) => unsafe { stays(context) },
            _ => true,
        }
    }

    fn works(&self) -> bool {
        self.0.is_some_and(|idle| idle.works)
    }
}
