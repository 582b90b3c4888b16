//! Folders of transformers: in, out, and all that can be wrong with them.
#![cfg(feature = "hf")]

mod cli_support;
#[path = "transformers/llama.rs"]
mod llama;
#[path = "transformers/merges.rs"]
mod merges;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cli_support::{Ran, loss, run_in, spoken, words};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Value, json};

type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>, Dtype)>;

/// A run folder `out` of a model that has learnt a little, with these flags.
fn train(dir: &Path, flags: &str) {
    let verse = "In the beginning God created the heaven and the earth.\n";
    fs::write(dir.join("t.txt"), verse.repeat(40)).unwrap();
    let small = "train --data t.txt --n-layer 2 --n-embd 16 --block-size 16 --batch-size 2 --max-steps 3 \
                 --sample-tokens 0 --seed 5";
    let heads = if flags.contains("--n-head") { "" } else { "--n-head 2" };
    run_in(dir, &words(&format!("{small} {heads} {flags}"))).done();
}

fn export(dir: &Path, flags: &str) {
    run_in(dir, &words(&format!("export --checkpoint out --out model {flags}"))).done();
}

fn import(dir: &Path) -> Ran {
    run_in(dir, &words("import model --out-dir back"))
}

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let own = |(name, view): (String, TensorView<'_>)| {
        (name, (view.shape().to_vec(), view.data().to_vec(), view.dtype()))
    };
    tensors.tensors().into_iter().map(own).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (shape, bytes, dtype))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

/// Changes the tensors of the folder `model`.
fn change(dir: &Path, how: impl FnOnce(&mut Tensors)) {
    let path = dir.join("model/model.safetensors");
    let mut tensors = read(&path);
    how(&mut tensors);
    write(&path, &tensors);
}

/// Changes the config of the folder `model`.
fn change_config(dir: &Path, how: impl FnOnce(&mut Value)) {
    let path = dir.join("model/config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    how(&mut config);
    fs::write(&path, config.to_string()).unwrap();
}

/// A folder of `tests/golden/transformers`.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/transformers").join(name)
}

/// `tests/golden/make_transformers.py` makes them; a loss of theirs is in float64.
#[test]
fn models_of_transformers_compute_here_what_they_compute_there() {
    let mut seen = 0;
    for golden in fs::read_dir(golden(".")).unwrap() {
        let golden = golden.unwrap().path();
        let expected: Value =
            serde_json::from_slice(&fs::read(golden.join("expected.json")).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let from = golden.to_str().unwrap();
        run_in(dir, &["import", from, "--out-dir", "back"]).done();
        fs::write(dir.join("t.txt"), expected["text"].as_str().unwrap()).unwrap();
        let (loss, there) = (loss(dir, "back"), expected["loss"].as_f64().unwrap());
        assert!((loss / there - 1.0).abs() < 1e-6, "{from}: loss {loss} for {there}");
        let (prompt, new) = (expected["prompt"].as_str().unwrap(), expected["new"].to_string());
        let generate = ["generate", "--checkpoint", "back", "--greedy", "--log-format", "json"];
        let spoken = [&generate[..], &["--tokens", &new, "--prompt", prompt]].concat();
        assert_eq!(run_in(dir, &spoken).json()["text"], expected["said"], "{from}");
        seen += 1;
    }
    assert_eq!(seen, 10);
}

#[test]
fn what_is_exported_and_imported_again_is_the_same_model() {
    for flags in [
        "--tokenizer bytes",
        "--tokenizer chars --no-tied",
        "--tokenizer bpe:300",
        "--tokenizer bytes --activation relu2",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        train(dir, flags);
        export(dir, "");
        let config = fs::read_to_string(dir.join("model/config.json")).unwrap();
        assert_eq!(config.contains("\"relu2\""), flags.contains("relu2"), "{flags}");
        import(dir).done();
        assert_eq!(loss(dir, "back"), loss(dir, "out"), "{flags}");
        assert_eq!(spoken(dir, "back"), spoken(dir, "out"), "{flags}");
        // And what is exported from there is the same to the byte.
        run_in(dir, &words("export --checkpoint back --out again")).done();
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        {
            let bytes = |folder: &str| fs::read(dir.join(folder).join(name)).unwrap();
            assert!(bytes("model") == bytes("again"), "{flags}: {name}");
        }
    }
}

#[test]
fn a_model_without_biases_gets_zeros_and_computes_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes --no-bias");
    export(dir, "");
    let tensors = read(&dir.join("model/model.safetensors"));
    let (shape, bytes, _) = &tensors["transformer.h.1.mlp.c_fc.bias"];
    assert_eq!((shape, bytes), (&vec![64], &vec![0; 256]));
    import(dir).done();
    let difference = loss(dir, "back") - loss(dir, "out");
    assert!(difference.abs() < 1e-6, "{difference}");
}

