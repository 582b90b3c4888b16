//! Timing of short pieces of work.

use core::time::Duration;
use std::time::Instant;

/// Fastest seconds of one call of `work`, over calls that take about `time` in all.
///
/// The fastest, because everything else on a machine only ever makes work slower. The
/// first call warms caches and counts only if it is the only one.
pub fn fastest(time: Duration, mut work: impl FnMut()) -> f64 {
    // Calls shorter than the clock is fine are timed in groups.
    const SHORTEST: f64 = 20e-6;
    let begin = Instant::now();
    work();
    let first = begin.elapsed().as_secs_f64();
    let group = (SHORTEST / first.max(1e-9)).ceil().clamp(1.0, 1e5) as u32;
    let mut best = if group == 1 { first } else { f64::INFINITY };
    while best.is_infinite() || begin.elapsed() < time {
        let start = Instant::now();
        for _ in 0..group {
            work();
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(group));
    }
    best.max(1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_of_uneven_calls_counts() {
        let mut calls = 0_u32;
        let seconds = fastest(Duration::from_millis(30), || {
            calls += 1;
            std::thread::sleep(Duration::from_millis(if calls == 2 { 2 } else { 6 }));
        });
        assert!((0.002..0.006).contains(&seconds), "{seconds}");
        assert!(calls >= 3);
    }

    #[test]
    fn short_work_is_timed_in_groups_and_long_work_once() {
        let mut calls = 0_u64;
        let seconds = fastest(Duration::from_millis(5), || calls += 1);
        assert!(calls > 1000 && seconds < 1e-5, "{calls} {seconds}");
        let mut calls = 0;
        fastest(Duration::ZERO, || {
            calls += 1;
            std::thread::sleep(Duration::from_millis(1));
        });
        assert_eq!(calls, 1);
    }
}
