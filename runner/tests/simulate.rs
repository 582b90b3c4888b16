//! `cllm simulate`: predictions from a recorded run of a tiny model.

mod cli_support;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cli_support::run;
use cllm::settings::{Threads, TrainSettings};
use cllm::simulate::{Cluster, Network, Report, SimulateSettings, simulate};
use cllm::trace::chrome;
use serde_json::Value;
use support::{settings, train};

/// Records five steps of one micro-batch on one worker.
fn record(dir: &Path) -> PathBuf {
    let trace = dir.join("t.json");
    let settings = TrainSettings {
        trace: Some(trace.clone()),
        trace_steps: 5,
        tiles_for: Some(4),
        threads: Threads::Count(1),
        gradient_accumulation_steps: 1,
        block_size: 64,
        batch_size: 16,
        save_interval: 100,
        eval_interval: 100,
        ..settings(dir)
    };
    train(&settings).unwrap();
    trace
}

/// Gives every operation of a tile 100 us, so that what comes out is the same each time, and
/// scheduling the same costs.
fn steady(path: &Path) {
    let mut trace: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    for (cost, nanos) in [("dispatch", 500), ("steal", 700), ("start", 1000), ("end", 1000)] {
        trace["otherData"]["costs"][format!("{cost}_ns")] = nanos.into();
    }
    trace["otherData"]["costs"]["main_ns"] = 5000.into();
    let (mut time, mut before) = (0.0, None);
    for event in trace["traceEvents"].as_array_mut().unwrap() {
        if event["args"]["stage"].is_u64() {
            let tile = (event["args"]["stage"].as_u64(), event["args"]["tile"].as_u64());
            time += if before == Some(tile) { 100.0 } else { 101.0 };
            (event["ts"], event["dur"]) = (time.into(), 100.0.into());
            before = Some(tile);
        }
    }
    fs::write(path, trace.to_string()).unwrap();
}

fn predict(trace: &Path, workers: &[usize], bandwidth: Option<f64>) -> Report {
    let settings = SimulateSettings {
        trace: trace.to_path_buf(),
        workers: workers.to_vec(),
        bandwidth,
        fastest: false,
        cluster: None,
    };
    simulate(&settings).unwrap()
}

#[test]
fn one_worker_takes_the_sum_of_the_tiles_and_of_what_lies_between() {
    let dir = tempfile::tempdir().unwrap();
    let path = record(dir.path());
    let trace = chrome::read(&path).unwrap();
    let mut tiles = BTreeMap::<_, Vec<u64>>::new();
    for tile in trace.workers.iter().flatten() {
        tiles.entry((tile.stage, tile.tile)).or_default().push(tile.end - tile.begin);
    }
    let mut busy = 0;
    for times in tiles.values_mut() {
        assert_eq!(times.len(), 5);
        times.sort_unstable();
        busy += times[2];
    }
    let costs = &trace.about.costs;
    let between = (tiles.len() as u64 - 2) * costs.dispatch_ns as u64;
    let edges = 2 * (costs.start_ns as u64 + costs.end_ns as u64);
    let step = (busy + between + edges) as f64 + costs.main_ns + costs.data_ns;

    let report = predict(&path, &[1], Some(1e9));
    let alone = &report.predictions[0];
    assert!((alone.step_ms * 1e6 - step).abs() < 2.0, "{} {step}", alone.step_ms);
    assert!((alone.utilisation * step - busy as f64).abs() < 2.0);
    assert_eq!((alone.tiles, alone.stolen, alone.speedup), (tiles.len() as u64, 0, 1.0));
    assert_eq!((alone.wait, alone.memory), (0.0, 0.0));
    let fastest: u64 = tiles.values().map(|times| times[0]).sum();
    let settings = SimulateSettings {
        trace: path.clone(),
        workers: vec![1],
        bandwidth: None,
        fastest: true,
        cluster: None,
    };
    let quick = simulate(&settings).unwrap().predictions[0].clone();
    assert!((quick.utilisation * quick.step_ms * 1e6 - fastest as f64).abs() < 2.0);
    // Shares of the time are all of it.
    let all = alone.utilisation + alone.dispatch + alone.outside;
    assert!((all - 1.0).abs() < 1e-6, "{all}");
    let on_path: f64 = alone.critical_path.iter().map(|part| part.share).sum();
    assert!((on_path - alone.utilisation).abs() < 1e-6, "alone, every tile is on the path");
    let check = report.check.as_ref().unwrap();
    assert_eq!((check.steps, check.workers), (5, 1));
    assert!(check.error() > -0.9 && check.predicted_ms > 0.0, "{check:?}");
    assert!(report.text().contains("final norm .."));
}

#[test]
fn more_workers_are_faster_until_tiles_or_memory_run_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = record(dir.path());
    steady(&path);
    let report = predict(&path, &[1, 2, 4, 1024], Some(1e9));
    let [one, two, four, many] = &report.predictions[..] else { panic!("four were asked for") };
    assert!(two.speedup > 1.3 && two.speedup <= 2.001, "{two:?}");
    assert!(four.step_ms < two.step_ms && four.stolen > 0, "{four:?}");
    assert!(many.utilisation < 0.1 && many.wait > 0.3, "{many:?}");
    assert_eq!((one.tiles, two.tiles, many.tiles), (four.tiles, four.tiles, four.tiles));
    for p in &report.predictions {
        let all = p.utilisation + p.dispatch + p.memory + p.wait + p.outside;
        // What workers do between their last tile and the end of the run is not a share.
        assert!(all > 0.9 && all < 1.0 + 1e-6, "{all} {p:?}");
        let waits: f64 = p.waits.iter().map(|wait| wait.share).sum();
        assert!((waits - p.wait).abs() < 1e-9);
        assert!(p.critical_path.iter().map(|part| part.share).sum::<f64>() <= 1.0);
    }
    // The same again: virtual time is not the machine's.
    assert_eq!(predict(&path, &[1, 2, 4, 1024], Some(1e9)), report);
    // The update alone moves 28 bytes a parameter.
    let slow = predict(&path, &[4], Some(0.001));
    let parameters = 257 * 32 + 64 * 32;
    assert!(slow.predictions[0].step_ms > f64::from(28 * parameters) / 0.001 / 1e6);
    assert!(slow.predictions[0].memory > 0.5);
}

