//! Matrix products `C = A B`: a register-blocked micro-kernel under one driver.
//!
//! `B` is *packed*: panels of `NR` columns, each panel stored row after row, the
//! last one padded with zeros. Weights are packed once a step and then used by
//! every block of tokens. `A` is read where it lies, with any strides: the
//! micro-kernel broadcasts single elements of it, so a packed copy buys nothing. Nor
//! does one of a `B` that is used once (weight gradients, [`both`]), but in some places.
//!
//! ```text
//! for each block of KC rows of B                 (a panel's block stays in L1)
//!   for each panel of NR columns                 (B: L2 or L3 -> L1, once)
//!     for each group of MR rows of A             (A: L2 -> L1)
//!       micro-kernel: MR x NR sums in registers over KC products
//!       first block: overwrite C; later ones: add to it
//!       last block: into a buffer, from there through the epilogue to C
//! ```
//!
//! The order of additions to an element of `C` depends on `k` alone, never on
//! `m`, `n` or who calls: any tiling of `C` gives the same bits.
//!
//! In a [`Format`] other than plain floats, A is brought into it on the way, a block of rows and
//! of depth at a time, in scratch of the caller's.
//!
//! Up to 16 rows, which read B once and do little with it, have loops of their own ([`few`]), but
//! for tiles ([`tiled`]). A panel and a few groups of rows are multiplied without any loops but
//! those of the micro-kernel ([`small`]). Of few columns a row is a lane ([`narrow`]).
//!
//! The structure is that of Goto and van de Geijn, "Anatomy of High-Performance
//! Matrix Multiplication" (2008), with the loops over L3 blocks left to the
//! caller's tiles.

mod beside;
pub(crate) mod both;
mod compact;
pub(crate) mod epilogue;
pub(crate) mod fetch;
mod few;
pub(crate) mod format;
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "kernels for other CPUs have no format that keeps bf16")
)]
pub(crate) mod kept;
pub(crate) mod micro;
pub(crate) mod narrow;
pub(crate) mod pack;
pub(crate) mod small;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiled;

use crate::built::COMPACT;
use crate::elements::{Bf16, Elements, Floats, RawOperand};
use crate::footprint::{Footprint, least, most};
use crate::simd::Simd;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
pub(crate) use epilogue::RawEpilogue;
use fetch::Grid;
use format::{Dot, Format, Single};
use narrow::Narrow;

/// Depth of a block of the inner dimension of every product.
///
/// A block's sums are added to C when it is done. So a product over `k` may be made by
/// several calls, each over some of `k` and all but the first accumulating, with the
/// bits of one call, if they meet at multiples of this.
///
/// A panel block is `256 * 16 * 4` bytes = 16 KiB, half of a 32 KiB L1; the other
/// half holds the rows of A and C that stream by. 512 gave 0.95 to 1.02 of its speed on
/// the reference products (Zen 3, one thread, in turns).
pub const KC: usize = 256;

/// A product over raw memory. Built by the safe methods of [`crate::Kernels`].
#[derive(Clone, Copy)]
pub(crate) struct RawGemm {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Element (i, p) of A is `a[i * a_row + p * a_col]`.
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    pub(crate) a_col: usize,
    /// Packed panels of B, `b_panel` words apart.
    pub(crate) b: *const f32,
    pub(crate) b_panel: usize,
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    /// Add to C instead of overwriting it.
    pub(crate) accumulate: bool,
    /// Products of [`both`]: keep what is written out of the caches, where that can be.
    pub(crate) stream: bool,
    pub(crate) epilogue: RawEpilogue,
    /// Products of [`both`]: what becomes of the sums of B's columns.
    pub(crate) sums: Option<ColumnSums>,
    /// Room for operands in another format.
    pub(crate) scratch: *mut f32,
    /// What tiles ask for before the next panel, if anything: a grid that is there, and nobody else's, during the
    /// product. Products of a few rows, and those of [`both`], do not ask for it.
    pub(crate) ahead: Option<NonNull<Grid>>,
}

