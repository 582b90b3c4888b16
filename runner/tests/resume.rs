//! Going on: the same bits from any step, and what may be different meanwhile.

mod support;

use std::fs;
use std::path::Path;

use cllm::data::shard::ShardWriter;
use cllm::data::stream::TokenStream;
use cllm::parts::{ActivationChoice, NormChoice, PositionsChoice};
use cllm::settings::TrainSettings;
use cllm::train::folder::RunFolder;
use cllm::train::{Outcome, stored_settings};
use cllm_core::OptimizerKind;
use support::{
    checkpoints, course, events, names, settings, sha, step_file, train, train_to, undisturbed,
    without_sum,
};

fn resumed(settings: &TrainSettings) -> TrainSettings {
    TrainSettings { resume: true, ..settings.clone() }
}

/// A finished run in `dir` of which only the checkpoints up to step 6 are left.
fn run_to_six(dir: &Path) -> TrainSettings {
    let settings = TrainSettings { keep_checkpoints: 9, ..settings(dir) };
    let interrupted = train_to(&settings, "\"event\":\"step\",\"step\":7,");
    assert_eq!(interrupted, Ok(Outcome::Interrupted));
    fs::remove_file(step_file(&settings, 7)).unwrap();
    assert_eq!(checkpoints(&settings), ["best.cllm", "step-3.cllm", "step-6.cllm"]);
    settings
}

#[test]
fn from_any_step_the_bits_are_the_same() {
    let whole = tempfile::tempdir().unwrap();
    let expected = undisturbed(whole.path());
    let whole = settings(whole.path());
    for kind in ["step", "eval"] {
        for step in 1..=12 {
            if kind == "eval" && step % 4 != 0 {
                continue;
            }
            let dir = tempfile::tempdir().unwrap();
            let settings = settings(dir.path());
            let text = format!("\"event\":\"{kind}\",\"step\":{step},");
            assert_eq!(train_to(&settings, &text), Ok(Outcome::Interrupted), "{text}");
            assert!(step_file(&settings, step).exists());
            assert_eq!(train(&resumed(&settings)), Ok(Outcome::Finished), "{text}");
            assert_eq!(sha(&settings), expected, "{text}");
            assert_eq!(course(&settings), course(&whole), "{text}");
            let done = |s| events(s, "done")[0]["best_val_loss"].as_f64();
            assert_eq!(done(&settings), done(&whole));
        }
    }
}

#[test]
fn stopped_at_every_step_the_bits_are_the_same() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let expected = undisturbed(a.path());
    let mut settings = settings(b.path());
    for step in 1..=12 {
        let text = format!("\"event\":\"step\",\"step\":{step},");
        assert_eq!(train_to(&settings, &text), Ok(Outcome::Interrupted));
        settings.resume = true;
    }
    assert_eq!(train(&settings), Ok(Outcome::Finished));
    assert_eq!(sha(&settings), expected);
    assert_eq!(events(&settings, "step").len(), 12);
    // A finished run can be resumed: there is nothing left to do.
    assert_eq!(train(&settings), Ok(Outcome::Finished));
    assert_eq!(sha(&settings), expected);
}

#[test]
fn a_bad_checkpoint_is_passed_over() {
    let whole = tempfile::tempdir().unwrap();
    let expected = undisturbed(whole.path());
    type Damage = fn(Vec<u8>) -> Vec<u8>;
    let damages: [(&str, Damage); 5] = [
        ("truncated", |mut bytes| {
            bytes.truncate(bytes.len() / 2);
            bytes
        }),
        ("empty", |_| Vec::new()),
        ("altered", |mut bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            bytes
        }),
        ("zeroed", |bytes| vec![0; bytes.len()]),
        ("foreign", |_| b"not a checkpoint at all".to_vec()),
    ];
    for (what, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        let settings = run_to_six(dir.path());
        let newest = step_file(&settings, 6);
        fs::write(&newest, damage(fs::read(&newest).unwrap())).unwrap();
        assert_eq!(train(&resumed(&settings)), Ok(Outcome::Finished), "{what}");
        assert_eq!(sha(&settings), expected, "{what}");
    }
}

