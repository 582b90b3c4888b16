//! Runs on which the calling thread works beside the workers: for work of microseconds, and for
//! callers that [work](Idle::works) because they have a core that is nobody else's.
//!
//! On a desktop a training step takes so long that its caller sleeps meanwhile and every core is a
//! worker's. A token that is generated takes less than a millisecond, and what follows it is
//! the caller's: to wake that each time would cost as much as some of the work. So the caller
//! takes a seat before the run is published, with a share of its own, and gets up when all is
//! done.

use super::idle::Idle;
use super::stage::{Cut, Stage};
use super::worker::{Sitter, Worker};
use super::{Engine, EngineError, Job};
use crate::program::Section;

impl Engine<'_> {
    /// As [`Engine::run`], with the calling thread on a seat of its own if one is free.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub(crate) fn run_along(
        &self,
        job: &dyn Job,
        sections: &[Section],
        idle: &dyn Idle,
    ) -> Result<(), EngineError> {
        let under_way = self.begin(idle)?;
        // Before the shares are cut: who sits down later has none.
        let own = Worker::join_as(self, idle, Sitter::Caller);
        self.publish(job, sections, idle);
        if let Ok(worker) = own {
            worker.help();
        }
        self.finish(under_way, idle, &mut || {})
    }

    /// Whether it has these seats and stages.
    pub(crate) fn consists_of(
        &self,
        seats: usize,
        cut: &Cut,
        stages: impl ExactSizeIterator<Item = Stage>,
    ) -> bool {
        self.seats == seats
            && self.board.cut() == cut
            && self.slots.len() == stages.len()
            && self.slots.iter().zip(stages).all(|(slot, stage)| slot.stage == stage)
    }
}
