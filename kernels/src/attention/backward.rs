//! The backward pass of one head, or of a part of it: all keys of the part at once,
//! queries block by block.
//!
//! ```text
//! pack K^T, V^T, K once; dK = dV = 0
//! for each block of queries
//!   p     = exp(scale Q K^T - lse)                    (zero beyond the diagonal)
//!   dp    = dO V^T
//!   ds    = scale p (mask dp - rowsum(dO O));   p = p mask
//!   dV   += p^T dO;   dQ = ds K;   dK += ds^T Q
//! ```
//! The mask is dropout's (1 without it); `rowsum(dO O)` equals the row's sum of
//! `p mask dp`, which is what the softmax's gradient subtracts.
//!
//! A part is dQ of some blocks of queries, over the keys that they see, or dK and dV of
//! some keys, over the queries that see them. The two make the scores twice, seven
//! products for five. Every sum of a part has the terms of the whole pass in the order
//! of the whole pass, so the bits are the same: a row of dQ sums over keys from key 0
//! to the end of its block, a row of dK and dV over the blocks that see it, and what is
//! added within a block is the whole block's.

use super::{
    GemmFn, RawAttention, RowsMut, Span, dot, fetch_next, product, query_block, score_stride,
};
use crate::elements::RawOperand;
use crate::gemm::format::Single;
use crate::gemm::pack::{pack_b, packed_b_len};
use crate::math;
use crate::simd::{Simd, load_up_to, store_up_to};

/// # Safety
/// The operands are valid for their shapes, `lse` is present, `first == 0` and
/// `queries == keys`; `dq`, `dk`, `dv` and `scratch` overlap nothing else; `rows` and
/// `cols` fit what is wanted. If all of the head is wanted, `dq`, `dk` and `dv` may be q, k
/// and v themselves: all keys and values are packed before dK and dV are begun, and the
/// queries of a block are used up before its dQ is written.
#[inline(always)]
pub(crate) unsafe fn backward<S: Simd>(s: S, gemm: GemmFn, a: &RawAttention) {
    let (low, n, head) = (a.cols.start, a.cols.end - a.cols.start, a.head);
    let Some(lse) = a.lse else { return };
    let block = query_block(a.keys, S::MR);
    let stride = score_stride::<S>(n);
    let transposed = packed_b_len(head, n, S::NR).unwrap_or(0);
    let straight = packed_b_len(n, head, S::NR).filter(|_| a.dq.is_some()).unwrap_or(0);
    let rows_len = packed_b_len(block, head, S::NR).filter(|_| a.dkv.is_some()).unwrap_or(0);
    let keys_t = a.scratch;
    let values_t = keys_t.wrapping_add(transposed);
    let keys = values_t.wrapping_add(transposed);
    let q_rows = keys.wrapping_add(straight);
    let dout_rows = q_rows.wrapping_add(rows_len);
    let p = RowsMut { ptr: dout_rows.wrapping_add(rows_len), stride };
    let ds = p.from(block);
    // SAFETY: `scratch` holds the areas just laid out; the rest is the caller's promise.
    unsafe {
        let k = a.k.ptr.add(low * a.k.stride);
        let v = a.v.ptr.add(low * a.v.stride);
        pack_b(s, Single, RawOperand::floats(k, 1, a.k.stride), head, n, keys_t);
        pack_b(s, Single, RawOperand::floats(v, 1, a.v.stride), head, n, values_t);
        if a.dq.is_some() {
            pack_b(s, Single, RawOperand::floats(k, a.k.stride, 1), n, head, keys);
        }
        if let Some((dk, dv)) = a.dkv {
            for r in 0..n {
                for c in 0..head {
                    *dk.ptr.add(r * dk.stride + c) = 0.0;
                    *dv.ptr.add(r * dv.stride + c) = 0.0;
                }
            }
        }
        let mut start = a.rows.start;
        while start < a.rows.end {
            let rows = block.min(a.rows.end - start);
            let seen = (start + rows - low).min(n);
            let q = a.q.ptr.add(start * a.q.stride);
            let dout = a.dout.ptr.add(start * a.dout.stride);
            let here = Span { start, end: start + rows };
            fetch_next(s, &[a.q, a.dout, a.out.as_rows()], head, here);
            if let (Some(dq), Some((dk, dv))) = (a.dq, a.dkv) {
                // All of the head: there are as many keys as queries.
                let gradients = [dq.as_rows(), dk.as_rows(), dv.as_rows()];
                fetch_next(s, &[a.k, a.v], head, here);
                fetch_next(s, &gradients, head, here);
            }
            let panel = head * S::NR;
            gemm(&product((rows, seen, head), q, a.q.stride, 1, keys_t, panel, p, false));
            gemm(&product((rows, seen, head), dout, a.dout.stride, 1, values_t, panel, ds, false));
            for r in 0..rows {
                let out = a.out.ptr.add((start + r) * a.out.stride);
                let delta = dot(s, dout.add(r * a.dout.stride), out, head);
                let row = ScoreRow {
                    p: p.ptr.add(r * stride),
                    ds: ds.ptr.add(r * stride),
                    valid: (start + r + 1).saturating_sub(low).min(seen),
                    seen,
                    lse: *lse.add(start + r),
                    delta,
                };
                score_gradient(s, a, &row, start + r);
            }
            if let Some((dk, dv)) = a.dkv {
                pack_b(
                    s,
                    Single,
                    RawOperand::floats(dout, a.dout.stride, 1),
                    rows,
                    head,
                    dout_rows,
                );
                pack_b(s, Single, RawOperand::floats(q, a.q.stride, 1), rows, head, q_rows);
                let panel = rows * S::NR;
                gemm(&product((seen, head, rows), p.ptr, 1, stride, dout_rows, panel, dv, true));
                gemm(&product((seen, head, rows), ds.ptr, 1, stride, q_rows, panel, dk, true));
            }
            if let Some(dq) = a.dq {
                let dq = dq.from(start - a.rows.start);
                gemm(&product((rows, head, seen), ds.ptr, stride, 1, keys, n * S::NR, dq, false));
            }
            start += rows;
        }
    }
}

