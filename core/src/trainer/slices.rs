//! Steps that their caller runs a few tiles at a time.

use super::{Evaluator, Inputs, Machine, Trainer};
use crate::batch::{Batch, Loss, StepError};
use crate::engine::{Idle, Observer, Sliced, Unobserved};
use crate::optimizer::{Optimizer, UpdateReport};
use crate::program::Run;
use crate::step::Outcome;
use core::fmt;

/// A micro-batch's gradients, an update or an evaluation under way, of which the calling thread runs a few
/// tiles whenever it has the time: for a loop that must be back in time, or an executor that others wait for.
///
/// ```
/// # use cllm_core::*;
/// # fn train(trainer: &mut Trainer<'_>, batch: &Batch<'_>, mut others: impl FnMut()) -> Result<(), StepError> {
/// let mut step = trainer.accumulate_in_slices(batch, batch.counted())?;
/// let loss = loop {
///     // What cannot wait longer than four tiles take.
///     others();
///     if let Some(loss) = step.run_for(4)? {
///         break loss;
///     }
/// };
/// let mut step = trainer.update_in_slices(&Optimizer::default(), 1e-3)?;
/// while step.run_for(4)?.is_none() {
///     others();
/// }
/// # assert!(loss.sum.is_finite());
/// # Ok(())
/// # }
/// ```
/// The bits are those of the step as a whole ([`Trainer::accumulate`], [`Trainer::update`],
/// [`Trainer::evaluate`], [`Evaluator::evaluate`]).
///
/// **How long a call takes.** [`Slices::run_for`] takes the time of its tiles and a microsecond or two, and waits
/// for nothing. To begin a step takes the check of its batch, and a few stores for each of its stages and
/// blocks of rows: of a small model (120,000 weights, 512 tokens, 136 tiles of up to a quarter of a
/// millisecond) three microseconds, and to drop one in its middle one. `cargo bench --bench slices` measures
/// all of it. How long a tile takes is the plan's: [`crate::Blocking`] with small blocks makes more and
/// smaller ones.
///
/// **Alone.** The caller does the whole step by itself. It is refused ([`EngineError::Attended`]) while
/// workers serve the engine; those that come later wait until it is over.
///
/// **Dropped** before its end, the step is taken back as after a panic, and the engine is free:
/// - Gradients: weights, moments and the number of updates are as before. The gradients of the step's earlier
///   micro-batches are gone as well, so that it begins anew with the first of them.
/// - An evaluation: nothing has changed, gradients among it.
/// - An update: the gradients are used up. If `run_for` has not run a tile, the weights are as before. Else
///   some weights and moments may be updated and others not, and every step is refused
///   ([`StepError::HalfUpdated`]) until [`Trainer::restore`] or [`Trainer::initialise`].
///
/// If it is forgotten ([`core::mem::forget`]) and not dropped, its engine is busy for good.
///
/// [`EngineError::Attended`]: crate::EngineError::Attended
#[must_use = "nothing is computed before `run_for`"]
pub struct Slices<'t, 'a, T> {
    machine: &'t mut Machine<'a>,
    inputs: Inputs<'t>,
    /// Until it has ended.
    run: Option<Sliced<'a, dyn Idle + Sync + 'a>>,
    /// How it has ended.
    result: Result<Option<T>, StepError>,
    /// Targets that count.
    counted: usize,
    kept: Kept<'t>,
    report: fn(&Outcome, usize) -> Result<T, StepError>,
}

/// What a trainer knows when a run has ended.
enum Kept<'t> {
    /// Micro-batches whose gradients there are, and how many that will be.
    Gradients { micro: &'t mut u32, then: u32 },
    /// Updates done, and whether one has been left in its middle.
    Update { updates: &'t mut u64, half_updated: &'t mut bool },
    /// Nothing.
    Losses,
}

impl<T> fmt::Debug for Slices<'_, '_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slices").field("tiles_left", &self.tiles_left()).finish_non_exhaustive()
    }
}

impl<T> Slices<'_, '_, T> {
    /// Tiles that are not run yet.
    #[must_use]
    pub fn tiles_left(&self) -> usize {
        self.run.as_ref().map_or(0, Sliced::tiles_left)
    }
}

