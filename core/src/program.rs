//! A training step as a list of operations over tiles.
//!
//! An [`Op`] is a range of tiles that may run in any order or at the same time: they
//! write disjoint elements, and what they write does not depend on who runs them.
//! The list is in an order in which every operation finds its inputs done. Operations
//! over row blocks ([`Kind::is_row_wise`]) read only the same row block of the
//! operation before, so a run of them may be executed block by block, which keeps a
//! block's activations in cache; a scheduler with a counter per block may go further.
//!
//! ```text
//! Pack      weights -> panels, both ways round                       (once a step)
//! Forward   embed | per block: norm1 qkv / attention / out norm2 fc mlp | final norm
//! Loss      logits and cross-entropy by row blocks                   (evaluation)
//! Backward  logits, loss and their gradient, then for each block from the last:
//!             rows: norms, inputs of the four products     (the critical path)
//!             heads: attention
//!             tiles: gradients of weights, biases, gains   (before the buffers they read
//!                    are used for the next block)
//!           gradients of the token and position tables
//! Measure   sum of squares of the gradient, by tiles
//! Update    AdamW, by tiles of each tensor
//! ```

use crate::params::{BlockParam, Param};
use crate::plan::{
    COLUMN_BLOCK, Mode, Plan, ROW_BLOCK, TABLE_ROWS, UPDATE_BLOCK, WEIGHT_COLS, WEIGHT_ROWS,
    head_rows,
};
use core::ops::Range;

/// One of the matrices that products use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Matrix {
    Qkv,
    AttnOut,
    Fc,
    MlpOut,
    Head,
}

impl Matrix {
    const OF_BLOCK: [Self; 4] = [Self::Qkv, Self::AttnOut, Self::Fc, Self::MlpOut];

    /// The tensor behind it.
    pub(crate) fn weight(self, plan: &Plan, block: usize) -> Param {
        match self {
            Self::Qkv => Param::Block(block, BlockParam::Qkv),
            Self::AttnOut => Param::Block(block, BlockParam::AttnOut),
            Self::Fc => Param::Block(block, BlockParam::Fc),
            Self::MlpOut => Param::Block(block, BlockParam::MlpOut),
            Self::Head => plan.table.head(),
        }
    }

    /// Its bias, whether or not the model has biases.
    pub(crate) fn bias(self, block: usize) -> Option<Param> {
        Some(Param::Block(
            block,
            match self {
                Self::Qkv => BlockParam::QkvBias,
                Self::AttnOut => BlockParam::AttnOutBias,
                Self::Fc => BlockParam::FcBias,
                Self::MlpOut => BlockParam::MlpOutBias,
                Self::Head => return None,
            },
        ))
    }

    /// Inputs and outputs: `y = x W`.
    pub(crate) fn shape(self, plan: &Plan) -> (usize, usize) {
        let c = &plan.config;
        match self {
            Self::Qkv => (c.d_model, 3 * c.d_model),
            Self::AttnOut => (c.d_model, c.d_model),
            Self::Fc => (c.d_model, c.d_ff),
            Self::MlpOut => (c.d_ff, c.d_model),
            Self::Head => (c.d_model, c.vocab_size),
        }
    }
}

/// Which norm: the first of a block, the second, or the final one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    First,
    Second,
    Final,
}

/// What an operation does. `Op::index` is its block (layer) unless said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Panels of a weight, or of its transpose.
    Pack(Matrix),
    PackTransposed(Matrix),
    // Forward, by row blocks but for attention.
    Embed,
    Norm(Norm),
    Qkv,
    /// Tiles are heads of sequences.
    Attention,
    AttnOut,
    Fc,
    MlpOut,
    /// Logits and losses of a group of rows (`index`), by row blocks.
    HeadLoss,
    /// The same with gradients of the logits and of the final norm's output.
    HeadLossGrad,
    /// Gradient of the output projection from a group of rows (`index`).
    HeadWeightGrad,
    // Backward, by row blocks.
    NormBack(Norm),
    MaskMlp,
    MlpInput,
    FcInput,
    MaskAttn,
    AttnInput,
    QkvInput,
    MaskEmbed,
    /// Tiles are heads of sequences.
    AttentionBack,
    // Gradients of parameters.
    WeightGrad(Matrix),
    BiasGrad(Matrix),
    NormGrad(Norm),
    TokenTableGrad,
    PositionTableGrad,
    /// Tiles of the whole gradient arena.
    Squares,
    /// Tiles of tensor number `index`.
    Update,
}

/// One operation of a step: the type of the slots of [`crate::Pool::Queue`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Op {
    pub(crate) kind: Kind,
    pub(crate) index: u32,
    pub(crate) tiles: u32,
}

