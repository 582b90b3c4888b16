//! What ranks do together in a session: gradients, updates, decisions, checkpoints.
//!
//! ```text
//! accumulate   a rank's own micro-batches, over its branch of the tree       `ranks::tree`
//!              gradients: the sum of each piece to its rank, while it is made  `exchange`, `ranks::reduce`
//! meet         all losses of the step, in the order of micro-batches, and whether somebody is to stop
//! update       sums of squares: all to all, so that norm and clip are the same everywhere
//!              weights: each rank updates its piece, and all get all pieces
//! ```
//! Everybody decides by the same numbers, so what is made of a spike, a number that is not finite or a wish to stop
//! is the same on all ranks without another word. Rank 0 alone writes files and speaks.

use cllm_core::{
    Batch, Kernels, Loss, Moments, Optimizer, Part, Plan, Ripening, StepError, Trainer,
    UpdateReport,
};

use sha2::{Digest as _, Sha256};

use super::exchange::{Exchange, ExchangeReport};
use crate::checkpoint::WholeMoments;
use crate::data::prefetch::ReadyBatch;
use crate::error::{Error, Result};
use crate::ranks::Ranks;
use crate::ranks::cut::Cut;
use crate::trace::tracer::Tracer;
use crate::validation::{Held, Rounds};

/// This rank and the others.
pub(super) struct Team<'r> {
    ranks: &'r dyn Ranks,
    cut: Cut,
    exchange: Exchange<'r>,
    /// Losses of all micro-batches of a step.
    losses: Vec<f64>,
    /// One of this rank's own is not finite.
    has_failed: bool,
    /// Somebody is to stop.
    stops: bool,
}

impl<'r> Team<'r> {
    /// For trainers of `plan`.
    pub(super) fn new(
        ranks: &'r dyn Ranks,
        cut: Cut,
        kernels: &'static Kernels,
        plan: &Plan,
    ) -> Self {
        Self {
            ranks,
            cut,
            exchange: Exchange::new(ranks, cut.parts(), kernels, plan),
            losses: vec![0.0; cut.micros()],
            has_failed: false,
            stops: false,
        }
    }

    /// Bytes that a team takes.
    pub(super) fn bytes(ranks: &dyn Ranks, cut: Cut, plan: &Plan) -> usize {
        Exchange::bytes(ranks, cut.parts(), plan)
    }

    /// Whether there are others.
    pub(super) fn is_many(&self) -> bool {
        self.ranks.size() > 1
    }

    /// Whether this rank is the one that writes and speaks.
    pub(super) fn is_first(&self) -> bool {
        self.ranks.rank() == 0
    }

    /// Micro-batches of a step that this rank has.
    pub(super) fn mine(&self) -> usize {
        self.cut.mine()
    }

    /// Waits for the others.
    pub(super) fn barrier(&self) -> Result<()> {
        if self.is_many() { self.ranks.barrier() } else { Ok(()) }
    }

    /// Computes the gradients of this rank's micro-batch `place`, counted from 0 in each step. One that is not
    /// finite is no error yet; then those behind it are left out.
    pub(super) fn accumulate(
        &mut self,
        trainer: &mut Trainer<'_>,
        batch: &Batch<'_>,
        (counted, place): (usize, usize),
        tracer: &mut Tracer<'_>,
    ) -> core::result::Result<(), StepError> {
        let (of_part, micro) = (self.cut.of_part(), self.cut.first() + place);
        if place == 0 {
            self.has_failed = false;
            self.exchange.begin_step();
        }
        if self.has_failed {
            return Ok(());
        }
        let part = Part { micro: micro as u32, adds: !place.is_multiple_of(of_part) };
        let is_last = self.is_many() && place + 1 == self.cut.mine();
        let exchange = &mut self.exchange;
        let summed = if is_last {
            let follow = &mut |ripening: &mut Ripening<'_>| exchange.follow(ripening, tracer);
            trainer.accumulate_part_followed(batch, counted, part, follow)
        } else {
            trainer.accumulate_part(batch, counted, part)
        };
        self.losses[micro] = match summed {
            Ok(loss) => loss.sum,
            Err(StepError::NonFiniteLoss(loss)) => {
                self.has_failed = true;
                loss
            }
            Err(error) => return Err(error),
        };
        if !self.has_failed && !is_last && (place + 1).is_multiple_of(of_part) {
            self.exchange.end_part(place / of_part, trainer.gradients_mut());
        }
        Ok(())
    }

    /// The sum of all losses of a step, or the first that is not finite: an error of the step. From now on all
    /// ranks know whether one of them is to stop, and each has the gradients of its piece.
    pub(super) fn meet(
        &mut self,
        trainer: &mut Trainer<'_>,
        stops: bool,
        tracer: &mut Tracer<'_>,
    ) -> Result<core::result::Result<f64, StepError>> {
        if self.is_many() {
            // Also what nobody will use: the others wait for it.
            self.exchange.finish(trainer, tracer)?;
            let (mine, first) = (self.cut.mine(), self.cut.first());
            let own = self.losses[first..first + mine].iter().map(|loss| loss.to_bits());
            let numbers: Vec<u64> = own.chain([u64::from(stops)]).collect();
            let mut all = vec![0; numbers.len() * self.ranks.size()];
            self.ranks.tell(&numbers, &mut all)?;
            let of_ranks = all.chunks_exact(numbers.len());
            for (losses, told) in self.losses.chunks_exact_mut(mine).zip(of_ranks.clone()) {
                losses.iter_mut().zip(told).for_each(|(loss, bits)| *loss = f64::from_bits(*bits));
            }
            self.stops = of_ranks.into_iter().any(|told| told[mine] != 0);
        }
        let failed = self.losses.iter().find(|loss| !loss.is_finite());
        Ok(match failed {
            Some(loss) => Err(StepError::NonFiniteLoss(*loss)),
            None => Ok(self.losses.iter().fold(0.0, |sum, loss| sum + loss)),
        })
    }

