//! Training: `cllm train`.
//!
//! [`train`] prepares (folder, data, plan, memory, weights), then `session` goes
//! through the steps. [`folder`] knows where things lie, [`metrics`] and [`report`] what is
//! said, [`stop`] when to end early.

pub(crate) mod base;
pub(crate) mod bigrams;
mod board;
pub mod event;
pub mod examples;
pub mod exchange;
mod farewell;
mod first_state;
pub mod folder;
pub mod inputs;
pub mod metrics;
pub mod report;
mod resume;
mod session;
mod spikes;
pub mod stop;
mod team;
pub mod tuner;
pub mod watch;
pub mod work;

use core::time::Duration;
use std::io::{IsTerminal as _, Write};
use std::path::Path;
use std::time::Instant;

use cllm_core::{Engine, Kernels, Trainer};

use crate::bench::machine::fma_peak;
use crate::data::prefetch::{self, Prefetch, ReadyBatch};
use crate::error::{Error, Result};
use crate::memory::{PoolMemory, check_available};
use crate::model;
use crate::pool::{self, Crew, cpus};
use crate::ranks::cut::{self, Cut};
use crate::ranks::reduce::Reducer;
use crate::ranks::{Alone, Ranks, launch};
use crate::settings::{SpikeChoice, Threads, TrainSettings};
use crate::trace::record::Recording;
use crate::trace::tracer::{Tracer, Wanted};
use crate::tune::Sizes;
use event::{AdaptersInfo, Environment, Event, PlannedBytes, Start};
use farewell::Farewell;
pub(crate) use first_state::most_first_bytes;
use folder::{Begun, RunFolder};
use inputs::Inputs;
use metrics::{Metrics, Place};
use report::Reporter;
pub(crate) use resume::is_of_session;
use session::{Rates, Session};
use stop::Stop;
use team::Team;
use tuner::Tuner;
use watch::Watch;
use work::Work;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// Asked to stop; saved and to be resumed. The binary exits with 130.
    Interrupted,
}

/// Trains as told, until done or until SIGINT or SIGTERM, together with the processes that this one was started with.
///
/// # Errors
/// Wrong settings, data, memory, files or numbers; existing checkpoints stay.
pub fn train(settings: &TrainSettings) -> Result<Outcome> {
    train_behind(settings, &|| {})
}

/// As [`train`]; `say` is called before, by the first of the processes alone.
///
/// # Errors
/// As [`train`].
pub fn train_behind(settings: &TrainSettings, say: &dyn Fn()) -> Result<Outcome> {
    let mut stdout = std::io::stdout();
    let is_terminal = stdout.is_terminal();
    match launch::ranks()? {
        None => {
            say();
            run(settings, &Alone, None, (&mut stdout, is_terminal))
        }
        Some(ranks) => {
            if ranks.rank() == 0 {
                say();
            }
            let settings = shared(settings, &*ranks);
            let ended = run(&settings, &*ranks, None, (&mut stdout, is_terminal));
            ended.inspect_err(|error| give_up(&*ranks, error))
        }
    }
}

/// As [`train`], but stops when `stop` is requested and leaves signals alone, and
/// writes to `out` what [`train`] writes to standard output.
///
/// # Errors
/// As [`train`].
pub fn train_until(settings: &TrainSettings, stop: &Stop, out: &mut dyn Write) -> Result<Outcome> {
    run(settings, &Alone, Some(stop), (out, false))
}

/// As [`train_until`], as one of `ranks` that all call this. Rank 0 writes.
///
/// # Errors
/// As [`train`]; another rank is gone.
pub fn train_with(
    settings: &TrainSettings,
    ranks: &dyn Ranks,
    stop: &Stop,
    out: &mut dyn Write,
) -> Result<Outcome> {
    run(&shared(settings, ranks), ranks, Some(stop), (out, false))
}

/// The settings of one of `ranks`: a new run has parts for them to share, and CPUs are shared by those that are on
/// one machine, unless whoever started them has done so already.
fn shared(settings: &TrainSettings, ranks: &dyn Ranks) -> TrainSettings {
    let mut settings = settings.clone();
    if !settings.resume {
        let parts = cut::default_parts(&settings, ranks.size());
        settings.batch_parts.get_or_insert(parts);
    }
    let is_bound = cpus::allowed() < cpus::online();
    if settings.threads == Threads::Auto && ranks.here() > 1 && !is_bound {
        settings.threads = Threads::Count((cpus::available() / ranks.here()).max(1));
    }
    settings
}

