//! Files of llama.cpp: out and in again, and all that can be wrong with them.
#![cfg(feature = "gguf")]

mod cli_support;

use std::fs;
use std::path::Path;

use cli_support::{Ran, loss, run_in, spoken, words};

/// A run folder `out` of a model that has learnt a little, with these flags.
fn train(dir: &Path, flags: &str) {
    let verse = "In the beginning God created the heaven and the earth.\n";
    fs::write(dir.join("t.txt"), verse.repeat(40)).unwrap();
    let width = if flags.contains("--n-embd") { "" } else { "--n-embd 32" };
    let small = "train --data t.txt --n-layer 2 --n-head 2 --block-size 16 --batch-size 2 \
                 --max-steps 20 --sample-tokens 0 --val-fraction 0 --seed 5";
    run_in(dir, &words(&format!("{small} {width} {flags}"))).done();
}

fn export(dir: &Path, flags: &str) -> Ran {
    run_in(dir, &words(&format!("export --checkpoint out --format gguf --out m.gguf {flags}")))
}

fn import(dir: &Path, out: &str) -> Ran {
    run_in(dir, &["import", "m.gguf", "--out-dir", out])
}

#[test]
fn what_is_exported_and_imported_again_is_the_same_model() {
    let kinds = ["bytes", "chars --no-tied", "bpe:300", "bytes --no-bias"];
    for flags in kinds.map(|kind| format!("--tokenizer {kind}")) {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        train(dir, &flags);
        export(dir, "").done();
        import(dir, "back").done();
        // Biases of zeros are added where there were none.
        let difference = loss(dir, "back") - loss(dir, "out");
        let most = if flags.contains("no-bias") { 1e-6 } else { 0.0 };
        assert!(difference.abs() <= most, "{flags}: {difference}");
        assert_eq!(spoken(dir, "back"), spoken(dir, "out"), "{flags}");
        // And what is exported from there is the same to the byte.
        run_in(dir, &words("export --checkpoint back --format gguf --out again.gguf")).done();
        let bytes = |name: &str| fs::read(dir.join(name)).unwrap();
        assert!(bytes("m.gguf") == bytes("again.gguf"), "{flags}");
    }
}

/// Flags of a model of the Llama family.
const LLAMA: &str =
    "--tokenizer bytes --norm rms --positions rotary --activation swiglu --n-kv-head 1";

#[test]
fn models_of_the_llama_family_come_back_too() {
    let wide = "--no-bias --head-size 24 --no-tied --rope-theta 500";
    for flags in ["--no-bias", wide, "--no-bias --qkv-bias", "--bias", "--no-bias --qk-norm"] {
        let flags = format!("{LLAMA} {flags}");
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        train(dir, &flags);
        export(dir, "").done();
        import(dir, "back").done();
        let model = |of: &str| run_in(dir, &["inspect", of, "--json"]).json()["model"].clone();
        assert_eq!(model("back/step-0.cllm"), model("out/step-20.cllm"), "{flags}");
        assert_eq!(loss(dir, "back"), loss(dir, "out"), "{flags}");
        assert_eq!(spoken(dir, "back"), spoken(dir, "out"), "{flags}");
        run_in(dir, &words("export --checkpoint back --format gguf --out again.gguf")).done();
        let bytes = |name: &str| fs::read(dir.join(name)).unwrap();
        assert!(bytes("m.gguf") == bytes("again.gguf"), "{flags}");
    }
}

#[test]
fn parts_that_llama_cpp_has_in_no_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes --norm rms");
    export(dir, "").refused(1, &["step-20.cllm: ", "--positions rotary"]);
    assert!(!dir.join("m.gguf").exists());
}

#[test]
fn smaller_types_lose_little_and_take_less() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    let exact = loss(dir, "out");
    let mut sizes = Vec::new();
    for (kind, most) in [("f32", 0.0), ("f16", 1e-4), ("bf16", 2e-3), ("q8_0", 5e-3)] {
        export(dir, &format!("--weights {kind}")).done();
        import(dir, kind).done();
        let difference = (loss(dir, kind) - exact).abs();
        assert!(difference <= most, "{kind}: {difference}");
        let file = dir.join("m.gguf");
        sizes.push(fs::metadata(&file).unwrap().len());
        fs::remove_file(file).unwrap();
    }
    let [f32, f16, bf16, q8_0] = sizes[..] else { panic!("{sizes:?}") };
    assert!(f16 == bf16 && f16 < f32 * 7 / 10 && q8_0 < f16 * 8 / 10, "{sizes:?}");
}