    /// Whether some rank was to stop when they last met.
    pub(super) fn stops(&self) -> bool {
        self.stops
    }

    /// As [`Trainer::update_within`], of the gradients of all.
    pub(super) fn update(
        &mut self,
        trainer: &mut Trainer<'_>,
        optimizer: &Optimizer,
        lr: f32,
        most: f64,
    ) -> Result<core::result::Result<UpdateReport, StepError>> {
        if !self.is_many() {
            return Ok(trainer.update_within(optimizer, lr, most));
        }
        if !trainer.plan().has_pieces() {
            self.exchange.gather(trainer.gradients_mut())?;
            return Ok(trainer.update_within(optimizer, lr, most));
        }
        let sums = match trainer.measure() {
            Ok(sums) => sums,
            Err(error) => return Ok(Err(error)),
        };
        self.exchange.reducer().tell_sums(self.ranks, sums)?;
        let report = trainer.update_measured(optimizer, lr, most);
        if report.is_ok() {
            self.exchange.gather(trainer.trained_mut())?;
        }
        Ok(report)
    }

    /// What ranks took for one another's values, if there are several.
    pub(super) fn exchanged(&self) -> Option<ExchangeReport> {
        self.is_many().then(|| self.exchange.report())
    }

    /// The mean loss over all rounds of a validation, of which each rank does its share.
    pub(super) fn validate(
        &self,
        trainer: &mut Trainer<'_>,
        (rounds, data): (&Rounds, &Held),
        batch: &mut ReadyBatch,
    ) -> Result<Loss> {
        let (rank, size, all) = (self.ranks.rank(), self.ranks.size(), rounds.len() as usize);
        let mut mine = Vec::new();
        for round in (rank..all).step_by(size) {
            let loss = rounds.loss(round as u64, data, batch, |batch| trainer.evaluate(batch))?;
            mine.extend([loss.sum.to_bits(), loss.counted as u64]);
        }
        mine.resize(2 * all.div_ceil(size), 0);
        let mut told = vec![0; mine.len() * size];
        self.ranks.tell(&mine, &mut told)?;
        let losses = (0..all).map(|round| {
            let at = (round % size) * mine.len() + 2 * (round / size);
            Loss { sum: f64::from_bits(told[at]), counted: told[at + 1] as usize }
        });
        Ok(losses.fold(Loss { sum: 0.0, counted: 0 }, |all, loss| Loss {
            sum: all.sum + loss.sum,
            counted: all.counted + loss.counted,
        }))
    }

    /// The moments of all pieces, on rank 0, where each rank has those of its own; `None` where a trainer has all.
    pub(super) fn moments(&self, trainer: &Trainer<'_>) -> Result<Option<WholeMoments>> {
        if !self.is_many() || !trainer.plan().has_pieces() {
            return Ok(None);
        }
        let whole = |piece: &[f32]| self.exchange.reducer().collect(self.ranks, piece);
        Ok(match trainer.moments() {
            Moments::AdamW { first, second } => {
                Some(WholeMoments::AdamW { first: whole(first)?, second: whole(second)? })
            }
            Moments::Momentum(moments) => Some(WholeMoments::Momentum(whole(moments)?)),
            Moments::AdamW8 { .. } | Moments::Muon { .. } | Moments::Sgd => None,
        })
    }
}

/// A fact about a text, or about none.
pub(super) fn fact(text: &(impl AsRef<[u8]> + ?Sized)) -> u64 {
    let hash = Sha256::digest(text.as_ref());
    hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Checks that all ranks are about to do the same: `facts` are what each knows, by what it is.
///
/// # Errors
/// Names the first rank that knows something else than rank 0.
pub(super) fn agree(ranks: &dyn Ranks, facts: &[(&str, u64)]) -> Result<()> {
    let mine: Vec<u64> = facts.iter().map(|(_, fact)| *fact).collect();
    let mut all = vec![0; mine.len() * ranks.size()];
    ranks.tell(&mine, &mut all)?;
    for (rank, told) in all.chunks_exact(mine.len()).enumerate() {
        let other = facts.iter().zip(told).zip(&all).find(|((_, own), first)| own != first);
        if let Some((((what, _), _), _)) = other {
            return Err(Error::failure(format!(
                "rank {rank} has {what} than rank 0: start all ranks with the same program, flags and files, and \
                 keep data and --out-dir where all of them see them"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::threads;

    #[test]
    fn ranks_that_know_something_else_are_named() {
        let facts =
            |rank: usize| [("other settings", 7), ("other data", if rank == 2 { 1 } else { 0 })];
        let errors = threads::run(3, |ranks| agree(ranks, &facts(ranks.rank())).unwrap_err());
        assert!(
            errors.iter().all(|e| e.to_string().starts_with("rank 2 has other data than rank 0"))
        );
        let same = threads::run(3, |ranks| agree(ranks, &facts(0)));
        assert_eq!(same, [Ok(()), Ok(()), Ok(())]);
    }
}
