//! Where numbers stopped being finite, found by going through a step again.
//!
//! A step that fails says only that its loss or its gradient is not finite, which costs nothing. Who wants to
//! know more has the step done once more by [`Trainer::find_origin`], on the calling thread, which looks at
//! what each operation has written before the next one reads it: at rows of a row block behind each operation
//! of its chain, at all of a gradient or of an attention's output behind its last tile. The order is that of
//! the program, so the first operation is the one whose inputs were all finite.
//!
//! Not looked at is what never leaves a worker's scratch (outputs of norms and activations: the product that
//! reads them is named then), what is made again of what has been looked at ([`Mode::Recompute`]), and
//! panels of weights.
//!
//! [`Mode::Recompute`]: crate::Mode::Recompute

use super::{Inputs, Machine, Trainer};
use crate::adapter::AdapterSpec;
use crate::batch::{Batch, StepError};
use crate::engine::{Job, Watched};
use crate::line::floats;
use crate::params::ParamSpec;
use crate::plan::{Buffer, squares_block};
use crate::program::{Kind, Matrix, Norm, Op, Run};
use core::fmt;
use core::ops::Range;

/// A tensor of weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// One of the model's.
    Parameter(ParamSpec),
    /// Of an adapter.
    Adapter(AdapterSpec),
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parameter(spec) => f.write_str(&spec.name()),
            Self::Adapter(AdapterSpec { block, site, .. }) => {
                write!(f, "the adapter of {} of block {block}", site.name())
            }
        }
    }
}

/// What was the first that is NaN or infinite.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// A weight, before the step: the first tensor of the table.
    Weight(Tensor),
    /// What an operation made of inputs that are finite: [`Op::name`] and [`Op::layer`] say which.
    Output(Op),
    /// The sum of the gradient's squares: all gradients are finite, the largest is in this tensor.
    Squares(Tensor),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weight(tensor) => write!(f, "the weight {tensor}"),
            Self::Output(op) => {
                write!(f, "the output of `{}`", op.name())?;
                op.layer().map_or(Ok(()), |layer| write!(f, " in block {layer}"))
            }
            Self::Squares(tensor) => {
                write!(f, "the sum of the gradient's squares, which is largest in {tensor}")
            }
        }
    }
}

fn are_finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}

/// The same of bf16, two in a word.
fn halves_are_finite(words: &[f32]) -> bool {
    let is_finite = |half: u32| half & 0x7f80 != 0x7f80;
    words.iter().all(|word| is_finite(word.to_bits()) && is_finite(word.to_bits() >> 16))
}

/// A machine that goes through a step, to be looked at.
struct Looked<'l, 'a, 'b> {
    machine: &'l mut Machine<'a>,
    inputs: &'l Inputs<'b>,
}

impl Watched for Looked<'_, '_, '_> {
    fn lend(&mut self, run: &mut dyn FnMut(&dyn Job)) {
        run(&self.machine.step(self.inputs));
    }

    fn is_well(&mut self, op: Op, tile: Option<u32>) -> bool {
        let machine = &*self.machine;
        let rows = machine.rows(tile);
        match op.kind {
            Kind::Pack(_) | Kind::PackTransposed(_) | Kind::Remake | Kind::LossSum => true,
            kind => match op.gradients(&machine.plan) {
                Some(mut written) => written.all(|at| are_finite(&floats(machine.gradients)[at])),
                None => machine.rows_are_finite(kind, op.index as usize, &rows),
            },
        }
    }
}

