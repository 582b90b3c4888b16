//! Products whose operands are both packed on the way: weight gradients.
//!
//! `dW = X^T dY` sums over all tokens. Read in place, a row of `X^T` would touch
//! a new cache line for every token, so blocks of `KC` tokens of both operands
//! are packed into scratch, in the fixed order of the tokens.

use super::format::Format;
use super::pack::{pack_a, pack_b, packed_a_len, packed_b_len};
use super::{KC, LINE, RawGemm, micro};
use crate::elements::RawOperand;
use crate::simd::Simd;

/// Floats of scratch for an `m x n` result of `k` products each: one block of either.
pub(crate) fn scratch_len<S: Simd, F: Format<S>>(m: usize, n: usize, k: usize) -> Option<usize> {
    let words = F::words(KC.min(k));
    packed_a_len(m, words, F::MR)?.checked_add(packed_b_len(words, n, S::NR)?)
}

/// `C (+)= A B` with `a` an `m x k` and `b` a `k x n` matrix (those of `g` are ignored).
///
/// # Safety
/// As for [`super::in_place`], with `g.scratch` valid for [`scratch_len`] floats. Halves are
/// operands of a format that keeps them.
#[inline(always)]
pub(crate) unsafe fn gemm<S: Simd, F: Format<S>>(
    s: S,
    f: F,
    g: &RawGemm,
    a: RawOperand,
    b: RawOperand,
) {
    if g.m == 0 || g.n == 0 {
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
        // SAFETY: rows depth .. depth + kc of both operands, into scratch of the size promised.
        unsafe {
            pack_b(s, f, b.skip(depth, 0), kc, g.n, packed_b);
            pack_a(s, f, a.skip(0, depth), g.m, kc, packed_a);
            let left = KC.min(g.k - depth - kc);
            let mut next = [
                Lines::new(a.skip(0, depth + kc).flip(), left, g.m),
                Lines::new(b.skip(depth + kc, 0), left, g.n),
            ];
            let tiles = g.m.div_ceil(F::MR) * g.n.div_ceil(S::NR);
            let share = next.each_ref().map(|lines| lines.left().div_ceil(tiles));
            let mut j = 0;
            while j < g.n {
                let cols = S::NR.min(g.n - j);
                let mut i = 0;
                while i < g.m {
                    let rows = F::MR.min(g.m - i);
                    let c = g.c.add(i * g.c_row + j);
                    if accumulate {
                        fetch_tile(s, c, g.c_row, rows, cols);
                    }
                    for (lines, share) in next.iter_mut().zip(share) {
                        lines.fetch(s, share);
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
                    };
                    f.multiply(s, &mut unit, &tile, rows, cols, accumulate);
                    i += rows;
                }
                j += cols;
            }
        }
        depth += kc;
        if depth == g.k {
            return;
        }
    }
}

/// Fetches the sums of a tile that more are added to, while those are made.
#[inline(always)]
fn fetch_tile<S: Simd>(s: S, c: *const f32, c_row: usize, rows: usize, cols: usize) {
    for r in 0..rows {
        for q in (0..cols).step_by(LINE) {
            s.prefetch_near(c.wrapping_add(r * c_row + q));
        }
    }
}

/// The cache lines of some rows of a matrix, to be fetched a few at a time.
struct Lines {
    m: RawOperand,
    /// Lines of a row.
    of_row: usize,
    /// Elements of a line.
    line: usize,
    rows: usize,
    row: usize,
    at: usize,
}

impl Lines {
    fn new(m: RawOperand, rows: usize, cols: usize) -> Self {
        let line = if m.half { 2 * LINE } else { LINE };
        // Far columns are lines of their own: not worth it.
        let rows = if m.col == 1 { rows } else { 0 };
        // Two divisions by constants: one by either is by an instruction that not all CPUs have.
        let of_row = if m.half { cols.div_ceil(2 * LINE) } else { cols.div_ceil(LINE) };
        Self { m, of_row, line, rows, row: 0, at: 0 }
    }

    fn left(&self) -> usize {
        (self.rows - self.row) * self.of_row
    }

    #[inline(always)]
    fn fetch<S: Simd>(&mut self, s: S, lines: usize) {
        for _ in 0..lines {
            if self.row == self.rows {
                return;
            }
            s.prefetch(self.m.skip(self.row, self.at * self.line).ptr);
            self.at += 1;
            if self.at == self.of_row {
                (self.row, self.at) = (self.row + 1, 0);
            }
        }
    }
}
