//! Row-wise methods of the table: norms, cross-entropy, embeddings, dropout.

use crate::Kernels;
use crate::attention::Rows;
use crate::built::LLAMA;
use crate::dropout::Dropout;
use crate::elements::{Bf16, Operand, OperandMut};
use crate::embedding::RawEmbedding;
use crate::mat::{MatMut, MatRef};
use crate::norm::RawNorm;
use crate::softmax::{IGNORE, RawCrossEntropy};

/// What the forward pass of a layer norm or RMS norm leaves for the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct NormSaved<'a> {
    /// Input of the forward pass, `rows x cols`.
    pub x: MatRef<'a>,
    /// Gain, `cols`.
    pub gain: &'a [f32],
    /// Mean of each row; `None` for an RMS norm, as in the forward pass.
    pub mean: Option<&'a [f32]>,
    /// `1 / sqrt(variance + eps)` of each row; of an RMS norm the mean of squares for the variance.
    pub rstd: &'a [f32],
}

/// [`NormSaved`] of a norm whose output is wanted again, in place of its input.
#[derive(Debug)]
pub struct NormInPlace<'a> {
    /// Input of the forward pass, `rows x cols`; becomes its output.
    pub x: MatMut<'a>,
    /// That is of bf16: its rows start where those of `x` do. Only for tables with
    /// [`Kernels::keeps_halves`].
    pub halves: bool,
    /// Gain, `cols`.
    pub gain: &'a [f32],
    /// Bias of the forward pass.
    pub bias: Option<&'a [f32]>,
    /// Mean of each row; `None` for an RMS norm, as in the forward pass.
    pub mean: Option<&'a [f32]>,
    /// `1 / sqrt(variance + eps)` of each row; of an RMS norm the mean of squares for the variance.
    pub rstd: &'a [f32],
}

/// # Panics
/// If the rows are not contiguous.
pub(crate) fn rows_of(m: MatRef<'_>) -> Rows {
    assert!(m.col_stride == 1, "rows must be contiguous");
    Rows { ptr: m.ptr, stride: m.row_stride }
}

/// The backward pass of a norm, without its output.
///
/// # Panics
/// If a shape does not fit that of `saved.x`.
fn raw_norm_backward(
    saved: &NormSaved<'_>,
    dy: MatRef<'_>,
    dx: &MatMut<'_>,
    accumulate: bool,
    dgain: &mut [f32],
    dbias: Option<&mut [f32]>,
) -> RawNorm {
    let (rows, cols) = (saved.x.rows(), saved.x.cols());
    assert!(dy.rows() == rows && dy.cols() == cols, "layer_norm_backward: dy");
    assert!(dx.rows() == rows && dx.cols() == cols, "layer_norm_backward: dx");
    let of_rows = |of: &[f32]| of.len() == rows;
    assert!(
        saved.mean.is_none_or(of_rows) && of_rows(saved.rstd),
        "layer_norm_backward: {rows} rows"
    );
    assert!(saved.gain.len() == cols && dgain.len() == cols, "layer_norm_backward: gain");
    assert!(dbias.as_ref().is_none_or(|b| b.len() == cols), "layer_norm_backward: bias");
    let (x, dy) = (rows_of(saved.x), rows_of(dy));
    RawNorm {
        rows,
        cols,
        x: x.ptr,
        x_row: x.stride,
        gain: saved.gain.as_ptr(),
        bias: None,
        eps: 0.0,
        mean: saved.mean.map(|mean| mean.as_ptr().cast_mut()),
        rstd: saved.rstd.as_ptr().cast_mut(),
        out: dx.ptr,
        out_row: dx.row_stride,
        dy: dy.ptr,
        dy_row: dy.stride,
        accumulate,
        restores_y: false,
        dgain: dgain.as_mut_ptr(),
        dbias: dbias.map(<[f32]>::as_mut_ptr),
    }
}

