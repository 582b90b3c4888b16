//! The backward pass of one head, or of a part of it.
//!
//! ```text
//! pack K^T, V^T, K once
//! for each block of queries                           (whose p and ds are kept)
//!   pack Q, dO of the block;  delta = rowsum(dO O) of each row
//!   for each block of keys that they see
//!     for each strip of queries that sees some of it  (keys up to the strip's last query, from the
//!                                                      panel on that has its first's first)
//!       p    = exp(scale Q K^T - lse)                 (zero beyond the diagonal, and before a
//!                                                      row's first key)
//!       dp   = dO V^T
//!       ds   = scale p (mask dp - delta);   p = p mask
//!       dQ (+)= ds K
//!     for each strip of keys that the queries see     (queries from the strip's first key on, to
//!                                                      the last that sees some of it)
//!       dV (+)= p^T dO;   dK (+)= ds^T Q
//! ```
//! The mask is dropout's (1 without it); `rowsum(dO O)` equals the row's sum of
//! `p mask dp`, which is what the softmax's gradient subtracts.
//!
//! Where a word of the format has two elements, p and ds are brought into words of two
//! queries each, which dV and dK sum over, and ds into words of two keys each for dQ.
//!
//! Tiles have rows of words for a left-hand side, which p^T and ds^T are not. There the
//! products are turned round: `dV^T (+)= dO^T p` and `dK^T (+)= Q^T ds`, of p and ds as panels,
//! and what they have summed is transposed at the end of the head. Sums are kept side by side in
//! scratch, for the same reason as words of queries (`words_of`).
//!
//! A part is dQ of some strips of queries, over the keys that they see, or dK and dV of
//! some keys, over the queries that see them. The two make the scores twice, seven
//! products for five. Every sum of a part has the terms of the whole pass in the order
//! of the whole pass, so the bits are the same: a row of dQ sums over blocks of keys from key 0
//! on or a whole number of blocks later, a row of dK and dV over the blocks of queries that see it,
//! of which the queries before the diagonal, and those whose first key is a later one, add zeros
//! or nothing.

use super::scores::Scores;
use super::sums::Sums;
use super::{
    KEY_BLOCK, MOST_QUERIES, Pieces, RawAttention, Rows, RowsMut, Span, Strip, Wanted, dot,
    fetch_next, most_of_block, query_block, room_for_words, score_stride, words_of,
};
use crate::built::steps;
use crate::elements::RawOperand;
use crate::footprint::Footprint;
use crate::gemm::format::{Format, Single};
use crate::gemm::pack::{self, packed_b_len};
use crate::simd::Simd;

/// What scratch holds.
pub(super) struct Areas {
    /// Packed, all keys of the part.
    keys_t: *mut f32,
    values_t: *mut f32,
    keys: *mut f32,
    /// A block of queries, packed; for tiles rows of words of its transpose.
    q_rows: *mut f32,
    dout_rows: *mut f32,
    /// Words of a block of queries.
    q: *mut f32,
    dout: *mut f32,
    /// Sums: dQ of a block of queries, dK and dV of all keys of the part, for tiles transposed.
    dq: *mut f32,
    dk: *mut f32,
    dv: *mut f32,
    /// Words of p and ds for a block of queries and of keys, of two queries each if a word has
    /// two; for tiles in panels.
    p_block: *mut f32,
    ds_block: *mut f32,
    /// The scores of a strip and their gradients, as products leave them.
    p: *mut f32,
    ds: *mut f32,
}

