//! What Muon takes of a model: which matrices, in which parts, and where second moments of the others lie.

use super::Plan;
use crate::arithmetic::{most, some};
use crate::config::ModelConfig;
use crate::line::LANES;
use crate::muon::Room;
use crate::optimizer::OptimizerKind;
use crate::params::{BlockParam, Param};
use crate::program::Matrix;
use cllm_kernels::Footprint;
use core::ops::Range;

/// The matrix that a tensor is, if Muon takes it.
pub(crate) const fn taken(param: Param) -> Option<Matrix> {
    match param {
        Param::Block(_, BlockParam::Qkv) => Some(Matrix::Qkv),
        Param::Block(_, BlockParam::AttnOut) => Some(Matrix::AttnOut),
        Param::Block(_, BlockParam::Fc) => Some(Matrix::Fc),
        Param::Block(_, BlockParam::MlpOut) => Some(Matrix::MlpOut),
        _ => None,
    }
}

/// The matrices that a matrix is, side by side: queries, keys and values, or a gate and what it lets through.
/// Each has singular values of its own.
pub(crate) const fn parts(c: &ModelConfig, matrix: Matrix) -> (usize, [usize; 3]) {
    let (_, cols) = c.matrices()[matrix as usize];
    match matrix {
        Matrix::Qkv => (3, [c.query_width(), c.kv_width(), c.kv_width()]),
        Matrix::Fc if c.arch.is_gated() => (2, [cols / 2, cols / 2, 0]),
        _ => (1, [cols, 0, 0]),
    }
}

/// Floats of a worker's scratch for the largest part of a model's matrices; `None` on overflow.
pub(crate) const fn scratch_len(c: &ModelConfig, kernels: Footprint) -> Option<usize> {
    let (mut len, mut i) = (0, 0);
    while i < Matrix::OF_BLOCK.len() {
        let matrix = Matrix::OF_BLOCK[i];
        let ((rows, _), (count, widths)) = (c.matrices()[matrix as usize], parts(c, matrix));
        let mut part = 0;
        while part < count {
            let room = some!(Room::new(rows, widths[part], kernels));
            len = most(len, some!(room.len()));
            part += 1;
        }
        i += 1;
    }
    Some(len)
}

/// A matrix that Muon updates as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) rows: usize,
    /// Of those of the tensor.
    pub(crate) cols: Range<usize>,
    /// Floats from a row of the tensor to the next.
    pub(crate) stride: usize,
}

impl Plan {
    /// The matrix that a trained tensor is, if the plan's optimizer is Muon and takes it: those of blocks. Tables
    /// and the output projection, whose rows are looked up or compared one by one, and vectors are AdamW's.
    pub(crate) const fn muon_matrix(&self, index: usize) -> Option<Matrix> {
        if !matches!(self.optimizer(), OptimizerKind::Muon) || self.adapters().is_some() {
            return None;
        }
        taken(some!(self.table.param(index)))
    }

    /// A part of such a tensor.
    pub(crate) fn muon_part(&self, index: usize, part: usize) -> Option<Part> {
        let matrix = self.muon_matrix(index)?;
        let (rows, stride) = matrix.shape(self);
        let (count, widths) = parts(&self.config, matrix);
        let first = widths.iter().take(part).sum();
        (part < count).then(|| Part { rows, cols: first..first + widths[part], stride })
    }

    /// Floats of the matrices of a block that Muon takes, with the gaps behind them, of those before `end`.
    const fn muon_floats(&self, end: BlockParam) -> usize {
        let of_block = [BlockParam::Qkv, BlockParam::AttnOut, BlockParam::Fc, BlockParam::MlpOut];
        let (mut sum, mut i) = (0, 0);
        while i < of_block.len() {
            if (of_block[i] as usize) < end as usize {
                let (rows, cols) = self.config.matrices()[i];
                sum += (rows * cols).next_multiple_of(LANES);
            }
            i += 1;
        }
        sum
    }

    /// Floats of all of them.
    pub(super) const fn muon_len(&self) -> usize {
        if self.adapters().is_some() {
            return 0;
        }
        // No tensor of a block stands behind the last bias.
        self.config.n_layer * self.muon_floats(BlockParam::MlpOutBias)
    }

    /// Where Muon's second moment of a float of a tensor of AdamW's is: as in an arena, where it is at `offset`, but for
    /// the matrices before, which have none.
    pub(crate) const fn second_offset(&self, index: usize, offset: usize) -> usize {
        let of_block = self.muon_floats(BlockParam::MlpOutBias);
        let before = match self.table.param(index) {
            _ if self.adapters().is_some() => 0,
            Some(Param::Block(block, param)) => block * of_block + self.muon_floats(param),
            Some(Param::FinalGain | Param::FinalBias | Param::Head) => {
                self.config.n_layer * of_block
            }
            _ => 0,
        };
        offset - before
    }
}
