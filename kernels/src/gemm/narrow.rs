//! Tiles of few columns, of as many rows as a vector has lanes, or several times as many.
//!
//! A product of one column is one multiply-add for an element of A. With a column of a panel to a lane,
//! as in other tiles, that is a whole vector's multiply-add for one lane of it. So here a row is a lane:
//!
//! ```text
//! for each LANES words of the inner dimension
//!   a square of A: LANES vectors, loaded along rows, transposed in registers
//!   for each of its columns, for each column of B
//!     sums of LANES rows += the square's column times an element of B
//! ```
//! The additions to an element of C are those of other tiles, in their order: the bits are the same. That leaves a
//! column one chain of multiply-adds, each of which waits for the one before: with eight lanes one or two columns
//! have tiles of several squares of rows, whose chains are under way together.
//!
//! Of 5 to 8 columns 8 lanes hold all: there a column is a lane as in other tiles, and a tile has 8 rows for
//! a register block's 6, whose multiply-adds would wait for one another.

use super::block::MAX_TILE;
use super::format::{Dot, Format};
use super::micro::{self, Tile};
use crate::built::COMPACT;
use crate::simd::{MOST_LANES, Simd};

/// Squares of the tallest tile.
const SQUARES: usize = 4;
/// Most columns of such a tile.
const FEW: usize = 2;

/// Squares of a tile of at most [`FEW`] columns, if there are as many rows.
///
/// Four of eight lanes take with AVX2 0.66 of the time for one column and 0.70 for two, with AVX 0.8 and 1.0. Of
/// sixteen lanes a square takes as long to be transposed as a chain takes: two of them have 1.03 and 0.90 of the speed of
/// one (1,024 x 256, Granite Rapids, one thread, in turns).
const fn most_squares<S: Simd>() -> usize {
    if S::LANES == 8 { SQUARES } else { 1 }
}

/// The rows of such a tile, its most columns, and the rows of the tallest.
#[derive(Clone, Copy)]
pub(crate) struct Narrow {
    rows: usize,
    cols: usize,
    tall: usize,
}

impl Narrow {
    /// Those of a format: none where a register block has as many rows as a vector has lanes.
    pub(crate) const fn of<S: Simd, F: Format<S>>() -> Self {
        let has_some = !COMPACT && !F::TILES && S::LANES > S::MR;
        Self {
            rows: S::LANES,
            cols: if has_some { 8 } else { 0 },
            tall: most_squares::<S>() * S::LANES,
        }
    }

    /// Whether a tile of so many rows is one of these, if other tiles have at most `most`.
    #[inline(always)]
    pub(super) const fn is(self, rows: usize, most: usize) -> bool {
        self.cols > 0 && rows > most
    }

    /// Rows of the next tile, of `left` of them and `cols` columns, if other tiles have `most`. Elements
    /// of a row of A are adjacent.
    #[inline(always)]
    pub(crate) const fn height(self, left: usize, cols: usize, most: usize) -> usize {
        if cols <= self.cols && left >= self.rows {
            if cols <= FEW && left >= self.tall { self.tall } else { self.rows }
        } else if left < most {
            left
        } else {
            most
        }
    }
}

/// `C[rows x cols] (+)= A[rows x kc] B[kc x NR]`.
///
/// # Safety
/// A is valid for `rows` rows of `kc` adjacent words, B for `kc` rows of `NR`, C and, to accumulate, its
/// start for `rows x cols`; both are of [`Narrow::height`], for the columns of [`Narrow::of`].
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, F: Dot<S>>(
    s: S,
    f: F,
    t: &Tile,
    rows: usize,
    cols: usize,
    accumulate: bool,
) {
    debug_assert!(Narrow::of::<S, F>().cols > 0);
    if const { Narrow::of::<S, F>().cols == 0 } {
        return;
    }
    const { assert!(most_squares::<S>() * S::LANES * S::NR <= MAX_TILE, "sums of a tile have room") }
    // SAFETY: passed on from the caller; a panel has columns of zeros behind those of B.
    unsafe {
        match cols {
            1 => few::<S, F, 1>(s, f, t, rows, cols, accumulate),
            2 => few::<S, F, 2>(s, f, t, rows, cols, accumulate),
            3..=4 => squares::<S, F, 4, 1>(s, f, t, rows, cols, accumulate),
            // Half of a vector's lanes, or all of them: then a column to a lane wastes none.
            _ if S::LANES == 16 => {
                by_rows(s, t, &sums::<S, F, 8, 1>(s, f, t, 1)[0], cols, accumulate);
            }
            _ => micro::tile::<S, F, _, 8, 1, true>(s, f, t, cols, accumulate, &mut ()),
        }
    }
}

/// A tile of [`FEW`] columns or less.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn few<S: Simd, F: Dot<S>, const N: usize>(
    s: S,
    f: F,
    t: &Tile,
    rows: usize,
    cols: usize,
    accumulate: bool,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        if const { most_squares::<S>() == SQUARES } {
            squares::<S, F, N, SQUARES>(s, f, t, rows, cols, accumulate);
        } else {
            squares::<S, F, N, 1>(s, f, t, rows, cols, accumulate);
        }
    }
}

