//! A training step as a list of operations over tiles.
//!
//! An [`Op`] is a range of tiles that may run in any order or at the same time: they
//! write disjoint elements, and what they write does not depend on who runs them.
//! Operations are grouped into the stages that the engine schedules. A row stage takes
//! each row block through a chain of operations while its activations are in cache;
//! a list of operations shares all their tiles out at once. The list is in an order in which
//! every stage comes behind those it waits for.
//!
//! ```text
//! Pack      weights -> panels, both ways round, by layer    (once an update, if at all)
//! Forward   F(0): embed norm1 qkv | A(0) | F(1): out norm2 fc mlp norm1 qkv | A(1) | ...
//!           ... | F(L): out norm2 fc mlp
//! Loss      final norm, logits and cross-entropy by groups of rows     (evaluation)
//! Backward  B(L-1): by groups of rows: final norm, logits, loss, their gradient, then half
//!                   a block: norms and inputs of the products, down to the attention's
//!                   output
//!           H(g):   gradient of the output projection from group g, in order of g
//!           for each block l from the last:
//!             A'(l):  attention
//!             W1(l):  gradients of fc, mlp, out, their biases, norm2 (reads B(l))
//!             B(l-1): inputs of qkv, norm1, then the half block of l - 1
//!             W2(l):  gradients of qkv (reads A'(l), and norm1 as B(l-1) has made it again)
//!           T: gradients of the tables and the last norm, sum of the losses
//! Measure   sum of squares of the gradient by tiles; their sum and the clip
//! Update    the optimizer, by tiles of each tensor; Muon by matrices
//! ```
//! Where adapters are trained, W1 and W2 are their gradients alone, H is not, and T is the sum of the
//! losses; the last rows go back to the first block's queries, keys and values if those have one.
//!
//! With [`Mode::Recompute`] half a block begins with making the block's activations again from
//! its input and the output of its attention, the first norm among them: W2(l) then comes
//! before B(l-1). The last `gradient_sets` blocks find what the forward pass left.
//!
//! What a stage overwrites: the gradients of block l lie in one of `gradient_sets` sets of
//! buffers, and so do activations that are made again. B(l) waits for W1 of block
//! `l + gradient_sets`, which reads the set before, and for W2 if that does;
//! B(L-1) of group g waits for H of the group whose logits it overwrites.

mod op;
mod sink;
mod traffic;
mod update;

pub use op::Op;
pub(crate) use op::{Kind, Matrix, Norm};
use sink::{Few, NewOp};
pub(crate) use sink::{Program, To};

use crate::arithmetic::least;
use crate::built::WORKERS;
use crate::engine::{NONE, Needs, Reads, Shape, Stage};
use crate::plan::{ADAPTER_BLOCK, COLUMN_BLOCK, Mode, Packing, Plan, TABLE_ROWS, head_rows};
use core::ops::Range;

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
    pub(crate) const COUNT: usize = 6;
    pub(crate) const ALL: [Self; Self::COUNT] =
        [Self::Pack, Self::Forward, Self::Loss, Self::Backward, Self::Measure, Self::Update];

    /// For reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Forward => "forward",
            Self::Loss => "loss",
            Self::Backward => "backward",
            Self::Measure => "gradient norm",
            Self::Update => "update",
        }
    }
}

/// What the workers go through as a whole; between two runs the calling thread acts.
///
/// A training step is one run of gradients for each micro-batch, the first of which packs
/// the weights that the last update changed, then one of the update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Losses of a batch.
    Losses {
        /// The weights have changed since they were packed.
        pack: bool,
    },
    /// Losses and gradients of a micro-batch.
    Gradients {
        /// The weights have changed since they were packed.
        pack: bool,
    },
    /// Norm of the gradient, and the update.
    Update,
    /// The sums of squares alone, where others have to be added before there is a norm.
    Measure,
    /// The update alone.
    Apply,
}

impl Run {
    /// The sections of the run: they follow one another in the program.
    pub(crate) const fn sections(self) -> &'static [Section] {
        match self {
            Self::Losses { pack: true } => &[Section::Pack, Section::Forward, Section::Loss],
            Self::Losses { pack: false } => &[Section::Forward, Section::Loss],
            Self::Gradients { pack: true } => &[Section::Pack, Section::Forward, Section::Backward],
            Self::Gradients { pack: false } => &[Section::Forward, Section::Backward],
            Self::Update => &[Section::Measure, Section::Update],
            Self::Measure => &[Section::Measure],
            Self::Apply => &[Section::Update],
        }
    }
}

