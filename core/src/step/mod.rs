//! What each tile of a step does: the model's mathematics over shared pools.
//!
//! `forward` and `head` run towards the loss, `backward` and `weights` away from it,
//! `update` changes the weights. Every function here takes a tile and borrows
//! exactly the rows, heads or columns that the tile owns.
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

mod adapter;
mod attention_back;
mod backward;
mod forward;
mod head;
mod head_norm;
mod muon;
mod product;
mod update;
mod weights;

pub(crate) use update::norm_of;

use crate::built::{ADAPTERS, DOCUMENTS, DROPOUT, HALVES, LLAMA, OPTIMIZERS, RECOMPUTE};
use crate::engine::{Activity, Job, Observer, Shape, Taken};
use crate::optimizer::{ByTensor, Rule, UpdateReport};
use crate::params::{Param, ParamSpec};
use crate::plan::{Buffer, Plan};
use crate::primitive::{AtomicU32, AtomicWord, Bits, Ordering, wide};
use crate::program::{self, Kind, Matrix, Norm, Op};
use crate::shared::Shared;
use cllm_kernels::{Dropout, Kernels, Operand, OperandMut};

/// Where dropout masks come from in this micro-batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DropoutKey {
    pub(crate) probability: f32,
    pub(crate) seed: u64,
    pub(crate) step: u32,
    /// Which micro-batch of the step.
    pub(crate) micro: u32,
}

impl DropoutKey {
    /// The mask of a site that has so many rows in a batch, and its row for row `first` of the batch.
    fn mask(self, stream: u32, rows: usize, first: usize) -> Option<(Dropout, u32)> {
        let mask = Dropout::new(self.probability, self.seed, self.step, stream)?;
        // Micro-batches of a step follow one another in the mask's rows.
        let row = self.micro.wrapping_mul(rows as u32).wrapping_add(first as u32);
        Some((mask, row))
    }
}

/// Dropout sites of a block; the embedding is site 0 of the model.
#[derive(Clone, Copy)]
enum Site {
    Attention = 1,
    AttnOut = 2,
    MlpOut = 3,
}

/// An `f64` in as many words as it takes: who reads it does not meet who writes it.
#[derive(Debug)]
struct Number([AtomicWord; 64 / Bits::BITS as usize]);

impl Number {
    fn new(value: f64) -> Self {
        let number = Self(core::array::from_fn(|_| AtomicWord::new(0)));
        number.set(value);
        number
    }

    // Relaxed throughout: the engine orders tiles that wait for one another.

    fn set(&self, value: f64) {
        for (word, at) in self.0.iter().zip((0..).step_by(Bits::BITS as usize)) {
            word.store((value.to_bits() >> at) as Bits, Ordering::Relaxed);
        }
    }

    fn get(&self) -> f64 {
        let words = self.0.iter().zip((0..).step_by(Bits::BITS as usize));
        let part = |(word, at): (&AtomicWord, u32)| wide(word.load(Ordering::Relaxed)) << at;
        f64::from_bits(words.map(part).sum())
    }
}

/// What a run finds out as a whole: written by one tile each, read after the run or by
/// tiles that wait for that one.
#[derive(Debug)]
pub(crate) struct Outcome {
    loss: Number,
    grad_norm: Number,
    scale: AtomicU32,
}

impl Outcome {
    pub(crate) fn new() -> Self {
        let [loss, grad_norm] = [Number::new(f64::NAN), Number::new(f64::NAN)];
        Self { loss, grad_norm, scale: AtomicU32::new(0) }
    }

    fn set_loss(&self, sum: f64) {
        self.loss.set(sum);
    }

    /// Sum of the losses of all targets that count.
    pub(crate) fn loss(&self) -> f64 {
        self.loss.get()
    }

    pub(crate) fn set_update(&self, report: UpdateReport) {
        self.grad_norm.set(report.grad_norm);
        self.scale.store(report.scale.to_bits(), Ordering::Relaxed);
    }

    /// Norm of the gradient, and the clip's factor.
    pub(crate) fn update(&self) -> UpdateReport {
        UpdateReport {
            grad_norm: self.grad_norm.get(),
            scale: f32::from_bits(self.scale.load(Ordering::Relaxed)),
        }
    }
}

/// Everything that the tiles of a step see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) kernels: &'a Kernels,
    pub(crate) params: Shared<'a>,
    pub(crate) grads: Shared<'a>,
    pub(crate) moments: Shared<'a>,
    pub(crate) packed: Shared<'a>,
    pub(crate) act: Shared<'a>,
    /// A piece for each seat.
    pub(crate) scratch: Shared<'a>,
    pub(crate) tokens: &'a [u32],
    pub(crate) targets: &'a [u32],
    /// As [`crate::Batch::starts`].
    pub(crate) starts: Option<&'a [u32]>,
    /// The token table's bytes, if it is not among the parameters.
    pub(crate) token_table: Option<&'a [u8]>,
    /// Add to the gradients that are there.
    pub(crate) accumulate: bool,
    /// Gradient of each counted target's loss.
    pub(crate) loss_scale: f32,
    /// Masks of this micro-batch; none in evaluation.
    pub(crate) dropout: Option<DropoutKey>,
    /// Those of what adapters read.
    pub(crate) adapter_dropout: Option<DropoutKey>,
    /// The update, but for its decay and scale, which are the tensor's and the clip's.
    pub(crate) rule: Rule,
    pub(crate) by_tensor: ByTensor,
    pub(crate) grad_clip: Option<f32>,
    /// There is no update if the gradient's norm is above.
    pub(crate) most: f64,
    pub(crate) outcome: &'a Outcome,
}

