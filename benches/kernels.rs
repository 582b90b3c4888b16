//! Every kernel on the shapes of the reference workload, on one thread.
//!
//! First a table: each kernel's rate and, for products, its share of the
//! multiply-add peak, which is measured between the runs it is compared with. Then
//! the same under Criterion, where elements a second are floating-point operations.
//! `CLLM_ISA` forces an instruction set. Groups with `denormal` in their name
//! feed denormal numbers: they must not be many times slower.

use cllm_kernels::{
    AdamW, Attention, AttentionGrads, Dropout, Epilogue, Isa, Kernels, MatMut, MatRef, NormSaved,
    Packed,
};
use core::hint::black_box;
use core::time::Duration;
use criterion::{Criterion, Throughput};
use std::time::Instant;

/// What a kernel does in one call.
#[derive(Clone, Copy)]
enum Work {
    /// Floating-point operations of a product.
    Flops(u64),
    /// Bytes read and written by a pass over memory.
    Bytes(u64),
}

impl Work {
    fn amount(self) -> u64 {
        match self {
            Self::Flops(n) | Self::Bytes(n) => n,
        }
    }
}

struct Case {
    name: String,
    work: Work,
    run: Box<dyn FnMut()>,
}

impl Case {
    /// `run` once, so that one set of data serves all calls.
    fn new(name: impl Into<String>, work: Work, run: impl FnMut() + 'static) -> Self {
        Self { name: name.into(), work, run: Box::new(run) }
    }

    fn flops(name: impl Into<String>, flops: usize, run: impl FnMut() + 'static) -> Self {
        Self::new(name, Work::Flops(flops as u64), run)
    }

    fn floats(name: impl Into<String>, floats: usize, run: impl FnMut() + 'static) -> Self {
        Self::new(name, Work::Bytes(4 * floats as u64), run)
    }
}

/// `n` reproducible floats in -0.5..0.5 times `range`.
fn floats(n: usize, range: f32) -> Vec<f32> {
    let mut state = 1_u64;
    core::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * range
    })
    .take(n)
    .collect()
}

fn mat(data: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef::new(data, rows, cols, data.len() / rows)
}

fn out(data: &mut [f32], rows: usize, cols: usize) -> MatMut<'_> {
    let stride = data.len() / rows;
    MatMut::new(data, rows, cols, stride)
}

/// Packed products of a block of tokens, and the products of attention heads.
fn products(kernels: &'static Kernels, range: f32, cases: &mut Vec<Case>) {
    let shapes = [
        (96, 768, 256),
        (128, 768, 256),
        (128, 256, 256),
        (128, 1024, 256),
        (128, 256, 1024),
        (128, 5000, 256),
        (128, 256, 5000),
        (128, 128, 32),
        (128, 32, 128),
    ];
    for (m, n, k) in shapes {
        let (a, b, mut c) = (floats(m * k, range), floats(k * n, range), vec![0.0; m * n]);
        let mut packed = vec![0.0; kernels.packed_len(k, n).unwrap()];
        kernels.pack(mat(&b, k, n), &mut packed);
        cases.push(Case::flops(format!("gemm/{m}x{n}x{k}"), 2 * m * n * k, move || {
            let packed = Packed::new(&packed, k, n);
            kernels.gemm(mat(&a, m, k), packed, out(&mut c, m, n), false, Epilogue::None);
        }));
    }
    let (m, n, k) = (128, 1024, 256);
    let (a, b, mut c) = (floats(m * k, range), floats(k * n, range), vec![0.0; m * n]);
    let (mut packed, mut pre) = (vec![0.0; kernels.packed_len(k, n).unwrap()], vec![0.0; m * n]);
    kernels.pack(mat(&b, k, n), &mut packed);
    let mut target = packed.clone();
    cases.push(Case::flops(format!("gemm_gelu/{m}x{n}x{k}"), 2 * m * n * k, move || {
        let epilogue = Epilogue::Gelu { bias: None, pre: out(&mut pre, m, n) };
        let packed = Packed::new(&packed, k, n);
        kernels.gemm(mat(&a, m, k), packed, out(&mut c, m, n), false, epilogue);
    }));
    cases.push(Case::floats(format!("pack/{k}x{n}"), 2 * k * n, move || {
        kernels.pack(mat(&b, k, n), &mut target);
    }));
    let tokens = 4096;
    for (m, n, x_stride, dy_stride) in [(128, 256, 256, 1024), (128, 256, 1024, 256)] {
        let (x, dy) = (floats(tokens * x_stride, range), floats(tokens * dy_stride, range));
        let mut c = vec![0.0; m * n];
        let mut scratch = vec![0.0; kernels.gemm_scratch_len(m, n, tokens).unwrap()];
        let name = format!("weight_gradient/{m}x{n}x{tokens}, X of {x_stride}");
        cases.push(Case::flops(name, 2 * m * n * tokens, move || {
            let (x, dy) = (mat(&x, tokens, m), mat(&dy, tokens, n));
            kernels.gemm_unpacked(x.t(), dy, out(&mut c, m, n), false, &mut scratch);
        }));
    }
}

