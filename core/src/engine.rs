//! Running a program: here the calling thread takes every tile itself.
//!
//! A run of row-wise operations is executed block by block, not operation by
//! operation: a block's rows go through the whole chain while they are in cache.
//! The bits are the same either way, for tiles write disjoint elements.
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use crate::program::Op;
use crate::step::Step;

/// Runs all tiles of `ops`: run by run, and row-wise runs block by block.
///
/// # Safety
/// `ops` is a section of the program of `step.plan`, sections before it are done,
/// nobody else runs tiles of this step, and `scratch` has the plan's size.
pub(crate) unsafe fn run_alone(step: &Step<'_>, ops: &[Op], scratch: &mut [f32]) {
    let mut rest = ops;
    while let Some(&first) = rest.first() {
        let chain = if first.kind.is_row_wise() {
            rest.iter().take_while(|op| op.kind.is_row_wise()).count()
        } else {
            1
        };
        let (run, later) = rest.split_at(chain);
        for tile in 0..first.tiles {
            for &op in run {
                // SAFETY: operations before `run` are done and none after it has begun;
                // inside it this thread goes through block after block, each in the
                // program's order.
                unsafe { step.run_tile(op, tile as usize, scratch) }
            }
        }
        rest = later;
    }
}
