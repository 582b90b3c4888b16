//! The configuration file: flat TOML whose keys are the flags' names.

use super::flags::{KeyError, TrainFlags};
use super::nearest::nearest;
use super::presets::Preset;
use super::value::Setting as _;
use crate::error::{Error, Result};
use crate::files;
use clap::{Args as _, Command};
use std::collections::BTreeMap;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// What a configuration file says.
#[derive(Debug, Default)]
pub(super) struct ConfigFile {
    /// The preset that it starts from.
    pub(super) preset: Option<Preset>,
    /// The settings that it makes.
    pub(super) settings: TrainFlags,
    /// Line of each key, counted from 1.
    pub(super) lines: BTreeMap<&'static str, usize>,
}

impl ConfigFile {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or has a key or a value that is not known.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = files::read_given(path, files::SETTINGS)
            .map_err(|cause| Error::io("read the configuration file", path, &cause))?;
        let text = String::from_utf8(text).map_err(|_| {
            Error::usage(format!("{}: not UTF-8 text, so not a TOML file", path.display()))
        })?;
        // Editors of some systems begin a text with a byte order mark.
        Self::parse(path, text.strip_prefix('\u{feff}').unwrap_or(&text))
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let line_of = |at: usize| 1 + text.bytes().take(at).filter(|b| *b == b'\n').count();
        let wrong = |at: usize, what: String| {
            Error::usage(format!("{}:{}: {what}", path.display(), line_of(at)))
        };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            wrong(at, error.message().lines().collect::<Vec<_>>().join(", "))
        })?;
        let aliases = aliases();
        let mut file = Self::default();
        // In the order of the text, so that the first mistake is the one reported.
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let (written, at) = (key.get_ref().as_ref(), key.span().start);
            let name = written.replace('-', "_");
            let value_text = text.get(value.span()).map_or(String::new(), shorten);
            let refuse =
                |accepts| wrong(at, format!("{written} = {value_text}: expected {accepts}"));
            if name == "preset" {
                let preset = value.get_ref().as_str().and_then(Preset::from_text);
                file.preset = Some(preset.ok_or_else(|| refuse(Preset::ACCEPTS))?);
                continue;
            }
            let Some(known) = aliases.get(&name).copied() else {
                return Err(wrong(at, unknown(written, value.get_ref())));
            };
            if file.lines.insert(known, line_of(at)).is_some() {
                return Err(wrong(at, format!("{known} is set twice")));
            }
            match file.settings.set(known, value.get_ref()) {
                Ok(()) => {}
                Err(KeyError::Value(accepts)) => return Err(refuse(accepts)),
                Err(KeyError::Unknown) => {
                    return Err(wrong(at, unknown(written, value.get_ref())));
                }
            }
        }
        Ok(file)
    }
}

/// Every spelling of every key, other names of the flags included.
fn aliases() -> BTreeMap<String, &'static str> {
    let command = TrainFlags::augment_args(Command::new("keys"));
    let mut names = BTreeMap::new();
    for key in TrainFlags::KEYS {
        names.insert((*key).to_owned(), *key);
        let arg = command.get_arguments().find(|arg| arg.get_id() == key);
        for alias in arg.and_then(|arg| arg.get_all_aliases()).unwrap_or_default() {
            names.insert(alias.replace('-', "_"), *key);
        }
    }
    names
}

fn unknown(written: &str, value: &DeValue<'_>) -> String {
    if value.is_table() {
        return format!(
            "unknown section [{written}]: settings stand without sections, `key = value`"
        );
    }
    let known = TrainFlags::KEYS.iter().copied().chain(["preset"]);
    match nearest(&written.replace('-', "_"), known) {
        Some(name) => format!("unknown key {written}: did you mean {name}?"),
        None => {
            format!("unknown key {written}: keys are the names of the flags of `cllm train --help`")
        }
    }
}

/// A value as it stands in the file, on one line and not too long.
fn shorten(text: &str) -> String {
    const MOST: usize = 40;
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= MOST && line.len() == text.len() {
        return line.to_owned();
    }
    line.chars().take(MOST).chain(['.', '.', '.']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFile> {
        ConfigFile::parse(Path::new("run.toml"), text)
    }

    fn message(text: &str) -> String {
        let error = parse(text).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(!error.to_string().contains('\n'), "{error}");
        error.to_string()
    }

    #[test]
    fn keys_in_either_spelling_and_under_other_names() {
        let text = "preset = 'gpt2'\nbatch-size = 8\nlr = 1e-3\n\ndata = ['a', 'b']\nbias = false";
        let file = parse(text).unwrap();
        assert_eq!(file.preset, Some(Preset::Gpt2));
        assert_eq!(file.settings.batch_size, Some(8));
        assert_eq!(file.settings.learning_rate, Some(1e-3));
        assert_eq!(file.settings.data, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(file.settings.bias, Some(false));
        assert_eq!(file.lines["learning_rate"], 3);
        assert_eq!(parse("data = 'a'").unwrap().settings.data, Some(vec!["a".to_owned()]));
    }

    #[test]
    fn mistakes_are_named_with_file_line_and_what_to_do() {
        for (text, expected) in [
            ("\nbacth_size = 8", "run.toml:2: unknown key bacth_size: did you mean batch_size?"),
            (
                "n_layer = 4\nn_layers = 4",
                "run.toml:2: unknown key n_layers: did you mean n_layer?",
            ),
            ("xyzzy = 1", "run.toml:1: unknown key xyzzy: keys are the names of the flags"),
            ("batch_size = '8'", "run.toml:1: batch_size = '8': expected a whole number"),
            ("batch_size = 8.5", "run.toml:1: batch_size = 8.5: expected a whole number"),
            ("dropout = true", "run.toml:1: dropout = true: expected a number"),
            ("data = [1]", "run.toml:1: data = [1]: expected a text or a list of texts"),
            (
                "preset = 'big'",
                "run.toml:1: preset = 'big': expected tiny, fast, reference, gpt2 or smollm2",
            ),
            ("lr = 1\nlearning_rate = 2", "run.toml:2: learning_rate is set twice"),
            ("[model]\nn_layer = 4", "run.toml:1: unknown section [model]"),
            ("a = 1\nb = ", "run.toml:2: "),
        ] {
            let message = message(text);
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn long_values_are_shortened() {
        let message = message(&format!("seed = \"{}\"", "x".repeat(500)));
        assert!(message.len() < 120, "{message}");
    }
}
