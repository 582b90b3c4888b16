//! The backward pass of attention: gradients of queries, keys and values.
//!
//! A tile takes some heads of keys and values of a sequence, and all heads of queries that they
//! serve, one after the other:
//!
//! ```text
//! a head of its own        q, k, v -> dq, dk, dv                        in place
//! heads that share k, v    keep k, v aside
//!     the first of them    q, k, v -> dq, dk, dv                        in place
//!     the next             q, a copy of k, v -> dq, more of dk, dv      dk, dv += those
//! parts of sequences       dq of a tile's queries; dk, dv of a tile's keys, head by head as
//!                          above, into buffers of their own
//! turn dq and dk back, where positions are told by angles; back through norms of heads
//! ```
//! The order of heads is that of the sums, whatever the tiles are.
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use super::Step;
use super::forward::Head;
use super::head_norm::{Kind, copy_rows};
use crate::built::LLAMA;
use crate::line::LANES;
use crate::plan::Columns;
use cllm_kernels::{AttentionInPlace, MatMut, MatRef};
use core::ops::Range;

/// Output of the attention of a head, its gradient, and the log-sum-exp of each row.
#[derive(Clone, Copy)]
struct Output<'a> {
    out: MatRef<'a>,
    lse: &'a [f32],
    dout: MatRef<'a>,
}

