//! Gradients go from rank to rank, most of them while the workers make others.
//!
//! ```text
//! workers        backward of the rank's last micro-batch:  block 3 | block 2 | block 1 | block 0 | tables
//! this thread                                                     buckets 4, 3 |   2   |   1   |         | 0
//!                                                                 \--------- hidden ----------/   the rest
//! ```
//! What is final grows from the end of the arena on ([`Ripening`]), so buckets go from the last to the first, on all
//! ranks alike: a bucket is as many blocks as `Reducer` adds up at a time. The training thread, which has nothing to do
//! while workers work, adds to it what waits of the rank's other parts, and has it summed over all ranks. It sleeps while it
//! waits for others, for its core is a worker's. What is left when the workers are through it does awake.
//!
//! Which buckets are hidden changes no bit: the order of additions is the tree's, whenever they are done.

use std::time::Instant;

use cllm_core::{Kernels, Plan, Ripening, Trainer};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::ranks::reduce::Reducer;
use crate::ranks::tree::Tree;
use crate::ranks::{Ranks, Wait};
use crate::trace::tracer::{Tracer, What};

/// What a session's ranks took for one another's values.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ExchangeReport {
    /// Seconds in which gradients went from rank to rank and were added up, waits for slower ranks among them.
    pub gradients: f64,
    /// Share of those that was hidden: the workers were not through with the backward pass at the end of a bucket.
    pub hidden: f64,
    /// Seconds in which updated weights went to all ranks.
    pub weights: f64,
}

/// This rank's side of it.
pub(super) struct Exchange<'r> {
    ranks: &'r dyn Ranks,
    kernels: &'static Kernels,
    tree: Tree,
    reducer: Reducer,
    /// Another rank was gone, which is told when all meet.
    failed: Option<Error>,
    /// Seconds.
    gradients: f64,
    hidden: f64,
    weights: f64,
}

impl<'r> Exchange<'r> {
    /// For gradients of `plan`, of so many parts of this rank's.
    pub(super) fn new(
        ranks: &'r dyn Ranks,
        parts: usize,
        kernels: &'static Kernels,
        plan: &Plan,
    ) -> Self {
        Self {
            ranks,
            kernels,
            tree: Tree::new(parts, plan.arena_len()),
            reducer: Reducer::new(plan, ranks.size()),
            failed: None,
            gradients: 0.0,
            hidden: 0.0,
            weights: 0.0,
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(ranks: &dyn Ranks, parts: usize, plan: &Plan) -> usize {
        Tree::bytes(parts, plan.arena_len()) + Reducer::bytes(plan, ranks.size())
    }

    /// None of a step's gradients have been summed over the ranks.
    pub(super) fn begin_step(&mut self) {
        self.reducer.begin();
    }

    /// A part has its gradients in `arena`; the last one of several ranks is [followed](Self::follow) instead.
    pub(super) fn end_part(&mut self, part: usize, arena: &mut [f32]) {
        self.tree.end_part(self.kernels, part, arena);
    }

    /// Sums buckets of the last part as long as there are some that are final, and workers that are busy.
    pub(super) fn follow(&mut self, ripening: &mut Ripening<'_>, tracer: &mut Tracer<'_>) {
        while self.failed.is_none()
            && let Some(bucket) = self.reducer.next()
        {
            let (first, ready) = ripening.ready();
            if first == 0 || bucket.start < first {
                return;
            }
            let (begin, since) = (tracer.now(), Instant::now());
            let values = &mut ready[bucket.start - first..bucket.end - first];
            self.failed = self.bucket(bucket.start, values, Wait::Asleep).err();
            let seconds = since.elapsed().as_secs_f64();
            self.gradients += seconds;
            if ripening.first() > 0 {
                self.hidden += seconds;
                tracer.span(What::Hidden, begin);
            } else {
                tracer.span(What::Exchange, begin);
            }
        }
    }

    /// Sums what is left of a step's buckets, so that this rank's blocks of the gradient are those of all ranks.
    ///
    /// # Errors
    /// Another rank is gone.
    pub(super) fn finish(
        &mut self,
        trainer: &mut Trainer<'_>,
        tracer: &mut Tracer<'_>,
    ) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)?;
        let (begin, since) = (tracer.now(), Instant::now());
        while let Some(bucket) = self.reducer.next() {
            let at = bucket.start;
            self.bucket(at, &mut trainer.gradients_mut()[bucket], Wait::Awake)?;
        }
        self.gradients += since.elapsed().as_secs_f64();
        tracer.span(What::Exchange, begin);
        Ok(())
    }

    fn bucket(&mut self, at: usize, values: &mut [f32], wait: Wait) -> Result<()> {
        self.tree.end_last(self.kernels, at, values);
        self.reducer.sum_next(self.ranks, self.kernels, values, wait)
    }

    /// Has all blocks of `arena` be those of their ranks.
    ///
    /// # Errors
    /// Another rank is gone.
    pub(super) fn gather(&mut self, arena: &mut [f32]) -> Result<()> {
        let since = Instant::now();
        let ended = self.reducer.gather(self.ranks, arena);
        self.weights += since.elapsed().as_secs_f64();
        ended
    }

    /// What else goes from rank to rank.
    pub(super) fn reducer(&self) -> &Reducer {
        &self.reducer
    }

    /// What it took so far.
    pub(super) fn report(&self) -> ExchangeReport {
        ExchangeReport {
            gradients: self.gradients,
            hidden: self.hidden / self.gradients.max(1e-9),
            weights: self.weights,
        }
    }
}

impl ExchangeReport {
    /// The report for people.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "exchange: {:.2} s for gradients, {:.1} % of it hidden behind the backward pass, {:.2} s for weights",
            self.gradients,
            100.0 * self.hidden,
            self.weights
        )
    }
}
