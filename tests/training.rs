//! Properties of training that no golden file can show: dropout, accumulation,
//! repeatability, and errors that leave the weights alone.

mod support;

use cllm_core::{
    Activation, Architecture, Batch, BatchShape, BlockParam, IGNORE, Isa, Kernels, Mode,
    ModelConfig, Moments, MomentsMut, Optimizer, OptimizerKind, Param, Plan, StepError, Trainer,
};
use support::config::ODD;
use support::memory;

const CONFIG: ModelConfig = ModelConfig { dropout: 0.0, ..ODD };
const SHAPE: BatchShape = BatchShape { sequences: 3, tokens: 37 };

fn tables() -> impl Iterator<Item = &'static Kernels> {
    Isa::ALL.into_iter().filter_map(Kernels::for_isa)
}

/// Deterministic ids: a small linear congruential generator.
fn ids(n: usize, seed: u32) -> Vec<u32> {
    let mut x = seed;
    (0..n)
        .map(|_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 16) % CONFIG.vocab_size as u32
        })
        .collect()
}

/// Runs `test` on a fresh, initialised trainer.
fn with_trainer<R>(
    config: ModelConfig,
    shape: BatchShape,
    kernels: &'static Kernels,
    test: impl FnOnce(&mut Trainer<'_>) -> R,
) -> R {
    let plan = Plan::new(&config, shape, 1, Mode::Train, kernels).unwrap();
    memory::with_trainer(&plan, kernels, 9, test)
}

fn is_head_gain(param: Param) -> bool {
    use BlockParam::{KeyNormGain, QueryNormGain};
    matches!(param, Param::Block(_, QueryNormGain | KeyNormGain))
}

/// The gradient along random directions against central differences of the loss that
/// `accumulate` reports: with dropout both sides must draw the same masks.
#[test]
fn gradients_are_slopes_with_and_without_dropout() {
    let n = SHAPE.sequences * SHAPE.tokens;
    let (tokens, mut targets) = (ids(n, 1), ids(n, 2));
    targets[5] = IGNORE;
    let batch = Batch::new(&tokens, &targets);
    let counted = 2 * batch.counted();
    for kernels in tables() {
        let of = |arch: Architecture, dropout: f32| {
            let bias = arch == Architecture::GPT2;
            (ModelConfig { arch, bias, dropout, ..CONFIG }, dropout)
        };
        let grouped = Architecture { n_kv_head: Some(1), qkv_bias: true, ..Architecture::LLAMA };
        let wide = Architecture { head_size: Some(10), ..Architecture::LLAMA };
        let normed = Architecture { qk_norm: true, n_kv_head: Some(1), ..wide };
        let squared = Architecture { activation: Activation::Relu2, ..Architecture::GPT2 };
        let capped = |arch| Architecture { logit_softcap: Some(2.0), ..arch };
        let shifted = |arch| Architecture { previous_tokens: 2, ..arch };
        let scaled = |arch| Architecture { embedding_scale: 3.0, ..arch };
        for (config, dropout) in [
            of(scaled(shifted(Architecture::GPT2)), 0.2),
            of(scaled(normed), 0.0),
            of(squared, 0.0),
            of(capped(squared), 0.2),
            of(shifted(Architecture::GPT2), 0.2),
            of(shifted(normed), 0.0),
            of(capped(Architecture::LLAMA), 0.0),
            of(Architecture::GPT2, 0.0),
            of(Architecture::GPT2, 0.2),
            of(Architecture::LLAMA, 0.0),
            of(grouped, 0.2),
            of(wide, 0.0),
            of(normed, 0.0),
        ] {
            with_trainer(config, SHAPE, kernels, |trainer| {
                // Larger weights than the initial ones: slopes well above rounding.
                let mut start: Vec<f32> = trainer.parameters().iter().map(|x| x * 4.0).collect();
                // But for gains of heads: their product decides how far attention is from linear.
                for spec in trainer.plan().table().iter().filter(|spec| is_head_gain(spec.param)) {
                    start[spec.range()].fill(0.8);
                }
                // And for what is zero at first.
                if let Some(spec) = trainer.plan().table().spec(Param::Previous) {
                    let values = start[spec.range()].iter_mut();
                    values.enumerate().for_each(|(i, x)| *x = 0.3 - 0.1 * (i % 7) as f32);
                }
                // The step's loss over two micro-batches at weights `w`, from step 0's masks.
                let mut loss = |w: &[f32]| {
                    trainer
                        .restore(0, |p, _| {
                            p.copy_from_slice(w);
                            Ok::<(), ()>(())
                        })
                        .unwrap();
                    let a = trainer.accumulate(&batch, counted).unwrap().sum;
                    let b = trainer.accumulate(&batch, counted).unwrap().sum;
                    if dropout > 0.0 {
                        assert_ne!(a, b, "micro-batches have masks of their own");
                    }
                    ((a + b) / counted as f64, trainer.gradients().to_vec())
                };
                let (_, gradient) = loss(&start);
                let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                for direction in 0..6_u32 {
                    // Mostly along the gradient, so the slope is large beside the noise.
                    let d: Vec<f64> = ids(start.len(), 77 + direction)
                        .iter()
                        .zip(&gradient)
                        .map(|(r, g)| f64::from(*g) / norm * (f64::from(*r % 7) - 2.0))
                        .collect();
                    let h = 4e-4;
                    let at = |sign: f64| -> Vec<f32> {
                        start
                            .iter()
                            .zip(&d)
                            .map(|(w, d)| (f64::from(*w) + sign * h * d) as f32)
                            .collect()
                    };
                    let slope = (loss(&at(1.0)).0 - loss(&at(-1.0)).0) / (2.0 * h);
                    let dot: f64 = gradient.iter().zip(&d).map(|(g, d)| f64::from(*g) * d).sum();
                    // h^2 times the third derivative, and losses that carry 1e-7 / h of noise.
                    let error = (slope - dot).abs() / dot.abs().max(1e-2);
                    assert!(error < 1e-3, "{kernels:?} {config:?}: {slope} for {dot}");
                }
            });
        }
    }
}

#[test]
fn two_micro_batches_are_one_large_batch() {
    for kernels in tables() {
        let large = BatchShape { sequences: 2 * SHAPE.sequences, ..SHAPE };
        let n = large.sequences * large.tokens;
        let (tokens, targets) = (ids(n, 3), ids(n, 4));
        let whole = with_trainer(CONFIG, large, kernels, |trainer| {
            trainer.accumulate(&Batch::new(&tokens, &targets), n).unwrap();
            trainer.gradients().to_vec()
        });
        let halves = with_trainer(CONFIG, SHAPE, kernels, |trainer| {
            for half in [0..n / 2, n / 2..n] {
                let batch = Batch::new(&tokens[half.clone()], &targets[half]);
                trainer.accumulate(&batch, n).unwrap();
            }
            trainer.gradients().to_vec()
        });
        let scale = whole.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        for (a, b) in whole.iter().zip(&halves) {
            assert!((a - b).abs() <= 1e-5 * scale, "{kernels:?}: {a} for {b}");
        }
    }
}

/// So do kernels that pack what is used once and those that read it where it lies, whichever this CPU is faster with.
#[test]
fn the_same_seed_gives_the_same_bits() {
    let config = ModelConfig { dropout: 0.1, ..CONFIG };
    let n = SHAPE.sequences * SHAPE.tokens;
    for kernels in tables() {
        let run = |packs: bool| {
            let kernels = kernels.with_packing(packs);
            with_trainer(config, SHAPE, kernels, |trainer| {
                for step in 0..5 {
                    let (tokens, targets) = (ids(n, 10 + step), ids(n, 20 + step));
                    trainer.accumulate(&Batch::new(&tokens, &targets), n).unwrap();
                    trainer.update(&Optimizer::default(), 1e-2).unwrap();
                }
                bits(trainer.parameters())
            })
        };
        assert_eq!(run(true), run(false), "{kernels:?}");
        assert_eq!(run(true), run(true), "{kernels:?}");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_seed_that_is_set_decides_dropout_from_then_on_and_new_weights() {
    let config = ModelConfig { dropout: 0.1, ..CONFIG };
    let n = SHAPE.sequences * SHAPE.tokens;
    let (tokens, targets) = (ids(n, 1), ids(n, 2));
    let batch = Batch::new(&tokens, &targets);
    let plan = Plan::new(&config, SHAPE, 1, Mode::Train, Kernels::detect()).unwrap();
    let with_seed = |seed, test: &mut dyn FnMut(&mut Trainer<'_>)| {
        memory::with_trainer(&plan, Kernels::detect(), seed, test);
    };
    let losses = |trainer: &mut Trainer<'_>, seed: Option<u64>| {
        let first = trainer.accumulate(&batch, 2 * n).unwrap().sum;
        let held_out = trainer.evaluate(&batch).unwrap().sum;
        if let Some(seed) = seed {
            trainer.set_seed(seed);
            assert_eq!(trainer.seed(), seed);
            // What is not random does not depend on it.
            assert_eq!(trainer.evaluate(&batch).unwrap().sum, held_out);
        }
        (first, trainer.accumulate(&batch, 2 * n).unwrap().sum, bits(trainer.gradients()))
    };
    let (mut start, mut of_nine, mut of_both) = (vec![], None, None);
    with_seed(9, &mut |trainer| {
        start = trainer.parameters().to_vec();
        of_nine = Some(losses(trainer, None));
    });
    with_seed(9, &mut |trainer| {
        of_both = Some(losses(trainer, Some(77)));
        assert_eq!(trainer.parameters(), start, "the weights are as they were");
    });
    let (of_nine, of_both) = (of_nine.unwrap(), of_both.unwrap());
    assert_eq!(of_nine.0, of_both.0);
    assert_ne!(of_nine.1, of_both.1);
    let mut fresh = vec![];
    with_seed(77, &mut |trainer| {
        fresh = trainer.parameters().to_vec();
        trainer.parameters_mut().copy_from_slice(&start);
        // The second micro-batch is as of a trainer that has always had that seed, the first is not.
        let (first, second, _) = losses(trainer, None);
        assert_eq!((first == of_both.0, second), (false, of_both.1));
    });
    with_seed(9, &mut |trainer| {
        trainer.set_seed(77);
        trainer.initialise();
        assert_eq!(trainer.parameters(), fresh);
    });
}

#[test]
fn with_the_seed_of_its_checkpoint_a_run_goes_on_as_it_would_have() {
    let config = ModelConfig { dropout: 0.1, ..CONFIG };
    let n = SHAPE.sequences * SHAPE.tokens;
    let plan = Plan::new(&config, SHAPE, 1, Mode::Train, Kernels::detect()).unwrap();
    let step = |trainer: &mut Trainer<'_>| {
        let number = 10 * trainer.updates() as u32;
        let (tokens, targets) = (ids(n, number + 1), ids(n, number + 2));
        trainer.accumulate(&Batch::new(&tokens, &targets), n).unwrap();
        trainer.update(&Optimizer::default(), 1e-2).unwrap();
    };
    let (checkpoint, straight) = memory::with_trainer(&plan, Kernels::detect(), 9, |trainer| {
        (0..2).for_each(|_| step(trainer));
        let Moments::AdamW { first, second } = trainer.moments() else {
            unreachable!("by default")
        };
        let checkpoint = [trainer.parameters(), first, second].map(<[f32]>::to_vec);
        (0..2).for_each(|_| step(trainer));
        (checkpoint, bits(trainer.parameters()))
    });
    let resumed = |seed: Option<u64>| {
        memory::with_trainer(&plan, Kernels::detect(), 77, |trainer| {
            let restored: Result<(), ()> = trainer.restore(2, |weights, moments| {
                let MomentsMut::AdamW { first, second } = moments else {
                    unreachable!("by default")
                };
                for (to, from) in [weights, first, second].into_iter().zip(&checkpoint) {
                    to.copy_from_slice(from);
                }
                Ok(())
            });
            restored.unwrap();
            seed.into_iter().for_each(|seed| trainer.set_seed(seed));
            (0..2).for_each(|_| step(trainer));
            bits(trainer.parameters())
        })
    };
    assert!(resumed(Some(9)) == straight);
    assert!(resumed(None) != straight, "dropout has nothing to do with the seed");
}

/// What `check_batch` says is what `accumulate` would, and it costs nothing that has been summed.
#[test]
fn a_batch_is_checked_without_losing_what_is_summed() {
    let n = SHAPE.sequences * SHAPE.tokens;
    let (tokens, targets) = (ids(n, 1), ids(n, 2));
    let (good, optimizer) = (Batch::new(&tokens, &targets), Optimizer::default());
    let mut unknown = [tokens.clone(), targets.clone()];
    unknown.iter_mut().for_each(|ids| ids[7] = CONFIG.vocab_size as u32);
    let ignored = vec![IGNORE; n];
    let starts = vec![1; n];
    let bad = [
        (Batch::new(&tokens[1..], &targets), n),
        (Batch::new(&tokens, &targets[1..]), n),
        (Batch::new(&unknown[0], &targets), n),
        (Batch::new(&tokens, &unknown[1]), n),
        (Batch::new(&ignored, &targets), n),
        (Batch { starts: Some(&starts), ..good }, n),
        (good, 0),
    ];
    let step = |check: &dyn Fn(&Trainer<'_>)| {
        with_trainer(CONFIG, SHAPE, Kernels::detect(), |trainer| {
            check(trainer);
            trainer.accumulate(&good, 2 * n).unwrap();
            check(trainer);
            trainer.accumulate(&Batch::new(&targets, &tokens), 2 * n).unwrap();
            check(trainer);
            trainer.update(&optimizer, 1e-2).unwrap();
            (bits(trainer.parameters()), trainer.updates())
        })
    };
    let unchecked = step(&|_| ());
    let checked = step(&|trainer| {
        assert_eq!(trainer.check_batch(&good, n), Ok(()));
        for (batch, counted) in &bad {
            trainer.check_batch(batch, *counted).unwrap_err();
        }
    });
    assert!(checked == unchecked);
    with_trainer(CONFIG, SHAPE, Kernels::detect(), |trainer| {
        for (batch, counted) in &bad {
            let error = trainer.accumulate(batch, *counted).unwrap_err();
            assert_eq!(trainer.check_batch(batch, *counted), Err(error));
        }
        trainer.accumulate(&good, n).unwrap();
        assert_eq!(trainer.update_in_slices(&optimizer, 1e-2).unwrap().run_for(1), Ok(None));
        assert_eq!(trainer.check_batch(&good, n), Err(StepError::HalfUpdated));
    });
}

#[test]
fn bad_steps_are_refused_and_change_nothing() {
    let n = SHAPE.sequences * SHAPE.tokens;
    let (tokens, targets) = (ids(n, 1), ids(n, 2));
    with_trainer(CONFIG, SHAPE, Kernels::detect(), |trainer| {
        let before = trainer.parameters().to_vec();
        let good = Batch::new(&tokens, &targets);
        let optimizer = Optimizer::default();
        assert_eq!(trainer.update(&optimizer, 0.1), Err(StepError::NoGradients));

        let short = Batch::new(&tokens[1..], &targets);
        let size = StepError::BatchSize { need: n, tokens: n - 1, targets: n };
        assert_eq!(trainer.accumulate(&short, n), Err(size));

        let vocab_size = CONFIG.vocab_size;
        for id in [vocab_size as u32, IGNORE] {
            let mut unknown = tokens.clone();
            unknown[7] = id;
            let batch = Batch::new(&unknown, &targets);
            let error = StepError::UnknownToken { position: 7, id, vocab_size };
            assert_eq!(trainer.accumulate(&batch, n), Err(error));
            assert_eq!(trainer.evaluate(&batch), Err(error));
        }
        assert_eq!(trainer.accumulate(&good, 0), Err(StepError::NothingCounts));

        // A weight that is not a number reaches the loss and stops the step.
        let at = before.len() / 2;
        trainer.parameters_mut()[at] = f32::NAN;
        assert!(matches!(trainer.accumulate(&good, n), Err(StepError::NonFiniteLoss(_))));
        assert_eq!(trainer.update(&optimizer, 0.1), Err(StepError::NoGradients));
        trainer.parameters_mut()[at] = before[at];
        assert_eq!(trainer.parameters(), before);
        assert_eq!(trainer.updates(), 0);

        trainer.accumulate(&good, n).unwrap();
        trainer.update(&optimizer, 0.1).unwrap();
        assert_ne!(trainer.parameters(), before);
    });
}

/// For each optimizer: nothing changes but the number of updates, and the next step is as if the gradient had not
/// been.
#[test]
fn an_update_above_the_most_is_left_out_and_counts() {
    let n = SHAPE.sequences * SHAPE.tokens;
    let (tokens, targets) = (ids(n, 1), ids(n, 2));
    let batch = Batch::new(&tokens, &targets);
    for kind in OptimizerKind::ALL {
        let config = ModelConfig { dropout: 0.1, ..CONFIG };
        let plan = Plan::new(&config, SHAPE, 1, Mode::Train, Kernels::detect()).unwrap();
        let plan = plan.with_optimizer(kind);
        let optimizer = Optimizer { kind, ..Optimizer::default() };
        // One step, one that is left out, and one more.
        let course = |leave_out: fn(&mut Trainer<'_>, &Optimizer)| {
            memory::with_trainer(&plan, Kernels::detect(), 9, |trainer| {
                trainer.accumulate(&batch, n).unwrap();
                let norm = trainer.update(&optimizer, 1e-2).unwrap().grad_norm;
                let before = bits(trainer.parameters());
                trainer.accumulate(&batch, n).unwrap();
                leave_out(trainer, &optimizer);
                assert_eq!(bits(trainer.parameters()), before);
                assert_eq!(trainer.updates(), 2);
                let without = trainer.update(&optimizer, 1e-2);
                assert_eq!(without, Err(StepError::NoGradients), "they are used up");
                trainer.accumulate(&batch, n).unwrap();
                let report = trainer.update_within(&optimizer, 1e-2, 10.0 * norm).unwrap();
                assert!(report.grad_norm < 10.0 * norm);
                assert_ne!(bits(trainer.parameters()), before);
                assert_eq!(trainer.updates(), 3);
                (bits(trainer.parameters()), report.grad_norm)
            })
        };
        let within = course(|trainer, optimizer| {
            let report = trainer.update_within(optimizer, 1e-2, 1e-9).unwrap();
            assert!(report.grad_norm > 1e-9);
        });
        let skipped = course(|trainer, _| trainer.skip_update().unwrap());
        assert_eq!(within, skipped, "{kind}");
    }
}

#[test]
fn the_clip_bites_only_above_its_norm() {
    let n = SHAPE.sequences * SHAPE.tokens;
    let (tokens, targets) = (ids(n, 1), ids(n, 2));
    let batch = Batch::new(&tokens, &targets);
    with_trainer(CONFIG, SHAPE, Kernels::detect(), |trainer| {
        let mut report = |clip| {
            trainer.accumulate(&batch, n).unwrap();
            let norm: f64 = trainer.gradients().iter().map(|g| f64::from(*g).powi(2)).sum();
            let optimizer = Optimizer { grad_clip: clip, ..Optimizer::default() };
            let report = trainer.update(&optimizer, 0.0).unwrap();
            assert!((report.grad_norm / norm.sqrt() - 1.0).abs() < 1e-5);
            report
        };
        let free = report(None);
        assert_eq!(free.scale, 1.0);
        assert_eq!(report(Some(1e6)).scale, 1.0);
        let clipped = report(Some(0.1));
        assert!((f64::from(clipped.scale) * clipped.grad_norm - 0.1).abs() < 1e-5);
    });
}
