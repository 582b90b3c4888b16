//! Gradient descent, and AdamW with moments of 8 bits, against references in `f64`.
#![allow(clippy::needless_range_loop, reason = "indices read like the formulas")]

mod common;

use cllm_kernels::{AdamW, Dither, Kernels, MOMENTS_BLOCK, Moments8, Sgd};
use common::{Grid, Rng, SIZES, assert_close, each_isa, tolerance};

/// AdamW's settings at step `t`.
fn adamw(t: i32, beta1: f32, beta2: f32) -> AdamW {
    AdamW {
        lr: 1e-2,
        beta1,
        beta2,
        eps: 1e-8,
        decay: 0.1,
        correction1: (1.0 - f64::from(beta1).powi(t)) as f32,
        correction2: (1.0 - f64::from(beta2).powi(t)) as f32,
        grad_scale: if t % 3 == 0 { 0.25 } else { 1.0 },
    }
}

/// Moments of 8 bits, at unaligned places.
#[derive(Clone)]
struct State {
    first: Vec<u8>,
    second: Vec<u8>,
    scales: Vec<f32>,
    offset: usize,
}

impl State {
    fn new(n: usize, offset: usize) -> Self {
        // Bytes around the codes that nobody may touch.
        let codes = || [vec![0xa5; offset], vec![0; n], vec![0xa5; 67]].concat();
        let scales = vec![0.0; 2 * n.div_ceil(MOMENTS_BLOCK)];
        Self { first: codes(), second: codes(), scales, offset }
    }

    fn len(&self) -> usize {
        self.first.len() - self.offset - 67
    }

    fn moments(&mut self) -> Moments8<'_> {
        let codes = self.offset..self.first.len() - 67;
        Moments8 {
            first: &mut self.first[codes.clone()],
            second: &mut self.second[codes],
            scales: &mut self.scales,
        }
    }

    /// Code of the first moment, and the moment.
    fn first(&self, j: usize) -> (f64, f64) {
        let code = f64::from(self.first[self.offset + j].cast_signed());
        (code, f64::from(self.scales[j / MOMENTS_BLOCK * 2]) * code * code.abs())
    }

    /// Code of the root of the second moment, and the root.
    fn root(&self, j: usize) -> (f64, f64) {
        let code = f64::from(self.second[self.offset + j]);
        (code, f64::from(self.scales[j / MOMENTS_BLOCK * 2 + 1]) * code * code)
    }

    #[track_caller]
    fn assert_frame(&self) {
        let end = self.first.len() - 67;
        for codes in [&self.first, &self.second] {
            let around = codes[..self.offset].iter().chain(&codes[end..]);
            assert!(around.into_iter().all(|byte| *byte == 0xa5), "wrote beyond the codes");
        }
    }
}

fn vector(rng: &mut Rng, n: usize, mut value: impl FnMut(&mut Rng) -> f32) -> Grid {
    let mut v = Grid::blank(1, n, 0, 1 + rng.below(7));
    v.fill(|_, _| value(rng));
    v
}

/// A gradient of any size from 1e-6 to 1, or none.
fn uneven(rng: &mut Rng) -> f32 {
    let size = [1e-6, 1e-4, 1e-2, 1.0, 0.0][rng.below(5)];
    rng.float() * size
}

#[test]
fn descent_follows_the_reference_for_several_steps() {
    each_isa(|kernels| {
        let mut rng = Rng::new(31);
        for n in SIZES.into_iter().chain([0, 4096]) {
            let mut plain = vector(&mut rng, n, Rng::float);
            let (mut heavy, mut m) = (plain.clone(), vector(&mut rng, n, |_| 0.0));
            let (mut plain64, mut heavy64) = (plain.wide(), plain.wide());
            let (mut m64, mut sizes, mut sums) = (m.wide(), vec![0.0; n], vec![0.0; n]);
            for step in 1..=10 {
                let lr = 1e-2 / step as f32;
                let decay = if n % 2 == 0 { 0.1 } else { 0.0 };
                let h = Sgd { lr, decay, grad_scale: if step % 3 == 0 { 0.25 } else { 1.0 } };
                let g = vector(&mut rng, n, Rng::float);
                kernels.sgd(&h, plain.slice_mut(), g.slice());
                kernels.momentum(&h, 0.9, heavy.slice_mut(), g.slice(), m.slice_mut());
                for vector in [&plain, &heavy, &m] {
                    vector.assert_frame("descent");
                }
                let (lr, keep) = (f64::from(lr), 1.0 - f64::from(lr) * f64::from(decay));
                for j in 0..n {
                    let g = f64::from(g.at(0, j)) * f64::from(h.grad_scale);
                    plain64[j] = plain64[j] * keep - lr * g;
                    m64[j] = f64::from(0.9_f32) * m64[j] + g;
                    heavy64[j] = heavy64[j] * keep - lr * m64[j];
                    sums[j] = f64::from(0.9_f32) * sums[j] + g.abs();
                    sizes[j] += lr * sums[j];
                    let what = format!("{kernels:?} {n} step {step} element {j}");
                    let bound = tolerance::descent(step, sums[j]);
                    assert_close(m.at(0, j), m64[j], bound, format!("{what}: m"));
                    let bound = tolerance::descent(step, sizes[j] + 1.0);
                    assert_close(plain.at(0, j), plain64[j], bound, format!("{what}: plain"));
                    assert_close(heavy.at(0, j), heavy64[j], bound, format!("{what}: heavy"));
                }
            }
        }
    });
}

