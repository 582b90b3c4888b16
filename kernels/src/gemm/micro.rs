//! The micro-kernel: an `M x NR` tile of sums held in registers.
//!
//! Each step of the inner dimension loads one row of a panel and
//! broadcasts `M` elements of A: `M * NR / LANES` multiply-adds for
//! `M + NR / LANES` loads, which on 6x16 with AVX2 leaves the loads off the
//! critical path.
//!
//! Elements of A and B are words of a [`Format`]; `kc` counts words.

use super::fetch::Fetch;
use super::format::Dot;
use crate::built::COMPACT;
use crate::simd::{Simd, load_up_to, store_up_to};
use core::hint::black_box;

/// One tile's operands. A as in `RawGemm`; B is one panel of `NR` columns, or as many of a matrix.
pub(crate) struct Tile {
    pub(crate) kc: usize,
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    pub(crate) a_col: usize,
    pub(crate) b: *const f32,
    /// Words from a row of B to the next: `NR`, unless columns of A lie apart (`a_col != 1`) and code
    /// need not be [`COMPACT`].
    pub(crate) b_row: usize,
    /// Where the result goes.
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    /// What the result adds to when it accumulates: C.
    pub(crate) start: *const f32,
    pub(crate) start_row: usize,
    /// Store whole vectors of C by [`Simd::stream`]. Who sets it promises that C and its rows are
    /// whole cache lines from here on, that nothing is accumulated, and a [`Simd::fence`].
    pub(crate) stream: bool,
}

/// One tile: a whole one here, at the edges of C by [`Dot::PARTS`], which asks for no lines.
///
/// # Safety
/// A is valid for `rows x kc` words, B for `kc` rows of `NR`, C and, to
/// accumulate, its start for `rows x cols`; `b_row` is as [`Tile`] says;
/// `rows <= MR <= 12`, `cols <= NR`; `a_col == 1` or `a_row == 1`. Or a tile of [`super::narrow`].
#[inline(always)]
pub(crate) unsafe fn run<S: Simd, F: Dot<S>>(
    s: S,
    f: F,
    t: &Tile,
    (rows, cols): (usize, usize),
    accumulate: bool,
    fetch: &mut impl Fetch,
) {
    // The blocks that there are arms for: any other one would be read and written beyond its columns.
    const {
        assert!(match (S::MR, S::NR / S::LANES) {
            (4, 4) | (6 | 12, 2) => true,
            (4, 2) => cfg!(target_arch = "wasm32"),
            _ => false,
        });
    }
    if COMPACT {
        // SAFETY: passed on from the caller.
        return unsafe { F::PARTS.edge::<S, F>(t, rows, cols)(t, rows, cols, accumulate) };
    }
    // SAFETY: passed on from the caller.
    unsafe {
        if rows < S::MR || cols < S::NR {
            F::PARTS.edge::<S, F>(t, rows, cols)(t, rows, cols, accumulate);
        } else if t.a_col == 1 {
            whole::<S, F, _, true>(s, f, t, accumulate, fetch);
        } else {
            whole::<S, F, _, false>(s, f, t, accumulate, fetch);
        }
    }
}

/// A whole register block. What a set of instructions has not is left out before there is code of it
/// (`if const`), here and below: for the optimiser to find that out of each arm took longer than all the rest.
///
/// # Safety
/// As for [`tile`] of `MR` rows and `NR` columns.
#[inline(always)]
pub(super) unsafe fn whole<S: Simd, F: Dot<S>, T: Fetch, const ALONG: bool>(
    s: S,
    f: F,
    t: &Tile,
    accumulate: bool,
    fetch: &mut T,
) {
    // SAFETY: passed on from the caller; each arm is for its block.
    unsafe {
        if const { S::MR == 4 && S::NR == 2 * S::LANES } {
            tile::<S, F, T, 4, 2, ALONG>(s, f, t, S::NR, accumulate, fetch);
        } else if const { S::MR == 4 } {
            tile::<S, F, T, 4, 4, ALONG>(s, f, t, S::NR, accumulate, fetch);
        } else if const { S::MR == 6 } {
            tile::<S, F, T, 6, 2, ALONG>(s, f, t, S::NR, accumulate, fetch);
        } else {
            tile::<S, F, T, 12, 2, ALONG>(s, f, t, S::NR, accumulate, fetch);
        }
    }
}

/// `C[M x cols] (+)= A[M x kc] B[kc x NR]`, of whose columns the first `V` vectors.
///
/// # Safety
/// As for [`run`], with `rows == M`, `cols <= V * LANES`, and `a_col == 1` if `ALONG`, otherwise `a_row == 1`.
#[inline(always)]
pub(super) unsafe fn tile<
    S: Simd,
    F: Dot<S>,
    T: Fetch,
    const M: usize,
    const V: usize,
    const ALONG: bool,
