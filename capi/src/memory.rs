//! Pointers of C's, checked as far as they can be, and memory cut into pieces.

use core::ptr::NonNull;

use crate::error::{CllmStatus, Failed, Result};

/// What memory of handles is aligned to, in bytes.
pub const CLLM_ALIGNMENT: usize = 128;

/// A pointer that is neither null nor misaligned.
pub(crate) fn checked<T>(pointer: *const T, name: &str) -> Result<NonNull<T>> {
    let Some(there) = NonNull::new(pointer.cast_mut()) else {
        return Err(Failed::new(CllmStatus::Null, format_args!("{name} is null")));
    };
    if !there.is_aligned() {
        return Err(Failed::new(
            CllmStatus::Misaligned,
            format_args!("{name} is not aligned to {} bytes", align_of::<T>()),
        ));
    }
    Ok(there)
}

/// What a pointer points at, copied.
///
/// # Safety
/// The pointer is null, misaligned, or points at a `T`.
pub(crate) unsafe fn read<T: Copy>(pointer: *const T, name: &str) -> Result<T> {
    // SAFETY: the caller's promise; the rest is checked.
    Ok(unsafe { checked(pointer, name)?.read() })
}

/// Where a result goes if it is wanted: null says that it is not. To be asked before anything is done, so that
/// a call that is refused has changed nothing.
pub(crate) fn wanted<T>(pointer: *mut T, name: &str) -> Result<Option<NonNull<T>>> {
    if pointer.is_null() { Ok(None) } else { checked(pointer, name).map(Some) }
}

/// A slice that C describes; an empty one may be null.
///
/// # Safety
/// The pointer is null, misaligned, or points at `len` elements that nobody writes meanwhile.
pub(crate) unsafe fn slice<'a, T>(pointer: *const T, len: usize, name: &str) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    let there = checked(pointer, name)?;
    if len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failed::new(
            CllmStatus::TooShort,
            format_args!("{name} cannot have {len} elements"),
        ));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts(there.as_ptr(), len) })
}

/// Memory that pieces are taken from, one behind the other, each on a line of its own.
pub(crate) struct Pieces {
    /// Bytes taken so far.
    pub(crate) taken: usize,
}

impl Pieces {
    /// Where `count` elements of a type lie; `None` if no memory is so large.
    pub(crate) fn take<T>(&mut self, count: usize) -> Option<usize> {
        const { assert!(align_of::<T>() <= CLLM_ALIGNMENT) };
        let at = self.taken;
        let end = at.checked_add(count.checked_mul(size_of::<T>())?)?;
        self.taken = end.checked_next_multiple_of(CLLM_ALIGNMENT)?;
        Some(at)
    }
}

/// Fills a piece and gives it as a slice.
///
/// # Safety
/// `memory + at` is memory for `count` elements, aligned, that nobody else uses for `'static`: as long as the
/// handle lives.
pub(crate) unsafe fn piece<T>(
    memory: NonNull<u8>,
    at: usize,
    count: usize,
    fill: impl Fn() -> T,
) -> &'static mut [T] {
    // SAFETY: the caller's promise, for each element and for all of them; all are written before they are
    // borrowed.
    unsafe {
        let first = memory.add(at).cast::<T>();
        for n in 0..count {
            first.add(n).write(fill());
        }
        core::slice::from_raw_parts_mut(first.as_ptr(), count)
    }
}
