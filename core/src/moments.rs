//! What an optimizer remembers of a model from step to step, by its kind.

use crate::optimizer::OptimizerKind;
use cllm_kernels::MOMENTS_BLOCK;

/// Moments of what is trained, whole arenas of its table, or [a piece](crate::Plan::with_piece) of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Moments<'a> {
    /// Of [`OptimizerKind::AdamW`].
    AdamW {
        /// Means of gradients.
        first: &'a [f32],
        /// Means of their squares.
        second: &'a [f32],
    },
    /// Of [`OptimizerKind::AdamW8`], which [`cllm_kernels::Moments8`] says more of.
    AdamW8 {
        /// Codes of means of gradients, a byte where an arena has a float.
        first: &'a [u8],
        /// Codes of roots of means of squares.
        second: &'a [u8],
        /// Two for each block of 64 elements of a tensor, or a part of one at its end. Those of tensor number `i`,
        /// whose first float is `offset`, begin at `2 (offset / 64 + i)`.
        scales: &'a [f32],
    },
    /// Of [`OptimizerKind::Momentum`]: sums of gradients.
    Momentum(&'a [f32]),
    /// Of [`OptimizerKind::Sgd`], which remembers nothing.
    Sgd,
    /// Of [`OptimizerKind::Muon`].
    Muon {
        /// Sums of gradients of matrices of blocks, means of gradients of other tensors: an arena.
        first: &'a [f32],
        /// Means of squares of the others: an arena without those matrices.
        second: &'a [f32],
    },
}

/// As [`Moments`], to write.
#[derive(Debug)]
pub enum MomentsMut<'a> {
    /// Of [`OptimizerKind::AdamW`].
    AdamW {
        /// Means of gradients.
        first: &'a mut [f32],
        /// Means of their squares.
        second: &'a mut [f32],
    },
    /// Of [`OptimizerKind::AdamW8`].
    AdamW8 {
        /// Codes of means of gradients.
        first: &'a mut [u8],
        /// Codes of roots of means of squares.
        second: &'a mut [u8],
        /// Two for each block of a tensor.
        scales: &'a mut [f32],
    },
    /// Of [`OptimizerKind::Momentum`].
    Momentum(&'a mut [f32]),
    /// Of [`OptimizerKind::Sgd`].
    Sgd,
    /// Of [`OptimizerKind::Muon`].
    Muon {
        /// Sums of gradients of matrices of blocks, means of gradients of other tensors.
        first: &'a mut [f32],
        /// Means of squares of the others.
        second: &'a mut [f32],
    },
}

impl Moments<'_> {
    /// Whose they are.
    #[must_use]
    pub const fn kind(&self) -> OptimizerKind {
        match self {
            Self::AdamW { .. } => OptimizerKind::AdamW,
            Self::AdamW8 { .. } => OptimizerKind::AdamW8,
            Self::Momentum(_) => OptimizerKind::Momentum,
            Self::Sgd => OptimizerKind::Sgd,
            Self::Muon { .. } => OptimizerKind::Muon,
        }
    }
}

impl MomentsMut<'_> {
    /// Whose they are.
    #[must_use]
    pub const fn kind(&self) -> OptimizerKind {
        match self {
            Self::AdamW { .. } => OptimizerKind::AdamW,
            Self::AdamW8 { .. } => OptimizerKind::AdamW8,
            Self::Momentum(_) => OptimizerKind::Momentum,
            Self::Sgd => OptimizerKind::Sgd,
            Self::Muon { .. } => OptimizerKind::Muon,
        }
    }
}

/// Blocks of 8-bit moments in `len` elements from the start of a tensor on.
pub(crate) const fn blocks(len: usize) -> usize {
    len.div_ceil(MOMENTS_BLOCK)
}

/// Number of the first block of tensor number `index`, which begins at float `offset`, among those of all
/// tensors. There may be one between two tensors' that is nobody's: so no list of tensors is needed to say
/// where they are.
pub(crate) const fn first_block(index: usize, offset: usize) -> usize {
    offset / MOMENTS_BLOCK + index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_tensors_are_apart_and_at_most_one_between_them_is_nobodys() {
        // Every row of lengths of three tensors around the edges of blocks and lines.
        let lens = [1, 15, 16, 17, 48, 63, 64, 65, 80, 127, 128, 129, 1000];
        for a in lens {
            for b in lens {
                let (mut offset, mut end) = (0_usize, 0);
                for (index, len) in [a, b, a, b, 16].into_iter().enumerate() {
                    let first = first_block(index, offset);
                    assert!(first == end || first == end + 1, "{a} {b}: {first} behind {end}");
                    end = first + blocks(len);
                    offset = (offset + len).next_multiple_of(crate::line::LANES);
                }
            }
        }
    }
}
