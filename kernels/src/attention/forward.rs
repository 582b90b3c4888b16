//! The forward pass of one head, or of some of its queries.
//!
//! ```text
//! pack K^T and V once, as far as the last query sees
//! for each block of queries
//!   scores = Q_block K^T                 (keys up to the block's last query)
//!   for each row: p = exp(scale (s - max)), zero beyond the diagonal; keep 1 / sum
//!   out_block = p V, rows times 1 / sum
//! ```

use super::{
    GemmFn, RawAttention, RowsMut, Span, dot, fetch_next, product, query_block, score_stride,
};
use crate::elements::RawOperand;
use crate::gemm::format::Single;
use crate::gemm::pack::{pack_b, packed_b_len};
use crate::simd::{Simd, load_up_to, store_up_to};
use crate::softmax::{exp_in_place, max_of};

/// # Safety
/// The operands are valid for their shapes, `out`, `lse` and `scratch` overlap
/// nothing else; `first + queries <= keys`; `rows` are whole blocks of the queries.
#[inline(always)]
pub(crate) unsafe fn forward<S: Simd>(s: S, gemm: GemmFn, a: &RawAttention) {
    // Packing the keys pays from a few rows on; one new token reads them in place.
    if a.queries < S::MR && a.dropout.is_none() {
        // SAFETY: passed on from the caller.
        return unsafe { few_queries(s, a) };
    }
    let keys = a.first + a.rows.end;
    let keys_t = a.scratch;
    let keys_t_len = packed_b_len(a.head, keys, S::NR).unwrap_or(0);
    let values = keys_t.wrapping_add(keys_t_len);
    let values_len = packed_b_len(keys, a.head, S::NR).unwrap_or(0);
    let stride = score_stride::<S>(keys);
    let scores = RowsMut { ptr: values.wrapping_add(values_len), stride };
    let block = query_block(a.keys, S::MR);
    // SAFETY: `scratch` holds the three areas just laid out; the rest is the caller's promise.
    unsafe {
        let k = RawOperand::floats(a.k.ptr, 1, a.k.stride);
        pack_b(s, Single, k, a.head, keys, keys_t);
        let v = RawOperand::floats(a.v.ptr, a.v.stride, 1);
        pack_b(s, Single, v, keys, a.head, values);
        let mut start = a.rows.start;
        while start < a.rows.end {
            let rows = block.min(a.rows.end - start);
            let written = start - a.rows.start;
            let seen = a.first + start + rows;
            let q = a.q.ptr.add(start * a.q.stride);
            let here = Span { start, end: start + rows };
            fetch_next(s, &[a.q, a.k, a.v], a.head, here);
            let panel = a.head * S::NR;
            gemm(&product((rows, seen, a.head), q, a.q.stride, 1, keys_t, panel, scores, false));
            let mut factors = [0.0_f32; super::MAX_QUERY_BLOCK];
            for (r, factor) in factors[..rows].iter_mut().enumerate() {
                let row = scores.ptr.add(r * stride);
                let valid = a.first + start + r + 1;
                let most = max_of(s, row, valid);
                let sum = exp_in_place(s, row, valid, most, a.scale);
                *factor = 1.0 / sum;
                for j in valid..seen {
                    *row.add(j) = 0.0;
                }
                if let Some(lse) = a.lse {
                    *lse.add(written + r) = most * a.scale + libm::logf(sum);
                }
                if let Some((dropout, first_row)) = &a.dropout {
                    let mask_row = first_row.wrapping_add((start + r) as u32);
                    crate::elementwise::dropout_row(s, row, row, valid, dropout, mask_row);
                }
            }
            let out = RowsMut { ptr: a.out.ptr.add(written * a.out.stride), stride: a.out.stride };
            let panel = keys * S::NR;
            gemm(&product((rows, a.head, seen), scores.ptr, stride, 1, values, panel, out, false));
            for (r, factor) in factors[..rows].iter().enumerate() {
                crate::elementwise::scale(s, out.ptr.add(r * out.stride), *factor, a.head);
            }
            start += rows;
        }
    }
}

/// A few queries against a long cache: keys and values are read once, in place.
///
/// # Safety
/// As for [`forward`]; `rows` are all queries.
#[inline(always)]
unsafe fn few_queries<S: Simd>(s: S, a: &RawAttention) {
    let row = a.scratch;
    for i in 0..a.queries {
        let valid = a.first + i + 1;
        // SAFETY: query i, keys and values below `valid`, a row of scores in scratch.
        unsafe {
            let q = a.q.ptr.add(i * a.q.stride);
            for j in 0..valid {
                *row.add(j) = dot(s, q, a.k.ptr.add(j * a.k.stride), a.head);
            }
            let most = max_of(s, row, valid);
            let sum = exp_in_place(s, row, valid, most, a.scale);
            if let Some(lse) = a.lse {
                *lse.add(i) = most * a.scale + libm::logf(sum);
            }
            let factor = s.splat(1.0 / sum);
            let out = a.out.ptr.add(i * a.out.stride);
            let mut c = 0;
            while c < a.head {
                let left = (a.head - c).min(S::LANES);
                let mut total = s.splat(0.0);
                for j in 0..valid {
                    let v = load_up_to(s, a.v.ptr.add(j * a.v.stride + c), left);
                    total = s.mul_add(s.splat(*row.add(j)), v, total);
                }
                store_up_to(s, out.add(c), s.mul(total, factor), left);
                c += left;
            }
        }
    }
}
