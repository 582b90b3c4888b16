//! Memory that the tiles of a step share.
//!
//! Tiles of one operation may run at the same time on several workers and write
//! disjoint parts of one buffer, so a pool is held as a pointer and borrowed piece by
//! piece. Who may borrow what is decided by the program (`crate::program`): tiles
//! of an operation write disjoint elements, and an operation starts when those it
//! reads from are done.
#![expect(unsafe_code, reason = "hands out pieces of shared pools")]

use crate::line::{LANES, Line};
use cllm_kernels::{Bf16, MatMut, MatRef};
use core::marker::PhantomData;
use core::ops::Range;

/// A pool of floats, shared by the tiles of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared<'a> {
    ptr: *mut f32,
    len: usize,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: `Shared` is an exclusive borrow that was given to the step; whoever borrows
// parts of it from another thread owes what `slice` and `slice_mut` ask.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above: sharing the handle gives no access by itself.
unsafe impl Sync for Shared<'_> {}

/// Remembers what a thread's tiles borrow, for `crate::engine`'s test of what may run at the
/// same time.
#[cfg(all(test, not(loom)))]
pub(crate) mod record {
    extern crate std;

    use core::cell::RefCell;
    use core::ops::Range;
    use std::vec::Vec;

    /// Bytes that were borrowed, and whether for writing.
    #[derive(Clone, Debug)]
    pub(crate) struct Borrow {
        pub(crate) bytes: Range<usize>,
        pub(crate) writes: bool,
    }

    std::thread_local! {
        static BORROWS: RefCell<Vec<Borrow>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn rows(first: usize, rows: usize, row: usize, stride: usize, writes: bool) {
        let bytes = |r: usize| first + r * stride..first + r * stride + row;
        let borrows = (0..rows).map(|r| Borrow { bytes: bytes(r), writes });
        BORROWS.with_borrow_mut(|all| all.extend(borrows));
    }

    /// What this thread has borrowed since it was last asked.
    pub(crate) fn take() -> Vec<Borrow> {
        BORROWS.take()
    }
}

/// Floats from the first to one past the last of some rows; the most there is on overflow.
fn extent(rows: usize, cols: usize, stride: usize) -> usize {
    let Some(before) = rows.checked_sub(1) else { return 0 };
    before.checked_mul(stride).and_then(|n| n.checked_add(cols)).unwrap_or(usize::MAX)
}

impl<'a> Shared<'a> {
    pub(crate) fn new(lines: &'a mut [Line]) -> Self {
        let len = lines.len() * LANES;
        Self { ptr: lines.as_mut_ptr().cast(), len, memory: PhantomData }
    }

    /// Lines that are only read: they may lie where nobody can write.
    ///
    /// # Safety
    /// Nobody asks for a part of it to write to.
    pub(crate) unsafe fn read_only(lines: &'a [Line]) -> Self {
        let len = lines.len() * LANES;
        Self { ptr: lines.as_ptr().cast_mut().cast(), len, memory: PhantomData }
    }

    #[cfg_attr(not(feature = "compact"), track_caller)]
    fn check(&self, at: usize, extent: usize) {
        let fits = at.checked_add(extent).is_some_and(|end| end <= self.len);
        assert!(fits, "a buffer lies outside its pool: the plan is wrong");
    }

    /// Rows of `cols` elements of type `T` from element `first` on, `stride` apart, are
    /// borrowed: told to tests.
    #[cfg(all(test, not(loom)))]
    fn note<T>(&self, first: usize, (rows, cols): (usize, usize), stride: usize, writes: bool) {
        let size = size_of::<T>();
        record::rows(self.ptr.addr() + first * size, rows, cols * size, stride * size, writes);
    }

    #[cfg(not(all(test, not(loom))))]
    #[inline(always)]
    fn note<T>(&self, _: usize, _: (usize, usize), _: usize, _: bool) {}

    /// # Safety
    /// Nobody writes these floats while the slice lives.
    #[cfg_attr(not(feature = "compact"), track_caller)]
    #[cfg_attr(feature = "compact", inline(never))]
    pub(crate) unsafe fn slice(&self, at: usize, len: usize) -> &'a [f32] {
        self.check(at, len);
        self.note::<f32>(at, (1, len), 0, false);
        // SAFETY: inside the pool, as checked; the caller keeps writers away.
        unsafe { core::slice::from_raw_parts(self.ptr.add(at), len) }
    }