/// One query's row of scores: `p` holds `Q K^T`, `ds` holds `dO V^T`.
struct ScoreRow {
    p: *mut f32,
    ds: *mut f32,
    /// Keys of the part that the query sees.
    valid: usize,
    /// Keys of the part that the block sees: the rest of the row becomes zero.
    seen: usize,
    lse: f32,
    delta: f32,
}

/// Turns `p` into masked probabilities and `ds` into the gradient of the scores.
///
/// # Safety
/// Both rows hold `seen` floats.
#[inline(always)]
unsafe fn score_gradient<S: Simd>(s: S, a: &RawAttention, row: &ScoreRow, query: usize) {
    let (scale, lse, delta) = (s.splat(a.scale), s.splat(row.lse), s.splat(row.delta));
    let mut mask = [1.0_f32; 16];
    let mut i = 0;
    while i < row.valid {
        let left = (row.valid - i).min(S::LANES);
        if let Some((dropout, first_row)) = &a.dropout {
            let mask_row = first_row.wrapping_add(query as u32);
            dropout.fill_mask(mask_row, a.cols.start + i, &mut mask[..left]);
        }
        // SAFETY: elements i .. i + left, below `valid`.
        unsafe {
            let score = load_up_to(s, row.p.add(i), left);
            let p = math::exp(s, s.sub(s.mul(score, scale), lse));
            let mut dp = load_up_to(s, row.ds.add(i), left);
            let mut kept = p;
            if a.dropout.is_some() {
                let m = load_up_to(s, mask.as_ptr(), left);
                dp = s.mul(dp, m);
                kept = s.mul(p, m);
            }
            let ds = s.mul(s.mul(p, s.sub(dp, delta)), scale);
            store_up_to(s, row.p.add(i), kept, left);
            store_up_to(s, row.ds.add(i), ds, left);
        }
        i += left;
    }
    for j in row.valid..row.seen {
        // SAFETY: elements below `seen`.
        unsafe {
            *row.p.add(j) = 0.0;
            *row.ds.add(j) = 0.0;
        }
    }
}
