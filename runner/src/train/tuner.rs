//! `--threads auto`: times the run's own first steps with several numbers of workers and
//! keeps the fastest.
//!
//! The weights do not depend on the number, so nothing is done twice and nothing is lost:
//! these are steps of the run, some of them slower. From all CPUs downwards each number
//! gets a few steps; the search ends at the first number that is clearly slower than the
//! best before it, for what fewer workers lose only grows. A smaller number must be
//! faster beyond doubt to win: with more workers a neighbour's noise costs less. Before it
//! does, it and the best larger one get another turn each, and the better of both turns
//! counts: a neighbour may have had the larger one's.

use serde::Serialize;

/// Steps with a number before those that count: workers fall asleep or wake up.
const SETTLE: u32 = 1;
/// Steps, at least, that count for a number.
const STEPS: usize = 3;
/// Seconds of steps that count for a number, unless they are [`MOST_STEPS`] before.
const SECONDS: f64 = 0.25;
const MOST_STEPS: usize = 40;
/// A smaller number wins if its steps take less than this share of the time.
const CLEARLY_FASTER: f64 = 0.99;
/// The search goes on to smaller numbers unless the last took more than this share.
const CLEARLY_SLOWER: f64 = 1.1;

/// What one number of workers took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tried {
    /// Workers.
    pub threads: usize,
    /// Median seconds of a step, of the better of its turns.
    pub seconds: f64,
}

/// The search under way, or its end.
#[derive(Debug)]
pub(super) struct Tuner {
    /// Numbers still to try, the next one last.
    left: Vec<usize>,
    trying: usize,
    settled: u32,
    times: Vec<f64>,
    tried: Vec<Tried>,
    /// All are tried, and some once more.
    repeats: bool,
    chosen: Option<usize>,
}

impl Tuner {
    /// Among 1 to `most` workers.
    pub(super) fn new(most: usize) -> Self {
        // All, three quarters, a half, three eighths ... one.
        let mut left = vec![];
        let mut n = most;
        while n > 1 {
            left.extend([n, n * 3 / 4]);
            n /= 2;
        }
        left.push(1);
        left.dedup();
        left.reverse();
        let trying = left.pop().unwrap_or(1);
        let chosen = left.is_empty().then_some(trying);
        let times = Vec::with_capacity(MOST_STEPS);
        let (settled, tried, repeats) = (0, Vec::new(), false);
        Self { left, trying, settled, times, tried, repeats, chosen }
    }

    /// A search that is over: `threads` were asked for.
    pub(super) fn fixed(threads: usize) -> Self {
        Self { chosen: Some(threads), trying: threads, ..Self::new(1) }
    }

    /// How many workers the next step is to have.
    pub(super) fn threads(&self) -> usize {
        self.chosen.unwrap_or(self.trying)
    }

    /// All that was tried.
    pub(super) fn tried(&self) -> &[Tried] {
        &self.tried
    }

    /// A step took `seconds`. Returns the number of workers if it was found with this step.
    pub(super) fn step(&mut self, seconds: f64) -> Option<usize> {
        if self.chosen.is_some() {
            return None;
        }
        if self.settled < SETTLE {
            self.settled += 1;
            return None;
        }
        self.times.push(seconds);
        let enough = self.times.len() >= STEPS && self.times.iter().sum::<f64>() >= SECONDS;
        if !enough && self.times.len() < MOST_STEPS {
            return None;
        }
        self.times.sort_by(f64::total_cmp);
        let now = Tried { threads: self.trying, seconds: self.times[self.times.len() / 2] };
        let best = self.best();
        match self.tried.iter_mut().find(|tried| tried.threads == now.threads) {
            Some(before) => before.seconds = before.seconds.min(now.seconds),
            None => self.tried.push(now),
        }
        let is_hopeless = best.is_some_and(|best| now.seconds >= best.seconds * CLEARLY_SLOWER);
        if is_hopeless && !self.repeats {
            self.left.clear();
        }
        if self.left.is_empty() && !self.repeats {
            self.repeats = true;
            self.left = self.doubted();
        }
        match self.left.pop() {
            Some(next) => {
                (self.trying, self.settled) = (next, 0);
                self.times.clear();
                None
            }
            None => {
                self.chosen = self.best().map(|best| best.threads);
                self.chosen
            }
        }
    }