#[test]
fn bad_checkpoints_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let settings = run_to_six(dir.path());
    for name in ["step-6.cllm", "best.cllm"] {
        fs::write(settings.out_dir.join(name), "torn").unwrap();
    }
    let output = support::command(&resumed(&settings)).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("step-6.cllm: not a Crystalline checkpoint"), "{text}");
    assert!(text.contains("best.cllm"), "{text}");
    assert!(text.contains("going on from") && text.contains("step-3.cllm"), "{text}");

    // All of them bad: an error that names them, and nothing is overwritten.
    let names = checkpoints(&settings);
    for name in &names {
        fs::write(settings.out_dir.join(name), "torn").unwrap();
    }
    let message = train(&resumed(&settings)).unwrap_err().to_string();
    assert!(message.contains("step-12.cllm") && message.contains("best.cllm"), "{message}");
    assert_eq!(checkpoints(&settings), names);
    for name in names {
        assert_eq!(fs::read(settings.out_dir.join(name)).unwrap(), b"torn");
    }
}

#[test]
fn a_newer_version_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let settings = run_to_six(dir.path());
    let newest = step_file(&settings, 6);
    let mut bytes = fs::read(&newest).unwrap();
    bytes[8..12].copy_from_slice(&99_u32.to_le_bytes());
    let damaged = bytes.clone();
    // Newer ones have longer headers.
    bytes[12..16].copy_from_slice(&1000_u32.to_le_bytes());
    fs::write(&newest, &bytes).unwrap();
    let error = train(&resumed(&settings)).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("step-6.cllm") && message.contains("99"), "{message}");
    assert_eq!(error.exit_code(), 1);
    assert_eq!(fs::read(&newest).unwrap(), bytes);
    fs::write(&newest, &damaged).unwrap();
    let found = RunFolder::existing(&settings.out_dir).newest().unwrap();
    assert!(found.skipped[0].contains("step-6.cllm") && found.skipped[0].contains("version"));
    assert!(found.checkpoint.is_some());
}

#[test]
fn what_a_run_is_made_of_may_not_change() {
    let dir = tempfile::tempdir().unwrap();
    let settings = resumed(&run_to_six(dir.path()));
    let before = fs::read(settings.out_dir.join("settings.json")).unwrap();
    for (flag, changed) in [
        ("--n-layer", TrainSettings { n_layer: 3, ..settings.clone() }),
        ("--seed", TrainSettings { seed: 1, ..settings.clone() }),
        ("--batch-size", TrainSettings { batch_size: 8, ..settings.clone() }),
        ("--d-ff", TrainSettings { d_ff: Some(64), ..settings.clone() }),
    ] {
        let error = train(&changed).unwrap_err();
        assert!(error.to_string().starts_with(flag), "{error}");
        assert_eq!(error.exit_code(), 2, "{error}");
    }
    assert_eq!(fs::read(settings.out_dir.join("settings.json")).unwrap(), before);
    // The implied width said aloud is no change, and the rest may change.
    let more = TrainSettings {
        d_ff: Some(128),
        max_steps: 14,
        eval_interval: 3,
        save_interval: 5,
        log_interval: 2,
        learning_rate: 1e-3,
        ..settings
    };
    assert_eq!(train(&more), Ok(Outcome::Finished));
    assert_eq!(events(&more, "done")[0]["steps"], 14);
}

/// Its checkpoints are of the second version.
#[test]
fn a_run_of_the_llama_family_goes_on_with_the_same_bits() {
    let llama = |dir: &Path| TrainSettings {
        n_head: 4,
        n_kv_head: Some(2),
        head_size: Some(10),
        window: Some(7),
        norm: NormChoice::Rms,
        positions: PositionsChoice::Rotary,
        activation: ActivationChoice::Swiglu,
        bias: false,
        qkv_bias: true,
        ..settings(dir)
    };
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (whole, halves) = (llama(a.path()), llama(b.path()));
    assert_eq!(train(&whole), Ok(Outcome::Finished));
    assert_eq!(train_to(&halves, "\"event\":\"step\",\"step\":5,"), Ok(Outcome::Interrupted));
    let other = TrainSettings { rope_theta: 500.0, ..resumed(&halves) };
    let refused = train(&other).unwrap_err().to_string();
    assert!(refused.starts_with("--rope-theta: the run in"), "{refused}");
    assert_eq!(train(&resumed(&halves)), Ok(Outcome::Finished));
    assert_eq!((sha(&halves), course(&halves)), (sha(&whole), course(&whole)));
    let [first, last] = [0, 11].map(|at| events(&whole, "step")[at]["loss"].as_f64().unwrap());
    assert!(last < first - 0.2, "{first} to {last}: nothing is learned");
}

