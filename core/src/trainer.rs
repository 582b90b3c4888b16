//! Training and evaluation of one model in the caller's memory.
//!
//! ```text
//! accumulate(batch) ... accumulate(batch)     gradients of a step's micro-batches
//! update(rule)                                clip, optimizer, next step
//! ```
//! Each of them can also be begun, and then run a few tiles at a time ([`Slices`]).
//!
//! Nothing here allocates. A failed call leaves the weights as they were, but for
//! [`Trainer::restore`] and [`Trainer::load`].

mod evaluator;
mod load;
mod origin;
mod part;
mod ripe;
mod slices;

pub use evaluator::Evaluator;
pub use origin::{Origin, Tensor};
pub use part::Part;
pub use ripe::Ripening;
pub use slices::Slices;

use crate::batch::{Batch, Loss, StepError, misplaced};
use crate::built::{DOCUMENTS, DROPOUT, LeftOut};
use crate::engine::{Engine, EngineError, Idle, Spin};
use crate::init;
use crate::line::{Line, floats, floats_mut};
use crate::moments::{Moments, MomentsMut};
use crate::optimizer::{ByTensor, Optimizer, OptimizerError, Rule, UpdateReport};
use crate::plan::{Packing, Plan, PlanError, Pool};
use crate::program::Run;
use crate::shared::Shared;
use crate::step::{DropoutKey, Outcome, Step};
use cllm_kernels::{IGNORE, Kernels};
use core::fmt;
use load::Panels;

/// The memory that a [`Trainer`] or an [`Evaluator`] works in: see [`Plan::bytes`].
///
/// A pool may be larger than planned. Contents need not be initialised: all of what
/// is used is written first, and until the end of the borrow by nobody else. Evaluation needs no gradients and no moments.
#[derive(Debug)]
pub struct Pools<'a> {
    /// [`Pool::Parameters`].
    pub parameters: &'a mut [Line],
    /// [`Pool::Gradients`].
    pub gradients: &'a mut [Line],
    /// [`Pool::Moments`].
    pub moments: &'a mut [Line],
    /// [`Pool::Packed`].
    pub packed: &'a mut [Line],
    /// [`Pool::Activations`].
    pub activations: &'a mut [Line],
    /// [`Pool::Scratch`].
    pub scratch: &'a mut [Line],
}

/// What training and evaluation have in common: runs of an engine over pools.
struct Machine<'a> {
    plan: Plan,
    kernels: &'static Kernels,
    engine: &'a Engine<'a>,
    /// How the calling thread waits for the workers.
    idle: &'a (dyn Idle + Sync),
    outcome: Outcome,
    parameters: &'a mut [Line],
    gradients: &'a mut [Line],
    moments: &'a mut [Line],
    packed: Panels<'a>,
    activations: &'a mut [Line],
    scratch: &'a mut [Line],
    /// The packed weights are those of `parameters`, or have been loaded.
    packed_is_current: bool,
    /// The token table, if it is not among the parameters.
    token_table: Option<&'a [u8]>,
}

impl fmt::Debug for Machine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// What a section of a step needs beyond the pools.
#[derive(Default)]
struct Inputs<'b> {
    tokens: &'b [u32],
    targets: &'b [u32],
    starts: Option<&'b [u32]>,
    accumulate: bool,
    loss_scale: f32,
    dropout: Option<DropoutKey>,
    adapter_dropout: Option<DropoutKey>,
    rule: Option<Rule>,
    by_tensor: ByTensor,
    grad_clip: Option<f32>,
    /// The update is left out if the gradient's norm is above.
    most: f64,
}

impl<'b> Inputs<'b> {
    /// A batch of which losses are asked.
    fn of(batch: &Batch<'b>) -> Self {
        let Batch { tokens, targets, starts } = *batch;
        Self { tokens, targets, starts, ..Self::default() }
    }
}

/// What came of a run that has ended.
impl Outcome {
    fn loss_of(&self, counted: usize) -> Loss {
        Loss { sum: self.loss(), counted }
    }

    fn finite_loss(&self, counted: usize) -> Result<Loss, StepError> {
        let loss = self.loss_of(counted);
        if loss.sum.is_finite() { Ok(loss) } else { Err(StepError::NonFiniteLoss(loss.sum)) }
    }

