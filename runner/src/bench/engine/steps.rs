//! Whole steps of the reference workload that compute nothing, and how soon a worker is at the
//! first tile of one.

use super::{Case, reference, with_engine};
use crate::error::Result;
use crate::pool::cpus;
use crate::pool::idle::Parking;
use cllm_core::{Activity, Drilled, Engine, Idle, Observer, Spin, Worker};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use crossbeam_utils::CachePadded;
use std::thread;
use std::time::Instant;

/// Nanoseconds from publishing a run to its first tile on a spinning worker, at most.
const START: f64 = 1e3;
/// Nanoseconds of an empty step at two workers, at most.
const STEP: f64 = 100e3;
/// Steps that are taken again because the workers did not share them.
const PATIENCE: usize = 300;
/// How long a worker is left alone before a run, to be where it waits.
const SETTLE: Duration = Duration::from_micros(60);

pub(super) fn visit(pairs: bool, see: &mut dyn FnMut(Case<'_>)) -> Result<()> {
    if pairs {
        // A parker that never sleeps need not be woken, and so may wait for one that spins.
        start("publish/first tile, spinning worker", Some(START), &Spin, &Spin, see)?;
        let asleep = Parking::caller();
        start("publish/first tile, parked worker", None, &asleep, &asleep, see)?;
    }
    step("step/empty, 1 worker", 1, None, see)?;
    if pairs {
        step("step/empty, 2 workers", 2, Some(STEP), see)?;
    }
    Ok(())
}

/// When a worker was at the first tile after it was asked to tell.
struct First<'a> {
    asked: &'a AtomicBool,
    /// Nanoseconds since `begin`.
    at: &'a AtomicU64,
    begin: Instant,
}

impl Observer for First<'_> {
    fn enter(&mut self, activity: Activity) {
        if matches!(activity, Activity::Tile { .. }) && self.asked.load(Relaxed) {
            self.at.store(self.begin.elapsed().as_nanos() as u64, Relaxed);
            self.asked.store(false, Relaxed);
        }
    }
}

/// From before the caller publishes a run to the first tile of a worker that waits for it.
fn start(
    name: &'static str,
    target: Option<f64>,
    worker: &(impl Idle + Sync),
    caller: &dyn Idle,
    see: &mut dyn FnMut(Case<'_>),
) -> Result<()> {
    let (asked, at, begin) = (AtomicBool::new(false), AtomicU64::new(0), Instant::now());
    with_engine(&reference(1)?, |engine| {
        let mut first = First { asked: &asked, at: &at, begin };
        with_workers(engine, [&mut first], worker, || {
            let mut run = |times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    let settled = Instant::now();
                    while settled.elapsed() < SETTLE {
                        spin_loop();
                    }
                    asked.store(true, Relaxed);
                    let start = begin.elapsed();
                    let _ = engine.drill_step(caller);
                    // The step is over, so the worker has told.
                    spent += Duration::from_nanos(at.load(Relaxed)).saturating_sub(start);
                }
                spent
            };
            see(Case { name, target, tiles: None, singly: true, run: &mut run });
        });
    })
}

/// Counts a worker's tiles, in a line of its own.
#[derive(Default)]
struct Count(CachePadded<AtomicU64>);

impl Observer for &Count {
    fn enter(&mut self, activity: Activity) {
        if matches!(activity, Activity::Tile { .. }) {
            // There is one writer.
            self.0.store(self.0.load(Relaxed) + 1, Relaxed);
        }
    }
}

/// Steps in which each of the workers ran a good part of the tiles: on a busy machine one
/// often does all while the other has no CPU, which costs less and is not what is asked for.
fn step(
    name: &'static str,
    workers: usize,
    target: Option<f64>,
    see: &mut dyn FnMut(Case<'_>),
) -> Result<()> {
    with_engine(&reference(workers)?, |engine| {
        let idle = Parking::worker(workers, cpus::available());
        let caller = Parking::caller();
        let counts: Vec<Count> = (0..workers).map(|_| Count::default()).collect();
        let mut observers: Vec<&Count> = counts.iter().collect();
        with_workers(engine, &mut observers, &idle, || {
            let drilled = || engine.drill_step(&caller).unwrap_or_default();
            let Drilled { tiles, .. } = drilled();
            let least = (tiles / workers / 2) as u64;
            let once = || {
                let before: Vec<u64> = counts.iter().map(|count| count.0.load(Relaxed)).collect();
                let start = Instant::now();
                let _ = drilled();
                let time = start.elapsed();
                let shares = counts.iter().zip(before);
                let together = shares.map(|(count, before)| count.0.load(Relaxed) - before).min()
                    >= Some(least);
                (time, together)
            };
            let mut run = |times| {
                let patiently = |_| {
                    let mut tries = core::iter::repeat_with(once).take(PATIENCE);
                    let mut last = Duration::ZERO;
                    tries
                        .find_map(|(time, together)| {
                            last = time;
                            together.then_some(time)
                        })
                        .unwrap_or(last)
                };
                (0..times).map(patiently).sum()
            };
            see(Case { name, target, tiles: Some(tiles), singly: true, run: &mut run });
        });
    })
}

/// Calls `body` while a worker for each observer serves the engine.
fn with_workers<'o, O: Observer + Send + 'o>(
    engine: &Engine<'_>,
    observers: impl IntoIterator<Item = &'o mut O>,
    idle: &(impl Idle + Sync),
    body: impl FnOnce(),
) {
    thread::scope(|scope| {
        let mut workers = 0;
        for observer in observers {
            let cpu = workers;
            scope.spawn(move || {
                // Where the system does not pin threads, it may still keep them apart.
                let _ = cpus::pin(cpu);
                // The seats are as many as the workers, and the engine is not closed yet.
                Worker::run_observed(engine, idle, observer)
            });
            workers += 1;
        }
        while engine.workers() < workers {
            thread::yield_now();
        }
        body();
        engine.close(idle);
    });
}