/// Rows of group `group` of the output projection.
pub(crate) fn head_group(plan: &Plan, group: usize) -> Range<usize> {
    let (start, end) = group_rows(plan, group);
    start..end
}

/// The same as its first row and the one behind its last.
const fn group_rows(plan: &Plan, group: usize) -> (usize, usize) {
    let rows = head_rows(plan.tokens(), plan.config.vocab_size);
    let first = group * rows;
    (first, least(first + rows, plan.tokens()))
}

/// Makes every operation and stage of `plan` in order.
pub(crate) const fn build(plan: &Plan, to: To<'_>) -> Program {
    let program = Program::EMPTY;
    let mut builder = Builder { plan, to, section: Section::Pack, program, adapter_back: NONE };
    let train = plan.mode.trains();
    builder.pack(train);
    builder.forward();
    builder.loss();
    if train {
        builder.backward();
        builder.update();
    }
    builder.program
}

struct Builder<'p, 'e> {
    plan: &'p Plan,
    to: To<'e>,
    section: Section,
    program: Program,
    /// What the adapter of queries, keys and values of the block above has made for the next rows, if
    /// it is not made by those.
    adapter_back: u16,
}

/// Gradient stages of a block.
#[derive(Clone, Copy)]
struct WeightStages {
    rows: u16,
    qkv: u16,
}

impl Builder<'_, '_> {
    #[cfg_attr(feature = "compact", inline(never))]
    const fn op(&mut self, (kind, index, tiles): NewOp) {
        self.program.op(&mut self.to, kind, index, tiles);
    }

    /// Emits a stage over the operations since `first_op` and gives its number.
    #[cfg_attr(feature = "compact", inline(never))]
    const fn stage(&mut self, shape: Shape, tiles: usize, needs: Needs, first_op: usize) -> u16 {
        let tiles = if tiles > u32::MAX as usize { u32::MAX } else { tiles as u32 };
        let (first_op, ops) = (first_op as u32, (self.program.ops - first_op) as u32);
        // Whoever runs the list in its order waits for nothing.
        let needs = if WORKERS { needs } else { Needs::NOTHING };
        let stage = Stage { first_op, ops, tiles, shape, needs };
        // `Plan::new` refuses a plan of more stages than there are numbers.
        let number = self.program.stages as u16;
        self.program.stage(&mut self.to, self.section, stage);
        number
    }

    /// The number of the next stage.
    const fn next_stage(&self) -> u16 {
        self.program.stages as u16
    }

    const fn list(&mut self, needs: Needs, ops: &Few) -> u16 {
        let first_op = self.program.ops;
        let (mut tiles, mut i) = (0_usize, 0);
        while i < ops.len {
            tiles = tiles.saturating_add(ops.ops[i].2);
            self.op(ops.ops[i]);
            i += 1;
        }
        self.stage(Shape::List, tiles, needs, first_op)
    }

    /// A chain of operations over the row blocks of some rows, from `start` to `end`.
    const fn rows(
        &mut self,
        (start, end): (usize, usize),
        level: usize,
        needs: Needs,
        chain: &Few,
    ) -> u16 {
        let block = self.plan.grain.row_block;
        let tiles = (end - start).div_ceil(block);
        let first_block = (start / block) as u32;
        let level = if WORKERS { level as u32 } else { 0 };
        let shape = Shape::Rows { first_block, level };
        let first_op = self.program.ops;
        let mut i = 0;
        while i < chain.len {
            let (kind, index, _) = chain.ops[i];
            self.op((kind, index, tiles));
            i += 1;
        }
        self.stage(shape, tiles, needs, first_op)
    }

    const fn pack(&mut self, train: bool) {
        self.section = Section::Pack;
        let plan = self.plan;
        if !matches!(plan.grain.packing, Packing::Once) {
            return;
        }
        let mut layer = 0;
        while layer < plan.config.n_layer {
            let (mut ops, mut i) = (Few::NONE, 0);
            while i < Matrix::OF_BLOCK.len() {
                Self::pack_ops(&mut ops, plan, Matrix::OF_BLOCK[i], layer, train);
                i += 1;
            }
            self.list(Needs::NOTHING, &ops);
            layer += 1;
        }
        let mut ops = Few::NONE;
        Self::pack_ops(&mut ops, plan, Matrix::Head, 0, train);
        self.list(Needs::NOTHING, &ops);
    }

    const fn pack_ops(ops: &mut Few, plan: &Plan, m: Matrix, layer: usize, train: bool) {
        let (inputs, outputs) = m.shape(plan);
        ops.push((Kind::Pack(m), layer, column_tiles(outputs)));
        if train {
            ops.push((Kind::PackTransposed(m), layer, column_tiles(inputs)));
        }
    }

