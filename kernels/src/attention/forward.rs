//! The forward pass of one head, or of some of its queries.
//!
//! ```text
//! pack K^T and V once, what the queries see
//! for each block of queries
//!   most = least float, sum = 0                (of each row)
//!   for each block of keys that they see
//!     for each strip of queries that sees some of it
//!       scores = Q_strip K^T                   (keys up to the strip's last query, from the panel
//!                                               on that has the first key of its first)
//!       scores of keys before a row's first = -inf
//!       for each row
//!         most' = max(most, scores);  a = exp(scale (most - most'));  most = most'
//!         p = exp(scale (scores - most)), zero beyond the diagonal
//!         sum = a sum + sum of p;  out = a out
//!       out_strip (+)= p V
//!   out = out / sum;  lse = scale most + ln sum
//! ```
//! The sum is of p as it is, the product of p in the format's precision.

use super::few::few_queries;
use super::{
    KEY_BLOCK, MOST_QUERIES, MOST_ROWS, Pieces, RawAttention, Rows, RowsMut, Span, Strip,
    fetch_next, in_place, most_of_block, query_block, room_for_sums, room_for_words, score_stride,
    sum_stride, words_of,
};
use crate::built::{COMPACT, DROPOUT, steps};
use crate::elements::RawOperand;
use crate::footprint::{Footprint, most};
use crate::gemm::LINE;
use crate::gemm::format::Format;
use crate::gemm::pack::packed_b_len;
use crate::math;
use crate::simd::{MOST_LANES, Simd, load_up_to, store_up_to};
use core::f32::consts::LOG2_E;

/// What scratch holds.
pub(super) struct Areas {
    /// Packed, all keys.
    keys_t: *mut f32,
    values: *mut f32,
    /// `MR` rows of [`score_stride`]: scores, which become probabilities.
    pub(super) scores: *mut f32,
    /// Words of a block of queries.
    pub(super) q: *mut f32,
    /// What the block has summed of the values.
    out: *mut f32,
}

impl Areas {
    /// For `keys` keys, and the floats that they take.
    #[cfg_attr(not(feature = "compact"), inline(always))]
    #[cfg_attr(feature = "compact", inline(never))]
    pub(super) const fn new(
        f: Footprint,
        scratch: *mut f32,
        keys: usize,
        head: usize,
    ) -> (Self, Option<usize>) {
        let mut pieces = Pieces::of(scratch);
        // There are no more queries than keys.
        let block = most_of_block(f, keys);
        // A few queries have a row of scores of all keys.
        let scores = most(f.mr * score_stride(f, keys), keys);
        let areas = Self {
            scores: pieces.take(Some(scores)),
            keys_t: pieces.take(packed_b_len(f.words(head), keys, f.nr)),
            values: pieces.take(packed_b_len(f.words(keys), head, f.nr)),
            q: pieces.take(room_for_words(f, keys, block, head)),
            out: pieces.take(room_for_sums(f, keys, block, head)),
        };
        (areas, pieces.len)
    }
}

/// # Safety
/// The operands are valid for their shapes, `out`, `lse` and `scratch` overlap
/// nothing else; `first + queries <= keys`; `rows` are whole strips of the queries.
#[inline(always)]
pub(crate) unsafe fn forward<S: Simd, F: Format<S>, const STARTS: bool>(
    s: S,
    f: F,
    a: &RawAttention,
) {
    let (keys, head) = (a.first + a.rows.end, a.head);
    // Packing the keys pays from a few rows on; one new token reads them in place.
    if !COMPACT && a.queries < S::MR && a.dropout.is_none() {
        let Areas { scores, q, .. } = Areas::new(F::FOOTPRINT, a.scratch, a.keys, head).0;
        // SAFETY: passed on from the caller.
        return unsafe { few_queries::<S, F, STARTS>(s, f, a, scores, q) };
    }
    let areas = Areas::new(F::FOOTPRINT, a.scratch, keys, head).0;
    let direct = in_place(F::FOOTPRINT, keys);
    let unit = &mut f.unit();
    // SAFETY: `scratch` holds the areas; the rest is the caller's promise.
    unsafe {
        // From the first key of the first query on, in panels of the whole head.
        let from = a.start::<STARTS>(a.rows.start) / S::NR * S::NR;
        let (k, v) = (a.k.ptr.add(from * a.k.stride), a.v.ptr.add(from * a.v.stride));
        (F::PACK_B)(RawOperand::floats(k, 1, a.k.stride), head, keys - from, areas.keys_t);
        (F::PACK_B)(RawOperand::floats(v, a.v.stride, 1), keys - from, head, areas.values);
        let mut start = a.rows.start;
        while start < a.rows.end {
            let end = a.rows.end.min(start + query_block(F::FOOTPRINT));
            let q = Rows { ptr: a.q.ptr.add(start * a.q.stride), ..a.q };
            let q = words_of(s, f, q, (end - start, head), areas.q, direct);
            let out = if direct {
                a.out.from(start - a.rows.start)
            } else {
                RowsMut { ptr: areas.out, stride: sum_stride(F::FOOTPRINT, head).unwrap_or(0) }
            };
            let mut block = Block {
                a,
                areas: &areas,
                start,
                q,
                out,
                keys: Span { start: from, end: keys },
                most: [f32::MIN; MOST_QUERIES],
                sums: [0.0; MOST_QUERIES + MOST_LANES],
            };
            let low = a.start::<STARTS>(start) / KEY_BLOCK * KEY_BLOCK;
            for low in steps(low, a.first + end, KEY_BLOCK) {
                for at in steps(start, end, F::MR) {
                    let rows = F::MR.min(end - at);
                    block.strip::<S, F, STARTS>(
                        s,
                        f,
                        unit,
                        Span { start: at, end: at + rows },
                        low,
                    );
                }
            }
            start = end;
        }
    }
}

