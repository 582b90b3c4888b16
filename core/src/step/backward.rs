//! The backward pass of the activations: the critical path from loss to embedding.
//!
//! With `y = x + f(norm(x))` the gradient of a half block is
//! `dx = dy + norm'(f'(dy))`. `dx` holds the gradient of a block's output, `dmid` that
//! of the stream between its halves; each is overwritten only after the gradients
//! of the parameters that read it. On its way the pass puts what those gradients want in
//! the place of what it reads for the last time: see `crate::plan`'s layout.
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use super::{Desk, Site, Step};
use crate::architecture::Activation;
use crate::plan::{Buffer, PARTIAL_ROWS};
use crate::program::{Matrix, Norm};
use cllm_kernels::{Epilogue, Finish, MatMut, NormInPlace, NormSaved};

impl Step<'_> {
    /// Gradient of a norm's input, and the row block's sums for gain and bias; the norm's
    /// output takes the place of the input unless that has a buffer of its own.
    ///
    /// Final: `dx = norm'(dnorm)`. Second: `dmid = dx + norm'(dnorm)`. First:
    /// `dx = dmid + norm'(dnorm)`.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn norm_back(&self, norm: Norm, block: usize, tile: usize) {
        let (first, rows) = self.rows(tile);
        let d = self.plan.config.d_model;
        let layout = &self.plan.layout;
        let b = layout.block(block);
        let (x, saved, from, to, partial) = match norm {
            Norm::Final => {
                let last = self.plan.config.n_layer - 1;
                let g = layout.grads(last);
                (layout.block_output(last), layout.final_norm, None, g.dx, g.partial1)
            }
            Norm::Second => {
                let g = layout.grads(block);
                (b.mid, b.norm2, Some(g.dx), g.dmid, g.partial2)
            }
            Norm::First => {
                let into = layout.grads_into(block);
                (b.x, b.norm1, Some(layout.grads(block).dmid), into.dx, into.partial1)
            }
        };
        let dnorm = layout.grads(block).dnorm;
        let in_place = norm != Norm::First || layout.norm1_in_place();
        let (gain, bias) = Self::norm_params(norm, block);
        let end = first + rows;
        // Row blocks are whole pieces, but for the batch's last one.
        for first in (first..end).step_by(PARTIAL_ROWS) {
            let rows = PARTIAL_ROWS.min(end - first);
            // SAFETY: the tile owns its rows of the input, of the output and their partial
            // sums; parameters are not being updated.
            unsafe {
                let (Some(gain), bias) = (self.vector(gain), self.vector(bias)) else { return };
                if let Some(from) = from.filter(|from| *from != to) {
                    let stream = self.act.slice(from + first * d, rows * d);
                    self.act.slice_mut(to + first * d, rows * d).copy_from_slice(stream);
                }
                let mean = self.has_means().then(|| self.act.slice(saved.mean + first, rows));
                let rstd = self.act.slice(saved.rstd + first, rows);
                let dy = self.act.mat(dnorm + first * d, (rows, d), d);
                let dx = self.act.mat_mut(to + first * d, (rows, d), d);
                let sums = partial + first / PARTIAL_ROWS * self.plan.config.norm_vectors() * d;
                let dgain = self.act.slice_mut(sums, d);
                let dbias = bias.map(|_| self.act.slice_mut(sums + d, d));
                if in_place {
                    let x = self.act.mat_mut(x + first * d, (rows, d), d);
                    let halves = layout.norm_in_place(0).halves;
                    let mut norm = NormInPlace { x, halves, gain, bias, mean, rstd };
                    let adds = from.is_some();
                    self.kernels
                        .layer_norm_backward_in_place(&mut norm, dy, dx, adds, dgain, dbias);
                } else {
                    let x = self.act.mat(x + first * d, (rows, d), d);
                    let norm = NormSaved { x, gain, mean, rstd };
                    self.kernels.layer_norm_backward(&norm, dy, dx, from.is_some(), dgain, dbias);
                }
            }
        }
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
        let g = self.plan.layout.grads(block);
        // SAFETY: passed on from the caller.
        unsafe { self.mask(block, Site::MlpOut, tile, g.dx, g.masked_mlp) }
    }

    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn mask_attn(&self, block: usize, tile: usize) {
        let g = self.plan.layout.grads(block);
        // SAFETY: passed on from the caller.
        unsafe { self.mask(block, Site::AttnOut, tile, g.dmid, g.masked_att) }
    }

    /// From the gradient of the first block's input to that of the embeddings' sum, in place: what dropout and the scale
    /// have done to it is done again.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn embed_back(&self, tile: usize) {
        let (first, rows) = self.rows(tile);
        let d = self.plan.config.d_model;
        let at = self.plan.layout.grads_into(0).dx + first * d;
        if let Some((mask, row)) = self.embed_dropout(first) {
            // SAFETY: the tile owns its rows of dx.
            let dx = unsafe { self.act.mat_mut(at, (rows, d), d) };
            self.kernels.dropout_in_place(dx, &mask, row);
        }
        if let Some(scale) = self.plan.config.arch.scale() {
            // SAFETY: as above; the view before is not used any more.
            let dx = unsafe { self.act.slice_mut(at, rows * d) };
            self.kernels.scale(dx, scale);
        }
    }

    /// `dfc = (dy W^T) gelu'(fc_pre)` for one row block, then `fc_pre = gelu(fc_pre)`; or the same of
    /// squared ReLU, or of SwiGLU, with the activation in the place of the gate.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn mlp_input(&self, block: usize, tile: usize, desk: &mut Desk<'_>) {
        let (first, rows) = self.rows(tile);
        let c = &self.plan.config;
        let (d, f, width) = (c.d_model, c.d_ff, c.fc_width());
        // SAFETY: the tile owns its rows of dfc and of fc_pre; its rows of dy are done.
        unsafe {
            let layout = &self.plan.layout;
            let dy = self.act.mat(layout.grads(block).masked_mlp + first * d, (rows, d), d);
            let pre = self.operand_mut(layout.fc(block), (first, rows), width);
            let out = self.operand_mut(layout.dfc(block), (first, rows), width);
            let weight = self.weight_back(Matrix::MlpOut, block);
            let from = Buffer::floats(layout.grads(block).masked_mlp, d);
            let (more, scratch) = (&mut *desk.addend, &mut *desk.scratch);
            let addend =
                self.adapted_back((Matrix::MlpOut, block), from, (first, rows), more, scratch);
            if !c.arch.is_gated() {
                let epilogue = match c.arch.activation {
                    Activation::Relu2 => Epilogue::Relu2Grad { pre },
                    Activation::Gelu | Activation::SwiGlu => Epilogue::GeluGrad { pre },
                };
                let finish = Finish { addend, epilogue };
                self.product(dy, weight, out, finish, scratch);
                return;
            }
            let mut grad = MatMut::new(desk.fc, rows, f, layout.held_fc_stride);
            let finish = Finish { addend, epilogue: Epilogue::None };
            self.product(dy, weight, grad.reborrow(), finish, scratch);
            self.kernels.swiglu_backward(pre, grad.into_ref(), out);
        }
    }

    /// `dnorm = dfc W^T` for one row block.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn fc_input(&self, block: usize, tile: usize, desk: &mut Desk<'_>) {
        let (d, layout) = (self.plan.config.d_model, &self.plan.layout);
        let (dfc, dnorm) = (layout.dfc(block), layout.grads(block).dnorm);
        // SAFETY: passed on from the caller.
        unsafe { self.input_grad(tile, dfc, (Matrix::Fc, block), (dnorm, d), desk) }
    }

    /// `datt = dy W^T` for one row block.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn attn_input(&self, block: usize, tile: usize, desk: &mut Desk<'_>) {
        let (d, width) = (self.plan.config.d_model, self.plan.config.query_width());
        let g = self.plan.layout.grads(block);
        // SAFETY: passed on from the caller.
        unsafe {
            let from = Buffer::floats(g.masked_att, d);
            self.input_grad(tile, from, (Matrix::AttnOut, block), (g.datt, width), desk);
        }
    }

    /// `dnorm = dqkv W^T` for one row block.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn qkv_input(&self, block: usize, tile: usize, desk: &mut Desk<'_>) {
        let d = self.plan.config.d_model;
        let (dqkv, dnorm) = (self.plan.layout.dqkv(block).0, self.plan.layout.grads(block).dnorm);
        // SAFETY: passed on from the caller.
        unsafe {
            let from = Buffer::floats(dqkv, self.plan.config.qkv_width());
            self.input_grad(tile, from, (Matrix::Qkv, block), (dnorm, d), desk);
        }
    }

    /// `to = from W^T` for one row block; `to` is an offset and columns.
    ///
    /// # Safety
    /// The caller's tile owns the row block of `to`, and `from`'s is done.
    unsafe fn input_grad(
        &self,
        tile: usize,
        from: Buffer,
        (matrix, block): (Matrix, usize),
        (to, n): (usize, usize),
        desk: &mut Desk<'_>,
    ) {
        let (first, rows) = self.rows(tile);
        // SAFETY: passed on from the caller.
        unsafe {
            let dy = self.operand(from, (first, rows), (0, matrix.shape(self.plan).1));
            let out = self.act.mat_mut(to + first * n, (rows, n), n);
            let weight = self.weight_back(matrix, block);
            let (more, scratch) = (&mut *desk.addend, &mut *desk.scratch);
            let addend = self.adapted_back((matrix, block), from, (first, rows), more, scratch);
            let finish = Finish { addend, epilogue: Epilogue::None };
            self.product(dy, weight, out, finish, scratch);
        }
    }
}