/// One head of 128 tokens. Counted are the products below the diagonal.
fn attention(kernels: &'static Kernels, range: f32, cases: &mut Vec<Case>) {
    let (n, head) = (128, 32);
    let inputs = [1.0, 2.0, 3.0, 4.0].map(|part: f32| floats(n * head, range * part));
    let again = inputs.clone();
    let (mut y, mut lse) = (vec![0.0; n * head], vec![0.0; n]);
    let mut scratch = vec![0.0; kernels.attention_scratch_len(n, head).unwrap()];
    let mut forward = move |y: &mut [f32], lse: &mut [f32]| {
        let [q, k, v, _] = inputs.each_ref().map(|x| mat(x, n, head));
        let a = Attention { q, k, v, first: 0, scale: 0.17, dropout: None };
        kernels.attention(&a, out(y, n, head), Some(lse), &mut scratch);
    };
    forward(&mut y, &mut lse);
    let (result, saved) = (y.clone(), lse.clone());
    let half = n * n * head;
    cases.push(Case::flops("attention/128x32", 2 * half, move || forward(&mut y, &mut lse)));
    let mut grads = [0; 3].map(|_| vec![0.0; n * head]);
    let mut scratch = vec![0.0; kernels.attention_backward_scratch_len(n, head).unwrap()];
    cases.push(Case::flops("attention_backward/128x32", 5 * half, move || {
        let [q, k, v, dout] = again.each_ref().map(|x| mat(x, n, head));
        let a = Attention { q, k, v, first: 0, scale: 0.17, dropout: None };
        let [dq, dk, dv] = grads.each_mut().map(|g| out(g, n, head));
        let mut grads = AttentionGrads { dq, dk, dv };
        let y = mat(&result, n, head);
        kernels.attention_backward(&a, y, &saved, dout, &mut grads, &mut scratch);
    }));
}

/// Norms, losses and embeddings over a block of 128 tokens.
fn rows(kernels: &'static Kernels, range: f32, cases: &mut Vec<Case>) {
    let (rows, cols, vocab) = (128, 256, 5000);
    let (x, gain) = (floats(rows * cols, range), floats(cols, 1.0));
    let mut y = vec![0.0; rows * cols];
    let (mut mean, mut rstd) = (vec![0.0; rows], vec![0.0; rows]);
    let mut forward = {
        let (x, gain) = (x.clone(), gain.clone());
        move |mean: &mut [f32], rstd: &mut [f32]| {
            let y = out(&mut y, rows, cols);
            kernels.layer_norm(mat(&x, rows, cols), &gain, None, 1e-5, y, mean, rstd);
        }
    };
    forward(&mut mean, &mut rstd);
    let (means, rstds) = (mean.clone(), rstd.clone());
    let size = rows * cols;
    cases.push(Case::floats("layer_norm", 2 * size, move || forward(&mut mean, &mut rstd)));
    let (dy, mut dx, mut dgain) = (floats(size, range), vec![0.0; size], vec![0.0; cols]);
    cases.push(Case::floats("layer_norm_backward", 3 * size, move || {
        let x = mat(&x, rows, cols);
        let saved = NormSaved { x, gain: &gain, mean: &means, rstd: &rstds };
        let (dy, dx) = (mat(&dy, rows, cols), out(&mut dx, rows, cols));
        kernels.layer_norm_backward(&saved, dy, dx, false, &mut dgain, None);
    }));
    let source = floats(rows * vocab, range);
    let (mut logits, mut losses) = (source.clone(), vec![0.0; rows]);
    let targets: Vec<u32> = (0..rows as u32).map(|i| i * 39).collect();
    cases.push(Case::floats("cross_entropy, with a copy", 4 * rows * vocab, move || {
        logits.copy_from_slice(&source);
        let view = out(&mut logits, rows, vocab);
        kernels.cross_entropy(view, &targets, &mut losses, Some(1e-3));
    }));
    let tokens: Vec<u32> = (0..rows as u32).map(|i| i * 37 % 5000).collect();
    let (table, places) = (floats(vocab * cols, range), floats(rows * cols, range));
    let (mut y, mut grads, words) = (vec![0.0; size], table.clone(), tokens.clone());
    cases.push(Case::floats("embedding", 3 * size, move || {
        kernels.embedding(&words, &table, &places, 0, rows, 0, out(&mut y, rows, cols));
    }));
    let dy = floats(size, range * 1e-3);
    cases.push(Case::floats("embedding_backward", 3 * size, move || {
        kernels.embedding_backward(&tokens, mat(&dy, rows, cols), &mut grads, 0);
    }));
}

