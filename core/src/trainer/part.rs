//! Steps that several trainers go through together, each with a part of the batch and a piece of the update.
//!
//! ```text
//! accumulate_part(batch) ...     as often as it has micro-batches; the last one's gradients can be followed
//! gradients_mut()                its owner has the piece hold the sum over all trainers
//! measure()                      sums of squares; the owner fills in those of other pieces
//! update_measured(rule)          clip by the norm of all, and the optimizer on the piece
//! trained_mut()                  the owner fills in the other pieces
//! ```
//! How sums and pieces go from trainer to trainer is not known here. The bits are those of one trainer that
//! does it all if the owner adds gradients up in one order whatever the number of trainers.

use super::ripe::Ripening;
use super::{Inputs, Trainer};
use crate::batch::{Batch, Loss, StepError};
use crate::engine::EngineError;
use crate::line::floats_mut;
use crate::optimizer::{Optimizer, UpdateReport};
use crate::program::Run;
use crate::step::norm_of;

/// Which micro-batch of a step one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number among all of the step, whoever has them: masks of dropout follow from it.
    pub micro: u32,
    /// It adds to the gradients that are there, and else begins them anew.
    pub adds: bool,
}

impl Trainer<'_> {
    /// Computes the gradient of one micro-batch as [`Trainer::accumulate`] does, of a step of which others may have
    /// micro-batches too.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub fn accumulate_part(
        &mut self,
        batch: &Batch<'_>,
        counted_in_step: usize,
        part: Part,
    ) -> Result<Loss, StepError> {
        self.micro = 0;
        let (inputs, counted) = self.gradients_of(batch, counted_in_step, part.micro)?;
        let inputs = Inputs { accumulate: part.adds, ..inputs };
        self.machine.run_packed(|pack| Run::Gradients { pack }, &inputs)?;
        let loss = self.machine.outcome.finite_loss(counted)?;
        self.micro = part.micro + 1;
        Ok(loss)
    }

    /// As [`Trainer::accumulate_part`], of a step's last micro-batch: `follow` sees its gradients while they become
    /// final, from the end of their arena on, and may change those that are. It is called on this thread, as often as
    /// more may be there, while the workers go on; and once more when all are there, also if the loss is not finite.
    /// Where this thread does the work itself, that is the only time.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub fn accumulate_part_followed(
        &mut self,
        batch: &Batch<'_>,
        counted_in_step: usize,
        part: Part,
        follow: &mut dyn FnMut(&mut Ripening<'_>),
    ) -> Result<Loss, StepError> {
        self.micro = 0;
        let (inputs, counted) = self.gradients_of(batch, counted_in_step, part.micro)?;
        let inputs = Inputs { accumulate: part.adds, ..inputs };
        let run = Run::Gradients { pack: self.machine.packs()? };
        let (engine, idle) = (self.machine.engine, self.machine.idle);
        let step = self.machine.step(&inputs);
        let mut ripening = Ripening::new(engine, step.plan, step.grads);
        engine.run_followed(&step, run.sections(), idle, &mut || follow(&mut ripening))?;
        follow(&mut ripening);
        self.machine.packed_is_current = true;
        let loss = self.machine.outcome.finite_loss(counted)?;
        self.micro = part.micro + 1;
        Ok(loss)
    }

    /// The gradient arena, to put sums with others' gradients into.
    pub fn gradients_mut(&mut self) -> &mut [f32] {
        floats_mut(self.machine.gradients)
    }

    /// The arena of what is trained, the weights or adapters, to put what others have updated into.
    pub fn trained_mut(&mut self) -> &mut [f32] {
        let machine = &mut self.machine;
        // Adapters are not packed.
        machine.packed_is_current &= machine.plan.adapters().is_some();
        let (at, len) = (machine.plan.trained_at(), machine.plan.trained_len());
        &mut floats_mut(machine.parameters)[at..at + len]
    }

    /// Sums of the squares of the gradient, one for each [block](crate::Plan::block) of it: those of the plan's
    /// [piece](crate::Plan::piece) are there, the others are to be filled in.
    ///
    /// # Errors
    /// There are no gradients, or a worker panicked.
    pub fn measure(&mut self) -> Result<&mut [f32], StepError> {
        self.check_updated()?;
        if self.micro == 0 {
            return Err(StepError::NoGradients);
        }
        self.machine.run(Run::Measure, &Inputs::default())?;
        Ok(self.squares())
    }

    fn squares(&mut self) -> &mut [f32] {
        let (at, blocks) = (self.machine.plan.layout.squares, self.machine.plan.blocks());
        &mut floats_mut(self.machine.activations)[at..at + blocks]
    }

    /// Ends a step as [`Trainer::update_within`] does, by the norm that the sums of [`Trainer::measure`] give, and
    /// updates the plan's piece.
    ///
    /// # Errors
    /// As [`Trainer::update`].
    pub fn update_measured(
        &mut self,
        optimizer: &Optimizer,
        lr: f32,
        most: f64,
    ) -> Result<UpdateReport, StepError> {
        let inputs = Inputs { most, ..self.update_of(optimizer, lr)? };
        let norm = norm_of(self.squares());
        self.machine.outcome.set_update(UpdateReport::new(norm, inputs.grad_clip));
        self.apply(Run::Apply, &inputs)
    }

    /// Runs an update.
    pub(super) fn apply(
        &mut self,
        run: Run,
        inputs: &Inputs<'_>,
    ) -> Result<UpdateReport, StepError> {
        self.half_updated = true;
        let ran = self.machine.run(run, inputs);
        self.half_updated = ran == Err(EngineError::Panicked);
        ran?;
        let report = self.machine.outcome.finite_update()?;
        self.updates += 1;
        Ok(report)
    }
}
