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
//!       last block: epilogue on the MR x NR tile, still in L1
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
pub(crate) use epilogue::RawEpilogue;

/// Depth of a block of the inner dimension.
///
/// A panel block is `256 * 16 * 4` bytes = 16 KiB, half of a 32 KiB L1; the other
/// half holds the rows of A and C that stream by. 128 and 512 measured 3 % and
/// 2 % slower on the reference products (Zen 3, `cllm bench`).
pub(crate) const KC: usize = 256;

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
/// operands is valid memory; C overlaps none of the others (a residual that *is* C
/// excepted, for it is read before C's element is written).
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
        let accumulate = g.accumulate || depth > 0;
        let mut j = 0;
        while j < g.n {
            let cols = S::NR.min(g.n - j);
            // SAFETY: the offsets stay inside A, B and C as the caller promised:
            // depth + kc <= k, j + cols <= n, i + rows <= m.
            unsafe {
                let b = g.b.add(j / S::NR * g.b_panel + depth * S::NR);
                let mut i = 0;
                while i < g.m {
                    let rows = S::MR.min(g.m - i);
                    // Without an inner dimension A has no memory to point into.
                    let a = g.a.wrapping_add(i * g.a_row + depth * g.a_col);
                    let c = g.c.add(i * g.c_row + j);
                    let tile =
                        micro::Tile { kc, a, a_row: g.a_row, a_col: g.a_col, b, c, c_row: g.c_row };
                    micro::run(s, &tile, rows, cols, accumulate);
                    if last {
                        epilogue::apply(s, &g.epilogue, c, g.c_row, i, j, rows, cols);
                    }
                    i += rows;
                }
            }
            j += cols;
        }
        depth += kc;
        if last {
            return;
        }
    }
}