#[test]
fn a_run_with_the_parts_of_newer_recipes_goes_on_with_the_same_bits() {
    let later = |dir: &Path| TrainSettings {
        activation: ActivationChoice::Relu2,
        logit_softcap: 3.0,
        zero_init: true,
        previous_tokens: 2,
        embedding_scale: 4.0,
        ..settings(dir)
    };
    let [a, b, plain] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (whole, halves) = (later(a.path()), later(b.path()));
    assert_eq!(train(&whole), Ok(Outcome::Finished));
    assert_eq!(train_to(&halves, "\"event\":\"step\",\"step\":5,"), Ok(Outcome::Interrupted));
    let refused = train(&TrainSettings { embedding_scale: 1.0, ..resumed(&halves) }).unwrap_err();
    assert!(refused.to_string().starts_with("--embedding-scale: the run in"), "{refused}");
    assert_eq!(train(&resumed(&halves)), Ok(Outcome::Finished));
    assert_eq!((sha(&halves), course(&halves)), (sha(&whole), course(&whole)));
    assert_ne!(sha(&whole), undisturbed(plain.path()), "the parts do nothing");
}

#[test]
fn a_run_from_before_there_was_a_choice_goes_on() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let expected = undisturbed(a.path());
    let settings = run_to_six(b.path());
    let file = settings.out_dir.join("settings.json");
    let text = without_sum(&file);
    let old = text.replace("\n  \"prefetch\": 4,", "");
    assert!(old.len() < text.len(), "{text}");
    let parts = [
        "norm",
        "positions",
        "rope_theta",
        "activation",
        "n_kv_head",
        "head_size",
        "window",
        "logit_softcap",
        "previous_tokens",
        "embedding_scale",
        "lora_dropout",
        "optimizer",
        "momentum",
        "on_spike",
        "spike_threshold",
        "spike_window",
    ];
    let is_new = |line: &&str| parts.iter().any(|part| line.contains(&format!("\"{part}\":")));
    let old: Vec<&str> = old.lines().filter(|line| !is_new(line)).collect();
    assert_eq!(old.len() + 1 + parts.len(), text.lines().count());
    fs::write(&file, old.join("\n")).unwrap();
    assert_eq!(stored_settings(&settings.out_dir).unwrap().prefetch, 4);
    let other = TrainSettings { prefetch: 2, ..resumed(&settings) };
    assert_eq!(train(&other), Ok(Outcome::Finished));
    assert_eq!(sha(&other), expected);
}

#[test]
fn every_optimizer_goes_on_with_its_own_moments_and_no_others() {
    for optimizer in OptimizerKind::ALL {
        let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let of = |dir: &Path| TrainSettings { optimizer, ..settings(dir) };
        let whole = of(a.path());
        assert_eq!(train(&whole), Ok(Outcome::Finished));
        let first = of(b.path());
        assert_eq!(train_to(&first, "\"event\":\"step\",\"step\":5,"), Ok(Outcome::Interrupted));
        for other in OptimizerKind::ALL.into_iter().filter(|other| *other != optimizer) {
            let other = TrainSettings { optimizer: other, ..resumed(&first) };
            let message = train(&other).unwrap_err().to_string();
            assert!(message.starts_with("--optimizer: the run in "), "{message}");
            assert!(message.contains(&format!("began with \"{optimizer}\"")), "{message}");
        }
        assert_eq!(train(&resumed(&first)), Ok(Outcome::Finished));
        assert_eq!(sha(&first), sha(&whole), "{optimizer}");
    }
}

#[test]
fn settings_of_another_run_beside_a_checkpoint_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let of = |optimizer| TrainSettings { optimizer, max_steps: 3, ..settings(dir.path()) };
    let run = of(OptimizerKind::AdamW8);
    assert_eq!(train(&run), Ok(Outcome::Finished));
    let file = run.out_dir.join("settings.json");
    fs::write(&file, without_sum(&file).replace("\"adamw8\"", "\"adamw\"")).unwrap();
    let other = TrainSettings { max_steps: 6, ..resumed(&of(OptimizerKind::AdamW)) };
    let message = train(&other).unwrap_err().to_string();
    for part in ["step-3.cllm: ", "state of adamw8, not of adamw: ", "settings.json beside it"] {
        assert!(message.contains(part), "{message}");
    }
}

