//! Causal attention against its definition, its gradients against differences.
#![allow(clippy::needless_range_loop, reason = "indices read like the formulas")]

mod common;

use cllm_kernels::{Attention, AttentionGrads, AttentionInPlace, Dropout, Dtype, Kernels};
use common::{Grid, Rng, assert_close, each_dtype, operand, reference, tolerance};
use reference::Head;

#[derive(Clone, Copy, Debug)]
struct Shape {
    queries: usize,
    keys: usize,
    head: usize,
    first: usize,
    dropout: bool,
}

impl Shape {
    /// A whole sequence, as the backward pass wants it.
    fn square(n: usize, head: usize, dropout: bool) -> Self {
        Self { queries: n, keys: n, head, first: 0, dropout }
    }
}

const MASK_ROW: u32 = 77;

fn dropout(shape: Shape) -> Option<(Dropout, u32)> {
    shape.dropout.then(|| (Dropout::new(0.25, 5, 9, 4).unwrap(), MASK_ROW))
}

/// The factors of the probabilities, `queries x keys`.
fn masks(shape: Shape) -> Vec<f64> {
    let mut all = Vec::new();
    for i in 0..shape.queries {
        let mut row = vec![1.0; shape.keys];
        if let Some((dropout, first)) = dropout(shape) {
            dropout.fill_mask(first + i as u32, 0, &mut row);
        }
        all.extend(row.into_iter().map(f64::from));
    }
    all
}

struct Inputs {
    q: Grid,
    k: Grid,
    v: Grid,
}

impl Inputs {
    fn new(rng: &mut Rng, shape: Shape, range: f32) -> Self {
        let mut q = Grid::random(rng, shape.queries, shape.head);
        let values = q.values();
        q.fill(|i, j| values[i * shape.head + j] * range);
        let k = Grid::random(rng, shape.keys, shape.head);
        let v = Grid::random(rng, shape.keys, shape.head);
        Self { q, k, v }
    }

    fn attention(&self, shape: Shape) -> Attention<'_> {
        Attention {
            q: self.q.view(),
            k: self.k.view(),
            v: self.v.view(),
            first: shape.first,
            starts: None,
            window: None,
            scale: scale(shape),
            dropout: dropout(shape),
        }
    }
}

/// What products take the elements for.
fn operands(kernels: &Kernels, grid: &Grid) -> Vec<f64> {
    grid.values().into_iter().map(|x| operand(kernels.dtype(), x)).collect()
}

fn scale(shape: Shape) -> f32 {
    1.0 / (shape.head as f32).sqrt()
}

/// Runs `test` with the reference's description of `shape`.
fn with_head<T>(shape: Shape, test: impl FnOnce(&Head<'_>) -> T) -> T {
    let masks = masks(shape);
    let mask = |i: usize, j: usize| masks[i * shape.keys + j];
    test(&Head {
        queries: shape.queries,
        keys: shape.keys,
        head: shape.head,
        first: shape.first,
        start: &|_| 0,
        scale: f64::from(scale(shape)),
        mask: &mask,
    })
}

/// The forward pass, checked in full; returns what the backward pass wants.
fn forward(kernels: &Kernels, shape: Shape, inputs: &Inputs, rng: &mut Rng) -> (Grid, Grid) {
    let what = format!("{kernels:?} {shape:?}");
    let mut out = Grid::blank_somewhere(rng, shape.queries, shape.head);
    let mut lse = Grid::blank(1, shape.queries, 0, 1 + rng.below(7));
    let need = kernels.attention_scratch_len(shape.keys, shape.head).unwrap();
    let mut scratch = Grid::blank(1, need, 0, 1 + rng.below(7));
    let (a, room) = (inputs.attention(shape), scratch.slice_mut());
    kernels.attention(&a, out.view_mut(), Some(lse.slice_mut()), room);
    for grid in [&out, &lse, &scratch] {
        grid.assert_frame(&what);
    }
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| operands(kernels, x));
    let exact = with_head(shape, |head| reference::attention(head, &q, &k, &v));
    let bound = |size| tolerance::attention(shape.keys, shape.head, exact.largest, size);
    let rounded = |size| bound(size) + tolerance::probabilities(kernels.dtype(), size);
    let masks = masks(shape);
    for i in 0..shape.queries {
        let at = format!("{what} query {i}");
        assert_close(lse.at(0, i), exact.lse[i], bound(1.0 + exact.lse[i].abs()), &at);
        for c in 0..shape.head {
            let size: f64 = (0..=shape.first + i)
                .map(|j| i * shape.keys + j)
                .map(|e| exact.p[e] * masks[e] * v[e % shape.keys * shape.head + c].abs())
                .sum();
            let e = i * shape.head + c;
            assert_close(out.at(i, c), exact.out[e], rounded(size), format!("{at} column {c}"));
        }
    }
    // Without the log-sum-exp the result is the same.
    let mut other = Grid::blank_somewhere(rng, shape.queries, shape.head);
    kernels.attention(&a, other.view_mut(), None, scratch.slice_mut());
    assert_eq!(other.bits(), out.bits(), "{what}: lse changes the result");
    (out, lse)
}

