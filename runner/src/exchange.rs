//! What importing from other programs has in common, whatever the format.

use std::path::{Path, PathBuf};

use cllm_core::ModelConfig;
use cllm_core::checkpoint::Header;

use crate::checkpoint::{self, Meta};
use crate::error::{Error, Result};
use crate::files;
use crate::tokenizer;
use crate::train::folder::RunFolder;

/// What became of a model of other programs.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The model.
    pub config: ModelConfig,
    /// Its parameters.
    pub parameters: usize,
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// There was a tokenizer.
    pub has_tokenizer: bool,
}

/// Makes a run folder of a model that no run has trained: its tokenizer's JSON, if there is one, then
/// its checkpoint, the path of which is the result.
///
/// # Errors
/// There is a run in the folder, or it cannot be written.
pub(crate) fn create_run(
    dir: &Path,
    config: &ModelConfig,
    parameters: &[f32],
    tokenizer: Option<&[u8]>,
) -> Result<PathBuf> {
    let folder = RunFolder::lock(dir)?;
    if folder.has_checkpoints()? || folder.has_settings() {
        return Err(Error::failure(format!(
            "{}: there is a run in this folder already; choose another --out-dir",
            dir.display()
        )));
    }
    if let Some(json) = tokenizer {
        files::write_atomic(&dir.join(tokenizer::FILE_NAME), json)?;
    }
    let path = folder.step(0);
    let header = Header { config: *config, seed: 0, updates: 0 };
    checkpoint::save_weights(&path, &header, &Meta::untrained(), parameters)?;
    Ok(path)
}
