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
pub(crate) const QUANTUM: f32 = 8.271_806e-25;

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

/// The same numbers in vectors.
#[derive(Clone, Copy)]
pub(crate) struct Numbers<S: Simd> {
    keep: S::V,
    step: S::V,
    root: S::V,
    beta1: S::V,
    rest1: S::V,
    beta2: S::V,
    rest2: S::V,
    quantum: S::V,
    eps: S::V,
    scale: S::V,
}

/// Some elements behind their update.
pub(crate) struct Updated<S: Simd> {
    pub(crate) weight: S::V,
    pub(crate) first: S::V,
    pub(crate) second: S::V,
    /// Root of the second moment.
    pub(crate) root: S::V,
}

impl<S: Simd> Numbers<S> {
    #[inline(always)]
    pub(crate) fn new(s: S, h: &AdamW) -> Self {
        Self {
            keep: s.splat(1.0 - h.lr * h.decay),
            step: s.splat(-h.lr / h.correction1),
            root: s.splat(1.0 / libm::sqrtf(h.correction2)),
            beta1: s.splat(h.beta1),
            rest1: s.splat(1.0 - h.beta1),
            beta2: s.splat(h.beta2),
            rest2: s.splat(1.0 - h.beta2),
            quantum: s.splat(QUANTUM),
            eps: s.splat(h.eps),
            scale: s.splat(h.grad_scale),
        }
    }

    /// Updates a vector of weights whose gradient, not yet scaled, and moments are these.
    #[inline(always)]
    pub(crate) fn update(
        &self,
        s: S,
        weight: S::V,
        grad: S::V,
        first: S::V,
        second: S::V,
    ) -> Updated<S> {
        let grad = s.mul(grad, self.scale);
        let m1 = s.mul_add(self.beta1, first, s.mul(self.rest1, grad));
        let m2 = s.mul(s.mul(self.rest2, grad), grad);
        let m2 = s.mul_add(self.beta2, second, m2);
        let m1 = s.sub(s.add(m1, self.quantum), self.quantum);
        let m2 = s.sub(s.add(m2, self.quantum), self.quantum);
        let root = s.sqrt(m2);
        let update = s.div(m1, s.mul_add(root, self.root, self.eps));
        let weight = s.mul_add(self.step, update, s.mul(weight, self.keep));
        Updated { weight, first: m1, second: m2, root }
    }
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
    let numbers = Numbers::new(s, h);
    let mut i = 0;
    while i < n {
        let left = (n - i).min(S::LANES);
        // SAFETY: elements i .. i + left of arrays of n.
        unsafe {
            let (first, second) = (load_up_to(s, m.add(i), left), load_up_to(s, v.add(i), left));
            let (weight, grad) = (load_up_to(s, p.add(i), left), load_up_to(s, g.add(i), left));
            let updated = numbers.update(s, weight, grad, first, second);
            store_up_to(s, p.add(i), updated.weight, left);
            store_up_to(s, m.add(i), updated.first, left);
            store_up_to(s, v.add(i), updated.second, left);
        }
        i += left;
    }
}