    /// The stage that packs a layer's weights; that of the output projection is the last.
    const fn packed(&self, layer: usize) -> u16 {
        if matches!(self.plan.grain.packing, Packing::Once) { layer as u16 } else { NONE }
    }

    const fn forward(&mut self) {
        self.section = Section::Forward;
        let layers = self.plan.config.n_layer;
        let all = (0, self.plan.tokens());
        let parts = self.plan.grain.forward_parts();
        let mut layer = 0;
        while layer <= layers {
            let mut chain = Few::NONE;
            if layer == 0 {
                chain.then(Kind::Embed, 0);
            } else {
                chain.then(Kind::AttnOut, layer - 1);
                chain.then(Kind::Norm(Norm::Second), layer - 1);
                chain.then(Kind::Fc, layer - 1);
                chain.then(Kind::MlpOut, layer - 1);
            }
            if layer < layers {
                chain.then(Kind::Norm(Norm::First), layer);
                chain.then(Kind::Qkv, layer);
            }
            // The last stage uses the weights of the block before it, which are packed.
            let packed = if layer < layers { self.packed(layer) } else { NONE };
            let spans = (layer * parts) as u32;
            let needs = Needs { level: layer as u32, spans, stages: [packed, NONE, NONE] };
            self.rows(all, layer + 1, needs, &chain);
            if layer < layers {
                self.attention(Kind::Attention, layer, layer + 1, parts, Reads::UpToSpan);
            }
            layer += 1;
        }
    }

    const fn attention(
        &mut self,
        kind: Kind,
        layer: usize,
        level: usize,
        parts: usize,
        reads: Reads,
    ) -> u16 {
        let tiles = self.plan.cut().spans() * parts;
        let shape = Shape::Attention { parts: parts as u32, reads };
        let needs = Needs { level: level as u32, ..Needs::NOTHING };
        let first_op = self.program.ops;
        self.op((kind, layer, tiles));
        self.stage(shape, tiles, needs, first_op)
    }

    const fn groups(&self) -> usize {
        self.plan.tokens().div_ceil(head_rows(self.plan.tokens(), self.plan.config.vocab_size))
    }

    const fn loss(&mut self) {
        self.section = Section::Loss;
        let layers = self.plan.config.n_layer;
        let (first, buffers) = (self.next_stage(), self.plan.layout.logits_buffers);
        let mut group = 0;
        while group < self.groups() {
            // The group before that has its logits in the same place.
            let before = match group.checked_sub(buffers) {
                Some(before) => first.wrapping_add(before as u16),
                None => NONE,
            };
            let stages = [self.packed(layers), before, NONE];
            let needs = Needs { level: layers as u32 + 1, spans: 0, stages };
            let mut chain = Few::NONE;
            chain.then(Kind::Norm(Norm::Final), 0);
            chain.then(Kind::HeadLoss, group);
            self.rows(group_rows(self.plan, group), layers + 2, needs, &chain);
            group += 1;
        }
        let needs = Needs { level: layers as u32 + 2, ..Needs::NOTHING };
        self.list(needs, &Few::one((Kind::LossSum, 0, 1)));
    }

    const fn backward(&mut self) {
        self.section = Section::Backward;
        let layers = self.plan.config.n_layer;
        let adapted = self.plan.adapters().is_some();
        let last_head = self.heads();
        let parts = (self.plan.grain.forward_parts(), self.plan.grain.backward_parts());
        // Of the gradients emitted those that read the buffers to be written next.
        let overwritten = self.plan.grain.gradient_sets - 1;
        let norm1_in_place = self.plan.layout.norm1_in_place();
        // The latest first.
        let mut done = [WeightStages { rows: NONE, qkv: NONE }; 2];
        let mut layer = layers;
        while layer > 0 {
            layer -= 1;
            let level = layers + 2 + (layers - 1 - layer);
            if layer + 1 < layers {
                self.block_rows(Some(layer), level, parts, done[overwritten]);
                if norm1_in_place {
                    done[0].qkv = self.qkv_weights(layer + 1, Self::at_level(level));
                }
            }
            let heads = self.attention(Kind::AttentionBack, layer, level, parts.1, Reads::Sequence);
            let rows = self.weights(layer);
            let qkv = if norm1_in_place { NONE } else { self.qkv_weights(layer, after(heads)) };
            done = [WeightStages { rows, qkv }, done[0]];
        }
        // Below the first block's adapters is nothing to train.
        if !adapted || norm1_in_place && self.plan.is_adapted(Matrix::Qkv) {
            self.block_rows(None, 2 * layers + 2, parts, done[overwritten]);
        }
        if norm1_in_place {
            self.qkv_weights(0, Self::at_level(2 * layers + 2));
        }
        if adapted {
            self.list(Self::at_level(layers + 2), &Few::one((Kind::LossSum, 0, 1)));
            return;
        }
        let c = &self.plan.config;
        let needs =
            Needs { level: 2 * layers as u32 + 2, spans: 0, stages: [last_head, NONE, NONE] };
        let mut ops = Few::one((Kind::TokenTableGrad, 0, c.vocab_size.div_ceil(TABLE_ROWS)));
        if c.arch.has_table() {
            ops.push((Kind::PositionTableGrad, 0, c.block_size.div_ceil(TABLE_ROWS)));
        }
        if c.arch.previous() > 0 {
            ops.push((Kind::PreviousGrad, 0, c.arch.previous() * column_tiles(c.d_model)));
        }
        ops.push((Kind::NormGrad(Norm::First), 0, column_tiles(c.d_model)));
        ops.push((Kind::LossSum, 0, 1));
        self.list(needs, &ops);
    }