/// What a worker has for itself.
#[derive(Debug)]
pub(crate) struct Desk<'a> {
    /// A row block's output of a norm, until the next product of its chain.
    norm: &'a mut [f32],
    /// The same of GELU or SwiGLU; backward the latter's gradient.
    fc: &'a mut [f32],
    /// What an adapter adds to a row block's product.
    addend: &'a mut [f32],
    /// For the kernels.
    scratch: &'a mut [f32],
}

impl<'a> Desk<'a> {
    /// Cuts a worker's piece of scratch.
    fn new(plan: &Plan, piece: &'a mut [f32]) -> Self {
        let (norm, rest) = piece.split_at_mut(plan.layout.held_norm);
        let (fc, rest) = rest.split_at_mut(plan.layout.held_fc);
        let (addend, scratch) = rest.split_at_mut(plan.layout.held_addend);
        Self { norm, fc, addend, scratch }
    }
}

impl Job for Step<'_> {
    unsafe fn run(&self, ops: &[Op], taken: &Taken, seat: usize, observer: &mut dyn Observer) {
        let Taken { id, stage, tile, stolen } = *taken;
        let ops = &ops[stage.first_op as usize..][..stage.ops as usize];
        let len = self.plan.scratch_len();
        // SAFETY: the piece is the seat's own, and nobody else runs a tile for the seat.
        let mut desk = Desk::new(self.plan, unsafe { self.scratch.slice_mut(seat * len, len) });
        let mut run = |op: Op, op_tile: u32| {
            observer.enter(Activity::Tile { stage: id, op, tile, stolen });
            // SAFETY: the engine gives out tiles when what they wait for is done, and the
            // program says what that is; a chain is gone through in order, on one desk.
            unsafe { self.run_tile(op, op_tile as usize, &mut desk) }
        };
        match stage.shape {
            Shape::Rows { first_block, .. } => {
                for &op in ops {
                    run(op, first_block + tile);
                }
            }
            Shape::Attention { .. } | Shape::List => {
                if let Some((op, op_tile)) = program::op_of(ops, tile) {
                    run(op, op_tile);
                }
            }
        }
    }
}

