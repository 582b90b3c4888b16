//! What exchanging models with other programs has in common, whatever the format.

mod elements;
mod parts;
mod tokens;

pub use elements::Element;
pub(crate) use parts::{Family, Part, fill_columns, parts};
pub(crate) use tokens::{Around, End, checked_tokenizer};

use std::path::{Path, PathBuf};

use cllm_core::checkpoint::Header;
use cllm_core::{Architecture, ConfigError, ModelConfig, Param, ParamSpec, ParamTable};

use crate::checkpoint::{self, Meta};
use crate::error::{Error, Result};
use crate::files;
use crate::lora;
use crate::model;
use crate::tokenizer::{
    self,
    usage::{self, Usage},
};
use crate::train::folder::RunFolder;
use crate::trained::Trained;

/// What became of a model of other programs.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The model.
    pub config: ModelConfig,
    /// Its parameters.
    pub parameters: usize,
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// There was a tokenizer.
    pub has_tokenizer: bool,
}

/// What is exported as plain elements, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSettings {
    /// Run folder or checkpoint file.
    pub checkpoint: PathBuf,
    /// Folder to make.
    pub out: PathBuf,
    /// What the weights are stored as. llm.c has `f32`, and bf16 for its trainer on GPUs.
    pub element: Element,
}

/// A run folder to be made of a model that no run has trained.
pub(crate) struct NewRun<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) header: Header,
    /// The arena of the header's model, or of its adapters.
    pub(crate) values: &'a [f32],
    /// The weights that adapters stand beside.
    pub(crate) base: Option<&'a [f32]>,
    /// JSON of its tokenizer.
    pub(crate) tokenizer: Option<&'a [u8]>,
    /// How that is used.
    pub(crate) usage: &'a Usage,
    /// Where the model has come from, if that is known.
    pub(crate) origin: Option<String>,
}

/// Makes it: the tokenizer, how that is used, the base, then the checkpoint, the path of which is the
/// result.
///
/// # Errors
/// There is a run or a tokenizer in the folder, or it cannot be written.
pub(crate) fn create_run(new: &NewRun<'_>) -> Result<PathBuf> {
    let dir = new.dir;
    let folder = RunFolder::lock(dir)?;
    let there = if folder.has_checkpoints()? || folder.has_settings() {
        Some("run")
    } else {
        // Whose would be overwritten, or taken for the model's.
        let usual = [tokenizer::FILE_NAME, usage::FILE_NAME, usage::GENERATION];
        let names =
            usual.into_iter().chain([usage::SPECIAL_FILE, usage::TEMPLATE_FILE, lora::BASE]);
        names.into_iter().find(|name| dir.join(name).exists())
    };
    if let Some(there) = there {
        return Err(Error::failure(format!(
            "{}: there is a {there} in this folder already; choose another --out-dir",
            dir.display()
        )));
    }
    if let Some(json) = new.tokenizer {
        files::write_atomic(&dir.join(tokenizer::FILE_NAME), json)?;
        new.usage.save(dir)?;
    }
    let (path, come) = (folder.step(0), Meta { origin: new.origin.clone(), ..Meta::untrained() });
    // Of adapters it is their base that has come from there.
    let meta = if let Some(base) = new.base {
        let header = Header { adapters: None, ..new.header };
        checkpoint::save_weights(&lora::base_in(dir), &header, &come, base)?;
        Meta::untrained()
    } else {
        come
    };
    checkpoint::save_weights(&path, &new.header, &meta, new.values)?;
    Ok(path)
}

impl<'a> NewRun<'a> {
    /// That of a whole model.
    pub(crate) fn of(
        dir: &'a Path,
        config: &ModelConfig,
        values: &'a [f32],
        tokenizer: Option<&'a [u8]>,
        usage: &'a Usage,
    ) -> Self {
        let header = Header { config: *config, adapters: None, seed: 0, updates: 0 };
        Self { dir, header, values, base: None, tokenizer, usage, origin: None }
    }

    /// As it is, of the model that lies at `from`.
    pub(crate) fn come_from(self, from: &Path) -> Self {
        Self { origin: origin_of(from), ..self }
    }
}

