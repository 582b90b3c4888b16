//! Muon's update of a matrix: momentum, its direction, and the step.
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use super::Step;
use crate::muon::{Room, add, orthogonalize};
use crate::optimizer::Rule;
use cllm_kernels::Sgd;

/// Root of the mean of squares of a step's elements, by the rate: that of AdamW's steps as they usually are, so
/// that one rate does for both (Liu et al., "Muon is Scalable for LLM Training", 2025, equation 4).
const LIKE_ADAMW: f32 = 0.2;

impl Step<'_> {
    /// Muon on a part of the matrix that is tensor number `index`; nothing if the gradient's norm is not finite or
    /// above the most that is asked for.
    ///
    /// ```text
    /// m = momentum m + scale g
    /// U = scale g + momentum m                    (Nesterov's look ahead)
    /// W = W - lr (decay W + 0.2 sqrt(max(rows, cols)) X)      (X of U: see `crate::muon`)
    /// ```
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn muon(&self, index: usize, part: usize, scratch: &mut [f32]) {
        let Rule::Muon(adamw, momentum) = self.rule else { return };
        let (Some(tensor), Some(scale)) = (self.plan.trained(index), self.update_scale()) else {
            return;
        };
        let Some(part) = self.plan.muon_part(index, part) else { return };
        let (rows, cols) = (part.rows, part.cols.len());
        // The plan has made scratch large enough for the largest part.
        let Some(room) = Room::new(rows, cols, self.kernels.footprint()) else { return };
        let at = |row: usize| tensor.offset + row * part.stride + part.cols.start;
        for (row, u) in room.matrix(scratch)[..rows * cols].chunks_exact_mut(cols).enumerate() {
            // SAFETY: the tile owns its columns of the tensor's momentum; gradients are done.
            let (m, g) =
                unsafe { (self.moments.slice_mut(at(row), cols), self.grads.slice(at(row), cols)) };
            u.fill(0.0);
            // The momentum, and a step against it from zero: a copy of it.
            let copy = Sgd { lr: -1.0, decay: 0.0, grad_scale: scale };
            self.kernels.momentum(&copy, momentum, u, g, m);
            self.kernels.scale(u, momentum);
            add(self.kernels, u, scale, g);
        }
        let x = orthogonalize(self.kernels, room, (rows, cols), scratch);
        let longer = rows.max(cols) as f32;
        let decay = self.by_tensor.decay(tensor);
        let step = Sgd { lr: adamw.lr, decay, grad_scale: LIKE_ADAMW * libm::sqrtf(longer) };
        for (row, x) in x.chunks_exact(cols).enumerate() {
            // SAFETY: the tile owns its columns of the tensor; nobody reads weights during an update.
            let w = unsafe { self.params.slice_mut(self.plan.trained_at() + at(row), cols) };
            self.kernels.sgd(&step, w, x);
        }
    }
}
