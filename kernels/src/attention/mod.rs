//! Causal attention of one head, without the `T x T` matrix of scores.
//!
//! ```text
//! for each block of queries                 (some dozens)
//!   for each block of keys that they see    (KEY_BLOCK, from key 0 on)
//!     for each strip of the queries         (MR rows of the format)
//!       scores of the strip and the block, and what becomes of them
//! ```
//! A query may see keys from a first one on alone, not below that of the query before: a window
//! that slides, or documents that lie one behind the other. Then a block of queries skips the blocks
//! of keys that its first query does not see, and a strip the panels of `NR` keys that its first
//! query does not. Work is in proportion to the keys seen, but for at most `NR - 1` more a strip,
//! and those between the first keys of a strip's queries, whose scores are made and hidden.
//!
//! A strip's scores stay in L1 (those of tiles in L2), what is packed of a block of keys in L2
//! while all strips of a block of queries go over it, however long the sequence is; beyond the
//! strip's own diagonal nothing is computed but what fills a vector. The forward pass keeps each row's largest score
//! so far, and scales what it has summed when a block of keys has a larger one (Dao et al.,
//! "FlashAttention", 2022, algorithm 1). The backward pass computes the scores again from
//! the saved log-sum-exp of each row (algorithm 4 of its appendix B), so nothing quadratic is
//! ever stored.
//!
//! Keys are transposed into packed panels once a head, and every product below runs on the
//! micro-kernel of [`crate::gemm`]. Operands are words of a [`Format`]: with products of bf16
//! queries, keys, values and the output's gradient are rounded, and so are probabilities and
//! the scores' gradients on their way from one product to the next. Softmax and all sums are
//! of floats.
//!
//! A head may be worked on in parts, of whole strips of queries or of any keys.

pub(crate) mod backward;
mod few;
pub(crate) mod forward;
mod scores;
mod sums;

use crate::built::{COMPACT, steps};
use crate::dropout::Dropout;
use crate::elements::Floats;
use crate::footprint::{Footprint, least, some};
use crate::gemm::LINE;
use crate::gemm::format::Format;
use crate::gemm::micro::Tile;
use crate::gemm::pack;
use crate::simd::{Simd, load_up_to};

/// One head over raw memory. Built by the safe methods of [`crate::Kernels`].
///
/// Shapes: q, out, dq, dout `queries x head`; k, v, dk, dv `keys x head`;
/// `lse` and `starts`, where it is given, have `queries` elements. Query i sees keys
/// `starts[i]..=first + i`, from 0 on without `starts`, and of those the last `window`. What is
/// written has, and begins with, the rows of the part alone.
#[derive(Clone, Copy)]
pub(crate) struct RawAttention {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) head: usize,
    pub(crate) first: usize,
    /// The first key of each query: none before that of the query before, or behind its own.
    pub(crate) starts: Option<*const u32>,
    /// The most keys that a query sees, its own among them: at least 1; `usize::MAX` is no window.
    pub(crate) window: usize,
    /// The queries to work on: whole strips, but for the last of the head.
    pub(crate) rows: Span,
    /// Backward: the keys to go over. The whole head's; for dQ alone those up to the last query
    /// of `rows`, from a block of keys on that is not behind what the first sees; for dK and dV
    /// alone any, with `rows` from the strip on that sees the first of them to all that see one.
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

impl RawAttention {
    /// Whether a query may see others of its keys than all of them.
    pub(crate) fn has_starts(&self) -> bool {
        self.starts.is_some() || self.window < self.keys
    }

    /// The first key that a query sees, in code for heads with such keys or for those without.
    ///
    /// Each pass is compiled for either: what there is more to compute with them would cost those
    /// without a few instructions a strip, but also the registers of their inner loops.
    ///
    /// # Safety
    /// The query is one of the head's.
    #[inline(always)]
    pub(crate) unsafe fn start<const STARTS: bool>(&self, query: usize) -> usize {
        if !STARTS {
            return 0;
        }
        let of_window = (self.first + query + 1).saturating_sub(self.window);
        match self.starts {
            // SAFETY: passed on from the caller.
            Some(starts) => of_window.max(unsafe { *starts.add(query) as usize }),
            None => of_window,
        }
    }

