//! Gradients of the parameters: products and sums over all tokens, in a fixed order.
//!
//! Each tile owns a piece of the result and goes through all tokens itself. There is
//! no copy of a gradient per worker and nothing to reduce between workers, so the
//! bits cannot depend on how many there are.
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use super::Step;
use crate::params::Param;
use crate::plan::{Buffer, COLUMN_BLOCK, PARTIAL_ROWS, TABLE_ROWS};
use crate::program::{Matrix, Norm};
use cllm_kernels::Write;

impl Step<'_> {
    /// Input and output gradient of a product with a block's matrix.
    pub(super) fn operands(&self, matrix: Matrix, block: usize) -> (Buffer, Buffer) {
        let (c, layout) = (&self.plan.config, &self.plan.layout);
        let d = c.d_model;
        let (b, g) = (layout.block(block), layout.grads(block));
        let floats = Buffer::floats;
        // The backward pass has made outputs of norms and activations again where their inputs were.
        match matrix {
            Matrix::Qkv => (layout.norm1(block), floats(layout.dqkv(block).0, c.qkv_width())),
            Matrix::AttnOut => (floats(b.att, c.query_width()), floats(g.masked_att, d)),
            Matrix::Fc => (layout.norm_in_place(b.mid), layout.dfc(block)),
            Matrix::MlpOut => (layout.fc(block), floats(g.masked_mlp, d)),
            Matrix::Head => {
                let last = self.plan.config.n_layer - 1;
                let x = layout.norm_in_place(layout.block_output(last));
                (x, layout.dlogits(0))
            }
        }
    }

    /// First row, first column, rows and columns of a tile of a weight's gradient.
    pub(super) fn weight_tile(
        &self,
        tile: usize,
        height: usize,
        width: usize,
    ) -> (usize, usize, usize, usize) {
        let (rows, cols) = (self.plan.grain.weight_rows, self.plan.grain.weight_cols);
        let per_row = width.div_ceil(cols);
        let (i, j) = (tile / per_row * rows, tile % per_row * cols);
        (i, j, rows.min(height - i), cols.min(width - j))
    }

    /// How a weight's gradient is written, if it may be `begun` by rows before.
    pub(super) fn write(&self, begun: bool) -> Write {
        if self.accumulate || begun { Write::Accumulate } else { self.plan.grain.writes }
    }

    /// `dW (+)= X^T dY` for one tile of a block's weight. The tiles of its first rows make the
    /// bias's gradient too, `db (+)= ` column sums of dY.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn weight_grad(
        &self,
        matrix: Matrix,
        block: usize,
        tile: usize,
        scratch: &mut [f32],
    ) {
        let Some(spec) = self.spec(matrix.weight(self.plan, block)) else { return };
        let (x, dy) = self.operands(matrix, block);
        let (height, n) = matrix.shape(self.plan);
        let tokens = (0, self.plan.tokens());
        let (i, j, rows, cols) = self.weight_tile(tile, height, n);
        let bias = matrix.bias(block).filter(|_| i == 0).and_then(|param| self.spec(param));
        // SAFETY: the tile owns its part of the weight's gradient, and of the bias's its columns,
        // if they are those of its first rows; X and dY are done.
        unsafe {
            let x = self.operand(x, tokens, (i, rows)).t();
            let dy = self.operand(dy, tokens, (j, cols));
            let out = self.grads.mat_mut(spec.offset + i * n + j, (rows, cols), n);
            if let Some(bias) = bias {
                let sums = self.grads.slice_mut(bias.offset + j, cols);
                let write = self.write(false);
                self.kernels.gemm_unpacked_with_sums(x, dy, out, sums, write, scratch);
            } else {
                self.kernels.gemm_unpacked(x, dy, out, self.write(false), scratch);
            }
        }
    }

    /// Adds up the sums of each [`PARTIAL_ROWS`] rows for a norm's gain and bias, for 256 columns.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn norm_grad(&self, norm: Norm, block: usize, tile: usize) {
        let d = self.plan.config.d_model;
        let layout = &self.plan.layout;
        let partial = match norm {
            Norm::First => layout.grads_into(block).partial1,
            Norm::Second => layout.grads(block).partial2,
            Norm::Final => layout.grads(self.plan.config.n_layer - 1).partial1,
        };
        let pieces = self.plan.tokens().div_ceil(PARTIAL_ROWS);
        let first = tile * COLUMN_BLOCK;
        let cols = COLUMN_BLOCK.min(d - first);
        let (gain, bias) = Self::norm_params(norm, block);
        for (param, half) in [(gain, 0), (bias, d)] {
            let Some(spec) = self.spec(param) else { continue };
            // SAFETY: the tile owns its columns of the gradient; the sums are done.
            unsafe {
                let stride = self.plan.config.norm_vectors() * d;
                let sums = self.act.mat(partial + half + first, (pieces, cols), stride);
                let out = self.grads.slice_mut(spec.offset + first, cols);
                self.kernels.column_sum(sums, out, self.accumulate);
            }
        }
    }

    /// Adds the embedding's gradient to 256 rows of the token table's.
    ///
    /// A tied table already holds the output projection's gradient of this batch.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn token_table_grad(&self, tile: usize) {
        let Some(spec) = self.spec(Param::TokenTable) else { return };
        let d = self.plan.config.d_model;
        let first = tile * TABLE_ROWS;
        let ids = TABLE_ROWS.min(spec.rows - first);
        // SAFETY: the tile owns its rows of the gradient; dx is done.
        unsafe {
            let out = self.grads.slice_mut(spec.offset + first * d, ids * d);
            if !self.accumulate && !self.plan.config.tied {
                out.fill(0.0);
            }
            let dx = self.act.mat(self.plan.layout.grads_into(0).dx, (self.plan.tokens(), d), d);
            self.kernels.embedding_backward(self.tokens, dx, out, first);
            if let Some(previous) = self.previous() {
                previous.table_grad(dx, first..first + ids, out);
            }
        }
    }

    /// Gradient of the weights of tokens before: of those of one of them some columns, by all tokens.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn previous_grad(&self, tile: usize) {
        let Some(spec) = self.spec(Param::Previous) else { return };
        let d = self.plan.config.d_model;
        let per_token = d.div_ceil(COLUMN_BLOCK);
        let (back, first) = (tile / per_token, tile % per_token * COLUMN_BLOCK);
        let cols = COLUMN_BLOCK.min(d - first);
        // SAFETY: the tile owns its columns of the gradient; dx is done, and tables are not being updated.
        unsafe {
            let (Some(previous), Some(table)) = (self.previous(), self.vector(Param::TokenTable))
            else {
                return;
            };
            let out = self.grads.slice_mut(spec.offset + back * d + first, cols);
            if !self.accumulate {
                out.fill(0.0);
            }
            let dx = self.act.mat(self.plan.layout.grads_into(0).dx, (self.plan.tokens(), d), d);
            previous.weight_grad(back, first, (table, dx), out);
        }
    }

    /// Sums the embedding's gradient over the sequences for 256 positions.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn position_table_grad(&self, tile: usize) {
        let Some(spec) = self.spec(Param::PositionTable) else { return };
        let d = self.plan.config.d_model;
        let first = tile * TABLE_ROWS;
        let places = TABLE_ROWS.min(spec.rows - first);
        let t = self.plan.batch.tokens;
        // SAFETY: the tile owns its rows of the gradient; dx is done.
        unsafe {
            let out = self.grads.slice_mut(spec.offset + first * d, places * d);
            if !self.accumulate {
                out.fill(0.0);
            }
            if let Some(starts) = self.starts() {
                // Row by row: a position is that in a document, of which a sequence may hold many.
                for (row, start) in starts.iter().enumerate() {
                    let place = row % t - *start as usize;
                    if (first..first + places).contains(&place) {
                        let to = &mut out[(place - first) * d..][..d];
                        let at = self.plan.layout.grads_into(0).dx + row * d;
                        self.kernels.accumulate(to, self.act.slice(at, d));
                    }
                }
                return;
            }
            // Positions beyond the batch's sequences have no gradient.
            let live = places.min(t.saturating_sub(first)) * d;
            let sequences = if live > 0 { self.plan.batch.sequences } else { 0 };
            for sequence in 0..sequences {
                let at = self.plan.layout.grads_into(0).dx + (sequence * t + first) * d;
                self.kernels.accumulate(&mut out[..live], self.act.slice(at, live));
            }
        }
    }
}
