//! Products whose operands are both packed on the way: weight gradients.
//!
//! `dW = X^T dY` sums over all tokens. Read in place, a row of `X^T` would touch
//! a new cache line for every token, so blocks of `KC` tokens of both operands
//! are packed into scratch, in the fixed order of the tokens. The gradient of a bias, which is
//! the sum of `dY`'s rows, is made of the same blocks while they are in cache.

use super::fetch::{Ahead, Grid, Near, Run};
use super::format::Format;
use super::pack::{pack_a, packed_a_len, packed_b_len};
use super::{KC, RawGemm, is_lines, micro};
use crate::built::COMPACT;
use crate::elements::RawOperand;
use crate::footprint::{Footprint, least, some};
use crate::simd::Simd;

/// Floats of scratch for an `m x n` result of `k` products each: one block of either.
pub(crate) const fn scratch_len(f: Footprint, m: usize, n: usize, k: usize) -> Option<usize> {
    let words = f.words(least(KC, k));
    some!(packed_a_len(m, words, f.mr)).checked_add(some!(packed_b_len(words, n, f.nr)))
}

/// `C (+)= A B` with `a` an `m x k` and `b` a `k x n` matrix (those of `g` are ignored).
///
/// # Safety
/// As for [`super::in_place`], with `g.scratch` valid for [`scratch_len`] floats. Halves are
/// operands of a format that keeps them. If sums are wanted, their kernel is for B's kind, rows of
/// which are contiguous, and their place is valid for `g.n` floats.
#[inline(always)]
pub(crate) unsafe fn gemm<S: Simd, F: Format<S>>(
    s: S,
    f: F,
    g: &RawGemm,
    a: RawOperand,
    b: RawOperand,
) {
    if g.m == 0 || g.n == 0 {
        if let (Some(sums), true) = (&g.sums, g.n > 0) {
            // SAFETY: passed on from the caller.
            unsafe { sums.add(b, g.k, g.n, g.accumulate) };
        }
        return;
    }
    let mut unit = f.unit();
    let packed_b = g.scratch;
    let b_len = packed_b_len(F::words(KC.min(g.k)), g.n, S::NR).unwrap_or(0);
    let packed_a = packed_b.wrapping_add(b_len);
    let mut depth = 0;
    loop {
        let kc = KC.min(g.k - depth);
        let words = F::words(kc);
        let accumulate = g.accumulate || depth > 0;
        // What is added to again had better stay in cache.
        let stream = g.stream && !accumulate && kc == g.k && is_lines(g.c, g.c_row);
        // SAFETY: rows depth .. depth + kc of both operands, into scratch of the size promised. What is
        // streamed begins at lines (`is_lines`; tiles begin at multiples of NR columns, which are whole
        // lines), is overwritten once, and fenced below.
        unsafe {
            (F::PACK_B)(b.skip(depth, 0), kc, g.n, packed_b);
            if let Some(sums) = &g.sums {
                sums.add(b.skip(depth, 0), kc, g.n, accumulate);
            }
            pack_a(s, f, a.skip(0, depth), g.m, kc, packed_a);
            let left = KC.min(g.k - depth - kc);
            let mut next = Grid::new(a.skip(0, depth + kc).flip(), left, g.m);
            let mut later = Grid::new(b.skip(depth + kc, 0), left, g.n);
            let turns = F::turns(words);
            let mut fetch = Ahead { near: Near::NONE, far: Run::none(packed_b) };
            let mut j = 0;
            while j < g.n {
                let cols = S::NR.min(g.n - j);
                let mut i = 0;
                while i < g.m {
                    let rows = F::MR.min(g.m - i);
                    let c = g.c.add(i * g.c_row + j);
                    if accumulate {
                        let c = (c.cast_const(), g.c_row);
                        fetch.near = Near::new(c, None, (rows, cols));
                    }
                    if !COMPACT {
                        fetch.far = next
                            .piece(turns)
                            .or_else(|| later.piece(turns))
                            .unwrap_or(Run::none(packed_b));
                    }
                    let tile = micro::Tile {
                        kc: words,
                        a: packed_a.add(i * words),
                        a_row: if F::TILES { words } else { 1 },
                        a_col: if F::TILES { 1 } else { F::MR },
                        b: packed_b.add(j * words),
                        c,
                        c_row: g.c_row,
                        start: c,
                        start_row: g.c_row,
                        stream,
                    };
                    f.multiply(s, &mut unit, &tile, (rows, cols), accumulate, &mut fetch);
                    i += rows;
                }
                j += cols;
            }
        }
        if stream {
            s.fence();
        }
        depth += kc;
        if depth == g.k {
            return;
        }
    }
}
