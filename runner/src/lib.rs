//! The std runner of Crystalline: threads, files, tokenizers and the training loop.

pub mod bench;
pub mod cli;
pub mod data;
pub mod error;
pub mod files;
pub mod memory;
pub mod settings;
pub mod tokenizer;

pub use error::{Error, Result};
