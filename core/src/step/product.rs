//! Products with the weights, which are panels made at the start of the step or are packed on
//! the way: see [`Packing`].
//!
//! [`Packing`]: crate::Packing
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use super::Step;
use crate::built::{COMPACT, FRESH};
use crate::plan::COLUMN_BLOCK;
use crate::program::Matrix;
use cllm_kernels::{Finish, MatRef, Operand, OperandMut, Packed};

/// The right-hand side of a product.
pub(super) enum Weight<'a> {
    Packed(Packed<'a>),
    /// As it lies among the parameters.
    Stored(MatRef<'a>),
}

impl Step<'_> {
    /// The parameters of `y = x W`, or of `dx = dy W^T`.
    ///
    /// # Safety
    /// The update is not running.
    unsafe fn stored(&self, matrix: Matrix, block: usize, transposed: bool) -> MatRef<'_> {
        let spec = self.spec(matrix.weight(self.plan, block));
        let spec = spec.expect("what is not kept as panels is among the parameters");
        // SAFETY: parameters are only written by the update.
        let stored = unsafe { self.params.mat(spec.offset, (spec.rows, spec.cols), spec.cols) };
        // The output projection is stored outputs first: its transpose multiplies x.
        let flip = transposed != (matrix == Matrix::Head);
        if flip { stored.t() } else { stored }
    }

    /// Lays out 256 columns of a weight (or of its transpose) as panels.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn pack(&self, matrix: Matrix, block: usize, tile: usize, transposed: bool) {
        let panels = self.plan.layout.panels(matrix, block, transposed);
        // SAFETY: the tile owns its columns' panels; weights are not being updated.
        unsafe {
            let source = self.stored(matrix, block, transposed);
            let first = tile * COLUMN_BLOCK;
            let part = source.col_range(first, COLUMN_BLOCK.min(source.cols() - first));
            let len = self.kernels.packed_len(part.rows(), part.cols()).unwrap_or(0);
            // Whole panels before this one: COLUMN_BLOCK is a multiple of their width.
            let to = panels + self.kernels.packed_len(part.rows(), first).unwrap_or(0);
            self.kernels.pack(part, self.packed.slice_mut(to, len));
        }
    }

    /// # Safety
    /// The update is not running, and packing is done.
    unsafe fn right(&self, matrix: Matrix, block: usize, transposed: bool) -> Weight<'_> {
        if !self.plan.grain.has_panels() {
            // SAFETY: passed on from the caller.
            return Weight::Stored(unsafe { self.stored(matrix, block, transposed) });
        }
        let (inputs, outputs) = matrix.shape(self.plan);
        let (k, n) = if transposed { (outputs, inputs) } else { (inputs, outputs) };
        let at = self.plan.layout.panels(matrix, block, transposed);
        let len = self.kernels.packed_len(k, n).unwrap_or(0);
        // SAFETY: packed weights are only written by the packing operations.
        Weight::Packed(Packed::new(unsafe { self.packed.slice(at, len) }, k, n))
    }

    /// The weight of `y = x W`.
    ///
    /// # Safety
    /// The update is not running, and packing is done.
    pub(super) unsafe fn weight(&self, matrix: Matrix, block: usize) -> Weight<'_> {
        // SAFETY: passed on from the caller.
        unsafe { self.right(matrix, block, false) }
    }

    /// The weight of `dx = dy W^T`.
    ///
    /// # Safety
    /// The update is not running, and packing is done.
    pub(super) unsafe fn weight_back(&self, matrix: Matrix, block: usize) -> Weight<'_> {
        // SAFETY: passed on from the caller.
        unsafe { self.right(matrix, block, true) }
    }

    /// `to = from W`, and what finishes it: the same bits from both kinds of weights.
    pub(super) fn product<'a, 'c, 'f>(
        &self,
        from: impl Into<Operand<'a>>,
        weight: Weight<'_>,
        to: impl Into<OperandMut<'c>>,
        finish: impl Into<Finish<'f>>,
        scratch: &mut [f32],
    ) {
        if COMPACT {
            return self.any_product(from.into(), weight, to.into(), finish.into(), scratch);
        }
        match weight {
            Weight::Packed(b) => self.kernels.gemm(from, b, to, false, finish, scratch),
            Weight::Stored(b) => self.kernels.gemm_fresh(from, b, to, finish, scratch),
        }
    }

    /// [`Step::product`] of operands of any kind: once for all of them.
    #[inline(never)]
    fn any_product(
        &self,
        from: Operand<'_>,
        weight: Weight<'_>,
        to: OperandMut<'_>,
        finish: Finish<'_>,
        scratch: &mut [f32],
    ) {
        match weight {
            Weight::Packed(b) => self.kernels.gemm(from, b, to, false, finish, scratch),
            Weight::Stored(b) if FRESH => self.kernels.gemm_fresh(from, b, to, finish, scratch),
            Weight::Stored(_) => debug_assert!(false, "has_panels"),
        }
    }
}
