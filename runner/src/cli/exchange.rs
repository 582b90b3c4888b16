//! `cllm import` and `cllm export`: which format it is, and what is said of it.

use super::args::{ExportArgs, ExportFormat, ImportArgs, WeightType};
use super::output;
use crate::error::{Error, Result};
use crate::exchange::{Element, ExportSettings, Imported};
#[cfg(feature = "gguf")]
use crate::gguf;
#[cfg(feature = "hf")]
use crate::hf;
use crate::llmc;
use std::path::Path;

pub(super) fn import(args: ImportArgs) -> Result<()> {
    let ImportArgs { from, out_dir } = args;
    let Imported { config, parameters, checkpoint, has_tokenizer } =
        if from.is_dir() { import_folder(&from, &out_dir) } else { import_file(&from, &out_dir) }?;
    let mut text = format!(
        "{}: {parameters} parameters in {} layers of width {}, {} ids, sequences of up to {}\n",
        checkpoint.display(),
        config.n_layer,
        config.d_model,
        config.vocab_size,
        config.block_size,
    );
    if !has_tokenizer {
        text.push_str(&format!(
            "no tokenizer of a known kind in {}: put its tokenizer.json into {} to generate and to \
             evaluate text\n",
            from.display(),
            out_dir.display()
        ));
    }
    output::print(&text)
}

#[cfg(feature = "hf")]
fn import_folder(from: &Path, out_dir: &Path) -> Result<Imported> {
    hf::import(from, out_dir)
}

#[cfg(not(feature = "hf"))]
fn import_folder(_: &Path, _: &Path) -> Result<Imported> {
    Err(lacks("hf"))
}

#[cfg(feature = "gguf")]
fn import_file(from: &Path, out_dir: &Path) -> Result<Imported> {
    gguf::import(from, out_dir)
}

#[cfg(not(feature = "gguf"))]
fn import_file(_: &Path, _: &Path) -> Result<Imported> {
    Err(lacks("gguf"))
}

#[cfg(not(all(feature = "hf", feature = "gguf")))]
fn lacks(feature: &str) -> Error {
    Error::failure(format!("this program was built without its feature {feature}"))
}

pub(super) fn export(args: ExportArgs) -> Result<()> {
    let path = args.out.display().to_string();
    let what = match args.format {
        ExportFormat::Safetensors => {
            export_folder(args).map(|()| "a model for transformers".to_owned())
        }
        ExportFormat::Llmc => {
            llmc::export(&plain(args, "llmc")?).map(|()| "a model for llm.c".to_owned())
        }
        ExportFormat::Gguf => export_file(args).map(|others| match others.len() {
            0 => "a model for llama.cpp".to_owned(),
            n => format!(
                "a model for llama.cpp; {n} matrices are f16, for their rows are not a multiple of 32"
            ),
        }),
    };
    output::print(&format!("{path}: {}\n", what?))
}

/// The settings of a format that has plain elements alone.
fn plain(args: ExportArgs, format: &str) -> Result<ExportSettings> {
    let ExportArgs { checkpoint, out, weights, .. } = args;
    let element = match weights {
        WeightType::F32 => Element::F32,
        WeightType::F16 => Element::F16,
        WeightType::Bf16 => Element::Bf16,
        WeightType::Q8_0 => {
            let words = format!("--weights q8_0: only --format gguf has it, not {format}");
            return Err(Error::usage(words));
        }
    };
    Ok(ExportSettings { checkpoint, out, element })
}

#[cfg(feature = "hf")]
fn export_folder(args: ExportArgs) -> Result<()> {
    hf::export(&plain(args, "safetensors")?)
}

#[cfg(not(feature = "hf"))]
fn export_folder(_: ExportArgs) -> Result<()> {
    Err(lacks("hf"))
}

#[cfg(feature = "gguf")]
fn export_file(args: ExportArgs) -> Result<Vec<String>> {
    let ExportArgs { checkpoint, out, weights, .. } = args;
    let kind = match weights {
        WeightType::F32 => gguf::Kind::F32,
        WeightType::F16 => gguf::Kind::F16,
        WeightType::Bf16 => gguf::Kind::Bf16,
        WeightType::Q8_0 => gguf::Kind::Q8_0,
    };
    gguf::export(&gguf::ExportSettings { checkpoint, out, kind })
}

#[cfg(not(feature = "gguf"))]
fn export_file(_: ExportArgs) -> Result<Vec<String>> {
    Err(lacks("gguf"))
}
