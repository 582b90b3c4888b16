//! The forward pass of a few queries against a long cache, as generation has it.

use super::{RawAttention, dot};
use crate::gemm::format::{Format, Single};
use crate::math;
use crate::simd::{MOST_LANES, Simd, load_up_to, store_up_to};
use crate::softmax::max_of;
use core::f32::consts::LOG2_E;

/// A few queries against a long cache: keys and values are read once, in place.
///
/// # Safety
/// As for [`super::forward::forward`]; `rows` are all queries. `row` has room for a float of each
/// key, `room`, in a format other than plain floats, for a row of `head` floats.
#[inline(always)]
pub(super) unsafe fn few_queries<S: Simd, F: Format<S>, const STARTS: bool>(
    s: S,
    f: F,
    a: &RawAttention,
    row: *mut f32,
    room: *mut f32,
) {
    let c = a.scale * LOG2_E;
    let (factor, least) = (s.splat(c), s.splat(-127.0 / c));
    for i in 0..a.queries {
        let seen = a.first + i + 1;
        // SAFETY: query i, keys and values below `seen`, a row of scores in scratch.
        unsafe {
            let start = a.start::<STARTS>(i);
            let valid = seen - start;
            let k = a.k.ptr.add(start * a.k.stride);
            let v = a.v.ptr.add(start * a.v.stride);
            let mut q = a.q.ptr.add(i * a.q.stride);
            if !F::IS_PLAIN {
                // Rounded once for all keys, where words of a strip would lie: those of so
                // many rows that a row of floats has room.
                let mut c = 0;
                while c < a.head {
                    let left = (a.head - c).min(S::LANES);
                    let x = f.rounded(s, load_up_to(s, q.add(c), left));
                    store_up_to(s, room.add(c), x, left);
                    c += left;
                }
                q = room;
            }
            for j in 0..valid {
                *row.add(j) = dot(s, (q, Single), (k.add(j * a.k.stride), f), a.head);
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
                    let value = load_up_to(s, v.add(j * a.v.stride + c), left);
                    total = s.mul_add(s.splat(*row.add(j)), f.rounded(s, value), total);
                }
                store_up_to(s, out.add(c), s.mul(total, factor), left);
                c += left;
            }
        }
    }
}
