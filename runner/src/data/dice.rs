//! Chance by whole numbers only, so that it falls the same on any machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A ChaCha generator with the few draws that the reference data set needs.
#[derive(Debug)]
pub(crate) struct Dice {
    chacha: ChaCha8Rng,
}

impl Dice {
    /// The sequence of this seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Self { chacha: ChaCha8Rng::from_seed(key) }
    }

    /// A number below `n`, all about equally likely.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.chacha.next_u32()) * u64::from(n)) >> 32) as u32
    }

    /// True `percent` times out of a hundred.
    pub(super) fn percent(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    /// One of `items`, all equally likely.
    pub(super) fn choose<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u32) as usize]
    }

    /// A place below `zipf.len()`, the first ones the most likely.
    pub(super) fn zipf(&mut self, zipf: &Zipf) -> usize {
        let total = zipf.sums.last().copied().unwrap_or(1);
        let drawn = self.below(total);
        zipf.sums.partition_point(|&sum| sum <= drawn)
    }
}

/// Zipf's law: the word of rank r comes about 1 / (r + 2) times as often.
#[derive(Debug)]
pub(super) struct Zipf {
    sums: Vec<u32>,
}

impl Zipf {
    /// Over `n` ranks.
    pub(super) fn new(n: usize) -> Self {
        let weight = |rank: usize| 1_000_000 / (rank as u32 + 3);
        let sums = (0..n).scan(0, |sum, rank| {
            *sum += weight(rank);
            Some(*sum)
        });
        Self { sums: sums.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_pinned_and_follow_their_law() {
        let mut dice = Dice::new(1);
        let zipf = Zipf::new(50);
        let mut counts = [0u32; 50];
        for _ in 0..100_000 {
            counts[dice.zipf(&zipf)] += 1;
        }
        assert!(counts.iter().all(|&c| c > 0));
        let ratio = counts[0] * 100 / counts[9];
        assert!((350..460).contains(&ratio), "12 to 3 expected: {ratio}");
        let mut dice = Dice::new(1);
        assert_eq!([(); 4].map(|()| dice.below(1000)), [628, 381, 929, 294]);
    }
}
