//! How long `Slices::run_for` takes: a call of one tile against the tile in it.
//!
//! A small model is trained on one thread, each step by calls of `run_for(1)`; each second step is
//! watched, so that the time of every tile is known besides that of its call. Tiles of a step come in the
//! same order each time, so the same operation can be looked up for a call that is not watched.
//!
//! Where a machine has other work too, a system takes the CPU away in the middle of a call, for
//! milliseconds. That is not `run_for`'s doing. So calls and tiles in which the thread was switched
//! out (`/proc/thread-self/schedstat` counts how often it was given a CPU) are set aside, and said
//! how many; and times are of the thread's own CPU clock (`CLOCK_THREAD_CPUTIME_ID`), in which
//! interrupts are, and caches that others have emptied. By the clock on the wall the same calls are
//! told beside, all of them too, and judged by nobody.
//!
//! Each watched call has its own bound: the time of the first tile that it ran, by the same clock. Fails if
//! of 10,000 of them the median or the 99.9 % one takes [`OVERHEAD`] more, or if the median call of an operation
//! that is not watched takes that much more than the median tile of it, or if the longest takes longer, beyond
//! its tile, than the longest tile of the step: an interrupt's time is the thread's, so there is nothing closer to be
//! said of one call in ten thousand. No call may run another number of tiles than one.
//!
//! `cargo bench --bench slices [-- CALLS]`

#[path = "../tests/support/mod.rs"]
mod support;

use cllm::pool::cpus::thread_time;
use cllm_core::{
    Activity, Architecture, Batch, BatchShape, Engine, Kernels, Mode, ModelConfig, Observer,
    Optimizer, Plan, Slices, Trainer,
};
use core::time::Duration;
use std::process::ExitCode;
use std::time::Instant;

const CONFIG: ModelConfig = ModelConfig {
    vocab_size: 256,
    block_size: 64,
    n_layer: 2,
    n_head: 4,
    d_model: 64,
    d_ff: 256,
    bias: true,
    tied: true,
    dropout: 0.0,
    norm_eps: 1e-5,
    arch: Architecture::GPT2,
};
const SHAPE: BatchShape = BatchShape { sequences: 8, tokens: 64 };

/// Microseconds that the median and the 99.9 % call may take beyond the tile: to find and count it and to read
/// the clock; in the second also an interrupt, which the thread's clock does not leave out. The tile of an
/// operation that takes long, which is what a call too many would run, is longer than either.
const OVERHEAD: [f64; 2] = [5.0, 20.0];

/// How often the thread has been given a CPU; `None` where nobody counts.
fn turns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().nth(2)?.parse().ok()
}

/// A moment, on the wall and of the thread.
#[derive(Clone, Copy)]
struct Moment {
    turns: Option<u64>,
    wall: Instant,
    cpu: Duration,
}

/// Microseconds.
#[derive(Clone, Copy, Default)]
struct Took {
    wall: f64,
    cpu: f64,
    /// The thread was on its CPU all the while.
    whole: bool,
}

impl Moment {
    fn now() -> Self {
        let turns = turns();
        let wall = Instant::now();
        Self { turns, wall, cpu: thread_time().unwrap_or_default() }
    }

    /// As [`Moment::now`], within a call whose turns are counted.
    fn within() -> Self {
        Self { turns: None, wall: Instant::now(), cpu: thread_time().unwrap_or_default() }
    }

    fn took(self) -> Took {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let cpu = thread_time().map(|cpu| cpu.saturating_sub(self.cpu));
        let wall = micros(self.wall.elapsed());
        // Where threads have no clock of their own there is that on the wall.
        let whole = self.turns.is_none_or(|before| turns() == Some(before));
        Took { wall, cpu: cpu.map_or(wall, micros), whole }
    }
}

