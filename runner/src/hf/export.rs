//! A checkpoint becomes a folder that `transformers` loads.
//!
//! Its tensors have the table's names behind `transformer.`, and lie there as here. A model without
//! biases gets biases of zeros, for GPT-2 has no other kind: it computes the same.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;

use cllm_core::{ModelConfig, Param};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use super::import::shape;
use super::weights::dtype;
use super::{CONFIG, INDEX, TOKENIZER_CONFIG, WEIGHTS, config};
use crate::error::{Error, Result};
use crate::exchange::{Element, ExportSettings, WithValues, check_held, with_biases};
use crate::files::{self, AtomicFile};
use crate::model;
use crate::tokenizer::{self, Tokenizer};
use crate::trained::Trained;

/// Exports a model.
///
/// # Errors
/// A missing or damaged checkpoint or tokenizer; weights that are not numbers of the wanted type; a
/// folder that has such files or cannot be written.
pub fn export(settings: &ExportSettings) -> Result<()> {
    let trained = Trained::open(&settings.checkpoint)?;
    let config = trained.config();
    let tokenizer = if trained.has_tokenizer() { Some(trained.tokenizer(None)?) } else { None };
    let out = &settings.out;
    // The index too, which would be read before the weights.
    for name in [CONFIG, WEIGHTS, INDEX, tokenizer::FILE_NAME, TOKENIZER_CONFIG] {
        files::refuse_to_replace(&out.join(name))?;
    }
    let parameters = trained.parameters()?;
    files::create_dir(out)?;
    if let Some(tokenizer) = &tokenizer {
        let json = tokenizer.to_transformers()?;
        files::write_atomic(&out.join(tokenizer::FILE_NAME), json.as_bytes())?;
        let json = tokenizer_config(tokenizer, config)?;
        files::write_atomic(&out.join(TOKENIZER_CONFIG), json.as_bytes())?;
    }
    let tensors = with_biases(config, &parameters).map_err(model::config_error)?;
    write(&out.join(WEIGHTS), &tensors, settings.element)?;
    // Last: a folder with it is whole.
    let end_of_text = tokenizer.as_ref().map(Tokenizer::end_of_text);
    let text = config::text(config, end_of_text, torch_name(settings.element))?;
    files::write_atomic(&out.join(CONFIG), text.as_bytes())
}

/// `transformers`' name of a type of elements.
fn torch_name(element: Element) -> &'static str {
    match element {
        Element::F32 => "float32",
        Element::F16 => "float16",
        Element::Bf16 => "bfloat16",
    }
}

/// Elements that are brought into bytes at a time.
const PART: usize = 1 << 14;

/// Writes the file of weights: the old one or the new one, never a part.
fn write(path: &Path, tensors: &[WithValues<'_>], element: Element) -> Result<()> {
    let io = |e| Error::io("write", path, &e);
    let mut file = AtomicFile::create(path)?;
    let header = header(tensors, element)
        .map_err(|e| Error::failure(format!("cannot write {}: {e}", path.display())))?;
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(&header).map_err(io)?;
    let (zeros, mut bytes) = ([0.0; PART], Vec::new());
    for (spec, values) in tensors {
        let mut at = 0;
        while at < spec.len() {
            let part = PART.min(spec.len() - at);
            let part = values.map_or(&zeros[..part], |values| &values[at..at + part]);
            check_held(part, element, &spec.name())?;
            bytes.clear();
            element.write(part, &mut bytes);
            file.write_all(&bytes).map_err(io)?;
            at += part.len();
        }
    }
    file.commit()
}

/// The header of the format, a whole number of eight bytes.
fn header(tensors: &[WithValues<'_>], element: Element) -> core::result::Result<Vec<u8>, String> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for (spec, _) in tensors {
        let prefix = if spec.param == Param::Head { "" } else { "transformer." };
        let start = end;
        end += spec.len() * element.bytes();
        let (dtype, shape) = (dtype(element), shape(spec));
        let info = TensorInfo { dtype, shape, data_offsets: (start, end) };
        infos.push((format!("{prefix}{}", spec.name()), info));
    }
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(about), infos).map_err(|e| e.to_string())?;
    let mut header = serde_json::to_vec(&header).map_err(|e| e.to_string())?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// `tokenizer_config.json`: what `AutoTokenizer` wants to know.
fn tokenizer_config(tokenizer: &Tokenizer, config: &ModelConfig) -> Result<String> {
    let end = tokenizer.end_of_text_name();
    let json = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.block_size,
        "bos_token": end,
        "eos_token": end,
        "clean_up_tokenization_spaces": false,
    });
    let text = serde_json::to_string_pretty(&json);
    Ok(text.map_err(|e| Error::failure(format!("cannot describe the tokenizer: {e}")))? + "\n")
}
