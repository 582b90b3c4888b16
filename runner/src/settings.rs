//! Everything a training run is told, resolved: preset, then file, then flags.
//!
//! This is plain data. Where a value came from, and how wrong ones are reported, is
//! the business of `crate::cli`.

use crate::parts::{ActivationChoice, NormChoice, PositionsChoice, ROPE_THETA};
use cllm_core::{Dtype, Isa, OptimizerKind};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How text becomes token ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenizerChoice {
    /// One id a byte.
    Bytes,
    /// One id for each character of the training text.
    Chars,
    /// Byte-pair encoding with this many ids, trained on the training text.
    Bpe(usize),
    /// A `tokenizer.json`, or a folder that holds one.
    File(PathBuf),
}

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleChoice {
    /// Stays at the peak.
    Constant,
    /// Straight line down to the minimum.
    Linear,
    /// Half a cosine down to the minimum.
    Cosine,
    /// Stays at the peak, then a straight line down over `lr_decay_steps`.
    Wsd,
}

/// How many workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Threads {
    /// As many as help.
    Auto,
    /// Exactly this many.
    Count(usize),
}

/// Which sizes of blocks steps are cut by: see [`crate::tune`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TuningChoice {
    /// Those that `cllm tune` has stored for the machine and the model, if it has.
    #[default]
    Auto,
    /// Those that follow from the caches.
    Off,
    /// As `Auto`, but stored in this file.
    File(PathBuf),
}

/// Which tokens of examples count in the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossOn {
    /// Completions, the assistant's messages, and what ends them; of texts all.
    Completions,
    /// All.
    All,
}

/// What is done about a step whose loss is far above those before it, or not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpikeChoice {
    /// It is reported, and trained on. What is not finite stops the run.
    #[default]
    Off,
    /// The run stops in front of the update.
    Stop,
    /// The run goes back to its last regular checkpoint, and on from there with the data behind the step.
    Rewind,
    /// The step has no update; nor has one whose gradient's norm is as far above those before it.
    Skip,
}

/// What standard output carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people: a progress bar on a terminal, lines elsewhere.
    Text,
    /// One JSON object a line and nothing else.
    Json,
}

