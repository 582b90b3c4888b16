//! NaN, infinity and the accuracy of `exp` and GELU, seen through public methods.
#![allow(clippy::needless_range_loop, reason = "indices read like the formulas")]

mod common;

use cllm_kernels::{
    AdamW, Attention, AttentionGrads, Dither, Epilogue, Kernels, Moments8, NormSaved, Packed, Sgd,
};
use common::{Grid, Rng, each_dtype, each_isa, reference, room, tolerance};

/// One unit in the last place of the `f32` nearest to `x`.
fn ulp(x: f64) -> f64 {
    let x = (x.abs() as f32).max(f32::MIN_POSITIVE);
    f64::from(f32::from_bits(x.to_bits() + 1)) - f64::from(x)
}

#[test]
fn exp_is_within_two_ulp() {
    each_isa(|kernels| {
        // Beside a logit of 0, logits below -22 leave the sum of a row at exactly 1, so a
        // gradient is the exponential itself.
        let (cols, rows) = (64, 8000);
        let steps = (rows * (cols - 1)) as f64;
        let x = |e: usize| (-22.0 - (87.3 - 22.0) * e as f64 / steps) as f32;
        let mut logits = Grid::blank(rows, cols, 0, 3);
        let at = |i: usize, j: usize| if j == 0 { 0.0 } else { x(i * (cols - 1) + j - 1) };
        logits.fill(at);
        let mut losses = vec![0.0; rows];
        kernels.cross_entropy(logits.view_mut(), &vec![0; rows], &mut losses, Some(1.0), None);
        let mut worst = 0.0_f64;
        for i in 0..rows {
            for j in 1..cols {
                let exact = f64::from(at(i, j)).exp();
                worst = worst.max((f64::from(logits.at(i, j)) - exact).abs() / ulp(exact));
            }
        }
        assert!(worst <= tolerance::EXP_ULP, "{kernels:?}: exp is off by {worst} ULP");
    });
}

#[test]
fn softmax_of_two_is_within_four_ulp() {
    each_isa(|kernels| {
        let rows = 200_000;
        let mut logits = Grid::blank(rows, 2, 0, 1);
        let x = |i: usize| (-22.0 * i as f64 / rows as f64) as f32;
        logits.fill(|i, j| if j == 0 { 0.0 } else { x(i) });
        let mut losses = vec![0.0; rows];
        kernels.cross_entropy(logits.view_mut(), &vec![0; rows], &mut losses, Some(1.0), None);
        for i in 0..rows {
            let e = f64::from(x(i)).exp();
            let exact = e / (1.0 + e);
            let off = (f64::from(logits.at(i, 1)) - exact).abs() / ulp(exact);
            assert!(off <= tolerance::SOFTMAX_ULP, "{kernels:?}: off by {off} ULP at {}", x(i));
        }
    });
}

#[test]
fn gelu_and_its_slope_are_within_their_bounds_everywhere() {
    each_isa(|kernels| {
        let n = 400_000;
        let x: Vec<f32> = (0..n).map(|i| (-14.0 + 28.0 * f64::from(i) / 4e5) as f32).collect();
        let mut y = vec![0.0; x.len()];
        kernels.gelu(&mut y, &x);
        let mut slope = vec![1.0; x.len()];
        kernels.gelu_backward(&mut slope, &x);
        for ((&x, &y), &slope) in x.iter().zip(&y).zip(&slope) {
            let x = f64::from(x);
            let (error, bound) = ((f64::from(y) - reference::gelu(x)).abs(), tolerance::gelu(x));
            assert!(error <= bound, "{kernels:?}: gelu({x}) = {y}, off by {error:e} of {bound:e}");
            let error = (f64::from(slope) - reference::gelu_slope(x)).abs();
            let bound = tolerance::gelu_slope(x);
            assert!(error <= bound, "{kernels:?}: gelu'({x}) = {slope}, off by {error:e}");
        }
    });
}

