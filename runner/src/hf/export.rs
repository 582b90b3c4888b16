//! A checkpoint becomes a folder that `transformers` loads.
//!
//! A model that is not GPT-2's is written as a Llama, a Qwen2 (biases of queries, keys and values alone), a
//! Qwen3 (norms of heads) or a Mistral. A GPT-2 without biases gets biases of zeros, for GPT-2 has no other
//! kind: it computes the same.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use cllm_core::{ModelConfig, ParamSpec};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Value, json};

use super::names::{self, Named, Place};
use super::weights::dtype;
use super::{CONFIG, INDEX, WEIGHTS, config};
use crate::error::{Error, Result};
use crate::exchange::{
    self, Element, ExportSettings, Family, check_held, row_by_output, with_values,
};
use crate::files::{self, AtomicFile};
use crate::model;
use crate::tokenizer::{
    self, Tokenizer,
    usage::{self, GENERATION, Usage},
};
use crate::trained::Trained;

/// Exports a model.
///
/// # Errors
/// A missing or damaged checkpoint or tokenizer; a model that `transformers` does not have; weights that
/// are not numbers of the wanted type; a folder that has such files or cannot be written.
pub fn export(settings: &ExportSettings) -> Result<()> {
    let trained = Trained::open(&settings.checkpoint)?;
    let config = &exchange::config_elsewhere(trained.config());
    let tokenizer = if trained.has_tokenizer() { Some(trained.tokenizer(None)?) } else { None };
    let bad = |e: String| Error::failure(format!("{}: {e}", settings.checkpoint.display()));
    let family = Family::of(config).map_err(bad)?;
    let usage = Usage::of_folder(&trained.dir())?;
    let end = tokenizer.as_ref().map(Tokenizer::end_of_text);
    let named = |name: Option<&str>| {
        name.zip(tokenizer.as_ref()).and_then(|(name, tokenizer)| tokenizer.id_of(name))
    };
    // A model that was trained here begins a text with the end of the one before.
    let begin = named(usage.bos_token.as_deref()).or(end);
    let around = config::Around {
        begin,
        ends: tokenizer.as_ref().map(ends).unwrap_or_default(),
        pad: named(usage.pad_token.as_deref()),
    };
    let text = config::text(config, family, &around, torch_name(settings.element));
    let text = text.map_err(bad)?;
    let out = &settings.out;
    // The index too, which would be read before the weights.
    for name in [CONFIG, GENERATION, WEIGHTS, INDEX, tokenizer::FILE_NAME, usage::FILE_NAME] {
        files::refuse_to_replace(&out.join(name))?;
    }
    let mut texts = Vec::new();
    if let Some(tokenizer) = &tokenizer {
        texts.push((tokenizer::FILE_NAME, tokenizer.to_transformers()?));
        texts.push((usage::FILE_NAME, tokenizer_config(tokenizer, &usage, config)?));
        texts.extend(generation_config(tokenizer, &usage, begin).map(|text| (GENERATION, text)));
    }
    // Last: a folder with it is whole.
    texts.push((CONFIG, text));
    let parameters = exchange::parameters(&trained)?;
    let tensors = tensors(config, family, &parameters)?;
    let is_new = !out.exists();
    files::create_dir(out)?;
    let weights = out.join(WEIGHTS);
    let texts: Vec<(&str, &[u8])> =
        texts.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    let written = write(&weights, &tensors, settings.element).and_then(|()| {
        // What is left would be in the way of another try.
        files::write_all(out, &texts).inspect_err(|_| drop(fs::remove_file(&weights)))
    });
    if written.is_err() && is_new {
        let _ = fs::remove_dir(out);
    }
    written
}

/// `transformers`' name of a type of elements.
fn torch_name(element: Element) -> &'static str {
    match element {
        Element::F32 => "float32",
        Element::F16 => "float16",
        Element::Bf16 => "bfloat16",
    }
}

/// A tensor of the file, and the one here that has its values.
struct Planned<'a> {
    named: Named,
    spec: ParamSpec,
    /// None where the model lacks it, and zeros are written.
    values: Option<&'a [f32]>,
}