/// From the moments that are there, an update is that of AdamW; and of what moments become, a code is one
/// of the two beside it, by the dither.
#[test]
fn eight_bit_moments_follow_the_reference_to_a_code() {
    each_isa(|kernels| {
        let mut rng = Rng::new(32);
        let mut decided = 0;
        for n in SIZES.into_iter().chain([0, 64, 128, 1000]) {
            let mut p = vector(&mut rng, n, Rng::float);
            let mut state = State::new(n, 1 + rng.below(7));
            for step in 1..=12 {
                let (h, before) = (adamw(step, 0.9, 0.95), state.clone());
                let (weights, at) = (p.wide(), 5 * step as usize);
                let g = vector(&mut rng, n, uneven);
                let dither = Dither::new(step as u64, at);
                kernels.adamw8(&h, dither, p.slice_mut(), g.slice(), state.moments());
                p.assert_frame("adamw8");
                state.assert_frame();
                let wide = |x: f32| f64::from(x);
                let updated: Vec<_> = (0..n)
                    .map(|j| {
                        let g = wide(g.at(0, j)) * wide(h.grad_scale);
                        let m = wide(h.beta1) * before.first(j).1 + (1.0 - wide(h.beta1)) * g;
                        let v = wide(h.beta2) * before.root(j).1.powi(2)
                            + (1.0 - wide(h.beta2)) * g * g;
                        let size = wide(h.beta1) * before.first(j).1.abs() + g.abs();
                        (m, v, size)
                    })
                    .collect();
                for (j, &(m, v, size)) in updated.iter().enumerate() {
                    let what = format!("{kernels:?} {n} step {step} element {j}");
                    let root = v.sqrt() / wide(h.correction2).sqrt() + wide(h.eps);
                    let rate = wide(h.lr) / wide(h.correction1);
                    let weight = weights[j] * (1.0 - wide(h.lr) * wide(h.decay)) - rate * m / root;
                    let bound = tolerance::adamw(1, rate * size / root + weights[j].abs());
                    assert_close(p.at(0, j), weight, bound, format!("{what}: p"));

                    let block = j / MOMENTS_BLOCK * MOMENTS_BLOCK;
                    let block = &updated[block..n.min(block + MOMENTS_BLOCK)];
                    let largest = block.iter().fold(0.0, |a, x| f64::max(a, x.0.abs()));
                    let scale = wide(state.scales[j / MOMENTS_BLOCK * 2]);
                    let bound =
                        tolerance::adamw(1, block.iter().fold(0.0, |a, x| f64::max(a, x.2)));
                    assert!((scale * 127.0 * 127.0 - largest).abs() <= bound, "{what}: scale");
                    let highest = block.iter().fold(0.0, |a, x| f64::max(a, x.1)).sqrt();
                    let scale2 = wide(state.scales[j / MOMENTS_BLOCK * 2 + 1]);
                    let bound = tolerance::adamw(1, highest);
                    assert!((scale2 * 255.0 * 255.0 - highest).abs() <= bound, "{what}: scale");

                    // The share of the upper code, in values, against the dither, as the formulas have it.
                    let turns = (step as u32).wrapping_mul(0x9e37_79b9);
                    let turns = turns.wrapping_add(((at + j) as u32).wrapping_mul(0xc13f_a9a9));
                    let dither = f64::from(turns) / 4_294_967_296.0;
                    let mut check = |code: f64, exact: f64, power: i32, least: f64, what: &str| {
                        let lower = exact.powf(1.0 / f64::from(power)).floor();
                        let distance = (lower + 1.0).powi(power) - lower.powi(power);
                        let upper = (exact - lower.powi(power)) / distance;
                        let wanted =
                            (lower + f64::from(u8::from(upper + dither >= 1.0))).max(least);
                        // Rounding of the value, and of the sum of code and dither.
                        let noise = 1e-4 + 1e-5 * exact / distance;
                        if (upper + dither - 1.0).abs() > noise
                            && upper > noise
                            && upper < 1.0 - noise
                        {
                            assert_eq!(code, wanted, "{what}: {exact} {upper} {dither}");
                            decided += 1;
                        } else {
                            assert!((code - wanted).abs() <= 1.0, "{what}: {code} for {wanted}");
                        }
                    };
                    let (code, _) = state.first(j);
                    if m.abs() > 1e-25 {
                        assert!(code == 0.0 || code.signum() == m.signum(), "{what}: sign");
                        check(code.abs(), m.abs() / scale, 2, 0.0, &what);
                    }
                    let (code, _) = state.root(j);
                    if v > 1e-25 {
                        check(code, v / (scale2 * scale2), 4, 2.0, &what);
                    }
                }
            }
        }
        assert!(decided > 20_000, "{kernels:?}: only {decided} codes were clear");
    });
}

