//! The error bounds of all kernels, in one place.
//!
//! `U = 2^-24` is the unit roundoff: one operation in `f32` is exact to a relative
//! `U`, a sum of n terms in any order to `n U` times the sum of their magnitudes
//! (Higham, "Accuracy and Stability of Numerical Algorithms", chapter 4). Bounds
//! are first-order worst cases, not typical errors: what a right kernel can never
//! exceed on any instruction set. Below about 1e-37, where denormals begin, a bound
//! is absolute: [`TINY`].
//!
//! | kernel | bound |
//! |---|---|
//! | gemm, gemm_unpacked | `(k + 2) U sum \|a\|\|b\|`, `+ U` a further operation |
//! | exp | 2 ULP (through softmax: 4) |
//! | gelu | `(8 + 6 \|2u\| (1 - gate)) U` relative |
//! | swiglu | `10 U` relative; its gradients by the parts of the slope |
//! | results of bf16 | `2^-8` of themselves more |
//! | rotate | `3 U` of the magnitudes of both products |
//! | layer_norm, RMS norm | `(n + 16) U` of the magnitudes that cancel |
//! | layer_norm_backward | 4 times that |
//! | cross_entropy | `(n + 8 + \|x - max\|) 2 U` absolute (loss), relative (gradient) |
//! | attention | `(keys + 8 + (head + 4) largest score) 4 U` of the magnitudes |
//! | attention in bf16 | `2^-8` of the magnitudes more for each rounding on the way |
//! | sums (column_sum, sum_squares) | `n U` of the magnitudes |
//! | adamw | 16 U a step, relative to the update's parts |
//! | sgd, momentum | 8 U a step, relative to the same |
//! | embedding, accumulate, scale, dropout | correctly rounded: exact |

use super::reference;
use cllm_kernels::Dtype;

/// Unit roundoff of `f32`.
pub(crate) const U: f64 = 1.0 / (1 << 24) as f64;

/// Products of factors near the smallest normal number may be flushed or denormal.
pub(crate) const TINY: f64 = 1e-36;

/// A sum of `k` products: `k` additions and (without FMA) a rounding for each product;
/// one more addition for each block of the depth, one for what C held.
pub(crate) fn gemm(k: usize, magnitude: f64) -> f64 {
    (k + k / 64 + 2) as f64 * U * magnitude
}

/// Two ULP by the analysis in `math.rs`; one ULP is up to `2 U` relative.
pub(crate) const EXP_ULP: f64 = 2.0;

/// exp, the sum, its reciprocal, the product: 2 + 3 half ULP, and the sum's own error.
pub(crate) const SOFTMAX_ULP: f64 = 4.0;

/// The argument `2u` of the gate carries three roundings, which exp turns into a relative
/// error of `3 U |2u|`, damped by `1 - gate`; exp, sum, quotient and product add 4 ULP.
pub(crate) fn gelu(x: f64) -> f64 {
    let (gate, two_u) = reference::gelu_gate(x);
    (8.0 + 6.0 * two_u.abs() * (1.0 - gate)) * U * (x * gate).abs() + TINY
}

/// As [`gelu`], for `gate + x gate (1 - gate) slope`; `1 - gate` is exact to `U` absolute.
pub(crate) fn gelu_slope(x: f64) -> f64 {
    let (gate, two_u) = reference::gelu_gate(x);
    let gate_error = 8.0 + 6.0 * two_u.abs() * (1.0 - gate);
    let bell = x.abs() * gate * reference::gelu_two_u_slope(x);
    U * (gate_error * gate + bell * ((1.0 - gate) * (8.0 + 2.0 * gate_error) + 2.0)) + TINY
}

/// The gate is exact to 8 U: of `e^-x`, 2 ULP, damped by `1 - gate`, a sum and a quotient. Two products
/// more.
pub(crate) fn swiglu(magnitude: f64) -> f64 {
    10.0 * U * magnitude + TINY
}