impl Areas {
    /// For `queries` queries and `span` of a head's keys, and the floats that they take.
    #[cfg_attr(not(feature = "compact"), inline(always))]
    #[cfg_attr(feature = "compact", inline(never))]
    pub(super) const fn new(
        f: Footprint,
        scratch: *mut f32,
        queries: usize,
        span: usize,
        head: usize,
        wanted: Wanted,
    ) -> (Self, Option<usize>) {
        let mut pieces = Pieces::of(scratch);
        let block = most_of_block(f, queries);
        let stride = score_stride(f, span);
        let has_keys = !matches!(wanted, Wanted::Queries);
        let has_queries = !matches!(wanted, Wanted::Keys);
        // Words of one element take the place of the floats that they are made of.
        let strip = if f.depth == 1 && has_keys { 0 } else { f.mr };
        let transposed = packed_b_len(f.words(head), span, f.nr);
        let packed_rows = if f.tiles {
            head.checked_mul(f.words(block))
        } else {
            packed_b_len(f.words(block), head, f.nr)
        };
        let words = room_for_words(f, span, block, head);
        let (of_queries, of_keys) = Sums::room(f, span, block, head);
        let areas = Self {
            p: pieces.take(Some(strip * stride)),
            ds: pieces.take(Some(strip * stride)),
            p_block: pieces.take_if(has_keys, Some(f.words(block) * stride)),
            ds_block: pieces.take_if(has_keys, Some(f.words(block) * stride)),
            q: pieces.take(words),
            dout: pieces.take(words),
            dq: pieces.take_if(has_queries, of_queries),
            dk: pieces.take_if(has_keys, of_keys),
            dv: pieces.take_if(has_keys, of_keys),
            q_rows: pieces.take_if(has_keys, packed_rows),
            dout_rows: pieces.take_if(has_keys, packed_rows),
            keys_t: pieces.take(transposed),
            values_t: pieces.take(transposed),
            keys: pieces.take_if(has_queries, packed_b_len(f.words(span), head, f.nr)),
        };
        (areas, pieces.len)
    }
}

/// # Safety
/// The operands are valid for their shapes, `lse` is present, `first == 0` and
/// `queries == keys`; `dq`, `dk`, `dv` and `scratch` overlap nothing else; `rows` and
/// `cols` fit what is wanted. If all of the head is wanted, `dq`, `dk` and `dv` may be q, k
/// and v themselves: all keys and values are packed before dK and dV are begun, the queries of
/// a block before its dQ is, and where its words are the queries in their place there is one
/// block of keys, and a strip's scores are made before its dQ.
#[inline(always)]
pub(crate) unsafe fn backward<S: Simd, F: Format<S>, const STARTS: bool>(
    s: S,
    f: F,
    a: &RawAttention,
) {
    let (low, n, head) = (a.cols.start, a.cols.end - a.cols.start, a.head);
    let wanted = match (a.dq, a.dkv) {
        (Some(_), Some(_)) => Wanted::All,
        (Some(_), None) => Wanted::Queries,
        _ => Wanted::Keys,
    };
    let areas = Areas::new(F::FOOTPRINT, a.scratch, a.queries, n, head, wanted).0;
    let size = query_block(F::FOOTPRINT);
    let sums = Sums::new::<S, F>(a, areas.dq, areas.dk, areas.dv);
    let unit = &mut f.unit();
    // SAFETY: `scratch` holds the areas; the rest is the caller's promise.
    unsafe {
        let (k, v) = (a.k.ptr.add(low * a.k.stride), a.v.ptr.add(low * a.v.stride));
        (F::PACK_B)(RawOperand::floats(k, 1, a.k.stride), head, n, areas.keys_t);
        (F::PACK_B)(RawOperand::floats(v, 1, a.v.stride), head, n, areas.values_t);
        if a.dq.is_some() {
            (F::PACK_B)(RawOperand::floats(k, a.k.stride, 1), n, head, areas.keys);
        }
        let mut start = a.rows.start;
        while start < a.rows.end {
            let end = ((start / size + 1) * size).min(a.rows.end);
            let block = Block::new(s, f, a, &areas, &sums, Span { start, end });
            // Keys from the first on that the block's last query does not see, and the block of
            // keys that has the first of the first query's.
            let seen = end.saturating_sub(low).min(n);
            let unseen = a.start::<STARTS>(start).saturating_sub(low) / KEY_BLOCK * KEY_BLOCK;
            for first in steps(unseen, seen, KEY_BLOCK) {
                let keys = Span { start: first, end: n.min(first + KEY_BLOCK) };
                for at in steps(start, end, F::MR) {
                    block.strip::<S, F, STARTS>(
                        s,
                        f,
                        unit,
                        Span { start: at, end: end.min(at + F::MR) },
                        keys,
                    );
                }
                if a.dkv.is_some() {
                    for (rows, words, to) in [
                        (areas.dout_rows, areas.p_block, sums.dv),
                        (areas.q_rows, areas.ds_block, sums.dk),
                    ] {
                        if F::TILES {
                            block.turned_keys_or_values::<S, F, STARTS>(
                                s,
                                f,
                                unit,
                                keys,
                                (rows, words, to),
                            );
                        } else {
                            block.keys_or_values::<S, F, STARTS>(
                                s,
                                f,
                                unit,
                                keys,
                                (rows, words, to),
                            );
                        }
                    }
                }
            }
            sums.finish_queries(s, a, Span { start, end });
            start = end;
        }
        sums.finish_keys::<S, F>(s, a);
    }
}

