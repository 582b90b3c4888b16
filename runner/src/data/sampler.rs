//! The order in which windows of the data are trained on: shuffled, and known
//! for any step without having gone through the steps before.
//!
//! An epoch cuts the stream into windows of `block_size` tokens (the target of
//! the last one is the token after it). The grid of windows starts at an
//! offset drawn for the epoch, so that a text is not cut at the same places
//! each time, and the windows come in an order drawn for the epoch. The order
//! is a keyed permutation of the numbers below the number of windows (a
//! Feistel network on the next power of four, repeated until the result is in
//! range), so window `n` of the run costs the same few multiplications
//! whatever `n` is, and resuming a run needs nothing but the step.

use crate::error::{Error, Result};

/// Where the windows of a stream start, in training order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampler {
    seed: u64,
    block_size: u64,
    /// Windows in an epoch, the same in each.
    windows: u64,
    /// Offsets of the grid are drawn below this.
    offsets: u64,
}

/// Rounds of the Feistel network: four make it a good permutation of a large
/// set; small sets want some more.
const ROUNDS: u64 = 8;

impl Sampler {
    /// A sampler over `tokens` tokens.
    ///
    /// With two blocks or more, each epoch leaves out less than two blocks at
    /// the ends, others each time; with fewer there is one window.
    ///
    /// # Errors
    /// Fewer than `block_size + 1` tokens, or a block of none: `name` says
    /// which data.
    pub fn new(name: &str, tokens: u64, block_size: usize, seed: u64) -> Result<Self> {
        let block = check_length(name, tokens, block_size)?;
        let (windows, offsets) =
            if tokens / block >= 2 { (tokens / block - 1, block) } else { (1, tokens - block) };
        Ok(Self { seed, block_size: block, windows, offsets })
    }

    /// Windows in an epoch.
    #[must_use]
    pub fn windows_per_epoch(&self) -> u64 {
        self.windows
    }

    /// The epoch, counted from zero, that window `n` of the run belongs to.
    #[must_use]
    pub fn epoch(&self, n: u64) -> u64 {
        n / self.windows
    }

    /// Place of the first token of window `n`, counted from the start of the
    /// run; `block_size + 1` tokens from there on exist.
    #[must_use]
    pub fn window(&self, n: u64) -> u64 {
        let epoch = n / self.windows;
        let index = permute(self.windows, n % self.windows, self.key(epoch, 0));
        let offset = self.key(epoch, 1) % self.offsets;
        offset + index * self.block_size
    }

    /// A number for each purpose in each epoch.
    fn key(&self, epoch: u64, purpose: u64) -> u64 {
        mix(mix(mix(self.seed) ^ epoch) ^ purpose)
    }
}

/// The fixed windows of validation data, in their order in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedWindows {
    block_size: u64,
    windows: u64,
}

impl FixedWindows {
    /// All whole windows of `tokens` tokens, from the start.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn new(name: &str, tokens: u64, block_size: usize) -> Result<Self> {
        let block = check_length(name, tokens, block_size)?;
        Ok(Self { block_size: block, windows: (tokens - 1) / block })
    }

    /// Number of windows.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.windows
    }

    /// Place of the first token of window `n`; after the last comes the first.
    #[must_use]
    pub fn window(&self, n: u64) -> u64 {
        n % self.windows * self.block_size
    }
}

fn check_length(name: &str, tokens: u64, block_size: usize) -> Result<u64> {
    let block = block_size as u64;
    if block == 0 {
        return Err(Error::usage("--block-size 0: a block needs at least one token"));
    }
    if tokens <= block {
        return Err(Error::failure(format!(
            "{name}: too little data: {tokens} tokens, but a block of {block_size} needs at least \
             {}; add text or lower --block-size",
            block + 1
        )));
    }
    Ok(block)
}

/// Where `x` goes in the permutation of `0..n` with this key.
pub(super) fn permute(n: u64, mut x: u64, key: u64) -> u64 {
    // Halves of equal width: the domain is below four times n, so the expected
    // number of repetitions is below four.
    let half = (u64::BITS - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1 << half) - 1;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..ROUNDS {
            let scrambled = mix(right ^ mix(key ^ round));
            (left, right) = (right, left ^ (scrambled & mask));
        }
        x = left << half | right;
        if x < n {
            return x;
        }
    }
}

