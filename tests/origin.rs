//! Which number was the first that is not finite: a step gone through again names the tensor or the operation,
//! and changes nothing.

mod support;

use cllm_core::{
    AdapterSite, AdapterSites, Adapters, Batch, BatchShape, BlockParam, Dtype, Isa, Kernels, Mode,
    ModelConfig, Optimizer, Origin, Param, Plan, StepError, Tensor, Tiling, Trainer,
};
use support::config::ODD;
use support::memory;

const CONFIG: ModelConfig = ModelConfig { n_layer: 3, ..ODD };
/// Three row blocks, the last of which is not whole, and more than one span.
const SHAPE: BatchShape = BatchShape { sequences: 6, tokens: 37 };
const COUNT: usize = SHAPE.sequences * SHAPE.tokens;
/// Finite, but not the sum of a few of them.
const HUGE: f32 = 3e38;

/// Deterministic ids, none of them the last one.
fn ids(seed: u32) -> Vec<u32> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 16) % (CONFIG.vocab_size as u32 - 1)
    };
    (0..COUNT).map(|_| next()).collect()
}

/// Runs `test` with each kind of kernels, with all activations kept and with most made again.
fn everywhere(config: ModelConfig, mut test: impl FnMut(&mut Trainer<'_>)) {
    let floats = Isa::ALL.into_iter().filter_map(Kernels::for_isa);
    // Where activations are kept in halves.
    let halves = Kernels::detect().with_dtype(Dtype::Bf16);
    for kernels in floats.chain([halves]) {
        for mode in [Mode::Train, Mode::Recompute] {
            let plan = Plan::new(&config, SHAPE, 3, mode, kernels).unwrap();
            memory::with_trainer(&plan, kernels, 9, &mut test);
        }
    }
}

/// A value with one sign or the other, so that no sum of some of them is nothing.
fn signed(value: f32, i: usize) -> f32 {
    if (i as u32).wrapping_mul(0x9e37_79b9) >> 31 == 0 { value } else { -value }
}

/// Sets all values of some tensors, those of matrices with both signs.
fn fill(trainer: &mut Trainer<'_>, values: &[(Param, f32)]) {
    for (param, value) in values {
        let spec = trainer.plan().table().spec(*param).unwrap();
        let tensor = &mut trainer.parameters_mut()[spec.range()];
        for (i, x) in tensor.iter_mut().enumerate() {
            *x = if spec.is_vector() { *value } else { signed(*value, i) };
        }
    }
}

/// Name and block of the operation that is named as the first of a step of one micro-batch.
fn first_op(trainer: &mut Trainer<'_>) -> (&'static str, Option<u32>) {
    let (tokens, targets) = (ids(1), ids(2));
    // As if one target counted: gradients that are not small.
    match trainer.find_origin(&Batch::new(&tokens, &targets), 1, 0).unwrap() {
        Some(Origin::Output(op)) => (op.name(), op.layer()),
        other => panic!("{other:?}"),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_poisoned_weight_is_named() {
    let (tokens, targets) = (ids(1), ids(2));
    let batch = Batch::new(&tokens, &targets);
    let plan = Plan::new(&CONFIG, SHAPE, 1, Mode::Train, Kernels::detect()).unwrap();
    memory::with_trainer(&plan, Kernels::detect(), 9, |trainer| {
        for spec in trainer.plan().table().iter().collect::<Vec<_>>() {
            for poison in [f32::NAN, f32::NEG_INFINITY] {
                let at = spec.range().end - 1;
                let was = core::mem::replace(&mut trainer.parameters_mut()[at], poison);
                let named = Origin::Weight(Tensor::Parameter(spec.clone()));
                assert_eq!(named.to_string(), format!("the weight {}", spec.name()));
                let named = Some(named);
                assert_eq!(trainer.find_origin(&batch, COUNT, 0).unwrap(), named);
                assert_eq!(trainer.find_origin_of_loss(&batch).unwrap(), named);
                trainer.parameters_mut()[at] = was;
            }
        }
        assert_eq!(trainer.find_origin(&batch, COUNT, 0).unwrap(), None);
    });
}

#[test]
fn a_poisoned_adapter_is_named() {
    let (tokens, targets) = (ids(1), ids(2));
    let batch = Batch::new(&tokens, &targets);
    let config = ModelConfig { dropout: 0.0, ..CONFIG };
    let sites = AdapterSites::of(&[AdapterSite::Queries, AdapterSite::Values, AdapterSite::Fc]);
    let adapters = Adapters { rank: 2, scale: 1.0, sites };
    let kernels = Kernels::detect();
    let tiling = Tiling::default();
    let plan =
        Plan::with_adapters(&config, Some(&adapters), SHAPE, 1, &tiling, Mode::Train, kernels);
    memory::with_trainer(&plan.unwrap(), kernels, 9, |trainer| {
        assert_eq!(trainer.find_origin(&batch, COUNT, 0).unwrap(), None);
        let base = trainer.plan().resident().arena_len();
        let table = *trainer.plan().adapters().unwrap();
        for spec in table.iter() {
            let last_of_b = spec.b.0 + (spec.rank - 1) * spec.b.1 + spec.outputs - 1;
            for at in [base + spec.a.0, base + last_of_b] {
                let was = core::mem::replace(&mut trainer.parameters_mut()[at], f32::NAN);
                let named = Some(Origin::Weight(Tensor::Adapter(spec)));
                assert_eq!(trainer.find_origin(&batch, COUNT, 0).unwrap(), named);
                trainer.parameters_mut()[at] = was;
            }
        }
        // A product with B that overflows.
        let spec = table.spec(1, AdapterSite::Values).unwrap();
        let at = base + spec.b.0;
        trainer.parameters_mut()[at..at + spec.outputs].fill(HUGE);
        for row in 0..spec.inputs {
            trainer.parameters_mut()[base + spec.a.0 + row * spec.a.1] = signed(1e3, row);
        }
        assert_eq!(first_op(trainer), ("qkv", Some(1)));
    });
}

#[test]
fn the_first_output_that_overflows_is_named() {
    use BlockParam::*;
    let block = |block, param| Param::Block(block, param);
    everywhere(CONFIG, |trainer| {
        let start = trainer.parameters().to_vec();
        // Of the last row block alone, then of each block's products, whatever comes behind.
        let token = CONFIG.vocab_size - 1;
        let table = trainer.plan().table().spec(Param::TokenTable).unwrap();
        let (mut tokens, targets) = (ids(1), ids(2));
        tokens[COUNT - 1] = token as u32;
        let row = table.offset + token * CONFIG.d_model;
        trainer.parameters_mut()[row..][..CONFIG.d_model].fill(HUGE);
        fill(trainer, &[(Param::PositionTable, HUGE)]);
        let batch = Batch::new(&tokens, &targets);
        for found in [trainer.find_origin(&batch, COUNT, 0), trainer.find_origin_of_loss(&batch)] {
            let told = found.unwrap().unwrap().to_string();
            assert_eq!(told, "the output of `embed`");
        }
        for (values, named) in [
            (&[(block(1, Qkv), HUGE)][..], ("qkv", Some(1))),
            (&[(block(2, AttnOut), HUGE)], ("attn_out", Some(2))),
            (&[(block(0, AttnOut), HUGE), (block(0, Fc), HUGE)], ("attn_out", Some(0))),
            (&[(block(1, Fc), HUGE), (block(2, Qkv), HUGE)], ("fc", Some(1))),
            (&[(block(2, MlpOut), HUGE)], ("mlp_out", Some(2))),
            (&[(Param::Head, HUGE)], ("logits, loss and dlogits", None)),
        ] {
            trainer.parameters_mut().copy_from_slice(&start);
            // So that inputs of products are not small.
            let large = [(Param::FinalBias, 1.0), (block(2, FcBias), 10.0)];
            fill(trainer, &large);
            fill(trainer, &[0, 1, 2].map(|l| (block(l, Norm2Bias), 1.0)));
            fill(trainer, &[0, 1, 2].map(|l| (block(l, QkvBias), 10.0)));
            fill(trainer, values);
            assert_eq!(first_op(trainer), named, "{values:?}");
        }
    });
}

#[test]
fn the_first_gradient_that_overflows_is_named() {
    use BlockParam::*;
    let block = |block, param| Param::Block(block, param);
    everywhere(CONFIG, |trainer| {
        let start = trainer.parameters().to_vec();
        // Products of nothing that are nothing forward, and huge on the way back.
        let no_norm1 = |l| [(block(l, Norm1Gain), 0.0), (block(l, Norm1Bias), 0.0)];
        let no_norm2 = |l| [(block(l, Norm2Gain), 0.0), (block(l, Norm2Bias), 0.0)];
        let steep = |l| [(block(l, Norm2Gain), 1e30), (block(l, Fc), 0.0), (block(l, FcBias), 0.0)];
        for (values, named) in [
            (
                [&no_norm2(1)[..], &[(block(1, Fc), HUGE), (block(1, MlpOut), 100.0)]].concat(),
                ("fc dX", Some(1)),
            ),
            (
                [&no_norm1(0)[..], &[(block(0, Qkv), HUGE), (block(0, AttnOut), 100.0)]].concat(),
                ("qkv dX", Some(0)),
            ),
            ([&steep(2)[..], &[(block(2, MlpOut), 1e10)]].concat(), ("fc dW", Some(2))),
        ] {
            trainer.parameters_mut().copy_from_slice(&start);
            fill(trainer, &values);
            assert_eq!(first_op(trainer), named, "{values:?}");
        }
        // All gradients are finite, their squares are not. It is in the second micro-batch that they are.
        trainer.parameters_mut().copy_from_slice(&start);
        fill(trainer, &steep(1));
        fill(trainer, &[(block(1, Norm2Gain), 1e20), (block(1, MlpOut), 1e5)]);
        let (tokens, targets) = (ids(1), ids(2));
        let batch = Batch::new(&tokens, &targets);
        trainer.accumulate(&batch, 1).unwrap();
        let failed = trainer.update(&Optimizer::default(), 1e-3);
        assert!(matches!(failed, Err(StepError::NonFiniteGradient(_))), "{failed:?}");
        let fc = trainer.plan().table().spec(block(1, Fc)).unwrap();
        let named = Origin::Squares(Tensor::Parameter(fc));
        assert_eq!(trainer.find_origin(&batch, 1, 0).unwrap(), Some(named));
    });
}

#[test]
fn micro_batches_are_told_apart_and_nothing_is_changed() {
    let (good, mut bad, targets) = (ids(1), ids(3), ids(2));
    bad[5] = CONFIG.vocab_size as u32 - 1;
    let (good, bad) = (Batch::new(&good, &targets), Batch::new(&bad, &targets));
    let run = |asks: bool| {
        let plan = Plan::new(&CONFIG, SHAPE, 1, Mode::Train, Kernels::detect()).unwrap();
        memory::with_trainer(&plan, Kernels::detect(), 9, |trainer| {
            let table = trainer.plan().table().spec(Param::TokenTable).unwrap();
            // Of the last token, which one batch alone has.
            let last = table.range().end - CONFIG.d_model..table.range().end;
            let step = |trainer: &mut Trainer<'_>| {
                trainer.accumulate(&good, 2 * COUNT).unwrap();
                trainer.accumulate(&good, 2 * COUNT).unwrap();
                trainer.update(&Optimizer::default(), 1e-2).unwrap();
            };
            step(trainer);
            let was = trainer.parameters()[last.clone()].to_vec();
            trainer.parameters_mut()[last.clone()].fill(HUGE);
            fill(trainer, &[(Param::PositionTable, 0.0)]);
            trainer.accumulate(&good, 2 * COUNT).unwrap();
            let failed = trainer.accumulate(&bad, 2 * COUNT);
            assert!(matches!(failed, Err(StepError::NonFiniteLoss(_))), "{failed:?}");
            if asks {
                assert_eq!(trainer.find_origin(&good, 2 * COUNT, 0).unwrap(), None);
                let told = trainer.find_origin(&bad, 2 * COUNT, 1).unwrap().unwrap().to_string();
                assert!(told.starts_with("the output of `"), "{told}");
                let update = trainer.update(&Optimizer::default(), 1e-2);
                assert_eq!(update, Err(StepError::NoGradients), "gradients are discarded");
            }
            trainer.parameters_mut()[last].copy_from_slice(&was);
            step(trainer);
            (bits(trainer.parameters()), bits(trainer.gradients()), trainer.updates())
        })
    };
    assert_eq!(run(true), run(false));
}
