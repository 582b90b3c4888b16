//! Packing: the copies that turn a matrix into the panels a micro-kernel reads.
//!
//! Layout of packed B (`k x n`): panel `j` holds columns `j*NR .. (j+1)*NR`; its
//! row `p` is `NR` floats at `p * NR`; columns beyond `n` are zero. Layout of
//! packed A (`m x k`): panel `i` holds rows `i*MR .. (i+1)*MR`, column after
//! column; rows beyond `m` are left out of the last panel's use.
//!
//! What is packed are words of a [`Format`]: `k` elements of the inner dimension make
//! [`Format::words`] rows of a panel.

use super::LINE;
use super::format::Format;
use crate::elements::{Elements, Floats, RawOperand};
use crate::simd::{MOST_LANES, Simd, store_up_to};
use core::ops::Range;

/// Words that packed B takes, `k` of them along the inner dimension; `None` on overflow.
pub(crate) const fn packed_b_len(k: usize, n: usize, nr: usize) -> Option<usize> {
    match n.div_ceil(nr).checked_mul(nr) {
        Some(padded) => padded.checked_mul(k),
        None => None,
    }
}

/// Words that packed A takes, `None` on overflow.
pub(crate) const fn packed_a_len(m: usize, k: usize, mr: usize) -> Option<usize> {
    packed_b_len(k, m, mr)
}

/// Elements along the inner dimension, `step` apart, that words are made of.
struct Line<E> {
    ptr: *const E,
    step: usize,
    k: usize,
}

impl<E: Copy> Line<E> {
    /// Where the elements of word `w` lie. The last word of an odd number has one alone.
    #[inline(always)]
    fn word<S: Simd, F: Format<S>>(&self, w: usize) -> (*const E, Option<*const E>) {
        let at = w * F::DEPTH;
        let low = self.ptr.wrapping_add(at * self.step);
        let has_high = F::DEPTH == 2 && at + 1 < self.k;
        (low, has_high.then(|| low.wrapping_add(self.step)))
    }

    /// Word `w`.
    ///
    /// # Safety
    /// Its elements are valid for reading.
    #[inline(always)]
    unsafe fn one<S: Simd, F: Format<S>, M: Elements<S, F, Element = E>>(
        &self,
        m: M,
        w: usize,
    ) -> f32 {
        let (low, high) = self.word::<S, F>(w);
        // SAFETY: passed on from the caller.
        unsafe { m.join_one(low, high) }
    }

    /// Word `w` of this line and of those that lie behind it, an element apart each, `n` in
    /// all, at most a vector.
    ///
    /// # Safety
    /// As for [`Line::one`], `n` elements at each place.
    #[inline(always)]
    unsafe fn vector<S: Simd, F: Format<S>, M: Elements<S, F, Element = E>>(
        &self,
        s: S,
        f: F,
        m: M,
        w: usize,
        n: usize,
    ) -> S::V {
        let (low, high) = self.word::<S, F>(w);
        // SAFETY: passed on from the caller.
        unsafe { m.join(s, f, low, high, n) }
    }
}

/// Transposes `LANES x LANES` words: line i is made of the elements at `src + i * src_row`,
/// column i goes to `dst + i * dst_row`.
///
/// # Safety
/// `src` is valid for `LANES` lines of `LANES * DEPTH` elements, `dst` for as many of `LANES`
/// words.
#[inline(always)]
unsafe fn square<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    f: F,
    m: M,
    src: *const M::Element,
    src_row: usize,
    dst: *mut f32,
    dst_row: usize,
) {
    let mut lines = [s.splat(0.0); MOST_LANES];
    // SAFETY: passed on from the caller.
    unsafe {
        for (i, line) in lines[..S::LANES].iter_mut().enumerate() {
            *line = m.contiguous(s, f, src.add(i * src_row));
        }
        s.transpose(&mut lines);
        for (i, line) in lines[..S::LANES].iter().enumerate() {
            s.store(dst.add(i * dst_row), *line);
        }
    }
}

