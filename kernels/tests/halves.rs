//! Matrices of bf16 in memory: what is made of them and written to them has the bits of the
//! same kernels on floats that are rounded already.

mod common;

use cllm_kernels::{
    Bf16, Epilogue, Kernels, MatMut, MatRef, NormInPlace, Operand, OperandMut, Packed,
};
use common::halves::{Halves, each, rounded};
use common::{Rng, each_dtype};
use core::panic::AssertUnwindSafe;
use std::panic::catch_unwind;

fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|x| x.to_bits()).collect()
}

/// Bits of the bf16 number `i` of a row of floats' memory, as a float's.
fn half(row: &[f32], i: usize) -> u32 {
    let pair = row[i / 2].to_bits();
    if i.is_multiple_of(2) { pair << 16 } else { pair & 0xffff_0000 }
}

fn random(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.float()).collect()
}

fn pack(kernels: &Kernels, b: &[f32], k: usize, n: usize) -> Vec<f32> {
    let mut packed = vec![0.0; kernels.packed_len(k, n).unwrap()];
    kernels.pack(MatRef::new(b, k, n, n), &mut packed);
    packed
}

/// Rows, columns and depth, of edges and of several blocks each.
const SHAPES: [(usize, usize, usize); 7] = [
    (1, 1, 1),
    (5, 33, 7),
    (12, 32, 2),
    (13, 40, 256),
    (97, 31, 257),
    (100, 65, 600),
    (200, 16, 512),
];

#[test]
fn a_left_operand_gives_the_bits_of_its_floats() {
    each(|kernels| {
        let mut rng = Rng::new(1);
        for (m, n, k) in SHAPES {
            for (kind, gap) in [(0, 0), (1, 2), (2, 4), (3, 0), (4, 2)] {
                let a = Halves::random(&mut rng, m, k, k.next_multiple_of(2) + gap);
                let (b, bias) = (random(&mut rng, k * n), random(&mut rng, n));
                let (before, residual) = (random(&mut rng, m * n), random(&mut rng, m * n));
                let packed = pack(kernels, &b, k, n);
                let product = |a: Operand<'_>, scratch: &mut [f32]| {
                    let (mut c, mut pre) = (before.clone(), vec![0.0; m * n]);
                    let epilogue = match kind {
                        0 => Epilogue::None,
                        1 => Epilogue::Bias(&bias),
                        2 => Epilogue::Gelu {
                            bias: Some(&bias),
                            pre: MatMut::new(&mut pre, m, n, n).into(),
                        },
                        4 => Epilogue::Relu2 {
                            bias: Some(&bias),
                            pre: MatMut::new(&mut pre, m, n, n).into(),
                        },
                        _ => Epilogue::Residual {
                            bias: None,
                            residual: MatRef::new(&residual, m, n, n),
                            dropout: None,
                        },
                    };
                    let (b, out) = (Packed::new(&packed, k, n), MatMut::new(&mut c, m, n, n));
                    kernels.gemm(a, b, out, kind != 1, epilogue, scratch);
                    (bits(&c), bits(&pre))
                };
                let mut scratch = vec![0.0; kernels.gemm_scratch_len(m, k)];
                let want = product(a.as_floats(), &mut scratch);
                assert!(product(a.even(), &mut scratch) == want, "{m}x{n}x{k}, epilogue {kind}");
            }
        }
    });
}