#[test]
fn gelu_has_the_documented_limits() {
    each_isa(|kernels| {
        let big = f32::MAX;
        let tiny = f32::MIN_POSITIVE;
        // Nine elements: a whole vector and a tail.
        let x = [0.0, -0.0, big, -big, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, tiny, f32::NAN];
        let mut y = [7.0; 9];
        kernels.gelu(&mut y, &x);
        assert_eq!((y[0], y[1], y[2], y[3], y[4]), (0.0, 0.0, big, 0.0, f32::INFINITY));
        assert!(y[5].is_nan() && y[6].is_nan() && y[8].is_nan(), "{kernels:?}: {y:?}");
        assert!((y[7] - tiny / 2.0).abs() <= tiny * 1e-6);
        let mut slope = [1.0; 9];
        kernels.gelu_backward(&mut slope, &x);
        let exact = [0.5, 0.5, 1.0, 0.0, 1.0, 0.0];
        assert!(slope.iter().zip(exact).all(|(x, y)| (x - y).abs() < 1e-6), "{slope:?}");
        assert!(slope[6].is_nan() && slope[8].is_nan());
        // The low bits of a NaN are not to be taken for an exponent.
        let nans = [0x7fc0_0001, 0x7fc0_0080, 0x7fc0_01ff, 0xffc0_0081, 0xffff_ffff];
        for x in nans.map(f32::from_bits) {
            let (mut y, mut slope) = ([0.0; 9], [1.0; 9]);
            kernels.gelu(&mut y, &[x; 9]);
            kernels.gelu_backward(&mut slope, &[x; 9]);
            assert!(y.iter().chain(&slope).all(|y| y.is_nan()), "{kernels:?}: {y:?} {slope:?}");
        }
        let mut grad = [f32::NAN; 9];
        kernels.gelu_backward(&mut grad, &[-100.0; 9]);
        assert!(grad.iter().all(|x| x.is_nan()), "{kernels:?}: a slope of 0 hides a NaN");
    });
}

/// Products of a matrix with one NaN, each place in turn.
#[test]
fn a_nan_in_a_product_reaches_its_row_or_column_and_nothing_else() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(51);
        let (m, n, k) = (7, 17, 9);
        for poison in [f32::NAN, f32::INFINITY] {
            for _ in 0..20 {
                let mut a = Grid::random(&mut rng, m, k);
                let b = Grid::random(&mut rng, k, n);
                let row = rng.below(m);
                a.set(row, rng.below(k), poison);
                let mut packed = vec![0.0; kernels.packed_len(k, n).unwrap()];
                kernels.pack(b.view(), &mut packed);
                let mut c = Grid::blank(m, n, 1, 1);
                let b_packed = Packed::new(&packed, k, n);
                let room = &mut room(kernels, m, k);
                kernels.gemm(a.view(), b_packed, c.view_mut(), false, Epilogue::None, room);
                let mut both = Grid::blank(m, n, 1, 1);
                let mut scratch = vec![0.0; kernels.unpacked_scratch_len(m, n, k).unwrap()];
                kernels.gemm_unpacked(a.view(), b.view(), both.view_mut(), false, &mut scratch);
                for i in 0..m {
                    for j in 0..n {
                        assert_eq!(c.at(i, j).is_finite(), i != row, "{kernels:?} ({i}, {j})");
                        assert_eq!(both.at(i, j).is_finite(), i != row, "{kernels:?} ({i}, {j})");
                    }
                }
            }
        }
    });
}

