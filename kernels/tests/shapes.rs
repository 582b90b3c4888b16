//! Wrong shapes panic before any memory is touched, on every instruction set.
#![allow(clippy::needless_range_loop, reason = "indices read like the formulas")]

mod common;

use cllm_kernels::{
    AdamW, Angles, Attention, AttentionGrads, AttentionInPlace, Dither, Dropout, Dtype, Epilogue,
    Isa, KC, Kernels, MatMut, MatRef, Moments8, NormInPlace, NormSaved, Packed, Sgd,
};
use common::{each_dtype, each_isa, panics, room};

/// Fails unless the expression panics.
macro_rules! refused {
    ($($what:expr => $call:expr;)*) => {
        $(assert!(panics(|| { let _ = $call; }), "accepted: {}", $what);)*
    };
}

fn mat(data: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef::new(data, rows, cols, cols)
}

fn out(data: &mut [f32], rows: usize, cols: usize) -> MatMut<'_> {
    MatMut::new(data, rows, cols, cols)
}

const ZEROS: [f32; 1024] = [0.0; 1024];

#[test]
fn views_must_fit_their_slices() {
    let data = [0.0; 12];
    refused! {
        "rows beyond the end" => MatRef::new(&data, 4, 4, 4);
        "a stride beyond the end" => MatRef::new(&data, 3, 2, 6);
        "an overflowing stride" => MatRef::new(&data, 3, 1, usize::MAX);
        "an overflowing extent" => MatRef::new(&data, 2, 2, usize::MAX);
        "overlapping writable rows" => MatMut::new(&mut [0.0; 12], 3, 4, 3);
        "writable rows beyond the end" => MatMut::new(&mut [0.0; 12], 4, 4, 4);
        "rows outside" => mat(&data, 3, 4).row_range(2, 2);
        "overflowing rows" => mat(&data, 3, 4).row_range(2, usize::MAX);
        "columns outside" => mat(&data, 3, 4).col_range(5, 0);
        "a row outside" => out(&mut [0.0; 12], 3, 4).row_mut(3);
    }
    // Nothing is lost at the edges.
    let view = mat(&data, 3, 4);
    assert_eq!((view.row_range(3, 0).rows(), view.col_range(4, 0).cols()), (0, 0));
    let empty = MatRef::<f32>::new(&[], 5, 0, 100);
    assert_eq!((empty.row_range(3, 2).rows(), empty.t().rows()), (2, 0));
}

