//! The file of measured sets: TOML, a table `[[set]]` for each [`Key`].
//!
//! It is always replaced as a whole ([`crate::files`]), so whoever reads it needs no lock. Whoever
//! changes it reads it, changes one set and writes all: two at a time would lose one's set. So that is
//! done under a lock of a file beside it, `tune.toml.lock`. The lock file stays: one that is removed
//! might be somebody's who waits for it.

use super::key::{Key, Part};
use crate::error::{Error, Result};
use crate::files::{SETTINGS, create_dir, open_own, read_text, write_atomic};
use crate::lock::Lock;
use cllm_core::Blocking;
use core::fmt::Write as _;
use core::time::Duration;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The version of the format that this program writes and reads.
const VERSION: usize = 1;
/// The name of [`Entry::ratio`].
const RATIO: &str = "ratio";
/// How long to wait for others who write the file, which takes them milliseconds, and how often to
/// look.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(5);

/// A measured set.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) blocking: Blocking,
    /// Time of a step as a share of that with the default set.
    pub(super) ratio: f64,
}

/// Where the user's configuration has it: `$XDG_CONFIG_HOME/cllm/tune.toml`, else
/// `~/.config/cllm/tune.toml`. `None` if neither variable names a folder.
#[must_use]
pub fn default_path() -> Option<PathBuf> {
    path_in(std::env::var_os("XDG_CONFIG_HOME"), std::env::var_os("HOME"))
}

/// The XDG Base Directory Specification has relative paths ignored.
fn path_in(config: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let folder = |name: Option<OsString>| name.map(PathBuf::from).filter(|dir| dir.is_absolute());
    let config = folder(config).or_else(|| folder(home).map(|home| home.join(".config")));
    config.map(|dir| dir.join("cllm").join("tune.toml"))
}

/// Reads all sets of the file at `path`; `None` if there is no such file.
///
/// # Errors
/// It cannot be read, or is not such a file: names the line.
pub(super) fn read(path: &Path) -> Result<Option<Vec<Entry>>> {
    match read_text(path, SETTINGS) {
        Ok(text) => parse(path, &text).map(Some),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("read the tuning file", path, &cause)),
    }
}

/// [`read`], with `None` too for a file that cannot be reached or read.
///
/// # Errors
/// It is not such a file: names the line.
pub(super) fn read_if_possible(path: &Path) -> Result<Option<Vec<Entry>>> {
    match read_text(path, SETTINGS) {
        Ok(text) => parse(path, &text).map(Some),
        Err(cause) if cause.kind() == std::io::ErrorKind::InvalidData => {
            Err(Error::io("read the tuning file", path, &cause))
        }
        Err(_) => Ok(None),
    }
}

/// Replaces the set of `key` in the file at `path` by `found`, or takes it out. Gives whether
/// that changed anything; if not, nothing is written. Others may do the same at the same time.
///
/// # Errors
/// The file is broken, or cannot be written.
pub(super) fn replace(path: &Path, key: &Key, found: Option<Entry>) -> Result<bool> {
    let change = || -> Result<Option<Vec<Entry>>> {
        let before = read(path)?.unwrap_or_default();
        let mut entries = before.clone();
        entries.retain(|entry| entry.key != *key);
        entries.extend(found.clone());
        Ok((entries != before).then_some(entries))
    };
    // Without a change there is no need for the lock, nor for a file to lock.
    if change()?.is_none() {
        return Ok(false);
    }
    make_folder(path)?;
    let _lock = lock(path, PATIENCE)?;
    let Some(entries) = change()? else { return Ok(false) };
    write_atomic(path, text(&entries).as_bytes())?;
    Ok(true)
}

/// The lock of those who change the file at `path`, until it is dropped.
///
/// # Errors
/// The file to lock cannot be made, or another process has kept it for longer than `patience`.
fn lock(path: &Path, patience: Duration) -> Result<Lock> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let beside = path.with_file_name(name);
    let mut file = open_own(&beside).map_err(|cause| Error::io("write", &beside, &cause))?;
    let begin = Instant::now();
    loop {
        match Lock::take(file) {
            Ok(lock) => return Ok(lock),
            Err(held) if begin.elapsed() < patience => {
                file = held;
                std::thread::sleep(PAUSE);
            }
            Err(_) => {
                return Err(Error::failure(format!(
                    "cannot write {}: for {} s another process has held the lock {}; once that \
                     has ended, tune again",
                    path.display(),
                    patience.as_secs_f64(),
                    beside.display()
                )));
            }
        }
    }
}

