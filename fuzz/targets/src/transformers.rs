//! Folders of Hugging Face's transformers: headers of safetensors, the index of several files, the config, the
//! tokenizer and what goes along with it.

use cllm::hf;

use crate::files::{Folder, parts};
use crate::gguf::imported_well;

/// Weights, `config.json`, the index, `tokenizer.json`, `tokenizer_config.json`.
pub(crate) fn target(data: &[u8]) -> bool {
    let [weights, config, index, tokenizer, usage] = parts(data);
    let folder = Folder::new();
    let path = folder.put("model.safetensors", weights);
    if path.exists()
        && let Ok(tensors) = hf::list(&path)
    {
        // Every element has a byte at least, or is a part of one.
        let elements: usize = tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum();
        assert!(elements <= 2 * weights.len(), "{elements} elements in {} bytes", weights.len());
    }
    if config.is_empty() {
        return false;
    }
    folder.put("config.json", config);
    folder.put("model.safetensors.index.json", index);
    folder.put("tokenizer.json", tokenizer);
    folder.put("tokenizer_config.json", usage);
    let model = hf::model(folder.path());
    let out = folder.at("run");
    let Ok(imported) = hf::import(folder.path(), &out) else { return false };
    assert_eq!(model, Ok(imported.config));
    imported_well(&out, imported.config);
    true
}
