//! Gradients that are final while their micro-batch is still under way.
//!
//! Tensors lie in the arena from the first block's to the last one's and the head's, and the backward pass goes the
//! other way. So what is final is the end of the arena, which grows:
//!
//! ```text
//! arena        tables | block 0 | block 1 | block 2 | final norm, head
//! final                                   |<-- no stage that is not done writes here
//! ```
//! The tables are the first in the arena and the last to be final, also where the token table is the head. The last
//! micro-batch of a step is the one to ask: others add to its gradients.
#![expect(unsafe_code, reason = "lends gradients that no tile writes any more")]

use crate::engine::Engine;
use crate::plan::Plan;
use crate::shared::Shared;

/// The gradients of a micro-batch under way: see [`Trainer::accumulate_part_followed`].
///
/// [`Trainer::accumulate_part_followed`]: crate::Trainer::accumulate_part_followed
#[derive(Debug)]
pub struct Ripening<'r> {
    engine: &'r Engine<'r>,
    plan: &'r Plan,
    gradients: Shared<'r>,
}

impl<'r> Ripening<'r> {
    /// Of a run of `engine` under way, or that has ended well, whose step has `gradients`; there is one of a run at a
    /// time.
    pub(super) fn new(engine: &'r Engine<'r>, plan: &'r Plan, gradients: Shared<'r>) -> Self {
        Self { engine, plan, gradients }
    }

    /// The number of the first of those that are final now: 0 when all are.
    #[must_use]
    pub fn first(&self) -> usize {
        self.engine.final_from(self.plan).min(self.plan.arena_len())
    }

    /// Those that are final, which end with the arena, to be read and changed, and the number of the first.
    pub fn ready(&mut self) -> (usize, &mut [f32]) {
        let first = self.first();
        // SAFETY: tiles borrow of the gradients what they write, and those that write here are done, which was
        // seen (acquire) behind what they wrote; nobody else has the step's gradients but this, which is
        // borrowed as long.
        let ready = unsafe { self.gradients.slice_mut(first, self.plan.arena_len() - first) };
        (first, ready)
    }
}