#[test]
fn what_cannot_be_expressed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "").done();
    export(dir, "").refused(1, &["m.gguf: it is there already", "--out"]);
    import(dir, "out").refused(1, &["out: there is a run", "--out-dir"]);
    if cfg!(feature = "hf") {
        run_in(dir, &words("export --checkpoint out --out m --weights q8_0"))
            .refused(2, &["q8_0", "--format gguf"]);
    }
    run_in(dir, &words("export --checkpoint out --out m --format ggml"))
        .refused(2, &["--format", "safetensors, gguf, llmc or peft"]);
    run_in(dir, &words("import none.gguf --out-dir back")).refused(1, &["none.gguf"]);
    // A tokenizer of characters of several bytes.
    fs::write(dir.join("t.txt"), "déjà vu, déjà vu ".repeat(40)).unwrap();
    let train = "train --data t.txt --tokenizer chars --n-layer 1 --n-head 1 --n-embd 8 --block-size 8 \
                 --batch-size 1 --max-steps 1 --sample-tokens 0 --out-dir chars";
    run_in(dir, &words(train)).done();
    run_in(dir, &words("export --checkpoint chars --format gguf --out c.gguf"))
        .refused(1, &["character", "--tokenizer bpe:N"]);
    assert!(!dir.join("c.gguf").exists());
}

