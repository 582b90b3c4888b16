//! Passes over flat arrays: add, scale, multiply by a mask, sums, GELU, column sums.
//!
//! Each is one read (and one write) of memory; there is nothing to win but bandwidth.

use crate::built::COMPACT;
use crate::dropout::Dropout;
use crate::elements::{Elements, Floats};
use crate::gemm::format::{Format, Single};
use crate::math;
use crate::simd::{Simd, load_up_to, store_up_to};

/// `dst[i] = f(dst[i], src[i])`.
macro_rules! in_place {
    ($s:ident, $n:expr, $dst:expr, $src:expr, |$x:ident, $y:ident| $f:expr) => {{
        let mut i = 0;
        while i < $n {
            let left = ($n - i).min(S::LANES);
            // SAFETY: elements i .. i + left of both arrays, of at least n each.
            unsafe {
                let $x = load_up_to($s, $dst.add(i), left);
                let $y = load_up_to($s, $src.add(i), left);
                store_up_to($s, $dst.add(i), $f, left);
            }
            i += left;
        }
    }};
}

/// Copies `rows x cols` floats, from rows so far apart to rows so far apart.
///
/// # Safety
/// Both places are valid for so many, and do not overlap.
#[inline(always)]
pub(crate) unsafe fn copy_rows<S: Simd>(
    s: S,
    (from, from_row): (*const f32, usize),
    (to, to_row): (*mut f32, usize),
    (rows, cols): (usize, usize),
) {
    for r in 0..rows {
        for c in (0..cols).step_by(S::LANES) {
            let n = S::LANES.min(cols - c);
            // SAFETY: elements (r, c .. c + n) of both.
            unsafe {
                let x = load_up_to(s, from.add(r * from_row + c), n);
                store_up_to(s, to.add(r * to_row + c), x, n);
            }
        }
    }
}

/// [`copy_rows`] past the caches, for a place that is not read soon.
///
/// # Safety
/// As for [`copy_rows`]; `cols` and `to_row` are multiples of `LANES`, `to` is aligned to the size of a
/// vector, and [`Simd::fence`] is called before anybody reads or writes there.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn stream_rows<S: Simd>(
    s: S,
    (from, from_row): (*const f32, usize),
    (to, to_row): (*mut f32, usize),
    (rows, cols): (usize, usize),
) {
    for r in 0..rows {
        for c in (0..cols).step_by(S::LANES) {
            // SAFETY: elements (r, c .. c + LANES) of both, aligned there as the caller promised.
            unsafe { s.stream(to.add(r * to_row + c), s.load(from.add(r * from_row + c))) };
        }
    }
}

/// `dst += src`.
///
/// # Safety
/// Both hold `n` floats; they are the same array or disjoint.
#[inline(always)]
pub(crate) unsafe fn accumulate<S: Simd>(s: S, dst: *mut f32, src: *const f32, n: usize) {
    in_place!(s, n, dst, src, |x, y| s.add(x, y));
}

/// `dst *= factor`.
///
/// # Safety
/// `dst` holds `n` floats.
#[inline(always)]
pub(crate) unsafe fn scale<S: Simd>(s: S, dst: *mut f32, factor: f32, n: usize) {
    let by = s.splat(factor);
    in_place!(s, n, dst, dst, |x, _y| s.mul(x, by));
}

/// `dst = cap tanh(dst / cap)`.
///
/// # Safety
/// `dst` holds `n` floats.
#[inline(always)]
pub(crate) unsafe fn soft_cap<S: Simd>(s: S, dst: *mut f32, cap: f32, n: usize) {
    let (by, cap) = (s.splat(1.0 / cap), s.splat(cap));
    in_place!(s, n, dst, dst, |x, _y| s.mul(cap, math::tanh(s, s.mul(x, by))));
}

/// `dst = gelu(src)`.
///
/// # Safety
/// Both hold `n` floats; they are the same array or disjoint.
#[inline(always)]
pub(crate) unsafe fn gelu<S: Simd>(s: S, dst: *mut f32, src: *const f32, n: usize) {
    in_place!(s, n, dst, src, |_x, y| math::gelu(s, y));
}

/// `grad *= gelu'(pre)`.
///
/// # Safety
/// Both hold `n` floats; they are the same array or disjoint.
#[inline(always)]
pub(crate) unsafe fn gelu_backward<S: Simd>(s: S, grad: *mut f32, pre: *const f32, n: usize) {
    in_place!(s, n, grad, pre, |x, y| s.mul(x, math::gelu_slope(s, y)));
}

/// `dst = src * mask` for one row of a dropout site.
///
/// # Safety
/// Both hold `n` floats; they are the same array or disjoint.
#[inline(always)]
pub(crate) unsafe fn dropout_row<S: Simd>(
    s: S,
    dst: *mut f32,
    src: *const f32,
    n: usize,
    dropout: &Dropout,
    row: u32,
) {
    let mut mask = [0.0_f32; 64];
    let mut i = 0;
    while i < n {
        let chunk = (n - i).min(64);
        dropout.fill_mask(row, i, &mut mask[..chunk]);
        // SAFETY: elements i .. i + chunk of both arrays; the mask has at least `chunk`.
        unsafe {
            let (dst, src) = (dst.add(i), src.add(i));
            let mut q = 0;
            while q < chunk {
                let left = (chunk - q).min(S::LANES);
                let x = load_up_to(s, src.add(q), left);
                let m = load_up_to(s, mask.as_ptr().add(q), left);
                store_up_to(s, dst.add(q), s.mul(x, m), left);
                q += left;
            }
        }
        i += chunk;
    }
}

