//! Every optimizer: by its formulas, with the same bits for any number of workers, for models and adapters,
//! through a checkpoint, and on the way to a low loss.

mod support;

use cllm_core::checkpoint::{Checkpoint, CheckpointError, Header, SliceSink, encode, encoded_len};
use cllm_core::{
    AdapterSite, AdapterSites, Adapters, Batch, BatchShape, BlockParam, Blocking, Dtype, Engine,
    Kernels, Mode, ModelConfig, Moments, Optimizer, OptimizerKind, Param, Plan, Pool, Spin,
    StepError, Tiling, Trainer, Worker,
};
use cllm_kernels::{AdamW, Dither, MOMENTS_BLOCK, Moments8};
use support::config::{LLAMA, ODD as CONFIG};
use support::memory::{Memory, with_trainer};
use support::muon::direction;

const SHAPE: BatchShape = BatchShape { sequences: 3, tokens: 37 };

fn ids(n: usize, mut x: u32, vocab: usize) -> Vec<u32> {
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) % vocab as u32
    };
    (0..n).map(|_| next()).collect()
}

fn of(kind: OptimizerKind) -> Optimizer {
    Optimizer { kind, ..Optimizer::default() }
}

/// A rate at which it learns: descent without roots of moments wants a larger one.
fn rate(kind: OptimizerKind) -> f32 {
    match kind {
        OptimizerKind::AdamW | OptimizerKind::AdamW8 | OptimizerKind::Muon => 1e-2,
        OptimizerKind::Momentum => 0.05,
        OptimizerKind::Sgd => 0.5,
    }
}

fn plan(kind: OptimizerKind, kernels: &Kernels) -> Plan {
    Plan::new(&CONFIG, SHAPE, 1, Mode::Train, kernels).unwrap().with_optimizer(kind)
}

