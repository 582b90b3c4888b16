//! Heap memory for a plan: what a caller of the core hands over.

use cllm_core::{Engine, Kernels, Line, Op, Plan, Pool, Pools, Queue, Slot, Trainer};
use core::sync::atomic::AtomicU64;

/// Exactly the bytes that a plan asks for.
pub(crate) struct Memory {
    lines: Vec<Vec<Line>>,
    ops: Vec<Op>,
    slots: Vec<Slot>,
    words: Vec<AtomicU64>,
}

/// The pools made of lines, in the order of [`Memory::lines`].
pub(crate) const LINE_POOLS: [Pool; 6] = [
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
        let mut memory =
            Self { lines, ops: vec![Op::EMPTY; plan.ops()], slots: vec![], words: vec![] };
        memory.slots.resize_with(plan.slots(), Slot::new);
        memory.words.resize_with(plan.words(), || AtomicU64::new(u64::MAX));
        memory
    }

    /// Takes one element off a pool and says how many bytes it had.
    pub(crate) fn shorten(&mut self, pool: Pool) -> usize {
        match (pool, LINE_POOLS.iter().position(|p| *p == pool)) {
            (_, Some(i)) => self.lines[i].pop().map_or(0, |x| size_of_val(&x)),
            (Pool::Slots, _) => self.slots.pop().map_or(0, |x| size_of_val(&x)),
            (Pool::Words, _) => self.words.pop().map_or(0, |x| size_of_val(&x)),
            _ => self.ops.pop().map_or(0, |x| size_of_val(&x)),
        }
    }

    /// The pools of a trainer and the queue of its engine.
    pub(crate) fn parts(&mut self) -> (Pools<'_>, Queue<'_>) {
        let [parameters, gradients, moments, packed, activations, scratch] = &mut self.lines[..]
        else {
            unreachable!("six pools are made of lines")
        };
        let queue = Queue { ops: &mut self.ops, slots: &mut self.slots, words: &mut self.words };
        (Pools { parameters, gradients, moments, packed, activations, scratch }, queue)
    }
}

/// Runs `test` on a fresh trainer of a plan, with the weights of `seed`.
pub(crate) fn with_trainer<R>(
    plan: &Plan,
    kernels: &'static Kernels,
    seed: u64,
    test: impl FnOnce(&mut Trainer<'_>) -> R,
) -> R {
    let table = vec![0; 4 * plan.config().vocab_size * plan.config().d_model];
    with_adapter_dropout(plan, kernels, seed, &table, 0.0, test)
}

/// As [`with_trainer`], with a token table for a plan that has it not among the parameters, and with dropout of
/// what adapters read.
pub(crate) fn with_adapter_dropout<R>(
    plan: &Plan,
    kernels: &'static Kernels,
    seed: u64,
    table: &[u8],
    dropped: f32,
    test: impl FnOnce(&mut Trainer<'_>) -> R,
) -> R {
    let mut memory = Memory::new(plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(plan, queue).unwrap();
    let trainer = Trainer::new(plan, kernels, pools, &engine, seed).unwrap();
    let mut trainer = trainer.look_up_in(table).unwrap().drop_adapter_inputs(dropped);
    trainer.initialise();
    test(&mut trainer)
}
