//! Layer and RMS normalisation, forward and backward, a row at a time.
//!
//! Ba, Kiros and Hinton, "Layer normalization" (2016):
//! `y = (x - mean) * rstd * gain + bias`, `rstd = 1 / sqrt(variance + eps)`,
//! with the variance of the population. The variance is a second pass over the
//! row (it is in L1), for the one-pass form cancels.
//!
//! Zhang and Sennrich, "Root mean square layer normalization" (2019), is the same with 0 for the
//! mean, forward and for the gradient: nothing is taken off, and no derivative goes through it.

use crate::elements::{Elements, Floats};
use crate::gemm::format::{Format, Single};
use crate::simd::{Simd, load_up_to, store_up_to};

/// A row-wise pass over raw memory. Built by the safe methods of [`crate::Kernels`].
#[derive(Clone, Copy)]
pub(crate) struct RawNorm {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) x: *const f32,
    pub(crate) x_row: usize,
    pub(crate) gain: *const f32,
    /// Forward, and backward to make y again.
    pub(crate) bias: Option<*const f32>,
    pub(crate) eps: f32,
    /// Forward: written. Backward: read. An RMS norm has no mean.
    pub(crate) mean: Option<*mut f32>,
    pub(crate) rstd: *mut f32,
    /// Forward: the result. Backward: the gradient of x.
    pub(crate) out: *mut f32,
    pub(crate) out_row: usize,
    /// Backward: the gradient of y.
    pub(crate) dy: *const f32,
    pub(crate) dy_row: usize,
    /// Backward: add to `out` instead of overwriting it.
    pub(crate) accumulate: bool,
    /// Backward: y takes the place of x, which is then writable.
    pub(crate) restores_y: bool,
    /// Backward: overwritten with this pass's sums over rows.
    pub(crate) dgain: *mut f32,
    pub(crate) dbias: Option<*mut f32>,
}

/// # Safety
/// All operands of the forward pass are valid for their shapes; `out` overlaps nothing else.
#[inline(always)]
pub(crate) unsafe fn forward<S: Simd>(s: S, a: &RawNorm) {
    // SAFETY: passed on from the caller.
    unsafe { forward_into::<S, Single, _>(s, Floats, a) }
}

/// [`forward`] with a result of elements of another kind, to which `a.out` points then.
///
/// # Safety
/// As for [`forward`].
#[inline(always)]
pub(crate) unsafe fn forward_into<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    m: M,
    a: &RawNorm,
) {
    let n = a.cols;
    let inverse = 1.0 / n as f32;
    let step = SUMS * S::LANES;
    for r in 0..a.rows {
        // SAFETY: row r of each operand, columns below n.
        unsafe {
            let x = a.x.add(r * a.x_row);
            let mean = if a.mean.is_some() { sum(s, x, n) * inverse } else { 0.0 };
            let centre = s.splat(mean);
            let mut squares = [s.splat(0.0); SUMS];
            let mut i = 0;
            while i + step <= n {
                for (q, squares) in squares.iter_mut().enumerate() {
                    let d = s.sub(s.load(x.add(i + q * S::LANES)), centre);
                    *squares = s.mul_add(d, d, *squares);
                }
                i += step;
            }
            while i + S::LANES <= n {
                let d = s.sub(s.load(x.add(i)), centre);
                squares[0] = s.mul_add(d, d, squares[0]);
                i += S::LANES;
            }
            let mut variance = s.sum(together(s, squares));
            while i < n {
                let d = *x.add(i) - mean;
                variance += d * d;
                i += 1;
            }
            // The same number in all lanes: a root of a single one would be made by software.
            let root = s.sqrt(s.splat(variance * inverse + a.eps));
            let factor = s.div(s.splat(1.0), root);
            if let Some(to) = a.mean {
                *to.add(r) = mean;
            }
            store_up_to(s, a.rstd.add(r), factor, 1);
            let y = a.out.cast::<M::Element>().add(r * a.out_row);
            let mut i = 0;
            while i < n {
                let left = (n - i).min(S::LANES);
                let hat = s.mul(s.sub(load_up_to(s, x.add(i), left), centre), factor);
                let scaled = s.mul(hat, load_up_to(s, a.gain.add(i), left));
                let shifted = match a.bias {
                    Some(bias) => s.add(scaled, load_up_to(s, bias.add(i), left)),
                    None => scaled,
                };
                m.store(s, y.add(i), shifted, left);
                i += left;
            }
        }
    }
}

