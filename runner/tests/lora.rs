//! Adapters of low rank: trained beside a model that stays as it is, kept, merged, and exchanged with
//! PEFT.
#![cfg(feature = "lora")]

mod cli_support;
mod support;

use std::fs;
use std::path::Path;

use cli_support::{loss, run_in, spoken, words};
use cllm::settings::{TokenizerChoice, TrainSettings};
use cllm::train::Outcome;
use serde_json::{Value, json};
use support::{course, events, settings, sha, train, train_to};

/// A model that has learnt one text, and an adapter of it that has learnt another.
fn adapted(dir: &Path, model: &str, lora: &str) {
    let verse = "In the beginning God created the heaven and the earth.\n";
    fs::write(dir.join("t.txt"), verse.repeat(40)).unwrap();
    fs::write(dir.join("other.txt"), "All work and no play makes Jack a dull boy.\n".repeat(40))
        .unwrap();
    let small =
        "--data t.txt --tokenizer bytes --n-layer 2 --n-head 2 --n-embd 32 --val-fraction 0";
    let usual = "--block-size 16 --batch-size 2 --max-steps 20 --sample-tokens 0 --seed 5 \
                 --warmup-steps 2 --lr 2e-2";
    run_in(dir, &words(&format!("train {small} {usual} {model} --out-dir base"))).done();
    let tuned = format!("train --base base --data other.txt --val-fraction 0 {usual} {lora}");
    run_in(dir, &words(&format!("{tuned} --out-dir out"))).done();
}

const LLAMA: &str = "--norm rms --positions rotary --activation swiglu --n-kv-head 1 --no-bias";

/// Models, and what of them has an adapter.
const CASES: [(&str, &str); 4] = [
    ("", "--lora-rank 4"),
    ("--no-tied", "--lora-rank 2 --lora-targets c_attn,mlp.c_proj --lora-alpha 3"),
    (LLAMA, "--lora-rank 4 --lora-targets all-linear"),
    (LLAMA, "--lora-rank 3 --lora-targets q_proj,v_proj,up_proj"),
];

#[test]
fn an_adapter_goes_to_peft_and_comes_back() {
    for (model, lora) in CASES {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        adapted(dir, model, lora);
        assert!(
            loss_of(dir, "out", "other.txt") < loss_of(dir, "base", "other.txt") - 0.1,
            "{lora}"
        );
        let told = run_in(dir, &words("export --checkpoint out --format peft --out adapter"));
        // The model that they stand beside, as it is said.
        let base = "export --checkpoint out/base.cllm --out";
        assert!(told.done().stdout.contains(&format!("{base} DIR")), "{lora}");
        run_in(dir, &words(&format!("{base} beneath"))).done();
        run_in(dir, &words("import beneath --out-dir below")).done();
        assert_eq!(loss(dir, "below"), loss(dir, "base"), "{model} {lora}");
        run_in(dir, &words("import adapter --base base --out-dir back")).done();
        let values = |folder: &str, name: &str| {
            let json = run_in(dir, &["inspect", &format!("{folder}/{name}"), "--json"]).json();
            (json["weights_sha256"].clone(), json["tensors"].clone())
        };
        assert_eq!(values("back", "step-0.cllm"), values("out", "step-20.cllm"), "{model} {lora}");
        assert_eq!(loss(dir, "back"), loss(dir, "out"), "{model} {lora}");
        assert_eq!(spoken(dir, "back"), spoken(dir, "out"), "{model} {lora}");
        // The folder has its own copy of what it stands beside.
        fs::remove_dir_all(dir.join("base")).unwrap();
        assert_eq!(loss(dir, "back"), loss(dir, "out"), "{model} {lora}");
        // All others get the merged model.
        run_in(dir, &words("export --checkpoint out --out merged")).done();
        run_in(dir, &words("import merged --out-dir whole")).done();
        assert_eq!(loss(dir, "whole"), loss(dir, "out"), "{model} {lora}");
    }
}

/// Loss of a file.
fn loss_of(dir: &Path, run: &str, data: &str) -> f64 {
    let eval = format!("eval --checkpoint {run} --data {data} --log-format json");
    run_in(dir, &words(&eval)).json()["val_loss"].as_f64().unwrap()
}

/// Settings of a run with adapters, from a finished run in `dir`.
fn tuned(dir: &Path) -> TrainSettings {
    let base = TrainSettings { out_dir: dir.join("base"), ..settings(dir) };
    assert_eq!(train(&base), Ok(Outcome::Finished));
    TrainSettings {
        base: Some(base.out_dir.clone()),
        tokenizer: TokenizerChoice::File(base.out_dir.join("tokenizer.json")),
        lora_rank: Some(4),
        lora_dropout: 0.1,
        out_dir: dir.join("tuned"),
        ..base
    }
}

