//! The forward pass of one head, or of some of its queries.
//!
//! ```text
//! pack K^T and V once, as far as the last query sees
//! for each strip of queries
//!   scores = Q_strip K^T                 (keys up to the strip's last query)
//!   for each row: p = exp(scale (s - max)), zero beyond the diagonal; keep 1 / sum
//!   out_strip = p V, rows times 1 / sum
//! ```
//! The sum is of p as it is, the product of p in the format's precision.

use super::{
    Pieces, RawAttention, Rows, RowsMut, Span, Strip, dot, fetch_next, score_stride, strip_words,
    words_of,
};
use crate::elements::RawOperand;
use crate::gemm::format::{Dot, Single};
use crate::gemm::pack::{pack_b, packed_b_len};
use crate::math;
use crate::simd::{MOST_LANES, Simd, load_up_to, store_up_to};
use crate::softmax::max_of;
use core::f32::consts::LOG2_E;

/// What scratch holds.
pub(super) struct Areas {
    keys_t: *mut f32,
    values: *mut f32,
    /// `MR` rows of [`score_stride`]: scores, which become probabilities.
    scores: *mut f32,
    q: *mut f32,
}

impl Areas {
    /// For `keys` keys, and the floats that they take.
    #[inline(always)]
    pub(super) fn new<S: Simd, F: Dot<S>>(
        scratch: *mut f32,
        keys: usize,
        head: usize,
    ) -> (Self, Option<usize>) {
        let mut pieces = Pieces::of(scratch);
        let areas = Self {
            scores: pieces.take(score_stride::<S>(keys).and_then(|n| n.checked_mul(S::MR))),
            keys_t: pieces.take(packed_b_len(F::words(head), keys, S::NR)),
            values: pieces.take(packed_b_len(F::words(keys), head, S::NR)),
            q: pieces.take(strip_words::<S, F>(head)),
        };
        (areas, pieces.len)
    }
}

/// # Safety
/// The operands are valid for their shapes, `out`, `lse` and `scratch` overlap
/// nothing else; `first + queries <= keys`; `rows` are whole strips of the queries.
#[inline(always)]
pub(crate) unsafe fn forward<S: Simd, F: Dot<S>>(s: S, f: F, a: &RawAttention) {
    // Packing the keys pays from a few rows on; one new token reads them in place.
    if a.queries < S::MR && a.dropout.is_none() {
        // SAFETY: passed on from the caller.
        return unsafe { few_queries(s, f, a) };
    }
    let (keys, head) = (a.first + a.rows.end, a.head);
    let areas = Areas::new::<S, F>(a.scratch, keys, head).0;
    let stride = score_stride::<S>(keys).unwrap_or(0);
    let scores = RowsMut { ptr: areas.scores, stride };
    // SAFETY: `scratch` holds the areas; the rest is the caller's promise.
    unsafe {
        let k = RawOperand::floats(a.k.ptr, 1, a.k.stride);
        pack_b(s, f, k, head, keys, areas.keys_t);
        pack_b(s, f, RawOperand::floats(a.v.ptr, a.v.stride, 1), keys, head, areas.values);
        let mut start = a.rows.start;
        while start < a.rows.end {
            let rows = S::MR.min(a.rows.end - start);
            let written = start - a.rows.start;
            let seen = a.first + start + rows;
            fetch_next(s, &[a.q, a.k, a.v], head, Span { start, end: start + rows });
            let q = Rows { ptr: a.q.ptr.add(start * a.q.stride), ..a.q };
            let q = words_of(s, f, q, rows, head, areas.q);
            let words = F::words(head);
            let product = Strip {
                rows,
                words,
                a: q.ptr,
                a_row: q.stride,
                a_col: 1,
                c: scores,
                accumulate: false,
            };
            let whole = seen.next_multiple_of(S::LANES);
            product.times::<S, F>(areas.keys_t, words * S::NR, whole);

            // Maxima first: while one row's is being found, the next rows' can be.
            let mut most = [0.0_f32; MOST_LANES];
            let mut sums = [1.0_f32; MOST_LANES];
            let row = |r: usize| Row { ptr: scores.ptr.add(r * stride), query: start + r, seen };
            for (r, most) in most[..rows].iter_mut().enumerate() {
                *most = row(r).largest(s, a.first + start + r + 1);
            }
            for r in 0..rows {
                sums[r] = row(r).softmax(s, f, a, most[r]);
            }
            if let Some(lse) = a.lse {
                let mut logs = sums;
                math::ln_each(&mut logs);
                for r in 0..rows {
                    *lse.add(written + r) = most[r] * a.scale + logs[r];
                }
            }

            let out = RowsMut { ptr: a.out.ptr.add(written * a.out.stride), ..a.out };
            let (a, words) = (scores.ptr.cast_const(), F::words(seen));
            let product = Strip { words, a, a_row: stride, c: out, ..product };
            product.times::<S, F>(areas.values, F::words(keys) * S::NR, head);
            for (r, sum) in sums[..rows].iter().enumerate() {
                crate::elementwise::scale(s, out.ptr.add(r * out.stride), 1.0 / sum, head);
            }
            start += rows;
        }
    }
}