#[test]
fn products_check_every_operand() {
    each_dtype(|kernels| {
        let gemm = |a: (usize, usize), b: (usize, usize), c: (usize, usize), packed: usize| {
            let mut data = [0.0; 64];
            let view = out(&mut data, c.0, c.1);
            let packed = Packed::new(&ZEROS[..packed], b.0, b.1);
            let room = &mut room(kernels, a.0, a.1);
            kernels.gemm(mat(&ZEROS, a.0, a.1), packed, view, false, Epilogue::None, room);
        };
        let right = kernels.packed_len(4, 5).unwrap();
        gemm((3, 4), (4, 5), (3, 5), right);
        refused! {
            "too many rows of A" => gemm((4, 4), (4, 5), (3, 5), right);
            "A deeper than B" => gemm((3, 5), (4, 5), (3, 5), right);
            "C wider than B" => gemm((3, 4), (4, 5), (3, 6), right);
            "a short packed B" => gemm((3, 4), (4, 5), (3, 5), right - 1);
            "a long packed B" => gemm((3, 4), (4, 5), (3, 5), right + 1);
            "pack to a short slice" => kernels.pack(mat(&ZEROS, 4, 5), &mut [0.0; 3]);
        }
        assert_eq!(kernels.packed_len(usize::MAX, 2), None);
        assert_eq!(kernels.packed_len(2, usize::MAX), None);

        let epilogue = |e: Epilogue<'_>| {
            let mut c = [0.0; 15];
            let packed = Packed::new(&ZEROS[..right], 4, 5);
            let room = &mut room(kernels, 3, 4);
            kernels.gemm(mat(&ZEROS, 3, 4), packed, out(&mut c, 3, 5), false, e, room);
        };
        let (wide, tall) = (mat(&ZEROS, 3, 6), mat(&ZEROS, 4, 5));
        let transposed = mat(&ZEROS, 5, 3).t();
        let bias = Some(&ZEROS[..5]);
        refused! {
            "a short bias" => epilogue(Epilogue::Bias(&ZEROS[..4]));
            "a long bias" => epilogue(Epilogue::Bias(&ZEROS[..6]));
            "a wide pre" =>
                epilogue(Epilogue::Gelu { bias, pre: out(&mut [0.0; 18], 3, 6).into() });
            "a short bias of gelu" => epilogue(Epilogue::Gelu {
                bias: Some(&ZEROS[..4]), pre: out(&mut [0.0; 15], 3, 5).into()
            });
            "a wide pre of relu2" =>
                epilogue(Epilogue::Relu2 { bias, pre: out(&mut [0.0; 18], 3, 6).into() });
            "a tall activation of relu2" =>
                epilogue(Epilogue::Relu2Grad { pre: out(&mut [0.0; 20], 4, 5).into() });
            "a wide residual" =>
                epilogue(Epilogue::Residual { bias, residual: wide, dropout: None });
            "a tall residual" =>
                epilogue(Epilogue::Residual { bias, residual: tall, dropout: None });
            "a transposed residual" =>
                epilogue(Epilogue::Residual { bias, residual: transposed, dropout: None });
            "a wide activation" =>
                epilogue(Epilogue::GeluGrad { pre: out(&mut [0.0; 18], 3, 6).into() });
            "a tall activation" =>
                epilogue(Epilogue::GeluGrad { pre: out(&mut [0.0; 20], 4, 5).into() });
        }

        let room = kernels.gemm_scratch_len(3, 4);
        if kernels.dtype() == Dtype::F32 {
            assert_eq!(room, 0);
        } else {
            refused! {
                "short scratch of a product" => {
                    let packed = Packed::new(&ZEROS[..right], 4, 5);
                    let (mut c, mut short) = ([0.0; 15], vec![0.0; room - 1]);
                    let c = out(&mut c, 3, 5);
                    kernels.gemm(mat(&ZEROS, 3, 4), packed, c, false, Epilogue::None, &mut short);
                };
            }
        }

        let unpacked = |a: (usize, usize), b: (usize, usize), short: usize| {
            // Some of B may be read where it lies.
            let need = kernels.footprint().lying_scratch_len((3, None), (5, Some(5)), 4).unwrap();
            assert!(need <= kernels.unpacked_scratch_len(3, 5, 4).unwrap());
            let mut scratch = vec![0.0; need - short];
            let (a, b) = (mat(&ZEROS, a.0, a.1), mat(&ZEROS, b.0, b.1));
            kernels.gemm_unpacked(a, b, out(&mut [0.0; 15], 3, 5), false, &mut scratch);
        };
        unpacked((3, 4), (4, 5), 0);
        refused! {
            "short scratch" => unpacked((3, 4), (4, 5), 1);
            "A with more rows than C" => unpacked((4, 4), (4, 5), 0);
            "A deeper than B" => unpacked((3, 5), (4, 5), 0);
            "B wider than C" => unpacked((3, 4), (4, 6), 0);
        }
        let with_sums = |b: MatRef<'_>, sums: usize| {
            let mut scratch = vec![0.0; kernels.unpacked_scratch_len(3, 5, 4).unwrap()];
            let (c, sums) = (&mut [0.0; 15], &mut [0.0; 8][..sums]);
            let a = mat(&ZEROS, 3, 4);
            kernels.gemm_unpacked_with_sums(a, b, out(c, 3, 5), sums, false, &mut scratch);
        };
        with_sums(mat(&ZEROS, 4, 5), 5);
        refused! {
            "sums of fewer columns" => with_sums(mat(&ZEROS, 4, 5), 4);
            "sums of more columns" => with_sums(mat(&ZEROS, 4, 5), 6);
            "sums of a transpose" => with_sums(mat(&ZEROS, 5, 4).t(), 5);
        }
        assert_eq!(kernels.unpacked_scratch_len(usize::MAX, 1, 1), None);
        // Of B there is room for a panel, or for four or eight, whatever its width.
        let panels = match (kernels.isa(), kernels.dtype()) {
            (Isa::Avx | Isa::Avx2, Dtype::F32) => 4,
            (Isa::Amx, Dtype::Bf16) if kernels.is_native() => 8,
            _ => 1,
        };
        let cols = panels * kernels.panel();
        let few = kernels.unpacked_scratch_len(1, cols, 1);
        assert_eq!(kernels.unpacked_scratch_len(1, usize::MAX, 1), few);
        assert!(few > kernels.unpacked_scratch_len(1, cols - kernels.panel(), 1));
    });
}