#[test]
fn forward_matches_the_definition() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(31);
        for n in [1, 2, 3, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 100, 257] {
            for head in [1, 3, 8, 17, 32, 65] {
                let shape = Shape::square(n, head, rng.coin());
                let inputs = Inputs::new(&mut rng, shape, 3.0);
                forward(kernels, shape, &inputs, &mut rng);
            }
        }
    });
}

#[test]
fn forward_with_a_cache_matches_the_definition() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(32);
        for first in [0, 1, 4, 7, 16, 64, 100] {
            for queries in [1, 2, 3, 5, 6, 9, 50] {
                // A cache may be longer than what is visible: the rest is stale.
                for spare in [0, 3] {
                    let keys = first + queries + spare;
                    let dropout = rng.below(4) == 0;
                    let head = rng.size(33);
                    let shape = Shape { queries, keys, head, first, dropout };
                    let mut inputs = Inputs::new(&mut rng, shape, 2.0);
                    for row in first + queries..keys {
                        for c in 0..head {
                            inputs.k.set(row, c, f32::NAN);
                            inputs.v.set(row, c, f32::INFINITY);
                        }
                    }
                    forward(kernels, shape, &inputs, &mut rng);
                }
            }
        }
    });
}

#[test]
fn large_scores_do_not_overflow() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(33);
        for (queries, first) in [(20, 0), (1, 19), (3, 10)] {
            let shape = Shape { queries, keys: first + queries, head: 8, first, dropout: false };
            let inputs = Inputs::new(&mut rng, shape, 1000.0);
            forward(kernels, shape, &inputs, &mut rng);
        }
    });
}

#[test]
fn gradients_match_formulas_and_differences() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(34);
        for n in [1, 2, 3, 5, 6, 7, 9, 16, 17, 33, 65, 100, 257] {
            for head in [1, 3, 8, 17, 32] {
                let shape = Shape::square(n, head, rng.coin());
                check_gradients(kernels, shape, &mut rng);
            }
        }
        // More than one block of keys: 384.
        for (n, head, dropout) in [(385, 5, false), (421, 20, true), (790, 33, false)] {
            check_gradients(kernels, Shape::square(n, head, dropout), &mut rng);
        }
        check_gradients(kernels, Shape::square(12, 8, true), &mut rng);
        check_gradients(kernels, Shape::square(12, 8, false), &mut rng);
    });
}

