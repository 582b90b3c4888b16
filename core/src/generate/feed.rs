//! What one tile of a chunk computes: see the stages in `plan`.
#![expect(unsafe_code, reason = "tiles of a chunk share memory: see `shared`")]

use super::plan::{GeneratePlan, Kind};
use crate::architecture::{Activation, NormKind};
use crate::engine::{Activity, Job, Observer, Taken};
use crate::line::LANES;
use crate::params::{BlockParam, Param};
use crate::program::Op;
use crate::shared::Shared;
use cllm_kernels::{Angles, Attention, Epilogue, Kernels, MatMut, MatRef, Packed};
use core::ops::Range;

/// A chunk of tokens on its way through the model.
///
/// Tiles of a stage write disjoint columns of its result, or the cache and the output of a head;
/// they read what stages before have written. What a seat has for itself is its worker's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feed<'a> {
    pub(super) plan: &'a GeneratePlan,
    pub(super) kernels: &'a Kernels,
    pub(super) parameters: &'a [f32],
    pub(super) packed: &'a [f32],
    pub(super) cache: Shared<'a>,
    pub(super) act: Shared<'a>,
    /// Tokens of the chunk.
    pub(super) rows: usize,
    /// Positions in the cache before it.
    pub(super) first: usize,
}

impl Job for Feed<'_> {
    unsafe fn run(&self, _: &[Op], taken: &Taken, seat: usize, observer: &mut dyn Observer) {
        let Taken { id: stage, tile, stolen, .. } = *taken;
        observer.enter(Activity::Tile { stage, op: Op::EMPTY, tile, stolen });
        // SAFETY: passed on from the caller.
        unsafe { self.tile(stage, tile as usize, seat) }
    }
}

impl<'a> Feed<'a> {
    /// Computes a tile.
    ///
    /// # Safety
    /// All stages before `id` are done, nobody else computes the tile, and nobody else computes
    /// one for `seat`.
    pub(super) unsafe fn tile(&self, id: usize, tile: usize, seat: usize) {
        let (kind, block) = self.plan.stage_kind(id);
        match self.plan.product(kind) {
            // SAFETY: passed on from the caller.
            None => unsafe { self.attention(block, tile, seat) },
            Some((k, n)) => {
                let columns = self.plan.columns(id, tile, n);
                // SAFETY: passed on from the caller.
                unsafe { self.columns(kind, block, (k, n), columns, seat) }
            }
        }
    }

