//! PEFT's folders: adapters that stand beside a model.

use std::sync::OnceLock;

use cllm::hf;
use cllm::lora::peft;

use crate::files::{Folder, parts};
use crate::gguf::imported_well;

/// The model beside them, as a folder of transformers.
const BASE: &[u8] = include_bytes!("../../seeds/transformers/llama");

/// `adapter_config.json` and `adapter_model.safetensors`.
pub(crate) fn target(data: &[u8]) -> bool {
    static MODEL: OnceLock<Folder> = OnceLock::new();
    let model = MODEL.get_or_init(|| {
        let folder = Folder::new();
        let [weights, config] = parts(BASE);
        folder.put("model.safetensors", weights);
        folder.put("config.json", config);
        hf::import(folder.path(), &folder.at("run")).expect("a model of the program's own");
        folder
    });
    let [config, weights] = parts(data);
    let folder = Folder::new();
    folder.put("adapter_config.json", config);
    folder.put("adapter_model.safetensors", weights);
    let out = folder.at("run");
    let Ok(imported) = peft::import(folder.path(), &model.at("run"), &out) else { return false };
    assert!(imported.parameters > 0);
    imported_well(&out, imported.config);
    true
}
