//! Examples packed into rows: the rows of a batch, each epoch others.
//!
//! An epoch takes the examples in an order drawn for it, and puts each, whole, into that of the rows
//! which are open where it leaves the least room; if it fits into none, a row is opened, and if too
//! many are open, the fullest is closed. So rows are nearly full, examples that were drawn early are in
//! early rows, and all of it follows from seed and epoch.
//!
//! ```text
//! row       a a a a b b b c c - -       three examples and padding
//! starts    0 0 0 0 4 4 4 7 7 9 10      where the example of each place begins
//! ```
//! Epochs differ by a row or two. Which row is the n-th of the run is found by packing the epochs
//! before it once; the last few stay packed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use cllm_core::IGNORE;

use super::examples::Examples;
use super::prefetch::{ReadyBatch, StepTokens};
use super::sampler::{mix, permute};

/// Rows that are open at a time: of more, a few per cent less would be padding at best, and examples
/// would come farther from the place that they were drawn for.
const OPEN: usize = 64;
/// Epochs that stay packed: steps and the loader, which is ahead of them, may be in different ones.
const KEPT: usize = 4;

/// A row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Row {
    examples: Vec<u32>,
    places: usize,
    counted: usize,
}

/// Packs examples in the order `order` into rows of `block_size`; none takes more places than that.
fn pack(examples: &Examples, block_size: usize, order: impl Iterator<Item = u32>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut open: Vec<usize> = Vec::with_capacity(OPEN);
    for example in order {
        let places = examples.places(example as usize);
        let room = |slot: &usize| block_size - rows[open[*slot]].places;
        let least = |slot: &usize| (room(slot), open[*slot]);
        let fitting = (0..open.len()).filter(|slot| room(slot) >= places).min_by_key(least);
        let slot = match fitting {
            Some(slot) => slot,
            None => {
                let fullest = (0..open.len()).min_by_key(least);
                if let Some(fullest) = fullest.filter(|_| open.len() == OPEN) {
                    open.swap_remove(fullest);
                }
                open.push(rows.len());
                rows.push(Row::default());
                open.len() - 1
            }
        };
        let row = &mut rows[open[slot]];
        row.examples.push(example);
        row.places += places;
        row.counted += examples.counted(example as usize);
        if row.places == block_size {
            open.swap_remove(slot);
        }
    }
    rows
}

/// Writes a row.
fn fill(
    examples: &Examples,
    row: &Row,
    tokens: &mut [u32],
    targets: &mut [u32],
    starts: &mut [u32],
) {
    let mut at = 0;
    for example in &row.examples {
        let end = at + examples.places(*example as usize);
        examples.fill(*example as usize, &mut tokens[at..end], &mut targets[at..end]);
        starts[at..end].fill(at as u32);
        at = end;
    }
    // Padding sees itself alone, which costs the least.
    tokens[at..].fill(0);
    targets[at..].fill(IGNORE);
    (at..).zip(&mut starts[at..]).for_each(|(place, start)| *start = place as u32);
}

/// Packed examples in a fixed order: validation data.
#[derive(Debug)]
pub struct FixedRows {
    examples: Examples,
    rows: Vec<Row>,
    block_size: usize,
}

impl FixedRows {
    /// Packs `examples`, none of which takes more than `block_size` places.
    #[must_use]
    pub fn new(examples: Examples, block_size: usize) -> Self {
        let rows = pack(&examples, block_size, 0..examples.len() as u32);
        Self { examples, rows, block_size }
    }

    /// The examples.
    #[must_use]
    pub fn examples(&self) -> &Examples {
        &self.examples
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows.len() as u64
    }

    /// Fills a batch with the rows from `first` on; behind the last comes the first.
    pub fn fill(&self, first: u64, batch: &mut ReadyBatch) {
        let count = self.rows.len() as u64;
        for (row, (tokens, targets, starts)) in (first..).zip(batch.rows(self.block_size)) {
            let row = &self.rows[(row % count) as usize];
            fill(&self.examples, row, tokens, targets, starts);
        }
    }
}

/// Packed examples in training order, epoch after epoch.
#[derive(Debug)]
pub struct Packing {
    examples: Examples,
    block_size: usize,
    seed: u64,
    walk: Mutex<Walk>,
}

/// What is known of epochs.
#[derive(Debug, Default)]
struct Walk {
    /// Rows before each epoch; of one more than have been packed.
    before: Vec<u64>,
    kept: VecDeque<(usize, Arc<[Row]>)>,
}

impl Packing {
    /// The rows of `examples`, of which there is one, and none takes more than `block_size` places.
    #[must_use]
    pub fn new(examples: Examples, block_size: usize, seed: u64) -> Self {
        let walk = Walk { before: vec![0], kept: VecDeque::new() };
        Self { examples, block_size, seed, walk: Mutex::new(walk) }
    }