/// Makes the folder of a file to be written.
///
/// # Errors
/// It cannot be made.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).map_or(Ok(()), create_dir)
}

fn text(entries: &[Entry]) -> String {
    let mut text = format!(
        "# Written by `cllm tune`: sizes of blocks that were faster on this machine than the \
         default ones.\n# `cllm train --tuning off` does without.\nversion = {VERSION}\n"
    );
    for Entry { key, blocking, ratio } in entries {
        text.push_str("\n[[set]]\n");
        // Writing to a String cannot fail.
        for (name, part) in key.clone().parts() {
            let _ = writeln!(text, "{name} = {part}");
        }
        let _ = write!(
            text,
            "# Time of a step as a share of that with the default sizes.\n{RATIO} = {ratio:.4}\n"
        );
        for (name, value) in blocking.fields() {
            let _ = writeln!(text, "{name} = {value}");
        }
    }
    text
}

/// What is wrong, and where in the text.
type Wrong = (usize, String);

fn parse(path: &Path, text: &str) -> Result<Vec<Entry>> {
    let parsed = entries(text);
    parsed.map_err(|(at, what)| {
        let line = 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        Error::usage(format!(
            "{}:{line}: {what}; mend or remove the file, or leave it out with --tuning off",
            path.display()
        ))
    })
}

