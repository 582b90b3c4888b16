//! Operations as the scheduler sees them, and when their tiles may run.
//!
//! A [`Stage`] is a range of tiles. There is no barrier between stages: a tile may run when
//! what it reads is there and nobody still reads what it overwrites, which the
//! [`Board`]'s counters say:
//!
//! - `rows[b]`: how many row stages row block b has gone through. Row stages follow one
//!   another for each block, so one number says it all.
//! - `spans[s]`: how many attention tiles of span s (a stretch of a sequence's queries) are
//!   done in this run.
//! - `levels[k]`: how many row blocks are counted as having gone through k row stages: full
//!   when they all have, which is what gradients of weights wait for.
//! - `Slot::done`: tiles of a stage that are counted as done. *Done*, not *taken*.
//!
//! The first two are written tile by tile, for other tiles wait for single blocks. The
//! last two matter only when they are full, so a worker adds up what it has done of a
//! stage and counts it when it has no more of it: see `worker`.
//!
//! **Orderings.** A tile's writes come before its worker adds to a counter (release); a
//! worker that finds a counter high enough (acquire) has them all before it, for a counter
//! is only ever added to and additions form one release sequence. `rows[b]` is stored, not
//! added to, but its writers take turns: each has acquired the one before.
//! A ready tile stays ready until the run ends.

use super::fault::{Access, order};
use crate::primitive::{AtomicU32, AtomicWord, Bits, Ordering};
use core::ops::Range;

/// No stage.
pub(crate) const NONE: u16 = u16::MAX;

/// What the tiles of a stage are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Tile i is row block `first_block + i`, which passes through all operations of the
    /// stage and then has gone through `level` row stages.
    Rows { first_block: u32, level: u32 },
    /// Tile i is part `i % parts` of span `i / parts`.
    Attention { parts: u32, reads: Reads },
    /// Tiles of the operations, one operation after the other.
    List,
}

/// Whose row blocks a tile of attention reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Those from the start of the sequence to the end of the span.
    UpToSpan,
    /// Those of the whole sequence.
    Sequence,
}

/// What a tile waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Row stages that the row blocks which the tile reads have gone through: its own block,
    /// those of its attention, or all of them (for a list).
    pub(crate) level: u32,
    /// Attention tiles done of every span that the row block overlaps.
    pub(crate) spans: u32,
    /// Stages that are done altogether; [`NONE`] for fewer.
    pub(crate) stages: [u16; 3],
}

impl Needs {
    pub(crate) const NOTHING: Self = Self { level: 0, spans: 0, stages: [NONE; 3] };
}

/// A stage of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stage {
    pub(crate) first_op: u32,
    pub(crate) ops: u32,
    pub(crate) tiles: u32,
    pub(crate) shape: Shape,
    pub(crate) needs: Needs,
}

impl Stage {
    /// Whether they are equal.
    pub(crate) const fn is(self, other: Self) -> bool {
        let Self { first_op, ops, tiles, shape, needs } = self;
        let same_shape = match (shape, other.shape) {
            (
                Shape::Rows { first_block, level },
                Shape::Rows { first_block: other_block, level: other_level },
            ) => first_block == other_block && level == other_level,
            (
                Shape::Attention { parts, reads },
                Shape::Attention { parts: other_parts, reads: other_reads },
            ) => parts == other_parts && reads as u8 == other_reads as u8,
            (Shape::List, Shape::List) => true,
            _ => false,
        };
        let Needs { level, spans, stages: [a, b, c] } = needs;
        let [other_a, other_b, other_c] = other.needs.stages;
        let same_needs = level == other.needs.level && spans == other.needs.spans;
        let same_stages = a == other_a && b == other_b && c == other_c;
        first_op == other.first_op
            && ops == other.ops
            && tiles == other.tiles
            && same_shape
            && same_needs
            && same_stages
    }
}

/// A counter in a line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Alone(AtomicU32);

/// A stage and how many of its tiles are done: a slot of the caller's memory. All workers
/// read the stage for every tile, so it is apart from what they write.
#[derive(Debug)]
#[repr(align(64))]
pub struct Slot {
    pub(crate) stage: Stage,
    done: Alone,
}

impl Slot {
    /// A stage of zeros: a static of unused slots then takes no room in a program's file.
    const UNUSED: Stage = Stage {
        first_op: 0,
        ops: 0,
        tiles: 0,
        shape: Shape::Rows { first_block: 0, level: 0 },
        needs: Needs { level: 0, spans: 0, stages: [0; 3] },
    };

    /// A free slot: `static SLOTS: [Slot; N] = [const { Slot::new() }; N]`.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self { stage: Self::UNUSED, done: Alone(AtomicU32::new(0)) }
    }

    /// A free slot.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self { stage: Self::UNUSED, done: Alone(AtomicU32::new(0)) }
    }

    /// A slot of a stage that is done.
    pub(crate) fn of(stage: Stage) -> Self {
        Self { stage, done: Alone(AtomicU32::new(stage.tiles)) }
    }

    /// How many tiles are counted as done.
    pub(super) fn done(&self) -> &AtomicU32 {
        &self.done.0
    }

    pub(super) fn is_done(&self) -> bool {
        self.done.0.load(order(Access::ReadCount, Ordering::Acquire)) >= self.stage.tiles
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}

