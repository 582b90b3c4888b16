//! The flags of `cllm train` and the keys of its configuration file: one table.
//!
//! A field of [`TrainFlags`] is a flag (with `-`) and a key (with `_`) of that name, both
//! of which set the field of [`TrainSettings`] of the same name.

use super::presets::Preset;
use super::value::{Setting, parse};
use crate::parts::{ActivationChoice, NormChoice, PositionsChoice};
use crate::settings::{
    LogFormat, LossOn, ScheduleChoice, SpikeChoice, Threads, TokenizerChoice, TrainSettings,
    TuningChoice,
};
use clap::Args;
use cllm_core::{Dtype, Isa, OptimizerKind};
use std::path::PathBuf;
use toml::de::DeValue;

/// How the settings of a run are given.
#[derive(Args, Clone, Debug, Default)]
pub struct TrainArgs {
    /// TOML file of settings, `key = value`, one a line; keys are the flags' names.
    ///
    /// Flags win over the file, the file over the preset.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Settings to start from: tiny (the default; fast where nothing is said of model, data or recipe), fast, reference,
    /// gpt2 or smollm2.
    #[arg(long, value_name = "NAME", value_parser = parse::<Preset>)]
    pub preset: Option<Preset>,

    /// All settings that a flag has set.
    #[command(flatten)]
    pub flags: TrainFlags,
}