/// The finaliser of SplitMix64: every bit of the result depends on every bit.
pub(super) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sampler with exactly this many windows an epoch.
    fn with_windows(windows: u64, block: usize, seed: u64) -> Sampler {
        let tokens = if windows == 1 { block as u64 + 1 } else { (windows + 1) * block as u64 };
        let sampler = Sampler::new("t", tokens, block, seed).unwrap();
        assert_eq!(sampler.windows_per_epoch(), windows);
        sampler
    }

    #[test]
    fn each_window_comes_once_an_epoch() {
        for windows in [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 255, 1000, 4096, 65_537] {
            for seed in [0, 1, 1337] {
                let block = 8;
                let sampler = with_windows(windows, block, seed);
                for epoch in 0..3 {
                    let starts = (0..windows).map(|i| sampler.window(epoch * windows + i));
                    let mut starts: Vec<u64> = starts.collect();
                    starts.sort_unstable();
                    let grid: Vec<u64> =
                        (0..windows).map(|i| starts[0] + i * block as u64).collect();
                    assert_eq!(starts, grid, "{windows} windows, seed {seed}, epoch {epoch}");
                    assert!(starts[0] < block as u64);
                }
            }
        }
    }

    #[test]
    fn every_window_and_its_target_exist() {
        for block in [1, 2, 3, 8, 13] {
            for tokens in block as u64 + 1..=block as u64 * 6 + 1 {
                let sampler = Sampler::new("t", tokens, block, 7).unwrap();
                let fixed = FixedWindows::new("t", tokens, block).unwrap();
                for n in 0..200 {
                    for start in [sampler.window(n), fixed.window(n)] {
                        assert!(start + (block as u64) < tokens, "{tokens} {block} {start}");
                    }
                }
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_boundaries_move() {
        let a = with_windows(1000, 128, 1);
        let b = with_windows(1000, 128, 2);
        let order = |s: &Sampler, epoch: u64| -> Vec<u64> {
            (0..1000).map(|i| s.window(epoch * 1000 + i) / 128).collect()
        };
        let same = |x: &[u64], y: &[u64]| x.iter().zip(y).filter(|(a, b)| a == b).count();
        let first = order(&a, 0);
        assert!(same(&first, &order(&a, 1)) < 20);
        assert!(same(&first, &order(&b, 0)) < 20);
        assert!(same(&first, &(0..1000).collect::<Vec<_>>()) < 20, "not shuffled");
        let offsets: std::collections::HashSet<u64> =
            (0..64).map(|epoch| a.window(epoch * 1000) % 128).collect();
        assert!(offsets.len() > 32, "{} offsets in 64 epochs", offsets.len());
    }

    #[test]
    fn each_place_is_reached_from_anywhere_about_equally() {
        // Where does the first window of an epoch lie? Over 8,000 epochs each
        // of 8 places is expected 1,000 times, with a deviation of 30.
        let sampler = with_windows(8, 4, 99);
        let mut counts = [0; 8];
        for epoch in 0..8000 {
            counts[(sampler.window(epoch * 8) / 4) as usize % 8] += 1;
        }
        // A grid offset never moves a start into the next block.
        assert!(counts.iter().all(|&c| (850..1150).contains(&c)), "{counts:?}");
    }

    #[test]
    fn the_order_is_pinned() {
        // Resuming a run with a newer program must find the same order.
        let sampler = Sampler::new("t", 10_000, 64, 1337).unwrap();
        let starts: Vec<u64> = (0..4).chain([1_000_000_007]).map(|n| sampler.window(n)).collect();
        assert_eq!(starts, [2780, 1308, 9372, 9308, 7956]);
    }

    #[test]
    fn too_little_data_says_how_much_is_needed() {
        let message = Sampler::new("tiny.txt", 128, 128, 0).unwrap_err().to_string();
        for part in ["tiny.txt", "128 tokens", "129"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(FixedWindows::new("v", 0, 1).is_err());
        assert_eq!(Sampler::new("t", 10, 0, 0).unwrap_err().exit_code(), 2);
        assert_eq!(FixedWindows::new("v", 129, 128).unwrap().count(), 1);
        assert_eq!(FixedWindows::new("v", 257, 128).unwrap().count(), 2);
    }
}
