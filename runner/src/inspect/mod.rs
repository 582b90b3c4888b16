//! What is in a file or folder, whatever of the known kinds it is: `cllm inspect`.
//!
//! Kinds are told apart by what they begin with, not by their names. A damaged file is an error that
//! names what is wrong with it, so this is also how to check one.

mod folders;
mod kinds;
mod lines;
mod stats;

use core::fmt::Write as _;
use std::path::Path;

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::error::Result;
use crate::generate::for_terminal;
pub use stats::Stats;

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tensor {
    /// Its name there.
    pub name: String,
    /// Elements of each dimension, in the file's order.
    pub shape: Vec<usize>,
    /// Type of the elements.
    pub kind: String,
    /// Of the values, where they are read.
    #[serde(flatten)]
    pub stats: Option<Stats>,
}

/// What there is to say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The file or folder.
    pub path: String,
    /// What it is.
    pub kind: &'static str,
    /// Facts by name, in the order in which they are told.
    #[serde(flatten)]
    pub facts: Facts,
    /// Its tensors, if wanted and there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<Tensor>,
}

/// Names and values, in an order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts(pub Vec<(String, Value)>);

impl Serialize for Facts {
    fn serialize<S: Serializer>(&self, serializer: S) -> core::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl Report {
    /// Looks at `path`, at all tensors too if wanted.
    ///
    /// # Errors
    /// It cannot be read, is of no known kind, or is damaged.
    pub fn look(path: &Path, with_tensors: bool) -> Result<Self> {
        let mut report = kinds::look(path)?;
        if !with_tensors {
            report.tensors.clear();
        }
        Ok(report)
    }

    fn new(path: &Path, kind: &'static str) -> Self {
        let path = path.display().to_string();
        Self { path, kind, facts: Facts::default(), tensors: Vec::new() }
    }

    fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.0.push((name.to_owned(), value.into()));
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}: {}\n", self.path, self.kind);
        // Writing to a string cannot fail.
        for (name, value) in &self.facts.0 {
            let _ = writeln!(text, "  {name:<24} {}", plain(value));
        }
        let names = self.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
        for Tensor { name, shape, kind, stats } in &self.tensors {
            let shape = shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
            let stats = stats.as_ref().map(Stats::text).unwrap_or_default();
            let _ = writeln!(text, "  {name:<names$}  {shape:<16} {kind:<5} {stats}");
        }
        // What a file says may be meant for the terminal.
        for_terminal(&text).into_owned()
    }
}

/// A value without JSON's quotes around all of it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join("; "),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| format!("{name} {}", plain(value)))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    }
}
