//! Generation with a cache against PyTorch's logits, and against itself.

mod support;

use cllm::pool::cpus;
use cllm::pool::idle::Parking;
use cllm_core::generate::{GenerateError, GeneratePlan, GeneratePools, Generator};
use cllm_core::{
    Activation, Activity, Architecture, Dtype, Engine, EngineError, Isa, Kernels, Line,
    ModelConfig, Observer, ParamTable, PlanError, Queue, ROW_BLOCK, Slot, Worker,
};
use core::panic::AssertUnwindSafe;
use core::sync::atomic::AtomicU64;
use std::panic::catch_unwind;
use std::thread;
use support::golden::{Golden, scatter};

/// Memory of one stream.
struct Memory {
    parameters: Vec<f32>,
    pools: [Vec<Line>; 3],
}

impl Memory {
    fn new(golden: &Golden, plan: &GeneratePlan) -> Self {
        let table = ParamTable::new(plan.config()).unwrap();
        let mut parameters = vec![0.0; table.arena_len()];
        scatter(&table, &golden.params, &mut parameters);
        Self::of(parameters, plan)
    }

    fn of(parameters: Vec<f32>, plan: &GeneratePlan) -> Self {
        let poison = Line([f32::NAN; cllm_core::LANES]);
        let lines = [plan.packed_lines(), plan.cache_lines(), plan.activation_lines()];
        Self { parameters, pools: lines.map(|n| vec![poison; n]) }
    }

    fn generator(&mut self, plan: &GeneratePlan, kernels: &'static Kernels) -> Generator<'_> {
        let [packed, cache, activations] = &mut self.pools;
        let pools = GeneratePools { parameters: &self.parameters, packed, cache, activations };
        Generator::new(plan, kernels, pools).unwrap()
    }
}

fn close(got: &[f32], expected: &[f32], place: &str) {
    assert_eq!(got.len(), expected.len());
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 2e-5 * b.abs().max(1.0), "{place} [{i}]: {a} for {b}");
    }
}

#[test]
fn logits_are_pytorchs_in_any_chunks() {
    for isa in Isa::ALL {
        let Some(kernels) = Kernels::for_isa(isa) else { continue };
        for golden in Golden::all() {
            let c = &golden.config;
            let plan = GeneratePlan::new(&c.model(), kernels).unwrap();
            let mut memory = Memory::new(&golden, &plan);
            let mut generator = memory.generator(&plan, kernels);
            let (t, v) = (c.tokens_per_sequence, c.vocab_size);
            for (b, text) in golden.tokens(0, 0).chunks_exact(t).enumerate() {
                let expected = |i: usize| &golden.logits[(b * t + i) * v..][..v];
                // Token by token, in growing chunks, at once.
                for stride in [1, 3, t] {
                    generator.reset();
                    let mut end = 0;
                    while end < t {
                        end = (end + stride).min(t);
                        let place = format!("{isa} {} stride {stride} at {end}", c.name);
                        let logits = generator.logits_after(&text[..end]).unwrap();
                        close(logits, expected(end - 1), &place);
                    }
                    // Asking again changes nothing.
                    close(generator.logits_after(text).unwrap(), expected(t - 1), &c.name);
                }
            }
        }
    }
}

#[test]
fn a_full_context_goes_on_from_its_newer_half() {
    for name in ["odd_tokens", "previous"] {
        goes_on_from_its_newer_half(&Golden::named(name));
    }
}

fn goes_on_from_its_newer_half(golden: &Golden) {
    let kernels = Kernels::detect();
    let plan = GeneratePlan::new(&golden.config.model(), kernels).unwrap();
    let block = golden.config.block_size;
    let text: Vec<u32> = golden.tokens(0, 0).iter().cycle().take(3 * block).copied().collect();
    let (mut one, mut other) = (Memory::new(golden, &plan), Memory::new(golden, &plan));
    let mut sliding = one.generator(&plan, kernels);
    let mut fresh = other.generator(&plan, kernels);
    let mut start = 0;
    for end in 1..=text.len() {
        if end - start > block {
            start = end - block.div_ceil(2);
        }
        fresh.reset();
        let expected = fresh.logits_after(&text[start..end]).unwrap().to_vec();
        close(sliding.logits_after(&text[..end]).unwrap(), &expected, "sliding");
    }
    assert!(start > block, "the context slid more than once");
}

#[test]
fn bad_text_is_refused() {
    let golden = Golden::named("tied_bias");
    let kernels = Kernels::detect();
    let plan = GeneratePlan::new(&golden.config.model(), kernels).unwrap();
    let mut memory = Memory::new(&golden, &plan);
    let mut generator = memory.generator(&plan, kernels);
    assert_eq!(generator.logits_after(&[]).unwrap_err(), GenerateError::Empty);
    let vocab_size = golden.config.vocab_size;
    let id = vocab_size as u32;
    let error = generator.logits_after(&[0, id]).unwrap_err();
    assert_eq!(error, GenerateError::UnknownToken { id, vocab_size });
}