/// A checkpoint knows nothing of how its activations were kept.
#[test]
fn a_run_goes_on_with_recomputation_and_without() {
    let deep = |dir: &Path| TrainSettings { n_layer: 4, ..settings(dir) };
    let whole = tempfile::tempdir().unwrap();
    let kept = deep(whole.path());
    assert_eq!(train(&kept), Ok(Outcome::Finished));
    for begins_with in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let first = TrainSettings { recompute: begins_with, ..deep(dir.path()) };
        let text = "\"event\":\"step\",\"step\":5,";
        assert_eq!(train_to(&first, text), Ok(Outcome::Interrupted));
        let then = TrainSettings { recompute: !begins_with, ..resumed(&first) };
        assert_eq!(train(&then), Ok(Outcome::Finished));
        assert_eq!(sha(&then), sha(&kept), "began with recompute = {begins_with}");
        assert_eq!(events(&then, "step").len(), 12);
    }
}

#[test]
fn changed_data_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let settings = resumed(&run_to_six(dir.path()));
    fs::write(&settings.data[0], support::text() + "one more line\n").unwrap();
    let message = train(&settings).unwrap_err().to_string();
    assert!(message.contains("--data"), "{message}");
    let built_in = TrainSettings { data: Vec::new(), ..settings.clone() };
    let message = train(&built_in).unwrap_err().to_string();
    assert!(message.contains("not what the run began with"), "{message}");
    // A slip of the pen is not taken for a text that is gone.
    let slip = TrainSettings { data: vec!["tezt.txt".to_owned()], ..settings };
    let error = train(&slip).unwrap_err();
    let told = error.to_string();
    assert!(told.starts_with("--data ") && told.contains("tezt.txt: there is no"), "{told}");
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn data_may_move_and_be_copied_and_go() {
    let expected = undisturbed(tempfile::tempdir().unwrap().path());
    let dir = tempfile::tempdir().unwrap();
    let settings = resumed(&run_to_six(dir.path()));
    let to = |step: u64, data: &[String]| {
        let settings = TrainSettings { data: data.to_vec(), ..settings.clone() };
        let text = format!("\"event\":\"step\",\"step\":{step},");
        assert_eq!(train_to(&settings, &text), Ok(Outcome::Interrupted));
    };
    let first = settings.data.clone();
    // Another time of change, the same text.
    let again = fs::read(&first[0]).unwrap();
    fs::remove_file(&first[0]).unwrap();
    fs::write(&first[0], again).unwrap();
    to(8, &first);
    let moved = vec![dir.path().join("moved.txt").to_str().unwrap().to_owned()];
    fs::rename(&first[0], &moved[0]).unwrap();
    to(10, &moved);
    let stored = stored_settings(&settings.out_dir).unwrap();
    assert!(stored.data[0].ends_with("moved.txt"), "{:?}", stored.data);
    // What was made of it is enough.
    fs::remove_file(&moved[0]).unwrap();
    assert_eq!(train(&resumed(&stored)), Ok(Outcome::Finished));
    assert_eq!(sha(&settings), expected);
}

#[test]
fn shards_may_move_but_not_be_others() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let shards = |name: &str, more: usize| {
        let mut shard = ShardWriter::create(&at(name), 257).unwrap();
        let tokens: Vec<u32> =
            (0..5_000).map(|n| (n * n + more * (n / 2_500)) as u32 % 251).collect();
        shard.write(&tokens).unwrap();
        shard.finish().unwrap();
        vec![at(name).to_str().unwrap().to_owned()]
    };
    let first = shards("train_0.bin", 0);
    let begun = TrainSettings {
        data: first.clone(),
        vocab_size: Some(257),
        max_steps: 4,
        save_interval: 2,
        ..settings(dir.path())
    };
    assert_eq!(train(&begun), Ok(Outcome::Finished));
    let on =
        |data: Vec<String>, max_steps| train(&TrainSettings { data, max_steps, ..resumed(&begun) });
    fs::rename(&first[0], at("train_1.bin")).unwrap();
    assert_eq!(on(vec![at("train_1.bin").to_str().unwrap().to_owned()], 6), Ok(Outcome::Finished));
    // As many tokens, but others in the second half.
    let refused = on(shards("train_2.bin", 1), 8).unwrap_err().to_string();
    assert!(refused.contains("other data than --data"), "{refused}");
    let refused = on(first, 8).unwrap_err().to_string();
    assert!(refused.contains("train_0.bin"), "{refused}");
}

