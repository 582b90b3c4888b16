//! Training with products of bf16: near what `f32` gives, and never the same.

mod support;

use cllm_core::generate::{GeneratePlan, GeneratePools, Generator};
use cllm_core::{
    Batch, BatchShape, Dtype, Engine, Evaluator, Kernels, Line, Mode, ModelConfig, Optimizer, Plan,
    PlanError, Trainer,
};
use support::config::{LLAMA, SHIFTED, SMALL as CONFIG};
use support::memory::Memory;

const SHAPE: BatchShape = BatchShape { sequences: 9, tokens: 37 };

/// Text of some order: the next id is a function of the last, most of the time.
fn ids(n: usize, seed: u32, vocab: usize) -> Vec<u32> {
    let (mut x, mut ids, mut last) = (seed, Vec::new(), 1);
    while ids.len() < n {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        last = if x >> 29 == 0 { x >> 8 } else { 7 * last + 1 } % vocab as u32;
        ids.push(last);
    }
    ids
}

/// What training gives.
struct Run {
    first_loss: f64,
    gradients: Vec<f32>,
    last_loss: f64,
    weights: Vec<f32>,
}

fn run(config: &ModelConfig, kernels: &'static Kernels, steps: u32) -> Run {
    let plan = Plan::new(config, SHAPE, 1, Mode::Train, kernels).unwrap();
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 5).unwrap();
    trainer.initialise();
    let n = plan.tokens();
    let (mut first_loss, mut last_loss, mut gradients) = (None, 0.0, Vec::new());
    for step in 0..steps {
        let text = ids(n + 1, step, config.vocab_size);
        let batch = Batch::new(&text[..n], &text[1..]);
        last_loss = trainer.accumulate(&batch, n).unwrap().mean();
        if first_loss.is_none() {
            first_loss = Some(last_loss);
            gradients = trainer.gradients().to_vec();
        }
        trainer.update(&Optimizer::default(), 3e-3).unwrap();
    }
    let weights = trainer.parameters().to_vec();
    Run { first_loss: first_loss.unwrap(), gradients, last_loss, weights }
}

/// `|a - b| / |b|`
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (apart / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

/// The products of bf16 that there are here, each with its `f32`.
fn tables() -> Vec<[&'static Kernels; 2]> {
    let all = support::tables::tables().map(|table| [table, table.with_dtype(Dtype::F32)]);
    all.filter(|[table, f32]| !core::ptr::eq(*table, *f32)).collect()
}

#[test]
fn gradients_and_losses_are_near_those_of_f32() {
    let models = [CONFIG, LLAMA, SHIFTED].map(|config| ModelConfig { dropout: 0.0, ..config });
    for (config, [bf16, f32]) in
        models.into_iter().flat_map(|c| tables().into_iter().map(move |t| (c, t)))
    {
        let (rounded, exact) = (run(&config, bf16, 1), run(&config, f32, 1));
        // An operand is off by 2^-9 at most; sums of many average that out.
        let loss = (rounded.first_loss / exact.first_loss - 1.0).abs();
        assert!(loss > 0.0 && loss < 1e-3, "{bf16:?}: the loss is {loss:e} off");
        let gradient = distance(&rounded.gradients, &exact.gradients);
        assert!(gradient > 1e-4 && gradient < 1e-2, "{bf16:?}: gradients are {gradient:e} off");
    }
}

#[test]
fn what_is_learned_is_as_good() {
    let (config, steps) = (ModelConfig { vocab_size: 24, ..CONFIG }, 100);
    for [bf16, f32] in [tables()[0], *tables().last().unwrap()] {
        let (rounded, exact) = (run(&config, bf16, steps), run(&config, f32, steps));
        assert!(exact.last_loss < 0.75 * exact.first_loss, "nothing is learned");
        let apart = rounded.last_loss / exact.last_loss - 1.0;
        assert!(apart.abs() < 0.02, "{bf16:?}: {} and {}", rounded.last_loss, exact.last_loss);
        // Moments and master weights are f32: small updates are not lost.
        assert!(rounded.weights.iter().any(|x| x.to_bits() & 0xffff != 0));
    }
}

#[test]
fn generation_is_near_that_of_f32_in_chunks_of_any_size() {
    let models = [CONFIG, LLAMA, SHIFTED].map(|config| ModelConfig { dropout: 0.0, ..config });
    for (config, [bf16, f32]) in
        models.into_iter().flat_map(|c| tables().into_iter().map(move |t| (c, t)))
    {
        let weights = run(&config, f32, 20).weights;
        let text = ids(30, 7, config.vocab_size);
        let logits = |kernels: &'static Kernels, steps: &[usize]| {
            let plan = GeneratePlan::new(&config, kernels).unwrap();
            let mut lines = [plan.packed_lines(), plan.cache_lines(), plan.activation_lines()]
                .map(|n| vec![Line::ZERO; n]);
            let [packed, cache, activations] = &mut lines;
            let pools = GeneratePools { parameters: &weights, packed, cache, activations };
            let mut generator = Generator::new(&plan, kernels, pools).unwrap();
            let mut last = Vec::new();
            for end in steps {
                last = generator.logits_after(&text[..*end]).unwrap().to_vec();
            }
            last
        };
        let whole = logits(bf16, &[30]);
        assert!(whole == logits(bf16, &[1, 2, 13, 30]), "{bf16:?}: chunks change the bits");
        let apart = distance(&whole, &logits(f32, &[30]));
        assert!(apart > 1e-5 && apart < 2e-2, "{bf16:?}: logits are {apart:e} off");
    }
}

