//! Passes over memory: norms, losses, embeddings, activations, the optimizer.

use super::super::lines::Lines;
use super::{Case, ROWS, SEQUENCE, VOCAB, WIDTH, Work, floats, mat, out};
use cllm_core::Kernels;
use cllm_kernels::{AdamW, Dither, Dropout, MOMENTS_BLOCK, Moments8, NormSaved, Sgd};
use core::hint::black_box;

/// Floats of an array in a core's own cache: four of them are 256 KiB.
const SMALL: usize = 16 * 1024;
/// Floats of an array that no cache holds: 32 MiB.
const LARGE: usize = 8 * 1024 * 1024;

pub(super) fn visit(kernels: &'static Kernels, range: f32, see: &mut dyn FnMut(Case)) {
    norms(kernels, range, see);
    cross_entropy(kernels, range, see);
    embeddings(kernels, range, see);
    activations(kernels, range, see);
    for (place, n, work) in [
        ("cache", SMALL, Work::Cache as fn(u64) -> Work),
        ("memory", LARGE, Work::Memory as fn(u64) -> Work),
    ] {
        arrays(kernels, range, place, n, work, see);
    }
}

fn norms(kernels: &'static Kernels, range: f32, see: &mut dyn FnMut(Case)) {
    let (rows, cols, size) = (ROWS, WIDTH, ROWS * WIDTH);
    let (x, gain, bias) = (floats(size, range), floats(cols, 1.0), floats(cols, 1.0));
    let mut y = Lines::zeros(size);
    let (mut mean, mut rstd) = (Lines::zeros(rows), Lines::zeros(rows));
    let mut forward = {
        let (x, gain) = (x.clone(), gain.clone());
        move |mean: &mut [f32], rstd: &mut [f32]| {
            let y = out(&mut y, rows, cols);
            kernels.layer_norm(mat(&x, rows, cols), &gain, Some(&bias), 1e-5, y, Some(mean), rstd);
        }
    };
    forward(&mut mean, &mut rstd);
    let (means, rstds) = (mean.clone(), rstd.clone());
    see(Case::cache("layer norm", 2 * size, move || forward(&mut mean, &mut rstd)));
    let (dy, mut dx) = (floats(size, range), Lines::zeros(size));
    let (mut dgain, mut dbias) = (Lines::zeros(cols), Lines::zeros(cols));
    see(Case::cache("layer norm backward", 3 * size, move || {
        let x = mat(&x, rows, cols);
        let saved = NormSaved { x, gain: &gain, mean: Some(&means), rstd: &rstds };
        let (dy, dx) = (mat(&dy, rows, cols), out(&mut dx, rows, cols));
        kernels.layer_norm_backward(&saved, dy, dx, false, &mut dgain, Some(&mut dbias));
    }));
}

fn cross_entropy(kernels: &'static Kernels, range: f32, see: &mut dyn FnMut(Case)) {
    // As few rows as stay in a cache of 512 KiB.
    let rows = 16;
    let mut logits = floats(rows * VOCAB, range);
    let mut losses = Lines::zeros(rows);
    let targets: Vec<u32> = (0..rows as u32).map(|i| i * 39).collect();
    let wanted = targets.clone();
    let mut fixed = logits.clone();
    // Two passes read the logits.
    see(Case::cache("cross-entropy", 2 * rows * VOCAB, move || {
        kernels.cross_entropy(out(&mut fixed, rows, VOCAB), &wanted, &mut losses, None, None);
    }));
    let mut losses = Lines::zeros(rows);
    // Gradients replace logits: the next call takes them for logits, which are as good.
    see(Case::cache("cross-entropy and gradient", 3 * rows * VOCAB, move || {
        let view = out(&mut logits, rows, VOCAB);
        kernels.cross_entropy(view, &targets, &mut losses, Some(1.0), None);
    }));
}

