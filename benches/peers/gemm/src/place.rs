//! Puts the two threads of every library on a CPU each.
//!
//! A system is free to leave two threads that are busy for microseconds on one CPU, beside an idle
//! one, for a whole sample. Whoever is called then measures that: a thread that waits awake for one
//! that cannot run needs a millisecond for a product of a microsecond. So what calls stays on one
//! CPU, and all other threads of its process on another.

use std::process;

/// Two CPUs of different cores.
#[derive(Clone, Copy)]
pub struct Places {
    #[cfg(target_os = "linux")]
    cpus: [usize; 2],
}

#[cfg(target_os = "linux")]
impl Places {
    /// Two of the CPUs that this process may use, of different cores if it may use any.
    ///
    /// # Errors
    /// If it may use only one, or the system does not say.
    pub fn two() -> Result<Self, String> {
        let allowed = rustix::thread::sched_getaffinity(None).map_err(|e| e.to_string())?;
        let max = rustix::thread::CpuSet::MAX_CPU;
        let mut cpus = (0..max).filter(|cpu| allowed.is_set(*cpu));
        let (Some(first), Some(second)) = (cpus.next(), cpus.next()) else {
            return Err("--threads 2: this process may use one CPU only".into());
        };
        let core = |cpu: usize| {
            let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            std::fs::read_to_string(file).unwrap_or_default()
        };
        let elsewhere = cpus.find(|cpu| core(*cpu) != core(first));
        let second = if core(second) == core(first) { elsewhere.unwrap_or(second) } else { second };
        Ok(Self { cpus: [first, second] })
    }

    /// Puts a thread on the first or second CPU; 0 is the caller.
    ///
    /// # Errors
    /// If the system does not let it.
    fn put(self, thread: u32, place: usize) -> Result<(), String> {
        let mut only = rustix::thread::CpuSet::new();
        only.set(self.cpus[place]);
        let thread = i32::try_from(thread).ok().and_then(rustix::process::Pid::from_raw);
        match rustix::thread::sched_setaffinity(thread, &only) {
            // A thread that has ended since is in nobody's way.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(format!("a thread cannot be put on CPU {}: {e}", self.cpus[place])),
        }
    }

    /// Puts the caller on the second CPU.
    ///
    /// # Panics
    /// If the system does not let it.
    pub fn put_second(self) {
        self.put(0, 1).unwrap();
    }

    /// Puts the first thread of a process on the first CPU and all others on the second.
    ///
    /// # Errors
    /// If the system does not say which there are, or does not let it.
    pub fn put_threads(self, process: u32) -> Result<(), String> {
        let directory = format!("/proc/{process}/task");
        for entry in std::fs::read_dir(&directory).map_err(|e| format!("{directory}: {e}"))? {
            let name = entry.map_err(|e| format!("{directory}: {e}"))?.file_name();
            if let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) {
                self.put(thread, usize::from(thread != process))?;
            }
        }
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
impl Places {
    /// Nothing: the system places threads.
    pub fn two() -> Result<Self, String> {
        Ok(Self {})
    }

    /// Nothing.
    pub fn put_second(self) {}

    /// Nothing.
    pub fn put_threads(self, _: u32) -> Result<(), String> {
        Ok(())
    }
}

/// [`Places::put_threads`] of this process and of another.
///
/// # Errors
/// As that has.
pub fn put_all(places: Option<Places>, other: Option<u32>) -> Result<(), String> {
    let Some(places) = places else { return Ok(()) };
    places.put_threads(process::id())?;
    other.map_or(Ok(()), |other| places.put_threads(other))
}