impl Op {
    /// An operation of no tiles, to fill slots with.
    pub const EMPTY: Self = Self { kind: Kind::Embed, index: 0, tiles: 0 };
}

impl Kind {
    /// Whether tile i is row block i and reads no other block of the operation before.
    pub(crate) fn is_row_wise(self) -> bool {
        matches!(
            self,
            Self::Embed
                | Self::Norm(_)
                | Self::Qkv
                | Self::AttnOut
                | Self::Fc
                | Self::MlpOut
                | Self::NormBack(_)
                | Self::MaskMlp
                | Self::MlpInput
                | Self::FcInput
                | Self::MaskAttn
                | Self::AttnInput
                | Self::QkvInput
                | Self::MaskEmbed
        )
    }
}

/// A part of the list that is run as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Pack,
    Forward,
    Loss,
    Backward,
    Measure,
    Update,
}

impl Section {
    const COUNT: usize = 6;

    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Pack(_) | Kind::PackTransposed(_) => Self::Pack,
            Kind::Embed | Kind::Norm(_) | Kind::Qkv | Kind::Attention => Self::Forward,
            Kind::AttnOut | Kind::Fc | Kind::MlpOut => Self::Forward,
            Kind::HeadLoss => Self::Loss,
            Kind::Squares => Self::Measure,
            Kind::Update => Self::Update,
            Kind::HeadLossGrad | Kind::HeadWeightGrad | Kind::NormBack(_) => Self::Backward,
            Kind::MaskMlp | Kind::MlpInput | Kind::FcInput | Kind::MaskAttn => Self::Backward,
            Kind::AttnInput | Kind::QkvInput | Kind::MaskEmbed => Self::Backward,
            Kind::AttentionBack | Kind::WeightGrad(_) | Kind::BiasGrad(_) => Self::Backward,
            Kind::NormGrad(_) | Kind::TokenTableGrad => Self::Backward,
            Kind::PositionTableGrad => Self::Backward,
        }
    }
}

/// The operations of a plan, in the caller's slots.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    ops: &'a [Op],
    ends: [usize; Section::COUNT],
}

impl<'a> Program<'a> {
    /// Fills `slots` (at least `plan.ops()` of them) with the operations of `plan`.
    pub(crate) fn new(plan: &Plan, slots: &'a mut [Op]) -> Self {
        let mut ends = [0; Section::COUNT];
        let mut len = 0;
        build(plan, &mut |op| {
            // `Plan::new` has seen every operation fit.
            if let (Some(op), Some(slot)) = (op, slots.get_mut(len)) {
                *slot = op;
                len += 1;
                ends[Section::of(op.kind) as usize] = len;
            }
        });
        // A section without operations ends where the one before does.
        for i in 1..Section::COUNT {
            ends[i] = ends[i].max(ends[i - 1]);
        }
        Self { ops: &slots[..len], ends }
    }

    pub(crate) fn section(&self, section: Section) -> &'a [Op] {
        let i = section as usize;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.ops[start..self.ends[i]]
    }
}

/// Rows of group `group` of the output projection.
pub(crate) fn head_group(plan: &Plan, group: usize) -> Range<usize> {
    let rows = head_rows(plan.tokens(), plan.config.vocab_size);
    let first = group * rows;
    first..(first + rows).min(plan.tokens())
}

/// Emits every operation of `plan` in order; `None` where a count exceeds 32 bits.
pub(crate) fn build(plan: &Plan, emit: &mut dyn FnMut(Option<Op>)) {
    Builder { plan, emit }.all();
}

struct Builder<'p, 'e> {
    plan: &'p Plan,
    emit: &'e mut dyn FnMut(Option<Op>),
}

impl Builder<'_, '_> {
    fn op(&mut self, kind: Kind, index: usize, tiles: usize) {
        let op = u32::try_from(index).ok().zip(u32::try_from(tiles).ok());
        (self.emit)(op.map(|(index, tiles)| Op { kind, index, tiles }));
    }

    fn rows(&mut self, kind: Kind, index: usize) {
        self.op(kind, index, self.plan.tokens().div_ceil(ROW_BLOCK));
    }

    fn heads(&mut self, kind: Kind, index: usize) {
        self.op(kind, index, self.plan.batch.sequences * self.plan.config.n_head);
    }

