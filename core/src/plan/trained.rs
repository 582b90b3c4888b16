//! What a plan trains: the parameters, or adapters in their place.

use super::{BatchShape, Plan};
use crate::adapter::AdapterTable;
use crate::program::Matrix;

/// A tensor that is trained: its place in the arenas of gradients and moments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trained {
    pub(crate) offset: usize,
    pub(crate) len: usize,
    /// Weight decay applies.
    pub(crate) decay: bool,
}

impl Plan {
    /// The adapters, if they are trained in the place of the parameters.
    #[must_use]
    pub fn adapters(&self) -> Option<&AdapterTable> {
        self.adapters.as_ref()
    }

    /// Whether a matrix of each block has an adapter.
    pub(crate) fn is_adapted(&self, matrix: Matrix) -> bool {
        self.adapters.as_ref().is_some_and(|table| table.factors(matrix, 0).is_some())
    }

    /// Floats of the arena that is trained.
    pub(crate) fn trained_len(&self) -> usize {
        self.adapters.as_ref().map_or(self.table.arena_len(), AdapterTable::arena_len)
    }

    /// Where that begins in the arena of parameters.
    pub(crate) fn trained_at(&self) -> usize {
        if self.adapters.is_some() { self.table.arena_len() } else { 0 }
    }

    /// Tensors of the arena that is trained.
    pub(crate) fn trained_count(&self) -> usize {
        self.adapters.as_ref().map_or(self.table.count(), AdapterTable::count)
    }

    /// One of them.
    pub(crate) fn trained(&self, index: usize) -> Option<Trained> {
        match &self.adapters {
            Some(table) => table.get(index).map(|factor| Trained {
                offset: factor.offset,
                len: factor.len(),
                decay: true,
            }),
            None => self.table.get(index).map(|spec| Trained {
                offset: spec.offset,
                len: spec.len(),
                decay: spec.decay,
            }),
        }
    }

    /// Floating-point operations of a step of one batch, counted as by [`ModelConfig::step_flops`]. Where
    /// adapters are trained there are no products for gradients of the model's own matrices: those are 4
    /// operations a value and token rather than 6, and values of adapters 6.
    ///
    /// [`ModelConfig::step_flops`]: crate::ModelConfig::step_flops
    #[must_use]
    pub fn step_flops(&self) -> f64 {
        let BatchShape { sequences, tokens } = self.batch;
        let Some(table) = &self.adapters else { return self.config.step_flops(sequences, tokens) };
        let products = 4.0 * self.config.matrix_values() + 6.0 * table.parameters() as f64;
        (products + self.config.attention_flops(tokens)) * self.tokens() as f64
    }
}