impl RawGemm {
    /// Has the tile at `at`, of so many turns, ask for what is ahead, or for what is left of `panel`.
    ///
    /// # Safety
    /// `ahead` is as it is to be.
    #[inline(always)]
    unsafe fn fetch_ahead<S: Simd, F: Format<S>>(
        &self,
        fetch: &mut fetch::Ahead,
        at: &Place,
        turns: usize,
        panel: fetch::Run,
    ) {
        // Tiles of vectors that are not whole have other loops, which ask for nothing.
        let asks = F::TILES || (at.rows, at.cols) == (F::MR, S::NR);
        // SAFETY: passed on from the caller; the reference goes no further than this call.
        let grid = self.ahead.map(|mut grid| unsafe { grid.as_mut() });
        fetch.instead(grid, asks, turns, panel);
    }
}

/// Where the sums of a matrix's columns go, and what makes them.
#[derive(Clone, Copy)]
pub(crate) struct ColumnSums {
    pub(crate) kernel: SumKernel,
    pub(crate) to: *mut f32,
}

/// A kernel of [`crate::elementwise::column_sum`], for floats or for bf16.
#[derive(Clone, Copy)]
pub(crate) enum SumKernel {
    Floats(unsafe fn(*const f32, usize, usize, usize, *mut f32, bool)),
    Halves(unsafe fn(*const Bf16, usize, usize, usize, *mut f32, bool)),
}

impl ColumnSums {
    /// Those of the first `rows x cols` elements of `b`.
    ///
    /// # Safety
    /// They are valid, contiguous in rows and of the kernel's kind, `to` for `cols` floats; the
    /// CPU has the kernel's instructions.
    #[inline(always)]
    unsafe fn add(&self, b: RawOperand, rows: usize, cols: usize, accumulate: bool) {
        // SAFETY: passed on from the caller.
        unsafe {
            match self.kernel {
                SumKernel::Floats(sum) => sum(b.ptr, b.row, rows, cols, self.to, accumulate),
                SumKernel::Halves(sum) => sum(b.ptr.cast(), b.row, rows, cols, self.to, accumulate),
            }
        }
    }
}

/// Rows of A that are brought into another format at a time. 128, as many as a block of tokens has where
/// weights come from memory, read those once rather than twice: a step of adapters of GPT-2 124M's shape for
/// 256 tokens took 0.94 of the time that it took with 96 (Granite Rapids, AMX, two threads, in turns).
const ROWS: usize = 128;

/// Floats of scratch that [`converted`] and [`tiles`] want for up to `m` rows of up to `k` elements.
pub(crate) const fn scratch_len(f: Footprint, m: usize, k: usize) -> usize {
    let block = least(m, ROWS) * f.words(least(k, KC));
    // Not by `few_rows`: more rows of fewer elements may go through it.
    let few = if f.tiles { 0 } else { least(m, few::ROWS) * f.words(k) };
    most(block, least(few, ROWS * f.words(KC)))
}

/// Most rows of `k` elements that go through [`few`]: all their words take no more scratch
/// than a block of the most rows.
#[inline(always)]
fn few_rows<S: Simd, F: Dot<S>>(k: usize) -> usize {
    few::ROWS.min(ROWS * F::words(KC) / F::words(k).max(1))
}

