//! Packing: the copies that turn a matrix into the panels a micro-kernel reads.
//!
//! Layout of packed B (`k x n`): panel `j` holds columns `j*NR .. (j+1)*NR`; its
//! row `p` is `NR` floats at `p * NR`; columns beyond `n` are zero. Layout of
//! packed A (`m x k`): panel `i` holds rows `i*MR .. (i+1)*MR`, column after
//! column; rows beyond `m` are left out of the last panel's use.

use crate::simd::Simd;

/// Floats that packed B takes, `None` on overflow.
pub(crate) const fn packed_b_len(k: usize, n: usize, nr: usize) -> Option<usize> {
    match n.div_ceil(nr).checked_mul(nr) {
        Some(padded) => padded.checked_mul(k),
        None => None,
    }
}

/// Floats that packed A takes, `None` on overflow.
pub(crate) const fn packed_a_len(m: usize, k: usize, mr: usize) -> Option<usize> {
    packed_b_len(k, m, mr)
}

/// A matrix to pack: element (p, j) is `ptr[p * row + j * col]`.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    pub(crate) ptr: *const f32,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

/// Packs the `k x n` matrix `src` into panels of `NR` columns at `dst`.
///
/// # Safety
/// `src` is valid for `k x n` elements, `dst` for [`packed_b_len`] floats, and they
/// do not overlap.
#[inline(always)]
pub(crate) unsafe fn pack_b<S: Simd>(s: S, src: Source, k: usize, n: usize, dst: *mut f32) {
    if k == 0 {
        return;
    }
    let mut j = 0;
    while j < n {
        let cols = S::NR.min(n - j);
        // SAFETY: panel j / NR starts at j * k; its rows and the source's columns
        // j .. j + cols are inside what the caller promised.
        unsafe {
            let panel = dst.add(j * k);
            let from = src.ptr.add(j * src.col);
            if src.col == 1 && cols == S::NR {
                for p in 0..k {
                    s.prefetch(from.wrapping_add((p + AHEAD).wrapping_mul(src.row)));
                    let mut q = 0;
                    while q < S::NR {
                        s.store(panel.add(p * S::NR + q), s.load(from.add(p * src.row + q)));
                        q += S::LANES;
                    }
                }
            } else {
                // Column by column: each source column is read once, and the panel
                // (at most k * NR floats) is written through the cache.
                for q in 0..S::NR {
                    let live = q < cols;
                    for p in 0..k {
                        let x = if live { *from.add(p * src.row + q * src.col) } else { 0.0 };
                        *panel.add(p * S::NR + q) = x;
                    }
                }
            }
        }
        j += cols;
    }
}

/// Packs the `m x k` matrix `src` into panels of `MR` rows at `dst`.
///
/// # Safety
/// `src` is valid for `m x k` elements, `dst` for [`packed_a_len`] floats, and they
/// do not overlap.
#[inline(always)]
pub(crate) unsafe fn pack_a<S: Simd>(s: S, src: Source, m: usize, k: usize, dst: *mut f32) {
    if k == 0 {
        return;
    }
    let mut i = 0;
    while i < m {
        let rows = S::MR.min(m - i);
        // SAFETY: panel i / MR starts at i * k; rows i .. i + rows of the source are inside.
        unsafe {
            let panel = dst.add(i * k);
            let from = src.ptr.add(i * src.row);
            // One vector covers a panel's column when the source's rows are adjacent.
            // It may read and write beyond MR: the read must stay inside the source's
            // row of the matrix, the excess written is overwritten by the next column.
            let whole = src.row == 1 && S::LANES > S::MR && m - i >= S::LANES;
            if whole {
                for p in 0..k.saturating_sub(1) {
                    s.prefetch(from.wrapping_add((p + AHEAD).wrapping_mul(src.col)));
                    s.store(panel.add(p * S::MR), s.load(from.add(p * src.col)));
                }
            }
            let first = if whole { k.saturating_sub(1) } else { 0 };
            for p in first..k {
                for q in 0..rows {
                    *panel.add(p * S::MR + q) = *from.add(p * src.col + q * src.row);
                }
            }
        }
        i += rows;
    }
}

/// Rows or columns between a prefetch and its use: some 50 ns of copying.
const AHEAD: usize = 24;