/// A training run. Field names are the flags' and the configuration file's keys,
/// with `_` for `-`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// Files and folders of text, JSON lines or token shards, `-` for standard
    /// input; none means the embedded text.
    pub data: Vec<String>,
    /// Separate validation data; none means the tail of `data`.
    pub val_data: Vec<String>,
    /// Share of the tokens, or of the examples, held out when there is no `val_data`.
    pub val_fraction: f64,
    /// Field of a JSON line that holds the text.
    pub text_field: String,
    /// The data are examples, one a JSON line, rather than text; which tokens of them count.
    #[serde(default)]
    pub loss_on: Option<LossOn>,
    /// Tokenizer; shards bring their own numbering and want `vocab_size` or a file.
    pub tokenizer: TokenizerChoice,
    /// Ids of the model: at least those of the tokenizer, which it has unless told; token shards without a
    /// tokenizer want it.
    pub vocab_size: Option<usize>,
    /// Run folder or checkpoint whose model the run starts from, which then decides all that is below
    /// of the model but its dropout.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// Transformer blocks.
    pub n_layer: usize,
    /// Attention heads.
    pub n_head: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of the feed-forward layer; `None` is four times `n_embd`, and with SwiGLU, which
    /// has three matrices instead of two, two thirds of that.
    pub d_ff: Option<usize>,
    /// Tokens of a sequence.
    pub block_size: usize,
    /// Biases in linear layers and norms.
    pub bias: bool,
    /// Output projection shares the token table.
    pub tied: bool,
    /// Probability of dropout.
    pub dropout: f32,
    /// How rows are normalised.
    #[serde(default)]
    pub norm: NormChoice,
    /// How a token's place is told.
    #[serde(default)]
    pub positions: PositionsChoice,
    /// Base of the angles of rotary positions.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f32,
    /// What is between the two matrices of the feed-forward layer.
    #[serde(default)]
    pub activation: ActivationChoice,
    /// Heads of keys and values; `None` is as many as of queries.
    #[serde(default)]
    pub n_kv_head: Option<usize>,
    /// Columns of a head; `None` is an equal share of `n_embd`.
    #[serde(default)]
    pub head_size: Option<usize>,
    /// Biases of queries, keys and values where there are no others.
    #[serde(default)]
    pub qkv_bias: bool,
    /// Norms of each head of queries and keys.
    #[serde(default)]
    pub qk_norm: bool,
    /// What blocks add to their inputs, and the logits of an output projection of its own, are zeros at first.
    #[serde(default)]
    pub zero_init: bool,
    /// The token table and an output projection of its own begin as factors of how often a token of the text follows
    /// another.
    #[serde(default)]
    pub bigram_init: bool,
    /// The most tokens that a query sees; `None` is all of its sequence.
    #[serde(default)]
    pub window: Option<usize>,
    /// Logits are kept between this and its negative; 0 leaves them as they are.
    #[serde(default)]
    pub logit_softcap: f32,
    /// Tokens before each one whose rows of the token table are added to its own.
    #[serde(default)]
    pub previous_tokens: usize,
    /// What embeddings are multiplied by.
    #[serde(default = "one")]
    pub embedding_scale: f32,
    /// Rank of the adapters that are trained in the place of a base's weights; `None` trains those.
    #[serde(default)]
    pub lora_rank: Option<usize>,
    /// What adapters add is multiplied by this and divided by the rank; `None` is twice the rank.
    #[serde(default)]
    pub lora_alpha: Option<f32>,
    /// Probability that an adapter does not see an input in training.
    #[serde(default)]
    pub lora_dropout: f32,
    /// Matrices that have an adapter, by PEFT's names of them.
    #[serde(default = "all_matrices")]
    pub lora_targets: String,
    /// Sequences of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub gradient_accumulation_steps: usize,
    /// Parts of a step's batch whose gradients are added up over a tree, and which ranks share; `None` is one.
    #[serde(default)]
    pub batch_parts: Option<usize>,
    /// Times that the data are gone through, which then decide `max_steps`.
    #[serde(default)]
    pub epochs: Option<f64>,
    /// Steps of the run.
    pub max_steps: u64,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Learning rate at the end; `None` is a tenth of the peak.
    pub min_lr: Option<f32>,
    /// Steps of linear rise.
    pub warmup_steps: u64,
    /// Shape of the decay.
    pub lr_schedule: ScheduleChoice,
    /// Steps of the fall of `wsd`; `None` is a fifth of the run.
    pub lr_decay_steps: Option<u64>,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f32,
    /// Learning rate of the tables of tokens and positions, by that of the rest.
    #[serde(default = "one")]
    pub embedding_lr_scale: f32,
    /// That of an output projection of its own.
    #[serde(default = "one")]
    pub head_lr_scale: f32,
    /// How weights follow from gradients, and what is remembered for it.
    #[serde(default, with = "optimizer_name")]
    pub optimizer: OptimizerKind,
    /// What is left of the sum of gradients in a step of an optimizer that has a momentum; `None` is
    /// [`OptimizerKind::usual_momentum`].
    #[serde(default)]
    pub momentum: Option<f32>,
    /// AdamW's decay of the first moment.
    pub beta1: f32,
    /// AdamW's decay of the second moment.
    pub beta2: f32,
    /// AdamW's epsilon.
    pub adam_eps: f32,
    /// Largest gradient norm; 0 switches the clip off.
    pub grad_clip: f32,
    /// What is done about spikes of the loss.
    #[serde(default)]
    pub on_spike: SpikeChoice,
    /// Deviations above the median from which on a loss or a gradient's norm is a spike.
    #[serde(default = "default_spike_threshold")]
    pub spike_threshold: f64,
    /// Steps that median and deviation are of.
    #[serde(default = "default_spike_window")]
    pub spike_window: usize,
    /// Steps between validations; the last step is always validated.
    pub eval_interval: u64,
    /// Validation batches; 0 takes all there are.
    pub eval_batches: usize,
    /// Steps between saves of the last checkpoint; the last step is always saved.
    pub save_interval: u64,
    /// Checkpoints kept beside the best one.
    pub keep_checkpoints: usize,
    /// Steps between reported steps.
    pub log_interval: u64,
    /// What standard output carries.
    pub log_format: LogFormat,
    /// Standard output carries nothing, whatever its format.
    #[serde(default)]
    pub quiet: bool,
    /// The figures of `metrics.jsonl` for TensorBoard as well.
    #[serde(default)]
    pub tensorboard: bool,
    /// Run folder: checkpoints, metrics, tokenizer, cached shards.
    pub out_dir: PathBuf,
    /// Go on from the run folder's newest good checkpoint.
    pub resume: bool,
    /// Seed of weights, data order, dropout and sampling.
    pub seed: u64,
    /// Number of workers.
    pub threads: Threads,
    /// Keeps each worker on a CPU of its own.
    #[serde(default)]
    pub pin: bool,
    /// Makes most of a layer's activations again in the backward pass rather than keep them.
    #[serde(default)]
    pub recompute: bool,
    /// Batches made ready ahead of the step that needs them.
    #[serde(default = "default_prefetch")]
    pub prefetch: usize,
    /// File to write a trace of some steps to. A resumed session writes one only if it is
    /// asked to as well.
    #[serde(default)]
    pub trace: Option<PathBuf>,
    /// Most steps of the trace.
    #[serde(default = "default_trace_steps")]
    pub trace_steps: usize,
    /// Number of workers that a step is cut into tiles for; `None` is as many as there are.
    #[serde(default)]
    pub tiles_for: Option<usize>,
    /// Which sizes of blocks a step is cut by.
    #[serde(default)]
    pub tuning: TuningChoice,
    /// Instruction set; `None` is the best that the CPU has.
    #[serde(with = "isa_name")]
    pub isa: Option<Isa>,
    /// What the operands of products are rounded to.
    #[serde(with = "dtype_name", default)]
    pub dtype: Dtype,
    /// Tokens of a sample of text; 0 for none.
    pub sample_tokens: usize,
    /// What a sample continues.
    pub sample_prompt: String,
    /// Steps between samples; 0 for one at the end of the run alone, which there always is.
    #[serde(default)]
    pub sample_interval: u64,
}