/// The driver for a format of plain floats: A is read where it lies.
///
/// # Safety
/// All of A, of the first `k` rows of the panels of B, of C and of the epilogue's
/// operands is valid memory; C overlaps none of the others; what is [`RawGemm::ahead`] is as it says.
#[inline(always)]
pub(crate) unsafe fn in_place<S: Simd>(s: S, f: Single, g: &RawGemm) {
    if g.m == 0 || g.n == 0 {
        return;
    }
    if !COMPACT && g.m <= few::ROWS && g.a_col == 1 {
        let a = Rows { ptr: g.a, row: g.a_row, col: 1, rows: 0..g.m };
        // SAFETY: passed on from the caller.
        return unsafe { few::gemm(s, f, g, &a) };
    }
    let is_crowded = is_crowded::<S>(g);
    let mut copy = Copied(MaybeUninit::uninit());
    let mut depth = 0;
    // `k == 0` still runs once, to overwrite C and apply the epilogue.
    loop {
        let kc = KC.min(g.k - depth);
        let mut first = 0;
        while first < g.m {
            // Without an inner dimension A has no memory to point into.
            let ptr = g.a.wrapping_add(first * g.a_row + depth * g.a_col);
            let mut a = Rows { ptr, row: g.a_row, col: g.a_col, rows: first..g.m };
            let (mut after, crowded);
            let mut g = g;
            // SAFETY: passed on from the caller; the copy has room for `KC` elements of `MR` rows; `after`
            // lives as long as what points to it.
            unsafe {
                if is_crowded {
                    a = Rows { rows: first..(first + S::MR).min(g.m), ..a };
                    after = rows_after::<S>(g, &a, depth, kc);
                    let ahead = g.ahead.or(Some(NonNull::from(&mut after)));
                    crowded = RawGemm { ahead, ..*g };
                    (a, g) = (copy.rows(&a, kc), &crowded);
                }
                block(s, f, &mut (), g, &a, depth, kc);
            }
            first = a.rows.end;
        }
        depth += kc;
        if depth == g.k {
            return;
        }
    }
}

/// Lines of one set of an L1 cache, at least: lines that lie a multiple of `PERIOD` bytes apart.
const WAYS: usize = 8;
const PERIOD: usize = 4096;
/// Most columns of B that are gone through for each register block of A's rows: a block of depth of them
/// is 4 MiB, which L3 has.
const CROWDED_COLS: usize = 4096;

/// Whether A's rows are so far apart that those of a register block drive one another out of L1, and B is
/// such that a copy pays.
///
/// With rows 4 KiB apart products of 192 x 256 x 1024 and 96 x 1024 x 1024 are made 1.05 times as fast, of
/// 96 x 4096 x 1024 as fast as without (Zen 4, AVX-512, one thread, in turns).
#[inline(always)]
fn is_crowded<S: Simd>(g: &RawGemm) -> bool {
    let apart = g.a_row * size_of::<f32>();
    let is_far = g.a_col == 1 && apart > 0 && apart.is_multiple_of(PERIOD);
    !COMPACT && S::MR > WAYS && is_far && (S::NR + 1..=CROWDED_COLS).contains(&g.n)
}

/// What of a crowded A is asked for while the rows of a register block are multiplied: of every few blocks the rows
/// behind, as many as a tile has turns; of the last block those of the next depth. No CPU sees such rows
/// coming: 4096 x 256 x 1024 by blocks of 96 rows is 1.07 times as fast as without, 4096 x 1024 x 1024 1.02
/// times (Zen 4, AVX-512, one thread, in turns).
#[inline(always)]
fn rows_after<S: Simd>(g: &RawGemm, a: &Rows, depth: usize, kc: usize) -> Grid {
    let turns = <Single as Format<S>>::turns(KC);
    let soon = (depth + kc).min(g.k);
    let (row, col, rows) = match g.m - a.rows.end {
        0 if soon == g.k => (0, 0, 0),
        0 => (0, soon, g.m),
        left if (a.rows.start / S::MR).is_multiple_of(turns / S::MR) => (a.rows.end, depth, left),
        _ => (0, 0, 0),
    };
    let cols = KC.min(g.k - col);
    let at = RawOperand::floats(g.a, g.a_row, 1).skip(row, col);
    Grid::new(at, least(rows, turns), cols).in_pairs()
}

/// Room for the rows of a register block: next to each other they do not meet in the cache.
#[repr(align(64))]
struct Copied(MaybeUninit<[f32; 12 * KC]>);

impl Copied {
    /// The same rows, copied here.
    ///
    /// # Safety
    /// `a` is valid for its rows, at most 12, of `kc <= KC` adjacent elements.
    #[inline(always)]
    unsafe fn rows(&mut self, a: &Rows, kc: usize) -> Rows {
        let to = self.0.as_mut_ptr().cast::<f32>();
        for i in 0..a.rows.len() {
            // SAFETY: row i of both; nobody else knows of the copy.
            unsafe { to.add(i * KC).copy_from_nonoverlapping(a.ptr.add(i * a.row), kc) };
        }
        Rows { ptr: to, row: KC, col: 1, rows: a.rows.clone() }
    }
}