fn check_gradients(kernels: &Kernels, shape: Shape, rng: &mut Rng) {
    let (n, head) = (shape.keys, shape.head);
    let what = format!("{kernels:?} {shape:?}");
    let inputs = Inputs::new(rng, shape, 2.0);
    let (out, lse) = forward(kernels, shape, &inputs, rng);
    let dout = Grid::random(rng, n, head);
    let mut blank = || Grid::blank_somewhere(rng, n, head);
    let (mut dq, mut dk, mut dv) = (blank(), blank(), blank());
    let need = kernels.attention_backward_scratch_len(n, head).unwrap();
    let mut scratch = Grid::blank(1, need, 0, 1 + rng.below(7));
    let mut grads = AttentionGrads { dq: dq.view_mut(), dk: dk.view_mut(), dv: dv.view_mut() };
    kernels.attention_backward(
        &inputs.attention(shape),
        out.view(),
        lse.slice(),
        dout.view(),
        &mut grads,
        scratch.slice_mut(),
    );
    let mut in_place = [&inputs.q, &inputs.k, &inputs.v].map(|input| {
        let mut copy = Grid::blank_somewhere(rng, n, head);
        copy.fill(|i, j| input.at(i, j));
        copy
    });
    let [q, k, v] = in_place.each_mut().map(Grid::view_mut);
    let Attention { scale, dropout, .. } = inputs.attention(shape);
    kernels.attention_backward_in_place(
        &mut AttentionInPlace { q, k, v, starts: None, window: None, scale, dropout },
        out.view(),
        lse.slice(),
        dout.view(),
        scratch.slice_mut(),
    );
    for (place, grad) in in_place.iter().zip([&dq, &dk, &dv]) {
        place.assert_frame(&what);
        assert_eq!(place.bits(), grad.bits(), "{what}: in place");
    }
    let [mut q, mut k, mut v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| operands(kernels, x));
    let weights = operands(kernels, &dout);
    with_head(shape, |h| {
        let exact = reference::attention_backward(h, &q, &k, &v, &weights);
        let largest = reference::attention(h, &q, &k, &v).largest;
        let bound = |size| {
            let rounded = tolerance::attention_gradients(kernels.dtype(), size);
            tolerance::attention(n, head, largest, size) + rounded
        };
        for (name, grid, (values, sizes)) in
            [("dq", &dq, &exact.dq), ("dk", &dk, &exact.dk), ("dv", &dv, &exact.dv)]
        {
            grid.assert_frame(&what);
            for e in 0..n * head {
                let at = format!("{what} {name} ({}, {})", e / head, e % head);
                assert_close(grid.at(e / head, e % head), values[e], bound(sizes[e]), at);
            }
        }
        scratch.assert_frame(&what);
        if n > 17 || head > 8 {
            return;
        }
        let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
            let out = reference::attention(h, q, k, v).out;
            out.iter().zip(&weights).map(|(x, w)| x * w).sum()
        };
        for e in 0..n * head {
            let (i, c) = (e / head, e % head);
            let slack = |size: f64| bound(size) + tolerance::DIFFERENCES;
            let (k0, v0) = (k.clone(), v.clone());
            let slope = reference::difference(&mut q, e, |q| loss(q, &k0, &v0));
            assert_close(dq.at(i, c), slope, slack(exact.dq.1[e]), format!("{what} dq {i} {c}"));
            let q0 = q.clone();
            let slope = reference::difference(&mut k, e, |k| loss(&q0, k, &v0));
            assert_close(dk.at(i, c), slope, slack(exact.dk.1[e]), format!("{what} dk {i} {c}"));
            let slope = reference::difference(&mut v, e, |v| loss(&q0, &k0, v));
            assert_close(dv.at(i, c), slope, slack(exact.dv.1[e]), format!("{what} dv {i} {c}"));
        }
    });
}

#[test]
fn repeated_calls_give_the_same_bits_whatever_scratch_held() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(35);
        let shape = Shape::square(65, 17, true);
        let inputs = Inputs::new(&mut rng, shape, 2.0);
        let dout = Grid::random(&mut rng, 65, 17);
        let mut first: Option<[Vec<u32>; 4]> = None;
        for fill in [0.0, f32::NAN, 1e30] {
            let mut out = Grid::blank(65, 17, 0, 1);
            let mut lse = vec![0.0; 65];
            let need = kernels.attention_backward_scratch_len(65, 17).unwrap();
            let mut scratch = vec![fill; need.max(kernels.attention_scratch_len(65, 17).unwrap())];
            let a = inputs.attention(shape);
            kernels.attention(&a, out.view_mut(), Some(&mut lse), &mut scratch);
            scratch.fill(fill);
            let mut grads = [1, 2, 3].map(|offset| Grid::blank(65, 17, offset, offset));
            let [dq, dk, dv] = &mut grads;
            let mut views =
                AttentionGrads { dq: dq.view_mut(), dk: dk.view_mut(), dv: dv.view_mut() };
            let (o, d) = (out.view(), dout.view());
            kernels.attention_backward(&a, o, &lse, d, &mut views, &mut scratch);
            let bits = [out.bits(), grads[0].bits(), grads[1].bits(), grads[2].bits()];
            assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits, "{kernels:?}");
        }
    });
}

