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

/// A matrix of floats to pack: element (p, j) is `ptr[p * row + j * col]`.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    pub(crate) ptr: *const f32,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl From<Source> for RawOperand {
    #[inline(always)]
    fn from(Source { ptr, row, col }: Source) -> Self {
        Self { ptr, row, col, half: false }
    }
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

    /// Word `w` of this line and of those that lie behind it, an element apart each.
    ///
    /// # Safety
    /// As for [`Line::one`], a vector at each place.
    #[inline(always)]
    unsafe fn vector<S: Simd, F: Format<S>, M: Elements<S, F, Element = E>>(
        &self,
        s: S,
        f: F,
        m: M,
        w: usize,
    ) -> S::V {
        let (low, high) = self.word::<S, F>(w);
        // SAFETY: passed on from the caller.
        unsafe { m.join(s, f, low, high) }
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
    src: impl Into<RawOperand>,
    k: usize,
    n: usize,
    dst: *mut f32,
) {
    let src = src.into();
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
    if k == 0 {
        return;
    }
    let words = F::words(k);
    let mut j = 0;
    while j < n {
        let cols = S::NR.min(n - j);
        // SAFETY: panel j / NR starts at j * words; its rows and the source's columns
        // j .. j + cols are inside what the caller promised.
        unsafe {
            let panel = dst.add(j * words);
            let from = src.ptr.cast::<M::Element>().add(j * src.col);
            let column = |q: usize| Line { ptr: from.wrapping_add(q * src.col), step: src.row, k };
            if src.col == 1 && cols == S::NR {
                for w in 0..words {
                    for at in w * F::DEPTH..(w + 1) * F::DEPTH {
                        s.prefetch(from.wrapping_add((at + AHEAD).wrapping_mul(src.row)).cast());
                    }
                    let mut q = 0;
                    while q < S::NR {
                        s.store(panel.add(w * S::NR + q), column(q).vector(s, f, m, w));
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
                    let done = if squares { k / (S::LANES * F::DEPTH) * S::LANES } else { 0 };
                    let mut w = 0;
                    while w < done {
                        let first = from.add(q * src.col + w * F::DEPTH);
                        square(s, f, m, first, src.col, panel.add(w * S::NR + q), S::NR);
                        w += S::LANES;
                    }
                    for q in q..q + S::LANES {
                        let column = column(q);
                        for w in done..words {
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
    if k == 0 {
        return;
    }
    let words = F::words(k);
    let mut i = 0;
    while i < m {
        let rows = S::MR.min(m - i);
        // SAFETY: panel i / MR starts at i * words; rows i .. i + rows of the source are inside.
        unsafe {
            let panel = dst.add(i * words);
            let from = src.ptr.cast::<M::Element>().add(i * src.row);
            let row = |q: usize| Line { ptr: from.wrapping_add(q * src.row), step: src.col, k };
            // One vector covers a panel's column when the source's rows are adjacent.
            // It may read and write beyond MR: the read must stay inside the source's
            // row of the matrix, the excess written is overwritten by the next column.
            let whole = src.row == 1 && S::LANES > S::MR && m - i >= S::LANES;
            let vectors = if whole { words - 1 } else { 0 };
            for w in 0..vectors {
                for at in w * F::DEPTH..(w + 1) * F::DEPTH {
                    s.prefetch(from.wrapping_add((at + AHEAD).wrapping_mul(src.col)).cast());
                }
                s.store(panel.add(w * S::MR), row(0).vector(s, f, e, w));
            }
            for w in vectors..words {
                for q in 0..rows {
                    *panel.add(w * S::MR + q) = row(q).one(e, w);
                }
            }
        }
        i += rows;
    }
}

/// Rows or columns between a prefetch and its use: some 50 ns of copying.
const AHEAD: usize = 24;