/// Wide enough for several tiles of every product.
const WIDE: ModelConfig = ModelConfig {
    vocab_size: 300,
    block_size: 130,
    n_layer: 2,
    n_head: 3,
    d_model: 96,
    d_ff: 384,
    bias: true,
    tied: false,
    dropout: 0.0,
    norm_eps: 1e-5,
    arch: Architecture::GPT2,
};

/// The same of the Llama family, with a feed-forward layer of no whole number of panels.
const WIDE_LLAMA: ModelConfig = ModelConfig {
    n_head: 6,
    d_ff: 290,
    bias: false,
    arch: Architecture {
        n_kv_head: Some(2),
        qk_norm: true,
        window: Some(9),
        ..Architecture::LLAMA
    },
    ..WIDE
};

/// The same with squared ReLU, capped logits and embeddings of previous tokens, multiplied.
const WIDE_CAPPED: ModelConfig = ModelConfig {
    arch: Architecture {
        activation: Activation::Relu2,
        logit_softcap: Some(0.5),
        previous_tokens: 3,
        embedding_scale: 3.0,
        ..Architecture::GPT2
    },
    ..WIDE
};

/// Some weights, none of them like another.
fn weights(config: &ModelConfig) -> Vec<f32> {
    let mut weights = vec![0.0; ParamTable::new(config).unwrap().arena_len()];
    let mut state = 1_u32;
    for x in &mut weights {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *x = ((state >> 8) as f32 / 2e7 - 0.4) * 0.3;
    }
    weights
}

/// Slots and words of an engine.
fn queue_of(plan: &GeneratePlan) -> (Vec<Slot>, Vec<AtomicU64>) {
    let slots = (0..plan.slots()).map(|_| Slot::new()).collect();
    (slots, (0..plan.words()).map(|_| AtomicU64::new(0)).collect())
}

/// Calls `body` with a generator of `workers` threads, all but the first of which tell
/// `observer` what they do, and with the number of threads that panicked.
fn with_threads<R, O: Observer>(
    config: &ModelConfig,
    (workers, kernels): (usize, &'static Kernels),
    observer: impl Fn() -> O + Sync,
    body: impl FnOnce(&mut Generator<'_>) -> R,
) -> (R, usize) {
    let plan = GeneratePlan::with_workers(config, workers, kernels).unwrap();
    let mut memory = Memory::of(weights(config), &plan);
    let (mut slots, mut words) = queue_of(&plan);
    let queue = Queue { ops: &mut [], slots: &mut slots, words: &mut words };
    let engine = &Engine::for_generation(&plan, queue).unwrap();
    let (idle, observer) = (&Parking::worker(workers, cpus::available()), &observer);
    let serve = || {
        let served =
            AssertUnwindSafe(|| Worker::run_observed(engine, idle, &mut observer()).unwrap());
        catch_unwind(served).is_err()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (1..workers).map(|_| scope.spawn(serve)).collect();
        while engine.workers() < workers - 1 {
            thread::yield_now();
        }
        let generator = memory.generator(&plan, kernels);
        let result = body(&mut generator.with_engine(engine, idle).unwrap());
        engine.close(idle);
        (result, threads.into_iter().map(|t| usize::from(t.join().unwrap())).sum())
    })
}

/// Bits of the logits behind prefixes of a text that is longer than the context.
fn logits_of(generator: &mut Generator<'_>) -> Vec<u32> {
    let text: Vec<u32> = (0..140).map(|i| i * i % 300).collect();
    generator.reset();
    let mut bits = Vec::new();
    for end in [100, 101, 102, 110, 126, 127, 128, 129, 130, 131, 132, 140] {
        let logits = generator.logits_after(&text[..end]).unwrap();
        assert!(logits.iter().all(|x| x.is_finite()));
        bits.extend(logits.iter().map(|x| x.to_bits()));
    }
    bits
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for isa in Isa::ALL {
        let Some(kernels) = Kernels::for_isa(isa) else {
            println!("skipped: this CPU has no {isa}");
            continue;
        };
        for (config, dtype) in [WIDE, WIDE_LLAMA, WIDE_CAPPED]
            .iter()
            .flat_map(|config| Dtype::ALL.map(|dtype| (config, dtype)))
        {
            let kernels = kernels.with_dtype(dtype);
            let plan = GeneratePlan::new(config, kernels).unwrap();
            let alone =
                logits_of(&mut Memory::of(weights(config), &plan).generator(&plan, kernels));
            for workers in [1, 2, 3, 7] {
                let (together, panicked) =
                    with_threads(config, (workers, kernels), || cllm_core::Unobserved, logits_of);
                assert_eq!(panicked, 0);
                assert!(together == alone, "{} on {workers} threads", kernels.set());
            }
        }
    }
}

#[test]
fn texts_that_take_turns_have_the_logits_that_each_has_alone() {
    let kernels = Kernels::detect();
    for config in [WIDE, WIDE_LLAMA, WIDE_CAPPED] {
        let plan = GeneratePlan::new(&config, kernels).unwrap();
        let expected =
            logits_of(&mut Memory::of(weights(&config), &plan).generator(&plan, kernels));
        let other: Vec<u32> = (0..130).map(|i| i * 7 % 300).collect();
        let body = |first: &mut Generator<'_>| {
            let mut memory = Memory::of(Vec::new(), &plan);
            let [_, cache, activations] = &mut memory.pools;
            let short = first.beside(&mut cache[1..], activations);
            assert!(matches!(short, Err(PlanError::TooSmall { .. })));
            let mut second = first.beside(cache, activations).unwrap();
            for end in [50, 100, 130] {
                second.logits_after(&other[..end]).unwrap();
                assert!(logits_of(first) == expected, "the first is disturbed at {end}");
            }
            assert!(logits_of(&mut second) == expected, "the second computes something else");
        };
        body(&mut Memory::of(weights(&config), &plan).generator(&plan, kernels));
    }
}

