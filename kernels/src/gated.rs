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
//!
//! What products make and read may be of bf16: elements are floats from the load to the store, which
//! rounds once.

use crate::Kernels;
use crate::elements::{Elements, Floats, Operand, OperandMut, RawOperand};
use crate::gemm::format::{Format, Single};
use crate::mat::MatRef;
use crate::math;
use crate::rows::rows_of;
use crate::simd::{Simd, load_up_to};

/// A forward pass over raw memory. Built by the safe methods of [`crate::Kernels`].
#[derive(Clone, Copy)]
pub(crate) struct RawGated {
    pub(crate) rows: usize,
    /// Columns of y: half of those of `pre`.
    pub(crate) n: usize,
    /// g and u, rows contiguous.
    pub(crate) pre: RawOperand,
    /// Written; rows contiguous.
    pub(crate) y: RawOperand,
}

/// A backward pass over raw memory. Built by the safe methods of [`crate::Kernels`].
#[derive(Clone, Copy)]
pub(crate) struct RawGatedBackward {
    pub(crate) rows: usize,
    /// Columns of y: half of those of `pre` and `dpre`.
    pub(crate) n: usize,
    /// g, which y replaces, and u; rows contiguous.
    pub(crate) pre: RawOperand,
    /// The gradient of y, of floats.
    pub(crate) dy: *const f32,
    pub(crate) dy_row: usize,
    /// Written: the gradients of g and u; rows contiguous, of the kind of `pre`.
    pub(crate) dpre: RawOperand,
}

/// `y = silu(g) u`, all of floats: overwrites.
///
/// # Safety
/// Both operands are of floats and valid for their shapes; y overlaps nothing else.
#[inline(always)]
pub(crate) unsafe fn swiglu<S: Simd>(s: S, a: &RawGated) {
    // SAFETY: passed on from the caller.
    unsafe { swiglu_into::<S, Single, _, _>(s, Floats, Floats, a) }
}

/// [`swiglu`] with `m` for the elements of `pre`, of y, or of both, as each says; others are floats.
///
/// # Safety
/// Both operands are valid for their shapes, and elements of `m` where they are halves; y overlaps
/// nothing else.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn swiglu_of<S: Simd, F: Format<S>, M: Elements<S, F>>(s: S, m: M, a: &RawGated) {
    // SAFETY: passed on from the caller; each branch takes the elements that are there.
    unsafe {
        match (a.pre.half, a.y.half) {
            (false, false) => swiglu_into::<S, F, _, _>(s, Floats, Floats, a),
            (false, true) => swiglu_into::<S, F, _, _>(s, Floats, m, a),
            (true, false) => swiglu_into::<S, F, _, _>(s, m, Floats, a),
            (true, true) => swiglu_into::<S, F, _, _>(s, m, m, a),
        }
    }
}

/// [`swiglu`] of elements `from`, with a result of elements `to`.
///
/// # Safety
/// Both operands are valid for their shapes, `pre` of elements `from`, y of elements `to`; y overlaps
/// nothing else.
#[inline(always)]
unsafe fn swiglu_into<S, F, P, Y>(s: S, from: P, to: Y, a: &RawGated)
where
    S: Simd,
    F: Format<S>,
    P: Elements<S, F>,
    Y: Elements<S, F>,
{
    let n = a.n;
    for r in 0..a.rows {
        // SAFETY: row r of both, columns below n of y, and of g and u each.
        unsafe {
            let g = a.pre.ptr.cast::<P::Element>().add(r * a.pre.row);
            let u = g.add(n);
            let y = a.y.ptr.cast_mut().cast::<Y::Element>().add(r * a.y.row);
            let mut i = 0;
            while i < n {
                let left = (n - i).min(S::LANES);
                let (gate, through) = (from.load(s, g.add(i), left), from.load(s, u.add(i), left));
                let (silu, _) = math::silu_and_slope(s, gate);
                to.store(s, y.add(i), s.mul(silu, through), left);
                i += left;
            }
        }
    }
}

/// `dg`, `du`, and `g` becomes y, by the operations of [`swiglu`]; all of floats.
///
/// # Safety
/// All operands are of floats and valid for their shapes; `pre` and `dpre` overlap nothing else.
#[inline(always)]
pub(crate) unsafe fn swiglu_backward<S: Simd>(s: S, a: &RawGatedBackward) {
    // SAFETY: passed on from the caller.
    unsafe { swiglu_backward_of::<S, Single, _>(s, Floats, a) }
}

