//! Trainers that go through a step together, each with a part of the batch and a piece of the update: the bits of one
//! that does it all.

use cllm::memory::PoolMemory;
use cllm::pool::{CALLER, Crew, with_workers};
use cllm_core::{
    Architecture, Batch, BatchShape, Engine, Kernels, Mode, ModelConfig, Moments, Optimizer,
    OptimizerKind, Part, Plan, Pool, StepError, Trainer,
};

const SHAPE: BatchShape = BatchShape { sequences: 2, tokens: 16 };
const STEPS: usize = 4;
const PARTS: usize = 4;

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 300,
        block_size: 16,
        n_layer: 2,
        n_head: 2,
        d_model: 64,
        d_ff: 224,
        bias: true,
        tied: true,
        // Masks follow from a micro-batch's number in the step.
        dropout: 0.1,
        norm_eps: 1e-5,
        arch: Architecture::GPT2,
    }
}

fn plan(kind: OptimizerKind) -> Plan {
    let plan = Plan::new(&config(), SHAPE, 1, Mode::Train, Kernels::detect()).unwrap();
    plan.with_optimizer(kind)
}

/// Ids of a micro-batch.
fn ids(step: usize, micro: usize) -> Vec<u32> {
    let first = 7 * step + 31 * micro;
    (0..33).map(|at| ((first + at * at + 3 * at) % 300) as u32).collect()
}

fn accumulate(trainer: &mut Trainer<'_>, step: usize, part: Part) {
    let ids = ids(step, part.micro as usize);
    let batch = Batch::new(&ids[..32], &ids[1..]);
    trainer.accumulate_part(&batch, 32 * PARTS, part).unwrap();
}

fn optimizer(kind: OptimizerKind) -> Optimizer {
    // A clip that clips, so that the norm is in every weight.
    Optimizer { kind, grad_clip: Some(0.1), ..Optimizer::default() }
}

fn with_trainer<R>(plan: &Plan, body: impl FnOnce(&mut Trainer<'_>) -> R) -> R {
    let mut memory = PoolMemory::allocate(plan).unwrap();
    let (pools, queue) = memory.parts();
    let engine = Engine::new(plan, queue).unwrap();
    let mut trainer = Trainer::new(plan, Kernels::detect(), pools, &engine, 5).unwrap();
    trainer.initialise();
    body(&mut trainer)
}

fn first_moments(moments: Moments<'_>) -> Vec<f32> {
    match moments {
        Moments::AdamW { first, .. } => first.to_vec(),
        Moments::Momentum(moments) => moments.to_vec(),
        _ => panic!("another optimizer"),
    }
}

fn add(sum: &mut [f32], other: &[f32]) {
    sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
}

/// Gradients of all parts of a step, each begun anew, over the tree.
fn summed(trainer: &mut Trainer<'_>, step: usize) -> Vec<f32> {
    let mut parts: Vec<Vec<f32>> = (0..PARTS as u32)
        .map(|micro| {
            accumulate(trainer, step, Part { micro, adds: false });
            trainer.gradients().to_vec()
        })
        .collect();
    let (left, right) = parts.split_at_mut(2);
    for pair in [&mut *left, &mut *right] {
        let (a, b) = pair.split_at_mut(1);
        add(&mut a[0], &b[0]);
    }
    add(&mut left[0], &right[0]);
    parts.swap_remove(0)
}

#[test]
fn pieces_of_an_update_are_the_update() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::Momentum] {
        let whole = plan(kind);
        let (mut weights, mut moments, mut norms) = (Vec::new(), Vec::new(), Vec::new());
        let mut gradients = Vec::new();
        with_trainer(&whole, |trainer| {
            for step in 0..STEPS {
                gradients.push(summed(trainer, step));
                trainer.gradients_mut().copy_from_slice(&gradients[step]);
                let report = trainer.update(&optimizer(kind), 0.01).unwrap();
                norms.push(report.grad_norm);
                weights.push(trainer.parameters().to_vec());
            }
            moments = first_moments(trainer.moments());
        });
        for count in [1, 2, 3] {
            for index in 0..count {
                let plan = whole.with_piece(index, count);
                let spans: Vec<_> = plan.piece().spans(0..plan.arena_len()).collect();
                assert!(count == 1 || plan.bytes(Pool::Moments) < whole.bytes(Pool::Moments));
                with_trainer(&plan, |trainer| {
                    for step in 0..STEPS {
                        accumulate(trainer, step, Part { micro: index as u32, adds: false });
                        // Of others' pieces nobody knows the gradients.
                        trainer.gradients_mut().fill(f32::NAN);
                        for (span, _) in &spans {
                            trainer.gradients_mut()[span.clone()]
                                .copy_from_slice(&gradients[step][span.clone()]);
                        }
                        let sums = trainer.measure().unwrap();
                        for (n, sum) in sums.iter_mut().enumerate() {
                            let block = &gradients[step][plan.block(n)];
                            let expected = Kernels::detect().sum_squares(block);
                            assert!(*sum == expected || !plan.piece().has(n));
                            *sum = expected;
                        }
                        let report = trainer.update_measured(&optimizer(kind), 0.01, f64::MAX);
                        assert_eq!(report.unwrap().grad_norm.to_bits(), norms[step].to_bits());
                        let trained = trainer.trained_mut();
                        for (span, _) in &spans {
                            assert_eq!(trained[span.clone()], weights[step][span.clone()]);
                        }
                        trained.copy_from_slice(&weights[step]);
                    }
                    assert_eq!(trainer.updates(), STEPS as u64);
                    let own = first_moments(trainer.moments());
                    for (span, place) in &spans {
                        assert_eq!(own[*place..place + span.len()], moments[span.clone()]);
                    }
                });
            }
        }
    }
}

