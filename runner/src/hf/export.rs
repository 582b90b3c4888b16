//! A checkpoint becomes a folder that `transformers` loads.
//!
//! Its tensors have the table's names behind `transformer.`, and lie there as here. A model without
//! biases gets biases of zeros, for GPT-2 has no other kind: it computes the same.

use std::collections::HashMap;
use std::path::PathBuf;

use cllm_core::{ModelConfig, Param, ParamTable};
use safetensors::tensor::serialize_to_file;
use serde_json::json;

use super::import::shape;
use super::weights::{Element, Outgoing};
use super::{CONFIG, WEIGHTS, config};
use crate::error::{Error, Result};
use crate::files;
use crate::model;
use crate::tokenizer::{self, Tokenizer};
use crate::trained::Trained;

/// What `cllm export` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSettings {
    /// Run folder or checkpoint file.
    pub checkpoint: PathBuf,
    /// Folder to make.
    pub out: PathBuf,
    /// What the weights are stored as.
    pub element: Element,
}

/// Exports a model.
///
/// # Errors
/// A missing or damaged checkpoint or tokenizer; a folder that has a model or cannot be written.
pub fn export(settings: &ExportSettings) -> Result<()> {
    let trained = Trained::open(&settings.checkpoint)?;
    let config = trained.config();
    let tokenizer = if trained.has_tokenizer() { Some(trained.tokenizer(None)?) } else { None };
    let out = &settings.out;
    if out.join(CONFIG).exists() {
        return Err(Error::failure(format!(
            "{}: there is a model in this folder already; choose another --out",
            out.display()
        )));
    }
    let parameters = trained.parameters()?;
    files::create_dir(out)?;
    if let Some(tokenizer) = &tokenizer {
        let json = tokenizer.to_transformers()?;
        files::write_atomic(&out.join(tokenizer::FILE_NAME), json.as_bytes())?;
        let json = tokenizer_config(tokenizer, config)?;
        files::write_atomic(&out.join("tokenizer_config.json"), json.as_bytes())?;
    }
    let weights = out.join(WEIGHTS);
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    serialize_to_file(tensors(config, &parameters, settings.element)?, Some(about), &weights)
        .map_err(|e| Error::failure(format!("cannot write {}: {e}", weights.display())))?;
    // Last: a folder with it is whole.
    let end_of_text = tokenizer.as_ref().map(Tokenizer::end_of_text);
    let text = config::text(config, end_of_text, settings.element.torch_name())?;
    files::write_atomic(&out.join(CONFIG), text.as_bytes())
}

/// The tensors of a model with biases, by name.
fn tensors<'a>(
    config: &ModelConfig,
    arena: &'a [f32],
    element: Element,
) -> Result<Vec<(String, Outgoing<'a>)>> {
    let table = ParamTable::new(config).map_err(model::config_error)?;
    let with_biases = ModelConfig { bias: true, ..*config };
    let with_biases = ParamTable::new(&with_biases).map_err(model::config_error)?;
    let tensor = |spec: cllm_core::ParamSpec| {
        let prefix = if spec.param == Param::Head { "" } else { "transformer." };
        let values = table.spec(spec.param).map_or(&[][..], |own| &arena[own.range()]);
        let outgoing = Outgoing { shape: shape(&spec), values, element };
        (format!("{prefix}{}", spec.name()), outgoing)
    };
    Ok(with_biases.iter().map(tensor).collect())
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
