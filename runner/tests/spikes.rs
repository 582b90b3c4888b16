//! Steps that stand out: what `--on-spike` makes of them, with the same bits for any number of threads and
//! however often the run is stopped; and which tensor was the first that is not finite.

mod support;

use core::ops::Range;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use cllm::checkpoint::CheckpointFile;
use cllm::data::sampler::Sampler;
use cllm::data::shard::ShardWriter;
use cllm::settings::{ScheduleChoice, SpikeChoice, Threads, TrainSettings};
use cllm::train::Outcome;
use cllm_core::checkpoint::{Sink, encode};
use cllm_core::{Moments, MomentsMut, ParamTable};
use serde_json::Value;
use support::{checkpoints, course, events, settings, sha, step_file, train, train_to};

const STEPS: u64 = 32;
/// The step whose data are bad, and the checkpoint before it.
const SPIKE: u64 = 21;
const BEFORE: u64 = 18;

/// A run on numbers that go round, but for the data of some steps, which are of none of them.
fn run(dir: &Path, on_spike: SpikeChoice, bad: Range<u64>) -> TrainSettings {
    let base = settings(dir);
    let shard = |name: &str, tokens: &[u32]| {
        let path = dir.join(name);
        let mut shard = ShardWriter::create(&path, 257).unwrap();
        shard.write(tokens).unwrap();
        shard.finish().unwrap();
        vec![path.to_str().unwrap().to_owned()]
    };
    let mut tokens: Vec<u32> = (0..12_000).map(|n| 97 + n % 13).collect();
    let val_data = shard("val_0.bin", &tokens[..2_000]);
    let block = base.block_size;
    let sampler = Sampler::new("t", tokens.len() as u64, block, base.seed).unwrap();
    let rows = (base.batch_size * base.gradient_accumulation_steps) as u64;
    for row in (bad.start - 1) * rows..(bad.end - 1) * rows {
        let start = sampler.window(row) as usize;
        for (i, token) in tokens[start + 1..start + block].iter_mut().enumerate() {
            *token = 180 + (row as u32 * 31 + i as u32 * 17) % 70;
        }
    }
    TrainSettings {
        data: shard("train_0.bin", &tokens),
        val_data,
        vocab_size: Some(257),
        max_steps: STEPS,
        lr_schedule: ScheduleChoice::Constant,
        save_interval: 6,
        eval_interval: 8,
        keep_checkpoints: 1,
        on_spike,
        spike_window: 4,
        spike_threshold: 7.0,
        ..base
    }
}

/// One bad step.
fn with_spike(dir: &Path, on_spike: SpikeChoice) -> TrainSettings {
    run(dir, on_spike, SPIKE..SPIKE + 1)
}

fn resumed(settings: &TrainSettings) -> TrainSettings {
    TrainSettings { resume: true, ..settings.clone() }
}

/// What was done about spikes.
fn done_about(settings: &TrainSettings) -> Vec<Done> {
    let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    let number = |event: &Value, key: &str| event[key].as_u64().unwrap();
    let all = events(settings, "spike").into_iter().map(|event| {
        let limit = event["limit"].as_f64();
        assert!(limit.is_none_or(|limit| event["value"].as_f64().unwrap() > limit), "{event}");
        (number(&event, "at"), number(&event, "step"), text(&event, "what"), text(&event, "action"))
    });
    all.collect()
}

fn of_loss(step: u64, then: u64, action: &str) -> Vec<Done> {
    vec![(step, then, "loss".to_owned(), action.to_owned())]
}

/// What is done about a spike: the step, that after which the run goes on, what stood out, and what was done.
type Done = (u64, u64, String, String);

/// Hash, figures and what was done about spikes.
type Course = (String, Vec<Value>, Vec<Done>);

/// Those of a run that nobody disturbs, with one thread and with two.
fn undisturbed(on_spike: SpikeChoice) -> &'static Course {
    static RUNS: [OnceLock<Course>; 4] = [const { OnceLock::new() }; 4];
    RUNS[on_spike as usize].get_or_init(|| run_undisturbed(on_spike))
}

fn run_undisturbed(on_spike: SpikeChoice) -> Course {
    let [one, two] = [1, 2].map(|threads| {
        let dir = tempfile::tempdir().unwrap();
        let threads = Threads::Count(threads);
        let settings = TrainSettings { threads, ..with_spike(dir.path(), on_spike) };
        assert_eq!(train(&settings), Ok(Outcome::Finished));
        (sha(&settings), course(&settings), done_about(&settings))
    });
    assert_eq!(one, two);
    let steps: Vec<u64> = of_steps(&one.1, |step| step["step"].as_u64());
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>(), "each step once");
    one
}

fn of_steps<T>(course: &[Value], of: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    course.iter().filter(|line| line["event"] == "step").map(|line| of(line).unwrap()).collect()
}

