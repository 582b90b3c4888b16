//! The threads of a run: exactly those asked for, started once, gone at the end, asleep
//! while there is nothing to do.
#![cfg(target_os = "linux")]

mod support;

use core::time::Duration;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Instant;

use cllm::data::prefetch::{ReadyBatch, with_loader};
use cllm::memory::PoolMemory;
use cllm::pool::{self, Crew, cpus};
use cllm::settings::{Threads, TrainSettings};
use cllm::train::Outcome;
use cllm_core::{
    Architecture, Batch, BatchShape, Engine, Kernels, Mode, ModelConfig, Optimizer, Plan, Trainer,
};
use serde_json::Value;
use support::{command, events, settings, sha, train};

/// Tests run one at a time: some look at what their own process does.
static OWN_PROCESS: Mutex<()> = Mutex::new(());

/// Names and allowed CPUs of the threads of a process by their number; those that end while
/// it looks are left out.
fn threads_of(process: &str) -> BTreeMap<u32, (String, String)> {
    let mut found = BTreeMap::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return found };
    for task in tasks.flatten() {
        let path = task.path();
        let Ok(status) = fs::read_to_string(path.join("status")) else { continue };
        let field = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default().trim_matches([':', '\t', ' ']).to_owned()
        };
        let id = task.file_name().to_str().unwrap().parse().unwrap();
        found.insert(id, (field("Name"), field("Cpus_allowed_list")));
    }
    found
}

fn is_worker(name: &str) -> bool {
    name.starts_with("cllm-worker-")
}

/// What a run of the binary says at its end, and every thread that was seen during it.
fn watched(settings: &TrainSettings) -> (Value, BTreeMap<u32, (String, String)>) {
    let mut child = command(settings).stdout(Stdio::piped()).spawn().unwrap();
    let process = child.id().to_string();
    let mut out = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        text
    });
    let mut seen = BTreeMap::new();
    while child.try_wait().unwrap().is_none() {
        seen.append(&mut threads_of(&process));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    let text = reader.join().unwrap();
    (serde_json::from_str(text.lines().last().unwrap()).unwrap(), seen)
}

/// Four epochs of small batches, validated and saved on the way.
fn epochs(dir: &std::path::Path, workers: usize) -> TrainSettings {
    TrainSettings {
        batch_size: 8,
        block_size: 96,
        gradient_accumulation_steps: 1,
        max_steps: 96,
        eval_interval: 12,
        save_interval: 24,
        log_interval: 24,
        threads: Threads::Count(workers),
        ..settings(dir)
    }
}

