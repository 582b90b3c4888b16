//! Products by tiles of matrices (AMX): the driver of [`tiled`](super::tiled)'s micro-kernel.
//!
//! Tiles are multiplied so fast that what happens to their sums, on the way to C, would take longer than the
//! multiplication, and that a loop waits for lines of C and of the epilogue's operands more than for anything else. So
//! the vector units send one tile's sums through the epilogue while the next tile is multiplied, and lines of the tile
//! behind that are asked for meanwhile:
//!
//! ```text
//! for each block of rows of A                 brought into words in scratch, if they do not lie so
//!   for each block of KC of depth             (all of it at once for a C of bf16, whose sums have no place in C)
//!     for each group of 32 rows, for each panel of 32 columns; or, of a B that L2 has no room for, the other way round
//!       for each 32 of the depth
//!         multiply two by two tiles
//!         ask for some rows of C and of the epilogue's operand for the tile that comes next
//!         send some rows of the tile before through the epilogue, to C
//! send the last tile through the epilogue
//! ```
//!
//! Rows outermost, a group's rows of A stay in L1, and lines of C and of what lies beside it are met one after the other,
//! as the CPU expects it.
//!
//! What it gains, beside the driver that other formats have (Granite Rapids, two threads, in turns, time of a step's
//! operation, the reference's): with GELU 0.74, with its slope 0.63, others 0.82 to 0.97. Lines of the next panel are
//! asked for in pairs of different ones; the same ones twice, as loops of vectors do it, took more than it gave.

use super::fetch::{Ahead, Fetch, Near, Run};
use super::format::Format;
use super::kept::Halved;
use super::tiled::{Beside, TURNS, Tiled, multiply, near_lines};
use super::{KC, LINE, MAX_COLS, Place, ROWS, RawGemm, Sums, epilogue, is_lines, micro, pack};
use crate::amx::Tiles;
use crate::built::COMPACT;
use crate::elements::{Bf16, Elements, Floats};
use crate::simd::avx512::Avx512;
use core::ops::Range;

/// Rows of a tile of sums, columns being [`MAX_COLS`].
const MR: usize = <Tiled as Format<Avx512>>::MR;
/// Words of a part of B that stay in L2, beside rows of A and of C, while each group of rows goes through them:
/// 512 KiB. CPUs with tiles have 2 MiB. One of 5,000 columns, 2.5 MiB, took 1.7 times as long that way.
const STAYS: usize = 512 * 1024 / size_of::<f32>();
/// Columns up to which they are gone through panel by panel all the same: a step's products with 256 columns took 0.98 to
/// 1.13 times as long the other way.
const FEW_COLS: usize = 256;
/// How often with each 32 of the depth two lines of the next panel are asked for, while each group of rows goes through a
/// panel. While the first one goes through all, it is [`TURNS`] times (16 took 1.02 times as long with GELU as 8). If there is
/// one group alone nothing is asked for: it meets panels one after the other, as the CPU expects it.
const PANEL: usize = 5;
/// Groups of rows in which the 32 lines that go with each 32 of the depth have been asked for so.
const PANEL_GROUPS: usize = 32_usize.div_ceil(2 * PANEL);

/// Words of so many elements.
#[inline(always)]
fn words(k: usize) -> usize {
    <Tiled as Format<Avx512>>::words(k)
}

/// `C (+)= A B` of matrices that `halves` says are of bf16, with what is behind it.
///
/// # Safety
/// As for [`super::in_place`], with B packed in the format, and for [`kept::gemm`](super::kept::gemm).
#[inline(always)]
pub(crate) unsafe fn gemm(s: Avx512, f: Tiled, g: &RawGemm, halves: Halved) {
    // SAFETY: passed on from the caller.
    unsafe {
        if halves.c {
            by_blocks(s, f, f.kept(), g, halves);
        } else {
            by_blocks(s, f, Floats, g, halves);
        }
    }
}

