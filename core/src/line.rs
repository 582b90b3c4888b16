//! The unit of memory that callers hand over: one aligned cache line of floats.
//!
//! Alignment comes from the type, not from hope: `&mut [Line]` is 64-byte aligned
//! wherever it lives, so a static, a stack array and a mapped page all do.
#![expect(unsafe_code, reason = "reinterprets lines as floats")]

/// Floats in a [`Line`].
pub const LANES: usize = 16;

/// 64 bytes, aligned to 64.
///
/// ```
/// use cllm_core::{Line, floats, floats_mut};
///
/// let mut pool = [Line::ZERO; 2];
/// floats_mut(&mut pool)[17] = 1.5;
/// assert_eq!(pool[1].0[1], 1.5);
/// assert_eq!(floats(&pool).len(), 32);
/// assert!(floats(&pool).as_ptr().addr().is_multiple_of(64));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Line(pub [f32; LANES]);

impl Line {
    /// A line of zeros, for statics: `static POOL: [Line; N] = [Line::ZERO; N]`.
    pub const ZERO: Self = Self([0.0; LANES]);
}

/// The floats of some lines.
#[must_use]
pub fn floats(lines: &[Line]) -> &[f32] {
    // SAFETY: a `Line` is `repr(C)` and nothing but 16 floats, without padding.
    unsafe { core::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LANES) }
}

/// The floats of some lines, for writing.
#[must_use]
pub fn floats_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: as in `floats`; the exclusive borrow is passed on.
    unsafe { core::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LANES) }
}

/// The bytes of some floats.
pub(crate) fn bytes(floats: &[f32]) -> &[u8] {
    // SAFETY: every byte of a float is one, and the memory is borrowed for as long.
    unsafe { core::slice::from_raw_parts(floats.as_ptr().cast(), size_of_val(floats)) }
}

/// The bytes of some floats, for writing.
pub(crate) fn bytes_mut(floats: &mut [f32]) -> &mut [u8] {
    // SAFETY: as in `bytes`; any bytes are a float, and the exclusive borrow is passed on.
    unsafe { core::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), size_of_val(floats)) }
}