/// The sum of a row.
///
/// # Safety
/// `x` is valid for `n` floats.
#[inline(always)]
unsafe fn sum<S: Simd>(s: S, x: *const f32, n: usize) -> f32 {
    let step = SUMS * S::LANES;
    let mut totals = [s.splat(0.0); SUMS];
    let mut i = 0;
    // SAFETY: elements below n.
    unsafe {
        while i + step <= n {
            for (q, total) in totals.iter_mut().enumerate() {
                *total = s.add(*total, s.load(x.add(i + q * S::LANES)));
            }
            i += step;
        }
        while i < n {
            let left = (n - i).min(S::LANES);
            totals[0] = s.add(totals[0], load_up_to(s, x.add(i), left));
            i += left;
        }
    }
    s.sum(together(s, totals))
}

/// Sums of a row that are made at a time: one would wait for itself at each step.
const SUMS: usize = 4;

#[inline(always)]
fn together<S: Simd>(s: S, sums: [S::V; SUMS]) -> S::V {
    s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))
}

/// With `h = (x - mean) rstd` and `w = gain dy`, row by row:
/// `dx = rstd (w - mean(w) - h mean(w h))`; over rows: `dgain = sum dy h`, `dbias = sum dy`.
/// An RMS norm has no `mean(w)`.
/// If wanted, y is made again in place of x, by the operations of [`forward`].
///
/// # Safety
/// All operands of the backward pass are valid for their shapes; `out`, `dgain` and
/// `dbias` overlap nothing else, and neither does x if y takes its place.
#[inline(always)]
pub(crate) unsafe fn backward<S: Simd>(s: S, a: &RawNorm) {
    // SAFETY: passed on from the caller.
    unsafe { backward_into::<S, Single, _>(s, Floats, a) }
}

/// [`backward`] with a y of elements of another kind, no larger than floats, if it takes the
/// place of x: rows of both start at the same places.
///
/// # Safety
/// As for [`backward`].
#[inline(always)]
pub(crate) unsafe fn backward_into<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    m: M,
    a: &RawNorm,
) {
    let n = a.cols;
    let inverse = 1.0 / n as f32;
    for i in 0..n {
        // SAFETY: element i of the two sums, of n each.
        unsafe {
            *a.dgain.add(i) = 0.0;
            if let Some(dbias) = a.dbias {
                *dbias.add(i) = 0.0;
            }
        }
    }
    for r in 0..a.rows {
        // SAFETY: row r of each operand, columns below n.
        unsafe {
            let (x, dy) = (a.x.add(r * a.x_row), a.dy.add(r * a.dy_row));
            let centre = s.splat(a.mean.map_or(0.0, |mean| *mean.add(r)));
            let rstd = *a.rstd.add(r);
            let factor = s.splat(rstd);
            let (mut sum_w, mut sum_wh) = (s.splat(0.0), s.splat(0.0));
            let mut i = 0;
            while i < n {
                let left = (n - i).min(S::LANES);
                let grad = load_up_to(s, dy.add(i), left);
                let hat = s.mul(s.sub(load_up_to(s, x.add(i), left), centre), factor);
                let w = s.mul(grad, load_up_to(s, a.gain.add(i), left));
                sum_w = s.add(sum_w, w);
                // Lanes beyond n have w = 0, whatever h is there.
                sum_wh = s.mul_add(w, hat, sum_wh);
                let dgain = load_up_to(s, a.dgain.add(i), left);
                store_up_to(s, a.dgain.add(i), s.mul_add(grad, hat, dgain), left);
                if let Some(dbias) = a.dbias {
                    let sum = s.add(load_up_to(s, dbias.add(i), left), grad);
                    store_up_to(s, dbias.add(i), sum, left);
                }
                i += left;
            }
            let mean_w = s.splat(if a.mean.is_some() { s.sum(sum_w) * inverse } else { 0.0 });
            let mean_wh = s.splat(s.sum(sum_wh) * inverse);
            let dx = a.out.add(r * a.out_row);
            let mut i = 0;
            while i < n {
                let left = (n - i).min(S::LANES);
                let grad = load_up_to(s, dy.add(i), left);
                let hat = s.mul(s.sub(load_up_to(s, x.add(i), left), centre), factor);
                let w = s.mul(grad, load_up_to(s, a.gain.add(i), left));
                let inner = s.sub(s.sub(w, mean_w), s.mul(hat, mean_wh));
                let mut out = s.mul(inner, factor);
                if a.accumulate {
                    out = s.add(out, load_up_to(s, dx.add(i), left));
                }
                store_up_to(s, dx.add(i), out, left);
                if a.restores_y {
                    let scaled = s.mul(hat, load_up_to(s, a.gain.add(i), left));
                    let shifted = match a.bias {
                        Some(bias) => s.add(scaled, load_up_to(s, bias.add(i), left)),
                        None => scaled,
                    };
                    // Smaller elements are written behind those that are read.
                    m.store(s, x.cast_mut().cast::<M::Element>().add(i), shifted, left);
                }
                i += left;
            }
        }
    }
}
