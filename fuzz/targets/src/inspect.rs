//! Any file that `cllm inspect` is shown: the kinds that other targets have, and traces.

use cllm::inspect::Report;

use crate::files::{Folder, parts};

/// A name of a file and what is in it.
pub(crate) fn target(data: &[u8]) -> bool {
    let [name, bytes] = parts(data);
    let name = match name {
        b"jsonl" => "a.jsonl",
        b"json" => "a.json",
        _ => "a.bin",
    };
    let folder = Folder::new();
    let path = folder.put(name, bytes);
    if !path.exists() {
        return false;
    }
    let Ok(report) = Report::look(&path, true) else { return false };
    let is_plain = |c: char| c == '\n' || c == '\t' || !c.is_control();
    let text = report.text();
    assert!(text.chars().all(is_plain), "what a file says reaches the terminal: {text:?}");
    serde_json::to_string(&report).is_ok()
}
