//! The search for a better set: one size after the other, from the default set.
//!
//! ```text
//! the default set against itself              -> the noise
//! for each coordinate (row block, tile of a weight's gradient, ...)
//!     for each of its other values, the rest as in the best set so far
//!         measure against the default set; the best set is the new one if it beats the old
//!         one by more than the noise, and by more than its own doubt
//! the best set once more, for longer: it counts if it still beats the default set by as much
//! ```
//! The last measurement is apart from those that chose the set: of many that are alike, the one
//! that looks best has had luck.

use super::ratios::Ratios;
use crate::error::Result;
use cllm_core::Blocking;
use serde::Serialize;

/// Fields of [`Blocking`] that are set together, and the values to try for them.
#[derive(Clone, Debug)]
pub(super) struct Coordinate {
    pub(super) fields: &'static [&'static str],
    pub(super) values: &'static [&'static [usize]],
}

/// What there is to try, what matters most first. Packing on the way can only be better for
/// `large` models.
pub(super) fn coordinates(large: bool) -> Vec<Coordinate> {
    let mut all = vec![
        Coordinate { fields: &["row_block"], values: &[&[64], &[96], &[128], &[192], &[384]] },
        Coordinate {
            fields: &["weight_rows", "weight_cols"],
            values: &[
                &[128, 128],
                &[128, 256],
                &[256, 128],
                &[256, 256],
                &[256, 512],
                &[512, 256],
                &[512, 512],
            ],
        },
        Coordinate { fields: &["tiles_per_worker"], values: &[&[2], &[4], &[8]] },
        Coordinate { fields: &["logits_blocks"], values: &[&[1], &[2], &[4]] },
        Coordinate { fields: &["update_floats"], values: &[&[8 << 10], &[32 << 10], &[128 << 10]] },
    ];
    if large {
        all.push(Coordinate {
            fields: &["fresh_floats", "fresh_rows"],
            values: &[&[0, 0], &[0, usize::MAX >> 1]],
        });
    }
    all
}

/// What came of measuring a set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Measured {
    /// It cuts the step as one does that was measured before.
    Known,
    /// There is no time left for it.
    NoTime,
    /// Against the default set.
    Ratios(Ratios),
}

/// Why a set is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To learn what the noise is.
    Noise,
    /// To see whether it is better.
    Try,
    /// To make sure that it is.
    Confirm,
}

/// A set that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// How it differs from the default set, `field value, ...`.
    pub change: String,
    /// Its time against that of the default set; `None` if there was no time left for it.
    pub ratios: Option<Ratios>,
    /// What was made of it.
    pub verdict: &'static str,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) noise: f64,
    /// The best set and its confirmed ratio, if it is better than the default set.
    pub(super) better: Option<(Blocking, Ratios)>,
}

/// Searches from `default`, by `measure`; tells `told` of each trial as it ends.
///
/// # Errors
/// Those of `measure` and `told`.
pub(super) fn search(
    default: Blocking,
    coordinates: &[Coordinate],
    measure: &mut dyn FnMut(&Blocking, Purpose) -> Result<Measured>,
    told: &mut dyn FnMut(Trial) -> Result<()>,
) -> Result<Found> {
    let mut tell = |blocking: &Blocking, ratios: Option<Ratios>, verdict| {
        told(Trial { change: difference(&default, blocking), ratios, verdict })
    };
    let Measured::Ratios(itself) = measure(&default, Purpose::Noise)? else {
        return Ok(Found { noise: 0.0, better: None });
    };
    let noise = itself.noise();
    tell(&default, Some(itself), "the default against itself")?;
    let (mut best, mut ratio) = (default, 1.0);
    for coordinate in coordinates {
        let start = best;
        for values in coordinate.values {
            let mut candidate = start;
            for (field, value) in coordinate.fields.iter().zip(*values) {
                candidate.set(field, *value);
            }
            if candidate == start {
                continue;
            }
            match measure(&candidate, Purpose::Try)? {
                Measured::Known => {}
                Measured::NoTime => tell(&candidate, None, "not tried: no time left")?,
                Measured::Ratios(ratios) => {
                    let wins = ratios.median < ratio - noise.max(ratios.doubt());
                    if wins {
                        (best, ratio) = (candidate, ratios.median);
                    }
                    tell(&candidate, Some(ratios), if wins { "the best so far" } else { "" })?;
                }
            }
        }
    }
    let mut better = None;
    if best != default
        && let Measured::Ratios(again) = measure(&best, Purpose::Confirm)?
    {
        let gain = 1.0 - again.median;
        let is_sure = gain > noise && gain > again.doubt();
        tell(&best, Some(again), if is_sure { "confirmed" } else { "not confirmed" })?;
        better = is_sure.then_some((best, again));
    }
    Ok(Found { noise, better })
}

