//! Adapters of low rank: beside W they compute what `W + scale A B` computes, their gradients follow
//! from that of W by the chain rule, and nothing but they is trained.

mod support;

use cllm_core::{
    AdapterSite, AdapterSites, Adapters, Architecture, Batch, BatchShape, Blocking, Dtype, Engine,
    Isa, Kernels, Line, Mode, ModelConfig, Optimizer, Packing, Param, Plan, PlanError, Pool, Pools,
    StepError, Tiling, Trainer,
};
use support::config::{LLAMA, SHIFTED, SMALL};
use support::memory::{self, Memory};

const SHAPE: BatchShape = BatchShape { sequences: 3, tokens: 37 };
const SEED: u64 = 9;

use AdapterSite::{AttnOut, Fc, Gate, Keys, MlpOut, Qkv, Queries, Up, Values};

/// Models, and what of them has an adapter.
fn cases() -> [(ModelConfig, Adapters); 6] {
    let of = |config: ModelConfig, rank: usize, sites: &[AdapterSite]| {
        (config, Adapters { rank, scale: 1.5, sites: AdapterSites::of(sites) })
    };
    let plain = ModelConfig { arch: Architecture::LLAMA, bias: false, tied: false, ..SMALL };
    [
        of(SMALL, 5, &[Qkv, AttnOut, Fc, MlpOut]),
        of(LLAMA, 4, &[Queries, Keys, Values, AttnOut, Gate, Up, MlpOut]),
        // As PEFT does it unless told: queries and values, whose columns do not touch.
        of(plain, 8, &[Queries, Values]),
        of(plain, 1, &[AttnOut, Up]),
        of(ModelConfig { tied: false, ..SMALL }, 3, &[Fc]),
        of(SHIFTED, 4, &[Qkv, AttnOut, Fc, MlpOut]),
    ]
}

fn ids(seed: u32) -> Vec<u32> {
    let mut x = seed;
    let mut id = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 16) % SMALL.vocab_size as u32
    };
    (0..SHAPE.sequences * SHAPE.tokens).map(|_| id()).collect()
}

/// Seeded weights of a model, larger than the usual ones.
fn weights(config: &ModelConfig, kernels: &'static Kernels) -> Vec<f32> {
    let whole = Plan::new(config, SHAPE, 1, Mode::Train, kernels).unwrap();
    memory::with_trainer(&whole, kernels, SEED, |base| {
        base.parameters().iter().map(|x| 2.0 * x).collect()
    })
}