/// # Panics
/// As for [`Kernels::cross_entropy`].
fn raw_cross_entropy(
    logits: MatMut<'_>,
    targets: &[u32],
    losses: &mut [f32],
    grad_scale: Option<f32>,
    cap: Option<f32>,
) -> RawCrossEntropy {
    let (rows, cols) = (logits.rows(), logits.cols());
    assert!(targets.len() == rows && losses.len() == rows, "cross_entropy: {rows} rows");
    assert!(cols > 0, "cross_entropy: no columns");
    let known = |t: &u32| *t == IGNORE || (*t as usize) < cols;
    assert!(targets.iter().all(known), "cross_entropy: a target is not below {cols}");
    let is_cap = |cap: f32| cap > 0.0 && cap.is_finite();
    assert!(LLAMA || cap.is_none(), "cross_entropy: caps are not built (feature `llama`)");
    assert!(cap.is_none_or(is_cap), "cross_entropy: a cap of {cap:?}");
    RawCrossEntropy {
        rows,
        cols,
        logits: logits.ptr,
        row_stride: logits.row_stride,
        targets: targets.as_ptr(),
        losses: losses.as_mut_ptr(),
        cap,
        grad_scale,
    }
}

impl Kernels {
    /// Layer norm of each row of `x`, or without `mean` RMS norm: overwrites `y`, `mean` and `rstd`.
    ///
    /// ```
    /// use cllm_kernels::{Kernels, MatMut, MatRef};
    ///
    /// let kernels = Kernels::detect();
    /// let (x, gain, mut y) = ([1.0, 3.0, -2.0, 2.0], [1.0, 10.0], [0.0; 4]);
    /// let (x, mut mean, mut rstd) = (MatRef::new(&x, 2, 2, 2), [0.0; 2], [0.0; 2]);
    /// let out = MatMut::new(&mut y, 2, 2, 2);
    /// kernels.layer_norm(x, &gain, Some(&[0.0, 1.0]), 1e-6, out, Some(&mut mean), &mut rstd);
    /// assert_eq!(mean, [2.0, 0.0]);
    /// assert!((rstd[0] - 1.0).abs() < 1e-5 && (rstd[1] - 0.5).abs() < 1e-5);
    /// assert!(y.iter().zip([-1.0, 11.0, -1.0, 11.0]).all(|(y, want)| (y - want).abs() < 1e-3));
    /// ```
    ///
    /// # Panics
    /// If a shape does not fit that of `x`.
    #[expect(clippy::too_many_arguments, reason = "four inputs and three outputs, all slices")]
    pub fn layer_norm<'y>(
        &self,
        x: MatRef<'_>,
        gain: &[f32],
        bias: Option<&[f32]>,
        eps: f32,
        y: impl Into<OperandMut<'y>>,
        mean: Option<&mut [f32]>,
        rstd: &mut [f32],
    ) {
        let (rows, cols, y) = (x.rows(), x.cols(), y.into());
        assert!(y.shape() == (rows, cols), "layer_norm: y is not {rows}x{cols}");
        let y = y.raw();
        let of_rows = mean.as_ref().is_none_or(|mean| mean.len() == rows);
        assert!(of_rows && rstd.len() == rows, "layer_norm: {rows} rows");
        assert!(gain.len() == cols && bias.is_none_or(|b| b.len() == cols), "layer_norm: {cols}");
        let x = rows_of(x);
        let a = RawNorm {
            rows,
            cols,
            x: x.ptr,
            x_row: x.stride,
            gain: gain.as_ptr(),
            bias: bias.map(<[f32]>::as_ptr),
            eps,
            mean: mean.map(<[f32]>::as_mut_ptr),
            rstd: rstd.as_mut_ptr(),
            out: y.ptr.cast_mut(),
            out_row: y.row,
            dy: core::ptr::null(),
            dy_row: 0,
            accumulate: false,
            restores_y: false,
            dgain: core::ptr::null_mut(),
            dbias: None,
        };
        let kernel = if y.half { self.keeps().norm_forward } else { self.norm_forward };
        // SAFETY: the shapes were just checked; outputs are exclusive; the kernel writes
        // elements of y's kind.
        unsafe { kernel(&a) }
    }

    /// Backward pass of [`Kernels::layer_norm`].
    ///
    /// `dx` is overwritten, or added to with `accumulate`; `dgain` and `dbias` are
    /// overwritten with the sums over these rows.
    ///
    /// # Panics
    /// If a shape does not fit that of `saved.x`.
    pub fn layer_norm_backward(
        &self,
        saved: &NormSaved<'_>,
        dy: MatRef<'_>,
        dx: MatMut<'_>,
        accumulate: bool,
        dgain: &mut [f32],
        dbias: Option<&mut [f32]>,
    ) {
        let a = raw_norm_backward(saved, dy, &dx, accumulate, dgain, dbias);
        // SAFETY: the shapes were just checked; outputs are exclusive; mean and rstd are
        // only read in this direction.
        unsafe { (self.norm_backward)(&a) }
    }

    /// [`Kernels::layer_norm_backward`] that leaves in place of `saved.x` what the forward
    /// pass made of it, with the same bits: for the gradient of the weights behind the norm,
    /// so that only the input need be kept.
    ///
    /// # Panics
    /// If a shape does not fit that of `saved.x`.
    pub fn layer_norm_backward_in_place(
        &self,
        saved: &mut NormInPlace<'_>,
        dy: MatRef<'_>,
        dx: MatMut<'_>,
        accumulate: bool,
        dgain: &mut [f32],
        dbias: Option<&mut [f32]>,
    ) {
        let NormInPlace { x, halves, gain, bias, mean, rstd } = saved;
        let cols = x.cols();
        assert!(bias.is_none_or(|b| b.len() == cols), "layer_norm_backward: bias");
        let read = NormSaved { x: x.as_ref(), gain, mean: *mean, rstd };
        let a = RawNorm {
            x: x.ptr,
            bias: bias.map(<[f32]>::as_ptr),
            restores_y: true,
            ..raw_norm_backward(&read, dy, &dx, accumulate, dgain, dbias)
        };
        let kernel = if *halves { self.keeps().norm_backward } else { self.norm_backward };
        // SAFETY: the shapes were just checked; outputs, x among them, are exclusive, and a
        // row of x has room for its output; mean and rstd are only read in this direction.
        unsafe { kernel(&a) }
    }

    /// Cross-entropy of each row of `logits` against its target; see
    /// [`crate::IGNORE`] for targets that do not count.
    ///
    /// Overwrites `losses` (nats). With `grad_scale` the logits become their own
    /// gradient times that; without, they are left as they are. With a `cap` the logits are
    /// [`Kernels::soft_cap`] of what is there, which they become, and the gradient is that of what is there.
    ///
    /// ```
    /// use cllm_kernels::{IGNORE, Kernels, MatMut};
    ///
    /// // Two rows of four logits; the second row's target does not count.
    /// let (mut logits, mut losses) = ([0.5; 8], [0.0; 2]);
    /// let rows = MatMut::new(&mut logits, 2, 4, 4);
    /// Kernels::detect().cross_entropy(rows, &[2, IGNORE], &mut losses, Some(1.0), None);
    /// assert!((losses[0] - 4_f32.ln()).abs() < 1e-5);
    /// assert_eq!(losses[1], 0.0);
    /// // Probabilities, less 1 at the target.
    /// let want = [0.25, 0.25, -0.75, 0.25, 0.0, 0.0, 0.0, 0.0];
    /// assert!(logits.iter().zip(want).all(|(x, want)| (x - want).abs() < 1e-5));
    /// ```
    ///
    /// # Panics
    /// If lengths differ, there are no columns, a target is not a column, or the cap is not positive
    /// and finite.
    pub fn cross_entropy(
        &self,
        logits: MatMut<'_>,
        targets: &[u32],
        losses: &mut [f32],
        grad_scale: Option<f32>,
        cap: Option<f32>,
    ) {
        let a = raw_cross_entropy(logits, targets, losses, grad_scale, cap);
        // SAFETY: shapes and targets were just checked; outputs are exclusive.
        unsafe { (self.cross_entropy)(&a) }
    }

    /// As [`Kernels::cross_entropy`] with a gradient of bf16 in the place of the logits: rows
    /// of it start where those of the logits do. Behind an odd number of columns comes one of
    /// zeros, so that it is a left-hand side of products.
    ///
    /// # Panics
    /// As for [`Kernels::cross_entropy`], and if the table has not
    /// [`Kernels::keeps_halves`].
    pub fn cross_entropy_in_halves<'a>(
        &self,
        logits: MatMut<'a>,
        targets: &[u32],
        losses: &mut [f32],
        grad_scale: f32,
        cap: Option<f32>,
    ) -> MatMut<'a, Bf16> {
        let (rows, cols, stride) = (logits.rows(), logits.cols(), logits.row_stride);
        let (ptr, kernel) = (logits.ptr, self.keeps().cross_entropy);
        let a = raw_cross_entropy(logits, targets, losses, Some(grad_scale), cap);
        // SAFETY: shapes and targets were just checked; outputs are exclusive; the table keeps
        // bf16. Two of them lie in a float, of which a row has as many as columns.
        unsafe {
            kernel(&a);
            MatMut::from_raw(ptr.cast(), rows, cols.next_multiple_of(2), 2 * stride)
        }
    }

    /// `out[r] = table[tokens[r]] + positions[(first + r) % period + offset]`: overwrites.
    ///
    /// `table` and `positions` are whole rows of `out.cols()` floats. Without `positions`, for models
    /// whose positions are rotary, the row is the token's row alone; `first`, `period` and `offset`
    /// then mean nothing.
    ///
    /// ```
    /// use cllm_kernels::{Kernels, MatMut};
    ///
    /// let table = [0.0, 1.0, 10.0, 11.0, 20.0, 21.0];
    /// let positions = [0.5, 0.5, 0.25, 0.25];
    /// // Two sequences of two tokens, one behind the other.
    /// let (tokens, mut out) = ([2, 0, 1, 1], [0.0; 8]);
    /// let rows = MatMut::new(&mut out, 4, 2, 2);
    /// Kernels::detect().embedding(&tokens, &table, Some(&positions), 0, 2, 0, rows);
    /// assert_eq!(out, [20.5, 21.5, 0.25, 1.25, 10.5, 11.5, 10.25, 11.25]);
    /// ```
    ///
    /// # Panics
    /// If lengths do not fit, or a token or a position is outside its table.
    #[expect(clippy::too_many_arguments, reason = "two tables, their indices and the result")]
    pub fn embedding(
        &self,
        tokens: &[u32],
        table: &[f32],
        positions: Option<&[f32]>,
        first: usize,
        period: usize,
        offset: usize,
        out: MatMut<'_>,
    ) {
        let (rows, cols) = (out.rows(), out.cols());
        assert!(tokens.len() == rows, "embedding: {} tokens for {rows} rows", tokens.len());
        let inside = |t: &u32| (*t as usize) < table.len() / cols.max(1);
        assert!(tokens.iter().all(inside), "embedding: a token is outside the table");
        let most = offset.saturating_add(period.min(first.saturating_add(rows)));
        let known = |p: &[f32]| period > 0 && most <= p.len() / cols.max(1);
        assert!(positions.is_none_or(known), "embedding: positions");
        let a = RawEmbedding {
            rows,
            cols,
            tokens: tokens.as_ptr(),
            table: table.as_ptr(),
            positions: positions.map(<[f32]>::as_ptr),
            first,
            period,
            offset,
            out: out.ptr,
            out_row: out.row_stride,
        };
        // SAFETY: tokens and positions were just checked; out is exclusive.
        unsafe { (self.embedding_gather)(&a) }
    }

    /// Adds each row of `grad` to the row `tokens[r] - first_id` of `table` (whole rows
    /// of `grad.cols()`), in the order of the rows; tokens outside the table's
    /// range are left to the caller of the other ranges.
    ///
    /// # Panics
    /// If there are not as many tokens as rows.
    pub fn embedding_backward(
        &self,
        tokens: &[u32],
        grad: MatRef<'_>,
        table: &mut [f32],
        first_id: usize,
    ) {
        let (rows, cols) = (grad.rows(), grad.cols());
        assert!(tokens.len() == rows, "embedding_backward: {} tokens", tokens.len());
        let grad = rows_of(grad);
        let ids = table.len() / cols.max(1);
        // SAFETY: `ids` whole rows fit in the table; the shapes were just checked.
        unsafe {
            (self.embedding_scatter)(
                tokens.as_ptr(),
                rows,
                grad.ptr,
                grad.stride,
                cols,
                table.as_mut_ptr(),
                first_id,
                ids,
            );
        }
    }

    /// `dst = ` sum over the rows of `src`, or `dst += ` it with `accumulate`.
    ///
    /// # Panics
    /// If `dst` has not `src.cols()` elements.
    pub fn column_sum<'s>(&self, src: impl Into<Operand<'s>>, dst: &mut [f32], accumulate: bool) {
        let src = src.into();
        let (rows, cols) = src.shape();
        assert_eq!(dst.len(), cols, "column_sum: columns");
        let src = src.raw();
        assert!(src.col == 1, "rows must be contiguous");
        let dst = dst.as_mut_ptr();
        // SAFETY: `src` is valid for its shape and of its kind, `dst` for its columns.
        unsafe {
            if src.half {
                let column_sum = self.keeps().column_sum;
                column_sum(src.ptr.cast(), src.row, rows, cols, dst, accumulate);
            } else {
                (self.column_sum)(src.ptr, src.row, rows, cols, dst, accumulate);
            }
        }
    }

    /// `m *= mask`, row by row; row r has the mask's row `first_row + r`.
    pub fn dropout_in_place(&self, mut m: MatMut<'_>, dropout: &Dropout, first_row: u32) {
        for r in 0..m.rows() {
            let row = m.row_mut(r);
            let (at, cols) = (row.as_mut_ptr(), row.len());
            // SAFETY: the row is its own length; source and result are the same array.
            unsafe { (self.dropout_row)(at, at, cols, dropout, first_row.wrapping_add(r as u32)) }
        }
    }

    /// `dst = src * mask`, row by row; row r has the mask's row `first_row + r`. A source of bf16 may have
    /// a column more, which is not read.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn dropout<'a>(
        &self,
        src: impl Into<Operand<'a>>,
        mut dst: MatMut<'_>,
        dropout: &Dropout,
        first_row: u32,
    ) {
        let src = match src.into() {
            Operand::Float(src) => src,
            Operand::Half(src) => {
                let (rows, cols) = (dst.rows(), dst.cols());
                assert!(src.rows() == rows && src.cols() >= cols, "dropout: shapes differ");
                for r in 0..rows {
                    for (x, half) in dst.row_mut(r).iter_mut().zip(src.row(r)) {
                        *x = half.to_f32();
                    }
                }
                return self.dropout_in_place(dst, dropout, first_row);
            }
        };
        assert!(src.rows() == dst.rows() && src.cols() == dst.cols(), "dropout: shapes differ");
        let (from, cols) = (rows_of(src), src.cols());
        for r in 0..src.rows() {
            let row = first_row.wrapping_add(r as u32);
            // SAFETY: row r of both, of `cols` floats each.
            unsafe {
                let (to, from) = (dst.ptr.add(r * dst.row_stride), from.ptr.add(r * from.stride));
                (self.dropout_row)(to, from, cols, dropout, row);
            }
        }
    }
}
