//! The atomics, cells and hints that shared state is built of: the machine's, or loom's.
//!
//! Code that several threads run takes these from here and from nowhere else. Built with
//! `--cfg loom` it then runs under a model checker, which tries the orders in which
//! threads can take turns and the values that a weakly ordered load can see, and
//! reports an access to an [`UnsafeCell`] that another access races with. Such a build is
//! for tests alone; it needs std. Atomics and cells of loom exist only inside
//! `loom::model` and have no `const` constructor.
#![allow(unused_imports, dead_code, reason = "one list for every user, in either build")]

#[cfg(not(loom))]
use core::sync::atomic as atomics;
#[cfg(loom)]
use loom::sync::atomic as atomics;

pub(crate) use atomics::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use core::hint::spin_loop;
#[cfg(loom)]
pub(crate) use loom::{cell::UnsafeCell, hint::spin_loop};

/// The widest atomic that a machine has, up to 64 bits, and what it holds. With `--cfg word32` it is that of
/// machines without 64-bit atomics (Cortex-M, many RISC-V of 32 bits): so their engine is tested on others.
#[cfg(all(target_has_atomic = "64", not(word32)))]
pub(crate) use atomics::AtomicU64 as AtomicWord;
#[cfg(all(target_has_atomic = "64", not(word32)))]
pub(crate) type Bits = u64;
#[cfg(not(all(target_has_atomic = "64", not(word32))))]
pub(crate) use atomics::AtomicU32 as AtomicWord;
#[cfg(not(all(target_has_atomic = "64", not(word32))))]
pub(crate) type Bits = u32;

/// Bits as they are in the widest word.
#[inline(always)]
#[allow(clippy::unnecessary_cast, reason = "they are narrower on some machines")]
pub(crate) const fn wide(bits: Bits) -> u64 {
    bits as u64
}

/// [`core::cell::UnsafeCell`] with the interface of loom's, which sees every access.
///
/// A pointer is for use inside the closure it is given to: loom takes the access to last
/// as long as the closure runs.
#[cfg(not(loom))]
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    /// Calls `f` with a pointer to read through. Whoever does so sees to it that nobody
    /// writes meanwhile.
    #[inline(always)]
    pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    /// Calls `f` with a pointer to write through. Whoever does so sees to it that nobody
    /// else reads or writes meanwhile.
    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}