#[test]
fn a_run_goes_on_with_the_same_bits_and_needs_no_base_then() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (whole, halves) = (tuned(a.path()), tuned(b.path()));
    assert_eq!(train(&whole), Ok(Outcome::Finished));
    let start = &events(&whole, "start")[0];
    assert_eq!(start["adapters"]["rank"], 4);
    let trained = start["adapters"]["parameters"].as_u64().unwrap();
    let planned = |pool: &str| start["planned_bytes"][pool].as_u64().unwrap();
    assert!(planned("gradients") < 5 * trained && planned("moments") < 10 * trained);
    assert!(planned("parameters") > 4 * start["parameters"].as_u64().unwrap());
    assert_eq!(train_to(&halves, "\"event\":\"step\",\"step\":5,"), Ok(Outcome::Interrupted));
    fs::remove_dir_all(halves.base.as_ref().unwrap()).unwrap();
    let resumed = TrainSettings { resume: true, ..halves.clone() };
    let other = TrainSettings { lora_alpha: Some(3.0), ..resumed.clone() };
    let refused = train(&other).unwrap_err().to_string();
    assert!(refused.starts_with("--lora-alpha: the run in"), "{refused}");
    assert_eq!(train(&resumed), Ok(Outcome::Finished));
    assert_eq!((sha(&halves), course(&halves)), (sha(&whole), course(&whole)));
    // Its checkpoints are small: the base lies in one of its own.
    let size = |name: &str| fs::metadata(halves.out_dir.join(name)).unwrap().len();
    assert!(size("step-12.cllm") < size("base.cllm") / 2);
    // Without it nothing is made up.
    fs::remove_file(halves.out_dir.join("base.cllm")).unwrap();
    let more = TrainSettings { max_steps: 14, ..resumed };
    let refused = train(&more).unwrap_err().to_string();
    assert!(refused.contains("base.cllm"), "{refused}");
}

#[test]
fn what_makes_no_sense_is_refused_in_the_words_of_the_flags() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    adapted(dir, "", "--lora-rank 2");
    let refused = |command: &str| run_in(dir, &words(command)).failed().to_owned();
    let train = "train --data t.txt --block-size 16 --max-steps 1 --out-dir x";
    for (command, said) in [
        (format!("{train} --lora-rank 4"), "--lora-rank 4: adapters stand beside"),
        (
            format!("{train} --base base --lora-rank 4 --lora-targets q_proj"),
            "--lora-targets q_proj: the model has no such matrix; it has c_attn",
        ),
        (format!("{train} --base base --lora-rank 0"), "--lora-rank 0: it must be at least 1"),
        ("export --checkpoint base --format peft --out y".to_owned(), "without adapters"),
        ("import base --base base --out-dir y".to_owned(), "is no adapter of PEFT"),
    ] {
        let text = refused(&command);
        assert!(text.contains(said), "{command}: {text}");
        assert!(!dir.join("y").exists());
    }
}

#[test]
fn an_import_takes_the_place_of_nothing_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    adapted(dir, "", "--lora-rank 2");
    run_in(dir, &words("export --checkpoint out --format peft --out adapter")).done();
    let names = ["base.cllm", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
    for name in names.into_iter().chain(["generation_config.json", "special_tokens_map.json"]) {
        fs::create_dir(dir.join("there")).unwrap();
        let path = dir.join("there").join(name);
        fs::write(&path, "somebody's").unwrap();
        run_in(dir, &words("import adapter --base base --out-dir there"))
            .refused(1, &[name, "already"]);
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
        fs::remove_dir_all(dir.join("there")).unwrap();
    }
}

