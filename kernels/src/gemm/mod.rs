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
//! Up to 16 rows, which read B once and do little with it, have loops of their own ([`few`]), and so
//! have products by tiles of matrices ([`tiles`]). A panel and a few groups of rows are multiplied without any loops but
//! those of the micro-kernel ([`small`]). Of few columns a row is a lane ([`narrow`]), and of little depth C is written
//! row by row ([`shallow`]). What all of these are made of, tiles at the edges of C ([`edge`]) among it, are functions of
//! their own ([`parts`]).
//!
//! The structure is that of Goto and van de Geijn, "Anatomy of High-Performance
//! Matrix Multiplication" (2008), with the loops over L3 blocks left to the
//! caller's tiles.

pub(crate) mod beside;
pub(crate) mod block;
pub(crate) mod both;
mod compact;
pub(crate) mod edge;
pub(crate) mod epilogue;
pub(crate) mod fetch;
pub(crate) mod few;
pub(crate) mod format;
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "kernels for other CPUs have no format that keeps bf16")
)]
pub(crate) mod kept;
pub(crate) mod micro;
pub(crate) mod narrow;
pub(crate) mod pack;
pub(crate) mod parts;
mod shallow;
pub(crate) mod small;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiled;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;

use crate::built::COMPACT;
use crate::elements::{Bf16, Floats, RawOperand};
use crate::footprint::{Footprint, least, most};
use crate::simd::Simd;
pub(crate) use block::Rows;
use block::{Asks, MAX_COLS, Place, Sums};
use core::mem::MaybeUninit;
use core::ptr::NonNull;
pub(crate) use epilogue::RawEpilogue;
use fetch::{Grid, NextRows};
use format::{Dot, Format, Single};

/// Depth of a block of the inner dimension of every product.
///
/// A block's sums are added to C when it is done. So a product over `k` may be made by
/// several calls, each over some of `k` and all but the first accumulating, with the
/// bits of one call, if they meet at multiples of this.
///
/// A block of a panel of 16 columns is `256 * 16 * 4` bytes = 16 KiB, half of a 32 KiB L1; the other
/// half holds the rows of A and C that stream by. 512 gave 0.95 to 1.02 of its speed on
/// the reference products (Zen 3, one thread, in turns). A panel of AVX-512 is twice as wide, and
/// all of such an L1.
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
    /// Products of a few rows: B comes from memory.
    pub(crate) uncached: bool,
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    /// Add to C instead of overwriting it.
    pub(crate) accumulate: bool,
    /// Products of [`both`]: keep what is written out of the caches, where that can be.
    pub(crate) stream: bool,
    pub(crate) epilogue: RawEpilogue,
    /// Products of [`both`]: whether A and B, if they lie as [`both::lying`] wants, are read there.
    pub(crate) lies: (bool, bool),
    /// Products of [`both`]: what becomes of the sums of B's columns.
    pub(crate) sums: Option<ColumnSums>,
    /// Room for operands in another format.
    pub(crate) scratch: *mut f32,
    /// What tiles ask for before the next panel, of matrices ([`tiles`]) instead of it, if anything: a grid that is there,
    /// and nobody else's, during the product. Products of a few rows, of little depth, and those of [`both`], do not ask
    /// for it.
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

