//! Rotary positions: pairs of columns of queries and keys turned by their position's angles.
//!
//! Su et al., "RoFormer: Enhanced transformer with rotary position embedding" (2021), section 3.2.2, in
//! the order that Llama's published weights have: of a head's first `2 h` columns, column `i` pairs
//! with column `i + h`.
//!
//! ```text
//! x1, x2 = x[i], x[i + h]         c, s = cos, sin of angle i of the row's position
//! x[i]     = x1 c - x2 s
//! x[i + h] = x2 c + x1 s
//! ```
//!
//! A turn is orthogonal: the gradient of what was turned is turned back, by `-s`.

use crate::Kernels;
use crate::mat::{MatMut, MatRef};
use crate::simd::{Simd, load_up_to, store_up_to};

/// Rows of heads side by side. Built by the safe method of [`crate::Kernels`].
#[derive(Clone, Copy)]
pub(crate) struct RawRotary {
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    /// Columns of a head, and half of those that are turned.
    pub(crate) head: usize,
    pub(crate) half: usize,
    pub(crate) x: *mut f32,
    pub(crate) x_row: usize,
    /// Tables with a row of `half` for each position; row r of x is at `(first + r) % period`.
    pub(crate) cos: *const f32,
    pub(crate) cos_row: usize,
    pub(crate) sin: *const f32,
    pub(crate) sin_row: usize,
    pub(crate) first: usize,
    pub(crate) period: usize,
    pub(crate) back: bool,
}

/// # Safety
/// x is valid for `rows` rows of `heads * head` floats, of which nothing else uses any, and
/// `2 half <= head`; the tables have rows for all positions.
#[inline(always)]
pub(crate) unsafe fn rotate<S: Simd>(s: S, a: &RawRotary) {
    let sign = s.splat(if a.back { -1.0 } else { 1.0 });
    for r in 0..a.rows {
        let at = a.first.wrapping_add(r) % a.period;
        // SAFETY: a row of x and of each table, as the caller promised, columns below `head` and `half`.
        unsafe {
            let (cos, sin) = (a.cos.add(at * a.cos_row), a.sin.add(at * a.sin_row));
            let row = a.x.add(r * a.x_row);
            let mut i = 0;
            while i < a.half {
                let left = (a.half - i).min(S::LANES);
                let c = load_up_to(s, cos.add(i), left);
                let turn = s.mul(load_up_to(s, sin.add(i), left), sign);
                for h in 0..a.heads {
                    let lower = row.add(h * a.head + i);
                    let upper = lower.add(a.half);
                    let (x1, x2) = (load_up_to(s, lower, left), load_up_to(s, upper, left));
                    let y1 = s.sub(s.mul(x1, c), s.mul(x2, turn));
                    let y2 = s.add(s.mul(x2, c), s.mul(x1, turn));
                    store_up_to(s, lower, y1, left);
                    store_up_to(s, upper, y2, left);
                }
                i += left;
            }
        }
    }
}

/// Cosines and sines of the angles of all positions, a row for each, for [`Kernels::rotate`].
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// `positions x h`.
    pub cos: MatRef<'a>,
    /// `positions x h`.
    pub sin: MatRef<'a>,
}

impl Kernels {
    /// Turns each head of `head` columns in each row of `x`, in place, by the angles of row
    /// `(first + r) % period` of the tables, which have `h` columns:
    /// `x[i], x[i + h] = x[i] cos[i] - x[i + h] sin[i], x[i + h] cos[i] + x[i] sin[i]` for `i < h`. Columns
    /// from `2 h` on stay. With `back` by minus the angles: the gradient of what was turned.
    ///
    /// Pairs are those of Llama in transformers, not adjacent columns as in its paper and in GGUF.
    ///
    /// ```
    /// use cllm_kernels::{Angles, Kernels, MatMut, MatRef};
    ///
    /// // A pair of columns turns by a right angle a token.
    /// let (cos, sin) = ([1.0, 0.0, -1.0], [0.0, 1.0, 0.0]);
    /// let angles = Angles { cos: MatRef::new(&cos, 3, 1, 1), sin: MatRef::new(&sin, 3, 1, 1) };
    /// let (kernels, mut x) = (Kernels::detect(), [1.0, 0.0, 1.0, 0.0]);
    /// // Positions 1 and 2 of a sequence of three.
    /// kernels.rotate(MatMut::new(&mut x, 2, 2, 2), 2, &angles, 1, 3, false);
    /// assert_eq!(x, [0.0, 1.0, -1.0, 0.0]);
    /// kernels.rotate(MatMut::new(&mut x, 2, 2, 2), 2, &angles, 1, 3, true);
    /// assert_eq!(x, [1.0, 0.0, 1.0, 0.0]);
    /// ```
    ///
    /// # Panics
    /// If x is not of whole heads, a table has not rows for all positions or not `h` columns with
    /// `2 h <= head`, the period is 0, or rows are not contiguous.
    pub fn rotate(
        &self,
        x: MatMut<'_>,
        head: usize,
        angles: &Angles<'_>,
        first: usize,
        period: usize,
        back: bool,
    ) {
        let (rows, cols) = (x.rows(), x.cols());
        let (half, positions) = (angles.cos.cols(), angles.cos.rows());
        assert!(head > 0 && cols.is_multiple_of(head), "rotate: {cols} columns, heads of {head}");
        assert!(half <= head / 2, "rotate: {half} angles for a head of {head}");
        assert!(
            angles.sin.cols() == half && angles.sin.rows() == positions,
            "rotate: the tables have not the same shape"
        );
        assert!(period > 0, "rotate: a period of no positions");
        // Places go round: so no sum with them can overflow.
        let first = first % period;
        let most = if rows == 0 { 0 } else { period.min(first.saturating_add(rows)) };
        assert!(most <= positions, "rotate: {positions} positions for {most}");
        let (cos, sin) = (crate::rows::rows_of(angles.cos), crate::rows::rows_of(angles.sin));
        let a = RawRotary {
            rows,
            heads: cols / head,
            head,
            half,
            x: x.ptr,
            x_row: x.row_stride,
            cos: cos.ptr,
            cos_row: cos.stride,
            sin: sin.ptr,
            sin_row: sin.stride,
            first,
            period,
            back,
        };
        // SAFETY: shapes and positions were just checked; x is exclusive.
        unsafe { (self.rotate)(&a) }
    }
}
