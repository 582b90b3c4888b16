//! Stochastic gradient descent, with momentum or without, and decoupled weight decay.
//!
//! Momentum is Polyak's heavy ball in the form of PyTorch's `torch.optim.SGD` (no dampening); the decay is
//! that of Loshchilov and Hutter, "Decoupled weight decay regularization" (2019), algorithm 1:
//!
//! ```text
//! p -= lr * decay * p
//! m  = momentum m + g       without momentum m = g
//! p -= lr * m
//! ```

use crate::adamw::QUANTUM;
use crate::simd::{Simd, load_up_to, store_up_to};

/// The numbers of one update by gradient descent, the same for every element of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate of this step.
    pub lr: f32,
    /// Weight decay of the tensor: 0 for norms and biases.
    pub decay: f32,
    /// The gradient is multiplied by this first: the global-norm clip.
    pub grad_scale: f32,
}

/// Updates parameters in place; the gradient is only read.
///
/// # Safety
/// The arrays hold `n` floats each and are disjoint.
#[inline(always)]
pub(crate) unsafe fn sgd<S: Simd>(s: S, h: &Sgd, p: *mut f32, g: *const f32, n: usize) {
    let (keep, step) = (s.splat(1.0 - h.lr * h.decay), s.splat(-h.lr));
    let scale = s.splat(h.grad_scale);
    let mut i = 0;
    while i < n {
        let left = (n - i).min(S::LANES);
        // SAFETY: elements i .. i + left of arrays of n.
        unsafe {
            let grad = s.mul(load_up_to(s, g.add(i), left), scale);
            let weight = s.mul(load_up_to(s, p.add(i), left), keep);
            store_up_to(s, p.add(i), s.mul_add(step, grad, weight), left);
        }
        i += left;
    }
}

/// Updates parameters and moments in place; the gradient is only read.
///
/// # Safety
/// The arrays hold `n` floats each and are disjoint.
#[inline(always)]
pub(crate) unsafe fn momentum<S: Simd>(
    s: S,
    h: &Sgd,
    momentum: f32,
    p: *mut f32,
    g: *const f32,
    m: *mut f32,
    n: usize,
) {
    let (keep, step) = (s.splat(1.0 - h.lr * h.decay), s.splat(-h.lr));
    let (scale, momentum, quantum) = (s.splat(h.grad_scale), s.splat(momentum), s.splat(QUANTUM));
    let mut i = 0;
    while i < n {
        let left = (n - i).min(S::LANES);
        // SAFETY: elements i .. i + left of arrays of n.
        unsafe {
            let grad = s.mul(load_up_to(s, g.add(i), left), scale);
            let moment = s.mul_add(momentum, load_up_to(s, m.add(i), left), grad);
            let moment = s.sub(s.add(moment, quantum), quantum);
            let weight = s.mul(load_up_to(s, p.add(i), left), keep);
            store_up_to(s, p.add(i), s.mul_add(step, moment, weight), left);
            store_up_to(s, m.add(i), moment, left);
        }
        i += left;
    }
}
