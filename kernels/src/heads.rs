//! Head-wise methods of the table: causal attention, forward and backward, of a whole
//! head or of a part of it.

use crate::Kernels;
use crate::attention::{KEY_BLOCK, RawAttention, Rows, RowsMut, Span};
use crate::built::DROPOUT;
use crate::dropout::Dropout;
use crate::mat::{MatMut, MatRef};
use crate::rows::rows_of;
use core::ops::Range;

/// The inputs of one head of causal attention.
///
/// q is `queries x head`, k and v are `keys x head`, rows contiguous. Query i
/// attends to keys `0..=first + i`, or with [`Attention::starts`] to `starts[i]..=first + i`, and with
/// [`Attention::window`] to the last ones of those.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Queries.
    pub q: MatRef<'a>,
    /// Keys.
    pub k: MatRef<'a>,
    /// Values.
    pub v: MatRef<'a>,
    /// Position of query 0 among the keys: 0 unless keys come from a cache.
    pub first: usize,
    /// The first key that each query attends to, one number a query; `None`: key 0, with the same
    /// bits as zeros. Documents that lie one behind the other have the place of the query's document.
    ///
    /// Work falls to the keys that are seen, in whole panels of up to 32 keys, by the instruction set,
    /// for strips of 4 to 32 queries at a time: of a window of w keys some w + 50 with vectors of 512
    /// bits. Where a document ends within a strip, all of its queries are multiplied with the keys of
    /// both documents. Results are near those of a call for each document, but do not have their
    /// bits: sums begin at panels of the whole head.
    ///
    /// # Panics
    /// Every method panics if there is not one number for each query, if one is less than that
    /// before it, or if one is behind the query's own key: `starts[i] > first + i`.
    pub starts: Option<&'a [u32]>,
    /// A window that slides: the most keys that a query attends to, the last ones up to its own, with
    /// the bits of as many first keys. `None`, or as many as there are keys: no window. Work is as
    /// with [`Attention::starts`].
    ///
    /// # Panics
    /// Every method panics at 0.
    pub window: Option<usize>,
    /// Factor of the scores: `1 / sqrt(head)`.
    pub scale: f32,
    /// Mask of the probabilities and the mask's row for query 0; its columns are keys.
    pub dropout: Option<(Dropout, u32)>,
}

/// Gradients of one head, each overwritten.
#[derive(Debug)]
pub struct AttentionGrads<'a> {
    /// Of the queries.
    pub dq: MatMut<'a>,
    /// Of the keys.
    pub dk: MatMut<'a>,
    /// Of the values.
    pub dv: MatMut<'a>,
}

/// The inputs of one head of a whole sequence, which its gradients take the place of.
#[derive(Debug)]
pub struct AttentionInPlace<'a> {
    /// Queries; become their gradient.
    pub q: MatMut<'a>,
    /// Keys; become their gradient.
    pub k: MatMut<'a>,
    /// Values; become their gradient.
    pub v: MatMut<'a>,
    /// As [`Attention::starts`].
    pub starts: Option<&'a [u32]>,
    /// As [`Attention::window`].
    pub window: Option<usize>,
    /// As [`Attention::scale`].
    pub scale: f32,
    /// As [`Attention::dropout`].
    pub dropout: Option<(Dropout, u32)>,
}

fn rows_mut_of(m: &MatMut<'_>) -> RowsMut {
    RowsMut { ptr: m.ptr, stride: m.row_stride }
}

impl Kernels {
    /// Queries that parts of a head start at multiples of: see
    /// [`Kernels::attention_queries`]. 32 where attention's products are made in tiles, 24 on
    /// every other instruction set.
    #[must_use]
    pub const fn attention_block(&self) -> usize {
        self.footprint().attention_block()
    }

    /// Floats of scratch for [`Kernels::attention`] over up to `keys` keys, and for any
    /// part of it.
    #[must_use]
    pub const fn attention_scratch_len(&self, keys: usize, head: usize) -> Option<usize> {
        self.footprint().attention_scratch_len(keys, head)
    }