/// The fields in which `other` differs, and their values.
pub(super) fn difference(default: &Blocking, other: &Blocking) -> String {
    let fields = default.fields().into_iter().zip(other.fields());
    let changed: Vec<String> = fields
        .filter(|(default, other)| default != other)
        .map(|(_, (name, value))| format!("{name} {value}"))
        .collect();
    if changed.is_empty() { "default".to_owned() } else { changed.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches on a machine where steps take `time(blocking)` of the default's time, with some
    /// spread, and the `luck` of a purpose.
    fn on(time: impl Fn(&Blocking) -> f64, luck: impl Fn(Purpose) -> f64) -> (Found, Vec<Trial>) {
        let default = Blocking::default();
        let mut trials = Vec::new();
        let mut seen = Vec::new();
        let found = search(
            default,
            &coordinates(false),
            &mut |blocking, purpose| {
                if purpose == Purpose::Try && seen.contains(blocking) {
                    return Ok(Measured::Known);
                }
                seen.push(*blocking);
                let median = luck(purpose) * time(blocking) / time(&default);
                let (low, high) = (median - 0.005, median + 0.005);
                Ok(Measured::Ratios(Ratios { median, low, high, rounds: 16 }))
            },
            &mut |trial| {
                trials.push(trial);
                Ok(())
            },
        );
        (found.unwrap(), trials)
    }

    #[test]
    fn the_best_of_each_coordinate_is_found() {
        let time = |b: &Blocking| {
            let off = |value: usize, best: f64| (value as f64 / best).log2().abs();
            10.0 + off(b.row_block, 192.0) + off(b.weight_cols, 512.0) + off(b.weight_rows, 256.0)
        };
        let (found, trials) = on(time, |_| 1.0);
        let (best, ratios) = found.better.unwrap();
        assert_eq!((best.row_block, best.weight_rows, best.weight_cols), (192, 256, 512));
        assert_eq!(ratios.median, time(&best) / time(&Blocking::default()));
        assert_eq!(trials[0].verdict, "the default against itself");
        let last = trials.last().unwrap();
        assert_eq!(
            (&last.change[..], last.verdict),
            ("row_block 192, weight_cols 512", "confirmed")
        );
    }

    #[test]
    fn gains_within_the_noise_are_not_taken() {
        let time = |b: &Blocking| if b.row_block == 64 { 0.98 } else { 1.0 };
        // The default against itself is off by as much.
        let noisy = |purpose| if purpose == Purpose::Noise { 1.02 } else { 1.0 };
        let (found, trials) = on(time, noisy);
        assert_eq!(found.better, None);
        assert!((found.noise - 0.02).abs() < 1e-9);
        assert!(trials.iter().all(|trial| trial.verdict != "the best so far"), "{trials:?}");
        assert!(on(time, |_| 1.0).0.better.is_some());
    }

    #[test]
    fn a_disturbed_measurement_is_not_taken() {
        let measure = &mut |_: &Blocking, purpose| {
            let (median, low) = if purpose == Purpose::Noise { (1.0, 1.0) } else { (0.9, 0.7) };
            Ok(Measured::Ratios(Ratios { median, low, high: 1.0, rounds: 6 }))
        };
        let told = &mut |trial: Trial| {
            assert_ne!(trial.verdict, "the best so far");
            Ok(())
        };
        let found = search(Blocking::default(), &coordinates(false), measure, told);
        assert_eq!(found.unwrap().better, None);
    }

    #[test]
    fn luck_does_not_last_to_the_confirmation() {
        let lucky = |purpose| if purpose == Purpose::Try { 0.95 } else { 1.0 };
        let (found, trials) = on(|_| 1.0, lucky);
        assert_eq!(found.better, None);
        assert_eq!(trials.last().unwrap().verdict, "not confirmed");
    }

    #[test]
    fn what_there_is_no_time_for_is_told() {
        let mut told = Vec::new();
        let found = search(
            Blocking::default(),
            &coordinates(true),
            &mut |_, purpose| {
                let itself = Ratios { median: 1.0, low: 1.0, high: 1.0, rounds: 5 };
                Ok(if purpose == Purpose::Noise {
                    Measured::Ratios(itself)
                } else {
                    Measured::NoTime
                })
            },
            &mut |trial| {
                told.push(trial);
                Ok(())
            },
        );
        assert_eq!(found.unwrap().better, None);
        assert!(told.len() > 10 && told[1..].iter().all(|trial| trial.ratios.is_none()));
    }
}
