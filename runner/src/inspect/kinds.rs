//! The known kinds of files and folders, and what is said of each.

use core::fmt::Display;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use cllm_core::checkpoint::Checkpoint;
use cllm_core::{AdapterTable, Adapters, ModelConfig, ParamTable};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::{Report, Stats, Tensor, folders, lines};
use crate::checkpoint::CheckpointFile;
use crate::data::sha256_hex;
use crate::data::shard::{Shard, is_shard};
use crate::data::source::is_lines;
use crate::error::{Error, Result};
use crate::files;
use crate::json::as_written;
use crate::memory::human_bytes;
use crate::model;
use crate::tokenizer::Tokenizer;
use crate::trace::chrome;
use crate::train::event::Model;
use crate::trained;

/// Bytes that tell most kinds apart.
const FIRST: usize = 9;

pub(super) fn look(path: &Path) -> Result<Report> {
    if path.is_dir() {
        return folders::look(path);
    }
    let mut first = Vec::new();
    let io = |e| Error::io("read", path, &e);
    files::open(path)
        .and_then(|file| file.take(FIRST as u64).read_to_end(&mut first))
        .map_err(io)?;
    if first.starts_with(&cllm_core::checkpoint::MAGIC) {
        return checkpoint(path);
    }
    if is_shard(path) {
        return shard(path);
    }
    #[cfg(feature = "gguf")]
    if first.starts_with(&crate::gguf::MAGIC) {
        return gguf(path);
    }
    // A length of eight bytes, then JSON.
    #[cfg(feature = "hf")]
    if first.get(8) == Some(&b'{') && first[7] == 0 {
        return safetensors(path);
    }
    if is_lines(path) {
        return lines::look(path);
    }
    json_file(path)
}

/// A model's shape, in the words of the flags.
pub(super) fn shape(report: &mut Report, config: &ModelConfig) -> Result<()> {
    let table = ParamTable::new(config).map_err(model::config_error)?;
    report.fact("model", as_written(&Model::from(config)));
    report.fact("parameters", table.parameters());
    Ok(())
}

fn size(report: &mut Report, path: &Path) -> Result<()> {
    let len = fs::metadata(path).map_err(|e| Error::io("read", path, &e))?.len();
    report.fact("bytes", len);
    report.fact("size", human_bytes(len));
    Ok(())
}

fn checkpoint(path: &Path) -> Result<Report> {
    let mut report = Report::new(path, "a checkpoint, all of its checksums right");
    let file = CheckpointFile::open(path)?;
    let parsed = file.parse().map_err(|e| file.error(e))?;
    let header = *parsed.header();
    size(&mut report, path)?;
    report.fact("step", header.updates);
    report.fact("seed", header.seed);
    shape(&mut report, &header.config)?;
    report.fact("optimizer state", parsed.has_moments());
    if let Some(optimizer) = parsed.optimizer() {
        report.fact("optimizer", optimizer.name());
    }
    if let Ok(meta) = file.meta(&parsed) {
        for (name, validated) in [("last validation", meta.last), ("best validation", meta.best)] {
            if let Some(at) = validated {
                report.fact(name, json!({ "step": at.step, "val_loss": at.val_loss }));
            }
        }
        report.fact("training tokens", meta.train_tokens);
        report.fact("seconds of training", meta.seconds);
        report.fact("kernels", meta.isa);
        if let Some(origin) = meta.origin {
            report.fact("imported from", origin);
        }
    }
    report.fact("weights_sha256", sha256_hex(parsed.parameter_bytes()));
    if let Some(adapters) = &header.adapters {
        return adapter_tensors(report, &file, &parsed, adapters);
    }
    let table = ParamTable::new(&header.config).map_err(model::config_error)?;
    let mut arena = trained::arena(&table, path)?;
    parsed.read_parameters(&mut arena);
    report.tensors = table
        .iter()
        .map(|spec| Tensor {
            name: spec.name().to_string(),
            shape: if spec.is_vector() { vec![spec.cols] } else { vec![spec.rows, spec.cols] },
            kind: "F32".to_owned(),
            stats: Some(Stats::of(&arena[spec.range()])),
        })
        .collect();
    Ok(report)
}

/// What a checkpoint of adapters has.
fn adapter_tensors(
    mut report: Report,
    file: &CheckpointFile,
    parsed: &Checkpoint<'_>,
    adapters: &Adapters,
) -> Result<Report> {
    let config = &parsed.header().config;
    let table = AdapterTable::new(config, adapters).map_err(|e| file.error(e))?;
    report.fact("adapters", format!("rank {}, scale {}", adapters.rank, adapters.scale));
    report.fact("adapter parameters", table.parameters());
    let mut arena = vec![0.0; table.arena_len()];
    parsed.read_parameters(&mut arena);
    for spec in table.iter() {
        let shapes = [(spec.a, (spec.inputs, spec.rank)), (spec.b, (spec.rank, spec.outputs))];
        for (name, ((at, stride), (rows, cols))) in ["A", "B"].into_iter().zip(shapes) {
            let row = |r: usize| &arena[at + r * stride..][..cols];
            let values: Vec<f32> = (0..rows).flat_map(row).copied().collect();
            report.tensors.push(Tensor {
                name: format!("h.{}.{:?}.{name}", spec.block, spec.site),
                shape: vec![rows, cols],
                kind: "F32".to_owned(),
                stats: Some(Stats::of(&values)),
            });
        }
    }
    Ok(report)
}

