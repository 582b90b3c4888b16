//! How many bytes of memory the tiles move that do little else.
//!
//! Passes over arenas and tables read and write every byte once and compute next to
//! nothing, so where many cores do them at once memory is the limit. Products, attention and
//! the chains over row blocks are left out: what they read mostly lies in caches, and
//! they compute for long enough to hide the rest.

use super::{Kind, Op};
use crate::moments::blocks;
use crate::optimizer::OptimizerKind;
use crate::plan::{COLUMN_BLOCK, PARTIAL_ROWS, Plan, TABLE_ROWS, squares_block};

const FLOAT: usize = size_of::<f32>();

/// Bytes of the update of so many values: all kinds read weight and gradient and write the weight, and they
/// read and write what they remember.
fn update_bytes(optimizer: OptimizerKind, len: usize) -> usize {
    let moments = match optimizer {
        OptimizerKind::AdamW => 2 * FLOAT * len,
        OptimizerKind::AdamW8 => 2 * len + 2 * FLOAT * blocks(len),
        OptimizerKind::Momentum | OptimizerKind::Muon => FLOAT * len,
        OptimizerKind::Sgd => 0,
    };
    3 * FLOAT * len + 2 * moments
}

/// Size of piece `tile` of `len` things cut into pieces of `block`.
fn piece(len: usize, block: usize, tile: usize) -> usize {
    block.min(len.saturating_sub(tile.saturating_mul(block)))
}

impl Plan {
    /// Bytes that a tile of `op` moves from and to memory, if it is of a kind that memory
    /// limits; 0 for others. `tile` counts the operation's own tiles.
    #[must_use]
    pub fn streamed_bytes(&self, op: Op, tile: u32) -> u64 {
        let (tile, index) = (tile as usize, op.index as usize);
        let (tokens, c) = (self.tokens(), &self.config);
        let arena = self.trained_len();
        let floats = match op.kind {
            Kind::Pack(m) => {
                let (inputs, outputs) = m.shape(self);
                2 * inputs * piece(outputs, COLUMN_BLOCK, tile)
            }
            Kind::PackTransposed(m) => {
                let (inputs, outputs) = m.shape(self);
                2 * outputs * piece(inputs, COLUMN_BLOCK, tile)
            }
            Kind::NormGrad(_) => {
                2 * tokens.div_ceil(PARTIAL_ROWS) * piece(c.d_model, COLUMN_BLOCK, tile)
            }
            Kind::TokenTableGrad => {
                // A tile looks up its share of the tokens, about.
                let rows = piece(c.vocab_size, TABLE_ROWS, tile);
                (2 * rows + tokens * rows / c.vocab_size) * c.d_model
            }
            Kind::PositionTableGrad => {
                let rows = piece(self.batch.tokens, TABLE_ROWS, tile);
                (self.batch.sequences + 1) * rows * c.d_model
            }
            // A row of the table and one of its gradient for each token.
            Kind::PreviousGrad => {
                let per_token = c.d_model.div_ceil(COLUMN_BLOCK);
                2 * tokens * piece(c.d_model, COLUMN_BLOCK, tile % per_token)
            }
            Kind::Squares => piece(arena, squares_block(arena), tile),
            Kind::Update => {
                let len = self.trained(index).map_or(0, |tensor| tensor.len);
                let len = piece(len, self.update_block(), tile);
                // What of a model Muon leaves is AdamW's.
                let kind = match self.optimizer() {
                    OptimizerKind::Muon => OptimizerKind::AdamW,
                    kind => kind,
                };
                return update_bytes(kind, len) as u64;
            }
            _ => 0,
        };
        (floats * FLOAT) as u64
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Architecture, BatchShape, Kernels, Mode, ModelConfig};

    #[test]
    fn the_update_moves_every_parameter_and_the_norm_reads_every_gradient() {
        let config = ModelConfig {
            vocab_size: 5000,
            block_size: 64,
            n_layer: 2,
            n_head: 4,
            d_model: 128,
            d_ff: 512,
            bias: true,
            tied: true,
            dropout: 0.0,
            norm_eps: 1e-5,
            arch: Architecture::GPT2,
        };
        let batch = BatchShape { sequences: 4, tokens: 64 };
        let plan = Plan::new(&config, batch, 2, Mode::Train, Kernels::scalar()).unwrap();
        let total_of = |plan: &Plan, kind: Kind, index: usize, tiles: u32| -> u64 {
            let op = Op { kind, index: index as u32, tiles };
            (0..tiles).map(|tile| plan.streamed_bytes(op, tile)).sum()
        };
        let updated = |optimizer: OptimizerKind| -> u64 {
            let plan = plan.with_optimizer(optimizer);
            (0..plan.table().count()).map(|i| total_of(&plan, Kind::Update, i, 1000)).sum()
        };
        let parameters = plan.table().parameters() as u64;
        assert_eq!(updated(OptimizerKind::AdamW), 7 * 4 * parameters);
        assert_eq!(updated(OptimizerKind::Momentum), 5 * 4 * parameters);
        assert_eq!(updated(OptimizerKind::Sgd), 3 * 4 * parameters);
        // Every tensor is whole blocks of moments.
        assert_eq!(updated(OptimizerKind::AdamW8), (3 * 4 + 2 * 2) * parameters + parameters / 4);
        let total = |kind: Kind, index: usize, tiles: u32| total_of(&plan, kind, index, tiles);
        let arena = 4 * plan.table().arena_len() as u64;
        assert_eq!(total(Kind::Squares, 0, 1000), arena);
        assert_eq!(total(Kind::Pack(super::super::Matrix::Fc), 0, 2), 2 * 4 * 128 * 512);
        assert_eq!(total(Kind::Fc, 0, 4), 0);
    }
}
