//! What a run folder holds, read for the page.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::Serialize;
use serde_json::{Map, Value};

use super::events::{Events, Gathered};
use crate::error::{Error, Result};
use crate::train::folder::RunFolder;

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
    let folder = RunFolder::existing(dir);
    let path = folder.metrics();
    let settings = settings(&folder.settings_file())?;
    let mut events = Events::default();
    let modified = match File::open(&path) {
        Ok(file) => {
            let modified = file.metadata().and_then(|about| about.modified()).ok();
            read(&file, &path, &mut events)?;
            modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs())
        }
        // It has begun, and reported nothing yet.
        Err(e) if e.kind() == ErrorKind::NotFound && settings.is_some() => None,
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
        modified,
        settings,
        events: events.gathered(),
    })
}

/// Reads several runs and tells them apart: those whose folders have one name are called by their paths.
///
/// # Errors
/// As [`load`].
pub fn load_all(dirs: &[PathBuf]) -> Result<Vec<RunData>> {
    let mut runs = dirs.iter().map(|dir| load(dir)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    let mut taken: Vec<String> = Vec::new();
    for run in &mut runs {
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
    Ok(runs)
}

/// The runs as the page reads them, embedded or from `api/runs.json`.
#[must_use]
pub fn to_json(runs: &[RunData]) -> String {
    let all = All { version: 1, cllm: env!("CARGO_PKG_VERSION"), runs };
    // Nothing here has keys that are no texts, which is all that could fail.
    serde_json::to_string(&all).unwrap_or_default()
}

fn settings(path: &Path) -> Result<Option<Value>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| Error::failure(format!("{}: {e}", path.display()))),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io("read", path, &e)),
    }
}

fn read(file: &File, path: &Path, events: &mut Events) -> Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(|e| Error::io("read", path, &e))?;
        // The end, or a line that is being written.
        if line.last() != Some(&b'\n') {
            break;
        }
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let wrong = |why: &str| Error::failure(format!("{}, line {number}: {why}", path.display()));
        let event: Map<String, Value> = serde_json::from_slice(text)
            .map_err(|e| wrong(&e.to_string().replace("at line 1 column", "at column")))?;
        let name = event.get("event").and_then(Value::as_str).map(str::to_owned);
        let name = name.ok_or_else(|| wrong("no event of a run: it has no text \"event\""))?;
        events.add(&name, event);
    }
    Ok(())
}
