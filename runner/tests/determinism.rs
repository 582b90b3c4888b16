//! The same weights, to the bit, for any number of workers and any depth of prefetching, on
//! each instruction set: whole runs, from text to `weights_sha256`.
//!
//! `benches/determinism.sh` does the same with the reference workload; `tests/engine.rs` of
//! the workspace steals at random.

mod support;

use std::path::Path;

use cllm::settings::{Threads, TrainSettings};
use cllm::train::Outcome;
use cllm_core::{Dtype, Isa, Kernels};
use support::{course, events, settings, sha, train};

/// Several row blocks, tokens of two sequences in one of them, three spans a sequence.
fn wide(dir: &Path) -> TrainSettings {
    TrainSettings {
        batch_size: 5,
        block_size: 144,
        gradient_accumulation_steps: 1,
        max_steps: 5,
        eval_batches: 1,
        save_interval: 100,
        ..settings(dir)
    }
}

/// The weights' hash, the losses, and the tiles that each worker ran and stole.
fn run(settings: TrainSettings) -> (String, Vec<serde_json::Value>, Vec<(u64, u64)>) {
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainSettings { out_dir: dir.path().join("run"), ..settings };
    assert_eq!(train(&settings), Ok(Outcome::Finished));
    let done = &events(&settings, "done")[0];
    let count = |worker: &serde_json::Value, key: &str| worker[key].as_u64().unwrap();
    let workers = done["workers"].as_array().unwrap();
    let tiles = workers.iter().map(|w| (count(w, "tiles"), count(w, "tiles_stolen"))).collect();
    (sha(&settings), course(&settings), tiles)
}

#[test]
fn workers_and_prefetching_do_not_change_a_bit() {
    let dir = tempfile::tempdir().unwrap();
    let base = wide(dir.path());
    let mut hashes = Vec::new();
    let mut stolen = 0;
    for isa in Isa::ALL {
        if Kernels::for_isa(isa).is_none() {
            continue;
        }
        let run = |workers, prefetch| {
            let threads = Threads::Count(workers);
            run(TrainSettings { isa: Some(isa), threads, prefetch, ..base.clone() })
        };
        let (hash, losses, alone) = run(1, 4);
        assert_eq!(alone.len(), 1);
        for workers in [1, 2, 3, 4, 7, 8] {
            for prefetch in [1, 16] {
                let (other, course, tiles) = run(workers, prefetch);
                let which = format!("{isa}, {workers} workers, {prefetch} batches ahead");
                assert_eq!(other, hash, "{which}");
                assert_eq!(course, losses, "{which}");
                // Not one of them did it all. Of eight on few cores some may come too late.
                let took_part = tiles.iter().filter(|(ran, _)| *ran > 0).count();
                assert_eq!(tiles.len(), workers);
                assert!(took_part >= workers.min(2), "{which}: {tiles:?}");
                stolen += tiles.iter().map(|(_, stolen)| stolen).sum::<u64>();
            }
        }
        // Of plain floats the kernels for CPUs with AMX are those of AVX-512.
        match isa {
            Isa::Amx => assert_eq!(Some(&hash), hashes.last(), "{isa}"),
            _ => hashes.push(hash),
        }
    }
    // With products of bf16 as well, which are other weights.
    let bf16 = TrainSettings { dtype: Dtype::Bf16, ..base.clone() };
    let run_with =
        |workers| run(TrainSettings { threads: Threads::Count(workers), ..bf16.clone() });
    let (hash, losses, _) = run_with(1);
    let (other, course, _) = run_with(3);
    assert_eq!((other, course), (hash.clone(), losses));
    hashes.push(hash);
    assert!(stolen > 0, "nobody stole: the order of tiles was always the same");
    // Each instruction set rounds in its own way: the flag did something.
    let sets = hashes.len();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), sets);
}

#[test]
fn what_does_change_the_weights_shows() {
    let dir = tempfile::tempdir().unwrap();
    let base = wide(dir.path());
    let of = |settings| run(settings).0;
    let hash = of(base.clone());
    // One more step, and the smallest change that a number of single precision can have.
    let learning_rate = base.learning_rate.next_up();
    for other in [
        TrainSettings { max_steps: base.max_steps + 1, ..base.clone() },
        TrainSettings { learning_rate, ..base.clone() },
        TrainSettings { seed: base.seed + 1, ..base },
    ] {
        assert_ne!(of(other.clone()), hash, "{other:?}");
    }
}
