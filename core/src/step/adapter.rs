//! Adapters: what they add to products, there and back, and their gradients.
//!
//! ```text
//! y  = x W      + u B      u = scale x A         u is kept for dB = u^T dy
//! dx = dy W^T   + v A^T    v = scale dy B^T      v is kept for dA = x^T v
//! ```
//! With dropout x is `x * mask` for the adapter, in both products that read it, and `v A^T` gets the mask too.
//!
//! For all of a matrix's parts at once: A and the rows between have the columns of each part's rank
//! side by side, B and dy each part's columns. What is added goes to the product as its addend, in
//! front of the bias and all that comes behind.
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use super::Step;
use crate::adapter::{AdapterTable, Factor};
use crate::plan::{ADAPTER_BLOCK, Between, Buffer, DROPPED_ROWS};
use crate::program::Matrix;
use cllm_kernels::{Dropout, Epilogue, MatMut, MatRef, Operand};
use core::ops::Range;

/// The adapter of a matrix: its factors and the rows between them.
struct Adapter<'a> {
    table: &'a AdapterTable,
    matrix: Matrix,
    a: Factor,
    b: Factor,
    between: Between,
}

impl Adapter<'_> {
    fn rank(&self) -> usize {
        self.b.rows
    }

    /// Columns of each part in the rows between and in the matrix.
    fn parts(&self) -> impl Iterator<Item = (usize, (usize, usize))> {
        let rank = self.rank();
        self.table.parts(self.matrix).enumerate().map(move |(part, cols)| (part * rank, cols))
    }
}

