//! Runs of several ranks, here threads of one process: the same weights on any number of them.

mod support;

use std::fs;
use std::path::Path;

use cllm::Result;
use cllm::checkpoint::CheckpointFile;
use cllm::parts::NormChoice;
use cllm::ranks::threads;
use cllm::settings::{SpikeChoice, Threads, TrainSettings};
use cllm::train::stop::Stop;
use cllm::train::{Outcome, train_with};
use cllm_core::{MomentsMut, OptimizerKind};
use support::{StopAt, course, events, settings, sha, step_file, train, train_to};

/// A run of four parts in `dir`, of a model of which every rank has a piece.
fn in_parts(dir: &Path) -> TrainSettings {
    TrainSettings { batch_parts: Some(4), n_embd: 64, threads: Threads::Count(1), ..settings(dir) }
}

/// Trains as `size` ranks.
fn train_on(size: usize, settings: &TrainSettings) -> Vec<Result<Outcome>> {
    threads::run(size, |ranks| train_with(settings, ranks, &Stop::new(), &mut std::io::sink()))
}

/// The same until rank 0 reports `text`.
fn train_on_to(size: usize, settings: &TrainSettings, text: &str) -> Vec<Result<Outcome>> {
    threads::run(size, |ranks| {
        let stop = Stop::new();
        let mut out = StopAt { text: text.to_owned(), stop: stop.clone() };
        train_with(settings, ranks, &stop, &mut out)
    })
}

fn finishes(size: usize, settings: &TrainSettings) {
    let ended = train_on(size, settings);
    assert!(ended.iter().all(|ended| *ended == Ok(Outcome::Finished)), "{size} ranks: {ended:?}");
}

/// Runs that differ in `change` alone give the same weights, and report the same, on 1, 2 and 4 ranks; the weights.
fn on_any_number(change: impl Fn(&mut TrainSettings)) -> String {
    let mut first: Option<(String, _)> = None;
    for size in [0, 1, 2, 4] {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = in_parts(dir.path());
        change(&mut settings);
        match size {
            // Without ranks.
            0 => assert_eq!(train(&settings), Ok(Outcome::Finished)),
            _ => finishes(size, &settings),
        }
        let (sha, course) = (sha(&settings), course(&settings));
        let first = first.get_or_insert_with(|| (sha.clone(), course.clone()));
        assert_eq!((&sha, &course), (&first.0, &first.1), "{size} ranks");
        let ranks = events(&settings, "start")[0]["ranks"].as_u64();
        assert_eq!(ranks, Some(size.max(1) as u64));
    }
    first.unwrap().0
}

#[test]
fn the_weights_are_the_same_on_any_number_of_ranks() {
    let of_parts = on_any_number(|_| {});
    let dir = tempfile::tempdir().unwrap();
    let whole = TrainSettings { batch_parts: None, ..in_parts(dir.path()) };
    assert_eq!(train(&whole), Ok(Outcome::Finished));
    // The cut is in the last bits.
    assert_ne!(of_parts, sha(&whole));
}

#[test]
fn they_are_with_every_optimizer() {
    for optimizer in OptimizerKind::ALL.into_iter().skip(1) {
        on_any_number(|settings| settings.optimizer = optimizer);
    }
}

/// Each rank counts for itself.
#[test]
fn they_are_of_a_model_that_begins_with_what_was_counted() {
    let plain = |settings: &mut TrainSettings| {
        (settings.tied, settings.norm) = (false, NormChoice::Rms);
    };
    let counted = on_any_number(|settings| {
        plain(settings);
        settings.bigram_init = true;
    });
    assert_ne!(counted, on_any_number(plain));
}

#[test]
fn they_are_where_parts_are_several_micro_batches() {
    on_any_number(|settings| {
        (settings.batch_size, settings.gradient_accumulation_steps) = (3, 8);
    });
}