/// `gate + silu (1 - gate)`; `1 - gate` is exact to 9 U of 1, and a sum and two products more.
pub(crate) fn silu_slope(x: f64) -> f64 {
    let gate = reference::logistic(x);
    let silu = (x * gate).abs();
    U * (10.0 * gate + silu * ((1.0 - gate) * 12.0 + 10.0 * gate + 1.0)) + TINY
}

/// A result that is within `bound` of `exact` before it is rounded to bf16: by `2^-8` of itself at most,
/// half the distance to the next.
pub(crate) fn halves(exact: f64, bound: f64) -> f64 {
    bound + (exact.abs() + bound) / 256.0
}

/// Two products and their sum.
pub(crate) fn rotation(magnitude: f64) -> f64 {
    3.0 * U * magnitude + TINY
}

/// An error `e` of GELU's input reaches its output at most 1.13-fold: the largest slope.
pub(crate) const GELU_STEEPEST: f64 = 1.13;

/// The mean is off by `n U mean|x|`; the variance by `(n + 3) U` relative, the root halves
/// that; a few operations more. `spread` is `(mean|x| + |x - mean|) rstd`.
pub(crate) fn layer_norm(cols: usize, spread: f64, gain: f64, bias: f64) -> f64 {
    (cols + 16) as f64 * U * (spread * gain.abs() + bias.abs())
}

/// Sums over `n` with factors of [`layer_norm`]'s accuracy; `magnitude` is the same formula
/// over absolute values.
pub(crate) fn layer_norm_backward(rows: usize, cols: usize, magnitude: f64) -> f64 {
    4.0 * (rows + cols + 16) as f64 * U * magnitude
}

/// The sum of n exponentials is exact to `n U` and exp's own error; its logarithm turns
/// that into an absolute error. The differences are exact to `U` of themselves.
pub(crate) fn cross_entropy_loss(cols: usize, distance: f64) -> f64 {
    (cols as f64 + 8.0 + distance.abs()) * 2.0 * U
}

/// As the loss, relative to `p`; the target's `p - 1` is exact to `U` absolute.
pub(crate) fn cross_entropy_grad(cols: usize, distance: f64, p: f64, scale: f64) -> f64 {
    (((cols as f64 + 8.0 + distance.abs()) * p + 1.0) * 2.0 * U) * scale.abs() + TINY
}

/// A score is a product of depth `head`; exp turns its absolute error, `(head + 4) U` of the
/// largest score, into a relative one of each probability. The sums over keys follow.
/// `magnitude` is the same formula over absolute values.
pub(crate) fn attention(keys: usize, head: usize, largest: f64, magnitude: f64) -> f64 {
    ((keys + 8) as f64 + (head + 4) as f64 * largest) * 4.0 * U * magnitude + TINY
}

/// Products of bf16 round a probability before it is multiplied: by `2^-8` of itself at most, half the
/// distance to the next.
pub(crate) fn probabilities(dtype: Dtype, magnitude: f64) -> f64 {
    if dtype == Dtype::Bf16 { magnitude / 256.0 } else { 0.0 }
}

/// As [`probabilities`], of gradients: those of the scores are rounded, and their row's sum
/// `rowsum(dO O)` is of an O whose probabilities are.
pub(crate) fn attention_gradients(dtype: Dtype, magnitude: f64) -> f64 {
    2.1 * probabilities(dtype, magnitude)
}

/// A sum of `n` terms.
pub(crate) fn sum(n: usize, magnitude: f64) -> f64 {
    (n + 1) as f64 * U * magnitude
}

/// Ten operations on positive parts, and the moments' errors of all steps so far.
pub(crate) fn adamw(steps: usize, magnitude: f64) -> f64 {
    16.0 * steps as f64 * U * magnitude + TINY
}

/// Five operations, and the moment's errors of all steps so far.
pub(crate) fn descent(steps: usize, magnitude: f64) -> f64 {
    8.0 * steps as f64 * U * magnitude + TINY
}

/// Central differences of an `f64` reference with a step of [`reference::STEP`] are
/// exact to about `STEP^2` of the third derivative and `1e-16 / STEP`: below this.
pub(crate) const DIFFERENCES: f64 = 2e-8;
