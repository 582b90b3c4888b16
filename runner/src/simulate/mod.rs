//! `cllm simulate`: what a recorded step would take on other numbers of workers, or of ranks.
//!
//! The step is planned as it was when it was recorded, with a seat for each virtual worker,
//! and gone through by the engine's own code in virtual time (`replay`). A tile takes as
//! long as the median of its recordings, or as the fastest of them.
//!
//! **Modelled:** which worker takes or steals which tile when, dependencies, the costs of
//! dispatch, stealing and waking as measured in the recording, the training thread's time
//! between runs, waiting for data, and the bytes of tiles that do little but move memory
//! (the update, the gradient's norm, packing, sums into norms and tables), which
//! share one bandwidth.
//!
//! **Not modelled:** the traffic of products, attention and row chains beyond what the
//! recording itself had of it; that a tile's inputs lie in another core's cache; that the
//! words which workers share cost more the more cores there are (dispatch costs what it did
//! in the recording); publishing to more workers; lower clocks on busy chips. Tiles are those of
//! the recording: record with `--tiles-for N` to predict N workers.
//!
//! Ranks are as many workers each as recorded: `cluster` has what the network adds, by formulas, and when gradients can
//! go, by the replay.

mod cluster;
mod network;
mod recorded;
mod replay;
mod report;

use core::ops::Range;
use core::sync::atomic::AtomicU64;
use std::path::PathBuf;

use cllm_core::{
    Actor, Engine, Kernels, Op, OptimizerKind, Plan, Queue, Rehearsal, Run, Slot, Tiling,
};

use crate::error::{Error, Result};
use crate::ranks::reduce::Reducer;
use crate::trace::about::{About, Costs};
use crate::trace::chrome::{self, Trace};
use cluster::{Alone, Timeline};
pub use cluster::{Cluster, RankPrediction};
pub use network::{Link, Network};
use recorded::Recorded;
use replay::{Prices, Sums};
pub use report::{Check, Prediction, Report, Share};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct SimulateSettings {
    /// The trace.
    pub trace: PathBuf,
    /// Numbers of workers.
    pub workers: Vec<usize>,
    /// Bytes a nanosecond that memory moves, whatever the number of workers; `None` has it
    /// grow with the cores from what was measured.
    pub bandwidth: Option<f64>,
    /// A tile takes its fastest time, not its median: what a recording on a busy machine would
    /// have been on a quiet one.
    pub fastest: bool,
    /// Ranks, in the place of workers.
    pub cluster: Option<Cluster>,
}

/// As many as a run can have.
const MOST_WORKERS: usize = 1024;
/// Where all join all, and the model is of that, there are no more.
const MOST_RANKS: usize = 4096;
/// No step of a model that people train has as many.
const MOST_OPS: usize = 1 << 18;

/// A waiting worker that was never seen to wake takes this long.
const UNMEASURED_WAKE: f64 = 1000.0;

/// Simulates the trace for each number of workers.
///
/// # Errors
/// The file is not a trace of a step that this program and CPU can plan.
pub fn simulate(settings: &SimulateSettings) -> Result<Report> {
    let trace = chrome::read(&settings.trace)?;
    let in_file = |e: Error| Error::failure(format!("{}: {e}", settings.trace.display()));
    if trace.about.ranks > 1 {
        return Err(in_file(Error::failure(format!(
            "recorded by one of {} ranks, whose exchange is among its times: record one process, with the same \
             --batch-parts",
            trace.about.ranks
        ))));
    }
    let all = 0..u64::MAX;
    let ranks = match &settings.cluster {
        Some(cluster) => on_ranks(&trace, settings, cluster).map_err(in_file)?,
        None => Vec::new(),
    };
    let workers: &[usize] = if settings.cluster.is_some() { &[] } else { &settings.workers };
    let alone = match workers {
        [] => None,
        _ => Some(predict(&trace, 1, settings, &all).map_err(in_file)?),
    };
    let predictions = workers.iter().zip(alone.iter().cycle()).map(|(workers, alone)| {
        let prediction = match workers {
            1 => alone.clone(),
            _ => predict(&trace, *workers, settings, &all).map_err(in_file)?,
        };
        Ok(prediction.against(alone))
    });
    let predictions = predictions.collect::<Result<_>>()?;
    let check = check_steps(&trace, settings);
    Ok(Report::new(trace.about, settings, check, predictions, ranks))
}

