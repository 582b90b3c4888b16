//! What a rank says when it is told to stop: the user may have asked, or a rank has died, for which `mpirun` ends the
//! others with the same signal, and gives them no time to save.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::Arc;
use std::thread;

use super::stop::Stop;
use crate::ranks::Ranks;

/// Between two looks: a rank that is ended has about a second from the signal on.
const LOOK: Duration = Duration::from_millis(50);

/// Looks out for a request to stop, until it is dropped.
#[derive(Debug)]
pub(super) struct Farewell(Arc<AtomicBool>);

impl Farewell {
    /// Begins to look out, where there are others and this rank is one of two that speak: the other may be the one
    /// that has died.
    pub(super) fn new(ranks: &dyn Ranks, stop: &Stop) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (rank, size) = (ranks.rank(), ranks.size());
        if size > 1 && rank < 2 {
            let (over, stop) = (Arc::clone(&over), stop.clone());
            let look = move || {
                while !over.load(Ordering::Relaxed) {
                    if stop.requested() {
                        say!(
                            "cllm: rank {rank} of {size} was told to stop. The run is saved behind this step if all \
                             ranks are alive; if one has died, go on from the last checkpoint with --resume"
                        );
                        return;
                    }
                    thread::sleep(LOOK);
                }
            };
            // Without it the run does as well.
            let _ = thread::Builder::new().name("cllm-farewell".to_owned()).spawn(look);
        }
        Self(over)
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