#[test]
fn smaller_types_round_to_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "");
    let exact = read(&dir.join("model/model.safetensors"));
    for (name, dtype, digits) in [("f16", Dtype::F16, 11), ("bf16", Dtype::BF16, 8)] {
        run_in(dir, &words(&format!("export --checkpoint out --out {name} --weights {name}")))
            .done();
        let rounded = read(&dir.join(name).join("model.safetensors"));
        assert_eq!(rounded.len(), exact.len());
        for (tensor, (shape, bytes, kind)) in &rounded {
            let (exact_shape, exact_bytes, _) = &exact[tensor];
            assert_eq!((shape, *kind), (exact_shape, dtype));
            for (half, whole) in bytes.as_chunks::<2>().0.iter().zip(exact_bytes.as_chunks::<4>().0)
            {
                let value = f64::from(f32::from_le_bytes(*whole));
                let half = match dtype {
                    Dtype::F16 => half::f16::from_le_bytes(*half).to_f64(),
                    _ => half::bf16::from_le_bytes(*half).to_f64(),
                };
                // Half a step of so many binary digits, and of the smallest f16.
                let most = value.abs() * 0.5_f64.powi(digits) + 0.5_f64.powi(25);
                assert!((half - value).abs() <= most, "{tensor}: {half} for {value}");
            }
        }
        let import = format!("import {name} --out-dir back-{name}");
        run_in(dir, &words(&import)).done();
        let difference = loss(dir, &format!("back-{name}")) - loss(dir, "out");
        assert!(difference.abs() < 0.01, "{name}: {difference}");
    }
}

#[test]
fn several_files_and_other_spellings_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "");
    let model = dir.join("model");
    // As `GPT2Model` and old versions save: no prefix, masks, a copy of the tied table; in two files.
    let tensors = read(&model.join("model.safetensors"));
    fs::remove_file(model.join("model.safetensors")).unwrap();
    let mut parts = [Tensors::new(), Tensors::new()];
    let mut map = BTreeMap::new();
    for (place, (name, tensor)) in tensors.into_iter().enumerate() {
        let name = name.trim_start_matches("transformer.").to_owned();
        map.insert(name.clone(), format!("part-{}.safetensors", place % 2));
        if name == "wte.weight" {
            parts[1].insert("lm_head.weight".to_owned(), tensor.clone());
        }
        parts[place % 2].insert(name, tensor);
    }
    parts[0].insert("h.0.attn.bias".to_owned(), (vec![1, 1, 2, 2], vec![0; 4], Dtype::U8));
    for (place, part) in parts.iter().enumerate() {
        write(&model.join(format!("part-{place}.safetensors")), part);
    }
    let index = |map: &Value| {
        fs::write(
            model.join("model.safetensors.index.json"),
            json!({ "metadata": {}, "weight_map": map }).to_string(),
        )
        .unwrap();
    };
    index(&json!(map));
    import(dir).done();
    assert_eq!(loss(dir, "back"), loss(dir, "out"));

    let again = || run_in(dir, &words("import model --out-dir other"));
    index(&json!({ "wte.weight": "../part-0.safetensors" }));
    again().refused(1, &["index.json", "\"../part-0.safetensors\" is not a file of this folder"]);
    index(&json!({ "wte.weight": "part-7.safetensors" }));
    again().refused(1, &["part-7.safetensors"]);
    index(&json!({}));
    again().refused(1, &["weight_map names no file"]);
    parts[1].insert("h.0.ln_1.bias".to_owned(), parts[0]["h.0.ln_1.bias"].clone());
    write(&model.join("part-1.safetensors"), &parts[1]);
    index(&json!(map));
    again().refused(1, &["\"h.0.ln_1.bias\" is in"]);
    assert!(!dir.join("other").exists());
}