/// Each recorded step, gone through with its own tiles on as many workers as recorded it,
/// against what it took. A step that followed a validation or a checkpoint has packed nothing,
/// and is left out.
fn check_steps(trace: &Trace, settings: &SimulateSettings) -> Option<Check> {
    let predict = |step: &Range<u64>| {
        let predicted = predict(trace, trace.about.workers, settings, step).ok()?;
        Some((predicted.step_ms, (step.end - step.start) as f64 / 1e6))
    };
    let steps: Vec<_> = trace.steps.iter().filter_map(predict).collect();
    let mean = |of: fn(&(f64, f64)) -> f64| {
        (!steps.is_empty()).then(|| steps.iter().map(of).sum::<f64>() / steps.len() as f64)
    };
    Some(Check {
        workers: trace.about.workers,
        steps: steps.len(),
        predicted_ms: mean(|step| step.0)?,
        measured_ms: mean(|step| step.1)?,
    })
}

fn kernels(about: &About) -> Result<&'static Kernels> {
    about.kernels().ok_or_else(|| {
        Error::failure(format!(
            "recorded with other kernels ({}) than this program and CPU have: simulate it where \
             they are",
            about.kernel_names()
        ))
    })
}

/// Bandwidth for `workers` workers: from what `cpus` CPUs have, as much for each more.
fn bandwidth(about: &About, workers: usize, given: Option<f64>) -> f64 {
    let cores = workers as f64 / about.cpus.max(1) as f64;
    given.unwrap_or(about.costs.memory_gb_per_s * cores.max(1.0)).max(1e-3)
}

fn prices(costs: &Costs, bandwidth: f64) -> Prices {
    let wake = if costs.wake_ns > 0.0 { costs.wake_ns } else { UNMEASURED_WAKE };
    Prices {
        dispatch: costs.dispatch_ns as u64,
        steal: (costs.steal_ns - costs.dispatch_ns).max(0.0) as u64,
        wake: wake as u64,
        start: costs.start_ns as u64,
        end: costs.end_ns as u64,
        bandwidth,
    }
}

fn predict(
    trace: &Trace,
    workers: usize,
    settings: &SimulateSettings,
    within: &Range<u64>,
) -> Result<Prediction> {
    let about = &trace.about;
    rehearse(trace, workers, settings, within, |stage| {
        let mut sums = Sums::new(stage.recorded.labels.len());
        for micro in 0..about.gradient_accumulation_steps {
            stage.run(Run::Gradients { pack: micro == 0 }, &mut sums, &mut |_, _| {})?;
        }
        stage.run(Run::Update, &mut sums, &mut |_, _| {})?;
        Ok(Prediction::new(about, workers, &stage.prices, &sums, &stage.recorded.labels))
    })
}

/// The step on each number of ranks.
fn on_ranks(
    trace: &Trace,
    settings: &SimulateSettings,
    cluster: &Cluster,
) -> Result<Vec<RankPrediction>> {
    let about = &trace.about;
    rehearse(trace, about.workers, settings, &(0..u64::MAX), |stage| {
        let plan = stage.plan;
        let mut timeline = |run: Run| {
            let mut sums = Sums::new(stage.recorded.labels.len());
            let (mut finals, mut first) = (Vec::new(), plan.arena_len());
            stage.run(run, &mut sums, &mut |rehearsal, time| {
                let now = rehearsal.final_from(plan);
                if now < first {
                    first = now;
                    finals.push((time as f64, now));
                }
            })?;
            Ok::<_, Error>(Timeline { elapsed: sums.elapsed as f64, finals })
        };
        let first = timeline(Run::Gradients { pack: true })?;
        let other = timeline(Run::Gradients { pack: false })?;
        let update = timeline(Run::Update)?.elapsed;
        let alone = Alone {
            micros: about.gradient_accumulation_steps,
            tokens: about.tokens() / about.gradient_accumulation_steps as f64,
            first,
            other,
            update,
            main: about.costs.main_ns,
            data: about.costs.data_ns,
            blocks: plan.blocks(),
            has_pieces: plan.has_pieces(),
            memory: stage.prices.bandwidth,
        };
        let on = |ranks: usize| alone.on(ranks, &Reducer::shares(plan, ranks), cluster);
        let one = on(1)?;
        let against = |other: RankPrediction| RankPrediction {
            speedup: other.tokens_per_s / one.tokens_per_s,
            ..other
        };
        cluster.ranks.iter().map(|ranks| on(*ranks).map(against)).collect()
    })
}

/// A step that can be gone through in virtual time.
struct Stage<'s, 'e> {
    engine: &'e Engine<'e>,
    plan: &'s Plan,
    actors: Vec<Actor<'e>>,
    recorded: Recorded,
    prices: Prices,
}

