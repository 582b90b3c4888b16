//! The machine's peak of multiply-adds, measured: what `mfu` is a share of.

use core::time::Duration;
use std::time::Instant;

use cllm_core::Kernels;

/// Floating-point operations a second of one thread with the strongest instruction
/// set of this CPU: shares of weaker ones then say what is lost by using them.
///
/// The best of a few passes within about `time`: other work on the machine can only
/// make a pass slower.
#[must_use]
pub fn measure(time: Duration) -> f64 {
    const ITERATIONS: u64 = 200_000;
    let kernels = Kernels::detect();
    let begin = Instant::now();
    let mut best = 0.0_f64;
    while best == 0.0 || begin.elapsed() < time {
        let start = Instant::now();
        let (flops, checksum) = kernels.fma_peak_pass(ITERATIONS);
        let seconds = start.elapsed().as_secs_f64();
        core::hint::black_box(checksum);
        best = best.max(flops as f64 / seconds.max(1e-9));
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_plausible() {
        let peak = measure(Duration::from_millis(20));
        assert!((1e8..1e13).contains(&peak), "{peak}");
    }
}
