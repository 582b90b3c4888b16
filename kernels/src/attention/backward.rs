//! The backward pass of one head, or of a part of it: all keys of the part at once,
//! queries strip by strip.
//!
//! ```text
//! pack K^T, V^T, K once
//! for each block of queries                           (strips whose p and ds are kept)
//!   pack Q, dO of the block
//!   for each strip of the block                       (keys up to the strip's last query)
//!     p    = exp(scale Q K^T - lse)                   (zero beyond the diagonal)
//!     dp   = dO V^T
//!     ds   = scale p (mask dp - rowsum(dO O));   p = p mask
//!     dQ   = ds K
//!   for each strip of keys that the block sees        (queries from the strip's first key on)
//!     dV (+)= p^T dO;   dK (+)= ds^T Q
//! ```
//! The mask is dropout's (1 without it); `rowsum(dO O)` equals the row's sum of
//! `p mask dp`, which is what the softmax's gradient subtracts.
//!
//! Where a word of the format has two elements, p and ds are brought into words of two
//! queries each, which dV and dK sum over, and ds into words of two keys each for dQ.
//!
//! A part is dQ of some strips of queries, over the keys that they see, or dK and dV of
//! some keys, over the queries that see them. The two make the scores twice, seven
//! products for five. Every sum of a part has the terms of the whole pass in the order
//! of the whole pass, so the bits are the same: a row of dQ sums over keys from key 0
//! on, a row of dK and dV over the blocks that see it, of which the queries before
//! the diagonal add zeros or nothing.

use super::{
    Pieces, RawAttention, Rows, RowsMut, Span, Strip, Wanted, dot, fetch_next, query_block,
    score_stride, strip_words, words_of,
};
use crate::elements::RawOperand;
use crate::gemm::format::{Dot, Single};
use crate::gemm::pack::{pack_b, packed_b_len};
use crate::math;
use crate::simd::{MOST_LANES, Simd};
use core::f32::consts::LOG2_E;

/// What scratch holds.
pub(super) struct Areas {
    /// Packed, all keys of the part.
    keys_t: *mut f32,
    values_t: *mut f32,
    keys: *mut f32,
    /// Packed, a block of queries.
    q_rows: *mut f32,
    dout_rows: *mut f32,
    /// Words of a strip of queries, where those are not floats.
    q: *mut f32,
    dout: *mut f32,
    /// Words of p and ds for a block of queries, of two queries each if a word has two.
    p_block: *mut f32,
    ds_block: *mut f32,
    /// The scores of a strip and their gradients, as products leave them.
    p: *mut f32,
    ds: *mut f32,
}

impl Areas {
    /// For `span` of a head's `keys` keys, and the floats that they take.
    #[inline(always)]
    pub(super) fn new<S: Simd, F: Dot<S>>(
        scratch: *mut f32,
        keys: usize,
        span: usize,
        head: usize,
        wanted: Wanted,
    ) -> (Self, Option<usize>) {
        let mut pieces = Pieces::of(scratch);
        let block = query_block(keys, S::MR);
        let stride = score_stride::<S>(span);
        let for_keys = |len: Option<usize>| if wanted == Wanted::Queries { Some(0) } else { len };
        let rows = |n: usize| stride.and_then(|stride| stride.checked_mul(n));
        // Words of one element take the place of the floats that they are made of.
        let strip = if F::DEPTH == 1 && wanted != Wanted::Queries { 0 } else { S::MR };
        let transposed = packed_b_len(F::words(head), span, S::NR);
        let straight = if wanted == Wanted::Keys {
            Some(0)
        } else {
            packed_b_len(F::words(span), head, S::NR)
        };
        let packed_rows = for_keys(packed_b_len(F::words(block), head, S::NR));
        let areas = Self {
            p: pieces.take(rows(strip)),
            ds: pieces.take(rows(strip)),
            p_block: pieces.take(for_keys(rows(F::words(block)))),
            ds_block: pieces.take(for_keys(rows(F::words(block)))),
            q: pieces.take(strip_words::<S, F>(head)),
            dout: pieces.take(strip_words::<S, F>(head)),
            q_rows: pieces.take(packed_rows),
            dout_rows: pieces.take(packed_rows),
            keys_t: pieces.take(transposed),
            values_t: pieces.take(transposed),
            keys: pieces.take(straight),
        };
        (areas, pieces.len)
    }
}

