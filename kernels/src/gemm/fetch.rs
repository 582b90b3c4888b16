//! Cache lines that are asked for ahead of their use, while the sums of a tile are made.
//!
//! What a tile meets next lies where the CPU does not see it coming: C's own rows, those of the
//! epilogue's operands, the next panel, the next block of tokens. A request for a line that
//! is not in L1 holds one of the few places in which misses wait (some 10 to 16) until
//! it comes; many at once hold them all, and the loop's own loads wait behind them.
//! So the loop asks for a few with each of its *turns*, some 50 cycles apart: a step of the
//! reference workload takes 0.95 of the time that it takes with bursts before each tile
//! (Granite Rapids, whose L3 is far; AVX-512, one thread and two, seven pairs in turns).

use super::LINE;
use crate::elements::RawOperand;
use crate::simd::Simd;

/// Lines that a loop asks for: those of a use that is far in each turn; those of a use that is near
/// into L2 in its first turns, and into L1 in some of its last, for what is in L1 early is
/// gone when it is used. In the loops of vectors none of it branches: with branches they were slower
/// by more than what it gained.
pub(crate) trait Fetch {
    /// How many times near lines are asked for: a row each time.
    fn near_turns(&self) -> usize;
    /// Asks for the near ones of a turn, into L2.
    fn early<S: Simd>(&mut self, s: S);
    /// Asks for the near ones of a turn, into L1.
    fn near<S: Simd>(&mut self, s: S);
    /// Asks for far ones.
    fn far<S: Simd>(&mut self, s: S);
}

/// None.
impl Fetch for () {
    #[inline(always)]
    fn near_turns(&self) -> usize {
        0
    }
    #[inline(always)]
    fn early<S: Simd>(&mut self, _: S) {}
    #[inline(always)]
    fn near<S: Simd>(&mut self, _: S) {}
    #[inline(always)]
    fn far<S: Simd>(&mut self, _: S) {}
}

/// Near and far ones.
pub(crate) struct Ahead {
    pub(crate) near: Near,
    pub(crate) far: Run,
}

impl Fetch for Ahead {
    #[inline(always)]
    fn near_turns(&self) -> usize {
        self.near.rows
    }
    #[inline(always)]
    fn early<S: Simd>(&mut self, s: S) {
        for line in self.near.row(self.near.early) {
            s.prefetch(line);
        }
        self.near.early += 1;
    }
    #[inline(always)]
    fn near<S: Simd>(&mut self, s: S) {
        let [to, last, from, from_last] = self.near.row(self.near.done);
        s.prefetch_to_write(to);
        s.prefetch_to_write(last);
        s.prefetch_near(from);
        s.prefetch_near(from_last);
        self.near.done += 1;
    }
    #[inline(always)]
    fn far<S: Simd>(&mut self, s: S) {
        s.prefetch(self.far.next.cast());
        self.far.next = self.far.next.wrapping_add(self.far.step);
    }
}

/// Bytes of a cache line.
const BYTES: usize = LINE * size_of::<f32>();

/// Rows of one or two lines of two matrices, for a use as soon as the sums are there. The first will
/// be written.
#[derive(Clone, Copy)]
pub(crate) struct Near {
    first: *const u8,
    first_row: usize,
    second: *const u8,
    second_row: usize,
    rows: usize,
    /// Bytes from the first line of a row to its last.
    last: usize,
    /// Rows that have been asked for into L2, and into L1.
    early: usize,
    done: usize,
}

impl Near {
    pub(crate) const NONE: Self = Self {
        first: core::ptr::null(),
        first_row: 0,
        second: core::ptr::null(),
        second_row: 0,
        rows: 0,
        last: 0,
        early: 0,
        done: 0,
    };