    fn finite_update(&self) -> Result<UpdateReport, StepError> {
        let report = self.update();
        let norm = report.grad_norm;
        if norm.is_finite() { Ok(report) } else { Err(StepError::NonFiniteGradient(norm)) }
    }
}

impl<'a> Machine<'a> {
    fn new(
        plan: &Plan,
        kernels: &'static Kernels,
        pools: Pools<'a>,
        panels: Option<&'a [Line]>,
        engine: &'a Engine<'a>,
    ) -> Result<Self, PlanError> {
        /// The planned part of a pool.
        fn take<'p>(
            plan: &Plan,
            pool: Pool,
            lines: &'p mut [Line],
        ) -> Result<&'p mut [Line], PlanError> {
            plan.check(pool, size_of_val(lines))?;
            Ok(&mut lines[..plan.lines(pool)])
        }
        plan.check_kernels(kernels)?;
        if !engine.is_for(plan) {
            return Err(PlanError::WrongEngine);
        }
        let parameters = take(plan, Pool::Parameters, pools.parameters)?;
        let gradients = take(plan, Pool::Gradients, pools.gradients)?;
        let moments = take(plan, Pool::Moments, pools.moments)?;
        let packed = match panels {
            Some(panels) => Panels::lent(plan, panels)?,
            None => Panels::Own(take(plan, Pool::Packed, pools.packed)?),
        };
        let activations = take(plan, Pool::Activations, pools.activations)?;
        let scratch = take(plan, Pool::Scratch, pools.scratch)?;
        // The gaps between tensors must be zero; everything else is written before it is read.
        for pool in [&mut *parameters, &mut *gradients, &mut *moments] {
            pool.fill(Line::ZERO);
        }
        plan.fill_angles(floats_mut(activations));
        Ok(Self {
            plan: *plan,
            kernels,
            engine,
            idle: &Spin,
            outcome: Outcome::new(),
            parameters,
            gradients,
            moments,
            packed,
            activations,
            scratch,
            packed_is_current: panels.is_some(),
            token_table: None,
        })
    }

    /// What the tiles of a run do.
    fn step<'s>(&'s mut self, inputs: &'s Inputs<'_>) -> Step<'s> {
        Step {
            plan: &self.plan,
            kernels: self.kernels,
            params: Shared::new(self.parameters),
            grads: Shared::new(self.gradients),
            moments: Shared::new(self.moments),
            packed: self.packed.shared(),
            act: Shared::new(self.activations),
            scratch: Shared::new(self.scratch),
            tokens: inputs.tokens,
            targets: inputs.targets,
            starts: inputs.starts,
            token_table: self.token_table,
            accumulate: inputs.accumulate,
            loss_scale: inputs.loss_scale,
            dropout: inputs.dropout,
            adapter_dropout: inputs.adapter_dropout,
            rule: inputs.rule.unwrap_or(Rule::NONE),
            by_tensor: inputs.by_tensor,
            grad_clip: inputs.grad_clip,
            most: inputs.most,
            outcome: &self.outcome,
        }
    }

    /// Has the workers go through a run.
    fn run(&mut self, run: Run, inputs: &Inputs<'_>) -> Result<(), EngineError> {
        let (engine, idle) = (self.engine, self.idle);
        engine.run(&self.step(inputs), run.sections(), idle)
    }

    /// Weights among the parameters may change: those that are packed are no longer theirs. Matrices
    /// that are kept as panels are not among them.
    fn weights_change(&mut self) {
        self.packed_is_current &= self.plan.packing() == Packing::Kept;
    }

    /// Whether a run on packed weights is to pack them, for they have changed since.
    fn packs(&self) -> Result<bool, StepError> {
        let is_loaded = self.packed_is_current && self.token_table.is_some();
        if self.plan.packing() == Packing::Kept && !is_loaded {
            return Err(StepError::NotLoaded);
        }
        Ok(!self.packed_is_current)
    }

    /// As [`Machine::run`], on packed weights.
    fn run_packed(&mut self, run: fn(bool) -> Run, inputs: &Inputs<'_>) -> Result<(), StepError> {
        self.run(run(self.packs()?), inputs)?;
        self.packed_is_current = true;
        Ok(())
    }

    fn check(&self, batch: &Batch<'_>) -> Result<usize, StepError> {
        let need = self.plan.tokens();
        let (tokens, targets) = (batch.tokens.len(), batch.targets.len());
        if tokens != need || targets != need {
            return Err(StepError::BatchSize { need, tokens, targets });
        }
        let vocab_size = self.plan.config.vocab_size;
        for (ids, may_ignore) in [(batch.tokens, false), (batch.targets, true)] {
            let unknown = |id: u32| id as usize >= vocab_size && !(may_ignore && id == IGNORE);
            if let Some(position) = ids.iter().position(|id| unknown(*id)) {
                return Err(StepError::UnknownToken { position, id: ids[position], vocab_size });
            }
        }
        let tokens = self.plan.batch.tokens;
        if !DOCUMENTS && batch.starts.is_some() {
            let missing = LeftOut { part: "documents in a row", feature: "documents" };
            return Err(StepError::LeftOut(missing));
        }
        if let Some(position) = batch.starts.and_then(|starts| misplaced(starts, need, tokens)) {
            return Err(StepError::Documents { position });
        }
        Ok(batch.counted())
    }

    fn evaluate(&mut self, batch: &Batch<'_>) -> Result<Loss, StepError> {
        let counted = self.check(batch)?;
        self.run_packed(|pack| Run::Losses { pack }, &Inputs::of(batch))?;
        Ok(self.outcome.loss_of(counted))
    }
}