/// The first and the last operation of a tile.
type Ops = [&'static str; 2];

/// Times the first tile of a call, which is to be the only one.
#[derive(Default)]
struct Watch {
    began: Option<Moment>,
    took: Option<Took>,
    ops: Ops,
}

impl Observer for Watch {
    fn enter(&mut self, activity: Activity) {
        match activity {
            _ if self.took.is_some() => {}
            Activity::Tile { op, .. } => {
                if self.began.is_none() {
                    self.ops[0] = op.name();
                    self.began = Some(Moment::within());
                }
                self.ops[1] = op.name();
            }
            _ => self.took = self.began.map(Moment::took),
        }
    }
}

/// What was timed.
#[derive(Default)]
struct Times {
    /// Calls of `run_for(1)`.
    calls: Vec<Took>,
    /// Their tiles, if those were watched.
    tiles: Vec<(Ops, Took)>,
    begins: Vec<Took>,
    drops: Vec<Took>,
}

/// Runs a step, that has begun since a moment, tile by tile: each call takes one of those that are left.
fn go<T: Copy>(began: Moment, mut step: Slices<'_, '_, T>, watched: bool, times: &mut Times) {
    times.begins.push(began.took());
    while let left @ 1.. = step.tiles_left() {
        if watched {
            let mut watch = Watch::default();
            let call = Moment::now();
            let _ = step.run_for_observed(1, &mut watch).expect("the step works");
            times.calls.push(call.took());
            times.tiles.push((watch.ops, watch.took.expect("the call has run a tile")));
        } else {
            let call = Moment::now();
            let _ = step.run_for(1).expect("the step works");
            times.calls.push(call.took());
        }
        assert_eq!(step.tiles_left(), left - 1, "a call is to run one tile");
    }
}

/// Median, 99.9 % and longest.
const SHARES: [f64; 3] = [0.5, 0.999, 1.0];

/// The value that a share of some values does not exceed.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share).ceil() as usize;
    values[at.clamp(1, values.len()) - 1]
}

/// Times of steps until there are as many calls as asked for, watched ones and others.
fn train(calls: usize) -> (Times, Times) {
    let kernels = Kernels::detect();
    let plan = Plan::new(&CONFIG, SHAPE, 1, Mode::Train, kernels).expect("a sound plan");
    let mut memory = support::memory::Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).expect("memory of the planned size");
    let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 1).expect("as planned");
    trainer.initialise();
    let (n, rule) = (plan.tokens(), Optimizer::default());
    let tokens: Vec<u32> = (0..n as u32).map(|i| i * 7919 % 256).collect();
    let batch = Batch::new(&tokens, &tokens);
    let mut wholes = Vec::new();
    let (mut plain, mut watched) = (Times::default(), Times::default());
    // The first steps touch memory for the first time.
    for step in 0.. {
        let begin = Moment::now();
        trainer.accumulate(&batch, n).expect("a finite loss");
        trainer.update(&rule, 1e-3).expect("a finite gradient");
        wholes.push(begin.took().cpu);
        let (watches, mut warm) = (step % 2 == 1, Times::default());
        let times = match (step < 4, watches) {
            (true, _) => &mut warm,
            (_, true) => &mut watched,
            (_, false) => &mut plain,
        };
        let begin = Moment::now();
        let gradients = trainer.accumulate_in_slices(&batch, n);
        go(begin, gradients.expect("the batch fits"), watches, times);
        let begin = Moment::now();
        let update = trainer.update_in_slices(&rule, 1e-3);
        go(begin, update.expect("there are gradients"), watches, times);
        let mut evaluation = trainer.evaluate_in_slices(&batch).expect("the batch fits");
        evaluation.run_for(7).expect("the step works");
        let begin = Moment::now();
        drop(evaluation);
        times.drops.push(begin.took());
        let enough = |times: &Times| times.calls.iter().filter(|took| took.whole).count() >= calls;
        if step % 8 == 7 && enough(&plain) && enough(&watched) {
            break;
        }
    }
    let steps = plain.begins.len() / 2;
    println!(
        "{} weights, {n} tokens, {}; a step is {} tiles; microseconds of the thread's CPU time",
        trainer.parameters().len(),
        kernels.isa(),
        plain.calls.len() / steps
    );
    let sum = plain.calls.iter().chain(&plain.begins).map(|took| took.cpu).sum::<f64>();
    let whole = quantile(&wholes, 0.5);
    println!("a step as a whole {whole:.0}, in slices of one tile {:.0}", sum / steps as f64);
    (plain, watched)
}