/// A row of scores.
struct Row {
    ptr: *mut f32,
    query: usize,
    /// Keys that the strip sees: beyond what the query sees, probabilities are zero.
    seen: usize,
}

impl Row {
    /// Turns scores into words of `exp(scale (s - most))`, masked by dropout.
    ///
    /// Returns the sum before the mask.
    ///
    /// # Safety
    /// The row holds scores of the keys that the strip sees, in whole vectors, and has room for
    /// words of whole vectors of them.
    #[inline(always)]
    unsafe fn softmax<S: Simd, F: Dot<S>>(self, s: S, f: F, a: &RawAttention, most: f32) -> f32 {
        let valid = a.first + self.query + 1;
        let c = a.scale * LOG2_E;
        let terms = Exponent { offset: s.splat(most), c: s.splat(c), least: s.splat(-127.0 / c) };
        let step = S::LANES * F::DEPTH;
        let zero = s.splat(0.0);
        let mut sum = zero;
        let mut i = 0;
        // SAFETY: vectors that hold scores below `valid`; words lie before the scores that are
        // not yet read.
        unsafe {
            if a.dropout.is_none() {
                while i + step <= valid {
                    let first = terms.exp(s, self.ptr.add(i));
                    sum = s.add(sum, first);
                    let mut second = zero;
                    if F::DEPTH == 2 {
                        second = terms.exp(s, self.ptr.add(i + S::LANES));
                        sum = s.add(sum, second);
                    }
                    s.store(self.ptr.add(i / F::DEPTH), f.fold(s, first, second));
                    i += step;
                }
            }
            while i < self.seen {
                let mut p = [zero; 2];
                for (v, p) in p[..F::DEPTH].iter_mut().enumerate() {
                    let at = i + v * S::LANES;
                    if at >= valid {
                        continue;
                    }
                    *p = terms.exp(s, self.ptr.add(at));
                    if valid - at < S::LANES {
                        *p = s.first(*p, valid - at, zero);
                    }
                    sum = s.add(sum, *p);
                    if let Some((dropout, first_row)) = &a.dropout {
                        let mut mask = [0.0_f32; MOST_LANES];
                        let row = first_row.wrapping_add(self.query as u32);
                        dropout.fill_mask(row, at, &mut mask[..S::LANES]);
                        *p = s.mul(*p, s.load(mask.as_ptr()));
                    }
                }
                s.store(self.ptr.add(i / F::DEPTH), f.fold(s, p[0], p[1]));
                i += step;
            }
        }
        s.sum(sum)
    }

