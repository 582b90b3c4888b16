//! How the runner's threads wait: awake for a moment, then asleep.
//!
//! Waking a sleeping thread costs some 20 us, so a worker first looks a while: between two
//! tiles what it waits for is often a few microseconds away. It must not look for long:
//! a core that spins for nothing is taken from somebody, and where there are more threads
//! than cores from the very worker that is waited for. After some looks it offers its
//! core (yield), and then sleeps on the engine's own word until that changes.

use atomic_wait::{wait, wake_all};
use cllm_core::Idle;
use core::hint::spin_loop;
use core::sync::atomic::AtomicU32;

/// Rounds of looking awake before yielding, where every worker has a core.
const LOOKS: u32 = 300;
/// Processor hints in a round: a round is some 100 to 400 ns.
const HINTS: u32 = 4;
/// Rounds of yielding before sleeping.
const YIELDS: u32 = 20;

/// Waits awake a bounded time, then sleeps in the system.
#[derive(Debug)]
pub struct Parking {
    looks: u32,
    yields: u32,
}

impl Parking {
    /// For one of `workers` workers on `cpus` CPUs.
    #[must_use]
    pub const fn worker(workers: usize, cpus: usize) -> Self {
        let looks = if workers <= cpus { LOOKS } else { 0 };
        Self { looks, yields: YIELDS }
    }

    /// For the thread that waits for the workers: it has nothing to look for, and every
    /// core is a worker's.
    #[must_use]
    pub const fn caller() -> Self {
        Self { looks: 0, yields: 0 }
    }
}

impl Idle for Parking {
    fn pause(&self, round: u32) -> bool {
        if round < self.looks {
            for _ in 0..HINTS {
                spin_loop();
            }
        } else if round < self.looks + self.yields {
            std::thread::yield_now();
        } else {
            return false;
        }
        true
    }

    fn park(&self, word: &AtomicU32, seen: u32) {
        wait(word, seen);
    }

    fn wake(&self, word: &AtomicU32) {
        wake_all(word);
    }
}
