//! What a run reports: the lines of `--log-format json` and of `metrics.jsonl`.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use cllm_core::{AdapterTable, ModelConfig, Plan, Pool};
use serde::{Deserialize, Serialize};

use super::examples::ReadExamples;
use super::exchange::ExchangeReport;
use super::tuner::Tried;
use super::work::WorkReport;
use crate::memory::{Batches, machine, pool_bytes, total_bytes};
use crate::parts::Parts;
use crate::pool::cpus;
use crate::settings::TrainSettings;
use crate::tune::{self, Sizes};

/// One line. A value that is not a finite number is written as `null`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A session begins.
    Start(Box<Start>),
    /// `--threads auto` has found how many workers are fastest.
    Threads(ThreadsFound),
    /// A reported step.
    Step(Step),
    /// A validation.
    Eval(Eval),
    /// A step whose loss or gradient's norm stands out from those before it.
    Spike(Spike),
    /// What the workers have done so far.
    Work(Work),
    /// A session ended on request; the run can go on from here.
    Interrupted(Interrupted),
    /// The run has done all its steps.
    Done(Done),
    /// Text that the model wrote.
    Sample(Sample),
}

/// What a session works with.
#[derive(Clone, Debug, Serialize)]
pub struct Start {
    /// Steps done before this session.
    pub step: u64,
    /// What the run was told.
    pub config: TrainSettings,
    /// The model.
    pub model: Model,
    /// Number of the model's values.
    pub parameters: usize,
    /// What is trained in their place, if it is adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapters: Option<AdaptersInfo>,
    /// Bytes of each pool, to the byte.
    pub planned_bytes: PlannedBytes,
    /// Instruction set in use.
    pub isa: &'static str,
    /// The kernels in use: the instruction set, and how products are made of bf16 if they are.
    pub kernels: String,
    /// Ranks that go through the steps together, with as many workers each.
    pub ranks: usize,
    /// Workers in use.
    pub threads: usize,
    /// Sizes of blocks that steps are cut by.
    pub blocking: Sizes,
    /// The file of `cllm tune` that has them; `None` if they follow from the caches.
    pub tuning: Option<String>,
    /// Multiply-adds in registers on this machine now, in GFLOP/s of all threads.
    pub peak_gflops: f64,
    /// Floating-point operations of a step.
    pub flops_per_step: f64,
    /// Tokens of a step, with the padding behind examples.
    pub tokens_per_step: u64,
    /// Tokens to train on.
    pub train_tokens: u64,
    /// Tokens to validate on.
    pub val_tokens: u64,
    /// What the examples are, if the data are examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<ReadExamples>,
    /// Where the session runs.
    pub environment: Environment,
}

/// The program and the machine of a session.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// Of this program.
    pub version: &'static str,
    /// When the session began, in seconds since 1970.
    pub began: u64,
    /// The system and what it runs on, as Rust names them.
    pub os: &'static str,
    /// As `os`.
    pub arch: &'static str,
    /// The CPU's own name and signature.
    pub cpu: String,
    /// CPUs of the machine, where it tells.
    pub cpus: Option<usize>,
    /// CPUs that the process may keep busy.
    pub cpus_allowed: usize,
    /// Memory of the machine or the control group, where it tells.
    pub memory_bytes: Option<u64>,
}

impl Environment {
    /// Looks.
    #[must_use]
    pub fn look() -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            began: began.map_or(0, |since| since.as_secs()),
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            cpu: tune::cpu_name(),
            cpus: cpus::online(),
            cpus_allowed: cpus::available(),
            memory_bytes: machine().map(|memory| memory.total),
        }
    }
}

/// The adapters of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdaptersInfo {
    /// Their rank.
    pub rank: usize,
    /// What they add is multiplied by this.
    pub scale: f32,
    /// Matrices that have one.
    pub targets: String,
    /// Number of trained values.
    pub parameters: usize,
}

impl AdaptersInfo {
    /// Those of a run's settings.
    #[must_use]
    pub fn new(table: &AdapterTable, settings: &TrainSettings) -> Self {
        Self {
            rank: table.adapters().rank,
            scale: table.adapters().scale,
            targets: settings.lora_targets.clone(),
            parameters: table.parameters(),
        }
    }
}

/// The model's dimensions, by the names of the flags.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Tokens of a sequence.
    pub block_size: usize,
    n_layer: usize,
    n_head: usize,
    n_embd: usize,
    d_ff: usize,
    bias: bool,
    tied: bool,
    dropout: f32,
    norm_eps: f32,
    /// What blocks are made of, if that is not GPT-2's.
    #[serde(default, skip_serializing_if = "Parts::is_gpt2")]
    parts: Parts,
}

impl Model {
    /// The core's config, to be validated by a plan.
    #[must_use]
    pub fn config(&self) -> ModelConfig {
        ModelConfig {
            vocab_size: self.vocab_size,
            block_size: self.block_size,
            n_layer: self.n_layer,
            n_head: self.n_head,
            d_model: self.n_embd,
            d_ff: self.d_ff,
            bias: self.bias,
            tied: self.tied,
            dropout: self.dropout,
            norm_eps: self.norm_eps,
            arch: self.parts.architecture(),
        }
    }
}

impl From<&ModelConfig> for Model {
    fn from(c: &ModelConfig) -> Self {
        Self {
            vocab_size: c.vocab_size,
            block_size: c.block_size,
            n_layer: c.n_layer,
            n_head: c.n_head,
            n_embd: c.d_model,
            d_ff: c.d_ff,
            bias: c.bias,
            tied: c.tied,
            dropout: c.dropout,
            norm_eps: c.norm_eps,
            parts: Parts::from(&c.arch),
        }
    }
}

