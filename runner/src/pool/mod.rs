//! The runner's workers: threads that are started once and serve an engine to its end.
//!
//! ```text
//! with_workers ----starts----> cllm-worker-0 .. n-1: Worker::run(engine)
//!   body: the training loop, on the calling thread, which sleeps while the engine runs
//!   closes the engine, joins them
//! ```
//! All that a worker's thread does is to call `Worker::run`; what it runs and when is the
//! core's business. [`idle`] is how it waits, [`times`] what it did, [`cpus`] where it runs.

pub mod cpus;
pub mod idle;
pub mod times;

use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::panic::catch_unwind;
use std::thread::{self, Builder};

use cllm_core::{Engine, Worker};
use crossbeam_utils::CachePadded;

use crate::error::{Error, Result};
use crate::trace::record::Recording;
use idle::Parking;
use times::{Recorder, Times, WorkerTimes};

/// How the thread that calls the engine waits for the workers.
pub static CALLER: Parking = Parking::caller();

/// Threads that this process has started as workers.
static STARTED: AtomicU64 = AtomicU64::new(0);

/// How many threads this process has started as workers so far.
#[must_use]
pub fn started() -> u64 {
    STARTED.load(Relaxed)
}

/// What is known of the workers of a pool.
#[derive(Debug)]
pub struct Crew {
    times: Vec<CachePadded<WorkerTimes>>,
    pin: bool,
    recording: Option<Recording>,
}

impl Crew {
    /// `workers` workers, each kept on a CPU of its own if `pin`.
    #[must_use]
    pub fn new(workers: usize, pin: bool) -> Self {
        let times = (0..workers).map(|_| CachePadded::new(WorkerTimes::new())).collect();
        Self { times, pin, recording: None }
    }

    /// Has all that they do recorded, when the recording is on.
    #[must_use]
    pub fn recorded(self, recording: Option<Recording>) -> Self {
        Self { recording, ..self }
    }

    /// Where it is recorded.
    #[must_use]
    pub fn recording(&self) -> Option<&Recording> {
        self.recording.as_ref()
    }

    /// How many there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.times.len()
    }

    /// What each has done so far, into `into`, one for each worker. Allocates nothing.
    pub fn read(&self, into: &mut [Times]) {
        for (into, times) in into.iter_mut().zip(&self.times) {
            *into = times.read();
        }
    }
}

/// Calls `body` while the workers of `crew` serve `engine`; closes the engine and joins
/// them when it is through.
///
/// Each worker is a thread, `cllm-worker-<n>`, started here and nowhere else. A tile that
/// panics ends its thread; `body` gets the error from the engine.
///
/// # Errors
/// Those of `body`; a thread cannot be started or pinned.
///
/// # Panics
/// If `body` does, after the workers have gone.
pub fn with_workers<R>(
    engine: &Engine<'_>,
    crew: &Crew,
    body: impl FnOnce() -> Result<R>,
) -> Result<R> {
    let idle = &Parking::worker(crew.workers(), cpus::available());
    thread::scope(|scope| {
        let closing = Closing { engine };
        let (ready, started) = std::sync::mpsc::channel();
        for (n, times) in crew.times.iter().enumerate() {
            let (name, ready) = (format!("cllm-worker-{n}"), ready.clone());
            let pin = crew.pin;
            let pen = crew.recording.as_ref().and_then(|recording| recording.pen(n));
            let serve = move || {
                let pinned = if pin { cpus::pin(n) } else { Ok(()) };
                // Whoever waits for it may have gone with another thread's error.
                let _ = ready.send(pinned);
                drop(ready);
                let mut recorder = Recorder::new(times).with_pen(pen);
                // The engine tells its caller of a panic, and the hook has told the user.
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    Worker::run_observed(engine, idle, &mut recorder)
                }));
            };
            Builder::new().name(name.clone()).spawn_scoped(scope, serve).map_err(|e| {
                Error::failure(format!(
                    "cannot start the thread {name}: {e}; use fewer with --threads"
                ))
            })?;
            STARTED.fetch_add(1, Relaxed);
        }
        drop(ready);
        for pinned in started {
            pinned.map_err(|e| {
                Error::failure(format!("--pin: the system does not pin threads: {e}"))
            })?;
        }
        // The first step should find all of them.
        while engine.workers() < crew.workers().min(engine.seats()) {
            thread::yield_now();
        }
        let result = body();
        drop(closing);
        result
    })
}

/// Sends the workers home, whatever happens.
struct Closing<'e, 'a> {
    engine: &'e Engine<'a>,
}

impl Drop for Closing<'_, '_> {
    fn drop(&mut self) {
        self.engine.close(&CALLER);
    }
}
