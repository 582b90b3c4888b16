//! SwiGLU: a gate's SiLU times what it lets through, forward and backward.
//!
//! Shazeer, "GLU variants improve transformer" (2020), equation 6: of a row of `2 n` columns the first
//! `n` are the gate g, the others u.
//!
//! ```text
//! y  = silu(g) u             silu(g) = g sigmoid(g)
//! dg = dy u silu'(g)         silu'(g) = sigmoid(g) (1 + g (1 - sigmoid(g)))
//! du = dy silu(g)
//! ```
//!
//! The backward pass makes y again in the place of g, for the gradient of the weights behind it.

use crate::Kernels;
use crate::mat::{MatMut, MatRef};
use crate::math;
use crate::rows::rows_of;
use crate::simd::{Simd, load_up_to, store_up_to};

/// `y = silu(g) u`: overwrites.
///
/// # Safety
/// All three hold `n` floats; y overlaps neither of the others.
#[inline(always)]
pub(crate) unsafe fn swiglu<S: Simd>(s: S, y: *mut f32, g: *const f32, u: *const f32, n: usize) {
    let mut i = 0;
    while i < n {
        let left = (n - i).min(S::LANES);
        // SAFETY: elements i .. i + left of arrays of n, as the caller promised.
        unsafe {
            let (g, u) = (load_up_to(s, g.add(i), left), load_up_to(s, u.add(i), left));
            let (silu, _) = math::silu_and_slope(s, g);
            store_up_to(s, y.add(i), s.mul(silu, u), left);
        }
        i += left;
    }
}

/// `dg`, `du`, and `g` becomes y.
///
/// # Safety
/// All five hold `n` floats and are disjoint.
#[inline(always)]
pub(crate) unsafe fn swiglu_backward<S: Simd>(
    s: S,
    g: *mut f32,
    u: *const f32,
    dy: *const f32,
    dg: *mut f32,
    du: *mut f32,
    n: usize,
) {
    let mut i = 0;
    while i < n {
        let left = (n - i).min(S::LANES);
        // SAFETY: elements i .. i + left of arrays of n, as the caller promised.
        unsafe {
            let (gate, through) = (load_up_to(s, g.add(i), left), load_up_to(s, u.add(i), left));
            let grad = load_up_to(s, dy.add(i), left);
            let (silu, slope) = math::silu_and_slope(s, gate);
            store_up_to(s, dg.add(i), s.mul(s.mul(grad, through), slope), left);
            store_up_to(s, du.add(i), s.mul(grad, silu), left);
            store_up_to(s, g.add(i), s.mul(silu, through), left);
        }
        i += left;
    }
}

impl Kernels {
    /// `y = silu(g) u` row by row, with `pre` of twice as many columns as y: g, then u. Overwrites.
    ///
    /// # Panics
    /// If the shapes do not fit together, or rows are not contiguous.
    pub fn swiglu(&self, pre: MatRef<'_>, mut y: MatMut<'_>) {
        let (rows, n) = (y.rows(), y.cols());
        assert!(
            pre.rows() == rows && Some(pre.cols()) == n.checked_mul(2),
            "swiglu: shapes differ"
        );
        let pre = rows_of(pre);
        for r in 0..rows {
            // SAFETY: row r of both, of `2 n` and `n` floats; y is exclusive.
            unsafe {
                let g = pre.ptr.add(r * pre.stride);
                (self.swiglu)(y.row_mut(r).as_mut_ptr(), g, g.add(n), n);
            }
        }
    }

    /// Backward pass of [`Kernels::swiglu`]: overwrites `dpre`, g's gradient and then u's, and leaves y in
    /// the place of g, with the bits of the forward pass.
    ///
    /// # Panics
    /// If the shapes do not fit together, or rows are not contiguous.
    pub fn swiglu_backward(&self, mut pre: MatMut<'_>, dy: MatRef<'_>, mut dpre: MatMut<'_>) {
        let (rows, n) = (dy.rows(), dy.cols());
        let twice = n.checked_mul(2);
        let fits = |m: &MatMut<'_>| m.rows() == rows && Some(m.cols()) == twice;
        assert!(fits(&pre) && fits(&dpre), "swiglu_backward: shapes differ");
        let dy = rows_of(dy);
        for r in 0..rows {
            let (g, u) = pre.row_mut(r).split_at_mut(n);
            let (dg, du) = dpre.row_mut(r).split_at_mut(n);
            let (g, u, dg, du) = (g.as_mut_ptr(), u.as_ptr(), dg.as_mut_ptr(), du.as_mut_ptr());
            // SAFETY: row r of each, of n floats; what is written is exclusive.
            unsafe { (self.swiglu_backward)(g, u, dy.ptr.add(r * dy.stride), dg, du, n) }
        }
    }
}
