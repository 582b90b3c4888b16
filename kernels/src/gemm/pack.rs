//! Packing: the copies that turn a matrix into the panels a micro-kernel reads.
//!
//! Layout of packed B (`k x n`): panel `j` holds columns `j*NR .. (j+1)*NR`; its
//! row `p` is `NR` floats at `p * NR`; columns beyond `n` are zero. Layout of
//! packed A (`m x k`): panel `i` holds rows `i*MR .. (i+1)*MR`, column after
//! column; rows beyond `m` are left out of the last panel's use.
//!
//! What is packed are words of a [`Format`]: `k` elements of the inner dimension make
//! [`Format::words`] rows of a panel.

use super::format::Format;
use crate::elements::{Elements, Floats, RawOperand};
use crate::simd::{MOST_LANES, Simd};
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
        if src.half {
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
    let words = F::words(k);
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
            // SAFETY: panel j / NR starts at j * words; its rows and the source's columns
            // j .. j + cols are inside what the caller promised.
            unsafe {
                let panel = dst.add(j * words);
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

/// Writes the words of `k` elements that lie `step` floats apart.
///
/// # Safety
/// `src` is valid for so many elements, `dst` for their words, and they do not overlap.
#[inline(always)]
pub(crate) unsafe fn strided<S: Simd, F: Format<S>>(
    src: *const f32,
    step: usize,
    k: usize,
    dst: *mut f32,
) {
    let line = Line { ptr: src, step, k };
    for w in 0..F::words(k) {
        // SAFETY: passed on from the caller.
        unsafe { *dst.add(w) = line.one::<S, F, Floats>(Floats, w) };
    }
}

/// Packs the `m x k` matrix `src` into panels of `MR` rows at `dst`.
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
        if src.half {
            pack_a_of(s, f, f.kept(), src, m, k, dst);
        } else {
            pack_a_of(s, f, Floats, src, m, k, dst);
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
            let rows = S::MR.min(m - i);
            // SAFETY: panel i / MR starts at i * words; rows i .. i + rows of the source are
            // inside.
            unsafe {
                let panel = dst.add(i * words);
                let from = src.ptr.cast::<M::Element>().add(i * src.row);
                let row = |q: usize| Line { ptr: from.wrapping_add(q * src.row), step: src.col, k };
                // One vector covers a panel's column when the source's rows are adjacent. What
                // it has too many is overwritten by the next column, or not written.
                if src.row == 1 && S::LANES > S::MR {
                    let wide = S::LANES.min(m - i);
                    for w in some.clone() {
                        fetch::<S, F, M>(s, from, src.col, w);
                        let x = row(0).vector(s, f, e, w, wide);
                        let to = panel.add(w * S::MR);
                        if w + 1 < words { s.store(to, x) } else { s.store_first(to, x, S::MR) }
                    }
                } else {
                    for w in some.clone() {
                        for q in 0..rows {
                            *panel.add(w * S::MR + q) = row(q).one(e, w);
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