/// The driver for other formats.
///
/// # Safety
/// As for [`in_place`], with B packed in the format and `g.scratch` valid for [`scratch_len`]
/// floats.
#[inline(always)]
pub(crate) unsafe fn converted<S: Simd, F: Dot<S>>(s: S, f: F, g: &RawGemm) {
    if COMPACT || g.m > few_rows::<S, F>(g.k) {
        // SAFETY: passed on from the caller.
        return unsafe { in_blocks(s, f, Floats, g) };
    }
    let words = F::words(g.k);
    let a = Rows { ptr: g.scratch.cast_const(), row: words, col: 1, rows: 0..g.m };
    // SAFETY: rows are inside A, and scratch has room for all their words.
    unsafe {
        for row in 0..g.m {
            let from = g.a.wrapping_add(row * g.a_row);
            pack::row(s, f, Floats, (from, g.a_col), g.k, g.scratch.wrapping_add(row * words));
        }
        if g.m > 0 {
            few::gemm(s, f, g, &a);
        }
    }
}

/// The driver for formats of [`Format::TILES`]: few rows are tiles of few rows, for other
/// instructions would give other bits.
///
/// # Safety
/// As for [`converted`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn tiles<S: Simd, F: Format<S>>(s: S, f: F, g: &RawGemm) {
    // SAFETY: passed on from the caller.
    unsafe { in_blocks(s, f, Floats, g) }
}

/// [`converted`] for any number of rows, of an A of one kind of elements.
///
/// # Safety
/// As for [`converted`], A being of the kind.
#[inline(always)]
unsafe fn in_blocks<S: Simd, F: Format<S>, M: Elements<S, F>>(s: S, f: F, m: M, g: &RawGemm) {
    let mut unit = f.unit();
    let scratch = g.scratch;
    let mut first = 0;
    while first < g.m && g.n > 0 {
        let rows = first..(first + ROWS).min(g.m);
        let mut depth = 0;
        loop {
            let kc = KC.min(g.k - depth);
            let words = F::words(kc);
            let a = Rows { ptr: scratch.cast_const(), row: words, col: 1, rows: rows.clone() };
            // SAFETY: rows and products are inside A, and scratch has room for so many.
            unsafe {
                for (i, row) in rows.clone().enumerate() {
                    let from = g.a.cast::<M::Element>();
                    let from = from.wrapping_add(row * g.a_row + depth * g.a_col);
                    pack::row(s, f, m, (from, g.a_col), kc, scratch.wrapping_add(i * words));
                }
                block(s, f, &mut unit, g, &a, depth, kc);
            }
            depth += kc;
            if depth == g.k {
                break;
            }
        }
        first = rows.end;
    }
}

/// Some rows of A, in words of a format: word (i, p) is `ptr[i * row + p * col]`.
#[derive(Clone)]
struct Rows {
    ptr: *const f32,
    row: usize,
    col: usize,
    /// Which rows of C they make.
    rows: core::ops::Range<usize>,
}

