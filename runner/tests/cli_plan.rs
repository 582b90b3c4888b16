//! `cllm plan` against numbers worked out by hand.

mod cli_support;

use cli_support::{plan, run, run_in};
use cllm_core::Pool;
use serde_json::json;
use std::fs;

/// One layer of width 16 over 8 tokens: all tensors are whole cache lines, so nothing is
/// padding.
const SMALL: [&str; 12] = [
    "--n-layer",
    "1",
    "--n-head",
    "2",
    "--n-embd",
    "16",
    "--block-size",
    "8",
    "--batch-size",
    "2",
    "--vocab-size",
    "257",
];

/// Weights of the block: norms' gains, qkv, attention out, fc, mlp out; and their biases.
const BLOCK: u64 = 16 + 16 * 48 + 16 * 16 + 16 + 16 * 64 + 64 * 16;
const BLOCK_BIASES: u64 = 16 + 48 + 16 + 16 + 64 + 16;
/// Token and position tables.
const TABLES: u64 = 257 * 16 + 8 * 16;

#[test]
fn parameters_bytes_and_flops_are_those_worked_out_by_hand() {
    let small = plan(&SMALL);
    let parameters = TABLES + BLOCK + BLOCK_BIASES + 2 * 16;
    assert_eq!(small["parameters"], json!(parameters));
    assert_eq!(small["tensors"], json!(2 + 12 + 2));
    let pools = &small["pools"];
    assert_eq!(pools["parameters"], json!(4 * parameters));
    assert_eq!(pools["gradients"], json!(4 * parameters));
    assert_eq!(pools["moments"], json!(8 * parameters));
    let moments = |optimizer| {
        let planned = plan(&[&SMALL[..], &["--optimizer", optimizer]].concat());
        assert_eq!(planned["pools"]["gradients"], json!(4 * parameters), "{optimizer}");
        planned["pools"]["moments"].as_u64().unwrap()
    };
    assert_eq!(["adamw", "momentum", "sgd"].map(moments), [8, 4, 0].map(|of| of * parameters));
    // Two codes of a byte, and two scales a block of 64 parameters of a tensor or a part of one.
    let eight_bits = moments("adamw8");
    assert!((2 * parameters..5 * parameters / 2).contains(&eight_bits), "{eight_bits}");
    // 16 ids and 16 targets of 4 bytes: the four made ready by default, and one for validation.
    assert_eq!(pools["batch"], json!(5 * 128));
    let total: u64 = pools.as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(small["total_bytes"], json!(total));
    assert_eq!(pools.as_object().unwrap().len(), Pool::ALL.len());
    // 6 (4 d^2 + 2 d ff + V d) + 6 T d a token.
    let token = 6 * (4 * 256 + 2 * 16 * 64 + 257 * 16) + 6 * 8 * 16;
    assert_eq!(small["step_flops"].as_f64().unwrap(), f64::from(16 * token));
    assert_eq!(small["tokens_per_step"], json!(16));
}

#[test]
fn what_counting_takes_is_told() {
    assert_eq!(plan(&SMALL)["counting_bytes"], json!(0));
    let counting =
        [&SMALL[..], &["--bigram-init", "--no-tied", "--norm", "rms", "--no-bias"]].concat();
    let planned = plan(&counting);
    // At least a number and a place for each of four million pairs, and four factors of the table's size.
    let least = (1 << 22) * 16 + 4 * 4 * 257 * 16;
    let bytes = planned["counting_bytes"].as_u64().unwrap();
    assert!((least..2 * least).contains(&bytes), "{bytes}");
    let told = run(&[&["plan", "--no-estimate"], &counting[..]].concat());
    let besides = told.stdout.lines().find(|line| line.contains("--bigram-init"));
    let besides = besides.expect(&told.stdout);
    assert!(besides.trim_start().starts_with("besides"), "{besides}");
}

#[test]
fn the_shape_of_the_model_counts() {
    let parameters = |more: &[&str]| plan(&[&SMALL[..], more].concat())["parameters"].clone();
    let base = TABLES + BLOCK + 16;
    assert_eq!(parameters(&["--no-bias"]), json!(base));
    assert_eq!(parameters(&["--no-bias", "--no-tied"]), json!(base + 257 * 16));
    assert_eq!(parameters(&["--no-bias", "--d-ff", "32"]), json!(base - 2 * 16 * 32));
    // Published: https://huggingface.co/openai-community/gpt2, 124M.
    let gpt2 = plan(&["--preset", "gpt2"]);
    assert_eq!(gpt2["parameters"], json!(124_439_808));
    // Of https://huggingface.co/HuggingFaceTB/SmolLM2-135M.
    let smollm2 = plan(&["--preset", "smollm2"]);
    assert_eq!(smollm2["parameters"], json!(134_515_008));
    assert_eq!(smollm2["config"]["parts"]["n_kv_head"], json!(3));
    // RMS norm and angles leave out biases and the table of positions; a third matrix, and two thirds
    // of the width in whole lines: 48. Of 32 columns of keys and values one head of two is left.
    let llama = ["--norm", "rms", "--positions", "rotary", "--activation", "swiglu", "--no-bias"];
    let block = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 48 + 2 * 16;
    let grouped = [&llama[..], &["--n-kv-head", "1"]].concat();
    assert_eq!(parameters(&grouped), json!(257 * 16 + block + 16));
    let reference = plan(&["--preset", "reference"]);
    assert_eq!(reference["parameters"], json!(4_472_320));
    assert_eq!(reference["tokens_per_step"], json!(4096));
}

