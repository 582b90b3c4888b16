//! The micro-kernel: an `M x NR` tile of sums held in registers.
//!
//! Each step of the inner dimension loads one row of the packed panel and
//! broadcasts `M` elements of A: `M * NR / LANES` multiply-adds for
//! `M + NR / LANES` loads, which on 6x16 with AVX2 leaves the loads off the
//! critical path.

use crate::simd::{Simd, load_up_to, store_up_to};

/// One tile's operands. A as in `RawGemm`; B is one panel of `NR` columns.
pub(super) struct Tile {
    pub(super) kc: usize,
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) a_col: usize,
    pub(super) b: *const f32,
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
}

/// Dispatches on the number of rows, so that edges keep their sums in registers too.
///
/// # Safety
/// A is valid for `rows x kc` elements, B for `kc` rows of `NR`, C for `rows x cols`;
/// `rows <= MR <= 6`, `cols <= NR`.
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(s: S, t: &Tile, rows: usize, cols: usize, accumulate: bool) {
    // SAFETY: passed on from the caller; each arm is given exactly its rows.
    unsafe {
        if S::LANES == 1 {
            match rows {
                1 => tile::<S, 1, 4>(s, t, cols, accumulate),
                2 => tile::<S, 2, 4>(s, t, cols, accumulate),
                3 => tile::<S, 3, 4>(s, t, cols, accumulate),
                _ => tile::<S, 4, 4>(s, t, cols, accumulate),
            }
        } else {
            match rows {
                1 => tile::<S, 1, 2>(s, t, cols, accumulate),
                2 => tile::<S, 2, 2>(s, t, cols, accumulate),
                3 => tile::<S, 3, 2>(s, t, cols, accumulate),
                4 => tile::<S, 4, 2>(s, t, cols, accumulate),
                5 => tile::<S, 5, 2>(s, t, cols, accumulate),
                _ => tile::<S, 6, 2>(s, t, cols, accumulate),
            }
        }
    }
}

/// `C[M x cols] (+)= A[M x kc] B[kc x NR]`, `V = NR / LANES` vectors a row.
///
/// # Safety
/// As for [`run`], with `rows == M`.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const V: usize>(
    s: S,
    t: &Tile,
    cols: usize,
    accumulate: bool,
) {
    debug_assert!(V * S::LANES == S::NR && M <= S::MR);
    let mut sums = [[s.splat(0.0); V]; M];
    let (mut a, mut b) = (t.a, t.b);
    // SAFETY: kc steps of one column of A and one row of B each, as the caller promised.
    unsafe {
        for _ in 0..t.kc {
            let mut row = [s.splat(0.0); V];
            for (v, lanes) in row.iter_mut().enumerate() {
                *lanes = s.load(b.add(v * S::LANES));
            }
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = s.splat(*a.add(i * t.a_row));
                for (v, lanes) in row.iter().enumerate() {
                    sum[v] = s.mul_add(x, *lanes, sum[v]);
                }
            }
            a = a.wrapping_add(t.a_col);
            b = b.wrapping_add(S::NR);
        }
    }
    // SAFETY: C is valid for M rows of `cols` floats.
    unsafe {
        if cols == S::NR {
            for (i, sum) in sums.iter().enumerate() {
                for (v, &lanes) in sum.iter().enumerate() {
                    let c = t.c.add(i * t.c_row + v * S::LANES);
                    let x = if accumulate { s.add(lanes, s.load(c)) } else { lanes };
                    s.store(c, x);
                }
            }
        } else {
            for (i, sum) in sums.iter().enumerate() {
                for (v, &lanes) in sum.iter().enumerate() {
                    let left = cols.saturating_sub(v * S::LANES).min(S::LANES);
                    if left > 0 {
                        let c = t.c.add(i * t.c_row + v * S::LANES);
                        let x =
                            if accumulate { s.add(lanes, load_up_to(s, c, left)) } else { lanes };
                        store_up_to(s, c, x, left);
                    }
                }
            }
        }
    }
}
