//! llama.cpp's files: models in ([`import`]) and out ([`export`]).
//!
//! ```text
//! "GGUF", version 3, how many tensors, how many keys
//! keys     name, kind, value                              (value)
//! tensors  name, dimensions, type of elements, offset     (read, write)
//! data     aligned, in the order of the offsets           (blocks)
//! ```
//!
//! Everything is little-endian; a dimension's first number is that of adjacent elements. The files have a
//! row for each output of a matrix, which the core has for each input: matrices are transposed on the
//! way (`names`), but for the tables. Format: `docs/gguf.md` of ggml.
//!
//! Readers that exist in Rust believe the counts and types of a file, which may be anybody's; here
//! nothing is allocated or read before it is known to be there.

mod blocks;
mod export;
mod import;
mod names;
mod read;
mod tokens;
mod value;
mod write;

pub use blocks::Kind;
pub use export::{ExportSettings, export};
pub use import::import;

/// First bytes of a file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is read and written.
const VERSION: u32 = 3;
/// Bytes that tensors start at multiples of, unless a file says otherwise.
const ALIGNMENT: usize = 32;
/// The key that says otherwise.
const ALIGNMENT_KEY: &str = "general.alignment";