/// How a batch is cut into row blocks and spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Rows of the batch.
    pub(crate) rows: usize,
    /// Rows of a block.
    pub(crate) row_block: usize,
    /// Rows of a sequence.
    pub(crate) sequence: usize,
    /// Rows of a span; a sequence's last one may be shorter.
    pub(crate) span: usize,
    /// Row stages of the longest run.
    pub(crate) levels: usize,
    /// A row stage overwrites what the attention of the sequence's other spans reads, so it
    /// waits for all of them: layers share their activations.
    pub(crate) in_place: bool,
}

impl Cut {
    pub(crate) const fn blocks(&self) -> usize {
        self.rows.div_ceil(self.row_block)
    }

    const fn spans_per_sequence(&self) -> usize {
        self.sequence.div_ceil(self.span)
    }

    pub(crate) const fn spans(&self) -> usize {
        self.rows / self.sequence * self.spans_per_sequence()
    }

    /// Counters of a [`Board`].
    pub(crate) const fn counters(&self) -> usize {
        self.blocks() + self.spans() + self.levels + 1
    }

    /// Rows of a span.
    pub(crate) fn span_rows(&self, span: usize) -> Range<usize> {
        let first = span / self.spans_per_sequence() * self.sequence;
        let start = span % self.spans_per_sequence() * self.span;
        first + start..first + (start + self.span).min(self.sequence)
    }

    /// Row blocks that a tile of attention over `span` reads.
    fn blocks_read(&self, span: usize, reads: Reads) -> Range<usize> {
        let rows = self.span_rows(span);
        let first = rows.start / self.sequence * self.sequence;
        let end = match reads {
            Reads::UpToSpan => rows.end,
            Reads::Sequence => first + self.sequence,
        };
        first / self.row_block..(end - 1) / self.row_block + 1
    }

    fn span_of(&self, row: usize) -> usize {
        row / self.sequence * self.spans_per_sequence() + row % self.sequence / self.span
    }

    /// Spans whose attention a row block waits for.
    fn spans_awaited(&self, block: usize) -> Range<usize> {
        let first = block * self.row_block;
        let last = (first + self.row_block).min(self.rows) - 1;
        if self.in_place {
            let n = self.spans_per_sequence();
            return first / self.sequence * n..(last / self.sequence + 1) * n;
        }
        self.span_of(first)..self.span_of(last) + 1
    }
}

/// The counters of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Board<'a> {
    rows: &'a [AtomicWord],
    spans: &'a [AtomicWord],
    levels: &'a [AtomicWord],
    cut: Cut,
}

impl<'a> Board<'a> {
    /// Over `cut.counters()` counters.
    pub(super) fn new(cut: Cut, counters: &'a [AtomicWord]) -> Self {
        let (rows, rest) = counters.split_at(cut.blocks());
        let (spans, levels) = rest.split_at(cut.spans());
        Self { rows, spans, levels, cut }
    }

    pub(super) fn cut(&self) -> &Cut {
        &self.cut
    }

    /// Starts a run. Nobody is in one.
    pub(super) fn reset(&self) {
        for counter in [self.rows, self.spans, self.levels].into_iter().flatten() {
            counter.store(0, Ordering::Relaxed);
        }
    }

    fn reached(counters: &[AtomicWord], needed: u32) -> bool {
        let read = order(Access::ReadCount, Ordering::Acquire);
        counters.iter().all(|counter| counter.load(read) >= needed as Bits)
    }

    /// Whether what all tiles of a stage wait for is there.
    pub(super) fn stage_ready(&self, stage: &Stage, slots: &[Slot]) -> bool {
        let stages = stage.needs.stages.iter().filter(|id| **id != NONE);
        stages.into_iter().all(|id| slots.get(usize::from(*id)).is_none_or(Slot::is_done))
            && match stage.shape {
                Shape::List if stage.needs.level > 0 => {
                    let level = &self.levels[stage.needs.level as usize];
                    let read = order(Access::ReadCount, Ordering::Acquire);
                    level.load(read) == self.rows.len() as Bits
                }
                _ => true,
            }
    }

    /// Whether what this tile waits for is there, beyond what its stage does.
    pub(super) fn tile_ready(&self, stage: &Stage, tile: u32) -> bool {
        let needs = &stage.needs;
        match stage.shape {
            Shape::Rows { first_block, .. } => {
                let block = (first_block + tile) as usize;
                Self::reached(&self.rows[block..=block], needs.level)
                    && (needs.spans == 0
                        || Self::reached(&self.spans[self.cut.spans_awaited(block)], needs.spans))
            }
            Shape::Attention { parts, reads } => {
                let blocks = self.cut.blocks_read((tile / parts) as usize, reads);
                Self::reached(&self.rows[blocks], needs.level)
            }
            Shape::List => true,
        }
    }

