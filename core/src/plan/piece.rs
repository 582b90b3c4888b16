//! A piece of what is trained, for one of several trainers that go through a step together and update a piece
//! each: none of them has the moments of the others' pieces (Rajbhandari et al., "ZeRO", 2020, stage 1).
//!
//! Arenas are cut into blocks, which are dealt out in turns: so of every layer all have about as much.
//!
//! ```text
//! arena      block 0 | block 1 | block 2 | block 3 | block 4
//! piece 0    block 0 |           block 2 |           block 4      moments: blocks 0, 2, 4, one after the other
//! piece 1              block 1 |           block 3
//! ```

use super::{Plan, squares_block};
use crate::arithmetic::least;
use crate::built::{LeftOut, PIECES};
use crate::optimizer::OptimizerKind;
use core::ops::Range;

/// Which blocks of an arena are one trainer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    index: usize,
    count: usize,
    /// Floats of a block.
    block: usize,
}

impl Piece {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, count: 1, block: usize::MAX };

    /// What of `range` is the piece's: spans of the arena, each with its place among moments.
    pub fn spans(self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
        let Self { index, count, block } = self;
        let blocks = range.start / block..range.end.div_ceil(block);
        blocks.filter(move |n| n % count == index).map(move |n| {
            let first = n * block;
            let start = range.start.max(first);
            let end = range.end.min(first.saturating_add(block));
            (start..end, n / count * block + (start - first))
        })
    }

    /// Whether block number `n` is the piece's.
    #[must_use]
    pub const fn has(self, n: usize) -> bool {
        n % self.count == self.index
    }

    /// Floats of its moments, for an arena of `len` floats.
    pub(crate) const fn len(self, len: usize) -> usize {
        if self.count == 1 {
            return len;
        }
        // Blocks in front of the arena's last, and what of the last there is.
        let last = len.div_ceil(self.block).saturating_sub(1);
        let before = (last + self.count - 1 - self.index) / self.count * self.block;
        if self.has(last) { before + len - last * self.block } else { before }
    }
}

impl Plan {
    /// Whether an update can be shared out in pieces. That of [`OptimizerKind::AdamW8`] cannot, whose moments are
    /// blocks that do not end where pieces do, nor that of [`OptimizerKind::Muon`], whose matrices are whole.
    #[must_use]
    pub const fn has_pieces(&self) -> bool {
        PIECES && !matches!(self.optimizer(), OptimizerKind::AdamW8 | OptimizerKind::Muon)
    }

    /// Floats of the arena of what is trained: of gradients, and of the weights or adapters.
    #[must_use]
    pub const fn arena_len(&self) -> usize {
        self.trained_len()
    }

    /// The floats of block `n` of that arena, which pieces are made of; empty behind the last.
    #[must_use]
    pub const fn block(&self, n: usize) -> Range<usize> {
        let arena = self.trained_len();
        let block = squares_block(arena);
        let start = least(n.saturating_mul(block), arena);
        start..least(start + block, arena)
    }

    /// Number of these blocks.
    #[must_use]
    pub const fn blocks(&self) -> usize {
        let arena = self.trained_len();
        arena.div_ceil(squares_block(arena))
    }

    /// The same plan for a trainer that updates piece `index` of `count` alone: of moments it has those of the
    /// piece. To be asked for behind [`Plan::with_optimizer`].
    ///
    /// # Panics
    /// If there is no such piece, or [there are none](Plan::has_pieces).
    #[must_use]
    #[track_caller]
    pub const fn with_piece(mut self, index: usize, count: usize) -> Self {
        if !PIECES {
            let missing = LeftOut { part: "a piece of an update", feature: "pieces" };
            missing.message().panic();
        }
        assert!(index < count, "there is no such piece");
        assert!(self.has_pieces(), "moments of this optimizer are whole");
        let block = squares_block(self.trained_len());
        self.piece = if count == 1 { Piece::WHOLE } else { Piece { index, count, block } };
        self
    }

    /// What is updated: the piece of [`Plan::with_piece`], or all.
    #[must_use]
    pub const fn piece(&self) -> Piece {
        if PIECES { self.piece } else { Piece::WHOLE }
    }

    /// Floats that are updated.
    pub(crate) const fn own_len(&self) -> usize {
        self.piece().len(self.trained_len())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::architecture::Architecture;
    use crate::config::ModelConfig;
    use crate::plan::{BatchShape, Mode};
    use cllm_kernels::Kernels;
    extern crate std;
    use std::vec;

    #[test]
    fn pieces_are_all_of_the_arena_once_and_their_moments_lie_close() {
        for len in [1, 9, 10, 11, 95, 100, 101, 119] {
            for count in [1, 2, 3, 7, 20] {
                let mut owners = vec![0; len];
                let mut all = 0;
                for index in 0..count {
                    let piece = Piece { index, count, block: 10 };
                    let piece = if count == 1 { Piece::WHOLE } else { piece };
                    let mut places = vec![0; piece.len(len)];
                    all += places.len();
                    // Tensors of any length are parts of it.
                    for start in (0..len).step_by(7) {
                        for (span, place) in piece.spans(start..len.min(start + 7)) {
                            assert!(!span.is_empty());
                            places[place..place + span.len()].iter_mut().for_each(|n| *n += 1);
                            owners[span].iter_mut().for_each(|n| *n += 1);
                        }
                    }
                    assert!(places.iter().all(|n| *n == 1), "{index} of {count} of {len}");
                }
                assert!(owners.iter().all(|n| *n == 1), "{count} of {len}");
                assert_eq!(all, len, "{count}");
            }
        }
    }

    #[test]
    fn blocks_are_the_arena_and_moments_in_8_bits_have_no_pieces() {
        let config = ModelConfig {
            vocab_size: 300,
            block_size: 16,
            n_layer: 3,
            n_head: 2,
            d_model: 48,
            d_ff: 192,
            bias: true,
            tied: false,
            dropout: 0.0,
            norm_eps: 1e-5,
            arch: Architecture::GPT2,
        };
        let batch = BatchShape { sequences: 1, tokens: 16 };
        let plan = Plan::new(&config, batch, 1, Mode::Train, Kernels::scalar()).unwrap();
        let mut end = 0;
        for n in 0..plan.blocks() {
            assert_eq!(plan.block(n).start, end);
            end = plan.block(n).end;
        }
        assert_eq!(end, plan.arena_len());
        assert!(plan.blocks() > 2 && plan.block(plan.blocks()).is_empty());
        assert!(plan.has_pieces());
        for whole in [OptimizerKind::AdamW8, OptimizerKind::Muon] {
            assert!(!plan.with_optimizer(whole).has_pieces());
        }
    }
}