    /// Output projection and loss by groups of rows, the rows going on into the last block.
    /// Gives the last stage of the projection's gradient.
    const fn heads(&mut self) -> u16 {
        let layers = self.plan.config.n_layer;
        let (first, buffers) = (self.next_stage(), self.plan.layout.logits_buffers);
        let adapted = self.plan.adapters().is_some();
        let (mut last, mut group) = (NONE, 0);
        while group < self.groups() {
            // Stages alternate: rows of a group, gradient of the weights from it; that is not made where
            // adapters are trained.
            let overwrites = match group.checked_sub(buffers) {
                Some(group) => {
                    let stage = if adapted { group } else { 2 * group + 1 };
                    first.wrapping_add(stage as u16)
                }
                None => NONE,
            };
            let stages = [self.packed(layers), overwrites, NONE];
            let needs = Needs { level: layers as u32 + 1, spans: 0, stages };
            let mut chain = Few::NONE;
            chain.then(Kind::Norm(Norm::Final), 0);
            chain.then(Kind::HeadLossGrad, group);
            chain.then(Kind::NormBack(Norm::Final), 0);
            self.half_block(layers - 1, &mut chain);
            let rows = self.rows(group_rows(self.plan, group), layers + 2, needs, &chain);
            if !adapted {
                // Groups are added up in their order.
                let needs = Needs { stages: [rows, last, NONE], ..Needs::NOTHING };
                let tiles = weight_tiles(self.plan, Matrix::Head);
                last = self.list(needs, &Few::one((Kind::HeadWeightGrad, group, tiles)));
            }
            group += 1;
        }
        last
    }

    /// From a block's output to the output of its attention.
    const fn half_block(&self, layer: usize, chain: &mut Few) {
        let masked = self.plan.config.dropout > 0.0;
        if matches!(self.plan.mode, Mode::Recompute) && self.plan.layout.is_remade(layer) {
            chain.then(Kind::Remake, layer);
        }
        if masked {
            chain.then(Kind::MaskMlp, layer);
        }
        chain.then(Kind::MlpInput, layer);
        chain.then(Kind::FcInput, layer);
        chain.then(Kind::NormBack(Norm::Second), layer);
        if masked {
            chain.then(Kind::MaskAttn, layer);
        }
        chain.then(Kind::AttnInput, layer);
    }

    /// From the attention of the block above through the half block of `layer`, or to the
    /// embedding.
    const fn block_rows(
        &mut self,
        layer: Option<usize>,
        level: usize,
        parts: (usize, usize),
        overwrites: WeightStages,
    ) {
        let layers = self.plan.config.n_layer;
        let above = match layer {
            Some(layer) => layer + 1,
            None => 0,
        };
        let mut chain = Few::NONE;
        chain.then(Kind::QkvInput, above);
        chain.then(Kind::NormBack(Norm::First), above);
        match layer {
            Some(layer) => self.half_block(layer, &mut chain),
            None => {
                let c = &self.plan.config;
                if c.dropout > 0.0 || c.arch.scale().is_some() {
                    chain.then(Kind::EmbedBack, 0);
                }
            }
        }
        let spans = layers * parts.0 + (layers - above) * parts.1;
        // Gradients of queries, keys and values in a layer's own buffer are overwritten by
        // nobody.
        let (_, in_sets) = self.plan.layout.dqkv(0);
        let reads_set = in_sets || matches!(self.plan.mode, Mode::Recompute);
        let adapter_back = self.adapter_back;
        let stages = [overwrites.rows, if reads_set { overwrites.qkv } else { NONE }, adapter_back];
        let needs = Needs { level: level as u32 - 1, spans: spans as u32, stages };
        self.rows((0, self.plan.tokens()), level, needs, &chain);
    }

