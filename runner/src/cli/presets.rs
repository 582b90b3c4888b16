//! The numbers of the presets: the one place to tune them.

use super::value::Setting;
use crate::lora;
use crate::parts::{ActivationChoice, NormChoice, PositionsChoice, ROPE_THETA};
use crate::settings::{
    LogFormat, LossOn, ScheduleChoice, SpikeChoice, Threads, TokenizerChoice, TrainSettings,
    TuningChoice, default_prefetch, default_spike_threshold, default_spike_window,
    default_trace_steps,
};
use cllm_core::{Dtype, OptimizerKind};

/// A named set of settings that everything else overrides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// The default: a model of bytes that learns the embedded text in half a minute.
    #[default]
    Tiny,
    /// The same sizes by the recipe that learns most from a second; the default of a run of which nothing is said.
    Fast,
    /// The reference workload: what speeds are measured on.
    Reference,
    /// GPT-2 small, 124 million parameters.
    Gpt2,
    /// The smallest SmolLM2, 135 million parameters: a Llama.
    Smollm2,
    /// What `cllm finetune` starts from, which nobody names.
    Finetune,
}

impl Setting for Preset {
    const ACCEPTS: &'static str = "tiny, fast, reference, gpt2 or smollm2";

    fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == text)
    }
}

impl Preset {
    /// Those that can be named.
    pub const ALL: [Self; 5] = [Self::Tiny, Self::Fast, Self::Reference, Self::Gpt2, Self::Smollm2];

    /// The name that `--preset` takes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Fast => "fast",
            Self::Reference => "reference",
            Self::Gpt2 => "gpt2",
            Self::Smollm2 => "smollm2",
            Self::Finetune => "finetune",
        }
    }

    /// All settings of the preset.
    #[must_use]
    pub fn settings(self) -> TrainSettings {
        match self {
            Self::Tiny => tiny(),
            Self::Fast => fast(),
            Self::Reference => reference(),
            Self::Gpt2 => gpt2(),
            Self::Smollm2 => smollm2(),
            Self::Finetune => finetune(),
        }
    }
}

/// Tuned on the embedded text for the validation loss after 700,000 to 900,000 tokens,
/// a minute or two on one core: sequences of 64 and batches of 8 at a peak rate of 2e-3
/// reach 1.67 after 870,000 tokens, at 4e-3 the same after 700,000; batches of 12
/// sequences of 128 are at 2.14 after 550,000.
fn tiny() -> TrainSettings {
    TrainSettings {
        data: Vec::new(),
        val_data: Vec::new(),
        val_fraction: 0.1,
        text_field: "text".to_owned(),
        loss_on: None,
        tokenizer: TokenizerChoice::Bytes,
        vocab_size: None,
        base: None,
        n_layer: 4,
        n_head: 4,
        n_embd: 128,
        d_ff: None,
        block_size: 64,
        bias: true,
        tied: true,
        dropout: 0.0,
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
        lora_targets: lora::ALL.to_owned(),
        batch_size: 8,
        gradient_accumulation_steps: 1,
        batch_parts: None,
        epochs: None,
        max_steps: 1500,
        learning_rate: 3e-3,
        // A tenth of the peak, whatever that is set to.
        min_lr: None,
        warmup_steps: 100,
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
        spike_threshold: default_spike_threshold(),
        spike_window: default_spike_window(),
        eval_interval: 250,
        eval_batches: 50,
        save_interval: 250,
        keep_checkpoints: 2,
        log_interval: 10,
        log_format: LogFormat::Text,
        quiet: false,
        tensorboard: false,
        out_dir: "out".into(),
        resume: false,
        seed: 1337,
        threads: Threads::Auto,
        pin: false,
        recompute: false,
        prefetch: default_prefetch(),
        trace: None,
        trace_steps: default_trace_steps(),
        tiles_for: None,
        tuning: TuningChoice::Auto,
        isa: None,
        dtype: Dtype::F32,
        sample_tokens: 300,
        sample_prompt: "\n".to_owned(),
        sample_interval: 250,
    }
}