/// Bytes of each pool and of all together.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PlannedBytes {
    parameters: usize,
    gradients: usize,
    moments: usize,
    packed: usize,
    activations: usize,
    scratch: usize,
    operations: usize,
    slots: usize,
    words: usize,
    batch: usize,
    /// The sum.
    pub total: usize,
}

impl PlannedBytes {
    /// Those of a run that holds `batches` at a time.
    #[must_use]
    pub fn new(plan: &Plan, batches: Batches) -> Self {
        Self {
            parameters: plan.bytes(Pool::Parameters),
            gradients: plan.bytes(Pool::Gradients),
            moments: plan.bytes(Pool::Moments),
            packed: plan.bytes(Pool::Packed),
            activations: plan.bytes(Pool::Activations),
            scratch: plan.bytes(Pool::Scratch),
            operations: plan.bytes(Pool::Operations),
            slots: plan.bytes(Pool::Slots),
            words: plan.bytes(Pool::Words),
            batch: pool_bytes(plan, Pool::Batch, batches),
            total: total_bytes(plan, batches),
        }
    }
}

/// How many workers the steps from here on have.
#[derive(Clone, Debug, Serialize)]
pub struct ThreadsFound {
    /// Steps done.
    pub step: u64,
    /// The fastest number of workers.
    pub threads: usize,
    /// What was tried.
    pub tried: Vec<Tried>,
}

/// One step.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Step {
    /// Steps done, this one among them.
    pub step: u64,
    /// Mean training loss of the step before its update, in nats a token; not a number if a micro-batch of a
    /// step without an update had none.
    pub loss: f64,
    /// Learning rate of the update.
    pub lr: f32,
    /// Global norm of the gradient before the clip; not a number if the step had no update for its loss.
    pub grad_norm: f64,
    /// Tokens a second since the last reported step; padding behind examples does not count.
    pub tokens_per_s: f64,
    /// Share of the machine's peak since the last reported step. Counts the FLOPs of the model
    /// alone: what `--recompute` does a second time is not among them.
    pub mfu: f64,
    /// Seconds spent waiting for a batch since the last reported step.
    pub data_wait: f64,
    /// Seconds of training, over all sessions.
    pub seconds: f64,
}

/// A step whose loss or gradient's norm is far above those before it, or not finite: see
/// [`watch`](super::watch).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spike {
    /// Steps done when the run goes on: as `at`, but after a rewind those of the checkpoint gone back to.
    pub step: u64,
    /// The step that it is of.
    pub at: u64,
    /// `loss` or `grad_norm`.
    pub what: &'static str,
    /// The number that stands out.
    pub value: f64,
    /// Median of the steps before.
    pub median: f64,
    /// What is above is a spike.
    pub limit: f64,
    /// What was done: `none`, `stop`, `skip` or `rewind`.
    pub action: &'static str,
    /// Of a rewind, which one it is to this checkpoint, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewinds: Option<u32>,
}

/// One validation.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Eval {
    /// Steps done.
    pub step: u64,
    /// Mean loss in nats a token.
    pub val_loss: f64,
    /// Whether it is the lowest so far.
    pub best: bool,
    /// Seconds of training, over all sessions.
    pub seconds: f64,
}

/// What the workers have done in a session's steps so far: after some of the reported steps, the further
/// apart the more there have been.
#[derive(Clone, Debug, Serialize)]
pub struct Work {
    /// Steps done.
    pub step: u64,
    /// Seconds of the session's steps.
    pub step_seconds: f64,
    /// Where the time of each worker went.
    pub workers: Vec<WorkerSeconds>,
    /// Seconds of all workers together, of each kind of operation.
    pub operations: BTreeMap<&'static str, f64>,
}

/// Where one worker's time in steps went, in seconds: see [`WorkerReport`](super::work::WorkerReport).
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(missing_docs, reason = "the report at the end has the same fields")]
pub struct WorkerSeconds {
    pub busy: f64,
    pub queue: f64,
    pub steal: f64,
    pub wait: f64,
    pub data: f64,
    pub rest: f64,
}

/// The end of a session that was asked to stop.
#[derive(Clone, Debug, Serialize)]
pub struct Interrupted {
    /// Steps done.
    pub step: u64,
    /// The checkpoint to go on from.
    pub checkpoint: String,
}

/// The end of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Done {
    /// Steps done.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training, over all sessions.
    pub seconds: f64,
    /// Seconds spent waiting for batches, over all sessions.
    pub data_wait_seconds: f64,
    /// Their share of `seconds`.
    pub data_wait_share: f64,
    /// Steps without an update, for `--on-spike skip`.
    pub skipped_steps: u64,
    /// Validation loss after the last step, if there is validation data.
    pub val_loss: Option<f64>,
    /// The lowest validation loss and when it was.
    pub best_val_loss: Option<f64>,
    /// Steps done at the lowest validation loss.
    pub best_step: Option<u64>,
    /// SHA-256 of the parameters' bytes in table order.
    pub weights_sha256: String,
    /// Largest resident size of the process, where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// What the workers did in this session's steps.
    #[serde(flatten)]
    pub work: WorkReport,
    /// What ranks took for one another's values in this session's steps, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange: Option<ExchangeReport>,
}

/// Generated text.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Steps done by the model that wrote it.
    pub step: u64,
    /// What it continues.
    pub prompt: String,
    /// The prompt and what follows.
    pub text: String,
}
