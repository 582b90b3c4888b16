//! Runs the built program and looks at all that it says.
#![allow(dead_code, reason = "every test program uses a part of it")]

use serde_json::Value;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// What the program did.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("ended by itself"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// The JSON object that it printed.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        assert_eq!(self.stdout.lines().count(), 1, "{}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// It ended well.
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    /// It failed as a program should: this status, one line that begins with its name and
    /// contains `parts`, nothing on standard output, no panic.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, parts: &[&str]) {
        let Self { stdout, stderr, .. } = self;
        assert_eq!(self.code, code, "{stderr}");
        assert_eq!(stdout, "", "on standard output");
        assert!(stderr.starts_with("cllm: ") && stderr.ends_with('\n'), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "no {part:?} in {stderr}");
        }
        for part in ["panicked", "internal error", "RUST_BACKTRACE"] {
            assert!(!stderr.contains(part), "{stderr}");
        }
    }
}

impl Ran {
    /// What it said when it failed as a program should.
    #[track_caller]
    pub(crate) fn failed(&self) -> &str {
        assert!(self.code == 1 || self.code == 2, "status {}", self.code);
        self.refused(self.code, &[]);
        &self.stderr
    }
}

/// The program, in an environment that says nothing to it, with `dir` as working folder.
pub(crate) fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cllm"));
    command.current_dir(dir).env_remove("CLLM_ISA").env_remove("RUST_BACKTRACE");
    // Sets of `cllm tune` would be there.
    command.env_remove("XDG_CONFIG_HOME").env_remove("HOME");
    command
}

/// Runs the program in `dir`.
pub(crate) fn run_in<S: AsRef<OsStr>>(dir: &Path, args: &[S]) -> Ran {
    command(dir).args(args).output().expect("the program starts").into()
}

/// Runs the program where nothing is read or written.
pub(crate) fn run(args: &[&str]) -> Ran {
    run_in(Path::new(env!("CARGO_MANIFEST_DIR")), args)
}

/// The plan of these flags.
#[track_caller]
pub(crate) fn plan(args: &[&str]) -> Value {
    run(&[&["plan", "--json", "--no-estimate"], args].concat()).json()
}

/// Words of a command line.
pub(crate) fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Loss of a model on the text `t.txt`.
#[track_caller]
pub(crate) fn loss(dir: &Path, checkpoint: &str) -> f64 {
    let eval = format!("eval --checkpoint {checkpoint} --data t.txt --log-format json");
    run_in(dir, &words(&eval)).json()["val_loss"].as_f64().unwrap()
}

/// The likeliest continuation by a model.
#[track_caller]
pub(crate) fn spoken(dir: &Path, checkpoint: &str) -> Value {
    let generate = format!(
        "generate --checkpoint {checkpoint} --tokens 12 --greedy --prompt God --log-format json"
    );
    run_in(dir, &words(&generate)).json()["text"].clone()
}
