//! Products with a matrix that is packed on the way: for one that few rows are multiplied by.
//!
//! A matrix packed beforehand is read once to be packed, written, and read again by each block
//! of rows. Where the rows are few, or the block has many, it costs less to pack
//! what is wanted next into a *slab* that stays in cache, and memory for no more than that:
//!
//! ```text
//! for each slab_columns of B
//!   for each depth of SLAB_WORDS in all
//!     pack B's part                               (L2)
//!     C's columns (+)= A's part times it          (as any packed product),
//!       while the next part of B is asked for     (memory -> L2, once)
//!     last depth: through the epilogue
//! ```
//!
//! What is packed next is on its way while its forerunner is multiplied: GPT-2 124M's step for 256 tokens has
//! 1.02 of the speed of packing what comes from memory then in f32 (median of three turns), 1.03 and 1.04 in bf16 (of
//! four and of three; Zen 4, AVX-512, two threads).
//!
//! A slab is made of whole panels and ends at a multiple of [`crate::KC`], so the bits are those
//! of [`Kernels::gemm`].

use crate::built::COMPACT;
use crate::elements::{Operand, OperandMut};
use crate::footprint::{Footprint, least};
use crate::gemm::fetch::Grid;
use crate::gemm::kept::Halved;
use crate::gemm::{KC, RawEpilogue, RawGemm};
use crate::mat::MatRef;
use crate::{Finish, Kernels};
use core::ptr::NonNull;

/// Columns of a slab: a multiple of every panel. A is read once for each.
///
/// With [`SLAB_WORDS`] 128 KiB, so that level 2 has room for it, for A's part and for the part of B that comes next, which is
/// of floats even where words are of bf16. Eight weights of GPT-2 124M by 128 rows on each of two threads have
/// 0.99 to 1.04 of the speed that they have with 256 columns in f32 (medians of seven turns), 1.01 to 1.03 in bf16 (nine), 1.01 to
/// 1.11 in f32 with AVX2 (five; Zen 4, whose level 2 is 1 MiB). A larger level 2 has not been tried with fewer than 256, nor have tiles.
const fn slab_columns(f: Footprint) -> usize {
    if f.tiles { 256 } else { 128 }
}

/// Words of a slab along the inner dimension. With 256 columns slabs of 1 MiB took 1.02 of the time of GPT-2 124M's step for 256
/// tokens, slabs of one panel 1.08 of its products' (Granite Rapids, AVX-512, f32, in turns). Where C is of bf16 it goes through all
/// of that dimension at once, and so does its slab.
const SLAB_WORDS: usize = KC;

/// Elements of the inner dimension of a slab.
const fn slab_depth(f: Footprint, k: usize, into_halves: bool) -> usize {
    if into_halves { k } else { least(k, SLAB_WORDS * f.depth) }
}

/// Floats of a slab of a `k x n` matrix, `None` on overflow.
pub(crate) const fn slab_len(f: Footprint, k: usize, n: usize, into_halves: bool) -> Option<usize> {
    f.packed_len(slab_depth(f, k, into_halves), least(n, slab_columns(f)))
}

impl Kernels {
    /// Floats of scratch of [`Kernels::gemm_fresh`] for `m` rows and a `k x n` matrix, `None` on
    /// overflow; `into_halves` if the result is of bf16.
    #[must_use]
    pub const fn fresh_scratch_len(
        &self,
        m: usize,
        k: usize,
        n: usize,
        into_halves: bool,
    ) -> Option<usize> {
        self.footprint().fresh_scratch_len(m, k, n, into_halves)
    }

