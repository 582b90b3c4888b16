//! Where the backward pass sums gradients: where they are wanted, or in scratch, from where they
//! go there in the end.

use super::{RawAttention, Rows, RowsMut, Span, in_place, room_for_sums, sum_stride};
use crate::elementwise::copy_rows;
use crate::footprint::{Footprint, some};
use crate::gemm::LINE;
use crate::gemm::format::Format;
use crate::simd::{MOST_LANES, Simd, store_up_to};

/// Where gradients are summed.
pub(super) struct Sums {
    /// Where they are wanted, not in scratch.
    pub(super) direct: bool,
    /// Of a block of queries; of all queries of the part if they are summed where wanted.
    dq: RowsMut,
    /// Of all keys of the part; of tiles, transposed.
    pub(super) dk: RowsMut,
    pub(super) dv: RowsMut,
}

impl Sums {
    /// Floats of scratch for dQ of a block of `block` queries, and for dK or dV of `span` keys.
    #[inline(always)]
    pub(super) const fn room(
        f: Footprint,
        span: usize,
        block: usize,
        head: usize,
    ) -> (Option<usize>, Option<usize>) {
        let of_keys = match turned_stride(f, span) {
            _ if !f.tiles => room_for_sums(f, span, span, head),
            Some(row) => row.checked_mul(head),
            None => None,
        };
        (room_for_sums(f, span, block, head), of_keys)
    }

    /// In the room at `dq`, `dk` and `dv`, if they want any.
    #[inline(always)]
    pub(super) fn new<S: Simd, F: Format<S>>(
        a: &RawAttention,
        dq: *mut f32,
        dk: *mut f32,
        dv: *mut f32,
    ) -> Self {
        let n = a.cols.end - a.cols.start;
        if in_place(F::FOOTPRINT, n) {
            let (dk, dv) = a.dkv.unwrap_or((RowsMut::NONE, RowsMut::NONE));
            return Self { direct: true, dq: a.dq.unwrap_or(RowsMut::NONE), dk, dv };
        }
        let stride = sum_stride(F::FOOTPRINT, a.head).unwrap_or(0);
        let turned = if F::TILES { turned_stride(F::FOOTPRINT, n).unwrap_or(0) } else { stride };
        let [dk, dv] = [dk, dv].map(|ptr| RowsMut { ptr, stride: turned });
        Self { direct: false, dq: RowsMut { ptr: dq, stride }, dk, dv }
    }

    /// Of the queries from `at` on, of a block that begins at `block`, in a part from `part` on.
    #[inline(always)]
    pub(super) fn of_queries(&self, at: usize, block: usize, part: usize) -> RowsMut {
        self.dq.from(at - if self.direct { part } else { block })
    }

    /// Writes dQ of a block of queries where it is wanted.
    ///
    /// # Safety
    /// The block is done; passed on from [`super::backward::backward`].
    #[inline(always)]
    pub(super) unsafe fn finish_queries<S: Simd>(&self, s: S, a: &RawAttention, block: Span) {
        let Some(dq) = a.dq.filter(|_| !self.direct) else { return };
        let to = dq.from(block.start - a.rows.start);
        // SAFETY: passed on from the caller.
        unsafe {
            let (from, size) = (self.dq, (block.end - block.start, a.head));
            copy_rows(s, (from.ptr, from.stride), (to.ptr, to.stride), size);
        }
    }

    /// Writes dK and dV of all keys of the part where they are wanted.
    ///
    /// # Safety
    /// All queries are done; passed on from [`super::backward::backward`].
    #[inline(always)]
    pub(super) unsafe fn finish_keys<S: Simd, F: Format<S>>(&self, s: S, a: &RawAttention) {
        let Some((dk, dv)) = a.dkv.filter(|_| !self.direct) else { return };
        let size = (a.cols.end - a.cols.start, a.head);
        for (from, to) in [(self.dv, dv), (self.dk, dk)] {
            // SAFETY: passed on from the caller.
            unsafe {
                if F::TILES {
                    transpose(s, from.as_rows(), to, size);
                } else {
                    copy_rows(s, (from.ptr, from.stride), (to.ptr, to.stride), size);
                }
            }
        }
    }
}

/// Floats between two rows of transposed sums: whole panels, and a line more, as of scores.
const fn turned_stride(f: Footprint, keys: usize) -> Option<usize> {
    some!(keys.checked_next_multiple_of(f.nr)).checked_add(LINE)
}

/// Writes the `rows x cols` transpose of `from`.
///
/// # Safety
/// Both are valid for it, `from` for whole vectors, and they do not overlap.
#[inline(always)]
unsafe fn transpose<S: Simd>(s: S, from: Rows, to: RowsMut, (rows, cols): (usize, usize)) {
    for i in (0..rows).step_by(S::LANES) {
        for j in (0..cols).step_by(S::LANES) {
            let (some_rows, some) = (S::LANES.min(rows - i), S::LANES.min(cols - j));
            let mut lines = [s.splat(0.0); MOST_LANES];
            // SAFETY: rows j .. j + some of the source from column i on, and rows
            // i .. i + some_rows of the result.
            unsafe {
                for (q, line) in lines[..some].iter_mut().enumerate() {
                    *line = s.load(from.ptr.add((j + q) * from.stride + i));
                }
                s.transpose(&mut lines);
                for (r, line) in lines[..some_rows].iter().enumerate() {
                    store_up_to(s, to.from(i + r).ptr.add(j), *line, some);
                }
            }
        }
    }
}