#[test]
fn parts_of_a_batch_are_its_micro_batches() {
    let plan = plan(OptimizerKind::AdamW);
    let in_a_row = with_trainer(&plan, |trainer| {
        for micro in 0..PARTS {
            let ids = ids(0, micro);
            trainer.accumulate(&Batch::new(&ids[..32], &ids[1..]), 32 * PARTS).unwrap();
        }
        trainer.gradients().to_vec()
    });
    let (as_parts, over_a_tree) = with_trainer(&plan, |trainer| {
        for micro in 0..PARTS as u32 {
            accumulate(trainer, 0, Part { micro, adds: micro > 0 });
        }
        (trainer.gradients().to_vec(), summed(trainer, 0))
    });
    assert_eq!(as_parts, in_a_row);
    let far = in_a_row.iter().zip(&over_a_tree).filter(|(a, b)| (*a - *b).abs() > 1e-6).count();
    assert_eq!(far, 0, "the tree is of the same gradients");
    assert_ne!(over_a_tree, in_a_row, "and in another order");
}

#[test]
fn a_step_without_gradients_is_not_measured() {
    with_trainer(&plan(OptimizerKind::AdamW), |trainer| {
        assert_eq!(trainer.measure().map(|_| ()), Err(StepError::NoGradients));
        accumulate(trainer, 0, Part { micro: 2, adds: false });
        assert!(trainer.measure().is_ok());
        // An update that is left out leaves the weights as they are.
        let before = trainer.parameters().to_vec();
        let report =
            trainer.update_measured(&optimizer(OptimizerKind::AdamW), 0.01, 1e-12).unwrap();
        assert!(report.grad_norm > 1e-12);
        assert_eq!(trainer.parameters(), before);
        assert_eq!(trainer.measure().map(|_| ()), Err(StepError::NoGradients));
    });
}

/// Gradients of a micro-batch that adds to another one's, and where they began to be final each time that somebody
/// looked: what is final is taken at once and made NaN, so that whatever writes or reads it later shows.
fn followed(plan: &Plan, workers: usize) -> (Vec<u32>, Vec<usize>) {
    let mut memory = PoolMemory::allocate(plan).unwrap();
    let (pools, queue) = memory.parts();
    let engine = Engine::new(plan, queue).unwrap();
    let trainer = Trainer::new(plan, Kernels::detect(), pools, &engine, 5).unwrap();
    let mut trainer = trainer.wait_with(&CALLER);
    trainer.initialise();
    let (mut taken, mut firsts) = (vec![0; plan.arena_len()], vec![plan.arena_len()]);
    with_workers(&engine, &Crew::new(workers, false), || {
        accumulate(&mut trainer, 0, Part { micro: 0, adds: false });
        let ids = ids(0, 1);
        let batch = Batch::new(&ids[..32], &ids[1..]);
        let part = Part { micro: 1, adds: true };
        let loss = trainer.accumulate_part_followed(&batch, 32 * PARTS, part, &mut |ripening| {
            let before = firsts[firsts.len() - 1];
            let (first, ready) = ripening.ready();
            assert!(first <= before, "what is final stays so");
            for (at, value) in ready[..before - first].iter_mut().enumerate() {
                taken[first + at] = value.to_bits();
                *value = f32::NAN;
            }
            firsts.push(first);
            // The workers are to be told of the next stage as well.
            std::thread::sleep(core::time::Duration::from_micros(50));
        });
        assert!(loss.unwrap().sum.is_finite());
        assert!(trainer.gradients()[..plan.arena_len()].iter().all(|x| x.is_nan()), "{firsts:?}");
        Ok(())
    })
    .unwrap();
    firsts.dedup();
    (taken, firsts)
}

#[test]
fn what_is_final_is_the_gradient_and_nobody_touches_it() {
    let mut seen_early = 0;
    for (tied, mode) in [(true, Mode::Train), (false, Mode::Train), (false, Mode::Recompute)] {
        let config = ModelConfig { n_layer: 5, tied, ..config() };
        let plan = |workers| Plan::new(&config, SHAPE, workers, mode, Kernels::detect()).unwrap();
        let expected: Vec<u32> = with_trainer(&plan(1), |trainer| {
            for micro in 0..2 {
                accumulate(trainer, 0, Part { micro, adds: micro > 0 });
            }
            trainer.gradients()[..plan(1).arena_len()].iter().map(|x| x.to_bits()).collect()
        });
        for workers in [1, 2] {
            // A caller that the system wakes late sees less, but never anything else.
            for _ in 0..10 {
                let (taken, firsts) = followed(&plan(workers), workers);
                assert!(taken == expected, "tied: {tied}, {mode:?}, {workers} workers");
                assert_eq!(firsts.last(), Some(&0));
                seen_early = seen_early.max(firsts.len());
            }
        }
    }
    assert!(seen_early > 4, "the caller has seen the gradients of blocks one after the other");
}

#[test]
fn gradients_of_a_caller_that_works_are_followed_to_their_end() {
    let plan = plan(OptimizerKind::AdamW);
    let mut firsts = Vec::new();
    with_trainer(&plan, |trainer| {
        let ids = ids(0, 0);
        let batch = Batch::new(&ids[..32], &ids[1..]);
        let part = Part { micro: 0, adds: false };
        let follow = &mut |ripening: &mut cllm_core::Ripening<'_>| firsts.push(ripening.ready().0);
        trainer.accumulate_part_followed(&batch, 32, part, follow).unwrap();
        assert!(trainer.measure().is_ok());
    });
    assert_eq!(firsts, [0]);
}
