//! Output projection and cross-entropy, fused by row blocks.
//!
//! The logits of a whole batch need not exist. A few groups of rows (of 8 MiB or 384 rows)
//! have logits at one time; a tile makes those of its row block, turns them into
//! losses and, in training, into their own gradient, and at once multiplies that
//! back to the final norm's output. The gradient of the weights then takes the
//! group's rows in their order.
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use super::{Desk, Step};
use crate::built::HALVES;
use crate::plan::Buffer;
use crate::program::{Matrix, head_group, stored_shape};
use cllm_kernels::{Epilogue, Operand};

impl Step<'_> {
    /// Losses of one row block of a group; with `grad` also the logits' gradient (in
    /// place of the logits) and `dnorm`, the gradient of the final norm's output.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn head_loss(
        &self,
        group: usize,
        tile: usize,
        grad: bool,
        desk: &mut Desk<'_>,
    ) {
        let (first, rows) = self.rows(tile);
        let (d, v) = (self.plan.config.d_model, self.plan.config.vocab_size);
        let (layout, cap) = (&self.plan.layout, self.plan.config.arch.cap());
        // Groups are whole row blocks.
        let in_group = first - head_group(self.plan, group).start;
        let dnorm = layout.grads(self.plan.config.n_layer - 1).dnorm;
        let Desk { norm, scratch, .. } = desk;
        // SAFETY: the tile owns its rows of logits, losses and dnorm.
        unsafe {
            let x = self.kernels.operand(norm, rows, d);
            let Buffer { at, width, .. } = layout.logits(group);
            let mut logits = self.act.mat_mut(at + in_group * width, (rows, v), width);
            let head = self.weight(Matrix::Head, 0);
            self.product(x, head, logits.reborrow(), Epilogue::None, scratch);
            let targets = &self.targets[first..first + rows];
            let losses = self.act.slice_mut(layout.losses + first, rows);
            if !grad {
                self.kernels.cross_entropy(logits, targets, losses, None, cap);
                return;
            }
            let scale = self.loss_scale;
            let dlogits: Operand<'_> = if HALVES && layout.dlogits(group).halves {
                let halves =
                    self.kernels.cross_entropy_in_halves(logits, targets, losses, scale, cap);
                Operand::Half(halves.into_ref())
            } else {
                self.kernels.cross_entropy(logits.reborrow(), targets, losses, Some(scale), cap);
                logits.into_ref().into()
            };
            let dnorm = self.act.mat_mut(dnorm + first * d, (rows, d), d);
            self.product(
                dlogits,
                self.weight_back(Matrix::Head, 0),
                dnorm,
                Epilogue::None,
                scratch,
            );
        }
    }

    /// `dW (+)= dlogits^T x` of one tile of the output projection, over a group's rows.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn head_weight_grad(&self, group: usize, tile: usize, scratch: &mut [f32]) {
        let layout = &self.plan.layout;
        let rows = head_group(self.plan, group);
        let Some(spec) = self.spec(self.plan.table.head()) else { return };
        let (height, width) = stored_shape(self.plan, Matrix::Head);
        let (i, j, m, n) = self.weight_tile(tile, height, width);
        // Where the final norm was made again.
        let x = layout.norm_in_place(layout.block_output(self.plan.config.n_layer - 1));
        // SAFETY: the tile owns its part of the gradient; the group's logits are done.
        unsafe {
            let dlogits = self.operand(layout.dlogits(group), (0, rows.len()), (i, m));
            let x = self.operand(x, (rows.start, rows.len()), (j, n));
            let out = self.grads.mat_mut(spec.offset + i * width + j, (m, n), width);
            let write = self.write(group > 0);
            self.kernels.gemm_unpacked(dlogits.t(), x, out, write, scratch);
        }
    }
}
