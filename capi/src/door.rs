//! What every handle begins with: whether it lives, and whether a call is with it.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::error::{CllmStatus, Failed, Result};
use crate::memory::checked;

/// The first field of a handle.
#[repr(C)]
pub(crate) struct Door {
    /// That of the kind as long as the handle lives.
    mark: AtomicU64,
    /// A call is under way.
    is_busy: AtomicBool,
}

/// Handles of a kind.
///
/// # Safety
/// The type is `repr(C)` and begins with a [`Door`].
pub(crate) unsafe trait Handle {
    /// What a living handle of the kind is marked by: no other kind is.
    const MARK: u64;
    /// What it is called in messages.
    const NAME: &'static str;
}

impl Door {
    /// That of a handle that is made of the kind.
    pub(crate) fn of<H: Handle>() -> Self {
        Self { mark: AtomicU64::new(H::MARK), is_busy: AtomicBool::new(false) }
    }

    /// Ends the handle.
    pub(crate) fn shut(&self) {
        self.mark.store(0, Ordering::Release);
    }
}

/// A handle that lives.
///
/// # Safety
/// The pointer is null, or points at a handle or at memory in which one was.
pub(crate) unsafe fn living<H: Handle>(handle: *const H) -> Result<NonNull<H>> {
    let there = checked(handle, H::NAME)?;
    // SAFETY: the caller's promise, and the kind's: there is a door, which nobody writes but as atomics.
    if unsafe { there.cast::<Door>().as_ref() }.mark.load(Ordering::Acquire) == H::MARK {
        return Ok(there);
    }
    Err(dead::<H>())
}

/// Of a pointer at no handle of the kind.
pub(crate) fn dead<H: Handle>() -> Failed {
    let name = H::NAME;
    Failed::new(
        CllmStatus::NotAHandle,
        // As far as that can be seen: where another was created since, the old pointer is the new one's.
        format_args!("{name} is no handle: it was destroyed, or never created"),
    )
}

/// Threads that are with a handle beside its one call, as many as there are; or that none comes any more. One word
/// says both, so no thread enters unseen by the one that ends the handle.
pub(crate) struct Visitors(AtomicUsize);

/// None is there, and none comes any more.
const ENDED: usize = usize::MAX;

impl Visitors {
    pub(crate) fn none() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Counts the calling thread until the visit is dropped; `None` if the handle has ended.
    pub(crate) fn enter(&self) -> Option<Visit<'_>> {
        let one_more = |there| (there != ENDED).then_some(there + 1);
        let entered = self.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, one_more);
        entered.ok().map(|_| Visit(self))
    }

    /// Lets nobody in any more; gives how many are there if there are any, and changes nothing then. What
    /// they have done with the handle has happened before.
    pub(crate) fn end(&self) -> core::result::Result<(), usize> {
        let ended = self.0.compare_exchange(0, ENDED, Ordering::Acquire, Ordering::Relaxed);
        ended.map(|_| ())
    }
}

/// A thread that is with a handle.
pub(crate) struct Visit<'a>(&'a Visitors);

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        // The last that this thread does with the handle: its memory may be somebody else's right behind it.
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

/// A call with a handle, which no other thread's overlaps.
pub(crate) struct Call<H: Handle>(pub(crate) NonNull<H>);

impl<H: Handle> Call<H> {
    /// # Safety
    /// As for [`living`].
    pub(crate) unsafe fn begin(handle: *const H) -> Result<Self> {
        // SAFETY: the caller's promise.
        let call = unsafe { living(handle) }?;
        // SAFETY: it lives.
        if unsafe { call.cast::<Door>().as_ref() }.is_busy.swap(true, Ordering::Acquire) {
            let name = H::NAME;
            return Err(Failed::new(
                CllmStatus::Busy,
                format_args!("another thread is in a call with this {name}"),
            ));
        }
        Ok(Self(call))
    }

    /// The handle's door.
    pub(crate) fn door(&self) -> &Door {
        // SAFETY: the handle's memory stays: whoever destroys it is in a call of their own.
        unsafe { self.0.cast::<Door>().as_ref() }
    }
}

impl<H: Handle> Drop for Call<H> {
    fn drop(&mut self) {
        self.door().is_busy.store(false, Ordering::Release);
    }
}
