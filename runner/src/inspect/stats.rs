//! Figures of a tensor's values.

use serde::Serialize;

/// Summary of some values; sums are of `f64`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stats {
    /// Mean.
    pub mean: f64,
    /// Root of the mean square.
    pub rms: f64,
    /// The least that is a number.
    pub least: f32,
    /// The largest that is a number.
    pub largest: f32,
    /// How many are not finite.
    pub not_finite: usize,
}

impl Stats {
    /// Of these values; those that are not finite are only counted.
    #[must_use]
    pub fn of(values: &[f32]) -> Self {
        let (mut sum, mut squares, mut finite) = (0.0, 0.0, 0_usize);
        let (mut least, mut largest) = (f32::INFINITY, f32::NEG_INFINITY);
        for value in values.iter().copied().filter(|value| value.is_finite()) {
            let wide = f64::from(value);
            sum += wide;
            squares += wide * wide;
            finite += 1;
            least = least.min(value);
            largest = largest.max(value);
        }
        let count = finite.max(1) as f64;
        if finite == 0 {
            (least, largest) = (0.0, 0.0);
        }
        let rms = (squares / count).sqrt();
        Self { mean: sum / count, rms, least, largest, not_finite: values.len() - finite }
    }

    pub(super) fn text(&self) -> String {
        let Self { mean, rms, least, largest, not_finite } = self;
        let mut text =
            format!("mean {mean:+.2e}  rms {rms:.2e}  from {least:+.2e} to {largest:+.2e}");
        if *not_finite > 0 {
            text += &format!("  {not_finite} not finite");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_counted_apart() {
        let stats = Stats::of(&[1.0, f32::NAN, -3.0, f32::INFINITY, 2.0]);
        assert_eq!((stats.mean, stats.least, stats.largest), (0.0, -3.0, 2.0));
        assert_eq!((stats.rms, stats.not_finite), ((14.0_f64 / 3.0).sqrt(), 2));
        let none = Stats::of(&[]);
        assert_eq!((none.mean, none.least, none.largest, none.not_finite), (0.0, 0.0, 0.0, 0));
        assert!(stats.text().contains("2 not finite"));
    }
}
