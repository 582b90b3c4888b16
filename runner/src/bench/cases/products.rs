//! Products: of the forward pass, of its inputs' gradients, of weights' gradients, and
//! those inside attention.

use super::super::lines::Lines;
use super::{Case, FORWARD, HEAD, LONG, ROWS, SEQUENCE, TOKENS, VOCAB, WIDTH, floats, mat, out};
use cllm_core::Kernels;
use cllm_kernels::{Attention, AttentionGrads, Epilogue, Packed};

/// What is fused to a product.
#[derive(Clone, Copy)]
enum Fused {
    None,
    Bias,
    Gelu,
    Residual,
    GeluGrad,
}

/// Rows of logits that exist at one time.
const HEAD_ROWS: usize = 768;

/// Name, inner size, columns, epilogue.
type Product = (&'static str, usize, usize, Fused);

const FORWARD_PASS: [Product; 5] = [
    ("qkv", WIDTH, 3 * WIDTH, Fused::Bias),
    ("attention out", WIDTH, WIDTH, Fused::Residual),
    ("fc", WIDTH, FORWARD, Fused::Gelu),
    ("mlp out", FORWARD, WIDTH, Fused::Residual),
    ("head", WIDTH, VOCAB, Fused::None),
];

const INPUT_GRADIENTS: [Product; 5] = [
    ("d qkv", 3 * WIDTH, WIDTH, Fused::None),
    ("d attention out", WIDTH, WIDTH, Fused::None),
    ("d fc", FORWARD, WIDTH, Fused::None),
    ("d mlp out", WIDTH, FORWARD, Fused::GeluGrad),
    ("d head", VOCAB, WIDTH, Fused::None),
];

pub(super) fn visit(kernels: &'static Kernels, range: f32, see: &mut dyn FnMut(Case)) {
    for product in FORWARD_PASS.into_iter().chain(INPUT_GRADIENTS) {
        see(gemm(kernels, range, product));
    }
    see(pack(kernels, range));
    // The head's gradient is made from the rows of logits that exist at one time.
    for (name, tokens, inputs, outputs) in [
        ("fc", TOKENS, WIDTH, FORWARD),
        ("mlp out", TOKENS, FORWARD, WIDTH),
        ("head", HEAD_ROWS, VOCAB, WIDTH),
    ] {
        see(weight_gradient(kernels, range, name, tokens, inputs, outputs));
    }
    for shape in [(SEQUENCE, HEAD), LONG] {
        attention(kernels, range, shape, see);
    }
}

/// A row block times packed weights.
fn gemm(kernels: &'static Kernels, range: f32, (name, k, n, fused): Product) -> Case {
    let m = ROWS;
    let (a, b, mut c) = (floats(m * k, range), floats(k * n, range), Lines::zeros(m * n));
    let mut packed = Lines::zeros(kernels.packed_len(k, n).unwrap_or(0));
    kernels.pack(mat(&b, k, n), &mut packed);
    let (bias, mut other) = (floats(n, range), floats(m * n, range));
    let mut scratch = Lines::zeros(kernels.gemm_scratch_len(m, k));
    Case::flops(format!("gemm/{name} {m}x{n}x{k}"), kernels.dtype(), 2 * m * n * k, move || {
        let epilogue = match fused {
            Fused::None => Epilogue::None,
            Fused::Bias => Epilogue::Bias(&bias),
            Fused::Gelu => Epilogue::Gelu { bias: Some(&bias), pre: out(&mut other, m, n).into() },
            Fused::Residual => {
                Epilogue::Residual { bias: Some(&bias), residual: mat(&other, m, n), dropout: None }
            }
            Fused::GeluGrad => Epilogue::GeluGrad { pre: out(&mut other, m, n).into() },
        };
        let packed = Packed::new(&packed, k, n);
        let (a, c) = (mat(&a, m, k), out(&mut c, m, n));
        kernels.gemm(a, packed, c, false, epilogue, &mut scratch);
    })
}

/// Weights into panels.
fn pack(kernels: &'static Kernels, range: f32) -> Case {
    let (k, n) = (WIDTH, WIDTH);
    let b = floats(k * n, range);
    let mut packed = Lines::zeros(kernels.packed_len(k, n).unwrap_or(0));
    Case::cache(format!("pack/{k}x{n}"), 2 * k * n, move || {
        kernels.pack(mat(&b, k, n), &mut packed);
    })
}

/// A tile of `dW = X^T dY` over all tokens.
fn weight_gradient(
    kernels: &'static Kernels,
    range: f32,
    name: &str,
    tokens: usize,
    inputs: usize,
    outputs: usize,
) -> Case {
    let (m, n) = (inputs.min(256), outputs.min(256));
    let (x, dy) = (floats(tokens * inputs, range), floats(tokens * outputs, range));
    let mut c = Lines::zeros(m * n);
    let mut scratch = Lines::zeros(kernels.unpacked_scratch_len(m, n, tokens).unwrap_or(0));
    let (flops, name) = (2 * m * n * tokens, format!("weight gradient/{name} {m}x{n}x{tokens}"));
    Case::flops(name, kernels.dtype(), flops, move || {
        let (x, dy) = (mat(&x, tokens, m), mat(&dy, tokens, n));
        kernels.gemm_unpacked(x.t(), dy, out(&mut c, m, n), false, &mut scratch);
    })
}

/// One head of a sequence. Counted are the products on and below the diagonal.
fn attention(
    kernels: &'static Kernels,
    range: f32,
    (n, head): (usize, usize),
    see: &mut dyn FnMut(Case),
) {
    let scale = 1.0 / (head as f32).sqrt();
    let inputs = [1.0, 2.0, 3.0, 4.0].map(|part: f32| floats(n * head, range * part));
    let again = inputs.clone();
    let (mut y, mut lse) = (Lines::zeros(n * head), Lines::zeros(n));
    let mut scratch = Lines::zeros(kernels.attention_scratch_len(n, head).unwrap_or(0));
    let mut forward = move |y: &mut [f32], lse: &mut [f32]| {
        let [q, k, v, _] = inputs.each_ref().map(|x| mat(x, n, head));
        let a = Attention { q, k, v, first: 0, starts: None, window: None, scale, dropout: None };
        kernels.attention(&a, out(y, n, head), Some(lse), &mut scratch);
    };
    forward(&mut y, &mut lse);
    let (result, saved) = (y.clone(), lse.clone());
    // Half of the T x T products: two forward, five backward.
    let half = n * n * head;
    let name = format!("attention/{n}x{head}");
    see(Case::flops(name, kernels.dtype(), 2 * half, move || forward(&mut y, &mut lse)));
    let mut grads = [0; 3].map(|_| Lines::zeros(n * head));
    let mut scratch = Lines::zeros(kernels.attention_backward_scratch_len(n, head).unwrap_or(0));
    let name = format!("attention backward/{n}x{head}");
    see(Case::flops(name, kernels.dtype(), 5 * half, move || {
        let [q, k, v, dout] = again.each_ref().map(|x| mat(x, n, head));
        let a = Attention { q, k, v, first: 0, starts: None, window: None, scale, dropout: None };
        let [dq, dk, dv] = grads.each_mut().map(|g| out(g, n, head));
        let mut grads = AttentionGrads { dq, dk, dv };
        let y = mat(&result, n, head);
        kernels.attention_backward(&a, y, &saved, dout, &mut grads, &mut scratch);
    }));
}