#[test]
fn without_being_asked_a_spike_is_reported_and_trained_on() {
    let (hash, course, spikes) = undisturbed(SpikeChoice::Off);
    assert!(spikes.contains(&of_loss(SPIKE, SPIKE, "none")[0]), "{spikes:?}");
    assert!(spikes.iter().all(|(at, .., action)| *at >= SPIKE && action == "none"), "{spikes:?}");
    let losses: Vec<f64> = of_steps(course, |step| step["loss"].as_f64());
    assert!(losses[SPIKE as usize - 1] > 1.5 * losses[SPIKE as usize - 2], "{losses:?}");
    // What is only watched changes nothing.
    let dir = tempfile::tempdir().unwrap();
    let other = TrainSettings { spike_window: 6, ..with_spike(dir.path(), SpikeChoice::Off) };
    assert_eq!(train(&other), Ok(Outcome::Finished));
    assert_eq!(sha(&other), *hash);
}

#[test]
fn a_spike_is_skipped_with_the_same_bits_from_any_step() {
    let (hash, whole, spikes) = undisturbed(SpikeChoice::Skip);
    assert_eq!(*spikes, of_loss(SPIKE, SPIKE, "skip"));
    assert_ne!(*hash, undisturbed(SpikeChoice::Off).0);
    let norms: Vec<bool> = of_steps(whole, |step| Some(step["grad_norm"].is_null()));
    let without: Vec<usize> = (0..norms.len()).filter(|i| norms[*i]).collect();
    assert_eq!(without, [SPIKE as usize - 1], "one step has no update");
    for step in [SPIKE - 1, SPIKE] {
        let dir = tempfile::tempdir().unwrap();
        let settings = with_spike(dir.path(), SpikeChoice::Skip);
        let text = format!("\"event\":\"step\",\"step\":{step},");
        assert_eq!(train_to(&settings, &text), Ok(Outcome::Interrupted), "{text}");
        assert_eq!(train(&resumed(&settings)), Ok(Outcome::Finished), "{text}");
        let threads = (sha(&settings), course(&settings), done_about(&settings));
        assert_eq!(threads, (hash.clone(), whole.clone(), spikes.clone()), "{text}");
        assert_eq!(events(&settings, "done")[0]["skipped_steps"], 1);
    }
}

#[test]
fn a_run_stops_at_a_spike_and_can_be_told_to_go_past_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = with_spike(dir.path(), SpikeChoice::Stop);
    let message = train(&settings).unwrap_err().to_string();
    for part in ["stopped at step 21: the loss ", " is a spike: above ", "step-18.cllm", "--resume"]
    {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(done_about(&settings), of_loss(SPIKE, SPIKE, "stop"));
    let again = train(&resumed(&settings)).unwrap_err().to_string();
    assert_eq!(again, message, "it comes to the same spike");
    let skip = TrainSettings { on_spike: SpikeChoice::Skip, ..resumed(&settings) };
    assert_eq!(train(&skip), Ok(Outcome::Finished));
    assert_eq!(sha(&skip), undisturbed(SpikeChoice::Skip).0);
}

#[test]
fn a_run_goes_back_before_a_spike_with_the_same_bits_from_anywhere() {
    let (hash, whole, spikes) = undisturbed(SpikeChoice::Rewind);
    assert_eq!(*spikes, of_loss(SPIKE, BEFORE, "rewind"));
    assert_ne!(*hash, undisturbed(SpikeChoice::Skip).0, "the data went on");
    let check = |settings: &TrainSettings, which: &str| {
        assert_eq!(train(&resumed(settings)), Ok(Outcome::Finished), "{which}");
        let run = (sha(settings), course(settings), done_about(settings));
        assert_eq!(run, (hash.clone(), whole.clone(), spikes.clone()), "{which}");
        // The data of three steps more.
        let tokens = (STEPS + SPIKE - BEFORE) * 4 * 16 * 2;
        assert_eq!(events(settings, "done")[0]["tokens"], tokens, "{which}");
        assert_eq!(checkpoints(settings), ["best.cllm", "step-30.cllm", "step-32.cllm"]);
    };
    let rewound = "\"action\":\"rewind\"";
    let step = |step: u64| format!("\"event\":\"step\",\"step\":{step},");
    // Before, where the run goes back to and at an interruption behind it; at once after it, and later.
    for text in [&step(BEFORE), &step(BEFORE + 1), rewound, &step(SPIKE + 1)] {
        let dir = tempfile::tempdir().unwrap();
        let settings = with_spike(dir.path(), SpikeChoice::Rewind);
        assert_eq!(train_to(&settings, text), Ok(Outcome::Interrupted), "{text}");
        check(&settings, text);
    }
    // Killed after it: the next session comes from before it.
    let dir = tempfile::tempdir().unwrap();
    let settings = with_spike(dir.path(), SpikeChoice::Rewind);
    assert_eq!(train_to(&settings, &step(SPIKE + 1)), Ok(Outcome::Interrupted));
    fs::remove_file(step_file(&settings, SPIKE + 1)).unwrap();
    assert_eq!(checkpoints(&settings), ["best.cllm", "step-18.cllm"]);
    check(&settings, "killed");
}