    fn all(&mut self) {
        let layers = self.plan.config.n_layer;
        let train = self.plan.mode == Mode::Train;
        self.pack(train);
        self.forward();
        let group = head_rows(self.plan.tokens(), self.plan.config.vocab_size);
        let groups = self.plan.tokens().div_ceil(group);
        for g in 0..groups {
            let tiles = head_group(self.plan, g).len().div_ceil(ROW_BLOCK);
            self.op(Kind::HeadLoss, g, tiles);
        }
        if !train {
            return;
        }
        for g in 0..groups {
            let tiles = head_group(self.plan, g).len().div_ceil(ROW_BLOCK);
            self.op(Kind::HeadLossGrad, g, tiles);
            self.op(Kind::HeadWeightGrad, g, weight_tiles(self.plan, Matrix::Head));
        }
        self.rows(Kind::NormBack(Norm::Final), 0);
        for layer in (0..layers).rev() {
            self.block_backward(layer);
        }
        self.op(Kind::NormGrad(Norm::First), 0, column_tiles(self.plan.config.d_model));
        let c = &self.plan.config;
        if c.dropout > 0.0 {
            self.rows(Kind::MaskEmbed, 0);
        }
        self.op(Kind::TokenTableGrad, 0, c.vocab_size.div_ceil(TABLE_ROWS));
        self.op(Kind::PositionTableGrad, 0, c.block_size.div_ceil(TABLE_ROWS));
        self.op(Kind::Squares, 0, self.plan.table.arena_len().div_ceil(UPDATE_BLOCK));
        for (index, spec) in self.plan.table.iter().enumerate() {
            self.op(Kind::Update, index, spec.len().div_ceil(UPDATE_BLOCK));
        }
    }

    fn pack(&mut self, train: bool) {
        for layer in 0..self.plan.config.n_layer {
            for matrix in Matrix::OF_BLOCK {
                self.pack_matrix(matrix, layer, train);
            }
        }
        self.pack_matrix(Matrix::Head, 0, train);
    }

    fn pack_matrix(&mut self, matrix: Matrix, layer: usize, train: bool) {
        let (inputs, outputs) = matrix.shape(self.plan);
        self.op(Kind::Pack(matrix), layer, column_tiles(outputs));
        if train {
            self.op(Kind::PackTransposed(matrix), layer, column_tiles(inputs));
        }
    }

    fn forward(&mut self) {
        self.rows(Kind::Embed, 0);
        for layer in 0..self.plan.config.n_layer {
            self.rows(Kind::Norm(Norm::First), layer);
            self.rows(Kind::Qkv, layer);
            self.heads(Kind::Attention, layer);
            self.rows(Kind::AttnOut, layer);
            self.rows(Kind::Norm(Norm::Second), layer);
            self.rows(Kind::Fc, layer);
            self.rows(Kind::MlpOut, layer);
        }
        self.rows(Kind::Norm(Norm::Final), 0);
    }

    /// Everything of a block's backward pass, from the gradient of its output to
    /// that of its input. The row-wise end of one block runs into the start of the
    /// next, so the gradients of parameters stand in between: what they read is
    /// overwritten after them.
    fn block_backward(&mut self, layer: usize) {
        let c = self.plan.config;
        let columns = column_tiles(c.d_model);
        let last = layer + 1 == c.n_layer;
        if c.dropout > 0.0 {
            self.rows(Kind::MaskMlp, layer);
        }
        self.rows(Kind::MlpInput, layer);
        self.rows(Kind::FcInput, layer);
        self.rows(Kind::NormBack(Norm::Second), layer);
        if c.dropout > 0.0 {
            self.rows(Kind::MaskAttn, layer);
        }
        self.rows(Kind::AttnInput, layer);
        self.heads(Kind::AttentionBack, layer);
        // The norm above this block left its partial sums before this block began.
        if last {
            self.op(Kind::NormGrad(Norm::Final), 0, columns);
        } else {
            self.op(Kind::NormGrad(Norm::First), layer + 1, columns);
        }
        self.op(Kind::NormGrad(Norm::Second), layer, columns);
        for matrix in Matrix::OF_BLOCK.into_iter().rev() {
            self.op(Kind::WeightGrad(matrix), layer, weight_tiles(self.plan, matrix));
            if c.bias {
                self.op(Kind::BiasGrad(matrix), layer, column_tiles(matrix.shape(self.plan).1));
            }
        }
        self.rows(Kind::QkvInput, layer);
        self.rows(Kind::NormBack(Norm::First), layer);
    }
}

fn column_tiles(columns: usize) -> usize {
    columns.div_ceil(COLUMN_BLOCK)
}

/// Rows and columns of a weight's gradient as it is stored: the output projection
/// is stored `outputs x inputs`.
pub(crate) fn stored_shape(plan: &Plan, matrix: Matrix) -> (usize, usize) {
    let (inputs, outputs) = matrix.shape(plan);
    if matrix == Matrix::Head { (outputs, inputs) } else { (inputs, outputs) }
}

fn weight_tiles(plan: &Plan, matrix: Matrix) -> usize {
    let (rows, cols) = stored_shape(plan, matrix);
    rows.div_ceil(WEIGHT_ROWS) * cols.div_ceil(WEIGHT_COLS)
}