const RULE: AdamW = AdamW {
    lr: 0.1,
    beta1: 0.9,
    beta2: 0.9,
    eps: 1e-8,
    decay: 0.0,
    correction1: 1.0,
    correction2: 1.0,
    grad_scale: 1.0,
};
const DESCENT: Sgd = Sgd { lr: 0.1, decay: 0.0, grad_scale: 1.0 };

/// AdamW on moments of 8 bits, with lengths of the gradient, of codes and of scales.
fn adamw8(kernels: &Kernels, n: usize, lengths: [usize; 4]) {
    let [g, first, second, scales] = lengths;
    let (mut first, mut second) = (vec![0; first], vec![0; second]);
    let mut scales = vec![0.0; scales];
    let moments = Moments8 { first: &mut first, second: &mut second, scales: &mut scales };
    kernels.adamw8(&RULE, Dither::default(), &mut vec![0.0; n], &ZEROS[..g], moments);
}

#[test]
fn flat_passes_check_their_lengths() {
    each_isa(|kernels| {
        let h = RULE;
        // Lengths that go together are taken.
        adamw8(kernels, 65, [65, 65, 65, 4]);
        let dropout = Dropout::new(0.5, 1, 2, 3).unwrap();
        let x = &ZEROS[..8];
        refused! {
            "accumulate" => kernels.accumulate(&mut [0.0; 9], x);
            "a cap of nothing" => kernels.soft_cap(&mut [0.0; 8], 0.0);
            "a cap of anything" => kernels.soft_cap(&mut [0.0; 8], f32::INFINITY);
            "gelu" => kernels.gelu(&mut [0.0; 9], x);
            "gelu, a long source" => kernels.gelu(&mut [0.0; 7], x);
            "gelu_backward" => kernels.gelu_backward(&mut [0.0; 9], x);
            "adamw, gradient" =>
                kernels.adamw(&h, &mut [0.0; 9], x, &mut [0.0; 9], &mut [0.0; 9]);
            "adamw, m" => kernels.adamw(&h, &mut [0.0; 8], x, &mut [0.0; 7], &mut [0.0; 8]);
            "adamw, v" => kernels.adamw(&h, &mut [0.0; 8], x, &mut [0.0; 8], &mut [0.0; 7]);
            "adamw8, gradient" => adamw8(kernels, 64, [65, 64, 64, 2]);
            "adamw8, first moments" => adamw8(kernels, 64, [64, 63, 64, 2]);
            "adamw8, second moments" => adamw8(kernels, 64, [64, 64, 65, 2]);
            "adamw8, no scales of a second block" => adamw8(kernels, 65, [65, 65, 65, 2]);
            "adamw8, scales of a second block" => adamw8(kernels, 64, [64, 64, 64, 4]);
            "sgd" => kernels.sgd(&DESCENT, &mut [0.0; 9], x);
            "momentum, gradient" => kernels.momentum(&DESCENT, 0.9, &mut [0.0; 9], x, &mut [0.0; 9]);
            "momentum, m" => kernels.momentum(&DESCENT, 0.9, &mut [0.0; 8], x, &mut [0.0; 9]);
            "column_sum" => kernels.column_sum(mat(&ZEROS, 3, 4), &mut [0.0; 5], false);
            "column_sum of a transpose" =>
                kernels.column_sum(mat(&ZEROS, 3, 4).t(), &mut [0.0; 3], false);
            "dropout, rows" =>
                kernels.dropout(mat(&ZEROS, 3, 4), out(&mut [0.0; 16], 4, 4), &dropout, 0);
            "dropout, columns" =>
                kernels.dropout(mat(&ZEROS, 3, 4), out(&mut [0.0; 16], 3, 5), &dropout, 0);
            "a probability of 1" => Dropout::new(1.0, 0, 0, 0);
            "a probability of NaN" => Dropout::new(f32::NAN, 0, 0, 0);
        }
    });
}

