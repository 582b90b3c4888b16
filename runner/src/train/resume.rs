//! Where a resumed run goes on from, and which settings it may change.

use std::path::Path;

use serde_json::{Map, Value};

use super::base;
use super::folder::RunFolder;
use crate::checkpoint::CheckpointFile;
use crate::data::source::is_gone;
use crate::error::{Error, Result};
use crate::model;
use crate::settings::{TokenizerChoice, TrainSettings, TuningChoice};

/// What decides the meaning of weights and of the position in the data.
const FIXED: [&str; 37] = [
    "base",
    "val_fraction",
    "text_field",
    "loss_on",
    "tokenizer",
    "vocab_size",
    "n_layer",
    "n_head",
    "n_embd",
    "d_ff",
    "block_size",
    "bias",
    "tied",
    "dropout",
    "norm",
    "positions",
    "rope_theta",
    "activation",
    "n_kv_head",
    "head_size",
    "qkv_bias",
    "qk_norm",
    "zero_init",
    "bigram_init",
    "window",
    "logit_softcap",
    "previous_tokens",
    "embedding_scale",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_targets",
    "batch_size",
    "gradient_accumulation_steps",
    "batch_parts",
    "optimizer",
    "seed",
];

/// What may have another name as long as it is the same: the data are compared when they are opened.
const MOVED: [&str; 2] = ["data", "val_data"];

/// What does not change the weights that come out.
const FREE: [&str; 23] = [
    "epochs",
    "max_steps",
    "eval_interval",
    "eval_batches",
    "save_interval",
    "keep_checkpoints",
    "log_interval",
    "log_format",
    "quiet",
    "tensorboard",
    "out_dir",
    "resume",
    "threads",
    "pin",
    "recompute",
    "prefetch",
    "trace",
    "trace_steps",
    "tiles_for",
    "tuning",
    "sample_tokens",
    "sample_prompt",
    "sample_interval",
];

/// The checkpoint to resume from, `None` if the run was killed before its first; and the steps of those that are
/// damaged. The first of the ranks says so.
///
/// # Errors
/// As [`RunFolder::newest`].
pub(super) fn newest(
    folder: &RunFolder,
    is_first: bool,
    quiet: bool,
) -> Result<(Option<CheckpointFile>, Vec<u64>)> {
    let newest = folder.newest()?;
    for reason in newest.skipped.iter().filter(|_| is_first) {
        say!("cllm: passing over {reason}");
    }
    match &newest.checkpoint {
        _ if quiet || !is_first => {}
        Some(file) => say!("cllm: going on from {}", file.path().display()),
        None => say!(
            "cllm: {} has no checkpoint yet: starting from the beginning",
            folder.dir().display()
        ),
    }
    Ok((newest.checkpoint, newest.bad_steps))
}

/// Whether a setting is of one session, or of how long the run is: it leaves model, data and recipe as they are. Other
/// bits come of `seed` and `isa`, but no other training.
pub(crate) fn is_of_session(field: &str) -> bool {
    FREE.contains(&field) && field != "epochs" || ["seed", "isa"].contains(&field)
}

/// Settings whose paths mean the same from any working folder, with implied values
/// filled in.
pub(super) fn normalised(settings: &TrainSettings) -> TrainSettings {
    let full = |name: &String| {
        if name == "-" {
            return name.clone();
        }
        // What is gone had a whole path too.
        let whole = std::fs::canonicalize(name).or_else(|_| std::path::absolute(name));
        whole.ok().and_then(|path| path.to_str().map(str::to_owned)).unwrap_or_else(|| name.clone())
    };
    let mut settings = settings.clone();
    settings.data = settings.data.iter().map(full).collect();
    settings.val_data = settings.val_data.iter().map(full).collect();
    if let TokenizerChoice::File(path) = &mut settings.tokenizer
        && let Ok(whole) = path.canonicalize()
    {
        *path = whole;
    }
    if let TuningChoice::File(path) = &mut settings.tuning
        && let Ok(whole) = path.canonicalize()
    {
        *path = whole;
    }
    settings.base = settings.base.as_deref().map(base::whole_path);
    settings.d_ff = Some(model::d_ff(&settings));
    settings
}

/// The same settings with the momentum that is meant where none is given: naming it changes nothing.
fn with_momentum(settings: &TrainSettings) -> TrainSettings {
    let mut settings = settings.clone();
    settings.momentum = settings.momentum.or(settings.optimizer.usual_momentum());
    settings
}

/// Whether a session names other data than the run did.
pub(super) fn is_moved(stored: &TrainSettings, given: &TrainSettings) -> bool {
    stored.data != given.data || stored.val_data != given.val_data
}

/// Compares what a run was told with what the session that resumes it is told. Returns
/// a line for each change that makes the run another one than without it.
///
/// # Errors
/// Names the first key that may not change.
pub(super) fn check(
    stored: &TrainSettings,
    given: &TrainSettings,
    dir: &Path,
) -> Result<Vec<String>> {
    let (stored, given) = (object(&with_momentum(stored))?, object(&with_momentum(given))?);
    let differs = |key: &str| stored.get(key) != given.get(key);
    let show = |values: &Map<String, Value>, key: &str| {
        values.get(key).map_or_else(|| "nothing".to_owned(), ToString::to_string)
    };
    if let Some(key) = FIXED.into_iter().find(|key| differs(key)) {
        return Err(Error::usage(format!(
            "--{}: the run in {} began with {}, not {}; give the same value, or start anew in \
             another --out-dir",
            key.replace('_', "-"),
            dir.display(),
            show(&stored, key),
            show(&given, key)
        )));
    }
    for key in MOVED.into_iter().filter(|key| differs(key)) {
        let names = given[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        // What is gone from where it was is no error, for the run has its own copy: this is a slip.
        if let Some(name) = names.into_iter().find(|name| is_gone(name)) {
            let flag = key.replace('_', "-");
            return Err(Error::usage(format!("--{flag} {name}: there is no such file or folder")));
        }
    }
    // Who goes back goes to the checkpoints of this interval.
    let rewinds = given.get("on_spike").is_some_and(|choice| choice == "rewind");
    let is_told = |key: &str| {
        !FREE.contains(&key) && !MOVED.contains(&key) || rewinds && key == "save_interval"
    };
    let changed = given.keys().filter(|key| is_told(key) && differs(key));
    Ok(changed
        .map(|key| {
            format!(
                "going on with another {key}: {}, not {}",
                show(&given, key),
                show(&stored, key)
            )
        })
        .collect())
}

fn object(settings: &TrainSettings) -> Result<Map<String, Value>> {
    match crate::json::as_written(settings) {
        Value::Object(map) => Ok(map),
        _ => Err(Error::failure("cannot compare settings")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::presets::Preset;
    use cllm_core::OptimizerKind;

    #[test]
    fn the_momentum_that_a_run_had_unnamed_may_be_named() {
        let of =
            |optimizer, momentum| TrainSettings { optimizer, momentum, ..Preset::Tiny.settings() };
        let told = |stored, given| check(&stored, &given, Path::new("out")).unwrap();
        let unnamed = of(OptimizerKind::Momentum, None);
        let named = |momentum| of(OptimizerKind::Momentum, Some(momentum));
        assert!(told(unnamed.clone(), named(0.9)).is_empty());
        assert!(told(named(0.9), unnamed.clone()).is_empty());
        let other = ["going on with another momentum: 0.8, not 0.9"];
        assert_eq!(told(unnamed, named(0.8)), other);
        let adamw = of(OptimizerKind::AdamW, None);
        assert!(told(adamw.clone(), adamw).is_empty());
    }
}