>(
    s: S,
    f: F,
    t: &Tile,
    cols: usize,
    accumulate: bool,
    fetch: &mut T,
) {
    debug_assert!(V * S::LANES <= S::NR && cols <= V * S::LANES && M <= 16);
    debug_assert!(t.a_row == 1 || M == 1 || ALONG);
    debug_assert!(t.b_row == S::NR || !ALONG && !COMPACT);
    let mut sums = [[s.splat(0.0); V]; M];
    let turns = t.kc / UNROLL;
    let mut from = Operands::<M, ALONG>::new(t);
    // SAFETY: kc steps of one column of A and one row of B each, as the caller promised.
    unsafe {
        if const { T::HAS_NEAR } {
            let near = fetch.near_turns().min(turns);
            let late = if near == 0 { 0 } else { LATE.min(turns - near) };
            let early = near.min(turns - near - late);
            for _ in 0..early {
                fetch.early(s);
                fetch.far(s);
                from.turn(s, f, &mut sums);
            }
            for _ in early + near + late..turns {
                fetch.far(s);
                from.turn(s, f, &mut sums);
            }
            for _ in 0..near {
                fetch.near(s);
                fetch.far(s);
                from.turn(s, f, &mut sums);
            }
            for _ in 0..late {
                fetch.far(s);
                from.turn(s, f, &mut sums);
            }
        } else {
            for _ in 0..turns {
                fetch.far(s);
                from.turn(s, f, &mut sums);
            }
        }
        for _ in 0..t.kc % UNROLL {
            from.step(s, f, &mut sums);
        }
    }
    // SAFETY: C is valid for M rows of `cols` floats, aligned if they are streamed: see `Tile`.
    unsafe {
        if t.stream && cols == V * S::LANES {
            for (i, sum) in sums.iter().enumerate() {
                for (v, &lanes) in sum.iter().enumerate() {
                    s.stream(t.c.add(i * t.c_row + v * S::LANES), lanes);
                }
            }
        } else if cols == V * S::LANES {
            for (i, sum) in sums.iter().enumerate() {
                for (v, &lanes) in sum.iter().enumerate() {
                    let c = t.c.add(i * t.c_row + v * S::LANES);
                    let start = t.start.wrapping_add(i * t.start_row + v * S::LANES);
                    let x = if accumulate { s.add(lanes, s.load(start)) } else { lanes };
                    s.store(c, x);
                }
            }
        } else {
            // One column of vectors after the other, by its number: what is indexed lives in memory.
            edge::<S, M, V, 0>(s, t, &sums, cols, accumulate);
            edge::<S, M, V, 1>(s, t, &sums, cols, accumulate);
            edge::<S, M, V, 2>(s, t, &sums, cols, accumulate);
            edge::<S, M, V, 3>(s, t, &sums, cols, accumulate);
        }
    }
}

/// Stores vector `AT` of each row of a tile at the edge of C, which has `cols` columns; nothing if there is
/// none, or none of it is inside C.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn edge<S: Simd, const M: usize, const V: usize, const AT: usize>(
    s: S,
    t: &Tile,
    sums: &[[S::V; V]; M],
    cols: usize,
    accumulate: bool,
) {
    if AT >= V || cols <= AT * S::LANES {
        return;
    }
    let left = (cols - AT * S::LANES).min(S::LANES);
    for (i, sum) in sums.iter().enumerate() {
        // SAFETY: `left` floats of a row of C are inside it.
        unsafe {
            let c = t.c.add(i * t.c_row + AT * S::LANES);
            let start = t.start.wrapping_add(i * t.start_row + AT * S::LANES);
            let lanes = sum[AT];
            let x = if accumulate { s.add(lanes, load_up_to(s, start, left)) } else { lanes };
            store_up_to(s, c, x, left);
        }
    }
}

/// Turns after the last near line is asked for.
///
/// The reference workload's product with the slope of GELU took 1.10 times as long with 8 turns and
/// nothing asked for early, and 1.16 with all of it at the start (Granite Rapids, AVX-512, f32, one
/// thread, in turns).
const LATE: usize = 2;
/// Steps of the inner dimension in a turn of the loop, between two branches.
pub(super) const UNROLL: usize = 4;

/// Rows that are found from one pointer: it, and once and twice their distance behind it, are what
/// addresses are made of. So a few pointers find many rows and stay in registers. With a pointer for
/// each of 12 rows, most of them loaded again in each turn, products took 1.08 of the time (Granite
/// Rapids, f32 from caches, one thread and two, in turns).
const GROUP: usize = 3;
/// Rows of A along which there are as many registers as pointers.
const FEW: usize = 6;

/// Where a tile's loop is in A and B; `ALONG` says that elements of a row of A are adjacent,
/// otherwise those of a column are.
///
/// Of rows that are adjacent the first one's pointer will do: with one for each the compiler
/// loaded three steps' elements before the first multiply-add, and put most of them on the stack.
struct Operands<const M: usize, const ALONG: bool> {
    /// The first row of each group.
    rows: [*const f32; M],
    /// Words from a row of a group to the next.
    apart: usize,
    /// Words from an element of a row to the next.
    along: usize,
    b: *const f32,
    /// Words from a row of B to the next, if A's rows are not adjacent.
    b_row: usize,
}