/// A model being trained.
#[derive(Debug)]
pub struct Trainer<'a> {
    machine: Machine<'a>,
    seed: u64,
    updates: u64,
    micro: u32,
    /// An update has begun and not ended.
    half_updated: bool,
    /// Of what adapters read.
    adapter_dropout: f32,
}

impl<'a> Trainer<'a> {
    /// Takes the pools; all weights and moments are zero. `seed` decides the initial
    /// weights and the dropout masks. The workers of `engine` do the work, and this
    /// thread does while there are none.
    ///
    /// # Errors
    /// The plan is for evaluation or for other kernels, the engine is for another plan, or a
    /// pool is too small.
    pub fn new(
        plan: &Plan,
        kernels: &'static Kernels,
        pools: Pools<'a>,
        engine: &'a Engine<'a>,
        seed: u64,
    ) -> Result<Self, PlanError> {
        Self::over(plan, kernels, pools, None, engine, seed)
    }

    /// With panels that are only read, or [`Pools::packed`].
    fn over(
        plan: &Plan,
        kernels: &'static Kernels,
        pools: Pools<'a>,
        panels: Option<&'a [Line]>,
        engine: &'a Engine<'a>,
        seed: u64,
    ) -> Result<Self, PlanError> {
        if !plan.mode.trains() {
            return Err(PlanError::WrongMode);
        }
        Ok(Self {
            machine: Machine::new(plan, kernels, pools, panels, engine)?,
            seed,
            updates: 0,
            micro: 0,
            half_updated: false,
            adapter_dropout: 0.0,
        })
    }

    /// Has adapters read in training what dropout of this probability leaves, scaled as [`Dropout`] does (Hu
    /// et al., as PEFT has it; parts of one matrix read the same). The model's own dropout is its config's.
    ///
    /// # Panics
    /// If the probability is outside `0.0..1.0`.
    ///
    /// [`Dropout`]: cllm_kernels::Dropout
    #[must_use]
    pub fn drop_adapter_inputs(mut self, probability: f32) -> Self {
        assert!((0.0..1.0).contains(&probability), "dropout must be in 0.0..1.0");
        self.adapter_dropout = probability;
        self
    }

    /// How the thread that calls waits for the workers: [`Spin`] unless told. It must know
    /// how to wake them: with workers that park, hand over an [`Idle`] of their kind.
    ///
    /// If there are no workers, the calling thread runs the tiles, and a tile that panics
    /// unwinds through the call.
    #[must_use]
    pub fn wait_with(mut self, idle: &'a (dyn Idle + Sync)) -> Self {
        self.machine.idle = idle;
        self
    }

    /// Gives every tensor its seeded starting values and zeroes the moments. Matrices that are kept as
    /// panels have none: [`Trainer::load`] them.
    pub fn initialise(&mut self) {
        self.initialise_adapters();
        self.half_updated = false;
        self.machine.weights_change();
        let Machine { plan, parameters, .. } = &mut self.machine;
        init::initialise(&plan.resident, self.seed, floats_mut(parameters));
    }

