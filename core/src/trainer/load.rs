//! Weights that come from elsewhere, piece by piece: those of which only panels are kept are in memory as
//! floats a piece at a time, and the token table that goes with them stays elsewhere. So may the panels.
#![expect(unsafe_code, reason = "lends panels that are only read: see `shared`")]

use super::{Pools, Trainer};
use crate::engine::Engine;
use crate::line::{Line, floats_mut};
use crate::params::{Param, ParamSpec};
use crate::plan::{LOADED_ROWS, Packing, Plan, PlanError, Pool};
use crate::program::Matrix;
use crate::shared::Shared;
use cllm_kernels::{Kernels, MatRef};

/// Where the panels of weights lie.
pub(super) enum Panels<'a> {
    /// In [`Pools::packed`].
    Own(&'a mut [Line]),
    /// Where they are only read, of a plan that keeps them.
    Lent(&'a [Line]),
}

impl<'a> Panels<'a> {
    /// # Errors
    /// The plan does not keep panels, or there are too few.
    pub(super) fn lent(plan: &Plan, panels: &'a [Line]) -> Result<Self, PlanError> {
        if plan.packing() != Packing::Kept {
            return Err(PlanError::NothingKept);
        }
        plan.check(Pool::Packed, size_of_val(panels))?;
        Ok(Self::Lent(&panels[..plan.lines(Pool::Packed)]))
    }

    pub(super) fn shared(&mut self) -> Shared<'_> {
        match self {
            Self::Own(lines) => Shared::new(lines),
            // SAFETY: a program packs no weights that are kept, and nothing else writes here.
            Self::Lent(lines) => unsafe { Shared::read_only(lines) },
        }
    }

    fn lines(&self) -> &[Line] {
        match self {
            Self::Own(lines) => lines,
            Self::Lent(lines) => lines,
        }
    }
}

impl<'a> Trainer<'a> {
    /// As [`Trainer::new`], of a plan that keeps matrices as panels ([`Packing::Kept`]), over panels that are there
    /// and are only read: a mapped file, or flash memory. They are what [`Trainer::panels`] of a trainer with such a
    /// plan and the same kernels gives once it has loaded. [`Pools::packed`] may be empty.
    ///
    /// What is still to come are the other tensors ([`Trainer::load`], which then reads no matrix, or
    /// [`Trainer::parameters_mut`]) and the token table ([`Trainer::look_up_in`]).
    ///
    /// # Errors
    /// As for [`Trainer::new`]; the plan keeps no panels, or there are too few.
    pub fn over_panels(
        plan: &Plan,
        kernels: &'static Kernels,
        pools: Pools<'a>,
        panels: &'a [Line],
        engine: &'a Engine<'a>,
        seed: u64,
    ) -> Result<Self, PlanError> {
        Self::over(plan, kernels, pools, Some(panels), engine, seed)
    }

    /// The panels of all matrices that are kept as such ([`Packing::Kept`]), for [`Trainer::over_panels`]: what
    /// [`Trainer::load`] has made of them for these kernels. Of other plans they are of the last step's weights.
    #[must_use]
    pub fn panels(&self) -> &[Line] {
        self.machine.packed.lines()
    }

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
    /// panels are made ([`Packing::Kept`]), unless they are there ([`Trainer::over_panels`]).
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
        let mut packed = match &mut machine.packed {
            Panels::Own(lines) => Some(floats_mut(lines)),
            Panels::Lent(_) => None,
        };
        machine.packed_is_current = false;
        self.micro = 0;
        for spec in plan.table.iter() {
            if let Some(resident) = plan.resident.spec(spec.param) {
                read(&spec, 0, &mut floats_mut(machine.parameters)[resident.range()])?;
                continue;
            }
            let Some(packed) = &mut packed else { continue };
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
                    keep(plan, machine.kernels, matrix, (first, piece), packed);
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
