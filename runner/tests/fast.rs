//! `--preset fast`: it is the recipe that is measured, learns, goes on with the same bits, and leaves the program as
//! far as others can run what it makes.
#![cfg(feature = "hf")]

mod cli_support;

use std::fs;
use std::path::Path;

use cli_support::{Ran, run_in, words};
use serde_json::Value;

/// Small enough to be trained many times over.
const SMALL: &str = "--n-layer 2 --n-head 2 --n-embd 32 --block-size 16 --batch-size 4 \
     --data t.txt --tokenizer bytes --sample-tokens 0 --seed 5 --threads 2";

fn train(dir: &Path, flags: &str) -> Ran {
    let lines: String = (0..60).map(|i| format!("And {i} begat {}.\n", i + 1)).collect();
    fs::write(dir.join("t.txt"), lines).unwrap();
    run_in(dir, &words(&format!("train {flags}")))
}

fn settings(dir: &Path, run: &str) -> serde_json::Map<String, Value> {
    let text = fs::read(dir.join(run).join("settings.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Events of a kind of a run.
fn events(dir: &Path, run: &str, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join(run).join("metrics.jsonl")).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|event| event["event"] == kind).collect()
}

#[test]
fn the_preset_is_the_recipe_that_the_benchmark_measures() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/speedrun/characters.toml");
    let told = "--max-steps 1 --data t.txt --sample-tokens 0 --threads 1";
    train(dir, &format!("--preset fast {told} --out-dir preset")).done();
    train(dir, &format!("--config {} {told} --out-dir recipe", recipe.display())).done();
    let (preset, recipe) = (settings(dir, "preset"), settings(dir, "recipe"));
    // How often a run says something, where it does so, and the checksum of it all.
    let apart = ["out_dir", "eval_interval", "save_interval", "sample_interval", "crc32"];
    for (key, value) in preset.iter().filter(|(key, _)| !apart.contains(&key.as_str())) {
        assert_eq!(Some(value), recipe.get(key), "{key}");
    }
    assert_eq!(preset.len(), recipe.len());
}

#[test]
fn a_run_by_the_preset_learns_and_goes_on_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, &format!("--preset fast {SMALL} --max-steps 24 --out-dir whole")).done();
    train(dir, &format!("--preset fast {SMALL} --out-dir halves --max-steps 24 --save-interval 9"))
        .done();
    // As if it had been killed behind its second checkpoint.
    let weights = |run: &str| events(dir, run, "done").pop().unwrap()["weights_sha256"].clone();
    assert_eq!(weights("halves"), weights("whole"), "the same run twice");
    for name in ["step-24.cllm", "best.cllm"] {
        fs::remove_file(dir.join("halves").join(name)).unwrap();
    }
    let resume = "train --resume --out-dir halves --threads 3 --sample-tokens 0";
    run_in(dir, &words(resume)).done();
    assert!(dir.join("halves/step-24.cllm").exists(), "it did not go on");
    assert_eq!(weights("halves"), weights("whole"), "other bits behind a resume");
    let losses = events(dir, "whole", "eval");
    let loss = losses.last().unwrap()["val_loss"].as_f64().unwrap();
    // Of 257 ids: 5.5 at first.
    assert!(loss < 2.5, "{loss}: nothing is learnt");
}

#[test]
fn exports_say_what_others_cannot_express_and_work_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let export = |flags: &str| run_in(dir, &words(&format!("export --checkpoint out {flags}")));
    train(dir, &format!("--preset fast {SMALL} --max-steps 2 --out-dir out")).done();
    for format in ["safetensors", "gguf"] {
        export(&format!("--format {format} --out other")).refused(
            1,
            &["other programs have no model with --previous-tokens 3", "--activation swiglu"],
        );
        assert!(!dir.join("other").exists(), "{format}");
    }
    export("--format llmc --out other").refused(1, &["--previous-tokens 3", "llm.c"]);
    let again = |flags: &str| {
        fs::remove_dir_all(dir.join("out")).unwrap();
        train(dir, &format!("--preset fast {SMALL} --max-steps 2 {flags} --out-dir out")).done();
    };
    again("--previous-tokens 0");
    export("--out other").refused(1, &["other programs", "--activation swiglu"]);
    // With the gate that others know too it is a Qwen3, of a table that is multiplied on its way out.
    again("--previous-tokens 0 --activation swiglu");
    export("--format gguf --out model.gguf").done();
    export("--out model").done();
    let config = fs::read(dir.join("model/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["model_type"], "qwen3");
    let comes_back = |from: &str| {
        run_in(dir, &words(&format!("import {from} --out-dir back"))).done();
        let bits = |run: &str| cli_support::loss(dir, run).to_bits();
        assert_eq!(bits("back"), bits("out"), "{from}");
        fs::remove_dir_all(dir.join("back")).unwrap();
    };
    comes_back("model");
    comes_back("model.gguf");
    // Tables of positions are multiplied too, and a table that is the output projection comes as two. By powers of two
    // that takes nothing from the bits.
    for name in ["untied", "tied"] {
        fs::remove_dir_all(dir.join("out")).unwrap();
        let gpt2 = format!("--preset tiny --embedding-scale 4 --tied {}", name == "tied");
        train(dir, &format!("{gpt2} {SMALL} --max-steps 2 --out-dir out")).done();
        export(&format!("--format gguf --out {name}.gguf")).done();
        export(&format!("--out {name}")).done();
        comes_back(name);
        comes_back(&format!("{name}.gguf"));
    }
}