#[test]
fn wrong_tensors_are_named_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "");
    let whole = fs::read(dir.join("model/model.safetensors")).unwrap();
    const FC: &str = "transformer.h.1.mlp.c_fc.weight";
    type Change = fn(&mut Tensors);
    let cases: [(Change, &str); 6] = [
        (|t| drop(t.remove(FC)), "model.safetensors: no tensor transformer.h.1.mlp.c_fc.weight"),
        (
            |t| t.get_mut(FC).unwrap().0 = vec![64, 16],
            "has the shape [64, 16], but the config makes it [16, 64]",
        ),
        (
            |t| {
                let tensor = t.get_mut(FC).unwrap();
                (tensor.0, tensor.1, tensor.2) = (vec![16, 64], vec![0; 8192], Dtype::F64);
            },
            "is of F64",
        ),
        (
            |t| t.get_mut(FC).unwrap().1[4..8].copy_from_slice(&f32::NAN.to_le_bytes()),
            "value 1 of transformer.h.1.mlp.c_fc.weight is NaN",
        ),
        (
            |t| {
                drop(t.insert(
                    "transformer.h.2.ln_1.bias".into(),
                    (vec![16], vec![0; 64], Dtype::F32),
                ))
            },
            "no GPT-2 has the tensor transformer.h.2.ln_1.bias",
        ),
        (
            |t| {
                drop(t.insert(
                    "lm_head.weight".into(),
                    (vec![257, 16], vec![0; 257 * 64], Dtype::F32),
                ))
            },
            "lm_head.weight is not the token table",
        ),
    ];
    for (how, words) in cases {
        fs::write(dir.join("model/model.safetensors"), &whole).unwrap();
        change(dir, how);
        import(dir).refused(1, &[words]);
        assert!(!dir.join("back").exists(), "{words}");
    }
}

#[test]
fn damaged_and_hostile_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "");
    let path = dir.join("model/model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let tensor = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    let overlapping = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                          "b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("cut in the length", whole[..5].to_vec()),
        ("cut in the header", whole[..100].to_vec()),
        ("cut in the data", whole[..whole.len() - 1].to_vec()),
        ("too long", [&whole[..], &[0]].concat()),
        ("a header without end", u64::MAX.to_le_bytes().to_vec()),
        ("no JSON", header("hello")),
        ("sizes that overflow", header(&tensor("[4294967296, 4294967296, 2]", 0, 4))),
        ("more than there is", header(&tensor("[1000000000000]", 0, 4_000_000_000_000))),
        ("a range backwards", header(&tensor("[1]", 4, 0))),
        ("overlapping ranges", [header(overlapping), vec![0; 4]].concat()),
    ];
    for (what, bytes) in cases {
        fs::write(&path, bytes).unwrap();
        let ran = import(dir);
        assert_eq!(ran.code, 1, "{what}: {}", ran.stderr);
        ran.refused(1, &["model.safetensors: not a whole file of safetensors"]);
        assert!(!dir.join("back").exists(), "{what}");
    }
    fs::remove_file(&path).unwrap();
    import(dir).refused(1, &["model: no model.safetensors and no model.safetensors.index.json"]);
    fs::write(dir.join("model/pytorch_model.bin"), "x").unwrap();
    import(dir).refused(1, &["pytorch_model.bin is not read", "safe_serialization"]);
    fs::remove_file(dir.join("model/config.json")).unwrap();
    import(dir).refused(1, &["cannot read model/config.json"]);
    if cfg!(feature = "gguf") {
        run_in(dir, &["import", "t.txt", "--out-dir", "back"])
            .refused(1, &["t.txt: not a GGUF file, nor a folder"]);
    }
}

#[test]
fn configs_and_folders_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "");
    run_in(dir, &words("export --checkpoint out --out model")).refused(1, &["--out"]);
    run_in(dir, &words("import model --out-dir out")).refused(1, &["--out-dir"]);
    run_in(dir, &words("export --checkpoint out --out m --weights f8"))
        .refused(2, &["f32, f16, bf16 or q8_0"]);
    let config = dir.join("model/config.json");
    let text = fs::read(&config).unwrap();
    change_config(dir, |config| config["vocab_size"] = json!(200));
    import(dir)
        .refused(1, &["wte.weight has the shape [257, 16], but the config makes it [200, 16]"]);
    fs::write(&config, &text).unwrap();
    change_config(dir, |config| config["activation_function"] = json!("relu"));
    import(dir).refused(1, &["model/config.json", "activation_function"]);
    fs::write(&config, &text).unwrap();
    // A tokenizer of more ids than the model has.
    let tokenizer = dir.join("model/tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&tokenizer).unwrap()).unwrap();
    json["model"]["vocab"]["more"] = json!(300);
    fs::write(&tokenizer, json.to_string()).unwrap();
    import(dir).refused(1, &["tokenizer.json", "301 ids", "257"]);
    fs::write(&tokenizer, "{}").unwrap();
    import(dir).refused(1, &["tokenizer.json: not a usable tokenizer"]);
    // Without one the model is there, and says what it lacks.
    fs::remove_file(&tokenizer).unwrap();
    let ran = import(dir).done();
    assert!(ran.stdout.contains("no tokenizer of a known kind in model"), "{}", ran.stdout);
    run_in(dir, &words("generate --checkpoint back")).refused(1, &["back/tokenizer.json"]);
}

