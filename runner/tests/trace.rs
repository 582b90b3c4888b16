//! `--trace`: what the file holds, what it costs the bits, and what goes wrong.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use cllm::settings::{Threads, TrainSettings};
use cllm::trace::chrome;
use cllm::train::Outcome;
use serde_json::Value;
use support::{settings, sha, train};

/// Trains with a trace of `steps` steps and reads it as plain JSON.
fn traced(dir: &Path, threads: usize, change: impl FnOnce(&mut TrainSettings)) -> Value {
    let mut settings = TrainSettings {
        trace: Some(dir.join("t.json")),
        trace_steps: 3,
        threads: Threads::Count(threads),
        save_interval: 100,
        eval_interval: 100,
        ..settings(dir)
    };
    change(&mut settings);
    assert_eq!(train(&settings), Ok(Outcome::Finished));
    serde_json::from_str(&fs::read_to_string(dir.join("t.json")).unwrap()).unwrap()
}

fn events(trace: &Value, keep: impl Fn(&Value) -> bool) -> Vec<&Value> {
    trace["traceEvents"].as_array().unwrap().iter().filter(|event| keep(event)).collect()
}

/// Begin and end in nanoseconds.
fn span(event: &Value) -> (u64, u64) {
    let nanos = |key: &str| (event[key].as_f64().unwrap() * 1000.0).round() as u64;
    (nanos("ts"), nanos("ts") + nanos("dur"))
}

#[test]
fn every_tile_of_every_recorded_step_is_there_once_and_named() {
    for threads in [1, 2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let trace = traced(dir.path(), threads, |_| {});
        let about = &trace["otherData"];
        assert_eq!((&about["cllm_trace"], &about["steps"]), (&1.into(), &3.into()));
        assert_eq!((&about["steps_before"], &about["lost"]), (&2.into(), &0.into()));
        assert_eq!(about["workers"], threads);
        assert!(about["costs"]["dispatch_ns"].as_f64().unwrap() > 0.0);

        let names = events(&trace, |e| e["name"] == "thread_name");
        let names: Vec<_> = names.iter().map(|e| e["args"]["name"].as_str().unwrap()).collect();
        let workers: Vec<_> = (0..threads).map(|n| format!("cllm-worker-{n}")).collect();
        assert_eq!(
            (names[0], names[1..].to_vec()),
            ("main", workers.iter().map(|n| &n[..]).collect())
        );

        // No two spans of a worker overlap.
        for tid in 1..=threads {
            let mut last = 0;
            for event in events(&trace, |e| e["tid"] == tid && e["ph"] == "X") {
                let (begin, end) = span(event);
                assert!(begin >= last && end >= begin, "{event}");
                last = end;
            }
            assert!(threads > 1 || last > 0);
        }

        let steps = events(&trace, |e| e["name"] == "step");
        assert_eq!(steps.len(), 3);
        let mut counts = BTreeMap::new();
        let mut layers = BTreeSet::new();
        for step in &steps {
            let (from, until) = span(step);
            // (stage, tile, operation and layer): twice for two micro-batches.
            let mut tiles = BTreeMap::new();
            for event in events(&trace, |e| e["args"]["stage"].is_u64()) {
                let (begin, end) = span(event);
                if begin < from || begin >= until {
                    continue;
                }
                assert!(end <= until);
                let args = &event["args"];
                let key = (args["stage"].as_u64(), args["tile"].as_u64(), event["name"].as_str());
                *tiles.entry((key, event["cat"].as_str())).or_insert(0) += 1;
                layers.insert((event["name"].as_str().unwrap(), args["layer"].as_u64()));
                assert!(args["stolen"].is_boolean());
            }
            for ((key, section), count) in &tiles {
                let once = ["pack", "gradient norm", "update"].contains(&section.unwrap());
                assert_eq!(*count, if once { 1 } else { 2 }, "{key:?} {section:?}");
                assert!(!key.2.unwrap().is_empty());
            }
            *counts.entry(tiles.len()).or_insert(0) += 1;
        }
        // All steps have the same tiles.
        assert_eq!(counts.values().copied().collect::<Vec<_>>(), [3]);
        for wanted in [("fc", Some(1)), ("attention backward", Some(0)), ("optimizer", None)] {
            assert!(layers.contains(&wanted), "{wanted:?}");
        }
        for name in ["data wait", "forward and backward"] {
            assert_eq!(events(&trace, |e| e["name"] == name && e["tid"] == 0).len(), 6);
        }
        assert_eq!(events(&trace, |e| e["name"] == "update" && e["tid"] == 0).len(), 3);
        let read = chrome::read(&dir.path().join("t.json")).unwrap();
        assert_eq!((read.about.steps, read.workers.len()), (3, threads));
        let chain = events(&trace, |e| e["name"] == "embed").len();
        let first = read.workers.iter().flatten().filter(|t| t.stage == 3).count();
        assert_eq!(chain, first, "operations of a tile are put together again");
    }
}

