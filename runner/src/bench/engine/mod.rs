//! What the engine itself costs, beside what it may cost: `cllm bench engine`.
//!
//! [`visit`] makes the cases, which Criterion runs as well: rings, single tiles, the start of a
//! run, and steps of the reference workload that compute nothing. A case times itself, so that
//! what has to be set up between two repeats does not count.

mod handover;
mod steps;
mod tiles;

use cllm_core::{
    Architecture, BatchShape, Engine, Kernels, Mode, ModelConfig, Op, Plan, Queue, Slot,
};
use core::fmt::{self, Write as _};
use core::sync::atomic::AtomicU64;
use core::time::Duration;
use serde::Serialize;
use std::time::Instant;

use super::cases::{FORWARD, HEAD, SEQUENCE, TOKENS, VOCAB, WIDTH};
use crate::error::{Error, Result};
use crate::pool::cpus;

/// Something of the engine to be timed.
pub struct Case<'a> {
    /// `what/how`.
    pub name: &'static str,
    /// Nanoseconds that it may take.
    pub target: Option<f64>,
    /// Tiles of a step, where it is one.
    pub tiles: Option<usize>,
    /// A repeat is one time, for what is long or waits for another thread: moments without a
    /// CPU then stay apart from the others.
    pub singly: bool,
    /// Does it so many times, and says how long that took.
    pub run: &'a mut dyn FnMut(u64) -> Duration,
}

