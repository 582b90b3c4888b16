//! Files of llama.cpp: what is in them, and runs made of them.

use cllm::gguf;
use cllm::inspect::Report;
use cllm::train::folder::RunFolder;

use crate::files::Folder;

/// A file.
pub(crate) fn target(data: &[u8]) -> bool {
    let folder = Folder::new();
    let path = folder.put("model.gguf", data);
    if !path.exists() {
        return false;
    }
    let described = gguf::describe(&path);
    let out = folder.at("run");
    let Ok(imported) = gguf::import(&path, &out) else { return false };
    let described = described.expect("a file that was imported");
    assert!(!described.tensors.is_empty());
    imported_well(&out, imported.config);
    true
}

/// The run folder that a model has become has that model in it.
pub(crate) fn imported_well(out: &std::path::Path, config: cllm_core::ModelConfig) {
    let found = RunFolder::existing(out).newest().expect("a run folder").checkpoint;
    let found = found.expect("a checkpoint");
    let parsed = found.parse().expect("a good checkpoint");
    assert_eq!(parsed.header().config, config);
    let report = Report::look(out, true).expect("a run folder that can be looked at");
    assert!(!report.text().contains('\u{1b}'), "what a file says reaches the terminal");
}
