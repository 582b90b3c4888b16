//! The training thread's part of a trace: which steps are recorded, its own row, the file.

use core::ops::Range;
use std::path::PathBuf;

use super::about::{About, Costs, VERSION};
use super::record::{Recording, TileEvent};
use super::{chrome, costs};
use crate::bench::machine::memory_rate;
use crate::error::{Error, Result};
use crate::files::AtomicFile;
use crate::pool::cpus;
use crate::tune::Sizes;
use cllm_core::{Engine, Kernels, Mode, Plan};
use core::time::Duration;

/// Steps of a session before those that are recorded: they touch memory for the first time.
const WARM_UP: u64 = 2;

/// What the training thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A whole step.
    Step,
    /// Waiting for a batch.
    Data,
    /// The call of the engine for a micro-batch.
    Gradients,
    /// Gradients to and from other ranks, while the workers still make some: within the call.
    Hidden,
    /// The same behind the last of them.
    Exchange,
    /// The call of the engine for the update.
    Update,
    /// A validation.
    Validation,
    /// Writing a checkpoint.
    Checkpoint,
}

impl What {
    /// The name in the trace.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Data => "data wait",
            Self::Gradients => "forward and backward",
            Self::Hidden => "exchange, hidden",
            Self::Exchange => "exchange",
            Self::Update => "update",
            Self::Validation => "validation",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// A stretch of the training thread's time, in nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What it did.
    pub what: What,
    /// When it began.
    pub begin: u64,
    /// When it ended.
    pub end: u64,
}

impl Span {
    /// How long it took.
    #[must_use]
    pub fn nanos(&self) -> f64 {
        (self.end - self.begin) as f64
    }
}

/// What a trace is wanted of.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where to.
    pub file: PathBuf,
    /// Most steps to record.
    pub steps: usize,
    /// Workers that the plan was cut for.
    pub tiles_for: usize,
    /// Micro-batches of a step.
    pub micro_batches: usize,
    /// Ranks of the run.
    pub ranks: usize,
    /// Times that gradients go from rank to rank in a step.
    pub exchanges: usize,
    /// Say nothing when it is written.
    pub quiet: bool,
}

/// Records steps of a session, if a trace is wanted.
#[derive(Debug, Default)]
pub struct Tracer<'a> {
    active: Option<Active<'a>>,
}

#[derive(Debug)]
struct Active<'a> {
    recording: &'a Recording,
    file: AtomicFile,
    about: About,
    /// Section of each stage.
    sections: Vec<&'static str>,
    spans: Vec<Span>,
    /// Steps to record, counted from the session's first.
    window: Range<u64>,
    done: u64,
    begin: u64,
    quiet: bool,
}

impl<'a> Tracer<'a> {
    /// Prepares to record `steps_left` steps, or as many of them as are wanted, behind some
    /// warm-up. Begins to write the file, so that what is wrong with it shows now.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(
        wanted: &Wanted,
        recording: &'a Recording,
        (plan, engine, kernels): (&Plan, &Engine<'_>, &Kernels),
        (steps_before, steps_left): (u64, u64),
    ) -> Result<Self> {
        let file = AtomicFile::create(&wanted.file).map_err(in_flag)?;
        let warm_up = WARM_UP.min(steps_left.saturating_sub(1));
        let window = warm_up..steps_left.min(warm_up + wanted.steps as u64);
        let cpus = cpus::available();
        let batch = plan.batch();
        let about = About {
            cllm_trace: VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            model: plan.config().into(),
            batch_size: batch.sequences,
            block_size: (batch.tokens != plan.config().block_size).then_some(batch.tokens),
            gradient_accumulation_steps: wanted.micro_batches,
            isa: kernels.set().isa.name().to_owned(),
            dtype: kernels.dtype().name().to_owned(),
            native: kernels.is_native(),
            ranks: wanted.ranks,
            workers: plan.workers(),
            tiles_for: wanted.tiles_for,
            blocking: Sizes(*plan.blocking()),
            recompute: plan.mode() == Mode::Recompute,
            optimizer: plan.optimizer().name().to_owned(),
            cpus,
            steps_before: steps_before + warm_up,
            steps: 0,
            lost: 0,
            costs: Costs {
                memory_gb_per_s: memory_rate(cpus, Duration::from_millis(200)) / 1e9,
                ..Costs::default()
            },
        };
        // A step, its waits, calls and exchanges, a validation and a checkpoint.
        let spans = wanted.steps.saturating_mul(5 + 2 * wanted.micro_batches + wanted.exchanges);
        let sections = engine.stages().map(|stage| stage.section()).collect();
        let spans = Vec::with_capacity(spans);
        let (done, begin, quiet) = (0, 0, wanted.quiet);
        let active = Active { recording, file, about, sections, spans, window, done, begin, quiet };
        Ok(Self { active: Some(active) })
    }

    /// A step begins. Allocates nothing, as [`Tracer::now`] and [`Tracer::span`].
    pub fn begin_step(&mut self) {
        if let Some(active) = &mut self.active {
            active.recording.switch(active.window.contains(&active.done));
            active.begin = active.recording.now();
        }
    }

    /// It has ended; after the last one to be recorded the file is written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn end_step(&mut self) -> Result<()> {
        let begin = self.active.as_ref().map_or(0, |active| active.begin);
        self.span(What::Step, begin);
        let Some(active) = &mut self.active else { return Ok(()) };
        active.recording.switch(false);
        active.done += 1;
        if active.done == active.window.end { self.finish() } else { Ok(()) }
    }

    /// The time, to begin a span.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.recording.now())
    }

    /// The training thread did `what` since `begin`.
    pub fn span(&mut self, what: What, begin: u64) {
        if let Some(active) = &mut self.active
            && active.window.contains(&active.done)
            && active.spans.len() < active.spans.capacity()
        {
            active.spans.push(Span { what, begin, end: active.recording.now() });
        }
    }

    /// Writes what has been recorded, unless it has been written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(&mut self) -> Result<()> {
        let Some(active) = self.active.take() else { return Ok(()) };
        let steps = active.done.min(active.window.end).saturating_sub(active.window.start);
        let path = active.file.path().to_path_buf();
        if steps == 0 {
            say!("cllm: --trace: no step was recorded, {} is not written", path.display());
            return Ok(());
        }
        let tracks = active.recording.tracks();
        let lost = active.recording.lost();
        let quiet = active.quiet && lost == 0;
        active.write(&tracks, steps, lost).map_err(in_flag)?;
        let missing = match lost {
            0 => String::new(),
            lost => format!(
                "; the buffers were full: {lost} operations of tiles are missing, lower \
                 --trace-steps"
            ),
        };
        if quiet {
            return Ok(());
        }
        say!("cllm: trace of {steps} step(s) in {}{missing}", path.display());
        Ok(())
    }
}

impl Active<'_> {
    fn write(mut self, tracks: &[Vec<TileEvent>], steps: u64, lost: u64) -> Result<()> {
        let memory_gb_per_s = self.about.costs.memory_gb_per_s;
        let costs = Costs { memory_gb_per_s, ..costs::measure(tracks, &self.spans) };
        let about = About { steps, lost, costs, ..self.about };
        let path = self.file.path().to_path_buf();
        chrome::write(&mut self.file, &about, tracks, &self.spans, &self.sections)
            .map_err(|e| Error::io("write", &path, &e))?;
        self.file.commit()
    }
}

fn in_flag(error: Error) -> Error {
    Error::failure(format!("--trace: {error}"))
}
