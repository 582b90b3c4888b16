//! The naive `f64` model and PyTorch agree: two implementations that share
//! nothing, so either may serve as the oracle of the real one.

mod support;

use cllm_core::{Activation, Architecture, NormKind, Positions, Rotary, Scaling};
use support::golden::{Golden, IGNORED, Tensor};
use support::reference_model::{ReferenceConfig, ReferenceModel};

/// Element of the largest magnitude.
fn largest(values: &[f32]) -> usize {
    (0..values.len()).max_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs())).unwrap_or(0)
}

#[test]
fn golden_files_cover_what_they_promise() {
    let all = Golden::all();
    let any = |what: &str, test: &dyn Fn(&Golden) -> bool| {
        assert!(all.iter().any(test), "no golden file with {what}");
    };
    for (tied, bias) in [(true, true), (true, false), (false, true), (false, false)] {
        any("each kind of model", &|g| g.config.tied == tied && g.config.bias == bias);
    }
    any("an odd head size", &|g| g.config.d_model / g.config.n_head % 2 == 1);
    any("a d_ff that is not 4 d_model", &|g| g.config.d_ff != 4 * g.config.d_model);
    any("a sequence shorter than the block", &|g| {
        g.config.tokens_per_sequence < g.config.block_size
    });
    any("more than 64 tokens", &|g| g.config.tokens_per_sequence > 64);
    any("2 micro-batches", &|g| g.config.accum == 2);
    any("3 micro-batches", &|g| g.config.accum == 3);
    any("one token", &|g| g.config.step_tokens() == 1);
    any("no clipping", &|g| g.grad_norms.iter().all(|&norm| norm < g.config.clip));
    any("clipping", &|g| g.grad_norms.iter().all(|&norm| norm > g.config.clip));
    any("unequal numbers of ignored targets", &|g| {
        let ignored = |m| g.targets(0, m).iter().filter(|&&target| target == IGNORED).count();
        g.config.accum == 2 && ignored(0) != ignored(1)
    });
}

#[test]
fn golden_files_cover_later_parts() {
    let all = Golden::all();
    let any = |what: &str, test: &dyn Fn(&Golden, Architecture) -> bool| {
        let found = all.iter().any(|g| test(g, g.config.parts.architecture()));
        assert!(found, "no golden file with {what}");
    };
    let squared = |a: Architecture| a.activation == Activation::Relu2;
    any("squared ReLU alone, of an odd width", &|g, a| {
        squared(a) && a.logit_softcap.is_none() && g.config.d_ff % 2 == 1
    });
    any("squared ReLU and capped logits in 2 micro-batches with ignored targets", &|g, a| {
        squared(a) && a.logit_softcap.is_some() && g.step_targets(0).contains(&IGNORED)
    });
    any("capped logits of the Llama family", &|_, a| !squared(a) && a.logit_softcap.is_some());
    any("fewer previous tokens than a sequence has", &|g, a| {
        (1..g.config.tokens_per_sequence).contains(&a.previous_tokens)
    });
    any("more previous tokens than a sequence has, in 2 micro-batches", &|g, a| {
        a.previous_tokens > g.config.tokens_per_sequence && g.config.accum == 2 && !g.config.tied
    });
    any("embeddings, positions and previous tokens that are multiplied", &|g, a| {
        a.embedding_scale > 2.0 && a.previous_tokens > 0 && g.config.tied
    });
    any("embeddings that are made smaller, in 2 micro-batches", &|g, a| {
        a.embedding_scale < 0.5 && g.config.accum == 2 && !g.config.tied
    });
    for golden in &all {
        let Some(cap) = golden.config.parts.logit_softcap else { continue };
        // In the bend, where a cap is no factor of one.
        let most = golden.logits.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        assert!(most > 0.7 * cap && most < cap, "{}: {most} of {cap}", golden.config.name);
    }
}