/// Over many steps the mean of what is kept is what was to be kept, where the nearest code is far off.
#[test]
fn moments_are_kept_in_the_mean_over_steps() {
    const STEPS: u64 = 2000;
    each_isa(|kernels| {
        let h = AdamW { grad_scale: 1.0, ..adamw(1, 0.9, 0.95) };
        // The first sets the scales; the others are at all distances from it.
        let g: Vec<f32> = (0..200).map(|j| 0.97_f32.powi(j % 64) * (-1.0_f32).powi(j)).collect();
        let mut sums = vec![(0.0, 0.0); g.len()];
        let mut nearest = vec![0.0_f64; g.len()];
        for step in 1..=STEPS {
            let mut state = State::new(g.len(), 3);
            let mut p = vec![0.0; g.len()];
            kernels.adamw8(&h, Dither::new(step, 77), &mut p, &g, state.moments());
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = (sum.0 + state.first(j).1, sum.1 + state.root(j).1.powi(2));
                let scale = f64::from(state.scales[j / MOMENTS_BLOCK * 2 + 1]);
                let exact = 0.05_f64.sqrt() * f64::from(g[j].abs()) / scale;
                nearest[j] = (scale * exact.sqrt().round().powi(2)).powi(2);
            }
        }
        let mut off: f64 = 0.0;
        for (j, (m, v)) in sums.into_iter().enumerate() {
            let g = f64::from(g[j]);
            let (m, v) = (m / STEPS as f64 / (0.1 * g), v / STEPS as f64 / (0.05 * g * g));
            assert!((m - 1.0).abs() < 1e-3 && (v - 1.0).abs() < 1e-3, "{kernels:?} {j}: {m} {v}");
            off = off.max((nearest[j] / (0.05 * g * g) - 1.0).abs());
        }
        assert!(off > 0.01, "the nearest codes are as good: {off}");
    });
}

/// Where gradients end, moments go to nothing, are never denormal, and no element leaps: not even the
/// smallest beside the largest.
#[test]
fn eight_bit_moments_end_without_a_leap() {
    each_isa(|kernels| {
        let n = 100;
        let mut rng = Rng::new(33);
        for last in [1.0_f32, 1e-9] {
            let mut state = State::new(n, 2);
            let mut p = vec![0.0_f32; n];
            for step in 1..=3000 {
                // Many sizes, and some that are exactly nothing from the start.
                let g: Vec<f32> = (0..n)
                    .map(|j| match (step <= 30, j % 4) {
                        (false, _) | (_, 0) => 0.0,
                        (true, k) => rng.float() * last * 1e-3_f32.powi(k as i32 - 1),
                    })
                    .collect();
                let before = p.clone();
                let h = AdamW { decay: 0.0, ..adamw(step, 0.9, 0.95) };
                kernels.adamw8(&h, Dither::new(step as u64, 0), &mut p, &g, state.moments());
                for (j, (before, after)) in before.iter().zip(&p).enumerate() {
                    // AdamW's own by the Cauchy-Schwarz inequality, and as much again for codes.
                    let most = 0.1 / (0.05_f32 * (1.0 - 0.81 / 0.95)).sqrt();
                    let most = 2.0 * h.lr * most * h.correction2.sqrt() / h.correction1;
                    assert!((before - after).abs() <= most, "{kernels:?} {step} {j}");
                }
                for x in &state.scales {
                    assert!(*x == 0.0 || x.is_normal(), "{kernels:?} {step}: scale {x:e}");
                }
            }
            assert!(state.scales.iter().all(|x| *x == 0.0), "{kernels:?}: {:?}", state.scales);
            assert!((0..state.len()).all(|j| state.first(j).0 == 0.0 && state.root(j).0 == 0.0));
        }
    });
}