/// All that are written, in their order.
fn tensors<'a>(config: &ModelConfig, family: Family, arena: &'a [f32]) -> Result<Vec<Planned<'a>>> {
    let tensors = with_values(family, config, arena).map_err(model::config_error)?;
    let prefix = names::prefix(family);
    let planned = tensors.into_iter().flat_map(|(spec, values)| {
        let named = names::of(family, config, &spec, prefix).into_iter();
        named.map(move |named| Planned { named, spec: spec.clone(), values })
    });
    Ok(planned.collect())
}

/// Elements that are brought into bytes at a time, of what lies here as in the file.
const PART: usize = 1 << 14;

impl Planned<'_> {
    /// Gives its values in the order of the file, some at a time.
    fn each(&self, mut give: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        match &self.named.place {
            Place::Values(range) => {
                let zeros = [0.0; PART];
                for start in range.clone().step_by(PART) {
                    let end = range.end.min(start + PART);
                    give(self.values.map_or(&zeros[..end - start], |all| &all[start..end]))?;
                }
            }
            Place::Columns(columns) => {
                let mut row = vec![0.0; self.spec.rows];
                for column in columns.clone() {
                    row_by_output(&self.spec, self.values, true, column, &mut row);
                    give(&row)?;
                }
            }
        }
        Ok(())
    }
}

/// Writes the file of weights: the old one or the new one, never a part.
fn write(path: &Path, tensors: &[Planned<'_>], element: Element) -> Result<()> {
    let io = |e| Error::io("write", path, &e);
    let mut file = AtomicFile::create(path)?;
    let header = header(tensors, element)
        .map_err(|e| Error::failure(format!("cannot write {}: {e}", path.display())))?;
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(&header).map_err(io)?;
    let mut bytes = Vec::new();
    for tensor in tensors {
        tensor.each(|values| {
            check_held(values, element, &tensor.named.name)?;
            bytes.clear();
            element.write(values, &mut bytes);
            file.write_all(&bytes).map_err(io)
        })?;
    }
    file.commit()
}

/// The header of the format, a whole number of eight bytes.
fn header(tensors: &[Planned<'_>], element: Element) -> core::result::Result<Vec<u8>, String> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for Planned { named, .. } in tensors {
        let (start, dtype, shape) = (end, dtype(element), named.shape.clone());
        end += shape.iter().product::<usize>() * element.bytes();
        infos.push((named.name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) }));
    }
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(about), infos).map_err(|e| e.to_string())?;
    let mut header = serde_json::to_vec(&header).map_err(|e| e.to_string())?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// `generation_config.json`: what an imported model's said, and what ends a text; `None` if that is the end
/// of text alone, which the model's config says.
fn generation_config(tokenizer: &Tokenizer, usage: &Usage, begin: Option<u32>) -> Option<String> {
    let mut json = usage.generation.clone();
    let others = tokenizer.other_ends();
    if json.is_empty() && others.is_empty() {
        return None;
    }
    json.entry("bos_token_id").or_insert_with(|| begin.into());
    json.entry("eos_token_id").or_insert_with(|| config::ids(&ends(tokenizer)));
    Some(format!("{:#}\n", Value::Object(json)))
}

/// All tokens that end a text.
fn ends(tokenizer: &Tokenizer) -> Vec<u32> {
    [&[tokenizer.end_of_text()], tokenizer.other_ends()].concat()
}

/// `tokenizer_config.json`: what `AutoTokenizer` wants to know.
fn tokenizer_config(tokenizer: &Tokenizer, usage: &Usage, config: &ModelConfig) -> Result<String> {
    let end = tokenizer.end_of_text_name();
    let mut json = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.block_size,
        "bos_token": end,
        "eos_token": end,
        "clean_up_tokenization_spaces": false,
    });
    if !tokenizer.begin_of_text().is_empty() {
        json["add_bos_token"] = true.into();
    }
    // What an imported model said of itself, but for its end of text, which the tokenizer has.
    for (key, value) in usage.keys().into_iter().filter(|(key, _)| key != "eos_token") {
        json[key] = value;
    }
    let text = serde_json::to_string_pretty(&json);
    Ok(text.map_err(|e| Error::failure(format!("cannot describe the tokenizer: {e}")))? + "\n")
}