    /// Makes nothing of a strip's scores of keys before each query's first: their exponential is 0,
    /// whatever it is subtracted from. The rows' scores are those of `seen` keys from `key` on.
    ///
    /// In a function of its own, not of vectors: few scores are hidden but where a document ends.
    ///
    /// # Safety
    /// The queries are the head's, and the rows are valid for writing.
    #[inline(never)]
    unsafe fn hide(&self, scores: RowsMut, queries: Span, key: usize, seen: usize) {
        for (r, query) in (queries.start..queries.end).enumerate() {
            // SAFETY: passed on from the caller.
            unsafe {
                let hidden = self.start::<true>(query).saturating_sub(key).min(seen);
                let row = scores.from(r).ptr;
                for j in 0..hidden {
                    *row.add(j) = f32::NEG_INFINITY;
                }
            }
        }
    }
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

/// Asks for row `row` of what lies right of the head in matrices that are `head` wide here: the
/// next head of a sequence, which is usually next. Its rows are too far apart for the CPU to see
/// them coming.
///
/// A row at a time, between vectors that are at hand: each line holds one of the few places where
/// misses wait, and the products behind a burst of them wait as well.
#[inline(always)]
fn fetch_next<S: Simd, const N: usize>(s: S, from: [Rows; N], head: usize, row: usize) {
    if COMPACT {
        return;
    }
    for matrix in from {
        for c in steps(0, head, LINE) {
            s.prefetch(matrix.ptr.wrapping_add(row * matrix.stride + head + c));
        }
    }
}

/// Queries or keys that parts of a head start at multiples of: whole strips, however high
/// those are on the instruction set at hand.
pub(crate) const fn part(f: Footprint) -> usize {
    if f.tiles { f.mr } else { 24 }
}

/// Keys of a block: a multiple of every `NR` and `MR`, and of the keys in a line of words.
///
/// With heads of 64 what is packed of it takes 96 KiB, three times in the backward pass. Of a head
/// of 1,024 or 2,048 queries and 64 columns, 192 made no difference that stood out, and 96 took
/// the forward pass 1.05 to 1.15 of the time (Granite Rapids, AVX-512 and AMX, one thread, in turns).
pub(crate) const KEY_BLOCK: usize = 384;

/// Queries of a block: a multiple of `MR`. Blocks of the backward pass start at multiples of it,
/// but for a part's first, which starts with a strip: they decide in what order the gradients of
/// keys and values are summed.
pub(crate) const fn query_block(f: Footprint) -> usize {
    if f.tiles { 128 } else { 48 }
}

/// Queries of the largest block.
const MOST_QUERIES: usize = 128;
/// Rows of the highest strip.
const MOST_ROWS: usize = 32;

/// Floats between two rows of scores of up to so many keys: whole panels, and a line more, for
/// rows a multiple of 4 KiB apart would all lie in the same few places of the L1 cache.
pub(crate) const fn score_stride(f: Footprint, keys: usize) -> usize {
    least(keys, KEY_BLOCK).next_multiple_of(f.nr) + LINE
}

/// A product of up to `MR` rows with panels: what its A and C are.
#[derive(Clone, Copy)]
pub(crate) struct Strip {
    pub(crate) rows: usize,
    /// Words of the inner dimension.
    pub(crate) words: usize,
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    pub(crate) a_col: usize,
    pub(crate) c: RowsMut,
    pub(crate) accumulate: bool,
}

impl Strip {
    /// `C (+)= A B` for all `cols` columns of a packed B, whose panels are `panel` words apart.
    ///
    /// # Safety
    /// As for [`Format::apart`], for all of the panels.
    #[inline(always)]
    pub(crate) unsafe fn times<S: Simd, F: Format<S>>(
        &self,
        (s, f): (S, F),
        unit: &mut F::Unit,
        b: *const f32,
        panel: usize,
        cols: usize,
    ) {
        if COMPACT && !F::TILES {
            // SAFETY: passed on from the caller.
            return unsafe { self.times_apart::<S, F>(f, s, unit, b, panel, cols) };
        }
        // SAFETY: passed on from the caller.
        unsafe { self.times_here((s, f), unit, b, panel, cols) }
    }

    /// [`Strip::times`] in a function of its own, which has no vectors.
    ///
    /// # Safety
    /// As for [`Strip::times`].
    #[inline(never)]
    unsafe fn times_apart<S: Simd, F: Format<S>>(
        &self,
        f: F,
        s: S,
        unit: &mut F::Unit,
        b: *const f32,
        panel: usize,
        cols: usize,
    ) {
        // SAFETY: passed on from the caller.
        unsafe { self.times_here((s, f), unit, b, panel, cols) }
    }

