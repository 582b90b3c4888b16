//! What the workers did in a session's steps, for its report.
//!
//! Only steps count, with all that belongs to them: waiting for their batches, and what the
//! training thread does between two runs of the engine. Validations and checkpoints
//! are left out. What a worker's time in steps was not spent on otherwise is rest: a wait
//! that is still going on when the run ends, too.
//!
//! Busy is time by the clock inside tiles. Where there are more workers than CPUs, it
//! includes the time in which the system gave the CPU to another thread: compare it with
//! the CPU seconds beside it.

use core::time::Duration;
use std::time::Instant;

use cllm_core::Op;
use serde::Serialize;

use super::event::{self, WorkerSeconds};
use crate::pool::times::{Doing, Times};
use crate::pool::{Crew, cpus};

/// Sums over the steps of a session.
pub(super) struct Work<'a> {
    crew: &'a Crew,
    before: Vec<Times>,
    after: Vec<Times>,
    sums: Vec<Times>,
    seconds: f64,
    /// Seconds of steps times the workers that each had.
    capacity: f64,
    step: Option<Instant>,
    /// Steps that are behind the session.
    done: u64,
    /// Reported steps, how many of them there were when the last [`event::Work`] was made, and steps
    /// done then.
    reported: u64,
    told: (u64, u64),
    /// CPU time of the training thread and of the process when the session began.
    cpu: (Duration, Duration),
}

/// Where one worker's time in steps went. Seconds.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerReport {
    /// The thread's name.
    pub name: String,
    /// Running tiles.
    pub busy: f64,
    /// Saying that a tile is done, and finding the next one.
    pub queue: f64,
    /// Finding and taking tiles of others.
    pub steal: f64,
    /// A step was under way, but no tile was ready.
    pub wait: f64,
    /// The next batch was not ready.
    pub data: f64,
    /// The training thread was between two runs.
    pub rest: f64,
    /// Share of the time that was busy.
    pub utilisation: f64,
    /// CPU seconds of the whole session, by the thread's own clock.
    pub cpu_seconds: f64,
    /// Tiles run.
    pub tiles: u64,
    /// Those of them that were taken from others.
    pub tiles_stolen: u64,
}

/// Time that all workers spent on one kind of operation.
#[derive(Clone, Debug, Serialize)]
pub struct OperationReport {
    /// Its name.
    pub name: &'static str,
    /// Seconds, of all workers together.
    pub seconds: f64,
    /// Share of what the workers were busy with.
    pub share: f64,
}

/// What the workers of a session did.
#[derive(Clone, Debug, Serialize)]
pub struct WorkReport {
    /// Seconds of steps, validations and checkpoints apart.
    pub step_seconds: f64,
    /// Share of the workers' time in steps that they were busy: of those that took part,
    /// where `--threads auto` has found fewer to be faster.
    pub utilisation: f64,
    /// Share of it that went into queue, steal and wait.
    pub overhead: f64,
    /// Share of it that went into waiting for data.
    pub data: f64,
    /// Threads that were started as workers since the program began.
    pub workers_started: u64,
    /// CPU seconds of the training thread in the session.
    pub main_cpu_seconds: f64,
    /// Their share of the process's.
    pub main_cpu_share: f64,
    /// Each worker.
    pub workers: Vec<WorkerReport>,
    /// Each kind of operation, the longest first.
    pub operations: Vec<OperationReport>,
}

impl<'a> Work<'a> {
    pub(super) fn new(crew: &'a Crew) -> Self {
        let zero = vec![Times::ZERO; crew.workers()];
        Self {
            crew,
            before: zero.clone(),
            after: zero.clone(),
            sums: zero,
            seconds: 0.0,
            capacity: 0.0,
            step: None,
            done: 0,
            reported: 0,
            told: (0, 0),
            cpu: cpu_times(),
        }
    }

    /// A step begins. Allocates nothing, as does [`Work::end_step`].
    pub(super) fn begin_step(&mut self) {
        self.crew.read(&mut self.before);
        self.step = Some(Instant::now());
    }

    /// It ends; `threads` workers took part.
    pub(super) fn end_step(&mut self, threads: usize) {
        let Some(begin) = self.step.take() else { return };
        let seconds = begin.elapsed().as_secs_f64();
        self.done += 1;
        self.seconds += seconds;
        self.capacity += seconds * threads.min(self.sums.len()) as f64;
        self.crew.read(&mut self.after);
        for ((sum, before), after) in self.sums.iter_mut().zip(&self.before).zip(&self.after) {
            sum.add_between(before, after);
        }
    }

    /// To be asked once after each reported step: whether it is time to tell [`Work::so_far`]. It is
    /// after all of the first, and so far apart from then on that a run of any length has hundreds.
    pub(super) fn is_due(&mut self) -> bool {
        self.reported += 1;
        self.reported - self.told.0 >= (self.reported / 16).max(1)
    }

    /// Whether there have been steps since the last [`Work::so_far`].
    pub(super) fn is_behind(&self) -> bool {
        self.done > self.told.1
    }

