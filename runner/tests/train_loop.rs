//! A whole run: what it learns, says and leaves behind.

mod support;

use std::fs;

use cllm::data::loader::Dataset;
use cllm::data::shard::ShardWriter;
use cllm::data::stream::TokenStream;
use cllm::eval::{EvalSettings, measure};
use cllm::parts::NormChoice;
use cllm::settings::{LogFormat, Threads, TokenizerChoice, TrainSettings};
use cllm::train::stop::Stop;
use cllm::train::{Outcome, train_until};
use cllm_core::Dtype;
use support::{
    checkpoints, course, events, metrics, names, settings, sha, train, train_to, undisturbed,
};

#[test]
fn logits_that_begin_as_zeros_know_nothing_and_learn() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainSettings {
        max_steps: 60,
        zero_init: true,
        tied: false,
        dropout: 0.0,
        ..settings(dir.path())
    };
    assert_eq!(train(&settings), Ok(Outcome::Finished));
    let steps = events(&settings, "step");
    let loss = |i: usize| steps[i]["loss"].as_f64().unwrap();
    // To the rounding of a sum of floats: small random numbers would be some hundredths off.
    assert!((loss(0) - 257_f64.ln()).abs() < 1e-5, "{}", loss(0));
    assert!(loss(59) < 3.2, "{}", loss(59));
}

/// Of letters that follow one another as they do, by no rule but that.
#[test]
fn counted_weights_know_what_follows_before_the_first_step() {
    let first = |bigram_init: bool| {
        let dir = tempfile::tempdir().unwrap();
        let of = settings(dir.path());
        let settings = TrainSettings {
            max_steps: 1,
            tokenizer: TokenizerChoice::Chars,
            n_embd: 64,
            n_head: 2,
            norm: NormChoice::Rms,
            bias: false,
            tied: false,
            dropout: 0.0,
            bigram_init,
            ..of
        };
        assert_eq!(train(&settings), Ok(Outcome::Finished));
        events(&settings, "step")[0]["loss"].as_f64().unwrap()
    };
    let (counted, random) = (first(true), first(false));
    assert!(counted < 0.7 * random, "{counted} {random}");
}

#[test]
fn a_run_lowers_the_loss_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainSettings {
        max_steps: 60,
        eval_interval: 20,
        save_interval: 25,
        dropout: 0.0,
        ..settings(dir.path())
    };
    assert_eq!(train(&settings), Ok(Outcome::Finished));
    let lines = metrics(&settings);
    assert_eq!(lines[0]["event"], "start");
    assert_eq!(lines.last().unwrap()["event"], "done");
    let pools = lines[0]["planned_bytes"].as_object().unwrap();
    let total = pools["total"].as_u64().unwrap();
    let sum: u64 =
        pools.iter().filter(|(k, _)| *k != "total").map(|(_, v)| v.as_u64().unwrap()).sum();
    assert_eq!(sum, total);

    let steps = events(&settings, "step");
    assert_eq!(steps.len(), 60);
    let loss = |i: usize| steps[i]["loss"].as_f64().unwrap();
    // Uniform over 257 ids, then something learned.
    assert!((loss(0) - 257_f64.ln()).abs() < 0.2, "{}", loss(0));
    assert!(loss(59) < 3.2, "{}", loss(59));
    for (i, step) in steps.iter().enumerate() {
        assert_eq!(step["step"], i as u64 + 1);
        assert!(step["tokens_per_s"].as_f64().unwrap() > 0.0);
        assert!((0.0..1.0).contains(&step["mfu"].as_f64().unwrap()));
        assert!(step["grad_norm"].as_f64().unwrap() > 0.0);
    }
    let evals = events(&settings, "eval");
    let at: Vec<u64> = evals.iter().map(|e| e["step"].as_u64().unwrap()).collect();
    assert_eq!(at, [20, 40, 60]);
    let val = |i: usize| evals[i]["val_loss"].as_f64().unwrap();
    assert!(val(2) < val(0) && val(2) < 3.2, "{} {}", val(0), val(2));

    let done = lines.last().unwrap();
    assert_eq!(done["steps"], 60);
    assert_eq!(done["tokens"], 60 * 2 * 4 * 16);
    assert_eq!(done["val_loss"].as_f64(), Some(val(2)));
    assert_eq!(done["weights_sha256"].as_str().unwrap().len(), 64);
    assert!(done["peak_rss_bytes"].as_u64().is_none_or(|bytes| bytes > total));

    assert_eq!(checkpoints(&settings), ["best.cllm", "step-50.cllm", "step-60.cllm"]);
    for name in ["settings.json", "tokenizer.json", "metrics.jsonl", "data"] {
        assert!(settings.out_dir.join(name).exists(), "{name}");
    }
    assert!(!names(&settings.out_dir).iter().any(|name| name.ends_with(".tmp")));
}

