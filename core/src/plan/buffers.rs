//! The buffers of activations: which there are, what takes whose place. Offsets count floats and are
//! whole lines.
//!
//! Activations of a block, `N` tokens, `C = d_model`, `F = fc_width` (`d_ff`, with a gate twice as
//! many), `H` heads of queries, `A` columns of all of them and `Q = qkv_width`:
//!
//! ```text
//! kept    x (N, C)   att (N, A)   lse (N*H)
//! inner   qkv (N, Q)   mid (N, C)   fc_pre (N, F)   mean, rstd (N) of both norms
//!         norm1 (N, C), only if blocks are made again
//! ```
//! `x` enters the block, `mid` is the residual stream between its two halves, and
//! the next block's `x` leaves it. In training every layer has its own; if blocks are made
//! again, a few sets of the inner ones go round; when only losses are wanted, all layers
//! share everything: nothing reads a block's `x` once `mid` is there.
//!
//! Nobody keeps the outputs of norms and of activations. Forward they are only wanted for the
//! next product of the same row block, and lie in the worker's scratch. Backward wants them
//! for the gradients of weights, and makes them again when it reads their inputs for the
//! last time, in the place of those:
//!
//! ```text
//! fc_pre -> its activation      mid -> norm2      qkv -> its gradient
//! x -> norm1, unless the block is made again      last x -> final norm
//! ```
//! Norms of heads leave queries and keys in a buffer of their own; their gradients take the place of
//! those in it, and behind the norms that of what they were made of.
//!
//! With a gate its first `d_ff` columns become the activation. RMS norms have no mean. Tables of
//! rotary angles, a row for each position, are made when a model gets its memory, and only read.
//!
//! Between the factors of adapters are rows of as many columns as A has, of each matrix and block.
//!
//! What only products read (`fc_pre`, its gradient, all outputs of norms and GELU) is of bf16
//! where the kernels keep that: see [`Buffer`].
//! Rows of `fc_pre`, of its gradient and of logits are whole cache lines, and have one more, which
//! nobody touches, where they would be a multiple of 4 KiB apart, or of 2 KiB of bf16 ([`row_stride`]).

use super::{Grain, Mode, PARTIAL_ROWS, to_lines};
use crate::adapter::AdapterTable;
use crate::architecture::NormKind;
use crate::arithmetic::some;
use crate::built::DROPOUT;
use crate::config::ModelConfig;
use crate::program::Matrix;
use cllm_kernels::{Bf16, Footprint, row_stride};

/// A matrix of activations or of their gradients, a row for each token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) at: usize,
    /// Elements from a row to the next.
    pub(crate) width: usize,
    /// They are bf16.
    pub(crate) halves: bool,
}

impl Buffer {
    pub(crate) const fn floats(at: usize, width: usize) -> Self {
        Self { at, width, halves: false }
    }
}

/// Some columns of a matrix of floats: where they start in its first row, and from a row to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    pub(crate) at: usize,
    pub(crate) stride: usize,
}

impl Columns {
    /// The columns from `column` on, from row `row` on.
    pub(crate) fn from(self, row: usize, column: usize) -> Self {
        Self { at: self.at + row * self.stride + column, ..self }
    }
}

/// A buffer that some layers have each a copy of, and the others by turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) at: usize,
    pub(super) stride: usize,
    pub(super) copies: usize,
}

impl Place {
    /// Of no size.
    pub(super) const NOWHERE: Self = Self { at: 0, stride: 0, copies: 1 };

    #[cfg_attr(feature = "compact", inline(never))]
    pub(super) const fn of(self, layer: usize) -> usize {
        self.at + layer % self.copies * self.stride
    }
}

/// Hands out offsets one after the other.
pub(crate) struct Bump(pub(crate) usize);

impl Bump {
    /// Where so many floats begin, `None` on overflow.
    pub(crate) const fn take(&mut self, floats: usize) -> Option<usize> {
        let at = self.0;
        self.0 = some!(at.checked_add(some!(to_lines(floats))));
        Some(at)
    }

