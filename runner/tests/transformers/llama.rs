//! Folders of the Llama family.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::cli_support::{loss, run_in, words};
use super::{Tensors, change, change_config, export, golden, import, read, train};

/// All tensors of a folder, of all its files, with values in `f32`.
fn values(dir: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let weights = files.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    let wide = |(name, (shape, bytes, dtype)): (String, (_, Vec<u8>, _))| match dtype {
        // The upper half.
        Dtype::BF16 => (name, (shape, bytes.chunks(2).flat_map(|x| [0, 0, x[0], x[1]]).collect())),
        _ => (name, (shape, bytes)),
    };
    weights.flat_map(|path| read(&path)).map(wide).collect()
}

#[test]
fn what_was_imported_is_exported_as_it_was() {
    let same = [
        "architectures",
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "sliding_window",
        "eos_token_id",
    ];
    for name in ["llama", "llama-untied-bf16", "llama-biases", "qwen2", "qwen3", "mistral"] {
        let dir = tempfile::tempdir().unwrap();
        let (dir, from) = (dir.path(), golden(name));
        run_in(dir, &["import", from.to_str().unwrap(), "--out-dir", "out"]).done();
        export(dir, "");
        assert!(values(&dir.join("model")) == values(&from), "{name}: other tensors");
        let config = |dir: &Path| -> Value {
            serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
        };
        let (ours, theirs) = (config(&dir.join("model")), config(&from));
        for field in same {
            assert_eq!(ours[field], theirs[field], "{name}: {field}");
        }
        let rope = &theirs["rope_parameters"];
        assert_eq!(ours["rope_theta"], rope["rope_theta"], "{name}");
        let share = theirs["hidden_size"].as_u64().map(|width| width / 4);
        let head_dim = theirs["head_dim"].as_u64().or(share);
        assert_eq!(ours["head_dim"].as_u64(), head_dim, "{name}");
        match rope["rope_type"].as_str().unwrap() {
            "default" => assert_eq!(ours["rope_scaling"], Value::Null, "{name}"),
            _ => {
                let mut rope = rope.clone();
                rope.as_object_mut().unwrap().remove("rope_theta");
                assert_eq!(ours["rope_scaling"], rope, "{name}");
            }
        }
        // And again: the same to the byte.
        import(dir).done();
        run_in(dir, &words("export --checkpoint back --out again")).done();
        for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        {
            let bytes = |folder: &str| fs::read(dir.join(folder).join(file)).unwrap();
            assert!(bytes("model") == bytes("again"), "{name}: {file}");
        }
    }
}

/// The folder `model` of a Llama, as this program exports it.
fn llama(dir: &Path) {
    run_in(dir, &["import", golden("llama").to_str().unwrap(), "--out-dir", "out"]).done();
    fs::write(dir.join("t.txt"), "And God said, Let there be light.\n".repeat(9)).unwrap();
    export(dir, "");
}

#[test]
fn other_spellings_of_the_llama_family_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    llama(dir);
    // As `LlamaModel` and old versions save: no prefix, angles, a copy of the tied table.
    change(dir, |tensors| {
        let all = core::mem::take(tensors).into_iter();
        tensors.extend(all.map(|(name, of)| (name.trim_start_matches("model.").to_owned(), of)));
        tensors.insert("lm_head.weight".to_owned(), tensors["embed_tokens.weight"].clone());
        let angles = (vec![3], vec![0; 12], Dtype::F32);
        tensors.insert("layers.1.self_attn.rotary_emb.inv_freq".to_owned(), angles);
    });
    import(dir).done();
    assert_eq!(loss(dir, "back"), loss(dir, "out"));
    fs::remove_dir_all(dir.join("back")).unwrap();
    // The head alone.
    change(dir, |tensors| drop(tensors.remove("embed_tokens.weight")));
    import(dir).done();
    assert_eq!(loss(dir, "back"), loss(dir, "out"));
}