#[test]
fn a_run_is_not_started_over_another() {
    let dir = tempfile::tempdir().unwrap();
    let settings = run_to_six(dir.path());
    let message = train(&settings).unwrap_err().to_string();
    assert!(message.contains("--resume") && message.contains("--out-dir"), "{message}");
    let nowhere = TrainSettings { out_dir: dir.path().join("none"), ..resumed(&settings) };
    let message = train(&nowhere).unwrap_err().to_string();
    assert!(message.contains("none") && message.contains("--resume"), "{message}");
    assert!(!nowhere.out_dir.exists());
    let over = TrainSettings { max_steps: 2, ..resumed(&settings) };
    let message = train(&over).unwrap_err().to_string();
    assert!(message.starts_with("--max-steps 2"), "{message}");
}

#[test]
fn leftovers_of_a_killed_write_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let settings = run_to_six(dir.path());
    for name in ["step-9.cllm.tmp", "best.cllm.tmp", "settings.json.tmp"] {
        fs::write(settings.out_dir.join(name), "half of it").unwrap();
    }
    fs::write(settings.out_dir.join("notes.tmp"), "somebody else's").unwrap();
    assert_eq!(train(&resumed(&settings)), Ok(Outcome::Finished));
    let left: Vec<String> =
        names(&settings.out_dir).into_iter().filter(|name| name.ends_with(".tmp")).collect();
    assert_eq!(left, ["notes.tmp"]);
}

#[test]
fn weights_that_blow_up_stop_the_run_and_spare_the_good_checkpoint() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let expected = undisturbed(a.path());
    // One checkpoint is kept: a bad one must not take its place.
    let settings = TrainSettings { keep_checkpoints: 1, ..run_to_six(b.path()) };
    let good = fs::read(step_file(&settings, 6)).unwrap();
    let absurd = TrainSettings {
        learning_rate: 1e30,
        grad_clip: 0.0,
        save_interval: 1,
        eval_interval: 1,
        ..resumed(&settings)
    };
    let error = train(&absurd).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.exit_code(), 1);
    assert!(
        message.contains("stopped at step 7") || message.contains("stopped at step 8"),
        "{message}"
    );
    assert!(message.contains("step-6.cllm") && message.contains("--learning-rate"), "{message}");
    assert_eq!(fs::read(step_file(&settings, 6)).unwrap(), good);
    assert!(!step_file(&settings, 7).exists());
    assert_eq!(train(&resumed(&settings)), Ok(Outcome::Finished));
    assert_eq!(sha(&settings), expected);
}

#[test]
fn a_fresh_run_that_blows_up_names_its_step() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainSettings {
        learning_rate: 1e30,
        warmup_steps: 0,
        val_fraction: 0.0,
        ..settings(dir.path())
    };
    let message = train(&settings).unwrap_err().to_string();
    assert!(message.starts_with("stopped at step 2: "), "{message}");
    assert!(message.contains("no checkpoint was saved"), "{message}");
    assert!(checkpoints(&settings).is_empty());
}

#[test]
fn data_that_are_given_anew_are_compared_even_if_others_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("v.txt"), support::text()).unwrap();
    fs::write(at("other.txt"), support::text() + "and more\n").unwrap();
    let first = TrainSettings { val_data: vec![at("v.txt")], ..settings(dir.path()) };
    assert_eq!(train_to(&first, "\"event\":\"step\",\"step\":5,"), Ok(Outcome::Interrupted));
    let stored = fs::read(first.out_dir.join("settings.json")).unwrap();
    let refused = |changed: &TrainSettings, part: &str| {
        let message = train(&resumed(changed)).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
        assert_eq!(fs::read(first.out_dir.join("settings.json")).unwrap(), stored);
    };
    fs::rename(at("v.txt"), at("gone.txt")).unwrap();
    let other = TrainSettings { data: vec![at("other.txt")], ..first.clone() };
    refused(&other, "not what the run began with");
    let piped = TrainSettings { data: vec!["-".to_owned()], ..first.clone() };
    refused(&piped, "--data -: ");
    fs::rename(at("gone.txt"), at("v.txt")).unwrap();
    fs::rename(&first.data[0], at("moved.txt")).unwrap();
    let other = TrainSettings { val_data: vec![at("other.txt")], ..first.clone() };
    refused(&other, "not what the run began with");
    assert_eq!(train(&resumed(&first)), Ok(Outcome::Finished));
}