/// [`pack_b`] of one format and instruction set, in a function of its own.
pub(crate) type PackFn = unsafe fn(RawOperand, usize, usize, *mut f32);

/// Packs the `k x n` matrix `src` into panels of `NR` columns at `dst`.
///
/// # Safety
/// `src` is valid for `k x n` elements, `dst` for the words of [`packed_b_len`], and they
/// do not overlap.
#[inline(always)]
pub(crate) unsafe fn pack_b<S: Simd, F: Format<S>>(
    s: S,
    f: F,
    src: RawOperand,
    k: usize,
    n: usize,
    dst: *mut f32,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        // Kept elements are floats but where a word has two.
        if F::DEPTH == 2 && src.half {
            pack_b_of(s, f, f.kept(), src, k, n, dst);
        } else {
            pack_b_of(s, f, Floats, src, k, n, dst);
        }
    }
}

/// [`pack_b`] for one kind of elements.
///
/// # Safety
/// As for [`pack_b`], with elements of the kind.
#[inline(always)]
unsafe fn pack_b_of<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    f: F,
    m: M,
    src: RawOperand,
    k: usize,
    n: usize,
    dst: *mut f32,
) {
    let (words, padded) = (k.div_ceil(F::DEPTH), F::words(k));
    // Rows are gone through side by side, columns one after the other.
    let rows_lie = src.col == 1;
    // Squares of words would not end where blocks do: rows that overlap, whose columns lie too,
    // are one block.
    let blocked = rows_lie && src.row != 1 && n > S::NR;
    let block = if blocked { BLOCK / F::DEPTH } else { words };
    for some in blocks(words, block) {
        let mut j = 0;
        while j < n {
            let cols = S::NR.min(n - j);
            // SAFETY: panel j / NR starts at j * padded; its rows and the source's columns
            // j .. j + cols are inside what the caller promised.
            unsafe {
                let panel = dst.add(j * padded);
                let from = src.ptr.cast::<M::Element>().add(j * src.col);
                let column =
                    |q: usize| Line { ptr: from.wrapping_add(q * src.col), step: src.row, k };
                if rows_lie && cols == S::NR {
                    for w in some.clone() {
                        fetch::<S, F, M>(s, from, src.row, w);
                        let mut q = 0;
                        while q < S::NR {
                            let x = column(q).vector(s, f, m, w, S::LANES);
                            s.store(panel.add(w * S::NR + q), x);
                            q += S::LANES;
                        }
                    }
                } else {
                    // Some columns at a time: each is read once, and the panel (at most
                    // words * NR floats) is written through the cache.
                    let mut q = 0;
                    while q < S::NR {
                        // Where the elements of a column are adjacent, by squares of words.
                        let squares = src.row == 1 && S::LANES > 1 && q + S::LANES <= cols;
                        let squares = if squares { k / (S::LANES * F::DEPTH) } else { 0 };
                        let done = some.start.max(squares * S::LANES);
                        let mut w = some.start;
                        while w < done {
                            let first = from.add(q * src.col + w * F::DEPTH);
                            square(s, f, m, first, src.col, panel.add(w * S::NR + q), S::NR);
                            w += S::LANES;
                        }
                        for q in q..q + S::LANES {
                            let column = column(q);
                            for w in done..some.end {
                                let x = if q < cols { column.one(m, w) } else { 0.0 };
                                *panel.add(w * S::NR + q) = x;
                            }
                        }
                        q += S::LANES;
                    }
                }
            }
            j += cols;
        }
    }
    if padded > words {
        for panel in 0..n.div_ceil(S::NR) {
            // SAFETY: the rows of a panel behind those just written.
            unsafe {
                let rest = dst.add((panel * padded + words) * S::NR);
                rest.write_bytes(0, (padded - words) * S::NR);
            }
        }
    }
}

/// Rows of words that all panels take before any takes the next.
///
/// So many rows of a matrix stay in L1, even where rows are a multiple of 4 KiB apart, which
/// puts what lies below one another into the same set of the cache; and each line of it is
/// read there once, though panels do not end where lines do.
const BLOCK: usize = 8;