    pub(crate) const fn matrix(&mut self, rows: usize, cols: usize) -> Option<usize> {
        self.take(some!(rows.checked_mul(cols)))
    }

    /// `copies` of a matrix.
    pub(super) const fn copies(
        &mut self,
        copies: usize,
        rows: usize,
        cols: usize,
    ) -> Option<Place> {
        self.copies_of(copies, some!(rows.checked_mul(cols)))
    }

    /// `copies` of some floats.
    pub(super) const fn copies_of(&mut self, copies: usize, floats: usize) -> Option<Place> {
        let stride = some!(to_lines(floats));
        Some(Place { at: some!(self.take(some!(stride.checked_mul(copies)))), stride, copies })
    }
}

/// What a norm leaves for its backward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Moments<T = usize> {
    pub(crate) mean: T,
    pub(crate) rstd: T,
}

impl Moments<Place> {
    pub(super) const fn take(
        bump: &mut Bump,
        kind: NormKind,
        copies: usize,
        rows: usize,
    ) -> Option<Self> {
        let mean = match kind {
            NormKind::Layer => some!(bump.copies(copies, rows, 1)),
            NormKind::Rms => Place::NOWHERE,
        };
        Some(Self { mean, rstd: some!(bump.copies(copies, rows, 1)) })
    }

    pub(super) const fn of(self, layer: usize) -> Moments {
        Moments { mean: self.mean.of(layer), rstd: self.rstd.of(layer) }
    }
}

/// Rows of `fc_width` elements that only products read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Wider {
    /// Elements from a row to the next.
    pub(super) stride: usize,
    /// They are bf16. The activation, of `d_ff` columns, takes the place of a part of them.
    pub(super) halves: bool,
}

impl Wider {
    pub(super) const fn new(c: &ModelConfig, kernels: Footprint) -> Option<Self> {
        let halves = kernels.keeps_halves_of(c.d_ff);
        let bytes = if halves { size_of::<Bf16>() } else { size_of::<f32>() };
        Some(Self { stride: some!(row_stride(c.fc_width(), bytes)), halves })
    }

    /// Floats of so many rows: the stride of halves is a whole number of lines.
    const fn floats(self, rows: usize) -> Option<usize> {
        let elements = some!(rows.checked_mul(self.stride));
        Some(if self.halves { elements / 2 } else { elements })
    }
}

/// Offsets of one block's activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BlockBuffers<T = usize> {
    pub(crate) x: T,
    pub(crate) att: T,
    pub(crate) lse: T,
    pub(crate) qkv: T,
    /// With norms of heads: queries and keys behind them, turned if need be, (N, A + K), and the
    /// norms' rstd, (H + heads of keys, N). `qkv` then holds what they are made of.
    pub(crate) heads: T,
    pub(crate) head_rstd: T,
    /// Sums of the gradients of those norms' gains, for each piece of each sequence: of each head of
    /// queries, (pieces * H, head), then of keys.
    pub(crate) head_sums: T,
    pub(crate) mid: T,
    pub(crate) fc_pre: T,
    pub(crate) norm1: Moments<T>,
    pub(crate) norm2: Moments<T>,
    /// Output of the first norm, for the gradient of the weights behind it: `x` itself, once
    /// the backward pass has been there, unless the block is made again from that.
    pub(crate) norm1_out: T,
}

