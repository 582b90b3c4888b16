//! What the workers of a run did: in all, and over time.
//!
//! `work` and `done` say what has been since their session began; a run's total is the sum of what its
//! sessions said last.

use serde::Serialize;
use serde_json::{Map, Value};

/// Most stretches of time that are told apart.
const STRETCHES: usize = 200;
/// What a worker's time goes into.
const PARTS: [&str; 6] = ["busy", "queue", "steal", "wait", "data", "rest"];

/// Seconds of one worker, by [`PARTS`].
type Parts = [f64; PARTS.len()];

/// What was done in some time.
#[derive(Clone, Debug, Default, PartialEq)]
struct Done {
    /// Seconds of steps.
    seconds: f64,
    workers: Vec<Parts>,
    /// Seconds of all workers by [`Teller::operations`].
    operations: Vec<f64>,
}

/// Reads event by event.
#[derive(Clone, Debug, Default)]
pub(super) struct Teller {
    operations: Vec<String>,
    names: Vec<String>,
    /// In the sessions before this one.
    before: Done,
    /// In this session, and up to which step.
    session: Done,
    step: u64,
    stretches: Vec<(u64, u64, Done)>,
}

/// For the page.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Work {
    /// Seconds of steps.
    seconds: f64,
    /// What is told apart of a worker's time.
    parts: [&'static str; PARTS.len()],
    /// Names and seconds by `parts`.
    workers: Vec<(String, Parts)>,
    /// Names and seconds of all workers, the longest first.
    operations: Vec<(String, f64)>,
    stretches: Vec<Stretch>,
}

/// From one event to the next, or over several.
#[derive(Clone, Debug, Serialize)]
struct Stretch {
    from: u64,
    to: u64,
    /// Share of the time that each worker was busy.
    busy: Vec<f64>,
    /// Shares of `parts`, of all workers.
    parts: Parts,
    /// Shares of all workers' time, as in [`Work::operations`].
    operations: Vec<f64>,
}

impl Teller {
    /// A session begins after `step` steps.
    pub(super) fn begin(&mut self, step: u64) {
        let session = core::mem::take(&mut self.session);
        self.before.add(&session);
        self.step = step;
    }

    /// An event after `step` steps tells what the workers have done in the session.
    pub(super) fn tell(&mut self, step: u64, event: &Map<String, Value>) {
        let Some(done) = self.read(event) else { return };
        // The end of a session says again what its last step has said.
        if step > self.step && done.seconds > self.session.seconds {
            self.stretches.push((self.step, step, done.since(&self.session)));
            self.step = step;
        }
        self.session = done;
    }

    fn read(&mut self, event: &Map<String, Value>) -> Option<Done> {
        let number = |value: Option<&Value>| value.and_then(Value::as_f64).unwrap_or(0.0);
        let workers = event.get("workers")?.as_array()?;
        for (n, worker) in workers.iter().enumerate().skip(self.names.len()) {
            let name = worker.get("name").and_then(Value::as_str);
            self.names.push(name.map_or_else(|| format!("worker {n}"), str::to_owned));
        }
        let mut done = Done {
            seconds: event.get("step_seconds")?.as_f64()?,
            workers: workers.iter().map(|w| PARTS.map(|part| number(w.get(part)))).collect(),
            operations: Vec::new(),
        };
        // `work` has an object of seconds, `done` a list of objects.
        let operations: Vec<(&str, Option<&Value>)> = match event.get("operations") {
            Some(Value::Object(seconds)) => {
                seconds.iter().map(|(name, seconds)| (name.as_str(), Some(seconds))).collect()
            }
            Some(Value::Array(list)) => list
                .iter()
                .filter_map(|one| Some((one.get("name")?.as_str()?, one.get("seconds"))))
                .collect(),
            _ => Vec::new(),
        };
        for (name, seconds) in operations {
            let at = self.operations.iter().position(|known| known == name).unwrap_or_else(|| {
                self.operations.push(name.to_owned());
                self.operations.len() - 1
            });
            done.operations.resize(self.operations.len(), 0.0);
            done.operations[at] += number(seconds);
        }
        Some(done)
    }

    /// All of it; `None` if the run has told nothing.
    pub(super) fn work(&self) -> Option<Work> {
        let mut all = self.before.clone();
        all.add(&self.session);
        if all.workers.is_empty() {
            return None;
        }
        all.operations.resize(self.operations.len(), 0.0);
        let mut order: Vec<usize> = (0..self.operations.len()).collect();
        order.sort_by(|a, b| all.operations[*b].total_cmp(&all.operations[*a]));
        let joined = self.stretches.chunks(self.stretches.len().div_ceil(STRETCHES).max(1));
        Some(Work {
            seconds: all.seconds,
            parts: PARTS,
            workers: self.names.iter().cloned().zip(all.workers).collect(),
            stretches: joined.filter_map(|these| Stretch::over(these, &order)).collect(),
            operations: order
                .iter()
                .map(|at| (self.operations[*at].clone(), all.operations[*at]))
                .collect(),
        })
    }
}

