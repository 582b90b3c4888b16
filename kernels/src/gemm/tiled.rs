//! Products of pairs of bf16 in the tile registers of AMX (`tdpbf16ps`).
//!
//! A tile register holds 16 rows of 64 bytes. One instruction adds to 16 x 16 sums the
//! products of 16 rows of 32 elements of A, as they lie, with 16 rows of 16 words of B, as
//! panels hold them: the words are those of [`Paired`]. The register block is two by two
//! tiles of sums:
//!
//! ```text
//! sums of 32 x 32 = 0, or where accumulated what the sums start from
//! for each 16 words of the inner dimension
//!   load 2 tiles of A (16 rows each) and 2 of B (16 columns each)
//!   sums[i][j] += A[i] B[j], for each of the four
//! store the sums: to C where its rows are whole cache lines, or else (and where they are
//!   streamed) by way of a buffer
//! ```
//!
//! Fewer rows take tiles of fewer rows, which is a matter of configuring the tile registers;
//! fewer columns a panel's padding, and the buffer. An inner dimension that is no multiple of
//! 32 has zeros behind it in both operands.
//!
//! **Rounding.** For each element of C the instruction adds up the 16 products of lower halves of
//! words, and those of upper halves, each by fused multiply-adds from zero on in the order of
//! the words; then the two sums; then that to the element. It rounds to nearest even,
//! takes denormals for zero and gives none (Intel SDM, volume 2, TDPBF16PS). So an element's
//! bits depend on where the inner dimension is cut into 32s alone, and differ from those of
//! `vdpbf16ps`, which adds every product to the element: no product of this format may
//! use that.
//!
//! Tiles that do not begin at cache lines load eight times slower (measured on Granite Rapids:
//! 30 ns instead of 3.5), so rows of A are copied where they do not (`are_lines` of [`tiles`](super::tiles)).
//!
//! While tiles are multiplied, the vector units are idle: [`Beside`].

use super::fetch::Fetch;
use super::format::{Format, Paired};
use super::micro::Tile;
use super::pack::PackFn;
use super::{LINE, MAX_COLS, Sums, is_lines};
use crate::amx::{Shape, Tiles};
use crate::elements::Halves;
use crate::elementwise::{copy_rows, stream_rows};
use crate::simd::avx512::Avx512;
use core::arch::x86_64::__m512;

/// Pairs of bf16 for tiles: proof that the CPU and the system run AMX-BF16.
#[derive(Clone, Copy)]
pub(crate) struct Tiled(Paired);

impl Tiled {
    /// # Safety
    /// The CPU has AMX-TILE, AMX-BF16 and what [`Paired`] stands for, and the system lets
    /// the program use tiles and saves them.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        // SAFETY: passed on from the caller.
        Self(unsafe { Paired::assume() })
    }
}

/// How often far lines are asked for with each 32 of the inner dimension, two at a time or one.
pub(super) const TURNS: usize = 10;
/// Rows of near ones: all, with [`super::KC`].
const NEAR: usize = 4;

/// Rows of a tile.
const HIGH: usize = 16;

impl Format<Avx512> for Tiled {
    const DEPTH: usize = 2;
    const MR: usize = 2 * HIGH;
    const TILES: bool = true;
    const PACK_B: PackFn = crate::shells::amx_bf16::PACK_B;
    type Kept = Halves;
    type Unit = Tiles;

    #[inline(always)]
    fn turns(kc: usize) -> usize {
        kc / LINE * TURNS
    }

    #[inline(always)]
    fn kept(self) -> Halves {
        Halves(self.0)
    }

    #[inline(always)]
    fn unit(self) -> Tiles {
        // SAFETY: the token stands for AMX.
        unsafe { Tiles::new() }
    }

    #[inline(always)]
    unsafe fn multiply(
        self,
        s: Avx512,
        unit: &mut Tiles,
        t: &Tile,
        size: (usize, usize),
        accumulate: bool,
        fetch: &mut impl Fetch,
    ) {
        let near = fetch.near_turns();
        // SAFETY: passed on from the caller; to ask for lines wants nothing.
        unsafe { multiply(s, unit, t, size, accumulate, &mut Asking { fetch, near }) }
    }

    #[inline(always)]
    fn join(self, s: Avx512, low: __m512, high: __m512) -> __m512 {
        self.0.join(s, low, high)
    }
    #[inline(always)]
    fn fold(self, s: Avx512, first: __m512, second: __m512) -> __m512 {
        self.0.fold(s, first, second)
    }
    #[inline(always)]
    fn rounded(self, s: Avx512, x: __m512) -> __m512 {
        Format::rounded(self.0, s, x)
    }
    #[inline(always)]
    fn join_one(low: f32, high: f32) -> f32 {
        Paired::join_one(low, high)
    }
    #[inline(always)]
    unsafe fn contiguous(self, s: Avx512, src: *const f32) -> __m512 {
        // SAFETY: passed on from the caller.
        unsafe { self.0.contiguous(s, src) }
    }
}

/// What a thread does beside each 32 of the inner dimension, whose products wait for one another.
pub(super) trait Beside {
    /// Asks for lines.
    fn lines(&mut self, s: Avx512);
    /// Times there is more to do.
    fn turns(&self) -> usize;
    /// A part of that.
    ///
    /// # Safety
    /// As who made the value says.
    unsafe fn turn(&mut self, s: Avx512);
}

/// Asks for lines.
struct Asking<'a, F> {
    fetch: &'a mut F,
    /// Rows of near ones that are left.
    near: usize,
}