/// The bytes of the token table among them.
fn token_table(plan: &Plan, weights: &[f32]) -> Vec<u8> {
    let table = plan.table().spec(Param::TokenTable).unwrap();
    weights[table.range()].iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Gives them to a trainer.
fn load(trainer: &mut Trainer<'_>, weights: &[f32]) {
    let mut staging = vec![f32::NAN; trainer.plan().staging_len()];
    let loaded: Result<(), ()> = trainer.load(&mut staging, |spec, first, values| {
        values.copy_from_slice(&weights[spec.range()][first * spec.cols..][..values.len()]);
        Ok(())
    });
    loaded.unwrap();
}

/// Runs `test` on a trainer of a plan, with such weights.
fn with_trainer<R>(
    plan: &Plan,
    kernels: &'static Kernels,
    test: impl FnOnce(&mut Trainer<'_>) -> R,
) -> R {
    with_dropout(plan, kernels, 0.0, test)
}

/// As [`with_trainer`], with dropout of what adapters read.
fn with_dropout<R>(
    plan: &Plan,
    kernels: &'static Kernels,
    dropped: f32,
    test: impl FnOnce(&mut Trainer<'_>) -> R,
) -> R {
    let weights = weights(plan.config(), kernels);
    let table = token_table(plan, &weights);
    memory::with_adapter_dropout(plan, kernels, SEED, &table, dropped, |trainer| {
        load(trainer, &weights);
        // Every B is zero at first: these are not.
        if let Some(table) = plan.adapters() {
            let specs: Vec<_> = table.iter().collect();
            let len = plan.resident().arena_len();
            let (arena, mut x) = (&mut trainer.parameters_mut()[len..], 3_u32);
            for spec in specs {
                for q in 0..spec.rank {
                    for value in &mut arena[spec.b.0 + q * spec.b.1..][..spec.outputs] {
                        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        *value = (x >> 8) as f32 / 1.7e8 - 0.05;
                    }
                }
            }
        }
        test(trainer)
    })
}

fn plan(
    (config, adapters): (&ModelConfig, Option<&Adapters>),
    tiling: &Tiling,
    mode: Mode,
    kernels: &'static Kernels,
) -> Plan {
    Plan::with_adapters(config, adapters, SHAPE, 1, tiling, mode, kernels).unwrap()
}

/// The parameter that a site's matrix is.
fn param(block: usize, site: AdapterSite) -> Param {
    use cllm_core::BlockParam as P;
    let param = match site {
        Qkv | Queries | Keys | Values => P::Qkv,
        AttnOut => P::AttnOut,
        Fc | Gate | Up => P::Fc,
        MlpOut => P::MlpOut,
    };
    Param::Block(block, param)
}

/// Differences as a share of the largest element.
#[track_caller]
fn assert_near(got: &[f64], want: &[f64], bound: f64, what: &str) {
    let most = want.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    assert!(most > 0.0, "{what}: nothing to compare");
    for (i, (x, y)) in got.iter().zip(want).enumerate() {
        assert!((x - y).abs() <= bound * most, "{what}[{i}]: {x} for {y}, of up to {most}");
    }
}

#[test]
fn gradients_follow_from_those_of_the_merged_weights() {
    let (tokens, targets) = (ids(5), ids(6));
    let batch = Batch::new(&tokens, &targets);
    let n = tokens.len();
    for (config, adapters) in cases() {
        let config = ModelConfig { dropout: 0.0, ..config };
        for kernels in Isa::ALL.into_iter().filter_map(Kernels::for_isa) {
            let what = format!("{:?} {:?}", adapters.sites, kernels.isa());
            let own = plan((&config, Some(&adapters)), &Tiling::default(), Mode::Train, kernels);
            let (loss, grads, weights) = with_trainer(&own, kernels, |trainer| {
                let loss = trainer.accumulate(&batch, n).unwrap().sum;
                (loss, trainer.gradients().to_vec(), trainer.parameters().to_vec())
            });
            let table = own.adapters().unwrap();
            let (base, values) = weights.split_at(own.table().arena_len());
            let mut merged = base.to_vec();
            table.merge(own.table(), values, &mut merged);
            let full = plan((&config, None), &Tiling::default(), Mode::Train, kernels);
            let (whole, of_weights) = with_trainer(&full, kernels, |trainer| {
                trainer.parameters_mut().copy_from_slice(&merged);
                (trainer.accumulate(&batch, n).unwrap().sum, trainer.gradients().to_vec())
            });
            assert!((loss / whole - 1.0).abs() < 1e-6, "{what}: loss {loss} for {whole}");
            for spec in table.iter() {
                let weight = own.table().spec(param(spec.block, spec.site)).unwrap();
                let dw = |i: usize, j: usize| {
                    let at = weight.offset + i * weight.cols + spec.first_output + j;
                    f64::from(of_weights[at])
                };
                let a = |of: &[f32], i: usize, q: usize| f64::from(of[spec.a.0 + i * spec.a.1 + q]);
                let b = |of: &[f32], q: usize, j: usize| f64::from(of[spec.b.0 + q * spec.b.1 + j]);
                let scale = f64::from(adapters.scale);
                let (mut got, mut want) = (Vec::new(), Vec::new());
                for i in 0..spec.inputs {
                    for q in 0..spec.rank {
                        let terms = (0..spec.outputs).map(|j| dw(i, j) * b(values, q, j));
                        want.push(scale * terms.sum::<f64>());
                        got.push(a(&grads, i, q));
                    }
                }
                assert_near(&got, &want, 1e-5, &format!("{what} dA of {:?}", spec.site));
                (got, want) = (Vec::new(), Vec::new());
                for q in 0..spec.rank {
                    for j in 0..spec.outputs {
                        let terms = (0..spec.inputs).map(|i| a(values, i, q) * dw(i, j));
                        want.push(scale * terms.sum::<f64>());
                        got.push(b(&grads, q, j));
                    }
                }
                assert_near(&got, &want, 1e-5, &format!("{what} dB of {:?}", spec.site));
            }
        }
    }
}

/// Loss and gradients of a step, and of another behind it.
fn bits(plan: &Plan, kernels: &'static Kernels, dropped: f32) -> (u64, Vec<u32>) {
    let (tokens, targets) = (ids(5), ids(6));
    with_dropout(plan, kernels, dropped, |trainer| {
        let n = tokens.len();
        let loss = trainer.accumulate(&Batch::new(&tokens, &targets), n).unwrap().sum;
        let evaluated = trainer.evaluate(&Batch::new(&tokens, &targets)).unwrap().sum;
        let drops = plan.config().dropout > 0.0 || dropped > 0.0;
        assert_eq!(loss.to_bits() == evaluated.to_bits(), !drops);
        let mut bits: Vec<u32> = trainer.gradients().iter().map(|x| x.to_bits()).collect();
        trainer.update(&Optimizer::default(), 1e-2).unwrap();
        trainer.accumulate(&Batch::new(&tokens, &targets), n).unwrap();
        bits.extend(trainer.gradients().iter().map(|x| x.to_bits()));
        (loss.to_bits(), bits)
    })
}

#[test]
fn any_tiles_workers_packing_and_recomputation_give_the_same_bits() {
    let small = Blocking { row_block: 32, weight_rows: 32, weight_cols: 32, ..Blocking::default() };
    for (number, (config, adapters)) in cases().into_iter().enumerate() {
        let config = ModelConfig { dropout: [0.0, 0.1][number % 2], ..config };
        let dropped = [0.2, 0.0][number % 2];
        for kernels in [Kernels::detect(), Kernels::detect().with_dtype(Dtype::Bf16)] {
            let mut first = None;
            for workers in [1, 2, 16] {
                for (packing, blocking) in [
                    (Packing::Once, Blocking::default()),
                    (Packing::Fresh, Blocking::default()),
                    (Packing::Kept, Blocking::default()),
                    (Packing::Kept, small),
                    (Packing::Once, small),
                ] {
                    for mode in [Mode::Train, Mode::Recompute] {
                        let packing = Some(packing);
                        let tiling = Tiling { workers: Some(workers), packing, blocking };
                        let plan = plan((&config, Some(&adapters)), &tiling, mode, kernels);
                        let result = bits(&plan, kernels, dropped);
                        let first = first.get_or_insert_with(|| result.clone());
                        let what = format!("{:?} {tiling:?} {mode:?}", adapters.sites);
                        assert!(*first == result, "{what} {kernels:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn steps_change_adapters_alone_and_lower_the_loss() {
    let (tokens, targets) = (ids(5), ids(6));
    let batch = Batch::new(&tokens, &targets);
    let kernels = Kernels::detect();
    for (config, adapters) in cases() {
        let config = ModelConfig { dropout: 0.0, ..config };
        let plan = plan((&config, Some(&adapters)), &Tiling::default(), Mode::Train, kernels);
        let len = plan.table().arena_len();
        let mut memory = Memory::new(&plan);
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&plan, queue).unwrap();
        let mut trainer = Trainer::new(&plan, kernels, pools, &engine, SEED).unwrap();
        trainer.initialise();
        let before = trainer.parameters()[..len].to_vec();
        // At first they add nothing.
        let bare = Plan::new(&config, SHAPE, 1, Mode::Evaluate, kernels).unwrap();
        let mut memory = Memory::new(&bare);
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&bare, queue).unwrap();
        let mut evaluator = cllm_core::Evaluator::new(&bare, kernels, pools, &engine).unwrap();
        evaluator.parameters_mut().copy_from_slice(&before);
        let start = evaluator.evaluate(&batch).unwrap();
        assert_eq!(trainer.evaluate(&batch).unwrap(), start);
        for _ in 0..30 {
            trainer.accumulate(&batch, tokens.len()).unwrap();
            trainer.update(&Optimizer::default(), 1e-2).unwrap();
        }
        let end = trainer.evaluate(&batch).unwrap();
        assert!(end.mean() < start.mean() - 0.1, "{:?}: {start:?} {end:?}", adapters.sites);
        assert!(trainer.parameters()[..len] == before, "the model itself has changed");
        // Columns of B beside its parts stay zero.
        let table = plan.adapters().unwrap();
        let values = trainer.adapters();
        let trained: usize = values.iter().filter(|x| **x != 0.0).count();
        assert_eq!(values.len(), table.arena_len());
        assert!(trained <= table.parameters() && trained > table.parameters() * 9 / 10);
        // Merged, a model without adapters computes the same.
        let mut merged = before;
        table.merge(plan.table(), values, &mut merged);
        evaluator.parameters_mut().copy_from_slice(&merged);
        let alone = evaluator.evaluate(&batch).unwrap();
        assert!((alone.sum / end.sum - 1.0).abs() < 1e-6, "{alone:?} for {end:?}");
    }
}

/// Of matrices of bf16 panels alone are kept, in no more memory than their floats take, and nothing is run
/// before they have been handed over.
#[test]
fn matrices_beside_adapters_are_kept_as_panels() {
    let (tokens, targets) = (ids(5), ids(6));
    let batch = Batch::new(&tokens, &targets);
    let kernels = Kernels::detect().with_dtype(Dtype::Bf16);
    let wide = |c: ModelConfig| ModelConfig { d_model: 128, d_ff: 512, dropout: 0.0, ..c };
    let adapters =
        Adapters { rank: 4, scale: 1.5, sites: AdapterSites::of(&[Queries, Values, AttnOut]) };
    for config in [wide(SMALL), ModelConfig { tied: false, ..wide(LLAMA) }] {
        let tiling = |packing| Tiling { packing, ..Tiling::default() };
        let of = |packing, mode| plan((&config, Some(&adapters)), &tiling(packing), mode, kernels);
        let kept = of(Some(Packing::Kept), Mode::Train);
        assert_eq!(kept.packing(), Packing::Kept);
        // Nothing is trained that adapters could be beside.
        assert_eq!(of(Some(Packing::Kept), Mode::Evaluate).packing(), Packing::Once);
        let bare = plan((&config, None), &tiling(Some(Packing::Kept)), Mode::Train, kernels);
        assert_eq!((bare.packing(), bare.staging_len()), (Packing::Once, 0));
        let whole = kept.table().iter().filter(|spec| !spec.is_vector());
        let matrices = whole.filter(|spec| match spec.param {
            Param::PositionTable | Param::Previous => false,
            Param::TokenTable
            | Param::Head
            | Param::Block(..)
            | Param::FinalGain
            | Param::FinalBias => true,
        });
        let matrices: usize = matrices.map(|spec| spec.len()).sum();
        let elsewhere = kept.table().parameters() - kept.resident().parameters();
        assert_eq!(elsewhere, matrices);
        let of_bf16 = kernels.packed_len(128, 64) == Some(128 * 64 / 2);
        assert_eq!(of(None, Mode::Train).packing() == Packing::Kept, of_bf16, "{kernels:?}");
        if of_bf16 {
            let fresh = of(Some(Packing::Fresh), Mode::Train);
            let in_memory = |plan: &Plan| plan.bytes(Pool::Parameters) + plan.bytes(Pool::Packed);
            // Panels of few columns, and rows that are no whole lines, are padded.
            assert!(in_memory(&kept) < in_memory(&fresh) + in_memory(&fresh) / 8, "{kernels:?}");
        }
        let weights = weights(&config, kernels);
        let table = token_table(&kept, &weights);
        let mut memory = Memory::new(&kept);
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&kept, queue).unwrap();
        let mut trainer = Trainer::new(&kept, kernels, pools, &engine, SEED).unwrap();
        trainer.initialise();
        load(&mut trainer, &weights);
        assert_eq!(trainer.evaluate(&batch), Err(StepError::NotLoaded), "there is no table");
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&kept, queue).unwrap();
        let trainer = Trainer::new(&kept, kernels, pools, &engine, SEED).unwrap();
        let short = trainer.look_up_in(&table[1..]).unwrap_err();
        let (need, got) = (table.len(), table.len() - 1);
        assert_eq!(short, PlanError::TooSmall { pool: Pool::Parameters, need, got });
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&kept, queue).unwrap();
        let trainer = Trainer::new(&kept, kernels, pools, &engine, SEED).unwrap();
        let mut trainer = trainer.look_up_in(&table).unwrap();
        trainer.initialise();
        assert_eq!(trainer.evaluate(&batch), Err(StepError::NotLoaded));
        assert_eq!(trainer.check_batch(&batch, tokens.len()), Err(StepError::NotLoaded));
        assert_eq!(trainer.accumulate(&batch, tokens.len()), Err(StepError::NotLoaded));
        let mut staging = vec![0.0; kept.staging_len()];
        let mut tensors = 0;
        let stopped = trainer.load(&mut staging, |_, _, _| {
            tensors += 1;
            if tensors == 7 { Err("no more") } else { Ok(()) }
        });
        assert_eq!((stopped, tensors), (Err("no more"), 7));
        assert_eq!(trainer.evaluate(&batch), Err(StepError::NotLoaded));
        load(&mut trainer, &weights);
        let start = trainer.evaluate(&batch).unwrap();
        for _ in 0..30 {
            trainer.accumulate(&batch, tokens.len()).unwrap();
            trainer.update(&Optimizer::default(), 1e-2).unwrap();
        }
        let end = trainer.evaluate(&batch).unwrap();
        assert!(end.mean() < start.mean() - 0.1, "{start:?} {end:?}");
    }
}

/// Panels that are there already may lie where nobody writes: the same bits, in less memory.
#[test]
fn panels_may_be_where_they_are_only_read() {
    let (tokens, targets) = (ids(5), ids(6));
    let batch = Batch::new(&tokens, &targets);
    let tiling = Tiling { packing: Some(Packing::Kept), ..Tiling::default() };
    for (config, adapters) in cases() {
        for kernels in [Kernels::scalar(), Kernels::detect().with_dtype(Dtype::Bf16)] {
            let kept = plan((&config, Some(&adapters)), &tiling, Mode::Train, kernels);
            let weights = weights(&config, kernels);
            let table = token_table(&kept, &weights);
            let steps = |trainer: &mut Trainer<'_>| {
                load(trainer, &weights);
                for _ in 0..2 {
                    trainer.accumulate(&batch, tokens.len()).unwrap();
                    trainer.update(&Optimizer::default(), 1e-2).unwrap();
                }
                let loss = trainer.evaluate(&batch).unwrap().sum.to_bits();
                (loss, trainer.parameters().iter().map(|x| x.to_bits()).collect::<Vec<_>>())
            };
            let mut panels = Vec::new();
            let own = memory::with_adapter_dropout(&kept, kernels, SEED, &table, 0.0, |trainer| {
                let own = steps(trainer);
                panels = trainer.panels().to_vec();
                own
            });
            let before = panels.clone();
            let mut memory = Memory::new(&kept);
            let of = |memory: &mut Memory, plan: &Plan, panels: &[Line]| {
                let (pools, queue) = memory.parts();
                let pools = Pools { packed: &mut [], ..pools };
                let engine = Engine::new(plan, queue).unwrap();
                let trainer = Trainer::over_panels(plan, kernels, pools, panels, &engine, SEED)?;
                let mut trainer = trainer.look_up_in(&table)?;
                trainer.initialise();
                Ok::<_, PlanError>(steps(&mut trainer))
            };
            let lent = of(&mut memory, &kept, &panels);
            assert!(lent == Ok(own), "{:?} {kernels:?}", adapters.sites);
            assert!(panels == before, "panels that are only read have changed");
            let (need, got) = (kept.bytes(Pool::Packed), kept.bytes(Pool::Packed) - 64);
            let short = of(&mut memory, &kept, &panels[1..]).unwrap_err();
            assert_eq!(short, PlanError::TooSmall { pool: Pool::Packed, need, got });
            let fresh = Tiling { packing: Some(Packing::Fresh), ..Tiling::default() };
            let fresh = plan((&config, Some(&adapters)), &fresh, Mode::Train, kernels);
            let refused = of(&mut Memory::new(&fresh), &fresh, &panels).unwrap_err();
            assert_eq!(refused, PlanError::NothingKept);
        }
    }
}

/// With dropout of what adapters read, gradients are those of the loss that was computed: along them it
/// changes as they say, whichever mask there is.
#[test]
fn gradients_behind_a_mask_are_those_of_the_loss() {
    let (tokens, targets) = (ids(5), ids(6));
    for (config, adapters) in cases() {
        let config = ModelConfig { dropout: 0.0, ..config };
        for kernels in [Kernels::scalar(), Kernels::detect()] {
            let plan = plan((&config, Some(&adapters)), &Tiling::default(), Mode::Train, kernels);
            let at = plan.resident().arena_len();
            let run = |dropped: f32, along: &[f32], by: f32| {
                with_dropout(&plan, kernels, dropped, |trainer| {
                    let arena = &mut trainer.parameters_mut()[at..];
                    arena.iter_mut().zip(along).for_each(|(x, g)| *x += by * g);
                    let batch = Batch::new(&tokens, &targets);
                    let loss = trainer.accumulate(&batch, tokens.len()).unwrap().mean();
                    (loss, trainer.gradients().to_vec())
                })
            };
            let (loss, gradient) = run(0.3, &[], 0.0);
            let (bare, _) = run(0.0, &[], 0.0);
            assert!((loss - bare).abs() > 1e-4 * bare, "{loss} with a mask, {bare} without");
            let square: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
            // A step that changes the loss far more than its rounding, and is straight.
            let by = (2e-4 * loss / square) as f32;
            let change = run(0.3, &gradient, by).0 - run(0.3, &gradient, -by).0;
            let ratio = change / (2.0 * f64::from(by) * square);
            let what = format!("{:?} {:?}: {ratio}", adapters.sites, kernels.isa());
            assert!((ratio - 1.0).abs() < 1e-3, "{what}");
            // Those of another mask are others.
            let (_, other) = run(0.25, &[], 0.0);
            let (a, b) = (gradient.iter(), other.iter());
            let apart: f64 = a.zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            assert!(apart > 1e-3 * square, "{what}: {apart} of {square}");
        }
    }
}