    /// [`Kernels::gemm`] without accumulation, to the bit, with a `k x n` matrix `b` as it lies,
    /// of any strides. It is packed on the way: worth it for some 100 rows or more.
    ///
    /// # Panics
    /// As [`Kernels::gemm`]; if `scratch` is shorter than [`Kernels::fresh_scratch_len`].
    pub fn gemm_fresh<'a, 'c, 'f>(
        &self,
        a: impl Into<Operand<'a>>,
        b: MatRef<'_>,
        c: impl Into<OperandMut<'c>>,
        finish: impl Into<Finish<'f>>,
        scratch: &mut [f32],
    ) {
        let (a, c) = (a.into(), c.into());
        let ((m, n), k) = (c.shape(), b.rows());
        let columns = if matches!(a, Operand::Half(_)) { k.next_multiple_of(2) } else { k };
        assert!(a.shape() == (m, columns) && b.cols() == n, "gemm_fresh: shapes differ");
        let (a, c, b) = (a.raw(), c.raw(), Operand::Float(b).raw());
        let halves = Halved { a: a.half, c: c.half };
        // An empty A may lie anywhere.
        let aligned = m == 0 || k == 0 || a.ptr.is_aligned();
        let words = a.col == 1 && a.row.is_multiple_of(2) && aligned;
        assert!(
            !halves.a || words,
            "gemm_fresh: rows of an A of bf16 are not whole words of memory"
        );
        assert!(
            self.fresh_scratch_len(m, k, n, c.half).is_some_and(|need| need <= scratch.len()),
            "gemm_fresh: scratch is too short"
        );
        let epilogue = RawEpilogue::new(&finish.into(), m, n, c.half);
        let f = self.footprint();
        let (most, most_cols) = (slab_depth(f, k, c.half), slab_columns(f));
        let slab = slab_len(f, k, n, c.half).unwrap_or(0);
        let (slab, scratch) = scratch.split_at_mut(slab);
        let (slab, scratch) = (slab.as_mut_ptr(), scratch.as_mut_ptr());
        let mut j = 0;
        while j < n {
            let cols = most_cols.min(n - j);
            let mut depth = 0;
            // `k == 0` still runs once, to overwrite C and apply the epilogue.
            loop {
                let part = most.min(k - depth);
                let last = depth + part == k;
                let from = a.skip(0, depth);
                let (soon, at) = if last { (0, j + cols) } else { (depth + part, j) };
                let (rows, width) = (most.min(k - soon), most_cols.min(n - at));
                let next = b.skip(soon, at);
                let next = match b.col {
                    1 => Grid::new(next, rows, width),
                    _ => Grid::new(next.flip(), width, rows),
                };
                let mut next = next.in_pairs();
                let g = RawGemm {
                    m,
                    n: cols,
                    k: part,
                    a: from.ptr,
                    a_row: a.row,
                    a_col: a.col,
                    b: slab.cast_const(),
                    b_panel: self.packed_len(part, self.panel()).unwrap_or(0),
                    uncached: false,
                    c: c.skip(0, j).ptr.cast_mut(),
                    c_row: c.row,
                    accumulate: depth > 0,
                    stream: false,
                    epilogue: if last {
                        epilogue.beginning_at(j, c.half)
                    } else {
                        RawEpilogue::NONE
                    },
                    lies: (false, false),
                    sums: None,
                    scratch,
                    ahead: (!COMPACT && at < n).then_some(NonNull::from(&mut next)),
                };
                // SAFETY: the part of B is inside it and the slab has room for its panels; the
                // views are valid for the shapes checked above, `c` and `scratch` are
                // exclusive, and scratch is long enough for the whole product's rows. The
                // table keeps bf16 if there are matrices of it (`keeps`), whose rows are words
                // as they lie, and goes through all of k at once if C is one. `next` outlives the product,
                // which alone uses it.
                unsafe {
                    let source = b.skip(depth, j);
                    (self.products.pack_b)(source, part, cols, slab);
                    if halves.a || halves.c {
                        (self.keeps().product)(&g, halves);
                    } else {
                        (self.products.gemm)(&g);
                    }
                }
                depth += part;
                if depth == k {
                    break;
                }
            }
            j += cols;
        }
    }
}
