//! Causal attention of one head, without the `T x T` matrix of scores.
//!
//! Queries are taken in blocks of [`query_block`] rows. A block's scores against
//! all keys that it may see live in scratch (`block x keys` floats, sized to stay
//! in L2), never the scores of the whole sequence; the masked half is not computed
//! beyond the block's own diagonal. The backward pass computes a block's scores
//! again from the saved log-sum-exp of each row (Dao et al., "FlashAttention",
//! 2022, algorithm 4 of appendix B), so nothing quadratic is ever stored.
//!
//! Keys are transposed into packed panels once a head, and every product below
//! runs on the micro-kernel of [`crate::gemm`].
//!
//! A head may be worked on in parts. A part takes the very blocks of queries that the
//! whole head takes: a block decides how far its rows of scores go (zeros stand beyond
//! the diagonal), so a part starts at a multiple of [`query_block`] of the whole head.

pub(crate) mod backward;
pub(crate) mod forward;

use crate::dropout::Dropout;
use crate::gemm::pack::packed_b_len;
use crate::gemm::{RawEpilogue, RawGemm};
use crate::simd::Simd;

/// One head over raw memory. Built by the safe methods of [`crate::Kernels`].
///
/// Shapes: q, out, dq, dout `queries x head`; k, v, dk, dv `keys x head`;
/// `lse` has `queries` floats. Query i sees keys `0..=first + i`. What is written
/// has, and begins with, the rows of the part alone.
#[derive(Clone, Copy)]
pub(crate) struct RawAttention {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) head: usize,
    pub(crate) first: usize,
    /// The queries to work on: whole blocks, but for the last block of the head.
    pub(crate) rows: Span,
    /// Backward: the keys to go over. The whole head's, or those up to the last query of
    /// `rows` for dQ alone; for dK and dV alone any, with `rows` from the block on that
    /// sees the first of them.
    pub(crate) cols: Span,
    /// Scores are multiplied by this: `1 / sqrt(head)`.
    pub(crate) scale: f32,
    pub(crate) q: Rows,
    pub(crate) k: Rows,
    pub(crate) v: Rows,
    /// Forward: written. Backward: read.
    pub(crate) out: RowsMut,
    /// Log of each row's sum of exponentials. Forward: written if present. Backward: read.
    pub(crate) lse: Option<*mut f32>,
    pub(crate) dout: Rows,
    /// Backward: written if wanted, a row for each of `rows`.
    pub(crate) dq: Option<RowsMut>,
    /// Backward: dK and dV, written if wanted, a row for each of `cols`.
    pub(crate) dkv: Option<(RowsMut, RowsMut)>,
    /// Mask of the probabilities; query i is its row `row + i`.
    pub(crate) dropout: Option<(Dropout, u32)>,
    pub(crate) scratch: *mut f32,
}

/// The queries or keys `start..end` of a head.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Rows of `head` contiguous floats, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) ptr: *const f32,
    pub(crate) stride: usize,
}

/// [`Rows`] for writing.
#[derive(Clone, Copy)]
pub(crate) struct RowsMut {
    pub(crate) ptr: *mut f32,
    pub(crate) stride: usize,
}

impl Rows {
    pub(crate) const NONE: Self = Self { ptr: core::ptr::null(), stride: 0 };
}

impl RowsMut {
    pub(crate) const NONE: Self = Self { ptr: core::ptr::null_mut(), stride: 0 };

    /// For reading.
    pub(crate) fn as_rows(self) -> Rows {
        Rows { ptr: self.ptr, stride: self.stride }
    }

    /// The rows from `first` on.
    pub(crate) fn from(self, first: usize) -> Self {
        Self { ptr: self.ptr.wrapping_add(first * self.stride), ..self }
    }
}

/// Fetches rows `rows` of what lies right of the head in matrices that are `head` wide here:
/// the next head of a sequence, which is usually next. Its rows are too far apart for the CPU
/// to see them coming.
#[inline(always)]
pub(crate) fn fetch_next<S: Simd>(s: S, from: &[Rows], head: usize, rows: Span) {
    for row in rows.start..rows.end {
        for matrix in from {
            let mut c = 0;
            while c < head {
                s.prefetch(matrix.ptr.wrapping_add(row * matrix.stride + head + c));
                c += 64 / size_of::<f32>();
            }
        }
    }
}