/// The times that are to be told.
fn all(times: &[Took], of: fn(&Took) -> f64) -> Vec<f64> {
    times.iter().map(of).collect()
}

fn row(name: &str, values: &[f64]) {
    let cells = SHARES.map(|share| format!("{:10.2}", quantile(values, share)));
    println!("{name:80}{}", cells.concat());
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let calls = args.next().map_or(10_000, |text| text.parse().expect("a number of calls"));
    let (plain, watched) = train(calls);

    // Every step has the same tiles in the same order.
    let tiles = plain.calls.len() / (plain.begins.len() / 2);
    let order: Vec<Ops> = watched.tiles.iter().take(tiles).map(|(ops, _)| *ops).collect();
    let mut same = watched.tiles.iter().enumerate();
    assert!(same.all(|(at, (ops, _))| *ops == order[at % tiles]), "the order has changed");
    let mut kinds: Vec<Ops> = Vec::new();
    for ops in &order {
        if !kinds.contains(ops) {
            kinds.push(*ops);
        }
    }

    println!("{:60}{:>20}{:>30}", "", "a tile", "run_for(1)");
    let heads = ["tiles", "median", "longest", "median", "99.9 %", "longest"];
    println!("{:50}{}", "operations", heads.map(|head| format!("{head:>10}")).concat());
    // Those that were not interrupted.
    let seen: Vec<_> =
        watched.calls.iter().zip(&watched.tiles).filter(|(call, _)| call.whole).collect();
    let mut medians = Vec::new();
    for kind in &kinds {
        let of_tile =
            seen.iter().filter(|(_, (ops, _))| ops == kind).map(|(_, (_, tile))| tile.cpu);
        let of_tile: Vec<f64> = of_tile.collect();
        let of_call = plain.calls.iter().enumerate();
        let of_call = of_call.filter(|(at, took)| order[at % tiles] == *kind && took.whole);
        let of_call: Vec<f64> = of_call.map(|(_, took)| took.cpu).collect();
        medians.push(quantile(&of_call, 0.5) - quantile(&of_tile, 0.5));
        let name = match kind {
            [first, last] if first == last => (*first).into(),
            [first, last] => format!("{first} ... {last}"),
        };
        let count = order.iter().filter(|ops| *ops == kind).count();
        let tile = [0.5, 1.0].map(|share| quantile(&of_tile, share));
        let call = SHARES.map(|share| quantile(&of_call, share));
        let cells = tile.iter().chain(&call).map(|time| format!("{time:10.2}"));
        println!("{name:50}{count:10}{}", cells.collect::<String>());
    }
    let whole: Vec<Took> = plain.calls.iter().filter(|took| took.whole).copied().collect();
    row(&format!("{} calls", whole.len()), &all(&whole, |took| took.cpu));
    row("  on the wall", &all(&whole, |took| took.wall));
    let interrupted = plain.calls.len() - whole.len();
    row(
        &format!("  and with {interrupted} that were interrupted"),
        &all(&plain.calls, |took| took.wall),
    );
    let beside = seen.iter().map(|(call, (_, tile))| call.cpu - tile.cpu).collect::<Vec<_>>();
    row(&format!("{} watched calls, each without its first tile", beside.len()), &beside);
    row("to begin a step", &all(&plain.begins, |took| took.cpu));
    row("to drop one in its middle", &all(&plain.drops, |took| took.cpu));

    let most = medians.iter().copied().fold(f64::MIN, f64::max);
    println!(
        "the median call without the median tile, of the operation where that is most: {most:.2}"
    );
    let of_bounds = SHARES.map(|share| quantile(&beside, share));
    let longest = seen.iter().map(|(_, (_, tile))| tile.cpu).fold(0.0, f64::max);
    if of_bounds[0].max(most) > OVERHEAD[0] || of_bounds[1] > OVERHEAD[1] || of_bounds[2] > longest
    {
        eprintln!(
            "slices: calls of run_for(1) take more than a tile: medians may be {} microseconds longer, 99.9 % {}, \
             the longest {longest:.0}",
            OVERHEAD[0], OVERHEAD[1]
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
