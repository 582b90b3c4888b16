//! Losses and gradient norms that stand out: each against those of the steps before.
//!
//! ```text
//! median    of the last `window` steps that were trained on
//! deviation 1.4826 times the median distance from it: of a normal distribution the standard deviation
//!           (at least a share of the median, for numbers that hardly differ)
//! spike     above median + threshold * deviation, or not finite
//! ```
//! Both medians are of numbers as they are, so that a few spikes among them move neither (Hampel, "The
//! influence curve and its role in robust estimation", 1974). Nothing is judged before half a window is
//! there. All of it follows from the losses and norms of steps, and goes with the checkpoint: a run that is
//! resumed judges as if it had never stopped.

use std::collections::VecDeque;

use crate::checkpoint::WatchState;

/// Of a normal distribution the standard deviation, in median distances from the median.
const NORMAL: f64 = 1.4826;
/// Least deviation of losses, as a share of their median: a spike of the default threshold is then at least
/// 1.07 times as high.
const LEAST_OF_LOSS: f64 = 0.01;
/// The same of gradient norms, which differ more from batch to batch: 1.7 times.
const LEAST_OF_NORM: f64 = 0.1;

/// What a value has to be below of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Median of the steps before.
    pub median: f64,
    /// What is above is a spike.
    pub limit: f64,
}

/// The last few of some numbers.
#[derive(Clone, Debug)]
struct Recent {
    values: VecDeque<f32>,
    /// For medians.
    room: Vec<f64>,
    window: usize,
}

impl Recent {
    fn new(window: usize, bits: &[u32]) -> Self {
        let mut values = VecDeque::with_capacity(window);
        values.extend(bits[bits.len().saturating_sub(window)..].iter().map(|x| f32::from_bits(*x)));
        Self { values, room: Vec::with_capacity(window), window }
    }

    fn push(&mut self, value: f32) {
        if self.values.len() >= self.window {
            self.values.pop_front();
        }
        self.values.push_back(value);
    }

    /// The median of `of` each value; of an even number the upper one.
    fn median(&mut self, of: impl Fn(f64) -> f64) -> f64 {
        self.room.clear();
        self.room.extend(self.values.iter().map(|x| of(f64::from(*x))));
        let middle = self.room.len() / 2;
        *self.room.select_nth_unstable_by(middle, f64::total_cmp).1
    }

    /// `None` while there are too few.
    fn limit(&mut self, threshold: f64, least: f64) -> Option<Limit> {
        if self.values.len() < self.window.div_ceil(2) {
            return None;
        }
        let median = self.median(|x| x);
        let distance = self.median(|x| (x - median).abs());
        let deviation = (NORMAL * distance).max(least * median.abs());
        Some(Limit { median, limit: median + threshold * deviation })
    }

    fn bits(&self) -> Vec<u32> {
        self.values.iter().map(|x| x.to_bits()).collect()
    }
}

/// What is known of a run's steps. Judging and taking in allocate nothing.
#[derive(Clone, Debug)]
pub struct Watch {
    threshold: f64,
    losses: Recent,
    norms: Recent,
    /// All but the numbers of steps.
    kept: WatchState,
}

impl Watch {
    /// Over so many steps, going on from `state`.
    #[must_use]
    pub fn new(window: usize, threshold: f64, state: WatchState) -> Self {
        let losses = Recent::new(window, &state.losses);
        let norms = Recent::new(window, &state.grad_norms);
        let kept = WatchState { losses: Vec::new(), grad_norms: Vec::new(), ..state };
        Self { threshold, losses, norms, kept }
    }

    /// What is to go with a checkpoint.
    #[must_use]
    pub fn state(&self) -> WatchState {
        let (losses, grad_norms) = (self.losses.bits(), self.norms.bits());
        WatchState { losses, grad_norms, ..self.kept.clone() }
    }

    /// What is kept beside the numbers of steps.
    #[must_use]
    pub fn kept(&self) -> &WatchState {
        &self.kept
    }

    /// The same, to be changed.
    pub fn kept_mut(&mut self) -> &mut WatchState {
        &mut self.kept
    }

    /// What a loss has to be below of now; `None` if nothing is judged yet.
    pub fn loss_limit(&mut self) -> Option<Limit> {
        self.losses.limit(self.threshold, LEAST_OF_LOSS)
    }

    /// The same of the gradient's norm.
    pub fn norm_limit(&mut self) -> Option<Limit> {
        self.norms.limit(self.threshold, LEAST_OF_NORM)
    }

    /// Takes in a step that was trained on.
    pub fn push(&mut self, loss: f64, grad_norm: f64) {
        self.losses.push(loss as f32);
        self.norms.push(grad_norm as f32);
        self.kept.skipped_in_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(window: usize) -> Watch {
        Watch::new(window, 7.0, WatchState::default())
    }

    #[test]
    fn nothing_is_judged_before_half_a_window_is_there() {
        let mut watch = watch(9);
        for _ in 0..4 {
            watch.push(3.0, 1.0);
            assert_eq!((watch.loss_limit(), watch.norm_limit()), (None, None));
        }
        watch.push(3.0, 1.0);
        // Of numbers that do not differ the least deviation counts.
        let near = |limit: Option<Limit>, median: f64, at: f64| {
            let limit = limit.unwrap();
            assert!((limit.median - median).abs() < 1e-9, "{limit:?}");
            assert!((limit.limit - at).abs() < 1e-9, "{limit:?}");
        };
        near(watch.loss_limit(), 3.0, 3.21);
        near(watch.norm_limit(), 1.0, 1.7);
    }

    #[test]
    fn a_few_spikes_move_nothing() {
        let mut watch = watch(16);
        for i in 0..16 {
            watch.push(3.0 + 0.1 * f64::from(i % 4), 1.0);
        }
        let before = watch.loss_limit().unwrap();
        // Median 3.2 and distance 0.1: 3.2 + 7 * 0.148.
        assert!((before.median - 3.2).abs() < 1e-6 && (before.limit - 4.238).abs() < 1e-3);
        for _ in 0..3 {
            watch.push(1e30, 1e30);
        }
        let after = watch.loss_limit().unwrap();
        assert!(after.limit < before.limit + 0.7, "{before:?} {after:?}");
        // What is old goes.
        for _ in 0..16 {
            watch.push(2.0, 1.0);
        }
        assert!((watch.loss_limit().unwrap().median - 2.0).abs() < 1e-9);
    }

    #[test]
    fn it_goes_on_where_it_stopped_to_the_bit() {
        let number = |i: u64| f64::from((i * 2_654_435_761 % 1000) as u32) / 300.0 + 0.1;
        let mut whole = watch(10);
        for i in 0..57 {
            whole.push(number(i), number(i + 1));
            let text = serde_json::to_string(&whole.state()).unwrap();
            let state: WatchState = serde_json::from_str(&text).unwrap();
            let mut resumed = Watch::new(10, 7.0, state.clone());
            assert_eq!(resumed.state(), state);
            assert_eq!(resumed.loss_limit(), whole.loss_limit());
            assert_eq!(resumed.norm_limit(), whole.norm_limit());
        }
        // A shorter window takes the newest.
        let mut shorter = Watch::new(2, 7.0, whole.state());
        let newest = number(56).max(number(55)) as f32;
        assert_eq!(shorter.loss_limit().unwrap().median, f64::from(newest));
    }
}
