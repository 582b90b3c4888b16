//! What becomes of the scores of some queries in the backward pass.

use super::RawAttention;
use crate::built::{COMPACT, DROPOUT};
use crate::gemm::format::Format;
use crate::math;
use crate::simd::{MOST_LANES, Simd};
use core::f32::consts::LOG2_E;

/// The scores of as many queries as a word has elements: `p` holds `Q K^T`, `ds` holds
/// `dO V^T`.
pub(super) struct Scores {
    pub(super) p: *mut f32,
    pub(super) ds: *mut f32,
    /// Where the words of these queries go.
    pub(super) p_words: *mut f32,
    pub(super) ds_words: *mut f32,
    /// Floats between the rows of `p` and of `ds`.
    pub(super) stride: usize,
    /// Words between `NR` of these words and the next.
    pub(super) panel: usize,
    /// The first query, and the key of the first score.
    pub(super) query: usize,
    pub(super) key: usize,
    /// One less than a word's elements behind the last of an odd number.
    pub(super) rows: usize,
    /// Words up to so many keys are wanted: zero from where the query sees nothing.
    pub(super) end: usize,
    /// `rowsum(dO O)` of each.
    pub(super) delta: [f32; 2],
}

impl Scores {
    /// Makes masked probabilities and the gradient of the scores: the words of these queries,
    /// if gradients of keys and values are wanted, and in the place of `ds` words of keys.
    ///
    /// # Safety
    /// Rows hold scores of the keys that the strip sees, in whole vectors, and have room for
    /// words of whole vectors up to `end`.
    #[inline(always)]
    pub(super) unsafe fn differentiate<S: Simd, F: Format<S>>(&self, s: S, f: F, a: &RawAttention) {
        let Some(lse) = a.lse else { return };
        let mut lse_log2 = [0.0_f32; 2];
        for (d, x) in lse_log2[..self.rows].iter_mut().enumerate() {
            // SAFETY: a query of the head.
            *x = unsafe { -*lse.add(self.query + d) } * LOG2_E;
        }
        let zero = s.splat(0.0);
        let step = S::LANES * F::DEPTH;
        // Of the first query, which sees least; and of the last.
        let valid = (self.query + 1).saturating_sub(self.key).min(self.end);
        let most = (self.query + self.rows).saturating_sub(self.key).min(self.end);
        let is_whole = !COMPACT && a.dropout.is_none() && self.rows == F::DEPTH;
        let whole = if is_whole { valid } else { 0 };
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
            while i < most {
                let (mut p, mut ds) = ([[zero; 2]; 2], [[zero; 2]; 2]);
                for d in 0..F::DEPTH {
                    let valid = if d < self.rows { valid + d } else { 0 };
                    for v in 0..F::DEPTH {
                        let at = i + v * S::LANES;
                        let seen = valid.saturating_sub(at);
                        if seen > 0 {
                            (p[d][v], ds[d][v]) = self.row(s, a, lse_log2[d], d, at);
                        }
                        if 0 < seen && seen < S::LANES {
                            p[d][v] = s.first(p[d][v], seen, zero);
                            ds[d][v] = s.first(ds[d][v], seen, zero);
                        }
                    }
                }
                self.store(s, f, a, i, &p, &ds);
                i += step;
            }
            while i < self.end {
                self.store(s, f, a, i, &[[zero; 2]; 2], &[[zero; 2]; 2]);
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
        let place = (self.query + d, self.key + at);
        gradient(s, a, scores, (lse_log2, self.delta[d]), place)
    }

    /// Stores words of p and ds for the keys from `at` on: of (query, vector of keys).
    ///
    /// # Safety
    /// As for [`Scores::differentiate`].
    #[inline(always)]
    unsafe fn store<S: Simd, F: Format<S>>(
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
                    let at = at / S::NR * self.panel + at % S::NR;
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
    if DROPOUT && let Some((dropout, first_row)) = &a.dropout {
        let mut mask = [0.0_f32; MOST_LANES];
        dropout.fill_mask(first_row.wrapping_add(query as u32), column, &mut mask[..S::LANES]);
        // SAFETY: the array has room for a vector of any instruction set.
        let mask = unsafe { s.load(mask.as_ptr()) };
        dp = s.mul(dp, mask);
        kept = s.mul(p, mask);
    }
    (kept, s.mul(s.mul(p, s.sub(dp, s.splat(delta))), s.splat(a.scale)))
}
