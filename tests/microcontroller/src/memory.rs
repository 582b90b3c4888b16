//! Memory of a training that is known when the program is built: in lines and elements, what a plan asks for.
//! [`cllm_core::Memory`] would have room for panels as well, which lie in flash memory here, and none for a batch.

use cllm_core::{Line, Op, Pools, Queue, Slot, Word};

/// The memory of a training, but for the stack and that of the engine: zeros at first. Lines of each pool
/// but that of packed weights; tokens of a batch.
pub(crate) struct Memory<
    const PARAMETERS: usize,
    const GRADIENTS: usize,
    const MOMENTS: usize,
    const ACTIVATIONS: usize,
    const SCRATCH: usize,
    const TOKENS: usize,
> {
    parameters: [Line; PARAMETERS],
    gradients: [Line; GRADIENTS],
    moments: [Line; MOMENTS],
    activations: [Line; ACTIVATIONS],
    scratch: [Line; SCRATCH],
    tokens: [u32; TOKENS],
    targets: [u32; TOKENS],
}

impl<
    const PARAMETERS: usize,
    const GRADIENTS: usize,
    const MOMENTS: usize,
    const ACTIVATIONS: usize,
    const SCRATCH: usize,
    const TOKENS: usize,
> Memory<PARAMETERS, GRADIENTS, MOMENTS, ACTIVATIONS, SCRATCH, TOKENS>
{
    pub(crate) const fn new() -> Self {
        Self {
            parameters: [Line::ZERO; PARAMETERS],
            gradients: [Line::ZERO; GRADIENTS],
            moments: [Line::ZERO; MOMENTS],
            activations: [Line::ZERO; ACTIVATIONS],
            scratch: [Line::ZERO; SCRATCH],
            tokens: [0; TOKENS],
            targets: [0; TOKENS],
        }
    }

    /// The pools of a trainer that packs nothing, and a batch's tokens and targets.
    pub(crate) fn parts(&mut self) -> (Pools<'_>, [&mut [u32]; 2]) {
        let pools = Pools {
            parameters: &mut self.parameters,
            gradients: &mut self.gradients,
            moments: &mut self.moments,
            packed: &mut [],
            activations: &mut self.activations,
            scratch: &mut self.scratch,
        };
        (pools, [&mut self.tokens, &mut self.targets])
    }
}

/// The memory of an engine. It has values at first, of which flash has a copy.
pub(crate) struct Lists<const OPS: usize, const SLOTS: usize, const WORDS: usize> {
    slots: [Slot; SLOTS],
    words: [Word; WORDS],
    ops: [Op; OPS],
}

impl<const OPS: usize, const SLOTS: usize, const WORDS: usize> Lists<OPS, SLOTS, WORDS> {
    pub(crate) const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; SLOTS],
            words: [const { Word::new(0) }; WORDS],
            ops: [Op::EMPTY; OPS],
        }
    }

    pub(crate) fn queue(&mut self) -> Queue<'_> {
        Queue { ops: &mut self.ops, slots: &mut self.slots, words: &mut self.words }
    }
}
