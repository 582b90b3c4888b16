//! What a run folder holds, read for the page.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::Serialize;
use serde_json::{Map, Value};

use super::events::{Events, Gathered};
use crate::error::{Error, Result};
use crate::files;
use crate::train::folder::RunFolder;
use crate::train::metrics::LONGEST_LINE;

/// One run, with curves of as many points as can be drawn.
#[derive(Clone, Debug, Serialize)]
pub struct RunData {
    /// What the run is called on the page.
    pub name: String,
    /// The folder as it was given.
    pub folder: String,
    /// When its last event was written, in seconds since 1970.
    modified: Option<u64>,
    /// `settings.json`, which has what the run was told last.
    settings: Option<Value>,
    #[serde(flatten)]
    events: Gathered,
}

/// All that the page shows.
#[derive(Serialize)]
struct All<'r> {
    /// Of this form.
    version: u32,
    /// Of this program.
    cllm: &'static str,
    runs: &'r [RunData],
}

/// Reads the run in the folder `dir`, which may be under way: a line that is not whole yet is left out.
///
/// # Errors
/// There is no run, or a file cannot be read; of a line that is no event its number is told.
pub fn load(dir: &Path) -> Result<RunData> {
    Follower::new(dir).load()
}

/// A run that is looked at again and again: what has been read is not read again.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    read: Read,
}

/// What has been read of `metrics.jsonl`.
#[derive(Debug, Default)]
struct Read {
    events: Events,
    lines: u64,
    bytes: u64,
    /// The last line, by which it is known whether the file has only grown: resuming cuts it.
    last: Vec<u8>,
}

impl Follower {
    /// Of the run in the folder `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), read: Read::default() }
    }

    /// The run as it is now: see [`load`].
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(&mut self) -> Result<RunData> {
        let dir = &self.dir;
        let folder = RunFolder::existing(dir);
        let path = folder.metrics();
        let settings = settings(&folder.settings_file())?;
        let modified = match files::open(&path) {
            Ok(mut file) => {
                let modified = file.metadata().and_then(|about| about.modified()).ok();
                if let Err(error) = self.read.on(&mut file, &path) {
                    self.read = Read::default();
                    return Err(error);
                }
                modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok())
            }
            // It has begun, and reported nothing yet.
            Err(e) if e.kind() == ErrorKind::NotFound && settings.is_some() => {
                self.read = Read::default();
                None
            }
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(Error::failure(format!(
                    "{}: no run folder of `cllm train`: there is no {}",
                    dir.display(),
                    path.display()
                )));
            }
            Err(e) => return Err(Error::io("read", &path, &e)),
        };
        let name = dir.canonicalize().ok();
        let name = name.as_deref().unwrap_or(dir).file_name().map(|name| name.to_string_lossy());
        let folder = dir.display().to_string();
        Ok(RunData {
            name: name.map_or_else(|| folder.clone(), Into::into),
            folder,
            modified: modified.map(|since| since.as_secs()),
            settings,
            events: self.read.events.gathered(),
        })
    }
}

impl Read {
    /// Reads on, or all of a file that has not only grown.
    fn on(&mut self, file: &mut File, path: &Path) -> Result<()> {
        let io = |e| Error::io("read", path, &e);
        if !self.is_before(file).map_err(io)? {
            *self = Self::default();
        }
        file.seek(SeekFrom::Start(self.bytes)).map_err(io)?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut line = Vec::new();
        loop {
            line.clear();
            reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(io)?;
            if line.len() as u64 == LONGEST_LINE {
                return Err(Error::failure(format!(
                    "{}, line {}: it has {LONGEST_LINE} bytes or more, as no event of a run",
                    path.display(),
                    self.lines + 1
                )));
            }
            // The end, or a line that is being written.
            if line.last() != Some(&b'\n') {
                return Ok(());
            }
            self.lines += 1;
            self.bytes += line.len() as u64;
            self.line(&line).map_err(|why| {
                Error::failure(format!(
                    "{}, line {}: {why}; remove the line to have the others",
                    path.display(),
                    self.lines
                ))
            })?;
            core::mem::swap(&mut self.last, &mut line);
        }
    }

    /// Whether what has been read is still there.
    fn is_before(&self, file: &mut File) -> std::io::Result<bool> {
        if file.metadata()?.len() < self.bytes {
            return Ok(false);
        }
        file.seek(SeekFrom::Start(self.bytes - self.last.len() as u64))?;
        let mut last = vec![0; self.last.len()];
        // It may be cut at this very moment.
        Ok(file.read_exact(&mut last).is_ok() && last == self.last)
    }

    fn line(&mut self, line: &[u8]) -> core::result::Result<(), String> {
        let text = line.trim_ascii();
        if text.is_empty() {
            return Ok(());
        }
        let event: Map<String, Value> = crate::json::from_slice(text)
            .map_err(|e| e.to_string().replace("at line 1 column", "at column"))?;
        let name = event.get("event").and_then(Value::as_str).map(str::to_owned);
        let name = name.ok_or("no event of a run: it has no text \"event\"")?;
        self.events.add(&name, event);
        Ok(())
    }
}

/// Reads several runs and tells them apart: those whose folders have one name are called by their paths.
///
/// # Errors
/// As [`load`].
pub fn load_all(dirs: &[PathBuf]) -> Result<Vec<RunData>> {
    let mut runs = dirs.iter().map(|dir| load(dir)).collect::<Result<Vec<_>>>()?;
    name_apart(&mut runs);
    Ok(runs)
}

/// Gives runs whose folders have one name the folders' paths as names, and numbers those that are the same.
pub fn name_apart(runs: &mut [RunData]) {
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    let mut taken: Vec<String> = Vec::new();
    for run in runs {
        if names.iter().filter(|name| **name == run.name).count() > 1 {
            run.name.clone_from(&run.folder);
        }
        // Somebody may give a folder twice.
        let name = run.name.clone();
        for number in 2.. {
            if !taken.contains(&run.name) {
                break;
            }
            run.name = format!("{name} ({number})");
        }
        taken.push(run.name.clone());
    }
}

/// The runs as the page reads them, embedded or from `api/runs.json`.
#[must_use]
pub fn to_json(runs: &[RunData]) -> String {
    let all = All { version: 1, cllm: env!("CARGO_PKG_VERSION"), runs };
    // Nothing here has keys that are no texts, which is all that could fail.
    serde_json::to_string(&all).unwrap_or_default()
}

fn settings(path: &Path) -> Result<Option<Value>> {
    match files::read(path) {
        Ok(text) => crate::json::from_slice(&text)
            .map(Some)
            .map_err(|e| Error::failure(format!("{}: {e}", path.display()))),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io("read", path, &e)),
    }
}