impl<'e> Stage<'_, 'e> {
    fn run(
        &mut self,
        run: Run,
        sums: &mut Sums,
        seen: &mut dyn FnMut(&Rehearsal<'_>, u64),
    ) -> Result<()> {
        let Self { engine, actors, recorded, prices, .. } = self;
        replay::replay(engine, actors, run, recorded, prices, sums, seen)
    }
}

/// Plans the step as it was recorded, for `workers` workers, and has `body` go through it.
fn rehearse<R>(
    trace: &Trace,
    workers: usize,
    settings: &SimulateSettings,
    within: &Range<u64>,
    body: impl FnOnce(&mut Stage<'_, '_>) -> Result<R>,
) -> Result<R> {
    let about = &trace.about;
    let tiles = trace.workers.iter().map(Vec::len).sum::<usize>();
    let most = [about.gradient_accumulation_steps, about.tiles_for];
    // Each micro-batch has a tile at least; more would take for ever to go through.
    if most[0] > tiles || most[1] > MOST_WORKERS {
        return Err(Error::failure(format!(
            "{} micro-batches for {} workers, but {tiles} tiles were recorded: it is damaged; record it again",
            most[0], most[1]
        )));
    }
    let refused = |e| Error::failure(format!("its step cannot be planned: {e}"));
    let (config, batch, kernels) = (about.model.config(), about.batch(), kernels(about)?);
    let tiling = Tiling { blocking: about.blocking.0, ..Tiling::for_workers(about.tiles_for) };
    let optimizer: OptimizerKind = about
        .optimizer
        .parse()
        .map_err(|e| Error::failure(format!("its optimizer is {}: {e}", about.optimizer)))?;
    let plan = Plan::with_tiling(&config, batch, workers, &tiling, about.mode(), kernels)
        .map_err(refused)?
        .with_optimizer(optimizer);
    // A queue without pools: nothing is computed.
    if plan.ops().max(plan.slots()).max(plan.words()) > MOST_OPS {
        return Err(Error::failure("its step has more operations than any that was recorded"));
    }
    let mut ops = vec![Op::EMPTY; plan.ops()];
    let mut slots: Vec<_> = (0..plan.slots()).map(|_| Slot::new()).collect();
    let mut words: Vec<_> = (0..plan.words()).map(|_| AtomicU64::new(0)).collect();
    let queue = Queue { ops: &mut ops, slots: &mut slots, words: &mut words };
    let engine = Engine::new(&plan, queue).map_err(refused)?;
    let recorded = Recorded::new(trace, &engine, &plan, within, settings.fastest)?;
    let prices = prices(&about.costs, bandwidth(about, workers, settings.bandwidth));
    let actors = (0..workers).map(|_| Actor::join(&engine));
    let actors = actors
        .collect::<core::result::Result<Vec<_>, _>>()
        .map_err(|e| Error::failure(format!("cannot simulate: {e}")))?;
    body(&mut Stage { engine: &engine, plan: &plan, actors, recorded, prices })
}

/// Refuses numbers that make no sense, in the words of the flags.
///
/// # Errors
/// Names the flag.
pub fn check(settings: &SimulateSettings) -> Result<()> {
    const MOST: usize = MOST_WORKERS;
    if let Some(wrong) = settings.workers.iter().find(|n| !(1..=MOST).contains(*n)) {
        return Err(Error::usage(format!("--workers {wrong}: expected numbers from 1 to {MOST}")));
    }
    if let Some(wrong) = settings.bandwidth.filter(|rate| !(*rate > 0.0 && rate.is_finite())) {
        return Err(Error::usage(format!("--bandwidth {wrong}: it must be above 0, in GB/s")));
    }
    let Some(Cluster { ranks, network, .. }) = &settings.cluster else { return Ok(()) };
    if let Some(wrong) = ranks.iter().find(|n| !(1..=MOST_RANKS).contains(*n)) {
        return Err(Error::usage(format!(
            "--ranks {wrong}: expected numbers from 1 to {MOST_RANKS}"
        )));
    }
    let Network { gbit_per_s, latency_us, message_us } = *network;
    if gbit_per_s.is_nan() || gbit_per_s <= 0.0 {
        return Err(Error::usage(format!("--gbit {gbit_per_s}: it must be above 0, in Gbit/s")));
    }
    for (flag, value) in [("--latency-us", latency_us), ("--message-us", message_us)] {
        if !(value >= 0.0 && value.is_finite()) {
            return Err(Error::usage(format!(
                "{flag} {value}: it must be 0 or more, in microseconds"
            )));
        }
    }
    Ok(())
}
