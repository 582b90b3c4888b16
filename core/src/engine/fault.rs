//! Where the orderings of the protocols can be weakened and their notifications left out, to
//! prove that the models of `models` would notice.
//!
//! In a program [`order`] is its argument, [`fence`] a fence, and all that is to happen
//! [`happens`]; only under the model checker can a test have one of them fail.

use crate::primitive::{self, Ordering};

/// An access whose ordering a protocol depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// The publisher opens a share.
    OpenShare,
    /// A worker reads a share.
    LoadShare,
    /// A counter of the board is added to.
    CountDone,
    /// A counter of the board is read.
    ReadCount,
    /// The last tile of a stage is counted.
    EndStage,
    /// The caller sees that all stages are done.
    SeeEnd,
    /// Between the announcement of who waits and its look for work.
    Watch,
    /// Between making work visible and the look for who waits.
    Tell,
    /// Between the announcement of a sleeper and its last look.
    Sleep,
    /// Between a notification and the look for sleepers.
    Notify,
    /// Between keeping a seat for who waits for it and the look whether anybody does.
    Keep,
    /// Between entering a tile and the look for poison.
    Enter,
    /// A worker that leaves tells the caller.
    Leave,
    /// Who closes the engine tells the workers.
    Close,
}

/// The ordering of an access.
#[cfg(not(loom))]
#[inline(always)]
pub(super) const fn order(_: Access, sound: Ordering) -> Ordering {
    sound
}

/// A sequentially consistent fence.
#[cfg(not(loom))]
#[inline(always)]
pub(super) fn fence(_: Access) {
    primitive::fence(Ordering::SeqCst);
}

/// Whether something is done that a protocol depends on.
#[cfg(not(loom))]
#[inline(always)]
pub(super) const fn happens(_: Access) -> bool {
    true
}

#[cfg(loom)]
pub(super) use weakened::{fence, happens, order, weaken};

#[cfg(loom)]
mod weakened {
    extern crate std;

    use super::{Access, Ordering, primitive};
    use core::cell::Cell;

    std::thread_local! {
        // All threads of a model run on the thread of their test.
        static WEAK: Cell<Option<Access>> = const { Cell::new(None) };
    }

    /// From now on this test's models have `access` unordered, or left out.
    pub(in super::super) fn weaken(access: Access) {
        WEAK.set(Some(access));
    }

    pub(in super::super) fn order(access: Access, sound: Ordering) -> Ordering {
        if WEAK.get() == Some(access) { Ordering::Relaxed } else { sound }
    }

    pub(in super::super) fn fence(access: Access) {
        if happens(access) {
            primitive::fence(Ordering::SeqCst);
        }
    }

    pub(in super::super) fn happens(access: Access) -> bool {
        WEAK.get() != Some(access)
    }
}