/// Passes over 64 Ki floats: in the second-level cache.
fn passes(kernels: &'static Kernels, range: f32, cases: &mut Vec<Case>) {
    let n = 64 * 1024;
    let x = floats(n, range);
    let (a, mut b) = (x.clone(), x.clone());
    cases.push(Case::floats("gelu", 2 * n, move || kernels.gelu(&mut b, &a)));
    let (a, mut b) = (x.clone(), x.clone());
    cases.push(Case::floats("gelu_backward", 3 * n, move || kernels.gelu_backward(&mut b, &a)));
    let (a, mut b) = (floats(n, range * 1e-4), x.clone());
    cases.push(Case::floats("accumulate", 3 * n, move || kernels.accumulate(&mut b, &a)));
    let mut b = x.clone();
    cases.push(Case::floats("scale", 2 * n, move || kernels.scale(&mut b, -1.0)));
    let a = x.clone();
    cases.push(Case::floats("sum_squares", n, move || {
        black_box(kernels.sum_squares(&a));
    }));
    let (a, mut sum) = (x.clone(), vec![0.0; 256]);
    cases.push(Case::floats("column_sum", n, move || {
        kernels.column_sum(mat(&a, n / 256, 256), &mut sum, false);
    }));
    let (a, mut b) = (x.clone(), x.clone());
    let dropout = Dropout::new(0.1, 1, 2, 3).unwrap();
    cases.push(Case::floats("dropout", 2 * n, move || {
        kernels.dropout(mat(&a, n / 256, 256), out(&mut b, n / 256, 256), &dropout, 0);
    }));
    let (g, mut p, mut m) = (x.clone(), x.clone(), vec![0.0; n]);
    let mut v = m.clone();
    let h = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        decay: 0.1,
        correction1: 0.5,
        correction2: 0.5,
        grad_scale: 1.0,
    };
    cases.push(Case::floats("adamw", 7 * n, move || {
        kernels.adamw(&h, &mut p, &g, &mut m, &mut v);
    }));
}

/// All kernels on inputs of about `range`.
fn cases(kernels: &'static Kernels, range: f32) -> Vec<Case> {
    let mut cases = Vec::new();
    products(kernels, range, &mut cases);
    attention(kernels, range, &mut cases);
    rows(kernels, range, &mut cases);
    passes(kernels, range, &mut cases);
    cases
}

/// Inputs whose every element is denormal.
const DENORMAL: f32 = 1e-39;

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// Billions of units of work a second: the best of 15 runs of some milliseconds, for
/// whatever else the machine does can only slow a run down.
fn rate(case: &mut Case, between: &mut dyn FnMut()) -> f64 {
    let once = seconds(&mut case.run).min(seconds(&mut case.run)).max(1e-7);
    let calls = (2e-3 / once).ceil() as u64;
    let runs = (0..15).map(|_| {
        between();
        let time = seconds(|| (0..calls).for_each(|_| (case.run)()));
        (calls * case.work.amount()) as f64 / time / 1e9
    });
    runs.fold(0.0, f64::max)
}

/// The table: rates, shares of the peak, and how much slower denormals are.
fn summary(kernels: &'static Kernels) {
    let best = Kernels::detect();
    let peak = || {
        let mut flops = 0;
        let time = seconds(|| flops = black_box(best.fma_peak_pass(300_000)).0);
        flops as f64 / time / 1e9
    };
    let _ = peak();
    println!("kernels of {}, peak of {}", kernels.isa(), best.isa());
    for (mut case, mut tiny) in cases(kernels, 1.0).into_iter().zip(cases(kernels, DENORMAL)) {
        let mut most = 0.0;
        let usual = rate(&mut case, &mut || most = f64::max(most, peak()));
        let slower = usual / rate(&mut tiny, &mut || ());
        match case.work {
            Work::Flops(_) => println!(
                "{:40} {usual:7.1} GFLOP/s  {:5.1} % of {most:5.1}  denormal inputs {slower:4.1} x",
                case.name,
                100.0 * usual / most,
            ),
            Work::Bytes(_) => println!(
                "{:40} {usual:7.1} GB/s                     denormal inputs {slower:4.1} x",
                case.name
            ),
        }
    }
}

fn main() {
    let kernels = match std::env::var("CLLM_ISA") {
        Ok(name) => {
            let isa: Isa = name.parse().expect("CLLM_ISA: scalar, avx or avx2");
            Kernels::for_isa(isa).expect("CLLM_ISA: this CPU does not have it")
        }
        Err(_) => Kernels::detect(),
    };
    // Cargo passes --bench to measure; a test run only wants each to run once.
    if std::env::args().any(|arg| arg == "--bench") && !std::env::args().any(|arg| arg == "--list")
    {
        summary(kernels);
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(20)
        .configure_from_args();
    for (name, range) in [("kernels", 1.0), ("denormal", DENORMAL)] {
        let mut group = criterion.benchmark_group(format!("{name}/{}", kernels.isa()));
        for mut case in cases(kernels, range) {
            group.throughput(match case.work {
                Work::Flops(n) => Throughput::Elements(n),
                Work::Bytes(n) => Throughput::Bytes(n),
            });
            group.bench_function(case.name.as_str(), |b| b.iter(|| (case.run)()));
        }
        group.finish();
    }
    criterion.final_summary();
}