#[test]
fn golden_files_cover_the_llama_family() {
    let all = Golden::all();
    let any = |what: &str, test: &dyn Fn(&Golden, Architecture) -> bool| {
        let of_llama = |arch: Architecture| {
            arch.norm == NormKind::Rms
                && arch.activation == Activation::SwiGlu
                && arch.rotary().is_some()
        };
        let found = all.iter().any(|g| {
            let arch = g.config.parts.architecture();
            of_llama(arch) && test(g, arch)
        });
        assert!(found, "no golden file of the Llama family with {what}");
    };
    any("its own head", &|g, _| !g.config.tied);
    any("tokens as its head", &|g, _| g.config.tied);
    any("as many heads of keys as of queries", &|_, a| a.n_kv_head.is_none());
    any("fewer heads of keys, and several", &|g, a| {
        a.n_kv_head.is_some_and(|n| n > 1 && n < g.config.n_head)
    });
    any("one head of keys", &|g, a| a.n_kv_head == Some(1) && g.config.n_head > 2);
    let share = |g: &Golden| g.config.d_model / g.config.n_head;
    any("wide heads", &|g, a| a.head_size.is_some_and(|size| size > share(g)));
    any("narrow heads", &|g, a| a.head_size.is_some_and(|size| size < share(g)));
    any("biases of queries, keys and values", &|g, a| a.qkv_bias && !g.config.bias);
    any("norms of wide heads, of which several share keys", &|g, a| {
        a.qk_norm && a.head_size.is_some_and(|size| size > share(g)) && a.n_kv_head.is_some()
    });
    any("norms of heads over long sequences in 2 micro-batches", &|g, a| {
        a.qk_norm && g.config.tokens_per_sequence > 64 && g.config.accum == 2
    });
    any("norms of heads and an eps that counts", &|g, a| {
        a.qk_norm && g.config.layer_norm_eps > 5e-4
    });
    any("a window that slides far", &|g, a| {
        a.window.is_some_and(|window| 3 * window < g.config.tokens_per_sequence)
    });
    any("an odd d_ff", &|g, _| g.config.d_ff % 2 == 1);
    any("ignored targets in 2 micro-batches", &|g, _| {
        g.config.accum == 2 && g.step_targets(0).contains(&IGNORED)
    });
    any("another eps", &|g, _| g.config.layer_norm_eps < 5e-6);
    let scaled = |test: fn(Scaling) -> bool| {
        move |g: &Golden, a: Architecture| {
            g.config.tokens_per_sequence > 64 && a.rotary().is_some_and(|r| test(r.scaling))
        }
    };
    any("linear scaling", &scaled(|s| matches!(s, Scaling::Linear { .. })));
    any("Llama 3's scaling", &scaled(|s| matches!(s, Scaling::Llama3 { .. })));
}

#[test]
fn golden_files_are_whole() {
    for golden in Golden::all() {
        let name = &golden.config.name;
        let table = ReferenceConfig::from(&golden.config).parameters();
        for tensors in [&golden.params, &golden.grads, &golden.finals] {
            let found: Vec<_> = tensors.iter().map(|(n, s, _)| (n.clone(), s.clone())).collect();
            assert_eq!(found, table, "{name}: parameter table");
            for (tensor, shape, values) in tensors {
                assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}: {tensor}");
                assert!(values.iter().all(|v| v.is_finite()), "{name}: {tensor}");
            }
        }
        assert_eq!(golden.loss, golden.losses[0], "{name}");
        for step in 0..golden.config.steps {
            assert!(golden.counted_targets(step) > 0, "{name}: step {step}");
            let vocabulary = 0..golden.config.vocab_size as u32;
            for micro in 0..golden.config.accum {
                assert!(golden.tokens(step, micro).iter().all(|t| vocabulary.contains(t)));
                let targets = golden.targets(step, micro);
                assert!(targets.iter().all(|t| *t == IGNORED || vocabulary.contains(t)));
            }
        }
        // The first norm must be that of the gradient stored beside it.
        let squares = |(_, _, values): &Tensor| -> f64 {
            values.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
        };
        let norm = golden.grads.iter().map(squares).sum::<f64>().sqrt();
        assert!((norm / golden.grad_norms[0] - 1.0).abs() < 1e-7, "{name}: {norm}");
    }
}

#[test]
fn logits_match_pytorch() {
    for golden in Golden::all() {
        let model = ReferenceModel::from_golden(&golden);
        let sequences = golden.tokens(0, 0).chunks(golden.config.tokens_per_sequence);
        let logits: Vec<f64> = sequences.flat_map(|s| model.logits(s).concat()).collect();
        assert_eq!(logits.len(), golden.logits.len());
        for (i, (&got, &want)) in logits.iter().zip(&golden.logits).enumerate() {
            let error = (got - f64::from(want)).abs();
            // Half a unit in the last place of the stored float32 is all there is.
            assert!(error < 1e-6, "{}: logit {i}: {got} for {want}", golden.config.name);
        }
    }
}

