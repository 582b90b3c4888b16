//! Learning-rate schedules: pure functions of the step, so resuming needs no state.

use core::fmt;

/// The shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// Stays at the peak.
    Constant,
    /// Straight line from the peak to the minimum, which the step after the last one has.
    Linear,
    /// Half a cosine from the peak to the minimum, which the step after the last one has
    /// (Loshchilov and Hutter, "SGDR", 2017).
    Cosine,
    /// Stays at the peak, then falls in a straight line over the last `decay_steps`
    /// steps and reaches the minimum with the last one (Hu et al., "MiniCPM", 2024,
    /// section 4).
    WarmupStableDecay {
        /// Length of the fall.
        decay_steps: u64,
    },
}

/// The learning rate of every step.
///
/// ```
/// use cllm_core::{Decay, Schedule};
///
/// let decay = Decay::WarmupStableDecay { decay_steps: 20 };
/// let schedule = Schedule { peak: 1e-3, min: 0.0, warmup_steps: 9, max_steps: 100, decay };
/// schedule.validate()?;
/// // Rises over ten steps, stays, and falls over the last twenty.
/// assert_eq!([4, 9, 79].map(|step| schedule.rate(step)), [5e-4, 1e-3, 1e-3]);
/// assert_eq!([89, 99].map(|step| schedule.rate(step)), [5e-4, 0.0]);
/// # Ok::<(), cllm_core::ScheduleError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Highest rate, reached at the end of warm-up.
    pub peak: f32,
    /// Rate after the last step: what the decays run towards.
    pub min: f32,
    /// Steps of linear rise: step `i` (from 0) has `peak * (i + 1) / (warmup + 1)`.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub max_steps: u64,
    /// What happens in between.
    pub decay: Decay,
}

/// Why a schedule makes no sense.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScheduleError {
    /// A rate is negative, infinite or NaN.
    Rate(f32),
    /// The minimum exceeds the peak.
    MinAbovePeak {
        /// The minimum.
        min: f32,
        /// The peak.
        peak: f32,
    },
}

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Rate(rate) => {
                write!(f, "a learning rate of {rate} is neither zero nor positive and finite")
            }
            Self::MinAbovePeak { min, peak } => {
                write!(f, "the minimum learning rate {min} exceeds the peak {peak}")
            }
        }
    }
}

impl core::error::Error for ScheduleError {}

impl Schedule {
    /// Checks the rates.
    ///
    /// # Errors
    /// The first rate that makes no sense.
    pub fn validate(&self) -> Result<(), ScheduleError> {
        for rate in [self.peak, self.min] {
            if !(rate >= 0.0 && rate.is_finite()) {
                return Err(ScheduleError::Rate(rate));
            }
        }
        if self.min > self.peak {
            return Err(ScheduleError::MinAbovePeak { min: self.min, peak: self.peak });
        }
        Ok(())
    }

    /// The rate of step `step`, counted from 0.
    #[must_use]
    pub fn rate(&self, step: u64) -> f32 {
        let (peak, min) = (f64::from(self.peak), f64::from(self.min));
        if step < self.warmup_steps {
            return (peak * (step as f64 + 1.0) / (self.warmup_steps as f64 + 1.0)) as f32;
        }
        let start = match self.decay {
            Decay::Constant => return self.peak,
            Decay::Linear | Decay::Cosine => self.warmup_steps,
            Decay::WarmupStableDecay { decay_steps } => {
                self.max_steps.saturating_sub(decay_steps).max(self.warmup_steps)
            }
        };
        if step < start {
            return self.peak;
        }
        let length = self.max_steps.saturating_sub(start);
        if step - start >= length {
            return self.min;
        }
        let progress = (step - start) as f64 / length as f64;
        let share = match self.decay {
            Decay::Cosine => 0.5 * (1.0 + libm::cos(core::f64::consts::PI * progress)),
            Decay::WarmupStableDecay { .. } => 1.0 - (step - start + 1) as f64 / length as f64,
            Decay::Linear | Decay::Constant => 1.0 - progress,
        };
        (min + share * (peak - min)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { peak: 1.0, min: 0.1, warmup_steps: 9, max_steps: 109, decay }
    }

    #[test]
    fn warm_up_rises_to_the_peak() {
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            let s = schedule(decay);
            assert!((s.rate(0) - 0.1).abs() < 1e-7);
            assert!((s.rate(8) - 0.9).abs() < 1e-7);
            assert_eq!(s.rate(9), 1.0);
        }
    }

    #[test]
    fn decays_pass_through_their_middle_and_end_at_the_minimum() {
        for decay in [Decay::Linear, Decay::Cosine] {
            let s = schedule(decay);
            assert!((s.rate(59) - 0.55).abs() < 1e-6, "{decay:?} {}", s.rate(59));
            assert_eq!(s.rate(109), 0.1);
            assert_eq!(s.rate(10_000), 0.1);
        }
        // A quarter of the way the cosine is still above the line.
        assert!(schedule(Decay::Cosine).rate(34) > schedule(Decay::Linear).rate(34) + 0.05);
        assert_eq!(schedule(Decay::Constant).rate(1000), 1.0);
    }

    #[test]
    fn stable_phase_lasts_until_the_decay() {
        let s = schedule(Decay::WarmupStableDecay { decay_steps: 20 });
        assert_eq!(s.rate(88), 1.0);
        assert!(s.rate(89) < 1.0);
        assert!((s.rate(98) - 0.55).abs() < 1e-6);
        // The last of 109 steps, and what is after it.
        assert_eq!((s.rate(108), s.rate(109)), (0.1, 0.1));
        let short = schedule(Decay::WarmupStableDecay { decay_steps: 1 });
        assert_eq!((short.rate(107), short.rate(108)), (1.0, 0.1));
        // A decay longer than the run starts after warm-up.
        let long = schedule(Decay::WarmupStableDecay { decay_steps: 500 });
        assert_eq!(long.rate(8), 0.9);
        assert!(long.rate(9) < 1.0 && long.rate(9) > 0.98);
        let endless = Schedule { warmup_steps: u64::MAX, ..s };
        assert!(endless.rate(108) < 1e-6);
    }

    #[test]
    fn degenerate_runs_have_a_rate() {
        let s = Schedule { warmup_steps: 0, max_steps: 0, ..schedule(Decay::Cosine) };
        assert_eq!(s.rate(0), 0.1);
        let s = Schedule { warmup_steps: 500, ..schedule(Decay::Cosine) };
        assert!(s.rate(108) < 1.0);
    }

    #[test]
    fn senseless_rates_are_refused() {
        assert!(schedule(Decay::Linear).validate().is_ok());
        let s = Schedule { peak: f32::NAN, ..schedule(Decay::Linear) };
        assert!(matches!(s.validate(), Err(ScheduleError::Rate(_))));
        let s = Schedule { min: 2.0, ..schedule(Decay::Linear) };
        assert!(matches!(s.validate(), Err(ScheduleError::MinAbovePeak { .. })));
    }
}
