//! Ctrl-C, SIGTERM and the end of a terminal: the first asks for an orderly end, the second ends at once.
//!
//! One wish may come as several signals: `timeout` sends one to the program and one to its process group, which
//! the program is in too. So those that follow the first at its heels are the same request.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};

use crate::error::{Error, Result};

/// Exit code of a program ended by Ctrl-C.
const INTERRUPTED: i32 = 130;

/// How long after a signal others are the same request: longer than any program takes to send two, shorter than
/// a person who has lost patience.
const ECHO: Duration = Duration::from_millis(400);

/// A request to stop, shared with whoever may make it.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A request that nothing but [`Stop::request`] makes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The request that SIGINT and SIGTERM make, and SIGHUP unless the program was started without it
    /// (`nohup`). A signal that comes when the request
    /// is already made ends the program with exit code 130.
    ///
    /// # Errors
    /// The system refuses to hand over its signals.
    pub fn on_signals() -> Result<Self> {
        // The handlers stay for the life of the program, so there is one flag.
        static SIGNALS: OnceLock<Stop> = OnceLock::new();
        if let Some(stop) = SIGNALS.get() {
            stop.0.store(false, Ordering::SeqCst);
            return Ok(stop.clone());
        }
        let stop = Self::new();
        let hangup = (!ignores(SIGHUP)).then_some(SIGHUP);
        let signals: Vec<i32> = [SIGINT, SIGTERM].into_iter().chain(hangup).collect();
        stop.watch(&signals)?;
        Ok(SIGNALS.get_or_init(|| stop).clone())
    }

    /// The request that Ctrl-C makes; as it is now, which nobody answers, Ctrl-C ends the program with exit
    /// code 130.
    ///
    /// # Errors
    /// The system refuses to hand over its signals.
    #[cfg(feature = "chat")]
    pub(crate) fn on_interrupt() -> Result<Self> {
        let stop = Self::new();
        stop.request();
        stop.watch(&[SIGINT])?;
        Ok(stop)
    }

    /// Has signals make the request, or end the program if it is made already.
    fn watch(&self, signals: &[i32]) -> Result<()> {
        let cannot = |e| Error::failure(format!("cannot watch for signals: {e}"));
        let mut signals = Signals::new(signals).map_err(cannot)?;
        let stop = self.clone();
        let mut heard: Option<Instant> = None;
        let listen = move || {
            for _ in signals.forever() {
                // Of a request that has been answered there is none.
                if stop.requested() && heard.is_some_and(|last| last.elapsed() < ECHO) {
                    continue;
                }
                heard = Some(Instant::now());
                if stop.0.swap(true, Ordering::SeqCst) {
                    low_level::exit(INTERRUPTED);
                }
            }
        };
        // For the life of the program.
        const THREAD: &str = "cllm-signals";
        let thread = thread::Builder::new().name(THREAD.to_owned()).spawn(listen);
        thread.map(|_| ()).map_err(|e| {
            Error::failure(format!(
                "cannot start the thread {THREAD}: {e}; allow more threads, or more memory \
                 (ulimit -u, -v)"
            ))
        })
    }

    /// Makes writing beyond the largest file that the system allows (`ulimit -f`) an error like any other,
    /// instead of the end of the program.
    ///
    /// # Errors
    /// The system refuses to hand over its signals.
    pub(crate) fn outlive_large_files() -> Result<()> {
        flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))
            .map(|_| ())
            .map_err(|e| Error::failure(format!("cannot watch for signals: {e}")))
    }

    /// Asks for an orderly end. There is nothing to save any more once a run has
    /// ended by itself: then this makes the next signal end the program at once.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Takes a request back that has been answered.
    #[cfg(feature = "chat")]
    pub(crate) fn withdraw(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Whether whoever started the program has it ignore a signal, as far as the system tells.
fn ignores(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        // Where that is not told: it was not looked at before either.
        .is_none_or(|mask| mask >> (signal - 1) & 1 == 1)
}
