//! The backward pass of the activations: the critical path from loss to embedding.
//!
//! With `y = x + f(norm(x))` the gradient of a half block is
//! `dx = dy + norm'(f'(dy))`. `dx` holds the gradient of a block's output, `dmid` that
//! of the stream between its halves; each is overwritten only after the gradients
//! of the parameters that read it.
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use super::{Site, Step};
use crate::plan::ROW_BLOCK;
use crate::program::Norm;
use cllm_kernels::{AttentionGrads, Epilogue, NormSaved};

impl Step<'_> {
    /// Gradient of a norm's input, and the row block's sums for gain and bias.
    ///
    /// Final: `dx = norm'(dnorm)`. Second: `dmid = dx + norm'(dnorm)`. First:
    /// `dx = dmid + norm'(dnorm)`.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn norm_back(&self, norm: Norm, block: usize, tile: usize) {
        let (first, rows) = self.rows(tile);
        let d = self.plan.config.d_model;
        let (layout, g) = (&self.plan.layout, &self.plan.layout.grads);
        let b = layout.block(block);
        let (x, saved, from, to, partial) = match norm {
            Norm::Final => {
                let x = layout.block_output(self.plan.config.n_layer - 1);
                (x, layout.final_norm, None, g.dx, g.partial1)
            }
            Norm::Second => (b.mid, b.norm2, Some(g.dx), g.dmid, g.partial2),
            Norm::First => (b.x, b.norm1, Some(g.dmid), g.dx, g.partial1),
        };
        let (gain, bias) = Self::norm_params(norm, block);
        // SAFETY: the tile owns its rows of the output and its row of partial sums.
        unsafe {
            let Some(gain) = self.vector(gain) else { return };
            if let Some(from) = from {
                let stream = self.act.slice(from + first * d, rows * d);
                self.act.slice_mut(to + first * d, rows * d).copy_from_slice(stream);
            }
            let saved = NormSaved {
                x: self.act.mat(x + first * d, (rows, d), d),
                gain,
                mean: self.act.slice(saved.mean + first, rows),
                rstd: self.act.slice(saved.rstd + first, rows),
            };
            let sums = partial + first / ROW_BLOCK * 2 * d;
            let dbias = self.spec(bias).map(|_| self.act.slice_mut(sums + d, d));
            self.kernels.layer_norm_backward(
                &saved,
                self.act.mat(g.dnorm + first * d, (rows, d), d),
                self.act.mat_mut(to + first * d, (rows, d), d),
                from.is_some(),
                self.act.slice_mut(sums, d),
                dbias,
            );
        }
    }

    /// Gradient of the second feed-forward product's output: `dx`, masked if there is dropout.
    pub(super) fn mlp_grad(&self) -> usize {
        let g = &self.plan.layout.grads;
        if self.dropout.is_some() { g.masked_mlp } else { g.dx }
    }

    /// Gradient of the attention projection's output: `dmid`, masked if there is dropout.
    pub(super) fn attn_grad(&self) -> usize {
        let g = &self.plan.layout.grads;
        if self.dropout.is_some() { g.masked_att } else { g.dmid }
    }

    /// Draws a forward mask again and applies it to a row block of gradients.
    ///
    /// # Safety
    /// The caller's tile owns the row block of `to`, and `from`'s is done.
    unsafe fn mask(&self, block: usize, site: Site, tile: usize, from: usize, to: usize) {
        let (first, rows) = self.rows(tile);
        let d = self.plan.config.d_model;
        // SAFETY: passed on from the caller.
        unsafe {
            let source = self.act.mat(from + first * d, (rows, d), d);
            let target = self.act.mat_mut(to + first * d, (rows, d), d);
            if let Some((mask, row)) = self.dropout(block, site, first) {
                self.kernels.dropout(source, target, &mask, row);
            }
        }
    }

    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn mask_mlp(&self, block: usize, tile: usize) {
        let g = &self.plan.layout.grads;
        // SAFETY: passed on from the caller.
        unsafe { self.mask(block, Site::MlpOut, tile, g.dx, g.masked_mlp) }
    }

    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn mask_attn(&self, block: usize, tile: usize) {
        let g = &self.plan.layout.grads;
        // SAFETY: passed on from the caller.
        unsafe { self.mask(block, Site::AttnOut, tile, g.dmid, g.masked_att) }
    }

    /// Masks the gradient of the embeddings in place.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn mask_embed(&self, tile: usize) {
        let (first, rows) = self.rows(tile);
        let d = self.plan.config.d_model;
        let at = self.plan.layout.grads.dx + first * d;
        if let Some((mask, row)) = self.embed_dropout(first) {
            // SAFETY: the tile owns its rows of dx.
            let dx = unsafe { self.act.mat_mut(at, (rows, d), d) };
            self.kernels.dropout_in_place(dx, &mask, row);
        }
    }

    /// `dfc = (dy W^T) gelu'(fc_pre)` for one row block.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn mlp_input(&self, block: usize, tile: usize) {
        let (first, rows) = self.rows(tile);
        let (d, f) = (self.plan.config.d_model, self.plan.config.d_ff);
        let (b, p) = (self.plan.layout.block(block), self.plan.layout.packed(block));
        // SAFETY: the tile owns its rows of dfc; its rows of dy and fc_pre are done.
        unsafe {
            let dy = self.act.mat(self.mlp_grad() + first * d, (rows, d), d);
            let pre = self.act.mat(b.fc_pre + first * f, (rows, f), f);
            let out = self.act.mat_mut(self.plan.layout.grads.dfc + first * f, (rows, f), f);
            let weights = self.packed(p.mlp_t, d, f);
            self.kernels.gemm(dy, weights, out, false, Epilogue::GeluGrad { pre });
        }
    }

    /// `dnorm = dfc W^T` for one row block.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn fc_input(&self, block: usize, tile: usize) {
        let (d, f) = (self.plan.config.d_model, self.plan.config.d_ff);
        let g = &self.plan.layout.grads;
        let weights = self.plan.layout.packed(block).fc_t;
        // SAFETY: passed on from the caller.
        unsafe { self.input_grad(tile, (g.dfc, f), weights, (g.dnorm, d)) }
    }

    /// `datt = dy W^T` for one row block.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn attn_input(&self, block: usize, tile: usize) {
        let d = self.plan.config.d_model;
        let weights = self.plan.layout.packed(block).att_t;
        let to = self.plan.layout.grads.datt;
        // SAFETY: passed on from the caller.
        unsafe { self.input_grad(tile, (self.attn_grad(), d), weights, (to, d)) }
    }

    /// `dnorm = dqkv W^T` for one row block.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn qkv_input(&self, block: usize, tile: usize) {
        let d = self.plan.config.d_model;
        let g = &self.plan.layout.grads;
        let weights = self.plan.layout.packed(block).qkv_t;
        // SAFETY: passed on from the caller.
        unsafe { self.input_grad(tile, (g.dqkv, 3 * d), weights, (g.dnorm, d)) }
    }

    /// `to = from W^T` for one row block; operands are (offset, columns).
    ///
    /// # Safety
    /// The caller's tile owns the row block of `to`, and `from`'s is done.
    unsafe fn input_grad(
        &self,
        tile: usize,
        (from, k): (usize, usize),
        weights: usize,
        (to, n): (usize, usize),
    ) {
        let (first, rows) = self.rows(tile);
        // SAFETY: passed on from the caller.
        unsafe {
            let dy = self.act.mat(from + first * k, (rows, k), k);
            let out = self.act.mat_mut(to + first * n, (rows, n), n);
            self.kernels.gemm(dy, self.packed(weights, k, n), out, false, Epilogue::None);
        }
    }

    /// Gradients of one head's queries, keys and values.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn attention_back(&self, block: usize, tile: usize, scratch: &mut [f32]) {
        let (d, t) = (self.plan.config.d_model, self.plan.batch.tokens);
        let (b, g) = (self.plan.layout.block(block), &self.plan.layout.grads);
        // SAFETY: the tile owns its head's columns of the sequence's rows of dqkv.
        unsafe {
            let (attention, first, column) = self.head_inputs(block, tile);
            let shape = (t, attention.q.cols());
            let at = g.dqkv + first * 3 * d + column;
            let part = |i: usize| self.act.mat_mut(at + i * d, shape, 3 * d);
            let mut grads = AttentionGrads { dq: part(0), dk: part(1), dv: part(2) };
            let out = self.act.mat(b.att + first * d + column, shape, d);
            let lse = self.act.slice(b.lse + tile * t, t);
            let dout = self.act.mat(g.datt + first * d + column, shape, d);
            self.kernels.attention_backward(&attention, out, lse, dout, &mut grads, scratch);
        }
    }
}
