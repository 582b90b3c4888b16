//! A checkpoint becomes a file that llama.cpp runs.
//!
//! Matrices are of the type that was asked for, tables of positions, norms and biases `f32`, as
//! llama.cpp has them. A model without biases gets biases of zeros: GPT-2 has no other kind.

use std::io::Write as _;
use std::path::PathBuf;

use super::blocks::Kind;
use super::names::{self, ARCHITECTURE, Layout};
use super::tokens;
use super::value::Value;
use super::write::{self, Planned};
use crate::error::{Error, Result};
use crate::exchange::{row_by_output, with_biases};
use crate::files::{self, AtomicFile};
use crate::model;
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
/// A missing or damaged checkpoint or tokenizer, weights that the type cannot hold, or a tokenizer that
/// llama.cpp cannot have; a file that
/// is there already or cannot be written.
pub fn export(settings: &ExportSettings) -> Result<Vec<String>> {
    let trained = Trained::open(&settings.checkpoint)?;
    let (config, out) = (trained.config(), &settings.out);
    files::refuse_to_replace(out)?;
    let mut keys = vec![
        ("general.architecture".to_owned(), Value::Text(ARCHITECTURE.to_owned())),
        ("general.file_type".to_owned(), Value::U32(settings.kind.file_type())),
    ];
    keys.extend(names::keys(config));
    if trained.has_tokenizer() {
        let tokenizer = trained.tokenizer(None)?;
        let own = tokens::keys(&tokenizer, config.vocab_size);
        keys.extend(own.map_err(|e| Error::failure(format!("{}: {e}", trained.dir().display())))?);
    } else {
        // llama.cpp then takes and gives ids.
        keys.push(("tokenizer.ggml.model".to_owned(), Value::Text("none".to_owned())));
        keys.push((format!("{ARCHITECTURE}.vocab_size"), Value::U32(config.vocab_size as u32)));
    }
    // Before the weights are read: whether it can be written.
    let io = |e| Error::io("write", out, &e);
    let mut file = AtomicFile::create(out)?;
    let arena = trained.parameters()?;
    let tensors = with_biases(config, &arena).map_err(model::config_error)?;
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(spec, values)| {
            let layout = names::layout(&spec);
            let planned = plan(&layout, settings.kind);
            (spec, layout, planned, values)
        })
        .collect();
    let planned: Vec<_> = tensors.iter().map(|(_, _, planned, _)| planned.clone()).collect();
    file.write_all(&write::header(&keys, &planned)).map_err(io)?;
    for (spec, layout, planned, values) in &tensors {
        let row = |row: usize, to: &mut [f32]| {
            row_by_output(spec, *values, layout.transposed, row, to);
        };
        if let Some(value) = write::data(&mut file, planned, row).map_err(io)? {
            let (name, kind) = (&planned.name, planned.kind.name());
            return Err(Error::failure(format!(
                "{name} has the value {value}, which {kind} cannot hold: if the weights are not \
                 damaged, take --weights f32"
            )));
        }
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
