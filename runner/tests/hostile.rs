//! Damaged copies of files of every kind, read by the library: an error or a result, never a panic.
//!
//! The whole of it, with processes, memory and time, is `tests/hostile.sh`.

use cllm::data::shard::{Shard, ShardWriter};
use cllm::inspect::Report;
use cllm::tokenizer::{BpeTokenizer, Tokenizer};
use std::fs;
use std::path::Path;

mod cli_support;
use cli_support::{run_in, words};

/// Cuts a file at every `step`th byte, and flips a bit of each.
fn damaged(good: &[u8], step: usize) -> impl Iterator<Item = Vec<u8>> {
    let cuts = (0..good.len()).step_by(step).map(|at| good[..at].to_vec());
    let flips = (0..good.len()).step_by(step).map(|at| {
        let mut bytes = good.to_vec();
        bytes[at] ^= 1 << (at % 8);
        bytes
    });
    cuts.chain(flips)
}

/// What must never be taken for a file of any kind.
fn hopeless() -> Vec<Vec<u8>> {
    let deep = |open: &str| open.repeat(100_000).into_bytes();
    let mut all = vec![Vec::new(), vec![0; 10_000], vec![0xff; 10_000], b"\xc3\x28".to_vec()];
    all.extend([deep("["), deep("{\"a\":"), deep("{\"model\":[")]);
    all.push(format!("{{\"type\":[{}0]}}", "{\"\":0},".repeat(200_000)).into_bytes());
    all.push(format!("{{\"traceEvents\":{}}}", "9".repeat(100_000)).into_bytes());
    all
}

/// Each of the files below `dir`, damaged, is looked at; how many are accepted.
fn accepted(path: &Path, step: usize) -> usize {
    let good = fs::read(path).unwrap();
    assert!(Report::look(path, true).is_ok(), "{}", path.display());
    let mut accepted = 0;
    for bytes in damaged(&good, step) {
        fs::write(path, &bytes).unwrap();
        accepted += usize::from(Report::look(path, true).is_ok());
    }
    for bytes in hopeless() {
        fs::write(path, &bytes).unwrap();
        assert!(Report::look(path, true).is_err(), "{}", path.display());
    }
    fs::write(path, good).unwrap();
    accepted
}

#[test]
fn damaged_files_of_a_run_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("t.txt"), "In the beginning God created the heaven and the earth. ".repeat(40))
        .unwrap();
    let run = |line: &str| run_in(dir.path(), &words(line)).done();
    run(
        "train --data t.txt --n-layer 1 --n-embd 8 --n-head 2 --block-size 8 --batch-size 2 --max-steps 2 \
         --warmup-steps 0 --val-fraction 0 --sample-tokens 0 --threads 1 --tuning off --quiet --trace-steps 1 \
         --trace trace.json --out-dir run",
    );
    // Checksums know every change.
    assert_eq!(accepted(&at("run").join("step-2.cllm"), 97), 0);
    accepted(&at("trace.json"), 97);
    run("export --checkpoint run --format gguf --out m.gguf");
    accepted(&at("m.gguf"), 97);
    run("export --checkpoint run --out hf");
    accepted(&at("hf").join("model.safetensors"), 97);
    let mut writer = ShardWriter::create(&at("a.bin"), 300).unwrap();
    writer.write(&[1, 2, 3]).unwrap();
    writer.finish().unwrap();
    let good = fs::read(at("a.bin")).unwrap();
    for cut in 0..good.len() {
        fs::write(at("a.bin"), &good[..cut]).unwrap();
        assert!(Shard::open(&at("a.bin")).is_err(), "{cut}");
    }
}

#[test]
fn damaged_tokenizers_are_errors_or_encode() {
    let texts = vec!["In the beginning God created the heaven and the earth. ".repeat(20)];
    let bpe = BpeTokenizer::train(texts.into_iter(), 262).unwrap();
    let good = Tokenizer::Bpe(Box::new(bpe)).to_json().unwrap();
    for bytes in damaged(good.as_bytes(), 41).chain(hopeless()) {
        if let Ok(tokenizer) = Tokenizer::from_json(&bytes) {
            let ids = tokenizer.encode(b"In the beginning").unwrap_or_default();
            let _ = tokenizer.decode(&ids);
        }
    }
    let long = good.replacen("<|endoftext|>", &"x".repeat(70_000), 1);
    let error = Tokenizer::from_json(long.as_bytes()).unwrap_err();
    assert!(error.contains("added token of 70000 bytes"), "{error}");
}