/// `kc` products from `depth` on of some rows of C: see the module's pseudocode.
///
/// # Safety
/// As for [`in_place`], B packed in the format; `a` is valid for its rows of `kc` elements, that
/// is for the words that they take.
#[inline(always)]
unsafe fn block<S: Simd, F: Format<S>>(
    s: S,
    f: F,
    unit: &mut F::Unit,
    g: &RawGemm,
    a: &Rows,
    depth: usize,
    kc: usize,
) {
    let words = F::words(kc);
    let mut j = 0;
    while j < g.n {
        let cols = S::NR.min(g.n - j);
        let panel = |number: usize| g.b.wrapping_add(number * g.b_panel + F::words(depth) * S::NR);
        let next = if j + cols < g.n { words * S::NR } else { 0 };
        let groups = a.rows.len().div_ceil(F::MR);
        let turns = F::turns(words);
        let next = fetch::Run::new(panel(j / S::NR + 1), next, groups * turns);
        let mut fetch = fetch::Ahead { near: fetch::Near::NONE, far: next };
        let mut i = a.rows.start;
        while i < a.rows.end {
            let left = a.rows.end - i;
            let rows = if a.col == 1 {
                Narrow::of::<S, F>().height(left, cols, F::MR)
            } else {
                F::MR.min(left)
            };
            let from = a.ptr.wrapping_add((i - a.rows.start) * a.row);
            let tile = micro::Tile {
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
            let accumulate = g.accumulate || depth > 0;
            let last = depth + kc == g.k;
            let at = Place { i, j, rows, cols };
            fetch.near = if last && !COMPACT {
                let soon = at.soon::<S, F>(&a.rows, g.n);
                epilogue::ahead(&g.epilogue, g.c.cast_const(), g.c_row, &soon)
            } else {
                fetch::Near::NONE
            };
            // SAFETY: the tile is inside C, and C holds the sum of the products before; what is ahead is ours.
            unsafe {
                g.fetch_ahead::<S, F>(&mut fetch, &at, turns, next);
                place(s, f, unit, g, &at, tile, accumulate, last, &mut fetch);
            }
            i += rows;
        }
        j += cols;
    }
}

/// Floats of a cache line.
pub(crate) const LINE: usize = 16;

/// Whether each [`LINE`] floats of a matrix's rows are a cache line.
#[inline(always)]
fn is_lines(at: *const f32, row: usize) -> bool {
    (at.addr() | (row * size_of::<f32>())).is_multiple_of(LINE * size_of::<f32>())
}

/// A tile of C.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    i: usize,
    j: usize,
    rows: usize,
    cols: usize,
}

impl Place {
    /// The tile whose lines are asked for during this one: itself, or where tiles take less time
    /// than memory the next in the order of the drivers, of `rows` of C and its first `n` columns.
    #[inline(always)]
    fn soon<S: Simd, F: Format<S>>(self, rows: &core::ops::Range<usize>, n: usize) -> Self {
        if !F::TILES {
            return self;
        }
        let (mut i, mut j) = (self.i + self.rows, self.j);
        if i == rows.end {
            (i, j) = (rows.start, j + self.cols);
        }
        Self { i, j, rows: F::MR.min(rows.end - i), cols: S::NR.min(n.saturating_sub(j)) }
    }
}

/// One tile, of which these may be the `last` products.
///
/// Before an epilogue the sums go to a buffer, and through the epilogue from there to C.
///
/// # Safety
/// As for [`Format::multiply`], the tile being the place in C; passed on from [`block`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a product, a place in it, and what is there")]
unsafe fn place<S: Simd, F: Format<S>>(
    s: S,
    f: F,
    unit: &mut F::Unit,
    g: &RawGemm,
    at: &Place,
    tile: micro::Tile,
    accumulate: bool,
    last: bool,
    fetch: &mut fetch::Ahead,
) {
    let mut buffer = Sums::uninit();
    let through = last && !g.epilogue.is_none();
    let (sums, c) = (buffer.as_mut_ptr(), tile.c);
    let tile = if through { micro::Tile { c: sums, c_row: S::NR, ..tile } } else { tile };
    // SAFETY: the buffer holds MR x NR floats and is read where it was written.
    unsafe {
        f.multiply(s, unit, &tile, (at.rows, at.cols), accumulate, fetch);
        if through {
            epilogue::apply::<S, F, _>(s, Floats, &g.epilogue, sums, c, g.c_row, at);
        }
    }
}

/// Columns and elements of the largest register block.
const MAX_COLS: usize = 32;
const MAX_TILE: usize = 32 * MAX_COLS;

/// Room for a tile's sums, in whole lines.
#[repr(align(64))]
struct Sums(MaybeUninit<[f32; MAX_TILE]>);

impl Sums {
    #[inline(always)]
    fn uninit() -> Self {
        Self(MaybeUninit::uninit())
    }

    #[inline(always)]
    fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}
