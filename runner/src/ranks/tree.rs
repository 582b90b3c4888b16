//! Sums of gradients over a tree: the part that is within a rank.
//!
//! Parts come one after the other into one arena. A sum waits for its neighbour as long as a bit of a counter is set:
//!
//! ```text
//! part 0   g0           waits at level 0
//! part 1   g0 + g1      waits at level 1
//! part 2   g2           waits at level 0
//! part 3   (g0 + g1) + (g2 + g3)
//! ```
//! That takes an arena more for each level, and nothing where there is one part.

use cllm_core::Kernels;

/// Sums that wait.
#[derive(Debug)]
pub(crate) struct Tree {
    parts: usize,
    /// Those of 1, 2, 4 ... parts.
    waiting: Vec<Box<[f32]>>,
}

impl Tree {
    /// For gradients of `len` floats of `parts` parts.
    pub(crate) fn new(parts: usize, len: usize) -> Self {
        Self { parts, waiting: (0..levels(parts)).map(|_| vec![0.0; len].into()).collect() }
    }

    /// Bytes that a tree takes.
    pub(crate) fn bytes(parts: usize, len: usize) -> usize {
        levels(parts) * len * size_of::<f32>()
    }

    /// Part number `part` has its gradients in `arena`; behind the last they are the sum of all parts. Allocates
    /// nothing.
    pub(crate) fn end_part(&mut self, kernels: &Kernels, part: usize, arena: &mut [f32]) {
        let is_last = part + 1 == self.parts;
        let neighbours = part.trailing_ones() as usize;
        for (level, sum) in self.waiting.iter().enumerate() {
            if level < neighbours || is_last && part >> level & 1 == 1 {
                kernels.accumulate(arena, sum);
            }
        }
        if !is_last {
            self.waiting[neighbours].copy_from_slice(arena);
        }
    }

    /// The same of the last part, for those of its gradients that begin with number `at`.
    pub(crate) fn end_last(&self, kernels: &Kernels, at: usize, gradients: &mut [f32]) {
        let last = self.parts - 1;
        for (level, sum) in self.waiting.iter().enumerate() {
            if last >> level & 1 == 1 {
                kernels.accumulate(gradients, &sum[at..at + gradients.len()]);
            }
        }
    }
}

/// Sums that wait at the same time, at most.
fn levels(parts: usize) -> usize {
    parts.saturating_sub(1).checked_ilog2().map_or(0, |log| log as usize + 1)
}

/// The sum over the tree as it is defined, for tests.
#[cfg(test)]
pub(super) fn recursive(leaves: &[f32]) -> f32 {
    match leaves {
        [leaf] => *leaf,
        _ => {
            let left = leaves.len().next_power_of_two() / 2;
            recursive(&leaves[..left]) + recursive(&leaves[left..])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of numbers whose sum depends on the order.
    fn leaf(n: usize) -> f32 {
        ((n * 7919 + 13) % 1009) as f32 / 97.0 * 10_f32.powi((n % 7) as i32 - 3)
    }

    #[test]
    fn sums_are_those_of_the_tree() {
        let mut differs = false;
        for parts in 1..=33 {
            let leaves: Vec<f32> = (0..parts).map(leaf).collect();
            let mut tree = Tree::new(parts, 3);
            assert_eq!(Tree::bytes(parts, 3), 12 * tree.waiting.len());
            // Twice: nothing is left of a step.
            for _ in 0..2 {
                let mut arena = [0.0; 3];
                for (part, value) in leaves.iter().enumerate() {
                    arena = [*value; 3];
                    tree.end_part(Kernels::scalar(), part, &mut arena);
                }
                assert_eq!(arena.map(f32::to_bits), [recursive(&leaves).to_bits(); 3], "{parts}");
                // The last in pieces.
                let mut last = [leaves[parts - 1]; 3];
                tree.end_last(Kernels::scalar(), 2, &mut last[2..]);
                tree.end_last(Kernels::scalar(), 0, &mut last[..2]);
                assert_eq!(last.map(f32::to_bits), arena.map(f32::to_bits), "{parts}");
            }
            let in_a_row = leaves.iter().copied().reduce(|a, b| a + b).unwrap();
            differs |= in_a_row.to_bits() != recursive(&leaves).to_bits();
        }
        assert!(differs, "the order makes no difference here");
    }
}
