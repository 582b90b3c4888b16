//! The std runner of Crystalline: threads, files, tokenizers and the training loop.

pub mod bench;
#[cfg(feature = "chat")]
pub mod chat;
pub mod checkpoint;
pub mod choices;
pub mod cli;
pub mod data;
pub mod doctor;
pub mod error;
pub mod eval;
#[cfg(any(feature = "hf", feature = "gguf"))]
pub mod exchange;
pub mod files;
pub mod generate;
#[cfg(feature = "gguf")]
pub mod gguf;
#[cfg(feature = "hf")]
pub mod hf;
pub mod inspect;
mod json;
#[cfg(any(feature = "hf", feature = "gguf"))]
pub mod llmc;
pub mod lora;
pub mod memory;
pub mod model;
pub mod parts;
pub mod pool;
#[cfg(feature = "report")]
pub mod report;
#[cfg(feature = "serve")]
pub mod serve;
pub mod settings;
pub mod simulate;
mod statistics;
mod streams;
pub mod tokenizer;
pub mod trace;
pub mod train;
mod trained;
pub mod tune;
pub mod validation;

pub use error::{Error, Result};