/// Narrow heads and short sequences: what a product converts is then most of the scratch.
#[test]
fn scratch_suffices_where_attention_needs_little() {
    let config = ModelConfig {
        block_size: 3,
        n_head: 32,
        d_ff: 700,
        n_layer: 1,
        vocab_size: 1000,
        dropout: 0.0,
        ..CONFIG
    };
    let shape = BatchShape { sequences: 40, tokens: 3 };
    for [bf16, f32] in tables() {
        let text = ids(shape.sequences * shape.tokens + 1, 3, config.vocab_size);
        let batch = Batch::new(&text[..text.len() - 1], &text[1..]);
        let mut trained = None;
        for kernels in [f32, bf16] {
            let plan = Plan::new(&config, shape, 1, Mode::Train, kernels).unwrap();
            let mut memory = Memory::new(&plan);
            let (pools, queue) = memory.parts();
            let engine = Engine::new(&plan, queue).unwrap();
            let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 5).unwrap();
            trainer.initialise();
            let loss = trainer.accumulate(&batch, plan.tokens()).unwrap().mean();
            let apart = (loss / trained.get_or_insert((loss, Vec::new())).0 - 1.0).abs();
            assert!(apart < 1e-3, "{kernels:?}: {apart:e}");
            trained = Some((loss, trainer.parameters().to_vec()));
        }
        let (loss, weights) = trained.unwrap();
        let plan = Plan::new(&config, shape, 1, Mode::Evaluate, bf16).unwrap();
        let mut memory = Memory::new(&plan);
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&plan, queue).unwrap();
        let mut evaluator = Evaluator::new(&plan, bf16, pools, &engine).unwrap();
        evaluator.parameters_mut().copy_from_slice(&weights);
        assert_eq!(evaluator.evaluate(&batch).unwrap().mean(), loss, "{bf16:?}");
        let plan = GeneratePlan::new(&config, bf16).unwrap();
        let mut lines = [plan.packed_lines(), plan.cache_lines(), plan.activation_lines()]
            .map(|n| vec![Line::ZERO; n]);
        let [packed, cache, activations] = &mut lines;
        let pools = GeneratePools { parameters: &weights, packed, cache, activations };
        let mut generator = Generator::new(&plan, bf16, pools).unwrap();
        assert!(generator.logits_after(&text[..3]).unwrap().iter().all(|x| x.is_finite()));
    }
}

#[test]
fn kernels_of_another_type_are_refused() {
    let kernels = Kernels::detect();
    for (plans, given) in [(kernels, kernels.converting()), (kernels.converting(), kernels)] {
        let plan = Plan::new(&CONFIG, SHAPE, 1, Mode::Train, plans).unwrap();
        let mut memory = Memory::new(&plan);
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&plan, queue).unwrap();
        let error = Trainer::new(&plan, given, pools, &engine, 5).err();
        let (plan, kernels) = (plans.set(), given.set());
        assert_eq!(error, Some(PlanError::WrongKernels { plan, kernels }));
    }
}
