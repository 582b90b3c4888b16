//! Products of little depth, which take as long as C takes to be written.
//!
//! A tile of C would be a few multiply-adds and as much work before and behind them, and panel by panel a row of C is
//! written one or two lines at a time. Here rows are written from their start to their end:
//!
//! ```text
//! for each group of R rows of A
//!   their R x K words, each in all lanes of a vector      (K: all of the inner dimension)
//!   for each vector of B's columns                        (B: L1 or L2)
//!     R sums over K products, to C, or added to it
//! ```
//! The additions to an element of C are those of other tiles, in their order: the bits are the same. Nothing is asked
//! for ahead.

use super::format::Dot;
use super::{RawGemm, Rows};
use crate::built::COMPACT;
use crate::simd::{MOST_LANES, Simd, load_up_to, store_up_to};

/// Whether a product of so many words and columns is one of these: each of these numbers of words has a loop.
///
/// 1,024 x 256 takes with AVX-512 0.63 of the time of tiles for one to four words and 0.88 to 0.93 for eight, with AVX2
/// 0.49, 0.48, 0.53, 0.63; 1,024 x 5,000 takes 0.5 to 0.83. Left to tiles, for these would take longer: eight words with
/// AVX2, whose registers do not hold them (1.1), one panel of columns (16 with AVX2 1.15, one 2.0), and with AVX-512 many
/// columns (96 x 50,257 1.2; with AVX2 0.4). Granite Rapids, one thread, in turns.
#[inline(always)]
pub(super) const fn suits<S: Simd>(words: usize, cols: usize) -> bool {
    let (has_loop, most) = match S::LANES {
        MOST_LANES => (matches!(words, 1..=4 | 8), 16 * 1024),
        _ => (matches!(words, 1..=4), usize::MAX),
    };
    !COMPACT && has_loop && S::NR < cols && cols <= most
}

/// `C (+)= A B` for some rows of C, all of the inner dimension, without an epilogue.
///
/// # Safety
/// As for [`super::block::block`], from the first product on; there are so many words, as [`suits`] wants.
#[inline(always)]
pub(super) unsafe fn gemm<S: Simd, F: Dot<S>>(s: S, f: F, g: &RawGemm, a: &Rows, words: usize) {
    // SAFETY: passed on from the caller; each arm is for its depth.
    unsafe {
        match words {
            1 => all::<S, F, 1, 4>(s, f, g, a),
            2 => all::<S, F, 2, 4>(s, f, g, a),
            3 => all::<S, F, 3, 4>(s, f, g, a),
            4 => all::<S, F, 4, 4>(s, f, g, a),
            // With 1, 2 and 4 rows 0.83, 0.98 and 0.95 of the speed: of four, words would take all registers.
            8 if const { S::LANES == MOST_LANES } => all::<S, F, 8, 3>(s, f, g, a),
            _ => unreachable!("no loop for so many words"),
        }
    }
}

/// `R` rows at a time.
///
/// # Safety
/// As for [`gemm`], of `K` words.
#[inline(always)]
unsafe fn all<S: Simd, F: Dot<S>, const K: usize, const R: usize>(
    s: S,
    f: F,
    g: &RawGemm,
    a: &Rows,
) {
    let mut from = a.ptr;
    let mut i = a.rows.start;
    while i < a.rows.end {
        let c = g.c.wrapping_add(i * g.c_row);
        // SAFETY: so many rows are left.
        unsafe {
            if a.rows.end - i >= R {
                rows::<S, F, K, R>(s, f, g, (from, a.row, a.col), c);
                (from, i) = (from.wrapping_add(R * a.row), i + R);
            } else {
                rows::<S, F, K, 1>(s, f, g, (from, a.row, a.col), c);
                (from, i) = (from.wrapping_add(a.row), i + 1);
            }
        }
    }
}

/// `R` rows, from those at `c` and at `a` on, of whose words (i, p) is `a.0[i * a.1 + p * a.2]`.
///
/// # Safety
/// As for [`all`].
#[inline(always)]
unsafe fn rows<S: Simd, F: Dot<S>, const K: usize, const R: usize>(
    s: S,
    f: F,
    g: &RawGemm,
    (a, a_row, a_col): (*const f32, usize, usize),
    c: *mut f32,
) {
    let mut words = [[s.splat(0.0); K]; R];
    for (r, row) in words.iter_mut().enumerate() {
        for (p, word) in row.iter_mut().enumerate() {
            // SAFETY: a word of A.
            *word = s.splat(unsafe { *a.wrapping_add(r * a_row + p * a_col) });
        }
    }
    let mut j = 0;
    let mut panel = g.b;
    while j < g.n {
        for v in (0..S::NR.min(g.n - j)).step_by(S::LANES) {
            let cols = S::LANES.min(g.n - j - v);
            let mut b = [s.splat(0.0); K];
            // SAFETY: a vector of each row of the panel, which is whole, and as many columns of C as there are.
            unsafe {
                for (p, b) in b.iter_mut().enumerate() {
                    *b = s.load(panel.wrapping_add(p * S::NR + v));
                }
                for (r, words) in words.iter().enumerate() {
                    let to = c.wrapping_add(r * g.c_row + j + v);
                    let mut sum = s.splat(0.0);
                    for (&word, &b) in words.iter().zip(&b) {
                        sum = f.dot(s, word, b, sum);
                    }
                    if g.accumulate {
                        sum = s.add(sum, load_up_to(s, to.cast_const(), cols));
                    }
                    store_up_to(s, to, sum, cols);
                }
            }
        }
        panel = panel.wrapping_add(g.b_panel);
        j += S::NR;
    }
}