/// Queries whose words of p and ds are held at once.
struct Block<'a> {
    a: &'a RawAttention,
    areas: &'a Areas,
    sums: &'a Sums,
    queries: Span,
    /// Their words.
    q: Rows,
    dout: Rows,
    /// `rowsum(dO O)` of each, and one more for an odd number.
    deltas: [f32; MOST_QUERIES + 1],
}

impl<'a> Block<'a> {
    /// Packs what the products with the block want.
    ///
    /// # Safety
    /// Passed on from [`backward`].
    #[inline(always)]
    unsafe fn new<S: Simd, F: Format<S>>(
        s: S,
        f: F,
        a: &'a RawAttention,
        areas: &'a Areas,
        sums: &'a Sums,
        queries: Span,
    ) -> Self {
        let (head, rows) = (a.head, queries.end - queries.start);
        // SAFETY: passed on from the caller; scratch holds what the areas say.
        unsafe {
            let q = Rows { ptr: a.q.ptr.add(queries.start * a.q.stride), ..a.q };
            let dout = Rows { ptr: a.dout.ptr.add(queries.start * a.dout.stride), ..a.dout };
            if a.dkv.is_some() {
                for (from, to) in [(q, areas.q_rows), (dout, areas.dout_rows)] {
                    if F::TILES {
                        let from = RawOperand::floats(from.ptr, 1, from.stride);
                        pack::rows(s, f, from, (head, rows), to);
                    } else {
                        let from = RawOperand::floats(from.ptr, from.stride, 1);
                        (F::PACK_B)(from, rows, head, to);
                    }
                }
            }
            let mut deltas = [0.0_f32; MOST_QUERIES + 1];
            for (r, delta) in deltas[..rows].iter_mut().enumerate() {
                let out = a.out.ptr.add((queries.start + r) * a.out.stride);
                *delta = dot(s, (dout.ptr.add(r * dout.stride), f), (out, Single), head);
            }
            let q = words_of(s, f, q, (rows, head), areas.q, sums.direct);
            let dout = words_of(s, f, dout, (rows, head), areas.dout, sums.direct);
            Self { a, areas, sums, queries, q, dout, deltas }
        }
    }

