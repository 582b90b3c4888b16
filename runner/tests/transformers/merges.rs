//! Tokenizers of folders from before `tokenizer.json`: `vocab.json` and `merges.txt`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::cli_support::{loss, run_in};
use super::{export, import, train};

/// Writes the tokenizer of the folder `model` as folders had it before `tokenizer.json`.
fn as_older_files(dir: &Path) -> (Value, String) {
    let at = |name: &str| dir.join("model").join(name);
    let json: Value = serde_json::from_slice(&fs::read(at("tokenizer.json")).unwrap()).unwrap();
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(|merge| {
        let part = |n: usize| merge[n].as_str();
        let both = part(0).zip(part(1)).map(|(first, second)| format!("{first} {second}"));
        both.unwrap_or_else(|| merge.as_str().unwrap().to_owned())
    });
    let merges = ["#version: 0.2".to_owned()].into_iter().chain(merges).collect::<Vec<_>>();
    let merges = merges.join("\n") + "\n";
    fs::write(at("vocab.json"), json["model"]["vocab"].to_string()).unwrap();
    fs::write(at("merges.txt"), &merges).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::remove_file(at(name)).unwrap();
    }
    (json["model"]["vocab"].clone(), merges)
}

#[test]
fn folders_have_tokenizers_of_two_older_files() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bpe:300");
    export(dir, "");
    let (mut vocab, merges) = as_older_files(dir);
    import(dir).done();
    let shards = |run: &str| {
        let tokenizer = format!("{run}/tokenizer.json");
        let out = format!("{run}-shards");
        run_in(dir, &["tokenize", "--data", "n.txt", "--tokenizer", &tokenizer, "--out", &out])
            .done();
        fs::read(dir.join(out).join("train_000000.bin")).unwrap()
    };
    let nasty = "It's 12345 o'clock...\n\n  So -- <|endoftext|> \u{e9}t\u{e9}, the God!?\t\r\n x";
    fs::write(dir.join("n.txt"), nasty).unwrap();
    assert_eq!(shards("back"), shards("out"));
    assert_eq!(loss(dir, "back"), loss(dir, "out"));

    let again = |name: &str, text: &str| {
        fs::write(dir.join("model").join(name), text).unwrap();
        run_in(dir, &["import", "model", "--out-dir", "again"])
    };
    let broken = merges.clone() + "the light\n";
    let line = broken.lines().count();
    let named = format!("merges.txt: line {line}: \"the light\"");
    again("merges.txt", &broken).refused(1, &[&named]);
    again("merges.txt", &merges).done();
    fs::remove_dir_all(dir.join("again")).unwrap();
    let id = vocab["a"].clone();
    vocab["a"] = json!("one");
    again("vocab.json", &vocab.to_string()).refused(1, &["vocab.json: ", "\"a\""]);
    vocab["a"] = vocab["b"].clone();
    again("vocab.json", &vocab.to_string()).refused(1, &["vocab.json: ", "have the id"]);
    vocab["a"] = id;
    let missing = vocab.as_object_mut().unwrap().remove("!");
    again("vocab.json", &vocab.to_string()).refused(1, &["vocab.json: no token '!'"]);
    vocab["!"] = missing.unwrap();
    fs::write(dir.join("model/vocab.json"), vocab.to_string()).unwrap();
    again("added_tokens.json", "[]").refused(1, &["added_tokens.json: not a JSON object"]);
    again("added_tokens.json", r#"{"<x>": 97}"#)
        .refused(1, &["added_tokens.json: \"<x>\" has the id 97"]);
    fs::remove_file(dir.join("model/added_tokens.json")).unwrap();
    // Those of another class are none that is known.
    let other = r#"{"tokenizer_class": "RobertaTokenizer"}"#;
    let said = again("tokenizer_config.json", other).done().stdout;
    assert!(said.contains("no tokenizer of a known kind"), "{said}");
}
