//! The micro-kernel of compact code: one shape for all, where the others have one for each number of rows and
//! columns. The additions are the same, in the same order.

use super::format::Dot;
use super::micro::{Tile, step};
use crate::simd::{Simd, load_up_to, store_up_to};

/// [`micro::any`](super::micro::any) in little code: a row after the other, whatever lies where.
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
    debug_assert_eq!(V * S::LANES, S::NR);
    for i in 0..rows {
        let mut sums = [[s.splat(0.0); V]; 1];
        let (mut a, mut b) = (t.a.wrapping_add(i * t.a_row), t.b);
        for _ in 0..t.kc {
            // SAFETY: kc elements of a row of A and rows of B, as the caller promised.
            unsafe { step(s, f, &mut sums, &[a], 0, b) };
            (a, b) = (a.wrapping_add(t.a_col), b.wrapping_add(S::NR));
        }
        // A copy: an array that this loop indexes lives in memory, and the sums must not.
        let sums = sums;
        for (v, &lanes) in sums[0].iter().enumerate() {
            let left = cols.saturating_sub(v * S::LANES).min(S::LANES);
            if left == 0 {
                break;
            }
            let start = t.start.wrapping_add(i * t.start_row + v * S::LANES);
            // SAFETY: C and its start are valid for `cols` floats of each row.
            unsafe {
                let c = t.c.add(i * t.c_row + v * S::LANES);
                let x = if accumulate { s.add(lanes, load_up_to(s, start, left)) } else { lanes };
                store_up_to(s, c, x, left);
            }
        }
    }
}