/// Ends all ranks for an error of this one. What all come to is said once, by rank 0.
fn give_up(ranks: &dyn Ranks, error: &Error) {
    if ranks.size() == 1 {
        return;
    }
    if ranks.rank() > 0 {
        std::thread::sleep(Duration::from_secs(1));
    }
    say!("cllm: rank {} of {}: {error}", ranks.rank(), ranks.size());
    ranks.abort(error.exit_code());
}

/// What the run in `dir` was told: a base for the settings of a session that resumes it.
///
/// # Errors
/// There is no run, or its `settings.json` is damaged.
pub fn stored_settings(dir: &Path) -> Result<TrainSettings> {
    let folder = RunFolder::existing(dir);
    if !folder.has_settings() {
        return Err(nothing_to_resume(dir));
    }
    folder.settings()
}

fn nothing_to_resume(dir: &Path) -> Error {
    if RunFolder::existing(dir).has_checkpoints().unwrap_or(false) {
        return Error::failure(format!(
            "--resume: {} has checkpoints, but no settings.json, which says what the run was told: put it back, or \
             go on from the model alone with --base and another --out-dir",
            dir.display()
        ));
    }
    Error::failure(format!(
        "--resume: there is no run in {}; check --out-dir, or leave --resume out to start one",
        dir.display()
    ))
}

