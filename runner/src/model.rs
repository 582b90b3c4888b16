//! From what a person wrote to what the core takes: config, kernels, schedule; with
//! the core's refusals in the words of the flags.

use cllm_core::{
    Architecture, BatchShape, Blocking, ConfigError, Decay, Dtype, Isa, Kernels, LANES, Mode,
    ModelConfig, Optimizer, Plan, PlanError, Schedule, Tiling,
};

use crate::error::{Error, Result};
use crate::lora;
use crate::memory::Batches;
use crate::parts::{ActivationChoice, Parts};
use crate::pool::cpus;
use crate::settings::{ScheduleChoice, Threads, TrainSettings};
use crate::train::base;
use crate::tune::{self, Chosen, Key};

/// Epsilon of the norms: GPT-2's.
const NORM_EPS: f32 = 1e-5;

/// The model that `settings` describe, for a vocabulary of `vocab_size`.
///
/// # Errors
/// Names the flag that makes no sense.
pub fn config(settings: &TrainSettings, vocab_size: usize) -> Result<ModelConfig> {
    let config = ModelConfig {
        vocab_size,
        block_size: settings.block_size,
        n_layer: settings.n_layer,
        n_head: settings.n_head,
        d_model: settings.n_embd,
        d_ff: d_ff(settings),
        bias: settings.bias,
        tied: settings.tied,
        dropout: settings.dropout,
        norm_eps: NORM_EPS,
        arch: parts(settings).architecture(),
    };
    config.validate().map_err(config_error)?;
    Ok(config.normal())
}

/// The model of a run: that which `settings` describe, or that of their base.
///
/// # Errors
/// As [`config`]; the base cannot be read, or does not go with the rest.
pub fn run_config(settings: &TrainSettings, vocab_size: usize) -> Result<ModelConfig> {
    match base::Start::of(settings, None, vocab_size)? {
        Some(start) => Ok(start.config),
        None => config(settings, vocab_size),
    }
}

/// What blocks are made of.
#[must_use]
pub fn parts(settings: &TrainSettings) -> Parts {
    Parts {
        norm: settings.norm,
        positions: settings.positions,
        activation: settings.activation,
        rope_theta: settings.rope_theta,
        rope_scaling: None,
        n_kv_head: settings.n_kv_head,
        head_size: settings.head_size,
        qkv_bias: settings.qkv_bias,
        qk_norm: settings.qk_norm,
        window: settings.window,
        logit_softcap: Some(settings.logit_softcap).filter(|cap| *cap != 0.0),
        previous_tokens: settings.previous_tokens,
        embedding_scale: settings.embedding_scale,
    }
}

/// Width of the feed-forward layer, given or implied: with SwiGLU two thirds of GPT-2's, in whole
/// cache lines, so that its three matrices have as many values as GPT-2's two (Touvron et al.,
/// "LLaMA", 2023, section 2.2).
#[must_use]
pub fn d_ff(settings: &TrainSettings) -> usize {
    settings.d_ff.unwrap_or_else(|| match settings.activation {
        ActivationChoice::Gelu | ActivationChoice::Relu2 => settings.n_embd.saturating_mul(4),
        ActivationChoice::Swiglu => (settings.n_embd.saturating_mul(8) / 3).next_multiple_of(LANES),
    })
}