/// [`swiglu_backward`] with a `pre` and `dpre` of elements of another kind.
///
/// # Safety
/// All operands are valid for their shapes, `pre` and `dpre` of elements `m`; those two overlap
/// nothing else.
#[inline(always)]
pub(crate) unsafe fn swiglu_backward_of<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    m: M,
    a: &RawGatedBackward,
) {
    let n = a.n;
    for r in 0..a.rows {
        // SAFETY: row r of each, columns below n of dy, and of g and u each in the others.
        unsafe {
            let g = a.pre.ptr.cast_mut().cast::<M::Element>().add(r * a.pre.row);
            let dg = a.dpre.ptr.cast_mut().cast::<M::Element>().add(r * a.dpre.row);
            let (u, du, dy) = (g.add(n), dg.add(n), a.dy.add(r * a.dy_row));
            let mut i = 0;
            while i < n {
                let left = (n - i).min(S::LANES);
                let (gate, through) = (m.load(s, g.add(i), left), m.load(s, u.add(i), left));
                let grad = load_up_to(s, dy.add(i), left);
                let (silu, slope) = math::silu_and_slope(s, gate);
                m.store(s, dg.add(i), s.mul(s.mul(grad, through), slope), left);
                m.store(s, du.add(i), s.mul(grad, silu), left);
                m.store(s, g.add(i), s.mul(silu, through), left);
                i += left;
            }
        }
    }
}

impl Kernels {
    /// `y = silu(g) u` row by row, with `pre` of twice as many columns as y: g, then u. Overwrites y,
    /// which does not overlap `pre`.
    ///
    /// Either may be of bf16, whatever the other is, for tables with [`Kernels::keeps_halves`]: g and u
    /// are read as they are, and of y it is the product that is rounded.
    ///
    /// ```
    /// use cllm_kernels::{Kernels, MatMut, MatRef};
    ///
    /// // A row of two gates and of the two values that they let through.
    /// let (pre, mut y) = ([0.0, 100.0, 5.0, -3.0], [9.0; 2]);
    /// Kernels::detect().swiglu(MatRef::new(&pre, 1, 4, 4), MatMut::new(&mut y, 1, 2, 2));
    /// assert_eq!(y, [0.0, -300.0]);
    /// ```
    ///
    /// # Panics
    /// If the shapes do not fit together, rows are not contiguous, or a matrix is of bf16 and the table
    /// keeps none.
    pub fn swiglu<'a, 'y>(&self, pre: impl Into<Operand<'a>>, y: impl Into<OperandMut<'y>>) {
        let (pre, y) = (pre.into(), y.into());
        let (rows, n) = y.shape();
        let (pre_rows, pre_cols) = pre.shape();
        assert!(pre_rows == rows && Some(pre_cols) == n.checked_mul(2), "swiglu: shapes differ");
        let a = RawGated { rows, n, pre: pre.raw(), y: y.raw() };
        assert!(a.pre.col == 1, "rows must be contiguous");
        let kernel = if a.pre.half || a.y.half { self.keeps().swiglu } else { self.swiglu };
        // SAFETY: the shapes were just checked; y is exclusive; the kernel takes elements of both
        // kinds if either is of bf16.
        unsafe { kernel(&a) }
    }

    /// Backward pass of [`Kernels::swiglu`]: overwrites `dpre`, g's gradient and then u's, and leaves y in
    /// the place of g, in `pre`'s kind: with the bits of a forward pass whose y is of that kind.
    ///
    /// `pre` and `dpre` are both of floats or, for tables with [`Kernels::keeps_halves`], both of bf16.
    /// No two of the three overlap.
    ///
    /// # Panics
    /// If the shapes do not fit together, rows are not contiguous, only one of `pre` and `dpre` is of
    /// bf16, or both are and the table keeps none.
    pub fn swiglu_backward(&self, pre: OperandMut<'_>, dy: MatRef<'_>, dpre: OperandMut<'_>) {
        let (rows, n) = (dy.rows(), dy.cols());
        let twice = n.checked_mul(2);
        let fits = |m: &OperandMut<'_>| m.shape().0 == rows && Some(m.shape().1) == twice;
        assert!(fits(&pre) && fits(&dpre), "swiglu_backward: shapes differ");
        let (pre, dy, dpre) = (pre.raw(), rows_of(dy), dpre.raw());
        assert!(pre.half == dpre.half, "swiglu_backward: pre and dpre are not both of bf16");
        let kernel = if pre.half { self.keeps().swiglu_backward } else { self.swiglu_backward };
        let a = RawGatedBackward { rows, n, pre, dy: dy.ptr, dy_row: dy.stride, dpre };
        // SAFETY: the shapes were just checked; pre and dpre are exclusive, and of the kernel's kind.
        unsafe { kernel(&a) }
    }
}