fn entries(text: &str) -> core::result::Result<Vec<Entry>, Wrong> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        (at, error.message().lines().collect::<Vec<_>>().join(", "))
    })?;
    let mut version = None;
    let mut sets = Vec::new();
    for (key, value) in table.get_ref() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("version", _) => version = Some((value.span().start, whole(value, "version")?)),
            ("set", DeValue::Array(tables)) => sets.extend(tables.iter()),
            (name, _) => return Err((key.span().start, format!("unknown key {name}"))),
        }
    }
    match version {
        Some((_, VERSION)) => {}
        Some((at, other)) => {
            return Err((at, format!("version = {other}: this program reads {VERSION}")));
        }
        None => return Err((0, "no version: not a tuning file".to_owned())),
    }
    let mut entries: Vec<Entry> = Vec::new();
    for set in sets {
        let entry = entry(set)?;
        if entries.iter().any(|before| before.key == entry.key) {
            return Err((set.span().start, format!("a second set for {}", entry.key)));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(set: &Spanned<DeValue<'_>>) -> core::result::Result<Entry, Wrong> {
    let start = set.span().start;
    let DeValue::Table(table) = set.get_ref() else {
        return Err((start, "a set must be a table, [[set]]".to_owned()));
    };
    let find = |name: &str| {
        let found = table.iter().find(|(key, _)| key.get_ref().as_ref() == name);
        found.map(|(_, value)| value).ok_or_else(|| (start, format!("a set without {name}")))
    };
    let text = |name: &str| {
        let value = find(name)?;
        let text = value.get_ref().as_str().map(str::to_owned);
        text.ok_or_else(|| (value.span().start, format!("{name}: expected text")))
    };
    let number = |name: &str| whole(find(name)?, name);
    let mut key = Key::default();
    for (name, part) in key.parts() {
        match part {
            Part::Text(to) => *to = text(name)?,
            Part::Number(to) => *to = number(name)?,
        }
    }
    let value = find(RATIO)?;
    let ratio = match value.get_ref() {
        DeValue::Float(float) => float.as_str().parse().ok(),
        _ => None,
    };
    let ratio = ratio.filter(|ratio: &f64| *ratio > 0.0 && ratio.is_finite());
    let ratio = ratio.ok_or_else(|| (value.span().start, format!("{RATIO}: expected a share")))?;
    let mut blocking = Blocking::default();
    let fields = blocking.fields();
    for (name, _) in fields {
        blocking.set(name, number(name)?);
    }
    blocking.check().map_err(|error| {
        (find(error.field).map_or(start, |value| value.span().start), error.to_string())
    })?;
    let names = key.parts().map(|(name, _)| name);
    let fields = fields.map(|(name, _)| name);
    for (name, _) in table {
        let written = name.get_ref().as_ref();
        if written != RATIO && !names.contains(&written) && !fields.contains(&written) {
            return Err((name.span().start, format!("unknown key {written}")));
        }
    }
    Ok(Entry { key, blocking, ratio })
}

fn whole(value: &Spanned<DeValue<'_>>, name: &str) -> core::result::Result<usize, Wrong> {
    let number = value.get_ref().as_integer();
    let number = number.and_then(|n| usize::from_str_radix(n.as_str(), n.radix()).ok());
    number.ok_or_else(|| (value.span().start, format!("{name}: expected a whole number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry_of(threads: usize) -> Entry {
        let key = Key {
            cpu: "A \"CPU\" \\ 1".to_owned(),
            isa: "avx2".to_owned(),
            dtype: "f32".to_owned(),
            threads,
            n_layer: 4,
            n_embd: 256,
            d_ff: 1024,
            vocab_size: 5000,
            rows: 4096,
        };
        let blocking = Blocking { row_block: 64, fresh_rows: 0, ..Blocking::default() };
        Entry { key, blocking, ratio: 0.9375 }
    }

    #[test]
    fn sets_come_back_as_they_were_stored_and_replace_those_of_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/folder/tune.toml");
        assert_eq!(read(&path).unwrap(), None);
        assert_eq!(read_if_possible(&path).unwrap(), None);
        // A folder is no file that can be read.
        assert!(read(dir.path()).is_err());
        assert_eq!(read_if_possible(dir.path()).unwrap(), None);
        let (one, two) = (entry_of(1), entry_of(2));
        assert!(replace(&path, &one.key, Some(one.clone())).unwrap());
        assert!(replace(&path, &two.key, Some(two.clone())).unwrap());
        assert_eq!(read(&path).unwrap().unwrap(), [one.clone(), two.clone()]);
        assert!(!replace(&path, &two.key, Some(two.clone())).unwrap(), "it is there already");
        let other = Entry { ratio: 0.5, ..one.clone() };
        assert!(replace(&path, &one.key, Some(other.clone())).unwrap());
        assert_eq!(read(&path).unwrap().unwrap(), [two.clone(), other]);
        assert!(replace(&path, &one.key, None).unwrap());
        assert!(!replace(&path, &one.key, None).unwrap());
        assert_eq!(read(&path).unwrap().unwrap(), [two]);
    }

    #[test]
    fn writers_at_the_same_time_lose_no_set() {
        const WRITERS: usize = 4;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tune.toml");
        let start = std::sync::Barrier::new(WRITERS);
        let write = |writer: usize| {
            start.wait();
            for threads in (writer..40).step_by(WRITERS) {
                let entry = entry_of(threads);
                assert!(replace(&path, &entry.key.clone(), Some(entry)).unwrap());
            }
            // Of every second one there is something better.
            for threads in (writer..40).step_by(2 * WRITERS) {
                let entry = Entry { ratio: 0.5, ..entry_of(threads) };
                assert!(replace(&path, &entry.key.clone(), Some(entry)).unwrap());
            }
        };
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS).map(|n| scope.spawn(move || write(n))).collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
        });
        let mut stored = read(&path).unwrap().unwrap();
        stored.sort_by_key(|entry| entry.key.threads);
        let better = |n: usize| n % (2 * WRITERS) < WRITERS;
        let ratio = |n| if better(n) { 0.5 } else { entry_of(n).ratio };
        let all: Vec<Entry> = (0..40).map(|n| Entry { ratio: ratio(n), ..entry_of(n) }).collect();
        assert_eq!(stored, all);
    }

    #[test]
    fn a_lock_that_is_held_too_long_is_named_and_without_a_change_not_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tune.toml");
        let one = entry_of(1);
        assert!(!replace(&path, &one.key, None).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing to lock");
        assert!(replace(&path, &one.key, Some(one.clone())).unwrap());
        let held = lock(&path, Duration::ZERO).unwrap();
        let error = lock(&path, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let error = error.to_string();
        let parts = ["cannot write ", "tune.toml: for 0.02 s", "tune.toml.lock", "tune again"];
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
        assert!(!replace(&path, &one.key, Some(one.clone())).unwrap());
        // A writer waits until it is free.
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| replace(&path, &one.key, None).unwrap());
            std::thread::sleep(4 * PAUSE);
            assert!(!writer.is_finished());
            drop(held);
            assert!(writer.join().unwrap());
        });
    }

    #[test]
    fn every_part_of_a_key_is_stored_needed_and_tells_sets_apart() {
        let parse = |text: &str| parse(Path::new("t.toml"), text);
        let one = entry_of(1);
        let good = text(core::slice::from_ref(&one));
        let names = one.key.clone().parts().map(|(name, _)| name);
        // Those of its reports too.
        let json = serde_json::to_value(&one.key).unwrap();
        assert!(names.iter().all(|name| json.get(name).is_some()), "{json}");
        assert_eq!(json.as_object().unwrap().len(), names.len());
        for name in names {
            let line = good.lines().find(|line| line.starts_with(&format!("{name} = "))).unwrap();
            let error = parse(&good.replace(&format!("{line}\n"), "")).unwrap_err().to_string();
            assert!(error.contains(&format!("a set without {name}")), "{error}");
            let other = if line.ends_with('"') { "\"other\"" } else { "77" };
            let other = good.replace(line, &format!("{name} = {other}"));
            let other = parse(&other).unwrap().remove(0).key;
            assert_ne!(other, one.key, "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_file_line_and_a_way_out() {
        let good = text(&[entry_of(1)]);
        let line_of = |what: &str| 1 + good[..good.find(what).unwrap()].matches('\n').count();
        let refused = |text: &str| {
            let error = parse(Path::new("t.toml"), text).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let error = error.to_string();
            assert!(error.ends_with("--tuning off") && !error.contains('\n'), "{error}");
            error
        };
        assert_eq!(parse(Path::new("t.toml"), &good).unwrap(), [entry_of(1)]);
        for (from, to, what) in [
            ("row_block = 64", "row_block = 65", "row_block 65: it must be 32, 64,"),
            ("row_block = 64", "row_block = -64", "row_block: expected a whole number"),
            ("row_block = 64", "row_blocks = 64", "a set without row_block"),
            ("threads = 1", "threads = 'all'", "threads: expected a whole number"),
            ("isa = \"avx2\"", "isa = 2", "isa: expected text"),
            ("ratio = 0.9375", "ratio = -1.0", "ratio: expected a share"),
            ("rows = 4096", "rows = 4096\nspeed = 7", "unknown key speed"),
            ("version = 1", "version = 2", "version = 2: this program reads 1"),
            ("[[set]]", "[[sets]]", "unknown key sets"),
            ("[[set]]", "[[set", "unclosed"),
        ] {
            let error = refused(&good.replace(from, to));
            assert!(error.contains(what), "{error}");
            // What is missing is said of the set.
            let at = match what {
                what if what.starts_with("a set without") => line_of("[[set]]"),
                "unknown key speed" => line_of("rows = 4096") + 1,
                _ => line_of(from),
            };
            assert!(error.starts_with(&format!("t.toml:{at}: ")), "{at}: {error}");
        }
        assert!(refused("").starts_with("t.toml:1: no version"));
        assert!(refused("version = 1\nset = [3]").starts_with("t.toml:2: a set must be"));
        assert!(refused(&text(&[entry_of(1), entry_of(1)])).contains("a second set for A "));
    }

    #[test]
    fn the_file_is_in_the_users_configuration() {
        let os = |text: &str| Some(OsString::from(text));
        let path = |config, home| path_in(config, home).map(|path| path.display().to_string());
        if cfg!(unix) {
            assert_eq!(path(os("/c"), os("/h")).unwrap(), "/c/cllm/tune.toml");
            assert_eq!(path(os("c"), os("/h")).unwrap(), "/h/.config/cllm/tune.toml");
            assert_eq!(path(os(""), os("/h")).unwrap(), "/h/.config/cllm/tune.toml");
        }
        assert_eq!(path(None, os("")), None);
        assert_eq!(path(None, None), None);
    }
}