impl BlockBuffers<Place> {
    /// `kept` and `inner` copies; with a buffer for the first norm's output or without, and with one
    /// of so many floats for sums of norms of heads or without.
    pub(super) const fn take(
        bump: &mut Bump,
        n: usize,
        c: &ModelConfig,
        (kept, inner): (usize, usize),
        keeps_norm1: bool,
        head_sums: Option<usize>,
        kernels: Footprint,
    ) -> Option<Self> {
        /// Copies of what only norms of heads have.
        const fn normed(
            bump: &mut Bump,
            c: &ModelConfig,
            copies: usize,
            floats: usize,
        ) -> Option<Place> {
            match c.arch.norms_heads() {
                true if copies > 0 => bump.copies_of(copies, floats),
                _ => Some(Place::NOWHERE),
            }
        }
        let d = c.d_model;
        let x = some!(bump.copies(kept, n, d));
        let normed_heads = some!(n.checked_mul(c.query_width() + c.kv_width()));
        let statistics = some!(n.checked_mul(c.n_head + c.kv_heads()));
        Some(Self {
            x,
            att: some!(bump.copies(kept, n, c.query_width())),
            lse: some!(bump.copies(kept, n, c.n_head)),
            qkv: some!(bump.copies(inner, n, c.qkv_width())),
            heads: some!(normed(bump, c, inner, normed_heads)),
            head_rstd: some!(normed(bump, c, inner, statistics)),
            head_sums: match head_sums {
                Some(floats) => some!(normed(bump, c, c.n_layer, floats)),
                None => Place::NOWHERE,
            },
            mid: some!(bump.copies(inner, n, d)),
            fc_pre: some!(bump.copies_of(inner, some!(some!(Wider::new(c, kernels)).floats(n)))),
            norm1: some!(Moments::take(bump, c.arch.norm, inner, n)),
            norm2: some!(Moments::take(bump, c.arch.norm, inner, n)),
            norm1_out: if keeps_norm1 {
                some!(bump.copies_of(inner, some!(kernels.operand_len(n, d))))
            } else {
                x
            },
        })
    }

    pub(super) const fn of(self, layer: usize) -> BlockBuffers {
        BlockBuffers {
            x: self.x.of(layer),
            att: self.att.of(layer),
            lse: self.lse.of(layer),
            qkv: self.qkv.of(layer),
            heads: self.heads.of(layer),
            head_rstd: self.head_rstd.of(layer),
            head_sums: self.head_sums.of(layer),
            mid: self.mid.of(layer),
            fc_pre: self.fc_pre.of(layer),
            norm1: self.norm1.of(layer),
            norm2: self.norm2.of(layer),
            norm1_out: self.norm1_out.of(layer),
        }
    }
}

/// Offsets of the gradients of one block's activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct GradBuffers<T = usize> {
    /// Gradient of a block's output, (N, C).
    pub(crate) dx: T,
    /// Gradient of `mid`, (N, C). With dropout nothing but the next row of either is made of
    /// `dx` and `dmid`: they are then one buffer, for all layers.
    pub(crate) dmid: T,
    /// `dx` and `dmid` behind their dropout masks, (N, C) each; without dropout those
    /// themselves.
    pub(crate) masked_mlp: T,
    pub(crate) masked_att: T,
    /// Gradient of a norm's output, (N, C), for all layers.
    pub(crate) dnorm: T,
    /// Gradient of the attention's output, (N, A). It is the buffer of `dnorm`, if that is as wide and
    /// a row block waits for all attention that reads it before it goes on.
    pub(crate) datt: T,
    /// Gradient of queries, keys and values, (N, Q), where they cannot take the place of
    /// those: spans of a sequence read what the others would overwrite.
    pub(crate) dqkv: T,
    /// Gradient of `fc_pre`, (N, F).
    pub(crate) dfc: T,
    /// Sums of norm gradients of each [`PARTIAL_ROWS`] rows, (pieces, 2C), or (pieces, C) without
    /// biases: the norm above the block (the next block's first or the final one), and the second
    /// norm.
    pub(crate) partial1: T,
    pub(crate) partial2: T,
}

impl GradBuffers<Place> {
    pub(super) const NONE: Self = Self {
        dx: Place::NOWHERE,
        dmid: Place::NOWHERE,
        masked_mlp: Place::NOWHERE,
        masked_att: Place::NOWHERE,
        dnorm: Place::NOWHERE,
        datt: Place::NOWHERE,
        dqkv: Place::NOWHERE,
        dfc: Place::NOWHERE,
        partial1: Place::NOWHERE,
        partial2: Place::NOWHERE,
    };