#[test]
fn the_seed_decides_every_bit() {
    let [a, b, c] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let first = undisturbed(a.path());
    assert_eq!(undisturbed(b.path()), first);
    let other = TrainSettings { seed: 8, ..settings(c.path()) };
    train(&other).unwrap();
    assert_ne!(sha(&other), first);
}

#[test]
fn batches_made_ready_ahead_are_the_same_batches() {
    let runs = [1, 2, 16, 64].map(|prefetch| {
        let dir = tempfile::tempdir().unwrap();
        let settings = TrainSettings { prefetch, ..settings(dir.path()) };
        assert_eq!(train(&settings), Ok(Outcome::Finished));
        (sha(&settings), course(&settings))
    });
    for run in &runs[1..] {
        assert_eq!(*run, runs[0]);
    }
}

#[test]
fn time_spent_waiting_for_data_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    train(&settings).unwrap();
    let done = &events(&settings, "done")[0];
    let value = |key: &str| done[key].as_f64().unwrap();
    let waited = value("data_wait_seconds");
    assert!((value("data_wait_share") - waited / value("seconds")).abs() < 1e-9);
    // Every step is reported, so that their times are all there are.
    let steps = events(&settings, "step");
    let sum: f64 = steps.iter().map(|step| step["data_wait"].as_f64().unwrap()).sum();
    assert!((sum - waited).abs() < 1e-9, "{sum} {waited}");
    assert!((0.0..value("seconds")).contains(&waited), "{waited}");
}

#[test]
fn a_bad_token_stops_the_run_at_the_step_that_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    let base = settings(dir.path());
    let shards = dir.path().join("shards");
    fs::create_dir(&shards).unwrap();
    let mut tokens: Vec<u32> = (0..20_000).map(|i| i * 7 % 257).collect();
    // The tenth micro-batch, the second of step 5, wants this one.
    let order = Dataset::open(TokenStream::from_tokens("t", tokens.clone()), 257, 16, base.seed);
    tokens[order.unwrap().sampler().window(9 * 4 + 2) as usize + 8] = 300;
    let path = shards.join("train_000000.bin");
    let mut shard = ShardWriter::create(&path, 257).unwrap();
    shard.write(&tokens).unwrap();
    shard.finish().unwrap();
    let bad = Dataset::open(TokenStream::open(&[path]).unwrap(), 257, 16, base.seed).unwrap();
    let direct = bad.fill_batch(9 * 4, 4, &mut [0; 64], &mut [0; 64]).unwrap_err();
    for prefetch in [1, 4, 64] {
        let settings = TrainSettings {
            data: vec![shards.to_str().unwrap().to_owned()],
            vocab_size: Some(257),
            val_fraction: 0.0,
            save_interval: 100,
            prefetch,
            out_dir: dir.path().join(format!("run{prefetch}")),
            ..base.clone()
        };
        assert_eq!(train(&settings), Err(direct.clone()));
        assert_eq!(events(&settings, "step").len(), 4, "prefetch {prefetch}");
    }
}

#[test]
fn the_sha_is_over_the_checkpoints_weights() {
    let dir = tempfile::tempdir().unwrap();
    let sha = undisturbed(dir.path());
    let settings = settings(dir.path());
    let bytes = fs::read(support::step_file(&settings, 12)).unwrap();
    let checkpoint = cllm_core::checkpoint::Checkpoint::parse(&bytes).unwrap();
    assert_eq!(cllm::data::sha256_hex(checkpoint.parameter_bytes()), sha);
}

