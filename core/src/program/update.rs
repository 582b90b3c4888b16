//! The end of a step: the gradient's norm, and the update of all tensors.

use super::{Builder, Kind, Section, after};
use crate::engine::{Needs, Shape};
use crate::plan::{muon_parts, squares_block};
use crate::program::sink::Few;

/// Who updates a tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// Muon, a tile for each matrix that the tensor is.
    Muon,
    /// The plan's optimizer, or AdamW beside Muon, by tiles of elements.
    Elements,
}

impl Builder<'_, '_> {
    pub(super) const fn update(&mut self) {
        self.section = Section::Measure;
        let arena = self.plan.trained_len();
        let tiles = arena.div_ceil(squares_block(arena));
        let squares = self.list(Needs::NOTHING, &Few::one((Kind::Squares, 0, tiles)));
        let clip = self.list(after(squares), &Few::one((Kind::Clip, 0, 1)));
        self.section = Section::Update;
        let first_op = self.program.ops;
        // Muon's tiles take long: whoever begins one last is waited for.
        let tiles = self.updates(By::Muon);
        let tiles = tiles.saturating_add(self.updates(By::Elements));
        self.stage(Shape::List, tiles, after(clip), first_op);
    }

    /// The operations on all tensors that are updated so; how many tiles they have.
    const fn updates(&mut self, by: By) -> usize {
        let (plan, block) = (self.plan, self.plan.update_block());
        let (mut tiles, mut index) = (0_usize, 0);
        while index < plan.trained_count() {
            let op = match (by, plan.muon_matrix(index), plan.trained(index)) {
                (By::Muon, Some(matrix), Some(_)) => {
                    Some((Kind::Muon, index, muon_parts(&plan.config, matrix).0))
                }
                (By::Elements, None, Some(tensor)) => {
                    Some((Kind::Update, index, tensor.len.div_ceil(block)))
                }
                _ => None,
            };
            if let Some(op) = op {
                tiles = tiles.saturating_add(op.2);
                self.op(op);
            }
            index += 1;
        }
        tiles
    }
}
