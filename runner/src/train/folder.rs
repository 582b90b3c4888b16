//! The run folder: what lies where, who may write, and which checkpoint is newest.
//!
//! ```text
//! settings.json     what the run was told
//! tokenizer.json    how its text becomes tokens
//! data/             its text as token shards
//! metrics.jsonl     the reported events
//! step-<n>.cllm     checkpoints after step n, the newest few
//! best.cllm         the checkpoint with the lowest validation loss
//! ```

use core::cmp::Reverse;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use cllm_core::checkpoint::{Checkpoint, CheckpointError};
use serde::Deserialize;

use crate::checkpoint::CheckpointFile;
use crate::error::{Error, Result};
use crate::files;
use crate::lock::Lock;
use crate::settings::TrainSettings;

const SETTINGS: &str = "settings.json";
/// Key of the checksum that ends them.
const SUM: &str = "crc32";
const LOCK: &str = ".lock";
/// How often the lock is taken at most: a file system may tell a file by other numbers each time.
const TRIES: usize = 16;
const EXTENSION: &str = "cllm";

/// How much of a checkpoint is verified.
type Parse =
    for<'f> fn(&'f CheckpointFile) -> core::result::Result<Checkpoint<'f>, CheckpointError>;

/// Ends a file of settings: a checksum of all that is before it. Files of older programs have none, nor have those
/// from which somebody has removed it who changed them.
#[derive(Deserialize)]
struct Sum {
    crc32: Option<String>,
}

/// What the checksum of settings should be; `None` if there is nothing before it.
fn sum(text: &[u8]) -> Option<String> {
    let key = format!("\"{SUM}\"");
    let at = text.windows(key.len()).rposition(|part| part == key.as_bytes())?;
    let fields = text[..at].trim_ascii_end().strip_suffix(b",")?;
    Some(format!("{:08x}", crc32fast::hash(fields)))
}

/// A run folder; locked for this process while it trains in it.
#[derive(Debug)]
pub struct RunFolder {
    dir: PathBuf,
    /// Released when dropped, and by the system when the process is killed.
    _lock: Option<Lock>,
    /// It was made for this process: dropped with nothing in it, it goes again.
    is_new: bool,
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let is_lock =
            |entry: std::io::Result<fs::DirEntry>| entry.is_ok_and(|e| e.file_name() == LOCK);
        if self.is_new && fs::read_dir(&self.dir).is_ok_and(|mut all| all.all(is_lock)) {
            // Whoever comes meanwhile finds it locked, or makes it anew; what fails leaves it as it is.
            let _ = fs::remove_file(self.dir.join(LOCK)).and_then(|()| fs::remove_dir(&self.dir));
        }
    }
}

/// What a search for the newest good checkpoint found.
#[derive(Debug)]
pub struct Newest {
    /// The checkpoint; `None` if there is no file of that kind.
    pub checkpoint: Option<CheckpointFile>,
    /// Files that were passed over, each with the reason.
    pub skipped: Vec<String>,
    /// Steps of the `step-<n>` files among them.
    pub bad_steps: Vec<u64>,
}

/// A checkpoint that is whole.
struct Found {
    file: CheckpointFile,
    step: u64,
    /// The step that a run which never went back would be at with the same data behind it: of a run that has,
    /// what came later is further.
    place: u64,
    /// The step that a run goes back to.
    rewind_to: Option<u64>,
}

/// A run that has not taken a step. Dropped, it was refused, and the folder's settings are again what they
/// were before it.
#[derive(Debug, Default)]
pub(super) struct Begun(Option<(PathBuf, Option<Vec<u8>>)>);

impl Begun {
    /// The run goes on, and its settings stay.
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let Some((path, before)) = self.0.take() else { return };
        let restored = match before {
            Some(bytes) => files::write_atomic(&path, &bytes),
            None => fs::remove_file(&path).map_err(|e| Error::io("remove", &path, &e)),
        };
        if let Err(error) = restored {
            say!("cllm: {error}; it has the settings of a run that was refused");
        }
    }
}

