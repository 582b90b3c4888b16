//! Arguments before clap and its errors after it.
//!
//! Before: `_` becomes `-` in the names of flags, and `--no-bias` becomes
//! `--bias=false`. After: an error of several lines becomes one.

use super::args::command;
use crate::error::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Flags that take `true` or `false` and can be switched off with `--no-`.
const SWITCHES: [&str; 3] = ["bias", "tied", "resume"];

/// What other programs call commands, the command that does it here, and the words for it.
const ELSEWHERE: [(&str, &str, &str); 8] = [
    ("chat", "generate", "generate --interactive"),
    ("convert", "import", "import, or export to other programs' formats"),
    ("infer", "generate", "generate"),
    ("merge", "export", "export, which merges adapters"),
    ("merge-adapter", "export", "export, which merges adapters"),
    ("quantize", "export", "export --weights q8_0"),
    ("run", "generate", "generate"),
    ("sample", "generate", "generate"),
];

/// Brings the names of flags into the one spelling that clap knows. Values stay.
pub(super) fn normalise(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut only_values = false;
    args.into_iter()
        .map(|arg| {
            only_values |= arg == "--";
            if only_values { arg } else { normalise_flag(&arg).unwrap_or(arg) }
        })
        .collect()
}

fn normalise_flag(arg: &OsStr) -> Option<OsString> {
    let text = arg.to_str()?;
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let name = name.strip_prefix("--")?.replace('_', "-");
    let switch = name.strip_prefix("no-").filter(|switch| SWITCHES.contains(switch));
    Some(OsString::from(match (switch, value) {
        (Some(switch), None) => format!("--{switch}=false"),
        (_, Some(value)) => format!("--{name}={value}"),
        (_, None) => format!("--{name}"),
    }))
}

/// What clap has to say, in one line.
pub(super) fn error(error: &clap::Error) -> Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        Some(ContextValue::StyledStr(text)) => Some(text.to_string()),
        _ => None,
    };
    // clap has `--batch-size <N>`, or `--bias [<BOOL>]`.
    let arg = text(ContextKind::InvalidArg).unwrap_or_default();
    let flag = arg.split([' ', '=']).next().unwrap_or_default();
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    // Of several, the likeliest is the last.
    let did_you_mean = |kind| {
        let name = match error.get(kind)? {
            ContextValue::String(name) => name,
            ContextValue::Strings(names) => names.last()?,
            _ => return None,
        };
        Some(format!(": did you mean {name}?"))
    };
    let message = match error.kind() {
        ErrorKind::ValueValidation => {
            let cause = core::error::Error::source(error).map(ToString::to_string);
            Some(format!("{flag} {value}: {}", cause.unwrap_or_default()))
        }
        ErrorKind::InvalidValue if value.is_empty() => Some(format!("{flag} needs a value")),
        ErrorKind::InvalidValue => text(ContextKind::ValidValue)
            .map(|valid| format!("{flag} {value}: expected one of {valid}")),
        ErrorKind::UnknownArgument => {
            let help = || ": `cllm COMMAND --help` lists the flags".to_owned();
            let path = || {
                let meant = text(ContextKind::Usage).as_deref().and_then(flag_of_path);
                let meant = meant.filter(|_| Path::new(flag).exists())?;
                Some(format!(": did you mean {meant} {flag}?"))
            };
            let more = did_you_mean(ContextKind::SuggestedArg).or_else(path).unwrap_or_else(help);
            Some(if arg.starts_with('-') {
                format!("unknown flag {flag}{more}")
            } else {
                format!("unexpected argument {flag}{more}")
            })
        }
        ErrorKind::InvalidSubcommand => text(ContextKind::InvalidSubcommand).map(|name| {
            let help = || ": `cllm --help` lists the commands".to_owned();
            let more = elsewhere(&name)
                .or_else(|| did_you_mean(ContextKind::SuggestedSubcommand))
                .unwrap_or_else(help);
            format!("unknown command {name}{more}")
        }),
        ErrorKind::MissingRequiredArgument => Some(format!("{arg} is missing")),
        _ => None,
    };
    Error::usage(message.unwrap_or_else(|| collapse(&error.to_string())))
}

