//! Token and position embeddings: gather forward, scatter-add backward.

use crate::elementwise::{accumulate, copy_rows};
use crate::simd::{Simd, load_up_to, store_up_to};

/// Embedding rows over raw memory. Built by the safe methods of [`crate::Kernels`].
#[derive(Clone, Copy)]
pub(crate) struct RawEmbedding {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) tokens: *const u32,
    /// Token table `vocab x cols`, rows contiguous.
    pub(crate) table: *const f32,
    /// Position table, rows contiguous; without it rows are those of the tokens.
    pub(crate) positions: Option<*const f32>,
    /// Row r of the output is at position `(first + r) % period + offset`.
    pub(crate) first: usize,
    pub(crate) period: usize,
    pub(crate) offset: usize,
    pub(crate) out: *mut f32,
    pub(crate) out_row: usize,
}

/// `out[r] = table[tokens[r]] + positions[position of r]`, the latter if there are any: overwrites.
///
/// # Safety
/// All operands are valid for their shapes, tokens and positions inside their tables; `out` overlaps
/// nothing else.
#[inline(always)]
pub(crate) unsafe fn gather<S: Simd>(s: S, a: &RawEmbedding) {
    for r in 0..a.rows {
        // SAFETY: token and position rows are inside, as the caller promised.
        unsafe {
            let word = a.table.add(*a.tokens.add(r) as usize * a.cols);
            let out = a.out.add(r * a.out_row);
            let Some(positions) = a.positions else {
                copy_rows(s, (word, a.cols), (out, a.out_row), (1, a.cols));
                continue;
            };
            let place = positions.add(((a.first + r) % a.period + a.offset) * a.cols);
            let mut i = 0;
            while i < a.cols {
                let left = (a.cols - i).min(S::LANES);
                let x = s.add(load_up_to(s, word.add(i), left), load_up_to(s, place.add(i), left));
                store_up_to(s, out.add(i), x, left);
                i += left;
            }
        }
    }
}

/// Adds row r of `grad` to row `tokens[r] - first_id` of `table`, for the tokens in
/// `first_id .. first_id + ids`, in the order of the rows.
///
/// # Safety
/// `tokens` has `rows` entries, `grad` `rows` rows of `cols`, `table` `ids` contiguous
/// rows of `cols`, disjoint from `grad`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "raw form of a safe method that takes views")]
pub(crate) unsafe fn scatter_add<S: Simd>(
    s: S,
    tokens: *const u32,
    rows: usize,
    grad: *const f32,
    grad_row: usize,
    cols: usize,
    table: *mut f32,
    first_id: usize,
    ids: usize,
) {
    for r in 0..rows {
        // SAFETY: row r of the inputs; the table's row is below `ids`.
        unsafe {
            let id = (*tokens.add(r) as usize).wrapping_sub(first_id);
            if id < ids {
                accumulate(s, table.add(id * cols), grad.add(r * grad_row), cols);
            }
        }
    }
}