    /// Floats of scratch for [`Kernels::attention_backward`] over `keys` keys.
    #[must_use]
    pub const fn attention_backward_scratch_len(&self, keys: usize, head: usize) -> Option<usize> {
        self.footprint().attention_backward_scratch_len(keys, head)
    }

    /// Floats of scratch for [`Kernels::attention_backward_queries`] of any queries of a
    /// sequence of `keys`: less than for all of the backward pass.
    #[must_use]
    pub const fn attention_backward_queries_scratch_len(
        &self,
        keys: usize,
        head: usize,
    ) -> Option<usize> {
        self.footprint().attention_backward_queries_scratch_len(keys, head)
    }

    /// Floats of scratch for [`Kernels::attention_backward_keys`] of up to `part` keys of a
    /// sequence of `keys`: less than for all of the backward pass.
    #[must_use]
    pub const fn attention_backward_keys_scratch_len(
        &self,
        keys: usize,
        part: usize,
        head: usize,
    ) -> Option<usize> {
        self.footprint().attention_backward_keys_scratch_len(keys, part, head)
    }

    /// One head: overwrites `out` (`queries x head`) and, if given, the log-sum-exp of
    /// each query's scores, which the backward pass wants.
    ///
    /// Queries whose keys come from a cache, and what the backward pass wants:
    ///
    /// ```
    /// use cllm_kernels::{Attention, Kernels, MatMut, MatRef};
    ///
    /// let kernels = Kernels::detect();
    /// let (keys, head) = (3, 2);
    /// // All keys alike, so each query takes the mean of the values that it sees.
    /// let (k, v) = ([1.0; 6], [0.0, 6.0, 2.0, 4.0, 7.0, -1.0]);
    /// let (q, mut out, mut lse) = ([0.5; 4], [0.0; 4], [0.0; 2]);
    /// let inputs = Attention {
    ///     q: MatRef::new(&q, 2, head, head),
    ///     k: MatRef::new(&k, keys, head, head),
    ///     v: MatRef::new(&v, keys, head, head),
    ///     // The first query is the second token.
    ///     first: 1,
    ///     starts: None,
    ///     window: None,
    ///     scale: 1.0 / (head as f32).sqrt(),
    ///     dropout: None,
    /// };
    /// let mut scratch = vec![0.0; kernels.attention_scratch_len(keys, head).unwrap()];
    /// kernels.attention(&inputs, MatMut::new(&mut out, 2, head, head), Some(&mut lse), &mut scratch);
    /// let close = |x: f32, y: f32| (x - y).abs() < 1e-5;
    /// assert!(out.iter().zip([1.0, 5.0, 3.0, 3.0]).all(|(x, y)| close(*x, y)));
    /// // Every score is `1 / sqrt(2)`.
    /// assert!(close(lse[0], 0.5_f32.sqrt() + 2_f32.ln()) && close(lse[1], 0.5_f32.sqrt() + 3_f32.ln()));
    /// ```
    ///
    /// # Panics
    /// If the shapes do not fit together or scratch is too short.
    pub fn attention(
        &self,
        a: &Attention<'_>,
        out: MatMut<'_>,
        lse: Option<&mut [f32]>,
        scratch: &mut [f32],
    ) {
        self.attention_queries(a, 0..a.q.rows(), out, lse, scratch);
    }

