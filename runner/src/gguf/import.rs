//! A file of llama.cpp becomes a run folder: a checkpoint and its tokenizer.

use core::convert::Infallible;
use std::collections::BTreeMap;
use std::path::Path;

use cllm_core::{ModelConfig, Param, ParamSpec, ParamTable};

use super::names::{self, Layout};
use super::read::{File, Tensor};
use super::{keys, rope, tokens};
use crate::error::{Error, Result};
use crate::exchange::{
    Family, Imported, NewRun, check_finite, checked_tokenizer, create_run, fill_columns,
};
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
    let bytes = files::open(from).and_then(|file| files::map(&file, from)).map_err(io)?;
    let file = File::parse(&bytes).map_err(bad)?;
    let (family, config) = keys::config(&file, &bytes).map_err(bad)?;
    let table = ParamTable::new(&config).map_err(|e| bad(e.to_string()))?;
    let tensors = matched(family, &config, &table, &file).map_err(bad)?;
    let json = tokens::json(&file.keys).map_err(bad)?.map(|json| {
        checked_tokenizer(json.into_bytes(), &tokens::around(&file.keys), config.vocab_size)
    });
    let json = json.transpose().map_err(bad)?;

    let mut arena = trained::arena(&table, from)?;
    for (spec, layout, tensor) in &tensors {
        let to = &mut arena[spec.range()];
        read(spec, layout, tensor, &bytes, to);
        // Of parts that lie side by side: those before this one are good, those after it zeros.
        check_finite(to, &layout.name).map_err(bad)?;
    }
    let usage = tokens::usage(&file.keys);
    let new = NewRun::of(out_dir, &config, &arena, json.as_deref(), &usage);
    let checkpoint = create_run(&new.come_from(from))?;
    let has_tokenizer = json.is_some();
    Ok(Imported { config, parameters: table.parameters(), checkpoint, has_tokenizer })
}

type Matched<'f> = Vec<(ParamSpec, Layout, &'f Tensor)>;

/// Every tensor of a table, found in the file in one or more; nothing else is there. Biases that no
/// block of the file has are left out: they are zeros.
fn matched<'f>(
    family: Family,
    config: &ModelConfig,
    table: &ParamTable,
    file: &'f File,
) -> core::result::Result<Matched<'f>, String> {
    let mut left: BTreeMap<_, _> = file.tensors.iter().collect();
    let mut matched = Vec::new();
    for spec in table.iter() {
        for layout in names::layouts(family, config, &spec) {
            let Some(tensor) = left.remove(&layout.name) else {
                if family != Family::Gpt2 && is_bias_of_none(&layout, file) {
                    continue;
                }
                return Err(format!("no tensor {}", layout.name));
            };
            if tensor.dims != layout.dims {
                return Err(format!(
                    "{} has the dimensions {:?}, but the keys make it {:?}",
                    layout.name, tensor.dims, layout.dims
                ));
            }
            matched.push((spec.clone(), layout, tensor));
        }
    }
    // That of a model whose two tables are one.
    if table.spec(Param::Head).is_none() {
        left.retain(|name, _| *name != names::HEAD);
    }
    // The config has what they say.
    if family == Family::Llama {
        left.retain(|name, _| *name != rope::FACTORS);
    }
    match left.keys().next() {
        None => Ok(matched),
        Some(name) => Err(format!("no {} has the tensor {name}", keys::people_say(family))),
    }
}

/// Whether it is a bias that the first block has not.
fn is_bias_of_none(layout: &Layout, file: &File) -> bool {
    let first = layout.of_block().filter(|name| name.ends_with(".bias"));
    first.is_some_and(|name| !file.tensors.contains_key(&format!("blk.0.{name}")))
}

/// The values of a tensor, in the core's order.
fn read(spec: &ParamSpec, layout: &Layout, tensor: &Tensor, bytes: &[u8], to: &mut [f32]) {
    let bytes = &bytes[tensor.bytes.clone()];
    let columns = &layout.columns;
    if layout.transposed {
        // A row of the file is a column here.
        let len = bytes.len() / columns.len();
        let row = |n: usize, to: &mut [f32]| -> core::result::Result<(), Infallible> {
            tensor.kind.read(&bytes[n * len..][..len], to);
            Ok(())
        };
        let Ok(()) = fill_columns(spec, columns, to, |n| layout.place(n), row);
    } else if spec.is_vector() {
        let mut values = vec![0.0; columns.len()];
        tensor.kind.read(bytes, &mut values);
        for (n, value) in values.into_iter().enumerate() {
            to[columns.start + layout.place(n)] = value;
        }
    } else {
        tensor.kind.read(bytes, to);
    }
}
