//! Gradient norm and the optimizer, tile by tile over the flat arenas.
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use super::Step;
use crate::built::{OPTIMIZERS, PIECES};
use crate::optimizer::{Rule, UpdateReport};
use crate::plan::{Plan, squares_block};
use cllm_kernels::{AdamW, Dither, Moments8, Sgd};
use core::ops::Range;

/// Sum in `f64` over a tree whose shape depends on the length alone.
fn tree_sum(values: &[f32]) -> f64 {
    const LEAF: usize = 64;
    if values.len() <= LEAF {
        return values.iter().map(|x| f64::from(*x)).sum();
    }
    let (left, right) = values.split_at(values.len().div_ceil(2 * LEAF) * LEAF);
    tree_sum(left) + tree_sum(right)
}

/// Norm of a gradient whose tiles have these sums of squares.
pub(crate) fn norm_of(squares: &[f32]) -> f64 {
    libm::sqrt(tree_sum(squares))
}

impl Step<'_> {
    /// Sum of squares of one tile of the gradient arena, padding (zero) included; nothing of another's piece.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn squares(&self, tile: usize) {
        let arena = self.plan.trained_len();
        let block = squares_block(arena);
        let first = tile * block;
        if PIECES && !self.plan.piece().has(tile) {
            return;
        }
        let len = block.min(arena - first);
        // SAFETY: the tile owns its sum; gradients are done.
        unsafe {
            let sum = self.kernels.sum_squares(self.grads.slice(first, len));
            self.act.slice_mut(self.plan.layout.squares + tile, 1)[0] = sum;
        }
    }

    /// Adds up the losses of all rows.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn loss_sum(&self) {
        // SAFETY: the losses are done.
        let losses = unsafe { self.act.slice(self.plan.layout.losses, self.plan.tokens()) };
        self.outcome.set_loss(tree_sum(losses));
    }

    /// Global norm of the gradient, and what the clip makes of it.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn clip(&self) {
        let arena = self.plan.trained_len();
        let tiles = arena.div_ceil(squares_block(arena));
        // SAFETY: the sums of squares are done.
        let squares = unsafe { self.act.slice(self.plan.layout.squares, tiles) };
        self.outcome.set_update(UpdateReport::new(norm_of(squares), self.grad_clip));
    }

    /// The clip's factor; `None` if there is no update, for a norm that is not finite or above the most.
    pub(super) fn update_scale(&self) -> Option<f32> {
        let UpdateReport { grad_norm, scale } = self.outcome.update();
        // Not so for a norm that is not a number.
        (grad_norm <= self.most).then_some(scale)
    }

    /// The optimizer on what is the plan's [piece](Plan::piece) of one tile of tensor number `index`; nothing if the
    /// gradient's norm is not finite or above the most that is asked for.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn update(&self, index: usize, tile: usize) {
        let Some(tensor) = self.plan.trained(index) else { return };
        let Some(scale) = self.update_scale() else { return };
        let block = self.plan.update_block();
        let start = tile * block;
        let at = tensor.offset + start;
        let end = tensor.offset + tensor.len.min(start + block);
        if !PIECES {
            // SAFETY: as for all of the tile.
            return unsafe { self.update_span(index, at..end, at, scale) };
        }
        for (span, place) in self.plan.piece().spans(at..end) {
            // SAFETY: a part of the tile.
            unsafe { self.update_span(index, span, place, scale) };
        }
    }

    /// The optimizer on some floats of tensor number `index`, whose moments are from `place` on, by gradients times `scale`.
    ///
    /// # Safety
    /// As for [`Step::run_tile`], on the tile that they are of.
    unsafe fn update_span(&self, index: usize, span: Range<usize>, place: usize, scale: f32) {
        let Some(tensor) = self.plan.trained(index) else { return };
        let Range { start: at, end } = span;
        let len = end - at;
        let decay = self.by_tensor.decay(tensor);
        // SAFETY: the tile owns its piece of weights and moments, of those of 8 bits whole blocks with their
        // scales; gradients are done.
        unsafe {
            let weights = self.params.slice_mut(self.plan.trained_at() + at, len);
            let grads = self.grads.slice(at, len);
            let arena = self.plan.own_len();
            let floats = |at: usize| self.moments.slice_mut(at, len);
            match self.rule.at_lr_scale(self.by_tensor.lr_scale(tensor)) {
                Rule::AdamW(adamw) => {
                    let adamw = AdamW { decay, grad_scale: scale, ..adamw };
                    self.kernels.adamw(
                        &adamw,
                        weights,
                        grads,
                        floats(place),
                        floats(arena + place),
                    );
                }
                // No plan is for these: see `Plan::with_optimizer`.
                _ if !OPTIMIZERS => {}
                Rule::AdamW8(adamw, update) => {
                    let adamw = AdamW { decay, grad_scale: scale, ..adamw };
                    let layout = self.plan.moments8();
                    // Of these all are there, so that the span is the tile.
                    let start = at - tensor.offset;
                    let scales = Plan::scales((index, tensor.offset), start, len);
                    let moments = Moments8 {
                        first: self.moments.bytes_mut(0, at, len),
                        second: self.moments.bytes_mut(layout.second, at, len),
                        scales: self.moments.slice_mut(layout.scales + scales.start, scales.len()),
                    };
                    self.kernels.adamw8(&adamw, Dither::new(update, at), weights, grads, moments);
                }
                Rule::Momentum(sgd, momentum) => {
                    let sgd = Sgd { decay, grad_scale: scale, ..sgd };
                    self.kernels.momentum(&sgd, momentum, weights, grads, floats(place));
                }
                Rule::Sgd(sgd) => {
                    self.kernels.sgd(&Sgd { decay, grad_scale: scale, ..sgd }, weights, grads);
                }
                Rule::Muon(adamw, _) => {
                    let adamw = AdamW { decay, grad_scale: scale, ..adamw };
                    let second = arena + self.plan.second_offset(index, at);
                    self.kernels.adamw(&adamw, weights, grads, floats(place), floats(second));
                }
            }
        }
    }
}
