//! Where text comes from: files, folders, standard input, JSON lines.
//!
//! Text is read a piece at a time, so the size of a file does not matter.

use core::fmt;
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::prepare::Meta;
use super::shard::is_shard;
use super::stream::{all_shards, is_of_split};
use crate::error::{Error, Result};
use crate::train::folder::RunFolder;

/// The field of a JSON line that holds its text, unless told otherwise.
pub const TEXT_FIELD: &str = "text";

/// One thing to read text from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    name: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file that is one document.
    Text,
    /// A file with a document in a JSON object on each line.
    JsonLines,
    /// One document from standard input.
    Stdin,
    /// One document in memory.
    Memory(Arc<[u8]>),
}

/// What the paths given turned out to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Token shards, for training and (where their names say so) validation.
    Shards {
        /// Shards whose names do not say `val`.
        train: Vec<PathBuf>,
        /// Shards whose names say `val`.
        val: Vec<PathBuf>,
    },
    /// Text that wants a tokenizer.
    Text(Vec<Source>),
}

/// Whether data of this name are not there; standard input (`-`) is.
pub(crate) fn is_gone(name: &str) -> bool {
    name != "-" && !Path::new(name).exists()
}

/// Whether a file has a JSON object on each line, by its name.
pub(crate) fn is_lines(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("ndjson"))
}

impl Source {
    /// A text in memory; `name` stands for the file in messages.
    #[must_use]
    pub fn from_memory(name: &str, text: impl Into<Arc<[u8]>>) -> Self {
        Self { name: PathBuf::from(name), kind: Kind::Memory(text.into()) }
    }

    fn file(path: PathBuf) -> Self {
        let lines = is_lines(&path);
        Self { name: path, kind: if lines { Kind::JsonLines } else { Kind::Text } }
    }

    /// The path, or what stands for it.
    #[must_use]
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Whether it can be read only once.
    #[must_use]
    pub fn is_stdin(&self) -> bool {
        self.kind == Kind::Stdin
    }

    /// Whether each line is a JSON object of its own, by the name of the file.
    pub(super) fn is_json_lines(&self) -> bool {
        self.kind == Kind::JsonLines
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// What tells this text from another version of it without reading it all:
    /// name, size and time of change (a hash for a text in memory); `None` for
    /// standard input.
    ///
    /// # Errors
    /// When a file has gone.
    pub fn fingerprint(&self) -> Result<Option<String>> {
        match &self.kind {
            Kind::Stdin => Ok(None),
            Kind::Memory(text) => {
                Ok(Some(format!("{} sha256 {}", self.name.display(), super::sha256_hex(text))))
            }
            Kind::Text | Kind::JsonLines => {
                let data =
                    fs::metadata(&self.name).map_err(|e| Error::io("read", &self.name, &e))?;
                let changed = data.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
                let nanos = changed.map_or(0, |d| d.as_nanos());
                // The same file under a relative and a full path is the same.
                let path = self.name.canonicalize().unwrap_or_else(|_| self.name.clone());
                Ok(Some(format!("{} size {} changed {nanos}", path.display(), data.len())))
            }
        }
    }
}

/// Looks at `paths` (files, folders, `-` for standard input) and says what
/// they hold. Folders are searched to the bottom, in the order of the names;
/// hidden files, files with zero bytes near their start, run folders and models
/// are passed over. A folder with token shards counts as these shards alone.
///
/// # Errors
/// No path, a missing one, an empty file, a folder without text or of something
/// else, shards of a folder that was not finished, or text and token shards mixed.
pub fn discover(paths: &[PathBuf]) -> Result<Input> {
    let mut found = Found::default();
    for path in paths {
        if path.as_os_str() == "-" {
            found.sources.push(Source { name: "standard input".into(), kind: Kind::Stdin });
            continue;
        }
        let data = fs::metadata(path).map_err(|e| Error::io("read the data", path, &e))?;
        if data.is_dir() {
            if let Some(what) = no_text(path) {
                return Err(Error::usage(format!("--data {}: {what}", path.display())));
            }
            let before = found.count();
            found.folder(path, true)?;
            if found.count() == before {
                return Err(Error::failure(format!("{}: no text in this folder", path.display())));
            }
        } else if is_shard(path) {
            found.shard(path.clone());
        } else if data.is_file() && data.len() == 0 {
            return Err(Error::failure(format!("{}: the file is empty", path.display())));
        } else {
            found.sources.push(Source::file(path.clone()));
        }
    }
    if found.count() == 0 {
        return Err(Error::usage("--data: no files given"));
    }
    let Found { sources, train, val, .. } = found;
    // Shards that are named one by one are no better than their folder.
    let folders: BTreeSet<&Path> = train.iter().chain(&val).filter_map(|p| p.parent()).collect();
    if let Some(dir) = folders.into_iter().find(|dir| is_cut_off(dir)) {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        return Err(Error::usage(format!("--data {}: {CUT_OFF}", dir.display())));
    }
    match (sources.first(), train.first().or(val.first())) {
        (Some(text), Some(shard)) => Err(Error::usage(format!(
            "--data: {} is text and {} holds tokens; give one kind, or tokenize the text first",
            text.name.display(),
            shard.display()
        ))),
        (Some(_), None) => Ok(Input::Text(sources)),
        _ => Ok(Input::Shards { train, val }),
    }
}

#[derive(Default)]
struct Found {
    sources: Vec<Source>,
    train: Vec<PathBuf>,
    val: Vec<PathBuf>,
    /// Folders already entered: a link upwards must not go round for ever.
    entered: HashSet<PathBuf>,
}

impl Found {
    fn count(&self) -> usize {
        self.sources.len() + self.train.len() + self.val.len()
    }