#[test]
fn shards_that_are_lost_are_made_again_of_the_same_text_alone() {
    let expected = undisturbed(tempfile::tempdir().unwrap().path());
    for damage in ["gone", "cut"] {
        let dir = tempfile::tempdir().unwrap();
        let settings = resumed(&run_to_six(dir.path()));
        let shard = settings.out_dir.join("data/train_000000.bin");
        let bytes = fs::read(&shard).unwrap();
        match damage {
            "gone" => fs::remove_dir_all(settings.out_dir.join("data")).unwrap(),
            _ => fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap(),
        }
        // As many tokens, but others: first of them the wrong text, then the right one.
        let text = fs::read_to_string(&settings.data[0]).unwrap();
        fs::write(&settings.data[0], text.replacen('a', "b", 1)).unwrap();
        let message = train(&settings).unwrap_err().to_string();
        assert!(message.contains("other data than --data"), "{damage}: {message}");
        fs::write(&settings.data[0], text).unwrap();
        assert_eq!(train(&settings), Ok(Outcome::Finished), "{damage}");
        assert_eq!(sha(&settings), expected, "{damage}");
    }
}

#[test]
fn a_run_may_lie_beside_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("texts");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.txt"), support::text()).unwrap();
    let data = vec![folder.to_str().unwrap().to_owned()];
    let inside = TrainSettings { data, out_dir: folder.join("run"), ..settings(dir.path()) };
    assert_eq!(train_to(&inside, "\"event\":\"step\",\"step\":5,"), Ok(Outcome::Interrupted));
    assert_eq!(train(&resumed(&inside)), Ok(Outcome::Finished));
    // But a run is no text.
    let run = vec![inside.out_dir.to_str().unwrap().to_owned()];
    let error =
        train(&TrainSettings { data: run, out_dir: dir.path().join("x"), ..inside }).unwrap_err();
    assert!(error.to_string().contains("a run folder, and no text"), "{error}");
}

/// A folder of one shard of so many tokens.
fn shard(path: &Path, tokens: &[u32]) -> Vec<String> {
    fs::create_dir_all(path).unwrap();
    let mut shard = ShardWriter::create(&path.join("train_0.bin"), 257).unwrap();
    shard.write(tokens).unwrap();
    shard.finish().unwrap();
    vec![path.to_str().unwrap().to_owned()]
}

#[test]
fn text_and_shards_are_not_taken_for_one_another() {
    let dir = tempfile::tempdir().unwrap();
    let tokens: Vec<u32> = (0..5_000).map(|n| n * n % 251).collect();
    let data = shard(&dir.path().join("shards"), &tokens);
    let begun = TrainSettings {
        data,
        vocab_size: Some(257),
        max_steps: 4,
        save_interval: 2,
        ..settings(dir.path())
    };
    assert_eq!(train(&begun), Ok(Outcome::Finished));
    let wrong = TrainSettings { data: settings(dir.path()).data, max_steps: 8, ..resumed(&begun) };
    let refused = train(&wrong).unwrap_err().to_string();
    assert!(refused.contains("not what the run began with"), "{refused}");
    // A slip leaves nothing behind that is in the way of what is right.
    assert!(!begun.out_dir.join("tokenizer.json").exists());
    let right = TrainSettings { max_steps: 8, ..resumed(&begun) };
    assert_eq!(train(&right), Ok(Outcome::Finished));

    // As many tokens as the text has, but others.
    let dir = tempfile::tempdir().unwrap();
    let begun = run_to_six(dir.path());
    let made = TokenStream::open(&[begun.out_dir.join("data/train_000000.bin")]).unwrap();
    let mut tokens = vec![0; made.len() as usize];
    made.fill(0, &mut tokens).unwrap();
    tokens[7] = (tokens[7] + 1) % 250;
    let folder = dir.path().join("other");
    let data = shard(&folder, &tokens);
    for name in ["val_000000.bin", "../tokenizer.json"] {
        let from = begun.out_dir.join("data").join(name);
        if from.exists() {
            fs::copy(&from, folder.join(from.file_name().unwrap())).unwrap();
        }
    }
    let refused = train(&TrainSettings { data, ..resumed(&begun) }).unwrap_err().to_string();
    assert!(refused.contains("other data than --data"), "{refused}");
}

#[test]
fn a_run_without_a_checkpoint_takes_no_other_data() {
    let dir = tempfile::tempdir().unwrap();
    let settings = run_to_six(dir.path());
    for name in checkpoints(&settings) {
        fs::remove_file(settings.out_dir.join(name)).unwrap();
    }
    let moved = dir.path().join("moved.txt").to_str().unwrap().to_owned();
    fs::copy(&settings.data[0], &moved).unwrap();
    let error = train(&TrainSettings { data: vec![moved], ..resumed(&settings) }).unwrap_err();
    assert!(error.to_string().contains("no checkpoint yet"), "{error}");
    assert_eq!(train(&resumed(&settings)), Ok(Outcome::Finished));
}