    /// Says that a tile is done, to those who wait for its block or span.
    pub(super) fn tile_done(&self, stage: &Stage, tile: u32) {
        let counted = order(Access::CountDone, Ordering::Release);
        match stage.shape {
            Shape::Rows { first_block, level } => {
                let row = &self.rows[(first_block + tile) as usize];
                row.store(level as Bits, counted);
            }
            Shape::Attention { parts, .. } => {
                self.spans[(tile / parts) as usize].fetch_add(1, counted);
            }
            Shape::List => {}
        }
    }

    /// Says that so many tiles more of a stage are done, to those who wait for all of them.
    pub(super) fn count(&self, stage: &Stage, tiles: u32) {
        if let Shape::Rows { level, .. } = stage.shape {
            let counted = order(Access::CountDone, Ordering::Release);
            self.levels[level as usize].fetch_add(tiles as Bits, counted);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A list of nothing that waits for nothing.
    const EMPTY: Stage =
        Stage { first_op: 0, ops: 0, tiles: 0, shape: Shape::List, needs: Needs::NOTHING };
    const CUT: Cut =
        Cut { rows: 30, row_block: 4, sequence: 10, span: 6, levels: 2, in_place: false };

    #[test]
    fn spans_and_blocks_overlap_as_their_rows_do() {
        assert_eq!((CUT.blocks(), CUT.spans()), (8, 6));
        for in_place in [false, true] {
            let cut = Cut { in_place, ..CUT };
            for span in 0..cut.spans() {
                let rows = cut.span_rows(span);
                let sequence = rows.start / 10 * 10..rows.start / 10 * 10 + 10;
                for block in 0..cut.blocks() {
                    let block_rows = block * 4..(block * 4 + 4).min(30);
                    let meets =
                        |r: &Range<usize>| block_rows.start < r.end && r.start < block_rows.end;
                    let up_to = sequence.start..rows.end;
                    let read = |reads| cut.blocks_read(span, reads).contains(&block);
                    assert_eq!(read(Reads::UpToSpan), meets(&up_to), "{span} {block}");
                    assert_eq!(read(Reads::Sequence), meets(&sequence), "{span} {block}");
                    let awaited = cut.spans_awaited(block).contains(&span);
                    let expected = if in_place { meets(&sequence) } else { meets(&rows) };
                    assert_eq!(awaited, expected, "{span} {block}");
                }
            }
        }
    }

    #[test]
    fn a_tile_is_ready_when_what_it_reads_is_done() {
        let counters: [AtomicWord; 17] = core::array::from_fn(|_| AtomicWord::new(9));
        assert_eq!(CUT.counters(), counters.len());
        let board = Board::new(CUT, &counters);
        board.reset();
        let rows = |level, spans| Stage {
            shape: Shape::Rows { first_block: 0, level },
            needs: Needs { level: level - 1, spans, ..Needs::NOTHING },
            ..EMPTY
        };
        let attention = Stage {
            shape: Shape::Attention { parts: 2, reads: Reads::UpToSpan },
            needs: Needs { level: 1, ..Needs::NOTHING },
            ..EMPTY
        };
        // The second span of the first sequence reads its blocks 0, 1 and 2.
        assert!(board.tile_ready(&rows(1, 0), 0) && !board.tile_ready(&attention, 2));
        board.tile_done(&rows(1, 0), 0);
        board.tile_done(&rows(1, 0), 1);
        assert!(board.tile_ready(&attention, 0) && !board.tile_ready(&attention, 2));
        board.tile_done(&rows(1, 0), 2);
        assert!(board.tile_ready(&attention, 2) && board.tile_ready(&attention, 3));
        // Block 1 (rows 4..8) waits for both parts of spans 0 and 1.
        for tile in [0, 1, 2] {
            board.tile_done(&attention, tile);
            assert!(!board.tile_ready(&rows(2, 2), 1));
        }
        assert!(board.tile_ready(&rows(2, 2), 0));
        board.tile_done(&attention, 3);
        assert!(board.tile_ready(&rows(2, 2), 1) && !board.tile_ready(&rows(2, 2), 2));
        let list = Stage { needs: Needs { level: 1, ..Needs::NOTHING }, ..EMPTY };
        board.count(&rows(1, 0), 3);
        assert!(!board.stage_ready(&list, &[]));
        for block in 3..8 {
            board.tile_done(&rows(1, 0), block);
        }
        assert!(!board.stage_ready(&list, &[]));
        board.count(&rows(1, 0), 5);
        assert!(board.stage_ready(&list, &[]));
    }

    #[test]
    fn a_stage_waits_for_other_stages_to_be_done() {
        let counters: [AtomicWord; 17] = core::array::from_fn(|_| AtomicWord::new(0));
        let board = Board::new(CUT, &counters);
        let mut slots = [const { Slot::new() }; 2];
        slots[1].stage.tiles = 2;
        let stages = [0, 1, NONE];
        let stage = Stage { needs: Needs { stages, ..Needs::NOTHING }, ..EMPTY };
        slots[1].done().store(1, Ordering::Relaxed);
        assert!(!board.stage_ready(&stage, &slots));
        slots[1].done().store(2, Ordering::Relaxed);
        assert!(board.stage_ready(&stage, &slots));
    }
}
