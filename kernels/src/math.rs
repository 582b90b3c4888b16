//! Elementary functions on vectors: `exp`, `tanh`, the activations and their slopes.
//!
//! Exponentials are `2^n p(r)` with whole `n` and small `r`. Rounding to `n` and scaling by
//! `2^n` share one trick: [`SHIFT`] is so large that a sum with it has no bits left for a
//! fraction, so the addition rounds to nearest even, and so odd in its low bits that they are
//! the biased exponent of `2^n`.
//!
//! ```text
//! t = x log2(e) + SHIFT      low bits of t: n + 127
//! n = t - SHIFT
//! r = x - n ln 2             in two steps: n times the upper part of ln 2 is exact
//! e^x = p(r) * (t << 23)
//! ```

use crate::simd::{MOST_LANES, Simd};

/// `1.5 * 2^23`, where floats are whole numbers on both sides, and the bias of an exponent.
const SHIFT: f32 = 12_582_912.0 + 127.0;

/// `ln 2` in two parts, the upper of nine bits.
const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// Below this, [`exp`] is 0: `n` is -127, whose exponent field is that of zero.
const LOWEST: f32 = -88.0;

/// `e^r`, `|r| <= ln 2 / 2`, less its first two terms and over `r^2`: minimax of the relative
/// error of the whole by Remez' exchange, 0.07 of a unit roundoff as rounded here.
const EXP: [f32; 5] = [1.381_461_3e-3, 8.368_71e-3, 4.166_839e-2, 1.666_652_1e-1, 4.999_999_4e-1];

/// `2^r`, `|r| <= 1/2`, in the same way with its second term: 0.3 of a unit roundoff.
const EXP2: [f32; 6] =
    [1.534_581_2e-4, 1.339_993_1e-3, 9.618_489e-3, 5.550_328_6e-2, 2.402_264_6e-1, 6.931_472e-1];

/// As [`EXP2`], of one term less and 1.6 units roundoff (found by a random search from the minimax
/// polynomial): what attention's scores, which sums and rounding have worn already, want.
const SHORT_EXP2: [f32; 5] =
    [1.323_271_2e-3, 9.671_131e-3, 5.550_842e-2, 2.402_225_1e-1, 6.931_469e-1];

/// `c[0] r^(N - 1) + c[1] r^(N - 2) + ...`
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, c: [f32; N], r: S::V) -> S::V {
    let mut p = s.splat(c[0]);
    for c in &c[1..] {
        p = s.mul_add(p, r, s.splat(*c));
    }
    p
}

/// `e^x` for `x` up to 88.7, or NaN: within 2 ULP of the exact value where it neither over- nor
/// underflows.
///
/// Overflows to infinity from 88.38 (exact: 88.72) and flushes to zero below
/// -87.68. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(LOWEST), x);
    let t = s.mul_add(x, s.splat(core::f32::consts::LOG2_E), s.splat(SHIFT));
    let n = s.sub(t, s.splat(SHIFT));
    let r = s.mul_add(n, s.splat(-LN2[0]), x);
    let r = s.mul_add(n, s.splat(-LN2[1]), r);
    let one = s.splat(1.0);
    let p = s.mul_add(polynomial(s, EXP, r), r, one);
    let p = s.mul_add(p, r, one);
    // A product, not a sum of exponents: of NaN, it is NaN.
    s.mul(p, s.low_bits_to_exponent(t))
}

