//! A tiny run in a temporary folder, shared by the tests of the training loop.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use cllm::parts::{ActivationChoice, NormChoice, PositionsChoice, ROPE_THETA};
use cllm::settings::{
    LogFormat, ScheduleChoice, SpikeChoice, Threads, TokenizerChoice, TrainSettings, TuningChoice,
};
use cllm::train::stop::Stop;
use cllm::train::{Outcome, train_until};
use cllm_core::{Dtype, OptimizerKind};
use serde_json::Value;

/// A text with something to learn in it.
pub(crate) fn text() -> String {
    let words = ["the sea ", "and ", "the land ", "were ", "made ", "in ", "a day.\n", "so "];
    let mut state = 12345_u32;
    let mut text = String::new();
    while text.len() < 20_000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push_str(words[(state >> 24) as usize % words.len()]);
    }
    text
}

/// A run of a few steps of a very small model, in `dir/run`, on `dir/text.txt`.
pub(crate) fn settings(dir: &Path) -> TrainSettings {
    let data = dir.join("text.txt");
    if !data.exists() {
        fs::write(&data, text()).unwrap();
    }
    TrainSettings {
        data: vec![data.to_str().unwrap().to_owned()],
        val_data: Vec::new(),
        val_fraction: 0.1,
        text_field: "text".to_owned(),
        loss_on: None,
        tokenizer: TokenizerChoice::Bytes,
        vocab_size: None,
        base: None,
        n_layer: 2,
        n_head: 2,
        n_embd: 32,
        d_ff: None,
        block_size: 16,
        bias: true,
        tied: true,
        dropout: 0.1,
        norm: NormChoice::Layer,
        positions: PositionsChoice::Learned,
        rope_theta: ROPE_THETA,
        activation: ActivationChoice::Gelu,
        n_kv_head: None,
        head_size: None,
        qkv_bias: false,
        qk_norm: false,
        zero_init: false,
        bigram_init: false,
        window: None,
        logit_softcap: 0.0,
        previous_tokens: 0,
        embedding_scale: 1.0,
        lora_rank: None,
        lora_alpha: None,
        lora_dropout: 0.0,
        lora_targets: "all-linear".to_owned(),
        batch_size: 4,
        gradient_accumulation_steps: 2,
        batch_parts: None,
        epochs: None,
        max_steps: 12,
        learning_rate: 3e-3,
        min_lr: None,
        warmup_steps: 2,
        lr_schedule: ScheduleChoice::Cosine,
        lr_decay_steps: None,
        weight_decay: 0.1,
        embedding_lr_scale: 1.0,
        head_lr_scale: 1.0,
        optimizer: OptimizerKind::AdamW,
        momentum: None,
        beta1: 0.9,
        beta2: 0.95,
        adam_eps: 1e-8,
        grad_clip: 1.0,
        on_spike: SpikeChoice::Off,
        spike_threshold: 7.0,
        spike_window: 128,
        eval_interval: 4,
        eval_batches: 3,
        save_interval: 3,
        keep_checkpoints: 2,
        log_interval: 1,
        log_format: LogFormat::Json,
        quiet: false,
        tensorboard: false,
        out_dir: dir.join("run"),
        resume: false,
        seed: 7,
        threads: Threads::Auto,
        pin: false,
        recompute: false,
        prefetch: 4,
        trace: None,
        trace_steps: 10,
        tiles_for: None,
        tuning: TuningChoice::Off,
        isa: None,
        dtype: Dtype::F32,
        sample_tokens: 0,
        sample_prompt: String::new(),
        sample_interval: 0,
    }
}

/// Trains without touching signals.
pub(crate) fn train(settings: &TrainSettings) -> cllm::Result<Outcome> {
    train_until(settings, &Stop::new(), &mut std::io::sink())
}

/// The lines of the run's `metrics.jsonl`.
pub(crate) fn metrics(settings: &TrainSettings) -> Vec<Value> {
    let text = fs::read_to_string(settings.out_dir.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The events of one kind.
pub(crate) fn events(settings: &TrainSettings, kind: &str) -> Vec<Value> {
    metrics(settings).into_iter().filter(|event| event["event"] == kind).collect()
}

/// `weights_sha256` of a finished run.
pub(crate) fn sha(settings: &TrainSettings) -> String {
    let done = events(settings, "done");
    assert_eq!(done.len(), 1, "the run is done once");
    done[0]["weights_sha256"].as_str().unwrap().to_owned()
}

/// Trains a fresh run in `dir` to its end and returns `weights_sha256`.
pub(crate) fn undisturbed(dir: &Path) -> String {
    let settings = settings(dir);
    assert_eq!(train(&settings), Ok(Outcome::Finished));
    sha(&settings)
}

/// The checkpoints in the run folder, by name.
pub(crate) fn checkpoints(settings: &TrainSettings) -> Vec<String> {
    names(&settings.out_dir).into_iter().filter(|name| name.contains(".cllm")).collect()
}

/// The names in a folder, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A checkpoint's path.
pub(crate) fn step_file(settings: &TrainSettings, step: u64) -> PathBuf {
    settings.out_dir.join(format!("step-{step}.cllm"))
}

/// `cllm train` with the flags of `settings`.
pub(crate) fn command(settings: &TrainSettings) -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cllm"));
    command.args(arguments(settings));
    command
}

/// The flags of `settings`, but for what is `None`.
pub(crate) fn arguments(settings: &TrainSettings) -> Vec<String> {
    let mut args = vec!["train".to_owned()];
    let Value::Object(values) = serde_json::to_value(settings).unwrap() else { unreachable!() };
    for (key, value) in values {
        let flag = format!("--{}", key.replace('_', "-"));
        let values = match value {
            Value::Null => continue,
            Value::Array(values) if values.is_empty() => continue,
            Value::Array(values) => values,
            // A choice that comes with a number: the flag wants the number.
            Value::Object(choice) if key == "threads" => choice.into_values().collect(),
            value => vec![value],
        };
        args.push(match &values[0] {
            Value::Bool(set) => format!("{flag}={set}"),
            value => format!("{flag}={}", plain(value)),
        });
        args.extend(values[1..].iter().map(plain));
    }
    args
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What a run reported of its steps and validations, without how fast it was.
pub(crate) fn course(settings: &TrainSettings) -> Vec<Value> {
    let mut lines = metrics(settings);
    lines.retain(|line| line["event"] == "step" || line["event"] == "eval");
    for line in &mut lines {
        if let Value::Object(fields) = line {
            fields.remove("tokens_per_s");
            fields.remove("mfu");
            fields.remove("data_wait");
            fields.remove("seconds");
        }
    }
    lines
}

/// Output that asks for a stop when it sees a text.
pub(crate) struct StopAt {
    pub(crate) text: String,
    pub(crate) stop: Stop,
}

impl Write for StopAt {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if String::from_utf8_lossy(bytes).contains(&self.text) {
            self.stop.request();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Trains until `text` is printed, then stops in an orderly way.
pub(crate) fn train_to(settings: &TrainSettings, text: &str) -> cllm::Result<Outcome> {
    let stop = Stop::new();
    let mut out = StopAt { text: text.to_owned(), stop: stop.clone() };
    train_until(settings, &stop, &mut out)
}

/// Settings as somebody leaves them who changes them by hand, and as older programs wrote them.
pub(crate) fn without_sum(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let (fields, _) = text.split_once(",\n  \"crc32\": ").expect("a checksum");
    format!("{fields}\n}}\n")
}