/// # Safety
/// The operands are valid for their shapes, `lse` is present, `first == 0` and
/// `queries == keys`; `dq`, `dk`, `dv` and `scratch` overlap nothing else; `rows` and
/// `cols` fit what is wanted. If all of the head is wanted, `dq`, `dk` and `dv` may be q, k
/// and v themselves: all keys and values are packed before dK and dV are begun, the
/// queries of a block before its dQ, and a strip's scores are made before its dQ.
#[inline(always)]
pub(crate) unsafe fn backward<S: Simd, F: Dot<S>>(s: S, f: F, a: &RawAttention) {
    let (low, n, head) = (a.cols.start, a.cols.end - a.cols.start, a.head);
    let wanted = match (a.dq, a.dkv) {
        (Some(_), Some(_)) => Wanted::All,
        (Some(_), None) => Wanted::Queries,
        _ => Wanted::Keys,
    };
    let areas = Areas::new::<S, F>(a.scratch, a.keys, n, head, wanted).0;
    let block = query_block(a.keys, S::MR);
    // SAFETY: `scratch` holds the areas; the rest is the caller's promise.
    unsafe {
        let (k, v) = (a.k.ptr.add(low * a.k.stride), a.v.ptr.add(low * a.v.stride));
        pack_b(s, f, RawOperand::floats(k, 1, a.k.stride), head, n, areas.keys_t);
        pack_b(s, f, RawOperand::floats(v, 1, a.v.stride), head, n, areas.values_t);
        if a.dq.is_some() {
            pack_b(s, f, RawOperand::floats(k, a.k.stride, 1), n, head, areas.keys);
        }
        let mut start = a.rows.start;
        while start < a.rows.end {
            let end = ((start / block + 1) * block).min(a.rows.end);
            let pass = Block { a, areas: &areas, start, end };
            if a.dkv.is_some() {
                let rows = end - start;
                let (q, dout) = (a.q.ptr.add(start * a.q.stride), a.dout.ptr);
                let dout = dout.add(start * a.dout.stride);
                pack_b(s, f, RawOperand::floats(q, a.q.stride, 1), rows, head, areas.q_rows);
                let dout = RawOperand::floats(dout, a.dout.stride, 1);
                pack_b(s, f, dout, rows, head, areas.dout_rows);
            }
            let mut at = start;
            while at < end {
                let rows = S::MR.min(end - at);
                pass.strip(s, f, at, rows);
                at += rows;
            }
            if let Some((dk, dv)) = a.dkv {
                pass.keys_and_values::<S, F>(dk, dv);
            }
            start = end;
        }
    }
}

/// Queries whose words of p and ds are held at once.
struct Block<'a> {
    a: &'a RawAttention,
    areas: &'a Areas,
    start: usize,
    end: usize,
}

