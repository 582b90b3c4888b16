//! Products neither of whose operands is packed beforehand: weight gradients.
//!
//! `dW = X^T dY` sums over all tokens, in blocks of `KC` of them, in their fixed order. A step of a tile
//! wants some adjacent elements of a token's row of either, so floats are read where they lie: a block
//! of both is asked for into L2 while the one before is multiplied, and a step's three or four lines come from
//! there while it waits for its multiply-adds. Operands that have to become other words, or whose
//! rows would drive one another out of the cache, are packed into scratch, block by block. The gradient of a
//! bias, which is the sum of `dY`'s rows, is made of the same blocks while they are in cache.
//!
//! To pack floats as well took 9 % of a gradient's time and made the loop 7 % faster: without it gradients
//! of weights have 1.05 to 1.10 of the speed (Zen 5, AVX-512, one thread and two, 256 to 3,072 columns of 256 to
//! 4,096 tokens, in turns), with AVX2 and AVX 0.98 to 1.06, scalar
//! ones 0.93 to 1.09.

use super::fetch::{Ahead, Grid, Near, Run};
use super::format::Format;
use super::pack::{pack_a, packed_a_len, packed_b_len};
use super::{KC, LINE, RawGemm, is_lines, micro};
use crate::built::COMPACT;
use crate::elements::RawOperand;
use crate::footprint::{Footprint, least, some};
use crate::simd::Simd;

/// Floats of scratch for an `m x n` result of `k` products each: a block of A, unless it lies as it is to be, and of the
/// columns of B that do not.
pub(crate) const fn scratch_len(
    f: Footprint,
    (m, a_lies): (usize, bool),
    (n, b_lies): (usize, bool),
    k: usize,
) -> Option<usize> {
    let words = f.words(least(KC, k));
    let m = if a_lies { 0 } else { m };
    let n = n - there(f, n, b_lies);
    some!(packed_a_len(m, words, f.mr)).checked_add(some!(packed_b_len(words, n, f.nr)))
}

/// Columns of B that are read where they lie: whole panels. The last one is filled up with zeros.
const fn there(f: Footprint, n: usize, lies: bool) -> usize {
    // Columns of a panel are a power of two: this is a multiple of them without a division.
    if lies { n & !(f.nr - 1) } else { 0 }
}

/// Whether A need not be packed, whose columns are adjacent words so far apart. If rows are adjacent as well, they are
/// for another kind of tile.
pub(crate) const fn a_lies(f: Footprint, col: usize) -> bool {
    col != 1 && lies(f, col)
}

/// Whether words that are adjacent, in rows so many words apart, need not be packed.
pub(crate) const fn lies(f: Footprint, row: usize) -> bool {
    f.plain && !COMPACT && (f.nr > LINE || !row.is_multiple_of(CROWDED))
}

/// Whether A and B need not be packed.
#[inline(always)]
pub(crate) fn lying(f: Footprint, a: RawOperand, b: RawOperand) -> (bool, bool) {
    (a.row == 1 && a_lies(f, a.col), b.col == 1 && lies(f, b.row))
}

/// Words between rows that drive one another out of L1: where they are a multiple of 1 KiB apart, `KC`
/// rows meet in at most a quarter of its sets. Panels of more than a line have vectors of one, which
/// wait for the multiply-adds anyway; shorter ones wait for L2 (Zen 5, one thread, rows 4 KiB apart, the speed of packing
/// first: AVX-512 1.02 to 1.05, AVX2 0.70 to 0.73, AVX 0.73 to 0.75; 2 KiB 0.91 to 0.96, 1 KiB 0.97).
const CROWDED: usize = 1024 / size_of::<f32>();

/// `C (+)= A B` with `a` an `m x k` and `b` a `k x n` matrix (those of `g` are ignored).
///
/// # Safety
/// As for [`super::in_place`], with `g.scratch` valid for [`scratch_len`] floats of operands that are [`lying`] so. Halves are
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
    let (a_lies, b_lies) = lying(F::FOOTPRINT, a, b);
    let there = there(F::FOOTPRINT, g.n, b_lies);
    let mut unit = f.unit();
    let packed_b = g.scratch;
    let b_len = packed_b_len(F::words(KC.min(g.k)), g.n - there, S::NR).unwrap_or(0);
    let packed_a = packed_b.wrapping_add(b_len);
    let mut depth = 0;
    loop {
        let kc = KC.min(g.k - depth);
        let words = F::words(kc);
        let accumulate = g.accumulate || depth > 0;
        // What is added to again had better stay in cache.
        let stream = g.stream && !accumulate && kc == g.k && is_lines(g.c, g.c_row);
        let (a, b) = (a.skip(0, depth), b.skip(depth, 0));
        // SAFETY: `kc` rows of both operands, packed into scratch of the size promised, or read in place: of A
        // the `rows` elements of a tile, of B whole panels, which end at `there` or before. Those are `b.row`
        // apart only where words are floats, which tiles are not, and A's columns are not adjacent (`a.col > 1`,
        // or a register block if it is packed): as a tile demands. What is
        // streamed begins at lines (`is_lines`; tiles begin at multiples of NR columns, which are whole
        // lines), is overwritten once, and fenced below.
        unsafe {
            (F::PACK_B)(b.skip(0, there), kc, g.n - there, packed_b);
            if let Some(sums) = &g.sums {
                sums.add(b, kc, g.n, accumulate);
            }
            if !a_lies {
                pack_a(s, f, a, g.m, kc, packed_a);
            }
            let left = KC.min(g.k - depth - kc);
            let mut next = Grid::new(a.skip(0, kc).flip(), left, g.m);
            let mut later = Grid::new(b.skip(kc, 0), left, g.n);
            let turns = F::turns(words);
            let mut fetch = Ahead { near: Near::NONE, far: Run::none(g.c) };
            let mut j = 0;
            while j < g.n {
                let cols = S::NR.min(g.n - j);
                let (panel, b_row) = match j < there {
                    true => (b.skip(0, j).ptr, b.row),
                    false => (packed_b.add((j - there) * words).cast_const(), S::NR),
                };
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
                            .unwrap_or(Run::none(panel));
                    }
                    let (a, a_row, a_col) = match (a_lies, F::TILES) {
                        (true, _) => (a.skip(i, 0).ptr, 1, a.col),
                        (_, true) => (packed_a.add(i * words).cast_const(), words, 1),
                        (_, false) => (packed_a.add(i * words).cast_const(), 1, F::MR),
                    };
                    let tile = micro::Tile {
                        kc: words,
                        a,
                        a_row,
                        a_col,
                        b: panel,
                        b_row,
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