/// Replaces the one place of `from` in the file by `to`, of the same length.
fn replace(dir: &Path, from: &[u8], to: &[u8]) {
    let path = dir.join("m.gguf");
    let mut bytes = fs::read(&path).unwrap();
    let mut places = bytes.windows(from.len()).enumerate().filter(|(_, window)| *window == from);
    let (at, _) = places.next().expect("it is there");
    assert!(places.next().is_none(), "it is there once");
    bytes[at..at + to.len()].copy_from_slice(to);
    fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_files_are_named_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    export(dir, "").done();
    let whole = fs::read(dir.join("m.gguf")).unwrap();
    type Case = (&'static [u8], &'static [u8], &'static str);
    let cases: [Case; 6] = [
        (b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight", "no tensor blk.1.ffn_up.weight"),
        (b"gpt2.block_count", b"gpt2.block_xount", "no key gpt2.block_count"),
        (b"general.architecture", b"general.architectura", "no general.architecture"),
        (
            b"gpt2.attention.head_count\x04\0\0\0\x02",
            b"gpt2.attention.head_count\x04\0\0\0\x03",
            "32 is not a multiple of gpt2.attention.head_count 3",
        ),
        (
            b"gpt2.block_count\x04\0\0\0\x02",
            b"gpt2.block_count\x04\0\0\0\x01",
            "no GPT-2 has the tensor blk.1",
        ),
        (
            b"gpt2.embedding_length\x04\0\0\0\x20",
            b"gpt2.embedding_length\x04\0\0\0\x10",
            "has the dimensions",
        ),
    ];
    for (from, to, words) in cases {
        fs::write(dir.join("m.gguf"), &whole).unwrap();
        replace(dir, from, to);
        import(dir, "back").refused(1, &["m.gguf: ", words]);
    }
    fs::write(dir.join("m.gguf"), &whole).unwrap();
    replace(
        dir,
        b"architecture\x08\0\0\0\x04\0\0\0\0\0\0\0gpt2",
        b"architecture\x08\0\0\0\x04\0\0\0\0\0\0\0gptj",
    );
    import(dir, "back").refused(1, &["\"gptj\" cannot be imported; gpt2, llama, qwen2, qwen3 can"]);
    for len in [0, 3, 4, 100, 5000, whole.len() / 2, whole.len() - 1] {
        fs::write(dir.join("m.gguf"), &whole[..len]).unwrap();
        import(dir, "back").refused(1, &["m.gguf: "]);
    }
    let mut last = whole.clone();
    let end = last.len();
    last[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(dir.join("m.gguf"), last).unwrap();
    import(dir, "back").refused(1, &["is inf: the weights are damaged"]);
    assert!(!dir.join("back").exists());
}

#[test]
fn damaged_files_of_the_llama_family_are_named_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, &format!("{LLAMA} --no-bias"));
    export(dir, "").done();
    let whole = fs::read(dir.join("m.gguf")).unwrap();
    type Case = (&'static [u8], &'static [u8], &'static str);
    let cases: [Case; 5] = [
        (b"blk.1.attn_k.weight", b"blk.1.attn_x.weight", "no tensor blk.1.attn_k.weight"),
        (b"blk.1.ffn_gate.weight", b"blk.1.ffn_gate.wright", "no tensor blk.1.ffn_gate.weight"),
        (
            b"layer_norm_rms_epsilon",
            b"layer_norm_xxx_epsilon",
            "no key llama.attention.layer_norm_rms",
        ),
        (
            b"llama.attention.key_length\x04\0\0\0\x10",
            b"llama.attention.key_length\x04\0\0\0\x08",
            "value_length is 16, but heads have 8 columns",
        ),
        (
            b"llama.attention.head_count_kv\x04\0\0\0\x01",
            b"llama.attention.head_count_kv\x04\0\0\0\x02",
            "blk.0.attn_k.weight has the dimensions [32, 16], but the keys make it [32, 32]",
        ),
    ];
    for (from, to, words) in cases {
        fs::write(dir.join("m.gguf"), &whole).unwrap();
        replace(dir, from, to);
        import(dir, "back").refused(1, &["m.gguf: ", words]);
    }
    let step = whole.len() / 40;
    for len in (0..whole.len()).step_by(step) {
        fs::write(dir.join("m.gguf"), &whole[..len]).unwrap();
        import(dir, "back").refused(1, &["m.gguf: "]);
    }
    assert!(!dir.join("back").exists());
}

#[test]
fn rows_that_are_not_of_whole_blocks_are_f16_and_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes --n-embd 40 --d-ff 64");
    let said = export(dir, "--weights q8_0").done().stdout;
    // Of rows of 40: the table, and of each block all but the second of the feed-forward layer.
    assert!(said.contains("7 matrices are f16"), "{said}");
    import(dir, "back").done();
    assert!((loss(dir, "back") - loss(dir, "out")).abs() < 5e-3);
}

#[test]
fn words_taken_whole_cannot_be_exported() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes");
    let tokenizer = cllm::tokenizer::BpeTokenizer::from_words([]).unwrap();
    let tokenizer = cllm::tokenizer::Tokenizer::Bpe(Box::new(tokenizer));
    tokenizer.save(&dir.join("out/tokenizer.json")).unwrap();
    export(dir, "").done();
    fs::remove_file(dir.join("m.gguf")).unwrap();
    let text = fs::read_to_string(dir.join("out/tokenizer.json")).unwrap();
    // A word in place of a byte.
    let text = text.replacen("\"z\":", "\"zebra\":", 1);
    assert!(text.contains("zebra"));
    fs::write(dir.join("out/tokenizer.json"), text).unwrap();
    let ran = export(dir, "");
    assert_eq!(ran.code, 1);
    let [warning, refused] = ran.stderr.lines().collect::<Vec<_>>()[..] else {
        panic!("{}", ran.stderr)
    };
    assert!(warning.contains("is not the tokenizer that out/step-20.cllm was trained with"));
    assert!(refused.contains("words whole") && refused.contains("--tokenizer bpe:N"), "{refused}");
    assert!(!dir.join("m.gguf").exists());
}

#[test]
fn one_table_for_both_ends_is_known_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    train(dir, "--tokenizer bytes --no-tied");
    // A head that is a copy of the table, as older files have it.
    let path = dir.join("out/step-20.cllm");
    assert!(path.exists());
    export(dir, "").done();
    let mut bytes = fs::read(dir.join("m.gguf")).unwrap();
    let len = 257 * 32 * 4;
    // The table is the first tensor, the head the last.
    let head = bytes.len() - len;
    let start = data_start(&bytes);
    let copy = bytes[start..start + len].to_vec();
    bytes[head..].copy_from_slice(&copy);
    fs::write(dir.join("m.gguf"), bytes).unwrap();
    import(dir, "back").done();
    let told = run_in(dir, &["inspect", "back/step-0.cllm", "--json"]).json();
    assert_eq!(told["model"]["tied"], true);
}

/// Where the tensors begin: what follows is as many bytes as they have.
fn data_start(bytes: &[u8]) -> usize {
    let vectors = 4 * (2 * (4 * 32 + 3 * 32 + 32 + 128 + 32) + 2 * 32);
    let matrices = 4 * (2 * 257 * 32 + 16 * 32 + 2 * (4 * 32 * 32 + 2 * 32 * 128));
    bytes.len() - vectors - matrices
}
