//! Products of a few rows: one pass over B, as fast as memory gives it.
//!
//! A token that is generated is one row, and each weight is read once for it: such a product
//! does two operations for an element of B and waits for memory. So B is read panel by
//! panel in the order in which it lies, each line is asked for a while before its use, and as
//! many sums are under way at one time as hide the latency of a multiply-add, which a single
//! row has only with several panels side by side.
//!
//! ```text
//! for each group of P panels of B              (P = 4, 2 or 1: fewer rows, more panels)
//!   for each block of KC rows of B             (B: memory -> registers, once)
//!     for each group of M <= MR rows of A      (A: L1; equal groups, so that none is thin)
//!       M x (P NR) sums in registers over KC products, and the lines of B ahead
//!       first block: overwrite C; later ones: add to it
//!       last block: into a buffer, from there through the epilogue to C
//! ```
//! The additions to an element of C are those of the other drivers, in their order: the bits are
//! the same.

use super::format::Dot;
use super::narrow::Narrow;
use super::{KC, LINE, Place, RawGemm, Rows, Sums, beside, epilogue, micro};
use crate::elements::Floats;
use crate::simd::Simd;

/// Most rows that are taken so.
///
/// B is read from memory once in any case; many rows are bound by multiply-adds and rather
/// have A's block stay in cache.
pub(super) const ROWS: usize = 16;

/// Bytes between a line that is asked for and the one that is in use, in each of the panels.
///
/// One row of GPT-2 124M in bf16 from memory (Granite Rapids, one thread, into L1): 58 tokens a second,
/// 48 with 4096, 40 without. From L3 all up to 2048 are as fast as none. On Zen 4 (one thread, into L2) 0.92
/// of the speed with 4096 and more, 1.01 to 1.04 with 1024.
const AHEAD: usize = 2048;

/// `C (+)= A B` for the rows of `a`, all of the inner dimension.
///
/// # Safety
/// As for [`super::in_place`], B packed in the format; `a` is valid for its rows of all words,
/// which are at most [`ROWS`], and `a.col == 1`.
#[inline(always)]
pub(crate) unsafe fn gemm<S: Simd, F: Dot<S>>(s: S, _: F, g: &RawGemm, a: &Rows) {
    let m = a.rows.len();
    // Groups of one size, or one less: a thin last one would wait for its own few sums.
    let most = m.div_ceil(m.div_ceil(S::MR));
    // Of panels of four vectors two are 24 sums for three rows, more than registers are left for.
    let is_wide = S::LANES > 1 && S::NR > 2 * S::LANES;
    let mut j = 0;
    while j < g.n {
        let whole = (g.n - j) / S::NR;
        let panels = match most {
            1 if whole >= 4 => 4,
            3 if is_wide => 1,
            1..=3 if whole >= 2 => 2,
            _ => 1,
        };
        let mut depth = 0;
        loop {
            let kc = KC.min(g.k - depth);
            let mut i = 0;
            while i < m {
                let cols = (panels * S::NR).min(g.n - j);
                let rows = Narrow::of::<S, F>().height(m - i, cols, most);
                let of = Part { i, j, rows, depth, kc, panels, fetches: i == 0 };
                // SAFETY: the part is inside the product, and its panels are whole, or one.
                unsafe { part::<S, F>(s, g, a, &of) };
                i += rows;
            }
            depth += kc;
            if depth == g.k {
                break;
            }
        }
        j += panels * S::NR;
    }
}

/// Some rows and panels of a product, and some of its inner dimension.
struct Part {
    i: usize,
    j: usize,
    rows: usize,
    depth: usize,
    kc: usize,
    panels: usize,
    /// Whether it asks for the lines ahead: the first to read these panels does.
    fetches: bool,
}

/// # Safety
/// As for [`gemm`]; all panels are whole if there are several.
#[inline(always)]
unsafe fn part<S: Simd, F: Dot<S>>(s: S, g: &RawGemm, a: &Rows, of: &Part) {
    let done = F::words(of.depth);
    let (words, first) = (F::words(of.kc), a.rows.start + of.i);
    let cols = (of.panels * S::NR).min(g.n - of.j);
    let c = g.c.wrapping_add(first * g.c_row + of.j);
    let last = of.depth + of.kc == g.k;
    let through = last && !g.epilogue.is_none();
    let mut buffer = Sums::uninit();
    let sums = buffer.as_mut_ptr();
    let tile = micro::Tile {
        kc: words,
        a: a.ptr.wrapping_add(of.i * a.row + done),
        a_row: a.row,
        a_col: 1,
        b: g.b.wrapping_add(of.j / S::NR * g.b_panel + done * S::NR),
        b_row: S::NR,
        c: if through { sums } else { c },
        c_row: if through { S::NR } else { g.c_row },
        start: c,
        start_row: g.c_row,
        stream: false,
    };
    let panels = beside::Panels {
        stride: g.b_panel,
        // Panels lie apart in C, one behind the other in the buffer.
        c_stride: if through { of.rows * S::NR } else { S::NR },
        uncached: g.uncached,
        ahead: if of.fetches { AHEAD / size_of::<f32>() / LINE * LINE } else { 0 },
        left: F::words(g.k) - done,
    };
    let accumulate = g.accumulate || of.depth > 0;
    // SAFETY: passed on from the caller: the panels are of B, the tile is inside C and the
    // buffer holds as much.
    unsafe {
        if cols < of.panels * S::NR {
            // Not a whole panel: a tile at the edge.
            F::PARTS.edge::<S, F>(&tile, of.rows, cols)(&tile, of.rows, cols, accumulate);
        } else {
            (F::PARTS.beside)(&tile, &panels, of.rows, of.panels, accumulate);
        }
        if through {
            let mut p = 0;
            while p * S::NR < cols {
                let (j, cols) = (of.j + p * S::NR, S::NR.min(cols - p * S::NR));
                let at = Place { i: first, j, rows: of.rows, cols };
                let (from, to) = (sums.add(p * of.rows * S::NR), c.wrapping_add(p * S::NR));
                epilogue::apply::<S, F, _>(s, Floats, &g.epilogue, from, to, g.c_row, &at);
                p += 1;
            }
        }
    }
}
