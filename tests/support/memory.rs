//! Heap memory for a plan: what a caller of the core hands over.

use cllm_core::{Line, Op, Plan, Pool, Pools};

/// Exactly the bytes that a plan asks for.
pub(crate) struct Memory {
    lines: Vec<Vec<Line>>,
    queue: Vec<Op>,
}

/// The pools made of lines, in the order of [`Memory::lines`].
const LINE_POOLS: [Pool; 6] = [
    Pool::Parameters,
    Pool::Gradients,
    Pool::Moments,
    Pool::Packed,
    Pool::Activations,
    Pool::Scratch,
];

impl Memory {
    /// Pools filled with NaN, so that a read of something never written shows.
    pub(crate) fn new(plan: &Plan) -> Self {
        let poison = Line([f32::NAN; cllm_core::LANES]);
        let lines = LINE_POOLS.map(|pool| vec![poison; plan.lines(pool)]).into();
        Self { lines, queue: vec![Op::EMPTY; plan.ops()] }
    }

    /// Takes one line (or queue slot) off a pool.
    pub(crate) fn shorten(&mut self, pool: Pool) {
        match LINE_POOLS.iter().position(|p| *p == pool) {
            Some(i) => drop(self.lines[i].pop()),
            None => drop(self.queue.pop()),
        }
    }

    pub(crate) fn pools(&mut self) -> Pools<'_> {
        let [parameters, gradients, moments, packed, activations, scratch] = &mut self.lines[..]
        else {
            unreachable!("six pools are made of lines")
        };
        let queue = &mut self.queue;
        Pools { parameters, gradients, moments, packed, activations, scratch, queue }
    }
}
