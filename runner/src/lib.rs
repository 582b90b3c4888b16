//! The std runner of Crystalline: threads, files, tokenizers and the training loop.
//!
//! What the program `cllm` does, others can ask for too. A run that is stopped by whoever started it,
//! and goes on later:
//!
//! ```
//! use cllm::checkpoint::CheckpointFile;
//! use cllm::cli::presets::Preset;
//! use cllm::settings::{LogFormat, Threads, TrainSettings, TuningChoice};
//! use cllm::train::{Outcome, folder::RunFolder, stop::Stop, train_until};
//!
//! let dir = tempfile::tempdir()?;
//! let text = dir.path().join("text.txt");
//! std::fs::write(&text, "the sea and the land were made in a day.\n".repeat(200))?;
//! let settings = TrainSettings {
//!     data: vec![text.display().to_string()],
//!     out_dir: dir.path().join("run"),
//!     n_layer: 1,
//!     n_head: 2,
//!     n_embd: 16,
//!     block_size: 16,
//!     max_steps: 20,
//!     warmup_steps: 2,
//!     sample_tokens: 0,
//!     log_format: LogFormat::Json,
//!     threads: Threads::Count(2),
//!     // What `cllm tune` has stored for this user does not matter here.
//!     tuning: TuningChoice::Off,
//!     ..Preset::Tiny.settings()
//! };
//! // Reports of steps go to any writer, one JSON object a line.
//! let mut reports = Vec::new();
//! let stop = Stop::new();
//! // From another thread, at any time: the step under way is finished, and everything saved.
//! stop.request();
//! assert_eq!(train_until(&settings, &stop, &mut reports)?, Outcome::Interrupted);
//!
//! let settings = TrainSettings { resume: true, ..settings };
//! assert_eq!(train_until(&settings, &Stop::new(), &mut reports)?, Outcome::Finished);
//! let newest = RunFolder::existing(&settings.out_dir).newest()?.checkpoint;
//! let newest: CheckpointFile = newest.expect("the run has saved one");
//! assert_eq!(newest.parse()?.header().updates, 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(clippy::print_stderr)]

#[macro_use]
mod say;

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
#[doc(hidden)]
pub mod hostile;
pub mod inspect;
mod json;
mod last_words;
#[cfg(any(feature = "hf", feature = "gguf"))]
pub mod llmc;
mod lock;
pub mod lora;
pub mod memory;
pub mod model;
pub mod parts;
pub mod pool;
pub mod ranks;
#[cfg(feature = "report")]
pub mod report;
#[cfg(feature = "serve")]
pub mod serve;
pub mod settings;
pub mod simulate;
mod statistics;
mod stops;
mod streams;
pub mod tokenizer;
pub mod trace;
pub mod train;
mod trained;
pub mod tune;
pub mod validation;

pub use error::{Error, Result};
