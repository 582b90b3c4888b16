//! Losses of one model in the caller's memory, without training.

use super::{Machine, Pools};
use crate::batch::{Batch, Loss, StepError};
use crate::config::ModelConfig;
use crate::engine::{Engine, Idle};
use crate::line::floats_mut;
use crate::params::ParamTable;
use crate::plan::{Plan, PlanError};
use cllm_kernels::Kernels;

/// A model that only measures losses: one block's activations, no gradients.
///
/// ```
/// use cllm_core::*;
/// # let config = ModelConfig { vocab_size: 50, block_size: 4, n_layer: 1, n_head: 2, d_model: 16,
/// #     d_ff: 64, bias: true, tied: true, dropout: 0.0, norm_eps: 1e-5, arch: Architecture::GPT2 };
/// let (kernels, batch) = (Kernels::detect(), BatchShape { sequences: 2, tokens: 4 });
/// let plan = Plan::new(&config, batch, 1, Mode::Evaluate, kernels)?;
/// let lines = |pool| vec![Line::ZERO; plan.lines(pool)];
/// let pools = Pools {
///     parameters: &mut lines(Pool::Parameters),
///     // Nothing is trained.
///     gradients: &mut [],
///     moments: &mut [],
///     packed: &mut lines(Pool::Packed),
///     activations: &mut lines(Pool::Activations),
///     scratch: &mut lines(Pool::Scratch),
/// };
/// let queue = Queue {
///     ops: &mut vec![Op::EMPTY; plan.ops()],
///     slots: &mut (0..plan.slots()).map(|_| Slot::new()).collect::<Vec<_>>(),
///     words: &mut (0..plan.words()).map(|_| 0.into()).collect::<Vec<_>>(),
/// };
/// let engine = Engine::new(&plan, queue)?;
/// let mut evaluator = Evaluator::new(&plan, kernels, pools, &engine)?;
/// // Weights would be written to `evaluator.parameters_mut()`; with zeros every token is as likely.
/// let loss = evaluator.evaluate(&Batch::new(&[1, 2, 3, 4, 5, 6, 7, 8], &[2, 3, 4, 5, 6, 7, 8, 9]))?;
/// assert!((loss.mean() - 50_f64.ln()).abs() < 1e-5);
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Evaluator<'a> {
    pub(super) machine: Machine<'a>,
}

impl<'a> Evaluator<'a> {
    /// Takes the pools of a plan for evaluation (or training, if its matrices are not kept as panels:
    /// [`crate::Packing::Kept`]); all weights are zero.
    ///
    /// # Errors
    /// The plan is for other kernels, the engine is for another plan, or a pool is too small.
    pub fn new(
        plan: &Plan,
        kernels: &'static Kernels,
        pools: Pools<'a>,
        engine: &'a Engine<'a>,
    ) -> Result<Self, PlanError> {
        Ok(Self { machine: Machine::new(plan, kernels, pools, None, engine)? })
    }

    /// As [`Trainer::wait_with`](crate::Trainer::wait_with).
    #[must_use]
    pub fn wait_with(mut self, idle: &'a (dyn Idle + Sync)) -> Self {
        self.machine.idle = idle;
        self
    }

    /// The model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.machine.plan.config
    }

    /// The table of parameters.
    #[must_use]
    pub fn table(&self) -> &ParamTable {
        &self.machine.plan.table
    }

    /// The parameter arena, to write weights to.
    pub fn parameters_mut(&mut self) -> &mut [f32] {
        self.machine.packed_is_current = false;
        floats_mut(self.machine.parameters)
    }

    /// Loss of a batch of the planned shape, finite or not.
    ///
    /// # Errors
    /// The batch does not fit.
    pub fn evaluate(&mut self, batch: &Batch<'_>) -> Result<Loss, StepError> {
        self.machine.evaluate(batch)
    }
}
