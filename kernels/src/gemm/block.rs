//! Products of some rows of C, a tile after the other: the two inner loops of the drivers' pseudocode. Those of little
//! depth have others ([`shallow`]).

use super::RawGemm;
use super::epilogue;
use super::fetch::{Ahead, Near, NextRows, Run, WithRows};
use super::format::Dot;
use super::micro::{self, Tile};
use super::narrow::Narrow;
use super::shallow;
use crate::built::{APART, COMPACT};
use crate::elements::Floats;
use crate::simd::Simd;
use core::mem::MaybeUninit;

/// Some rows of A, in words of a format: word (i, p) is `ptr[i * row + p * col]`.
#[derive(Clone)]
pub(crate) struct Rows {
    pub(super) ptr: *const f32,
    pub(super) row: usize,
    pub(super) col: usize,
    /// Which rows of C they make.
    pub(super) rows: core::ops::Range<usize>,
    /// Which rows of A are asked for meanwhile.
    pub(super) asks: Asks,
}

/// What of A is asked for while some of its rows are multiplied. It goes into L2: what has just been written, to scratch,
/// is there.
#[derive(Clone, Copy)]
pub(crate) enum Asks {
    Nothing,
    /// While the first panel is gone through, each register block of these rows before its turn; behind the last what
    /// is multiplied then.
    These {
        then: Option<NextRows>,
    },
    /// While the last whole panel is gone through.
    Behind(NextRows),
}

/// `kc` products from `depth` on of some rows of C: see the module's pseudocode.
///
/// # Safety
/// As for [`super::in_place`], B packed in the format; `a` is valid for its rows of `kc` elements, that
/// is for the words that they take.
#[inline(always)]
pub(crate) unsafe fn block<S: Simd, F: Dot<S>>(
    s: S,
    f: F,
    g: &RawGemm,
    a: &Rows,
    depth: usize,
    kc: usize,
) {
    let words = F::words(kc);
    if kc == g.k && g.epilogue.is_none() && shallow::suits::<S>(words, g.n) {
        debug_assert_eq!(depth, 0);
        // SAFETY: passed on from the caller; these are all products of the inner dimension.
        return unsafe { shallow::gemm(s, f, g, a, words) };
    }
    let mut buffer = Sums::uninit();
    let mut j = 0;
    while j < g.n {
        let cols = S::NR.min(g.n - j);
        let panel = |number: usize| g.b.wrapping_add(number * g.b_panel + F::words(depth) * S::NR);
        let next = if j + cols < g.n { words * S::NR } else { 0 };
        let groups = a.rows.len().div_ceil(F::MR);
        let turns = F::turns(words);
        let next = Run::new(panel(j / S::NR + 1), next, groups * turns);
        let mut fetch = Ahead { near: Near::NONE, far: next };
        let mut i = a.rows.start;
        let accumulate = g.accumulate || depth > 0;
        let last = depth + kc == g.k;
        if const { lean::<S>() } && a.col == 1 && cols == S::NR {
            let asks = match a.asks {
                Asks::Nothing => false,
                Asks::These { .. } => j == 0,
                Asks::Behind(_) => g.n - j < 2 * S::NR,
            };
            let sums = buffer.as_mut_ptr();
            let of = Panel { words, at: panel(j / S::NR), next, j, accumulate, last, sums };
            // SAFETY: passed on from the caller; A's elements, the format and the panel are as asked for just now, there is
            // an epilogue at the end of the depth only, and the buffer holds MR x NR floats.
            i = unsafe {
                let whole = match (last && !g.epilogue.is_none(), asks) {
                    // The way through an epilogue is long: few copies of it.
                    (true, true) => F::PARTS.whole.through_rows,
                    (true, false) => F::PARTS.whole.through,
                    (false, _) if g.ahead.is_some() => F::PARTS.whole.ahead,
                    (false, true) => F::PARTS.whole.rows,
                    (false, false) => F::PARTS.whole.plain,
                };
                whole(g, a, &of, &mut fetch.far)
            };
        }
        while i < a.rows.end {
            let left = a.rows.end - i;
            let rows = if a.col == 1 {
                Narrow::of::<S, F>().height(left, cols, F::MR)
            } else {
                F::MR.min(left)
            };
            let from = a.ptr.wrapping_add((i - a.rows.start) * a.row);
            let tile = Tile {
                kc: words,
                a: from,
                a_row: a.row,
                a_col: a.col,
                b: panel(j / S::NR),
                b_row: S::NR,
                c: g.c.wrapping_add(i * g.c_row + j),
                c_row: g.c_row,
                start: g.c.wrapping_add(i * g.c_row + j),
                start_row: g.c_row,
                stream: false,
            };
            let at = Place { i, j, rows, cols };
            fetch.near = if last && !COMPACT {
                epilogue::ahead(&g.epilogue, g.c.cast_const(), g.c_row, &at)
            } else {
                Near::NONE
            };
            // SAFETY: the tile is inside C, and C holds the sum of the products before; what is ahead is ours.
            unsafe {
                g.fetch_ahead::<S, F>(&mut fetch, &at, turns, next);
                place(s, f, g, &at, tile, accumulate, last, &mut fetch);
            }
            i += rows;
        }
        j += cols;
    }
}

