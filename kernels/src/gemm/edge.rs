//! Tiles at the edges of C, and others by themselves.
//!
//! Each number of rows has a loop of its own, so that sums are in registers; so has half a panel of columns, and each
//! direction in which A is contiguous, so that addresses are cheap. They ask for no lines, but
//! with AVX-512 for those of C that a whole register block of columns of A adds to.

use super::compact;
use super::fetch::{Ahead, Near, Run};
use super::format::Dot;
use super::micro::{self, Tile};
use crate::built::COMPACT;
use crate::simd::{MOST_LANES, Simd};

/// A tile of `rows` rows and of `cols` columns: more than half of a panel's with `WIDE`, otherwise at most so many.
/// Where code is [`COMPACT`] any of these does for all.
///
/// # Safety
/// As for [`micro::run`]; the columns are as `WIDE` says, and `ALONG` says that `a_col == 1`, otherwise `a_row == 1`.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, F: Dot<S>, const ALONG: bool, const WIDE: bool>(
    s: S,
    f: F,
    t: &Tile,
    rows: usize,
    cols: usize,
    accumulate: bool,
) {
    // SAFETY: passed on from the caller. Vectors are those of the columns, of which a panel has two or four.
    unsafe {
        if const { COMPACT && S::NR == 4 * S::LANES } {
            compact::by_rows::<S, F, 4>(s, f, t, rows, cols, accumulate);
        } else if const { COMPACT } {
            compact::by_rows::<S, F, 2>(s, f, t, rows, cols, accumulate);
        } else if const { WIDE && S::NR == 4 * S::LANES } {
            sized::<S, F, 4, ALONG>(s, f, t, rows, cols, accumulate);
        } else if const { WIDE || S::LANES == 1 } {
            sized::<S, F, 2, ALONG>(s, f, t, rows, cols, accumulate);
        } else if const { S::NR == 2 * S::LANES } {
            // The last columns of a matrix: the rest of the panel is of zeros.
            sized::<S, F, 1, ALONG>(s, f, t, rows, cols, accumulate);
        } else if cols <= S::LANES {
            sized::<S, F, 1, ALONG>(s, f, t, rows, cols, accumulate);
        } else {
            sized::<S, F, 2, ALONG>(s, f, t, rows, cols, accumulate);
        }
    }
}

/// # Safety
/// As for [`tile`], `cols <= V * LANES`.
#[inline(always)]
unsafe fn sized<S: Simd, F: Dot<S>, const V: usize, const ALONG: bool>(
    s: S,
    f: F,
    t: &Tile,
    rows: usize,
    cols: usize,
    accumulate: bool,
) {
    // SAFETY: passed on from the caller; each arm is given exactly its rows.
    unsafe {
        match rows {
            1 => lower::<S, F, 1, V, ALONG>(s, f, t, cols, accumulate),
            2 => lower::<S, F, 2, V, ALONG>(s, f, t, cols, accumulate),
            3 => lower::<S, F, 3, V, ALONG>(s, f, t, cols, accumulate),
            4 => lower::<S, F, 4, V, ALONG>(s, f, t, cols, accumulate),
            5 => lower::<S, F, 5, V, ALONG>(s, f, t, cols, accumulate),
            6 => lower::<S, F, 6, V, ALONG>(s, f, t, cols, accumulate),
            7 => lower::<S, F, 7, V, ALONG>(s, f, t, cols, accumulate),
            8 => lower::<S, F, 8, V, ALONG>(s, f, t, cols, accumulate),
            9 => lower::<S, F, 9, V, ALONG>(s, f, t, cols, accumulate),
            10 => lower::<S, F, 10, V, ALONG>(s, f, t, cols, accumulate),
            11 => lower::<S, F, 11, V, ALONG>(s, f, t, cols, accumulate),
            _ => lower::<S, F, 12, V, ALONG>(s, f, t, cols, accumulate),
        }
    }
}

/// A tile of `M` rows, if a register block has so many.
///
/// Gradients of keys and values are added to for 48 queries at a time, and those of a long sequence lie in L2 or further.
/// With their lines asked for the backward pass of attention takes 0.96 of the time (a sequence of 2,048, heads of 64), with
/// 128 tokens and heads of 32 up to 1.02; with pairs of bf16, AVX2 and AVX the long one takes 1.01, 1.015 and 1.01: those do
/// not ask (Granite Rapids, two threads, in turns).
///
/// # Safety
/// As for [`sized`], with `rows == M`.
#[inline(always)]
unsafe fn lower<S: Simd, F: Dot<S>, const M: usize, const V: usize, const ALONG: bool>(
    s: S,
    f: F,
    t: &Tile,
    cols: usize,
    accumulate: bool,
) {
    debug_assert!(M <= S::MR);
    if const { M > S::MR } {
        return;
    }
    // SAFETY: passed on from the caller.
    unsafe {
        if const { asks::<S, F>() && !ALONG && M == S::MR && V * S::LANES == S::NR } {
            let near = Near::new((t.start, t.start_row), None, (M, S::NR));
            if accumulate && cols == S::NR {
                let mut fetch = Ahead { near, far: Run::none(t.b) };
                return micro::tile::<S, F, _, M, V, ALONG>(s, f, t, S::NR, true, &mut fetch);
            }
        }
        micro::tile::<S, F, _, M, V, ALONG>(s, f, t, cols, accumulate, &mut ());
    }
}

/// Whether tiles ask for lines of C: see [`lower`].
const fn asks<S: Simd, F: Dot<S>>() -> bool {
    !COMPACT && F::DEPTH == 1 && S::LANES == MOST_LANES
}