impl<const M: usize, const ALONG: bool> Operands<M, ALONG> {
    /// Rows of a group.
    const GROUP: usize = match (ALONG, M > FEW) {
        (false, _) => M,
        (true, true) => GROUP,
        (true, false) => 1,
    };

    #[inline(always)]
    fn new(t: &Tile) -> Self {
        let (apart, along) = if ALONG { (t.a_row, 1) } else { (1, t.a_col) };
        let mut rows = [t.a; M];
        for (i, row) in rows[..M.div_ceil(Self::GROUP)].iter_mut().enumerate() {
            // Hidden from the optimiser, which would keep one pointer and add the distance
            // five times a step: a chain as long as the multiply-adds themselves.
            *row = match (ALONG, Self::GROUP) {
                (false, _) => t.a,
                (true, 1) => black_box(t.a.wrapping_add(i * apart)),
                (true, _) => hidden(t.a.wrapping_add(i * Self::GROUP * apart)),
            };
        }
        Self { rows, apart, along, b: t.b, b_row: t.b_row }
    }

    /// Where each row goes on.
    #[inline(always)]
    fn rows(&self) -> [*const f32; M] {
        let mut rows = self.rows;
        for (i, row) in rows.iter_mut().enumerate() {
            let first = self.rows[i / Self::GROUP];
            *row = first.wrapping_add(i % Self::GROUP * self.apart);
        }
        rows
    }

    /// Goes on by `steps` steps.
    #[inline(always)]
    fn advance<S: Simd>(&mut self, steps: usize) {
        for row in &mut self.rows[..M.div_ceil(Self::GROUP)] {
            let next = row.wrapping_add(steps * self.along);
            *row = if ALONG && Self::GROUP > 1 { hidden(next) } else { next };
        }
        let b_row = if ALONG || COMPACT { S::NR } else { self.b_row };
        self.b = self.b.wrapping_add(steps * b_row);
    }

    /// One turn: [`UNROLL`] steps.
    ///
    /// # Safety
    /// As many elements of the rows of A and rows of B are valid.
    #[inline(always)]
    unsafe fn turn<S: Simd, F: Dot<S>, const V: usize>(
        &mut self,
        s: S,
        f: F,
        sums: &mut [[S::V; V]; M],
    ) {
        // Steps that go on one by one keep the distances between columns out of the addresses.
        let at_once = if ALONG { UNROLL } else { 1 };
        for _ in 0..UNROLL / at_once {
            let rows = self.rows();
            for u in 0..at_once {
                // SAFETY: passed on from the caller.
                unsafe { step(s, f, sums, &rows, u, self.b.wrapping_add(u * S::NR)) };
            }
            self.advance::<S>(at_once);
        }
    }

    /// One step of the inner dimension.
    ///
    /// # Safety
    /// An element of the rows of A and a row of B are valid.
    #[inline(always)]
    unsafe fn step<S: Simd, F: Dot<S>, const V: usize>(
        &mut self,
        s: S,
        f: F,
        sums: &mut [[S::V; V]; M],
    ) {
        // SAFETY: passed on from the caller.
        unsafe { step(s, f, sums, &self.rows(), 0, self.b) };
        self.advance::<S>(1);
    }
}

/// The same pointer in a register, from which the optimiser finds no other.
#[inline(always)]
#[cfg_attr(
    target_arch = "x86_64",
    expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read through it")
)]
fn hidden(p: *const f32) -> *const f32 {
    #[cfg(target_arch = "x86_64")]
    {
        let mut p = p;
        // SAFETY: there is no instruction.
        unsafe {
            core::arch::asm!(
                "/* {0} */",
                inout(reg) p,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        p
    }
    #[cfg(not(target_arch = "x86_64"))]
    black_box(p)
}

/// One step of the inner dimension: `sums += A[.., p] B[p, ..]`.
///
/// # Safety
/// `rows` point to rows of A of which element `at` is valid, `b` to `NR` floats.
#[inline(always)]
pub(super) unsafe fn step<S: Simd, F: Dot<S>, const M: usize, const V: usize>(
    s: S,
    f: F,
    sums: &mut [[S::V; V]; M],
    rows: &[*const f32; M],
    at: usize,
    b: *const f32,
) {
    let mut lanes = [s.splat(0.0); V];
    // SAFETY: passed on from the caller.
    unsafe {
        for (v, lanes) in lanes.iter_mut().enumerate() {
            *lanes = s.load(b.add(v * S::LANES));
        }
        for (sum, row) in sums.iter_mut().zip(rows) {
            let x = s.splat(*row.add(at));
            for (sum, lanes) in sum.iter_mut().zip(&lanes) {
                *sum = f.dot(s, x, *lanes, *sum);
            }
        }
    }
}