    /// [`Kernels::attention`] of the queries in `queries` alone, with the bits that the
    /// whole call gives them. `a` describes the whole head.
    ///
    /// Overwrites `out` (`queries.len() x head`) and `lse` (`queries.len()`). Reads of q
    /// those queries, of k and v the rows up to `a.first + queries.end`, and no others:
    /// parts of a head may run at the same time. With `a.starts` or `a.window` rows are read from the multiple of
    /// 32 on that is not above the first query's. Each part packs the keys that it sees again.
    ///
    /// # Panics
    /// If the shapes do not fit together or scratch is too short; if `queries` does not
    /// start at a multiple of [`Kernels::attention_block`], or ends neither
    /// at one nor with the last query.
    pub fn attention_queries(
        &self,
        a: &Attention<'_>,
        queries: Range<usize>,
        out: MatMut<'_>,
        lse: Option<&mut [f32]>,
        scratch: &mut [f32],
    ) {
        let (keys, head) = (a.k.rows(), a.q.cols());
        let need = self.attention_scratch_len(keys, head);
        assert!(need.is_some_and(|n| n <= scratch.len()), "attention: scratch is too short");
        let rows = blocks(a, &queries, self.attention_block());
        assert!(out.rows() == queries.len() && out.cols() == head, "attention: out");
        assert!(lse.as_ref().is_none_or(|l| l.len() == queries.len()), "attention: lse");
        let raw = RawAttention {
            rows,
            out: rows_mut_of(&out),
            lse: lse.map(<[f32]>::as_mut_ptr),
            scratch: scratch.as_mut_ptr(),
            ..raw_attention(a)
        };
        if queries.is_empty() {
            return;
        }
        // SAFETY: the shapes were just checked; out, lse and scratch are exclusive.
        unsafe { (self.products.heads.forward[usize::from(raw.has_starts())])(&raw) }
    }

    /// Backward pass of [`Kernels::attention`] over a whole sequence (`first == 0`, as
    /// many queries as keys): overwrites the three gradients.
    ///
    /// ```
    /// use cllm_kernels::{Attention, AttentionGrads, Kernels, MatMut, MatRef};
    ///
    /// let (kernels, n, head) = (Kernels::detect(), 4, 2);
    /// let of = |by: f32| -> Vec<f32> { (0..n * head).map(|i| (by * i as f32).sin()).collect() };
    /// let (q, k, v, dout) = (of(0.3), of(0.7), of(1.1), of(1.9));
    /// let mat = |m| MatRef::new(m, n, head, head);
    /// let (first, starts, window, dropout) = (0, None, None, None);
    /// let (q, k, v) = (mat(&q), mat(&k), mat(&v));
    /// let inputs = Attention { q, k, v, first, starts, window, scale: 0.7, dropout };
    ///
    /// let need = kernels.attention_backward_scratch_len(n, head).unwrap();
    /// let need = need.max(kernels.attention_scratch_len(n, head).unwrap());
    /// let (mut scratch, mut lse, mut out) = (vec![0.0; need], vec![0.0; n], vec![0.0; n * head]);
    /// kernels.attention(&inputs, MatMut::new(&mut out, n, head, head), Some(&mut lse), &mut scratch);
    ///
    /// let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![0.0; n * head]);
    /// let mut grads = AttentionGrads {
    ///     dq: MatMut::new(&mut dq, n, head, head),
    ///     dk: MatMut::new(&mut dk, n, head, head),
    ///     dv: MatMut::new(&mut dv, n, head, head),
    /// };
    /// kernels.attention_backward(&inputs, mat(&out), &lse, mat(&dout), &mut grads, &mut scratch);
    /// // The first query sees but itself, and its probabilities cannot change.
    /// assert!(dq[..head].iter().all(|x| x.abs() < 1e-5));
    /// // Each query's probabilities add up to 1, so what goes in at the outputs comes out at the values.
    /// let sum = |m: &[f32]| m.iter().sum::<f32>();
    /// assert!((sum(&dv) - sum(&dout)).abs() < 1e-5);
    /// ```
    ///
    /// # Panics
    /// If the shapes do not fit together or scratch is too short.
    pub fn attention_backward(
        &self,
        a: &Attention<'_>,
        out: MatRef<'_>,
        lse: &[f32],
        dout: MatRef<'_>,
        grads: &mut AttentionGrads<'_>,
        scratch: &mut [f32],
    ) {
        let (n, head) = (a.q.rows(), a.q.cols());
        let need = self.attention_backward_scratch_len(n, head);
        assert!(need.is_some_and(|n| n <= scratch.len()), "attention_backward: scratch");
        for grad in [&grads.dq, &grads.dk, &grads.dv] {
            assert_shape(grad.as_ref(), n, head);
        }
        let raw = RawAttention {
            dq: Some(rows_mut_of(&grads.dq)),
            dkv: Some((rows_mut_of(&grads.dk), rows_mut_of(&grads.dv))),
            scratch: scratch.as_mut_ptr(),
            ..raw_backward(a, out, lse, dout)
        };
        // SAFETY: the shapes were just checked; gradients and scratch are exclusive; out
        // and lse are only read in this direction.
        unsafe { (self.products.heads.backward[usize::from(raw.has_starts())])(&raw) }
    }