impl fmt::Debug for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Makes all cases one after the other; those of two threads only where there are two CPUs.
///
/// # Errors
/// The reference workload does not fit this machine's address space.
pub fn visit(see: &mut dyn FnMut(Case<'_>)) -> Result<()> {
    let pairs = cpus::available() > 1;
    handover::visit(pairs, see);
    tiles::visit(pairs, see)?;
    steps::visit(pairs, see)
}

/// The reference workload's plan, with another vocabulary or number of sequences.
fn plan(vocab_size: usize, sequences: usize, workers: usize) -> Result<Plan> {
    let config = ModelConfig {
        vocab_size,
        block_size: SEQUENCE,
        n_layer: 4,
        n_head: WIDTH / HEAD,
        d_model: WIDTH,
        d_ff: FORWARD,
        bias: true,
        tied: true,
        dropout: 0.0,
        norm_eps: 1e-5,
        arch: Architecture::GPT2,
    };
    let batch = BatchShape { sequences, tokens: SEQUENCE };
    Plan::new(&config, batch, workers, Mode::Train, Kernels::detect())
        .map_err(|e| Error::failure(format!("cannot plan the reference workload: {e}")))
}

/// The reference workload's own.
fn reference(workers: usize) -> Result<Plan> {
    plan(VOCAB, TOKENS / SEQUENCE, workers)
}

/// Calls `body` with an engine for `plan` that has no pools to compute in.
fn with_engine<R>(plan: &Plan, body: impl FnOnce(&Engine<'_>) -> R) -> Result<R> {
    let mut ops = vec![Op::EMPTY; plan.ops()];
    let mut slots: Vec<Slot> = core::iter::repeat_with(Slot::new).take(plan.slots()).collect();
    let words = core::iter::repeat_with(|| AtomicU64::new(0));
    // Room to begin on a cache line, as the queue of a run does.
    let mut words: Vec<AtomicU64> = words.take(plan.words() + 8).collect();
    let skip = words.as_ptr().align_offset(64).min(8);
    let queue = Queue { ops: &mut ops, slots: &mut slots, words: &mut words[skip..] };
    let engine = Engine::new(plan, queue)
        .map_err(|e| Error::failure(format!("cannot make the engine to measure: {e}")))?;
    Ok(body(&engine))
}

/// Looks until `seen`, for another thread's doing; on a busy machine that thread may need this
/// one's CPU to do it.
fn await_other(mut seen: impl FnMut() -> bool) {
    const PATIENCE: u32 = 10_000;
    let mut looks = 0_u32;
    while !seen() {
        looks += 1;
        if looks.is_multiple_of(PATIENCE) {
            std::thread::yield_now();
        } else {
            core::hint::spin_loop();
        }
    }
}

/// What a case took. Nanoseconds of one time.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// The case.
    pub case: &'static str,
    /// Of the repeats the middle one.
    pub median_ns: f64,
    /// The fastest.
    pub min_ns: f64,
    /// The slowest.
    pub max_ns: f64,
    /// How many there were.
    pub repeats: usize,
    /// What it may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ns: Option<f64>,
    /// Whether the median is within the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ok: Option<bool>,
    /// Tiles of a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiles: Option<usize>,
    /// The median of a step for each of its tiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ns_per_tile: Option<f64>,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// CPUs that the process may use.
    pub cpus: usize,
    /// Each case.
    pub costs: Vec<Cost>,
}

/// A repeat lasts at least this long, for the clock's sake.
const REPEAT: Duration = Duration::from_micros(50);
/// Repeats of a case, at least: an odd number, so that one is in the middle.
const REPEATS: usize = 11;

impl Report {
    /// Measures each case for about `time`.
    ///
    /// # Errors
    /// As for [`visit`].
    pub fn measure(time: Duration) -> Result<Self> {
        let mut costs = Vec::new();
        visit(&mut |case| costs.push(Cost::measure(case, time)))?;
        Ok(Self { cpus: cpus::available(), costs })
    }

    /// A table for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text =
            format!("the engine on {} CPUs: medians (fastest to slowest) of repeats\n", self.cpus);
        for cost in &self.costs {
            let range = format!("({} to {})", human(cost.min_ns), human(cost.max_ns));
            // Writing to a String cannot fail.
            let _ = write!(text, "  {:<36}{:>10}  {range:<24}", cost.case, human(cost.median_ns));
            if let (Some(target), Some(ok)) = (cost.target_ns, cost.ok) {
                let verdict = if ok { "ok" } else { "MISSED" };
                let _ = write!(text, "at most {:>8}: {verdict}", human(target));
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
            if let (Some(tiles), Some(each)) = (cost.tiles, cost.ns_per_tile) {
                let _ = writeln!(
                    text,
                    "  {:<36}{:>10}",
                    format!("  each of {tiles} tiles"),
                    human(each)
                );
            }
        }
        text
    }
}

impl Cost {
    fn measure(case: Case<'_>, time: Duration) -> Self {
        let begin = Instant::now();
        // The first calls are warm-up and tell how many times a repeat needs.
        let mut times = 1_u64;
        let mut fastest = |times| (0..3).map(|_| (case.run)(times)).min().unwrap_or_default();
        while !case.singly && times < 1 << 20 && fastest(times) < REPEAT {
            times *= 2;
        }
        let mut repeats = Vec::new();
        while repeats.len() < REPEATS || repeats.len() % 2 == 0 || begin.elapsed() < time {
            repeats.push((case.run)(times).as_secs_f64() * 1e9 / times as f64);
        }
        Self::of(case.name, case.target, case.tiles, repeats)
    }

    /// Of an odd number of repeats.
    fn of(
        case: &'static str,
        target_ns: Option<f64>,
        tiles: Option<usize>,
        mut repeats: Vec<f64>,
    ) -> Self {
        repeats.sort_by(f64::total_cmp);
        let at = |i: usize| repeats.get(i).copied().unwrap_or(f64::NAN);
        let median_ns = at(repeats.len() / 2);
        Self {
            case,
            median_ns,
            min_ns: at(0),
            max_ns: at(repeats.len().saturating_sub(1)),
            repeats: repeats.len(),
            target_ns,
            ok: target_ns.map(|target| median_ns <= target),
            tiles,
            ns_per_tile: tiles.map(|tiles| median_ns / tiles as f64),
        }
    }
}

/// Nanoseconds for people.
fn human(ns: f64) -> String {
    match ns {
        _ if ns < 1e3 => format!("{ns:.1} ns"),
        _ if ns < 1e6 => format!("{:.1} us", ns / 1e3),
        _ => format!("{:.1} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_held_against_its_target() {
        let cost = |target| Cost::of("a", target, Some(10), vec![30.0, 2000.0, 20.0]);
        let met = cost(Some(30.0));
        assert_eq!((met.min_ns, met.median_ns, met.max_ns), (20.0, 30.0, 2000.0));
        assert_eq!((met.ok, met.ns_per_tile), (Some(true), Some(3.0)));
        let missed = cost(Some(29.0));
        assert_eq!(missed.ok, Some(false));
        let report = Report { cpus: 2, costs: vec![met, missed, cost(None)] };
        let text = report.text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].ends_with("30.0 ns: ok") && lines[1].contains("(20.0 ns to 2.0 us)"));
        assert!(lines[3].ends_with("29.0 ns: MISSED"), "{text}");
        assert!(lines[2].contains("each of 10 tiles") && lines[2].ends_with("3.0 ns"), "{text}");
        assert!(!lines[5].contains("at most"), "{text}");
    }

    #[test]
    fn every_case_costs_something() {
        let report = Report::measure(Duration::from_millis(1)).unwrap();
        let mut names: Vec<&str> = report.costs.iter().map(|cost| cost.case).collect();
        let all = if cpus::available() > 1 { 10 } else { 4 };
        assert_eq!(names.len(), all);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        for cost in &report.costs {
            // Other work on the machine makes everything slower, never faster.
            assert!(cost.median_ns > 0.3 && cost.min_ns.is_finite(), "{cost:?}");
            assert!(cost.repeats >= REPEATS && cost.min_ns <= cost.median_ns, "{cost:?}");
        }
        let steps = report.costs.iter().filter_map(|cost| cost.tiles);
        assert!(steps.clone().count() > 0 && steps.min() > Some(1000));
    }
}