    /// For a list: all rows have gone through so many row stages.
    const fn at_level(level: usize) -> Needs {
        Needs { level: level as u32, ..Needs::NOTHING }
    }

    /// Gradients of a block's parameters but those of queries, keys and values, and of the
    /// norm above it, whose sums lie in the same set of buffers.
    const fn weights(&mut self, layer: usize) -> u16 {
        let (plan, c) = (self.plan, &self.plan.config);
        let level = c.n_layer + 2 + (c.n_layer - 1 - layer);
        let adapted = plan.adapters().is_some();
        let matrices = [Matrix::MlpOut, Matrix::Fc, Matrix::AttnOut];
        let (mut ops, mut i) = (Few::NONE, 0);
        while i < matrices.len() {
            if !adapted {
                ops.push(weight_grad(plan, matrices[i], layer));
            } else if plan.is_adapted(matrices[i]) {
                ops.push(adapter_grad(plan, matrices[i], layer));
            }
            i += 1;
        }
        if !adapted {
            let columns = column_tiles(c.d_model);
            ops.push((Kind::NormGrad(Norm::Second), layer, columns));
            ops.push(if layer + 1 == c.n_layer {
                (Kind::NormGrad(Norm::Final), 0, columns)
            } else {
                (Kind::NormGrad(Norm::First), layer + 1, columns)
            });
        }
        if ops.len == 0 { NONE } else { self.list(Self::at_level(level), &ops) }
    }

    /// Gradients of a block's weights of queries, keys and values, and of the norms of heads.
    const fn qkv_weights(&mut self, layer: usize, needs: Needs) -> u16 {
        let plan = self.plan;
        if plan.adapters().is_some() {
            if !plan.is_adapted(Matrix::Qkv) {
                return NONE;
            }
            let mut needs = needs;
            if !plan.layout.norm1_in_place() {
                let blocks = plan.tokens().div_ceil(plan.grain.row_block);
                let back = Few::one((Kind::AdapterBack, layer, blocks));
                self.adapter_back = self.list(needs, &back);
                needs = after(self.adapter_back);
            }
            return self.list(needs, &Few::one(adapter_grad(plan, Matrix::Qkv, layer)));
        }
        let mut ops = Few::one(weight_grad(plan, Matrix::Qkv, layer));
        if plan.config.arch.norms_heads() {
            ops.push((Kind::HeadNormGrad, layer, 1));
        }
        self.list(needs, &ops)
    }
}

/// Which operation of a list tile `tile` belongs to, and which tile of that it is.
pub(crate) fn op_of(ops: &[Op], tile: u32) -> Option<(Op, u32)> {
    let mut left = tile;
    for &op in ops {
        if left < op.tiles {
            return Some((op, left));
        }
        left -= op.tiles;
    }
    None
}

/// When a stage is done.
const fn after(stage: u16) -> Needs {
    Needs { stages: [stage, NONE, NONE], ..Needs::NOTHING }
}

const fn weight_grad(plan: &Plan, matrix: Matrix, layer: usize) -> NewOp {
    (Kind::WeightGrad(matrix), layer, weight_tiles(plan, matrix))
}

/// Tiles of A, of its rows, then of B, of its columns.
const fn adapter_grad(plan: &Plan, matrix: Matrix, layer: usize) -> NewOp {
    let (inputs, outputs) = matrix.shape(plan);
    let tiles = inputs.div_ceil(ADAPTER_BLOCK) + outputs.div_ceil(ADAPTER_BLOCK);
    (Kind::AdapterGrad(matrix), layer, tiles)
}

const fn column_tiles(columns: usize) -> usize {
    columns.div_ceil(COLUMN_BLOCK)
}

/// Rows and columns of a weight's gradient as it is stored: the output projection
/// is stored `outputs x inputs`.
pub(crate) const fn stored_shape(plan: &Plan, matrix: Matrix) -> (usize, usize) {
    let (inputs, outputs) = matrix.shape(plan);
    if matches!(matrix, Matrix::Head) { (outputs, inputs) } else { (inputs, outputs) }
}

const fn weight_tiles(plan: &Plan, matrix: Matrix) -> usize {
    let (rows, cols) = stored_shape(plan, matrix);
    rows.div_ceil(plan.grain.weight_rows) * cols.div_ceil(plan.grain.weight_cols)
}
