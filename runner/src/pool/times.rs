//! Where each worker's time goes: by what it does, and by operation.
//!
//! A [`Recorder`] is told by the engine what its worker turns to, and adds the time since the
//! last turn to what the worker did until then. The sums lie in cache lines of their own
//! that only the worker writes, so looking at them from another thread disturbs nobody.

use core::array;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use cllm_core::{Activity, Observer, Op};
use crossbeam_utils::CachePadded;

use super::cpus;
use crate::trace::record::Pen;

/// What a worker does, as reports tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Running a tile.
    Busy,
    /// Between tiles: saying that one is done, and finding the next of its own.
    Queue,
    /// As `Queue`, but the next one was another worker's.
    Steal,
    /// No tile was ready.
    Wait,
    /// No run was under way: the training thread prepares the next, reads or writes
    /// files, or waits for a batch.
    Rest,
}

impl Doing {
    const COUNT: usize = 5;
}

/// Sums of one worker, in nanoseconds. Written by the worker alone.
#[derive(Debug)]
pub struct WorkerTimes {
    doing: [AtomicU64; Doing::COUNT],
    kinds: [AtomicU64; Op::KINDS.len()],
    tiles: AtomicU64,
    stolen: AtomicU64,
    cpu: AtomicU64,
}

/// What [`WorkerTimes`] said at one time, or between two times. Seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    doing: [f64; Doing::COUNT],
    /// Seconds of each of [`Op::KINDS`].
    pub kinds: [f64; Op::KINDS.len()],
    /// Tiles run. A tile of a row stage is one, whatever it goes through.
    pub tiles: u64,
    /// Those of them that were another worker's.
    pub stolen: u64,
    /// Of the thread's own CPU clock, as of its last rest.
    pub cpu: f64,
}

impl Times {
    /// Nothing yet.
    pub const ZERO: Self = Self {
        doing: [0.0; Doing::COUNT],
        kinds: [0.0; Op::KINDS.len()],
        tiles: 0,
        stolen: 0,
        cpu: 0.0,
    };

    /// Seconds spent at something.
    #[must_use]
    pub fn of(&self, doing: Doing) -> f64 {
        self.doing[doing as usize]
    }

    /// Adds what happened between `before` and `after`.
    pub fn add_between(&mut self, before: &Self, after: &Self) {
        let add = |to: &mut [f64], before: &[f64], after: &[f64]| {
            for ((to, before), after) in to.iter_mut().zip(before).zip(after) {
                *to += after - before;
            }
        };
        add(&mut self.doing, &before.doing, &after.doing);
        add(&mut self.kinds, &before.kinds, &after.kinds);
        self.tiles += after.tiles - before.tiles;
        self.stolen += after.stolen - before.stolen;
        self.cpu += after.cpu - before.cpu;
    }
}

impl WorkerTimes {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            doing: array::from_fn(|_| AtomicU64::new(0)),
            kinds: array::from_fn(|_| AtomicU64::new(0)),
            tiles: AtomicU64::new(0),
            stolen: AtomicU64::new(0),
            cpu: AtomicU64::new(0),
        }
    }

    /// What has been added up so far. What the worker is at now is not in it yet.
    #[must_use]
    pub fn read(&self) -> Times {
        let seconds = |nanos: &AtomicU64| nanos.load(Relaxed) as f64 * 1e-9;
        Times {
            doing: array::from_fn(|i| seconds(&self.doing[i])),
            kinds: array::from_fn(|i| seconds(&self.kinds[i])),
            tiles: self.tiles.load(Relaxed),
            stolen: self.stolen.load(Relaxed),
            cpu: seconds(&self.cpu),
        }
    }

    /// Adds without a locked instruction: there is one writer.
    fn add(sum: &AtomicU64, more: u64) {
        sum.store(sum.load(Relaxed) + more, Relaxed);
    }
}

impl Default for WorkerTimes {
    fn default() -> Self {
        Self::new()
    }
}

