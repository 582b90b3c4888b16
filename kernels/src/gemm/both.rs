//! Products neither of whose operands is packed beforehand: weight gradients.
//!
//! `dW = X^T dY` sums over all tokens, in blocks of `KC` of them, in their fixed order. A step of a tile
//! wants some adjacent elements of a token's row of either, so floats are read where they lie: a block
//! of both is asked for into L2 while the one before is multiplied, and a step's three or four lines come from
//! there while it waits for its multiply-adds. Operands that have to become other words, whose
//! rows would drive one another out of the cache, or which this CPU had rather pack, are packed into scratch: of A
//! a block, of B one panel after the other, or a few at a time where they are narrow or for tiles, right before they are
//! multiplied, so that they all go through the same 32 to 128 KiB. The gradient of a bias, which is the sum of `dY`'s rows, is
//! made of the same blocks, of each group right before it is packed: its lines have been asked for by then.
//!
//! To pack floats as well, all of a block at once, took 9 % of a gradient's time and made the loop 7 % faster: without
//! it gradients of weights have 1.05 to 1.10 of the speed (Zen 5, AVX-512, one thread and two, 256 to 3,072 columns of
//! 256 to 4,096 tokens, in turns), with AVX2 and AVX 0.98 to 1.06, scalar ones 0.93 to 1.09. A Granite Rapids Xeon, with
//! twice as many multiply-adds a cycle, waits for those lines: with packing the reference's have 1.07 to 1.6 times the
//! speed (AVX-512, one thread, in huge pages; AVX2, which packs most of them anyway for how far apart their rows are, 1.00
//! to 1.01, the head's 1.5), 1.01 to 1.03 of it for panels in turn, and 1.02 for asking for each while the one before is
//! multiplied, rather than for all of a block. Groups of panels are told of at [`GROUP`].

use super::fetch::{Ahead, Grid, Near, Run};
use super::format::Format;
use super::pack::{pack_a, packed_a_len, packed_b_len};
use super::{ColumnSums, KC, LINE, RawGemm, is_lines, micro};
use crate::built::COMPACT;
use crate::elements::RawOperand;
use crate::footprint::{Footprint, least, some};
use crate::simd::Simd;

/// Floats of scratch for an `m x n` result of `k` products each: a block of A, and a panel of B or a group of them, unless
/// they lie as they are to be.
pub(crate) const fn scratch_len(
    f: Footprint,
    (m, a_lies): (usize, bool),
    (n, b_lies): (usize, bool),
    k: usize,
) -> Option<usize> {
    let words = f.words(least(KC, k));
    let m = if a_lies { 0 } else { m };
    let n = least(n - there(f, n, b_lies), group(f));
    some!(packed_a_len(m, words, f.mr)).checked_add(some!(packed_b_len(words, n, f.nr)))
}

/// Columns of B that are packed at a time: panels for tiles in groups, and those of a line where x86-64's floats may be
/// packed; others one by one.
const fn group(f: Footprint) -> usize {
    if COMPACT {
        f.nr
    } else if f.tiles {
        GROUP_OF_TILES
    } else if f.may_pack && f.nr == LINE {
        GROUP
    } else {
        f.nr
    }
}

/// Columns of a group of panels of a line: of each of `KC` rows some adjacent lines are read, not one.
///
/// With AVX2 gradients of the reference's weights of 768 and 1,024 columns have 1.05 times the speed that they have with
/// panels packed one by one, those of 256 columns 0.99 to 1.0; with AVX all of them 0.99 to 1.02. Panels of two lines, with
/// AVX-512, two or eight at a time, have 0.96 to 0.98 (Granite Rapids, one thread, in turns). AMD's CPUs, on which rows
/// that are [`CROWDED`] go through groups too, were not timed.
const GROUP: usize = 4 * LINE;
/// The same for tiles, which are multiplied faster than lines come that lie far apart: of each row 512 bytes of bf16. One
/// panel at a time gradients of the reference's weights take 1.0 to 1.15 of the time, 2 or 4 panels 0.96 to 1.17, 512
/// columns 0.98 to 1.07 (Granite Rapids, one thread, in turns).
const GROUP_OF_TILES: usize = 8 * 32;

/// Columns of B that are read where they lie: whole panels. The last one is filled up with zeros.
const fn there(f: Footprint, n: usize, lies: bool) -> usize {
    // Columns of a panel are a power of two: this is a multiple of them without a division.
    if lies { n & !(f.nr - 1) } else { 0 }
}

/// Whether A need not be packed, whose columns are adjacent words so far apart. If rows are adjacent as well, they are
/// for another kind of tile.
pub(crate) const fn a_lies(f: Footprint, col: usize) -> bool {
    col != 1 && lies(f, col)
}

/// Whether words that are adjacent, in rows so many words apart, need not be packed.
pub(crate) const fn lies(f: Footprint, row: usize) -> bool {
    f.plain && !COMPACT && (f.nr > LINE || !row.is_multiple_of(CROWDED))
}