    /// p and ds of a strip of the block and the keys in `keys`, and what they add to dQ.
    ///
    /// # Safety
    /// Passed on from [`backward`].
    #[inline(always)]
    unsafe fn strip<S: Simd, F: Format<S>, const STARTS: bool>(
        &self,
        s: S,
        f: F,
        unit: &mut F::Unit,
        queries: Span,
        keys: Span,
    ) {
        let (a, areas) = (self.a, self.areas);
        let (low, n, head) = (a.cols.start, a.cols.end - a.cols.start, a.head);
        // SAFETY: a query of the head.
        let start = unsafe { a.start::<STARTS>(queries.start) }.saturating_sub(low);
        // Whether this is not the first block of keys for the queries.
        let again = keys.start > start;
        // Whole panels before what the first query sees are left out: the others see no more.
        let len = keys.end - keys.start;
        let skip = (start / S::NR * S::NR).saturating_sub(keys.start).min(len);
        let keys = Span { start: keys.start + skip, end: keys.end };
        let len = len - skip;
        let seen = queries.end.saturating_sub(low + keys.start).min(len);
        if seen == 0 {
            return;
        }
        let rows = queries.end - queries.start;
        let stride = score_stride(F::FOOTPRINT, n);
        // SAFETY: passed on from the caller; scratch holds what the areas say.
        unsafe {
            let first = queries.start - self.queries.start;
            let word = first / F::DEPTH;
            // Rows of words are a row of a panel, or of all keys, apart.
            let (word_row, panel) =
                if F::TILES { (S::NR, self.panel::<S, F>()) } else { (stride, S::NR) };
            let word = word * word_row + skip / S::NR * panel;
            let p_words = areas.p_block.wrapping_add(word);
            let ds_words = areas.ds_block.wrapping_add(word);
            let (p, ds) = if F::DEPTH == 1 && a.dkv.is_some() {
                (p_words, ds_words)
            } else {
                (areas.p, areas.ds)
            };

            let words = F::words(head);
            let whole = seen.next_multiple_of(if F::TILES { S::NR } else { S::LANES });
            let product = Strip {
                rows,
                words,
                a: self.q.ptr.add(first * self.q.stride),
                a_row: self.q.stride,
                a_col: 1,
                c: RowsMut { ptr: p, stride },
                accumulate: false,
            };
            let skipped = keys.start * words;
            product.times((s, f), unit, areas.keys_t.add(skipped), words * S::NR, whole);
            let product = Strip {
                a: self.dout.ptr.add(first * self.dout.stride),
                a_row: self.dout.stride,
                c: RowsMut { ptr: ds, stride },
                ..product
            };
            product.times((s, f), unit, areas.values_t.add(skipped), words * S::NR, whole);
            if STARTS {
                a.hide(RowsMut { ptr: p, stride }, queries, low + keys.start, seen);
                if !F::TILES && a.dkv.is_some() {
                    // The strip of keys that the panel cuts reads words before it.
                    let cut = skip % F::MR;
                    for row in 0..rows.div_ceil(F::DEPTH) {
                        for words in [p_words, ds_words] {
                            words.add(row * stride).sub(cut).write_bytes(0, cut);
                        }
                    }
                }
            }

            // Products with strips or panels of keys read so far.
            let padded = if F::TILES { seen.next_multiple_of(S::NR) } else { seen + F::MR };
            for r in steps(0, rows, F::DEPTH) {
                let skip = r * stride;
                let word = r / F::DEPTH * word_row;
                let group = Scores {
                    p: p.wrapping_add(skip),
                    ds: ds.wrapping_add(skip),
                    p_words: p_words.wrapping_add(word),
                    ds_words: ds_words.wrapping_add(word),
                    stride,
                    panel,
                    query: queries.start + r,
                    key: low + keys.start,
                    rows: F::DEPTH.min(rows - r),
                    end: if a.dkv.is_some() { len.min(padded) } else { seen },
                    delta: [self.deltas[first + r], self.deltas[first + r + 1]],
                };
                group.differentiate(s, f, a);
                if !again {
                    for row in queries.start + r..queries.start + r + group.rows {
                        fetch_next(s, [a.q, a.k, a.v, a.dout, a.out.as_rows()], head, row);
                    }
                }
            }
            if a.dq.is_some() {
                let c = self.sums.of_queries(queries.start, self.queries.start, a.rows.start);
                let (words, accumulate) = (F::words(seen), again);
                let product = Strip { words, a: ds, a_row: stride, c, accumulate, ..product };
                let from = areas.keys.add(keys.start / F::DEPTH * S::NR);
                let cols = if F::TILES { c.stride } else { head };
                product.times((s, f), unit, from, F::words(n) * S::NR, cols);
            }
        }
    }

    /// Words of a panel of p or ds.
    #[inline(always)]
    fn panel<S: Simd, F: Format<S>>(&self) -> usize {
        F::words(self.queries.end - self.queries.start) * S::NR
    }

    /// The first of the keys in `keys` for which something is to be added, in strips of `some`: the
    /// first query sees none before, the others no more.
    #[inline(always)]
    fn first_strip<const STARTS: bool>(&self, keys: Span, some: usize) -> usize {
        // SAFETY: a query of the head.
        let start = unsafe { self.a.start::<STARTS>(self.queries.start) };
        let unseen = start.saturating_sub(self.a.cols.start + keys.start);
        keys.start + unseen / some * some
    }