impl<F: Fetch> Beside for Asking<'_, F> {
    #[inline(always)]
    fn turns(&self) -> usize {
        0
    }
    #[inline(always)]
    unsafe fn turn(&mut self, _: Avx512) {}
    #[inline(always)]
    fn lines(&mut self, s: Avx512) {
        near_lines(s, self.fetch, &mut self.near);
        for _ in 0..TURNS {
            self.fetch.far(s);
        }
    }
}

/// Asks for some near rows, of those that are left.
#[inline(always)]
pub(super) fn near_lines(s: Avx512, fetch: &mut impl Fetch, left: &mut usize) {
    if *left > 0 {
        for _ in 0..NEAR {
            fetch.near(s);
        }
        *left = left.saturating_sub(NEAR);
    }
}

/// One tile of sums.
///
/// # Safety
/// As for [`Format::multiply`], and for a turn of what is done beside it.
#[inline(always)]
pub(super) unsafe fn multiply(
    s: Avx512,
    unit: &mut Tiles,
    t: &Tile,
    (rows, cols): (usize, usize),
    accumulate: bool,
    beside: &mut impl Beside,
) {
    debug_assert!(t.a_col == 1 || (t.a_col, t.a_row) == (2 * HIGH, LINE));
    debug_assert!(t.kc.is_multiple_of(LINE));
    let mut buffer = Sums::uninit();
    let held = buffer.as_mut_ptr();
    let whole = cols == MAX_COLS;
    unit.shape(Shape { upper: rows.min(HIGH), lower: rows.saturating_sub(HIGH) });
    // SAFETY: the buffer holds 32 rows of 32; the rest is passed on from the caller.
    unsafe {
        let start = if !accumulate {
            None
        } else if whole && is_lines(t.start, t.start_row) {
            Some((t.start, t.start_row))
        } else {
            copy_rows(s, (t.start, t.start_row), (held, MAX_COLS), (rows, cols));
            Some((held.cast_const(), MAX_COLS))
        };
        let direct = whole && !t.stream && is_lines(t.c, t.c_row);
        let to = if direct { (t.c, t.c_row) } else { (held, MAX_COLS) };
        if rows > HIGH {
            block::<true>(s, unit, t, start, to, beside);
        } else {
            block::<false>(s, unit, t, start, to, beside);
        }
        if t.stream && cols.is_multiple_of(LINE) {
            stream_rows(s, (held, MAX_COLS), (t.c, t.c_row), (rows, cols));
        } else if !direct {
            copy_rows(s, (held, MAX_COLS), (t.c, t.c_row), (rows, cols));
        }
    }
}

/// The products of one block, from the sums at `start` to those at `to`; `TALL` if it has
/// lower tiles.
///
/// # Safety
/// The tiles have the shape of the block; A is valid for its rows of `kc` words, their lines `a_col` lines apart, B for `kc` rows
/// of 32, both places for the block's rows of 32 floats. And as for a turn of what is done beside it.
#[inline(always)]
unsafe fn block<const TALL: bool>(
    s: Avx512,
    tiles: &mut Tiles,
    t: &Tile,
    start: Option<(*const f32, usize)>,
    (to, to_row): (*mut f32, usize),
    beside: &mut impl Beside,
) {
    // SAFETY: passed on from the caller: the second column of tiles is 16 words on, the
    // second row 16 rows.
    unsafe {
        if let Some((start, row)) = start {
            tiles.load::<0>(start, row);
            tiles.load::<1>(start.add(LINE), row);
            if TALL {
                tiles.load::<2>(start.add(HIGH * row), row);
                tiles.load::<3>(start.add(HIGH * row + LINE), row);
            }
        } else {
            tiles.zero::<0>();
            tiles.zero::<1>();
            if TALL {
                tiles.zero::<2>();
                tiles.zero::<3>();
            }
        }
        debug_assert_eq!(t.b_row, MAX_COLS);
        let turns = t.kc / LINE;
        // Loops apart: one that does nothing else has no other loops in it.
        let some = beside.turns().min(turns);
        for turn in 0..some {
            step::<TALL>(tiles, t, turn);
            beside.lines(s);
            beside.turn(s);
        }
        for turn in some..turns {
            step::<TALL>(tiles, t, turn);
            beside.lines(s);
        }
        tiles.store::<0>(to, to_row);
        tiles.store::<1>(to.add(LINE), to_row);
        if TALL {
            tiles.store::<2>(to.add(HIGH * to_row), to_row);
            tiles.store::<3>(to.add(HIGH * to_row + LINE), to_row);
        }
    }
}

/// The products with the `turn`th 32 of the inner dimension; `TALL` if there are lower tiles.
///
/// # Safety
/// As for [`block`], whose sums the tiles hold.
#[inline(always)]
unsafe fn step<const TALL: bool>(tiles: &mut Tiles, t: &Tile, turn: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        let a = t.a.add(turn * LINE * t.a_col);
        let b = t.b.add(turn * LINE * MAX_COLS);
        tiles.load::<4>(a, t.a_row);
        tiles.load::<6>(b, MAX_COLS);
        tiles.dot::<0, 4, 6>();
        tiles.load_right::<7>(b, MAX_COLS);
        tiles.dot::<1, 4, 7>();
        if TALL {
            tiles.load::<5>(a.add(HIGH * t.a_row), t.a_row);
            tiles.dot::<2, 5, 6>();
            tiles.dot::<3, 5, 7>();
        }
    }
}