/// Sum of squares, in `4 * LANES` running sums of `f32` combined at the end.
///
/// # Safety
/// `src` holds `n` floats.
#[inline(always)]
pub(crate) unsafe fn sum_squares<S: Simd>(s: S, src: *const f32, n: usize) -> f32 {
    let mut sums = [s.splat(0.0); 4];
    let mut i = 0;
    while i + 4 * S::LANES <= n {
        for (q, sum) in sums.iter_mut().enumerate() {
            // SAFETY: i + 4 * LANES <= n.
            let x = unsafe { s.load(src.add(i + q * S::LANES)) };
            *sum = s.mul_add(x, x, *sum);
        }
        i += 4 * S::LANES;
    }
    while i < n {
        let left = (n - i).min(S::LANES);
        // SAFETY: i + left <= n.
        let x = unsafe { load_up_to(s, src.add(i), left) };
        sums[0] = s.mul_add(x, x, sums[0]);
        i += left;
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

/// `dst (+)= ` sum of the rows of `src` (`rows x cols`, rows `stride` apart).
///
/// Rows are added in groups of [`ROW_GROUP`] whose sums are then added, so the
/// rounding error grows with the square root of the depth, not with the rows. A
/// column's sum is its own, however many are taken together.
///
/// # Safety
/// `src` is valid for `rows` rows of `cols`, `dst` for `cols`; they are disjoint.
#[inline(always)]
pub(crate) unsafe fn column_sum<S: Simd>(
    s: S,
    src: *const f32,
    stride: usize,
    rows: usize,
    cols: usize,
    dst: *mut f32,
    accumulate: bool,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        column_sum_of::<S, Single, _>(s, Floats, src, stride, rows, cols, dst, accumulate);
    }
}

/// [`column_sum`] of elements of any kind.
///
/// # Safety
/// As for [`column_sum`].
#[expect(clippy::too_many_arguments, reason = "two arrays and their shapes")]
#[inline(always)]
pub(crate) unsafe fn column_sum_of<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    m: M,
    src: *const M::Element,
    stride: usize,
    rows: usize,
    cols: usize,
    dst: *mut f32,
    accumulate: bool,
) {
    let columns = Columns { src, stride, rows, dst, accumulate };
    let mut j = 0;
    // SAFETY: columns j .. j + V * LANES, then j .. j + left, all below `cols`.
    unsafe {
        while !COMPACT && j + WIDE * S::LANES <= cols {
            columns.sum::<S, F, M, WIDE>(s, m, j, S::LANES);
            j += WIDE * S::LANES;
        }
        while !COMPACT && j + 2 * S::LANES <= cols {
            columns.sum::<S, F, M, 2>(s, m, j, S::LANES);
            j += 2 * S::LANES;
        }
        while j < cols {
            let left = (cols - j).min(S::LANES);
            columns.sum::<S, F, M, 1>(s, m, j, left);
            j += left;
        }
    }
}

/// The operands of [`column_sum`].
struct Columns<E> {
    src: *const E,
    stride: usize,
    rows: usize,
    dst: *mut f32,
    accumulate: bool,
}

impl<E: Copy> Columns<E> {
    /// Sums `V` vectors of columns from column `j` on, each of `lanes` columns.
    ///
    /// # Safety
    /// As for [`column_sum`]; these columns are among them; if `V > 1`, `lanes` is
    /// `LANES`.
    #[inline(always)]
    unsafe fn sum<S: Simd, F: Format<S>, M: Elements<S, F, Element = E>, const V: usize>(
        &self,
        s: S,
        m: M,
        j: usize,
        lanes: usize,
    ) {
        let mut totals = [s.splat(0.0); V];
        let mut first = 0;
        // SAFETY: those columns of every row and of dst.
        unsafe {
            let dst = self.dst.add(j);
            if self.accumulate {
                for (v, total) in totals.iter_mut().enumerate() {
                    *total = load_up_to(s, dst.add(v * S::LANES), lanes);
                }
            }
            while first < self.rows {
                let end = (first + ROW_GROUP).min(self.rows);
                let mut sums = [s.splat(0.0); V];
                for r in first..end {
                    let row = self.src.add(r * self.stride + j);
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = s.add(*sum, m.load(s, row.add(v * S::LANES), lanes));
                    }
                }
                for (total, sum) in totals.iter_mut().zip(sums) {
                    *total = s.add(*total, sum);
                }
                first = end;
            }
            for (v, total) in totals.into_iter().enumerate() {
                store_up_to(s, dst.add(v * S::LANES), total, lanes);
            }
        }
    }
}

/// Rows summed before they are added to the total: near the square root of 4,096 rows.
const ROW_GROUP: usize = 64;

/// Vectors of columns summed together: whole cache lines, read once, and as many sums in
/// flight as additions take cycles to finish.
const WIDE: usize = 8;