/// Row-wise kernels with one length wrong at a time, by its place in `n`.
fn norm(kernels: &Kernels, n: [usize; 6]) {
    let [y_rows, y_cols, mean, rstd, gain, bias] = n;
    let (mut y, mut means, mut rstds) = ([0.0; 64], vec![0.0; mean], vec![0.0; rstd]);
    let (gain, bias) = (&ZEROS[..gain], Some(&ZEROS[..bias]));
    let y = out(&mut y, y_rows, y_cols);
    kernels.layer_norm(mat(&ZEROS, 3, 5), gain, bias, 1e-5, y, Some(&mut means), &mut rstds);
}

fn norm_backward(kernels: &Kernels, n: [usize; 9]) {
    let [dy_rows, dy_cols, dx_rows, dx_cols, mean, rstd, gain, dgain, dbias] = n;
    let x = mat(&ZEROS, 3, 5);
    let (mean, rstd) = (&ZEROS[..mean], &ZEROS[..rstd]);
    let saved = NormSaved { x, gain: &ZEROS[..gain], mean: Some(mean), rstd };
    let (mut dx, mut dgain, mut dbias) = ([0.0; 64], vec![0.0; dgain], vec![0.0; dbias]);
    let (dy, dx) = (mat(&ZEROS, dy_rows, dy_cols), out(&mut dx, dx_rows, dx_cols));
    kernels.layer_norm_backward(&saved, dy, dx, false, &mut dgain, Some(&mut dbias));
}

fn norm_in_place(kernels: &Kernels, n: [usize; 10]) {
    let [dy_rows, dy_cols, dx_rows, dx_cols, mean, rstd, gain, bias, dgain, dbias] = n;
    let (mut x, mut dx) = ([0.0; 15], [0.0; 64]);
    let (mean, rstd, bias) = (&ZEROS[..mean], &ZEROS[..rstd], Some(&ZEROS[..bias]));
    let mut saved = NormInPlace {
        x: out(&mut x, 3, 5),
        halves: false,
        gain: &ZEROS[..gain],
        bias,
        mean: Some(mean),
        rstd,
    };
    let (mut dgain, mut dbias) = (vec![0.0; dgain], vec![0.0; dbias]);
    let (dy, dx) = (mat(&ZEROS, dy_rows, dy_cols), out(&mut dx, dx_rows, dx_cols));
    let dbias = Some(&mut dbias[..]);
    kernels.layer_norm_backward_in_place(&mut saved, dy, dx, false, &mut dgain, dbias);
}

fn swiglu(kernels: &Kernels, [pre_rows, pre_cols, rows, cols]: [usize; 4]) {
    let mut y = [0.0; 64];
    kernels.swiglu(mat(&ZEROS, pre_rows, pre_cols), out(&mut y, rows, cols));
}

fn swiglu_backward(kernels: &Kernels, n: [usize; 6]) {
    let [pre_rows, pre_cols, dy_rows, dy_cols, dpre_rows, dpre_cols] = n;
    let (mut pre, mut dpre) = ([0.0; 64], [0.0; 64]);
    let pre = out(&mut pre, pre_rows, pre_cols);
    let dpre = out(&mut dpre, dpre_rows, dpre_cols);
    kernels.swiglu_backward(pre.into(), mat(&ZEROS, dy_rows, dy_cols), dpre.into());
}

fn rotate(kernels: &Kernels, n: [usize; 5], head: usize, period: usize) {
    let [cols, cos_rows, cos_cols, sin_rows, sin_cols] = n;
    let mut x = [0.0; 64];
    let angles =
        Angles { cos: mat(&ZEROS, cos_rows, cos_cols), sin: mat(&ZEROS, sin_rows, sin_cols) };
    kernels.rotate(out(&mut x, 3, cols), head, &angles, 1, period, false);
}

