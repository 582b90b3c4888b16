//! Tables of the angles of rotary positions.
//!
//! Pair `i` of a head of `n` columns turns by `p theta^(-2 i / n)` at position `p`. Angles are
//! made in `f64`: those of a few thousand positions have no room in an `f32` beside their
//! fractions of a turn.

use crate::architecture::{Rotary, Scaling};
use core::f64::consts::TAU;

impl Rotary {
    /// What pair `pair` of a head of `head` columns turns by from a position to the next, in radians.
    #[must_use]
    pub fn step(&self, pair: usize, head: usize) -> f64 {
        let plain = libm::pow(f64::from(self.theta), -2.0 * pair as f64 / head as f64);
        match self.scaling {
            Scaling::None => plain,
            Scaling::Linear { factor } => plain / f64::from(factor),
            Scaling::Llama3 { factor, low, high, original } => {
                let [factor, low, high] = [factor, low, high].map(f64::from);
                // Waves in the original length: 0 where all of the factor counts, 1 where none.
                let waves = f64::from(original) * plain / TAU;
                let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * plain / factor + kept * plain
            }
        }
    }

    /// Fills the tables that begin at these places of a pool, of cosines and behind them of sines: a row
    /// of `head / 2` for each position, from position 0 on.
    ///
    /// # Panics
    /// If they overlap, or lie outside the pool.
    pub(crate) fn fill(
        &self,
        head: usize,
        positions: usize,
        [cos, sin]: [usize; 2],
        pool: &mut [f32],
    ) {
        let half = head / 2;
        let (front, back) = pool.split_at_mut(sin);
        let (cos, sin) = (&mut front[cos..][..positions * half], &mut back[..positions * half]);
        for pair in 0..half {
            let step = self.step(pair, head);
            let column = |table: &mut [f32], f: fn(f64) -> f64| {
                for (at, to) in table.iter_mut().skip(pair).step_by(half).enumerate() {
                    *to = f(at as f64 * step) as f32;
                }
            };
            column(cos, libm::cos);
            column(sin, libm::sin);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;

    use super::*;
    use std::vec;

    fn plain(theta: f32) -> Rotary {
        Rotary { theta, scaling: Scaling::None }
    }

    #[test]
    fn rows_are_positions_and_columns_pairs() {
        let mut pool = vec![f32::NAN; 3 + 2 * 20 + 7 + 1];
        plain(10_000.0).fill(8, 5, [3, 30], &mut pool);
        let (cos, sin) = (&pool[3..23], &pool[30..50]);
        assert!(pool[..3].iter().chain(&pool[23..30]).chain(&pool[50..]).all(|x| x.is_nan()));
        for position in 0..5 {
            for (pair, step) in [1.0, 0.1, 0.01, 0.001].into_iter().enumerate() {
                let angle = position as f64 * step;
                let at = position * 4 + pair;
                assert!((f64::from(cos[at]) - libm::cos(angle)).abs() < 1e-7, "{position} {pair}");
                assert!((f64::from(sin[at]) - libm::sin(angle)).abs() < 1e-7, "{position} {pair}");
            }
        }
    }

    #[test]
    fn scaling_stretches_long_waves_and_leaves_short_ones() {
        let linear = Rotary { scaling: Scaling::Linear { factor: 4.0 }, ..plain(1e4) };
        assert_eq!(linear.step(3, 8), plain(1e4).step(3, 8) / 4.0);
        // Llama 3.1's.
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 };
        let (stretched, first) = (Rotary { scaling, ..plain(5e5) }, plain(5e5));
        let ratio = |pair| stretched.step(pair, 128) / first.step(pair, 128);
        // Waves of 2 pi and of 2 pi 5e5^(126 / 128) tokens.
        assert_eq!(ratio(0), 1.0);
        assert_eq!(ratio(63), 1.0 / 8.0);
        // 8192 / 4 < 2 pi 5e5^(2 i / 128) < 8192 holds for i of 29 to 34.
        for pair in 0..64 {
            let between = ratio(pair) < 1.0 && ratio(pair) > 1.0 / 8.0;
            assert_eq!(between, (29..=34).contains(&pair), "{pair}: {}", ratio(pair));
        }
        // The middle of the way, by hand: 8192 / (2 pi 5e5^(0.5)) = 1.84383 waves, of 3 above 1 are
        // 0.281283, which with an eighth of the others is 0.371122.
        assert!((ratio(32) - 0.371_122).abs() < 1e-5, "{}", ratio(32));
    }
}