#[test]
fn what_is_kept_of_a_text_is_as_if_computed_again() {
    let kernels = Kernels::detect();
    let plan = GeneratePlan::new(&WIDE, kernels).unwrap();
    let (mut one, mut other) =
        (Memory::of(weights(&WIDE), &plan), Memory::of(weights(&WIDE), &plan));
    let (mut kept, mut fresh) = (one.generator(&plan, kernels), other.generator(&plan, kernels));
    let text: Vec<u32> = (0..140).map(|i| i * i % 300).collect();
    let ends = |text: &[u32]| [&text[..ROW_BLOCK], &[7; 20]].concat();
    kept.logits_after(&text[..130]).unwrap();
    // The same at its beginning, then something else.
    kept.keep(ROW_BLOCK);
    let expected = fresh.logits_after(&ends(&text)).unwrap().to_vec();
    assert!(kept.logits_after(&ends(&text)).unwrap() == expected);
    // Of a text that has slid, what lies before its context cannot be kept.
    kept.reset();
    kept.logits_after(&text).unwrap();
    kept.keep(10);
    assert!(kept.logits_after(&ends(&text)).unwrap() == expected);
}

/// Panics at its first tile.
struct Bomb;

impl Observer for Bomb {
    fn enter(&mut self, activity: Activity) {
        assert!(!matches!(activity, Activity::Tile { .. }), "forced by the test");
    }
}

#[test]
fn a_worker_that_panics_is_an_error_and_the_others_go_on() {
    let kernels = Kernels::detect();
    let plan = GeneratePlan::new(&WIDE, kernels).unwrap();
    let expected = logits_of(&mut Memory::of(weights(&WIDE), &plan).generator(&plan, kernels));
    let body = |generator: &mut Generator<'_>| {
        // Until the worker has had a tile: the caller may be through before it is awake.
        let error = (0..100_000)
            .find_map(|_| {
                generator.reset();
                generator.logits_after(&[1, 2, 3]).err()
            })
            .expect("the worker has never had a tile");
        assert_eq!(error, GenerateError::Engine(EngineError::Panicked));
        logits_of(generator)
    };
    let (logits, panicked) = with_threads(&WIDE, (2, kernels), || Bomb, body);
    assert_eq!(panicked, 1);
    assert!(logits == expected, "other logits after the panic");
}

#[test]
fn an_engine_of_another_plan_is_refused() {
    let kernels = Kernels::detect();
    let two = GeneratePlan::with_workers(&WIDE, 2, kernels).unwrap();
    let three = GeneratePlan::with_workers(&WIDE, 3, kernels).unwrap();
    let (mut slots, mut words) = queue_of(&three);
    let mut short = queue_of(&three).0;
    let queue = Queue { ops: &mut [], slots: &mut slots, words: &mut words };
    let engine = Engine::for_generation(&three, queue).unwrap();
    let idle = Parking::caller();
    let mut memory = Memory::of(weights(&WIDE), &two);
    let refused = memory.generator(&two, kernels).with_engine(&engine, &idle);
    assert_eq!(refused.unwrap_err(), PlanError::WrongEngine);
    let words = &mut queue_of(&three).1[..];
    let queue = Queue { ops: &mut [], slots: &mut short[1..], words };
    assert!(matches!(Engine::for_generation(&three, queue), Err(PlanError::TooSmall { .. })));
    let none = GeneratePlan::with_workers(&WIDE, 0, kernels);
    assert_eq!(none.unwrap_err(), PlanError::NoWorker);
}