    /// [`Kernels::attention_backward`] in place: each gradient takes the place of its input.
    ///
    /// # Panics
    /// If the shapes do not fit together or scratch is too short.
    pub fn attention_backward_in_place(
        &self,
        head: &mut AttentionInPlace<'_>,
        out: MatRef<'_>,
        lse: &[f32],
        dout: MatRef<'_>,
        scratch: &mut [f32],
    ) {
        let need = self.attention_backward_scratch_len(head.q.rows(), head.q.cols());
        assert!(need.is_some_and(|n| n <= scratch.len()), "attention_backward: scratch");
        let (dq, dk, dv) = (rows_mut_of(&head.q), rows_mut_of(&head.k), rows_mut_of(&head.v));
        let inputs = Attention {
            q: head.q.as_ref(),
            k: head.k.as_ref(),
            v: head.v.as_ref(),
            first: 0,
            starts: head.starts,
            window: head.window,
            scale: head.scale,
            dropout: head.dropout,
        };
        let raw = RawAttention {
            q: dq.as_rows(),
            k: dk.as_rows(),
            v: dv.as_rows(),
            dq: Some(dq),
            dkv: Some((dk, dv)),
            scratch: scratch.as_mut_ptr(),
            ..raw_backward(&inputs, out, lse, dout)
        };
        // SAFETY: the shapes were just checked (q, k and v are of one shape, so are their
        // gradients); q, k, v and scratch are exclusive, and the whole backward pass may
        // have gradients in place of inputs; out and lse are only read in this direction.
        unsafe { (self.products.heads.backward[usize::from(raw.has_starts())])(&raw) }
    }

    /// The part of [`Kernels::attention_backward`] that makes `dq` for the queries in
    /// `queries` alone, with the bits that the whole call gives them. Inputs are the
    /// whole head's.
    ///
    /// Overwrites `dq` (`queries.len() x head`). Reads of q, `out`, `lse` and `dout`
    /// those queries, of k and v the rows up to `queries.end` (with `a.starts` or `a.window` from the multiple of
    /// 384 on that is not above the first query's), and no others. All queries and all keys (see
    /// [`Kernels::attention_backward_keys`]) in parts make the scores twice: seven products instead
    /// of five.
    ///
    /// # Panics
    /// If the shapes do not fit together or scratch is too short; if `queries` does not
    /// start at a multiple of [`Kernels::attention_block`], or ends neither
    /// at one nor with the last query.
    #[expect(clippy::too_many_arguments, reason = "the inputs and the part of them")]
    pub fn attention_backward_queries(
        &self,
        a: &Attention<'_>,
        queries: Range<usize>,
        out: MatRef<'_>,
        lse: &[f32],
        dout: MatRef<'_>,
        dq: MatMut<'_>,
        scratch: &mut [f32],
    ) {
        let (n, head) = (a.q.rows(), a.q.cols());
        let need = self.attention_backward_queries_scratch_len(n, head);
        assert!(need.is_some_and(|n| n <= scratch.len()), "attention_backward: scratch");
        let rows = blocks(a, &queries, self.attention_block());
        assert_shape(dq.as_ref(), queries.len(), head);
        let all = raw_backward(a, out, lse, dout);
        if queries.is_empty() {
            return;
        }
        // Sums begin where blocks of keys do in the whole pass.
        // SAFETY: the part is not empty, so its first query is one of the head's.
        let first = unsafe { all.start::<true>(queries.start) };
        let raw = RawAttention {
            rows,
            cols: Span { start: first / KEY_BLOCK * KEY_BLOCK, end: queries.end },
            dq: Some(rows_mut_of(&dq)),
            scratch: scratch.as_mut_ptr(),
            ..all
        };
        // SAFETY: the shapes were just checked; dq and scratch are exclusive; out and lse
        // are only read in this direction.
        unsafe { (self.products.heads.backward[usize::from(raw.has_starts())])(&raw) }
    }