/// What others call the model at a path: its name on the Hub if it lies in the cache of that
/// (`models--OWNER--NAME/snapshots/...`), else the whole path, as PEFT has it too.
pub(crate) fn origin_of(from: &Path) -> Option<String> {
    let whole = from.canonicalize().unwrap_or_else(|_| from.to_path_buf());
    let mut parts = whole.iter().filter_map(|part| part.to_str());
    let cached = parts.find_map(|part| part.strip_prefix("models--"));
    match cached {
        Some(name) => Some(name.replace("--", "/")),
        None => whole.to_str().map(str::to_owned),
    }
}

/// The config of a model as programs have it that multiply no embeddings: tables of embeddings are multiplied already,
/// so that the output projection, which is not, is a matrix of its own.
pub(crate) fn config_elsewhere(config: &ModelConfig) -> ModelConfig {
    let tied = config.tied && config.arch.embedding_scale == 1.0;
    ModelConfig { tied, arch: Architecture { embedding_scale: 1.0, ..config.arch }, ..*config }
}

/// The weights of a model as those of [`config_elsewhere`].
///
/// # Errors
/// The checkpoint cannot be read.
pub(crate) fn parameters(trained: &Trained) -> Result<Vec<f32>> {
    let scale = trained.config().arch.embedding_scale;
    let mut arena = trained.parameters()?;
    if scale != 1.0 {
        let config = config_elsewhere(trained.config());
        let table = ParamTable::new(&config).map_err(model::config_error)?;
        let tables = [Param::TokenTable, Param::PositionTable];
        if let (true, Some(tokens), Some(head)) =
            (trained.config().tied, table.spec(Param::TokenTable), table.spec(Param::Head))
        {
            // Behind all others, which lie where they did.
            arena.resize(head.offset, 0.0);
            arena.extend_from_within(tokens.range());
            arena.resize(table.arena_len(), 0.0);
        }
        for spec in tables.into_iter().filter_map(|param| table.spec(param)) {
            arena[spec.range()].iter_mut().for_each(|value| *value *= scale);
        }
    }
    Ok(arena)
}

/// A tensor and its values, if the model has it.
pub(crate) type WithValues<'a> = (ParamSpec, Option<&'a [f32]>);

/// The tensors that files of a family have of a model, with their values in `arena`. GPT-2 has no other
/// kind elsewhere than with biases: where the model has none they come without values, and are zeros.
///
/// # Errors
/// Those of [`ParamTable::new`].
pub(crate) fn with_values<'a>(
    family: Family,
    config: &ModelConfig,
    arena: &'a [f32],
) -> core::result::Result<Vec<WithValues<'a>>, ConfigError> {
    let own = ParamTable::new(config)?;
    let bias = config.bias || family == Family::Gpt2;
    let all = ParamTable::new(&ModelConfig { bias, ..*config })?;
    let values = |spec: &ParamSpec| own.spec(spec.param).map(|own| &arena[own.range()]);
    Ok(all.iter().map(|spec| (spec.clone(), values(&spec))).collect())
}

/// Names the first of some values that is not finite, for a message.
pub(crate) fn check_finite(values: &[f32], name: &str) -> core::result::Result<(), String> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(format!("value {at} of {name} is {}: the weights are damaged", values[at])),
    }
}

/// Names a tensor that has values which are none of the type.
pub(crate) fn check_held(values: &[f32], element: Element, name: &str) -> Result<()> {
    check_finite(values, name).map_err(Error::failure)?;
    match values.iter().find(|value| !element.holds(**value)) {
        None => Ok(()),
        Some(value) => Err(Error::failure(format!(
            "{name} has the value {value}, which is too large for the type: take --weights bf16 or f32"
        ))),
    }
}

/// A row of a tensor as others have it, `transposed` for matrices of linear layers, which have a row for
/// each output there; zeros if the model has no such tensor.
pub(crate) fn row_by_output(
    spec: &ParamSpec,
    values: Option<&[f32]>,
    transposed: bool,
    row: usize,
    to: &mut [f32],
) {
    let Some(values) = values else { return to.fill(0.0) };
    if transposed {
        for (i, to) in to.iter_mut().enumerate() {
            *to = values[i * spec.cols + row];
        }
    } else {
        to.copy_from_slice(&values[row * spec.cols..][..to.len()]);
    }
}
