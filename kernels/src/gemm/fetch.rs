//! Cache lines that are asked for ahead of their use, while the sums of a tile are made.
//!
//! What a tile meets next lies where the CPU does not see it coming: C's own rows, those of the
//! epilogue's operands, the next panel, the next block of tokens, the part of a weight that is packed
//! next, the next rows of A. A request for a line that
//! is not in L1 holds one of the few places in which misses wait (some 10 to 16) until
//! it comes; many at once hold them all, and the loop's own loads wait behind them.
//! So the loop asks for a few with each of its *turns*, some 50 cycles apart: a step of the
//! reference workload takes 0.95 of the time that it takes with bursts before each tile
//! (Granite Rapids, whose L3 is far; AVX-512, one thread and two, seven pairs in turns).

use super::LINE;
use super::micro::UNROLL;
use crate::built::COMPACT;
use crate::elements::RawOperand;
use crate::simd::Simd;

/// Lines that a loop asks for: those of a use that is far in each turn; those of a use that is near
/// into L2 in its first turns, and into L1 in some of its last, for what is in L1 early is
/// gone when it is used. In the loops of vectors none of it branches: with branches they were slower
/// by more than what it gained.
pub(crate) trait Fetch {
    /// Whether there can be near lines at all.
    const HAS_NEAR: bool = true;
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
    const HAS_NEAR: bool = false;
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

impl Ahead {
    /// Has a tile of so many turns ask for the next lines of a grid, if there is one: for those of `panel` once
    /// all have been asked for, and where the tile is none that `asks`, for which no lines are taken.
    #[inline(always)]
    pub(crate) fn instead(
        &mut self,
        grid: Option<&mut Grid>,
        asks: bool,
        turns: usize,
        panel: Run,
    ) {
        if let Some(grid) = grid.filter(|_| !COMPACT) {
            let run = if asks { grid.piece(turns) } else { None };
            self.far = run.unwrap_or(panel);
        }
    }
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
        // Twice the same line costs less than to ask whether there is a second.
        s.prefetch(self.far.next.wrapping_add(self.far.pair).cast());
        self.far.next = self.far.next.wrapping_add(self.far.step);
    }
}

/// With those of [`Ahead`], rows of A for a tile that comes later: of each as many lines as this one's rows have whole
/// ones. If rows of a register block are no multiple of the turns of a line, some rows behind those are asked for too.
pub(crate) struct WithRows {
    pub(crate) ahead: Ahead,
    rows: NextRows,
    turn: usize,
}

impl WithRows {
    pub(crate) fn new(ahead: Ahead, rows: NextRows) -> Self {
        Self { ahead, rows, turn: 0 }
    }
}

/// Turns in which a tile uses up a line of each of its rows of A.
const LINE_TURNS: usize = LINE / UNROLL;

impl Fetch for WithRows {
    #[inline(always)]
    fn near_turns(&self) -> usize {
        self.ahead.near_turns()
    }
    #[inline(always)]
    fn early<S: Simd>(&mut self, s: S) {
        self.ahead.early(s);
    }
    #[inline(always)]
    fn near<S: Simd>(&mut self, s: S) {
        self.ahead.near(s);
    }
    #[inline(always)]
    fn far<S: Simd>(&mut self, s: S) {
        self.ahead.far(s);
        for line in self.rows.lines(self.turn, S::MR) {
            s.prefetch(line.cast());
        }
        self.turn += 1;
    }
}

/// Rows of A, as many as a register block has.
#[derive(Clone, Copy)]
pub(crate) struct NextRows {
    first: *const u8,
    /// Bytes from each to the next, and of a line: none if there is nothing to ask for.
    row: usize,
    line: usize,
}

impl NextRows {
    /// Rows of words, `row` apart.
    #[inline(always)]
    pub(crate) fn new(first: *const f32, row: usize) -> Self {
        Self { first: first.cast(), row: row.wrapping_mul(size_of::<f32>()), line: BYTES }
    }

    /// The line at `p`, which is in cache, over and over: nothing, without a branch.
    #[inline(always)]
    pub(crate) fn none(p: *const f32) -> Self {
        Self { first: p.cast(), row: 0, line: 0 }
    }

