//! Timing of short pieces of work.

use core::time::Duration;
use std::time::Instant;

/// Fastest seconds of one call of `work`, over calls that take about `time` in all.
///
/// The fastest, because everything else on a machine only ever makes work slower. The
/// first call touches memory for the first time and warms caches: at least two more are
/// timed, unless a single one takes seconds.
pub fn fastest(time: Duration, mut work: impl FnMut()) -> f64 {
    // Calls shorter than the clock is fine are timed in groups.
    const SHORTEST: f64 = 20e-6;
    const LONG: f64 = 2.0;
    let begin = Instant::now();
    work();
    let first = begin.elapsed().as_secs_f64();
    if first > LONG {
        return first;
    }
    let group = (SHORTEST / first.max(1e-9)).ceil().clamp(1.0, 1e5) as u32;
    let mut best = f64::INFINITY;
    let mut rounds = 0;
    while rounds < 2 || begin.elapsed() < time {
        let start = Instant::now();
        for _ in 0..group {
            work();
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(group));
        rounds += 1;
    }
    best.max(1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_of_uneven_calls_counts() {
        let mut calls = 0_u32;
        let seconds = fastest(Duration::from_millis(100), || {
            calls += 1;
            std::thread::sleep(Duration::from_millis(if calls == 2 { 2 } else { 40 }));
        });
        assert!((0.002..0.03).contains(&seconds), "{seconds}");
        assert!(calls >= 3);
    }

    #[test]
    fn short_work_is_timed_in_groups_and_long_work_after_a_first_call() {
        let mut calls = 0_u64;
        let seconds = fastest(Duration::from_millis(5), || calls += 1);
        assert!(calls > 1000 && seconds < 1e-5, "{calls} {seconds}");
        // However short the time, the slow first call does not count.
        let mut calls = 0;
        let seconds = fastest(Duration::ZERO, || {
            calls += 1;
            std::thread::sleep(Duration::from_millis(if calls == 1 { 40 } else { 1 }));
        });
        assert_eq!(calls, 3);
        assert!(seconds < 0.03, "{seconds}");
    }
}