/// Queries that go over the keys together.
struct Block<'a> {
    a: &'a RawAttention,
    areas: &'a Areas,
    start: usize,
    /// Words of the queries.
    q: Rows,
    /// Sums of the values.
    out: RowsMut,
    /// Keys that are packed.
    keys: Span,
    /// Of each query the largest score so far, and the sum of the exponentials.
    most: [f32; MOST_QUERIES],
    sums: [f32; MOST_QUERIES + MOST_LANES],
}

impl Block<'_> {
    /// What the block of keys from `block` on adds to a strip of the block's queries.
    ///
    /// # Safety
    /// Passed on from [`forward`].
    #[inline(always)]
    unsafe fn strip<S: Simd, F: Format<S>, const STARTS: bool>(
        &mut self,
        s: S,
        f: F,
        unit: &mut F::Unit,
        queries: Span,
        block: usize,
    ) {
        let (a, areas) = (self.a, self.areas);
        let (head, rows) = (a.head, queries.end - queries.start);
        // SAFETY: a query of the head.
        let start = unsafe { a.start::<STARTS>(queries.start) };
        // Whole panels before what the first query sees are left out: the others see no more.
        let skip = (start / S::NR * S::NR).saturating_sub(block).min(KEY_BLOCK);
        let low = block + skip;
        let seen = (a.first + queries.end).saturating_sub(low).min(KEY_BLOCK - skip);
        if seen == 0 {
            return;
        }
        let again = block > start;
        let is_last = a.first + queries.end <= block + KEY_BLOCK;
        let first = queries.start - self.start;
        let stride = score_stride(F::FOOTPRINT, self.keys.end);
        let scores = RowsMut { ptr: areas.scores, stride };
        let words = F::words(head);
        // SAFETY: passed on from the caller; scratch holds what the areas say.
        unsafe {
            let product = Strip {
                rows,
                words,
                a: self.q.ptr.add(first * self.q.stride),
                a_row: self.q.stride,
                a_col: 1,
                c: scores,
                accumulate: false,
            };
            let whole = seen.next_multiple_of(if F::TILES { S::NR } else { S::LANES });
            let skipped = low - self.keys.start;
            let keys_t = areas.keys_t.add(skipped * words);
            product.times((s, f), unit, keys_t, words * S::NR, whole);
            if STARTS {
                a.hide(scores, queries, low, seen);
            }

            // Maxima first: while one row's is being found, the next rows' can be.
            let row = |r: usize| {
                // Some rows of a strip may see none of the block.
                let valid = (a.first + queries.start + r + 1).saturating_sub(low).min(seen);
                Row { ptr: scores.ptr.add(r * stride), query: queries.start + r, low, valid, seen }
            };
            let (most, sums) = (&mut self.most[first..], &mut self.sums[first..]);
            let mut before = [0.0_f32; MOST_ROWS];
            for (r, (most, before)) in most[..rows].iter_mut().zip(&mut before).enumerate() {
                *before = *most;
                *most = row(r).largest(s, *most);
                if !again && !COMPACT {
                    fetch_next(s, [a.q, a.k], head, queries.start + r);
                }
            }
            let out = self.out.from(first);
            for r in 0..rows {
                let sum = row(r).softmax(s, f, a, most[r]);
                if !again && !COMPACT {
                    fetch_next(s, [a.v], head, queries.start + r);
                }
                if is_last && !COMPACT {
                    let out = a.out.from(queries.start - a.rows.start + r);
                    for c in steps(0, head, LINE) {
                        s.prefetch_to_write(out.ptr.wrapping_add(c));
                    }
                }
                if again && before[r] < most[r] {
                    let factor = shrink(s, (before[r] - most[r]) * (a.scale * LOG2_E));
                    sums[r] *= factor;
                    crate::elementwise::scale(s, out.ptr.add(r * out.stride), factor, head);
                }
                sums[r] += sum;
            }
            if is_last {
                self.store_lse(queries);
            }
            let (from, words) = (scores.ptr.cast_const(), F::words(seen));
            let accumulate = again;
            let product = Strip { words, a: from, a_row: stride, c: out, accumulate, ..product };
            let values = areas.values.add(skipped / F::DEPTH * S::NR);
            let cols = if F::TILES { out.stride } else { head };
            let panel = F::words(self.keys.end - self.keys.start) * S::NR;
            product.times((s, f), unit, values, panel, cols);
            if is_last {
                self.finish(s, queries);
            }
        }
    }

    /// Writes the log-sum-exp of a strip, if it is wanted.
    ///
    /// Before its values are summed: vectors of what single stores have just written wait for them,
    /// and those would wait for the values' lines.
    ///
    /// # Safety
    /// Passed on from [`forward`]; the queries have met all of their scores.
    #[inline(always)]
    unsafe fn store_lse(&self, queries: Span) {
        let a = self.a;
        let Some(lse) = a.lse else { return };
        for at in steps(queries.start, queries.end, MOST_LANES) {
            let first = at - self.start;
            let some = MOST_LANES.min(queries.end - at);
            // The sums of queries that are not there are at hand too.
            let mut logs: [f32; MOST_LANES] = core::array::from_fn(|r| self.sums[first + r]);
            math::ln_each(&mut logs);
            for (r, log) in logs[..some].iter().enumerate() {
                // SAFETY: a query of the part.
                unsafe {
                    *lse.add(at - a.rows.start + r) = self.most[first + r] * a.scale + log;
                }
            }
        }
    }

    /// Divides a strip's values by the sums of the exponentials.
    ///
    /// # Safety
    /// Passed on from [`forward`]; the queries have gone over all of their keys.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, queries: Span) {
        let a = self.a;
        for at in queries.start..queries.end {
            let (from, to) = (self.out.from(at - self.start), a.out.from(at - a.rows.start));
            let factor = s.splat(1.0 / self.sums[at - self.start]);
            for c in steps(0, a.head, S::LANES) {
                let left = S::LANES.min(a.head - c);
                // SAFETY: a row of the queries.
                unsafe {
                    let x = load_up_to(s, from.ptr.add(c), left);
                    store_up_to(s, to.ptr.add(c), s.mul(x, factor), left);
                }
            }
        }
    }
}