/// Whether A and B need not be packed. Kernels that pack
/// ([`Kernels::with_packing`](crate::Kernels::with_packing)) do so all the same.
#[inline(always)]
pub(crate) fn lying(f: Footprint, a: RawOperand, b: RawOperand) -> (bool, bool) {
    (a.row == 1 && a_lies(f, a.col), b.col == 1 && lies(f, b.row))
}

/// Words between rows that drive one another out of L1: where they are a multiple of 1 KiB apart, `KC`
/// rows meet in at most a quarter of its sets. Panels of more than a line have vectors of one, which
/// wait for the multiply-adds anyway; shorter ones wait for L2 (Zen 5, one thread, rows 4 KiB apart, the speed of packing
/// first: AVX-512 1.02 to 1.05, AVX2 0.70 to 0.73, AVX 0.73 to 0.75; 2 KiB 0.91 to 0.96, 1 KiB 0.97).
const CROWDED: usize = 1024 / size_of::<f32>();

/// `C (+)= A B` with `a` an `m x k` and `b` a `k x n` matrix (those of `g` are ignored).
///
/// # Safety
/// As for [`super::in_place`], with `g.scratch` valid for [`scratch_len`] floats of operands that are read where they lie
/// as `g.lies` has it, which only those are that are [`lying`]. Halves are
/// operands of a format that keeps them. If sums are wanted, their kernel is for B's kind, rows of
/// which are contiguous, and their place is valid for `g.n` floats.
#[inline(always)]
pub(crate) unsafe fn gemm<S: Simd, F: Format<S>>(
    s: S,
    f: F,
    g: &RawGemm,
    a: RawOperand,
    b: RawOperand,
) {
    if g.m == 0 || g.n == 0 {
        if let (Some(sums), true) = (&g.sums, g.n > 0) {
            // SAFETY: passed on from the caller.
            unsafe { sums.add(b, g.k, g.n, g.accumulate) };
        }
        return;
    }
    // Formats that read nothing where it lies have no code for it.
    let (a_lies, b_lies) = if F::IS_PLAIN && !COMPACT { g.lies } else { (false, false) };
    let lying = lying(F::FOOTPRINT, a, b);
    debug_assert!(a_lies <= lying.0 && b_lies <= lying.1);
    let there = there(F::FOOTPRINT, g.n, b_lies);
    let mut unit = f.unit();
    let packed_b = g.scratch;
    let group = group(F::FOOTPRINT);
    let panels = (g.n - there).min(group);
    let b_len = packed_b_len(F::words(KC.min(g.k)), panels, S::NR).unwrap_or(0);
    let packed_a = packed_b.wrapping_add(b_len);
    let mut depth = 0;
    loop {
        let kc = KC.min(g.k - depth);
        let words = F::words(kc);
        let accumulate = g.accumulate || depth > 0;
        // What is added to again had better stay in cache.
        let stream = g.stream && !accumulate && kc == g.k && is_lines(g.c, g.c_row);
        let (a, b) = (a.skip(0, depth), b.skip(depth, 0));
        // SAFETY: `kc` rows of both operands, packed into scratch of the size promised, or read in place: of A
        // the `rows` elements of a tile, of B whole panels, which end at `there` or before. Those are `b.row`
        // apart only where words are floats, which tiles are not, and A's columns are not adjacent (`a.col > 1`,
        // or a register block if it is packed): as a tile demands. Panels are written over those before, whose tiles
        // are done, and end before packed A. What is streamed begins at lines (`is_lines`; tiles begin at multiples
        // of NR columns, which are whole lines), is overwritten once, and fenced below.
        unsafe {
            if let Some(sums) = g.sums.as_ref().filter(|_| there > 0) {
                sums.add(b, kc, there, accumulate);
            }
            if !a_lies {
                pack_a(s, f, a, g.m, kc, packed_a);
            }
            let rest = KC.min(g.k - depth - kc);
            let asks = Asks {
                turns: F::turns(words),
                panel: Grid::NONE,
                next: Grid::new(a.skip(0, kc).flip(), rest, g.m),
                later: Grid::new(b.skip(kc, 0), rest, there),
            };
            let left = match (a_lies, F::TILES) {
                (true, _) => Left { ptr: a.ptr, block: F::MR, row: 1, col: a.col },
                (_, true) => Left { ptr: packed_a, block: words * F::MR, row: LINE, col: F::MR },
                (_, false) => Left { ptr: packed_a, block: words * F::MR, row: 1, col: F::MR },
            };
            let mut column = Column {
                words,
                left,
                panel: packed_b,
                b_row: S::NR,
                j: 0,
                accumulate,
                stream,
                asks,
            };
            while column.j < g.n {
                if column.j < there {
                    (column.panel, column.b_row) = (b.skip(0, column.j).ptr, b.row);
                    if column.j + S::NR == there && there < g.n {
                        column.asks.panel = panel_lines(b.skip(0, there), kc, g.n - there);
                    }
                } else if (column.j - there).is_multiple_of(group) {
                    let end = g.n.min(column.j + group);
                    let of_group = b.skip(0, column.j);
                    if let Some(sums) = &g.sums {
                        let to = sums.to.wrapping_add(column.j);
                        ColumnSums { to, ..*sums }.add(of_group, kc, end - column.j, accumulate);
                    }
                    (F::PACK_B)(of_group, kc, end - column.j, packed_b);
                    (column.panel, column.b_row) = (packed_b.cast_const(), S::NR);
                    column.asks.panel = if end < g.n {
                        panel_lines(b.skip(0, end), kc, group.min(g.n - end))
                    } else if rest > 0 {
                        panel_lines(b.skip(kc, there), rest, group.min(g.n - there))
                    } else {
                        Grid::NONE
                    };
                } else {
                    column.panel = column.panel.wrapping_add(words * S::NR);
                }
                column.multiply(s, f, &mut unit, g);
                column.j += S::NR.min(g.n - column.j);
            }
        }
        if stream {
            s.fence();
        }
        depth += kc;
        if depth == g.k {
            return;
        }
    }
}

