//! The state that a session begins with: weights of a run that is new, or those of a checkpoint.

use cllm_core::checkpoint::{Checkpoint, CheckpointError};
use cllm_core::{BlockParam, Kernels, ModelConfig, Param, Plan, Trainer};

use super::bigrams;
use super::inputs::Inputs;
use crate::checkpoint::{CheckpointFile, Meta, WatchState};
use crate::error::{Error, Result};
use crate::settings::TrainSettings;

/// What a run that has done nothing has behind it.
pub(super) fn meta(inputs: &Inputs, kernels: &Kernels) -> Meta {
    Meta {
        best: None,
        last: None,
        validation_due: false,
        seconds: 0.0,
        data_wait_seconds: 0.0,
        train_tokens: inputs.train_tokens(),
        val_tokens: inputs.val_tokens(),
        tokenizer_sha256: inputs.tokenizer_sha256.clone(),
        data_sha256: inputs.data_sha256(),
        origin: None,
        watch: WatchState::default(),
        isa: kernels.set().to_string(),
    }
}

/// Bytes that [`initialise`] takes besides the pools, of a run that begins if `is_new`.
pub(super) fn bytes(settings: &TrainSettings, plan: &Plan, inputs: &Inputs, is_new: bool) -> usize {
    let config = plan.config();
    match inputs.text() {
        Some(text) if settings.bigram_init && is_new => {
            bigrams::bytes(config.vocab_size, config.d_model, text.len())
        }
        _ => 0,
    }
}

/// The most that [`bytes`] is for a model, of whatever text.
pub(crate) fn most_first_bytes(settings: &TrainSettings, config: &ModelConfig) -> usize {
    if settings.bigram_init {
        bigrams::bytes(config.vocab_size, config.d_model, u64::MAX)
    } else {
        0
    }
}

/// Gives `trainer` the weights that a run begins with.
///
/// # Errors
/// The data are not what the settings count in, or cannot be read.
pub(super) fn initialise(
    trainer: &mut Trainer<'_>,
    settings: &TrainSettings,
    inputs: &Inputs,
    kernels: &Kernels,
) -> Result<()> {
    trainer.initialise();
    let plan = *trainer.plan();
    for spec in plan.table().iter().filter(|_| settings.zero_init) {
        let adds = matches!(
            spec.param,
            Param::Head | Param::Block(_, BlockParam::AttnOut | BlockParam::MlpOut)
        );
        if adds {
            trainer.parameters_mut()[spec.range()].fill(0.0);
        }
    }
    match inputs.text() {
        _ if !settings.bigram_init => Ok(()),
        Some(text) => bigrams::begin(trainer, text, kernels),
        None => Err(Error::usage(
            "--bigram-init: it counts in text, and these data are examples: leave it out, or give text",
        )),
    }
}

/// Gives `trainer` the state of the checkpoint `file`.
///
/// # Errors
/// The file is damaged, of another model or run, or its data are others.
pub(super) fn restore(
    trainer: &mut Trainer<'_>,
    file: &CheckpointFile,
    inputs: &Inputs,
    config: &ModelConfig,
    kernels: &Kernels,
) -> Result<Meta> {
    let checkpoint = file.parse().map_err(|e| file.error(e))?;
    let meta = file.meta(&checkpoint)?;
    check_header(&checkpoint, file, trainer, config)?;
    inputs.check(&meta, file.path())?;
    let isa = kernels.set().to_string();
    if meta.isa != isa {
        say!(
            "cllm: going on with other kernels ({isa}) than before ({}): the results will differ in \
             rounding",
            meta.isa
        );
    }
    let piece = trainer.plan().piece();
    trainer.restore(checkpoint.header().updates, |trained, moments| {
        checkpoint.read_parameters(trained);
        checkpoint.read_moments_of(piece, moments).map_err(|e| match e {
            // The flag is compared with the settings, so that those are another run's.
            CheckpointError::OtherOptimizer { wanted, .. } => file.error(format_args!(
                "{e}: settings.json beside it says {wanted}; put back the settings.json that the checkpoint \
                 was written with"
            )),
            e => file.error(e),
        })
    })?;
    let data_sha256 = meta.data_sha256.clone().or_else(|| inputs.data_sha256());
    Ok(Meta { isa, data_sha256, ..meta })
}

/// Checks that a checkpoint is of this run's model.
fn check_header(
    checkpoint: &Checkpoint<'_>,
    file: &CheckpointFile,
    trainer: &Trainer<'_>,
    config: &ModelConfig,
) -> Result<()> {
    let header = checkpoint.header();
    let (seed, adapters) = (trainer.seed(), trainer.plan().adapters());
    let adapters = adapters.map(|table| *table.adapters());
    if header.adapters != adapters {
        return Err(file.error(format_args!(
            "the checkpoint has other adapters than the settings say: {:?}, not {adapters:?}",
            header.adapters
        )));
    }
    if header.config != *config {
        return Err(file.error(format_args!(
            "the checkpoint is of another model than the settings': {:?}, not {config:?}",
            header.config
        )));
    }
    if header.seed != seed {
        return Err(file.error(format_args!(
            "the checkpoint is of a run with seed {}, not {seed}",
            header.seed
        )));
    }
    Ok(())
}
