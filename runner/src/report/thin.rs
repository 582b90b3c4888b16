//! Curves of as many points as can be drawn, however long a run is, without losing spikes.

use serde::Serialize;

/// Most points of a curve.
pub(super) const MOST: usize = 2000;

/// Values over steps. What is not a finite number is `null` in JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Points {
    pub(super) step: Vec<u64>,
    pub(super) value: Vec<f64>,
}

/// A curve to be drawn.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Thinned {
    #[serde(flatten)]
    pub(super) points: Points,
    /// How many there were.
    pub(super) of: usize,
    /// Means of what lies between the points, if they are not all: extremes alone would put a smoothed
    /// curve in the wrong place.
    pub(super) mean: Option<Points>,
}

impl Points {
    fn push(&mut self, step: u64, value: f64) {
        self.step.push(step);
        self.value.push(value);
    }
}

/// All points if they are few; else the first, the last, and of equal parts between them the lowest and
/// the highest.
pub(super) fn thin(steps: &[u64], values: &[f64]) -> Thinned {
    let of = steps.len().min(values.len());
    let (steps, values) = (&steps[..of], &values[..of]);
    if of <= MOST {
        let points = Points { step: steps.to_vec(), value: values.to_vec() };
        return Thinned { points, of, mean: None };
    }
    let parts = MOST / 2 - 1;
    let (mut points, mut mean) = (Points::default(), Points::default());
    points.push(steps[0], values[0]);
    let inner = of - 2;
    for part in 0..parts {
        let [from, to] = [part, part + 1].map(|n| 1 + n * inner / parts);
        let finite = || (from..to).filter(|at| values[*at].is_finite());
        let by_value = |a: &usize, b: &usize| values[*a].total_cmp(&values[*b]);
        match (finite().min_by(by_value), finite().max_by(by_value)) {
            (Some(low), Some(high)) => {
                points.push(steps[low.min(high)], values[low.min(high)]);
                if low != high {
                    points.push(steps[low.max(high)], values[low.max(high)]);
                }
                let sum: f64 = finite().map(|at| values[at]).sum();
                mean.push(steps[(from + to) / 2], sum / finite().count() as f64);
            }
            _ => points.push(steps[from], f64::NAN),
        }
    }
    points.push(steps[of - 1], values[of - 1]);
    Thinned { points, of, mean: Some(mean) }
}

/// Numbers below `of`: at most `most`, evenly apart, the first and the last among them.
pub(super) fn spread(of: usize, most: usize) -> impl Iterator<Item = usize> {
    let taken = of.min(most);
    (0..taken).map(move |n| if taken < 2 { 0 } else { n * (of - 1) / (taken - 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_points_stay_as_they_are() {
        let (steps, values): (Vec<u64>, Vec<f64>) =
            (1..=MOST as u64).map(|n| (n, n as f64)).unzip();
        let thinned = thin(&steps, &values);
        assert_eq!((thinned.points.step, thinned.points.value), (steps, values));
        assert_eq!((thinned.of, thinned.mean), (MOST, None));
        assert_eq!(thin(&[], &[]), Thinned::default());
    }

    #[test]
    fn of_many_points_spikes_stay() {
        let steps: Vec<u64> = (1..=1_000_000).collect();
        let mut values = vec![1.0; steps.len()];
        (values[777_777], values[333_333], values[999_999]) = (99.0, -5.0, 7.0);
        values[500_000] = f64::NAN;
        let Thinned { points, of, mean } = thin(&steps, &values);
        assert_eq!(of, 1_000_000);
        assert!(points.step.len() <= MOST && points.step.len() == points.value.len());
        assert!(points.step.is_sorted(), "out of order");
        let at = |step: u64| points.value[points.step.binary_search(&step).unwrap()];
        assert_eq!([at(1), at(777_778), at(333_334), at(1_000_000)], [1.0, 99.0, -5.0, 7.0]);
        let mean = mean.unwrap();
        assert!(mean.step.len() <= MOST / 2);
        assert!(mean.value.iter().all(|mean| (0.9..1.2).contains(mean)), "{:?}", mean.value);
    }

    #[test]
    fn what_is_nowhere_a_number_stays_a_gap() {
        let steps: Vec<u64> = (0..10_000).collect();
        let values = vec![f64::NAN; steps.len()];
        let thinned = thin(&steps, &values);
        assert!(thinned.points.value.iter().all(|value| value.is_nan()));
        assert_eq!(thinned.mean, Some(Points::default()));
    }

    #[test]
    fn some_are_spread_over_all() {
        assert_eq!(spread(3, 5).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(101, 3).collect::<Vec<_>>(), [0, 50, 100]);
        assert_eq!(spread(7, 1).collect::<Vec<_>>(), [0]);
        assert_eq!(spread(0, 3).count(), 0);
    }
}
