//! Rounds over validation data: the same batches each time, every sequence at most once.

use cllm_core::{Batch, IGNORE, Loss, StepError};

use crate::data::loader::Validation;
use crate::data::packing::FixedRows;
use crate::data::prefetch::ReadyBatch;
use crate::error::{Error, Result};

/// The batches of a validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    sequences: u64,
    batch_size: usize,
    /// Batches that hold all sequences.
    all: u64,
    /// Batches taken.
    taken: u64,
}

impl Rounds {
    /// At most `batches` batches of `batch_size` of `sequences` sequences, spread evenly;
    /// 0 takes all there are.
    #[must_use]
    pub fn new(sequences: u64, batch_size: usize, batches: usize) -> Self {
        let all = sequences.div_ceil(batch_size.max(1) as u64);
        let taken = if batches == 0 { all } else { all.min(batches as u64) };
        Self { sequences, batch_size, all, taken }
    }

    /// Batches taken.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.taken
    }

    /// Whether there is no batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// First sequence of batch `round`, and how many of its rows are not repetitions
    /// from the start of the data.
    fn batch(&self, round: u64) -> (u64, usize) {
        // In 128 bits: a long run of a large data set must not wrap.
        let index = u128::from(round) * u128::from(self.all) / u128::from(self.taken.max(1));
        let first = index as u64 * self.batch_size as u64;
        let left = self.sequences.saturating_sub(first);
        (first, left.min(self.batch_size as u64) as usize)
    }

    /// Fills `batch` with batch `round`. Targets of repeated rows are ignored.
    ///
    /// # Errors
    /// What [`Validation::fill_batch`] refuses.
    pub fn fill(&self, round: u64, data: &Held, batch: &mut ReadyBatch) -> Result<()> {
        let (first, rows) = self.batch(round);
        match data {
            Held::Windows(data) => {
                let (tokens, targets) = batch.ids();
                data.fill_batch(first, self.batch_size, tokens, targets)?;
            }
            Held::Examples(data) => data.fill(first, batch),
        }
        let targets = batch.targets_mut();
        let row = targets.len() / self.batch_size.max(1);
        targets[rows * row..].fill(IGNORE);
        Ok(())
    }

    /// Loss of batch `round`.
    ///
    /// # Errors
    /// What the data or the model refuses.
    pub fn loss(
        &self,
        round: u64,
        data: &Held,
        batch: &mut ReadyBatch,
        evaluate: impl FnOnce(&Batch<'_>) -> core::result::Result<Loss, StepError>,
    ) -> Result<Loss> {
        self.fill(round, data, batch)?;
        evaluate(&batch.get()).map_err(refused)
    }

    /// Mean loss over all batches; `None` if `evaluate` gave up in between.
    ///
    /// # Errors
    /// What the data or the model refuses.
    pub fn mean(
        &self,
        data: &Held,
        batch: &mut ReadyBatch,
        mut evaluate: impl FnMut(&Batch<'_>) -> Option<core::result::Result<Loss, StepError>>,
    ) -> Result<Option<Loss>> {
        let mut total = Loss { sum: 0.0, counted: 0 };
        for round in 0..self.taken {
            self.fill(round, data, batch)?;
            let Some(loss) = evaluate(&batch.get()) else { return Ok(None) };
            let loss = loss.map_err(refused)?;
            total.sum += loss.sum;
            total.counted += loss.counted;
        }
        Ok(Some(total))
    }
}

fn refused(error: StepError) -> Error {
    Error::failure(format!("validation: {error}"))
}

/// Data to measure a loss on.
#[derive(Debug)]
pub enum Held {
    /// Windows of text.
    Windows(Validation),
    /// Rows of examples.
    Examples(FixedRows),
}

impl Held {
    /// Number of sequences.
    #[must_use]
    pub fn sequences(&self) -> u64 {
        match self {
            Self::Windows(data) => data.sequences(),
            Self::Examples(data) => data.rows(),
        }
    }

    /// Number of tokens in the data.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        match self {
            Self::Windows(data) => data.tokens(),
            Self::Examples(data) => data.examples().all_places(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::stream::TokenStream;

    #[test]
    fn all_rounds_see_every_sequence_once() {
        for (sequences, batch_size) in [(1, 4), (4, 4), (10, 4), (11, 1)] {
            let rounds = Rounds::new(sequences, batch_size, 0);
            let mut seen = vec![0; sequences as usize];
            for round in 0..rounds.len() {
                let (first, rows) = rounds.batch(round);
                for i in first..first + rows as u64 {
                    seen[i as usize] += 1;
                }
            }
            assert!(seen.iter().all(|n| *n == 1), "{sequences} by {batch_size}: {seen:?}");
        }
    }

    #[test]
    fn some_rounds_are_spread_and_distinct() {
        let rounds = Rounds::new(100, 4, 5);
        let firsts: Vec<u64> = (0..rounds.len()).map(|r| rounds.batch(r).0).collect();
        assert_eq!(firsts, [0, 20, 40, 60, 80]);
        assert_eq!(Rounds::new(100, 4, 99).len(), 25);
        assert!(Rounds::new(0, 4, 0).is_empty());
    }

    #[test]
    fn repeated_rows_do_not_count() {
        let stream = TokenStream::from_tokens("t", (0..13).collect());
        let data = Held::Windows(Validation::open(stream, 13, 4).unwrap());
        let rounds = Rounds::new(data.sequences(), 2, 0);
        let mut batch = ReadyBatch::new(8);
        let mut counted = Vec::new();
        let total = rounds.mean(&data, &mut batch, |batch| {
            counted.push(batch.counted());
            Some(Ok(Loss { sum: 1.0, counted: batch.counted() }))
        });
        assert_eq!(counted, [8, 4]);
        assert_eq!(total.unwrap(), Some(Loss { sum: 2.0, counted: 12 }));
        let stopped = rounds.mean(&data, &mut batch, |_| None).unwrap();
        assert_eq!(stopped, None);
    }
}
