//! Weights that come from elsewhere, piece by piece: those of which only panels are kept are in memory as
//! floats a piece at a time, and the token table that goes with them stays elsewhere.

use super::Trainer;
use crate::line::floats_mut;
use crate::params::{Param, ParamSpec};
use crate::plan::{LOADED_ROWS, Packing, Plan, PlanError, Pool};
use crate::program::Matrix;
use cllm_kernels::{Kernels, MatRef};

impl<'a> Trainer<'a> {
    /// Where tokens are looked up if matrices are kept as panels ([`Packing::Kept`]): the bytes of the token
    /// table, of `f32` with the lowest byte first, row after row. Only rows of tokens in batches are read.
    /// Other plans have the table among the parameters and look at it there.
    ///
    /// # Errors
    /// There are fewer bytes than the table has.
    pub fn look_up_in(mut self, table: &'a [u8]) -> Result<Self, PlanError> {
        let config = &self.machine.plan.config;
        let need = 4 * config.vocab_size * config.d_model;
        if table.len() < need {
            return Err(PlanError::TooSmall { pool: Pool::Parameters, need, got: table.len() });
        }
        self.machine.token_table = Some(&table[..need]);
        Ok(self)
    }

    /// Sets the weights of the model, adapters apart. `read` is asked for the values of each tensor of
    /// [`Plan::table`], in its order, and writes all of them: of those in [`Plan::resident`] at once; of
    /// others 256 rows at a time, the number of the first of which it is told, in `staging`, of which
    /// panels are made ([`Packing::Kept`]).
    ///
    /// # Errors
    /// Those of `read`. The weights are then in part what they were: load again.
    ///
    /// # Panics
    /// If `staging` is shorter than [`Plan::staging_len`].
    pub fn load<E>(
        &mut self,
        staging: &mut [f32],
        mut read: impl FnMut(&ParamSpec, usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let machine = &mut self.machine;
        let plan = &machine.plan;
        machine.packed_is_current = false;
        self.micro = 0;
        for spec in plan.table.iter() {
            if let Some(resident) = plan.resident.spec(spec.param) {
                read(&spec, 0, &mut floats_mut(machine.parameters)[resident.range()])?;
                continue;
            }
            for first in (0..spec.rows).step_by(LOADED_ROWS) {
                let rows = LOADED_ROWS.min(spec.rows - first);
                let values = &mut staging[..rows * spec.cols];
                read(&spec, first, values)?;
                let piece = MatRef::new(values, rows, spec.cols, spec.cols);
                let matrix = match spec.param {
                    Param::TokenTable if plan.config.tied => Some((Matrix::Head, 0)),
                    param => Matrix::of(param),
                };
                if let Some(matrix) = matrix {
                    keep(plan, machine.kernels, matrix, (first, piece), floats_mut(machine.packed));
                }
            }
        }
        machine.packed_is_current = plan.grain.packing == Packing::Kept;
        Ok(())
    }
}

/// Makes the panels of some rows of a matrix as it is stored, from row `first` on, among those of all.
///
/// ```text
/// one way round they are columns         whole panels of all of the inner dimension
/// the other way a part of that           a part of every panel
/// ```
fn keep(
    plan: &Plan,
    kernels: &Kernels,
    (matrix, block): (Matrix, usize),
    (first, piece): (usize, MatRef<'_>),
    packed: &mut [f32],
) {
    let (inputs, outputs) = matrix.shape(plan);
    // The output projection is stored outputs first.
    let is_head = matrix == Matrix::Head;
    let len = |k: usize, n: usize| kernels.packed_len(k, n).unwrap_or(0);
    let depth = if is_head { inputs } else { outputs };
    let at = plan.layout.panels(matrix, block, !is_head) + len(depth, first);
    let columns = piece.t();
    kernels.pack(columns, &mut packed[at..at + len(columns.rows(), columns.cols())]);
    let depth = if is_head { outputs } else { inputs };
    let at = plan.layout.panels(matrix, block, is_head);
    for column in (0..piece.cols()).step_by(kernels.panel()) {
        let part = piece.col_range(column, kernels.panel().min(piece.cols() - column));
        let at = at + len(depth, column) + len(first, kernels.panel());
        kernels.pack(part, &mut packed[at..at + len(part.rows(), part.cols())]);
    }
}