/// [`gemm`] of a C whose elements `m` takes.
///
/// # Safety
/// As for [`gemm`].
#[inline(always)]
unsafe fn by_blocks<M: Elements<Avx512, Tiled>>(
    s: Avx512,
    f: Tiled,
    m: M,
    g: &RawGemm,
    halves: Halved,
) {
    let in_place = halves.a && are_lines(g);
    let mut buffers = [Sums::uninit(), Sums::uninit()];
    let [first, second] = &mut buffers;
    let mut behind = Behind {
        m,
        g,
        sums: first.as_mut_ptr(),
        free: second.as_mut_ptr(),
        at: Place { i: 0, j: 0, rows: 0, cols: 0 },
        done: 0,
        rows: MR,
        ahead: Ahead { near: Near::NONE, far: Run::none(g.b) },
        near: 0,
        far: 0,
    };
    let mut unit = f.unit();
    let mut first = 0;
    while first < g.m && g.n > 0 {
        // Rows of A that are words already need not be taken in blocks.
        let most = if in_place { g.m } else { ROWS };
        let rows = first..(first + most).min(g.m);
        let mut depth = 0;
        loop {
            let kc = if halves.c { g.k } else { KC.min(g.k - depth) };
            let of = Depth { depth, kc, accumulate: g.accumulate || depth > 0 };
            // SAFETY: rows and products are inside A, of which the place in scratch, or that where it lies, has
            // `kc` elements; the rest is passed on from the caller.
            unsafe {
                let a = if in_place {
                    (g.a.wrapping_add(first * (g.a_row / 2) + depth / 2), g.a_row / 2)
                } else {
                    bring(s, f, g, halves.a, rows.clone(), (depth, kc));
                    (g.scratch.cast_const(), words(kc))
                };
                behind.all(s, &mut unit, a, rows.clone(), &of);
            }
            depth += kc;
            if depth == g.k {
                break;
            }
        }
        first = rows.end;
    }
    // SAFETY: the last tile's sums are whole.
    unsafe { behind.finish(s) };
}

/// Whether rows of an A of bf16 are words for tiles as they lie: whole cache lines.
#[inline(always)]
fn are_lines(g: &RawGemm) -> bool {
    g.k.is_multiple_of(2 * LINE) && is_lines(g.a, g.a_row / 2)
}

/// Writes words of some rows of A to scratch: of elements from `depth` on.
///
/// # Safety
/// They are inside A, of bf16 if it is `half`, and scratch has room.
#[inline(always)]
unsafe fn bring(
    s: Avx512,
    f: Tiled,
    g: &RawGemm,
    half: bool,
    rows: Range<usize>,
    (depth, kc): (usize, usize),
) {
    for (i, row) in rows.enumerate() {
        let to = g.scratch.wrapping_add(i * words(kc));
        let at = row * g.a_row + depth * g.a_col;
        // SAFETY: passed on from the caller.
        unsafe {
            if half {
                let from = g.a.cast::<Bf16>().wrapping_add(at);
                pack::row(s, f, f.kept(), (from, g.a_col), kc, to);
            } else {
                pack::row(s, f, Floats, (g.a.wrapping_add(at), g.a_col), kc, to);
            }
        }
    }
}

/// A part of the inner dimension.
struct Depth {
    depth: usize,
    kc: usize,
    /// Whether C has the products before it, or what is to be added to.
    accumulate: bool,
}

/// The tile whose sums are behind, on their way to C, and what comes next.
struct Behind<'a, M> {
    m: M,
    g: &'a RawGemm,
    /// Its sums, and room for the next tile's.
    sums: *mut f32,
    free: *mut f32,
    at: Place,
    /// Its rows that are in C, and those that go there in a turn.
    done: usize,
    rows: usize,
    ahead: Ahead,
    /// Rows of near lines that are left.
    near: usize,
    /// How often far lines are asked for in a turn.
    far: usize,
}