    /// `rows` rows of `cols` elements of one matrix, and of another if there is one; the numbers
    /// beside them are elements between rows.
    #[inline(always)]
    pub(crate) fn new<E>(
        first: (*const E, usize),
        second: Option<(*const E, usize)>,
        (rows, cols): (usize, usize),
    ) -> Self {
        // Twice the same line costs less than to ask whether there is a second.
        let second = second.unwrap_or(first);
        Self {
            first: first.0.cast(),
            first_row: first.1.wrapping_mul(size_of::<E>()),
            second: second.0.cast(),
            second_row: second.1.wrapping_mul(size_of::<E>()),
            rows,
            last: (cols * size_of::<E>()).saturating_sub(BYTES),
            ..Self::NONE
        }
    }

    /// The first and the last line of a row of either matrix.
    #[inline(always)]
    fn row(&self, row: usize) -> [*const f32; 4] {
        let first = self.first.wrapping_add(row.wrapping_mul(self.first_row));
        let second = self.second.wrapping_add(row.wrapping_mul(self.second_row));
        [first, first.wrapping_add(self.last), second, second.wrapping_add(self.last)]
            .map(|line| line.cast())
    }
}

/// Lines at even distances, for a use that is far.
pub(crate) struct Run {
    next: *const u8,
    /// Bytes between two lines: none if there is nothing to ask for.
    step: usize,
}

impl Run {
    /// `words` words from `next` on, over so many turns. If they are too few for all lines every
    /// second one is asked for: CPUs fetch lines in pairs.
    #[inline(always)]
    pub(crate) fn new(next: *const f32, words: usize, turns: usize) -> Self {
        let step = match words / LINE {
            0 => 0,
            lines if lines <= turns => BYTES,
            _ => 2 * BYTES,
        };
        Self { next: next.cast(), step }
    }

    /// The line at `p` over and over, which is in cache: nothing, without a branch.
    #[inline(always)]
    pub(crate) fn none(p: *const f32) -> Self {
        Self { next: p.cast(), step: 0 }
    }
}

/// The lines of some rows of a matrix, a piece of them with each tile: a column of lines of so many
/// rows as the tile has turns.
pub(crate) struct Grid {
    m: RawOperand,
    /// Elements of a line.
    line: usize,
    rows: usize,
    cols: usize,
    row: usize,
    col: usize,
}

impl Grid {
    /// `rows` rows of `cols` elements.
    pub(crate) fn new(m: RawOperand, rows: usize, cols: usize) -> Self {
        // Far columns are lines of their own: not worth it.
        let rows = if m.col == 1 { rows } else { 0 };
        let line = BYTES / m.element_bytes();
        Self { m, line, rows, cols, row: 0, col: 0 }
    }

    /// What goes with the next tile; `None` if all has been asked for.
    #[inline(always)]
    pub(crate) fn piece(&mut self, turns: usize) -> Option<Run> {
        if self.row >= self.rows || self.cols == 0 {
            return None;
        }
        let next = self.m.skip(self.row, self.col).ptr.cast();
        self.col += self.line;
        if self.col >= self.cols {
            (self.row, self.col) = (self.row + turns.max(1), 0);
        }
        Some(Run { next, step: self.m.row.wrapping_mul(self.m.element_bytes()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_asks_for_every_line_of_floats_and_of_bf16() {
        const ROWS: usize = 4;
        const LINES: usize = 3;
        let memory = [0.0_f32; ROWS * LINES * LINE];
        let start = memory.as_ptr().addr();
        for half in [false, true] {
            let elements = LINES * BYTES / RawOperand::bytes_of(half);
            let m = RawOperand { ptr: memory.as_ptr(), row: elements, col: 1, half };
            let mut grid = Grid::new(m, ROWS, elements);
            let mut asked = [0; ROWS * LINES];
            while let Some(run) = grid.piece(2) {
                for turn in 0..2 {
                    let line = run.next.wrapping_add(turn * run.step).addr() - start;
                    assert!(line.is_multiple_of(BYTES));
                    asked[line / BYTES] += 1;
                }
            }
            assert_eq!(asked, [1; ROWS * LINES], "half: {half}");
        }
    }
}