    /// What is to be tried again: the winner and the best larger number, if there is one.
    fn doubted(&self) -> Vec<usize> {
        let Some(winner) = self.best() else { return Vec::new() };
        let larger = self.tried.iter().filter(|tried| tried.threads > winner.threads);
        let second = larger.min_by(|a, b| a.seconds.total_cmp(&b.seconds));
        second.map_or_else(Vec::new, |second| vec![winner.threads, second.threads])
    }

    fn best(&self) -> Option<Tried> {
        let mut tried = self.tried.iter().copied();
        let first = tried.next()?;
        Some(tried.fold(first, |best, now| {
            if now.seconds < best.seconds * CLEARLY_FASTER { now } else { best }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The search on a machine where steps take `seconds(workers)`, and how many steps it took.
    fn search(most: usize, seconds: impl Fn(usize) -> f64) -> (Tuner, u32) {
        let mut tuner = Tuner::new(most);
        let mut steps = 0;
        while tuner.chosen.is_none() {
            steps += 1;
            // A neighbour disturbs every fifth step.
            let noise = if steps % 5 == 0 { 3.0 } else { 1.0 };
            tuner.step(noise * seconds(tuner.threads()));
            assert!(steps < 1000);
        }
        (tuner, steps)
    }

    #[test]
    fn the_fastest_number_is_found() {
        let perfect = |n: usize| 0.4 / n as f64;
        for most in [2, 3, 8, 64, 100] {
            assert_eq!(search(most, perfect).0.threads(), most);
        }
        // Two are slower than one: a step is too short.
        assert_eq!(search(2, |n| 1e-3 * n as f64).0.threads(), 1);
        // Memory is full at 24 of 64.
        let (tuner, _) = search(64, |n| 1.0 / n.min(24) as f64 + 1e-3 * n as f64);
        assert_eq!(tuner.threads(), 24, "{:?}", tuner.tried());
    }

    #[test]
    fn what_is_hopeless_is_not_tried() {
        let (tuner, steps) = search(64, |n| 32.0 / n as f64);
        let tried: Vec<_> = tuner.tried().iter().map(|t| t.threads).collect();
        assert_eq!(tried, [64, 48]);
        assert_eq!(steps, 8);
    }

    #[test]
    fn within_noise_the_larger_number_stays() {
        assert_eq!(search(2, |n| if n == 1 { 0.0996 } else { 0.1 }).0.threads(), 2);
        assert_eq!(search(2, |n| if n == 1 { 0.098 } else { 0.1 }).0.threads(), 1);
    }

    #[test]
    fn a_larger_number_whose_turn_was_disturbed_gets_another() {
        for disturbed in [5, 9] {
            let mut tuner = Tuner::new(2);
            for step in 0..100 {
                let noise = if step < disturbed { 4.0 } else { 1.0 };
                tuner.step(noise * 0.2 / tuner.threads() as f64);
            }
            assert_eq!(tuner.threads(), 2, "{:?}", tuner.tried());
            let tried: Vec<_> = tuner.tried().iter().map(|tried| tried.threads).collect();
            assert_eq!(tried, [2, 1]);
        }
    }

    #[test]
    fn with_one_cpu_or_a_given_number_there_is_nothing_to_search() {
        for (mut tuner, threads) in [(Tuner::new(1), 1), (Tuner::fixed(7), 7)] {
            assert!(tuner.chosen.is_some());
            assert_eq!((tuner.step(1.0), tuner.threads()), (None, threads));
        }
    }
}