#[test]
fn evaluation_of_a_run_repeats_its_validation() {
    let dir = tempfile::tempdir().unwrap();
    undisturbed(dir.path());
    let settings = settings(dir.path());
    let eval = EvalSettings {
        block_size: None,
        checkpoint: settings.out_dir.clone(),
        data: Vec::new(),
        loss_on: None,
        text_field: "text".to_owned(),
        tokenizer: None,
        batch_size: settings.batch_size,
        batches: settings.eval_batches,
        tuning: settings.tuning.clone(),
        threads: Threads::Count(2),
        isa: None,
        dtype: Dtype::F32,
        log_format: LogFormat::Json,
    };
    // The text may go: the shards are in the run folder.
    fs::remove_file(dir.path().join("text.txt")).unwrap();
    let report = measure(&eval).unwrap();
    let best = &events(&settings, "done")[0];
    assert_eq!(best["best_step"], report.step);
    let expected = best["best_val_loss"].as_f64().unwrap();
    assert!((report.val_loss - expected).abs() < 1e-6, "{} {expected}", report.val_loss);
    // Bytes: a token is a byte.
    let bits = report.bits_per_byte.unwrap();
    assert!((bits - report.val_loss / core::f64::consts::LN_2).abs() < 1e-2, "{bits}");

    let other = dir.path().join("other.txt");
    fs::write(&other, support::text()).unwrap();
    let data = vec![other.to_str().unwrap().to_owned()];
    let all = EvalSettings { data, batches: 0, ..eval };
    assert_eq!(measure(&all).unwrap().tokens, 20_000 / 16 * 16);
    let sized = |size| measure(&EvalSettings { block_size: Some(size), ..all.clone() });
    // All bytes, what begins the document, and a target for each but the last.
    assert_eq!(sized(7).unwrap().tokens, support::text().len() / 7 * 7);
    for (size, error) in [(0, "--block-size 0"), (17, "--block-size 17: the model is for")] {
        assert!(sized(size).unwrap_err().to_string().starts_with(error));
    }
}

#[test]
fn a_request_to_stop_saves_and_a_resume_finishes() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let expected = undisturbed(a.path());
    let settings = settings(b.path());
    let stop = Stop::new();
    stop.request();
    let mut out = Vec::new();
    assert_eq!(train_until(&settings, &stop, &mut out), Ok(Outcome::Interrupted));
    assert_eq!(checkpoints(&settings), ["step-0.cllm"]);
    let resumed = TrainSettings { resume: true, ..settings };
    assert_eq!(train(&resumed), Ok(Outcome::Finished));
    assert_eq!(sha(&resumed), expected);
}

#[test]
fn every_kind_of_tokenizer_trains() {
    for tokenizer in [TokenizerChoice::Chars, TokenizerChoice::Bpe(300)] {
        let dir = tempfile::tempdir().unwrap();
        let settings = TrainSettings { tokenizer, sample_tokens: 8, ..settings(dir.path()) };
        assert_eq!(train(&settings), Ok(Outcome::Finished));
        assert_eq!(events(&settings, "sample").len(), 1);
    }
}

/// It is not said of the data, which are what they were.
#[test]
fn a_tokenizer_that_was_changed_is_named_on_resume() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = TokenizerChoice::Chars;
    let settings = TrainSettings { tokenizer, ..settings(dir.path()) };
    assert_eq!(train_to(&settings, "\"event\":\"step\",\"step\":5,"), Ok(Outcome::Interrupted));
    let (saved, copy) =
        (settings.out_dir.join("tokenizer.json"), settings.out_dir.join("data/tokenizer.json"));
    // The last of the characters is another one.
    let mut other: serde_json::Value = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    *other["chars"].as_array_mut().unwrap().last_mut().unwrap() = "\u{e9}".into();
    fs::write(&saved, other.to_string()).unwrap();
    let resumed = TrainSettings { resume: true, ..settings };
    let message = train(&resumed).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json: it is not the tokenizer"), "{message}");
    fs::copy(copy, saved).unwrap();
    assert_eq!(train(&resumed), Ok(Outcome::Finished));
}

#[test]
fn a_run_that_is_refused_leaves_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let long = TrainSettings { block_size: 1 << 16, batch_size: 1, ..settings(dir.path()) };
    let error = train(&long).unwrap_err().to_string();
    assert!(error.contains("--block-size"), "{error}");
    // What has been made of the text stays for the next try.
    assert!(long.out_dir.join("data").exists() && !long.out_dir.join("settings.json").exists());
    let out_dir = dir.path().join("none");
    let missing = TrainSettings { data: vec!["no.txt".to_owned()], out_dir, ..long };
    let error = train(&missing).unwrap_err().to_string();
    assert!(error.contains("no.txt") && !missing.out_dir.exists(), "{error}");
    // A folder that was there is left.
    fs::create_dir(&missing.out_dir).unwrap();
    assert!(train(&missing).is_err() && missing.out_dir.exists());
}

