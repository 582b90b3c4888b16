//! Stands in for the training loop until it is merged.

use crate::error::{Error, Result};
use crate::settings::{LogFormat, TrainSettings};
use cllm_core::Isa;
use std::path::PathBuf;

pub(super) enum Outcome {
    Finished,
    Interrupted,
}

#[expect(dead_code, reason = "merged later")]
pub(super) struct EvalSettings {
    pub checkpoint: PathBuf,
    pub data: Vec<String>,
    pub text_field: String,
    pub tokenizer: Option<PathBuf>,
    pub batch_size: usize,
    pub batches: usize,
    pub isa: Option<Isa>,
    pub log_format: LogFormat,
}

#[expect(dead_code, reason = "merged later")]
pub(super) struct GenerateSettings {
    pub checkpoint: PathBuf,
    pub prompt: String,
    pub tokens: usize,
    pub temperature: f32,
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub greedy: bool,
    pub seed: u64,
    pub samples: usize,
    pub isa: Option<Isa>,
    pub log_format: LogFormat,
}

pub(super) fn train(settings: &TrainSettings) -> Result<Outcome> {
    if settings.max_steps == u64::MAX {
        return Ok(Outcome::Finished);
    }
    if settings.max_steps == u64::MAX - 1 {
        return Ok(Outcome::Interrupted);
    }
    Err(Error::failure("`cllm train` is not in this build"))
}

pub(super) fn evaluate(_: &EvalSettings) -> Result<()> {
    Err(Error::failure("`cllm eval` is not in this build"))
}

pub(super) fn generate(_: &GenerateSettings) -> Result<()> {
    Err(Error::failure("`cllm generate` is not in this build"))
}
