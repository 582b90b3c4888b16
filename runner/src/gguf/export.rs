//! A checkpoint becomes a file that llama.cpp runs.
//!
//! Matrices are of the type that was asked for, tables of positions, norms and biases `f32`, as
//! llama.cpp has them. A GPT-2 without biases gets biases of zeros: it has no other kind. Models of the
//! Llama family become `llama`, `qwen2` or `qwen3`, with the biases that they have.

use std::io::Write as _;
use std::path::PathBuf;

use cllm_core::ParamSpec;

use super::blocks::Kind;
use super::names::{self, Layout};
use super::value::Value;
use super::write::{self, Planned};
use super::{keys, rope, tokens};
use crate::error::{Error, Result};
use crate::exchange::{self, row_by_output, with_values};
use crate::files::{self, AtomicFile};
use crate::model;
use crate::tokenizer::usage::Usage;
use crate::trained::Trained;

/// What `cllm export --format gguf` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSettings {
    /// Run folder or checkpoint file.
    pub checkpoint: PathBuf,
    /// File to make.
    pub out: PathBuf,
    /// What the matrices are stored as.
    pub kind: Kind,
}

/// Exports a model. Gives the names of matrices that are f16 instead, for their rows are not of whole
/// blocks of the type.
///
/// # Errors
/// A missing or damaged checkpoint or tokenizer, a model or a tokenizer that llama.cpp cannot have, or
/// weights that the type cannot hold; a file that is there already or cannot be written.
pub fn export(settings: &ExportSettings) -> Result<Vec<String>> {
    let trained = Trained::open(&settings.checkpoint)?;
    let (config, out) = (&exchange::config_elsewhere(trained.config()), &settings.out);
    files::refuse_to_replace(out)?;
    let family = keys::family(config)
        .map_err(|e| Error::failure(format!("{}: {e}", trained.path().display())))?;
    let architecture = keys::architecture(family);
    let mut keys = vec![
        (keys::ARCHITECTURE.to_owned(), Value::Text(architecture.to_owned())),
        ("general.file_type".to_owned(), Value::U32(settings.kind.file_type())),
    ];
    keys.extend(keys::keys(family, config));
    if trained.has_tokenizer() {
        let tokenizer = trained.tokenizer(None)?;
        let usage = Usage::of_folder(&trained.dir())?;
        let own = tokens::keys(&tokenizer, &usage, config.vocab_size);
        keys.extend(own.map_err(|e| Error::failure(format!("{}: {e}", trained.dir().display())))?);
    } else {
        say!(
            "cllm: {}: no tokenizer beside the model: llama.cpp will take and give ids alone, not texts",
            trained.dir().display()
        );
        keys.push(("tokenizer.ggml.model".to_owned(), Value::Text("none".to_owned())));
        keys.push((format!("{architecture}.vocab_size"), Value::U32(config.vocab_size as u32)));
    }
    // Before the weights are read: whether it can be written.
    let io = |e| Error::io("write", out, &e);
    let mut file = AtomicFile::create(out)?;
    let arena = exchange::parameters(&trained)?;
    let tensors = with_values(family, config, &arena).map_err(model::config_error)?;
    let tensors: Vec<_> = tensors
        .iter()
        .flat_map(|(spec, values)| {
            let layouts = names::layouts(family, config, spec).into_iter();
            layouts.map(move |layout| {
                let planned = plan(&layout, settings.kind);
                (spec, layout, planned, *values)
            })
        })
        .collect();
    let factors =
        config.arch.rotary().and_then(|rotary| rope::factors(&rotary, config.head_size()));
    let factors = factors.map(|values| {
        let (name, dims) = (rope::FACTORS.to_owned(), vec![values.len()]);
        (Planned { name, dims, kind: Kind::F32 }, values)
    });
    let planned = tensors.iter().map(|(_, _, planned, _)| planned);
    let planned: Vec<_> =
        planned.chain(factors.iter().map(|(planned, _)| planned)).cloned().collect();
    file.write_all(&write::header(&keys, &planned)).map_err(io)?;
    for (spec, layout, planned, values) in &tensors {
        let row = |n: usize, to: &mut [f32]| row(spec, *values, layout, n, to);
        if let Some(value) = write::data(&mut file, planned, row).map_err(io)? {
            let (name, kind) = (&planned.name, planned.kind.name());
            return Err(Error::failure(format!(
                "{name} has the value {value}, which {kind} cannot hold: if the weights are not \
                 damaged, take --weights f32"
            )));
        }
    }
    if let Some((planned, factors)) = factors {
        write::data(&mut file, &planned, |_, to| to.copy_from_slice(&factors)).map_err(io)?;
    }
    file.commit()?;
    let other = |(_, layout, planned, _): &&(_, Layout, Planned, _)| {
        layout.small_type && planned.kind != settings.kind
    };
    Ok(tensors.iter().filter(other).map(|(_, _, planned, _)| planned.name.clone()).collect())
}

/// The tensor as it will be written.
fn plan(layout: &Layout, kind: Kind) -> Planned {
    let dims = layout.dims.clone();
    let kind = match kind {
        _ if !layout.small_type => Kind::F32,
        // Rows that are not of whole blocks.
        kind if kind.row_bytes(dims[0]).is_none() => Kind::F16,
        kind => kind,
    };
    Planned { name: layout.name.clone(), dims, kind }
}

/// A row of a file's tensor; of a vector there is one.
fn row(spec: &ParamSpec, values: Option<&[f32]>, layout: &Layout, row: usize, to: &mut [f32]) {
    let column = |n: usize| layout.columns.start + layout.place(n);
    match values {
        Some(values) if spec.is_vector() => {
            for (n, to) in to.iter_mut().enumerate() {
                *to = values[column(n)];
            }
        }
        _ if layout.transposed => row_by_output(spec, values, true, column(row), to),
        _ => row_by_output(spec, values, false, row, to),
    }
}
