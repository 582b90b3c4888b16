//! Softmax cross-entropy over rows of logits, loss and gradient in one visit.
//!
//! The caller makes a block of logits with a product, hands it here, and uses it
//! as the gradient of the same block: the logits of a whole batch never exist.
//!
//! `loss = ln(sum exp(x - max)) + max - x[target]`,
//! `dx = (exp(x - max) / sum - onehot(target)) * grad_scale`.
//!
//! With a cap, x is `cap tanh(logit / cap)`, and dx, which is the logit's then, has the factor
//! `1 - (x / cap)^2`.

use crate::built::LLAMA;
use crate::elements::{Elements, Floats};
use crate::elementwise::soft_cap;
use crate::gemm::format::{Format, Single};
use crate::math;
use crate::simd::{Simd, load_up_to};

/// A target that does not count: its loss and gradient are zero.
pub const IGNORE: u32 = u32::MAX;

/// Rows of logits over raw memory. Built by the safe methods of [`crate::Kernels`].
#[derive(Clone, Copy)]
pub(crate) struct RawCrossEntropy {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) logits: *mut f32,
    pub(crate) row_stride: usize,
    pub(crate) targets: *const u32,
    pub(crate) losses: *mut f32,
    /// The logits are capped first, in their place. Positive.
    pub(crate) cap: Option<f32>,
    /// `Some`: the logits become their gradient, times this. `None`: they stay.
    pub(crate) grad_scale: Option<f32>,
}

/// Largest of `n >= 1` floats.
///
/// # Safety
/// `x` holds `n` floats.
#[inline(always)]
pub(crate) unsafe fn max_of<S: Simd>(s: S, x: *const f32, n: usize) -> f32 {
    // SAFETY: reads stay below n.
    unsafe {
        if n < S::LANES {
            let mut most = *x;
            for i in 1..n {
                most = if *x.add(i) > most { *x.add(i) } else { most };
            }
            return most;
        }
        // Several maxima, for one would wait for itself at each step.
        let mut most = [s.load(x); 4];
        let mut i = 0;
        while i + 4 * S::LANES <= n {
            for (q, most) in most.iter_mut().enumerate() {
                *most = s.max(*most, s.load(x.add(i + q * S::LANES)));
            }
            i += 4 * S::LANES;
        }
        while i + S::LANES <= n {
            most[0] = s.max(most[0], s.load(x.add(i)));
            i += S::LANES;
        }
        let most = s.max(s.max(most[0], most[1]), s.max(most[2], most[3]));
        // The last vector may overlap what was seen: a maximum does not mind.
        s.max_lane(s.max(most, s.load(x.add(n - S::LANES))))
    }
}

/// `x = exp((x - offset) * factor)`, and the sum of the results.
///
/// # Safety
/// `x` holds `n` floats.
#[inline(always)]
pub(crate) unsafe fn exp_in_place<S: Simd>(
    s: S,
    x: *mut f32,
    n: usize,
    offset: f32,
    factor: f32,
) -> f32 {
    let (offset, factor) = (s.splat(offset), s.splat(factor));
    let mut sum = s.splat(0.0);
    let mut i = 0;
    // SAFETY: reads and writes stay below n.
    unsafe {
        while i + S::LANES <= n {
            let e = math::exp(s, s.mul(s.sub(s.load(x.add(i)), offset), factor));
            s.store(x.add(i), e);
            sum = s.add(sum, e);
            i += S::LANES;
        }
        let mut total = s.sum(sum);
        if i < n {
            let left = n - i;
            let e = math::exp(s, s.mul(s.sub(s.load_first(x.add(i), left), offset), factor));
            s.store_first(x.add(i), e, left);
            for q in i..n {
                total += *x.add(q);
            }
        }
        total
    }
}

/// The sum of `exp(x - offset)`, with the bits of [`exp_in_place`].
///
/// # Safety
/// `x` holds `n` floats.
#[inline(always)]
unsafe fn sum_of_exp<S: Simd>(s: S, x: *const f32, n: usize, offset: f32) -> f32 {
    let offset = s.splat(offset);
    let mut sum = s.splat(0.0);
    let mut i = 0;
    // SAFETY: reads stay below n.
    unsafe {
        while i + S::LANES <= n {
            sum = s.add(sum, math::exp(s, s.sub(s.load(x.add(i)), offset)));
            i += S::LANES;
        }
        let mut total = s.sum(sum);
        let mut tail = [0.0_f32; 16];
        if i < n {
            let left = n - i;
            let e = math::exp(s, s.sub(s.load_first(x.add(i), left), offset));
            s.store_first(tail.as_mut_ptr(), e, left);
            for e in &tail[..left] {
                total += *e;
            }
        }
        total
    }
}