#[test]
fn a_model_may_have_more_ids_than_its_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        TrainSettings { vocab_size: Some(320), sample_tokens: 8, ..settings(dir.path()) };
    assert_eq!(train(&settings), Ok(Outcome::Finished));
    assert_eq!(events(&settings, "start")[0]["model"]["vocab_size"], 320);
    let few = TrainSettings { vocab_size: Some(256), out_dir: dir.path().join("few"), ..settings };
    let error = train(&few).unwrap_err();
    assert!(error.to_string().starts_with("--vocab-size 256: the tokenizer has 257"), "{error}");
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn shards_are_trained_on_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let text = settings(dir.path());
    train(&text).unwrap();
    let shards = dir.path().join("shards");
    fs::rename(text.out_dir.join("data"), &shards).unwrap();
    fs::remove_file(shards.join("tokenizer.json")).unwrap();
    let data = vec![shards.to_str().unwrap().to_owned()];
    let bare = TrainSettings { data, out_dir: dir.path().join("again"), ..text.clone() };
    let message = train(&bare).unwrap_err().to_string();
    assert!(message.contains("--vocab-size"), "{message}");
    let sized = TrainSettings { vocab_size: Some(257), ..bare.clone() };
    assert_eq!(train(&sized), Ok(Outcome::Finished));
    assert_eq!(sha(&sized), sha(&text));
    assert!(!sized.out_dir.join("data").exists());
    let small = TrainSettings { vocab_size: Some(100), out_dir: dir.path().join("small"), ..bare };
    let message = train(&small).unwrap_err().to_string();
    assert!(message.contains("vocabulary has 100"), "{message}");

    // What is lost of them is missed where it is wanted.
    let held = dir.path().join("held_val.bin");
    fs::rename(shards.join("val_000000.bin"), &held).unwrap();
    let lost = TrainSettings { out_dir: dir.path().join("lost"), ..sized };
    let message = train(&lost).unwrap_err().to_string();
    assert!(message.contains("shards: by its meta.json"), "{message}");
    let elsewhere = vec![held.to_str().unwrap().to_owned()];
    let named = TrainSettings { val_data: elsewhere, max_steps: 2, ..lost };
    assert_eq!(train(&named), Ok(Outcome::Finished));
    fs::rename(shards.join("train_000000.bin"), dir.path().join("train_0.bin")).unwrap();
    let data = [named.data[0].clone(), dir.path().join("train_0.bin").to_str().unwrap().to_owned()];
    let other = TrainSettings { data: data[1..].to_vec(), out_dir: dir.path().join("b"), ..named };
    assert_eq!(train(&other), Ok(Outcome::Finished));
    fs::copy(dir.path().join("train_0.bin"), shards.join("else_0.bin")).unwrap();
    let both = TrainSettings { data: data.to_vec(), out_dir: dir.path().join("c"), ..other };
    let message = train(&both).unwrap_err().to_string();
    assert!(message.contains("shards called train"), "{message}");
}

#[test]
fn without_validation_data_there_is_no_validation() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainSettings { val_fraction: 0.0, ..settings(dir.path()) };
    assert_eq!(train(&settings), Ok(Outcome::Finished));
    assert!(events(&settings, "eval").is_empty());
    assert!(events(&settings, "done")[0]["val_loss"].is_null());
    assert_eq!(checkpoints(&settings), ["step-12.cllm", "step-9.cllm"]);
}

#[test]
fn too_little_data_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let small = settings(dir.path());
    fs::write(&small.data[0], "only a few words").unwrap();
    let error = train(&small).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("text.txt: 16 tokens"), "{message}");
    assert!(message.contains("block of 16 needs at least 17"), "{message}");
    assert_eq!(error.exit_code(), 1);
    // Enough to train on, too little to validate on.
    fs::write(&small.data[0], "only a few words ".repeat(5)).unwrap();
    let message = train(&small).unwrap_err().to_string();
    assert!(message.contains("validation data has 8 tokens"), "{message}");
    let none = TrainSettings { val_fraction: 0.0, max_steps: 1, ..small };
    assert_eq!(train(&none), Ok(Outcome::Finished));
}
