//! Memory of a trainer and its engine as one value, of sizes that are known when it is compiled.

use crate::engine::{Queue, Slot, Word};
use crate::line::Line;
use crate::plan::{Plan, PlanError, Pool};
use crate::program::Op;
use crate::trainer::Pools;

/// All memory that training, or evaluation, takes, beside the stack: for a static.
///
/// The lengths are those of a plan's [`Sizes`](crate::Sizes); rustc has no way yet to say that shorter.
///
/// ```
/// use cllm_core::*;
///
/// const CONFIG: ModelConfig = ModelConfig {
///     vocab_size: 32,
///     block_size: 8,
///     n_layer: 1,
///     n_head: 2,
///     d_model: 16,
///     d_ff: 64,
///     bias: true,
///     tied: true,
///     dropout: 0.0,
///     norm_eps: 1e-5,
///     arch: Architecture::GPT2,
/// };
/// const SHAPE: BatchShape = BatchShape { sequences: 2, tokens: 8 };
/// const PLAN: Plan = Plan::fixed(&CONFIG, SHAPE, 1, Mode::Train, KernelSet::SCALAR);
/// const SIZES: Sizes = PLAN.sizes();
/// const _: () = SIZES.assert_fits(256 * 1024);
/// type Static = Memory<{ SIZES.lines }, { SIZES.ops }, { SIZES.slots }, { SIZES.words }>;
///
/// // Whoever has one thread alone may have an `UnsafeCell` in the place of the lock.
/// static MEMORY: std::sync::Mutex<Static> = std::sync::Mutex::new(Memory::new());
///
/// let mut memory = MEMORY.lock()?;
/// let (pools, queue) = memory.parts(&PLAN)?;
/// let engine = Engine::new(&PLAN, queue)?;
/// let mut trainer = Trainer::new(&PLAN, Kernels::scalar(), pools, &engine, 1337)?;
/// trainer.initialise();
///
/// let ids: Vec<u32> = (0..=16).map(|i| i % 4).collect();
/// let batch = Batch::new(&ids[..16], &ids[1..]);
/// let before = trainer.accumulate(&batch, batch.counted())?;
/// trainer.update(&Optimizer::default(), 1e-2)?;
/// assert!(trainer.evaluate(&batch)?.mean() < before.mean());
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Memory<const LINES: usize, const OPS: usize, const SLOTS: usize, const WORDS: usize> {
    lines: [Line; LINES],
    slots: [Slot; SLOTS],
    words: Words<WORDS>,
    ops: [Op; OPS],
}

/// Words that begin on a cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Words<const N: usize>([Word; N]);

impl<const LINES: usize, const OPS: usize, const SLOTS: usize, const WORDS: usize>
    Memory<LINES, OPS, SLOTS, WORDS>
{
    /// Zeros: a static of them takes no room in a program's file, nor in flash.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            lines: [Line::ZERO; LINES],
            slots: [const { Slot::new() }; SLOTS],
            words: Words([const { Word::new(0) }; WORDS]),
            ops: [Op::ZERO; OPS],
        }
    }

    /// The pools of a plan, one behind the other from the first line on, and the queue of its engine.
    ///
    /// # Errors
    /// [`PlanError::TooSmall`], of the first pool that the lines have no room for. The queue is whole:
    /// [`Engine::new`](crate::Engine::new) checks that.
    pub fn parts(&mut self, plan: &Plan) -> Result<(Pools<'_>, Queue<'_>), PlanError> {
        let mut rest = &mut self.lines[..];
        let mut take = |pool: Pool| -> Result<_, PlanError> {
            let lines = core::mem::take(&mut rest);
            plan.check(pool, size_of_val(lines))?;
            let (part, behind) = lines.split_at_mut(plan.lines(pool));
            rest = behind;
            Ok(part)
        };
        let pools = Pools {
            parameters: take(Pool::Parameters)?,
            gradients: take(Pool::Gradients)?,
            moments: take(Pool::Moments)?,
            packed: take(Pool::Packed)?,
            activations: take(Pool::Activations)?,
            scratch: take(Pool::Scratch)?,
        };
        let queue = Queue { ops: &mut self.ops, slots: &mut self.slots, words: &mut self.words.0 };
        Ok((pools, queue))
    }
}

impl<const LINES: usize, const OPS: usize, const SLOTS: usize, const WORDS: usize> Default
    for Memory<LINES, OPS, SLOTS, WORDS>
{
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Architecture, BatchShape, KernelSet, Mode, ModelConfig, Sizes};

    const CONFIG: ModelConfig = ModelConfig {
        vocab_size: 20,
        block_size: 8,
        n_layer: 1,
        n_head: 2,
        d_model: 8,
        d_ff: 16,
        bias: true,
        tied: true,
        dropout: 0.0,
        norm_eps: 1e-5,
        arch: Architecture::GPT2,
    };
    const BATCH: BatchShape = BatchShape { sequences: 1, tokens: 8 };
    const PLAN: Plan = Plan::fixed(&CONFIG, BATCH, 2, Mode::Train, KernelSet::SCALAR);
    const SIZES: Sizes = PLAN.sizes();

    #[test]
    fn pools_lie_one_behind_the_other_and_words_on_a_line() {
        let mut memory =
            Memory::<{ SIZES.lines }, { SIZES.ops }, { SIZES.slots }, { SIZES.words }>::new();
        let (pools, queue) = memory.parts(&PLAN).unwrap();
        assert!(queue.words.as_ptr().addr().is_multiple_of(64));
        assert_eq!(queue.words.len(), PLAN.words());
        assert_eq!((queue.ops.len(), queue.slots.len()), (PLAN.ops(), PLAN.slots()));
        let mut end = pools.parameters.as_ptr();
        for (lines, pool) in [
            (pools.parameters, Pool::Parameters),
            (pools.gradients, Pool::Gradients),
            (pools.moments, Pool::Moments),
            (pools.packed, Pool::Packed),
            (pools.activations, Pool::Activations),
            (pools.scratch, Pool::Scratch),
        ] {
            assert_eq!(lines.as_ptr(), end);
            assert_eq!(size_of_val(lines), PLAN.bytes(pool));
            end = lines.as_ptr_range().end;
        }
        assert!(size_of_val(&memory) >= SIZES.bytes());
        assert!(size_of_val(&memory) < SIZES.bytes() + 128);
    }

    #[test]
    fn a_line_too_few_is_the_last_pools() {
        let mut memory = Memory::<{ SIZES.lines - 1 }, 0, 0, 0>::default();
        let (pool, need) = (Pool::Scratch, PLAN.bytes(Pool::Scratch));
        let expected = PlanError::TooSmall { pool, need, got: need - size_of::<Line>() };
        assert_eq!(memory.parts(&PLAN).unwrap_err(), expected);
    }
}