impl Step<'_> {
    /// Runs one tile.
    ///
    /// # Safety
    /// - What the stage of the operation waits for (see [`crate::program`]) is done, and of a
    ///   chain what comes before it on this row block.
    /// - Nobody else runs this tile.
    ///
    /// What an operation left on the desk is still there for the next one of its chain.
    pub(crate) unsafe fn run_tile(&self, op: Op, tile: usize, desk: &mut Desk<'_>) {
        let index = op.index as usize;
        // SAFETY: each tile function asks for what the caller has promised here.
        unsafe {
            match op.kind {
                Kind::Pack(matrix) => self.pack(matrix, index, tile, false),
                Kind::PackTransposed(matrix) => self.pack(matrix, index, tile, true),
                Kind::Embed => self.embed(tile),
                Kind::Norm(norm) => self.norm(norm, index, tile, desk.norm),
                Kind::Qkv => self.qkv(index, tile, desk),
                Kind::Attention => self.attention(index, tile, desk.scratch),
                Kind::AttnOut => self.attn_out(index, tile, desk),
                Kind::Fc => self.fc(index, tile, true, desk),
                Kind::MlpOut => self.mlp_out(index, tile, desk),
                Kind::HeadLoss => self.head_loss(index, tile, false, desk),
                Kind::HeadLossGrad => self.head_loss(index, tile, true, desk),
                Kind::HeadWeightGrad => self.head_weight_grad(index, tile, desk.scratch),
                Kind::Remake if RECOMPUTE => self.remake(index, tile, desk),
                Kind::Remake => {}
                Kind::NormBack(norm) => self.norm_back(norm, index, tile),
                Kind::MaskMlp | Kind::MaskAttn if !DROPOUT => {}
                Kind::MaskMlp => self.mask_mlp(index, tile),
                Kind::MlpInput => self.mlp_input(index, tile, desk),
                Kind::FcInput => self.fc_input(index, tile, desk),
                Kind::MaskAttn => self.mask_attn(index, tile),
                Kind::AttnInput => self.attn_input(index, tile, desk),
                Kind::QkvInput => self.qkv_input(index, tile, desk),
                Kind::EmbedBack if DROPOUT || LLAMA => self.embed_back(tile),
                Kind::EmbedBack => {}
                Kind::AttentionBack => self.attention_back(index, tile, desk.scratch),
                Kind::WeightGrad(matrix) => self.weight_grad(matrix, index, tile, desk.scratch),
                Kind::NormGrad(norm) => self.norm_grad(norm, index, tile),
                Kind::HeadNormGrad if LLAMA => self.head_norm_grad(index),
                Kind::HeadNormGrad => {}
                Kind::AdapterBack | Kind::AdapterGrad(_) if !ADAPTERS => {}
                Kind::AdapterBack => self.adapter_back(index, tile, desk.scratch),
                Kind::AdapterGrad(matrix) => self.adapter_grad(matrix, index, tile, desk.scratch),
                Kind::TokenTableGrad => self.token_table_grad(tile),
                Kind::PositionTableGrad => self.position_table_grad(tile),
                Kind::PreviousGrad if LLAMA => self.previous_grad(tile),
                Kind::PreviousGrad => {}
                Kind::LossSum => self.loss_sum(),
                Kind::Squares => self.squares(tile),
                Kind::Clip => self.clip(),
                Kind::Update => self.update(index, tile),
                Kind::Muon if OPTIMIZERS => self.muon(index, tile, desk.scratch),
                Kind::Muon => {}
            }
        }
    }

    /// First row and number of rows of a row block.
    #[cfg_attr(feature = "compact", inline(never))]
    fn rows(&self, tile: usize) -> (usize, usize) {
        let first = tile * self.plan.grain.row_block;
        (first, self.plan.grain.row_block.min(self.plan.tokens() - first))
    }

    /// First tokens of the documents of all tokens, if there are documents.
    fn starts(&self) -> Option<&[u32]> {
        self.starts.filter(|_| DOCUMENTS)
    }

    fn spec(&self, param: Param) -> Option<ParamSpec> {
        self.plan.resident.spec(param)
    }

    /// A vector of parameters, `None` if the model does not have it.
    ///
    /// # Safety
    /// The update is not running.
    unsafe fn vector(&self, param: Param) -> Option<&[f32]> {
        let spec = self.spec(param)?;
        // SAFETY: parameters are only written by the update.
        Some(unsafe { self.params.slice(spec.offset, spec.len()) })
    }

    /// A matrix's bias.
    ///
    /// # Safety
    /// The update is not running.
    unsafe fn bias(&self, matrix: Matrix, block: usize) -> Option<&[f32]> {
        // SAFETY: passed on from the caller.
        matrix.bias(block).and_then(|param| unsafe { self.vector(param) })
    }

    /// Some rows and columns of a matrix, first and number of each, for products to read.
    ///
    /// # Safety
    /// Nobody writes them while the view lives.
    #[cfg_attr(feature = "compact", inline(never))]
    unsafe fn operand(
        &self,
        buffer: Buffer,
        (row, rows): (usize, usize),
        (col, cols): (usize, usize),
    ) -> Operand<'_> {
        let Buffer { at, width, halves } = buffer;
        let first = row * width + col;
        // SAFETY: passed on from the caller.
        unsafe {
            if HALVES && halves {
                Operand::Half(self.act.halves(at, first, (rows, cols), width))
            } else {
                Operand::Float(self.act.mat(at + first, (rows, cols), width))
            }
        }
    }

    /// Some rows of a matrix that products will read, first and number, of `cols` columns.
    ///
    /// # Safety
    /// Nobody else reads or writes them while the view lives.
    #[cfg_attr(feature = "compact", inline(never))]
    unsafe fn operand_mut(
        &self,
        buffer: Buffer,
        (row, rows): (usize, usize),
        cols: usize,
    ) -> OperandMut<'_> {
        let Buffer { at, width, halves } = buffer;
        let first = row * width;
        // SAFETY: passed on from the caller.
        unsafe {
            if HALVES && halves {
                OperandMut::Half(self.act.halves_mut(at, first, (rows, cols), width))
            } else {
                OperandMut::Float(self.act.mat_mut(at + first, (rows, cols), width))
            }
        }
    }

    /// The mask of a site of a block, and its row for row `first` of the batch.
    fn dropout(&self, block: usize, site: Site, first: usize) -> Option<(Dropout, u32)> {
        let stream = 4 * block as u32 + site as u32;
        let per_batch = match site {
            Site::Attention => self.plan.tokens() * self.plan.config.n_head,
            Site::AttnOut | Site::MlpOut => self.plan.tokens(),
        };
        self.dropout.filter(|_| DROPOUT)?.mask(stream, per_batch, first)
    }

    /// The mask of the embedding.
    fn embed_dropout(&self, first: usize) -> Option<(Dropout, u32)> {
        self.dropout.filter(|_| DROPOUT)?.mask(0, self.plan.tokens(), first)
    }

    /// Whether norms keep the means of their rows.
    fn has_means(&self) -> bool {
        self.plan.config.arch.has_means()
    }

    /// The norm's gain and bias tensors.
    fn norm_params(norm: Norm, block: usize) -> (Param, Param) {
        use crate::params::BlockParam::*;
        match norm {
            Norm::First => (Param::Block(block, Norm1Gain), Param::Block(block, Norm1Bias)),
            Norm::Second => (Param::Block(block, Norm2Gain), Param::Block(block, Norm2Bias)),
            Norm::Final => (Param::FinalGain, Param::FinalBias),
        }
    }
}