impl Block<'_> {
    /// p and ds of the queries from `at` on, and their dQ.
    ///
    /// # Safety
    /// Passed on from [`backward`]; `rows` are a strip of the block.
    #[inline(always)]
    unsafe fn strip<S: Simd, F: Dot<S>>(&self, s: S, f: F, at: usize, rows: usize) {
        let (a, areas) = (self.a, self.areas);
        let (low, n, head) = (a.cols.start, a.cols.end - a.cols.start, a.head);
        let seen = (at + rows).saturating_sub(low).min(n);
        if seen == 0 {
            return;
        }
        let stride = score_stride::<S>(n).unwrap_or(0);
        // SAFETY: passed on from the caller; scratch holds what the areas say.
        unsafe {
            let here = Span { start: at, end: at + rows };
            fetch_next(s, &[a.q, a.dout, a.out.as_rows()], head, here);
            if let (Some(dq), Some((dk, dv))) = (a.dq, a.dkv) {
                // All of the head: there are as many keys as queries.
                let gradients = [dq.as_rows(), dk.as_rows(), dv.as_rows()];
                fetch_next(s, &[a.k, a.v], head, here);
                fetch_next(s, &gradients, head, here);
            }
            let q = Rows { ptr: a.q.ptr.add(at * a.q.stride), ..a.q };
            let dout = Rows { ptr: a.dout.ptr.add(at * a.dout.stride), ..a.dout };
            let word = (at - self.start) / F::DEPTH * stride;
            let (p_words, ds_words) =
                (areas.p_block.wrapping_add(word), areas.ds_block.wrapping_add(word));
            let (p, ds) = if F::DEPTH == 1 && a.dkv.is_some() {
                (p_words, ds_words)
            } else {
                (areas.p, areas.ds)
            };

            let words = F::words(head);
            let whole = seen.next_multiple_of(S::LANES);
            let q_words = words_of(s, f, q, rows, head, areas.q);
            let product = Strip {
                rows,
                words,
                a: q_words.ptr,
                a_row: q_words.stride,
                a_col: 1,
                c: RowsMut { ptr: p, stride },
                accumulate: false,
            };
            product.times::<S, F>(areas.keys_t, words * S::NR, whole);
            let dout_words = words_of(s, f, dout, rows, head, areas.dout);
            let c = RowsMut { ptr: ds, stride };
            let product = Strip { a: dout_words.ptr, a_row: dout_words.stride, c, ..product };
            product.times::<S, F>(areas.values_t, words * S::NR, whole);

            let mut deltas = [0.0_f32; MOST_LANES + 1];
            for (r, delta) in deltas[..rows].iter_mut().enumerate() {
                let out = a.out.ptr.add((at + r) * a.out.stride);
                *delta = dot(s, (dout.ptr.add(r * dout.stride), f), (out, Single), head);
            }
            for r in (0..rows).step_by(F::DEPTH) {
                let skip = r * stride;
                let word = r / F::DEPTH * stride;
                let group = Scores {
                    p: p.wrapping_add(skip),
                    ds: ds.wrapping_add(skip),
                    p_words: p_words.wrapping_add(word),
                    ds_words: ds_words.wrapping_add(word),
                    stride,
                    query: at + r,
                    rows: F::DEPTH.min(rows - r),
                    end: if a.dkv.is_some() { n.min(seen + S::MR) } else { seen },
                    delta: [deltas[r], deltas[r + 1]],
                };
                group.differentiate(s, f, a);
            }
            if let Some(dq) = a.dq {
                let c = dq.from(at - a.rows.start);
                let words = F::words(seen);
                let product = Strip { words, a: ds, a_row: stride, c, ..product };
                product.times::<S, F>(areas.keys, F::words(n) * S::NR, head);
            }
        }
    }

    /// What the block adds to dK and dV. They are overwritten where no block before has seen
    /// the keys.
    ///
    /// # Safety
    /// Passed on from [`backward`]; all strips of the block are done.
    #[inline(always)]
    unsafe fn keys_and_values<S: Simd, F: Dot<S>>(&self, dk: RowsMut, dv: RowsMut) {
        let (a, areas) = (self.a, self.areas);
        let (low, n, head) = (a.cols.start, a.cols.end - a.cols.start, a.head);
        let stride = score_stride::<S>(n).unwrap_or(0);
        let all = F::words(self.end - self.start);
        let mut j = 0;
        while j < n && low + j < self.end {
            // Queries before the strip's first key see none of it.
            let before = (low + j).saturating_sub(self.start) / F::DEPTH;
            let product = Strip {
                rows: S::MR.min(n - j),
                words: all - before,
                a: areas.p_block.wrapping_add(before * stride + j),
                a_row: 1,
                a_col: stride,
                c: dv.from(j),
                accumulate: low + j < self.start,
            };
            // SAFETY: the block's words of the keys, zero where a query does not see one of the
            // strip; the rest is passed on from the caller.
            unsafe {
                let skipped = before * S::NR;
                product.times::<S, F>(areas.dout_rows.wrapping_add(skipped), all * S::NR, head);
                let a = areas.ds_block.wrapping_add(before * stride + j);
                let product = Strip { a, c: dk.from(j), ..product };
                product.times::<S, F>(areas.q_rows.wrapping_add(skipped), all * S::NR, head);
            }
            j += S::MR;
        }
    }
}

/// The scores of as many queries as a word has elements: `p` holds `Q K^T`, `ds` holds
/// `dO V^T`.
struct Scores {
    p: *mut f32,
    ds: *mut f32,
    /// Where the words of these queries go.
    p_words: *mut f32,
    ds_words: *mut f32,
    stride: usize,
    query: usize,
    /// One less than a word's elements behind the last of an odd number.
    rows: usize,
    /// Words up to this key are wanted: zero from where the query sees nothing.
    end: usize,
    /// `rowsum(dO O)` of each.
    delta: [f32; 2],
}