    /// # Safety
    /// As for [`Strip::times`].
    #[inline(always)]
    unsafe fn times_here<S: Simd, F: Format<S>>(
        &self,
        (s, f): (S, F),
        unit: &mut F::Unit,
        b: *const f32,
        panel: usize,
        cols: usize,
    ) {
        let mut j = 0;
        while j < cols {
            let c = self.c.ptr.wrapping_add(j);
            let tile = Tile {
                kc: self.words,
                a: self.a,
                a_row: self.a_row,
                a_col: self.a_col,
                b: b.wrapping_add(j / S::NR * panel),
                b_row: S::NR,
                c,
                c_row: self.c.stride,
                start: c,
                start_row: self.c.stride,
                stream: false,
            };
            // SAFETY: passed on from the caller.
            unsafe {
                f.apart(s, unit, &tile, (self.rows, S::NR.min(cols - j)), self.accumulate);
            };
            j += S::NR;
        }
    }
}

/// Whether rows of a head of `keys` keys are read, if they are words, and summed where they lie.
///
/// Rows of a matrix are often a multiple of 2 KiB apart, which puts all of them into the same few
/// places of the caches. Those of more than one block of keys are gone over often, and tiles want
/// whole lines: there they are kept side by side in scratch.
const fn in_place(f: Footprint, keys: usize) -> bool {
    !f.tiles && keys <= KEY_BLOCK
}

/// The words of some rows of `head` floats: side by side in `room`, or where they are floats that
/// may stay where they lie.
///
/// # Safety
/// The rows are valid for reading, `room` for as many rows of words; they do not overlap.
#[inline(always)]
unsafe fn words_of<S: Simd, F: Format<S>>(
    s: S,
    f: F,
    from: Rows,
    (rows, head): (usize, usize),
    room: *mut f32,
    may_stay: bool,
) -> Rows {
    if F::IS_PLAIN && may_stay {
        return from;
    }
    let stride = F::words(head);
    for r in 0..rows {
        // SAFETY: passed on from the caller.
        unsafe {
            let from = (from.ptr.add(r * from.stride), 1);
            pack::row(s, f, Floats, from, head, room.add(r * stride));
        }
    }
    Rows { ptr: room, stride }
}

/// Floats of room that [`words_of`] wants for `block` queries of a head of `keys` keys.
const fn room_for_words(f: Footprint, keys: usize, block: usize, head: usize) -> Option<usize> {
    let stay = f.plain && in_place(f, keys);
    if stay { Some(0) } else { f.words(head).checked_mul(block) }
}

/// Queries of the largest block of up to so many: whole strips.
const fn most_of_block(f: Footprint, queries: usize) -> usize {
    least(query_block(f), queries.div_ceil(f.mr).saturating_mul(f.mr))
}

/// Floats between two rows of what is summed of a head: whole tiles where there are any.
const fn sum_stride(f: Footprint, head: usize) -> Option<usize> {
    head.checked_next_multiple_of(if f.tiles { f.nr } else { LINE })
}

/// Floats of scratch for so many rows of sums in a head of `keys` keys.
const fn room_for_sums(f: Footprint, keys: usize, rows: usize, head: usize) -> Option<usize> {
    if in_place(f, keys) { Some(0) } else { some!(sum_stride(f, head)).checked_mul(rows) }
}

/// Hands out pieces of scratch, or only counts them.
struct Pieces {
    next: *mut f32,
    len: Option<usize>,
}

impl Pieces {
    const fn of(scratch: *mut f32) -> Self {
        Self { next: scratch, len: Some(0) }
    }

    /// The next `len` floats, and what is left of their last line; of no use once a length has
    /// overflowed.
    #[cfg_attr(not(feature = "compact"), inline(always))]
    #[cfg_attr(feature = "compact", inline(never))]
    const fn take(&mut self, len: Option<usize>) -> *mut f32 {
        let piece = self.next;
        let len = match len {
            Some(len) => len.checked_next_multiple_of(LINE),
            None => None,
        };
        self.len = match (self.len, len) {
            (Some(all), Some(len)) => {
                self.next = piece.wrapping_add(len);
                all.checked_add(len)
            }
            _ => None,
        };
        piece
    }

    /// [`Pieces::take`] if the floats are wanted, or else none.
    #[inline(always)]
    const fn take_if(&mut self, wanted: bool, len: Option<usize>) -> *mut f32 {
        self.take(if wanted { len } else { Some(0) })
    }
}

/// Floats of scratch for the forward pass over up to `keys` keys, `None` on overflow.
pub(crate) const fn forward_scratch(f: Footprint, keys: usize, head: usize) -> Option<usize> {
    forward::Areas::new(f, core::ptr::null_mut(), keys, head).1
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

/// Floats of scratch for the backward pass of a head of `queries` queries over `span` of its keys,
/// `None` on overflow.
pub(crate) const fn backward_scratch(
    f: Footprint,
    queries: usize,
    span: usize,
    head: usize,
    wanted: Wanted,
) -> Option<usize> {
    backward::Areas::new(f, core::ptr::null_mut(), queries, span, head, wanted).1
}

/// Dot product of two rows of `n` floats, each in the precision of a format.
///
/// # Safety
/// Both hold `n` floats.
#[inline(always)]
pub(crate) unsafe fn dot<S: Simd, F: Format<S>, G: Format<S>>(
    s: S,
    (a, f): (*const f32, F),
    (b, g): (*const f32, G),
    n: usize,
) -> f32 {
    let mut sum = s.splat(0.0);
    let mut i = 0;
    while i < n {
        let left = (n - i).min(S::LANES);
        // SAFETY: elements i .. i + left of both.
        let (x, y) = unsafe { (load_up_to(s, a.add(i), left), load_up_to(s, b.add(i), left)) };
        sum = s.mul_add(f.rounded(s, x), g.rounded(s, y), sum);
        i += left;
    }
    s.sum(sum)
}