/// `2^x` of one number that is not above 0.
#[inline(always)]
fn shrink<S: Simd>(s: S, x: f32) -> f32 {
    s.max_lane(math::exp2(s, s.splat(x), s.splat(1.0), s.splat(-127.0)))
}

/// A row of scores.
struct Row {
    ptr: *mut f32,
    query: usize,
    /// The key of the first score.
    low: usize,
    /// Keys from there on that the query sees, and that the strip sees: between the two,
    /// probabilities are zero.
    valid: usize,
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
    unsafe fn softmax<S: Simd, F: Format<S>>(self, s: S, f: F, a: &RawAttention, most: f32) -> f32 {
        let valid = self.valid;
        let c = a.scale * LOG2_E;
        let terms = Exponent { offset: s.splat(most), c: s.splat(c), least: s.splat(-127.0 / c) };
        let step = S::LANES * F::DEPTH;
        let zero = s.splat(0.0);
        let mut sum = zero;
        let mut i = 0;
        // SAFETY: vectors that hold scores below `valid`; words lie before the scores that are
        // not yet read.
        unsafe {
            // The loop below does what this one does, and more.
            if !COMPACT && a.dropout.is_none() {
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
                    if DROPOUT && let Some((dropout, first_row)) = &a.dropout {
                        let mut mask = [0.0_f32; MOST_LANES];
                        let row = first_row.wrapping_add(self.query as u32);
                        dropout.fill_mask(row, self.low + at, &mut mask[..S::LANES]);
                        *p = s.mul(*p, s.load(mask.as_ptr()));
                    }
                }
                s.store(self.ptr.add(i / F::DEPTH), f.fold(s, p[0], p[1]));
                i += step;
            }
        }
        s.sum(sum)
    }

    /// The largest of the scores that the query sees and of `least`.
    ///
    /// # Safety
    /// The row holds them in whole vectors.
    #[inline(always)]
    unsafe fn largest<S: Simd>(&self, s: S, least: f32) -> f32 {
        let valid = self.valid;
        let mut most = s.splat(least);
        let mut i = 0;
        // SAFETY: passed on from the caller.
        unsafe {
            while i + S::LANES <= valid {
                most = s.max(most, s.load(self.ptr.add(i)));
                i += S::LANES;
            }
            if i < valid {
                let last = s.load(self.ptr.add(i));
                most = s.max(most, s.first(last, valid - i, s.splat(least)));
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