impl Scores {
    /// Makes masked probabilities and the gradient of the scores: the words of these queries,
    /// if gradients of keys and values are wanted, and in the place of `ds` words of keys.
    ///
    /// # Safety
    /// Rows hold scores of the keys that the strip sees, in whole vectors, and have room for
    /// words of whole vectors up to `end`.
    #[inline(always)]
    unsafe fn differentiate<S: Simd, F: Dot<S>>(&self, s: S, f: F, a: &RawAttention) {
        let Some(lse) = a.lse else { return };
        let mut lse_log2 = [0.0_f32; 2];
        for (d, x) in lse_log2[..self.rows].iter_mut().enumerate() {
            // SAFETY: a query of the head.
            *x = unsafe { -*lse.add(self.query + d) } * LOG2_E;
        }
        let zero = s.splat(0.0);
        let step = S::LANES * F::DEPTH;
        // Up to here every one of the queries sees all keys.
        let valid = (self.query + 1).saturating_sub(a.cols.start).min(self.end);
        let whole = if a.dropout.is_none() && self.rows == F::DEPTH { valid } else { 0 };
        let mut i = 0;
        // SAFETY: vectors that hold elements that the strip sees, and room for words up to `end`,
        // which lie before what is not yet read.
        unsafe {
            while i + step <= whole {
                let (mut p, mut ds) = ([[zero; 2]; 2], [[zero; 2]; 2]);
                for d in 0..F::DEPTH {
                    for v in 0..F::DEPTH {
                        (p[d][v], ds[d][v]) = self.row(s, a, lse_log2[d], d, i + v * S::LANES);
                    }
                }
                self.store(s, f, a, i, &p, &ds);
                i += step;
            }
            while i < self.end {
                let (mut p, mut ds) = ([[zero; 2]; 2], [[zero; 2]; 2]);
                for d in 0..self.rows {
                    let valid = (self.query + d + 1).saturating_sub(a.cols.start);
                    for v in 0..F::DEPTH {
                        let at = i + v * S::LANES;
                        if at >= valid.min(self.end) {
                            continue;
                        }
                        (p[d][v], ds[d][v]) = self.row(s, a, lse_log2[d], d, at);
                        if valid - at < S::LANES {
                            p[d][v] = s.first(p[d][v], valid - at, zero);
                            ds[d][v] = s.first(ds[d][v], valid - at, zero);
                        }
                    }
                }
                self.store(s, f, a, i, &p, &ds);
                i += step;
            }
        }
    }

    /// Masked probabilities and gradients of the scores of query `d` and a vector of keys.
    ///
    /// # Safety
    /// As for [`Scores::differentiate`]; the strip sees one of the keys.
    #[inline(always)]
    unsafe fn row<S: Simd>(
        &self,
        s: S,
        a: &RawAttention,
        lse_log2: f32,
        d: usize,
        at: usize,
    ) -> (S::V, S::V) {
        let place = d * self.stride + at;
        // SAFETY: passed on from the caller.
        let scores = unsafe { (s.load(self.p.add(place)), s.load(self.ds.add(place))) };
        let place = (self.query + d, a.cols.start + at);
        gradient(s, a, scores, (lse_log2, self.delta[d]), place)
    }

    /// Stores words of p and ds for the keys from `at` on: of (query, vector of keys).
    ///
    /// # Safety
    /// As for [`Scores::differentiate`].
    #[inline(always)]
    unsafe fn store<S: Simd, F: Dot<S>>(
        &self,
        s: S,
        f: F,
        a: &RawAttention,
        at: usize,
        p: &[[S::V; 2]; 2],
        ds: &[[S::V; 2]; 2],
    ) {
        // SAFETY: passed on from the caller.
        unsafe {
            if a.dkv.is_some() {
                for v in 0..F::DEPTH {
                    let at = at + v * S::LANES;
                    s.store(self.p_words.add(at), f.join(s, p[0][v], p[1][v]));
                    s.store(self.ds_words.add(at), f.join(s, ds[0][v], ds[1][v]));
                }
            }
            if F::DEPTH == 2 || a.dkv.is_none() {
                for (d, ds) in ds[..self.rows].iter().enumerate() {
                    let word = d * self.stride + at / F::DEPTH;
                    s.store(self.ds.add(word), f.fold(s, ds[0], ds[1]));
                }
            }
        }
    }
}

/// Masked probabilities and gradients of the scores of a vector of keys from `column` on.
#[inline(always)]
fn gradient<S: Simd>(
    s: S,
    a: &RawAttention,
    (score, mut dp): (S::V, S::V),
    (lse_log2, delta): (f32, f32),
    (query, column): (usize, usize),
) -> (S::V, S::V) {
    let exponent = s.mul_add(score, s.splat(a.scale * LOG2_E), s.splat(lse_log2));
    // Probabilities are at most 1, however large the scores that rounding has moved.
    let exponent = s.min(s.splat(0.0), exponent);
    let p = math::exp2(s, exponent, s.splat(1.0), s.splat(-127.0));
    let mut kept = p;
    if let Some((dropout, first_row)) = &a.dropout {
        let mut mask = [0.0_f32; MOST_LANES];
        dropout.fill_mask(first_row.wrapping_add(query as u32), column, &mut mask[..S::LANES]);
        // SAFETY: the array has room for a vector of any instruction set.
        let mask = unsafe { s.load(mask.as_ptr()) };
        dp = s.mul(dp, mask);
        kept = s.mul(p, mask);
    }
    (kept, s.mul(s.mul(p, s.sub(dp, s.splat(delta))), s.splat(a.scale)))
}
