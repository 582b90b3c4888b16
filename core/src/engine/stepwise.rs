//! Runs of the calling thread alone that stop after each operation, so that somebody can look at what it
//! has written.
#![expect(unsafe_code, reason = "runs the tiles of a job")]

use super::alone::Busy;
use super::observe::Unobserved;
use super::{Engine, EngineError, Job, Shape, Stage, Taken};
use crate::primitive::Ordering;
use crate::program::{Op, Section};

/// A job whose memory is looked at between two operations.
pub(crate) trait Watched {
    /// Calls `run` with the job, which has the memory until that returns.
    fn lend(&mut self, run: &mut dyn FnMut(&dyn Job));

    /// Whether all is well with what `op` has just written: for row block `tile`, or for all of its tiles.
    fn is_well(&mut self, op: Op, tile: Option<u32>) -> bool;
}

impl Engine<'_> {
    /// Goes through sections on seat 0, in the order of the program, up to the first stage in which all is
    /// not well. Returns the first operation of that, in the stage's order, whose output is not, or `None` if
    /// all sections are through.
    ///
    /// # Errors
    /// Another run is under way.
    pub(crate) fn first_unwell(
        &self,
        job: &mut impl Watched,
        sections: &[Section],
    ) -> Result<Option<Op>, EngineError> {
        if self.busy.swap(true, Ordering::Acquire) {
            return Err(EngineError::Busy);
        }
        let busy = Busy(&self.busy);
        let mut ids = sections.iter().flat_map(|section| self.sections[*section as usize].clone());
        let found = ids.find_map(|id| self.unwell_in(job, id));
        drop(busy);
        Ok(found)
    }

    fn unwell_in(&self, job: &mut impl Watched, id: usize) -> Option<Op> {
        let stage = self.slots[id].stage;
        let ops = &self.ops[stage.first_op as usize..][..stage.ops as usize];
        if let Shape::Rows { first_block, .. } = stage.shape {
            // Of other row blocks only what comes before can be first.
            let mut unwell = ops.len();
            for tile in 0..stage.tiles {
                for (number, op) in ops.iter().enumerate().take(unwell) {
                    self.run_one(job, id, number, tile);
                    if !job.is_well(*op, Some(first_block + tile)) {
                        unwell = number;
                        break;
                    }
                }
            }
            return ops.get(unwell).copied();
        }
        for (number, op) in ops.iter().enumerate() {
            for tile in 0..op.tiles {
                self.run_one(job, id, number, tile);
            }
            if !job.is_well(*op, None) {
                return Some(*op);
            }
        }
        None
    }

    /// Runs one operation of a stage on one tile.
    fn run_one(&self, job: &mut impl Watched, id: usize, number: usize, tile: u32) {
        let stage = self.slots[id].stage;
        // As if it were a stage of its own.
        let stage = Stage { first_op: stage.first_op + number as u32, ops: 1, ..stage };
        let taken = Taken { id, stage, tile, stolen: false };
        // SAFETY: as in `alone`: all that comes before it in the program is done, in a chain on the same
        // seat's desk, and nothing is published that somebody else could take.
        job.lend(&mut |job| unsafe { job.run(self.ops, &taken, 0, &mut Unobserved) });
    }
}