    /// What the workers have done until now, after `step` steps of the run, given how long steps waited
    /// for data.
    pub(super) fn so_far(&mut self, step: u64, data: f64) -> event::Work {
        self.told = (self.reported, self.done);
        let WorkReport { step_seconds, workers, operations, .. } = self.report(data);
        // To the microsecond: these lines are many.
        let round = |seconds: f64| (1e6 * seconds).round() / 1e6;
        let worker = |w: &WorkerReport| WorkerSeconds {
            busy: round(w.busy),
            queue: round(w.queue),
            steal: round(w.steal),
            wait: round(w.wait),
            data: round(w.data),
            rest: round(w.rest),
        };
        event::Work {
            step,
            step_seconds: round(step_seconds),
            workers: workers.iter().map(worker).collect(),
            operations: operations.iter().map(|op| (op.name, round(op.seconds))).collect(),
        }
    }

    /// The report, given how long steps waited for data.
    pub(super) fn report(&self, data: f64) -> WorkReport {
        let mut now = vec![Times::ZERO; self.sums.len()];
        self.crew.read(&mut now);
        let seconds = self.seconds.max(1e-9);
        let workers: Vec<_> = self
            .sums
            .iter()
            .zip(&now)
            .enumerate()
            .map(|(n, (sum, now))| {
                let [busy, queue, steal, wait] =
                    [Doing::Busy, Doing::Queue, Doing::Steal, Doing::Wait].map(|d| sum.of(d));
                WorkerReport {
                    name: format!("cllm-worker-{n}"),
                    busy,
                    queue,
                    steal,
                    wait,
                    data,
                    rest: (self.seconds - busy - queue - steal - wait - data).max(0.0),
                    utilisation: busy / seconds,
                    cpu_seconds: now.cpu,
                    tiles: sum.tiles,
                    tiles_stolen: sum.stolen,
                }
            })
            .collect();
        let all = self.capacity.max(1e-9);
        let total = |of: fn(&WorkerReport) -> f64| workers.iter().map(of).sum::<f64>();
        let (busy, overhead) = (total(|w| w.busy), total(|w| w.queue + w.steal + w.wait));
        let (main, process) = cpu_times();
        let main = main.saturating_sub(self.cpu.0).as_secs_f64();
        let process = process.saturating_sub(self.cpu.1).as_secs_f64();
        WorkReport {
            step_seconds: self.seconds,
            utilisation: busy / all,
            overhead: overhead / all,
            data: data / seconds,
            workers_started: crate::pool::started(),
            main_cpu_seconds: main,
            main_cpu_share: main / process.max(1e-9),
            operations: self.operations(busy),
            workers,
        }
    }

    fn operations(&self, busy: f64) -> Vec<OperationReport> {
        let mut operations: Vec<_> = Op::KINDS
            .iter()
            .enumerate()
            .map(|(kind, name)| {
                let seconds = self.sums.iter().map(|sum| sum.kinds[kind]).sum::<f64>();
                OperationReport { name, seconds, share: seconds / busy.max(1e-9) }
            })
            .filter(|operation| operation.seconds > 0.0)
            .collect();
        operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        operations
    }
}

/// CPU time of the calling thread and of the process.
fn cpu_times() -> (Duration, Duration) {
    (cpus::thread_time().unwrap_or_default(), cpus::process_time().unwrap_or_default())
}

impl WorkReport {
    /// The report for people, without a line break at its end.
    #[must_use]
    pub fn text(&self) -> String {
        let percent = |x: f64| 100.0 * x;
        let mut text = format!(
            "workers busy {:.1} % of the time they were in use, in queue, steal and wait {:.2} %; \
             waiting for data {:.2} % of {:.1} s of steps; main thread {:.2} s of CPU ({:.1} %)\n\
             {:<14}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
            percent(self.utilisation),
            percent(self.overhead),
            percent(self.data),
            self.step_seconds,
            self.main_cpu_seconds,
            percent(self.main_cpu_share),
            "",
            "busy",
            "queue",
            "steal",
            "wait",
            "data",
            "rest",
            "CPU s",
            "tiles",
            "stolen",
        );
        let share = |x: f64| percent(x / self.step_seconds.max(1e-9));
        for w in &self.workers {
            text.push_str(&format!("\n{:<14}", w.name));
            for x in [w.busy, w.queue, w.steal, w.wait, w.data, w.rest] {
                text.push_str(&format!("{:>7.2} %", share(x)));
            }
            text.push_str(&format!("{:>9.1}{:>9}{:>9}", w.cpu_seconds, w.tiles, w.tiles_stolen));
        }
        const SHOWN: usize = 12;
        text.push_str("\ntime by operation: ");
        let shown: Vec<_> = self
            .operations
            .iter()
            .take(SHOWN)
            .map(|op| format!("{} {:.1} %", op.name, percent(op.share)))
            .collect();
        text.push_str(&shown.join(", "));
        if self.operations.len() > SHOWN {
            let rest: f64 = self.operations[SHOWN..].iter().map(|op| op.share).sum();
            text.push_str(&format!(", others {:.1} %", percent(rest)));
        }
        text
    }
}
