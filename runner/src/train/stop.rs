//! Ctrl-C and SIGTERM: the first asks for an orderly end, the second ends at once.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::{Error, Result};

/// Exit code of a program ended by Ctrl-C.
const INTERRUPTED: i32 = 130;

/// A request to stop, shared with whoever may make it.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A request that nothing but [`Stop::request`] makes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The request that SIGINT and SIGTERM make. A signal that comes when the request
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
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag down and only raises it.
            flag::register_conditional_shutdown(signal, INTERRUPTED, Arc::clone(&stop.0))
                .and_then(|_| flag::register(signal, Arc::clone(&stop.0)))
                .map_err(|e| Error::failure(format!("cannot watch for signals: {e}")))?;
        }
        Ok(SIGNALS.get_or_init(|| stop).clone())
    }

    /// Asks for an orderly end. There is nothing to save any more once a run has
    /// ended by itself: then this makes the next signal end the program at once.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
