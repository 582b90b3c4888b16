//! AdamW with decoupled weight decay.
//!
//! Loshchilov and Hutter, "Decoupled weight decay regularization" (2019),
//! algorithm 2, in the form of PyTorch's `torch.optim.AdamW`:
//!
//! ```text
//! p -= lr * decay * p
//! m  = beta1 m + (1 - beta1) g
//! v  = beta2 v + (1 - beta2) g^2
//! p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//! ```

use crate::simd::{Simd, load_up_to, store_up_to};

/// 2^-80. Added to a moment and taken off again it leaves a multiple of 2^-104 (5e-32),
/// nothing beside `eps` and a normal number. Without it moments whose gradient stays zero
/// (tokens that no longer occur) would sink to denormals and stay there, which is slow.
const QUANTUM: f32 = 8.271_806e-25;

/// The numbers of one AdamW update, the same for every element of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Weight decay of the tensor: 0 for norms and biases.
    pub decay: f32,
    /// `1 - beta1^t`, `t` counted from 1.
    pub correction1: f32,
    /// `1 - beta2^t`.
    pub correction2: f32,
    /// The gradient is multiplied by this first: the global-norm clip.
    pub grad_scale: f32,
}

/// Updates parameters and moments in place; the gradient is only read.
///
/// # Safety
/// The four arrays hold `n` floats each and are disjoint.
#[inline(always)]
pub(crate) unsafe fn adamw<S: Simd>(
    s: S,
    h: &AdamW,
    p: *mut f32,
    g: *const f32,
    m: *mut f32,
    v: *mut f32,
    n: usize,
) {
    let keep = s.splat(1.0 - h.lr * h.decay);
    let step = s.splat(-h.lr / h.correction1);
    let root = s.splat(1.0 / libm::sqrtf(h.correction2));
    let (beta1, rest1) = (s.splat(h.beta1), s.splat(1.0 - h.beta1));
    let (beta2, rest2) = (s.splat(h.beta2), s.splat(1.0 - h.beta2));
    let quantum = s.splat(QUANTUM);
    let (eps, scale) = (s.splat(h.eps), s.splat(h.grad_scale));
    let mut i = 0;
    while i < n {
        let left = (n - i).min(S::LANES);
        // SAFETY: elements i .. i + left of arrays of n.
        unsafe {
            let grad = s.mul(load_up_to(s, g.add(i), left), scale);
            let m1 = s.mul_add(beta1, load_up_to(s, m.add(i), left), s.mul(rest1, grad));
            let m2 = s.mul(s.mul(rest2, grad), grad);
            let m2 = s.mul_add(beta2, load_up_to(s, v.add(i), left), m2);
            let m1 = s.sub(s.add(m1, quantum), quantum);
            let m2 = s.sub(s.add(m2, quantum), quantum);
            let update = s.div(m1, s.mul_add(s.sqrt(m2), root, eps));
            let weight = s.mul(load_up_to(s, p.add(i), left), keep);
            store_up_to(s, p.add(i), s.mul_add(step, update, weight), left);
            store_up_to(s, m.add(i), m1, left);
            store_up_to(s, v.add(i), m2, left);
        }
        i += left;
    }
}