    /// How many of the block's queries see keys before `key`, given that `least` do: the others'
    /// first keys are behind.
    #[inline(always)]
    fn until<const STARTS: bool>(&self, least: usize, key: usize) -> usize {
        let Span { start, end } = self.queries;
        if !STARTS {
            return end - start;
        }
        // SAFETY: a query of the head.
        let sees = |query: usize| unsafe { self.a.start::<STARTS>(query) } < key;
        (start + least..end).take_while(|query| sees(*query)).count() + least
    }

    /// What the block adds to dV or dK of the keys in `keys`: `words^T rows`. Sums are
    /// overwritten where no block before has seen the keys.
    ///
    /// # Safety
    /// Passed on from [`backward`]; all strips of the block are done for the keys.
    #[inline(always)]
    unsafe fn keys_or_values<S: Simd, F: Format<S>, const STARTS: bool>(
        &self,
        s: S,
        f: F,
        unit: &mut F::Unit,
        keys: Span,
        (rows, words, sums): (*const f32, *const f32, RowsMut),
    ) {
        let (a, Span { start, end }) = (self.a, self.queries);
        let (low, n, head) = (a.cols.start, a.cols.end - a.cols.start, a.head);
        let stride = score_stride(F::FOOTPRINT, n);
        let all = F::words(end - start);
        let mut j = self.first_strip::<STARTS>(keys, F::MR);
        let mut until = 0;
        while j < keys.end && low + j < end {
            // Queries before the strip's first key see none of it, nor do those whose first key is
            // behind its last.
            let before = (low + j).saturating_sub(start) / F::DEPTH;
            let some = F::MR.min(keys.end - j);
            until = self.until::<STARTS>(until, low + j + some);
            let product = Strip {
                rows: some,
                words: F::words(until) - before,
                a: words.wrapping_add(before * stride + j - keys.start),
                a_row: 1,
                a_col: stride,
                c: sums.from(j),
                accumulate: low + j < start,
            };
            // SAFETY: the block's words of the keys, zero where a query does not see one of the
            // strip; the rest is passed on from the caller.
            unsafe {
                let rows = rows.wrapping_add(before * S::NR);
                product.times((s, f), unit, rows, all * S::NR, head);
            }
            j += F::MR;
        }
    }

    /// [`Block::keys_or_values`] turned round, where words are in panels.
    ///
    /// # Safety
    /// As for [`Block::keys_or_values`].
    #[inline(always)]
    unsafe fn turned_keys_or_values<S: Simd, F: Format<S>, const STARTS: bool>(
        &self,
        s: S,
        f: F,
        unit: &mut F::Unit,
        keys: Span,
        (rows, words, sums): (*const f32, *mut f32, RowsMut),
    ) {
        let (a, Span { start, end }) = (self.a, self.queries);
        let (low, head) = (a.cols.start, a.head);
        let (all, panel) = (F::words(end - start), self.panel::<S, F>());
        let made = (end - start).div_ceil(F::DEPTH);
        let mut j = self.first_strip::<STARTS>(keys, S::NR);
        let mut until = 0;
        while j < keys.end && low + j < end {
            // Whole strips of queries before the panel's first key see none of it, nor do those
            // whose first keys are behind its last.
            let before = (low + j).saturating_sub(start) / F::MR * F::MR / F::DEPTH;
            until = self.until::<STARTS>(until, low + keys.end.min(j + S::NR));
            let after = F::words(until);
            // SAFETY: the block's words of the keys, zero where a query does not see one of the
            // panel, and behind the last query; the rest is passed on from the caller.
            unsafe {
                let words = words.add((j - keys.start) / S::NR * panel);
                words.add(made * S::NR).write_bytes(0, (all - made) * S::NR);
                for row in (0..head).step_by(F::MR) {
                    let product = Strip {
                        rows: F::MR.min(head - row),
                        words: after - before,
                        a: rows.add(row * all + before),
                        a_row: all,
                        a_col: 1,
                        c: RowsMut { ptr: sums.from(row).ptr.add(j), ..sums },
                        accumulate: low + j < start,
                    };
                    let words = words.add(before * S::NR);
                    product.times((s, f), unit, words, panel, S::NR);
                }
            }
            j += S::NR;
        }
    }
}