#[test]
fn nothing_that_is_there_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    let tokenizer = fs::read(dir.join("out/tokenizer.json")).unwrap();
    run_in(dir, &words("export --checkpoint out --out out"))
        .refused(1, &["out/tokenizer.json: it is there already", "--out"]);
    assert!(fs::read(dir.join("out/tokenizer.json")).unwrap() == tokenizer);
    export(dir, "");
    run_in(dir, &words("import model --out-dir model"))
        .refused(1, &["model: there is a tokenizer.json in this folder already", "--out-dir"]);
    // Weights of others behind an index would be read instead.
    fs::create_dir(dir.join("other")).unwrap();
    fs::write(dir.join("other/model.safetensors.index.json"), "{}").unwrap();
    run_in(dir, &words("export --checkpoint out --out other"))
        .refused(1, &["model.safetensors.index.json: it is there already"]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode();
        assert_eq!(mode("model/model.safetensors"), mode("model/config.json"));
    }
}

#[test]
fn the_end_of_text_is_the_models_own() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "");
    let path = dir.join("model/tokenizer.json");
    let text = fs::read_to_string(&path).unwrap().replace("<|endoftext|>", "[EOS]");
    let end = |config: Value, name: &str, out: &str| {
        fs::write(&path, &text).unwrap();
        fs::write(dir.join("model/tokenizer_config.json"), config.to_string()).unwrap();
        run_in(dir, &["import", "model", "--out-dir", out]).done();
        let told = run_in(dir, &["inspect", &format!("{out}/tokenizer.json"), "--json"]).json();
        assert_eq!(told["end of text"], name);
        // It travels on.
        run_in(dir, &["export", "--checkpoint", out, "--out", &format!("{out}-hf")]).done();
        let config = fs::read(dir.join(format!("{out}-hf/config.json"))).unwrap();
        serde_json::from_slice::<Value>(&config).unwrap()["eos_token_id"].clone()
    };
    // By name, as an object, by the model's id alone.
    assert_eq!(end(json!({ "eos_token": "[EOS]" }), "256 \"[EOS]\"", "a"), 256);
    assert_eq!(end(json!({ "eos_token": { "content": "[EOS]" } }), "256 \"[EOS]\"", "b"), 256);
    assert_eq!(end(json!({}), "256 \"[EOS]\"", "c"), 256);
    change_config(dir, |config| config["eos_token_id"] = json!([65, 256]));
    // All of them, the first of them first.
    assert_eq!(end(json!({}), "65 \"A\"", "d"), json!([65, 256]));
    fs::write(dir.join("model/tokenizer_config.json"), r#"{"eos_token": "none"}"#).unwrap();
    run_in(dir, &words("import model --out-dir e"))
        .refused(1, &["tokenizer.json", "its end of text \"none\" is not one of its tokens"]);
}

