//! Tiles of few columns, of as many rows as a vector has lanes.
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
//! The additions to an element of C are those of other tiles, in their order: the bits are the same.
//! Of 5 to 8 columns 8 lanes hold all: there a column is a lane as in other tiles, and a tile has 8 rows for
//! a register block's 6, whose multiply-adds would wait for one another.

use super::format::{Dot, Format};
use super::micro::{self, Tile};
use crate::built::COMPACT;
use crate::simd::{MOST_LANES, Simd};

/// Most columns of such a tile, and the rows that it has.
#[derive(Clone, Copy)]
pub(crate) struct Narrow {
    rows: usize,
    cols: usize,
}

impl Narrow {
    /// Those of a format: none where a register block has as many rows as a vector has lanes.
    pub(crate) const fn of<S: Simd, F: Format<S>>() -> Self {
        let has_some = !COMPACT && !F::TILES && S::LANES > S::MR;
        Self { rows: S::LANES, cols: if has_some { 8 } else { 0 } }
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
            self.rows
        } else if left < most {
            left
        } else {
            most
        }
    }
}

/// `C[LANES x cols] (+)= A[LANES x kc] B[kc x NR]`.
///
/// # Safety
/// A is valid for `LANES` rows of `kc` adjacent words, B for `kc` rows of `NR`, C and, to accumulate, its
/// start for `LANES x cols`; `cols` is at most that of [`Narrow::of`].
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, F: Dot<S>>(s: S, f: F, t: &Tile, cols: usize, accumulate: bool) {
    debug_assert!(Narrow::of::<S, F>().cols > 0);
    if const { Narrow::of::<S, F>().cols == 0 } {
        return;
    }
    // SAFETY: passed on from the caller; a panel has columns of zeros behind those of B.
    unsafe {
        match cols {
            1 => one_by_one(s, t, &sums::<S, F, 1>(s, f, t), cols, accumulate),
            2 => one_by_one(s, t, &sums::<S, F, 2>(s, f, t), cols, accumulate),
            3..=4 => one_by_one(s, t, &sums::<S, F, 4>(s, f, t), cols, accumulate),
            // Half of a vector's lanes, or all of them: then a column to a lane wastes none.
            _ if S::LANES == 16 => by_rows(s, t, &sums::<S, F, 8>(s, f, t), cols, accumulate),
            _ => micro::tile::<S, F, _, 8, 1, true>(s, f, t, cols, accumulate, &mut ()),
        }
    }
}

/// Stores the first `cols` of the sums, an element after the other.
///
/// # Safety
/// As for [`tile`], of C and its start.
#[inline(always)]
unsafe fn one_by_one<S: Simd, const N: usize>(
    s: S,
    t: &Tile,
    sums: &[S::V; N],
    cols: usize,
    accumulate: bool,
) {
    for (j, &sum) in sums.iter().enumerate().take(cols) {
        let mut lanes = [0.0; MOST_LANES];
        // SAFETY: there is room for a vector of any instruction set; element (i, j) of C is inside it.
        unsafe {
            s.store(lanes.as_mut_ptr(), sum);
            for (i, &x) in lanes[..S::LANES].iter().enumerate() {
                let start = t.start.wrapping_add(i * t.start_row + j);
                *t.c.add(i * t.c_row + j) = if accumulate { x + *start } else { x };
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

/// The sums of the first `N` columns, a vector each.
///
/// # Safety
/// As for [`tile`], of A and B.
#[inline(always)]
unsafe fn sums<S: Simd, F: Dot<S>, const N: usize>(s: S, f: F, t: &Tile) -> [S::V; N] {
    debug_assert_eq!(t.b_row, S::NR);
    let mut sums = [s.splat(0.0); N];
    let (mut a, mut b) = (t.a, t.b);
    for _ in 0..t.kc / S::LANES {
        let mut square = [s.splat(0.0); MOST_LANES];
        // SAFETY: LANES words of each row of A and as many rows of B, as the caller promised.
        unsafe {
            for (i, line) in square[..S::LANES].iter_mut().enumerate() {
                *line = s.load(a.wrapping_add(i * t.a_row));
            }
            s.transpose(&mut square);
            columns(s, f, &mut sums, &square, b, S::LANES);
        }
        a = a.wrapping_add(S::LANES);
        b = b.wrapping_add(S::LANES * S::NR);
    }
    let rest = t.kc % S::LANES;
    if rest > 0 {
        let mut square = [s.splat(0.0); MOST_LANES];
        // SAFETY: as above, `rest` words and rows.
        unsafe {
            for (i, line) in square[..S::LANES].iter_mut().enumerate() {
                *line = s.load_first(a.wrapping_add(i * t.a_row), rest);
            }
            s.transpose(&mut square);
            columns(s, f, &mut sums, &square, b, rest);
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