/// `tanh x`, within 5 U (`U = 2^-24`) of the exact value, relative to it: 1 and -1 from 10 on, infinity
/// too. NaN stays NaN.
///
/// `tanh x = e / (e + 2)` with `e = e^(2 x) - 1`, which is `2^n q(r) + (2^n - 1)`, exact near 0.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // Twice what it is flat beyond. The second operand is NaN's.
    const FLAT: f32 = 20.0;
    let x = s.max(s.splat(-FLAT), s.min(s.splat(FLAT), s.add(x, x)));
    let t = s.mul_add(x, s.splat(core::f32::consts::LOG2_E), s.splat(SHIFT));
    let n = s.sub(t, s.splat(SHIFT));
    let r = s.mul_add(n, s.splat(-LN2[0]), x);
    let r = s.mul_add(n, s.splat(-LN2[1]), r);
    let q = s.mul(s.mul_add(polynomial(s, EXP, r), r, s.splat(1.0)), r);
    let power = s.low_bits_to_exponent(t);
    let e = s.mul_add(q, power, s.sub(power, s.splat(1.0)));
    s.div(e, s.add(e, s.splat(2.0)))
}

/// `2^(x c)` for `x c < 128`, with a relative error below 3 U (`U = 2^-24`) beside that of the
/// product, and 1 for 0. `least` is `-127 / c`, `c` is not negative.
///
/// Zero for a product below -126.5. NaN and plus infinity give NaN.
///
/// Method: that of the file, with `n + 127` from the product and a shorter polynomial.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(s: S, x: S::V, c: S::V, least: S::V) -> S::V {
    let x = s.max(least, x);
    let t = s.mul_add(x, c, s.splat(SHIFT));
    let minus_n = s.sub(s.splat(SHIFT), t);
    let r = s.mul_add(x, c, minus_n);
    let p = s.mul_add(polynomial(s, SHORT_EXP2, r), r, s.splat(1.0));
    s.mul(p, s.low_bits_to_exponent(t))
}

/// `ln x` for each `x >= 1`, within 2 U of the larger of 1 and the exact value. NaN, infinity and
/// what is not positive give NaN.
///
/// Free of branches, so that the compiler makes vectors of it. Method: `x = 2^n m`,
/// `m` in `sqrt(1/2)..sqrt(2)`, `ln m = 2 artanh t` with `t = (m - 1) / (m + 1)`, of which the
/// series in `t^2`, `t^2 < 0.0295`, is cut off behind the fifth term (below 3e-9).
#[inline(always)]
pub(crate) fn ln_each(x: &mut [f32; MOST_LANES]) {
    for x in x {
        // The bits of sqrt(1/2): m's exponent is what is above.
        const BELOW: u32 = 0x3f35_04f3;
        let up = x.to_bits().wrapping_sub(BELOW);
        let n = ((up as i32) >> 23) as f32;
        let m = f32::from_bits((up & 0x007f_ffff).wrapping_add(BELOW));
        let t = (m - 1.0) / (m + 1.0);
        let t2 = t * t;
        let series = (((t2 * (2.0 / 9.0) + 2.0 / 7.0) * t2 + 2.0 / 5.0) * t2 + 2.0 / 3.0) * t2;
        let ln = n * core::f32::consts::LN_2 + (t * series + 2.0 * t);
        *x = if *x > 0.0 && x.is_finite() { ln } else { f32::NAN };
    }
}

/// sqrt(2 / pi)
const GELU_SCALE: f32 = 0.797_884_6;
/// Coefficient of the cubic term (Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2).
const GELU_CUBIC: f32 = 0.044_715;
/// Ends of the range beyond which the gate does not change: at the lower one `2^n` of its
/// denominator is infinite (n = 128), so the gate is 0; at the upper one the gate is 1 to the
/// last bit and n not yet below -127.
const GELU_FLAT: [f32; 2] = [-10.065, 10.0];

