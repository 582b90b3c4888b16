//! Timing of short pieces of work.

use core::time::Duration;
use std::time::Instant;

/// Seconds that are long for the clock: calls that take less are timed in groups.
const SHORTEST: f64 = 20e-6;
/// A call of so many seconds is not repeated.
const LONG: f64 = 2.0;
/// Most calls of a group.
const MOST: u32 = 100_000;

/// Fastest seconds of one call of `work`, over calls that take about `time` in all.
///
/// The fastest, because everything else on a machine only ever makes work slower. The
/// first call touches memory for the first time and warms caches: at least two more are
/// timed, unless a single one takes seconds.
pub fn fastest(time: Duration, mut work: impl FnMut()) -> f64 {
    let begin = Instant::now();
    work();
    let first = begin.elapsed().as_secs_f64();
    if first > LONG {
        return first;
    }
    // How many there are to a group the first call cannot tell: it may take many times what others do.
    let mut group = 1;
    let mut best = f64::INFINITY;
    let mut rounds = 0;
    while rounds < 2 || begin.elapsed() < time {
        let start = Instant::now();
        for _ in 0..group {
            work();
        }
        let seconds = start.elapsed().as_secs_f64();
        if seconds < SHORTEST && group < MOST {
            let more = (SHORTEST / seconds.max(1e-9)).ceil().max(2.0);
            group = (f64::from(group) * more).min(f64::from(MOST)) as u32;
            continue;
        }
        best = best.min(seconds / f64::from(group));
        rounds += 1;
    }
    best.max(1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::hint::black_box;

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
        // As many as after a quick first call: or else what reads the clock is timed too.
        let mut begun = 0_u64;
        let mut calls = 0_u64;
        fastest(Duration::ZERO, || {
            calls += 1;
            if calls == 1 {
                std::thread::sleep(Duration::from_millis(5));
            }
            begun = black_box(begun + 1);
        });
        assert!(calls > 1000, "{calls}");
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