#[test]
fn gated_and_rotary_kernels_check_every_shape() {
    each_isa(|kernels| {
        refuses_each([3, 10, 3, 5], |n| swiglu(kernels, n));
        refuses_each([3, 10, 3, 5, 3, 10], |n| swiglu_backward(kernels, n));
        // Two heads of 4 with 2 angles, 4 positions. More of both tables' rows would do.
        refuses_each([8], |[cols]| rotate(kernels, [cols, 4, 2, 4, 2], 4, 9));
        refuses_each([4, 2], |[rows, cols]| rotate(kernels, [8, rows, cols, 4, 2], 4, 9));
        refused! {
            "gates across" => kernels.swiglu(mat(&ZEROS, 10, 3).t(), out(&mut [0.0; 15], 3, 5));
            "no head" => rotate(kernels, [8, 4, 2, 4, 2], 0, 9);
            "angles for more than a head" => rotate(kernels, [8, 4, 3, 4, 3], 4, 9);
            "no period" => rotate(kernels, [8, 4, 2, 4, 2], 4, 0);
            "too few positions" => rotate(kernels, [8, 3, 2, 3, 2], 4, 9);
            "a table across" => kernels.rotate(
                out(&mut [0.0; 32], 4, 8),
                4,
                &Angles { cos: mat(&ZEROS, 2, 4).t(), sin: mat(&ZEROS, 4, 2) },
                0,
                4,
                false
            );
            "statistics of an RMS norm" => kernels.layer_norm(
                mat(&ZEROS, 3, 5),
                &ZEROS[..5],
                None,
                1e-5,
                out(&mut [0.0; 15], 3, 5),
                None,
                &mut [0.0; 2]
            );
        }
        // A short period needs no more.
        rotate(kernels, [8, 3, 2, 3, 2], 4, 3);
    });
}

/// Calls `run` with `right`, then with each number one more and one less: those must panic.
fn refuses_each<const N: usize>(right: [usize; N], run: impl Fn([usize; N])) {
    run(right);
    for i in 0..N {
        for wrong in [right[i] + 1, right[i] - 1] {
            let mut numbers = right;
            numbers[i] = wrong;
            assert!(panics(|| run(numbers)), "accepted {numbers:?} instead of {right:?}");
        }
    }
}

#[test]
fn norms_and_losses_check_their_shapes() {
    each_isa(|kernels| {
        refuses_each([3, 5, 3, 3, 5, 5], |n| norm(kernels, n));
        refuses_each([3, 5, 3, 5, 3, 3, 5, 5, 5], |n| norm_backward(kernels, n));
        refuses_each([3, 5, 3, 5, 3, 3, 5, 5, 5, 5], |n| norm_in_place(kernels, n));
        refuses_each([3, 3], |[targets, losses]| {
            let mut losses = vec![0.0; losses];
            let targets = vec![0; targets];
            kernels.cross_entropy(out(&mut [0.0; 15], 3, 5), &targets, &mut losses, None, None);
        });
        let loss = |cols: usize, target: u32| {
            let mut logits = [0.0; 15];
            kernels.cross_entropy(
                out(&mut logits, 1, cols),
                &[target],
                &mut [0.0],
                Some(1.0),
                None,
            );
        };
        loss(5, 4);
        refused! {
            "a target beyond the columns" => loss(5, 5);
            "a target near the ignored one" => loss(5, u32::MAX - 1);
            "no columns" => loss(0, u32::MAX);
        }
    });
}

#[test]
fn embeddings_check_tokens_and_positions() {
    each_isa(|kernels| {
        let gather = |tokens: &[u32], table: usize, places: Option<usize>, at: [usize; 3]| {
            let mut y = [0.0; 8];
            let (table, places) = (&ZEROS[..table], places.map(|places| &ZEROS[..places]));
            kernels.embedding(tokens, table, places, at[0], at[1], at[2], out(&mut y, 2, 4));
        };
        let run = |tokens: &[u32], table: usize, places: usize, at: [usize; 3]| {
            gather(tokens, table, Some(places), at);
        };
        run(&[0, 2], 12, 8, [0, 2, 0]);
        run(&[0, 2], 12, 8, [usize::MAX - 5, 2, 0]);
        gather(&[0, 2], 12, None, [usize::MAX, 0, usize::MAX]);
        refused! {
            "a token outside" => run(&[0, 3], 12, 8, [0, 2, 0]);
            "a token in half a row" => run(&[0, 2], 11, 8, [0, 2, 0]);
            "too few tokens" => run(&[0], 12, 8, [0, 2, 0]);
            "too many tokens" => run(&[0, 1, 1], 12, 8, [0, 2, 0]);
            "a position outside" => run(&[0, 2], 12, 8, [1, 3, 0]);
            "an offset outside" => run(&[0, 2], 12, 8, [0, 2, 1]);
            "an overflowing offset" => run(&[0, 2], 12, 8, [0, 2, usize::MAX]);
            "no period" => run(&[0, 2], 12, 8, [0, 0, 0]);
            "no positions, and a token outside" => gather(&[0, 3], 12, None, [0, 2, 0]);
            "no positions, and too few tokens" => gather(&[0], 12, None, [0, 2, 0]);
            "tokens of the backward pass" =>
                kernels.embedding_backward(&[0], mat(&ZEROS, 2, 4), &mut [0.0; 12], 0);
        }
    });
}