impl<M: Elements<Avx512, Tiled>> Behind<'_, M> {
    /// All products of some rows of C with a part of the inner dimension; `a` is where their words lie, and how far apart
    /// those of two rows.
    ///
    /// # Safety
    /// As for [`gemm`].
    #[inline(always)]
    unsafe fn all(
        &mut self,
        s: Avx512,
        unit: &mut Tiles,
        (a, a_row): (*const f32, usize),
        rows: Range<usize>,
        of: &Depth,
    ) {
        let g = self.g;
        let kc = words(of.kc);
        self.rows = MR.div_ceil((kc / LINE).max(1));
        let is_last = of.depth + of.kc == g.k;
        // A C of bf16 is made of all of the depth at once.
        let is_through =
            size_of::<M::Element>() < size_of::<f32>() || is_last && !g.epilogue.is_none();
        let by_rows = g.n > FEW_COLS && kc * g.n <= STAYS;
        let mut at = Some(tile(&rows, g.n, rows.start, 0));
        while let Some(now) = at {
            at = next(&now, &rows, g.n, by_rows);
            let c = g.c.wrapping_add(now.i * g.c_row + now.j);
            let mut tile = micro::Tile {
                kc,
                a: a.wrapping_add((now.i - rows.start) * a_row),
                a_row,
                a_col: 1,
                b: g.b.wrapping_add(now.j / MAX_COLS * g.b_panel + words(of.depth) * MAX_COLS),
                b_row: MAX_COLS,
                c,
                c_row: g.c_row,
                start: c,
                start_row: g.c_row,
                stream: false,
            };
            if is_through {
                (tile.c, tile.c_row) = (self.free, MAX_COLS);
            }
            self.ask(&tile, &now, at.as_ref().filter(|_| is_last), &rows, by_rows);
            // SAFETY: the tile is inside C, or its sums go to a buffer that holds so many; C has the products before, for
            // only sums that are whole are on their way. What is ahead is ours.
            unsafe {
                multiply(s, unit, &tile, (now.rows, now.cols), of.accumulate, self);
                if is_through {
                    self.finish(s);
                    core::mem::swap(&mut self.sums, &mut self.free);
                    (self.at, self.done) = (now, 0);
                }
            }
        }
    }

    /// Chooses what is asked for during the tile at `now`, one of `rows`: lines of C and of the epilogue for the next one, if
    /// these are the last products, and of what is ahead of the product or of the next panel.
    #[inline(always)]
    fn ask(
        &mut self,
        tile: &micro::Tile,
        now: &Place,
        next: Option<&Place>,
        rows: &Range<usize>,
        by_rows: bool,
    ) {
        let g = self.g;
        if COMPACT {
            return;
        }
        self.ahead.near = match next {
            Some(next) => {
                epilogue::ahead(&g.epilogue, g.c.cast_const().cast::<M::Element>(), g.c_row, next)
            }
            None => Near::NONE,
        };
        self.near = self.ahead.near_turns();
        if g.ahead.is_some() {
            self.far = TURNS;
            let none = Run::none(tile.b);
            let turns = <Tiled as Format<Avx512>>::turns(tile.kc);
            // SAFETY: passed on from who made the product.
            unsafe { g.fetch_ahead::<Avx512, Tiled>(&mut self.ahead, now, turns, none) };
            return;
        }
        let above = now.i - rows.start;
        if above == 0 {
            self.ahead.far = Run::in_pairs(tile.b.wrapping_add(g.b_panel));
        }
        self.far = if rows.len() <= MR || now.j + now.cols == g.n {
            0
        } else if by_rows {
            if above == 0 { TURNS } else { 0 }
        } else if above < PANEL_GROUPS * MR {
            PANEL
        } else {
            0
        };
    }

    /// Sends up to so many rows to C.
    ///
    /// # Safety
    /// The sums are whole.
    #[inline(always)]
    unsafe fn send(&mut self, s: Avx512, rows: usize) {
        let rows = rows.min(self.at.rows - self.done);
        let at = Place { i: self.at.i + self.done, rows, ..self.at };
        let c = self.g.c.cast::<M::Element>().wrapping_add(at.i * self.g.c_row + at.j);
        let sums = self.sums.wrapping_add(self.done * MAX_COLS);
        self.done += rows;
        // SAFETY: passed on from the caller: rows of the buffer and of C.
        unsafe {
            epilogue::apply::<Avx512, Tiled, M>(
                s,
                self.m,
                &self.g.epilogue,
                sums,
                c,
                self.g.c_row,
                &at,
            );
        }
    }

    /// Sends what is left.
    ///
    /// # Safety
    /// As for [`Behind::send`].
    #[inline(always)]
    unsafe fn finish(&mut self, s: Avx512) {
        while self.done < self.at.rows {
            // SAFETY: passed on from the caller.
            unsafe { self.send(s, MR) };
        }
    }
}

impl<M: Elements<Avx512, Tiled>> Beside for Behind<'_, M> {
    #[inline(always)]
    fn lines(&mut self, s: Avx512) {
        near_lines(s, &mut self.ahead, &mut self.near);
        // Numbers that are known when compiled: no loops.
        if self.far > 0 {
            for _ in 0..PANEL {
                self.ahead.far(s);
            }
        }
        if self.far > PANEL {
            for _ in PANEL..TURNS {
                self.ahead.far(s);
            }
        }
    }
    #[inline(always)]
    fn turns(&self) -> usize {
        (self.at.rows - self.done).div_ceil(self.rows)
    }
    /// # Safety
    /// As for [`Behind::send`].
    #[inline(always)]
    unsafe fn turn(&mut self, s: Avx512) {
        // SAFETY: passed on from the caller.
        unsafe { self.send(s, self.rows) };
    }
}

/// The tile at row `i` and column `j`, of so many rows of C and its first `n` columns.
#[inline(always)]
fn tile(rows: &Range<usize>, n: usize, i: usize, j: usize) -> Place {
    Place { i, j, rows: MR.min(rows.end - i), cols: MAX_COLS.min(n - j) }
}

/// The tile behind one.
#[inline(always)]
fn next(at: &Place, rows: &Range<usize>, n: usize, by_rows: bool) -> Option<Place> {
    let (down, right) = (at.i + at.rows, at.j + at.cols);
    if by_rows && right < n {
        Some(tile(rows, n, at.i, right))
    } else if by_rows && down < rows.end {
        Some(tile(rows, n, down, 0))
    } else if !by_rows && down < rows.end {
        Some(tile(rows, n, down, at.j))
    } else if !by_rows && right < n {
        Some(tile(rows, n, rows.start, right))
    } else {
        None
    }
}