    fn vector(&self, param: Param) -> Option<&'a [f32]> {
        self.plan.table.spec(param).map(|spec| &self.parameters[spec.range()])
    }

    /// Some columns of a bias.
    fn bias(&self, param: Param, columns: &Range<usize>) -> Option<&'a [f32]> {
        self.vector(param).map(|bias| &bias[columns.clone()])
    }

    /// Where the part of a seat begins.
    fn seat(&self, seat: usize) -> usize {
        self.plan.places.seats + seat * self.plan.places.seat
    }

    /// Scratch of the kernels.
    ///
    /// # Safety
    /// Nobody else works for the seat while it lives.
    unsafe fn scratch(&self, seat: usize) -> &'a mut [f32] {
        let at = self.seat(seat) + self.plan.places.scratch;
        // SAFETY: passed on from the caller.
        unsafe { self.act.slice_mut(at, self.plan.scratch_len) }
    }

    /// The columns `columns` of the product of a stage.
    ///
    /// # Safety
    /// As for [`Feed::tile`].
    unsafe fn columns(
        &self,
        kind: Kind,
        block: usize,
        (k, n): (usize, usize),
        columns: Range<usize>,
        seat: usize,
    ) {
        use BlockParam::*;
        let (p, w, rows, width) = (&self.plan.places, &self.plan.packed, self.rows, columns.len());
        let of = |param| Param::Block(block, param);
        let in_block = |at: usize| block * w.stride + at;
        let (weights, out) = match kind {
            Kind::Qkv => (in_block(w.qkv), p.qkv),
            Kind::AttnOut => (in_block(w.att), p.y),
            Kind::Fc => (in_block(w.fc), p.fc),
            Kind::MlpOut => (in_block(w.mlp), p.x),
            Kind::Head | Kind::Attention => (w.head, p.logits),
        };
        let panels = |at: usize| {
            let len = self.kernels.packed_len(k, n).unwrap_or(0);
            let weights =
                Packed::new(&self.packed[at..at + len], k, n).uncached(self.plan.is_uncached());
            self.kernels.packed_columns(weights, columns.clone())
        };
        // SAFETY: results are columns that are this tile's alone; what is read was written by
        // stages that are done, which write nothing of it now; scratch and norm are the seat's.
        unsafe {
            let (from, rows) = match kind {
                Kind::Qkv => (self.norm(p.x, 0..rows, of(Norm1Gain), of(Norm1Bias), seat), rows),
                Kind::Fc => (self.norm(p.y, 0..rows, of(Norm2Gain), of(Norm2Bias), seat), rows),
                Kind::AttnOut => (p.att, rows),
                Kind::MlpOut => (p.fc, rows),
                Kind::Head | Kind::Attention => {
                    let (gain, bias) = (Param::FinalGain, Param::FinalBias);
                    (self.norm(p.x, rows - 1..rows, gain, bias, seat), 1)
                }
            };
            let a = self.act.mat(from, (rows, k), k);
            if kind == Kind::Fc && self.plan.config.arch.is_gated() {
                let halves = [in_block(w.fc), in_block(w.up)].map(panels);
                return self.gated(block, a, halves, &columns, seat);
            }
            let cut = (rows, width);
            let residual = |at: usize| self.act.mat(at + columns.start, cut, n);
            let epilogue = match kind {
                Kind::Qkv => {
                    self.bias(of(QkvBias), &columns).map_or(Epilogue::None, Epilogue::Bias)
                }
                Kind::AttnOut => Epilogue::Residual {
                    bias: self.bias(of(AttnOutBias), &columns),
                    residual: residual(p.x),
                    dropout: None,
                },
                Kind::Fc => {
                    let bias = self.bias(of(FcBias), &columns);
                    let pre = self.act.mat_mut(p.fc_pre + columns.start, cut, n).into();
                    match self.plan.config.arch.activation {
                        Activation::Relu2 => Epilogue::Relu2 { bias, pre },
                        Activation::Gelu | Activation::SwiGlu => Epilogue::Gelu { bias, pre },
                    }
                }
                Kind::MlpOut => Epilogue::Residual {
                    bias: self.bias(of(MlpOutBias), &columns),
                    residual: residual(p.y),
                    dropout: None,
                },
                Kind::Head | Kind::Attention => Epilogue::None,
            };
            let c = self.act.mat_mut(out + columns.start, cut, n);
            self.kernels.gemm(a, panels(weights), c, false, epilogue, self.scratch(seat));
            if let (Kind::Head, Some(cap)) = (kind, self.plan.config.arch.logit_softcap) {
                self.kernels.soft_cap(self.act.slice_mut(out + columns.start, width), cap);
            }
        }
    }

    /// Columns of SwiGLU: those of the gate, beside them as many of what it lets through, and of both
    /// together the activation.
    ///
    /// # Safety
    /// As for [`Feed::tile`].
    unsafe fn gated(
        &self,
        block: usize,
        x: MatRef<'_>,
        panels: [Packed<'_>; 2],
        columns: &Range<usize>,
        seat: usize,
    ) {
        let (p, c, rows, width) = (&self.plan.places, &self.plan.config, x.rows(), columns.len());
        let (pre, stride) = (p.fc_pre + 2 * columns.start, c.fc_width());
        // SAFETY: twice the tile's columns are its own, and so is the seat's scratch.
        unsafe {
            for (half, panels) in panels.into_iter().enumerate() {
                let of_bias = half * c.d_ff + columns.start..half * c.d_ff + columns.end;
                let bias = self.bias(Param::Block(block, BlockParam::FcBias), &of_bias);
                let epilogue = bias.map_or(Epilogue::None, Epilogue::Bias);
                let to = self.act.mat_mut(pre + half * width, (rows, width), stride);
                self.kernels.gemm(x, panels, to, false, epilogue, self.scratch(seat));
            }
            let pre = self.act.mat(pre, (rows, 2 * width), stride);
            let to = self.act.mat_mut(p.fc + columns.start, (rows, width), c.d_ff);
            self.kernels.swiglu(pre, to);
        }
    }

    /// Norm of some rows, into the seat's own; gives where they lie.
    ///
    /// # Safety
    /// As for [`Feed::tile`]; nobody writes the rows.
    unsafe fn norm(
        &self,
        x: usize,
        rows: Range<usize>,
        gain: Param,
        bias: Param,
        seat: usize,
    ) -> usize {
        let (d, n) = (self.plan.config.d_model, rows.len());
        let (at, places) = (self.seat(seat), &self.plan.places);
        // SAFETY: passed on from the caller; norm and statistics are the seat's.
        unsafe {
            let (mean, rstd) = self.act.slice_mut(at + places.stats, 2 * n).split_at_mut(n);
            let mean = (self.plan.config.arch.norm == NormKind::Layer).then_some(mean);
            self.kernels.layer_norm(
                self.act.mat(x + rows.start * d, (n, d), d),
                self.vector(gain).unwrap_or(&[]),
                self.vector(bias),
                self.plan.config.norm_eps,
                self.act.mat_mut(at + places.norm, (n, d), d),
                mean,
                rstd,
            );
        }
        at + places.norm
    }

    /// Attention of one head of keys and values, and of the heads of queries that it serves: its new
    /// keys and values go to the cache first, keys turned to their positions if those are told by
    /// angles.
    ///
    /// The cache has, for each block, the keys of one head after the other and then the values,
    /// each as positions in their order: a head is read from one end to the other.
    ///
    /// # Safety
    /// As for [`Feed::tile`].
    unsafe fn attention(&self, block: usize, kv_head: usize, seat: usize) {
        let (c, p) = (&self.plan.config, &self.plan.places);
        let (width, size, rows) = (c.qkv_width(), c.head_size(), self.rows);
        let half = c.block_size.saturating_mul(c.kv_width()).next_multiple_of(LANES);
        let keys = 2 * block * half + kv_head * c.block_size * size;
        let values = keys + half;
        let seen = self.first + rows;
        let group = c.n_head / c.kv_heads();
        // SAFETY: a head's cache, and the queries and columns of the output of those that it serves,
        // are this tile's alone; queries, keys and values were written by the stage before.
        unsafe {
            let (shape, normed) = ((rows, size), c.arch.qk_norm);
            let column = c.query_width() + kv_head * size;
            for (cache, column) in [(keys, column), (values, column + c.kv_width())] {
                let to = self.cache.slice_mut(cache + self.first * size, rows * size);
                for (r, to) in to.chunks_exact_mut(size).enumerate() {
                    to.copy_from_slice(self.act.slice(p.qkv + r * width + column, size));
                }
            }
            let to = || self.cache.mat_mut(keys + self.first * size, shape, size);
            if normed {
                let from = self.act.mat(p.qkv + column, shape, width);
                self.norm_head(from, Param::Block(block, BlockParam::KeyNormGain), to(), seat);
            }
            self.turn(to());
            for head in kv_head * group..(kv_head + 1) * group {
                let column = head * size;
                let (mut at, mut stride) = (p.qkv + column, width);
                if normed {
                    let from = self.act.mat(at, shape, stride);
                    (at, stride) = (self.seat(seat) + p.queries, size);
                    let gain = Param::Block(block, BlockParam::QueryNormGain);
                    self.norm_head(from, gain, self.act.mat_mut(at, shape, stride), seat);
                }
                self.turn(self.act.mat_mut(at, shape, stride));
                let attention = Attention {
                    q: self.act.mat(at, shape, stride),
                    k: self.cache.mat(keys, (seen, size), size),
                    v: self.cache.mat(values, (seen, size), size),
                    first: self.first,
                    starts: None,
                    window: c.arch.window,
                    scale: 1.0 / libm::sqrtf(size as f32),
                    dropout: None,
                };
                let out = self.act.mat_mut(p.att + column, shape, c.query_width());
                self.kernels.attention(&attention, out, None, self.scratch(seat));
            }
        }
    }

    /// RMS norm of rows of a head.
    ///
    /// # Safety
    /// Nobody else works for the seat.
    unsafe fn norm_head(&self, x: MatRef<'_>, gain: Param, y: MatMut<'_>, seat: usize) {
        // SAFETY: passed on from the caller.
        let stats =
            unsafe { self.act.slice_mut(self.seat(seat) + self.plan.places.stats, x.rows()) };
        let (gain, eps) = (self.vector(gain).unwrap_or(&[]), self.plan.config.norm_eps);
        self.kernels.layer_norm(x, gain, None, eps, y, None, stats);
    }

    /// Turns a head's rows of the chunk, of queries or of keys, if positions are told by angles.
    fn turn(&self, x: MatMut<'_>) {
        let Some([cos, sin]) = self.plan.places.angles else { return };
        let (t, size) = (self.plan.config.block_size, self.plan.config.head_size());
        let shape = (t, size / 2);
        // SAFETY: angles are not written after the generator is made.
        let angles = unsafe {
            let (cos, sin) = (self.act.mat(cos, shape, shape.1), self.act.mat(sin, shape, shape.1));
            Angles { cos, sin }
        };
        self.kernels.rotate(x, size, &angles, self.first, t, false);
    }

    /// The rows of the residual stream, for the embedding.
    ///
    /// # Safety
    /// No tile is under way.
    pub(super) unsafe fn stream(&self) -> MatMut<'a> {
        let d = self.plan.config.d_model;
        // SAFETY: passed on from the caller.
        unsafe { self.act.mat_mut(self.plan.places.x, (self.rows, d), d) }
    }
}