/// The gate `sigmoid(2 u)`, `u = sqrt(2/pi) (x + 0.044715 x^3)`, and `x` kept to [`GELU_FLAT`].
///
/// `0.5 (1 + tanh u) = sigmoid(2 u)`, so GELU (tanh form) is `x * gate`.
#[inline(always)]
fn gelu_gate<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    // e^(-2 u) = 2^(x w): no scaling for the base, and the product is rounded only once, with
    // n subtracted from it.
    const BASE: f32 = -2.0 * GELU_SCALE * core::f32::consts::LOG2_E;
    let x = s.max(s.splat(GELU_FLAT[0]), s.min(s.splat(GELU_FLAT[1]), x));
    let w = s.mul_add(s.mul(x, x), s.splat(BASE * GELU_CUBIC), s.splat(BASE));
    let t = s.mul_add(x, w, s.splat(SHIFT));
    let minus_n = s.sub(s.splat(SHIFT), t);
    let r = s.mul_add(x, w, minus_n);
    let one = s.splat(1.0);
    let p = s.mul_add(polynomial(s, EXP2, r), r, one);
    (s.div(one, s.mul_add(p, s.low_bits_to_exponent(t), one)), x)
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
    let (gate, flat) = gelu_gate(s, x);
    let cubic = s.splat(6.0 * GELU_SCALE * GELU_CUBIC);
    let slope = s.mul_add(s.mul(flat, flat), cubic, s.splat(2.0 * GELU_SCALE));
    let bell = s.mul(gate, s.sub(s.splat(1.0), gate));
    (s.mul(x, gate), s.mul_add(s.mul(flat, bell), slope, gate))
}

/// `max(x, 0)^2` (So et al., "Primer: searching for efficient transformers", 2021) and its derivative.
/// NaN stays NaN.
#[inline(always)]
pub(crate) fn relu2_and_slope<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let kept = s.max(s.splat(0.0), x);
    (s.mul(kept, kept), s.add(kept, kept))
}

/// `x sigmoid(x)` (SiLU; Elfwing et al. 2017) and its derivative. Plus infinity stays infinite, where the
/// slope is 1; of minus infinity the value is NaN and the slope 0. NaN stays NaN.
#[inline(always)]
pub(crate) fn silu_and_slope<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    // Beyond it e^-x is infinite and the gate 0, or the gate 1 to the last bit.
    const FLAT: f32 = 88.7;
    let one = s.splat(1.0);
    // The second operand is NaN's.
    let kept = s.max(s.splat(-FLAT), s.min(s.splat(FLAT), x));
    let gate = s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), kept))));
    let slope = s.mul_add(s.mul(kept, gate), s.sub(one, gate), gate);
    (s.mul(x, gate), slope)
}

#[cfg(test)]
mod tests {
    use super::{exp, exp2, gelu, gelu_slope, ln_each, relu2_and_slope, tanh};
    use crate::simd::MOST_LANES;
    use crate::simd::scalar::Scalar;

    /// Positive arguments too, which no kernel has: there `tests/special.rs` does not look.
    #[test]
    fn exp_is_within_two_ulp_on_both_sides() {
        for i in 0..=3_500_000 {
            let x = (-87.3 + 175.6 * f64::from(i) / 3_500_000.0) as f32;
            let exact = libm::exp(f64::from(x));
            let near = exact as f32;
            let ulp = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
            let off = (f64::from(exp(Scalar, x)) - exact).abs() / ulp;
            assert!(off <= 2.0, "exp({x}) is off by {off} ULP");
        }
    }

