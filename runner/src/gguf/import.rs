//! A file of llama.cpp becomes a run folder: a checkpoint and its tokenizer.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cllm_core::{ParamSpec, ParamTable};

use super::names::{self, Layout};
use super::read::{File, Tensor};
use super::tokens;
use crate::error::{Error, Result};
use crate::exchange::{Imported, create_run};
use crate::files;
use crate::model;
use crate::tokenizer::Tokenizer;
use crate::trained;

/// Imports the model in the file `from` to a new run folder. Weights of few bits become the `f32` that
/// they stand for.
///
/// # Errors
/// Names the file, and in it the key or the tensor: missing, damaged, of another shape, or of what
/// this program does not compute; a run folder that has checkpoints or cannot be written; more
/// weights than memory. Nothing is written then but what a full disk cut off.
pub fn import(from: &Path, out_dir: &Path) -> Result<Imported> {
    let io = |e| Error::io("read the model", from, &e);
    let bad = |what: String| Error::failure(format!("{}: {what}", from.display()));
    let bytes = fs::File::open(from).and_then(|file| files::map(&file)).map_err(io)?;
    let file = File::parse(&bytes).map_err(bad)?;
    let config = names::config(&file).map_err(bad)?;
    let table = ParamTable::new(&config).map_err(model::config_error)?;
    let tensors = matched(&table, &file).map_err(bad)?;
    let json = tokens::json(|key| file.keys.get(key).cloned()).map_err(bad)?;
    if let Some(json) = &json {
        let ids = Tokenizer::from_json(json.as_bytes()).map_err(bad)?.vocab_size();
        if ids > config.vocab_size {
            return Err(bad(format!(
                "a tokenizer of {ids} ids does not go with a model of {}",
                config.vocab_size
            )));
        }
    }

    let mut arena = trained::arena(&table, from)?;
    for (spec, layout, tensor) in &tensors {
        let to = &mut arena[spec.range()];
        read(spec, layout, tensor, &bytes, to);
        if let Some(at) = to.iter().position(|value| !value.is_finite()) {
            let name = &layout.name;
            return Err(bad(format!("value {at} of {name} is {}: it is damaged", to[at])));
        }
    }
    let json = json.map(String::into_bytes);
    let checkpoint = create_run(out_dir, &config, &arena, json.as_deref())?;
    let has_tokenizer = json.is_some();
    Ok(Imported { config, parameters: table.parameters(), checkpoint, has_tokenizer })
}

type Matched<'f> = Vec<(ParamSpec, Layout, &'f Tensor)>;

/// Every tensor of a table, found in the file; nothing else is there.
fn matched<'f>(table: &ParamTable, file: &'f File) -> core::result::Result<Matched<'f>, String> {
    let mut left: BTreeMap<_, _> = file.tensors.iter().collect();
    let mut matched = Vec::new();
    for spec in table.iter() {
        let layout = names::layout(&spec);
        let tensor =
            left.remove(&layout.name).ok_or_else(|| format!("no tensor {}", layout.name))?;
        if tensor.dims != layout.dims {
            return Err(format!(
                "{} has the dimensions {:?}, but the keys make it {:?}",
                layout.name, tensor.dims, layout.dims
            ));
        }
        matched.push((spec, layout, tensor));
    }
    match left.keys().next() {
        None => Ok(matched),
        Some(name) => Err(format!("no GPT-2 has the tensor {name}")),
    }
}

/// The values of a tensor, in the core's order.
fn read(spec: &ParamSpec, layout: &Layout, tensor: &Tensor, bytes: &[u8], to: &mut [f32]) {
    let bytes = &bytes[tensor.bytes.clone()];
    if !layout.transposed {
        return tensor.kind.read(bytes, to);
    }
    // A row of the file is a column here.
    let mut column = vec![0.0; spec.rows];
    for (j, row) in bytes.chunks_exact(bytes.len() / spec.cols).enumerate() {
        tensor.kind.read(row, &mut column);
        for (i, value) in column.iter().enumerate() {
            to[i * spec.cols + j] = *value;
        }
    }
}