    /// `in_place`: a row block waits for the attention of its whole sequences.
    pub(super) const fn take(
        bump: &mut Bump,
        n: usize,
        c: &ModelConfig,
        grain: &Grain,
        in_place: bool,
        kernels: Footprint,
    ) -> Option<Self> {
        let (d, sets) = (c.d_model, grain.gradient_sets);
        let pieces = n.div_ceil(PARTIAL_ROWS);
        let dnorm = some!(bump.copies(1, n, d));
        let (first, second) = (some!(bump.copies(sets, n, d)), some!(bump.copies(sets, n, d)));
        let (dx, dmid) = if DROPOUT && c.dropout > 0.0 {
            let stream = some!(bump.copies(1, n, d));
            (stream, stream)
        } else {
            (first, second)
        };
        let width = c.query_width();
        let datt = match grain.is_parted() && !in_place {
            true => some!(bump.copies(sets, n, width)),
            false if width != d => some!(bump.copies(1, n, width)),
            false => dnorm,
        };
        let dqkv = match grain.is_parted() {
            true => some!(bump.copies(sets, n, c.qkv_width())),
            false => Place::NOWHERE,
        };
        Some(Self {
            dx,
            dmid,
            masked_mlp: first,
            masked_att: second,
            dnorm,
            datt,
            dqkv,
            dfc: some!(bump.copies_of(sets, some!(some!(Wider::new(c, kernels)).floats(n)))),
            partial1: some!(bump.copies(sets, pieces, c.norm_vectors() * d)),
            partial2: some!(bump.copies(sets, pieces, c.norm_vectors() * d)),
        })
    }

    pub(super) const fn of(self, layer: usize) -> GradBuffers {
        GradBuffers {
            dx: self.dx.of(layer),
            dmid: self.dmid.of(layer),
            masked_mlp: self.masked_mlp.of(layer),
            masked_att: self.masked_att.of(layer),
            dnorm: self.dnorm.of(layer),
            datt: self.datt.of(layer),
            dqkv: self.dqkv.of(layer),
            dfc: self.dfc.of(layer),
            partial1: self.partial1.of(layer),
            partial2: self.partial2.of(layer),
        }
    }
}

/// Rows between the factors A and B of adapters, (N, columns of A): of each matrix of a block, or of
/// one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Between<T = usize> {
    /// `scale x A`, which the gradient of B wants.
    pub(crate) down: T,
    /// `scale dy B^T`, which the gradient of A wants.
    pub(crate) back: T,
}

impl Between<[Place; 4]> {
    const NONE: Self = Self { down: [Place::NOWHERE; 4], back: [Place::NOWHERE; 4] };

    /// For `n` rows.
    pub(super) const fn take(
        bump: &mut Bump,
        n: usize,
        layers: usize,
        adapters: Option<&AdapterTable>,
        mode: Mode,
    ) -> Option<Self> {
        let mut all = Self::NONE;
        let Some(table) = adapters else { return Some(all) };
        let copies = if mode.trains() { layers } else { 1 };
        let mut i = 0;
        while i < Matrix::OF_BLOCK.len() {
            let matrix = Matrix::OF_BLOCK[i];
            if let Some([a, _]) = table.factors(matrix, 0) {
                all.down[matrix as usize] = some!(bump.copies(copies, n, a.cols));
                if mode.trains() {
                    all.back[matrix as usize] = some!(bump.copies(copies, n, a.cols));
                }
            }
            i += 1;
        }
        Some(all)
    }

    pub(super) fn of(self, matrix: Matrix, layer: usize) -> Between {
        let of = |places: [Place; 4]| places[matrix as usize].of(layer);
        Between { down: of(self.down), back: of(self.back) }
    }
}