    /// Gives the adapters, if the plan has any, their seeded starting values, with which they add
    /// nothing, and zeroes the moments: for a model whose weights come from elsewhere.
    pub fn initialise_adapters(&mut self) {
        self.machine.moments.fill(Line::ZERO);
        if let Some(table) = self.machine.plan.adapters() {
            let at = self.machine.plan.trained_at();
            let arena = &mut floats_mut(self.machine.parameters)[at..];
            init::initialise_adapters(table, self.seed, arena);
            self.half_updated = false;
        }
        self.updates = 0;
        self.micro = 0;
    }

    /// Computes the gradient of one micro-batch and adds it to the step's.
    ///
    /// The loss of the step is the mean over `counted_in_step` targets: those that
    /// count in all its micro-batches together.
    ///
    /// # Errors
    /// The batch does not fit, or the loss is not finite. After an error the step's
    /// gradients are discarded; weights and moments are untouched.
    pub fn accumulate(
        &mut self,
        batch: &Batch<'_>,
        counted_in_step: usize,
    ) -> Result<Loss, StepError> {
        // Started anew unless all goes well: also if a tile of the caller's own unwinds.
        let micro = core::mem::take(&mut self.micro);
        let (inputs, counted) = self.gradients_of(batch, counted_in_step, micro)?;
        self.machine.run_packed(|pack| Run::Gradients { pack }, &inputs)?;
        let loss = self.machine.outcome.finite_loss(counted)?;
        self.micro = micro + 1;
        Ok(loss)
    }

    /// Whether [`Trainer::accumulate`] takes the batch, for callers who would keep what the step has summed if
    /// it does not.
    ///
    /// # Errors
    /// Those of [`Trainer::accumulate`] that it has before it computes anything.
    pub fn check_batch(&self, batch: &Batch<'_>, counted_in_step: usize) -> Result<(), StepError> {
        self.gradients_of(batch, counted_in_step, self.micro)?;
        self.machine.packs().map(|_| ())
    }