impl RunFolder {
    /// Looks at the folder without changing anything.
    #[must_use]
    pub fn existing(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), _lock: None, is_new: false }
    }

    /// Creates the folder if need be, locks it and removes what a killed run left
    /// half-written.
    ///
    /// # Errors
    /// The folder cannot be written, or another process trains in it.
    pub fn lock(dir: &Path) -> Result<Self> {
        let path = dir.join(LOCK);
        let mut tries = 1;
        let (lock, is_new) = loop {
            let is_new = !dir.exists();
            files::create_dir(dir)?;
            let file = files::open_own(&path).map_err(|e| {
                Error::failure(format!(
                    "cannot write into the run folder {}: {LOCK}: {e}",
                    dir.display()
                ))
            })?;
            let lock = Lock::take(file).map_err(|_| {
                Error::failure(format!(
                    "{}: another process is training in this folder; wait for it or choose \
                     another --out-dir",
                    dir.display()
                ))
            })?;
            // A process that has just left an empty folder may have removed it since it was opened.
            if lock.is_of(&path) || tries == TRIES {
                break (lock, is_new);
            }
            tries += 1;
        };
        let folder = Self { dir: dir.to_path_buf(), _lock: Some(lock), is_new };
        folder.remove_leftovers()?;
        Ok(folder)
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the token shards of text are kept.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The log of reported events.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.dir.join("metrics.jsonl")
    }

    /// What the run was told.
    #[must_use]
    pub fn settings_file(&self) -> PathBuf {
        self.dir.join(SETTINGS)
    }

    /// The best checkpoint.
    #[must_use]
    pub fn best(&self) -> PathBuf {
        self.dir.join("best").with_extension(EXTENSION)
    }

    /// The checkpoint after step `step`.
    #[must_use]
    pub fn step(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step}.{EXTENSION}"))
    }

    /// What the run was told.
    ///
    /// # Errors
    /// There is no such file, or it is damaged.
    pub fn settings(&self) -> Result<TrainSettings> {
        let path = self.settings_file();
        let text = files::read(&path).map_err(|e| Error::io("read", &path, &e))?;
        let fail = |e: serde_json::Error| Error::failure(format!("{}: {e}", path.display()));
        let settings = crate::json::from_slice(&text).map_err(fail)?;
        let told: Sum = serde_json::from_slice(&text).map_err(fail)?;
        if told.crc32.is_some_and(|told| Some(told) != sum(&text)) {
            return Err(Error::failure(format!(
                "{}: it is not what the run wrote: its checksum fails; put it back as it was and change settings by \
                 flags of --resume, or, if it is right as it is, remove its line {SUM}",
                path.display()
            )));
        }
        Ok(settings)
    }

    /// Whether a run has begun here.
    #[must_use]
    pub fn has_settings(&self) -> bool {
        self.settings_file().exists()
    }

    /// Whether the folder is a run's: one has begun here, or a model has been imported. No, if it cannot be listed.
    #[must_use]
    pub fn is_run(&self) -> bool {
        self.has_settings() || self.has_checkpoints().unwrap_or(false)
    }

    /// Writes down what the run was told.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_settings(&self, settings: &TrainSettings) -> Result<()> {
        let path = self.settings_file();
        let text = serde_json::to_string_pretty(settings)
            .map_err(|e| Error::failure(format!("cannot write {}: {e}", path.display())))?;
        let fields = text.strip_suffix("\n}").unwrap_or(&text);
        let sum = crc32fast::hash(fields.as_bytes());
        let text = format!("{fields},\n  \"{SUM}\": \"{sum:08x}\"\n}}\n");
        files::write_atomic(&path, text.as_bytes())
    }

    /// Writes down what a run was told that may yet be refused: early, so that it can be resumed if it
    /// is killed while it prepares.
    ///
    /// # Errors
    /// As [`RunFolder::save_settings`]; settings that are there cannot be read.
    pub(super) fn begin(&self, settings: &TrainSettings) -> Result<Begun> {
        let path = self.settings_file();
        let before = match files::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("read", &path, &error)),
        };
        self.save_settings(settings)?;
        Ok(Begun(Some((path, before))))
    }

    /// Steps of the `step-<n>` checkpoints, newest first.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let mut steps: Vec<u64> = self
            .names()?
            .iter()
            .filter_map(|name| name.strip_prefix("step-")?.strip_suffix(".cllm")?.parse().ok())
            .collect();
        steps.sort_by_key(|step| Reverse(*step));
        Ok(steps)
    }

    /// Whether there is any checkpoint, good or not.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn has_checkpoints(&self) -> Result<bool> {
        Ok(self.best().exists() || !self.steps()?.is_empty())
    }

    /// The newest checkpoint all of whose bytes are as they were written.
    ///
    /// # Errors
    /// A checkpoint is of a newer version of this program, or all are damaged.
    pub fn newest(&self) -> Result<Newest> {
        self.newest_by(CheckpointFile::parse)
    }

    fn newest_by(&self, parse: Parse) -> Result<Newest> {
        let (mut skipped, mut bad_steps) = (Vec::new(), Vec::new());
        let best = if self.best().exists() {
            self.usable(&self.best(), parse, &mut skipped)?
        } else {
            None
        };
        for step in self.steps()? {
            // Of a lower step one is newer only if the run has gone back there, or in front of it, since.
            let is_older = |best: &Found| {
                best.step > step && best.rewind_to.is_none_or(|rewind_to| rewind_to > step)
            };
            if best.as_ref().is_some_and(is_older) {
                break;
            }
            let path = self.step(step);
            match self.usable(&path, parse, &mut skipped)? {
                Some(found) if found.step == step => {
                    if best.as_ref().is_some_and(|best| best.place > found.place) {
                        break;
                    }
                    return Ok(Newest { checkpoint: Some(found.file), skipped, bad_steps });
                }
                Some(Found { step: other, .. }) => skipped
                    .push(format!("{}: the checkpoint inside is of step {other}", path.display())),
                None => {}
            }
            bad_steps.push(step);
        }
        if best.is_none() && !skipped.is_empty() {
            return Err(Error::failure(format!(
                "no checkpoint in {} is usable: {}",
                self.dir.display(),
                skipped.join("; ")
            )));
        }
        Ok(Newest { checkpoint: best.map(|found| found.file), skipped, bad_steps })
    }

    /// The checkpoint to run a finished model from: the best one, else the newest. Of the
    /// optimizer's state nothing is read.
    ///
    /// # Errors
    /// There is none, or none is usable.
    pub fn for_use(&self) -> Result<Newest> {
        let mut skipped = Vec::new();
        if self.best().exists()
            && let Some(found) =
                self.usable(&self.best(), CheckpointFile::parse_model, &mut skipped)?
        {
            return Ok(Newest { checkpoint: Some(found.file), skipped, bad_steps: Vec::new() });
        }
        self.newest_by(CheckpointFile::parse_model)
    }

    /// Removes `step-<n>` checkpoints older than `newest`, but for the last `keep - 1` and for `spared`. Those in
    /// `bad` are damaged, and take the place of none.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn prune(&self, newest: u64, keep: usize, spared: Option<u64>, bad: &[u64]) -> Result<()> {
        let mut kept = 1;
        for step in self.steps()?.into_iter().filter(|step| *step < newest) {
            if kept < keep {
                kept += usize::from(!bad.contains(&step));
            } else if spared != Some(step) {
                self.remove(step)?;
            }
        }
        Ok(())
    }

    /// Removes `step-<n>` checkpoints that are newer than `step`.
    ///
    /// # Errors
    /// One cannot be removed.
    pub(super) fn remove_behind(&self, step: u64) -> Result<()> {
        self.steps()?.into_iter().filter(|newer| *newer > step).try_for_each(|n| self.remove(n))
    }

    fn remove(&self, step: u64) -> Result<()> {
        let path = self.step(step);
        fs::remove_file(&path).map_err(|e| Error::io("remove", &path, &e))
    }

    /// The file if it is good; otherwise the reason joins `skipped`.
    fn usable(
        &self,
        path: &Path,
        parse: Parse,
        skipped: &mut Vec<String>,
    ) -> Result<Option<Found>> {
        let file = match CheckpointFile::open(path) {
            Ok(file) => file,
            Err(error) => {
                skipped.push(error.to_string());
                return Ok(None);
            }
        };
        let about = parse(&file).map(|checkpoint| {
            // What another program has made knows of no rewinds.
            let watch = file.meta(&checkpoint).map(|meta| meta.watch).unwrap_or_default();
            (checkpoint.header().updates, watch)
        });
        match about {
            Ok((step, watch)) => {
                let place = step.saturating_add(watch.data_ahead);
                Ok(Some(Found { file, step, place, rewind_to: watch.rewind_to }))
            }
            // Going on from an older one would overwrite what a newer program made.
            Err(error @ CheckpointError::Newer { .. }) => Err(file.error(error)),
            Err(error) => {
                skipped.push(file.error(error).to_string());
                Ok(None)
            }
        }
    }

    /// Temporary files of writes that a kill cut short.
    fn remove_leftovers(&self) -> Result<()> {
        for name in self.names()? {
            let ours = |stem: &str| {
                stem.ends_with(".cllm") || stem.ends_with(".json") || stem.ends_with(".jsonl")
            };
            if name.strip_suffix(".tmp").is_some_and(ours) {
                let path = self.dir.join(name);
                fs::remove_file(&path).map_err(|e| Error::io("remove", &path, &e))?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>> {
        let io = |e| Error::io("list the run folder", &self.dir, &e);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io)? {
            names.extend(entry.map_err(io)?.file_name().into_string());
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::presets::Preset;

    #[test]
    fn a_damaged_checkpoint_takes_the_place_of_no_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::existing(dir.path());
        let left = |keep, spared, bad: &[u64]| {
            for step in [20, 40, 44, 60, 80] {
                fs::write(folder.step(step), "").unwrap();
            }
            folder.prune(60, keep, spared, bad).unwrap();
            folder.steps().unwrap()
        };
        assert_eq!(left(2, None, &[]), [80, 60, 44]);
        assert_eq!(left(2, None, &[44]), [80, 60, 44, 40]);
        assert_eq!(left(1, None, &[44]), [80, 60]);
        assert_eq!(left(2, Some(20), &[44, 40]), [80, 60, 44, 40, 20]);
        assert_eq!(left(2, Some(20), &[]), [80, 60, 44, 20]);
        // All of them are.
        assert_eq!(folder.newest().unwrap_err().exit_code(), 1);
    }

    #[test]
    fn settings_whose_bits_flip_are_not_trained_by() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::existing(dir.path());
        let file = folder.settings_file();
        let stored = TrainSettings { seed: 1234, ..Preset::Tiny.settings() };
        folder.save_settings(&stored).unwrap();
        assert_eq!(folder.settings().as_ref(), Ok(&stored));
        let good = fs::read(&file).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, &bad).unwrap();
            match folder.settings() {
                // Of the checksum's own name, or of what is no more than space.
                Ok(settings) => assert_eq!(settings, stored, "bit {bit}"),
                Err(error) => assert!(error.to_string().contains("settings.json: "), "{error}"),
            }
        }
        let changed = String::from_utf8(good).unwrap().replace("1234", "1235");
        fs::write(&file, &changed).unwrap();
        let message = folder.settings().unwrap_err().to_string();
        let told = message.contains("its checksum fails") && message.contains("its line crc32");
        assert!(told, "{message}");
        // Written by a program that has another form for the same.
        let value: serde_json::Value = serde_json::from_str(&changed).unwrap();
        fs::write(&file, value.to_string()).unwrap();
        folder.settings().unwrap_err();
        // Who means it says so.
        let (fields, _) = changed.split_once(",\n  \"crc32\": ").unwrap();
        fs::write(&file, format!("{fields}\n}}\n")).unwrap();
        assert_eq!(folder.settings().unwrap().seed, 1235);
    }
}