/// A wrong config in the words of the flags.
#[must_use]
pub fn config_error(error: ConfigError) -> Error {
    let flag = |field: &str| match field {
        "d_model" => "--n-embd".to_owned(),
        field => format!("--{}", field.replace('_', "-")),
    };
    Error::usage(match error {
        ConfigError::Zero(field) => format!("{} 0: it must be at least 1", flag(field)),
        ConfigError::TooLarge(field, value) => format!(
            "{} {value}: the largest accepted value is {}",
            flag(field),
            cllm_core::MAX_DIMENSION
        ),
        ConfigError::Heads { d_model, n_head } => format!(
            "--n-embd {d_model} is not a multiple of --n-head {n_head}: every head needs as many \
             columns"
        ),
        ConfigError::Dropout(p) => format!("--dropout {p}: it must be at least 0 and below 1"),
        ConfigError::KvHeads { n_head, n_kv_head } => format!(
            "--n-head {n_head} is not a multiple of --n-kv-head {n_kv_head}: every head of keys and \
             values serves as many of queries"
        ),
        ConfigError::OddHead(size) => format!(
            "heads have {size} columns, and --positions rotary turns pairs of them: give --head-size \
             an even number, or change --n-embd or --n-head"
        ),
        ConfigError::Theta(theta) => format!("--rope-theta {theta}: it must be above 1"),
        ConfigError::LogitSoftcap(cap) => format!(
            "--logit-softcap {cap}: it must be at least 0.001 and at most 1000000, or 0 for none"
        ),
        ConfigError::PreviousTokens(count) => {
            format!("--previous-tokens {count}: it must be at most {}", Architecture::MOST_PREVIOUS)
        }
        ConfigError::EmbeddingScale(scale) => format!(
            "--embedding-scale {scale}: it must be at least 0.001 and at most 1000000; 1 leaves \
             embeddings as they are"
        ),
        ConfigError::ScalingFactor(_) | ConfigError::Scaling | ConfigError::LeftOut(_) => {
            error.to_string()
        }
        ConfigError::NormEps(_) | ConfigError::Overflow => {
            format!("{error}; lower --n-layer, --n-embd, --block-size or --batch-size")
        }
    })
}

/// A refused plan in the words of the flags.
#[must_use]
pub fn plan_error(error: PlanError) -> Error {
    match error {
        PlanError::Config(error) => config_error(error),
        PlanError::EmptyBatch => {
            Error::usage("--batch-size and --block-size must both be at least 1")
        }
        PlanError::NoWorker => Error::usage("--threads 0: at least one is needed"),
        PlanError::Blocking(_)
        | PlanError::LeftOut(_)
        | PlanError::Adapters(_)
        | PlanError::TooLong { .. }
        | PlanError::NothingKept
        | PlanError::TooManyTiles { .. }
        | PlanError::TooSmall { .. }
        | PlanError::NoKernels(_)
        | PlanError::WrongKernels { .. }
        | PlanError::WrongMode
        | PlanError::WrongEngine => Error::failure(error.to_string()),
    }
}

/// The kernels asked for, or the best that the CPU runs. Says so on standard error if they
/// do without instructions for `dtype`.
///
/// # Errors
/// The CPU lacks the instruction set.
pub fn kernels(isa: Option<Isa>, dtype: Dtype) -> Result<&'static Kernels> {
    let isa = isa.unwrap_or_else(Isa::best);
    let kernels = Kernels::for_isa(isa).ok_or_else(|| {
        Error::usage(format!("--isa {isa}: this CPU does not have it; its best is {}", Isa::best()))
    })?;
    let kernels = kernels.with_dtype(dtype);
    if !kernels.is_native() {
        say!(
            "cllm: --dtype {dtype}: {isa} has no products of it here: operands are rounded and \
             multiplied as f32, which is no faster than --dtype f32"
        );
    }
    Ok(kernels)
}

/// Batches as the core plans them.
#[must_use]
pub fn batch_shape(settings: &TrainSettings) -> BatchShape {
    BatchShape { sequences: settings.batch_size, tokens: settings.block_size }
}

/// Batches that a run holds in memory: those made ready ahead, and one for validations and
/// checks before saving.
#[must_use]
pub fn batches(settings: &TrainSettings) -> Batches {
    let count = settings.prefetch.saturating_add(1);
    Batches { count, with_starts: settings.loss_on.is_some() }
}

/// The plan of a run, and where its sizes of blocks are from.
///
/// # Errors
/// Settings that cannot be planned for, in the words of the flags; a broken tuning file.
pub fn train_plan(
    settings: &TrainSettings,
    config: &ModelConfig,
    kernels: &Kernels,
) -> Result<(Plan, Chosen)> {
    let chosen = tune::choose(&settings.tuning, &tuning_key(settings, config, kernels)?)?;
    Ok((plan_with(settings, config, kernels, chosen.blocking)?, chosen))
}

