//! How far measured numbers may be from what more data would give.

/// Two-sided 95 % of a normal distribution.
const Z95: f64 = 1.959_963_984_540_054;
/// Fewest parts whose spread says something.
const FEWEST: usize = 3;

/// The quantile of Student's t distribution for two-sided 95 %, by its expansion around the normal one
/// (Abramowitz and Stegun, 26.7.5): exact to a per cent from three degrees of freedom on.
fn t95(freedom: usize) -> f64 {
    let (z, n) = (Z95, freedom as f64);
    let z2 = z * z;
    let first = z * (z2 + 1.0) / 4.0;
    let second = z * ((5.0 * z2 + 16.0) * z2 + 3.0) / 96.0;
    let third = z * (((3.0 * z2 + 19.0) * z2 + 17.0) * z2 - 15.0) / 384.0;
    z + first / n + second / (n * n) + third / (n * n * n)
}

/// A ratio of two sums, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    /// Standard error.
    pub(crate) error: f64,
    /// 95 % confidence interval.
    pub(crate) interval: [f64; 2],
}

/// How sure the ratio is of the sums of the parts' first and second numbers: by the spread of
/// `first - ratio * second` over the parts (the ratio estimator of survey sampling; Cochran, "Sampling
/// Techniques", 1977, section 2.11), with Student's t. `None` of too few parts.
pub(crate) fn ratio(parts: &[[f64; 2]]) -> Option<Ratio> {
    let n = parts.len();
    if n < FEWEST {
        return None;
    }
    let sum = |i: usize| parts.iter().map(|part| part[i]).sum::<f64>();
    let (total, value) = (sum(1), sum(0) / sum(1));
    let squares: f64 = parts.iter().map(|[a, b]| (a - value * b).powi(2)).sum();
    let error = (squares * n as f64 / (n - 1) as f64).sqrt() / total;
    let reach = t95(n - 1) * error;
    Some(Ratio { error, interval: [value - reach, value + reach] })
}

/// 95 % confidence interval of a share of which `hits` of `n` were seen (Wilson, "Probable inference, the
/// law of succession, and statistical inference", 1927).
pub(crate) fn wilson(hits: usize, n: usize) -> [f64; 2] {
    let (p, n, z2) = (hits as f64 / n as f64, n as f64, Z95 * Z95);
    let middle = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let reach = Z95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    [(middle - reach).max(0.0), (middle + reach).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() < tolerance, "{a} is not {b}");
    }

    #[test]
    fn quantiles_are_those_of_tables() {
        for (freedom, table) in [(3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)] {
            assert_close(t95(freedom), table, 0.01 * table);
        }
    }

    #[test]
    fn shares_have_wilsons_interval() {
        // As R's prop.test(correct = FALSE) has it.
        for (hits, n, low, high) in
            [(7, 10, 0.39678, 0.89221), (0, 10, 0.0, 0.27753), (250, 1000, 0.22414, 0.27777)]
        {
            let [a, b] = wilson(hits, n);
            assert_close(a, low, 1e-4);
            assert_close(b, high, 1e-4);
        }
    }

    #[test]
    fn equal_weights_give_the_error_of_a_mean() {
        let parts = [1.0, 2.0, 3.0, 4.0].map(|x| [10.0 * x, 10.0]);
        let ratio = ratio(&parts).unwrap();
        // The deviation of 1, 2, 3, 4 is sqrt(5 / 3), over sqrt(4).
        assert_close(ratio.error, (5.0_f64 / 3.0).sqrt() / 2.0, 1e-12);
        let reach = t95(3) * ratio.error;
        assert_close(ratio.interval[0], 2.5 - reach, 1e-12);
        assert_close(ratio.interval[1], 2.5 + reach, 1e-12);
        assert_eq!(super::ratio(&parts[..2]), None);
        // What is proportional has no spread, whatever the weights.
        let even = super::ratio(&[[2.0, 1.0], [6.0, 3.0], [4.0, 2.0]]).unwrap();
        assert_close(even.error, 0.0, 1e-12);
    }
}
