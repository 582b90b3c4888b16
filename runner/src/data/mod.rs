//! From text to batches: sources, token shards, the shuffled order, the loader.
//!
//! The path of a token: [`source`] finds documents, [`pieces`] reads them, [`vocabulary`] trains a
//! tokenizer on them, [`prepare`] encodes them (on all CPUs) into [`shard`] files, [`stream`]
//! joins shards into one sequence, [`sampler`] says which window of it comes
//! when, [`loader`] copies windows into a batch, [`prefetch`] does so ahead of need.
//! Of instructions it is another one: [`instructions`] encodes lines into [`examples`], and [`packing`]
//! puts those into the rows of batches. [`embedded`] is the text that
//! the program carries, [`mod@reference`] the data set that speed is measured on.

use core::fmt::Write;

use sha2::{Digest, Sha256};

pub(crate) mod dice;
pub mod embedded;
mod encode;
pub mod examples;
mod grammar;
pub mod instructions;
mod lexicon;
pub mod loader;
pub mod packing;
pub mod pieces;
pub mod prefetch;
pub mod prepare;
pub mod reference;
pub mod sampler;
mod shapes;
pub mod shard;
pub mod source;
pub mod stream;
mod sums;
pub mod vocabulary;

/// SHA-256 of `bytes` in hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
