//! Real training steps of two plans, timed in turns.

use super::ratios::Ratios;
use crate::data::dice::Dice;
use crate::error::{Error, Result};
use crate::memory::{PoolMemory, check_two};
use crate::model;
use crate::pool::{self, Crew};
use cllm_core::{Batch, Engine, Kernels, Optimizer, Plan, StepError, Trainer};
use core::time::Duration;
use std::time::Instant;

/// Rounds, however short the time: the fewest that have quartiles.
const LEAST_ROUNDS: usize = 5;
/// Rounds after which ratios have quartiles enough.
const MOST_ROUNDS: usize = 201;
/// A turn has steps for so long: short ones are timed together.
const TURN: Duration = Duration::from_millis(40);
/// Rounds after which what is clearly slower is given up, and what is.
const HOPELESS: (usize, f64) = (3, 1.05);

/// What the steps are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) kernels: &'static Kernels,
    pub(super) optimizer: Optimizer,
    /// Micro-batches of a step.
    pub(super) micro_batches: usize,
    /// Keeps each worker on a CPU of its own.
    pub(super) pin: bool,
}

/// One of the two.
struct Side<'a> {
    trainer: Trainer<'a>,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    dice: Dice,
    micro_batches: usize,
    optimizer: Optimizer,
}

impl<'a> Side<'a> {
    fn new(plan: &Plan, trainer: Trainer<'a>, work: &Work) -> Self {
        let mut trainer = trainer.wait_with(&pool::CALLER);
        trainer.initialise();
        let (tokens, targets) = (vec![0; plan.tokens()], vec![0; plan.tokens()]);
        let Work { optimizer, micro_batches, .. } = *work;
        Self { trainer, tokens, targets, dice: Dice::new(1), micro_batches, optimizer }
    }

    /// Takes `steps` steps on random tokens. Gives their seconds, without those of the dice, and
    /// the sum of the last step's losses.
    fn steps(&mut self, steps: usize) -> Result<(f64, f64)> {
        // Small enough for a loss that stays finite on tokens without sense.
        const RATE: f32 = 1e-5;
        let stopped = |error: StepError| Error::failure(format!("a step to be timed: {error}"));
        let vocab = self.trainer.plan().config().vocab_size as u32;
        let counted = self.tokens.len() * self.micro_batches;
        let (mut seconds, mut loss) = (0.0, 0.0);
        for _ in 0..steps {
            loss = 0.0;
            for _ in 0..self.micro_batches {
                let Self { tokens, targets, dice, .. } = self;
                for id in tokens.iter_mut().chain(targets.iter_mut()) {
                    *id = dice.below(vocab);
                }
                let begin = Instant::now();
                let batch = Batch::new(tokens, targets);
                loss += self.trainer.accumulate(&batch, counted).map_err(stopped)?.sum;
                seconds += begin.elapsed().as_secs_f64();
            }
            let begin = Instant::now();
            self.trainer.update(&self.optimizer, RATE).map_err(stopped)?;
            seconds += begin.elapsed().as_secs_f64();
        }
        Ok((seconds, loss))
    }
}

/// Time of steps of `plan` as a share of that of steps of `default`, over rounds that take
/// about `time` together, but at least five. Who begins a round alternates.
///
/// # Errors
/// Too little memory for both at a time, a thread that cannot be started, and losses that are
/// not the same to the bit.
pub(super) fn compare(
    default: &Plan,
    plan: &Plan,
    work: &Work,
    time: Duration,
    patient: bool,
) -> Result<Ratios> {
    check_two(default, plan)?;
    let mut first_memory = PoolMemory::allocate(default)?;
    let (pools, queue) = first_memory.parts();
    let first_engine = Engine::new(default, queue).map_err(model::plan_error)?;
    let first = Trainer::new(default, work.kernels, pools, &first_engine, 1);
    let mut first = Side::new(default, first.map_err(model::plan_error)?, work);
    let mut second_memory = PoolMemory::allocate(plan)?;
    let (pools, queue) = second_memory.parts();
    let second_engine = Engine::new(plan, queue).map_err(model::plan_error)?;
    let second = Trainer::new(plan, work.kernels, pools, &second_engine, 1);
    let mut second = Side::new(plan, second.map_err(model::plan_error)?, work);
    let crews = [default, plan].map(|plan| Crew::new(plan.workers(), work.pin));
    let rounds = || {
        // These find memory that was never touched, and tell about how long a step is.
        let (seconds, loss) = first.steps(1)?;
        same(loss, second.steps(1)?.1)?;
        let steps = (TURN.as_secs_f64() / seconds.max(1e-6)).ceil().clamp(1.0, 1e4) as usize;
        let begin = Instant::now();
        let mut ratios = Vec::new();
        while ratios.len() < LEAST_ROUNDS || begin.elapsed() < time && ratios.len() < MOST_ROUNDS {
            let (of_first, of_second) = if ratios.len() % 2 == 0 {
                let of_first = first.steps(steps)?;
                (of_first, second.steps(steps)?)
            } else {
                let of_second = second.steps(steps)?;
                (first.steps(steps)?, of_second)
            };
            same(of_first.1, of_second.1)?;
            ratios.push(of_second.0 / of_first.0);
            let slow = |ratio: &f64| *ratio > HOPELESS.1;
            if !patient && ratios.len() >= HOPELESS.0 && ratios.iter().all(slow) {
                break;
            }
        }
        Ok(Ratios::of(ratios))
    };
    pool::with_workers(&first_engine, &crews[0], || {
        pool::with_workers(&second_engine, &crews[1], rounds)
    })
}

/// The promise that bits do not depend on what is tuned here.
fn same(loss: f64, other: f64) -> Result<()> {
    if loss.to_bits() == other.to_bits() {
        return Ok(());
    }
    Err(Error::failure(format!(
        "internal error, please report it: other sizes of blocks gave another loss, {other} and \
         not {loss}"
    )))
}
