//! Fuzz targets: for each reader a function that is given any bytes at all. It must come back, whatever they are;
//! what a reader takes is looked at more closely: what was written of it reads the same, and what it allows can be
//! done. `fuzz/run.sh` has libFuzzer look for bytes that do harm, `tests/fuzz` has the seeds go through.
//!
//! Bytes that stand for several files have [`MARK`] between them.

mod c_interface;
mod checkpoint;
mod config;
mod files;
mod gguf;
mod http;
mod inspect;
mod lines;
mod peft;
mod run_folder;
mod shard;
mod template;
mod text;
mod tokenizer;
mod transformers;

pub use checkpoint::with_sums as checkpoint_with_sums;
pub use files::MARK;

/// A target: its name, which its folder of seeds and its program have too, and what it does. It says whether the bytes
/// were taken for what they stand for: those of a seed that never are would try nothing.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// All targets.
pub const TARGETS: [Target; 14] = [
    ("c_interface", c_interface::target),
    ("checkpoint", checkpoint::target),
    ("config", config::target),
    ("gguf", gguf::target),
    ("http", http::target),
    ("inspect", inspect::target),
    ("lines", lines::target),
    ("peft", peft::target),
    ("run_folder", run_folder::target),
    ("shard", shard::target),
    ("template", template::target),
    ("text", text::target),
    ("tokenizer", tokenizer::target),
    ("transformers", transformers::target),
];

/// Has the target of this name look at some bytes, and says whether they were taken.
///
/// # Panics
/// If there is no such target, or the bytes do what they must not.
pub fn run(name: &str, data: &[u8]) -> bool {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.unwrap_or_else(|| panic!("no target {name}"));
    target(data)
}