    fn shard(&mut self, path: PathBuf) {
        if is_of_split(&path, "val") { &mut self.val } else { &mut self.train }.push(path);
    }

    fn folder(&mut self, dir: &Path, top: bool) -> Result<()> {
        let io = |e| Error::io("list the folder", dir, &e);
        if !self.entered.insert(dir.canonicalize().map_err(io)?) {
            return Ok(());
        }
        if top {
            let shards = all_shards(dir)?;
            if !shards.is_empty() {
                shards.into_iter().for_each(|path| self.shard(path));
                return Ok(());
            }
        }
        let entries: std::io::Result<Vec<_>> = fs::read_dir(dir).map_err(io)?.collect();
        let mut paths: Vec<PathBuf> = entries.map_err(io)?.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        for path in paths {
            let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
            if hidden {
                continue;
            }
            if path.is_dir() {
                // The folder of the run itself may lie beside its text.
                if no_text(&path).is_none() {
                    self.folder(&path, false)?;
                }
            } else if path.is_file() && looks_like_text(&path)? {
                self.sources.push(Source::file(path));
            }
        }
        Ok(())
    }
}

/// What [`is_cut_off`] means.
const CUT_OFF: &str =
    "data that were cut off before they were finished; `cllm tokenize` makes them again";

/// Whether a folder of shards was left by a program that could not finish it.
fn is_cut_off(dir: &Path) -> bool {
    Meta::load(dir).is_some_and(|meta| !meta.is_complete())
}

/// What a folder is whose files are no text to learn from, though they look like it.
fn no_text(dir: &Path) -> Option<&'static str> {
    let is_there = |name: &str| dir.join(name).exists();
    if RunFolder::existing(dir).is_run() {
        return Some("a run folder, and no text");
    }
    if is_cut_off(dir) {
        return Some(CUT_OFF);
    }
    let is_model = is_there("config.json")
        && ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
            .into_iter()
            .any(is_there);
    is_model.then_some("a model of transformers, and no text")
}

fn looks_like_text(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(1024).read_to_end(&mut start))
        .map_err(|e| Error::io("read", path, &e))?;
    Ok(!start.is_empty() && !start.contains(&0) && !is_shard(path))
}

/// The place a text comes from, for messages: `FILE` or `FILE:LINE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The file.
    pub path: &'a Path,
    /// The line, counted from one, where each line is a document.
    pub line: Option<u64>,
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(input: &Input) -> Vec<String> {
        let Input::Text(sources) = input else { panic!("{input:?}") };
        sources.iter().map(|s| s.name().file_name().unwrap().to_str().unwrap().into()).collect()
    }

    #[test]
    fn folders_are_searched_in_order_and_binaries_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("b")).unwrap();
        for (name, text) in [
            ("c.md", &b"c"[..]),
            ("a.txt", b"a"),
            ("b/z.jsonl", b"{}"),
            ("b/y.py", b"y"),
            ("x.png", b"\x89PNG\0\0"),
            ("empty.txt", b""),
            (".hidden", b"h"),
        ] {
            fs::write(at(name), text).unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(dir.path(), at("b/loop")).unwrap();
        let input = discover(&[dir.path().to_path_buf()]).unwrap();
        assert_eq!(names(&input), ["a.txt", "y.py", "z.jsonl", "c.md"]);
        let input = discover(&[at("x.png"), "-".into()]).unwrap();
        assert_eq!(names(&input), ["x.png", "standard input"]);
    }

    #[test]
    fn shards_are_told_by_their_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["val_000000.bin", "train_000001.bin", "interval.bin"] {
            crate::data::shard::ShardWriter::create(&at(name), 300).unwrap().finish().unwrap();
        }
        fs::write(at("reference.txt"), "text").unwrap();
        let shards = Input::Shards {
            train: vec![at("interval.bin"), at("train_000001.bin")],
            val: vec![at("val_000000.bin")],
        };
        assert_eq!(discover(&[dir.path().to_path_buf()]).unwrap(), shards);
        let one = Input::Shards { train: vec![], val: vec![at("val_000000.bin")] };
        assert_eq!(discover(&[at("val_000000.bin")]).unwrap(), one);
        let mixed = discover(&[at("reference.txt"), at("val_000000.bin")]).unwrap_err();
        assert!(mixed.to_string().contains("reference.txt"), "{mixed}");
        assert_eq!(mixed.exit_code(), 2);
    }

    #[test]
    fn missing_and_empty_data_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("empty.txt"), "").unwrap();
        fs::create_dir(at("folder")).unwrap();
        for (name, what) in
            [("missing.txt", "No such file"), ("empty.txt", "empty"), ("folder", "no text")]
        {
            let message = discover(&[at(name)]).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(what), "{message}");
        }
        assert_eq!(discover(&[]).unwrap_err().exit_code(), 2);
    }
}