#[test]
fn accumulation_multiplies_work_but_not_memory() {
    let one = plan(&SMALL);
    let three = plan(&[&SMALL[..], &["--gradient-accumulation-steps", "3"]].concat());
    assert_eq!(three["pools"], one["pools"]);
    assert_eq!(three["tokens_per_step"], json!(48));
    let flops = |plan: &serde_json::Value| plan["step_flops"].as_f64().unwrap();
    assert_eq!(flops(&three), 3.0 * flops(&one));
}

#[test]
fn recomputing_takes_less_memory_and_more_work() {
    // With one worker all layers but the last are made again: norm, qkv, out and fc.
    let layers = ["--n-layer", "4", "--threads", "1"];
    let kept = plan(&[&SMALL[2..], &layers].concat());
    let remade = plan(&[&SMALL[2..], &layers, &["--recompute"]].concat());
    assert_eq!((&kept["recompute"], &remade["recompute"]), (&json!(false), &json!(true)));
    assert_eq!(remade["step_flops"], kept["step_flops"]);
    assert_eq!(kept["recomputed_flops"], json!(0.0));
    assert_eq!(remade["recomputed_flops"], json!(f64::from(16 * 3 * 2 * (4 * 256 + 16 * 64))));
    let activations = |plan: &serde_json::Value| plan["pools"]["activations"].as_u64().unwrap();
    // Three layers' qkv, mid, fc_pre and four values of norms less, one norm's output more.
    let inner = 16 * (4 * 16 + 64 + 4);
    assert_eq!(activations(&kept) - activations(&remade), 4 * (3 * inner - 16 * 16));
    for pool in ["parameters", "gradients", "moments", "packed", "scratch", "batch"] {
        assert_eq!(kept["pools"][pool], remade["pools"][pool], "{pool}");
    }
    let text = run(&["plan", "--preset", "gpt2", "--threads", "1", "--recompute"]).stdout;
    assert!(text.contains(" GFLOP, and ") && text.contains(" recomputed"), "{text}");
}

#[test]
fn batches_made_ready_take_memory() {
    for (flags, batches) in [(&["--prefetch", "1"][..], 2), (&["--prefetch", "64"], 65)] {
        let plan = plan(&[&SMALL[..], flags].concat());
        assert_eq!(plan["prefetch"], json!(batches - 1));
        assert_eq!(plan["pools"]["batch"], json!(batches * 128));
        let pools = plan["pools"].as_object().unwrap();
        let total: u64 = pools.values().map(|bytes| bytes.as_u64().unwrap()).sum();
        assert_eq!(plan["total_bytes"], json!(total));
    }
}

#[test]
fn the_vocabulary_is_what_training_would_find() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.txt"), "abcabcabd ".repeat(50)).unwrap();
    let vocab = |args: &[&str]| {
        let plan = run_in(dir.path(), &[&["plan", "--json", "--no-estimate"], args].concat());
        plan.json()["config"]["vocab_size"].clone()
    };
    assert_eq!(vocab(&["--tokenizer", "bytes"]), json!(257));
    assert_eq!(vocab(&["--tokenizer", "bpe:999"]), json!(999));
    // a, b, c, d, the space, and the end of text.
    assert_eq!(vocab(&["--tokenizer", "chars", "--data", "t.txt"]), json!(6));
    let shards = ["tokenize", "--data", "t.txt", "--tokenizer", "chars", "--out", "shards"];
    assert_eq!(run_in(dir.path(), &shards).code, 0);
    assert_eq!(vocab(&["--data", "shards"]), json!(6));
    assert_eq!(vocab(&["--tokenizer", "shards/tokenizer.json"]), json!(6));
    assert_eq!(vocab(&["--data", "shards", "--vocab-size", "64"]), json!(64));
    fs::remove_file(dir.path().join("shards/tokenizer.json")).unwrap();
    let unknown = run_in(dir.path(), &["plan", "--data", "shards"]);
    unknown.refused(2, &["shards", "--vocab-size"]);
}

#[test]
fn the_estimate_follows_from_what_was_measured() {
    let plan = run(&[&["plan", "--json", "--max-steps", "10"], &SMALL[..]].concat()).json();
    let estimate = |key: &str| plan["estimate"][key].as_f64().unwrap();
    let step = estimate("seconds_per_step");
    assert!(step > 0.0 && estimate("peak_flops_per_s") > 1e8);
    assert!((estimate("seconds") / step - 10.0).abs() < 1e-6);
    assert!((estimate("tokens_per_s") * step - 16.0).abs() < 1e-6);
    let rate = plan["step_flops"].as_f64().unwrap() / step;
    let threads = plan["threads"].as_f64().unwrap();
    assert!(rate < threads * estimate("gemm_flops_per_s"), "{rate}");
}

#[test]
fn people_get_the_same_numbers() {
    let text = run(&["plan", "--preset", "gpt2", "--no-estimate"]).stdout;
    for part in ["124,439,808 in 148 tensors", "497,759,232  474.7 MiB", "4,096 tokens", "total"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains("estimate") && !text.contains("norm"), "{text}");
    let text = run(&["plan", "--preset", "smollm2", "--no-estimate"]).stdout;
    let parts = "rms norm, rotary positions (theta 100000), swiglu, 3 heads of keys and values";
    assert!(text.contains(parts), "{text}");
    let later = ["--activation", "relu2", "--logit-softcap", "15"];
    let text = run(&[&["plan", "--no-estimate"][..], &later].concat()).stdout;
    assert!(text.contains("learned positions, relu2, logits capped at 15"), "{text}");
    let text = run(&["plan", "--no-estimate", "--logit-softcap", "0"]).stdout;
    assert!(!text.contains("capped"), "{text}");
}
