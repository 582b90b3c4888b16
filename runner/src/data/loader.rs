//! Batches: windows of the token stream copied into the caller's buffers.

use super::sampler::{FixedWindows, Sampler};
use super::stream::TokenStream;
use crate::error::{Error, Result};

/// Training data in its shuffled order.
#[derive(Debug, Clone)]
pub struct Dataset {
    stream: TokenStream,
    sampler: Sampler,
    vocab_size: usize,
    block_size: usize,
}

impl Dataset {
    /// Windows of `block_size` tokens of `stream`, in the order of `seed`.
    ///
    /// # Errors
    /// When the stream is shorter than `block_size + 1` tokens.
    pub fn open(
        stream: TokenStream,
        vocab_size: usize,
        block_size: usize,
        seed: u64,
    ) -> Result<Self> {
        let sampler = Sampler::new(&stream.name(), stream.len(), block_size, seed)?;
        Ok(Self { stream, sampler, vocab_size, block_size })
    }

    /// Number of tokens in the data.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.stream.len()
    }

    /// All of them, as they stand in the text.
    #[must_use]
    pub fn stream(&self) -> &TokenStream {
        &self.stream
    }

    /// Sequences in an epoch.
    #[must_use]
    pub fn sequences_per_epoch(&self) -> u64 {
        self.sampler.windows_per_epoch()
    }

    /// The order of the windows.
    #[must_use]
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Copies the sequences `first..first + sequences` of the run, one after
    /// the other, into `tokens`, and into `targets` what follows each token.
    /// Both hold `sequences * block_size`. Nothing is allocated.
    ///
    /// # Errors
    /// A token beyond the vocabulary (with shard and place), or buffers of
    /// another size.
    pub fn fill_batch(
        &self,
        first: u64,
        sequences: usize,
        tokens: &mut [u32],
        targets: &mut [u32],
    ) -> Result<()> {
        let start = |i| self.sampler.window(first.wrapping_add(i));
        let shape = Shape { sequences, block_size: self.block_size, vocab_size: self.vocab_size };
        fill(&self.stream, shape, start, tokens, targets)
    }
}

/// Validation data: the same windows in the same order each time.
#[derive(Debug, Clone)]
pub struct Validation {
    stream: TokenStream,
    windows: FixedWindows,
    vocab_size: usize,
    block_size: usize,
}

impl Validation {
    /// All whole windows of `block_size` tokens of `stream`.
    ///
    /// # Errors
    /// When the stream is shorter than `block_size + 1` tokens.
    pub fn open(stream: TokenStream, vocab_size: usize, block_size: usize) -> Result<Self> {
        let windows = FixedWindows::new(&stream.name(), stream.len(), block_size)?;
        Ok(Self { stream, windows, vocab_size, block_size })
    }

    /// Number of tokens in the data.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.stream.len()
    }

    /// Number of sequences.
    #[must_use]
    pub fn sequences(&self) -> u64 {
        self.windows.count()
    }

    /// As [`Dataset::fill_batch`], in the order of the stream; the last
    /// sequence is followed by the first.
    ///
    /// # Errors
    /// As [`Dataset::fill_batch`].
    pub fn fill_batch(
        &self,
        first: u64,
        sequences: usize,
        tokens: &mut [u32],
        targets: &mut [u32],
    ) -> Result<()> {
        let start = |i| self.windows.window(first.wrapping_add(i));
        let shape = Shape { sequences, block_size: self.block_size, vocab_size: self.vocab_size };
        fill(&self.stream, shape, start, tokens, targets)
    }
}

#[derive(Clone, Copy)]
struct Shape {
    sequences: usize,
    block_size: usize,
    vocab_size: usize,
}

fn fill(
    stream: &TokenStream,
    shape: Shape,
    start: impl Fn(u64) -> u64,
    tokens: &mut [u32],
    targets: &mut [u32],
) -> Result<()> {
    let size = shape.sequences.checked_mul(shape.block_size);
    if size != Some(tokens.len()) || size != Some(targets.len()) {
        return Err(Error::failure(format!(
            "a batch of {} x {} tokens does not fit buffers of {} and {}",
            shape.sequences,
            shape.block_size,
            tokens.len(),
            targets.len()
        )));
    }
    let rows = tokens.chunks_exact_mut(shape.block_size);
    let target_rows = targets.chunks_exact_mut(shape.block_size);
    for ((i, row), target_row) in (0..).zip(rows).zip(target_rows) {
        let first = start(i);
        stream.fill_checked(first, row, shape.vocab_size)?;
        let (last, shifted) = target_row.split_at_mut(shape.block_size - 1);
        last.copy_from_slice(&row[1..]);
        stream.fill_checked(first + shape.block_size as u64, shifted, shape.vocab_size)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_tokens_that_follow() {
        let stream = TokenStream::from_tokens("t", (0..1000).collect());
        let data = Dataset::open(stream.clone(), 1000, 8, 5).unwrap();
        let validation = Validation::open(stream, 1000, 8).unwrap();
        let (mut x, mut y) = (vec![0; 32], vec![0; 32]);
        for first in [0, 4, 1234] {
            data.fill_batch(first, 4, &mut x, &mut y).unwrap();
            for (i, (row, target)) in x.chunks(8).zip(y.chunks(8)).enumerate() {
                let start = data.sampler().window(first + i as u64) as u32;
                assert_eq!(row, (start..start + 8).collect::<Vec<_>>());
                assert_eq!(target, (start + 1..start + 9).collect::<Vec<_>>());
            }
        }
        assert_eq!(validation.sequences(), 124);
        validation.fill_batch(123, 4, &mut x, &mut y).unwrap();
        assert_eq!((x[0], y[7], x[8]), (984, 992, 0));
    }

    #[test]
    fn any_batch_size_sees_the_same_sequences() {
        let stream = TokenStream::from_tokens("t", (0..1000).collect());
        let data = Dataset::open(stream, 1000, 8, 5).unwrap();
        let mut whole = (vec![0; 8 * 6], vec![0; 8 * 6]);
        data.fill_batch(100, 6, &mut whole.0, &mut whole.1).unwrap();
        let mut half = (vec![0; 8 * 3], vec![0; 8 * 3]);
        for part in 0..2 {
            data.fill_batch(100 + 3 * part as u64, 3, &mut half.0, &mut half.1).unwrap();
            assert_eq!(half.0, whole.0[part * 24..][..24]);
            assert_eq!(half.1, whole.1[part * 24..][..24]);
        }
    }

    #[test]
    fn a_target_beyond_the_vocabulary_is_found_too() {
        let stream = TokenStream::from_tokens("data.bin", vec![1, 2, 3, 9]);
        let data = Dataset::open(stream, 9, 3, 0).unwrap();
        let message = data.fill_batch(0, 1, &mut [0; 3], &mut [0; 3]).unwrap_err().to_string();
        assert!(message.contains("data.bin: token 3 is 9"), "{message}");
    }

    #[test]
    fn buffers_of_another_size_are_refused() {
        let stream = TokenStream::from_tokens("t", (0..100).collect());
        let data = Dataset::open(stream, 100, 8, 5).unwrap();
        assert!(data.fill_batch(0, 2, &mut [0; 16], &mut [0; 15]).is_err());
        assert!(data.fill_batch(0, usize::MAX, &mut [0; 16], &mut [0; 16]).is_err());
    }
}