/// `0..n` in ranges of `block`.
#[inline(always)]
fn blocks(n: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(block.max(1)).map(move |first| first..(first + block).min(n))
}

/// Asks for what word `w` plus [`AHEAD`] of a line is made of.
#[inline(always)]
fn fetch<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    from: *const M::Element,
    step: usize,
    w: usize,
) {
    for at in w * F::DEPTH..(w + 1) * F::DEPTH {
        s.prefetch(from.wrapping_add((at + AHEAD).wrapping_mul(step)).cast());
    }
}

/// Writes the words of `k` elements that lie `step` apart.
///
/// # Safety
/// `src` is valid for so many elements, `dst` for their words, and they do not overlap.
#[inline(always)]
pub(crate) unsafe fn row<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    f: F,
    m: M,
    (src, step): (*const M::Element, usize),
    k: usize,
    dst: *mut f32,
) {
    // SAFETY: passed on from the caller.
    unsafe { row_to(s, f, m, (src, step), k, |w| dst.wrapping_add(w)) }
}

/// [`row`] whose words go to where `to` says that each is: those of a vector next to each other.
///
/// # Safety
/// As for [`row`], of the words' places.
#[inline(always)]
unsafe fn row_to<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    f: F,
    m: M,
    (src, step): (*const M::Element, usize),
    k: usize,
    to: impl Fn(usize) -> *mut f32,
) {
    let line = Line { ptr: src, step, k };
    let (words, padded) = (k.div_ceil(F::DEPTH), F::words(k));
    let whole = if step == 1 { k / (S::LANES * F::DEPTH) * S::LANES } else { 0 };
    let mut w = 0;
    // SAFETY: words before `whole` are made of whole vectors of the source; padding ends with the vector that
    // it begins in; the rest is passed on from the caller.
    unsafe {
        while w < whole {
            s.store(to(w), m.contiguous(s, f, src.add(w * F::DEPTH)));
            w += S::LANES;
        }
        for w in w..words {
            *to(w) = line.one(m, w);
        }
        to(words).write_bytes(0, padded - words);
    }
}

/// Packs the `m x k` matrix `src` at `dst`: into panels of `MR` rows, for [`Format::TILES`] of lines of
/// rows ([`tiles_of`]).
///
/// # Safety
/// `src` is valid for `m x k` elements, `dst` for the words of [`packed_a_len`], and they
/// do not overlap.
#[inline(always)]
pub(crate) unsafe fn pack_a<S: Simd, F: Format<S>>(
    s: S,
    f: F,
    src: RawOperand,
    m: usize,
    k: usize,
    dst: *mut f32,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        match (F::TILES, F::DEPTH == 2 && src.half) {
            (true, true) => rows_of_a(s, f, f.kept(), src, (m, k), tiles_of::<S, F>(k, dst)),
            (true, false) => rows_of_a(s, f, Floats, src, (m, k), tiles_of::<S, F>(k, dst)),
            (false, true) => pack_a_of(s, f, f.kept(), src, m, k, dst),
            (false, false) => pack_a_of(s, f, Floats, src, m, k, dst),
        }
    }
}

/// Where word `w` of row `i` of an A of `k` elements a row is, packed at `dst` for tiles: of `MR` rows a line each, then
/// their next lines. So what a tile loads are lines one after the other, as those of a panel of B: gradients of weights
/// have some 1.04 to 1.14 of the speed that they have with whole rows, which take 512 bytes (Granite Rapids, one
/// thread).
#[inline(always)]
fn tiles_of<S: Simd, F: Format<S>>(k: usize, dst: *mut f32) -> impl Fn(usize, usize) -> *mut f32 {
    let words = F::words(k);
    move |i, w| {
        let (block, line) = (i / F::MR * F::MR * words, w / LINE * F::MR * LINE);
        dst.wrapping_add(block + line + i % F::MR * LINE + w % LINE)
    }
}