/// A file of scaled angles that came out the same without them would test nothing.
#[test]
fn scaling_of_angles_moves_logits() {
    let mut tried = 0;
    for golden in Golden::all() {
        let mut model = ReferenceModel::from_golden(&golden);
        let Positions::Rotary(rotary) = model.config.arch.positions else { continue };
        if rotary.scaling == Scaling::None {
            continue;
        }
        tried += 1;
        let plain = Rotary { scaling: Scaling::None, ..rotary };
        model.config.arch.positions = Positions::Rotary(plain);
        let logits = model.logits(&golden.tokens(0, 0)[..golden.config.tokens_per_sequence]);
        let moved = logits
            .concat()
            .iter()
            .zip(&golden.logits)
            .fold(0.0, |most: f64, (a, b)| most.max((a - f64::from(*b)).abs()));
        assert!(moved > 0.01, "{}: {moved}", golden.config.name);
    }
    assert_eq!(tried, 2, "scaled files");
}

#[test]
fn loss_matches_pytorch() {
    for golden in Golden::all() {
        let model = ReferenceModel::from_golden(&golden);
        let length = golden.config.tokens_per_sequence;
        let got = model.loss(golden.step_tokens(0), golden.step_targets(0), length);
        let error = (got / golden.loss - 1.0).abs();
        assert!(error < 1e-12, "{}: {got} for {}", golden.config.name, golden.loss);
    }
}

#[test]
fn finite_differences_match_pytorchs_gradients() {
    const SAMPLES: usize = 8;
    for golden in Golden::all() {
        let mut model = ReferenceModel::from_golden(&golden);
        let length = golden.config.tokens_per_sequence;
        let batch = (golden.step_tokens(0), golden.step_targets(0), length);
        for (name, _, grad) in &golden.grads {
            // Some elements spread over the tensor, and the one that matters most.
            let spread = (0..SAMPLES).map(|i| (i * grad.len() + grad.len() / 2) / SAMPLES);
            for index in spread.chain([largest(grad)]) {
                let got = model.derivative((name, index), batch);
                let want = f64::from(grad[index]);
                let bound = 1e-6 * want.abs() + 1e-8;
                assert!(
                    (got - want).abs() < bound,
                    "{}: {name}[{index}]: {got} for {want}",
                    golden.config.name
                );
            }
        }
        let whole = model.loss(batch.0, batch.1, length);
        assert!((whole / golden.loss - 1.0).abs() < 1e-12, "the weights were not put back");
    }
}

/// Ten steps of AdamW written out, on gradients from finite differences: the
/// smallest file's losses, norms and weights come out without any of PyTorch.
#[test]
fn adamw_by_hand_matches_pytorch() {
    let golden = Golden::named("one_token");
    let config = &golden.config;
    let mut model = ReferenceModel::from_golden(&golden);
    let mut moments: Vec<Vec<(f64, f64)>> =
        golden.params.iter().map(|(_, _, values)| vec![(0.0, 0.0); values.len()]).collect();
    for (step, &lr) in config.lrs.iter().enumerate() {
        let batch =
            (golden.step_tokens(step), golden.step_targets(step), config.tokens_per_sequence);
        let loss = model.loss(batch.0, batch.1, batch.2);
        assert!((loss / golden.losses[step] - 1.0).abs() < 1e-8, "loss {loss} of step {step}");

        let mut grads = Vec::new();
        for (name, _, values) in &golden.params {
            let grad = (0..values.len()).map(|index| model.derivative((name, index), batch));
            grads.push(grad.collect::<Vec<f64>>());
        }
        let norm = grads.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
        assert!((norm / golden.grad_norms[step] - 1.0).abs() < 1e-8, "norm {norm} of step {step}");

        let clip = (config.clip / (norm + 1e-6)).min(1.0);
        let (beta1, beta2) = config.betas;
        let correction1 = 1.0 - beta1.powi(step as i32 + 1);
        let correction2 = 1.0 - beta2.powi(step as i32 + 1);
        for (((name, shape, _), moments), grads) in
            golden.params.iter().zip(&mut moments).zip(&grads)
        {
            let decay = if shape.len() == 2 { config.weight_decay } else { 0.0 };
            let weights = model.params.get_mut(name).unwrap();
            for ((weight, (m, v)), grad) in weights.iter_mut().zip(moments).zip(grads) {
                let grad = grad * clip;
                *m = beta1 * *m + (1.0 - beta1) * grad;
                *v = beta2 * *v + (1.0 - beta2) * grad * grad;
                *weight -= lr * decay * *weight;
                *weight -= lr * (*m / correction1) / ((*v / correction2).sqrt() + config.eps);
            }
        }
    }
    for (name, _, finals) in &golden.finals {
        for (index, (got, &want)) in model.params[name].iter().zip(finals).enumerate() {
            let error = (got - f64::from(want)).abs();
            assert!(error < 1e-6, "{name}[{index}]: {got} for {want}");
        }
    }
}