/// Floats of scratch that [`converted`] and [`in_tiles`] want for up to `m` rows of up to `k` elements.
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
pub(crate) unsafe fn in_place<S: Simd>(_: S, _: Single, g: &RawGemm) {
    if g.m == 0 || g.n == 0 {
        return;
    }
    if !COMPACT && g.m <= few::ROWS && g.a_col == 1 {
        let a = Rows { ptr: g.a, row: g.a_row, col: 1, rows: 0..g.m, asks: Asks::Nothing };
        // SAFETY: passed on from the caller.
        return unsafe { (<Single as Dot<S>>::PARTS.few)(g, &a) };
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
            let end = if is_crowded { (first + S::MR).min(g.m) } else { g.m };
            let then = next_rows::<S>(g, end, depth, kc);
            let asks = match is_crowded {
                true => then.map_or(Asks::Nothing, Asks::Behind),
                false => Asks::These { then },
            };
            let mut a = Rows { ptr, row: g.a_row, col: g.a_col, rows: first..end, asks };
            // SAFETY: passed on from the caller; the copy has room for `KC` elements of `MR` rows.
            unsafe {
                if is_crowded {
                    a = copy.rows(&a, kc);
                }
                (<Single as Dot<S>>::PARTS.block)(g, &a, depth, kc);
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

/// The rows of A behind those before `end`, of `kc` elements from `depth` on: if no register block of them is left,
/// the first of the next elements.
#[inline(always)]
fn next_rows<S: Simd>(g: &RawGemm, end: usize, depth: usize, kc: usize) -> Option<NextRows> {
    let (row, col) = match g.m - end {
        left if left >= S::MR => (end, depth),
        _ if g.m >= S::MR && depth + kc < g.k => (0, depth + kc),
        _ => return None,
    };
    Some(NextRows::new(g.a.wrapping_add(row * g.a_row + col * g.a_col), g.a_row))
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
        Rows { ptr: to, row: KC, col: 1, ..a.clone() }
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
        return unsafe { in_blocks(s, f, g) };
    }
    let words = F::words(g.k);
    let a =
        Rows { ptr: g.scratch.cast_const(), row: words, col: 1, rows: 0..g.m, asks: Asks::Nothing };
    // SAFETY: rows are inside A, and scratch has room for all their words.
    unsafe {
        for row in 0..g.m {
            let from = g.a.wrapping_add(row * g.a_row);
            pack::row(s, f, Floats, (from, g.a_col), g.k, g.scratch.wrapping_add(row * words));
        }
        if g.m > 0 {
            (F::PARTS.few)(g, &a);
        }
    }
}

/// The driver for [`Format::TILES`], of floats: few rows are tiles of few rows, for other
/// instructions would give other bits.
///
/// # Safety
/// As for [`converted`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn in_tiles(s: crate::simd::avx512::Avx512, f: tiled::Tiled, g: &RawGemm) {
    // SAFETY: passed on from the caller.
    unsafe { tiles::gemm(s, f, g, kept::Halved::default()) }
}

/// [`converted`] for any number of rows.
///
/// # Safety
/// As for [`converted`].
#[inline(always)]
unsafe fn in_blocks<S: Simd, F: Dot<S>>(s: S, f: F, g: &RawGemm) {
    let scratch = g.scratch;
    let mut first = 0;
    while first < g.m && g.n > 0 {
        let rows = first..(first + ROWS).min(g.m);
        let mut depth = 0;
        loop {
            let kc = KC.min(g.k - depth);
            let words = F::words(kc);
            let a = Rows {
                ptr: scratch.cast_const(),
                row: words,
                col: 1,
                rows: rows.clone(),
                asks: Asks::Nothing,
            };
            // SAFETY: rows and products are inside A, and scratch has room for so many.
            unsafe {
                for (i, row) in rows.clone().enumerate() {
                    let from = g.a.wrapping_add(row * g.a_row + depth * g.a_col);
                    pack::row(s, f, Floats, (from, g.a_col), kc, scratch.wrapping_add(i * words));
                }
                (F::PARTS.block)(g, &a, depth, kc);
            }
            depth += kc;
            if depth == g.k {
                break;
            }
        }
        first = rows.end;
    }
}

/// Floats of a cache line.
pub(crate) const LINE: usize = 16;

/// Whether each [`LINE`] floats of a matrix's rows are a cache line.
#[inline(always)]
fn is_lines(at: *const f32, row: usize) -> bool {
    (at.addr() | (row * size_of::<f32>())).is_multiple_of(LINE * size_of::<f32>())
}
