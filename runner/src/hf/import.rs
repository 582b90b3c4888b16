//! A folder of `transformers` becomes a run folder: a checkpoint and its tokenizer.
//!
//! ```text
//! config.json -> config
//! for each tensor of the parameter table: take it from the files by name, check its shape
//! what is left in the files is refused, but for masks and a second copy of a tied table
//! only then: memory, values into the arena, tokenizer.json, step-0.cllm last
//! ```

use std::path::{Path, PathBuf};

use cllm_core::checkpoint::Header;
use cllm_core::{ModelConfig, Param, ParamSpec, ParamTable};

use super::config;
use super::weights::{Mapped, Tensor, Tensors};
use crate::checkpoint::{self, Meta};
use crate::error::{Error, Result};
use crate::files;
use crate::model;
use crate::tokenizer::{self, Tokenizer};
use crate::train::folder::RunFolder;
use crate::trained;

/// What `cllm import` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportSettings {
    /// Folder of `transformers`.
    pub from: PathBuf,
    /// Run folder to make.
    pub out_dir: PathBuf,
}

/// What became of a folder.
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

/// Imports a model.
///
/// # Errors
/// Names the file, and in it the field or the tensor: missing, damaged, of another shape, or of what
/// this program does not compute; a run folder that has checkpoints or cannot be written; more
/// weights than memory. Nothing is written then but what a full disk cut off.
pub fn import(settings: &ImportSettings) -> Result<Imported> {
    let from = &settings.from;
    if !from.is_dir() {
        return Err(Error::failure(format!(
            "{}: not a folder; give the folder of a model with its {} in it",
            from.display(),
            super::CONFIG
        )));
    }
    let config = config::read(from)?;
    let table = ParamTable::new(&config).map_err(model::config_error)?;
    let mapped = Mapped::open(from)?;
    let tensors = Matched::new(&config, &table, mapped.tensors()?)?;
    let tokenizer = read_tokenizer(from, &config)?;

    let mut arena = trained::arena(&table, from)?;
    for (spec, tensor) in &tensors.matched {
        tensor.read(&mut arena[spec.range()])?;
    }

    let folder = RunFolder::lock(&settings.out_dir)?;
    if folder.has_checkpoints()? || folder.has_settings() {
        return Err(Error::failure(format!(
            "{}: there is a run in this folder already; choose another --out-dir",
            settings.out_dir.display()
        )));
    }
    if let Some(json) = &tokenizer {
        files::write_atomic(&settings.out_dir.join(tokenizer::FILE_NAME), json)?;
    }
    let checkpoint = folder.step(0);
    let header = Header { config, seed: 0, updates: 0 };
    checkpoint::save_weights(&checkpoint, &header, &Meta::untrained(), &arena)?;
    let has_tokenizer = tokenizer.is_some();
    Ok(Imported { config, parameters: table.parameters(), checkpoint, has_tokenizer })
}

/// The text of the folder's tokenizer, if there is one, which has no more ids than the model.
fn read_tokenizer(from: &Path, config: &ModelConfig) -> Result<Option<Vec<u8>>> {
    let path = from.join(tokenizer::FILE_NAME);
    if !path.exists() {
        return Ok(None);
    }
    let ids = Tokenizer::load(&path)?.vocab_size();
    if ids > config.vocab_size {
        return Err(Error::failure(format!(
            "{}: a tokenizer of {ids} ids does not go with a model of {}",
            path.display(),
            config.vocab_size
        )));
    }
    let json = std::fs::read(&path).map_err(|e| Error::io("read the tokenizer", &path, &e))?;
    Ok(Some(json))
}

/// Every tensor of a table, found in the files; nothing else is in these.
struct Matched<'a> {
    matched: Vec<(ParamSpec, Tensor<'a>)>,
}

impl<'a> Matched<'a> {
    fn new(config: &ModelConfig, table: &ParamTable, mut tensors: Tensors<'a>) -> Result<Self> {
        // `GPT2LMHeadModel` puts this before all names but that of its head, `GPT2Model` does not.
        let prefix = if tensors.has("transformer.wte.weight") { "transformer." } else { "" };
        let mut matched = Vec::new();
        for spec in table.iter() {
            let prefix = if spec.param == Param::Head { "" } else { prefix };
            let tensor = tensors.take(&format!("{prefix}{}", spec.name()), &shape(&spec))?;
            matched.push((spec, tensor));
        }
        const HEAD: &str = "lm_head.weight";
        if config.tied && tensors.has(HEAD) {
            let head = tensors.take(HEAD, &[config.vocab_size, config.d_model])?;
            let table = matched.iter().find(|(spec, _)| spec.param == Param::TokenTable);
            if !table.is_some_and(|(_, table)| table.equals(&head)) {
                return Err(Error::failure(format!(
                    "{HEAD} is not the token table, but {} has tie_word_embeddings: set it to \
                     false there to import both",
                    super::CONFIG
                )));
            }
        }
        // Causal masks, which old versions of `transformers` saved with the weights.
        tensors.forget(|name| name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"));
        match tensors.left() {
            None => Ok(Self { matched }),
            Some((name, path)) => {
                Err(Error::failure(format!("{}: no GPT-2 has the tensor {name}", path.display())))
            }
        }
    }
}

/// The shape of a tensor in files.
pub(super) fn shape(spec: &ParamSpec) -> Vec<usize> {
    if spec.is_vector() { vec![spec.cols] } else { vec![spec.rows, spec.cols] }
}