/// The observer of one worker. Lives on the worker's thread.
#[derive(Debug)]
pub struct Recorder<'a> {
    times: &'a CachePadded<WorkerTimes>,
    begin: Instant,
    /// Nanoseconds from `begin` to the last turn.
    since: u64,
    doing: Activity,
    /// Whether the tile under way is counted: a chain of operations is one tile.
    in_tile: bool,
    /// Records for a trace.
    pen: Option<Pen<'a>>,
}

impl<'a> Recorder<'a> {
    /// Adds up in `times` what happens from now on.
    #[must_use]
    pub fn new(times: &'a CachePadded<WorkerTimes>) -> Self {
        let begin = Instant::now();
        Self { times, begin, since: 0, doing: Activity::Rest, in_tile: false, pen: None }
    }

    /// Has `pen` write everything down, by its clock.
    #[must_use]
    pub fn with_pen(self, pen: Option<Pen<'a>>) -> Self {
        let Some(pen) = pen else { return self };
        let begin = pen.epoch();
        Self { begin, since: begin.elapsed().as_nanos() as u64, pen: Some(pen), ..self }
    }

    fn publish_cpu_time(&self) {
        if let Some(cpu) = cpus::thread_time() {
            self.times.cpu.store(cpu.as_nanos() as u64, Relaxed);
        }
    }
}

impl Observer for Recorder<'_> {
    fn enter(&mut self, activity: Activity) {
        let now = self.begin.elapsed().as_nanos() as u64;
        let spent = now - self.since;
        if let Some(pen) = &mut self.pen {
            pen.turn(self.doing, self.since, now);
        }
        let next_is_stolen = matches!(activity, Activity::Tile { stolen: true, .. });
        let was = match self.doing {
            Activity::Tile { op, .. } => {
                WorkerTimes::add(&self.times.kinds[op.kind()], spent);
                Doing::Busy
            }
            Activity::Search if next_is_stolen => Doing::Steal,
            Activity::Search => Doing::Queue,
            Activity::Wait => Doing::Wait,
            Activity::Rest => Doing::Rest,
        };
        WorkerTimes::add(&self.times.doing[was as usize], spent);
        if let Activity::Tile { stolen, .. } = activity {
            if !self.in_tile {
                WorkerTimes::add(&self.times.tiles, 1);
                WorkerTimes::add(&self.times.stolen, u64::from(stolen));
            }
            self.in_tile = true;
        } else {
            self.in_tile = false;
        }
        if activity == Activity::Rest {
            self.publish_cpu_time();
        }
        self.doing = activity;
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use std::thread::sleep;

    #[test]
    fn time_goes_to_what_the_worker_did() {
        let times = CachePadded::new(WorkerTimes::new());
        let mut recorder = Recorder::new(&times);
        let tile = |stolen| Activity::Tile { stage: 0, op: Op::EMPTY, tile: 0, stolen };
        let pause = || sleep(Duration::from_millis(2));
        pause();
        recorder.enter(Activity::Search);
        recorder.enter(tile(false));
        pause();
        // The next operation of the same tile.
        recorder.enter(tile(false));
        pause();
        recorder.enter(Activity::Search);
        pause();
        recorder.enter(tile(true));
        recorder.enter(Activity::Search);
        pause();
        recorder.enter(Activity::Wait);
        pause();
        recorder.enter(Activity::Rest);
        let sums = times.read();
        assert!(sums.of(Doing::Busy) >= 0.004 && sums.of(Doing::Steal) >= 0.002);
        assert_eq!(sums.kinds[Op::EMPTY.kind()], sums.of(Doing::Busy));
        for doing in [Doing::Queue, Doing::Wait, Doing::Rest] {
            assert!(sums.of(doing) >= 0.002, "{doing:?}");
        }
        assert_eq!((sums.tiles, sums.stolen), (2, 1));
        let mut twice = Times::ZERO;
        twice.add_between(&Times::ZERO, &sums);
        twice.add_between(&Times::ZERO, &sums);
        assert_eq!((twice.tiles, twice.of(Doing::Wait)), (4, 2.0 * sums.of(Doing::Wait)));
    }
}
