//! How threads wait, said by C.

use cllm_core::{Idle, Spin};
use core::ffi::c_void;
use core::mem::offset_of;
use core::sync::atomic::AtomicU32;

use crate::config::boolean;
use crate::error::{CllmStatus, Failed, Result};
use crate::memory::checked;

/// How threads wait for work, and for one another; null in the place of one: awake, which is for cores of one's own (where
/// threads share them, `pause` should yield). All functions may be called by any thread of the caller's, at the same time.
/// They return: none throws, `longjmp`s or ends its thread. None may call into the handle that they wait for: of a call
/// under way that is refused, of a worker it is not seen, and may wait for itself for ever. A function that is null
/// does nothing, and `pause` and `stays` then say true. What they return is 0 or 1.
///
/// Threads that park are woken by the others' `wake`. So either all `CllmIdle`s of a trainer have one, that with which it
/// is created and each of its workers', and each wakes what any of them has parked; or none has, and none parks. Anything
/// else is refused.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CllmIdle {
    /// Handed to each of them.
    pub context: *mut c_void,
    /// One round of waiting awake, such as a yield to the system; `round` counts from 0 since there was work.
    /// False asks to be parked.
    pub pause: Option<unsafe extern "C" fn(context: *mut c_void, round: u32) -> bool>,
    /// Sleeps while `*word == seen`, until woken: looking and falling asleep are one step with regard to `wake`
    /// of the same word. May return for no reason. The word is read as an atomic one, in C11 by
    /// `atomic_load((const _Atomic uint32_t *)word)`. Wants `wake`.
    pub park: Option<unsafe extern "C" fn(context: *mut c_void, word: *const u32, seen: u32)>,
    /// Wakes all that are parked on the word.
    pub wake: Option<unsafe extern "C" fn(context: *mut c_void, word: *const u32)>,
    /// Asked of a worker whenever it finds nothing to do, within a step too: false has `cllm_worker_run` return. Nobody
    /// asks it of who calls for a step.
    pub stays: Option<unsafe extern "C" fn(context: *mut c_void) -> bool>,
    /// Whether a thread that asks for a step works on it too, on a seat of its own: a plan for it has one worker
    /// more than threads that serve. False: it only waits while there are workers.
    pub works: bool,
}

/// The functions that C hands over; `None` if it hands over nothing.
///
/// # Errors
/// Misaligned; `works` is no boolean; it parks and does not wake.
///
/// # Safety
/// The pointer is null, misaligned, or points at as many bytes as a `CllmIdle` has, whose functions are what their types say.
pub(crate) unsafe fn waiting(idle: *const CllmIdle) -> Result<Option<CllmIdle>> {
    if idle.is_null() {
        return Ok(None);
    }
    let there = checked(idle, "idle")?;
    // SAFETY: the caller's promise: it lies in the structure, and any byte is a number.
    boolean("idle.works", unsafe { there.byte_add(offset_of!(CllmIdle, works)).cast().read() })?;
    // SAFETY: the caller's promise, and that of the boolean is kept.
    let idle = unsafe { there.read() };
    if idle.park.is_some() && idle.wake.is_none() {
        return Err(Failed::new(
            CllmStatus::BadSetting,
            "idle.park without idle.wake: nobody would be woken",
        ));
    }
    Ok(Some(idle))
}

/// C's functions, or none of them: then threads wait awake.
#[derive(Clone, Copy)]
pub(crate) struct Waiting(pub(crate) Option<CllmIdle>);

// SAFETY: whoever hands a `CllmIdle` over promises that any thread may call its functions.
unsafe impl Sync for Waiting {}

impl Waiting {
    /// Whether it wakes those that have parked.
    pub(crate) fn wakes(&self) -> bool {
        self.0.is_some_and(|idle| idle.wake.is_some())
    }
}

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