/// For runs that began before there was a choice, as what follows.
const fn one() -> f32 {
    1.0
}

const fn default_rope_theta() -> f32 {
    ROPE_THETA
}

/// For runs that began before there was a choice.
fn all_matrices() -> String {
    crate::lora::ALL.to_owned()
}

/// For runs that began before there was a choice.
pub(crate) const fn default_prefetch() -> usize {
    4
}

/// So far above nothing is by chance: of numbers that are normally distributed one in 10^11 is.
pub(crate) const fn default_spike_threshold() -> f64 {
    7.0
}

/// Enough for a median that is not moved by what it is to judge, few enough to follow a loss that falls.
pub(crate) const fn default_spike_window() -> usize {
    128
}

/// Enough for medians.
pub(crate) const fn default_trace_steps() -> usize {
    10
}

/// Instruction sets travel by name.
mod isa_name {
    use cllm_core::Isa;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::ref_option, reason = "the signature that serde asks for")]
    pub(super) fn serialize<S: Serializer>(isa: &Option<Isa>, s: S) -> Result<S::Ok, S::Error> {
        match isa {
            Some(isa) => s.serialize_some(isa.name()),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Isa>, D::Error> {
        let name = Option::<String>::deserialize(d)?;
        name.map(|name| name.parse().map_err(D::Error::custom)).transpose()
    }
}

/// So do types.
mod dtype_name {
    use cllm_core::Dtype;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
    pub(super) fn serialize<S: Serializer>(dtype: &Dtype, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(dtype.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Dtype, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

/// And optimizers.
mod optimizer_name {
    use cllm_core::OptimizerKind;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
    pub(super) fn serialize<S: Serializer>(kind: &OptimizerKind, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(kind.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<OptimizerKind, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}
