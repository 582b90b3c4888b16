//! Runs whose caller looks at what is done while the workers go on with the rest.
//!
//! ```text
//! caller                                   worker that counts a stage's last tile
//! seen = count of `finished`               done += tiles (release)
//! looks: which stages are done             fence; watchers > 0: count += 1, wake
//! waits while count == seen
//! ```
//! As at the end of a run (`idle`): a stage that the look did not find done moves the count behind `seen`, so the
//! caller looks again. Of other runs the caller is told their end alone: to be woken for every stage would take
//! a core from a worker.

use super::idle::Idle;
use super::{Engine, EngineError, Job};
use crate::built::WORKERS;
use crate::plan::Plan;
use crate::primitive::Ordering;
use crate::program::Section;

impl Engine<'_> {
    /// As [`Engine::run`]; while workers serve the engine, `look` is called whenever another stage is done, and at other
    /// times. It may take its time: nobody waits for it but the run's end.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub(crate) fn run_followed(
        &self,
        job: &dyn Job,
        sections: &[Section],
        idle: &dyn Idle,
        look: &mut dyn FnMut(),
    ) -> Result<(), EngineError> {
        if !WORKERS || idle.works() {
            return self.run(job, sections, idle);
        }
        let under_way = self.begin(idle)?;
        // Whoever takes a tile has seen its share opened, which comes behind this.
        self.followed.store(true, Ordering::Relaxed);
        self.publish(job, sections, idle);
        self.finish(under_way, idle, look)
    }

    /// Where the gradients begin that no tile of the run under way will change any more: up to the end of
    /// their arena.
    pub(crate) fn final_from(&self, plan: &Plan) -> usize {
        let ops =
            self.slots.iter().filter(|slot| !slot.is_done()).flat_map(|slot| {
                &self.ops[slot.stage.first_op as usize..][..slot.stage.ops as usize]
            });
        let written = ops.filter_map(|op| op.gradients(plan)).flatten();
        written.map(|range| range.end).max().unwrap_or(0)
    }
}
