//! `cllm import` and `cllm export`: their flags, which format it is, and what is said of it.

use super::output;
use super::value::{Setting, parse};
#[cfg(feature = "chat")]
use crate::chat::Template;
use crate::error::{Error, Result};
use crate::exchange::{Element, ExportSettings, Imported};
#[cfg(feature = "gguf")]
use crate::gguf;
#[cfg(feature = "hf")]
use crate::hf;
use crate::llmc;
#[cfg(feature = "lora")]
use crate::lora::peft;
use crate::train::folder::RunFolder;
use clap::Args;
use std::path::{Path, PathBuf};

/// Flags of `cllm import`.
#[derive(Args, Debug, Clone)]
pub struct ImportArgs {
    /// Folder or file of the model.
    #[arg(value_name = "PATH", value_parser = parse::<PathBuf>)]
    pub from: PathBuf,
    /// Run folder to make.
    #[arg(long, value_name = "DIR", value_parser = parse::<PathBuf>)]
    pub out_dir: PathBuf,
    /// Of an adapter of PEFT: run folder or checkpoint of the model that it stands beside.
    #[cfg(feature = "lora")]
    #[arg(long, value_name = "PATH", value_parser = parse::<PathBuf>)]
    pub base: Option<PathBuf>,
}

/// Flags of `cllm export`.
#[derive(Args, Debug, Clone)]
pub struct ExportArgs {
    /// A run folder (its best checkpoint counts) or a checkpoint file.
    #[arg(long, value_name = "PATH", value_parser = parse::<PathBuf>)]
    pub checkpoint: PathBuf,
    /// Folder or file to make.
    #[arg(long, value_name = "PATH", value_parser = parse::<PathBuf>)]
    pub out: PathBuf,
    /// safetensors, gguf, llmc, or peft for adapters alone.
    #[arg(long, value_name = "FORMAT", default_value = "safetensors", value_parser = parse::<ExportFormat>)]
    pub format: ExportFormat,
    /// What the weights are stored as: f32, f16 or bf16, in gguf also q8_0, in llmc f32 or bf16.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = parse::<WeightType>)]
    pub weights: WeightType,
}

/// Other programs' formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// A folder of transformers.
    Safetensors,
    /// A file of llama.cpp.
    Gguf,
    /// A folder of llm.c.
    Llmc,
    /// A folder of PEFT: adapters without their model.
    Peft,
}

impl Setting for ExportFormat {
    const ACCEPTS: &'static str = "safetensors, gguf, llmc or peft";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "safetensors" => Some(Self::Safetensors),
            "gguf" => Some(Self::Gguf),
            "llmc" => Some(Self::Llmc),
            "peft" => Some(Self::Peft),
            _ => None,
        }
    }
}

/// What exported weights are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// As they are.
    F32,
    /// Rounded to half of the bits.
    F16,
    /// The same, with fewer digits and the range of `f32`.
    Bf16,
    /// Eight bits each, and a scale for 32.
    Q8_0,
}

impl Setting for WeightType {
    const ACCEPTS: &'static str =
        "f32, f16, bf16 or q8_0 (llama.cpp's llama-quantize makes less of an exported .gguf)";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "f32" => Some(Self::F32),
            "f16" => Some(Self::F16),
            "bf16" => Some(Self::Bf16),
            "q8_0" => Some(Self::Q8_0),
            _ => None,
        }
    }
}

pub(super) fn import(args: ImportArgs) -> Result<()> {
    let imported = import_any(&args)?;
    let ImportArgs { from, out_dir, .. } = args;
    let Imported { config, parameters, checkpoint, has_tokenizer } = imported;
    let mut text = format!(
        "{}: {parameters} parameters in {} layers of width {}, {} ids, sequences of up to {}; all \
         weights as f32\n",
        checkpoint.display(),
        config.n_layer,
        config.d_model,
        config.vocab_size,
        config.block_size,
    );
    if has_tokenizer {
        text.push_str(&next_step(&out_dir)?);
    } else {
        text.push_str(&format!(
            "no tokenizer of a known kind in {}: put its tokenizer.json into {} to generate and to \
             evaluate text\n",
            from.display(),
            out_dir.display()
        ));
    }
    output::print(&text)
}

/// What can be done with a model that has come in with its tokenizer.
fn next_step(dir: &Path) -> Result<String> {
    let path = dir.display();
    #[cfg(feature = "chat")]
    if Template::of_folder(dir)?.is_some() {
        return Ok(format!(
            "a chat template came along: `cllm generate --checkpoint {path} --interactive` talks\n"
        ));
    }
    Ok(format!("`cllm generate --checkpoint {path} --prompt TEXT` goes on with a text\n"))
}

/// Imports what lies at the path, whatever it is.
fn import_any(args: &ImportArgs) -> Result<Imported> {
    let (from, out_dir) = (&args.from, &args.out_dir);
    #[cfg(feature = "lora")]
    match (&args.base, from.join(peft::CONFIG).exists()) {
        (Some(base), true) => return peft::import(from, base, out_dir),
        (None, true) => {
            return Err(Error::usage(format!(
                "{}: an adapter of PEFT; give the model that it stands beside with --base, imported \
                 before if it is one of transformers",
                from.display()
            )));
        }
        (Some(_), false) => {
            return Err(Error::usage(format!(
                "--base: {} is no adapter of PEFT: it has no {}",
                from.display(),
                peft::CONFIG
            )));
        }
        (None, false) => {}
    }
    if !from.exists() {
        return Err(Error::failure(absent(from)));
    }
    if RunFolder::existing(from).is_run() {
        return Err(Error::usage(format!(
            "{}: a run folder already; there is nothing to import",
            from.display()
        )));
    }
    if from.join("snapshots").is_dir() && !from.join("config.json").exists() {
        return Err(Error::usage(format!(
            "{}: the cache of a model of the Hub; give one of the folders in its snapshots",
            from.display()
        )));
    }
    if from.extension().is_some_and(|extension| extension == "safetensors") {
        return Err(Error::usage(format!(
            "{}: weights alone; give the folder that has them together with their config.json",
            from.display()
        )));
    }
    if from.is_dir() { import_folder(from, out_dir) } else { import_file(from, out_dir) }
}

/// What is wrong with a path that is not there.
fn absent(from: &Path) -> String {
    let path = from.display();
    let parts: Vec<_> = from.iter().collect();
    // OWNER/NAME, as models of the Hub are called.
    if from.is_relative() && parts.len() == 2 && !from.starts_with(".") && !from.starts_with("..") {
        return format!(
            "{path}: there is no such file or folder; if that is a model of the Hub: `hf download {path} \
             --local-dir DIR` fetches it, and DIR can be imported"
        );
    }
    format!("{path}: there is no such file or folder")
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

#[cfg(not(all(feature = "hf", feature = "gguf", feature = "lora")))]
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
        ExportFormat::Peft => export_adapters(args).map(|base| {
            format!(
                "adapters for PEFT, to the model that `cllm export --checkpoint {} --out DIR` writes",
                base.display()
            )
        }),
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

#[cfg(feature = "lora")]
fn export_adapters(args: ExportArgs) -> Result<PathBuf> {
    peft::export(&plain(args, "peft")?)
}

#[cfg(not(feature = "lora"))]
fn export_adapters(_: ExportArgs) -> Result<PathBuf> {
    Err(lacks("lora"))
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
