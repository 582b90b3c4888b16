//! The std runner of Crystalline: threads, files, tokenizers and the training loop.

pub mod data;
pub mod error;
pub mod files;
pub mod settings;
pub mod tokenizer;

pub use error::{Error, Result};
