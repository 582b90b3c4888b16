//! Folders of Hugging Face's transformers: headers of safetensors, the index of several files, the config, the
//! tokenizer and what goes along with it, also in the files that folders had before `tokenizer.json`.

use cllm::hf;

use crate::files::{Folder, parts};
use crate::gguf::imported_well;

/// Files beside those that each folder has; what an input does not have is not there.
const MORE: [&str; 6] = [
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// Weights, `config.json`, the index, `tokenizer.json`, `tokenizer_config.json`; then [`MORE`].
pub(crate) fn target(data: &[u8]) -> bool {
    let [weights, config, index, tokenizer, usage, more @ ..]: [&[u8]; 5 + MORE.len()] =
        parts(data);
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
    for (name, bytes) in MORE.into_iter().zip(more) {
        folder.put(name, bytes);
    }
    let model = hf::model(folder.path());
    let out = folder.at("run");
    let Ok(imported) = hf::import(folder.path(), &out) else { return false };
    assert_eq!(model, Ok(imported.config));
    imported_well(&out, imported.config);
    true
}