fn run(
    settings: &TrainSettings,
    ranks: &dyn Ranks,
    stop: Option<&Stop>,
    (out, is_terminal): (&mut dyn Write, bool),
) -> Result<Outcome> {
    let is_first = ranks.rank() == 0;
    let told = &mine(resume::normalised(settings), is_first);
    let kernels = check(told)?;
    model::schedule(told)?;
    let optimizer = model::optimizer(told)?;
    let cut = Cut::new(told, ranks.rank(), ranks.size())?;
    // From here on micro-batches are those that the batch is cut into.
    let settings = &cut.apply(told);
    if !is_first {
        // What the first makes of the data is then there.
        ranks.barrier()?;
    }
    let (folder, begun) = match is_first {
        true => open_folder(told)?,
        false => (RunFolder::existing(&told.out_dir), Begun::default()),
    };
    let (from, bad_steps) = match settings.resume {
        true => resume::newest(&folder, is_first, settings.quiet)?,
        false => (None, Vec::new()),
    };

    let mut inputs = Inputs::open(settings, &folder, from.is_some() || !is_first)?;
    if is_first && told.resume && resume::is_moved(&stored_settings(&told.out_dir)?, told) {
        inputs.want_fingerprint();
    }
    if is_first {
        ranks.barrier()?;
    }
    let told = &with_steps(told, &inputs)?;
    let settings = &cut.apply(told);
    let schedule = model::schedule(settings)?;
    let mut base = base::Start::of(settings, from.as_ref(), inputs.vocab_size)?;
    let config = match &base {
        Some(base) => base.config,
        None => model::config(settings, inputs.vocab_size)?,
    };
    let workers = model::workers(settings.threads)?;
    let (mut plan, chosen) = model::train_plan(settings, &config, kernels)?;
    if ranks.size() > 1 && plan.has_pieces() {
        plan = plan.with_piece(ranks.rank(), ranks.size());
    }
    let more = Team::bytes(ranks, cut, &plan)
        + first_state::bytes(settings, &plan, &inputs, from.is_none());
    check_available(&plan, model::batches(settings), more)?;
    if let (Some(base), None) = (&mut base, &from) {
        if is_first {
            base.begin(&plan, settings)?;
        }
        ranks.barrier()?;
        base.move_in(&plan, settings)?;
    }
    let token_table = base.as_ref().map(|base| base.token_table(&plan)).transpose()?.flatten();
    let mut memory = PoolMemory::allocate(&plan)?;
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).map_err(model::plan_error)?;
    let trainer = Trainer::new(&plan, kernels, pools, &engine, settings.seed);
    let mut trainer = trainer.map_err(model::plan_error)?.wait_with(&pool::CALLER);
    trainer = trainer.drop_adapter_inputs(settings.lora_dropout);
    if let Some(table) = &token_table {
        trainer = trainer.look_up_in(table.bytes()).map_err(model::plan_error)?;
    }
    let meta = match &from {
        Some(file) => first_state::restore(&mut trainer, file, &inputs, &config, kernels)?,
        None => {
            match &base {
                Some(_) => trainer.initialise_adapters(),
                None => first_state::initialise(&mut trainer, settings, &inputs, kernels)?,
            }
            first_state::meta(&inputs, kernels)
        }
    };
    if let Some(base) = &base {
        base.load(&mut trainer)?;
    }
    let step = trainer.updates();
    team::agree(
        ranks,
        &[
            ("another number of steps behind it", step),
            ("other settings", team::fact(&facts(told)?)),
            ("other data", team::fact(&inputs.data_sha256().unwrap_or_default())),
            ("other kernels (--isa, --dtype)", team::fact(&kernels.set().to_string())),
        ],
    )?;
    if step > settings.max_steps {
        let asked = match settings.epochs {
            Some(epochs) => format!("--epochs {epochs}, which are {} steps", settings.max_steps),
            None => format!("--max-steps {}", settings.max_steps),
        };
        return Err(Error::usage(format!("{asked}: the run has done {step} steps already")));
    }

    // Of the CPU's best instruction set: shares of weaker ones then say what they lose.
    let best = Kernels::detect().with_dtype(settings.dtype);
    let batch_tokens = plan.tokens() * settings.gradient_accumulation_steps;
    let rates = Rates {
        flops_per_step: plan.step_flops() * settings.gradient_accumulation_steps as f64,
        peak_flops: fma_peak(best, Duration::from_millis(100))
            * (workers.min(cpus::available()) * ranks.size()) as f64,
        steps: 0,
        tokens: 0,
        seconds: 0.0,
        is_first: true,
        waited: 0.0,
    };
    let start = Start {
        step,
        config: told.clone(),
        ranks: ranks.size(),
        model: (&config).into(),
        parameters: plan.table().parameters(),
        adapters: plan.adapters().map(|table| AdaptersInfo::new(table, settings)),
        planned_bytes: PlannedBytes::new(&plan, model::batches(settings)),
        isa: kernels.set().isa.name(),
        kernels: kernels.set().to_string(),
        threads: workers,
        blocking: Sizes(chosen.blocking),
        tuning: chosen.file_name(),
        peak_gflops: rates.peak_flops / 1e9,
        flops_per_step: rates.flops_per_step,
        tokens_per_step: batch_tokens as u64,
        train_tokens: inputs.train_tokens(),
        val_tokens: inputs.val_tokens(),
        examples: inputs.examples.clone(),
        environment: Environment::look(),
    };
    let signals;
    let stop = match stop {
        Some(stop) => stop,
        None => {
            signals = Stop::on_signals()?;
            &signals
        }
    };
    let accumulated = cut.mine() as u64;
    let first = step.saturating_add(meta.watch.data_ahead);
    // Who goes back needs more batches than there are steps: the loader ends with the session.
    let last = match settings.on_spike {
        SpikeChoice::Rewind => u64::MAX,
        _ => settings.max_steps.saturating_add(meta.watch.data_ahead),
    };
    let batches = first.saturating_mul(accumulated)..last.saturating_mul(accumulated);
    let fill = |n, batch: &mut ReadyBatch| inputs.fill(cut.number(n), batch);
    let wanted = settings.trace.as_ref().map(|file| Wanted {
        file: file.clone(),
        steps: settings.trace_steps,
        tiles_for: settings.tiles_for.unwrap_or(workers),
        micro_batches: cut.mine(),
        ranks: ranks.size(),
        exchanges: if ranks.size() > 1 { Reducer::buckets_of(&plan, ranks.size()) } else { 0 },
        quiet: settings.quiet,
    });
    let recording = wanted.as_ref().map(|wanted| {
        let steps = settings.trace_steps.min((settings.max_steps - step) as usize);
        Recording::for_steps(&engine, workers, wanted.micro_batches, steps)
    });
    let crew = Crew::new(workers, settings.pin).recorded(recording);
    let tracer = match (&wanted, crew.recording()) {
        (Some(wanted), Some(recording)) => {
            let span = (step, settings.max_steps - step);
            Tracer::new(wanted, recording, (&plan, &engine, kernels), span)?
        }
        _ => Tracer::default(),
    };
    let body = |prefetch: Prefetch<'_>| {
        // Only now: what was wrong above has left the settings and what was reported as they were.
        let place = Place { step, rewinds: meta.watch.rewinds, within: false };
        let files = match is_first {
            true => {
                // What may be refused comes before the file that is cut.
                let board = board::begin(settings, step)?;
                Some((Metrics::open(&folder.metrics(), place)?, board))
            }
            false => None,
        };
        let reporter = Reporter::new(files, out, is_terminal, settings, step);
        // A session that goes on without a step left does nothing by its settings: the run's own stay.
        if is_first && (from.is_none() || step < settings.max_steps) {
            folder.save_settings(told)?;
        }
        begun.keep();
        let mut session = Session {
            settings,
            folder: &folder,
            inputs: &inputs,
            kernels,
            trainer,
            optimizer,
            schedule,
            reporter,
            stop,
            team: Team::new(ranks, cut, kernels, &plan),
            farewell: Some(Farewell::new(ranks, stop)),
            watch: Watch::new(settings.spike_window, settings.spike_threshold, meta.watch.clone()),
            meta,
            newest: from.map(|file| file.path().to_path_buf()),
            bad_steps,
            prefetch,
            batch: ReadyBatch::new(plan.tokens()),
            rates,
            work: Work::new(&crew),
            engine: &engine,
            tuner: match settings.threads {
                Threads::Auto if settings.trace.is_none() => Tuner::new(workers),
                // A trace is of steps that are alike.
                Threads::Auto | Threads::Count(_) => Tuner::fixed(workers),
            },
            tracer,
            token_table: token_table.as_ref(),
            begin: Instant::now(),
        };
        session.reporter.event(&Event::Start(Box::new(start)))?;
        session.run()
    };
    pool::with_workers(&engine, &crew, || {
        prefetch::with_loader(settings.prefetch, plan.tokens(), batches, fill, body)
    })
}

