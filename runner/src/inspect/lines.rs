//! Files of JSON lines: what was reported of a run, examples, questions, documents.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use serde_json::{Map, Value};

use super::Report;
use crate::error::{Error, Result};
use crate::files;

/// Longest line that is looked at.
const LONGEST: u64 = 64 << 20;
/// Most characters that are told of a line's fields.
const MOST: usize = 200;
/// Most kinds of lines that are told apart.
const KINDS: usize = 16;

/// What the lines of a file are, by their fields.
///
/// # Errors
/// It cannot be read, or a line is no JSON object: named by its number.
pub(super) fn look(path: &Path) -> Result<Report> {
    let mut reader = BufReader::new(files::open(path).map_err(|e| Error::io("read", path, &e))?);
    let (mut line, mut number, mut lines) = (Vec::new(), 0_u64, 0_u64);
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    let mut last_step = None;
    loop {
        line.clear();
        let read = reader.by_ref().take(LONGEST).read_until(b'\n', &mut line);
        if read.map_err(|e| Error::io("read", path, &e))? == 0 {
            break;
        }
        number += 1;
        if line.len() as u64 == LONGEST && !line.ends_with(b"\n") {
            let path = path.display();
            return Err(Error::failure(format!(
                "{path}:{number}: a line of more than {LONGEST} bytes"
            )));
        }
        // Some editors begin a file with a byte order mark.
        let text =
            line.strip_prefix("\u{feff}".as_bytes()).filter(|_| number == 1).unwrap_or(&line);
        if text.trim_ascii().is_empty() {
            continue;
        }
        let bad = |what: String| Error::failure(format!("{}:{number}: {what}", path.display()));
        let object: Map<String, Value> = match crate::json::from_slice(text) {
            Ok(object) => object,
            Err(e) => return Err(bad(crate::json::line_error(text, &e))),
        };
        lines += 1;
        let kind = match object.get("event").and_then(Value::as_str) {
            Some(event) => format!("event {event}"),
            None => {
                let fields = object.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                format!("lines with {}", fields.chars().take(MOST).collect::<String>())
            }
        };
        if kind == "event step" {
            last_step = Some(object);
        }
        let kind = if kinds.len() < KINDS || kinds.contains_key(&kind) {
            kind
        } else {
            "others".to_owned()
        };
        *kinds.entry(kind).or_default() += 1;
    }
    let is_run = kinds.keys().any(|kind| kind.starts_with("event "));
    let what = if is_run { "what a run has reported" } else { "JSON lines" };
    let mut report = Report::new(path, what);
    report.fact("lines", lines);
    for (kind, lines) in kinds {
        report.fact(&kind, lines);
    }
    if let Some(step) = last_step {
        for name in ["step", "loss", "tokens_per_s"] {
            if let Some(value) = step.get(name) {
                report.fact(&format!("last {name}"), value.clone());
            }
        }
    }
    Ok(report)
}
