//! A folder of `transformers` becomes a run folder: a checkpoint and its tokenizer.
//!
//! ```text
//! config.json -> config
//! for each tensor of the parameter table: take it from the files by name, check its shape
//! what is left in the files is refused, but for masks and a second copy of a tied table
//! only then: memory, values into the arena, tokenizer.json, step-0.cllm last
//! ```

use std::path::Path;

use cllm_core::{ModelConfig, Param, ParamSpec, ParamTable};

use super::config;
use super::weights::{Mapped, Tensor, Tensors};
use crate::error::{Error, Result};
use crate::exchange::{Imported, create_run};
use crate::model;
use crate::tokenizer::{self, Tokenizer};
use crate::trained;

/// Imports the model in the folder `from` to a new run folder.
///
/// # Errors
/// Names the file, and in it the field or the tensor: missing, damaged, of another shape, or of what
/// this program does not compute; a run folder that has checkpoints or cannot be written; more
/// weights than memory. Nothing is written then but what a full disk cut off.
pub fn import(from: &Path, out_dir: &Path) -> Result<Imported> {
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

    let checkpoint = create_run(out_dir, &config, &arena, tokenizer.as_deref())?;
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
