//! Choosing the next token from logits: greedy, temperature, top-k, top-p, min-p and
//! repetition penalty, in that customary order of filters.
//!
//! Penalty (Keskar et al., "CTRL", 2019, section 4.1), then temperature, then the k
//! most probable, then the nucleus (Holtzman et al., 2020), then the share of the
//! most probable (Nguyen et al., "Min-p", 2024), then one draw from what is left.

use crate::init::UNIT;
use core::cmp::Ordering;
use core::fmt;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Logits are divided by this; 0 takes the most probable token (greedy).
    pub temperature: f32,
    /// Keeps the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this share as probable as the most probable; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits of recent tokens and multiplies negative ones; 1 does nothing.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SamplerConfig {
    /// Plain sampling from the model's distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

/// Which setting is out of range, and what it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SamplerError {
    /// Must be finite and at least 0.
    Temperature(f32),
    /// Must be above 0 and at most 1.
    TopP(f32),
    /// Must be at least 0 and at most 1.
    MinP(f32),
    /// Must be finite and above 0.
    RepetitionPenalty(f32),
}

impl fmt::Display for SamplerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Temperature(x) => write!(f, "temperature is {x}: it must be 0 or more"),
            Self::TopP(x) => write!(f, "top_p is {x}: it must be above 0 and at most 1"),
            Self::MinP(x) => write!(f, "min_p is {x}: it must be from 0 to 1"),
            Self::RepetitionPenalty(x) => {
                write!(f, "repetition_penalty is {x}: it must be above 0")
            }
        }
    }
}

impl core::error::Error for SamplerError {}

/// Working memory of a sampler: one for each id of the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    id: u32,
    weight: f32,
}

impl Candidate {
    /// Filler for the caller's memory.
    pub const EMPTY: Self = Self { id: 0, weight: 0.0 };

    /// Heavier first, then the lower id, so that ties do not depend on the sort.
    fn order(&self, other: &Self) -> Ordering {
        other.weight.total_cmp(&self.weight).then(self.id.cmp(&other.id))
    }
}