/// The recipe of `benches/speedrun/characters.toml`, with what each part gave beside it, for bytes and a little longer: on
/// the embedded text a validation loss of 1.56 after 184,320 tokens, where [`tiny`] is at 1.67 after 768,000.
fn fast() -> TrainSettings {
    TrainSettings {
        bias: false,
        norm: NormChoice::Rms,
        positions: PositionsChoice::Rotary,
        activation: ActivationChoice::Relu2,
        qk_norm: true,
        previous_tokens: 3,
        embedding_scale: 16.0,
        tied: false,
        batch_size: 12,
        max_steps: 240,
        learning_rate: 3e-2,
        min_lr: Some(0.0),
        warmup_steps: 5,
        lr_schedule: ScheduleChoice::Linear,
        optimizer: OptimizerKind::Muon,
        momentum: Some(0.85),
        dtype: Dtype::Bf16,
        eval_interval: 80,
        save_interval: 80,
        sample_interval: 80,
        ..tiny()
    }
}

fn reference() -> TrainSettings {
    TrainSettings {
        // Shards of `cllm data reference` bring their own tokenizer of as many ids.
        tokenizer: TokenizerChoice::Bpe(5000),
        n_layer: 4,
        n_head: 8,
        n_embd: 256,
        d_ff: Some(1024),
        block_size: 128,
        batch_size: 32,
        // 3 epochs of 2,272 batches.
        max_steps: 6816,
        learning_rate: 1e-3,
        warmup_steps: 1000,
        weight_decay: 0.01,
        beta2: 0.999,
        eval_interval: 500,
        save_interval: 500,
        sample_tokens: 100,
        // Speeds are measured on it.
        sample_interval: 0,
        ..tiny()
    }
}

fn gpt2() -> TrainSettings {
    TrainSettings {
        tokenizer: TokenizerChoice::Bpe(50257),
        n_layer: 12,
        n_head: 12,
        n_embd: 768,
        block_size: 1024,
        batch_size: 4,
        max_steps: 600_000,
        learning_rate: 6e-4,
        warmup_steps: 2000,
        eval_interval: 2000,
        eval_batches: 50,
        save_interval: 1000,
        sample_interval: 2000,
        ..tiny()
    }
}

/// Sizes and parts of `HuggingFaceTB/SmolLM2-135M`; the rest is as for GPT-2.
fn smollm2() -> TrainSettings {
    TrainSettings {
        tokenizer: TokenizerChoice::Bpe(49152),
        n_layer: 30,
        n_head: 9,
        n_kv_head: Some(3),
        n_embd: 576,
        d_ff: Some(1536),
        block_size: 2048,
        bias: false,
        norm: NormChoice::Rms,
        positions: PositionsChoice::Rotary,
        rope_theta: 100_000.0,
        activation: ActivationChoice::Swiglu,
        batch_size: 2,
        ..gpt2()
    }
}

/// Rates and rounds that people take for a few thousand examples and models of this size; rows as long
/// as the base allows are few, so that they fit into memory.
fn finetune() -> TrainSettings {
    TrainSettings {
        loss_on: Some(LossOn::Completions),
        val_fraction: 0.05,
        batch_size: 2,
        gradient_accumulation_steps: 2,
        epochs: Some(3.0),
        learning_rate: 2e-5,
        warmup_steps: 10,
        weight_decay: 0.0,
        beta2: 0.999,
        eval_interval: 100,
        // All of it: it is little, and its loss is what tells when to stop.
        eval_batches: 0,
        save_interval: 100,
        sample_tokens: 0,
        ..tiny()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_found_by_name() {
        for preset in Preset::ALL {
            preset.settings().validate().unwrap();
            assert_eq!(Preset::from_text(preset.name()), Some(preset));
            assert!(Preset::ACCEPTS.contains(preset.name()));
        }
        assert_eq!(Preset::from_text("huge"), None);
        Preset::Finetune.settings().validate().unwrap();
        assert_eq!(Preset::from_text("finetune"), None);
    }
}