/// Scratch for many keys must do for fewer, for a cache grows within memory that was planned
/// once.
#[test]
fn scratch_for_many_keys_does_for_fewer() {
    each_dtype(|kernels| {
        for head in [3, 16, 64] {
            let mut most = 0;
            for keys in 1..9000 {
                let len = kernels.attention_scratch_len(keys, head).unwrap();
                assert!(len >= most, "{kernels:?}: {keys} keys of {head} need less than fewer");
                most = len;
            }
        }
    });
}

/// Heads of one panel and of several, with an edge and without.
#[test]
fn wide_heads_match_the_definition() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(37);
        for head in [7, 33, 64, 128] {
            for n in [11, 26, 49, 97, 128] {
                check_gradients(kernels, Shape::square(n, head, rng.below(4) == 0), &mut rng);
            }
        }
    });
}

/// Whether the CPU multiplies bf16 or converts it, operands are rounded at the same places:
/// results are much nearer to one another than to those of `f32`.
#[test]
fn bf16_is_one_arithmetic() {
    let distance = |a: &Grid, b: &Grid| {
        let square = |x: f64| x * x;
        a.wide().iter().zip(b.wide()).map(|(a, b)| square(a - b)).sum::<f64>().sqrt()
    };
    let scalar = Kernels::scalar();
    each_dtype(|kernels| {
        if kernels.dtype() == Dtype::F32 {
            return;
        }
        for (n, head) in [(1, 64), (7, 32), (128, 32), (75, 33)] {
            let shape = Shape::square(n, head, false);
            let [a, b, c] = [kernels, scalar.converting(), scalar].map(|kernels| {
                let mut rng = Rng::new(38);
                let inputs = Inputs::new(&mut rng, shape, 2.0);
                let dout = Grid::random(&mut rng, n, head);
                let (out, lse) = forward(kernels, shape, &inputs, &mut rng);
                let mut grads = [0; 3].map(|_| Grid::blank(n, head, 0, 0));
                let [dq, dk, dv] = grads.each_mut().map(Grid::view_mut);
                let need = kernels.attention_backward_scratch_len(n, head).unwrap();
                kernels.attention_backward(
                    &inputs.attention(shape),
                    out.view(),
                    lse.slice(),
                    dout.view(),
                    &mut AttentionGrads { dq, dk, dv },
                    &mut vec![0.0; need],
                );
                let [dq, dk, dv] = grads;
                [out, dq, dk, dv]
            });
            for (i, name) in ["out", "dq", "dk", "dv"].into_iter().enumerate() {
                let (apart, rounding) = (distance(&a[i], &b[i]), distance(&b[i], &c[i]));
                let what = format!("{kernels:?} {n}x{head} {name}: {apart:e} and {rounding:e}");
                // One query has one key: its probability is 1, and the score has no gradient.
                assert!(rounding > 0.0 || n == 1, "{what}");
                assert!(apart <= 0.2 * rounding || n == 1 && apart < 1e-6, "{what}");
            }
        }
    });
}

/// So many keys that probabilities of 48 queries no longer fit in the backward pass's block;
/// and long rows of scores against a cache.
#[test]
fn long_contexts_match_the_definition() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(36);
        for (first, queries) in [(2700, 40), (4000, 30), (8200, 14)] {
            let keys = first + queries;
            let shape = Shape { queries, keys, head: 3, first, dropout: false };
            let inputs = Inputs::new(&mut rng, shape, 2.0);
            forward(kernels, shape, &inputs, &mut rng);
        }
    });
}