/// The settings of a rank: what the first does alone is not for the others.
fn mine(settings: TrainSettings, is_first: bool) -> TrainSettings {
    if is_first {
        return settings;
    }
    TrainSettings { quiet: true, tensorboard: false, trace: None, sample_tokens: 0, ..settings }
}

/// What all ranks have to be told alike.
fn facts(settings: &TrainSettings) -> Result<String> {
    let settings = mine(settings.clone(), false);
    serde_json::to_string(&settings)
        .map_err(|e| Error::failure(format!("cannot compare settings: {e}")))
}

/// Checks what can be checked before any file is touched.
fn check(settings: &TrainSettings) -> Result<&'static Kernels> {
    board::check(settings)?;
    examples::check(settings)?;
    // The vocabulary is not known yet.
    model::config(settings, 1)?;
    for (flag, value) in [
        ("--batch-size", settings.batch_size as u64),
        ("--gradient-accumulation-steps", settings.gradient_accumulation_steps as u64),
        ("--max-steps", settings.max_steps),
        ("--keep-checkpoints", settings.keep_checkpoints as u64),
    ] {
        if value == 0 {
            return Err(Error::usage(format!("{flag} 0: it must be at least 1")));
        }
    }
    prefetch::check_depth(settings.prefetch)?;
    let tokens = settings
        .batch_size
        .checked_mul(settings.block_size)
        .and_then(|n| n.checked_mul(settings.gradient_accumulation_steps))
        .filter(|n| *n <= 1 << 40);
    if tokens.is_none() {
        return Err(Error::usage(
            "--batch-size, --block-size and --gradient-accumulation-steps: too many tokens a step",
        ));
    }
    model::workers(settings.threads)?;
    model::kernels(settings.isa, settings.dtype)
}

/// The settings with as many steps as go through the data so often as they say.
fn with_steps(settings: &TrainSettings, inputs: &Inputs) -> Result<TrainSettings> {
    let Some(epochs) = settings.epochs else { return Ok(settings.clone()) };
    let max_steps = inputs.steps_of(epochs);
    if max_steps > u64::from(u32::MAX) {
        return Err(Error::usage(format!(
            "--epochs {epochs}: that is {max_steps} steps, too many"
        )));
    }
    // A short run is not to be all warm-up.
    let warmup_steps = match settings.warmup_steps {
        steps if steps.saturating_mul(2) <= max_steps => steps,
        _ => max_steps / 10,
    };
    if warmup_steps != settings.warmup_steps && !settings.quiet {
        let told = settings.warmup_steps;
        say!(
            "cllm: --warmup-steps {warmup_steps}, not {told}, for there are {max_steps} steps in all"
        );
    }
    Ok(TrainSettings { max_steps, warmup_steps, ..settings.clone() })
}

/// Locks the run folder, and checks that the session may work in it.
fn open_folder(settings: &TrainSettings) -> Result<(RunFolder, Begun)> {
    let dir = &settings.out_dir;
    if settings.resume {
        let stored = stored_settings(dir)?;
        for change in resume::check(&stored, settings, dir)? {
            say!("cllm: {change}");
        }
        let folder = RunFolder::lock(dir)?;
        // Nothing tells then whether they are the same.
        if resume::is_moved(&stored, settings) && !folder.has_checkpoints()? {
            return Err(Error::usage(format!(
                "--data: the run in {} began with other data and has no checkpoint yet; leave --resume out to \
                 begin it again",
                dir.display()
            )));
        }
        return Ok((folder, Begun::default()));
    }
    let folder = RunFolder::lock(dir)?;
    if folder.has_checkpoints()? {
        return Err(Error::failure(format!(
            "{}: there is a run with checkpoints here; go on with --resume or choose another \
             --out-dir",
            dir.display()
        )));
    }
    let begun = folder.begin(settings)?;
    Ok((folder, begun))
}