#[test]
fn other_ends_and_the_beginning_are_the_models_own() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "");
    assert!(!dir.join("model/generation_config.json").exists());
    let said = |of: &str, prompt: &str| {
        let generate = ["generate", "--checkpoint", of, "--greedy", "--log-format", "json"];
        let said = run_in(dir, &[&generate[..], &["--tokens", "8", "--prompt", prompt]].concat());
        let said = said.json();
        let text = said["text"].as_str().unwrap().to_owned();
        (text[prompt.len()..].to_owned(), said["tokens"].as_u64().unwrap())
    };
    let whole = said("out", "In the ");
    let end = whole.0.bytes().next().unwrap();
    let put = |name: &str, json: Value| fs::write(dir.join(name), json.to_string()).unwrap();
    put("model/generation_config.json", json!({ "eos_token_id": [256, end] }));
    import(dir).done();
    assert_eq!(said("back", "In the "), (String::new(), 1));
    run_in(dir, &words("export --checkpoint back --out again")).done();
    let read = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap()
    };
    assert_eq!(read("again/generation_config.json")["eos_token_id"], json!([256, end]));
    // A folder of this program's goes on with it.
    run_in(dir, &words("import again --out-dir twice")).done();
    assert_eq!(said("twice", "In the "), (String::new(), 1));
    assert_eq!(read("again/config.json")["eos_token_id"], json!([256, end]));
    put("model/generation_config.json", json!(3));
    run_in(dir, &words("import model --out-dir plain")).done();
    assert_eq!(said("plain", "In the "), whole);

    let mut config = read("model/tokenizer_config.json");
    config["bos_token"] = "A".into();
    config["add_bos_token"] = true.into();
    put("model/tokenizer_config.json", config);
    run_in(dir, &words("import model --out-dir begun")).done();
    assert_eq!(said("begun", "In the "), said("plain", "AIn the "));
    assert_eq!(said("begun", ""), said("plain", "A"));
    run_in(dir, &words("export --checkpoint begun --out begun-hf")).done();
    assert_eq!(read("begun-hf/tokenizer_config.json")["add_bos_token"], true);
    fs::write(dir.join("model/generation_config.json"), "{").unwrap();
    run_in(dir, &words("import model --out-dir none")).refused(1, &["generation_config.json"]);
}

#[test]
fn tied_models_may_keep_either_name_of_their_table() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "");
    change(dir, |tensors| {
        let table = tensors.remove("transformer.wte.weight").unwrap();
        tensors.insert("lm_head.weight".to_owned(), table);
    });
    import(dir).done();
    assert_eq!(loss(dir, "back"), loss(dir, "out"));
}

#[test]
fn hostile_tokenizers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "");
    let refused = |model: Value, words: &str| {
        let json = json!({ "model": model, "decoder": { "type": "ByteLevel" } });
        fs::write(dir.join("model/tokenizer.json"), json.to_string()).unwrap();
        import(dir).refused(1, &["tokenizer.json", words]);
    };
    let many = json!({ "type": "BPE", "vocab": { "a": 4_294_967_294_u32 }, "merges": [] });
    refused(many, "4294967294");
    let prefix = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1 }, "merges": ["a b"],
                         "continuing_subword_prefix": "##" });
    refused(prefix, "prefix");
}

#[test]
fn weights_that_a_type_cannot_hold_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "");
    change(dir, |tensors| {
        let (_, bytes, _) = tensors.get_mut("transformer.ln_f.weight").unwrap();
        bytes[..4].copy_from_slice(&1e6_f32.to_le_bytes());
    });
    import(dir).done();
    run_in(dir, &words("export --checkpoint back --out half --weights f16"))
        .refused(1, &["ln_f.weight has the value 1000000", "--weights bf16 or f32"]);
    // Nothing is left, so another try finds nothing in its way.
    assert!(!dir.join("half").exists());
    fs::create_dir(dir.join("half")).unwrap();
    run_in(dir, &words("export --checkpoint back --out half --weights f16")).failed();
    assert_eq!(fs::read_dir(dir.join("half")).unwrap().count(), 0);
    run_in(dir, &words("export --checkpoint back --out half --weights bf16")).done();
}

#[test]
fn what_a_model_advises_and_its_padding_stay_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "");
    let read = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap()
    };
    let put = |name: &str, json: Value| fs::write(dir.join(name), json.to_string()).unwrap();
    let advice = json!({ "do_sample": true, "temperature": 0.6, "top_p": 0.9, "pad_token_id": 65,
                         "eos_token_id": 256 });
    put("model/generation_config.json", advice.clone());
    let mut tokenizer = read("model/tokenizer_config.json");
    tokenizer["pad_token"] = "A".into();
    put("model/tokenizer_config.json", tokenizer);
    import(dir).done();
    // And with what is trained from it.
    let tune = "train --base back --data t.txt --max-steps 1 --sample-tokens 0 --out-dir tuned";
    run_in(dir, &words(tune)).done();
    for run in ["back", "tuned"] {
        let out = format!("{run}-hf");
        run_in(dir, &["export", "--checkpoint", run, "--out", &out]).done();
        let (given, advised) = (read(&format!("{out}/generation_config.json")), &advice);
        for (key, value) in advised.as_object().unwrap() {
            assert_eq!(given[key], *value, "{run}: {key}");
        }
        assert_eq!(read(&format!("{out}/tokenizer_config.json"))["pad_token"], "A", "{run}");
        assert_eq!(read(&format!("{out}/config.json"))["pad_token_id"], 65, "{run}");
    }
}