/// The flag that a path is for, of the command that clap's words on usage are about.
fn flag_of_path(usage: &str) -> Option<&'static str> {
    let command = usage.split_whitespace().skip_while(|word| *word != "cllm").nth(1)?;
    match command {
        "generate" | "eval" | "export" => Some("--checkpoint"),
        "train" | "finetune" | "tokenize" => Some("--data"),
        _ => None,
    }
}

/// What does here what another program calls `name`, if this one was built with it.
fn elsewhere(name: &str) -> Option<String> {
    let (_, here, words) = ELSEWHERE.iter().find(|(other, ..)| *other == name)?;
    command().find_subcommand(here)?;
    Some(format!(": did you mean {words}?"))
}

/// The lines of clap's own text up to its usage, joined.
fn collapse(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::from_args;

    fn normalised(args: &[&str]) -> Vec<String> {
        let args = normalise(args.iter().map(OsString::from));
        args.into_iter().map(|arg| arg.into_string().unwrap()).collect()
    }

    fn message(args: &[&str]) -> String {
        let args = [&["cllm"], args].concat().into_iter().map(OsString::from);
        let error = error(&from_args(args).unwrap_err());
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn names_are_normalised_and_values_are_not() {
        assert_eq!(
            normalised(&["cllm", "train", "--batch_size=3", "--out_dir", "a_b", "--data=x_y=z_"]),
            ["cllm", "train", "--batch-size=3", "--out-dir", "a_b", "--data=x_y=z_"]
        );
        assert_eq!(
            normalised(&["--no-bias", "--no_tied", "--no-estimate", "-v_", "--", "--a_b"]),
            ["--bias=false", "--tied=false", "--no-estimate", "-v_", "--", "--a_b"]
        );
    }

    #[test]
    fn clap_finds_nothing_wrong_with_the_table_of_flags() {
        command().debug_assert();
    }

    #[test]
    fn every_switch_is_a_flag_that_takes_a_truth() {
        for switch in SWITCHES {
            from_args(["cllm", "train", &format!("--{switch}=false")].map(OsString::from)).unwrap();
        }
    }

    #[test]
    fn errors_are_one_line_that_names_flag_value_and_what_to_do() {
        for (args, expected) in [
            (&["train", "--batch-size", "x"][..], "--batch-size x: expected a whole number"),
            (&["train", "--batch-size"], "--batch-size needs a value"),
            (
                &["train", "--bacth-size", "1"],
                "unknown flag --bacth-size: did you mean --batch-size?",
            ),
            (&["train", "--xyzzy"], "unknown flag --xyzzy: `cllm COMMAND --help` lists the flags"),
            (
                &["train", "stray"],
                "unexpected argument stray: `cllm COMMAND --help` lists the flags",
            ),
            (&["tran"], "unknown command tran: did you mean train?"),
            (&["sample"], "unknown command sample: did you mean generate?"),
            (&["xyzzy"], "unknown command xyzzy: `cllm --help` lists the commands"),
            (&["generate"], "--checkpoint <PATH> is missing"),
            (
                &["train", "--preset", "big"],
                "--preset big: expected tiny, fast, reference, gpt2 or smollm2",
            ),
            (
                &["train", "--isa", "sse9"],
                "--isa sse9: expected scalar, neon, avx, avx2, avx512 or amx",
            ),
            (&["train", "--threads", "0"], "--threads 0: expected auto or a number from 1 to 1024"),
            (&["train", "--bias", "maybe"], "--bias maybe: expected true or false"),
            (&["train", "--learning-rate", "nan"], "--learning-rate nan: expected a number"),
            (
                &["train", "--dropout", "-1", "--seed", "1", "--seed", "2"],
                "the argument '--seed <N>' cannot be used multiple times",
            ),
        ] {
            assert_eq!(message(args), expected);
        }
    }
}