impl Machine<'_> {
    /// Rows of a row block, or all.
    fn rows(&self, block: Option<u32>) -> Range<usize> {
        let all = self.plan.tokens();
        block.map_or(0..all, |block| {
            let first = block as usize * self.plan.grain.row_block;
            first..all.min(first + self.plan.grain.row_block)
        })
    }

    /// Whether what an operation has left in these rows of activations, or of their gradients, is finite.
    fn rows_are_finite(&self, kind: Kind, block: usize, rows: &Range<usize>) -> bool {
        let (layout, c) = (&self.plan.layout, &self.plan.config);
        let d = c.d_model;
        let (buffers, grads) = (layout.block(block), layout.grads(block));
        let row = |at: usize| (Buffer::floats(at, 1), 1);
        let stream = |at: usize| (Buffer::floats(at, d), d);
        let (written, cols) = match kind {
            Kind::Embed => stream(layout.block(0).x),
            Kind::Norm(Norm::First) => row(buffers.norm1.rstd),
            Kind::Norm(Norm::Second) => row(buffers.norm2.rstd),
            Kind::Norm(Norm::Final) => row(layout.final_norm.rstd),
            Kind::Qkv => (Buffer::floats(buffers.qkv, c.qkv_width()), c.qkv_width()),
            Kind::Attention => (Buffer::floats(buffers.att, c.query_width()), c.query_width()),
            Kind::AttnOut => stream(buffers.mid),
            Kind::Fc => (layout.fc(block), c.fc_width()),
            Kind::MlpOut => stream(layout.block_output(block)),
            Kind::HeadLoss => row(layout.losses),
            // The gradient of the final norm's output follows.
            Kind::HeadLossGrad if !self.is_finite(row(layout.losses), rows) => return false,
            Kind::HeadLossGrad => stream(layout.grads(c.n_layer - 1).dnorm),
            Kind::NormBack(Norm::Final) => stream(layout.grads(c.n_layer - 1).dx),
            Kind::NormBack(Norm::Second) => stream(grads.dmid),
            Kind::NormBack(Norm::First) => stream(layout.grads_into(block).dx),
            Kind::MaskMlp => stream(grads.masked_mlp),
            Kind::MaskAttn => stream(grads.masked_att),
            Kind::EmbedBack => stream(layout.grads_into(0).dx),
            Kind::MlpInput => (layout.dfc(block), c.fc_width()),
            Kind::FcInput | Kind::QkvInput => stream(grads.dnorm),
            Kind::AttnInput => (Buffer::floats(grads.datt, c.query_width()), c.query_width()),
            Kind::AttentionBack => {
                (Buffer::floats(layout.dqkv(block).0, c.qkv_width()), c.qkv_width())
            }
            Kind::AdapterBack => {
                let factors =
                    self.plan.adapters().and_then(|table| table.factors(Matrix::Qkv, block));
                let cols = factors.map_or(0, |[a, _]| a.cols);
                (Buffer::floats(layout.between(Matrix::Qkv, block).back, cols), cols)
            }
            // Those that write gradients, or nothing that is looked at.
            _ => return true,
        };
        self.is_finite((written, cols), rows)
    }

    /// Whether the first columns of some rows of activations are finite.
    fn is_finite(&self, (buffer, cols): (Buffer, usize), rows: &Range<usize>) -> bool {
        let Buffer { at, width, halves } = buffer;
        let activations = floats(self.activations);
        rows.clone().all(|row| {
            if !halves {
                return are_finite(&activations[at + row * width..][..cols]);
            }
            // Rows begin on whole lines. Of an odd number of columns the last word has one that is padding.
            let words = &activations[at + row * width / 2..][..cols.div_ceil(2)];
            let last = words.last().filter(|_| cols % 2 == 1).map(|word| word.to_bits() & 0x7f80);
            halves_are_finite(&words[..cols / 2]) && last != Some(0x7f80)
        })
    }

    /// The first weight that is not finite.
    fn unwell_weight(&self) -> Option<Tensor> {
        let arena = floats(self.parameters);
        let mut params = self.plan.resident.iter();
        let param = params.find(|spec| !are_finite(&arena[spec.range()]));
        let adapters = &arena[self.plan.trained_at()..];
        param.map(Tensor::Parameter).or_else(|| {
            let unwell = |spec: &AdapterSpec| !adapter_values(spec, adapters).all(f32::is_finite);
            self.plan.adapters()?.iter().find(unwell).map(Tensor::Adapter)
        })
    }

    /// Where the sum of the gradient's squares overflows, by the tiles in which it is added up.
    fn unwell_squares(&self) -> Option<Tensor> {
        let len = self.plan.trained_len();
        let gradients = &floats(self.gradients)[..len];
        let sums = gradients.chunks(squares_block(len)).map(|tile| self.kernels.sum_squares(tile));
        if sums.map(f64::from).sum::<f64>().is_finite() {
            return None;
        }
        let most = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |a, x| x.abs().max(a));
        let Some(table) = self.plan.adapters() else {
            let of = |spec: &ParamSpec| most(&mut gradients[spec.range()].iter().copied());
            let largest = self.plan.table.iter().max_by(|a, b| of(a).total_cmp(&of(b)));
            return largest.map(Tensor::Parameter);
        };
        let of = |spec: &AdapterSpec| most(&mut adapter_values(spec, gradients));
        table.iter().max_by(|a, b| of(a).total_cmp(&of(b))).map(Tensor::Adapter)
    }

    /// Goes through `run` until something is not finite.
    fn origin(&mut self, run: Run, inputs: &Inputs<'_>) -> Result<Option<Origin>, StepError> {
        if let Some(tensor) = self.unwell_weight() {
            return Ok(Some(Origin::Weight(tensor)));
        }
        let engine = self.engine;
        let found = engine.first_unwell(&mut Looked { machine: self, inputs }, run.sections())?;
        // Weights are packed in front of all that is looked at.
        self.packed_is_current = true;
        Ok(found.map(Origin::Output))
    }
}