    /// The largest of the first `valid >= 1` scores.
    ///
    /// # Safety
    /// The row holds as many in whole vectors.
    #[inline(always)]
    unsafe fn largest<S: Simd>(&self, s: S, valid: usize) -> f32 {
        let mut most = s.splat(f32::NEG_INFINITY);
        let mut i = 0;
        // SAFETY: passed on from the caller.
        unsafe {
            while i + S::LANES <= valid {
                most = s.max(most, s.load(self.ptr.add(i)));
                i += S::LANES;
            }
            if i < valid {
                let last = s.load(self.ptr.add(i));
                most = s.max(most, s.first(last, valid - i, s.splat(f32::NEG_INFINITY)));
            }
        }
        s.max_lane(most)
    }
}

/// What all scores of a row are treated with.
struct Exponent<V> {
    offset: V,
    c: V,
    least: V,
}

impl<V: Copy> Exponent<V> {
    /// `2^((score - offset) c)` of a vector of scores.
    ///
    /// # Safety
    /// `score` is valid for reading a vector.
    #[inline(always)]
    unsafe fn exp<S: Simd<V = V>>(&self, s: S, score: *const f32) -> V {
        // SAFETY: passed on from the caller.
        let score = unsafe { s.load(score) };
        math::exp2(s, s.sub(score, self.offset), self.c, self.least)
    }
}

/// A few queries against a long cache: keys and values are read once, in place.
///
/// # Safety
/// As for [`forward`]; `rows` are all queries.
#[inline(always)]
unsafe fn few_queries<S: Simd, F: Dot<S>>(s: S, f: F, a: &RawAttention) {
    let areas = Areas::new::<S, F>(a.scratch, a.keys, a.head).0;
    let row = areas.scores;
    let c = a.scale * LOG2_E;
    let (factor, least) = (s.splat(c), s.splat(-127.0 / c));
    for i in 0..a.queries {
        let valid = a.first + i + 1;
        // SAFETY: query i, keys and values below `valid`, a row of scores in scratch.
        unsafe {
            let mut q = a.q.ptr.add(i * a.q.stride);
            if !F::IS_PLAIN {
                // Rounded once for all keys, where words of a strip would lie: those of so
                // many rows that a row of floats has room.
                let mut c = 0;
                while c < a.head {
                    let left = (a.head - c).min(S::LANES);
                    let x = f.rounded(s, load_up_to(s, q.add(c), left));
                    store_up_to(s, areas.q.add(c), x, left);
                    c += left;
                }
                q = areas.q;
            }
            for j in 0..valid {
                *row.add(j) = dot(s, (q, Single), (a.k.ptr.add(j * a.k.stride), f), a.head);
            }
            let most = max_of(s, row, valid);
            let offset = s.splat(most);
            let mut sum = s.splat(0.0);
            let mut j = 0;
            while j < valid {
                let left = (valid - j).min(S::LANES);
                let score = load_up_to(s, row.add(j), left);
                let mut e = math::exp2(s, s.sub(score, offset), factor, least);
                if left < S::LANES {
                    e = s.first(e, left, s.splat(0.0));
                }
                sum = s.add(sum, e);
                store_up_to(s, row.add(j), f.rounded(s, e), left);
                j += left;
            }
            let mut sums = [s.sum(sum); MOST_LANES];
            let factor = s.splat(1.0 / sums[0]);
            if let Some(lse) = a.lse {
                math::ln_each(&mut sums);
                *lse.add(i) = most * a.scale + sums[0];
            }
            let out = a.out.ptr.add(i * a.out.stride);
            let mut c = 0;
            while c < a.head {
                let left = (a.head - c).min(S::LANES);
                let mut total = s.splat(0.0);
                for j in 0..valid {
                    let v = load_up_to(s, a.v.ptr.add(j * a.v.stride + c), left);
                    total = s.mul_add(s.splat(*row.add(j)), f.rounded(s, v), total);
                }
                store_up_to(s, out.add(c), s.mul(total, factor), left);
                c += left;
            }
        }
    }
}