/// A stream of choices: the same seed and logits give the same tokens.
///
/// ```
/// use cllm_core::sample::{Candidate, Sampler, SamplerConfig};
///
/// let logits = [0.1, 2.0, -1.0, 1.9];
/// let mut memory = [Candidate::EMPTY; 4];
/// let greedy = SamplerConfig { temperature: 0.0, ..SamplerConfig::default() };
/// assert_eq!(Sampler::new(greedy)?.sample(&logits, &[], &mut memory), 1);
/// // Token 1 was there recently.
/// let penalised = SamplerConfig { repetition_penalty: 1.2, ..greedy };
/// assert_eq!(Sampler::new(penalised)?.sample(&logits, &[1], &mut memory), 3);
///
/// // Of the two most probable ones, as often as the model says.
/// let mut draws = Sampler::new(SamplerConfig { top_k: 2, seed: 7, ..SamplerConfig::default() })?;
/// let mut counts = [0; 4];
/// for _ in 0..1000 {
///     counts[draws.sample(&logits, &[], &mut memory) as usize] += 1;
/// }
/// assert_eq!((counts[0], counts[2]), (0, 0));
/// assert!((400..600).contains(&counts[3]));
/// # Ok::<(), cllm_core::sample::SamplerError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its stream.
    ///
    /// # Errors
    /// The first setting out of range.
    pub fn new(config: SamplerConfig) -> Result<Self, SamplerError> {
        let SamplerConfig { temperature, top_p, min_p, repetition_penalty, .. } = config;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(SamplerError::Temperature(temperature));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(SamplerError::TopP(top_p));
        }
        if !(0.0..=1.0).contains(&min_p) {
            return Err(SamplerError::MinP(min_p));
        }
        if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
            return Err(SamplerError::RepetitionPenalty(repetition_penalty));
        }
        Ok(Self { config, rng: ChaCha8Rng::seed_from_u64(config.seed) })
    }

    /// Chooses a token id. `recent` are the tokens that the penalty applies to.
    ///
    /// NaN logits count as impossible. If every token is impossible, the lowest id is
    /// chosen.
    ///
    /// # Panics
    /// If `logits` is empty or `memory` is shorter than it.
    pub fn sample(&mut self, logits: &[f32], recent: &[u32], memory: &mut [Candidate]) -> u32 {
        assert!(!logits.is_empty(), "there is nothing to choose from");
        let all = &mut memory[..logits.len()];
        for (id, (candidate, logit)) in all.iter_mut().zip(logits).enumerate() {
            let weight = if logit.is_nan() { f32::NEG_INFINITY } else { *logit };
            *candidate = Candidate { id: id as u32, weight };
        }
        for id in recent {
            // From the logit, not the weight: a token seen twice is penalised once.
            let (Some(candidate), Some(logit)) =
                (all.get_mut(*id as usize), logits.get(*id as usize))
            else {
                continue;
            };
            let penalty = self.config.repetition_penalty;
            if !logit.is_nan() {
                candidate.weight = if *logit > 0.0 { logit / penalty } else { logit * penalty };
            }
        }
        if self.config.temperature == 0.0 {
            return all.iter().min_by(|a, b| a.order(b)).map_or(0, |best| best.id);
        }
        let mut kept = all;
        let k = self.config.top_k;
        if k > 0 && k < kept.len() {
            kept.select_nth_unstable_by(k - 1, Candidate::order);
            kept = &mut kept[..k];
        }
        kept.sort_unstable_by(Candidate::order);
        let most = kept[0].weight;
        if most == f32::NEG_INFINITY {
            return kept[0].id;
        }
        let mut total = 0.0;
        for candidate in kept.iter_mut() {
            // An infinite logit beats everything: inf - inf would be NaN.
            let distance = if candidate.weight == most { 0.0 } else { candidate.weight - most };
            candidate.weight = libm::expf(distance / self.config.temperature);
            total += f64::from(candidate.weight);
        }
        let nucleus = total * f64::from(self.config.top_p);
        let (mut sum, mut len) = (0.0, 0);
        for candidate in kept.iter() {
            // Weights are relative to the heaviest, which is 1.
            if len > 0 && (sum >= nucleus || candidate.weight < self.config.min_p) {
                break;
            }
            sum += f64::from(candidate.weight);
            len += 1;
        }
        let kept = &kept[..len];
        let mut left = f64::from((self.rng.next_u32() >> 8) as f32 * UNIT) * sum;
        for candidate in kept {
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                return candidate.id;
            }
        }
        kept[len - 1].id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 3.0];

    fn draws(config: SamplerConfig, logits: &[f32], recent: &[u32], n: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(config).unwrap();
        let mut memory = vec![Candidate::EMPTY; logits.len()];
        let mut counts = vec![0; logits.len()];
        for _ in 0..n {
            counts[sampler.sample(logits, recent, &mut memory) as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_most_probable() {
        let greedy = SamplerConfig { temperature: 0.0, ..SamplerConfig::default() };
        assert_eq!(draws(greedy, &LOGITS, &[], 3), [0, 3, 0, 0, 0]);
        // Penalised, ids 1 and 4 fall to 1.5 and id 2 wins.
        let penalised = SamplerConfig { repetition_penalty: 2.0, ..greedy };
        assert_eq!(draws(penalised, &LOGITS, &[1, 4, 1], 3), [0, 0, 3, 0, 0]);
    }

    #[test]
    fn plain_sampling_follows_the_softmax() {
        let n = 40_000;
        for temperature in [1.0_f32, 0.7, 2.0] {
            let config = SamplerConfig { temperature, seed: 5, ..SamplerConfig::default() };
            let counts = draws(config, &LOGITS, &[], n);
            let weights = LOGITS.map(|x| f64::from(x / temperature).exp());
            let sum: f64 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                let (share, p) = (*count as f64 / n as f64, weight / sum);
                // Five standard deviations.
                let bound = 5.0 * (p * (1.0 - p) / n as f64).sqrt();
                assert!((share - p).abs() < bound, "{share} for {p}");
            }
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        let base = SamplerConfig::default();
        let kept =
            |config| draws(config, &LOGITS, &[], 4000).iter().map(|c| *c > 0).collect::<Vec<_>>();
        assert_eq!(kept(SamplerConfig { top_k: 3, ..base }), [false, true, true, false, true]);
        // Probabilities: .05 .40 .15 .007 .40.
        assert_eq!(kept(SamplerConfig { top_p: 0.5, ..base }), [false, true, false, false, true]);
        assert_eq!(kept(SamplerConfig { top_p: 0.3, ..base }), [false, true, false, false, false]);
        assert_eq!(kept(SamplerConfig { min_p: 0.3, ..base }), [false, true, true, false, true]);
        assert_eq!(kept(SamplerConfig { min_p: 1.0, ..base }), [false, true, false, false, true]);
    }

    #[test]
    fn impossible_logits_do_not_break_it() {
        let base = SamplerConfig::default();
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert_eq!(draws(base, &[nan, 0.0, nan], &[0], 50), [0, 50, 0]);
        assert_eq!(draws(base, &[0.0, inf, 5.0], &[], 50), [0, 50, 0]);
        assert_eq!(draws(base, &[-inf, -inf], &[], 5), [5, 0]);
        assert_eq!(draws(base, &[nan], &[7], 5), [5]);
    }

    #[test]
    fn seeds_repeat_and_differ() {
        let config = SamplerConfig { seed: 1, ..SamplerConfig::default() };
        let run = |seed| {
            let mut s = Sampler::new(SamplerConfig { seed, ..config }).unwrap();
            let mut memory = [Candidate::EMPTY; 5];
            (0..40).map(|_| s.sample(&LOGITS, &[], &mut memory)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let base = SamplerConfig::default();
        for bad in [
            SamplerConfig { temperature: -1.0, ..base },
            SamplerConfig { temperature: f32::NAN, ..base },
            SamplerConfig { top_p: 0.0, ..base },
            SamplerConfig { top_p: 1.5, ..base },
            SamplerConfig { min_p: -0.1, ..base },
            SamplerConfig { repetition_penalty: 0.0, ..base },
        ] {
            assert!(Sampler::new(bad).is_err(), "{bad:?}");
        }
    }
}