impl Done {
    fn add(&mut self, other: &Self) {
        self.change(other, |a, b| a + b);
    }

    fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        since.change(earlier, |a, b| (a - b).max(0.0));
        since
    }

    fn change(&mut self, other: &Self, by: fn(f64, f64) -> f64) {
        self.seconds = by(self.seconds, other.seconds);
        let workers = self.workers.len().max(other.workers.len());
        self.workers.resize(workers, Parts::default());
        for (parts, others) in self.workers.iter_mut().zip(&other.workers) {
            for (to, from) in parts.iter_mut().zip(others) {
                *to = by(*to, *from);
            }
        }
        let operations = self.operations.len().max(other.operations.len());
        self.operations.resize(operations, 0.0);
        for (to, from) in self.operations.iter_mut().zip(&other.operations) {
            *to = by(*to, *from);
        }
    }
}

impl Stretch {
    /// Several as one.
    fn over(stretches: &[(u64, u64, Done)], order: &[usize]) -> Option<Self> {
        let ((from, ..), (_, to, _)) = (stretches.first()?, stretches.last()?);
        let mut done = Done::default();
        stretches.iter().for_each(|(.., these)| done.add(these));
        let seconds = done.seconds.max(1e-9);
        let share = |part: f64, of: f64| (1e4 * part / of).round() / 1e4;
        let all = seconds * done.workers.len() as f64;
        let sum = |part: usize| done.workers.iter().map(|parts| parts[part]).sum::<f64>();
        let operation = |at: &usize| share(done.operations.get(*at).copied().unwrap_or(0.0), all);
        Some(Self {
            from: *from,
            to: *to,
            busy: done.workers.iter().map(|parts| share(parts[0], seconds)).collect(),
            parts: core::array::from_fn(|part| share(sum(part), all)),
            operations: order.iter().map(operation).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(seconds: f64, busy: [f64; 2], operations: [(&str, f64); 2]) -> Map<String, Value> {
        let workers: Vec<_> = busy.iter().map(|busy| json!({"busy": busy, "wait": 0.5})).collect();
        let operations: Vec<_> =
            operations.iter().map(|(name, s)| json!({"name": name, "seconds": s})).collect();
        let event = json!({"step_seconds": seconds, "workers": workers, "operations": operations});
        event.as_object().unwrap().clone()
    }

    #[test]
    fn sessions_add_up_and_stretches_are_differences() {
        let mut teller = Teller::default();
        assert!(teller.work().is_none());
        teller.begin(0);
        teller.tell(10, &told(2.0, [1.0, 2.0], [("a", 1.0), ("b", 2.0)]));
        teller.tell(20, &told(4.0, [3.0, 3.0], [("b", 3.5), ("a", 2.5)]));
        // The end says the same once more.
        teller.tell(20, &told(4.0, [3.0, 3.0], [("b", 3.5), ("a", 2.5)]));
        teller.begin(20);
        teller.tell(30, &told(1.0, [0.5, 1.0], [("a", 1.0), ("c", 0.5)]));
        let work = teller.work().unwrap();
        assert_eq!(work.seconds, 5.0);
        assert_eq!(work.workers[0], ("worker 0".to_owned(), [3.5, 0.0, 0.0, 1.0, 0.0, 0.0]));
        let operations: Vec<_> = work.operations.iter().map(|(n, s)| (n.as_str(), *s)).collect();
        assert_eq!(operations[..2].iter().map(|o| o.1).collect::<Vec<_>>(), [3.5, 3.5]);
        assert_eq!(operations[2], ("c", 0.5));
        let steps: Vec<_> = work.stretches.iter().map(|s| (s.from, s.to)).collect();
        assert_eq!(steps, [(0, 10), (10, 20), (20, 30)]);
        assert_eq!(work.stretches[1].busy, [1.0, 0.5]);
        assert_eq!(work.stretches[1].parts[0], 0.75);
        assert_eq!(work.stretches[2].operations[2], 0.25);
    }

    #[test]
    fn many_stretches_are_joined() {
        let mut teller = Teller::default();
        for step in 1..=1000 {
            let now = step as f64;
            teller.tell(step, &told(now, [now, 0.5 * now], [("a", now), ("b", 0.0)]));
        }
        let work = teller.work().unwrap();
        assert_eq!(work.stretches.len(), 200);
        assert_eq!((work.stretches[1].from, work.stretches[1].to), (5, 10));
        assert!(work.stretches.iter().all(|s| s.busy == [1.0, 0.5]));
    }
}
