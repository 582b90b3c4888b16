//! Where each buffer lies inside its pool. Offsets count floats and are whole lines.
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
//! Nobody keeps the outputs of norms and of GELU. Forward they are only wanted for the
//! next product of the same row block, and lie in the worker's scratch. Backward wants them
//! for the gradients of weights, and makes them again when it reads their inputs for the
//! last time, in the place of those:
//!
//! ```text
//! fc_pre -> gelu      mid -> norm2      qkv -> its gradient
//! x -> norm1, unless the block is made again      last x -> final norm
//! ```
//! Norms of heads leave queries and keys in a buffer of their own; their gradients take the place of
//! those in it, and behind the norms that of what they were made of.
//!
//! With a gate its first `d_ff` columns become the activation. RMS norms have no mean. Tables of
//! rotary angles, a row for each position, are made when a model gets its memory, and only read.
//!
//! What only products read (`fc_pre`, its gradient, all outputs of norms and GELU) is of bf16
//! where the kernels keep that: see [`Buffer`].
//! Rows of `fc_pre`, of its gradient and of logits are whole cache lines, and have one more, which
//! nobody touches, where they would be a multiple of 4 KiB apart ([`row_stride`]).

use super::{BatchShape, Grain, Mode, PARTIAL_ROWS, head_rows, squares_block, to_lines};
use crate::architecture::NormKind;
use crate::config::ModelConfig;
use crate::params::ParamTable;
use crate::program::Matrix;
use cllm_kernels::{Bf16, Kernels, row_stride};

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
    pub(crate) fn floats(at: usize, width: usize) -> Self {
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
#[derive(Clone, Copy, Debug)]
struct Place {
    at: usize,
    stride: usize,
    copies: usize,
}

impl Place {
    /// Of no size.
    const NOWHERE: Self = Self { at: 0, stride: 0, copies: 1 };

    fn of(self, layer: usize) -> usize {
        self.at + layer % self.copies * self.stride
    }
}

/// Hands out offsets one after the other.
struct Bump(usize);

impl Bump {
    fn take(&mut self, floats: usize) -> Option<usize> {
        let at = self.0;
        self.0 = at.checked_add(to_lines(floats)?)?;
        Some(at)
    }

    fn matrix(&mut self, rows: usize, cols: usize) -> Option<usize> {
        self.take(rows.checked_mul(cols)?)
    }

    /// `copies` of a matrix.
    fn copies(&mut self, copies: usize, rows: usize, cols: usize) -> Option<Place> {
        self.copies_of(copies, rows.checked_mul(cols)?)
    }

    /// `copies` of some floats.
    fn copies_of(&mut self, copies: usize, floats: usize) -> Option<Place> {
        let stride = to_lines(floats)?;
        Some(Place { at: self.take(stride.checked_mul(copies)?)?, stride, copies })
    }
}

/// What a norm leaves for its backward pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments<T = usize> {
    pub(crate) mean: T,
    pub(crate) rstd: T,
}

impl Moments<Place> {
    fn take(bump: &mut Bump, kind: NormKind, copies: usize, rows: usize) -> Option<Self> {
        let mean = match kind {
            NormKind::Layer => bump.copies(copies, rows, 1)?,
            NormKind::Rms => Place::NOWHERE,
        };
        Some(Self { mean, rstd: bump.copies(copies, rows, 1)? })
    }

    fn of(self, layer: usize) -> Moments {
        Moments { mean: self.mean.of(layer), rstd: self.rstd.of(layer) }
    }
}

/// Rows of `fc_width` elements that only products read.
#[derive(Clone, Copy, Debug)]
struct Wider {
    /// Elements from a row to the next.
    stride: usize,
    /// They are bf16. The activation, of `d_ff` columns, takes the place of a part of them.
    halves: bool,
}

impl Wider {
    fn new(c: &ModelConfig, kernels: &Kernels) -> Option<Self> {
        let halves = kernels.keeps_halves_of(c.d_ff);
        let bytes = if halves { size_of::<Bf16>() } else { size_of::<f32>() };
        Some(Self { stride: row_stride(c.fc_width(), bytes)?, halves })
    }

    /// Floats of so many rows: the stride of halves is a whole number of lines.
    fn floats(self, rows: usize) -> Option<usize> {
        let elements = rows.checked_mul(self.stride)?;
        Some(if self.halves { elements / 2 } else { elements })
    }
}