    /// # Safety
    /// Nobody else reads or writes these floats while the slice lives.
    #[cfg_attr(not(feature = "compact"), track_caller)]
    #[cfg_attr(feature = "compact", inline(never))]
    pub(crate) unsafe fn slice_mut(&self, at: usize, len: usize) -> &'a mut [f32] {
        self.check(at, len);
        self.note::<f32>(at, (1, len), 0, true);
        // SAFETY: inside the pool, as checked; the caller keeps everybody away.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.add(at), len) }
    }

    /// Bytes from number `first` on of those that lie from float `at` on.
    ///
    /// # Safety
    /// Nobody else reads or writes these bytes while the slice lives.
    #[track_caller]
    pub(crate) unsafe fn bytes_mut(&self, at: usize, first: usize, len: usize) -> &'a mut [u8] {
        self.check(at, first.saturating_add(len).div_ceil(size_of::<f32>()));
        self.note::<u8>(size_of::<f32>() * at + first, (1, len), 0, true);
        // SAFETY: inside the pool, as checked; the caller keeps everybody away.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.add(at).cast::<u8>().add(first), len) }
    }

    /// Rows of `cols` floats, `stride` apart.
    ///
    /// # Safety
    /// Nobody writes the matrix's elements while it lives.
    #[cfg_attr(not(feature = "compact"), track_caller)]
    #[cfg_attr(feature = "compact", inline(never))]
    pub(crate) unsafe fn mat(
        &self,
        at: usize,
        (rows, cols): (usize, usize),
        stride: usize,
    ) -> MatRef<'a> {
        // SAFETY: passed on from the caller.
        unsafe { self.mat_in_part(at, (rows, cols), stride, 0..rows) }
    }

    /// [`Shared::mat`] of which the rows in `read` alone are read.
    ///
    /// # Safety
    /// The others are not read, and nobody writes the elements of those while it lives.
    #[cfg_attr(not(feature = "compact"), track_caller)]
    pub(crate) unsafe fn mat_in_part(
        &self,
        at: usize,
        (rows, cols): (usize, usize),
        stride: usize,
        read: Range<usize>,
    ) -> MatRef<'a> {
        self.check(at, extent(rows, cols, stride));
        self.note::<f32>(at + read.start * stride, (read.len(), cols), stride, false);
        // SAFETY: inside the pool, as checked; the caller keeps writers away.
        unsafe { MatRef::from_raw(self.ptr.add(at), rows, cols, stride) }
    }

    /// Rows of `cols` bf16, `stride` apart, from number `first` on of those that lie from
    /// float `at` on.
    ///
    /// # Safety
    /// Nobody writes the matrix's elements while it lives.
    #[cfg_attr(not(feature = "compact"), track_caller)]
    pub(crate) unsafe fn halves(
        &self,
        at: usize,
        first: usize,
        (rows, cols): (usize, usize),
        stride: usize,
    ) -> MatRef<'a, Bf16> {
        self.check(at, first.saturating_add(extent(rows, cols, stride)).div_ceil(2));
        self.note::<Bf16>(2 * at + first, (rows, cols), stride, false);
        // SAFETY: inside the pool, as checked; the caller keeps writers away.
        unsafe { MatRef::from_raw(self.ptr.add(at).cast::<Bf16>().add(first), rows, cols, stride) }
    }

    /// [`Shared::halves`] for writing.
    ///
    /// # Safety
    /// Nobody else reads or writes the matrix's elements while it lives.
    #[cfg_attr(not(feature = "compact"), track_caller)]
    pub(crate) unsafe fn halves_mut(
        &self,
        at: usize,
        first: usize,
        (rows, cols): (usize, usize),
        stride: usize,
    ) -> MatMut<'a, Bf16> {
        self.check(at, first.saturating_add(extent(rows, cols, stride)).div_ceil(2));
        self.note::<Bf16>(2 * at + first, (rows, cols), stride, true);
        // SAFETY: inside the pool, as checked; the caller keeps everybody away.
        unsafe { MatMut::from_raw(self.ptr.add(at).cast::<Bf16>().add(first), rows, cols, stride) }
    }

    /// Rows of `cols` floats, `stride` apart, for writing.
    ///
    /// # Safety
    /// Nobody else reads or writes the matrix's elements while it lives.
    #[cfg_attr(not(feature = "compact"), track_caller)]
    pub(crate) unsafe fn mat_mut(
        &self,
        at: usize,
        (rows, cols): (usize, usize),
        stride: usize,
    ) -> MatMut<'a> {
        self.check(at, extent(rows, cols, stride));
        self.note::<f32>(at, (rows, cols), stride, true);
        // SAFETY: inside the pool, as checked; the caller keeps everybody away.
        unsafe { MatMut::from_raw(self.ptr.add(at), rows, cols, stride) }
    }
}
