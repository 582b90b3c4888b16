//! Gradient norm and AdamW, tile by tile over the flat arenas.
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use super::Step;
use crate::plan::UPDATE_BLOCK;
use cllm_kernels::AdamW;

impl Step<'_> {
    /// Sum of squares of one tile of the gradient arena, padding (zero) included.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn squares(&self, tile: usize) {
        let first = tile * UPDATE_BLOCK;
        let len = UPDATE_BLOCK.min(self.plan.table.arena_len() - first);
        // SAFETY: the tile owns its sum; gradients are done.
        unsafe {
            let sum = self.kernels.sum_squares(self.grads.slice(first, len));
            self.act.slice_mut(self.plan.layout.grads.squares + tile, 1)[0] = sum;
        }
    }

    /// AdamW on one tile of tensor number `index`.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn update(&self, index: usize, tile: usize) {
        let Some(spec) = self.plan.table.get(index) else { return };
        let start = tile * UPDATE_BLOCK;
        let len = UPDATE_BLOCK.min(spec.len() - start);
        let at = spec.offset + start;
        let decay = if spec.decay { self.weight_decay } else { 0.0 };
        let arena = self.plan.table.arena_len();
        // SAFETY: the tile owns its piece of weights and moments; gradients are done.
        unsafe {
            self.kernels.adamw(
                &AdamW { decay, ..self.adamw },
                self.params.slice_mut(at, len),
                self.grads.slice(at, len),
                self.moments.slice_mut(at, len),
                self.moments.slice_mut(arena + at, len),
            );
        }
    }
}