/// Whether there are loops for [`whole`] register blocks alone.
const fn lean<S: Simd>() -> bool {
    APART && S::LANES > 1
}

/// A panel, and what becomes of the products with it.
pub(crate) struct Panel {
    /// A block of its rows, of so many words.
    at: *const f32,
    words: usize,
    /// What is asked for of the next one.
    next: Run,
    /// Its first column.
    j: usize,
    accumulate: bool,
    /// Whether these are the last products.
    last: bool,
    /// Room for a tile.
    sums: *mut f32,
}

/// The register blocks of some rows of C that are whole, and the first row behind them: with `THROUGH` through the
/// epilogue, otherwise to C; with `AHEAD` what is ahead of the product is asked for, with `ROWS` the next rows of A.
///
/// What is done between two blocks fills, while their sums are made, the window in which the CPU looks for work, and
/// keeps the next block out of it. So there is little of it: a loop for each of what a panel can be, in which nothing
/// is decided for each tile, but for `AHEAD` before an epilogue. That takes 30 to 40 cycles of a tile with AVX-512, 60 to
/// 100 with AVX2 (Zen 4, one thread, in turns): products of `f32` with 256 elements of depth are 1.01 to 1.02 times as
/// fast, of bf16 1.02, of `f32` with 64 elements 1.03 and 1.06, with 16 elements 1.10 and 1.21, with 4 elements 1.3. One
/// loop for all of these gained half of it.
///
/// While the first panel is gone through, the next rows of A are asked for, which may be in L3: with both
/// 4096 x 256 x 256 is 1.035 times as fast in `f32` and 1.03 in bf16, 4096 x 1024 x 256 1.025 times.
///
/// Rows behind the last whole register block are not asked for.
///
/// # Safety
/// As for [`block`], with elements of a row of A next to each other, a format of vectors, and a whole panel with what
/// is to be done with it at this depth; `THROUGH` at the last products only, and with room for a tile's sums.
#[inline(always)]
pub(crate) unsafe fn whole<
    S: Simd,
    F: Dot<S>,
    const THROUGH: bool,
    const AHEAD: bool,
    const ROWS: bool,