/// Why a key of a file was not taken.
pub(super) enum KeyError {
    /// There is no such key.
    Unknown,
    /// Its value is not one; what would be.
    Value(&'static str),
}

macro_rules! train_flags {
    ($(
        $heading:literal [$($(#[$list_attr:meta])* $list:ident,)*] {
            $($(#[$attr:meta])* $field:ident: $ty:ident,)*
        }
    )*) => {
        /// Settings that somebody has set, by flag or in a file.
        #[derive(Args, Clone, Debug, Default, PartialEq)]
        pub struct TrainFlags {
            $(
                $(
                    $(#[$list_attr])*
                    #[arg(long, help_heading = $heading, num_args = 1.., value_name = "PATH")]
                    pub $list: Option<Vec<String>>,
                )*
                $(
                    $(#[$attr])*
                    #[arg(long, help_heading = $heading, value_parser = parse::<$ty>)]
                    pub $field: Option<$ty>,
                )*
            )*
        }

        impl TrainFlags {
            /// All keys.
            pub(super) const KEYS: &'static [&'static str] = &[
                $($(stringify!($list),)* $(stringify!($field),)*)*
            ];

            /// Sets what is set here, and says so of each key.
            pub(super) fn apply(
                self,
                settings: &mut TrainSettings,
                mut on_set: impl FnMut(&'static str),
            ) {
                $(
                    $(
                        if let Some(value) = self.$list {
                            settings.$list = value;
                            on_set(stringify!($list));
                        }
                    )*
                    $(
                        if let Some(value) = self.$field {
                            settings.$field = value.into();
                            on_set(stringify!($field));
                        }
                    )*
                )*
            }

            /// Sets `key` (an element of [`Self::KEYS`]) to a value of a file.
            pub(super) fn set(&mut self, key: &str, value: &DeValue<'_>) -> Result<(), KeyError> {
                match key {
                    $(
                        $(stringify!($list) => {
                            self.$list = Some(texts(value).ok_or(KeyError::Value(TEXTS))?);
                        })*
                        $(stringify!($field) => {
                            let value = <$ty as Setting>::from_toml(value);
                            self.$field = Some(value.ok_or(KeyError::Value(<$ty>::ACCEPTS))?);
                        })*
                    )*
                    _ => return Err(KeyError::Unknown),
                }
                Ok(())
            }
        }
    };
}

/// What a list in a file may be.
const TEXTS: &str = "a text or a list of texts";

fn texts(value: &DeValue<'_>) -> Option<Vec<String>> {
    match value {
        DeValue::String(text) => Some(vec![text.clone().into_owned()]),
        DeValue::Array(list) => {
            list.iter().map(|text| text.get_ref().as_str().map(str::to_owned)).collect()
        }
        _ => None,
    }
}

train_flags! {
    "Data" [
        /// Files and folders of text, JSON lines or token shards; - is standard input.
        ///
        /// Without it the text that the program carries is used.
        data,
        /// Separate validation data of the same kinds.
        val_data,
    ] {
        /// Share of the tokens held out for validation when there is no --val-data.
        #[arg(value_name = "SHARE")]
        val_fraction: f64,
        /// Field of a JSON line that holds the text.
        #[arg(value_name = "NAME")]
        text_field: String,
        /// What counts in the loss: completions (with the assistant's messages, and what ends them), or all.
        ///
        /// The data are examples then, as `cllm finetune` has them.
        #[arg(value_name = "WHAT")]
        loss_on: LossOn,
        /// bytes, chars, bpe:N (trained on the text, N ids) or a tokenizer.json.
        #[arg(value_name = "KIND")]
        tokenizer: TokenizerChoice,
        /// Ids of the model: more than those of the tokenizer, or those of token shards without one.
        #[arg(value_name = "N")]
        vocab_size: usize,
    }
    "Model" [] {
        /// Run folder or checkpoint to start from: its model, weights and tokenizer.
        #[arg(value_name = "PATH")]
        base: PathBuf,
        /// Transformer blocks.
        #[arg(value_name = "N", alias = "num-hidden-layers")]
        n_layer: usize,
        /// Attention heads; must divide --n-embd, unless there is a --head-size.
        #[arg(value_name = "N", alias = "num-attention-heads")]
        n_head: usize,
        /// Heads of keys and values, each shared by as many heads [default: --n-head].
        #[arg(value_name = "N", alias = "num-key-value-heads")]
        n_kv_head: usize,
        /// Columns of a head [default: --n-embd divided by --n-head].
        #[arg(value_name = "N", alias = "head-dim")]
        head_size: usize,
        /// Width of the model.
        #[arg(value_name = "N", aliases = ["d-model", "hidden-size"])]
        n_embd: usize,
        /// Width of the feed-forward layer [default: 4 times --n-embd; swiglu: 8/3 times].
        #[arg(value_name = "N", aliases = ["n-inner", "intermediate-size"])]
        d_ff: usize,
        /// Tokens of a sequence.
        #[arg(value_name = "N", aliases = ["n-positions", "n-ctx"])]
        block_size: usize,
        /// Biases in linear layers and norms; --no-bias for none.
        #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        bias: bool,
        /// Output projection shares the token table; --no-tied for one of its own.
        #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
              alias = "tie-word-embeddings")]
        tied: bool,
        /// Probability of dropout.
        #[arg(value_name = "P")]
        dropout: f32,
        /// layer (GPT-2) or rms (Llama).
        #[arg(value_name = "KIND")]
        norm: NormChoice,
        /// learned (a table, GPT-2) or rotary (angles of queries and keys, Llama).
        #[arg(value_name = "KIND")]
        positions: PositionsChoice,
        /// Base of the angles of rotary positions.
        #[arg(value_name = "N")]
        rope_theta: f32,
        /// gelu (GPT-2), relu2 (squared ReLU, nanochat) or swiglu (Llama).
        #[arg(value_name = "KIND", alias = "hidden-act")]
        activation: ActivationChoice,
        /// Biases of queries, keys and values in a model without others (Qwen2).
        #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        qkv_bias: bool,
        /// Norms of each head of queries and keys (Qwen3).
        #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        qk_norm: bool,
        /// Projections out of attention and of feed-forward layers, and an output projection of its own, begin as
        /// zeros rather than as small random numbers.
        #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        zero_init: bool,
        /// The model begins as one that knows how often each token of the training text follows another: its token table
        /// and output projection are factors of what was counted. Wants --tied false and --norm rms. Counting takes four
        /// times the memory of the token table and one thread: seconds for small models, a minute for 50,000 tokens of
        /// width 768.
        #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        bigram_init: bool,
        /// Tokens that each one sees, the last up to itself [default: all of its sequence].
        #[arg(value_name = "N", alias = "sliding-window")]
        window: usize,
        /// Keeps logits between C and -C: C tanh(logit / C) (Gemma 2, nanochat); 0 leaves them as they are.
        #[arg(value_name = "C", alias = "final-logit-softcapping")]
        logit_softcap: f32,
        /// Tokens before each one, 16 at most, whose rows of the token table are added to its own, each by weights
        /// for each column that are learnt, from zero on.
        #[arg(value_name = "N")]
        previous_tokens: usize,
        /// The first block's input is X times the sum of the embeddings (Gemma has the root of the width; Granite's
        /// embedding_multiplier); 1 leaves it as it is.
        #[arg(value_name = "X", alias = "embedding-multiplier")]
        embedding_scale: f32,
    }
    "Adapters (LoRA)" [] {
        /// Train adapters of this rank in the place of the weights of --base.
        #[arg(value_name = "R", alias = "lora-r")]
        lora_rank: usize,
        /// What they add is multiplied by this and divided by the rank [default: twice the rank].
        #[arg(value_name = "X")]
        lora_alpha: f32,
        /// Probability that an adapter does not see an input in training.
        #[arg(value_name = "P")]
        lora_dropout: f32,
        /// Matrices that have one: all-linear, or some of those that PEFT names, with commas.
        #[arg(value_name = "NAMES")]
        lora_targets: String,
    }
    "Training" [] {
        /// Sequences of a micro-batch.
        #[arg(value_name = "N", alias = "per-device-train-batch-size")]
        batch_size: usize,
        /// Micro-batches of a step.
        #[arg(value_name = "N")]
        gradient_accumulation_steps: usize,
        /// Parts that a step's sequences are cut into, for ranks to share: their gradients are added up over a
        /// tree, whatever the number of ranks [default: 1; under mpirun 4, or as many as there are ranks].
        ///
        /// The weights that come out depend on it in their last bits, and not on the number of ranks.
        #[arg(value_name = "N")]
        batch_parts: usize,
        /// Times that the data are gone through, instead of --max-steps; parts of one count too.
        #[arg(value_name = "X", alias = "num-train-epochs")]
        epochs: f64,
        /// Steps of the run.
        #[arg(value_name = "N", aliases = ["steps", "max-iters"])]
        max_steps: u64,
        /// Highest learning rate.
        #[arg(value_name = "RATE", alias = "lr")]
        learning_rate: f32,
        /// Learning rate at the end [default: a tenth of --learning-rate].
        #[arg(value_name = "RATE")]
        min_lr: f32,
        /// Steps over which the learning rate rises; without a --preset at most a tenth of --max-steps,
        /// unless told.
        #[arg(value_name = "N", alias = "warmup-iters")]
        warmup_steps: u64,
        /// constant, linear, cosine or wsd (warm-up, stable, decay).
        #[arg(value_name = "SHAPE", alias = "lr-scheduler-type")]
        lr_schedule: ScheduleChoice,
        /// Steps of the fall at the end of wsd [default: a fifth of the run].
        #[arg(value_name = "N")]
        lr_decay_steps: u64,
        /// Decoupled weight decay of matrices.
        #[arg(value_name = "X")]
        weight_decay: f32,
        /// Learning rate of the tables of tokens and positions, as so many times --learning-rate; their weight decay goes
        /// by it too.
        #[arg(value_name = "X")]
        embedding_lr_scale: f32,
        /// Learning rate of an output projection of its own (--tied false), as so many times --learning-rate.
        #[arg(value_name = "X")]
        head_lr_scale: f32,
        /// adamw; adamw8, the same with moments in 8 bits; momentum; sgd; or muon for matrices of blocks and adamw
        /// for the rest. Beside its weights and gradient a parameter takes 8, 2.1, 4, 0 or, in those matrices, 4
        /// bytes of memory, and so much more of a checkpoint. momentum and sgd want rates some hundred times
        /// higher, and a lower --weight-decay, which goes by the rate.
        #[arg(value_name = "NAME", alias = "optim")]
        optimizer: OptimizerKind,
        /// What is left of the sum of gradients in a step of --optimizer momentum or muon
        /// [default: 0.9, of muon 0.95].
        #[arg(value_name = "X")]
        momentum: f32,
        /// AdamW's decay of the first moment.
        #[arg(value_name = "X", alias = "adam-beta1")]
        beta1: f32,
        /// AdamW's decay of the second moment.
        #[arg(value_name = "X", alias = "adam-beta2")]
        beta2: f32,
        /// AdamW's epsilon.
        #[arg(value_name = "X", alias = "adam-epsilon")]
        adam_eps: f32,
        /// Largest norm of the gradient; 0 does not clip.
        #[arg(value_name = "X", alias = "max-grad-norm")]
        grad_clip: f32,
        /// What is done about a step whose loss is far above those before it, or not finite: off (it is
        /// reported; what is not finite stops the run), stop, rewind (go back to the last regular checkpoint,
        /// and on from there with the data behind the step) or skip (the step has no update; nor has one
        /// whose gradient's norm is as far above those before it).
        #[arg(value_name = "WHAT")]
        on_spike: SpikeChoice,
        /// How far above is a spike: deviations above the median of the steps before.
        #[arg(value_name = "X")]
        spike_threshold: f64,
        /// How many steps before; half as many have to be there.
        #[arg(value_name = "N")]
        spike_window: usize,
        /// Seed of weights, data order, dropout and sampling.
        #[arg(value_name = "N")]
        seed: u64,
    }
    "Run" [] {
        /// Folder of the run: checkpoints, metrics, tokenizer.
        #[arg(value_name = "DIR", alias = "output-dir")]
        out_dir: PathBuf,
        /// Go on from the newest checkpoint in --out-dir.
        #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        resume: bool,
        /// Steps between validations.
        #[arg(value_name = "N", alias = "eval-steps")]
        eval_interval: u64,
        /// Batches of a validation; 0 takes all there are.
        #[arg(value_name = "N", alias = "eval-iters")]
        eval_batches: usize,
        /// Steps between checkpoints.
        #[arg(value_name = "N", alias = "save-steps")]
        save_interval: u64,
        /// Checkpoints kept beside the best one.
        #[arg(value_name = "N", alias = "save-total-limit")]
        keep_checkpoints: usize,
        /// Steps between reported steps.
        #[arg(value_name = "N", alias = "logging-steps")]
        log_interval: u64,
        /// text for people, json for one JSON object a line on standard output.
        #[arg(value_name = "FORMAT")]
        log_format: LogFormat,
        /// Print nothing but errors and warnings, in any format: metrics.jsonl of the run folder has it.
        ///
        /// Not remembered by a run: with --resume it is quiet again only if asked to.
        #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        quiet: bool,
        /// Write losses, learning rate, gradient norm and speed for TensorBoard too, into the folder
        /// tensorboard of the run folder: see `tensorboard --logdir out`.
        #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        tensorboard: bool,
        /// Tokens of a sample of text; 0 for none.
        #[arg(value_name = "N")]
        sample_tokens: usize,
        /// What a sample continues.
        #[arg(value_name = "TEXT")]
        sample_prompt: String,
        /// Steps between samples; 0 for one at the end alone.
        ///
        /// The weights that come out do not depend on it, to the bit.
        #[arg(value_name = "N")]
        sample_interval: u64,
    }
    "Machine" [] {
        /// Workers that compute: a number, or auto, which takes as many as are fastest here.
        ///
        /// The weights that come out do not depend on it, to the bit.
        #[arg(value_name = "N")]
        threads: Threads,
        /// Keeps each worker on a CPU of its own.
        #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        pin: bool,
        /// Keep only what enters each layer and its attention's output, and make the rest again
        /// in the backward pass: less memory, more time.
        ///
        /// The weights that come out do not depend on it, to the bit.
        #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        recompute: bool,
        /// Batches that are ready ahead or in use, 1 to 64; with 1 nothing is read ahead.
        #[arg(value_name = "N")]
        prefetch: usize,
        /// Write a trace of every tile of some steps to this file; Perfetto opens it, and
        /// `cllm simulate` predicts other numbers of workers from it. Steps of a trace have all
        /// workers: --threads auto does not search.
        ///
        /// Not remembered by a run: with --resume it is written again only if asked for.
        #[arg(value_name = "FILE")]
        trace: PathBuf,
        /// Most steps of the trace, after two that warm up.
        #[arg(value_name = "N")]
        trace_steps: usize,
        /// Cut steps into tiles as for this many workers [default: as many as there are].
        ///
        /// For traces to simulate more workers from. The weights that come out do not
        /// depend on it, to the bit.
        #[arg(value_name = "N", hide_short_help = true)]
        tiles_for: usize,
        /// Sizes of blocks: auto takes those that `cllm tune` has stored for this machine and model,
        /// off those that follow from the CPU's caches; or a file of `cllm tune --out`.
        ///
        /// The weights that come out do not depend on it, to the bit.
        #[arg(value_name = "FILE")]
        tuning: TuningChoice,
        /// Instruction set: scalar, neon, avx, avx2, avx512 or amx [default: CLLM_ISA, or the CPU's best].
        #[arg(value_name = "NAME")]
        isa: Isa,
        /// f32, or bf16: operands of the model's products are rounded to bf16; sums, weights,
        /// moments, norms, softmax and the loss stay f32. Faster where the CPU has bf16
        /// products (AVX-512 BF16).
        #[arg(value_name = "TYPE")]
        dtype: Dtype,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_flag_and_a_key() {
        let settings = serde_json::to_value(Preset::Tiny.settings()).unwrap();
        let mut fields: Vec<&str> =
            settings.as_object().unwrap().keys().map(String::as_str).collect();
        let mut keys = TrainFlags::KEYS.to_vec();
        fields.sort_unstable();
        keys.sort_unstable();
        assert_eq!(fields, keys);
    }
}