#[test]
fn wrong_tensors_of_the_llama_family_are_named_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    llama(dir);
    let whole = fs::read(dir.join("model/model.safetensors")).unwrap();
    const UP: &str = "model.layers.1.mlp.up_proj.weight";
    const KEYS: &str = "model.layers.0.self_attn.k_proj.weight";
    type Change = fn(&mut Tensors);
    let cases: [(Change, &str); 8] = [
        (|t| drop(t.remove(UP)), "model.safetensors: no tensor model.layers.1.mlp.up_proj.weight"),
        (
            |t| t.get_mut(UP).unwrap().0 = vec![24, 40],
            "mlp.up_proj.weight has the shape [24, 40], but the config makes it [40, 24]",
        ),
        (
            // As many as of queries.
            |t| *t.get_mut(KEYS).unwrap() = t["model.layers.0.self_attn.q_proj.weight"].clone(),
            "k_proj.weight has the shape [24, 24], but the config makes it [12, 24]",
        ),
        (
            |t| {
                let tensor = t.get_mut(KEYS).unwrap();
                (tensor.1, tensor.2) = (vec![0; 12 * 24], Dtype::I8);
            },
            "k_proj.weight is of I8",
        ),
        (
            |t| t.get_mut(UP).unwrap().1[4 * (39 * 24 + 7)..][..4].fill(0xff),
            "value 7 of row 39 of model.layers.1.mlp.up_proj.weight is NaN",
        ),
        (
            |t| {
                let bias = (vec![24], vec![0; 96], Dtype::F32);
                drop(t.insert("model.layers.0.self_attn.q_proj.bias".into(), bias));
            },
            "no Llama of this config.json has the tensor model.layers.0.self_attn.q_proj.bias",
        ),
        (
            |t| drop(t.insert("h.0.attn.bias".into(), (vec![1], vec![0; 4], Dtype::F32))),
            "no Llama of this config.json has the tensor h.0.attn.bias",
        ),
        (
            |t| {
                let head = (vec![293, 24], vec![0; 293 * 96], Dtype::F32);
                drop(t.insert("lm_head.weight".into(), head));
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
    fs::write(dir.join("model/model.safetensors"), &whole).unwrap();
    change_config(dir, |config| config["rope_scaling"] = json!({ "type": "yarn", "factor": 2.0 }));
    import(dir).refused(1, &["model/config.json", "rope_scaling of rope_type \"yarn\""]);
    // Sizes that nothing has.
    change_config(dir, |config| {
        config["rope_scaling"] = Value::Null;
        config["intermediate_size"] = json!(1 << 28);
        config["num_hidden_layers"] = json!(1 << 28);
    });
    import(dir).refused(1, &["model"]);
    assert!(!dir.join("back").exists());
}

/// What it computes is compared with the other folders.
#[test]
fn nanochat_comes_in_to_be_trained_and_does_not_go_out() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, from) = (dir.path(), golden("nanochat"));
    run_in(dir, &["import", from.to_str().unwrap(), "--out-dir", "back"]).done();
    for format in ["safetensors", "gguf", "llmc"] {
        let export = format!("export --checkpoint back --out model --format {format}");
        run_in(dir, &words(&export)).refused(1, &["back"]);
        assert!(!dir.join("model").exists(), "{format}");
    }
    fs::write(dir.join("t.txt"), "And God said, Let there be light. ".repeat(30)).unwrap();
    let train = "train --base back --data t.txt --out-dir run --max-steps 8 --batch-size 2 \
                 --learning-rate 0.01 --warmup-steps 0 --sample-tokens 0 --val-fraction 0";
    run_in(dir, &words(train)).done();
    assert!(loss(dir, "run") < loss(dir, "back") - 0.3, "nothing is learned");

    // What is no tensor of it, or too few of them.
    fs::create_dir(dir.join("model")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(from.join(name), dir.join("model").join(name)).unwrap();
    }
    fs::remove_dir_all(dir.join("back")).unwrap();
    let gain = || (vec![24], vec![0; 96], Dtype::F32);
    change(dir, |tensors| _ = tensors.insert("model.norm.weight".to_owned(), gain()));
    import(dir).refused(1, &["no nanochat of this config.json has the tensor model.norm.weight"]);
    change(dir, |tensors| {
        tensors.remove("model.norm.weight");
        tensors.remove("model.layers.1.mlp.fc2.weight");
    });
    import(dir).refused(1, &["model.layers.1.mlp.fc2.weight"]);
    assert!(!dir.join("back").exists());
}

#[test]
fn models_that_are_of_no_family_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let llama = "--norm rms --positions rotary --activation swiglu";
    for (flags, words) in [
        ("--norm rms", "out: other programs have no model that is not GPT-2's"),
        ("--head-size 12", "--norm rms"),
        ("--norm rms --positions rotary", "--activation swiglu"),
        (&format!("{llama} --head-size 6 --n-head 3"), "biases of width 16 and 3 heads"),
        (&format!("{llama} --qk-norm"), "no model with --qk-norm and biases"),
        (&format!("{llama} --qk-norm --bias false --qkv-bias"), "--qk-norm and biases"),
        ("--norm rms --positions rotary --activation relu2", "--activation swiglu"),
        ("--logit-softcap 15", "with --logit-softcap 15"),
        ("--previous-tokens 2", "with --previous-tokens 2"),
        (&format!("{llama} --logit-softcap 30"), "with --logit-softcap 30"),
    ] {
        train(dir, &format!("--tokenizer bytes {flags}"));
        run_in(dir, &["export", "--checkpoint", "out", "--out", "model"]).refused(1, &[words]);
        assert!(!dir.join("model").exists(), "{flags}");
        fs::remove_dir_all(dir.join("out")).unwrap();
    }
    for (flags, model_type) in [
        ("--bias false --head-size 6 --n-head 3", "mistral"),
        ("--bias false --qkv-bias --n-head 4 --n-kv-head 2", "qwen2"),
        ("--bias false --qk-norm --head-size 6 --n-head 3 --n-kv-head 1", "qwen3"),
        ("--n-head 2 --n-kv-head 1", "llama"),
    ] {
        train(dir, &format!("--tokenizer bytes {llama} {flags}"));
        export(dir, "");
        let config = fs::read(dir.join("model/config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["model_type"], model_type, "{flags}");
        import(dir).done();
        assert_eq!(loss(dir, "back"), loss(dir, "out"), "{flags}");
        for folder in ["out", "model", "back"] {
            fs::remove_dir_all(dir.join(folder)).unwrap();
        }
    }
}
