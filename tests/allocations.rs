//! With workers, a loader and reports, no thread of the process allocates in a step.
//!
//! `tests/memory.rs` looks at one thread; here every thread counts but the program's first,
//! which belongs to the test harness.

mod support;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;

use cllm::cli::presets::Preset;
use cllm::data::loader::Dataset;
use cllm::data::prefetch::{ReadyBatch, with_loader};
use cllm::data::stream::TokenStream;
use cllm::memory::PoolMemory;
use cllm::pool::times::Times;
use cllm::pool::{CALLER, Crew, with_workers};
use cllm::settings::{LogFormat, Threads, TrainSettings};
use cllm::train::stop::Stop;
use cllm::train::{Outcome, train_until};
use cllm_core::{
    Architecture, BatchShape, Engine, Kernels, Mode, ModelConfig, Optimizer, Plan, Trainer,
};
use support::counting::{Counting, calls, place};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tests that count the whole process's calls run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

const SHAPE: BatchShape = BatchShape { sequences: 8, tokens: 64 };

const CONFIG: ModelConfig = ModelConfig {
    vocab_size: 256,
    block_size: 64,
    n_layer: 2,
    n_head: 2,
    d_model: 64,
    d_ff: 256,
    bias: true,
    tied: false,
    dropout: 0.1,
    norm_eps: 1e-5,
    arch: Architecture::GPT2,
};

/// Calls between two counts, by thread; the harness's own is left out.
fn between(before: &[usize], after: &[usize]) -> Vec<usize> {
    before.iter().zip(after).skip(1).map(|(before, after)| after - before).collect()
}

#[test]
fn a_step_of_workers_and_loader_allocates_nothing_in_any_thread() {
    let _alone = ALONE.lock();
    const WORKERS: usize = 2;
    let kernels = Kernels::detect();
    let plan = Plan::new(&CONFIG, SHAPE, WORKERS, Mode::Train, kernels).unwrap();
    let mut memory = PoolMemory::allocate(&plan).unwrap();
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 1).unwrap().wait_with(&CALLER);
    trainer.initialise();
    let stream = TokenStream::from_tokens("t", (0..20_000).map(|i| i * 7 % 256).collect());
    let data = Dataset::open(stream, 256, SHAPE.tokens, 1).unwrap();
    let filled = AtomicU64::new(0);
    let fill = |n: u64, batch: &mut ReadyBatch| {
        let (tokens, targets) = batch.ids();
        filled.fetch_add(1, Relaxed);
        data.fill_batch(n * SHAPE.sequences as u64, SHAPE.sequences, tokens, targets)
    };
    let crew = Crew::new(WORKERS, false);
    let mut did = [[Times::ZERO; WORKERS]; 2];
    let allocated = with_workers(&engine, &crew, || {
        with_loader(2, plan.tokens(), 0..1000, fill, |mut prefetch| {
            let mut before = calls();
            for step in 1..=20 {
                let batch = prefetch.take()?;
                trainer.accumulate(&batch.get(), plan.tokens()).unwrap();
                prefetch.recycle(batch);
                trainer.update(&Optimizer::default(), 1e-3).unwrap();
                if step == 3 {
                    crew.read(&mut did[0]);
                    before = calls();
                }
            }
            let after = calls();
            crew.read(&mut did[1]);
            Ok(between(&before, &after))
        })
    });
    let allocated = allocated.unwrap();
    assert!(allocated.iter().all(|calls| *calls == 0), "by thread: {allocated:?}");
    // All of them were at work meanwhile.
    assert!(filled.into_inner() >= 20);
    for (before, after) in did[0].iter().zip(&did[1]) {
        assert!(after.tiles > before.tiles);
    }
}

/// Counts the process's calls each time a line has been written.
#[derive(Default)]
struct Lines {
    counts: Vec<[usize; 256]>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.counts.push(calls());
        Ok(())
    }
}

/// Calls of this thread and of all others from each reported step to the next, of a run that
/// reports every `interval` steps.
fn session(dir: &Path, interval: u64) -> Vec<(usize, usize)> {
    const REPORTS: u64 = 8;
    let settings = TrainSettings {
        n_layer: 2,
        n_embd: 32,
        n_head: 2,
        block_size: 64,
        batch_size: 8,
        max_steps: interval * (REPORTS + 1),
        log_interval: interval,
        eval_interval: 0,
        save_interval: 0,
        sample_tokens: 0,
        log_format: LogFormat::Json,
        threads: Threads::Count(2),
        out_dir: dir.join(format!("every{interval}")),
        ..Preset::Tiny.settings()
    };
    let mut lines = Lines { counts: Vec::with_capacity(100) };
    assert_eq!(train_until(&settings, &Stop::new(), &mut lines), Ok(Outcome::Finished));
    let own = place();
    // The first lines are the start and the first steps; the last the evaluation and the end.
    let steps = &lines.counts[3..=REPORTS as usize];
    let pairs = steps.windows(2).map(|pair| {
        let calls = between(&pair[0], &pair[1]);
        (calls[own - 1], calls.iter().sum::<usize>() - calls[own - 1])
    });
    pairs.collect()
}

#[test]
fn a_session_allocates_for_its_reports_alone() {
    let _alone = ALONE.lock();
    let dir = std::env::temp_dir().join(format!("cllm-allocations-{}", std::process::id()));
    // From one report to the next, five steps apart or thirty: what a report needs.
    let [often, seldom] = [5, 30].map(|interval| session(&dir, interval));
    std::fs::remove_dir_all(&dir).unwrap();
    println!("calls of (the training thread, all others): {often:?} {seldom:?}");
    assert!(often.len() >= 4 && seldom.len() >= 4);
    assert!(often.iter().chain(&seldom).all(|(_, others)| *others == 0));
    // The least, for now and then a line is longer than the room it was given.
    let own = |counts: &[(usize, usize)]| counts.iter().map(|(own, _)| *own).min();
    assert_eq!(own(&often), own(&seldom));
}