    /// The part of [`Kernels::attention_backward`] that makes `dk` and `dv` for the keys
    /// in `keys` alone, with the bits that the whole call gives them. Inputs are the
    /// whole head's.
    ///
    /// Overwrites `dk` and `dv` (`keys.len() x head` each). `keys` may be any range; one
    /// that starts at a multiple of [`Kernels::attention_block`] does least in vain, and has
    /// the whole call's zeros by sign as well; one of a multiple of 32 keys fills the vectors. Reads of k and v those keys, of q,
    /// `out`, `lse` and `dout` the queries from the multiple of the block on that is not
    /// above `keys.start`, and no others; with `a.starts` or `a.window` up to the multiple of the block that is
    /// not below the end of the queries that see one of the keys. (With them a zero's sign may differ
    /// anyway.)
    ///
    /// # Panics
    /// If the shapes do not fit together or scratch is too short.
    #[expect(clippy::too_many_arguments, reason = "the inputs, the part of them, two results")]
    pub fn attention_backward_keys(
        &self,
        a: &Attention<'_>,
        keys: Range<usize>,
        out: MatRef<'_>,
        lse: &[f32],
        dout: MatRef<'_>,
        dk: MatMut<'_>,
        dv: MatMut<'_>,
        scratch: &mut [f32],
    ) {
        let (n, head) = (a.q.rows(), a.q.cols());
        let Range { start, end } = keys;
        assert!(start <= end && end <= n, "attention_backward: keys {start}..{end} of {n}");
        let need = self.attention_backward_keys_scratch_len(n, keys.len(), head);
        assert!(need.is_some_and(|n| n <= scratch.len()), "attention_backward: scratch");
        for grad in [&dk, &dv] {
            assert_shape(grad.as_ref(), keys.len(), head);
        }
        let all = raw_backward(a, out, lse, dout);
        if keys.is_empty() {
            return;
        }
        let strip = self.footprint().mr;
        // Queries behind the last that sees one of the keys see none.
        // SAFETY: the queries are the head's.
        let seeing = first_of(n, |query| unsafe { all.start::<true>(query) } >= end);
        let seeing = seeing.next_multiple_of(self.attention_block()).min(n);
        let raw = RawAttention {
            rows: Span { start: start / strip * strip, end: seeing },
            cols: Span { start, end },
            dkv: Some((rows_mut_of(&dk), rows_mut_of(&dv))),
            scratch: scratch.as_mut_ptr(),
            ..all
        };
        // SAFETY: the shapes were just checked; dk, dv and scratch are exclusive; out and
        // lse are only read in this direction.
        unsafe { (self.products.heads.backward[usize::from(raw.has_starts())])(&raw) }
    }
}

/// A part of the queries.
///
/// # Panics
/// If it is not made of whole blocks.
fn blocks(a: &Attention<'_>, queries: &Range<usize>, block: usize) -> Span {
    let all = a.q.rows();
    let &Range { start, end } = queries;
    assert!(start <= end && end <= all, "attention: queries {start}..{end} of {all}");
    let whole = |at: usize| at.is_multiple_of(block) || at == all;
    assert!(whole(start) && whole(end), "attention: {start}..{end} cuts a block of {block}");
    Span { start, end }
}

