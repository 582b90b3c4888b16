//! Runs on the calling thread alone, where nothing else is built (the feature `workers` is off): the
//! program's tiles in the order of the program, in which every stage comes behind those it waits for.
#![expect(unsafe_code, reason = "runs the tiles of a job")]

use super::observe::Unobserved;
use super::{Engine, EngineError, Job, Taken};
use crate::primitive::{AtomicBool, Ordering};
use crate::program::Section;

/// Says that no run is under way, also if a tile has unwound.
pub(super) struct Busy<'e>(pub(super) &'e AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Engine<'_> {
    /// As [`Engine::run`], on seat 0.
    ///
    /// # Errors
    /// Another run is under way.
    pub(super) fn run_alone(&self, job: &dyn Job, sections: &[Section]) -> Result<(), EngineError> {
        if self.busy.swap(true, Ordering::Acquire) {
            return Err(EngineError::Busy);
        }
        let busy = Busy(&self.busy);
        for section in sections {
            for id in self.sections[*section as usize].clone() {
                let stage = self.slots[id].stage;
                for tile in 0..stage.tiles {
                    let taken = Taken { id, stage, tile, stolen: false };
                    // SAFETY: all stages before are done, and the tiles before this one, which are all
                    // that it waits for; whoever has a seat finds nothing published to take.
                    unsafe { job.run(self.ops, &taken, 0, &mut Unobserved) }
                }
            }
        }
        drop(busy);
        Ok(())
    }
}
