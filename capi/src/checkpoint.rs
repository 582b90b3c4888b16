//! Checkpoints of trainers in the caller's bytes, in the form of `cllm`'s files.

use cllm_core::checkpoint::{self, Checkpoint, CheckpointError, Header, SliceSink};
use cllm_core::{ModelConfig, Trainer};

use crate::config::CllmModel;
use crate::door::Call;
use crate::error::{CllmError, CllmStatus, Failed, Result, told};
use crate::memory::{checked, slice, wanted};
use crate::trainer::{CllmTrainer, Work};

fn bad_checkpoint(error: CheckpointError) -> Failed {
    Failed::new(CllmStatus::BadCheckpoint, error)
}

/// The model of a checkpoint has to compute what the handle's does, however either says it; dropout, which is of
/// training alone, may be another.
fn check_model(found: &ModelConfig, own: &ModelConfig) -> Result {
    if (ModelConfig { dropout: own.dropout, ..*found }).normal() == own.normal() {
        return Ok(());
    }
    Err(Failed::new(CllmStatus::BadCheckpoint, "the checkpoint is of another model than the plan"))
}

/// Takes weights, and what a trainer has beside them (moments, updates done, the seed), from the bytes of a
/// checkpoint, as `cllm` writes them too: on the same batches the run goes on to the same bits, with dropout too.
/// Without moments they are zeros. Moments of another updater than the plan's are refused, as is what is damaged
/// or of another model, and the trainer stays as it was. A model is another if it has another `block_size`, too;
/// its dropout may be another, and what goes without saying may be said.
///
/// # Safety
/// Pointers are null or point at what their types say, `checkpoint` at as many bytes as `bytes` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_trainer_load(
    trainer: *mut CllmTrainer,
    checkpoint: *const u8,
    bytes: usize,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let mut call = Call::begin(trainer)?;
            let checkpoint = Checkpoint::parse(slice(checkpoint, bytes, "checkpoint")?)
                .map_err(bad_checkpoint)?;
            let header = *checkpoint.header();
            if header.adapters.is_some() {
                return Err(Failed::new(
                    CllmStatus::BadCheckpoint,
                    "the checkpoint is of adapters alone",
                ));
            }
            match call.work() {
                Work::Train(trainer) => {
                    check_model(&header.config, trainer.plan().config())?;
                    // Before anything is overwritten: what is refused leaves the trainer as it was.
                    let wanted = trainer.plan().optimizer();
                    if let Some(found) = checkpoint.optimizer().filter(|found| *found != wanted) {
                        let other = CheckpointError::OtherOptimizer { checkpoint: found, wanted };
                        return Err(bad_checkpoint(other));
                    }
                    trainer
                        .restore(header.updates, |weights, own| {
                            checkpoint.read_parameters(weights);
                            if checkpoint.has_moments() {
                                checkpoint.read_moments(own)
                            } else {
                                Ok(())
                            }
                        })
                        .map_err(bad_checkpoint)?;
                    // Dropout goes on as it would have.
                    trainer.set_seed(header.seed);
                }
                Work::Evaluate(evaluator) => {
                    check_model(&header.config, evaluator.config())?;
                    checkpoint.read_parameters(evaluator.parameters_mut());
                }
            }
            Ok(())
        })
    }
}

/// Bytes of the checkpoint of a trainer, with its moments or without.
///
/// # Safety
/// Pointers are null or point at what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_trainer_saved_bytes(
    trainer: *mut CllmTrainer,
    moments: bool,
    bytes: *mut usize,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let mut call = Call::begin(trainer)?;
            let bytes = checked(bytes, "bytes")?;
            let trainer = call.trainer()?;
            let optimizer = moments.then(|| trainer.plan().optimizer());
            let need = checkpoint::encoded_len(&header_of(trainer), META.len(), optimizer);
            bytes.write(need.map_err(bad_checkpoint)?);
            Ok(())
        })
    }
}

/// What a checkpoint says beside the core's part: nothing that `cllm` takes for a run.
const META: &[u8] = b"{}";

fn header_of(trainer: &Trainer<'_>) -> Header {
    let config = *trainer.plan().config();
    Header { config, adapters: None, seed: trainer.seed(), updates: trainer.updates() }
}

/// Writes the checkpoint of a trainer to `checkpoint`: its weights, and its moments if wanted, in the form that
/// `cllm` reads too. `written` may be null.
///
/// # Safety
/// Pointers are null or point at what their types say, `checkpoint` at as many bytes as `bytes` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_trainer_save(
    trainer: *mut CllmTrainer,
    moments: bool,
    checkpoint: *mut u8,
    bytes: usize,
    written: *mut usize,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let mut call = Call::begin(trainer)?;
            let written = wanted(written, "written")?;
            let trainer = call.trainer()?;
            let header = header_of(trainer);
            let moments = moments.then(|| trainer.moments());
            let optimizer = moments.map(|moments| moments.kind());
            let need =
                checkpoint::encoded_len(&header, META.len(), optimizer).map_err(bad_checkpoint)?;
            let to = checked(checkpoint, "checkpoint")?;
            if bytes < need {
                return Err(Failed::new(
                    CllmStatus::TooShort,
                    format_args!("checkpoint has {bytes} bytes, and {need} are to be written"),
                ));
            }
            core::ptr::write_bytes(to.as_ptr(), 0, need);
            let mut sink = SliceSink::new(core::slice::from_raw_parts_mut(to.as_ptr(), need));
            // There is room.
            let _ = checkpoint::encode(&header, META, trainer.parameters(), moments, &mut sink);
            if let Some(written) = written {
                written.write(need);
            }
            Ok(())
        })
    }
}

/// A checkpoint's model, for whoever plans memory for it. Models with parts that a `CllmModel` has no words for (scaled
/// rotary positions) are refused, though a generator may run them.
///
/// # Safety
/// Pointers are null or point at what their types say, `checkpoint` at as many bytes as `bytes` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_checkpoint_model(
    checkpoint: *const u8,
    bytes: usize,
    model: *mut CllmModel,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let model = checked(model, "model")?;
            let checkpoint = Checkpoint::parse(slice(checkpoint, bytes, "checkpoint")?)
                .map_err(bad_checkpoint)?;
            model.write(CllmModel::of(&checkpoint.header().config)?);
            Ok(())
        })
    }
}
