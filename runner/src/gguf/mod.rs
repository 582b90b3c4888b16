//! llama.cpp's files: models in ([`import`]) and out ([`export`]).
//!
//! ```text
//! "GGUF", version 3, how many tensors, how many keys
//! keys     name, kind, value                              (value)
//! tensors  name, dimensions, type of elements, offset     (read, write)
//! data     aligned, in the order of the offsets           (blocks, quants)
//! ```
//!
//! Everything is little-endian; a dimension's first number is that of adjacent elements. The files have a
//! row for each output of a matrix, which the core has for each input: matrices are transposed on the
//! way (`names`), but for the tables. Format: `docs/gguf.md` of ggml.
//!
//! Models are GPT-2 (`gpt2`), Llama and what is made like it (`llama`), Qwen2 (`qwen2`) and Qwen3
//! (`qwen3`): `keys`.
//! The rotary positions of `llama`, and no other's, turn neighbouring columns of a head, for which its
//! queries and keys lie in another order (`names`).
//!
//! Readers that exist in Rust believe the counts and types of a file, which may be anybody's; here
//! nothing is allocated or read before it is known to be there.

mod blocks;
mod export;
mod import;
mod keys;
mod names;
mod quants;
mod read;
mod rope;
#[cfg(test)]
mod tests;
mod tokens;
mod value;
mod write;

pub use blocks::Kind;
pub use export::{ExportSettings, export};
pub use import::import;

use std::path::Path;

use crate::error::{Error, Result};
use crate::files;
use crate::inspect::Tensor;

/// What is in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Described {
    /// Keys and their values, long ones cut.
    pub keys: Vec<(String, String)>,
    /// Tensors by name.
    pub tensors: Vec<Tensor>,
}

/// Keys and tensors of a file.
///
/// # Errors
/// Names the file when it cannot be read or is damaged.
pub fn describe(path: &Path) -> Result<Described> {
    let io = |e| Error::io("read", path, &e);
    let bytes = files::open(path).and_then(|file| files::map(&file, path)).map_err(io)?;
    let file = read::File::parse(&bytes)
        .map_err(|e| Error::failure(format!("{}: {e}", path.display())))?;
    let keys = file.keys.iter().map(|(name, value)| (name.clone(), value.to_string())).collect();
    let tensors = file.tensors.iter().map(|(name, tensor)| Tensor {
        name: name.clone(),
        shape: tensor.dims.clone(),
        kind: tensor.kind.name().to_owned(),
        stats: None,
    });
    Ok(Described { keys, tensors: tensors.collect() })
}

/// First bytes of a file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
const VERSION: u32 = 3;
/// Those that are read: with the same layout, the second for files of big-endian machines too.
const READ_VERSIONS: [u32; 2] = [2, 3];
/// Bytes that tensors start at multiples of, unless a file says otherwise.
const ALIGNMENT: usize = 32;
/// The key that says otherwise.
const ALIGNMENT_KEY: &str = "general.alignment";
