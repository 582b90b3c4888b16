//! Elementary functions on vectors: `exp`, the logistic gate of GELU, its slope.

use crate::simd::Simd;

/// `e^x`, within 2 ULP of the exact value where it neither over- nor underflows.
///
/// Overflows to infinity from 88.38 (exact: 88.72) and flushes to zero below
/// -87.68. NaN stays NaN.
///
/// Method: Cody-Waite reduction `x = n ln 2 + r`, `|r| <= ln 2 / 2`, and the
/// degree-6 polynomial of Cephes' `expf` (Moshier, 1989).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // The clamp keeps n in -127..=128, where `exp2_int` gives exactly 0 and infinity.
    let x = s.max(s.splat(-88.0), s.min(s.splat(88.7), x));
    let n = s.round(s.mul(x, s.splat(core::f32::consts::LOG2_E)));
    let r = s.mul_add(n, s.splat(-0.693_359_4), x);
    let r = s.mul_add(n, s.splat(2.121_944_4e-4), r);
    let p = s.splat(1.987_569_1e-4);
    let p = s.mul_add(p, r, s.splat(1.398_199_9e-3));
    let p = s.mul_add(p, r, s.splat(8.333_452e-3));
    let p = s.mul_add(p, r, s.splat(4.166_579_6e-2));
    let p = s.mul_add(p, r, s.splat(1.666_666_5e-1));
    let p = s.mul_add(p, r, s.splat(5e-1));
    let p = s.mul_add(p, s.mul(r, r), s.add(r, s.splat(1.0)));
    s.mul(p, s.exp2_int(n))
}

/// sqrt(2 / pi)
const GELU_SCALE: f32 = 0.797_884_6;
/// Coefficient of the cubic term (Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2).
const GELU_CUBIC: f32 = 0.044_715;
/// Beyond this the gate is 0 or 1 to the last bit; clamping keeps its argument finite.
const GELU_FLAT: f32 = 20.0;

/// The gate `sigmoid(2 u)`, `u = sqrt(2/pi) (x + 0.044715 x^3)`, and `2 du/dx`.
///
/// `0.5 (1 + tanh u) = sigmoid(2 u)`, so GELU (tanh form) is `x * gate`.
#[inline(always)]
fn gelu_gate<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let x = s.max(s.splat(-GELU_FLAT), s.min(s.splat(GELU_FLAT), x));
    let x2 = s.mul(x, x);
    let minus_two_u = s
        .mul(x, s.mul_add(x2, s.splat(-2.0 * GELU_SCALE * GELU_CUBIC), s.splat(-2.0 * GELU_SCALE)));
    let gate = s.div(s.splat(1.0), s.add(s.splat(1.0), exp(s, minus_two_u)));
    let slope = s.mul_add(x2, s.splat(6.0 * GELU_SCALE * GELU_CUBIC), s.splat(2.0 * GELU_SCALE));
    (gate, slope)
}

/// GELU in its tanh form. Plus infinity stays infinite; minus infinity and NaN give NaN.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    s.mul(x, gelu_gate(s, x).0)
}

/// Derivative of [`gelu`]: `gate + x gate (1 - gate) 2 du/dx`.
#[inline(always)]
pub(crate) fn gelu_slope<S: Simd>(s: S, x: S::V) -> S::V {
    gelu_and_slope(s, x).1
}

/// [`gelu`] and its derivative: the gate, which is most of the work, is the same.
#[inline(always)]
pub(crate) fn gelu_and_slope<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let (gate, slope) = gelu_gate(s, x);
    let flat = s.max(s.splat(-GELU_FLAT), s.min(s.splat(GELU_FLAT), x));
    let bell = s.mul(gate, s.sub(s.splat(1.0), gate));
    (s.mul(x, gate), s.mul_add(s.mul(flat, bell), slope, gate))
}