/// Offsets of one block's activations.
#[derive(Clone, Copy, Debug)]
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
    fn take(
        bump: &mut Bump,
        n: usize,
        c: &ModelConfig,
        (kept, inner): (usize, usize),
        keeps_norm1: bool,
        head_sums: Option<usize>,
        kernels: &Kernels,
    ) -> Option<Self> {
        let d = c.d_model;
        let x = bump.copies(kept, n, d)?;
        let normed = |bump: &mut Bump, copies: usize, floats: usize| match c.arch.qk_norm {
            true if copies > 0 => bump.copies_of(copies, floats),
            _ => Some(Place::NOWHERE),
        };
        Some(Self {
            x,
            att: bump.copies(kept, n, c.query_width())?,
            lse: bump.copies(kept, n, c.n_head)?,
            qkv: bump.copies(inner, n, c.qkv_width())?,
            heads: normed(bump, inner, n.checked_mul(c.query_width() + c.kv_width())?)?,
            head_rstd: normed(bump, inner, n.checked_mul(c.n_head + c.kv_heads())?)?,
            head_sums: match head_sums {
                Some(floats) => normed(bump, c.n_layer, floats)?,
                None => Place::NOWHERE,
            },
            mid: bump.copies(inner, n, d)?,
            fc_pre: bump.copies_of(inner, Wider::new(c, kernels)?.floats(n)?)?,
            norm1: Moments::take(bump, c.arch.norm, inner, n)?,
            norm2: Moments::take(bump, c.arch.norm, inner, n)?,
            norm1_out: if keeps_norm1 {
                bump.copies_of(inner, kernels.operand_len(n, d)?)?
            } else {
                x
            },
        })
    }

    fn of(self, layer: usize) -> BlockBuffers {
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
#[derive(Clone, Copy, Debug)]
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
    const NONE: Self = Self {
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
    fn take(
        bump: &mut Bump,
        n: usize,
        c: &ModelConfig,
        grain: &Grain,
        in_place: bool,
        kernels: &Kernels,
    ) -> Option<Self> {
        let (d, sets) = (c.d_model, grain.gradient_sets);
        let pieces = n.div_ceil(PARTIAL_ROWS);
        let dnorm = bump.copies(1, n, d)?;
        let (first, second) = (bump.copies(sets, n, d)?, bump.copies(sets, n, d)?);
        let (dx, dmid) = if c.dropout > 0.0 {
            let stream = bump.copies(1, n, d)?;
            (stream, stream)
        } else {
            (first, second)
        };
        let width = c.query_width();
        let datt = match grain.parted && !in_place {
            true => bump.copies(sets, n, width)?,
            false if width != d => bump.copies(1, n, width)?,
            false => dnorm,
        };
        Some(Self {
            dx,
            dmid,
            masked_mlp: first,
            masked_att: second,
            dnorm,
            datt,
            dqkv: if grain.parted { bump.copies(sets, n, c.qkv_width())? } else { Place::NOWHERE },
            dfc: bump.copies_of(sets, Wider::new(c, kernels)?.floats(n)?)?,
            partial1: bump.copies(sets, pieces, c.norm_vectors() * d)?,
            partial2: bump.copies(sets, pieces, c.norm_vectors() * d)?,
        })
    }

    fn of(self, layer: usize) -> GradBuffers {
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

/// Offsets of one block's packed weights, both ways round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedBlock {
    pub(crate) qkv: usize,
    pub(crate) att: usize,
    pub(crate) fc: usize,
    pub(crate) mlp: usize,
    pub(crate) qkv_t: usize,
    pub(crate) att_t: usize,
    pub(crate) fc_t: usize,
    pub(crate) mlp_t: usize,
}

/// All offsets of a plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// What takes the place of floats that only products read is of bf16.
    halves: bool,
    /// `d_model`.
    width: usize,
    /// Elements from a row of `d_model` of them to the next, and whether they are of bf16, where only
    /// products read them.
    wide: (usize, bool),
    wider: Wider,
    /// Floats from a row of logits to the next.
    vocab: usize,
    blocks: BlockBuffers<Place>,
    n_layer: usize,
    x_last: usize,
    pub(crate) final_norm: Moments,
    pub(crate) losses: usize,
    logits: Place,
    /// Groups of logits that exist at one time.
    pub(crate) logits_buffers: usize,
    grads: GradBuffers<Place>,
    /// Gradients of queries, keys and values have buffers of their own.
    own_dqkv: bool,
    /// Where queries, keys and values start in a row of all of them, and its columns.
    head_columns: [usize; 3],
    qkv_width: usize,
    /// Queries and keys behind norms of heads have buffers of their own.
    normed_heads: bool,
    /// Sum of squares of each optimizer tile of the gradient arena.
    pub(crate) squares: usize,
    pub(crate) activations_len: usize,
    first_packed: PackedBlock,
    packed_stride: usize,
    /// Output projection: `d_model x vocab` and back.
    head: usize,
    head_t: usize,
    pub(crate) packed_len: usize,
    /// Cosines and sines of the angles of a sequence's positions, if they are rotary.
    pub(crate) angles: Option<[usize; 2]>,
    /// Floats of scratch of one worker.
    pub(crate) scratch_len: usize,
    /// Of these, at the start: the norm's output of a row block, then that of GELU or SwiGLU, or the
    /// gradient of the latter.
    pub(crate) held_norm: usize,
    pub(crate) held_fc: usize,
    /// Floats from a row of that gradient to the next.
    pub(crate) held_fc_stride: usize,
}

impl Layout {
    /// `None` if a size overflows.
    pub(super) fn new(
        c: &ModelConfig,
        batch: BatchShape,
        mode: Mode,
        grain: &Grain,
        kernels: &Kernels,
    ) -> Option<Self> {
        let n = batch.sequences.checked_mul(batch.tokens)?;
        let (d, f, fc) = (c.d_model, c.d_ff, c.fc_width());
        let matrices = c.matrices();
        let train = mode.trains();
        let mut bump = Bump(0);
        let copies = match mode {
            Mode::Train => (c.n_layer, c.n_layer),
            Mode::Recompute => (c.n_layer, grain.gradient_sets.min(c.n_layer)),
            Mode::Evaluate => (1, 1),
        };
        // If no block is made again, nobody wants the first one's input a second time.
        let remakes = mode == Mode::Recompute && copies.1 < c.n_layer;
        let sums = batch.sequences.checked_mul(grain.pieces(batch.tokens))?;
        let sums = sums.checked_mul(c.query_width() + c.kv_width())?;
        let sums = train.then_some(sums);
        let blocks = BlockBuffers::take(&mut bump, n, c, copies, remakes, sums, kernels)?;
        let x_last = bump.matrix(n, d)?;
        let final_norm = Moments::take(&mut bump, c.arch.norm, 1, n)?.of(0);
        let losses = bump.take(n)?;
        let group = head_rows(n, c.vocab_size);
        let logits_buffers = grain.logits_rows.div_ceil(group).min(n.div_ceil(group));
        let logits =
            bump.copies(logits_buffers, group, row_stride(c.vocab_size, size_of::<f32>())?)?;
        let mut grads = GradBuffers::NONE;
        let mut squares = 0;
        if train {
            grads = GradBuffers::take(&mut bump, n, c, grain, mode.shares_layers(), kernels)?;
            let arena = ParamTable::new(c).ok()?.arena_len();
            squares = bump.take(arena.div_ceil(squares_block(arena)))?;
        }
        let (t, head_size) = (batch.tokens, c.head_size());
        let angles = match c.arch.rotary() {
            Some(_) => Some([bump.matrix(t, head_size / 2)?, bump.matrix(t, head_size / 2)?]),
            None => None,
        };
        let activations_len = bump.0;

        let mut bump = Bump(0);
        let mut take = |floats| if grain.packs { bump.take(floats) } else { Some(0) };
        let first_packed = packed_block(c, kernels, train, &mut take)?;
        let packed_stride = bump.0;
        bump.take(packed_stride.checked_mul(c.n_layer - 1)?)?;
        let mut take = |floats| if grain.packs { bump.take(floats) } else { Some(0) };
        let head = take(kernels.packed_len(d, c.vocab_size)?)?;
        let head_t = if train { take(kernels.packed_len(c.vocab_size, d)?)? } else { 0 };
        let packed_len = bump.0;

        let mut scratch_len = kernels.attention_scratch_len(t, head_size)?;
        // The deepest product of a row block: backward they are as deep as forward they are wide.
        let deep = matrices.into_iter().chain([(d, c.vocab_size)]);
        let deepest = deep.map(|(k, n)| if train { k.max(n) } else { k }).max()?;
        let rows = grain.row_block.min(n);
        if grain.packs {
            scratch_len = scratch_len.max(kernels.gemm_scratch_len(rows, deepest));
            // Into fc, and back into its gradient.
            scratch_len = scratch_len.max(kernels.gemm_into_halves_scratch_len(rows, d));
        } else {
            let shapes = matrices.into_iter().chain([(d, c.vocab_size)]);
            let both = shapes.flat_map(|(k, n)| [Some((k, n)), train.then_some((n, k))]);
            for (k, n) in both.flatten() {
                // Into fc, and back into its gradient.
                let halves = kernels.keeps_halves_of(f) && [f, fc].contains(&n);
                scratch_len = scratch_len.max(kernels.fresh_scratch_len(rows, k, n, false)?);
                scratch_len = scratch_len.max(kernels.fresh_scratch_len(rows, k, n, halves)?);
            }
        }
        if train {
            // The largest tile of any weight's gradient, as it is stored.
            for (rows, cols) in matrices.into_iter().chain([(c.vocab_size, d)]) {
                let (rows, cols) = (grain.weight_rows.min(rows), grain.weight_cols.min(cols));
                scratch_len = scratch_len.max(kernels.unpacked_scratch_len(rows, cols, n)?);
            }
            let back = kernels.attention_backward_scratch_len(t, head_size)?;
            scratch_len = scratch_len.max(back.checked_add(grain.group_len(c, t)?)?);
            if c.arch.qk_norm {
                scratch_len = scratch_len.max(grain.piece.min(t).checked_mul(head_size)?);
            }
        }
        let held_norm = to_lines(kernels.operand_len(rows, d)?)?;
        let held_fc_stride = row_stride(f, size_of::<f32>())?;
        let gradient = if train && c.arch.is_gated() { held_fc_stride } else { 0 };
        let held_fc = kernels.operand_len(rows, f)?.max(rows.checked_mul(gradient)?);
        let held_fc = to_lines(held_fc)?;
        let held = held_norm.checked_add(held_fc)?;
        Some(Self {
            halves: kernels.keeps_halves(),
            width: d,
            wide: (kernels.operand_stride(d)?, kernels.keeps_halves_of(d)),
            wider: Wider::new(c, kernels)?,
            vocab: row_stride(c.vocab_size, size_of::<f32>())?,
            blocks,
            n_layer: c.n_layer,
            x_last,
            final_norm,
            losses,
            logits,
            logits_buffers,
            grads,
            own_dqkv: train && grain.parted,
            head_columns: [0, c.query_width(), c.query_width() + c.kv_width()],
            qkv_width: c.qkv_width(),
            normed_heads: c.arch.qk_norm,
            squares,
            activations_len,
            first_packed,
            packed_stride,
            head,
            head_t,
            packed_len,
            angles,
            scratch_len: to_lines(scratch_len)?.checked_add(held)?,
            held_norm,
            held_fc,
            held_fc_stride,
        })
    }

    /// Activations of a block.
    pub(crate) fn block(&self, layer: usize) -> BlockBuffers {
        self.blocks.of(layer)
    }

    /// Input of a block's activation; once the backward pass has been there its output.
    pub(crate) fn fc(&self, layer: usize) -> Buffer {
        let Wider { stride: width, halves } = self.wider;
        Buffer { at: self.block(layer).fc_pre, width, halves }
    }

    /// Gradient of that input.
    pub(crate) fn dfc(&self, layer: usize) -> Buffer {
        let Wider { stride: width, halves } = self.wider;
        Buffer { at: self.grads(layer).dfc, width, halves }
    }

    /// Output of a norm that has taken the place of its input, of which rows of both start
    /// at the same places.
    pub(crate) fn norm_in_place(&self, at: usize) -> Buffer {
        let width = if self.halves { 2 * self.width } else { self.width };
        Buffer { at, width, halves: self.halves }
    }

    /// Output of a block's first norm.
    pub(crate) fn norm1(&self, layer: usize) -> Buffer {
        let at = self.block(layer).norm1_out;
        let (width, halves) = self.wide;
        if self.norm1_in_place() { self.norm_in_place(at) } else { Buffer { at, width, halves } }
    }

    /// Gradients of a group's logits, in the place of those: rows start where theirs do.
    pub(crate) fn dlogits(&self, group: usize) -> Buffer {
        let Buffer { at, width, .. } = self.logits(group);
        Buffer { at, width: if self.halves { 2 * width } else { width }, halves: self.halves }
    }

    /// Whether the inner activations of a block are overwritten in the forward pass, so that
    /// the backward pass has to make them again.
    pub(crate) fn is_remade(&self, layer: usize) -> bool {
        layer + self.blocks.mid.copies < self.n_layer
    }

    /// The first norm's output lies in `x`, once the backward pass has been there.
    pub(crate) fn norm1_in_place(&self) -> bool {
        self.blocks.norm1_out.at == self.blocks.x.at
    }

    /// Residual stream that leaves a block.
    pub(crate) fn block_output(&self, layer: usize) -> usize {
        if layer + 1 < self.n_layer { self.block(layer + 1).x } else { self.x_last }
    }

    /// Gradients of the activations of a block.
    pub(crate) fn grads(&self, layer: usize) -> GradBuffers {
        self.grads_into(layer + 1)
    }

    /// Gradients of what enters a block: those of the block before it, and in the first
    /// block those of the embedding.
    pub(crate) fn grads_into(&self, layer: usize) -> GradBuffers {
        self.grads.of(layer)
    }

    /// Queries, keys and values of a block, as attention takes them.
    pub(crate) fn heads(&self, layer: usize) -> [Columns; 3] {
        let b = self.block(layer);
        let qkv = self.head_columns.map(|at| Columns { at: b.qkv + at, stride: self.qkv_width });
        if !self.normed_heads {
            return qkv;
        }
        let [queries, keys, width] = self.head_columns;
        let of = |at: usize| Columns { at: b.heads + at, stride: width };
        [of(queries), of(keys), qkv[2]]
    }

    /// Gradients of those, before they go back through norms of heads.
    pub(crate) fn dheads(&self, layer: usize) -> [Columns; 3] {
        if !self.own_dqkv {
            return self.heads(layer);
        }
        let at = self.grads(layer).dqkv;
        self.head_columns.map(|column| Columns { at: at + column, stride: self.qkv_width })
    }

    /// Gradients of queries, keys and values of a block, and whether they have a buffer of
    /// their own rather than take the place of those.
    pub(crate) fn dqkv(&self, layer: usize) -> (usize, bool) {
        let at = if self.own_dqkv { self.grads(layer).dqkv } else { self.block(layer).qkv };
        (at, self.own_dqkv)
    }

    /// Logits of a group of rows.
    pub(crate) fn logits(&self, group: usize) -> Buffer {
        Buffer::floats(self.logits.of(group), self.vocab)
    }

    /// Panels of a block's matrix, or of its transpose.
    pub(crate) fn panels(&self, matrix: Matrix, layer: usize, transposed: bool) -> usize {
        let p = &self.first_packed;
        let (there, back) = match matrix {
            Matrix::Qkv => (p.qkv, p.qkv_t),
            Matrix::AttnOut => (p.att, p.att_t),
            Matrix::Fc => (p.fc, p.fc_t),
            Matrix::MlpOut => (p.mlp, p.mlp_t),
            Matrix::Head => return if transposed { self.head_t } else { self.head },
        };
        layer * self.packed_stride + if transposed { back } else { there }
    }
}

/// Lays out one block's packed weights with `take`; the transposes only for training.
fn packed_block(
    c: &ModelConfig,
    kernels: &Kernels,
    transposes: bool,
    take: &mut dyn FnMut(usize) -> Option<usize>,
) -> Option<PackedBlock> {
    let matrices = c.matrices();
    let mut there = [0; 4];
    for (to, (k, n)) in there.iter_mut().zip(matrices) {
        *to = take(kernels.packed_len(k, n)?)?;
    }
    let mut back = [0; 4];
    for (to, (k, n)) in back.iter_mut().zip(matrices).filter(|_| transposes) {
        *to = take(kernels.packed_len(n, k)?)?;
    }
    let ([qkv, att, fc, mlp], [qkv_t, att_t, fc_t, mlp_t]) = (there, back);
    Some(PackedBlock { qkv, att, fc, mlp, qkv_t, att_t, fc_t, mlp_t })
}