/// Writes the words of the `m x k` matrix `src`, whose rows are adjacent, at `dst`: row after row, without a gap.
///
/// # Safety
/// `src` is valid for `m x k` floats, `dst` for `m` rows of the words of `k`, and they do not overlap.
#[inline(always)]
pub(crate) unsafe fn rows<S: Simd, F: Format<S>>(
    s: S,
    f: F,
    src: RawOperand,
    (m, k): (usize, usize),
    dst: *mut f32,
) {
    let words = F::words(k);
    // SAFETY: passed on from the caller.
    unsafe { rows_of_a(s, f, Floats, src, (m, k), |i, w| dst.wrapping_add(i * words + w)) }
}

/// [`pack_a`] for tiles, for one kind of elements, to where `to` says: by squares of words where rows are adjacent.
///
/// # Safety
/// As for [`pack_a`], with elements of the kind, and places for as many words; those of a line are next to each other.
#[inline(always)]
unsafe fn rows_of_a<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    f: F,
    e: M,
    src: RawOperand,
    (m, k): (usize, usize),
    to: impl Fn(usize, usize) -> *mut f32,
) {
    let words = k.div_ceil(F::DEPTH);
    let from = |i: usize| src.ptr.cast::<M::Element>().wrapping_add(i * src.row);
    if src.row != 1 {
        for i in 0..m {
            // SAFETY: row i of the source and of the result.
            unsafe { row_to(s, f, e, (from(i), src.col), k, |w| to(i, w)) };
        }
        return;
    }
    for some in blocks(words, S::LANES) {
        for i in (0..m).step_by(S::LANES) {
            let rows = S::LANES.min(m - i);
            let line = Line { ptr: from(i), step: src.col, k };
            let mut lines = [s.splat(0.0); MOST_LANES];
            // SAFETY: `rows` rows of the source from i on are inside it, and a group of LANES
            // words of each is inside the row's `padded`, which are whole groups.
            unsafe {
                for (w, line_of) in some.clone().zip(&mut lines) {
                    fetch::<S, F, M>(s, line.ptr, src.col, w);
                    *line_of = line.vector(s, f, e, w, rows);
                }
                s.transpose(&mut lines);
                for (r, words) in lines[..rows].iter().enumerate() {
                    s.store(to(i + r, some.start), *words);
                }
            }
        }
    }
}

/// [`pack_a`] for one kind of elements.
///
/// # Safety
/// As for [`pack_a`], with elements of the kind.
#[inline(always)]
unsafe fn pack_a_of<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    f: F,
    e: M,
    src: RawOperand,
    m: usize,
    k: usize,
    dst: *mut f32,
) {
    let words = F::words(k);
    for some in blocks(words, BLOCK / F::DEPTH) {
        let mut i = 0;
        while i < m {
            let rows = F::MR.min(m - i);
            // SAFETY: panel i / MR starts at i * words; rows i .. i + rows of the source are
            // inside.
            unsafe {
                let panel = dst.add(i * words);
                let from = src.ptr.cast::<M::Element>().add(i * src.row);
                let row = |q: usize| Line { ptr: from.wrapping_add(q * src.row), step: src.col, k };
                // A panel's column by vectors, mostly one, when the source's rows are adjacent. What
                // the last has too many is overwritten by the next column, or not written.
                if src.row == 1 && S::LANES > 1 {
                    for w in some.clone() {
                        fetch::<S, F, M>(s, from, src.col, w);
                        for q in (0..F::MR).step_by(S::LANES) {
                            if q > 0 && q >= rows {
                                break;
                            }
                            let wide = S::LANES.min(m - i - q);
                            let x = row(q).vector(s, f, e, w, wide);
                            let to = panel.add(w * F::MR + q);
                            if w + 1 < words {
                                s.store(to, x);
                            } else {
                                store_up_to(s, to, x, F::MR - q);
                            }
                        }
                    }
                } else {
                    for w in some.clone() {
                        for q in 0..rows {
                            *panel.add(w * F::MR + q) = row(q).one(e, w);
                        }
                    }
                }
            }
            i += rows;
        }
    }
}

/// Rows or columns between a prefetch and its use: some 50 ns of copying.
const AHEAD: usize = 8;