fn shard(path: &Path) -> Result<Report> {
    let mut report = Report::new(path, "a token shard");
    let shard = Shard::open(path)?;
    size(&mut report, path)?;
    report.fact("tokens", shard.len());
    let (mut largest, mut at, mut ids) = (0, 0, vec![0; 1 << 16]);
    while at < shard.len() {
        let part = (shard.len() - at).min(ids.len() as u64) as usize;
        shard.fill(at, &mut ids[..part])?;
        largest = ids[..part].iter().copied().fold(largest, u32::max);
        at += part as u64;
    }
    report.fact("largest id", largest);
    let mut first = vec![0; shard.len().min(16) as usize];
    shard.fill(0, &mut first)?;
    report.fact("first ids", first.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    Ok(report)
}

#[cfg(feature = "gguf")]
fn gguf(path: &Path) -> Result<Report> {
    let mut report = Report::new(path, "a GGUF file of llama.cpp");
    let crate::gguf::Described { keys, tensors } = crate::gguf::describe(path)?;
    size(&mut report, path)?;
    report.fact("number of tensors", tensors.len());
    for (name, value) in keys {
        report.fact(&name, value);
    }
    report.tensors = tensors;
    Ok(report)
}

#[cfg(feature = "hf")]
fn safetensors(path: &Path) -> Result<Report> {
    let mut report = Report::new(path, "a file of safetensors");
    size(&mut report, path)?;
    add_tensors(&mut report, path)?;
    Ok(report)
}

#[cfg(any(feature = "hf", feature = "lora"))]
pub(super) fn add_tensors(report: &mut Report, path: &Path) -> Result<()> {
    report.tensors = crate::hf::list(path)?;
    report.fact("number of tensors", report.tensors.len());
    let elements = |tensor: &Tensor| tensor.shape.iter().product::<usize>();
    report.fact("elements", report.tensors.iter().map(elements).sum::<usize>());
    Ok(())
}

/// Fields that tell files of JSON apart; nothing of them is kept.
#[derive(Deserialize)]
struct Known {
    #[serde(rename = "traceEvents")]
    trace: Option<IgnoredAny>,
    #[serde(rename = "type")]
    kind: Option<IgnoredAny>,
    model: Option<IgnoredAny>,
    /// Of a run's settings.
    gradient_accumulation_steps: Option<IgnoredAny>,
}

fn json_file(path: &Path) -> Result<Report> {
    let unknown = || {
        Error::failure(format!(
            "{}: not a file of a kind that is known here: checkpoints, token shards, tokenizers, traces, \
             settings of runs, JSON lines, safetensors and GGUF are",
            path.display()
        ))
    };
    let file = files::open(path).map_err(|e| Error::io("read", path, &e))?;
    let json: Known = serde_json::from_reader(std::io::BufReader::new(file)).map_err(|error| {
        // By its name it should be: then it is damaged.
        match path.extension().is_some_and(|extension| extension == "json") {
            true => Error::failure(format!("{}: {error}", path.display())),
            false => unknown(),
        }
    })?;
    if json.trace.is_some() {
        return trace(path);
    }
    if json.kind.is_some() || json.model.is_some() {
        return tokenizer(path);
    }
    if json.gradient_accumulation_steps.is_some() {
        let mut report = Report::new(path, "the settings of a run");
        told(&mut report, path, &[])?;
        return Ok(report);
    }
    if path.extension().is_some_and(|extension| extension == "json") {
        return object(path);
    }
    Err(unknown())
}

/// Most fields of an object that are told.
const FIELDS: usize = 64;

/// A file of JSON without a kind of its own, as configs of transformers are.
fn object(path: &Path) -> Result<Report> {
    let mut report = Report::new(path, "an object of JSON");
    told(&mut report, path, &[])?;
    let fields = report.facts.0.len();
    if fields > FIELDS {
        report.facts.0.clear();
        report.fact("fields", fields);
    }
    Ok(report)
}

/// Tells fields of an object in a file of JSON, all of them if none is named; those that say nothing are
/// left out.
pub(super) fn told(report: &mut Report, path: &Path, fields: &[&str]) -> Result<()> {
    let bad = |what: &dyn Display| Error::failure(format!("{}: {what}", path.display()));
    let text = files::read(path).map_err(|e| Error::io("read", path, &e))?;
    let json: Value = crate::json::from_slice(&text).map_err(|e| bad(&e))?;
    let all = json.as_object().ok_or_else(|| bad(&"not a JSON object"))?;
    for (name, value) in all {
        let is_empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        if !is_empty && (fields.is_empty() || fields.contains(&name.as_str())) {
            report.fact(name, value.clone());
        }
    }
    Ok(())
}

fn tokenizer(path: &Path) -> Result<Report> {
    let mut report = Report::new(path, "a tokenizer");
    let tokenizer = Tokenizer::load(path)?;
    report.fact("type", tokenizer.name());
    report.fact("ids", tokenizer.vocab_size());
    let end = format!("{} {:?}", tokenizer.end_of_text(), tokenizer.end_of_text_name());
    report.fact("end of text", end);
    if !tokenizer.other_ends().is_empty() {
        report.fact("other ends", tokenizer.other_ends());
    }
    Ok(report)
}

fn trace(path: &Path) -> Result<Report> {
    let mut report = Report::new(path, "a trace of training steps");
    let about = chrome::read(path)?.about;
    let about = serde_json::to_value(about).map_err(|e| Error::failure(e.to_string()))?;
    for (name, value) in about.as_object().into_iter().flatten() {
        report.fact(name, value.clone());
    }
    Ok(report)
}