/// How a row becomes its gradient.
struct Gradient {
    most: f32,
    /// The scale over the sum of exponentials.
    factor: f32,
    /// The inverse of the cap, if there is one.
    by: f32,
}

impl Gradient {
    /// Of some columns, less what is taken off at the target: of exponentials, or if they are `CAPPED`
    /// of logits.
    #[inline(always)]
    fn of<S: Simd, const CAPPED: bool>(&self, s: S, x: S::V, less: Option<S::V>) -> S::V {
        let (factor, one) = (s.splat(self.factor), s.splat(1.0));
        let e = if CAPPED { math::exp(s, s.sub(x, s.splat(self.most))) } else { x };
        let mut p = s.mul(e, factor);
        if let Some(less) = less {
            p = s.sub(p, less);
        }
        if !CAPPED {
            return p;
        }
        let tanh = s.mul(x, s.splat(self.by));
        s.mul(p, s.mul(s.sub(one, tanh), s.add(one, tanh)))
    }

    /// All of a row of `n` columns, to elements that may be smaller, and lie where the row does.
    ///
    /// # Safety
    /// `x` holds `n` floats, the target's among them.
    #[inline(always)]
    unsafe fn row<S: Simd, F: Format<S>, M: Elements<S, F>, const CAPPED: bool>(
        &self,
        s: S,
        m: M,
        x: *mut f32,
        n: usize,
        (target, scale): (usize, f32),
    ) {
        // SAFETY: reads and writes stay below n; elements that are smaller are written behind those
        // that are read.
        unsafe {
            let at_target = self.of::<S, CAPPED>(s, s.splat(*x.add(target)), Some(s.splat(scale)));
            let dx = x.cast::<M::Element>();
            let mut i = 0;
            while i + S::LANES <= n {
                m.store(s, dx.add(i), self.of::<S, CAPPED>(s, s.load(x.add(i)), None), S::LANES);
                i += S::LANES;
            }
            if i < n {
                let p = self.of::<S, CAPPED>(s, load_up_to(s, x.add(i), n - i), None);
                m.store(s, dx.add(i), p, n - i);
            }
            m.store(s, dx.add(target), at_target, 1);
        }
    }
}

/// # Safety
/// All operands are valid for their shapes and disjoint; a target is below `cols` or
/// [`IGNORE`]; `cols >= 1`.
#[inline(always)]
pub(crate) unsafe fn cross_entropy<S: Simd>(s: S, a: &RawCrossEntropy) {
    // SAFETY: passed on from the caller.
    unsafe { cross_entropy_into::<S, Single, _>(s, Floats, a) }
}

/// [`cross_entropy`] with a gradient of elements of another kind, no larger than floats: a
/// row's lie one after the other from where the row of logits starts. Behind an odd number
/// of smaller ones comes a zero.
///
/// # Safety
/// As for [`cross_entropy`].
#[inline(always)]
pub(crate) unsafe fn cross_entropy_into<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    m: M,
    a: &RawCrossEntropy,
) {
    let n = a.cols;
    let padded = n + n % (size_of::<f32>() / size_of::<M::Element>());
    let cap = a.cap.filter(|_| LLAMA);
    for r in 0..a.rows {
        // SAFETY: row r of the operands, columns below n.
        unsafe {
            let x = a.logits.add(r * a.row_stride);
            let target = *a.targets.add(r);
            if target == IGNORE {
                *a.losses.add(r) = 0.0;
                if a.grad_scale.is_some() {
                    for i in 0..padded {
                        m.store(s, x.cast::<M::Element>().add(i), s.splat(0.0), 1);
                    }
                }
                continue;
            }
            let target = target as usize;
            if let Some(cap) = cap {
                soft_cap(s, x, cap, n);
            }
            let most = max_of(s, x, n);
            let at_target = *x.add(target);
            let sum = match a.grad_scale {
                Some(scale) => {
                    // Slopes want what is capped: its exponentials do not take its place.
                    let sum = match cap {
                        Some(_) => sum_of_exp(s, x, n, most),
                        None => exp_in_place(s, x, n, most, 1.0),
                    };
                    let by = cap.map_or(0.0, |cap| 1.0 / cap);
                    let grad = Gradient { most, factor: scale / sum, by };
                    let target = (target, scale);
                    match cap {
                        Some(_) => grad.row::<S, F, M, true>(s, m, x, n, target),
                        None => grad.row::<S, F, M, false>(s, m, x, n, target),
                    }
                    let dx = x.cast::<M::Element>();
                    if padded > n {
                        m.store(s, dx.add(n), s.splat(0.0), 1);
                    }
                    sum
                }
                None => sum_of_exp(s, x, n, most),
            };
            *a.losses.add(r) = libm::logf(sum) + (most - at_target);
        }
    }
}