#[test]
fn adapters_know_the_name_of_the_model_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let small = "train --data t.txt --n-layer 1 --n-head 2 --n-embd 32 --max-steps 1 --block-size 16 \
                 --val-fraction 0 --sample-tokens 0 --batch-size 2 --out-dir";
    fs::write(dir.join("t.txt"), "In the beginning God created the heaven.\n".repeat(20)).unwrap();
    run_in(dir, &words(&format!("{small} own"))).done();
    let tune = |base: &str, out: &str| {
        run_in(
            dir,
            &words(
                &format!("{small} {out} --base {base} --lora-rank 2")
                    .replace("--n-layer 1 --n-head 2 --n-embd 32 ", ""),
            ),
        )
        .done();
        let out = format!("export --checkpoint {out} --format peft --out {out}-peft");
        run_in(dir, &words(&out)).done();
    };
    let said = |adapter: &str| {
        let path = dir.join(adapter).join("adapter_config.json");
        let config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        config["base_model_name_or_path"].clone()
    };
    // A model that was made here has no name elsewhere; one from a cache has that of the Hub.
    tune("own", "first");
    assert_eq!(said("first-peft"), Value::Null);
    let cache = "models--maker--small/snapshots/0a1b";
    run_in(dir, &words(&format!("export --checkpoint own --out {cache}"))).done();
    run_in(dir, &words(&format!("import {cache} --out-dir base"))).done();
    tune("base", "second");
    assert_eq!(said("second-peft"), "maker/small");
    run_in(dir, &words("export --checkpoint own --out other-model")).done();
    run_in(dir, &words("import other-model --out-dir other")).done();
    tune("other", "third");
    let whole = dir.canonicalize().unwrap().join("other-model");
    assert_eq!(said("third-peft"), whole.to_str().unwrap());
    // Nothing but the name tells that these do not belong together.
    let beside = |adapter: &str, base: &str, out: &str| {
        run_in(dir, &words(&format!("import {adapter} --base {base} --out-dir {out}")))
            .done()
            .stderr
    };
    assert_eq!(beside("second-peft", "base", "a"), "");
    assert_eq!(beside("first-peft", "own", "b"), "");
    let doubt = beside("second-peft", "other", "c");
    assert!(
        doubt.contains("trained beside maker/small") && doubt.contains("other-model"),
        "{doubt}"
    );
    let doubt = beside("second-peft", "own", "d");
    assert!(doubt.contains("does not say where"), "{doubt}");
    // What adapters have made of a model is not that model.
    let doubt = beside("second-peft", "a", "e");
    assert!(doubt.contains("does not say where"), "{doubt}");
}

#[test]
fn adapters_that_cannot_be_computed_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    adapted(dir, "", "--lora-rank 2 --lora-dropout 0.1");
    run_in(dir, &words("export --checkpoint out --format peft --out adapter")).done();
    let config: Value =
        serde_json::from_slice(&fs::read(dir.join("adapter/adapter_config.json")).unwrap())
            .unwrap();
    assert_eq!(config["target_modules"], json!(["c_attn", "c_fc", "c_proj"]));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(2), &json!(4)));
    assert_eq!(config["lora_dropout"], json!(0.1));
    let with = |field: &str, value: Value| {
        let mut config = config.clone();
        config[field] = value;
        fs::write(dir.join("adapter/adapter_config.json"), config.to_string()).unwrap();
        run_in(dir, &words("import adapter --base base --out-dir z")).failed().to_owned()
    };
    for (field, value, said) in [
        ("peft_type", json!("IA3"), "peft_type \"IA3\" is not supported"),
        ("use_dora", json!(true), "use_dora true is not supported"),
        ("bias", json!("all"), "bias \"all\" is not supported"),
        ("rank_pattern", json!({ "c_attn": 4 }), "rank_pattern {\"c_attn\":4} is not supported"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save"),
        ("r", json!(3), "has the shape [2, 32]"),
        ("r", json!(0), "adapters have rank 0"),
        ("lora_alpha", json!(-1), "scale of adapters is -0.5"),
        ("r", json!("two"), "invalid type"),
    ] {
        let text = with(field, value);
        assert!(text.contains(said), "{field}: {text}");
        assert!(!dir.join("z").exists(), "{field}");
    }
    fs::write(dir.join("adapter/adapter_config.json"), config.to_string()).unwrap();
    // Of a model of another width, and without one.
    let text = run_in(dir, &words("import adapter --out-dir z")).failed().to_owned();
    assert!(text.contains("give the model that it stands beside with --base"), "{text}");
    let wide = "train --data t.txt --tokenizer bytes --n-layer 2 --n-head 2 --n-embd 48 --max-steps 1 \
                --block-size 16 --val-fraction 0 --sample-tokens 0 --out-dir wide";
    run_in(dir, &words(wide)).done();
    let text = run_in(dir, &words("import adapter --base wide --out-dir z")).failed().to_owned();
    assert!(text.contains("lora_A.weight has the shape [2, 32]"), "{text}");
    let deep =
        wide.replace("--n-layer 2", "--n-layer 1").replace("48", "32").replace("wide", "deep");
    run_in(dir, &words(&deep)).done();
    let text = run_in(dir, &words("import adapter --base deep --out-dir z")).failed().to_owned();
    assert!(text.contains("is no adapter of a matrix"), "{text}");
}