/// A tile of up to `N` columns and `G` squares, stored an element after the other.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn squares<S: Simd, F: Dot<S>, const N: usize, const G: usize>(
    s: S,
    f: F,
    t: &Tile,
    rows: usize,
    cols: usize,
    accumulate: bool,
) {
    // SAFETY: passed on from the caller.
    let sums = unsafe { sums::<S, F, N, G>(s, f, t, rows / S::LANES) };
    for (g, sums) in sums[..rows / S::LANES].iter().enumerate() {
        for (j, &sum) in sums.iter().enumerate().take(cols) {
            let mut lanes = [0.0; MOST_LANES];
            // SAFETY: there is room for a vector of any instruction set; element (i, j) of C is inside it.
            unsafe {
                s.store(lanes.as_mut_ptr(), sum);
                for (i, &x) in lanes[..S::LANES].iter().enumerate() {
                    let i = g * S::LANES + i;
                    let start = t.start.wrapping_add(i * t.start_row + j);
                    *t.c.add(i * t.c_row + j) = if accumulate { x + *start } else { x };
                }
            }
        }
    }
}

/// Stores the first `cols` of the sums, a row after the other.
///
/// # Safety
/// As for [`tile`], of C and its start.
#[inline(always)]
unsafe fn by_rows<S: Simd, const N: usize>(
    s: S,
    t: &Tile,
    sums: &[S::V; N],
    cols: usize,
    accumulate: bool,
) {
    let mut rows = [s.splat(0.0); MOST_LANES];
    rows[..N].copy_from_slice(sums);
    s.transpose(&mut rows);
    for (i, &row) in rows[..S::LANES].iter().enumerate() {
        // SAFETY: `cols` floats of a row of C are inside it.
        unsafe {
            let start = t.start.wrapping_add(i * t.start_row);
            let row = if accumulate { s.add(row, s.load_first(start, cols)) } else { row };
            s.store_first(t.c.wrapping_add(i * t.c_row), row, cols);
        }
    }
}

/// The sums of the first `N` columns for so many squares of rows, of at most `G`: a vector each.
///
/// # Safety
/// As for [`tile`], of A and B.
#[inline(always)]
unsafe fn sums<S: Simd, F: Dot<S>, const N: usize, const G: usize>(
    s: S,
    f: F,
    t: &Tile,
    squares: usize,
) -> [[S::V; N]; G] {
    debug_assert_eq!(t.b_row, S::NR);
    // A loop where there are several, not a copy for each: sums that wait in memory cost less than squares that do.
    let squares = if G == 1 { 1 } else { squares };
    let mut sums = [[s.splat(0.0); N]; G];
    let (mut a, mut b) = (t.a, t.b);
    for _ in 0..t.kc / S::LANES {
        for (g, sums) in sums[..squares].iter_mut().enumerate() {
            // SAFETY: LANES words of each row of A and as many rows of B, as the caller promised.
            unsafe {
                let square = s.square(a.wrapping_add(g * S::LANES * t.a_row), t.a_row);
                columns(s, f, sums, &square, b, S::LANES);
            }
        }
        a = a.wrapping_add(S::LANES);
        b = b.wrapping_add(S::LANES * S::NR);
    }
    let rest = t.kc % S::LANES;
    if rest > 0 {
        for (g, sums) in sums[..squares].iter_mut().enumerate() {
            let a = a.wrapping_add(g * S::LANES * t.a_row);
            let mut square = [s.splat(0.0); MOST_LANES];
            // SAFETY: as above, `rest` words and rows.
            unsafe {
                for (i, line) in square[..S::LANES].iter_mut().enumerate() {
                    *line = s.load_first(a.wrapping_add(i * t.a_row), rest);
                }
                s.transpose(&mut square);
                columns(s, f, sums, &square, b, rest);
            }
        }
    }
    sums
}

/// The first `n` columns of a square of A, a step each.
///
/// # Safety
/// `b` is valid for `n` rows of `NR`.
#[inline(always)]
unsafe fn columns<S: Simd, F: Dot<S>, const N: usize>(
    s: S,
    f: F,
    sums: &mut [S::V; N],
    square: &[S::V; MOST_LANES],
    b: *const f32,
    n: usize,
) {
    // Each by its number, for what is indexed lives in memory.
    macro_rules! steps {
        ($($u:literal)*) => {$(
            if $u < n {
                // SAFETY: row `u` of B.
                unsafe { step(s, f, sums, square[$u], b.wrapping_add($u * S::NR)) };
            }
        )*};
    }
    steps!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

/// One step of the inner dimension: a column of A times the first `N` of a row of B.
///
/// # Safety
/// `b` is valid for `N` floats.
#[inline(always)]
unsafe fn step<S: Simd, F: Dot<S>, const N: usize>(
    s: S,
    f: F,
    sums: &mut [S::V; N],
    column: S::V,
    b: *const f32,
) {
    for (j, sum) in sums.iter_mut().enumerate() {
        // SAFETY: passed on from the caller.
        *sum = f.dot(s, column, s.splat(unsafe { *b.add(j) }), *sum);
    }
}