/// Whether a run comes to its end or gives up, all ranks do alike.
#[test]
fn what_stands_out_is_dealt_with_alike() {
    for choice in [SpikeChoice::Skip, SpikeChoice::Rewind, SpikeChoice::Stop] {
        let mut first = None;
        for size in [0, 2, 4] {
            let dir = tempfile::tempdir().unwrap();
            let mut settings = in_parts(dir.path());
            // A bound so near that steps of a run that goes well are above it.
            (settings.spike_window, settings.spike_threshold) = (4, 0.5);
            settings.on_spike = choice;
            let ended = match size {
                0 => vec![train(&settings)],
                _ => train_on(size, &settings),
            };
            let ended = ended.into_iter().map(|ended| {
                ended.map_err(|e| e.to_string().replace(&dir.path().display().to_string(), ""))
            });
            let ended: Vec<_> = ended.collect();
            assert!(ended.iter().all(|other| *other == ended[0]), "{size} ranks: {ended:?}");
            let spikes = events(&settings, "spike");
            assert!(!spikes.is_empty(), "{choice:?}");
            let of = (ended[0].clone(), spikes, course(&settings));
            assert_eq!(&of, first.get_or_insert_with(|| of.clone()), "{size} ranks");
        }
    }
}

/// Bits of weights and moments of a checkpoint.
fn state(path: &Path) -> Vec<u32> {
    let file = CheckpointFile::open(path).unwrap();
    let checkpoint = file.parse().unwrap();
    let values = checkpoint.parameter_bytes().len();
    let (mut first, mut second) = (vec![0.0; values], vec![0.0; values]);
    let moments = MomentsMut::AdamW { first: &mut first, second: &mut second };
    checkpoint.read_moments(moments).unwrap();
    let weights = checkpoint.parameter_bytes().chunks_exact(4);
    let weights = weights.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    weights.chain(first.iter().chain(&second).map(|x| x.to_bits())).collect()
}

#[test]
fn a_checkpoint_is_the_same_and_a_run_goes_on_with_another_number() {
    let whole = tempfile::tempdir().unwrap();
    let whole = in_parts(whole.path());
    finishes(1, &whole);
    let expected = sha(&whole);
    for (before, then) in [(1, 4), (2, 1), (4, 2), (4, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = in_parts(dir.path());
        let ended = train_on_to(before, &settings, "\"event\":\"step\",\"step\":7,");
        assert!(ended.iter().all(|ended| *ended == Ok(Outcome::Interrupted)), "{ended:?}");
        // It stopped behind the step in which the ranks met, the next at most.
        let step = if step_file(&settings, 7).exists() { 7 } else { 8 };
        let alone = tempfile::tempdir().unwrap();
        let alone = in_parts(alone.path());
        let text = format!("\"event\":\"step\",\"step\":{step},");
        assert_eq!(train_to(&alone, &text), Ok(Outcome::Interrupted));
        assert!(state(&step_file(&settings, step)) == state(&step_file(&alone, step)), "{before}");
        settings.resume = true;
        match then {
            0 => assert_eq!(train(&settings), Ok(Outcome::Finished)),
            _ => finishes(then, &settings),
        }
        assert_eq!(sha(&settings), expected, "{before}, then {then} ranks");
        assert_eq!(course(&settings), course(&whole), "{before}, then {then} ranks");
    }
}

#[test]
fn a_new_run_has_parts_for_its_ranks_and_an_old_one_keeps_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = TrainSettings { max_steps: 2, ..settings(dir.path()) };
    finishes(2, &settings);
    let stored = fs::read_to_string(settings.out_dir.join("settings.json")).unwrap();
    assert!(stored.contains("\"batch_parts\": 4"), "{stored}");
    assert!(stored.contains("\"batch_size\": 4"), "{stored}");
    settings.resume = true;
    let refused = train_on(2, &settings).remove(0).unwrap_err().to_string();
    assert!(refused.contains("--batch-parts 1 can be shared by 1;"), "{refused}");
    settings.batch_parts = Some(8);
    let refused = train_on(1, &settings).remove(0).unwrap_err().to_string();
    assert!(refused.contains("--batch-parts: the run in"), "{refused}");
}

