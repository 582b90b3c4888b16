//! Which CPUs the process may use, pinning to them, and a thread's own CPU clock.

use core::time::Duration;
use std::io;
use std::thread;

/// CPUs that the process may keep busy: those of its affinity mask, or fewer if a
/// container's quota of CPU time allows for fewer. At least one.
#[must_use]
pub fn available() -> usize {
    // The standard library asks for the mask and for the quotas of both kinds of cgroups.
    thread::available_parallelism().map_or(1, core::num::NonZeroUsize::get)
}

/// CPUs of the machine; `None` where the system does not tell.
#[must_use]
pub fn online() -> Option<usize> {
    #[cfg(target_os = "linux")]
    return listed(&std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?);
    #[cfg(not(target_os = "linux"))]
    None
}

/// CPUs that the affinity mask allows; `None` where there is none.
#[must_use]
pub fn allowed() -> Option<usize> {
    #[cfg(target_os = "linux")]
    return Some(rustix::thread::sched_getaffinity(None).ok()?.count() as usize);
    #[cfg(not(target_os = "linux"))]
    None
}

/// How many numbers a list like `0-3,6` has.
#[cfg(target_os = "linux")]
fn listed(text: &str) -> Option<usize> {
    let numbers = |range: &str| -> Option<usize> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    };
    text.trim().split(',').map(numbers).sum()
}

/// CPU time of the calling thread, by its own clock; `None` where there is none.
///
/// Not from `ps`, which shows the whole process's time in the main thread's row.
#[must_use]
pub fn thread_time() -> Option<Duration> {
    #[cfg(unix)]
    return clock(rustix::time::ClockId::ThreadCPUTime);
    #[cfg(not(unix))]
    None
}

/// CPU time of all threads of the process; `None` where there is no such clock.
#[must_use]
pub fn process_time() -> Option<Duration> {
    #[cfg(unix)]
    return clock(rustix::time::ClockId::ProcessCPUTime);
    #[cfg(not(unix))]
    None
}

#[cfg(unix)]
fn clock(id: rustix::time::ClockId) -> Option<Duration> {
    let time = rustix::time::clock_gettime(id);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

/// Lets the calling thread run on one CPU only: the `index`-th of those that it may use,
/// counted round and round.
///
/// # Errors
/// The system refuses, or has no way to do it.
pub fn pin(index: usize) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

        let allowed = sched_getaffinity(None)?;
        let count = allowed.count() as usize;
        let nth = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        if let Some(cpu) = nth.clone().nth(index % count.max(1)) {
            let mut only = CpuSet::new();
            only.set(cpu);
            sched_setaffinity(None, &only)?;
        }
        Ok(())
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = index;
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use rustix::thread::{sched_getaffinity, sched_getcpu};

    #[test]
    fn a_pinned_thread_stays_on_one_cpu_and_the_count_follows_the_mask() {
        thread::scope(|scope| {
            for index in 0..5 {
                scope.spawn(move || {
                    let before = sched_getaffinity(None).unwrap();
                    pin(index).unwrap();
                    let after = sched_getaffinity(None).unwrap();
                    assert_eq!(after.count(), 1);
                    assert!(after.is_set(sched_getcpu()) && before.is_set(sched_getcpu()));
                    assert_eq!(available(), 1);
                });
            }
        });
    }

    #[test]
    fn lists_of_cpus_are_counted() {
        let counts = ["0", "0-1\n", "0-3,6,8-9", "", "3-1", "a"].map(listed);
        assert_eq!(counts, [Some(1), Some(2), Some(7), None, None, None]);
        assert!(online().unwrap() >= allowed().unwrap());
        assert!(allowed().unwrap() >= available());
    }

    #[test]
    fn the_clock_runs_while_the_thread_works_and_not_while_it_sleeps() {
        let start = thread_time().unwrap();
        thread::sleep(Duration::from_millis(60));
        let slept = thread_time().unwrap();
        assert!(slept - start < Duration::from_millis(30));
        // As long as it takes on a busy machine.
        while thread_time().unwrap() - slept < Duration::from_millis(20) {
            core::hint::spin_loop();
        }
    }
}
