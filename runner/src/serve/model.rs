//! The model that is served: found at a path, and found again when a training run has made a better one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::ServeSettings;
use super::texts::Texts;
use crate::error::{Error, Result};
use crate::generate;

use crate::train::folder::RunFolder;
use crate::trained::Trained;

/// Tokens that a model of a longer context sees unless it is told: their keys and values take memory.
const CONTEXT: usize = 8192;

/// What is told of the model that is served.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) texts: Arc<Texts>,
    /// Steps that it was trained for.
    pub(super) step: u64,
    /// Where its checkpoint lies.
    pub(super) path: PathBuf,
    /// When that was written, in seconds since 1970.
    pub(super) created: u64,
}

/// Which file it is, and which version of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    path: PathBuf,
    modified: Option<SystemTime>,
    bytes: u64,
}

impl Stamp {
    /// Of the file that would be read of `path`; `None` if there is none yet.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let file = if path.is_dir() {
            let folder = RunFolder::existing(path);
            match folder.best() {
                best if best.exists() => best,
                _ => folder.step(*folder.steps().ok()?.first()?),
            }
        } else {
            path.to_path_buf()
        };
        let about = fs::metadata(&file).ok()?;
        Some(Self { path: file, modified: about.modified().ok(), bytes: about.len() })
    }
}

/// A model that can be loaded.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) trained: Trained,
    pub(super) model: Model,
    pub(super) stamp: Option<Stamp>,
}

impl Found {
    /// The model at the path of `settings`; `None` if a run has begun there that has made none yet.
    /// `before` are the texts of the model that was there before.
    ///
    /// # Errors
    /// There is no such path; what is there is damaged or no run.
    pub(super) fn look(
        settings: &ServeSettings,
        before: Option<&Arc<Texts>>,
    ) -> Result<Option<Self>> {
        let path = &settings.path;
        if !path.exists() {
            return Err(Error::failure(format!("{}: no such file or folder", path.display())));
        }
        if path.is_dir() {
            let folder = RunFolder::existing(path);
            if !folder.has_checkpoints()? {
                if folder.has_settings() {
                    return Ok(None);
                }
                return Err(Error::failure(format!(
                    "{}: no checkpoint in this folder, and no run has begun in it",
                    path.display()
                )));
            }
        }
        // Before it is read: a file that is replaced meanwhile is then read again.
        let stamp = Stamp::of(path);
        let trained = Trained::open(path)?;
        let config = trained.config();
        let context = match settings.context {
            None => config.block_size.min(CONTEXT),
            Some(0) => return Err(Error::usage("--context 0: it must be at least 1")),
            Some(context) if context > config.block_size => {
                return Err(Error::usage(format!(
                    "--context {context}: the model is for texts of up to {} tokens",
                    config.block_size
                )));
            }
            Some(context) => context,
        };
        let tokenizer = trained.tokenizer(None)?;
        let texts = Arc::new(Texts::new(tokenizer, &trained.dir(), config.vocab_size, context)?);
        let texts = before.filter(|before| ***before == *texts).map_or(texts, Arc::clone);
        let modified = stamp.as_ref().and_then(|stamp| stamp.modified);
        let created = modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let model = Model {
            texts,
            step: trained.step(),
            path: trained.path().to_path_buf(),
            created: created.map_or(0, |time| time.as_secs()),
        };
        Ok(Some(Self { trained, model, stamp }))
    }

    /// The model's config for the context that is served.
    pub(super) fn config(&self) -> cllm_core::ModelConfig {
        generate::for_context(*self.trained.config(), self.model.texts.context)
    }
}

/// What the model at `path` is called if it is not told: as its run folder, a file of a run folder as
/// both.
pub(super) fn name_of(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = |path: &Path| path.file_stem().map(|name| name.to_string_lossy().into_owned());
    let whole = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    if path.is_dir() {
        return whole(&path).unwrap_or_else(|| "model".to_owned());
    }
    let file = name(&path).unwrap_or_else(|| "model".to_owned());
    match path.parent().and_then(whole) {
        Some(folder) => format!("{folder}-{file}"),
        None => file,
    }
}