#[test]
fn ranks_that_are_told_something_else_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let settings = in_parts(dir.path());
    let ended = threads::run(2, |ranks| {
        use cllm::ranks::Ranks as _;
        let learning_rate = if ranks.rank() == 1 { 1e-3 } else { settings.learning_rate };
        let settings = TrainSettings { learning_rate, ..settings.clone() };
        train_with(&settings, ranks, &Stop::new(), &mut std::io::sink())
    });
    for error in ended {
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("rank 1 has other settings than rank 0:"), "{error}");
    }
    assert!(!step_file(&settings, 12).exists());
}

/// Trains a model of some layers, whose blocks become final one after the other, as two ranks with a trace. On a machine
/// that is busy with other things a training thread may sleep through a few backward passes, but not through all of them
/// in several runs.
fn traced(dir: &Path) -> TrainSettings {
    for run in 0..6 {
        let dir = dir.join(run.to_string());
        fs::create_dir(&dir).unwrap();
        let trace = dir.join("t.json");
        let settings = TrainSettings {
            n_layer: 6,
            block_size: 64,
            trace: Some(trace.clone()),
            trace_steps: 8,
            save_interval: 100,
            ..in_parts(&dir)
        };
        finishes(2, &settings);
        if fs::read_to_string(&trace).unwrap().contains("exchange, hidden") {
            return settings;
        }
    }
    panic!("nothing was hidden in any run");
}

#[test]
fn gradients_go_to_the_others_while_the_backward_pass_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let settings = traced(dir.path());
    let trace = settings.trace.clone().unwrap();
    let exchange = events(&settings, "done")[0]["exchange"].clone();
    let (gradients, hidden) = (exchange["gradients"].as_f64(), exchange["hidden"].as_f64());
    assert!(gradients.unwrap() > 0.0 && exchange["weights"].as_f64().unwrap() > 0.0);
    assert!(hidden.unwrap() > 0.0 && hidden.unwrap() <= 1.0, "{exchange}");
    // What is hidden lies within the call that the workers are busy with, and the rest does not.
    let text = fs::read_to_string(&trace).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
    let spans = |name: &str| -> Vec<(f64, f64)> {
        let all = trace["traceEvents"].as_array().unwrap().iter();
        let named = all.filter(|event| event["name"] == name && event["tid"] == 0);
        let of = |event: &serde_json::Value, key: &str| event[key].as_f64().unwrap();
        named.map(|event| (of(event, "ts"), of(event, "ts") + of(event, "dur"))).collect()
    };
    let (calls, hidden) = (spans("forward and backward"), spans("exchange, hidden"));
    assert_eq!(spans("step").len(), 8);
    assert_eq!(calls.len(), 16, "two parts of each step");
    assert!(!hidden.is_empty());
    for (begin, end) in hidden {
        assert!(calls.iter().any(|call| call.0 <= begin && end <= call.1));
    }
    assert!(spans("exchange").len() >= 8);
    // Times of an exchange are no costs of a process.
    let asked = cllm::simulate::SimulateSettings {
        trace: settings.trace.clone().unwrap(),
        workers: vec![1],
        bandwidth: None,
        fastest: false,
        cluster: None,
    };
    let refused = cllm::simulate::simulate(&asked).unwrap_err().to_string();
    assert!(refused.contains("recorded by one of 2 ranks"), "{refused}");
    // Alone there is nothing to tell of.
    let dir = tempfile::tempdir().unwrap();
    let alone = TrainSettings { max_steps: 2, ..in_parts(dir.path()) };
    finishes(1, &alone);
    assert!(events(&alone, "done")[0]["exchange"].is_null());
}
