//! A trained model on disk: a checkpoint and the tokenizer beside it.

use std::path::{Path, PathBuf};

use cllm_core::checkpoint::Header;
use cllm_core::{AdapterTable, Adapters, ModelConfig, ParamSpec, ParamTable};

use crate::checkpoint::{CheckpointFile, MappedValues, StoredValues, StoredWeights};
use crate::data::sha256_hex;
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
    origin: Option<String>,
    /// SHA-256 of the JSON of the tokenizer that it was trained with, if it was trained here.
    tokenizer_sha256: Option<String>,
}

impl Trained {
    /// Opens `path`: a checkpoint, or a run folder (then its best or newest one).
    /// Damaged checkpoints of a folder that are passed over are named on standard error.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::find(path).map_err(|error| if is_foreign(path) { foreign(path) } else { error })
    }

    fn find(path: &Path) -> Result<Self> {
        let file = if path.is_dir() {
            let folder = RunFolder::existing(path);
            let found = folder.for_use()?;
            for reason in &found.skipped {
                say!("cllm: passing over {reason}");
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
        let (header, weights, meta) = file.into_weights()?;
        let Header { config, adapters, updates: step, .. } = header;
        let (origin, tokenizer_sha256) =
            meta.map_or((None, None), |meta| (meta.origin, meta.tokenizer_sha256));
        Ok(Self { weights, config, adapters, step, origin, tokenizer_sha256 })
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

    /// Where it has come from, if it was imported and is as it came.
    pub(crate) fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
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
        // Somebody may want it so; but if it came about, all texts are garbage.
        if let Some(own) = &self.tokenizer_sha256
            && *own != sha256_hex(tokenizer.to_json()?.as_bytes())
        {
            say!(
                "cllm: {} is not the tokenizer that {} was trained with",
                path.display(),
                self.path().display()
            );
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
        let mut tensors = self.tensors()?;
        params.iter().try_for_each(|spec| tensors.read(&spec, 0, &mut arena[spec.range()]))
    }

    /// The bytes of the token table, in the file.
    pub(crate) fn token_table(&self) -> Result<MappedValues> {
        self.weights.map(self.config.vocab_size * self.config.d_model)
    }

    /// The weights, tensor by tensor in the order of the config's table; adapters are added to those of
    /// their base.
    pub(crate) fn tensors(&self) -> Result<Tensors> {
        let adapters = self.adapters()?;
        let base = adapters.is_some().then(|| lora::base_of(&self.dir(), &self.config));
        let base = base.transpose()?;
        let weights = base.as_ref().map_or(&self.weights, |base| &base.weights);
        Ok(Tensors { values: weights.values()?, adapters })
    }

    /// An arena of the weights.
    pub(crate) fn parameters(&self) -> Result<Vec<f32>> {
        let table = ParamTable::new(&self.config).map_err(model::config_error)?;
        let mut arena = arena(&table, self.path())?;
        self.read_parameters(&mut arena)?;
        Ok(arena)
    }
}

/// The weights of a model, read one tensor after the other.
#[derive(Debug)]
pub(crate) struct Tensors {
    values: StoredValues,
    adapters: Option<(AdapterTable, Vec<f32>)>,
}

impl Tensors {
    /// Reads the next values, which are rows of `spec` from row `first` on.
    ///
    /// # Errors
    /// Names the file when it cannot be read any more.
    pub(crate) fn read(
        &mut self,
        spec: &ParamSpec,
        first: usize,
        values: &mut [f32],
    ) -> Result<()> {
        self.values.read(values)?;
        if let Some((table, adapters)) = &self.adapters {
            table.merge_into(spec, first, adapters, values);
        }
        Ok(())
    }
}

/// Whether a model of other programs lies at `path`, by its files' names.
fn is_foreign(path: &Path) -> bool {
    let is = |name: &str| path.extension().is_some_and(|extension| extension == name);
    if path.is_dir() {
        let run = RunFolder::existing(path);
        return path.join("config.json").exists() && !run.has_checkpoints().unwrap_or(false);
    }
    path.exists() && (is("gguf") || is("safetensors"))
}

fn foreign(path: &Path) -> Error {
    // Of such a file the folder says what it is of.
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_part = path.extension().is_some_and(|extension| extension == "safetensors");
    let from = if is_part { parent } else { path };
    Error::failure(format!(
        "{}: a model of another program; `cllm import {} --out-dir DIR` makes a run folder of it",
        path.display(),
        from.display()
    ))
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
