//! Models larger than one tile in every direction: the offsets of the second tile of each
//! operation, which tiny models never reach.
//!
//! The gradient of a region (rows, columns or both beyond the first tile) is compared
//! with the slope of the loss along it.

mod support;

use cllm_core::{
    Architecture, Batch, BatchShape, BlockParam, Engine, Kernels, Mode, ModelConfig, Optimizer,
    Param, Plan, PlanError, Trainer,
};
use core::ops::Range;
use support::memory::Memory;

/// Two groups of logits, two row and column tiles of every weight, more than one block of
/// the inner dimension of every product, several optimizer tiles.
const CONFIG: ModelConfig = ModelConfig {
    vocab_size: 6100,
    block_size: 360,
    n_layer: 1,
    n_head: 4,
    d_model: 272,
    d_ff: 600,
    bias: true,
    tied: false,
    dropout: 0.0,
    norm_eps: 1e-5,
    arch: Architecture::GPT2,
};
const SHAPE: BatchShape = BatchShape { sequences: 2, tokens: 350 };
/// Rows and columns of a tile of a weight's gradient.
const TILE: usize = 256;

fn ids(n: usize, mut x: u32) -> Vec<u32> {
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) % CONFIG.vocab_size as u32
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn gradients_beyond_the_first_tile_are_slopes() {
    let kernels = Kernels::detect();
    for (tied, dropout) in [(false, 0.0), (true, 0.1)] {
        let config = ModelConfig { tied, dropout, ..CONFIG };
        let plan = Plan::new(&config, SHAPE, 1, Mode::Train, kernels).unwrap();
        let mut memory = Memory::new(&plan);
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&plan, queue).unwrap();
        let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 1).unwrap();
        trainer.initialise();
        let n = plan.tokens();
        let (tokens, targets) = (ids(n, 5), ids(n, 6));
        let batch = Batch::new(&tokens, &targets);
        let start: Vec<f32> = trainer.parameters().iter().map(|x| x * 3.0).collect();
        trainer.parameters_mut().copy_from_slice(&start);
        trainer.accumulate(&batch, n).unwrap();
        let gradient = trainer.gradients().to_vec();
        let mut loss = |weights: &[f32]| {
            let copied: Result<(), ()> = trainer.restore(0, |p, _| {
                p.copy_from_slice(weights);
                Ok(())
            });
            copied.unwrap();
            // With dropout the loss is the one that `accumulate` sees.
            let loss = match dropout {
                0.0 => trainer.evaluate(&batch).unwrap(),
                _ => trainer.accumulate(&batch, n).unwrap(),
            };
            loss.sum / n as f64
        };
        let mut regions = 0;
        for spec in plan.table().iter() {
            // The second model is there for the tables: they have two gradients to add.
            if tied && matches!(spec.param, Param::Block(..)) {
                continue;
            }
            let rows = [0..spec.rows, TILE..spec.rows];
            let cols = [0..spec.cols, TILE..spec.cols];
            for (rows, cols) in [(&rows[1], &cols[0]), (&rows[0], &cols[1]), (&rows[1], &cols[1])] {
                if rows.is_empty() || cols.is_empty() {
                    continue;
                }
                let direction = region(&gradient, spec.offset, spec.cols, rows, cols);
                let norm = direction.iter().map(|g| g * g).sum::<f64>().sqrt();
                // Keys' biases shift every score of a row alike: nothing to compare.
                let keys = spec.param == Param::Block(0, BlockParam::QkvBias);
                assert!(norm > 0.0, "{} {rows:?} {cols:?}: no gradient", spec.name());
                let h = (3e-3 / norm).min(3e-2);
                let at = |sign: f64| -> Vec<f32> {
                    let moved = |(w, g): (&f32, &f64)| (f64::from(*w) + sign * h * g / norm) as f32;
                    start.iter().zip(&direction).map(moved).collect()
                };
                let slope = (loss(&at(1.0)) - loss(&at(-1.0))) / (2.0 * h);
                let bound = if keys { 2e-2 } else { 5e-3 };
                let error = (slope / norm - 1.0).abs();
                assert!(
                    error < bound,
                    "tied {tied} {} {rows:?} {cols:?}: slope {slope:e} for {norm:e}",
                    spec.name()
                );
                regions += 1;
            }
        }
        let least = if tied { 6 } else { 20 };
        assert!(regions >= least, "only {regions} regions lie beyond a first tile");
    }
}

/// The gradient inside a region of a tensor, zero elsewhere.
fn region(
    gradient: &[f32],
    offset: usize,
    width: usize,
    rows: &Range<usize>,
    cols: &Range<usize>,
) -> Vec<f64> {
    let mut out = vec![0.0; gradient.len()];
    for i in rows.clone() {
        for j in cols.clone() {
            let at = offset + i * width + j;
            out[at] = f64::from(gradient[at]);
        }
    }
    out
}

#[test]
fn an_update_reaches_every_weight_once() {
    let kernels = Kernels::detect();
    let plan = Plan::new(&CONFIG, SHAPE, 1, Mode::Train, kernels).unwrap();
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 1).unwrap();
    trainer.initialise();
    let n = plan.tokens();
    let (tokens, targets) = (ids(n, 5), ids(n, 6));
    trainer.accumulate(&Batch::new(&tokens, &targets), n).unwrap();
    let (before, gradient) = (trainer.parameters().to_vec(), trainer.gradients().to_vec());
    let optimizer = Optimizer { grad_clip: None, ..Optimizer::default() };
    let lr = 1e-2_f32;
    trainer.update(&optimizer, lr).unwrap();
    for spec in plan.table().iter() {
        let decay = if spec.decay { optimizer.weight_decay } else { 0.0 };
        for i in spec.range() {
            // The first step of AdamW, on one line.
            let step = gradient[i] / (gradient[i].abs() + optimizer.eps);
            let expected = before[i] * (1.0 - lr * decay) - lr * step;
            let got = trainer.parameters()[i];
            assert!((got - expected).abs() <= 1e-5, "{} {i}: {got} for {expected}", spec.name());
        }
    }
}

#[test]
fn a_plan_is_for_its_own_kernels() {
    let config = ModelConfig { vocab_size: 64, d_model: 48, d_ff: 52, ..CONFIG };
    let scalar = Plan::new(&config, SHAPE, 1, Mode::Train, Kernels::scalar()).unwrap();
    let best = Kernels::detect();
    let mut memory = Memory::new(&scalar);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&scalar, queue).unwrap();
    let result = Trainer::new(&scalar, best, pools, &engine, 1);
    if best.isa() == Kernels::scalar().isa() {
        assert!(result.is_ok());
    } else {
        let error = result.unwrap_err();
        let (plan, kernels) = (Kernels::scalar().set(), best.set());
        assert_eq!(error, PlanError::WrongKernels { plan, kernels });
    }
}