#[test]
fn a_nan_or_infinite_logit_shows_in_loss_and_gradient() {
    each_isa(|kernels| {
        for cols in [1, 2, 7, 8, 9, 17, 64, 65] {
            for at in 0..cols {
                for poison in [f32::NAN, f32::INFINITY] {
                    for target in [0, at, cols - 1] {
                        let mut logits = Grid::blank(2, cols, 1, 1);
                        logits.fill(|i, j| if (i, j) == (0, at) { poison } else { 0.5 });
                        let targets = [target as u32, 0];
                        let (mut alone, mut losses) = ([0.0; 2], [0.0; 2]);
                        kernels.cross_entropy(logits.view_mut(), &targets, &mut alone, None, None);
                        let view = logits.view_mut();
                        kernels.cross_entropy(view, &targets, &mut losses, Some(1.0), None);
                        let what = format!("{kernels:?} {poison} at {at} of {cols}");
                        assert!(losses[0].is_nan() && alone[0].is_nan(), "{what}: {losses:?}");
                        assert!((0..cols).all(|j| logits.at(0, j).is_nan()), "{what}: gradient");
                        assert!(losses[1].is_finite() && alone[1].is_finite(), "{what}: row 1");
                    }
                }
                if cols == 1 {
                    continue;
                }
                // Minus infinity is a masked class: it has no part, unless it is the target.
                let mut logits = Grid::blank(2, cols, 1, 1);
                logits.fill(|_, j| if j == at { f32::NEG_INFINITY } else { 0.5 });
                let targets = [((at + 1) % cols) as u32, at as u32];
                let mut losses = [0.0; 2];
                kernels.cross_entropy(logits.view_mut(), &targets, &mut losses, Some(1.0), None);
                assert!((losses[0] - (cols as f32 - 1.0).ln()).abs() < 1e-5, "{losses:?}");
                assert_eq!((logits.at(0, at), losses[1]), (0.0, f32::INFINITY));
                assert!((0..cols).all(|j| logits.at(0, j).is_finite()));
            }
        }
    });
}

#[test]
fn a_nan_in_a_norm_reaches_its_whole_row() {
    each_isa(|kernels| {
        for (cols, centred) in [1, 5, 8, 17].into_iter().flat_map(|n| [(n, true), (n, false)]) {
            for at in 0..cols {
                // Without a mean an infinite square leaves 0 of what is finite.
                let poisons = [f32::NAN, f32::INFINITY].into_iter().take(1 + usize::from(centred));
                for poison in poisons {
                    let mut x = Grid::blank(2, cols, 1, 1);
                    x.fill(|i, j| if (i, j) == (0, at) { poison } else { j as f32 });
                    let mut y = Grid::blank(2, cols, 0, 3);
                    let gain = vec![1.0; cols];
                    let (mut mean, mut rstd) = ([0.0; 2], [0.0; 2]);
                    let out = y.view_mut();
                    kernels.layer_norm(
                        x.view(),
                        &gain,
                        None,
                        1e-5,
                        out,
                        centred.then_some(&mut mean[..]),
                        &mut rstd,
                    );
                    assert!((0..cols).all(|j| y.at(0, j).is_nan() && y.at(1, j).is_finite()));
                    let saved = NormSaved {
                        x: x.view(),
                        gain: &gain,
                        mean: centred.then_some(&mean[..]),
                        rstd: &rstd,
                    };
                    let mut dx = Grid::blank(2, cols, 0, 3);
                    let mut dgain = vec![0.0; cols];
                    let dy = y.view();
                    kernels.layer_norm_backward(&saved, dy, dx.view_mut(), false, &mut dgain, None);
                    assert!((0..cols).all(|j| dx.at(0, j).is_nan() && dx.at(1, j).is_finite()));
                    assert!(dgain.iter().all(|x| x.is_nan()));
                }
            }
        }
    });
}

/// Which outputs of a head of attention hold a NaN: the result, dq, dk, dv.
fn attention_nans(kernels: &Kernels, inputs: &[Grid; 4], n: usize, head: usize) -> [bool; 4] {
    let [q, k, v, dout] = inputs;
    let (q, k, v) = (q.view(), k.view(), v.view());
    let a = Attention { q, k, v, first: 0, starts: None, window: None, scale: 0.5, dropout: None };
    let mut outputs = [0; 4].map(|_| Grid::blank(n, head, 0, 1));
    let [out, dq, dk, dv] = &mut outputs;
    let mut lse = vec![0.0; n];
    let mut scratch = vec![0.0; kernels.attention_scratch_len(n, head).unwrap()];
    kernels.attention(&a, out.view_mut(), Some(&mut lse), &mut scratch);
    let mut scratch = vec![0.0; kernels.attention_backward_scratch_len(n, head).unwrap()];
    let mut grads = AttentionGrads { dq: dq.view_mut(), dk: dk.view_mut(), dv: dv.view_mut() };
    kernels.attention_backward(&a, out.view(), &lse, dout.view(), &mut grads, &mut scratch);
    outputs.each_ref().map(|grid| grid.values().iter().any(|x| x.is_nan()))
}

