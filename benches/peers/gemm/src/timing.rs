//! Timing calls, on one thread or on several that start and end each call together.

use crate::place::Places;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::time::Instant;

/// How long the calls of one sample take together.
pub const SAMPLE: Duration = Duration::from_millis(5);

/// How many calls a sample has, and how many before it warm caches and wake threads.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// Not timed.
    pub warm: u32,
    /// Timed.
    pub timed: u32,
}

impl Calls {
    /// So many that they take about [`SAMPLE`], if one takes `seconds`.
    #[must_use]
    pub fn of(seconds: f64) -> Self {
        let timed = (SAMPLE.as_secs_f64() / seconds.max(1e-9)).ceil().clamp(1.0, 1e6) as u32;
        Self { warm: 1 + timed / 10, timed }
    }
}

/// Something that computes the same product again and again.
pub trait Sampler {
    /// Calls it and returns the time of the timed calls. Overwrites `c`.
    ///
    /// # Errors
    /// If it cannot be called.
    fn sample(&mut self, c: &mut [f32], calls: Calls) -> Result<Duration, String>;

    /// Whether what is in `c` then has been rounded to bf16.
    fn rounds(&self) -> bool {
        false
    }
}

/// A function, with whatever threads it has of its own.
pub struct Function<F>(pub F);

impl<F: FnMut(&mut [f32])> Sampler for Function<F> {
    fn sample(&mut self, c: &mut [f32], calls: Calls) -> Result<Duration, String> {
        for _ in 0..calls.warm {
            (self.0)(c);
        }
        let begin = Instant::now();
        for _ in 0..calls.timed {
            (self.0)(c);
        }
        Ok(begin.elapsed())
    }
}

/// Calls `work` with each of the states on a thread of its own, the first on the caller's.
///
/// A call begins when all threads are there for it, and ends when all are done: what a product
/// costs that one thread hands out and waits for, to threads that are awake.
///
/// With `places` the second thread is put where others' second threads are.
pub fn together<S: Send>(
    states: &mut [S],
    calls: Calls,
    places: Option<Places>,
    work: impl Fn(&mut S) + Sync,
) -> Duration {
    let Some((first, others)) = states.split_first_mut() else { return Duration::ZERO };
    let meeting = Meeting { parties: others.len() as u64 + 1, arrivals: AtomicU64::new(0) };
    let run = |state: &mut S, calls: u32, meetings: &mut u64| {
        for _ in 0..calls {
            meeting.wait(meetings);
            work(state);
            meeting.wait(meetings);
        }
    };
    std::thread::scope(|scope| {
        for state in others {
            scope.spawn(|| {
                if let Some(places) = places {
                    places.put_second();
                }
                run(state, calls.warm + calls.timed, &mut 0);
            });
        }
        let mut meetings = 0;
        run(first, calls.warm, &mut meetings);
        let begin = Instant::now();
        run(first, calls.timed, &mut meetings);
        begin.elapsed()
    })
}

/// Where threads wait for each other, spinning.
struct Meeting {
    parties: u64,
    arrivals: AtomicU64,
}

impl Meeting {
    /// Waits for all others, for the `count`-th time.
    fn wait(&self, count: &mut u64) {
        if self.parties == 1 {
            return;
        }
        *count += 1;
        self.arrivals.fetch_add(1, Ordering::AcqRel);
        let mut spins = 0_u32;
        while self.arrivals.load(Ordering::Acquire) < *count * self.parties {
            spins += 1;
            // Somebody else's process may be in the way of the other thread.
            if spins.is_multiple_of(1 << 14) {
                std::thread::yield_now();
            } else {
                spin_loop();
            }
        }
    }
}
