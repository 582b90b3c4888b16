//! A file of llama.cpp becomes a run folder: a checkpoint and its tokenizer.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cllm_core::{Param, ParamSpec, ParamTable};

use super::names::{self, Layout};
use super::read::{File, Tensor};
use super::tokens;
use crate::error::{Error, Result};
use crate::exchange::{Imported, check_finite, checked_tokenizer, create_run};
use crate::files;
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
    let config = names::config(&file, &bytes).map_err(bad)?;
    let table = ParamTable::new(&config).map_err(|e| bad(e.to_string()))?;
    let tensors = matched(&table, &file).map_err(bad)?;
    let json = tokens::json(&file.keys).map_err(bad)?.map(|json| {
        let end = tokens::end_of_text(&file.keys);
        checked_tokenizer(json.into_bytes(), end.as_ref(), config.vocab_size)
    });
    let json = json.transpose().map_err(bad)?;

    let mut arena = trained::arena(&table, from)?;
    for (spec, layout, tensor) in &tensors {
        let to = &mut arena[spec.range()];
        read(spec, layout, tensor, &bytes, to);
        check_finite(to, &layout.name).map_err(bad)?;
    }
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
    // That of a model whose two tables are one.
    if table.spec(Param::Head).is_none() {
        left.retain(|name, _| *name != names::HEAD);
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