    /// What the gradients of micro-batch `micro` are made of, and how many of its targets count.
    fn gradients_of<'b>(
        &self,
        batch: &Batch<'b>,
        counted_in_step: usize,
        micro: u32,
    ) -> Result<(Inputs<'b>, usize), StepError> {
        self.check_updated()?;
        let counted = self.machine.check(batch)?;
        if counted_in_step == 0 {
            return Err(StepError::NothingCounts);
        }
        let key = |probability: f32| {
            (DROPOUT && probability > 0.0).then_some(DropoutKey {
                probability,
                seed: self.seed,
                step: self.updates as u32,
                micro,
            })
        };
        let inputs = Inputs {
            accumulate: micro > 0,
            loss_scale: (1.0 / counted_in_step as f64) as f32,
            dropout: key(self.machine.plan.config.dropout),
            adapter_dropout: key(self.adapter_dropout),
            ..Inputs::of(batch)
        };
        Ok((inputs, counted))
    }

    /// # Errors
    /// An update was not run to its end.
    fn check_updated(&self) -> Result<(), StepError> {
        if self.half_updated { Err(StepError::HalfUpdated) } else { Ok(()) }
    }

    /// Ends a step: clips the gradient by its global norm and applies the optimizer, which is the plan's.
    ///
    /// # Errors
    /// There are no gradients, their norm is not finite, the plan is for another kind of optimizer, or a
    /// setting makes no sense: the
    /// weights are as before and the step's gradients are discarded. After a worker's panic
    /// some weights are updated and others not: restore a checkpoint, or [initialise] anew; until then
    /// every step is [refused](StepError::HalfUpdated).
    ///
    /// [initialise]: Trainer::initialise
    pub fn update(&mut self, optimizer: &Optimizer, lr: f32) -> Result<UpdateReport, StepError> {
        self.update_within(optimizer, lr, f64::MAX)
    }

    /// As [`Trainer::update`], but leaves weights and moments as they are if the gradient's norm is above
    /// `most`, as the report tells. The step counts all the same: [`Trainer::updates`] goes on, and with it
    /// learning rate and dropout masks.
    ///
    /// # Errors
    /// As [`Trainer::update`].
    pub fn update_within(
        &mut self,
        optimizer: &Optimizer,
        lr: f32,
        most: f64,
    ) -> Result<UpdateReport, StepError> {
        let inputs = Inputs { most, ..self.update_of(optimizer, lr)? };
        self.apply(Run::Update, &inputs)
    }

    /// Ends a step without an update: its gradients are discarded, weights and moments stay, and it counts
    /// as in [`Trainer::update_within`]. Also after an error of [`Trainer::accumulate`] or of the update.
    ///
    /// # Errors
    /// An update was not run to its end.
    pub fn skip_update(&mut self) -> Result<(), StepError> {
        self.check_updated()?;
        self.micro = 0;
        self.updates += 1;
        Ok(())
    }

    /// What an update is made of. The step's gradients are used up by it.
    fn update_of(&mut self, optimizer: &Optimizer, lr: f32) -> Result<Inputs<'static>, StepError> {
        self.check_updated()?;
        if self.micro == 0 {
            return Err(StepError::NoGradients);
        }
        self.micro = 0;
        let (plan, update) = (self.machine.plan.optimizer(), optimizer.kind);
        if plan != update {
            return Err(StepError::WrongOptimizer { plan, update });
        }
        optimizer.validate().map_err(StepError::Optimizer)?;
        if !(lr >= 0.0 && lr.is_finite()) {
            return Err(StepError::Optimizer(OptimizerError {
                setting: "learning rate",
                value: lr,
            }));
        }
        // Adapters are not packed.
        self.machine.packed_is_current &= self.machine.plan.adapters().is_some();
        Ok(Inputs {
            rule: Some(optimizer.rule(lr, self.updates + 1)),
            by_tensor: optimizer.by_tensor(),
            grad_clip: optimizer.grad_clip,
            most: f64::MAX,
            ..Inputs::default()
        })
    }

    /// Loss of a batch of the planned shape, without dropout; gradients are untouched. It may be infinite or NaN,
    /// which is not an error here: it says what the weights are worth, and nothing is made of it.
    ///
    /// # Errors
    /// The batch does not fit.
    pub fn evaluate(&mut self, batch: &Batch<'_>) -> Result<Loss, StepError> {
        self.check_updated()?;
        self.machine.evaluate(batch)
    }

    /// The plan in force.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.machine.plan
    }

    /// Updates done.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The seed of weights and dropout.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Has what follows depend on another seed: dropout from the next micro-batch on, and what
    /// [`Trainer::initialise`] gives. With that of a checkpoint that was [restored](Trainer::restore) a run goes
    /// on as it would have.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// The parameter arena: tensors lie where [`Plan::resident`] says, adapters behind them.
    #[must_use]
    pub fn parameters(&self) -> &[f32] {
        floats(self.machine.parameters)
    }

    /// The parameter arena, to write weights to.
    pub fn parameters_mut(&mut self) -> &mut [f32] {
        self.machine.weights_change();
        floats_mut(self.machine.parameters)
    }

    /// The arena of adapters: they lie where their table says. Empty if the plan has none.
    #[must_use]
    pub fn adapters(&self) -> &[f32] {
        match self.machine.plan.adapters() {
            Some(_) => &self.parameters()[self.machine.plan.trained_at()..],
            None => &[],
        }
    }

    /// The gradient arena, of what is trained: of the micro-batches since the last update, unclipped.
    #[must_use]
    pub fn gradients(&self) -> &[f32] {
        floats(self.machine.gradients)
    }

    /// What the optimizer remembers of what is trained.
    #[must_use]
    pub fn moments(&self) -> Moments<'_> {
        self.machine.plan.moments_in(floats(self.machine.moments))
    }

    /// Sets what is trained, moments and the number of updates done: the state of a checkpoint.
    ///
    /// `fill` gets the arena of weights, or of adapters, whose base is [loaded](Trainer::load) apart, and
    /// the moments of the plan's optimizer, all zeroed.
    ///
    /// # Errors
    /// Those of `fill`. What is trained is then what it left: restore or initialise again.
    pub fn restore<E>(
        &mut self,
        updates: u64,
        fill: impl FnOnce(&mut [f32], MomentsMut<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.micro = 0;
        let machine = &mut self.machine;
        machine.packed_is_current &= machine.plan.adapters().is_some();
        machine.moments.fill(Line::ZERO);
        let trained = &mut floats_mut(machine.parameters)[machine.plan.trained_at()..];
        trained.fill(0.0);
        fill(trained, machine.plan.moments_in_mut(floats_mut(machine.moments)))?;
        self.updates = updates;
        self.half_updated = false;
        Ok(())
    }
}