#[test]
fn a_short_run_is_recorded_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let trace = traced(dir.path(), 2, |s| (s.max_steps, s.trace_steps) = (4, 10));
    assert_eq!(trace["otherData"]["steps"], 2);
    let dir = tempfile::tempdir().unwrap();
    let trace = traced(dir.path(), 2, |s| (s.max_steps, s.trace_steps) = (1, 10));
    assert_eq!(
        (&trace["otherData"]["steps"], events(&trace, |e| e["name"] == "step").len()),
        (&1.into(), 1)
    );
}

#[test]
fn a_trace_and_the_cut_of_the_tiles_change_no_bit() {
    let [plain, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let settings_of = |dir: &Path| TrainSettings { threads: Threads::Count(2), ..settings(dir) };
    train(&settings_of(plain.path())).unwrap();
    let cut = TrainSettings {
        trace: Some(other.path().join("t.json")),
        tiles_for: Some(16),
        ..settings_of(other.path())
    };
    train(&cut).unwrap();
    assert_eq!(sha(&settings_of(plain.path())), sha(&cut));
    let about = chrome::read(&other.path().join("t.json")).unwrap().about;
    assert_eq!((about.tiles_for, about.workers), (16, 2));
    // Validations and checkpoints of the recorded steps are on the main row.
    let text = fs::read_to_string(other.path().join("t.json")).unwrap();
    assert!(text.contains("\"validation\"") && text.contains("\"checkpoint\""));
}

#[test]
fn a_file_that_cannot_be_written_is_named_before_any_step() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("no/such/t.json");
    let settings = TrainSettings { trace: Some(trace), ..settings(dir.path()) };
    let error = train(&settings).unwrap_err().to_string();
    assert!(
        error.starts_with("--trace: cannot write") && error.contains("no/such/t.json"),
        "{error}"
    );
    // Not even that a run began.
    assert!(!settings.out_dir.join("metrics.jsonl").exists());
}

#[test]
fn what_is_no_trace_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.json");
    let message = || chrome::read(&path).unwrap_err().to_string();
    assert!(message().starts_with("cannot read the trace"), "{}", message());
    traced(dir.path(), 1, |_| {});
    let text = fs::read_to_string(&path).unwrap();
    for (content, problem) in [
        (String::new(), "not a whole trace"),
        (text[..text.len() / 2].to_owned(), "not a whole trace"),
        ("{\"traceEvents\":[]}".to_owned(), "not a trace of this program"),
        ("{\"otherData\":{\"version\":\"x\"}}".to_owned(), "not a trace of this program"),
        (text.replace("\"cllm_trace\":1", "\"cllm_trace\":2"), "a trace of format 2, but"),
        ("{\"otherData\":{\"cllm_trace\":9}}".to_owned(), "a trace of format 9, but"),
        (text.replace("\"workers\":1", "\"workers\":18446744073709551615"), "no run has so many"),
        (text.replace("\"workers\":1", "\"workers\":0"), "no run has so many"),
    ] {
        fs::write(&path, content).unwrap();
        let message = message();
        assert!(message.contains(problem) && message.contains("t.json"), "{message}");
        assert!(message.contains("cllm train --trace FILE"), "{message}");
    }
}
