//! Folders: runs, data, models of other programs.

use std::path::Path;

use super::Report;
use super::kinds;
use crate::checkpoint::CheckpointFile;
use crate::data::prepare::Meta;
use crate::data::stream::{TokenStream, find_shards};
use crate::error::{Error, Result};
use crate::json::as_written;
use crate::lora;
use crate::tokenizer::{FILE_NAME, Tokenizer, usage::Usage};
use crate::train::folder::RunFolder;

pub(super) fn look(path: &Path) -> Result<Report> {
    let run = RunFolder::existing(path);
    if run.is_run() {
        return run_folder(path, &run);
    }
    #[cfg(feature = "hf")]
    if path.join(crate::hf::CONFIG).exists() {
        let mut report = Report::new(path, "a model of Hugging Face's transformers");
        kinds::shape(&mut report, &crate::hf::model(path)?)?;
        kinds::add_tensors(&mut report, path)?;
        return Ok(report);
    }
    #[cfg(feature = "lora")]
    if path.join(crate::lora::peft::CONFIG).exists() {
        return adapter(path);
    }
    let shards = [find_shards(path, "train")?, find_shards(path, "val")?];
    if shards.iter().any(|shards| !shards.is_empty()) {
        return data(path, &shards);
    }
    Err(Error::failure(format!(
        "{}: neither a run folder nor data of token shards, nor a model of transformers or an adapter of \
         PEFT",
        path.display()
    )))
}

/// Token shards, of `cllm tokenize` or of others.
fn data(path: &Path, [train, val]: &[Vec<std::path::PathBuf>; 2]) -> Result<Report> {
    let mut report = Report::new(path, "data of token shards");
    for (name, paths) in [("tokens to train on", train), ("tokens to validate on", val)] {
        let tokens = if paths.is_empty() { 0 } else { TokenStream::open(paths)?.len() };
        report.fact(name, tokens);
    }
    report.fact("shards", train.len() + val.len());
    if let Some(meta) = Meta::load(path) {
        if !meta.is_complete() {
            report.fact("state", "cut off before it was finished: make it again");
        }
        report.fact("documents", meta.documents);
        report.fact("bytes of text", meta.bytes);
    }
    tokenizer(&mut report, path)?;
    Ok(report)
}

/// The tokenizer in a folder, if there is one.
fn tokenizer(report: &mut Report, path: &Path) -> Result<()> {
    if path.join(FILE_NAME).exists() {
        let tokenizer = Tokenizer::load(path)?;
        report.fact("tokenizer", format!("{}, {} ids", tokenizer.name(), tokenizer.vocab_size()));
    }
    Ok(())
}

/// An adapter of PEFT.
#[cfg(feature = "lora")]
fn adapter(path: &Path) -> Result<Report> {
    let mut report = Report::new(path, "an adapter of PEFT");
    let fields = [
        "peft_type",
        "base_model_name_or_path",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "use_rslora",
    ];
    kinds::told(&mut report, &path.join(crate::lora::peft::CONFIG), &fields)?;
    kinds::add_tensors(&mut report, &path.join(crate::lora::peft::WEIGHTS))?;
    Ok(report)
}

fn run_folder(path: &Path, run: &RunFolder) -> Result<Report> {
    let mut report = Report::new(path, "a run folder");
    if run.has_settings() {
        let settings = run.settings()?;
        report.fact("steps wanted", settings.max_steps);
        report.fact("batch size", settings.batch_size);
        report.fact("optimizer", settings.optimizer.name());
        report.fact("learning rate", as_written(&settings.learning_rate));
    }
    tokenizer(&mut report, path)?;
    if let Some(found) = run.for_use()?.checkpoint {
        let (header, _, meta) = found.into_weights()?;
        kinds::shape(&mut report, &header.config)?;
        if let Some(adapters) = &header.adapters {
            report.fact("adapters", format!("rank {}, scale {}", adapters.rank, adapters.scale));
            let base = lora::base_of(path, &header.config);
            let state = base.as_ref().map_or_else(ToString::to_string, |_| "good".to_owned());
            report.fact("base.cllm", state);
        }
        if let Some(origin) = meta.and_then(|meta| meta.origin) {
            report.fact("imported from", origin);
        }
    }
    let usage = Usage::of_folder(path)?;
    report.fact("chat template", usage.chat_template.is_some());
    let mut files: Vec<_> = run.steps()?.into_iter().rev().map(|step| run.step(step)).collect();
    if run.best().exists() {
        files.push(run.best());
    }
    for file in files {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
        report.fact(&name.unwrap_or_default(), state(&file));
    }
    Ok(report)
}

/// A checkpoint of a folder in a line, good or not.
fn state(path: &Path) -> String {
    let file = match CheckpointFile::open(path) {
        Ok(file) => file,
        Err(error) => return error.to_string(),
    };
    match file.parse() {
        Ok(checkpoint) => {
            let validated = file.meta(&checkpoint).ok().and_then(|meta| meta.last);
            let loss = validated.map(|v| format!(", validation loss {:.4}", v.val_loss));
            let step = checkpoint.header().updates;
            format!("good, after step {step}{}", loss.unwrap_or_default())
        }
        Err(error) => error.to_string(),
    }
}