>(
    s: S,
    f: F,
    g: &RawGemm,
    a: &Rows,
    panel: &Panel,
    far: &mut Run,
) -> usize {
    if const { !lean::<S>() } {
        // Not called: `block` has no other loops then.
        return a.rows.start;
    }
    let mut i = a.rows.start;
    let mut from = a.ptr;
    while a.rows.end - i >= F::MR {
        let at = Place { i, j: panel.j, rows: F::MR, cols: S::NR };
        let c = g.c.wrapping_add(i * g.c_row + panel.j);
        let (to, to_row) = if THROUGH { (panel.sums, S::NR) } else { (c, g.c_row) };
        let tile = Tile {
            kc: panel.words,
            a: from,
            a_row: a.row,
            a_col: 1,
            b: panel.at,
            b_row: S::NR,
            c: to,
            c_row: to_row,
            start: c,
            start_row: g.c_row,
            stream: false,
        };
        // Without an epilogue as `epilogue::ahead` has it, but known beforehand.
        let near = match (THROUGH, panel.last) {
            (true, _) => epilogue::ahead(&g.epilogue, g.c.cast_const(), g.c_row, &at),
            (_, true) => Near::new((c.cast_const(), g.c_row), None, (F::MR, S::NR)),
            (_, false) => Near::NONE,
        };
        i += F::MR;
        let behind = from.wrapping_add(F::MR * a.row);
        let mut ahead = Ahead { near, far: *far };
        // SAFETY: passed on from the caller, and what is ahead is ours; sums are read where they were written.
        unsafe {
            if AHEAD {
                g.fetch_ahead::<S, F>(&mut ahead, &at, F::turns(panel.words), panel.next);
            }
            if ROWS {
                let next = match a.asks {
                    Asks::Behind(next) => Some(next),
                    Asks::These { then } if a.rows.end - i < F::MR => then,
                    _ => Some(NextRows::new(behind, a.row)),
                };
                let next = next.unwrap_or(NextRows::none(from));
                let mut fetch = WithRows::new(ahead, next);
                micro::whole::<S, F, _, true>(s, f, &tile, panel.accumulate, &mut fetch);
                ahead = fetch.ahead;
            } else {
                micro::whole::<S, F, _, true>(s, f, &tile, panel.accumulate, &mut ahead);
            }
            *far = ahead.far;
            if THROUGH {
                epilogue::apply::<S, F, _>(s, Floats, &g.epilogue, panel.sums, c, g.c_row, &at);
            }
        }
        from = behind;
    }
    i
}

/// A tile of C.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(super) i: usize,
    pub(super) j: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// One tile, of which these may be the `last` products.
///
/// Before an epilogue the sums go to a buffer, and through the epilogue from there to C.
///
/// # Safety
/// As for [`Format::multiply`](super::format::Format::multiply), the tile being the place in C; passed on from [`block`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a product, a place in it, and what is there")]
unsafe fn place<S: Simd, F: Dot<S>>(
    s: S,
    f: F,
    g: &RawGemm,
    at: &Place,
    tile: Tile,
    accumulate: bool,
    last: bool,
    fetch: &mut Ahead,
) {
    let mut buffer = Sums::uninit();
    let through = last && !g.epilogue.is_none();
    let (sums, c) = (buffer.as_mut_ptr(), tile.c);
    let tile = if through { Tile { c: sums, c_row: S::NR, ..tile } } else { tile };
    // SAFETY: the buffer holds the rows of a register block, and of a narrow tile, and is read where it was written.
    unsafe {
        let size = (at.rows, at.cols);
        // What lean loops have left of adjacent words is at an edge of C, and words that are no floats are adjacent.
        if const { lean::<S>() && F::IS_PLAIN } && tile.a_col != 1 || const { !lean::<S>() } {
            f.multiply(s, &mut (), &tile, size, accumulate, fetch);
        } else {
            f.apart(s, &mut (), &tile, size, accumulate);
        }
        if through {
            epilogue::apply::<S, F, _>(s, Floats, &g.epilogue, sums, c, g.c_row, at);
        }
    }
}

/// Columns and elements of the largest register block; a tile of few columns has no more rows of a panel.
pub(super) const MAX_COLS: usize = 32;
pub(super) const MAX_TILE: usize = 32 * MAX_COLS;

/// Room for a tile's sums, in whole lines.
#[repr(align(64))]
pub(super) struct Sums(MaybeUninit<[f32; MAX_TILE]>);

impl Sums {
    #[inline(always)]
    pub(super) fn uninit() -> Self {
        Self(MaybeUninit::uninit())
    }

    #[inline(always)]
    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}
