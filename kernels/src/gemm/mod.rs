//! Matrix products `C = A B`: a register-blocked micro-kernel under one driver.
//!
//! `B` is *packed*: panels of `NR` columns, each panel stored row after row, the
//! last one padded with zeros. Weights are packed once a step and then used by
//! every block of tokens. `A` is read where it lies, with any strides: the
//! micro-kernel broadcasts single elements of it, so a packed copy buys nothing
//! unless the columns are far apart (weight gradients, [`both`]).
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
//! The structure is that of Goto and van de Geijn, "Anatomy of High-Performance
//! Matrix Multiplication" (2008), with the loops over L3 blocks left to the
//! caller's tiles.

pub(crate) mod both;
pub(crate) mod epilogue;
mod micro;
pub(crate) mod pack;

use crate::simd::Simd;
use core::mem::MaybeUninit;
pub(crate) use epilogue::RawEpilogue;

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
    /// Packed panels of B, `b_panel` floats apart.
    pub(crate) b: *const f32,
    pub(crate) b_panel: usize,
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    /// Add to C instead of overwriting it.
    pub(crate) accumulate: bool,
    pub(crate) epilogue: RawEpilogue,
}

/// The driver: see the module's pseudocode.
///
/// # Safety
/// All of A, of the first `k` rows of the panels of B, of C and of the epilogue's
/// operands is valid memory; C overlaps none of the others.
#[inline(always)]
pub(crate) unsafe fn gemm<S: Simd>(s: S, g: &RawGemm) {
    if g.m == 0 || g.n == 0 {
        return;
    }
    let mut depth = 0;
    // `k == 0` still runs once, to overwrite C and apply the epilogue.
    loop {
        let kc = KC.min(g.k - depth);
        let last = depth + kc == g.k;
        let mut j = 0;
        while j < g.n {
            let cols = S::NR.min(g.n - j);
            let next = g.b.wrapping_add((j / S::NR + 1) * g.b_panel + depth * S::NR);
            let mut ahead = Ahead::new::<S>(if j + cols < g.n { kc } else { 0 }, g.m, next);
            let mut i = 0;
            while i < g.m {
                let rows = S::MR.min(g.m - i);
                ahead.fetch(s);
                // SAFETY: the tile is inside C; passed on from the caller.
                unsafe { place(s, g, &Place { i, j, rows, cols }, depth, kc) };
                i += rows;
            }
            j += cols;
        }
        depth += kc;
        if last {
            return;
        }
    }
}

/// The panel that comes next, fetched into cache a piece with each group of rows: its
/// first use would otherwise wait for L3 while nothing else is to be done.
struct Ahead {
    next: *const f32,
    /// Cache lines left, and how many go with each group of rows.
    lines: usize,
    share: usize,
}

impl Ahead {
    #[inline(always)]
    fn new<S: Simd>(kc: usize, rows: usize, next: *const f32) -> Self {
        let lines = kc * S::NR / LINE;
        Self { next, lines, share: lines.div_ceil(rows.div_ceil(S::MR)) }
    }

    #[inline(always)]
    fn fetch<S: Simd>(&mut self, s: S) {
        let now = self.share.min(self.lines);
        for _ in 0..now {
            s.prefetch(self.next);
            self.next = self.next.wrapping_add(LINE);
        }
        self.lines -= now;
    }
}

/// Floats of a cache line.
const LINE: usize = 16;

/// A tile of C.
pub(crate) struct Place {
    i: usize,
    j: usize,
    rows: usize,
    cols: usize,
}

/// `kc` products from `depth` on of one tile.
///
/// Before an epilogue the sums go to a buffer, and through the epilogue from there to C.
///
/// # Safety
/// As for [`gemm`]; the tile is inside C, which holds the sum of the products before.
#[inline(always)]
unsafe fn place<S: Simd>(s: S, g: &RawGemm, at: &Place, depth: usize, kc: usize) {
    let mut buffer = MaybeUninit::<[f32; MAX_TILE]>::uninit();
    let buffered = depth + kc == g.k && !g.epilogue.is_none();
    // SAFETY: depth + kc <= k, panel j / NR is one of B's, the buffer holds MR x NR floats
    // and is read where it was written.
    unsafe {
        let c = g.c.add(at.i * g.c_row + at.j);
        let (to, to_row) =
            if buffered { (buffer.as_mut_ptr().cast(), S::NR) } else { (c, g.c_row) };
        let tile = micro::Tile {
            kc,
            // Without an inner dimension A has no memory to point into.
            a: g.a.wrapping_add(at.i * g.a_row + depth * g.a_col),
            a_row: g.a_row,
            a_col: g.a_col,
            b: g.b.add(at.j / S::NR * g.b_panel + depth * S::NR),
            c: to,
            c_row: to_row,
            start: c,
            start_row: g.c_row,
        };
        micro::run(s, &tile, at.rows, at.cols, g.accumulate || depth > 0);
        if buffered {
            epilogue::apply(s, &g.epilogue, to, c, g.c_row, at);
        }
    }
}

/// Columns and elements of the largest register block.
const MAX_COLS: usize = 32;
const MAX_TILE: usize = 12 * MAX_COLS;