#[test]
fn as_many_workers_are_started_as_were_asked_for_and_no_more() {
    let _alone = OWN_PROCESS.lock();
    let mut hashes = Vec::new();
    for workers in [1, 2, 8] {
        let dir = tempfile::tempdir().unwrap();
        let settings = epochs(dir.path(), workers);
        let (done, seen) = watched(&settings);
        let tokens = events(&settings, "start")[0]["train_tokens"].as_u64().unwrap();
        assert!(done["tokens"].as_u64().unwrap() > 3 * tokens, "too few epochs");
        assert!(events(&settings, "eval").len() >= 8);
        assert_eq!(done["workers_started"], workers);
        let mut names: Vec<_> = seen.values().map(|(name, _)| name.as_str()).collect();
        names.retain(|name| is_worker(name));
        names.sort_unstable();
        // By number of thread: one that was started a second time would be here twice.
        let expected: Vec<_> = (0..workers).map(|n| format!("cllm-worker-{n}")).collect();
        assert_eq!(names, expected);
        let reported = done["workers"].as_array().unwrap().iter();
        assert!(reported.map(|w| w["name"].as_str().unwrap()).eq(expected));
        hashes.push(sha(&settings));
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
}

#[test]
fn pinned_workers_have_a_cpu_of_their_own_and_compute_the_same() {
    let _alone = OWN_PROCESS.lock();
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let free = epochs(a.path(), 2);
    let pinned = TrainSettings { pin: true, ..epochs(b.path(), 2) };
    let workers = |seen: &BTreeMap<u32, (String, String)>| {
        let cpus = seen.values().filter(|(name, _)| is_worker(name)).map(|(_, cpus)| cpus.clone());
        cpus.collect::<Vec<_>>()
    };
    let one_cpu = |cpus: &String| cpus.parse::<u32>().is_ok();
    let (_, seen) = watched(&pinned);
    let on = workers(&seen);
    assert_eq!(on.len(), 2);
    assert!(on.iter().all(one_cpu), "{on:?}");
    let several = cpus::available() > 1;
    assert_eq!(on[0] != on[1], several, "{on:?}");
    let others = seen.values().filter(|(name, _)| !is_worker(name));
    assert!(others.clone().count() > 0);
    let (_, seen) = watched(&free);
    if several {
        assert!(!workers(&seen).iter().any(one_cpu), "pinned without being asked");
    }
    assert_eq!(sha(&pinned), sha(&free));
}

#[test]
fn after_a_run_its_threads_are_gone() {
    let _alone = OWN_PROCESS.lock();
    for workers in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let before = pool::started();
        assert_eq!(train(&epochs(dir.path(), workers)), Ok(Outcome::Finished));
        assert_eq!(pool::started() - before, workers as u64);
        // They are joined; the system may take a moment to forget them.
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let names = threads_of("self").into_values().map(|(name, _)| name);
            let left: Vec<_> = names.filter(|name| name.starts_with("cllm-")).collect();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < until, "still there: {left:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_pool_with_nothing_to_do_sleeps() {
    let _alone = OWN_PROCESS.lock();
    const REST: Duration = Duration::from_millis(1500);
    let config = ModelConfig {
        vocab_size: 64,
        block_size: 32,
        n_layer: 2,
        n_head: 2,
        d_model: 32,
        d_ff: 64,
        bias: true,
        tied: true,
        dropout: 0.0,
        norm_eps: 1e-5,
        arch: Architecture::GPT2,
    };
    let kernels = Kernels::detect();
    let shape = BatchShape { sequences: 8, tokens: 32 };
    // As many as CPUs, whose workers spin for a while, and more, whose do not.
    for workers in [cpus::available(), 4 * cpus::available()] {
        let plan = Plan::new(&config, shape, workers, Mode::Train, kernels).unwrap();
        let mut memory = PoolMemory::allocate(&plan).unwrap();
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&plan, queue).unwrap();
        let trainer = Trainer::new(&plan, kernels, pools, &engine, 1).unwrap();
        let mut trainer = trainer.wait_with(&pool::CALLER);
        trainer.initialise();
        let fill = |n: u64, batch: &mut ReadyBatch| {
            let (tokens, targets) = batch.ids();
            tokens.fill(n as u32 % 64);
            targets.fill(n as u32 % 63);
            Ok(())
        };
        let crew = Crew::new(workers, false);
        let used = pool::with_workers(&engine, &crew, || {
            with_loader(4, plan.tokens(), 0..u64::MAX, fill, |mut prefetch| {
                let mut used = Vec::new();
                // Before the first step, and after steps.
                for _ in 0..2 {
                    std::thread::sleep(Duration::from_millis(50));
                    let before = cpus::process_time().unwrap();
                    std::thread::sleep(REST);
                    used.push(cpus::process_time().unwrap() - before);
                    for _ in 0..5 {
                        let batch = prefetch.take()?;
                        let Batch { tokens, .. } = batch.get();
                        trainer.accumulate(&batch.get(), tokens.len()).unwrap();
                        prefetch.recycle(batch);
                        trainer.update(&Optimizer::default(), 1e-3).unwrap();
                    }
                }
                Ok(used)
            })
        })
        .unwrap();
        println!("{workers} parked workers used {used:?} of {REST:?}");
        assert!(used.iter().all(|used| *used < REST / 100), "{workers} workers: {used:?}");
    }
}
