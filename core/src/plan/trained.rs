//! What a plan trains: the parameters, or adapters in their place.

use super::{BatchShape, COLUMN_BLOCK, Plan};
use crate::adapter::AdapterTable;
use crate::arithmetic::{least, most, some};
use crate::built::ADAPTERS;
use crate::params::{Param, ParamTable};
use crate::program::Matrix;

/// Rows of a matrix that is kept as panels which are handed over at a time: whole panels, and whole pieces of
/// the inner dimension of any format.
pub(crate) const LOADED_ROWS: usize = COLUMN_BLOCK;

/// A tensor that is trained: its place in the arenas of gradients and moments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trained {
    pub(crate) offset: usize,
    pub(crate) len: usize,
    /// Weight decay applies.
    pub(crate) decay: bool,
    /// Which of the model's parameters it is; `None` for a factor of an adapter.
    pub(crate) param: Option<Param>,
}

impl Plan {
    /// The adapters, if they are trained in the place of the parameters.
    #[must_use]
    pub const fn adapters(&self) -> Option<&AdapterTable> {
        match &self.adapters {
            Some(table) if ADAPTERS => Some(table),
            _ => None,
        }
    }

    /// Whether a matrix of each block has an adapter.
    pub(crate) const fn is_adapted(&self, matrix: Matrix) -> bool {
        match self.adapters() {
            Some(table) => table.factors(matrix, 0).is_some(),
            None => false,
        }
    }

    /// The table of what of the model lies in the arena of parameters: all of it, but not the token table and
    /// matrices if those are kept as panels ([`Packing::Kept`](super::Packing::Kept)).
    #[must_use]
    pub const fn resident(&self) -> &ParamTable {
        &self.resident
    }

    /// Floats of the largest piece of a matrix, of 256 rows, of those that are kept as panels: what
    /// [`Trainer::load`] wants for it on its way there. 0 if there is none.
    ///
    /// [`Trainer::load`]: crate::Trainer::load
    #[must_use]
    pub const fn staging_len(&self) -> usize {
        let (mut len, mut i) = (0, 0);
        while let Some(param) = self.table.param(i) {
            if let (Some(place), None) = (self.table.place(param), self.resident.place(param)) {
                len = most(len, least(place.rows, LOADED_ROWS) * place.cols);
            }
            i += 1;
        }
        len
    }

    /// Floats of the arena that is trained.
    pub(crate) const fn trained_len(&self) -> usize {
        match self.adapters() {
            Some(table) => table.arena_len(),
            None => self.table.arena_len(),
        }
    }

    /// Where that begins in the arena of parameters.
    pub(crate) const fn trained_at(&self) -> usize {
        if self.adapters().is_some() { self.resident.arena_len() } else { 0 }
    }

    /// Tensors of the arena that is trained.
    pub(crate) const fn trained_count(&self) -> usize {
        match self.adapters() {
            Some(table) => table.count(),
            None => self.table.count(),
        }
    }

    /// One of them.
    pub(crate) const fn trained(&self, index: usize) -> Option<Trained> {
        let (offset, len, decay, param) = match self.adapters() {
            Some(table) => {
                let factor = some!(table.get(index));
                (factor.offset, factor.len(), true, None)
            }
            None => {
                let param = some!(self.table.param(index));
                let place = some!(self.table.place(param));
                (place.offset, place.rows * place.cols, !place.vector, Some(param))
            }
        };
        Some(Trained { offset, len, decay, param })
    }

    /// Floating-point operations of a step of one batch, counted as by [`ModelConfig::step_flops`]. Where
    /// adapters are trained there are no products for gradients of the model's own matrices: those are 4
    /// operations a value and token rather than 6, and values of adapters 6.
    ///
    /// [`ModelConfig::step_flops`]: crate::ModelConfig::step_flops
    #[must_use]
    pub fn step_flops(&self) -> f64 {
        let BatchShape { sequences, tokens } = self.batch;
        let Some(table) = self.adapters() else { return self.config.step_flops(sequences, tokens) };
        let products = 4.0 * self.config.matrix_values() + 6.0 * table.parameters() as f64;
        (products + self.config.attention_flops(tokens)) * self.tokens() as f64
    }
}