fn embeddings(kernels: &'static Kernels, range: f32, see: &mut dyn FnMut(Case)) {
    let (rows, size) = (ROWS, ROWS * WIDTH);
    let tokens: Vec<u32> = (0..rows as u32).map(|i| i * 37 % VOCAB as u32).collect();
    let (table, places) = (floats(VOCAB * WIDTH, range), floats(SEQUENCE * WIDTH, range));
    let (mut y, mut grads, words) = (Lines::zeros(size), table.clone(), tokens.clone());
    see(Case::cache("embedding", 3 * size, move || {
        let y = out(&mut y, rows, WIDTH);
        kernels.embedding(&words, &table, Some(&places), 0, SEQUENCE, 0, y);
    }));
    let dy = floats(size, range * 1e-3);
    see(Case::cache("embedding backward", 3 * size, move || {
        kernels.embedding_backward(&tokens, mat(&dy, rows, WIDTH), &mut grads, 0);
    }));
}

/// What a product's epilogue usually does, as passes of their own.
fn activations(kernels: &'static Kernels, range: f32, see: &mut dyn FnMut(Case)) {
    let n = SMALL;
    let x = floats(n, range);
    let (a, mut b) = (x.clone(), x.clone());
    see(Case::cache("gelu", 2 * n, move || kernels.gelu(&mut b, &a)));
    let (a, mut b) = (x.clone(), x.clone());
    see(Case::cache("gelu backward", 3 * n, move || kernels.gelu_backward(&mut b, &a)));
    let (a, mut sum) = (x.clone(), Lines::zeros(WIDTH));
    see(Case::cache("column sum", n, move || {
        kernels.column_sum(mat(&a, n / WIDTH, WIDTH), &mut sum, false);
    }));
    let Some(dropout) = Dropout::new(0.1, 1, 2, 3) else { return };
    let mut b = x.clone();
    see(Case::cache("dropout", 2 * n, move || {
        let (x, b) = (mat(&x, n / WIDTH, WIDTH), out(&mut b, n / WIDTH, WIDTH));
        kernels.dropout(x, b, &dropout, 0);
    }));
}

/// What gradients and the optimizer do to whole arenas.
fn arrays(
    kernels: &'static Kernels,
    range: f32,
    place: &str,
    n: usize,
    work: fn(u64) -> Work,
    see: &mut dyn FnMut(Case),
) {
    let mut case = |name: &str, arrays: usize, run: Box<dyn FnMut()>| {
        see(Case { name: format!("{name}/{place}"), work: work((4 * arrays * n) as u64), run });
    };
    let (a, mut b) = (floats(n, range * 1e-4), floats(n, range));
    case("accumulate", 3, Box::new(move || kernels.accumulate(&mut b, &a)));
    let mut b = floats(n, range);
    case("scale", 2, Box::new(move || kernels.scale(&mut b, -1.0)));
    let a = floats(n, range);
    // The kernel is for pieces of this size at most.
    let sum = move || a.chunks(SMALL).map(|piece| kernels.sum_squares(piece)).sum::<f32>();
    case(
        "sum of squares",
        1,
        Box::new(move || {
            black_box(sum());
        }),
    );
    let (g, mut p) = (floats(n, range), floats(n, range));
    let (mut m, mut v) = (Lines::zeros(n), Lines::zeros(n));
    let rule = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        decay: 0.1,
        correction1: 0.5,
        correction2: 0.5,
        grad_scale: 1.0,
    };
    case("adamw", 7, Box::new(move || kernels.adamw(&rule, &mut p, &g, &mut m, &mut v)));
    let (g, mut p) = (floats(n, range), floats(n, range));
    // Two bytes of codes are read and written for each value; its scales are next to nothing.
    let (mut first, mut second) = (vec![0; n], vec![0; n]);
    let mut scales = vec![0.0; 2 * n.div_ceil(MOMENTS_BLOCK)];
    case(
        "adamw, 8-bit moments",
        4,
        Box::new(move || {
            let moments = Moments8 { first: &mut first, second: &mut second, scales: &mut scales };
            kernels.adamw8(&rule, Dither::new(3, 0), &mut p, &g, moments);
        }),
    );
    let rule = Sgd { lr: 1e-3, decay: 0.1, grad_scale: 1.0 };
    let (g, mut p) = (floats(n, range), floats(n, range));
    case("sgd", 3, Box::new(move || kernels.sgd(&rule, &mut p, &g)));
    let (g, mut p, mut m) = (floats(n, range), floats(n, range), Lines::zeros(n));
    case("momentum", 5, Box::new(move || kernels.momentum(&rule, 0.9, &mut p, &g, &mut m)));
}
