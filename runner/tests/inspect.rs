//! `cllm inspect` on every kind of file, whole and damaged.

mod cli_support;

use std::fs;
use std::path::Path;

use cli_support::{run_in, words};
use serde_json::{Value, json};

fn train(dir: &Path) {
    fs::write(dir.join("t.txt"), "In the beginning God created.\n".repeat(40)).unwrap();
    let small = "train --data t.txt --tokenizer bytes --n-layer 2 --n-head 2 --n-embd 16 --block-size 16 \
                 --batch-size 2 --max-steps 3 --sample-tokens 0 --seed 5 --log-format json";
    run_in(dir, &words(small)).done();
}

#[track_caller]
fn inspect(dir: &Path, path: &str) -> Value {
    run_in(dir, &["inspect", path, "--tensors", "--json"]).json()
}

#[test]
fn a_run_and_its_files_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir);
    let run = inspect(dir, "out");
    assert_eq!((&run["kind"], &run["steps wanted"]), (&json!("a run folder"), &json!(3)));
    assert_eq!(run["tokenizer"], "bytes, 257 ids");
    assert!(run["step-3.cllm"].as_str().unwrap().starts_with("good, after step 3"), "{run}");

    let checkpoint = inspect(dir, "out/step-3.cllm");
    assert_eq!((&checkpoint["step"], &checkpoint["seed"]), (&json!(3), &json!(5)));
    assert_eq!(
        (&checkpoint["model"]["n_embd"], &checkpoint["optimizer state"]),
        (&json!(16), &json!(true))
    );
    let metrics = fs::read_to_string(dir.join("out/metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!(checkpoint["weights_sha256"], last["weights_sha256"]);
    let tensors = checkpoint["tensors"].as_array().unwrap();
    assert_eq!(
        (&tensors[0]["name"], &tensors[0]["shape"]),
        (&json!("wte.weight"), &json!([257, 16]))
    );
    // Gains begin with ones.
    let gain = tensors.iter().find(|tensor| tensor["name"] == "h.1.ln_1.weight").unwrap();
    assert!((gain["mean"].as_f64().unwrap() - 1.0).abs() < 0.1, "{gain}");
    let text = run_in(dir, &["inspect", "out/step-3.cllm"]).done().stdout;
    assert!(text.contains("all of its checksums right") && !text.contains("ln_1"), "{text}");

    let tokenizer = inspect(dir, "out/tokenizer.json");
    assert_eq!((&tokenizer["type"], &tokenizer["ids"]), (&json!("bytes"), &json!(257)));
    run_in(dir, &words("tokenize --data t.txt --tokenizer bytes --out shards --val-fraction 0"))
        .done();
    let shard = inspect(dir, "shards/train_000000.bin");
    assert_eq!((&shard["tokens"], &shard["largest id"]), (&json!(1201), &json!(256)));
    assert!(shard["first ids"].as_str().unwrap().starts_with("256 73 110 32"), "{shard}");
    let data = inspect(dir, "shards");
    assert_eq!(
        (&data["kind"], &data["tokenizer"]),
        (&json!("data of token shards"), &json!("bytes, 257 ids"))
    );
    assert_eq!(
        (&data["tokens to train on"], &data["tokens to validate on"]),
        (&json!(1201), &json!(0))
    );
    assert_eq!((&data["documents"], &data["bytes of text"]), (&json!(1), &json!(1200)));
}

#[test]
fn what_a_run_has_written_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir);
    let settings = inspect(dir, "out/settings.json");
    assert_eq!((&settings["max_steps"], &settings["n_embd"]), (&json!(3), &json!(16)));
    let metrics = inspect(dir, "out/metrics.jsonl");
    assert_eq!((&metrics["event done"], &metrics["last step"]), (&json!(1), &json!(3)));
    assert!(metrics["last loss"].as_f64().unwrap() > 1.0, "{metrics}");
    let lines =
        "{\"text\": \"a\"}\n\n{\"prompt\": \"b\", \"completion\": \"c\"}\n{\"text\": \"d\"}\n";
    fs::write(dir.join("lines.jsonl"), lines).unwrap();
    let told = inspect(dir, "lines.jsonl");
    assert_eq!((&told["lines"], &told["lines with text"]), (&json!(3), &json!(2)));
    assert_eq!(told["lines with completion, prompt"], 1);
    fs::write(dir.join("lines.jsonl"), lines.to_owned() + "{\"text\": ").unwrap();
    run_in(dir, &["inspect", "lines.jsonl"]).refused(1, &["lines.jsonl:5: "]);
}

#[test]
#[cfg(feature = "lora")]
fn adapters_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir);
    let tune = "train --base out --data t.txt --lora-rank 2 --max-steps 1 --sample-tokens 0 --out-dir tuned";
    run_in(dir, &words(tune)).done();
    run_in(dir, &words("export --checkpoint tuned --format peft --out adapter")).done();
    let adapter = inspect(dir, "adapter");
    assert_eq!((&adapter["kind"], &adapter["r"]), (&json!("an adapter of PEFT"), &json!(2)));
    assert_eq!(adapter["number of tensors"], 16);
    assert_eq!(adapter["tensors"].as_array().unwrap().len(), 16);
}

#[test]
#[cfg(all(feature = "hf", feature = "gguf"))]
fn other_programs_files_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir);
    run_in(dir, &words("export --checkpoint out --out model")).done();
    run_in(dir, &words("export --checkpoint out --format gguf --weights f16 --out m.gguf")).done();
    let folder = inspect(dir, "model");
    let file = inspect(dir, "model/model.safetensors");
    assert_eq!((&folder["model"]["n_layer"], &folder["tensors"]), (&json!(2), &file["tensors"]));
    let gguf = inspect(dir, "m.gguf");
    assert_eq!(gguf["gpt2.block_count"], "2");
    let table =
        gguf["tensors"].as_array().unwrap().iter().find(|t| t["name"] == "token_embd.weight");
    assert_eq!(
        *table.unwrap(),
        json!({ "name": "token_embd.weight", "shape": [16, 257], "kind": "F16" })
    );
    assert_eq!(inspect(dir, "model/tokenizer.json")["ids"], 257);
}

#[test]
fn what_is_damaged_or_unknown_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir);
    let path = dir.join("out/step-3.cllm");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    run_in(dir, &["inspect", "out/step-3.cllm"]).refused(1, &["step-3.cllm: altered checkpoint"]);
    let run = inspect(dir, "out");
    assert!(run["step-3.cllm"].as_str().unwrap().contains("altered"), "{run}");
    run_in(dir, &["inspect", "t.txt"]).refused(1, &["t.txt: not a file of a kind that is known"]);
    run_in(dir, &["inspect", "none"]).refused(1, &["cannot read none"]);
    fs::create_dir(dir.join("empty")).unwrap();
    run_in(dir, &["inspect", "empty"]).refused(1, &["empty: neither a run folder nor"]);
}