/// # Panics
/// If `m` is not `rows x cols`.
fn assert_shape(m: MatRef<'_>, rows: usize, cols: usize) {
    let fits = m.rows() == rows && m.cols() == cols;
    assert!(fits, "attention_backward: {}x{} is not {rows}x{cols}", m.rows(), m.cols());
}

/// The inputs of the backward pass, for all of the head and none of the gradients.
///
/// # Panics
/// If they are not those of a whole sequence, or do not fit together.
fn raw_backward(a: &Attention<'_>, out: MatRef<'_>, lse: &[f32], dout: MatRef<'_>) -> RawAttention {
    let (n, head) = (a.q.rows(), a.q.cols());
    assert!(a.first == 0 && a.k.rows() == n, "attention_backward: not a whole sequence");
    assert!(lse.len() == n, "attention_backward: lse");
    assert_shape(out, n, head);
    assert_shape(dout, n, head);
    let out = rows_of(out);
    assert!(DROPOUT || a.dropout.is_none(), "attention: dropout is not built (feature `dropout`)");
    RawAttention {
        out: RowsMut { ptr: out.ptr.cast_mut(), stride: out.stride },
        lse: Some(lse.as_ptr().cast_mut()),
        dout: rows_of(dout),
        ..raw_attention(a)
    }
}

/// The first of `0..n` that is so, `n` if none is; those behind one that is so are, too.
fn first_of(n: usize, is_so: impl Fn(usize) -> bool) -> usize {
    let (mut from, mut to) = (0, n);
    while from < to {
        let middle = from.midpoint(to);
        if is_so(middle) { to = middle } else { from = middle + 1 }
    }
    from
}

/// # Panics
/// If not each of so many queries has a first key, none before that of the query before, and none
/// behind its own.
fn check_starts(starts: &[u32], queries: usize, first: usize) {
    let n = starts.len();
    assert!(n == queries, "attention: {n} first keys of {queries} queries");
    let mut before = 0;
    for (i, &start) in starts.iter().enumerate() {
        assert!(before <= start, "attention: query {i} starts at key {start}, before {before}");
        let own = first + i;
        assert!(start as usize <= own, "attention: query {i} starts at key {start}, behind {own}");
        before = start;
    }
}

/// The inputs; the outputs of either direction are filled in by the caller.
///
/// # Panics
/// If q, k, v and the queries' first keys do not fit together.
fn raw_attention(a: &Attention<'_>) -> RawAttention {
    let (queries, keys, head) = (a.q.rows(), a.k.rows(), a.q.cols());
    assert!(a.k.cols() == head && a.v.cols() == head && a.v.rows() == keys, "attention: k, v");
    let seen = a.first.checked_add(queries);
    assert!(seen.is_some_and(|n| n <= keys), "attention: query {queries} has no key");
    assert!(a.window != Some(0), "attention: a window of no keys");
    if let Some(starts) = a.starts {
        check_starts(starts, queries, a.first);
    }
    assert!(DROPOUT || a.dropout.is_none(), "attention: dropout is not built (feature `dropout`)");
    RawAttention {
        queries,
        keys,
        head,
        first: a.first,
        starts: a.starts.map(<[u32]>::as_ptr),
        window: a.window.unwrap_or(usize::MAX),
        rows: Span { start: 0, end: queries },
        cols: Span { start: 0, end: keys },
        scale: a.scale,
        q: rows_of(a.q),
        k: rows_of(a.k),
        v: rows_of(a.v),
        out: RowsMut::NONE,
        lse: None,
        dout: Rows::NONE,
        dq: None,
        dkv: None,
        dropout: a.dropout.filter(|_| DROPOUT),
        scratch: core::ptr::null_mut(),
    }
}
