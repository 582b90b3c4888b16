//! A trained model on disk: a checkpoint and the tokenizer beside it.

use std::path::{Path, PathBuf};

use cllm_core::checkpoint::Header;
use cllm_core::{AdapterTable, Adapters, ModelConfig, ParamTable};

use crate::checkpoint::{CheckpointFile, StoredWeights};
use crate::error::{Error, Result};
use crate::lora;
use crate::memory::{human_bytes, machine};
use crate::model;
use crate::tokenizer::{self, Tokenizer};
use crate::train::folder::RunFolder;

/// A good checkpoint.
#[derive(Debug)]
pub(crate) struct Trained {
    weights: StoredWeights,
    config: ModelConfig,
    /// The file has adapters, and the weights beside it are those of their base.
    adapters: Option<Adapters>,
    step: u64,
}

impl Trained {
    /// Opens `path`: a checkpoint, or a run folder (then its best or newest one).
    /// Damaged checkpoints of a folder that are passed over are named on standard error.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = if path.is_dir() {
            let folder = RunFolder::existing(path);
            let found = folder.for_use()?;
            for reason in &found.skipped {
                eprintln!("cllm: passing over {reason}");
            }
            found.checkpoint.ok_or_else(|| {
                Error::failure(format!("{}: no checkpoint in this folder", path.display()))
            })?
        } else {
            CheckpointFile::open(path)?
        };
        Self::of(file)
    }

    /// That of a file, which is verified.
    pub(crate) fn of(file: CheckpointFile) -> Result<Self> {
        let (header, weights) = file.into_weights()?;
        let Header { config, adapters, updates: step, .. } = header;
        Ok(Self { weights, config, adapters, step })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        self.weights.path()
    }

    /// The model.
    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Steps that it was trained for.
    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    /// The folder that the checkpoint lies in.
    pub(crate) fn dir(&self) -> PathBuf {
        let parent = self.path().parent().filter(|dir| !dir.as_os_str().is_empty());
        parent.unwrap_or(Path::new(".")).to_path_buf()
    }

    /// The tokenizer at `given`, or else beside the checkpoint.
    pub(crate) fn tokenizer(&self, given: Option<&Path>) -> Result<Tokenizer> {
        let beside = self.dir().join(tokenizer::FILE_NAME);
        let path = given.unwrap_or(&beside);
        let tokenizer = Tokenizer::load(path)?;
        if tokenizer.vocab_size() > self.config.vocab_size {
            return Err(Error::failure(format!(
                "{}: a tokenizer of {} ids does not go with {}, which has {}",
                path.display(),
                tokenizer.vocab_size(),
                self.path().display(),
                self.config.vocab_size
            )));
        }
        Ok(tokenizer)
    }

    /// Whether there is a tokenizer beside the checkpoint.
    pub(crate) fn has_tokenizer(&self) -> bool {
        self.dir().join(tokenizer::FILE_NAME).exists()
    }

    /// The adapters, if it has any, and their values.
    pub(crate) fn adapters(&self) -> Result<Option<(AdapterTable, Vec<f32>)>> {
        let Some(adapters) = &self.adapters else { return Ok(None) };
        let bad = |e| Error::failure(format!("{}: {e}", self.path().display()));
        let table = AdapterTable::new(&self.config, adapters).map_err(bad)?;
        let mut values = vec![0.0; table.arena_len()];
        self.weights.read(table.ranges(), &mut values)?;
        Ok(Some((table, values)))
    }

    /// Copies the weights into `arena`, which is laid out by the config's table; adapters are added to
    /// those of their base.
    pub(crate) fn read_parameters(&self, arena: &mut [f32]) -> Result<()> {
        let params = ParamTable::new(&self.config).map_err(model::config_error)?;
        let Some((table, values)) = self.adapters()? else {
            return self.weights.read(params.iter().map(|spec| spec.range()), arena);
        };
        lora::base_of(&self.dir(), &self.config)?.read_parameters(arena)?;
        table.merge(&params, &values, arena);
        Ok(())
    }

    /// An arena of the weights.
    pub(crate) fn parameters(&self) -> Result<Vec<f32>> {
        let table = ParamTable::new(&self.config).map_err(model::config_error)?;
        let mut arena = arena(&table, self.path())?;
        self.read_parameters(&mut arena)?;
        Ok(arena)
    }
}

/// An arena of zeros for the weights of a model that lies at `path`.
///
/// # Errors
/// The machine has not the memory.
pub(crate) fn arena(table: &ParamTable, path: &Path) -> Result<Vec<f32>> {
    let len = table.arena_len();
    let need = len as u64 * 4;
    match machine() {
        Some(machine) if need > machine.available => Err(Error::failure(format!(
            "{}: its weights need {} but this machine has {} available",
            path.display(),
            human_bytes(need),
            human_bytes(machine.available)
        ))),
        _ => Ok(vec![0.0; len]),
    }
}