impl Step<'_> {
    /// Gradients of queries, keys and values of some heads of a sequence, in the place of
    /// those; where spans are parts of it, of the span's queries or of its keys and values,
    /// elsewhere.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn attention_back(&self, block: usize, tile: usize, scratch: &mut [f32]) {
        let (c, grain) = (&self.plan.config, &self.plan.grain);
        let (span, part) = (tile / grain.backward_parts(), tile % grain.backward_parts());
        let (first, rows) = self.span(span);
        let heads = grain.heads(part, c.kv_heads());
        let whole = !grain.is_parted();
        let is_queries = part < grain.forward_parts();
        // SAFETY: the tile owns its heads' columns of the span's rows of dq, or of dk
        // and dv, or, in the place of queries, keys and values, of all three; what it
        // reads of the sequence is done.
        unsafe {
            for kv_head in heads.clone() {
                let served = self.served(kv_head..kv_head + 1);
                if whole {
                    self.heads_in_place(block, first, served, scratch);
                } else if is_queries {
                    self.queries_of_heads(block, first, served, rows.clone(), scratch);
                } else {
                    self.keys_of_heads(block, first, served, rows.clone(), scratch);
                }
            }
            if whole || is_queries {
                let served = self.served(heads.clone());
                self.behind(block, Kind::Queries, served, first, rows.clone(), scratch);
            }
            if whole || !is_queries {
                self.behind(block, Kind::Keys, heads, first, rows, scratch);
            }
        }
    }

    /// From gradients of queries or keys that attention takes, of some heads in the rows `rows` of the
    /// sequence at row `first`, to those of what they were made of: turned back, and through the norms
    /// of heads.
    ///
    /// # Safety
    /// The tile owns those columns of the rows, and the sums of their norms.
    unsafe fn behind(
        &self,
        block: usize,
        kind: Kind,
        heads: Range<usize>,
        first: usize,
        rows: Range<usize>,
        scratch: &mut [f32],
    ) {
        let size = self.plan.config.head_size();
        let first_row = first + rows.start;
        let grads = self.plan.layout.dheads(block)[kind as usize];
        let shape = (rows.len(), heads.len() * size);
        // SAFETY: passed on from the caller.
        unsafe {
            self.turn(grads.from(first_row, heads.start * size), shape, first_row, true);
            if self.plan.config.arch.norms_heads() {
                for head in heads {
                    self.head_norm_back(block, (kind, head), first, rows.clone(), scratch);
                }
            }
        }
    }

    /// What the forward pass has left of a head of the sequence at row `first`.
    ///
    /// # Safety
    /// The head's columns of the sequence's rows are done.
    unsafe fn output(&self, block: usize, first: usize, head: &Head<'_>) -> Output<'_> {
        let (b, g) = (self.plan.layout.block(block), self.plan.layout.grads(block));
        let (t, width) = (self.plan.batch.tokens, self.plan.config.query_width());
        let (at, shape) = (first * width + head.columns[0], (t, self.plan.config.head_size()));
        // SAFETY: passed on from the caller.
        unsafe {
            Output {
                out: self.act.mat(b.att + at, shape, width),
                lse: self.act.slice(b.lse + head.lse, t),
                dout: self.act.mat(g.datt + at, shape, width),
            }
        }
    }

    /// Gradients of the heads of queries `served` by one of keys and values, and of those, in their
    /// place.
    ///
    /// # Safety
    /// The tile owns the heads' columns of the sequence at row `first`, which are done.
    unsafe fn heads_in_place(
        &self,
        block: usize,
        first: usize,
        served: Range<usize>,
        scratch: &mut [f32],
    ) {
        let (t, size) = (self.plan.batch.tokens, self.plan.config.head_size());
        let heads = self.plan.layout.heads(block);
        let shared = if LLAMA && served.len() > 1 { t * size } else { 0 };
        let [kept_k, kept_v, own_k, own_v, scratch] = &mut pieces(shared, scratch);
        for h in served.clone() {
            let head = self.head(block, first / t, h);
            // SAFETY: passed on from the caller.
            unsafe {
                let place = |i: usize| {
                    let Columns { at, stride } = heads[i].from(first, head.columns[i]);
                    self.act.mat_mut(at, (t, size), stride)
                };
                let Output { out, lse, dout } = self.output(block, first, &head);
                let Head { starts, window, scale, dropout, .. } = head;
                let is_first = !LLAMA || h == served.start;
                if LLAMA && is_first && shared > 0 {
                    copy_rows(place(1).as_ref(), kept_k);
                    copy_rows(place(2).as_ref(), kept_v);
                }
                let (k, v) = if is_first {
                    (place(1), place(2))
                } else {
                    own_k.copy_from_slice(kept_k);
                    own_v.copy_from_slice(kept_v);
                    (MatMut::new(own_k, t, size, size), MatMut::new(own_v, t, size, size))
                };
                let mut inputs =
                    AttentionInPlace { q: place(0), k, v, starts, window, scale, dropout };
                self.kernels.attention_backward_in_place(&mut inputs, out, lse, dout, scratch);
                if !is_first {
                    self.add_rows(place(1), own_k);
                    self.add_rows(place(2), own_v);
                }
            }
        }
    }

    /// Gradients of the queries `rows` of some heads.
    ///
    /// # Safety
    /// The tile owns the heads' columns of the queries' gradients; the sequence is done.
    unsafe fn queries_of_heads(
        &self,
        block: usize,
        first: usize,
        served: Range<usize>,
        rows: Range<usize>,
        scratch: &mut [f32],
    ) {
        let (t, size) = (self.plan.batch.tokens, self.plan.config.head_size());
        let to = self.plan.layout.dheads(block)[0];
        for h in served {
            let head = self.head(block, first / t, h);
            // SAFETY: passed on from the caller.
            unsafe {
                let a = &self.head_inputs(block, first / t, &head, &(0..t), &(0..t));
                let Output { out, lse, dout } = self.output(block, first, &head);
                let Columns { at, stride } = to.from(first + rows.start, head.columns[0]);
                let dq = self.act.mat_mut(at, (rows.len(), size), stride);
                let rows = rows.clone();
                self.kernels.attention_backward_queries(a, rows, out, lse, dout, dq, scratch);
            }
        }
    }

    /// Gradients of the keys and values `rows` that serve some heads: the sum over those.
    ///
    /// # Safety
    /// The tile owns the columns of those gradients; the sequence is done.
    unsafe fn keys_of_heads(
        &self,
        block: usize,
        first: usize,
        served: Range<usize>,
        rows: Range<usize>,
        scratch: &mut [f32],
    ) {
        let (t, size) = (self.plan.batch.tokens, self.plan.config.head_size());
        let to = self.plan.layout.dheads(block);
        let shared = if served.len() > 1 { rows.len() * size } else { 0 };
        let [own_k, own_v, scratch] = &mut pieces(shared, scratch);
        for h in served.clone() {
            let head = self.head(block, first / t, h);
            // SAFETY: passed on from the caller.
            unsafe {
                let place = |i: usize| {
                    let Columns { at, stride } = to[i].from(first + rows.start, head.columns[i]);
                    self.act.mat_mut(at, (rows.len(), size), stride)
                };
                let a = &self.head_inputs(block, first / t, &head, &(0..t), &(0..t));
                let Output { out, lse, dout } = self.output(block, first, &head);
                let is_first = h == served.start;
                let (dk, dv) = if is_first {
                    (place(1), place(2))
                } else {
                    let of = |floats| MatMut::new(floats, rows.len(), size, size);
                    (of(own_k), of(own_v))
                };
                let rows = rows.clone();
                self.kernels.attention_backward_keys(a, rows, out, lse, dout, dk, dv, scratch);
                if !is_first {
                    self.add_rows(place(1), own_k);
                    self.add_rows(place(2), own_v);
                }
            }
        }
    }

    /// Adds rows that lie side by side to those of a matrix.
    fn add_rows(&self, mut to: MatMut<'_>, from: &[f32]) {
        let cols = to.cols();
        for (r, from) in from.chunks_exact(cols).enumerate() {
            self.kernels.accumulate(to.row_mut(r), from);
        }
    }
}

/// Pieces of so many floats each from the front of scratch, each on its own lines, and the rest.
fn pieces<const N: usize>(len: usize, mut scratch: &mut [f32]) -> [&mut [f32]; N] {
    let mut last = N;
    core::array::from_fn(|_| {
        last -= 1;
        let all = core::mem::take(&mut scratch);
        let lines = if last > 0 { len.next_multiple_of(LANES) } else { all.len() };
        let (piece, rest) = all.split_at_mut(lines);
        scratch = rest;
        if last > 0 { &mut piece[..len] } else { piece }
    })
}