    #[test]
    fn exp_ends_in_zero_and_infinity() {
        for x in [-87.7, -88.0, -1e3, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp(Scalar, x).to_bits(), 0, "exp({x})");
        }
        for x in [88.4, 88.7] {
            assert_eq!(exp(Scalar, x), f32::INFINITY, "exp({x})");
        }
        for bits in [0x7fc0_0000, 0x7fc0_0001, 0x7fc0_01ff, 0xffc0_0081, 0x7f80_0001] {
            assert!(exp(Scalar, f32::from_bits(bits)).is_nan(), "{bits:x}");
        }
    }

    /// Beyond the ends of the range the gate is what it is at them: 0 and 1.
    #[test]
    fn the_gate_of_gelu_is_zero_and_one_at_the_ends() {
        for x in [-10.065, -10.1, -1e4, f32::MIN] {
            assert_eq!((gelu(Scalar, x), gelu_slope(Scalar, x)), (0.0, 0.0), "{x}");
        }
        for x in [9.0, 10.0, 10.1, 1e4, f32::MAX] {
            assert_eq!((gelu(Scalar, x), gelu_slope(Scalar, x)), (x, 1.0), "{x}");
        }
    }

    const U: f64 = 1.0 / (1 << 24) as f64;

    #[test]
    fn tanh_is_near_enough_down_to_the_smallest_and_flat_at_the_ends() {
        let mut worst: f64 = 0.0;
        let mut x = 1e-37_f32;
        while x < 10.5 {
            for x in [x, -x] {
                let exact = libm::tanh(f64::from(x));
                let error = (f64::from(tanh(Scalar, x)) / exact - 1.0).abs() / U;
                worst = worst.max(error);
                assert!(error < 5.0, "tanh {x} is off by {error} U");
            }
            x *= 1.000_05;
        }
        // The bound is not an idle one.
        assert!(worst > 1.0, "{worst}");
        for x in [10.0, 1e4, f32::MAX, f32::INFINITY] {
            assert_eq!((tanh(Scalar, x), tanh(Scalar, -x)), (1.0, -1.0), "{x}");
        }
        assert_eq!(tanh(Scalar, 0.0), 0.0);
        assert!(tanh(Scalar, f32::NAN).is_nan());
    }

    #[test]
    fn relu2_is_nothing_below_zero_and_keeps_nan() {
        for (x, y, slope) in [(-3.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.5, 0.25, 1.0), (3.0, 9.0, 6.0)]
        {
            assert_eq!(relu2_and_slope(Scalar, x), (y, slope), "{x}");
        }
        let (y, slope) = relu2_and_slope(Scalar, f32::NAN);
        assert!(y.is_nan() && slope.is_nan());
        let ends = [f32::INFINITY, f32::NEG_INFINITY].map(|x| relu2_and_slope(Scalar, x).0);
        assert_eq!(ends, [f32::INFINITY, 0.0]);
    }

    #[test]
    fn exp2_is_near_enough_and_exact_where_it_must_be() {
        let of = |x: f32, c: f32| exp2(Scalar, x, c, -127.0 / c);
        for i in -1_250_000..1_250_000 {
            let x = i as f32 * 1e-4;
            let exact = libm::exp2(f64::from(x));
            let error = (f64::from(of(x, 1.0)) / exact - 1.0).abs();
            assert!(error < 3.0 * U, "2^{x}: {error:e}");
        }
        for n in -126..128 {
            assert_eq!(f64::from(of(n as f32, 1.0)), libm::exp2(f64::from(n)));
        }
        for c in [0.25, 1.0, 3.0] {
            assert_eq!(of(0.0, c), 1.0);
            for x in [-127.0 / c, -1e30, f32::NEG_INFINITY] {
                assert_eq!(of(x, c), 0.0);
            }
            assert!(of(f32::NAN, c).is_nan() && of(f32::INFINITY, c).is_nan());
        }
        // Nothing is large if the factor is nothing.
        assert_eq!(of(-1e30, 0.0), 1.0);
    }

    #[test]
    fn logarithms_are_near_enough() {
        let mut x = 1.0_f32;
        while x < 1e9 {
            let mut lanes = [x; MOST_LANES];
            ln_each(&mut lanes);
            let exact = libm::log(f64::from(x));
            let error = (f64::from(lanes[3]) - exact).abs();
            assert!(error <= 2.0 * U * exact.max(1.0), "ln {x}: {error:e}");
            x *= 1.000_01;
        }
        let mut lanes = [1.0; MOST_LANES];
        lanes[1..6].copy_from_slice(&[f32::NAN, f32::INFINITY, 0.0, -0.0, -1.0]);
        ln_each(&mut lanes);
        assert!(lanes[1..6].iter().all(|x| x.is_nan()), "{lanes:?}");
        assert!(lanes[0] == 0.0 && lanes[6..].iter().all(|x| *x == 0.0), "{lanes:?}");
    }
}