impl<'s> Step<'s> {
    fn adapter(&self, matrix: Matrix, block: usize) -> Option<Adapter<'s>> {
        let table = self.plan.adapters()?;
        let [a, b] = table.factors(matrix, block)?;
        let between = self.plan.layout.between(matrix, block);
        Some(Adapter { table, matrix, a, b, between })
    }

    /// The mask of what a matrix's adapter reads, for all its parts, and its row for row `first` of the batch.
    fn adapter_mask(&self, matrix: Matrix, block: usize, first: usize) -> Option<(Dropout, u32)> {
        /// Streams behind those of the model's own sites.
        const FIRST_STREAM: u32 = 1 << 31;
        let stream = FIRST_STREAM + 4 * block as u32 + matrix as u32;
        self.adapter_dropout?.mask(stream, self.plan.tokens(), first)
    }

    /// A factor's values.
    ///
    /// # Safety
    /// The update is not running.
    unsafe fn factor(&self, factor: Factor) -> MatRef<'_> {
        let at = self.plan.trained_at() + factor.offset;
        // SAFETY: what is trained is only written by the update.
        unsafe { self.params.mat(at, (factor.rows, factor.cols), factor.cols) }
    }

    /// Multiplies rows between factors by the adapters' scale.
    ///
    /// # Safety
    /// The caller's tile owns them.
    unsafe fn scale(&self, adapter: &Adapter<'_>, at: usize, len: usize) {
        let scale = adapter.table.adapters().scale;
        // SAFETY: passed on from the caller.
        unsafe { self.act.slice_mut(at, len) }.iter_mut().for_each(|x| *x *= scale);
    }

    /// What the adapter of a matrix adds to the product of the rows `x`, of which `first` is the first
    /// one in the batch, in `room`; `None` if it has none.
    ///
    /// # Safety
    /// The caller's tile owns these rows between the factors; the update is not running.
    pub(super) unsafe fn adapted<'r>(
        &self,
        matrix: Matrix,
        block: usize,
        first: usize,
        x: Operand<'_>,
        room: &'r mut [f32],
        scratch: &mut [f32],
    ) -> Option<MatRef<'r>> {
        let adapter = self.adapter(matrix, block)?;
        let (rows, ranks, width) = (x.shape().0, adapter.a.cols, adapter.b.cols);
        let at = adapter.between.down + first * ranks;
        let x = match self.adapter_mask(matrix, block, first) {
            Some((mask, row)) => {
                let inputs = adapter.a.rows;
                let kept = MatMut::new(room, rows, inputs, inputs);
                self.kernels.dropout(x, kept, &mask, row);
                Operand::Float(MatRef::new(room, rows, inputs, inputs))
            }
            None => x,
        };
        // SAFETY: passed on from the caller.
        unsafe {
            let down = self.act.mat_mut(at, (rows, ranks), ranks);
            self.kernels.gemm_fresh(x, self.factor(adapter.a), down, Epilogue::None, scratch);
            self.scale(&adapter, at, rows * ranks);
        }
        let room = &mut room[..rows * width];
        // SAFETY: passed on from the caller.
        unsafe {
            if adapter.parts().map(|(_, (_, cols))| cols).sum::<usize>() < width {
                // Columns of no part get nothing.
                room.fill(0.0);
            }
            for (column, (start, cols)) in adapter.parts() {
                let down = self.act.mat(at + column, (rows, adapter.rank()), ranks);
                let b = self.factor(adapter.b).col_range(start, cols);
                let to = MatMut::new(&mut room[start..], rows, cols, width);
                self.kernels.gemm_fresh(down, b, to, Epilogue::None, scratch);
            }
        }
        Some(MatRef::new(room, rows, width, width))
    }

    /// What the adapter of a matrix adds to the gradient of the product's input for some rows, first
    /// and number, given that of its output, `dy`; in `room`, `None` if it has none.
    ///
    /// # Safety
    /// As for [`Step::adapted`]; those rows of `dy` are done.
    pub(super) unsafe fn adapted_back<'r>(
        &self,
        (matrix, block): (Matrix, usize),
        dy: Buffer,
        (first, rows): (usize, usize),
        room: &'r mut [f32],
        scratch: &mut [f32],
    ) -> Option<MatRef<'r>> {
        let adapter = self.adapter(matrix, block)?;
        let Factor { rows: inputs, cols: ranks, .. } = adapter.a;
        let room = &mut room[..rows * inputs];
        // SAFETY: passed on from the caller; if the rows between are made by `adapter_back`, the
        // caller's stage has waited for that.
        unsafe {
            if matrix != Matrix::Qkv || self.plan.layout.norm1_in_place() {
                self.back(&adapter, dy, (first, rows), scratch);
            }
            let back = self.act.mat(adapter.between.back + first * ranks, (rows, ranks), ranks);
            let mut to = MatMut::new(room, rows, inputs, inputs);
            let a = self.factor(adapter.a).t();
            self.kernels.gemm_fresh(back, a, to.reborrow(), Epilogue::None, scratch);
            if let Some((mask, row)) = self.adapter_mask(matrix, block, first) {
                self.kernels.dropout_in_place(to, &mask, row);
            }
        }
        Some(MatRef::new(room, rows, inputs, inputs))
    }

    /// `scale dy B^T` for some rows, first and number.
    ///
    /// # Safety
    /// As for [`Step::adapted_back`].
    unsafe fn back(
        &self,
        adapter: &Adapter<'_>,
        dy: Buffer,
        (first, rows): (usize, usize),
        scratch: &mut [f32],
    ) {
        let ranks = adapter.a.cols;
        let at = adapter.between.back + first * ranks;
        // SAFETY: passed on from the caller.
        unsafe {
            for (column, (start, cols)) in adapter.parts() {
                let dy = self.operand(dy, (first, rows), (start, cols));
                let b = self.factor(adapter.b).col_range(start, cols).t();
                let to = self.act.mat_mut(at + column, (rows, adapter.rank()), ranks);
                self.kernels.gemm_fresh(dy, b, to, Epilogue::None, scratch);
            }
            self.scale(adapter, at, rows * ranks);
        }
    }

    /// [`Step::back`] of queries, keys and values, for one row block.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn adapter_back(&self, block: usize, tile: usize, scratch: &mut [f32]) {
        let Some(adapter) = self.adapter(Matrix::Qkv, block) else { return };
        let (_, dy) = self.operands(Matrix::Qkv, block);
        // SAFETY: the tile owns its rows between the factors; attention's gradients are done.
        unsafe { self.back(&adapter, dy, self.rows(tile), scratch) }
    }

    /// Gradient of 256 rows of A, or of 256 columns of B, over all tokens.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn adapter_grad(
        &self,
        matrix: Matrix,
        block: usize,
        tile: usize,
        scratch: &mut [f32],
    ) {
        let Some(adapter) = self.adapter(matrix, block) else { return };
        let Adapter { a, b, between, .. } = &adapter;
        let (x, dy) = self.operands(matrix, block);
        let (tokens, of_a) = (self.plan.tokens(), a.rows.div_ceil(ADAPTER_BLOCK));
        let write = self.write(false);
        // SAFETY: the tile owns its part of the gradients; x, dy and the rows between are done.
        unsafe {
            if tile < of_a {
                let some = piece(tile, a.rows);
                let at = a.offset + some.start * a.cols;
                let mut out = self.grads.mat_mut(at, (some.len(), a.cols), a.cols);
                let Some((mask, row)) = self.adapter_mask(matrix, block, 0) else {
                    let x = self.operand(x, (0, tokens), (some.start, some.len())).t();
                    let back = self.act.mat(between.back, (tokens, a.cols), a.cols);
                    self.kernels.gemm_unpacked(x, back, out, write, scratch);
                    return;
                };
                let mask = mask.from_column(some.start);
                let most = DROPPED_ROWS.min(tokens);
                let (kept, scratch) = scratch.split_at_mut(most * some.len());
                for first in (0..tokens).step_by(DROPPED_ROWS) {
                    let rows = most.min(tokens - first);
                    let x = self.operand(x, (first, rows), (some.start, some.len()));
                    let to = MatMut::new(kept, rows, some.len(), some.len());
                    self.kernels.dropout(x, to, &mask, row.wrapping_add(first as u32));
                    let x = MatRef::new(kept, rows, some.len(), some.len()).t();
                    let back = self.act.mat(between.back + first * a.cols, (rows, a.cols), a.cols);
                    let write = self.write(first > 0);
                    self.kernels.gemm_unpacked(x, back, out.reborrow(), write, scratch);
                }
                return;
            }
            let some = piece(tile - of_a, b.cols);
            for (column, (start, cols)) in adapter.parts() {
                let (first, end) = (some.start.max(start), some.end.min(start + cols));
                if first >= end {
                    continue;
                }
                let shape = (tokens, adapter.rank());
                let down = self.act.mat(between.down + column, shape, a.cols);
                let dy = self.operand(dy, (0, tokens), (first, end - first));
                let out = self.grads.mat_mut(b.offset + first, (b.rows, end - first), b.cols);
                self.kernels.gemm_unpacked(down.t(), dy, out, write, scratch);
            }
        }
    }
}

/// What tile `tile` has of `len` rows or columns.
fn piece(tile: usize, len: usize) -> Range<usize> {
    let first = tile * ADAPTER_BLOCK;
    first..len.min(first + ADAPTER_BLOCK)
}
