//! Products of operands that lie in memory as bf16, and products whose results will.
//!
//! ```text
//! A of floats: its words, a block of rows at a time, in scratch; of bf16: as they lie
//! C of floats: the blocks of the other drivers
//! C of bf16:   for each panel, for each group of rows
//!                the sums of one block of depth after the other, in a buffer
//!                through the epilogue to C, rounded once
//! ```

use super::fetch::{Ahead, Near, Run};
use super::format::{Dot, Format};
use super::narrow::Narrow;
use super::{Asks, KC, Place, ROWS, RawGemm, Rows, Sums, epilogue, micro, pack};
use crate::elements::{Elements, Floats};
use crate::footprint::{Footprint, least};
use crate::simd::Simd;

/// Which matrices of a product are of bf16; `a` and `c` of [`RawGemm`] point to them then.
#[derive(Clone, Copy, Default)]
pub(crate) struct Halved {
    pub(crate) a: bool,
    pub(crate) c: bool,
}

/// Floats of scratch that [`gemm`], or with tiles [`tiles::gemm`](super::tiles::gemm), wants for `m` rows of `k` elements.
pub(crate) const fn scratch_len(f: Footprint, halves: Halved, m: usize, k: usize) -> usize {
    match halves {
        Halved { a: true, .. } if !f.tiles => 0,
        Halved { c: true, .. } => least(m, ROWS) * f.words(k),
        _ => super::scratch_len(f, m, k),
    }
}

/// The driver for operands or results that are kept as bf16, but for those by tiles ([`tiles`](super::tiles)).
///
/// Rows of A are words as they lie. Sums of C have no place in C before they are whole, so
/// a tile goes through all of the inner dimension at once, in the order of the other drivers.
///
/// # Safety
/// As for [`super::in_place`], with B packed in the format, which keeps bf16, the matrices as
/// `halves` says, of which A is aligned as an `f32`, with rows at even distances and of an even
/// number of elements, the last a zero if `k` is odd, and
/// `g.scratch` valid for [`scratch_len`] floats.
#[inline(always)]
pub(crate) unsafe fn gemm<S: Simd, F: Dot<S>>(s: S, f: F, g: &RawGemm, halves: Halved) {
    let mut first = 0;
    while first < g.m && g.n > 0 {
        // Rows of A that are words already need not be taken in blocks.
        let most = if halves.a { g.m } else { ROWS };
        let rows = first..(first + most).min(g.m);
        let words = F::words(g.k);
        let mut a = Rows {
            ptr: g.a,
            row: g.a_row / F::DEPTH,
            col: 1,
            rows: rows.clone(),
            asks: Asks::These { then: None },
        };
        // SAFETY: rows are inside A, and scratch has room for so many; the rest is passed on
        // from the caller.
        unsafe {
            if !halves.a {
                let ptr = g.scratch.cast_const();
                a = Rows { ptr, row: words, asks: Asks::Nothing, ..a };
                for (i, row) in rows.clone().enumerate() {
                    let from = g.a.wrapping_add(row * g.a_row);
                    let to = g.scratch.wrapping_add(i * words);
                    pack::row(s, f, Floats, (from, g.a_col), g.k, to);
                }
            }
            if halves.c {
                deep(s, f, g, &a);
            } else {
                let mut depth = 0;
                loop {
                    let kc = KC.min(g.k - depth);
                    let part = Rows { ptr: a.ptr.wrapping_add(F::words(depth)), ..a.clone() };
                    (F::PARTS.block)(g, &part, depth, kc);
                    depth += kc;
                    if depth == g.k {
                        break;
                    }
                }
            }
        }
        first = rows.end;
    }
}

/// What the format keeps.
type Element<S, F> = <<F as Format<S>>::Kept as Elements<S, F>>::Element;

/// All products of some rows of C, a tile after the other; C is of elements that the format
/// keeps.
///
/// # Safety
/// As for [`gemm`]; `a` is valid for its rows of `k` elements, in words.
#[inline(always)]
unsafe fn deep<S: Simd, F: Dot<S>>(s: S, f: F, g: &RawGemm, a: &Rows) {
    let mut buffer = Sums::uninit();
    let sums = buffer.as_mut_ptr();
    let mut j = 0;
    while j < g.n {
        let cols = S::NR.min(g.n - j);
        let panel = |number: usize| g.b.wrapping_add(number * g.b_panel);
        let words = F::words(g.k);
        let next = if j + cols < g.n { words * S::NR } else { 0 };
        let turns = F::turns(words);
        let groups = a.rows.len().div_ceil(F::MR);
        let next = Run::new(panel(j / S::NR + 1), next, groups * turns);
        let mut fetch = Ahead { near: Near::NONE, far: next };
        let mut i = a.rows.start;
        while i < a.rows.end {
            let rows = Narrow::of::<S, F>().height(a.rows.end - i, cols, F::MR);
            let at = Place { i, j, rows, cols };
            let c = g.c.cast::<Element<S, F>>().wrapping_add(i * g.c_row + j);
            let mut depth = 0;
            // SAFETY: the tile is inside C and the buffer holds its rows of NR floats, which later
            // products find as the ones before left them; what is ahead is ours.
            unsafe {
                loop {
                    let kc = KC.min(g.k - depth);
                    let done = F::words(depth);
                    fetch.near = if depth + kc == g.k {
                        let c = g.c.cast::<Element<S, F>>().cast_const();
                        epilogue::ahead(&g.epilogue, c, g.c_row, &at)
                    } else {
                        Near::NONE
                    };
                    let tile = micro::Tile {
                        kc: F::words(kc),
                        a: a.ptr.wrapping_add((i - a.rows.start) * a.row + done),
                        a_row: a.row,
                        a_col: 1,
                        b: panel(j / S::NR).wrapping_add(done * S::NR),
                        b_row: S::NR,
                        c: sums,
                        c_row: S::NR,
                        start: sums,
                        start_row: S::NR,
                        stream: false,
                    };
                    g.fetch_ahead::<S, F>(&mut fetch, &at, F::turns(tile.kc), next);
                    f.multiply(s, &mut (), &tile, (rows, cols), depth > 0, &mut fetch);
                    depth += kc;
                    if depth == g.k {
                        break;
                    }
                }
                epilogue::apply::<S, F, _>(s, f.kept(), &g.epilogue, sums, c, g.c_row, &at);
            }
            i += rows;
        }
        j += cols;
    }
}
