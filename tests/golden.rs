//! The core against PyTorch: gradients, losses and weights of ten AdamW steps, on
//! every instruction set that this CPU has.

mod support;

use cllm_core::{
    Batch, BatchShape, Engine, Isa, Kernels, Mode, ModelConfig, Optimizer, Plan, Trainer,
};
use support::golden::{Golden, scatter};
use support::memory::Memory;

/// Largest error of a gradient, relative to the tensor's largest element. The issue
/// asks for 1e-4; PyTorch's own float32 is within 1.3e-6 (tests/golden/README.md).
const GRADIENT: f64 = 1e-5;
/// Relative error of a loss. The issue asks for 1e-5.
const LOSS: f64 = 2e-6;
/// Absolute error of a weight after ten steps, whose rates sum to about 1e-2. Adam
/// divides by the gradient's size, which magnifies rounding of tiny gradients.
const WEIGHT: f64 = 5e-5;

/// Runs `test` on a fresh trainer with the golden weights, for each file and table.
fn for_each(mut test: impl FnMut(&Golden, &mut Trainer<'_>, Isa)) {
    let goldens = Golden::all();
    assert!(goldens.len() >= 10, "golden files are missing");
    for isa in Isa::ALL {
        let Some(kernels) = Kernels::for_isa(isa) else { continue };
        for golden in &goldens {
            let c = &golden.config;
            let shape = BatchShape { sequences: c.batch, tokens: c.tokens_per_sequence };
            let plan = Plan::new(&c.model(), shape, 1, Mode::Train, kernels).unwrap();
            let mut memory = Memory::new(&plan);
            let (pools, queue) = memory.parts();
            let engine = Engine::new(&plan, queue).unwrap();
            let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 1).unwrap();
            let table = *plan.table();
            scatter(&table, &golden.params, trainer.parameters_mut());
            test(golden, &mut trainer, isa);
        }
    }
}

fn accumulate(golden: &Golden, trainer: &mut Trainer<'_>, step: usize) -> f64 {
    let counted = golden.counted_targets(step);
    let mut sum = 0.0;
    for micro in 0..golden.config.accum {
        let (tokens, targets) = (golden.tokens(step, micro), golden.targets(step, micro));
        sum += trainer.accumulate(&Batch::new(tokens, targets), counted).unwrap().sum;
    }
    sum / counted as f64
}

/// Keys' biases shift every score of a row alike, unless keys are turned by their
/// positions: their gradient is zero but for rounding, and Adam turns rounding into
/// steps of the learning rate.
fn free_key_bias(name: &str, model: &ModelConfig, element: usize) -> bool {
    let start = model.query_width();
    name.ends_with("attn.c_attn.bias")
        && model.arch.rotary().is_none()
        && (start..start + model.kv_width()).contains(&element)
}

#[test]
fn every_gradient_is_pytorchs() {
    let mut worst = (0.0_f64, String::new());
    for_each(|golden, trainer, isa| {
        accumulate(golden, trainer, 0);
        let table = *trainer.plan().table();
        for (spec, (name, _, expected)) in table.iter().zip(&golden.grads) {
            let got = &trainer.gradients()[spec.range()];
            let scale = expected.iter().fold(0.0_f64, |m, x| m.max(f64::from(x.abs())));
            assert_eq!(spec.name().as_str(), name);
            // A tensor whose gradient is zero in exact arithmetic (queries and keys of
            // one token) has only rounding; all others are above this.
            let scale = scale.max(1e-4);
            let squares = |x: f64| x * x;
            let difference: f64 =
                got.iter().zip(expected).map(|(a, b)| squares(f64::from(a - b))).sum();
            let size: f64 = expected.iter().map(|b| squares(f64::from(*b))).sum();
            let relative = difference.sqrt() / size.sqrt().max(scale);
            assert!(relative <= GRADIENT, "{isa} {} {name}: {relative:e}", golden.config.name);
            for (i, (a, b)) in got.iter().zip(expected).enumerate() {
                let error = (f64::from(*a) - f64::from(*b)).abs() / scale;
                let place = format!("{isa} {} {name}[{i}]: {a} for {b}", golden.config.name);
                assert!(error <= GRADIENT, "{place}, relative {error:e}");
                if error > worst.0 {
                    worst = (error, place);
                }
            }
        }
    });
    println!("largest relative error of a gradient: {:e} ({})", worst.0, worst.1);
    assert!(worst.0 > 0.0, "nothing was compared");
}

#[test]
fn ten_adamw_steps_are_pytorchs() {
    let (mut worst_loss, mut worst_weight) = (0.0_f64, 0.0_f64);
    for_each(|golden, trainer, isa| {
        let c = &golden.config;
        let optimizer = Optimizer {
            beta1: c.betas.0 as f32,
            beta2: c.betas.1 as f32,
            eps: c.eps as f32,
            weight_decay: c.weight_decay as f32,
            grad_clip: Some(c.clip as f32),
            ..Optimizer::default()
        };
        for step in 0..c.steps {
            let loss = accumulate(golden, trainer, step);
            let error = (loss / golden.losses[step] - 1.0).abs();
            let place = format!("{isa} {} step {step}", c.name);
            assert!(error <= LOSS, "{place}: loss {loss} for {}", golden.losses[step]);
            worst_loss = worst_loss.max(error);
            let report = trainer.update(&optimizer, c.lrs[step] as f32).unwrap();
            let error = (report.grad_norm / golden.grad_norms[step] - 1.0).abs();
            assert!(
                error <= 1e-5,
                "{place}: norm {} for {}",
                report.grad_norm,
                golden.grad_norms[step]
            );
        }
        let table = *trainer.plan().table();
        let reach = c.lrs.iter().sum::<f64>() * 1.01;
        for (spec, (name, _, expected)) in table.iter().zip(&golden.finals) {
            let got = &trainer.parameters()[spec.range()];
            for (i, (a, b)) in got.iter().zip(expected).enumerate() {
                let error = (f64::from(*a) - f64::from(*b)).abs();
                let free = free_key_bias(name, &c.model(), i)
                    || (c.tokens_per_sequence == 1 && name.contains("c_attn"));
                let bound = if free { reach } else { WEIGHT };
                assert!(error <= bound, "{isa} {} {name}[{i}]: {a} for {b}", c.name);
                if !free {
                    worst_weight = worst_weight.max(error);
                }
            }
        }
    });
    println!("largest relative error of a loss: {worst_loss:e}; of a weight: {worst_weight:e}");
    assert!(worst_loss > 0.0, "nothing was compared");
}