#[test]
fn a_nan_in_attention_never_vanishes() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(52);
        for (n, head) in [(5, 3), (8, 8), (20, 17), (70, 8), (400, 4)] {
            for which in 0..4 {
                for _ in 0..10 {
                    let mut inputs = [0; 4].map(|_| Grid::random(&mut rng, n, head));
                    inputs[which].set(rng.below(n), rng.below(head), f32::NAN);
                    let found = attention_nans(kernels, &inputs, n, head);
                    let expected = if which == 3 { [false, true, true, true] } else { [true; 4] };
                    // What the last query alone sees reaches some of the gradients, not all.
                    let what = format!("{kernels:?} n {n} head {head} input {which}: {found:?}");
                    assert_eq!(found[0], expected[0], "{what}");
                    assert!(found[1..].iter().any(|x| *x), "{what}");
                }
            }
            let inputs = [0; 4].map(|_| Grid::random(&mut rng, n, head));
            assert_eq!(attention_nans(kernels, &inputs, n, head), [false; 4]);
        }
    });
}

/// A query of finite numbers all of whose scores overflow to minus infinity has no probabilities:
/// its row and what comes of it is not a number, in short calls and in long ones.
#[test]
fn a_row_of_overflowed_scores_never_vanishes() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(57);
        for n in [5, 20, 400, 800] {
            let mut inputs = [0; 4].map(|_| Grid::random(&mut rng, n, 4));
            inputs[0].fill(|_, _| 1e20);
            inputs[1].fill(|i, _| if i == 0 { -1e20 } else { 1e-20 });
            // The first query sees the first key alone; the others see others as well.
            let found = attention_nans(kernels, &inputs, n, 4);
            assert!(found[0] && found[3], "{kernels:?} n {n}: {found:?}");
        }
    });
}

#[test]
fn a_nan_gradient_reaches_norm_and_weights() {
    each_isa(|kernels| {
        for n in [1, 7, 8, 9, 33, 40] {
            for at in 0..n {
                let mut g = vec![0.5; n];
                g[at] = f32::NAN;
                assert!(kernels.sum_squares(&g).is_nan(), "{kernels:?} {at} of {n}");
                let (mut p, mut m, mut v) = (vec![1.0; n], vec![0.0; n], vec![0.0; n]);
                let h = AdamW {
                    lr: 0.1,
                    beta1: 0.9,
                    beta2: 0.999,
                    eps: 1e-8,
                    decay: 0.0,
                    correction1: 0.1,
                    correction2: 0.001,
                    grad_scale: 1.0,
                };
                let (mut plain, mut heavy, mut eight) = (p.clone(), p.clone(), p.clone());
                kernels.adamw(&h, &mut p, &g, &mut m, &mut v);
                let descent = Sgd { lr: 0.1, decay: 0.0, grad_scale: 1.0 };
                let mut moment = vec![0.0; n];
                kernels.sgd(&descent, &mut plain, &g);
                kernels.momentum(&descent, 0.9, &mut heavy, &g, &mut moment);
                let (mut first, mut second, mut scales) = (vec![0; n], vec![0; n], [0.0; 2]);
                let moments =
                    Moments8 { first: &mut first, second: &mut second, scales: &mut scales };
                kernels.adamw8(&h, Dither::default(), &mut eight, &g, moments);
                for j in 0..n {
                    for p in [&plain, &heavy, &eight] {
                        assert_eq!(p[j].is_nan(), j == at);
                    }
                    assert_eq!(p[j].is_nan(), j == at);
                    assert_eq!(m[j].is_nan() && v[j].is_nan(), j == at);
                }
                // An infinite one overflows the second moment, and inf / inf is NaN.
                g[at] = f32::INFINITY;
                assert_eq!(kernels.sum_squares(&g), f32::INFINITY);
            }
        }
    });
}