    /// Those of a turn: in [`LINE_TURNS`] of them a line of each of `mr` rows.
    #[inline(always)]
    fn lines(self, turn: usize, mr: usize) -> impl Iterator<Item = *const u8> {
        let rows = mr.div_ceil(LINE_TURNS);
        let skipped = turn / LINE_TURNS * self.line;
        let first = (turn % LINE_TURNS * rows).wrapping_mul(self.row).wrapping_add(skipped);
        let first = self.first.wrapping_add(first);
        (0..rows).map(move |i| first.wrapping_add(i.wrapping_mul(self.row)))
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
#[derive(Clone, Copy)]
pub(crate) struct Run {
    next: *const u8,
    /// Bytes between two lines: none if there is nothing to ask for.
    step: usize,
    /// Bytes from each of them to another one: none if there is no other.
    pair: usize,
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
        Self { next: next.cast(), step, pair: 0 }
    }

    /// All lines from `next` on, two each time.
    #[inline(always)]
    pub(crate) fn in_pairs(next: *const f32) -> Self {
        Self { next: next.cast(), step: 2 * BYTES, pair: BYTES }
    }

    /// The line at `p` over and over, which is in cache: nothing, without a branch.
    #[inline(always)]
    pub(crate) fn none(p: *const f32) -> Self {
        Self { next: p.cast(), step: 0, pair: 0 }
    }
}

/// The lines of some rows of a matrix, a piece of them with each tile: a column of lines, or of pairs of lines,
/// of so many rows as the tile has turns.
pub(crate) struct Grid {
    m: RawOperand,
    /// Elements of a line.
    line: usize,
    rows: usize,
    cols: usize,
    row: usize,
    col: usize,
    /// Bytes between the lines of a pair: none if they are asked for one by one.
    pair: usize,
}

impl Grid {
    /// No lines.
    pub(crate) const NONE: Self = Self {
        m: RawOperand::floats(core::ptr::null(), 0, 1),
        line: LINE,
        rows: 0,
        cols: 0,
        row: 0,
        col: 0,
        pair: 0,
    };

    /// `rows` rows of `cols` elements.
    pub(crate) fn new(m: RawOperand, rows: usize, cols: usize) -> Self {
        // Far columns are lines of their own: not worth it.
        let rows = if m.col == 1 { rows } else { 0 };
        let line = BYTES / m.element_bytes();
        Self { m, line, rows, cols, row: 0, col: 0, pair: 0 }
    }

    /// The same, two lines a turn: where there are more lines than turns.
    pub(crate) fn in_pairs(self) -> Self {
        Self { pair: BYTES, ..self }
    }