/// What a run's sizes of blocks are stored for.
///
/// # Errors
/// As [`workers`].
pub fn tuning_key(
    settings: &TrainSettings,
    config: &ModelConfig,
    kernels: &Kernels,
) -> Result<Key> {
    let tiles_for = settings.tiles_for.map_or_else(|| workers(settings.threads), Ok)?;
    Ok(Key::new(config, batch_shape(settings), tiles_for, kernels))
}

/// The plan of a run with these sizes of blocks.
///
/// # Errors
/// Settings that cannot be planned for, in the words of the flags.
pub fn plan_with(
    settings: &TrainSettings,
    config: &ModelConfig,
    kernels: &Kernels,
    blocking: Blocking,
) -> Result<Plan> {
    let workers = workers(settings.threads)?;
    let tiling = Tiling { workers: settings.tiles_for, packing: None, blocking };
    let mode = if settings.recompute { Mode::Recompute } else { Mode::Train };
    let (adapters, batch) = (lora::adapters(settings, config)?, batch_shape(settings));
    Plan::with_adapters(config, adapters.as_ref(), batch, workers, &tiling, mode, kernels)
        .map(|plan| plan.with_optimizer(settings.optimizer))
        .map_err(plan_error)
}

/// How many workers a run has at most; with [`Threads::Auto`] as many as there are CPUs.
///
/// # Errors
/// None at all were asked for.
pub fn workers(threads: Threads) -> Result<usize> {
    match threads {
        Threads::Count(0) => Err(plan_error(PlanError::NoWorker)),
        Threads::Count(count) => Ok(count),
        Threads::Auto => Ok(cpus::available()),
    }
}

/// The learning rate of every step.
///
/// # Errors
/// Rates that make no sense.
pub fn schedule(settings: &TrainSettings) -> Result<Schedule> {
    let max_steps = settings.max_steps;
    let schedule = Schedule {
        peak: settings.learning_rate,
        min: settings.min_lr.unwrap_or(settings.learning_rate / 10.0),
        warmup_steps: settings.warmup_steps,
        max_steps,
        decay: match settings.lr_schedule {
            ScheduleChoice::Constant => Decay::Constant,
            ScheduleChoice::Linear => Decay::Linear,
            ScheduleChoice::Cosine => Decay::Cosine,
            ScheduleChoice::Wsd => Decay::WarmupStableDecay {
                decay_steps: settings.lr_decay_steps.unwrap_or(max_steps / 5),
            },
        },
    };
    schedule.validate().map_err(|e| Error::usage(format!("--learning-rate and --min-lr: {e}")))?;
    Ok(schedule)
}

/// The optimizer and the clip.
///
/// # Errors
/// Names the flag that makes no sense.
pub fn optimizer(settings: &TrainSettings) -> Result<Optimizer> {
    let TrainSettings { beta1, beta2, adam_eps, weight_decay, grad_clip, .. } = *settings;
    let TrainSettings { embedding_lr_scale, head_lr_scale, .. } = *settings;
    let kind = settings.optimizer;
    let momentum = settings.momentum.or(settings.optimizer.usual_momentum());
    let momentum = momentum.unwrap_or(Optimizer::default().momentum);
    for (flag, beta) in [("--beta1", beta1), ("--beta2", beta2), ("--momentum", momentum)] {
        if !(0.0..1.0).contains(&beta) {
            return Err(Error::usage(format!("{flag} {beta}: it must be at least 0 and below 1")));
        }
    }
    for (flag, value) in [("--weight-decay", weight_decay), ("--grad-clip", grad_clip)] {
        if !(value >= 0.0 && value.is_finite()) {
            return Err(Error::usage(format!("{flag} {value}: it must be at least 0")));
        }
    }
    for (flag, value) in [
        ("--embedding-lr-scale", embedding_lr_scale),
        ("--head-lr-scale", head_lr_scale),
        ("--adam-eps", adam_eps),
    ] {
        if !(value > 0.0 && value.is_finite()) {
            return Err(Error::usage(format!("{flag} {value}: it must be above 0")));
        }
    }
    let grad_clip = (grad_clip > 0.0).then_some(grad_clip);
    Ok(Optimizer {
        kind,
        beta1,
        beta2,
        eps: adam_eps,
        momentum,
        weight_decay,
        embedding_lr_scale,
        head_lr_scale,
        grad_clip,
    })
}
