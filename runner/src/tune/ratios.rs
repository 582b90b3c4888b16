//! Ratios of times taken in turns, and how far they can be trusted.

use serde::Serialize;

/// The ratios of some rounds: time with one set as a share of that with the default set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratios {
    /// The middle one.
    pub median: f64,
    /// A quarter of them are below.
    pub low: f64,
    /// A quarter of them are above.
    pub high: f64,
    /// How many there are.
    pub rounds: usize,
}

impl Ratios {
    /// Of at least one ratio.
    pub(super) fn of(mut ratios: Vec<f64>) -> Self {
        ratios.sort_by(f64::total_cmp);
        let last = ratios.len().saturating_sub(1);
        let at = |share: f64| {
            let place = share * last as f64;
            let (below, part) = (place as usize, place.fract());
            let of = |i: usize| ratios.get(i.min(last)).copied().unwrap_or(1.0);
            of(below) + part * (of(below + 1) - of(below))
        };
        Self { median: at(0.5), low: at(0.25), high: at(0.75), rounds: ratios.len() }
    }

    /// How far the median may be off: two standard errors of a median, which are 1.25 standard
    /// deviations over the root of the number, of a deviation taken from the quartiles (a normal
    /// distribution has 1.35 between them).
    #[must_use]
    pub fn doubt(&self) -> f64 {
        2.0 * 1.25 / 1.35 * (self.high - self.low) / (self.rounds.max(1) as f64).sqrt()
    }

    /// What the default set against itself tells of the noise: how far its median is from 1, or
    /// may be, and never less than [`LEAST`].
    pub(super) fn noise(&self) -> f64 {
        (self.median - 1.0).abs().max(self.doubt()).max(LEAST)
    }
}

/// Gains below this are not worth a file: where memory happens to lie makes as much.
pub(super) const LEAST: f64 = 0.005;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_the_ratios() {
        let ratios = Ratios::of(vec![1.3, 0.9, 1.0, 1.1, 1.2]);
        assert_eq!((ratios.low, ratios.median, ratios.high, ratios.rounds), (1.0, 1.1, 1.2, 5));
        let two = Ratios::of(vec![1.0, 2.0]);
        assert_eq!((two.low, two.median, two.high), (1.25, 1.5, 1.75));
        assert_eq!(Ratios::of(vec![0.5]).doubt(), 0.0);
    }

    #[test]
    fn more_rounds_leave_less_doubt_and_noise_is_never_nothing() {
        let few = Ratios { median: 1.0, low: 0.99, high: 1.01, rounds: 4 };
        let many = Ratios { rounds: 64, ..few };
        assert!((few.doubt() / many.doubt() - 4.0).abs() < 1e-9);
        assert_eq!(Ratios { low: 1.0, high: 1.0, ..few }.noise(), LEAST);
        assert!((Ratios { median: 0.9, ..few }.noise() - 0.1).abs() < 1e-9);
    }
}
