//! Sizes of blocks that suit this machine: `cllm tune` measures them, `cllm train` uses them.
//!
//! The core derives sizes from the caches' ([`cllm_core::Blocking::for_caches`]). A better set
//! that was measured is kept in a file of the user's configuration (`store`) for the machine,
//! kernels, threads and widths that it was measured with ([`Key`]), and taken from there by
//! commands that plan steps of the kind ([`choose()`]). No bit depends on it: a run may go on
//! with another set, or without.

mod choose;
mod key;
mod ratios;
mod report;
mod search;
mod store;
mod turns;

pub use choose::{Chosen, Sizes, choose, default_blocking, stored_for_this_cpu};
pub use key::{Key, cpu_name};
pub use ratios::Ratios;
pub use report::Report;
pub use search::Trial;
pub use store::default_path;

use crate::error::{Error, Result};
use crate::model;
use crate::settings::TrainSettings;
use cllm_core::{Blocking, ModelConfig, ParamTable, Plan};
use core::time::Duration;
use search::{Measured, Purpose};
use std::path::PathBuf;
use std::time::Instant;
use store::Entry;
use turns::Work;

/// What `cllm tune` is told.
#[derive(Clone, Debug)]
pub struct TuneSettings {
    /// The run to tune for.
    pub train: TrainSettings,
    /// Ids of its vocabulary.
    pub vocab_size: usize,
    /// About how long to measure.
    pub time: Duration,
    /// Where to store what is found; `None` is [`default_path`].
    pub out: Option<PathBuf>,
}

/// Says, with the name of the file behind it, where sizes of blocks are from.
pub const TUNED: &str = "blocks as `cllm tune` has found and stored them in";

/// Shares of the time that the default set against itself, and the confirmation, have. The
/// candidates share the rest.
const NOISE: f64 = 0.1;
const CONFIRM: f64 = 0.2;
/// Floats of a model from which on packing on the way is tried: smaller ones lie in caches.
const LARGE: usize = 16 << 20;

/// Measures, tells `print` of the table line by line, and stores what is better.
///
/// # Errors
/// Settings that cannot be planned, too little memory for two runs, a broken file, or one that
/// cannot be written.
pub fn tune(settings: &TuneSettings, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<Report> {
    let train = &settings.train;
    let file = settings.out.clone().or_else(default_path).ok_or_else(|| {
        Error::usage(
            "--out is missing: neither XDG_CONFIG_HOME nor HOME names a folder to store in",
        )
    })?;
    // What is wrong with the file had better show before the measuring than behind it.
    store::read(&file)?;
    store::make_folder(&file)?;
    let kernels = model::kernels(train.isa, train.dtype)?;
    let config = model::run_config(train, settings.vocab_size)?;
    let work = Work {
        kernels,
        optimizer: model::optimizer(train)?,
        micro_batches: train.gradient_accumulation_steps,
        pin: train.pin,
    };
    let plan = |blocking: &Blocking| model::plan_with(train, &config, kernels, *blocking);
    let default = default_blocking();
    let default_plan = plan(&default)?;
    let key = model::tuning_key(train, &config, kernels)?;
    print(&report::head(&key))?;
    let coordinates = search::coordinates(is_large(&config));
    let candidates: usize = coordinates.iter().map(|one| one.values.len() - 1).sum();
    let share = (1.0 - NOISE - CONFIRM) / candidates as f64;
    let begin = Instant::now();
    let mut seen: Vec<Plan> = vec![default_plan];
    let mut measure = |blocking: &Blocking, purpose: Purpose| {
        let plan = plan(blocking)?;
        if purpose == Purpose::Try {
            if seen.iter().any(|before| plan.has_tiles_of(before)) {
                return Ok(Measured::Known);
            }
            // Sets that are measured may take longer than their share.
            if begin.elapsed() >= settings.time.mul_f64(1.0 - CONFIRM) {
                return Ok(Measured::NoTime);
            }
            seen.push(plan);
        }
        let (share, patient) = match purpose {
            Purpose::Noise => (NOISE, true),
            Purpose::Try => (share, false),
            Purpose::Confirm => (CONFIRM, true),
        };
        let time = settings.time.mul_f64(share);
        turns::compare(&default_plan, &plan, &work, time, patient).map(Measured::Ratios)
    };
    let mut trials = Vec::new();
    let found = search::search(default, &coordinates, &mut measure, &mut |trial| {
        print(&report::line(&trial))?;
        trials.push(trial);
        Ok(())
    })?;
    let entry = found.better.map(|(blocking, ratios)| Entry {
        key: key.clone(),
        blocking,
        // As many digits as the file has.
        ratio: (ratios.median * 1e4).round() / 1e4,
    });
    let ratio = entry.as_ref().map(|entry| entry.ratio);
    let written = store::replace(&file, &key, entry)?;
    let report = Report {
        key,
        default: Sizes(default),
        noise: found.noise,
        trials,
        better: found.better.map(|(blocking, _)| Sizes(blocking)),
        ratio,
        file: file.display().to_string(),
        asked_for: settings.out.is_some(),
        written,
    };
    print(&report.conclusion())?;
    Ok(report)
}

fn is_large(c: &ModelConfig) -> bool {
    ParamTable::new(c).is_ok_and(|table| table.parameters() >= LARGE)
}
