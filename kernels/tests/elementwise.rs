//! Passes over flat arrays: sums, scales, GELU, dropout, AdamW.
#![allow(clippy::needless_range_loop, reason = "indices read like the formulas")]

mod common;

use cllm_kernels::{AdamW, Dropout, Isa, Kernels};
use common::{Grid, Rng, SIZES, assert_close, each_isa, reference, tolerance};

/// A random vector in -1..1 times `range`, at an unaligned place.
fn vector(rng: &mut Rng, n: usize, range: f32) -> Grid {
    let mut v = Grid::blank(1, n, 0, 1 + rng.below(7));
    v.fill(|_, _| rng.float() * range);
    v
}

/// Every size at several alignments.
fn each_length(test: impl Fn(&'static Kernels, usize, &mut Rng)) {
    each_isa(|kernels| {
        let mut rng = Rng::new(21);
        for n in SIZES.into_iter().chain([0, 4096]) {
            for _ in 0..3 {
                test(kernels, n, &mut rng);
            }
        }
    });
}

#[test]
fn accumulate_and_scale_are_exact() {
    each_length(|kernels, n, rng| {
        let (mut x, y) = (vector(rng, n, 1.0), vector(rng, n, 1e3));
        let before = x.values();
        kernels.accumulate(x.slice_mut(), y.slice());
        x.assert_frame("accumulate");
        for j in 0..n {
            assert_eq!(x.at(0, j), before[j] + y.at(0, j), "{kernels:?} {n} {j}");
        }
        let before = x.values();
        kernels.scale(x.slice_mut(), -0.3);
        x.assert_frame("scale");
        for j in 0..n {
            assert_eq!(x.at(0, j), before[j] * -0.3, "{kernels:?} {n} {j}");
        }
    });
}

#[test]
fn sums_of_squares_are_within_their_bound() {
    each_length(|kernels, n, rng| {
        let x = vector(rng, n, 3.0);
        let exact: f64 = x.wide().iter().map(|x| x * x).sum();
        let sum = kernels.sum_squares(x.slice());
        assert_close(sum, exact, tolerance::sum(n, exact), format!("{kernels:?} {n}"));
        assert_eq!(sum.to_bits(), kernels.sum_squares(x.slice()).to_bits());
    });
}

#[test]
fn column_sums_are_within_their_bound() {
    each_isa(|kernels| {
        let mut rng = Rng::new(22);
        for rows in [0, 1, 2, 63, 64, 65, 129, 300] {
            for cols in SIZES {
                let x = Grid::random(&mut rng, rows, cols);
                for accumulate in [false, true] {
                    let mut sum = Grid::blank(1, cols, 0, 1 + rng.below(7));
                    if accumulate {
                        sum.fill(|_, _| rng.float());
                    }
                    let before = sum.values();
                    kernels.column_sum(x.view(), sum.slice_mut(), accumulate);
                    sum.assert_frame("column_sum");
                    for j in 0..cols {
                        let start = if accumulate { f64::from(before[j]) } else { 0.0 };
                        let column = (0..rows).map(|i| f64::from(x.at(i, j)));
                        let size: f64 = column.clone().map(f64::abs).sum::<f64>() + start.abs();
                        let exact = start + column.sum::<f64>();
                        let what = format!("{kernels:?} {rows}x{cols} column {j}");
                        assert_close(sum.at(0, j), exact, tolerance::sum(rows, size), what);
                    }
                }
            }
        }
    });
}

#[test]
fn gelu_and_its_slope_match_on_every_length() {
    each_length(|kernels, n, rng| {
        let x = vector(rng, n, 6.0);
        let mut y = Grid::blank(1, n, 0, 1 + rng.below(7));
        kernels.gelu(y.slice_mut(), x.slice());
        y.assert_frame("gelu");
        let mut grad = vector(rng, n, 2.0);
        let before = grad.wide();
        kernels.gelu_backward(grad.slice_mut(), x.slice());
        grad.assert_frame("gelu_backward");
        for j in 0..n {
            let at = f64::from(x.at(0, j));
            let what = format!("{kernels:?} gelu({at})");
            assert_close(y.at(0, j), reference::gelu(at), tolerance::gelu(at), &what);
            let bound = before[j].abs() * (tolerance::gelu_slope(at) + 2.0 * tolerance::U);
            let exact = before[j] * reference::gelu_slope(at);
            assert_close(grad.at(0, j), exact, bound, &what);
            let slope = reference::difference(&mut [at], 0, |x| reference::gelu(x[0]));
            let bound = bound + before[j].abs() * tolerance::DIFFERENCES;
            assert_close(grad.at(0, j), before[j] * slope, bound, format!("{what}, differences"));
        }
    });
}

#[test]
fn dropout_is_the_mask_times_the_input() {
    each_isa(|kernels| {
        let mut rng = Rng::new(23);
        let dropout = Dropout::new(0.4, 99, 3, 1).unwrap();
        for cols in SIZES {
            let x = Grid::random(&mut rng, 3, cols);
            let mut y = Grid::blank_somewhere(&mut rng, 3, cols);
            // The row numbers wrap: a stream is 2^32 rows long.
            let first = u32::MAX - 1;
            kernels.dropout(x.view(), y.view_mut(), &dropout, first);
            y.assert_frame("dropout");
            for i in 0..3 {
                let mut mask = vec![0.0; cols];
                dropout.fill_mask(first.wrapping_add(i as u32), 0, &mut mask);
                for j in 0..cols {
                    assert_eq!(y.at(i, j), x.at(i, j) * mask[j], "{kernels:?} {cols} ({i}, {j})");
                }
            }
        }
    });
}

/// AdamW in `f64`, exactly as its documentation writes it. Returns the update's magnitude.
fn adamw_reference(h: &AdamW, p: &mut f64, g: f64, m: &mut f64, v: &mut f64) -> f64 {
    let wide = |x: f32| f64::from(x);
    let g = g * wide(h.grad_scale);
    *p -= wide(h.lr) * wide(h.decay) * *p;
    *m = wide(h.beta1) * *m + (1.0 - wide(h.beta1)) * g;
    *v = wide(h.beta2) * *v + (1.0 - wide(h.beta2)) * g * g;
    let root = v.sqrt() / wide(h.correction2).sqrt() + wide(h.eps);
    *p -= wide(h.lr) / wide(h.correction1) * *m / root;
    wide(h.lr) / wide(h.correction1) * (m.abs() + g.abs()) / root
}

#[test]
fn adamw_follows_the_reference_for_several_steps() {
    each_length(|kernels, n, rng| {
        let mut p = vector(rng, n, 1.0);
        let (mut m, mut v) = (vector(rng, n, 0.0), vector(rng, n, 0.0));
        let (mut p64, mut m64, mut v64) = (p.wide(), m.wide(), v.wide());
        let (mut sizes, mut largest) = (vec![0.0; n], vec![0.0; n]);
        for step in 1..=10 {
            let (beta1, beta2) = (0.9_f32, 0.95_f32);
            let h = AdamW {
                lr: 1e-2 / step as f32,
                beta1,
                beta2,
                eps: 1e-8,
                decay: if n % 2 == 0 { 0.1 } else { 0.0 },
                correction1: (1.0 - f64::from(beta1).powi(step)) as f32,
                correction2: (1.0 - f64::from(beta2).powi(step)) as f32,
                grad_scale: if step % 3 == 0 { 0.25 } else { 1.0 },
            };
            let g = vector(rng, n, 0.1);
            kernels.adamw(&h, p.slice_mut(), g.slice(), m.slice_mut(), v.slice_mut());
            for vector in [&p, &m, &v] {
                vector.assert_frame("adamw");
            }
            for j in 0..n {
                let g = f64::from(g.at(0, j));
                largest[j] = f64::max(largest[j], g.abs());
                sizes[j] += adamw_reference(&h, &mut p64[j], g, &mut m64[j], &mut v64[j]);
                let steps = step as usize;
                let what = format!("{kernels:?} {n} step {step} element {j}");
                let moment = tolerance::adamw(steps, largest[j]);
                assert_close(m.at(0, j), m64[j], moment, format!("{what}: m"));
                let moment = tolerance::adamw(steps, v64[j]);
                assert_close(v.at(0, j), v64[j], moment, format!("{what}: v"));
                let bound = tolerance::adamw(steps, sizes[j] + p64[j].abs());
                assert_close(p.at(0, j), p64[j], bound, format!("{what}: p"));
            }
        }
    });
}

#[test]
fn a_peak_pass_counts_its_operations() {
    each_isa(|kernels| {
        for iterations in [0, 1, 1000] {
            let (flops, checksum) = kernels.fma_peak_pass(iterations);
            assert_eq!(flops, iterations * 24 * kernels.lanes() as u64, "{kernels:?}");
            // Chain i starts at i + 0.5 and approaches 1 by a quarter a step; those of NEON, whose
            // multiply-adds overwrite what they add to, go up from 1 and down again.
            let chain = |i: u32| match kernels.isa() {
                Isa::Neon => 1.0 + 0.75 * 0.25 * (iterations % 2) as f64,
                _ => 1.0 + (f64::from(i) - 0.5) * 0.75_f64.powi(iterations as i32),
            };
            let exact = (0..12).map(chain).sum::<f64>() * kernels.lanes() as f64;
            assert_close(checksum, exact, tolerance::sum(1000, exact), format!("{kernels:?}"));
        }
    });
}

/// Moments whose gradient stays zero become negligible, and never denormal: those are slow.
#[test]
fn adamw_moments_do_not_stay_denormal() {
    each_isa(|kernels| {
        let h = AdamW {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            decay: 0.0,
            correction1: 1.0,
            correction2: 1.0,
            grad_scale: 1.0,
        };
        let (mut p, mut m, mut v) = ([1.0; 11], [0.5; 11], [0.25; 11]);
        m[3] = -0.5;
        for _ in 0..4000 {
            kernels.adamw(&h, &mut p, &[0.0; 11], &mut m, &mut v);
            assert!(m.iter().chain(&v).all(|x| *x == 0.0 || x.is_normal()), "{kernels:?}");
        }
        assert!(m.iter().chain(&v).all(|x| x.abs() < 1e-30), "{kernels:?}: {m:?} {v:?}");
    });
}
