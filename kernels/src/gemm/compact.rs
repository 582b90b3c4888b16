//! The micro-kernel of compact code: one shape for all, where the others have one for each number of rows and
//! columns.

use super::format::Dot;
use super::micro::{Tile, tile};
use crate::simd::Simd;

/// [`edge::tile`](super::edge::tile) in little code: a row after the other, whatever lies where. The additions are the
/// same, in the same order.
///
/// # Safety
/// As for [`micro::run`](super::micro::run), with `V` vectors in `NR`.
#[inline(always)]
pub(super) unsafe fn by_rows<S: Simd, F: Dot<S>, const V: usize>(
    s: S,
    f: F,
    t: &Tile,
    rows: usize,
    cols: usize,
    accumulate: bool,
) {
    for i in 0..rows {
        let row = Tile {
            a: t.a.wrapping_add(i * t.a_row),
            c: t.c.wrapping_add(i * t.c_row),
            start: t.start.wrapping_add(i * t.start_row),
            ..*t
        };
        // SAFETY: a row of A and of C, as the caller promised.
        unsafe { tile::<S, F, _, 1, V, false>(s, f, &row, cols, accumulate, &mut ()) };
    }
}