    /// The examples.
    #[must_use]
    pub fn examples(&self) -> &Examples {
        &self.examples
    }

    /// Rows of so many epochs; of a part of one that part.
    #[must_use]
    pub fn rows_of(&self, epochs: f64) -> u64 {
        let whole = epochs.floor().max(0.0);
        let before = self.before(whole as usize);
        let rest = epochs - whole;
        let more = if rest > 0.0 { self.before(whole as usize + 1) - before } else { 0 };
        before + (rest * more as f64).ceil() as u64
    }

    /// Places of the first `rows` rows of the run that are no padding.
    #[must_use]
    pub fn places_before(&self, rows: u64) -> u64 {
        let (epoch, _, row) = self.row(rows);
        let (_, packed, _) = self.row(rows - row as u64);
        let here = packed[..row].iter().map(|row| row.places as u64).sum::<u64>();
        epoch as u64 * self.examples.all_places() + here
    }

    /// What `rows` rows of the run from `first` on hold.
    #[must_use]
    pub fn held(&self, first: u64, rows: u64) -> StepTokens {
        let mut held = StepTokens { places: 0, counted: 0 };
        for n in first..first + rows {
            let (_, packed, row) = self.row(n);
            held.places += packed[row].places;
            held.counted += packed[row].counted;
        }
        held
    }

    /// Fills a batch with the rows of the run from `first` on.
    pub fn fill(&self, first: u64, batch: &mut ReadyBatch) {
        for (n, (tokens, targets, starts)) in (first..).zip(batch.rows(self.block_size)) {
            let (_, packed, row) = self.row(n);
            fill(&self.examples, &packed[row], tokens, targets, starts);
        }
    }

    /// Rows before an epoch.
    fn before(&self, epoch: usize) -> u64 {
        let mut walk = self.walk.lock().unwrap_or_else(PoisonError::into_inner);
        while walk.before.len() <= epoch {
            self.go_on(&mut walk);
        }
        walk.before[epoch]
    }

    /// The epoch of row `n` of the run, all of that epoch's rows, and which of them it is.
    fn row(&self, n: u64) -> (usize, Arc<[Row]>, usize) {
        let mut walk = self.walk.lock().unwrap_or_else(PoisonError::into_inner);
        while walk.before.last().is_none_or(|rows| *rows <= n) {
            self.go_on(&mut walk);
        }
        let epoch = walk.before.partition_point(|rows| *rows <= n) - 1;
        let row = (n - walk.before[epoch]) as usize;
        if let Some((_, rows)) = walk.kept.iter().find(|(kept, _)| *kept == epoch) {
            return (epoch, Arc::clone(rows), row);
        }
        (epoch, self.epoch(&mut walk, epoch), row)
    }

    /// Packs the first epoch that has not been.
    fn go_on(&self, walk: &mut Walk) {
        let epoch = walk.before.len() - 1;
        let rows = self.epoch(walk, epoch).len() as u64;
        walk.before.push(walk.before[epoch] + rows);
    }