/// Each rank does what the recording did, and waits for the network behind it.
#[test]
fn ranks_compute_as_recorded_and_wait_for_what_is_not_hidden() {
    let dir = tempfile::tempdir().unwrap();
    let path = record(dir.path());
    steady(&path);
    let on = |ranks: &[usize], gbit_per_s: f64, latency_us: f64| {
        let network = Network { gbit_per_s, latency_us, message_us: 0.0 };
        let cluster = Cluster { ranks: ranks.to_vec(), network, fixed_batch: false };
        let settings = SimulateSettings {
            trace: path.clone(),
            workers: vec![1],
            bandwidth: Some(1e9),
            fastest: false,
            cluster: Some(cluster),
        };
        simulate(&settings).unwrap()
    };
    let alone = predict(&path, &[1], Some(1e9)).predictions[0].clone();
    let fast = on(&[1, 2, 64], 1e9, 0.0);
    assert!(fast.predictions.is_empty(), "{fast:?}");
    let [one, two, many] = &fast.ranks[..] else { panic!("three were asked for") };
    assert!((one.step_ms / alone.step_ms - 1.0).abs() < 1e-9, "{one:?} {alone:?}");
    assert_eq!((one.efficiency, one.speedup), (1.0, 1.0));
    // They share the update.
    assert!(two.efficiency > 0.9999 && two.compute_ms < one.compute_ms, "{two:?}");
    assert!(many.speedup > 64.0 && many.speedup < 64.0 * one.compute_ms / many.compute_ms * 1.001);
    let slow = on(&[1, 2, 64], 0.1, 30.0).ranks;
    assert_eq!(&slow[0], one);
    assert!(slow[1].efficiency < two.efficiency && slow[2].efficiency < many.efficiency);
    assert!(slow[2].hidden < many.hidden && slow[2].step_ms > many.step_ms, "{slow:?}");
    // On a network that is just fast enough only what is final last is waited for.
    let (gradients, hidden) = (slow[1].gradients_ms, slow[1].hidden);
    assert!(gradients > 0.0 && hidden > 0.0 && hidden < 1.0, "{slow:?}");
    let text = on(&[2], 10.0, 30.0).text();
    assert!(text.contains("10 Gbit/s each way, 30 us latency"), "{text}");
    let name = path.to_str().unwrap();
    let json =
        run(&["simulate", "--trace", name, "--ranks", "1,1024", "--link", "hdr", "--json"]).json();
    assert_eq!(json["network"]["gbit_per_s"], 200.0);
    assert_eq!(json["ranks"][1]["ranks"], 1024);
    let simulated = |flags: &[&str]| run(&[&["simulate", "--trace", name], flags].concat());
    simulated(&["--ranks", "2", "--fixed-batch"]).refused(1, &["--ranks 2", "1 micro-batch(es)"]);
    simulated(&["--ranks", "0"]).refused(2, &["--ranks 0", "1 to 4096"]);
    simulated(&["--ranks", "2", "--gbit", "0"]).refused(2, &["--gbit 0", "above 0"]);
    simulated(&["--ranks", "2", "--latency-us=-1"]).refused(2, &["--latency-us -1", "0 or more"]);
    simulated(&["--ranks", "2", "--link", "token-ring"]).refused(2, &["token-ring", "10gbe"]);
    simulated(&["--link", "hdr"]).refused(2, &["--ranks"]);
    simulated(&["--ranks", "2", "--workers", "2"]).refused(2, &["--ranks", "--workers"]);
}

#[test]
fn what_cannot_be_simulated_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = record(dir.path());
    let name = path.to_str().unwrap();
    run(&["simulate"]).refused(2, &["--trace"]);
    run(&["simulate", "--trace", "no-such.json"]).refused(1, &["cannot read", "no-such.json"]);
    run(&["simulate", "--trace", name, "--workers", "0"]).refused(2, &["--workers 0", "1 to 1024"]);
    run(&["simulate", "--trace", name, "--workers", "1,x"]).refused(2, &["--workers x"]);
    run(&["simulate", "--trace", name, "--bandwidth", "0"])
        .refused(2, &["--bandwidth 0", "above 0"]);
    let good = run(&["simulate", "--trace", name, "--workers", "1,3", "--json"]).json();
    assert_eq!(good["predictions"][1]["workers"], 3);

    let text = fs::read_to_string(&path).unwrap();
    for (from, to, problem) in [
        ("\"cllm_trace\":1", "\"cllm_trace\":7", "format 7"),
        ("\"n_layer\":2", "\"n_layer\":1", "another version of the program"),
        ("\"stage\":0,", "\"no\":0,", "was not recorded"),
        ("\"n_head\":2", "\"n_head\":0", "cannot be planned"),
        ("\"isa\":\"", "\"isa\":\"x", "other kernels"),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        fs::write(&path, changed).unwrap();
        run(&["simulate", "--trace", name]).refused(1, &[name, problem]);
    }
}