impl<'t, 'a, T: Copy> Slices<'t, 'a, T> {
    fn begin(
        machine: &'t mut Machine<'a>,
        (run, inputs): (Run, Inputs<'t>),
        counted: usize,
        kept: Kept<'t>,
        report: fn(&Outcome, usize) -> Result<T, StepError>,
    ) -> Result<Self, StepError> {
        let run = Some(Sliced::begin(machine.engine, run.sections(), machine.idle)?);
        Ok(Self { machine, inputs, run, result: Ok(None), counted, kept, report })
    }

    /// Runs at most `tiles` tiles on the calling thread. `None` if the step is not over; then its loss or
    /// report, from any further call too. It neither waits nor allocates.
    ///
    /// # Errors
    /// Those of the whole step: its loss or gradient is not finite, or a tile of an earlier call has
    /// panicked. They are final, and every further call returns them.
    ///
    /// # Panics
    /// If a tile does. The step is then as one that is dropped.
    pub fn run_for(&mut self, tiles: usize) -> Result<Option<T>, StepError> {
        self.run_for_observed(tiles, &mut Unobserved)
    }

    /// As [`Slices::run_for`]; `observer` is told of every tile's operations, and when it is done
    /// ([`crate::Activity::Search`]).
    ///
    /// # Errors
    /// As [`Slices::run_for`].
    pub fn run_for_observed(
        &mut self,
        tiles: usize,
        observer: &mut dyn Observer,
    ) -> Result<Option<T>, StepError> {
        let Some(run) = &mut self.run else { return self.result };
        if let Kept::Update { half_updated, .. } = &mut self.kept {
            **half_updated |= tiles > 0;
        }
        match run.run_for(&self.machine.step(&self.inputs), tiles, observer) {
            Ok(false) => return Ok(None),
            Ok(true) => self.result = self.end().map(Some),
            Err(error) => self.result = Err(error.into()),
        }
        // The engine is free for other runs.
        self.run = None;
        self.result
    }

    /// All tiles are done.
    fn end(&mut self) -> Result<T, StepError> {
        let result = (self.report)(&self.machine.outcome, self.counted);
        match &mut self.kept {
            Kept::Update { updates, half_updated } => {
                **half_updated = false;
                **updates += u64::from(result.is_ok());
            }
            Kept::Gradients { micro, then } => {
                self.machine.packed_is_current = true;
                if result.is_ok() {
                    **micro = *then;
                }
            }
            Kept::Losses => self.machine.packed_is_current = true,
        }
        result
    }
}

impl<'t, 'a> Slices<'t, 'a, Loss> {
    fn losses(machine: &'t mut Machine<'a>, batch: &Batch<'t>) -> Result<Self, StepError> {
        let counted = machine.check(batch)?;
        let run = Run::Losses { pack: machine.packs()? };
        let report = |outcome: &Outcome, counted| Ok(outcome.loss_of(counted));
        Self::begin(machine, (run, Inputs::of(batch)), counted, Kept::Losses, report)
    }
}

impl<'a> Trainer<'a> {
    /// Begins what [`Trainer::accumulate`] does as a whole. No tile is run before [`Slices::run_for`].
    ///
    /// # Errors
    /// The batch does not fit, or workers serve the engine. After an error, also a later one, and if it is
    /// dropped before its end, the step's gradients are discarded.
    pub fn accumulate_in_slices<'t>(
        &'t mut self,
        batch: &Batch<'t>,
        counted_in_step: usize,
    ) -> Result<Slices<'t, 'a, Loss>, StepError> {
        let micro = core::mem::take(&mut self.micro);
        let (inputs, counted) = self.gradients_of(batch, counted_in_step, micro)?;
        let run = Run::Gradients { pack: self.machine.packs()? };
        let kept = Kept::Gradients { micro: &mut self.micro, then: micro + 1 };
        Slices::begin(&mut self.machine, (run, inputs), counted, kept, Outcome::finite_loss)
    }

    /// Begins what [`Trainer::update`] does as a whole. No tile is run before [`Slices::run_for`].
    ///
    /// # Errors
    /// There are no gradients, a setting makes no sense, or workers serve the engine: the weights are as
    /// before and the step's gradients are discarded. If it is dropped before its end some weights
    /// may be updated and others not: see [`Slices`].
    pub fn update_in_slices(
        &mut self,
        optimizer: &Optimizer,
        lr: f32,
    ) -> Result<Slices<'_, 'a, UpdateReport>, StepError> {
        let inputs = self.update_of(optimizer, lr)?;
        let kept =
            Kept::Update { updates: &mut self.updates, half_updated: &mut self.half_updated };
        let report = |outcome: &Outcome, _| outcome.finite_update();
        Slices::begin(&mut self.machine, (Run::Update, inputs), 0, kept, report)
    }

    /// Begins what [`Trainer::evaluate`] does as a whole. No tile is run before [`Slices::run_for`].
    ///
    /// # Errors
    /// The batch does not fit, or workers serve the engine.
    pub fn evaluate_in_slices<'t>(
        &'t mut self,
        batch: &Batch<'t>,
    ) -> Result<Slices<'t, 'a, Loss>, StepError> {
        self.check_updated()?;
        Slices::losses(&mut self.machine, batch)
    }
}

impl<'a> Evaluator<'a> {
    /// Begins what [`Evaluator::evaluate`] does as a whole. No tile is run before [`Slices::run_for`].
    ///
    /// # Errors
    /// The batch does not fit, or workers serve the engine.
    pub fn evaluate_in_slices<'t>(
        &'t mut self,
        batch: &Batch<'t>,
    ) -> Result<Slices<'t, 'a, Loss>, StepError> {
        Slices::losses(&mut self.machine, batch)
    }
}