/// On a noisy bowl, moments of 8 bits lead where those of 32 do, also where moments change by a thousandth
/// a step.
#[test]
fn eight_bit_moments_lead_where_those_of_32_do() {
    each_isa(|kernels| {
        for beta2 in [0.95, 0.999] {
            let n = 256;
            let mut rng = Rng::new(34);
            let steep: Vec<f32> = (0..n).map(|j| 10_f32.powf((j % 7) as f32 / -2.0)).collect();
            let start: Vec<f32> = (0..n).map(|_| rng.float()).collect();
            let (mut p, mut q, mut state) = (start.clone(), start, State::new(n, 0));
            let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
            let loss = |p: &[f32]| -> f64 {
                p.iter().zip(&steep).map(|(p, s)| f64::from(p * p * s)).sum::<f64>() / 2.0
            };
            let first = loss(&p);
            let (mut sum32, mut sum8) = (0.0, 0.0);
            for t in 1..=600 {
                let lr = 1e-2 * (1.0 - t as f32 / 600.0);
                let h = AdamW { lr, decay: 0.0, grad_scale: 1.0, ..adamw(t, 0.9, beta2) };
                let noise: Vec<f32> = (0..n).map(|_| rng.float() * 0.3).collect();
                let slope = |p: &[f32], j: usize| steep[j] * (p[j] + noise[j]);
                let (gp, gq): (Vec<_>, Vec<_>) =
                    (0..n).map(|j| (slope(&p, j), slope(&q, j))).unzip();
                kernels.adamw(&h, &mut p, &gp, &mut m, &mut v);
                kernels.adamw8(&h, Dither::new(t as u64, 0), &mut q, &gq, state.moments());
                (sum32, sum8) = (sum32 + loss(&p), sum8 + loss(&q));
            }
            assert!(loss(&p) < first / 100.0, "{kernels:?}: {first} {}", loss(&p));
            let ratio = sum8 / sum32;
            assert!((ratio - 1.0).abs() < 0.02, "{kernels:?} beta2 {beta2}: {ratio}");
        }
    });
}

/// Pieces of whole blocks, with their dithers, have the bits of the whole.
#[test]
fn some_blocks_have_the_bits_of_all() {
    each_isa(|kernels: &'static Kernels| {
        let n = 1000;
        let mut rng = Rng::new(35);
        let start: Vec<f32> = (0..n).map(|_| rng.float()).collect();
        let gradients: Vec<Vec<f32>> =
            (0..3).map(|_| (0..n).map(|_| uneven(&mut rng)).collect()).collect();
        let run = |cuts: &[usize]| {
            let (mut p, mut state) = (start.clone(), State::new(n, 0));
            for (t, g) in (1..).zip(&gradients) {
                for piece in cuts.windows(2) {
                    let (from, to) = (piece[0], piece[1]);
                    let Moments8 { first, second, scales } = state.moments();
                    let blocks = from / MOMENTS_BLOCK..to.div_ceil(MOMENTS_BLOCK);
                    let moments = Moments8 {
                        first: &mut first[from..to],
                        second: &mut second[from..to],
                        scales: &mut scales[2 * blocks.start..2 * blocks.end],
                    };
                    let h = adamw(t, 0.9, 0.95);
                    let dither = Dither::new(t as u64, 13 + from);
                    kernels.adamw8(&h, dither, &mut p[from..to], &g[from..to], moments);
                }
            }
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            (bits(&p), state.first.clone(), state.second.clone(), bits(&state.scales))
        };
        let whole = run(&[0, n]);
        for cuts in [&[0, 64, n][..], &[0, 320, 384, 960, n], &[0, 128, 256, 512, n]] {
            assert_eq!(run(cuts), whole, "{kernels:?} {cuts:?}");
        }
    });
}