#[test]
fn a_result_is_rounded_once_when_all_of_it_is_there() {
    each(|kernels| {
        let mut rng = Rng::new(2);
        for (m, n, k) in SHAPES {
            let kinds = [(0, true), (1, false), (2, true), (2, false), (3, false)];
            for (kind, half_a) in kinds.into_iter().chain([(4, true), (5, false)]) {
                let a = Halves::random(&mut rng, m, k, k.next_multiple_of(2));
                let mut half_at = Halves::random(&mut rng, m, n, n);
                let (b, bias) = (random(&mut rng, k * n), random(&mut rng, n));
                let packed = pack(kernels, &b, k, n);
                let what = format!("{m}x{n}x{k}, epilogue {kind}, A of bf16: {half_a}");

                // Of activations' epilogues the input, and what they make of it.
                let (mut c, mut pre, mut at) =
                    (vec![0.0; m * n], vec![0.0; m * n], half_at.floats.clone());
                let epilogue = match kind {
                    0 => Epilogue::None,
                    1 => Epilogue::Bias(&bias),
                    2 => Epilogue::Gelu {
                        bias: Some(&bias),
                        pre: MatMut::new(&mut pre, m, n, n).into(),
                    },
                    4 => Epilogue::Relu2 {
                        bias: Some(&bias),
                        pre: MatMut::new(&mut pre, m, n, n).into(),
                    },
                    5 => Epilogue::Relu2Grad { pre: MatMut::new(&mut at, m, n, n).into() },
                    _ => Epilogue::GeluGrad { pre: MatMut::new(&mut at, m, n, n).into() },
                };
                let mut scratch = vec![0.0; kernels.gemm_scratch_len(m, k)];
                let (b, out) = (Packed::new(&packed, k, n), MatMut::new(&mut c, m, n, n));
                kernels.gemm(a.as_floats(), b, out, false, epilogue, &mut scratch);

                let (mut half_c, mut half_pre) =
                    (Halves::blank(m, n, n + 1), Halves::blank(m, n, n + 5));
                let epilogue = match kind {
                    0 => Epilogue::None,
                    1 => Epilogue::Bias(&bias),
                    2 => Epilogue::Gelu { bias: Some(&bias), pre: half_pre.view_mut() },
                    4 => Epilogue::Relu2 { bias: Some(&bias), pre: half_pre.view_mut() },
                    5 => Epilogue::Relu2Grad { pre: half_at.view_mut() },
                    _ => Epilogue::GeluGrad { pre: half_at.view_mut() },
                };
                let mut scratch = vec![0.0; kernels.gemm_into_halves_scratch_len(m, k)];
                let a = if half_a { a.even() } else { a.as_floats() };
                kernels.gemm(a, b, half_c.view_mut(), false, epilogue, &mut scratch);
                if kind == 2 || kind == 4 {
                    assert!(half_pre.written(&what) == rounded(&pre), "{what}: pre");
                    // The activation is of what is kept.
                    let kept: Vec<f32> = pre.iter().map(|x| Bf16::from_f32(*x).to_f32()).collect();
                    if kind == 2 {
                        kernels.gelu(&mut c, &kept);
                    } else {
                        c = kept.iter().map(|x| x.max(0.0) * x.max(0.0)).collect();
                    }
                }
                assert!(half_c.written(&what) == rounded(&c), "{what}");
                if kind == 3 || kind == 5 {
                    assert!(half_at.written(&what) == rounded(&at), "{what}: the activation");
                }
            }
        }
    });
}

#[test]
fn products_of_two_matrices_once_used_take_either_kind() {
    each(|kernels| {
        let mut rng = Rng::new(3);
        for (m, n, k) in [(1, 1, 1), (12, 32, 3), (17, 33, 40), (40, 70, 257), (130, 96, 530)] {
            let x = Halves::random(&mut rng, k, m, m + 3);
            let dy = Halves::random(&mut rng, k, n, n + 2);
            let before = random(&mut rng, m * n);
            let product = |x: Operand<'_>, dy: Operand<'_>| {
                let mut c = before.clone();
                let mut scratch = vec![0.0; kernels.unpacked_scratch_len(m, n, k).unwrap()];
                let out = MatMut::new(&mut c, m, n, n);
                kernels.gemm_unpacked(x.t(), dy, out, true, &mut scratch);
                bits(&c)
            };
            let want = product(x.as_floats(), dy.as_floats());
            for (x, dy) in
                [(x.view(), dy.view()), (x.view(), dy.as_floats()), (x.as_floats(), dy.view())]
            {
                assert!(product(x, dy) == want, "{m}x{n}x{k}");
            }
            let (mut c, mut sums, mut alone) = (before.clone(), vec![0.5; n], vec![0.5; n]);
            let mut scratch = vec![0.0; kernels.unpacked_scratch_len(m, n, k).unwrap()];
            let (x, dy, out) = (x.view(), dy.view(), MatMut::new(&mut c, m, n, n));
            kernels.gemm_unpacked_with_sums(x.t(), dy, out, &mut sums, true, &mut scratch);
            kernels.column_sum(dy, &mut alone, true);
            assert!(bits(&c) == want && bits(&sums) == bits(&alone), "{m}x{n}x{k}: sums");
        }
    });
}