    fn epoch(&self, walk: &mut Walk, epoch: usize) -> Arc<[Row]> {
        let (count, key) = (self.examples.len() as u64, mix(mix(self.seed) ^ epoch as u64));
        let order = (0..count).map(|i| permute(count, i, key) as u32);
        let rows: Arc<[Row]> = pack(&self.examples, self.block_size, order).into();
        if walk.kept.len() == KEPT {
            walk.kept.pop_front();
        }
        walk.kept.push_back((epoch, Arc::clone(&rows)));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::examples::Example;
    use proptest::prelude::*;

    const BLOCK: usize = 24;

    /// Example `i` has the ids from `100 * i` on; its second half counts.
    fn examples(lengths: &[usize]) -> Examples {
        let mut all = Examples::default();
        for (i, len) in lengths.iter().enumerate() {
            let ids: Vec<u32> = (0..*len as u32).map(|k| 100 * i as u32 + k).collect();
            let mut example = Example::default();
            example.push(&ids[..len / 2], false);
            example.push(&ids[len / 2..], true);
            all.push(&example);
        }
        all
    }

    /// The examples of a row, of which it is checked that they are whole, with their starts and targets.
    fn read(lengths: &[usize], batch: &ReadyBatch, row: usize) -> Vec<usize> {
        let of = |ids: &[u32]| ids[row * BLOCK..][..BLOCK].to_vec();
        let (tokens, targets) = (of(batch.get().tokens), of(batch.get().targets));
        let starts = of(batch.get().starts.unwrap());
        let mut found = Vec::new();
        let mut at = 0;
        // Ids of padding are 0, as is the first of example 0, which is told by its target.
        while at < BLOCK && !(targets[at..].iter().all(|t| *t == IGNORE)) {
            let example = tokens[at] as usize / 100;
            let (len, first) = (lengths[example], 100 * example as u32);
            for k in 0..len - 1 {
                assert_eq!(tokens[at + k], first + k as u32);
                assert_eq!(starts[at + k] as usize, at);
                let target = first + k as u32 + 1;
                let counts = k + 1 >= len / 2;
                assert_eq!(targets[at + k], if counts { target } else { IGNORE });
            }
            found.push(example);
            at += len - 1;
        }
        for place in at..BLOCK {
            assert_eq!((targets[place], starts[place] as usize), (IGNORE, place));
        }
        found
    }

    fn epoch(lengths: &[usize], packing: &Packing, epoch: usize) -> Vec<usize> {
        let (first, end) = (packing.before(epoch), packing.before(epoch + 1));
        let mut batch = ReadyBatch::new((end - first) as usize * BLOCK);
        packing.fill(first, &mut batch);
        let held = packing.held(first, end - first);
        assert_eq!(held.counted, batch.get().counted());
        assert_eq!(held.places as u64, packing.examples().all_places());
        (0..(end - first) as usize).flat_map(|row| read(lengths, &batch, row)).collect()
    }

    proptest! {
        #[test]
        fn an_epoch_has_every_example_once_and_whole(
            lengths in prop::collection::vec(2..=BLOCK + 1, 1..120),
            seed: u64,
        ) {
            let packing = Packing::new(examples(&lengths), BLOCK, seed);
            let again = Packing::new(examples(&lengths), BLOCK, seed);
            // From behind, as a run that is resumed comes to it.
            let second = epoch(&lengths, &again, 1);
            let first = epoch(&lengths, &packing, 0);
            prop_assert_eq!(&first, &epoch(&lengths, &again, 0));
            prop_assert_eq!(&second, &epoch(&lengths, &packing, 1));
            for order in [first, second] {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..lengths.len()).collect::<Vec<_>>());
            }
            let rows = packing.rows_of(2.0);
            prop_assert_eq!(packing.places_before(rows), 2 * packing.examples().all_places());
            let half = packing.held(0, rows / 2).places as u64;
            prop_assert_eq!(packing.places_before(rows / 2), half);
            prop_assert!(packing.rows_of(1.5) > packing.rows_of(1.0) && packing.rows_of(1.5) <= rows);
        }

        #[test]
        fn fixed_rows_have_every_example_once_and_whole(
            lengths in prop::collection::vec(2..=BLOCK + 1, 1..120),
        ) {
            let fixed = FixedRows::new(examples(&lengths), BLOCK);
            let rows = fixed.rows() as usize;
            let mut batch = ReadyBatch::new(rows * BLOCK);
            fixed.fill(0, &mut batch);
            let mut found: Vec<usize> = (0..rows).flat_map(|row| read(&lengths, &batch, row)).collect();
            found.sort_unstable();
            prop_assert_eq!(found, (0..lengths.len()).collect::<Vec<_>>());
            fixed.fill(rows as u64, &mut batch);
            prop_assert_eq!(batch.get().counted() as u64, fixed.examples().all_counted());
        }
    }

    #[test]
    fn rows_are_nearly_full_and_epochs_differ() {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as usize
        };
        let lengths: Vec<usize> = (0..3000).map(|_| 2 + next() % BLOCK).collect();
        let packing = Packing::new(examples(&lengths), BLOCK, 1);
        let places = packing.examples().all_places();
        let rows = packing.rows_of(1.0);
        let padding = 1.0 - places as f64 / (rows * BLOCK as u64) as f64;
        // The longest half of these lengths needs a row each, whatever is put beside.
        assert!(padding < 0.05, "{padding}");
        let (first, second) = (epoch(&lengths, &packing, 0), epoch(&lengths, &packing, 1));
        let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
        assert!(same < 30, "{same}");
        let other = epoch(&lengths, &Packing::new(examples(&lengths), BLOCK, 2), 0);
        assert!(first.iter().zip(&other).filter(|(a, b)| a == b).count() < 30);
    }

    #[test]
    fn a_run_goes_over_the_border_of_epochs() {
        let lengths = [5; 9];
        let packing = Packing::new(examples(&lengths), BLOCK, 3);
        // Six to a row: two rows an epoch.
        assert_eq!((packing.before(1), packing.before(7)), (2, 14));
        let mut batch = ReadyBatch::new(4 * BLOCK);
        packing.fill(11, &mut batch);
        let counts: Vec<usize> = (0..4).map(|row| read(&lengths, &batch, row).len()).collect();
        assert_eq!(counts, [3, 6, 3, 6]);
        assert_eq!(packing.held(11, 4).counted, batch.get().counted());
    }
}
