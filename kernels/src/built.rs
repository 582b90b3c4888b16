//! What is built: by the crate's features, as constants for plain `if`s.
//!
//! | feature | |
//! |---|---|
//! | `compact` | off unless asked for: one loop where others have one for each case, no lines asked for ahead, one copy of code that is otherwise there for each use; panics without messages |
//! | `documents` | queries that do not see all keys up to their own |
//! | `dropout` | masks |
//! | `halves` | operands that lie in memory as bf16; without it products of bf16 take floats, and give the same bits |
//! | `optimizers` | updates of AdamW with moments of 8 bits, of momentum and of gradient descent |
//! | `llama` | rotary positions, SwiGLU, capped logits |
//!
//! `compact` changes no bit of products, for any tiling gives the same, nor of a training step; attention of fewer
//! queries than a strip has rows, as in generation, has a path of its own otherwise, which rounds otherwise.
//! What is left out panics when it is called.

/// Less code before speed.
pub(crate) const COMPACT: bool = cfg!(feature = "compact");
/// Loops of their own for what a panel can be (`gemm::block`). Without optimisation a loop has all its vectors on the
/// stack: with all loops in one function that was more than the 2 MiB that a thread has.
pub(crate) const APART: bool = !COMPACT && !cfg!(unoptimized);
/// Attention from a first key on.
pub(crate) const DOCUMENTS: bool = cfg!(feature = "documents");
/// Masks of dropout.
pub(crate) const DROPOUT: bool = cfg!(feature = "dropout");
/// Operands that lie in memory as bf16.
pub(crate) const HALVES: bool = cfg!(feature = "halves");
/// Kernels that models of the Llama family have and GPT-2 has not.
pub(crate) const LLAMA: bool = cfg!(feature = "llama");

/// Updates of other optimizers than AdamW.
pub(crate) const OPTIMIZERS: bool = cfg!(feature = "optimizers");

/// `from`, `from + step`, ... below `to`.
#[cfg(not(feature = "compact"))]
#[inline(always)]
pub(crate) fn steps(from: usize, to: usize, step: usize) -> impl Iterator<Item = usize> {
    (from..to).step_by(step)
}

/// The same without the division that counts them beforehand.
#[cfg(feature = "compact")]
#[inline(always)]
pub(crate) fn steps(from: usize, to: usize, step: usize) -> impl Iterator<Item = usize> {
    let mut next = from;
    core::iter::from_fn(move || {
        let now = next;
        next += step;
        (now < to).then_some(now)
    })
}

/// In the place of a kernel that is left out.
///
/// # Safety
/// None is needed: it is `unsafe` as kernels are.
pub(crate) unsafe fn left_out<T>(_: &T) {
    panic!("this kernel is not built: see the features of cllm-kernels");
}
