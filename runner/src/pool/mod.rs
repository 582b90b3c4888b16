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

use cllm_core::{Engine, Observer, Worker};
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
    /// The thread that calls the engine works as well.
    caller_works: bool,
    recording: Option<Recording>,
}

impl Crew {
    /// `workers` workers, each kept on a CPU of its own if `pin`.
    #[must_use]
    pub fn new(workers: usize, pin: bool) -> Self {
        let times = (0..workers).map(|_| CachePadded::new(WorkerTimes::new())).collect();
        Self { times, pin, caller_works: false, recording: None }
    }

    /// Whose workers know that the calling thread wants a CPU too.
    #[must_use]
    pub fn beside_the_caller(self) -> Self {
        Self { caller_works: true, ..self }
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
    let recorder = |n: usize| {
        let pen = crew.recording.as_ref().and_then(|recording| recording.pen(n));
        Recorder::new(&crew.times[n]).with_pen(pen)
    };
    with_observers(engine, crew, recorder, body)
}

/// As [`with_workers`]; worker `n` tells what it does to `observer(n)`.
fn with_observers<R, O: Observer>(
    engine: &Engine<'_>,
    crew: &Crew,
    observer: impl Fn(usize) -> O + Sync,
    body: impl FnOnce() -> Result<R>,
) -> Result<R> {
    let observer = &observer;
    let threads = crew.workers() + usize::from(crew.caller_works);
    let idle = &Parking::worker(threads, cpus::available());
    thread::scope(|scope| {
        let closing = Closing { engine };
        let (ready, started) = std::sync::mpsc::channel();
        for n in 0..crew.workers() {
            let (name, ready) = (format!("cllm-worker-{n}"), ready.clone());
            let pin = crew.pin;
            let serve = move || {
                let pinned = if pin { cpus::pin(n) } else { Ok(()) };
                // Whoever waits for it may have gone with another thread's error.
                let _ = ready.send(pinned);
                drop(ready);
                let mut observer = observer(n);
                // The engine tells its caller of a panic, and the hook has told the user.
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    Worker::run_observed(engine, idle, &mut observer)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PoolMemory;
    use cllm_core::{
        Activity, Architecture, Batch, BatchShape, EngineError, Kernels, Mode, ModelConfig,
        Optimizer, Plan, StepError, Trainer,
    };

    const CONFIG: ModelConfig = ModelConfig {
        vocab_size: 64,
        block_size: 32,
        n_layer: 2,
        n_head: 2,
        d_model: 32,
        d_ff: 64,
        bias: true,
        tied: true,
        dropout: 0.0,
        norm_eps: 1e-5,
        arch: Architecture::GPT2,
    };
    const SHAPE: BatchShape = BatchShape { sequences: 16, tokens: 32 };

    /// Panics at its `fuse`-th activity that is a tile.
    struct Bomb {
        fuse: u32,
    }

    impl Observer for Bomb {
        fn enter(&mut self, activity: Activity) {
            if let Activity::Tile { .. } = activity {
                self.fuse -= 1;
                assert!(self.fuse > 0, "forced by the test");
            }
        }
    }

    /// Steps until one fails, in a pool of three of which `bombs` panic after some tiles.
    /// Returns the error, and whether the pool still trains.
    fn steps_with(bombs: usize) -> Result<(StepError, bool)> {
        let kernels = Kernels::detect();
        let plan = Plan::new(&CONFIG, SHAPE, 3, Mode::Train, kernels).unwrap();
        let mut memory = PoolMemory::allocate(&plan)?;
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&plan, queue).unwrap();
        let mut trainer =
            Trainer::new(&plan, kernels, pools, &engine, 1).unwrap().wait_with(&CALLER);
        trainer.initialise();
        let ids: Vec<u32> = (0..plan.tokens() as u32).map(|i| i * 7 % 64).collect();
        let batch = Batch::new(&ids, &ids);
        let fuse = |n| if n < bombs { 40 + 20 * n as u32 } else { u32::MAX };
        with_observers(
            &engine,
            &Crew::new(3, false),
            |n| Bomb { fuse: fuse(n) },
            || {
                let mut failed = None;
                // Until all that are to go have gone; the last error is as good as the first.
                while engine.workers() > 3 - bombs {
                    failed = trainer.accumulate(&batch, ids.len()).err().or(failed);
                }
                trainer.initialise();
                let trains = trainer.accumulate(&batch, ids.len()).is_ok()
                    && trainer.update(&Optimizer::default(), 1e-3).is_ok();
                Ok((failed.unwrap(), trains))
            },
        )
    }

    #[test]
    fn a_panic_in_a_tile_is_the_callers_error_and_ends_one_thread_only() {
        // Some of the workers, then all of them: then the caller works alone.
        for bombs in [1, 2, 3] {
            let (error, trains) = steps_with(bombs).unwrap();
            assert_eq!(error, StepError::Engine(EngineError::Panicked));
            assert!(trains, "nothing works after {bombs} panics");
        }
    }

    #[test]
    fn a_panic_of_the_caller_sends_the_workers_home() {
        let kernels = Kernels::detect();
        let plan = Plan::new(&CONFIG, SHAPE, 3, Mode::Train, kernels).unwrap();
        let mut memory = PoolMemory::allocate(&plan).unwrap();
        let engine = Engine::new(&plan, memory.parts().1).unwrap();
        let crew = Crew::new(3, false);
        let body = || -> Result<()> { panic!("forced by the test") };
        let run = AssertUnwindSafe(|| with_workers(&engine, &crew, body));
        assert!(catch_unwind(run).is_err());
        assert_eq!(engine.workers(), 0);
        assert_eq!(with_workers(&engine, &Crew::new(0, false), || Ok(1)), Ok(1));
    }
}