    /// What goes with the next tile; `None` if all has been asked for, or the tile has no turns.
    ///
    /// The last rows are as many as there are turns, so that some are asked for twice rather than those behind
    /// them; if there are fewer rows than turns, what lies behind them is asked for too.
    #[inline(always)]
    pub(crate) fn piece(&mut self, turns: usize) -> Option<Run> {
        if self.row >= self.rows || self.cols == 0 || turns == 0 {
            return None;
        }
        let row = self.row.min(self.rows.saturating_sub(turns));
        let next = self.m.skip(row, self.col).ptr.cast();
        self.col += self.line * (1 + self.pair / BYTES);
        if self.col >= self.cols {
            (self.row, self.col) = (self.row + turns, 0);
        }
        let step = self.m.row.wrapping_mul(self.m.element_bytes());
        // A pair's second line may be behind the last column: it is asked for in vain.
        Some(Run { next, step, pair: self.pair })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each line of some rows is asked for, and how often others are.
    fn asked(grid: Grid, rows: usize, lines: usize, turns: usize) -> ([u32; 16], u32) {
        let start = grid.m.ptr.addr();
        let (mut grid, mut asked, mut others) = (grid, [0; 16], 0);
        while let Some(run) = grid.piece(turns) {
            for turn in 0..turns {
                for other in [0, run.pair].into_iter().take(1 + usize::from(run.pair > 0)) {
                    let line = run.next.wrapping_add(turn * run.step + other).addr() - start;
                    assert!(line.is_multiple_of(BYTES));
                    // Of a row that is one line longer than the matrix.
                    let (row, at) = (line / BYTES / (lines + 1), line / BYTES % (lines + 1));
                    if row < rows && at < lines {
                        asked[row * lines + at] += 1;
                    } else {
                        others += 1;
                    }
                }
            }
        }
        (asked, others)
    }

    #[test]
    fn a_grid_asks_for_every_line_of_floats_and_of_bf16() {
        let memory = [0.0_f32; 16 * LINE];
        for half in [false, true] {
            let line = BYTES / RawOperand::bytes_of(half);
            let grid = |rows: usize, lines: usize| {
                let row = (lines + 1) * line;
                let m = RawOperand { ptr: memory.as_ptr(), row, col: 1, half };
                Grid::new(m, rows, lines * line)
            };
            let once = |lines: usize| core::array::from_fn(|i| u32::from(i < lines));
            assert_eq!(asked(grid(4, 3), 4, 3, 2), (once(12), 0), "half: {half}");
            assert_eq!(asked(grid(4, 4).in_pairs(), 4, 4, 2), (once(16), 0), "half: {half}");
            // The second line of the last pair of each row.
            assert_eq!(asked(grid(4, 3).in_pairs(), 4, 3, 2), (once(12), 4), "half: {half}");
            // The second row twice; and behind the rows only if they are fewer than the turns.
            let (twice, others) = asked(grid(3, 2), 3, 2, 2);
            assert_eq!((&twice[..6], others), (&[1, 1, 2, 2, 1, 1][..], 0), "half: {half}");
            assert_eq!(asked(grid(1, 2), 1, 2, 2), (once(2), 2), "half: {half}");
            assert_eq!(asked(grid(1, 2), 1, 2, 0), (once(0), 0), "half: {half}");
        }
    }

    #[test]
    fn a_tile_asks_for_every_line_of_the_next_rows_that_it_uses_of_its_own() {
        let row = 5 * LINE;
        let memory = [0.0_f32; 16 * 5 * LINE];
        let next = NextRows::new(memory.as_ptr(), row);
        // Three lines of each of so many rows as a register block has; more are asked for if they are no multiple of
        // the turns of a line.
        for most in [4, 6, 12] {
            let rows = most_rows(most);
            let mut asked = [0; 16 * 5];
            for turn in 0..3 * LINE_TURNS {
                for line in next.lines(turn, most) {
                    asked[(line.addr() - memory.as_ptr().addr()) / BYTES] += 1;
                }
            }
            let expected = core::array::from_fn(|at| u32::from(at / 5 < rows && at % 5 < 3));
            assert_eq!(asked, expected, "{most} rows");
            let none = NextRows::none(memory.as_ptr());
            assert!(
                (0..99)
                    .all(|turn| none.lines(turn, most).all(|line| line == memory.as_ptr().cast()))
            );
        }
    }

    /// Rows that are asked for where a register block has `mr`.
    fn most_rows(mr: usize) -> usize {
        mr.next_multiple_of(LINE_TURNS)
    }

    #[test]
    fn tiles_ask_for_the_panel_once_a_grid_is_used_up() {
        if COMPACT {
            return;
        }
        let memory = [0.0_f32; 4 * LINE];
        let m = RawOperand { ptr: memory.as_ptr(), row: 2 * LINE, col: 1, half: false };
        let mut grid = Grid::new(m, 1, LINE);
        let panel = Run::new(memory[LINE..].as_ptr(), LINE, 1);
        let before = Run::none(memory[3 * LINE..].as_ptr());
        let mut ahead = Ahead { near: Near::NONE, far: before };
        let mut far = |grid: Option<&mut Grid>, asks: bool| {
            ahead.instead(grid, asks, 2, panel);
            (ahead.far.next, ahead.far.step)
        };
        assert_eq!(far(None, true), (before.next, 0));
        assert_eq!(far(Some(&mut grid), false), (panel.next, BYTES));
        assert_eq!(far(Some(&mut grid), true), (memory.as_ptr().cast(), 2 * BYTES));
        assert_eq!(far(Some(&mut grid), true), (panel.next, BYTES));
    }
}