/// Both factors of an adapter, which lies in `arena`.
fn adapter_values<'v>(spec: &AdapterSpec, arena: &'v [f32]) -> impl Iterator<Item = f32> + use<'v> {
    let AdapterSpec { inputs, rank, outputs, a, b, .. } = *spec;
    let rows = move |(at, stride): (usize, usize), rows: usize, cols: usize| {
        (0..rows).flat_map(move |row| arena[at + row * stride..][..cols].iter().copied())
    };
    rows(a, inputs, rank).chain(rows(b, rank, outputs))
}

impl Trainer<'_> {
    /// Where numbers stopped being finite in a micro-batch of a step that failed with
    /// [`StepError::NonFiniteLoss`] or [`StepError::NonFiniteGradient`]; `None` if all of it is finite. `micro`
    /// is its number in the step, from 0: a step is asked after in order, from its first micro-batch on, and
    /// they add up their gradients as [`Trainer::accumulate`] does.
    ///
    /// The calling thread does it all, so that it takes as long as a step of one worker and a little more. It
    /// changes nothing but the gradients, which are discarded: weights, moments and updates are as before.
    ///
    /// # Errors
    /// The batch does not fit, or another run is under way.
    pub fn find_origin(
        &mut self,
        batch: &Batch<'_>,
        counted_in_step: usize,
        micro: u32,
    ) -> Result<Option<Origin>, StepError> {
        self.micro = 0;
        let (inputs, _) = self.gradients_of(batch, counted_in_step, micro)?;
        let run = Run::Gradients { pack: self.machine.packs()? };
        let found = self.machine.origin(run, &inputs)?;
        Ok(found.or_else(|| self.machine.unwell_squares().map(Origin::Squares)))
    }

    /// The same of [`Trainer::evaluate`] of a batch whose loss is not finite. Gradients are untouched.
    ///
    /// # Errors
    /// As [`Trainer::find_origin`].
    pub fn find_origin_of_loss(&mut self, batch: &Batch<'_>) -> Result<Option<Origin>, StepError> {
        self.check_updated()?;
        self.machine.check(batch)?;
        let run = Run::Losses { pack: self.machine.packs()? };
        self.machine.origin(run, &Inputs::of(batch))
    }
}