/// Those of a panel of `b`, or of a group of them. Two lines of a row at a time, if it has two or more: the fewer tiles it
/// takes, the more are left for A.
fn panel_lines(b: RawOperand, rows: usize, cols: usize) -> Grid {
    let grid = Grid::new(b, rows, cols);
    if cols * b.element_bytes() > LINE * size_of::<f32>() { grid.in_pairs() } else { grid }
}

/// A block of A's columns: register blocks `block` words apart.
struct Left {
    ptr: *const f32,
    block: usize,
    row: usize,
    col: usize,
}

/// Lines of the panel that is packed next or of a group of them, and of the next block of depth: of A and of what is not
/// packed of B.
struct Asks {
    turns: usize,
    panel: Grid,
    next: Grid,
    later: Grid,
}

impl Asks {
    /// What goes with a tile; the line at `p`, which is in cache, if all has been asked for.
    #[inline(always)]
    fn piece(&mut self, p: *const f32) -> Run {
        if COMPACT {
            return Run::none(p);
        }
        let run = self.panel.piece(self.turns).or_else(|| self.next.piece(self.turns));
        run.or_else(|| self.later.piece(self.turns)).unwrap_or(Run::none(p))
    }
}

/// `words` words of depth of a panel of C.
struct Column {
    words: usize,
    left: Left,
    panel: *const f32,
    b_row: usize,
    /// Its first column.
    j: usize,
    accumulate: bool,
    stream: bool,
    asks: Asks,
}

impl Column {
    /// All tiles of a column: whole register blocks, in a loop of their own (see [`block`](super::block)), and what is left.
    ///
    /// # Safety
    /// Left and right are valid for the depth: register blocks of A `left.block` apart, of `row == 1` in a format without
    /// tiles, otherwise as [`pack_a`] has them; rows of the panel `b_row` apart. C is valid for the column, whole lines of it
    /// if they are streamed.
    #[inline(always)]
    unsafe fn multiply<S: Simd, F: Format<S>>(
        &mut self,
        s: S,
        f: F,
        unit: &mut F::Unit,
        g: &RawGemm,
    ) {
        let cols = S::NR.min(g.n - self.j);
        let mut c = g.c.wrapping_add(self.j);
        let mut a = self.left.ptr;
        let mut i = 0;
        if !COMPACT && cols == S::NR {
            while g.m - i >= F::MR {
                let mut fetch = Ahead {
                    near: self.near(c, g.c_row, (F::MR, S::NR)),
                    far: self.asks.piece(self.panel),
                };
                let tile = self.tile(a, c, g.c_row);
                // SAFETY: passed on from the caller.
                unsafe { f.across(s, unit, &tile, self.accumulate, &mut fetch) };
                c = c.wrapping_add(F::MR * g.c_row);
                a = a.wrapping_add(self.left.block);
                i += F::MR;
            }
        }
        while i < g.m {
            let rows = F::MR.min(g.m - i);
            let tile = self.tile(a, c, g.c_row);
            // SAFETY: as above.
            unsafe {
                if const { F::TILES } {
                    let near = self.near(c, g.c_row, (rows, cols));
                    let mut fetch = Ahead { near, far: self.asks.piece(self.panel) };
                    f.multiply(s, unit, &tile, (rows, cols), self.accumulate, &mut fetch);
                } else {
                    f.apart(s, unit, &tile, (rows, cols), self.accumulate);
                }
            }
            c = c.wrapping_add(F::MR * g.c_row);
            a = a.wrapping_add(self.left.block);
            i += rows;
        }
    }

    /// Lines of C that a tile adds to.
    #[inline(always)]
    fn near(&self, c: *mut f32, c_row: usize, size: (usize, usize)) -> Near {
        if self.accumulate { Near::new((c.cast_const(), c_row), None, size) } else { Near::NONE }
    }

    #[inline(always)]
    fn tile(&self, a: *const f32, c: *mut f32, c_row: usize) -> micro::Tile {
        micro::Tile {
            kc: self.words,
            a,
            a_row: self.left.row,
            a_col: self.left.col,
            b: self.panel,
            b_row: self.b_row,
            c,
            c_row,
            start: c,
            start_row: c_row,
            stream: self.stream,
        }
    }
}
