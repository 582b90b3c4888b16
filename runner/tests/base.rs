//! Runs that start from a model that is there already.

mod cli_support;
mod support;

use std::fs;
use std::path::Path;

use cli_support::run_in;
use cllm::settings::{TokenizerChoice, TrainSettings};
use cllm::train::Outcome;
use serde_json::Value;
use support::{events, settings, sha, train};

/// A finished run of a model of the Llama family, whose norms and angles no flag says.
fn base(dir: &Path) -> TrainSettings {
    use cllm::parts::{ActivationChoice, NormChoice, PositionsChoice};
    let settings = TrainSettings {
        norm: NormChoice::Rms,
        positions: PositionsChoice::Rotary,
        activation: ActivationChoice::Swiglu,
        bias: false,
        ..settings(dir)
    };
    assert_eq!(train(&settings), Ok(Outcome::Finished));
    settings
}

/// A run from `base` that says nothing of the model.
fn from(base: &TrainSettings, dir: &Path) -> TrainSettings {
    TrainSettings {
        base: Some(base.out_dir.clone()),
        tokenizer: TokenizerChoice::File(base.out_dir.join("tokenizer.json")),
        ..settings(dir)
    }
}

#[test]
fn a_run_from_a_base_begins_with_its_weights_and_its_model() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let base = base(a.path());
    // Without a rate nothing is learned: what is saved is what it began with.
    let still = TrainSettings { learning_rate: 0.0, min_lr: None, ..from(&base, b.path()) };
    assert_eq!(train(&still), Ok(Outcome::Finished));
    assert_eq!(sha(&still), sha(&base));
    let model = |s: &TrainSettings| events(s, "start")[0]["model"].clone();
    let same = |mut model: Value| {
        model["dropout"] = Value::Null;
        model
    };
    assert_eq!(same(model(&still)), same(model(&base)));
    assert_eq!(events(&still, "start")[0]["step"], 0);
}

#[test]
fn a_run_goes_on_when_its_base_is_gone() {
    let [a, b, c] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let base = base(a.path());
    let whole = from(&base, b.path());
    assert_eq!(train(&whole), Ok(Outcome::Finished));
    assert_ne!(sha(&whole), sha(&base));
    let first = TrainSettings { max_steps: 6, ..from(&base, c.path()) };
    assert_eq!(train(&first), Ok(Outcome::Finished));
    let moved = a.path().join("moved");
    fs::rename(&base.out_dir, &moved).unwrap();
    // The rates are those of a run of six steps until then: only the bits of a run like it compare.
    let then = TrainSettings { resume: true, max_steps: 8, ..first.clone() };
    assert_eq!(train(&then), Ok(Outcome::Finished));
    assert_eq!(events(&then, "step").len(), 8);
    // So is a plan of the base's model.
    let plan = ["plan", "--base", moved.to_str().unwrap(), "--block-size", "5", "--json"];
    let plan = run_in(c.path(), &plan).json();
    let started = &events(&first, "start")[0]["model"];
    assert_eq!(plan["config"]["block_size"], started["block_size"], "{plan}");
    assert_eq!(plan["config"]["parts"], started["parts"]);
    let anew = TrainSettings { out_dir: c.path().join("anew"), ..first };
    let error = train(&anew).unwrap_err().to_string();
    assert!(error.contains("run"), "{error}");
}

#[test]
fn what_does_not_go_with_the_base_is_refused() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let base = base(a.path());
    let long = TrainSettings { block_size: 17, ..from(&base, b.path()) };
    let error = train(&long).unwrap_err().to_string();
    assert!(error.starts_with("--block-size 17") && error.contains("16 positions"), "{error}");
    let path = base.out_dir.to_str().unwrap();
    let out = b.path().join("out");
    let args = |more: &[&'static str]| {
        let given = ["train", "--base", path, "--out-dir", out.to_str().unwrap(), "--quiet"];
        run_in(b.path(), &[&given[..], more].concat())
    };
    let shards = b.path().join("shards");
    fs::write(b.path().join("t.txt"), "in the beginning ".repeat(300)).unwrap();
    let tokenize = ["tokenize", "--data", "t.txt", "--tokenizer", "chars", "--out"];
    run_in(b.path(), &[&tokenize[..], &[shards.to_str().unwrap()]].concat()).done();
    args(&["--data", "shards"]).refused(2, &["made with another tokenizer", "shards"]);
    args(&["--n-layer", "3"]).refused(2, &["--n-layer: with --base"]);
    args(&["--no-bias"]).refused(2, &["--bias: with --base"]);
    args(&["--max-steps", "2", "--batch-size", "2", "--eval-batches", "1"]).done();
    let there = fs::read_to_string(out.join("settings.json")).unwrap();
    let there: Value = serde_json::from_str(&there).unwrap();
    assert_eq!((&there["norm"], &there["block_size"]), (&"rms".into(), &16.into()));
    fs::write(b.path().join("config.json"), "{}").unwrap();
    let foreign = ["train", "--base", ".", "--out-dir", "other"];
    run_in(b.path(), &foreign).refused(1, &["cllm import"]);
}