/// The best checkpoint is of a higher step, but of before the run went back.
#[test]
fn what_was_saved_behind_a_rewind_is_gone_on_from() {
    let of =
        |dir: &Path| TrainSettings { eval_interval: 5, ..with_spike(dir, SpikeChoice::Rewind) };
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (whole, run) = (of(a.path()), of(b.path()));
    assert_eq!(train(&whole), Ok(Outcome::Finished));
    assert_eq!(train_to(&run, "\"action\":\"rewind\""), Ok(Outcome::Interrupted));
    assert_eq!(checkpoints(&run), ["best.cllm", "step-18.cllm"]);
    let best = CheckpointFile::open(&run.out_dir.join("best.cllm")).unwrap();
    assert_eq!(best.parse().unwrap().header().updates, 20);
    assert_eq!(train(&resumed(&run)), Ok(Outcome::Finished));
    let starts = events(&run, "start");
    assert_eq!(starts.last().unwrap()["step"], BEFORE);
    let all = |run| (sha(run), course(run), done_about(run));
    assert_eq!(all(&run), all(&whole));
}

#[test]
fn what_does_not_end_is_no_spike() {
    let all = SPIKE..STEPS + 10;
    let dir = tempfile::tempdir().unwrap();
    let skip = run(dir.path(), SpikeChoice::Skip, all.clone());
    let message = train(&skip).unwrap_err().to_string();
    assert!(message.starts_with("stopped at step 31: the loss "), "{message}");
    assert!(message.contains("so were the 10 steps before it"), "{message}");
    let dir = tempfile::tempdir().unwrap();
    let rewind = run(dir.path(), SpikeChoice::Rewind, all);
    let message = train(&rewind).unwrap_err().to_string();
    assert!(message.starts_with("stopped at step 19: the loss "), "{message}");
    assert!(message.contains("gone back to step 18 3 times"), "{message}");
    let back: Vec<(u64, u64)> = done_about(&rewind).iter().map(|done| (done.0, done.1)).collect();
    assert_eq!(back, [(21, 18), (19, 18), (19, 18)]);
    assert_eq!(checkpoints(&rewind), ["best.cllm", "step-18.cllm"]);
}

#[test]
fn weights_that_blow_up_are_named_and_no_spike() {
    let of = |dir: &Path, on_spike| TrainSettings {
        learning_rate: 3e38,
        warmup_steps: 0,
        val_data: Vec::new(),
        // Which bad weights would stop too.
        save_interval: 100,
        eval_interval: 100,
        ..with_spike(dir, on_spike)
    };
    let dir = tempfile::tempdir().unwrap();
    let message = train(&of(dir.path(), SpikeChoice::Off)).unwrap_err().to_string();
    assert!(message.starts_with("stopped at step "), "{message}");
    for part in ["; the first that is not finite is the ", "--learning-rate", "no checkpoint was"] {
        assert!(message.contains(part), "{message}");
    }
    for (choice, why) in [
        (SpikeChoice::Skip, "; so were the 10 steps before it"),
        (SpikeChoice::Rewind, "; --on-spike rewind has gone back to step 0 3 times"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let message = train(&of(dir.path(), choice)).unwrap_err().to_string();
        assert!(message.starts_with("stopped at step ") && message.contains(why), "{message}");
    }
}

/// What is encoded.
struct Bytes(Vec<u8>);

impl Sink for Bytes {
    type Error = core::convert::Infallible;

    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[test]
fn a_poisoned_weight_of_a_checkpoint_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = TrainSettings { max_steps: 6, ..settings(dir.path()) };
    assert_eq!(train(&run), Ok(Outcome::Finished));
    for name in ["best.cllm", "step-3.cllm"] {
        let path = run.out_dir.join(name);
        if path.exists() {
            fs::remove_file(path).unwrap();
        }
    }
    let path = step_file(&run, 6);
    let good = fs::read(&path).unwrap();
    for name in ["wpe.weight", "h.0.ln_2.bias", "h.1.mlp.c_fc.weight"] {
        fs::write(&path, &good).unwrap();
        let file = CheckpointFile::open(&path).unwrap();
        let checkpoint = file.parse().unwrap();
        let table = ParamTable::new(&checkpoint.header().config).unwrap();
        let [mut weights, mut first, mut second] = [(); 3].map(|()| vec![0.0; table.arena_len()]);
        checkpoint.read_parameters(&mut weights);
        let moments = MomentsMut::AdamW { first: &mut first, second: &mut second };
        checkpoint.read_moments(moments).unwrap();
        let spec = table.iter().find(|spec| spec.name().as_str() == name).unwrap();
        weights[spec.range().start + 3] = f32::NAN;
        let moments = Moments::AdamW { first: &first, second: &second };
        let mut bytes = Bytes(Vec::new());
        encode(checkpoint.header(), checkpoint.meta(), &weights, Some(moments), &mut bytes)
            .unwrap();
        drop(file);
        fs::write(&path, bytes.0).unwrap();
        let message =
            train(&TrainSettings { max_steps: 9, ..resumed(&run) }).unwrap_err().to_string();
        let told = format!("the first that is not finite is the weight {name};");
        assert!(message.starts_with("stopped at step 7: the loss is NaN; "), "{message}");
        assert!(message.contains(&told), "{message}");
    }
}