/// A product on the table's own GEMM.
pub(crate) type GemmFn = unsafe fn(&RawGemm);

/// Most rows of scores held at once: a multiple of every `MR`.
const MAX_QUERY_BLOCK: usize = 24;
/// Floats of scores held at once, if that allows for a register block: 256 KiB,
/// half of a 512 KiB L2.
const SCORES: usize = 64 * 1024;

/// Queries processed together against `keys` keys: a multiple of `mr`.
pub(crate) fn query_block(keys: usize, mr: usize) -> usize {
    let fit = SCORES / keys.max(1) / mr * mr;
    fit.clamp(mr, MAX_QUERY_BLOCK / mr * mr)
}

/// Floats between two rows of scores.
pub(crate) fn score_stride<S: Simd>(keys: usize) -> usize {
    keys.next_multiple_of(S::NR)
}

/// A plain `C = A B` (or `C += A B`) with packed B.
#[expect(clippy::too_many_arguments, reason = "names the operands of one product")]
#[inline(always)]
pub(crate) fn product(
    (m, n, k): (usize, usize, usize),
    a: *const f32,
    a_row: usize,
    a_col: usize,
    b: *const f32,
    b_panel: usize,
    c: RowsMut,
    accumulate: bool,
) -> RawGemm {
    RawGemm {
        m,
        n,
        k,
        a,
        a_row,
        a_col,
        b,
        b_panel,
        c: c.ptr,
        c_row: c.stride,
        accumulate,
        epilogue: RawEpilogue::NONE,
        scratch: core::ptr::null_mut(),
    }
}

/// Floats of scores for any number of keys up to `keys`, `None` on overflow.
///
/// A few keys fewer may allow for a larger block of queries, and that take more.
fn most_scores<S: Simd>(keys: usize) -> Option<usize> {
    let mut most = 0;
    for block in (S::MR..=MAX_QUERY_BLOCK).step_by(S::MR) {
        // The most keys that are taken in blocks of this size.
        let fits = if block == S::MR { keys } else { keys.min(SCORES / block) };
        let stride = fits.checked_next_multiple_of(S::NR)?;
        most = most.max(block.checked_mul(stride)?);
    }
    Some(most)
}

/// Floats of scratch for the forward pass over up to `keys` keys, `None` on overflow.
pub(crate) fn forward_scratch<S: Simd>(keys: usize, head: usize) -> Option<usize> {
    let keys_t = packed_b_len(head, keys, S::NR)?;
    let values = packed_b_len(keys, head, S::NR)?;
    keys_t.checked_add(values)?.checked_add(most_scores::<S>(keys)?)
}

/// What of a head the backward pass is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    All,
    /// dQ of some queries.
    Queries,
    /// dK and dV of some keys.
    Keys,
}

/// Floats of scratch for the backward pass over `span` of a head's `keys` keys, `None` on
/// overflow.
pub(crate) fn backward_scratch<S: Simd>(
    keys: usize,
    span: usize,
    head: usize,
    wanted: Wanted,
) -> Option<usize> {
    let block = query_block(keys, S::MR);
    let transposed = packed_b_len(head, span, S::NR)?.checked_mul(2)?;
    let scores = block.checked_mul(score_stride::<S>(span))?.checked_mul(2)?;
    let mut need = transposed.checked_add(scores)?;
    if wanted != Wanted::Keys {
        need = need.checked_add(packed_b_len(span, head, S::NR)?)?;
    }
    if wanted != Wanted::Queries {
        need = need.checked_add(packed_b_len(block, head, S::NR)?.checked_mul(2)?)?;
    }
    Some(need)
}

/// Dot product of two rows of `n` floats.
///
/// # Safety
/// Both hold `n` floats.
#[inline(always)]
pub(crate) unsafe fn dot<S: Simd>(s: S, a: *const f32, b: *const f32, n: usize) -> f32 {
    let mut sum = s.splat(0.0);
    let mut i = 0;
    while i < n {
        let left = (n - i).min(S::LANES);
        // SAFETY: elements i .. i + left of both.
        unsafe {
            let (x, y) = (
                crate::simd::load_up_to(s, a.add(i), left),
                crate::simd::load_up_to(s, b.add(i), left),
            );
            sum = s.mul_add(x, y, sum);
        }
        i += left;
    }
    s.sum(sum)
}
