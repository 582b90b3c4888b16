//! Each part of a recipe by itself, in f32 and in bf16: it does something, any number of workers gives the same bits,
//! and a run that was stopped goes on with them. (Their gradients are checked in `tests/` and `core`.)

mod support;

use std::path::Path;

use cllm::parts::{ActivationChoice, NormChoice, PositionsChoice};
use cllm::settings::{ScheduleChoice, Threads, TrainSettings};
use cllm::train::Outcome;
use cllm_core::{Dtype, OptimizerKind};
use support::{course, events, settings, sha, train, train_to};

type Part = (&'static str, fn(TrainSettings) -> TrainSettings);

/// What a recipe may have that GPT-2's has not, one at a time.
const PARTS: &[Part] = &[
    ("optimizer muon", |s| TrainSettings { optimizer: OptimizerKind::Muon, ..s }),
    ("momentum", |s| TrainSettings { optimizer: OptimizerKind::Muon, momentum: Some(0.8), ..s }),
    ("norm rms", |s| TrainSettings { norm: NormChoice::Rms, bias: false, ..s }),
    ("positions rotary", |s| TrainSettings { positions: PositionsChoice::Rotary, ..s }),
    ("qk-norm", |s| TrainSettings { norm: NormChoice::Rms, bias: false, qk_norm: true, ..s }),
    ("activation relu2", |s| TrainSettings { activation: ActivationChoice::Relu2, ..s }),
    ("activation swiglu", |s| TrainSettings { activation: ActivationChoice::Swiglu, ..s }),
    ("zero-init", |s| TrainSettings { zero_init: true, ..s }),
    ("untied", |s| TrainSettings { tied: false, ..s }),
    ("untied with zero-init", |s| TrainSettings { tied: false, zero_init: true, ..s }),
    ("bigram-init", |s| TrainSettings {
        tied: false,
        norm: NormChoice::Rms,
        bias: false,
        bigram_init: true,
        ..s
    }),
    ("logit-softcap", |s| TrainSettings { logit_softcap: 3.0, ..s }),
    ("previous-tokens", |s| TrainSettings { previous_tokens: 3, ..s }),
    ("embedding-scale", |s| TrainSettings { embedding_scale: 8.0, ..s }),
    ("rates of tables and output projection", |s| TrainSettings {
        tied: false,
        embedding_lr_scale: 0.5,
        head_lr_scale: 0.15,
        ..s
    }),
    ("window", |s| TrainSettings { window: Some(7), ..s }),
    ("schedule linear", |s| TrainSettings {
        lr_schedule: ScheduleChoice::Linear,
        min_lr: Some(0.0),
        ..s
    }),
    ("schedule wsd", |s| TrainSettings {
        lr_schedule: ScheduleChoice::Wsd,
        lr_decay_steps: Some(6),
        min_lr: Some(0.0),
        ..s
    }),
    ("all of the preset", |s| TrainSettings {
        optimizer: OptimizerKind::Muon,
        norm: NormChoice::Rms,
        bias: false,
        positions: PositionsChoice::Rotary,
        qk_norm: true,
        activation: ActivationChoice::Relu2,
        previous_tokens: 3,
        embedding_scale: 8.0,
        lr_schedule: ScheduleChoice::Linear,
        min_lr: Some(0.0),
        ..s
    }),
];

/// A run of one worker without interruption, one of three, and one that is stopped and goes on with two.
fn three_ways(name: &str, part: fn(TrainSettings) -> TrainSettings, dtype: Dtype) -> String {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let of = |dir: &Path, threads: usize| {
        let threads = Threads::Count(threads);
        part(TrainSettings { dtype, threads, ..settings(dir) })
    };
    let [one, three, halves] = [(0, 1), (1, 3), (2, 1)].map(|(at, n)| of(folders[at].path(), n));
    assert_eq!(train(&one), Ok(Outcome::Finished), "{name}");
    assert_eq!(train(&three), Ok(Outcome::Finished), "{name}");
    assert_eq!(sha(&three), sha(&one), "{name}, {dtype:?}: other bits with three workers");
    let stopped = train_to(&halves, "\"event\":\"step\",\"step\":5,");
    assert_eq!(stopped, Ok(Outcome::Interrupted), "{name}");
    let on = TrainSettings { resume: true, ..of(folders[2].path(), 2) };
    assert_eq!(train(&on), Ok(Outcome::Finished), "{name}");
    assert_eq!(sha(&on), sha(&one), "{name}, {dtype:?}: other bits behind a resume");
    assert_eq!(course(&on), course(&one), "{name}, {dtype:?}");
    let [first, last] = [0, 11].map(|at| events(&one, "step")[at]["loss"].as_f64().unwrap());
    // What is counted is learned before the first step: the rest of it is less.
    let (most, least) = if name == "bigram-init" { (1.5, 0.1) } else { (f64::MAX, 0.2) };
    assert!(
        first < most && last < first - least,
        "{name}, {dtype:?}: {first} to {last}: nothing is learned"
    );
    sha(&one)
}

fn each_part(dtype: Dtype) {
    let mut all = vec![three_ways("none", |s| s, dtype)];
    for (name, part) in PARTS {
        let sha = three_ways(name, *part, dtype);
        assert!(!all.contains(&sha), "{name}, {dtype:?}: the part does nothing");
        all.push(sha);
    }
}

#[test]
fn each_part_of_a_recipe_gives_the_same_bits_in_f32() {
    each_part(Dtype::F32);
}

#[test]
fn each_part_of_a_recipe_gives_the_same_bits_in_bf16() {
    each_part(Dtype::Bf16);
}