#[test]
fn attention_checks_its_shapes() {
    each_isa(|kernels| {
        let forward = |n: [usize; 10]| {
            let [queries, q_head, keys, k_head, values, v_head, first, rows, cols, lse] = n;
            let a = Attention {
                q: mat(&ZEROS, queries, q_head),
                k: mat(&ZEROS, keys, k_head),
                v: mat(&ZEROS, values, v_head),
                first,
                starts: None,
                window: None,
                scale: 1.0,
                dropout: None,
            };
            let mut scratch = vec![0.0; kernels.attention_scratch_len(16, 16).unwrap()];
            let (mut data, mut sums) = ([0.0; 64], vec![0.0; lse]);
            kernels.attention(&a, out(&mut data, rows, cols), Some(&mut sums), &mut scratch);
        };
        forward([3, 4, 5, 4, 5, 4, 2, 3, 4, 3]);
        for (i, wrong) in [(0, 4), (1, 5), (2, 6), (3, 5), (4, 4), (5, 3), (6, 3), (7, 4)] {
            let mut n = [3, 4, 5, 4, 5, 4, 2, 3, 4, 3];
            n[i] = wrong;
            assert!(panics(|| forward(n)), "accepted {n:?}");
        }
        refused! {
            "columns of the result" => forward([3, 4, 5, 4, 5, 4, 2, 3, 5, 3]);
            "length of lse" => forward([3, 4, 5, 4, 5, 4, 2, 3, 4, 2]);
            "an overflowing first" => forward([3, 4, 5, 4, 5, 4, usize::MAX - 1, 3, 4, 3]);
        }
        let square = mat(&ZEROS, 5, 4);
        let a = Attention {
            q: square,
            k: square,
            v: square,
            first: 0,
            starts: None,
            window: None,
            scale: 1.0,
            dropout: None,
        };
        let need = kernels.attention_scratch_len(5, 4).unwrap();
        refused! {
            "short scratch" => kernels.attention(
                &a, out(&mut [0.0; 20], 5, 4), None, &mut vec![0.0; need - 1]
            );
        }
        let backward = |n: [usize; 11], short: usize, first: usize| {
            let len = kernels.attention_backward_scratch_len(5, 4).unwrap();
            let mut scratch = vec![0.0; len - short];
            let mut data = [[0.0; 64]; 3];
            let [q, k, v] = &mut data;
            let mut grads = AttentionGrads {
                dq: out(q, n[0], n[1]),
                dk: out(k, n[2], n[3]),
                dv: out(v, n[4], n[5]),
            };
            let a = Attention { first, ..a };
            let (o, d) = (mat(&ZEROS, n[6], n[7]), mat(&ZEROS, n[8], n[9]));
            kernels.attention_backward(&a, o, &ZEROS[..n[10]], d, &mut grads, &mut scratch);
        };
        let right = [5, 4, 5, 4, 5, 4, 5, 4, 5, 4, 5];
        refuses_each(right, |n| backward(n, 0, 0));
        refused! {
            "short scratch, backward" => backward(right, 1, 0);
            "a cache in the backward pass" => backward(right, 0, 1);
        }
        let in_place = |n: [usize; 11], short: usize| {
            let len = kernels.attention_backward_scratch_len(5, 4).unwrap();
            let (mut scratch, mut data) = (vec![0.0; len - short], [[0.0; 64]; 3]);
            let [q, k, v] = &mut data;
            let (q, k, v) = (out(q, n[0], n[1]), out(k, n[2], n[3]), out(v, n[4], n[5]));
            let mut head = AttentionInPlace {
                q,
                k,
                v,
                starts: None,
                window: None,
                scale: a.scale,
                dropout: None,
            };
            let (o, d) = (mat(&ZEROS, n[6], n[7]), mat(&ZEROS, n[8], n[9]));
            let lse = &ZEROS[..n[10]];
            kernels.attention_backward_in_place(&mut head, o, lse, d, &mut scratch);
        };
        refuses_each(right, |n| in_place(n, 0));
        refused! {
            "short scratch, in place" => in_place(right, 1);
        }
        let shorter = Attention { q: mat(&ZEROS, 4, 4), ..a };
        refused! {
            "fewer queries than keys, backward" => {
                let mut data = [[0.0; 64]; 3];
                let [q, k, v] = &mut data;
                let mut grads = AttentionGrads {
                    dq: out(q, 4, 4), dk: out(k, 5, 4), dv: out(v, 5, 4)
                };
                let rows = mat(&ZEROS, 4, 4);
                let mut scratch = [0.0; 4096];
                let lse = &ZEROS[..4];
                kernels.attention_backward(&shorter, rows, lse, rows, &mut grads, &mut scratch);
            };
        }
        assert_eq!(kernels.attention_scratch_len(usize::MAX, 4), None);
        assert_eq!(kernels.attention_backward_scratch_len(usize::MAX, 4), None);
    });
}