#[test]
fn norms_gradients_of_logits_and_column_sums_have_the_bits_of_floats() {
    each(|kernels| {
        let mut rng = Rng::new(4);
        for (rows, cols, centred) in [
            (1, 1, true),
            (3, 15, false),
            (4, 16, true),
            (70, 33, false),
            (5, 200, true),
            (9, 64, false),
        ] {
            let what = format!("{rows}x{cols} centred: {centred}");
            let x = random(&mut rng, rows * cols);
            let (gain, bias) = (random(&mut rng, cols), random(&mut rng, cols));
            let norm = |y: OperandMut<'_>| {
                let (mut mean, mut rstd) = (vec![0.0; rows], vec![0.0; rows]);
                let x = MatRef::new(&x, rows, cols, cols);
                let means = centred.then_some(&mut mean[..]);
                kernels.layer_norm(x, &gain, Some(&bias), 1e-5, y, means, &mut rstd);
                (bits(&mean), bits(&rstd))
            };
            let (mut y, mut half_y) = (x.clone(), Halves::blank(rows, cols, cols + 2));
            let saved = norm(MatMut::new(&mut y, rows, cols, cols).into());
            assert_eq!(norm(half_y.view_mut()), saved, "{what}");
            assert_eq!(half_y.written(&what), rounded(&y), "{what}");

            let dy = random(&mut rng, rows * cols);
            let (mean, rstd) = (random(&mut rng, rows), random(&mut rng, rows));
            let back = |halves: bool| {
                let (mut x, mut dx) = (x.clone(), x.clone());
                let (mut dgain, mut dbias) = (vec![0.0; cols], vec![0.0; cols]);
                let mut saved = NormInPlace {
                    x: MatMut::new(&mut x, rows, cols, cols),
                    halves,
                    gain: &gain,
                    bias: Some(&bias),
                    mean: centred.then_some(&mean[..]),
                    rstd: &rstd,
                };
                let dy = MatRef::new(&dy, rows, cols, cols);
                let out = MatMut::new(&mut dx, rows, cols, cols);
                let sums = (&mut dgain[..], Some(&mut dbias[..]));
                kernels.layer_norm_backward_in_place(&mut saved, dy, out, true, sums.0, sums.1);
                (x, [bits(&dx), bits(&dgain), bits(&dbias)])
            };
            let ((y, gradients), (half_y, half_gradients)) = (back(false), back(true));
            assert_eq!(half_gradients, gradients, "{what}");
            for (r, row) in y.chunks(cols).enumerate() {
                for (c, want) in rounded(row).into_iter().enumerate() {
                    assert_eq!(half(&half_y[r * cols..], c), want, "{what}: y ({r}, {c})");
                }
            }

            let stride = cols + 3;
            let logits: Vec<f32> = (0..rows * stride).map(|_| 9.0 * rng.float()).collect();
            let mut targets: Vec<u32> = (0..rows).map(|_| rng.below(cols) as u32).collect();
            targets[rows / 2] = cllm_kernels::IGNORE;
            for cap in [None, Some(4.0)] {
                let (mut floats, mut halves) = (logits.clone(), logits.clone());
                let (mut losses, mut half_losses) = (vec![0.0; rows], vec![1.0; rows]);
                let view = MatMut::new(&mut floats, rows, cols, stride);
                kernels.cross_entropy(view, &targets, &mut losses, Some(0.7), cap);
                let view = MatMut::new(&mut halves, rows, cols, stride);
                let gradient =
                    kernels.cross_entropy_in_halves(view, &targets, &mut half_losses, 0.7, cap);
                assert_eq!((gradient.rows(), gradient.cols()), (rows, cols.next_multiple_of(2)));
                assert_eq!(bits(&half_losses), bits(&losses), "{what}");
                for r in 0..rows {
                    let row = rounded(&floats[r * stride..][..cols]);
                    for (c, want) in row.iter().enumerate() {
                        assert_eq!(half(&halves[r * stride..], c), *want, "{what} at ({r}, {c})");
                    }
                    if cols % 2 == 1 {
                        assert_eq!(half(&halves[r * stride..], cols), 0, "{what}: behind row {r}");
                    }
                }
            }

            let m = Halves::random(&mut rng, rows, cols, cols + 1);
            let sum = |m: Operand<'_>| {
                let mut sums = vec![0.5; cols];
                kernels.column_sum(m, &mut sums, true);
                bits(&sums)
            };
            assert_eq!(sum(m.view()), sum(m.as_floats()), "{what}");
        }
    });
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |what: &str, call: &mut dyn FnMut()| {
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err(), "{what} was taken");
    };
    each_dtype(|kernels| {
        /// Where rows of a left-hand side may begin.
        #[repr(align(4))]
        struct Words([Bf16; 64]);

        let (Words(halves), packed) =
            (&Words([Bf16::default(); 64]), &pack(kernels, &[1.0; 15], 3, 5));
        let (mut c, mut half_c) = ([0.0; 20], [Bf16::default(); 20]);
        let mut scratch = [0.0; 256];
        let mut product = |(cols, stride): (usize, usize), half: bool, accumulate: bool| {
            let a = Operand::Half(MatRef::new(halves, 4, cols, stride));
            let c: OperandMut<'_> = match half {
                true => OperandMut::Half(MatMut::new(&mut half_c, 4, 5, 5)),
                false => MatMut::new(&mut c, 4, 5, 5).into(),
            };
            let b = Packed::new(packed, 3, 5);
            kernels.gemm(a, b, c, accumulate, Epilogue::None, &mut scratch);
        };
        if kernels.keeps_halves() {
            product((4, 4), true, false);
            product((4, 6), false, true);
            refused("an odd stride", &mut || product((4, 5), false, false));
            refused("an odd number of columns", &mut || product((3, 4), false, false));
            refused("rows that begin inside a word", &mut || {
                let (a, mut c) = (MatRef::new(&halves[1..], 4, 4, 4), [0.0; 20]);
                let (a, b) = (Operand::Half(a), Packed::new(packed, 3, 5));
                let c = MatMut::new(&mut c, 4, 5, 5);
                kernels.gemm(a, b, c, false, Epilogue::None, &mut []);
            });
            refused("a sum with bf16", &mut || product((4, 4), true, true));
            refused("an activation of floats for a result of bf16", &mut || {
                let (mut pre, mut c) = ([0.0; 20], [Bf16::default(); 20]);
                let epilogue =
                    Epilogue::Gelu { bias: None, pre: MatMut::new(&mut pre, 4, 5, 5).into() };
                let a = Operand::Half(MatRef::new(halves, 4, 4, 4));
                let c = OperandMut::Half(MatMut::new(&mut c, 4, 5, 5));
                kernels.gemm(a, Packed::new(packed, 3, 5), c, false, epilogue, &mut [0.0; 256]);
            });
        } else {
            refused("bf16 by kernels that keep none", &mut || product((4, 4), false, false));
            refused("a sum of bf16 columns", &mut || {
                let m = Operand::Half(MatRef::new(halves, 4, 3, 4));
                kernels.column_sum(m, &mut [0.0; 3], false);
            });
        }
    });
}
