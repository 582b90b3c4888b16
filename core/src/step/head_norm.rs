//! RMS norms of the heads of queries and keys, forward and backward.
//!
//! ```text
//! forward    qkv -> q, k of each head, normalised        into a buffer of their own, for attention
//! backward   dq, dk of a tile's heads and rows -> gradients of what they were made of
//!            sums for the gains, of each piece of rows and each head; one tile adds them up
//! ```
//! Pieces are of a size that tiles do not change ([`Grain::piece`]), and added up in one order.
//!
//! [`Grain::piece`]: crate::plan::Grain::piece
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use super::Step;
use crate::params::{BlockParam, Param};
use crate::plan::Columns;
use cllm_kernels::{MatMut, MatRef, NormSaved};
use core::ops::Range;

/// Which heads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Queries = 0,
    Keys = 1,
}

impl Kind {
    fn gain(self, block: usize) -> Param {
        Param::Block(
            block,
            match self {
                Self::Queries => BlockParam::QueryNormGain,
                Self::Keys => BlockParam::KeyNormGain,
            },
        )
    }
}

impl Step<'_> {
    /// Heads of a kind.
    fn heads_of(&self, kind: Kind) -> usize {
        match kind {
            Kind::Queries => self.plan.config.n_head,
            Kind::Keys => self.plan.config.kv_heads(),
        }
    }

    /// What heads of a kind are made of, and later its gradient: columns of the product.
    fn made_of(&self, block: usize, kind: Kind) -> usize {
        let column = if kind == Kind::Queries { 0 } else { self.plan.config.query_width() };
        self.plan.layout.block(block).qkv + column
    }

    /// Where the `rstd` of a head's rows begin.
    fn head_rstd(&self, block: usize, (kind, head): (Kind, usize)) -> usize {
        let before = if kind == Kind::Queries { 0 } else { self.plan.config.n_head };
        self.plan.layout.block(block).head_rstd + (before + head) * self.plan.tokens()
    }

    /// Normalises all heads of queries and keys of some rows.
    ///
    /// # Safety
    /// The tile owns the rows of what is written; the product is done for them.
    pub(super) unsafe fn norm_heads(&self, block: usize, first: usize, rows: usize) {
        let (c, to) = (&self.plan.config, self.plan.layout.heads(block));
        let (size, width) = (c.head_size(), c.qkv_width());
        for kind in [Kind::Queries, Kind::Keys] {
            // SAFETY: parameters are not being updated.
            let Some(gain) = (unsafe { self.vector(kind.gain(block)) }) else { return };
            for head in 0..self.heads_of(kind) {
                let from = self.made_of(block, kind) + first * width + head * size;
                let Columns { at, stride } = to[kind as usize].from(first, head * size);
                // SAFETY: passed on from the caller.
                unsafe {
                    let rstd = self.head_rstd(block, (kind, head)) + first;
                    self.kernels.layer_norm(
                        self.act.mat(from, (rows, size), width),
                        gain,
                        None,
                        c.norm_eps,
                        self.act.mat_mut(at, (rows, size), stride),
                        None,
                        self.act.slice_mut(rstd, rows),
                    );
                }
            }
        }
    }

    /// Where the sums of a head's gain over a piece of a sequence lie.
    fn head_sums(&self, block: usize, (kind, head): (Kind, usize), piece: usize) -> usize {
        let (c, pieces) = (&self.plan.config, self.head_pieces());
        let size = c.head_size();
        let before = if kind == Kind::Queries { 0 } else { pieces * c.query_width() };
        let at = (piece * self.heads_of(kind) + head) * size;
        self.plan.layout.block(block).head_sums + before + at
    }

    /// Pieces of all sequences.
    fn head_pieces(&self) -> usize {
        self.plan.batch.sequences * self.plan.grain.pieces(self.plan.batch.tokens)
    }

    /// Gradient of what a head was made of, from that of the head, for the rows `rows` of the sequence at
    /// row `first`; and the sums for its gain.
    ///
    /// # Safety
    /// The tile owns both gradients' columns of the rows and the sums; `scratch` has room for a piece.
    pub(super) unsafe fn head_norm_back(
        &self,
        block: usize,
        (kind, head): (Kind, usize),
        first: usize,
        rows: Range<usize>,
        scratch: &mut [f32],
    ) {
        let (c, t, layout) = (&self.plan.config, self.plan.batch.tokens, &self.plan.layout);
        let (size, width, piece) = (c.head_size(), c.qkv_width(), self.plan.grain.piece);
        let (dqkv, own) = layout.dqkv(block);
        let x = Columns { at: self.made_of(block, kind), stride: width };
        let dx = Columns { at: x.at - layout.block(block).qkv + dqkv, stride: width };
        let dy = layout.dheads(block)[kind as usize];
        let first_piece = first / t * self.plan.grain.pieces(t);
        // SAFETY: parameters are not being updated.
        let Some(gain) = (unsafe { self.vector(kind.gain(block)) }) else { return };
        let mut start = rows.start;
        while start < rows.end {
            let len = piece.min(rows.end - start);
            let (row, shape) = (first + start, (len, size));
            let room = &mut scratch[..len * size];
            // SAFETY: passed on from the caller; the product and the norm are done.
            unsafe {
                let of = |columns: Columns| {
                    let Columns { at, stride } = columns.from(row, head * size);
                    self.act.mat(at, shape, stride)
                };
                // The result takes the place of one of them, of which a copy is read.
                let (x, dy) = if own {
                    copy_rows(of(dy), room);
                    (of(x), MatRef::new(room, len, size, size))
                } else {
                    copy_rows(of(x), room);
                    (MatRef::new(room, len, size, size), of(dy))
                };
                let rstd = self.head_rstd(block, (kind, head)) + row;
                let rstd = self.act.slice(rstd, len);
                let saved = NormSaved { x, gain, mean: None, rstd };
                let sums = self.head_sums(block, (kind, head), first_piece + start / piece);
                let dgain = self.act.slice_mut(sums, size);
                let Columns { at, stride } = dx.from(row, head * size);
                let dx: MatMut<'_> = self.act.mat_mut(at, shape, stride);
                self.kernels.layer_norm_backward(&saved, dy, dx, false, dgain, None);
            }
            start += len;
        }
    }

    /// Adds up the sums for the gains of both kinds.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn head_norm_grad(&self, block: usize) {
        let size = self.plan.config.head_size();
        for kind in [Kind::Queries, Kind::Keys] {
            let Some(spec) = self.spec(kind.gain(block)) else { continue };
            let rows = self.head_pieces() * self.heads_of(kind);
            // SAFETY: the tile owns both gradients; the sums are done.
            unsafe {
                let sums = self.act.mat(self.head_sums(block, (kind, 0), 0), (rows, size), size);
                let out = self.grads.slice_mut(spec.offset, size);
                self.kernels.column_sum(sums, out, self.accumulate);
            }
        }
    }
}

/// Puts the rows of a matrix side by side.
pub(super) fn copy_rows(from: MatRef<'_>, to: &mut [f32]) {
    let cols = from.cols();
    for (r, to) in to.chunks_exact_mut(cols).enumerate() {
        to.copy_from_slice(from.row(r));
    }
}
