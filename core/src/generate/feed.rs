//! What one tile of a chunk computes: see the stages in `plan`.
#![expect(unsafe_code, reason = "tiles of a chunk share memory: see `shared`")]

use super::plan::{GeneratePlan, Kind};
use crate::engine::{Activity, Job, Observer, Taken};
use crate::line::LANES;
use crate::params::{BlockParam, Param};
use crate::program::Op;
use crate::shared::Shared;
use cllm_kernels::{Attention, Epilogue, Kernels, MatMut, Packed};
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
        let len = self.kernels.packed_len(k, n).unwrap_or(0);
        let weights = Packed::new(&self.packed[weights..weights + len], k, n);
        let weights = self.kernels.packed_columns(weights, columns.clone());
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
                Kind::Fc => Epilogue::Gelu {
                    bias: self.bias(of(FcBias), &columns),
                    pre: self.act.mat_mut(p.fc_pre + columns.start, cut, n).into(),
                },
                Kind::MlpOut => Epilogue::Residual {
                    bias: self.bias(of(MlpOutBias), &columns),
                    residual: residual(p.y),
                    dropout: None,
                },
                Kind::Head | Kind::Attention => Epilogue::None,
            };
            let a = self.act.mat(from, (rows, k), k);
            let c = self.act.mat_mut(out + columns.start, cut, n);
            self.kernels.gemm(a, weights, c, false, epilogue, self.scratch(seat));
        }
    }

    /// Layer norm of some rows, into the seat's own; gives where they lie.
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
            self.kernels.layer_norm(
                self.act.mat(x + rows.start * d, (n, d), d),
                self.vector(gain).unwrap_or(&[]),
                self.vector(bias),
                self.plan.config.norm_eps,
                self.act.mat_mut(at + places.norm, (n, d), d),
                Some(mean),
                rstd,
            );
        }
        at + places.norm
    }

    /// Attention of one head: its new keys and values go to the cache first.
    ///
    /// The cache has, for each block, the keys of one head after the other and then the values,
    /// each as positions in their order: a head is read from one end to the other.
    ///
    /// # Safety
    /// As for [`Feed::tile`].
    unsafe fn attention(&self, block: usize, head: usize, seat: usize) {
        let (c, p) = (&self.plan.config, &self.plan.places);
        let (d, size, rows) = (c.d_model, c.head_size(), self.rows);
        let half = c.block_size.saturating_mul(d).next_multiple_of(LANES);
        let keys = 2 * block * half + head * c.block_size * size;
        let values = keys + half;
        let column = head * size;
        let seen = self.first + rows;
        // SAFETY: a head's cache and its columns of the output are this tile's alone; queries,
        // keys and values were written by the stage before.
        unsafe {
            for (cache, part) in [(keys, 1), (values, 2)] {
                let to = self.cache.slice_mut(cache + self.first * size, rows * size);
                for (r, to) in to.chunks_exact_mut(size).enumerate() {
                    let from = p.qkv + r * 3 * d + part * d + column;
                    to.copy_from_slice(self.act.slice(from, size));
                }
            }
            let attention = Attention {
                q: self.act.mat(p.qkv + column, (rows, size), 3 * d),
                k: self.cache.mat(keys, (seen, size), size),
                v: self.cache.mat(values, (seen, size), size),
                first: self.first,
                scale: 1.0 / libm::sqrtf(size as f32),
                dropout: None,
            };
            let out = self.act.mat_mut(p.att + column, (rows, size), d);
            self.kernels.attention(&attention, out, None, self.scratch(seat));
        }
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