/// There is one first key for each query, none before that of the query before, and none behind the
/// query's own.
#[test]
fn attention_checks_first_keys() {
    each_isa(|kernels| {
        let (n, size) = (40, 4);
        let refuses = |starts: &[u32], first: usize| {
            let (q, k) = (mat(&ZEROS, n, size), mat(&ZEROS, first + n, size));
            let starts = Some(starts);
            let a =
                Attention { q, k, v: k, first, starts, window: None, scale: 1.0, dropout: None };
            let (mut data, mut scratch) = ([[0.0; 160]; 3], vec![0.0; 1 << 16]);
            let lse = &ZEROS[..n];
            let views = |data: &mut [[f32; 160]; 3], test: &mut dyn FnMut([MatMut<'_>; 3])| {
                panics(|| test(data.each_mut().map(|data| out(data, n, size))))
            };
            let forward = views(&mut data, &mut |[y, ..]| {
                kernels.attention(&a, y, None, &mut scratch);
            });
            let backward = [
                views(&mut data, &mut |[dq, dk, dv]| {
                    let mut grads = AttentionGrads { dq, dk, dv };
                    kernels.attention_backward(&a, q, lse, q, &mut grads, &mut scratch);
                }),
                views(&mut data, &mut |[q_, k, v]| {
                    let mut head = AttentionInPlace {
                        q: q_,
                        k,
                        v,
                        starts,
                        window: None,
                        scale: 1.0,
                        dropout: None,
                    };
                    kernels.attention_backward_in_place(&mut head, q, lse, q, &mut scratch);
                }),
                views(&mut data, &mut |[dq, ..]| {
                    kernels.attention_backward_queries(&a, 0..n, q, lse, q, dq, &mut scratch);
                }),
                views(&mut data, &mut |[dk, dv, _]| {
                    kernels.attention_backward_keys(&a, 0..n, q, lse, q, dk, dv, &mut scratch);
                }),
            ];
            assert!(first > 0 || backward == [forward; 4], "{backward:?} and not {forward}");
            forward
        };
        for first in [0, 9] {
            let own: Vec<u32> = (first..first + n).map(|key| key as u32).collect();
            assert!(!refuses(&own, first) && !refuses(&[0; 40], first));
            for (at, wrong) in [(0, own[0] + 1), (39, own[39] + 1), (39, u32::MAX), (30, own[28])] {
                let mut starts = own.clone();
                starts[at] = wrong;
                assert!(refuses(&starts, first), "accepted key {wrong} for query {at}");
            }
            for len in [0, 1, 39, 41] {
                assert!(refuses(&vec![0; len], first), "accepted {len} first keys");
            }
        }
    });
}

#[test]
fn scratch_for_rows_is_enough_for_fewer_and_has_a_limit() {
    each_dtype(|kernels| {
        for k in [1, 17, KC - 1, KC, KC + 1, 768, 3072, 4 * 3072, 50_257] {
            let lens: Vec<usize> = (0..200).map(|m| kernels.gemm_scratch_len(m, k)).collect();
            assert!(lens.is_sorted(), "{} for rows of {k}: {lens:?}", kernels.set());
            assert!(lens[199] <= 128 * KC, "{} for rows of {k}", kernels.set());
        }
    });
}