/// A step of two micro-batches, which differ from step to step.
fn step(trainer: &mut Trainer<'_>, optimizer: &Optimizer, lr: f32, number: u32) -> f32 {
    let (n, vocab) = (trainer.plan().tokens(), trainer.plan().config().vocab_size);
    for micro in 0..2 {
        let tokens = ids(n, 10 + 2 * number + micro, vocab);
        let targets = ids(n, 1000 + 2 * number + micro, vocab);
        trainer.accumulate(&Batch::new(&tokens, &targets), 2 * n).unwrap();
    }
    trainer.update(optimizer, lr).unwrap().scale
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn weights_follow_the_formulas_from_the_gradients() {
    const STEPS: u32 = 8;
    let mut clipped = 0;
    let kinds =
        [OptimizerKind::AdamW, OptimizerKind::Momentum, OptimizerKind::Sgd, OptimizerKind::Muon];
    for kind in kinds {
        let (plan, lr) = (plan(kind, Kernels::scalar()), rate(kind));
        let settings = Optimizer {
            grad_clip: Some(0.1),
            embedding_lr_scale: 0.5,
            head_lr_scale: 0.25,
            ..of(kind)
        };
        with_trainer(&plan, Kernels::scalar(), 9, |trainer| {
            let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            let mut weights = wide(trainer.parameters());
            let (mut m, mut v) = (vec![0.0; weights.len()], vec![0.0; weights.len()]);
            for number in 0..STEPS {
                let scale = step(trainer, &settings, lr, number);
                clipped += u32::from(scale < 1.0);
                let grads = wide(trainer.gradients());
                let (beta1, beta2) = (f64::from(settings.beta1), f64::from(settings.beta2));
                let momentum = f64::from(settings.momentum);
                let t = number as i32 + 1;
                for spec in plan.table().iter() {
                    let of_block = |param: Param| matches!(param, Param::Block(..)) && spec.decay;
                    // Those matrices have a test of their own.
                    if kind == OptimizerKind::Muon && of_block(spec.param) {
                        continue;
                    }
                    let decay = if spec.decay { f64::from(settings.weight_decay) } else { 0.0 };
                    let lr = f64::from(lr)
                        * match spec.param {
                            Param::TokenTable | Param::PositionTable => 0.5,
                            Param::Head => 0.25,
                            _ => 1.0,
                        };
                    for i in spec.range() {
                        let g = grads[i] * f64::from(scale);
                        weights[i] -= lr * decay * weights[i];
                        match kind {
                            OptimizerKind::Sgd => weights[i] -= lr * g,
                            OptimizerKind::Momentum => {
                                m[i] = momentum * m[i] + g;
                                weights[i] -= lr * m[i];
                            }
                            _ => {
                                m[i] = beta1 * m[i] + (1.0 - beta1) * g;
                                v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
                                let root = (v[i] / (1.0 - beta2.powi(t))).sqrt();
                                let mean = m[i] / (1.0 - beta1.powi(t));
                                weights[i] -= lr * mean / (root + f64::from(settings.eps));
                            }
                        }
                        let found = f64::from(trainer.parameters()[i]);
                        let off = (found - weights[i]).abs();
                        assert!(
                            off < 2e-6,
                            "{kind} step {t} {}: {found} {}",
                            spec.name(),
                            weights[i]
                        );
                    }
                }
            }
        });
    }
    assert!(clipped > 10, "the clip bit {clipped} times");
}

/// Matrices that lie side by side in one tensor have directions of their own; tables and vectors are AdamW's.
#[test]
fn muon_follows_its_formulas_from_the_gradients() {
    let gated = ModelConfig { dropout: 0.0, d_ff: 40, ..LLAMA };
    for config in [CONFIG, gated] {
        let kind = OptimizerKind::Muon;
        let kernels = Kernels::scalar();
        let plan = Plan::new(&config, SHAPE, 1, Mode::Train, kernels).unwrap().with_optimizer(kind);
        let settings = Optimizer { grad_clip: Some(0.1), momentum: 0.9, ..of(kind) };
        let lr = 1e-2;
        let mut parts_seen = 0;
        with_trainer(&plan, kernels, 9, |trainer| {
            let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            let mut momentum = vec![0.0; trainer.parameters().len()];
            for number in 0..4 {
                let before = wide(trainer.parameters());
                let scale = f64::from(step(trainer, &settings, lr, number));
                let (after, grads) = (wide(trainer.parameters()), wide(trainer.gradients()));
                for spec in plan.table().iter() {
                    let (rows, all) = (spec.rows, spec.cols);
                    let widths = match spec.param {
                        Param::Block(_, BlockParam::Qkv) => {
                            vec![config.query_width(), config.kv_width(), config.kv_width()]
                        }
                        Param::Block(_, BlockParam::Fc) if all == 2 * config.d_ff => {
                            vec![config.d_ff; 2]
                        }
                        Param::Block(
                            _,
                            BlockParam::Fc | BlockParam::AttnOut | BlockParam::MlpOut,
                        ) => vec![all],
                        _ => continue,
                    };
                    let mut first = 0;
                    for cols in widths {
                        let places: Vec<usize> = (0..rows * cols)
                            .map(|i| spec.offset + i / cols * all + first + i % cols)
                            .collect();
                        let u: Vec<f64> = places
                            .iter()
                            .map(|&at| {
                                momentum[at] = 0.9 * momentum[at] + scale * grads[at];
                                0.9 * momentum[at] + scale * grads[at]
                            })
                            .collect();
                        let lr = f64::from(lr);
                        let step = lr * 0.2 * (rows.max(cols) as f64).sqrt();
                        for (x, at) in direction(&u, rows, cols).into_iter().zip(places) {
                            let wanted = before[at] * (1.0 - lr * 0.1) - step * x;
                            let off = (after[at] - wanted).abs();
                            assert!(off < 2e-6, "step {number} {}: {off}", spec.name());
                        }
                        first += cols;
                        parts_seen += 1;
                    }
                    assert_eq!(first, all);
                }
            }
        });
        assert_eq!(parts_seen, 4 * config.n_layer * if config.arch == LLAMA.arch { 7 } else { 6 });
    }
}

/// A tensor as one piece, with the blocks and the dither that its place in the arena says.
#[test]
fn moments_of_eight_bits_are_those_of_whole_tensors() {
    let kind = OptimizerKind::AdamW8;
    let usual = Blocking::default();
    for (kernels, update_floats) in [(Kernels::scalar(), 16), (Kernels::detect(), 112)] {
        // Tiles of the update are whole blocks even if lines of them are asked for.
        let blocking = Blocking { update_floats, ..usual };
        let tiling = Tiling { blocking, ..Tiling::default() };
        let plan = Plan::with_tiling(&CONFIG, SHAPE, 1, &tiling, Mode::Train, kernels).unwrap();
        let plan = plan.with_optimizer(kind);
        let settings = Optimizer { grad_clip: None, ..of(kind) };
        with_trainer(&plan, kernels, 9, |trainer| {
            let mut own: Vec<_> = plan
                .table()
                .iter()
                .map(|spec| {
                    let blocks = spec.len().div_ceil(MOMENTS_BLOCK);
                    let codes = vec![0_u8; spec.len()];
                    (
                        trainer.parameters()[spec.range()].to_vec(),
                        codes.clone(),
                        codes,
                        vec![0.0; 2 * blocks],
                    )
                })
                .collect();
            for number in 0..5 {
                step(trainer, &settings, 1e-2, number);
                let t = number as i32 + 1;
                let Moments::AdamW8 { first, second, scales } = trainer.moments() else {
                    panic!("moments of another kind")
                };
                for ((index, spec), (p, m, v, s)) in plan.table().iter().enumerate().zip(&mut own) {
                    let correction = |beta: f32| (1.0 - f64::from(beta).powi(t)) as f32;
                    let h = AdamW {
                        lr: 1e-2,
                        beta1: settings.beta1,
                        beta2: settings.beta2,
                        eps: settings.eps,
                        decay: if spec.decay { settings.weight_decay } else { 0.0 },
                        correction1: correction(settings.beta1),
                        correction2: correction(settings.beta2),
                        grad_scale: 1.0,
                    };
                    let grads = &trainer.gradients()[spec.range()];
                    let moments = Moments8 { first: m, second: v, scales: s };
                    kernels.adamw8(&h, Dither::new(t as u64, spec.offset), p, grads, moments);
                    assert_eq!(
                        bits(p),
                        bits(&trainer.parameters()[spec.range()]),
                        "{t} {}",
                        spec.name()
                    );
                    assert_eq!((&m[..], &v[..]), (&first[spec.range()], &second[spec.range()]));
                    let at = 2 * (spec.offset / MOMENTS_BLOCK + index);
                    assert_eq!(s[..], scales[at..at + s.len()], "{t} {}", spec.name());
                }
            }
        });
    }
}

/// Weights and moments after some steps.
fn train(plan: &Plan, kernels: &'static Kernels, workers: usize) -> Vec<u32> {
    let mut memory = Memory::new(plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(plan, queue).unwrap();
    std::thread::scope(|scope| {
        if workers > 1 {
            for _ in 0..workers {
                scope.spawn(|| Worker::run(&engine, &Spin).unwrap());
            }
            while engine.workers() < workers {
                std::thread::yield_now();
            }
        }
        let mut trainer = Trainer::new(plan, kernels, pools, &engine, 5).unwrap();
        trainer.initialise();
        for number in 0..3 {
            step(&mut trainer, &of(plan.optimizer()), rate(plan.optimizer()), number);
        }
        let mut all = bits(trainer.parameters());
        match trainer.moments() {
            Moments::AdamW { first, second } => all.extend(bits(first).iter().chain(&bits(second))),
            Moments::AdamW8 { first, second, scales } => {
                all.extend(first.iter().chain(second).map(|code| u32::from(*code)));
                all.extend(bits(scales));
            }
            Moments::Momentum(moments) => all.extend(bits(moments)),
            Moments::Sgd => {}
            Moments::Muon { first, second } => all.extend(bits(first).iter().chain(&bits(second))),
        }
        engine.close(&Spin);
        all
    })
}

#[test]
fn workers_and_tiles_do_not_change_a_bit() {
    let wide = ModelConfig { d_model: 48, d_ff: 176, ..CONFIG };
    let sites = AdapterSites::of(&[AdapterSite::Qkv, AdapterSite::MlpOut]);
    let adapters = Adapters { rank: 3, scale: 0.5, sites };
    let best = Kernels::detect();
    for (kernels, adapters) in [
        (Kernels::scalar(), None),
        (best, None),
        (best.with_dtype(Dtype::Bf16), None),
        (best, Some(&adapters)),
        (best.with_dtype(Dtype::Bf16), Some(&adapters)),
    ] {
        for kind in OptimizerKind::ALL {
            let run = |workers: usize, update_floats: usize| {
                let blocking = Blocking { update_floats, ..Blocking::default() };
                // Kept as panels matrices would have to be loaded.
                let packing = Some(cllm_core::Packing::Once);
                let tiling = Tiling { blocking, packing, ..Tiling::default() };
                let plan = Plan::with_adapters(
                    &wide,
                    adapters,
                    SHAPE,
                    workers,
                    &tiling,
                    Mode::Train,
                    kernels,
                );
                train(&plan.unwrap().with_optimizer(kind), kernels, workers)
            };
            let alone = run(1, 1 << 20);
            for (workers, update_floats) in [(1, 48), (2, 64), (3, 80), (4, 1 << 20)] {
                let same = run(workers, update_floats) == alone;
                assert!(same, "{kernels:?} {kind} {adapters:?}: {workers} {update_floats}");
            }
        }
    }
}

#[test]
fn another_optimizer_than_the_plans_is_refused_and_changes_nothing() {
    for plan_kind in OptimizerKind::ALL {
        let plan = plan(plan_kind, Kernels::detect());
        assert_eq!(plan.optimizer(), plan_kind);
        with_trainer(&plan, Kernels::detect(), 9, |trainer| {
            let before = bits(trainer.parameters());
            for update in OptimizerKind::ALL.into_iter().filter(|kind| *kind != plan_kind) {
                let n = plan.tokens();
                let tokens = ids(n, 3, CONFIG.vocab_size);
                trainer.accumulate(&Batch::new(&tokens, &tokens), n).unwrap();
                let error = trainer.update(&of(update), 1e-3).unwrap_err();
                assert_eq!(error, StepError::WrongOptimizer { plan: plan_kind, update });
                let text = error.to_string();
                assert!(text.contains(&format!("by {update} ")), "{text}");
                assert!(text.contains(&format!("moments of {plan_kind}:")), "{text}");
                // Its gradients are gone.
                assert_eq!(trainer.update(&of(plan_kind), 1e-3), Err(StepError::NoGradients));
            }
            assert_eq!((bits(trainer.parameters()), trainer.updates()), (before, 0));
        });
    }
    let bad = Optimizer { momentum: 1.0, ..of(OptimizerKind::Momentum) };
    assert_eq!(bad.validate().unwrap_err().setting, "momentum");
}

#[test]
fn training_goes_on_from_a_checkpoint_with_the_same_bits_and_no_other_optimizer() {
    let kernels = Kernels::detect();
    for kind in OptimizerKind::ALL {
        let (plan, settings, lr) = (plan(kind, kernels), of(kind), rate(kind));
        let (file, straight) = with_trainer(&plan, kernels, 9, |trainer| {
            for number in 0..4 {
                step(trainer, &settings, lr, number);
            }
            let (seed, updates) = (trainer.seed(), trainer.updates());
            let header = Header { config: CONFIG, adapters: None, seed, updates };
            let mut file = vec![0; encoded_len(&header, 0, Some(kind)).unwrap()];
            let moments = Some(trainer.moments());
            let mut sink = SliceSink::new(&mut file);
            encode(&header, b"", trainer.parameters(), moments, &mut sink).unwrap();
            assert_eq!(sink.written(), file.len());
            for number in 4..8 {
                step(trainer, &settings, lr, number);
            }
            (file, bits(trainer.parameters()))
        });
        let checkpoint = Checkpoint::parse(&file).unwrap();
        assert_eq!(checkpoint.optimizer(), Some(kind));
        for other in OptimizerKind::ALL {
            let plan = plan.with_optimizer(other);
            with_trainer(&plan, kernels, 9, |trainer| {
                let restored = trainer.restore(4, |weights, moments| {
                    checkpoint.read_parameters(weights);
                    checkpoint.read_moments(moments)
                });
                if other != kind {
                    let error = CheckpointError::OtherOptimizer { checkpoint: kind, wanted: other };
                    assert_eq!(restored, Err(error));
                    return;
                }
                restored.unwrap();
                for number in 4..8 {
                    step(trainer, &settings, lr, number);
                }
                assert_eq!(bits(trainer.parameters()), straight, "{kind}");
            });
        }
    }
}

/// Text of words of a small lexicon in an order that one word has from the one before.
fn text(n: usize, seed: u32) -> Vec<u32> {
    let (words, mut out) = (ids(400, 7, 26), Vec::new());
    let (mut word, mut x) = (0_usize, seed);
    while out.len() < n {
        out.extend(&words[10 * word..10 * word + 3 + word % 7]);
        out.push(26);
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        word = (word * 7 + (x >> 24) as usize % 3) % 40;
    }
    out.truncate(n);
    out
}

#[test]
fn all_of_them_learn_and_eight_bits_as_well_as_thirty_two() {
    const STEPS: u32 = 700;
    let config =
        ModelConfig { dropout: 0.0, vocab_size: 27, d_model: 48, n_layer: 2, d_ff: 192, ..CONFIG };
    let shape = BatchShape { sequences: 4, tokens: 40 };
    let kernels = Kernels::detect();
    let loss_of = |kind: OptimizerKind, beta2: f32| {
        let plan = Plan::new(&config, shape, 1, Mode::Train, kernels).unwrap().with_optimizer(kind);
        // Decay goes by the rate, and the rates of gradient descent are hundreds of times higher.
        let (highest, weight_decay) = match kind {
            OptimizerKind::AdamW | OptimizerKind::AdamW8 | OptimizerKind::Muon => (3e-3, 0.1),
            OptimizerKind::Momentum => (0.1, 1e-3),
            OptimizerKind::Sgd => (1.0, 1e-3),
        };
        let settings = Optimizer { beta2, weight_decay, ..of(kind) };
        let bytes = plan.bytes(Pool::Moments) as f64 / plan.table().parameters() as f64;
        with_trainer(&plan, kernels, 9, |trainer| {
            let n = plan.tokens();
            let batch = |seed: u32| text(n + 1, seed);
            for number in 0..STEPS {
                let text = batch(number);
                trainer.accumulate(&Batch::new(&text[..n], &text[1..]), n).unwrap();
                let lr = highest * (1.0 - number as f32 / STEPS as f32);
                trainer.update(&settings, lr).unwrap();
            }
            let losses = (0..20).map(|seed| {
                let text = batch(10_000 + seed);
                trainer.evaluate(&Batch::new(&text[..n], &text[1..])).unwrap().mean()
            });
            (losses.sum::<f64>() / 20.0, bytes)
        })
    };
    let first = f64::ln(27.0);
    for beta2 in [0.95, 0.999] {
        let [(full, _), (eight, bytes)] =
            [OptimizerKind::AdamW, OptimizerKind::AdamW8].map(|kind| loss_of(kind, beta2));
        println!("beta2 {beta2}: {full:.4} with 8 bytes, {eight:.4} with {bytes:.3} of {first:.4}");
        assert!(full < 0.3 * first, "{full} of {first}");
        assert!((eight / full - 1.0).abs() < 0.03, "beta2 {beta2}: {eight} instead of {full}");
    }
    let kinds =
        [(OptimizerKind::Momentum, 0.7), (OptimizerKind::Sgd, 0.7), (OptimizerKind::Muon, 0.3)];
    for (kind, share) in kinds {
        let (loss, bytes) = loss_of(kind, 0.95);
        println!("{kind}: {loss:.4} with {bytes:.3} of {first:.4}");
        assert!(loss < share * first, "{kind}: {loss} of {first}");
    }
}
