//! A folder of `transformers` becomes a run folder: a checkpoint and its tokenizer.
//!
//! ```text
//! config.json -> config
//! for each tensor of the parameter table: take it from the files by name, check its shape
//! what is left in the files is refused, but for masks, angles and a second copy of a tied table
//! only then: memory, values into the arena, tokenizer.json, step-0.cllm last
//! ```

use std::io::ErrorKind;
use std::path::Path;

use cllm_core::{ModelConfig, Param, ParamSpec, ParamTable};
use serde_json::Value;

use super::names::{self, HEAD, Named, Place};
use super::weights::{Mapped, Tensor, Tensors};
use super::{CONFIG, config, merges, nanochat};
use crate::error::{Error, Result};
use crate::exchange::{
    Around, End, Family, Imported, NewRun, checked_tokenizer, create_run, fill_columns,
};
use crate::files;
use crate::json;
use crate::tokenizer;
use crate::tokenizer::usage::{self, Usage};
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
            "{}: not a folder; give the folder of a model with its {CONFIG} in it",
            from.display()
        )));
    }
    let config = config::read(from)?;
    let table = ParamTable::new(&config)
        .map_err(|e| Error::failure(format!("{}: {e}", from.join(CONFIG).display())))?;
    let mapped = Mapped::open(from)?;
    let tensors = Matched::new(&config, &table, mapped.tensors()?)?;
    let tokenizer = read_tokenizer(from, &config)?;

    let mut arena = trained::arena(&table, from)?;
    for (spec, named, tensor) in &tensors.matched {
        let to = &mut arena[spec.range()];
        match &named.place {
            Place::Values(range) => tensor.read(&mut to[range.clone()])?,
            Place::Columns(columns) => {
                fill_columns(spec, columns, to, |row| row, |row, to| tensor.read_row(row, to))?;
            }
        }
    }

    if nanochat::is(&config) {
        nanochat::settle(&config, &table, &mut arena);
    }

    let usage = Usage::of_folder(from)?;
    let new = NewRun::of(out_dir, &config, &arena, tokenizer.as_deref(), &usage);
    let checkpoint = create_run(&new.come_from(from))?;
    let has_tokenizer = tokenizer.is_some();
    Ok(Imported { config, parameters: table.parameters(), checkpoint, has_tokenizer })
}

/// A file of the folder; `None` if it is not there.
pub(super) fn file_of(path: &Path) -> Result<Option<Vec<u8>>> {
    match files::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("read", path, &cause)),
    }
}

/// The text of the folder's tokenizer, if there is one, with the end of text that the model has.
fn read_tokenizer(from: &Path, config: &ModelConfig) -> Result<Option<Vec<u8>>> {
    let path = from.join(tokenizer::FILE_NAME);
    let (path, text) = match file_of(&path)? {
        None => (from.join(merges::VOCAB), merges::read(from)?),
        text => (path, text),
    };
    let Some(text) = text else { return Ok(None) };
    let text = checked_tokenizer(text, &around(from)?, config.vocab_size);
    text.map(Some).map_err(|e| Error::failure(format!("{}: {e}", path.display())))
}

/// What the folder says of the tokens around texts: the tokenizer's config, that of generation, or the
/// model's.
fn around(from: &Path) -> Result<Around> {
    let parsed = |name: &str| json::of_file(&from.join(name));
    let usage = Usage::of_folder(from)?;
    let ids = |name: &str| -> Result<Vec<u64>> {
        Ok(match &parsed(name)?["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
            id => id.as_u64().into_iter().collect(),
        })
    };
    let (of_model, mut ends) = (ids(CONFIG)?, ids(usage::GENERATION)?);
    if ends.is_empty() {
        ends.clone_from(&of_model);
    }
    // Of several the first.
    let id = of_model.first().or(ends.first()).copied().map(End::Id);
    let is_begun = parsed(usage::FILE_NAME)?["add_bos_token"].as_bool();
    // The older files' class has one unless another is named.
    let older = || (!from.join(tokenizer::FILE_NAME).exists()).then(|| merges::END.to_owned());
    Ok(Around {
        end: usage.eos_token.map(End::Name).or(id),
        ends,
        begin: usage.bos_token.or_else(older).map(End::Name).zip(is_begun),
    })
}

/// Every tensor of a table, found in the files; nothing else is in these.
struct Matched<'a> {
    matched: Vec<(ParamSpec, Named, Tensor<'a>)>,
}

impl<'a> Matched<'a> {
    fn new(config: &ModelConfig, table: &ParamTable, mut tensors: Tensors<'a>) -> Result<Self> {
        let nanochat = nanochat::is(config);
        // Its tensors are called as Llama's.
        let family = if nanochat { Ok(Family::Llama) } else { Family::of(config) };
        let family = family.map_err(Error::failure)?;
        let prefix = names::prefix(family);
        let prefix = if tensors.has_prefix(prefix) { prefix } else { "" };
        let mut matched = Vec::new();
        for spec in table.iter().filter(|spec| !nanochat || nanochat::has(spec)) {
            for mut named in names::of(family, config, &spec, prefix) {
                // Of two names of one tensor files may keep either.
                if config.tied && spec.param == Param::TokenTable && !tensors.has(&named.name) {
                    HEAD.clone_into(&mut named.name);
                }
                let tensor = tensors.take(&named.name, &named.shape)?;
                matched.push((spec.clone(), named, tensor));
            }
        }
        if config.tied && tensors.has(HEAD) {
            let head = tensors.take(HEAD, &[config.vocab_size, config.d_model])?;
            let table = matched.iter().find(|(spec, ..)| spec.param == Param::TokenTable);
            if !table.is_some_and(|(.., table)| table.equals(&head)) {
                return Err(Error::failure(format!(
                    "{}: {HEAD} is not the token table to the byte, but {CONFIG} has \
                     tie_word_embeddings: set it to false there to import both",
                    tensors.place().display()
                )));
            }
        }
        tensors.forget(|name| names::is_constant(family, name));
        let Some((name, path)) = tensors.left() else { return Ok(Self { matched }) };
        let model = match family {
            Family::Gpt2 => "GPT-2",
            _ if nanochat => "nanochat of this config.json",
            Family::Llama => "Llama of this config.json",
            Family::Qwen2 => "Qwen2 of this config.json",
            Family::Qwen3 => "Qwen3 of this config.json",
        };
        Err(Error::failure(format!("{}: no {model} has the tensor {name}", path.display())))
    }
}
