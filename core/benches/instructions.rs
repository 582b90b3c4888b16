//! Fixed pieces of work, whose instructions `benches/instructions.sh` counts under callgrind.
//!
//! Instructions do not depend on the machine's load or clock, so a few percent more show at
//! once what a measurement of time would hide in noise. They are no measure of speed: of two
//! kernels the one with more instructions may well be faster.
//!
//! Every case runs once to warm up and once inside of [`counted`], on which the script has the
//! counter start, stop and write a file; the names of the cases go to standard output in that
//! order. Run without valgrind, it runs every case twice and counts nothing.

#[path = "../../tests/support/memory.rs"]
#[allow(dead_code, reason = "each user has its part")]
mod memory;

use cllm_core::ring::{Ring, Slot};
use cllm_core::{
    Architecture, Batch, BatchShape, Dtype, Engine, Isa, Kernels, Mode, ModelConfig, Optimizer,
    Plan, Spin, Trainer,
};
use cllm_kernels::{
    AdamW, Attention, AttentionGrads, Dither, Dropout, Epilogue, MatMut, MatRef, Moments8,
    NormSaved, Packed, Sgd,
};
use core::hint::black_box;
use memory::Memory;

/// Valgrind knows no AVX-512.
const ISAS: [Isa; 2] = [Isa::Scalar, Isa::Avx2];

fn main() {
    for isa in ISAS {
        let Some(kernels) = Kernels::for_isa(isa) else {
            eprintln!("instructions: passed over {isa}, which this CPU does not have");
            continue;
        };
        // Counts are the same on CPUs of every maker.
        let kernels = kernels.with_packing(false);
        products(kernels);
        attention(kernels);
        rows(kernels);
        arrays(kernels);
        steps(kernels);
    }
    ring();
}

/// One case: `work` to warm up, then `work` that is counted.
fn case(name: &str, mut work: impl FnMut()) {
    println!("{name}");
    work();
    counted(&mut work);
}

/// What the script finds by its name.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    black_box(work)();
}

/// `n` reproducible floats in -0.5..0.5.
fn floats(n: usize) -> Vec<f32> {
    let mut state = 1_u64;
    core::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    })
    .take(n)
    .collect()
}

fn zeros(n: usize) -> Vec<f32> {
    vec![0.0; n]
}

/// Products whose every loop has a remainder.
fn products(kernels: &'static Kernels) {
    let (m, n, k) = (94, 250, 130);
    let (a, b, bias) = (floats(m * k), floats(n * k), floats(n));
    let (mut c, mut pre) = (zeros(m * n), zeros(m * n));
    for (name, kernels) in [("gemm", kernels), ("gemm/bf16", kernels.with_dtype(Dtype::Bf16))] {
        let mut packed = zeros(kernels.packed_len(k, n).unwrap_or(0));
        let mut scratch = zeros(kernels.gemm_scratch_len(m, k));
        let set = kernels.isa();
        case(&format!("{set}/{name}/pack"), || kernels.pack(MatRef::new(&b, k, n, n), &mut packed));
        let across = MatRef::new(&b, n, k, k).t();
        case(&format!("{set}/{name}/pack across"), || kernels.pack(across, &mut packed));
        let mut product = |name: &str, is_fused: bool| {
            case(name, || {
                let epilogue = if is_fused {
                    Epilogue::Gelu { bias: Some(&bias), pre: MatMut::new(&mut pre, m, n, n).into() }
                } else {
                    Epilogue::None
                };
                let (a, c) = (MatRef::new(&a, m, k, k), MatMut::new(&mut c, m, n, n));
                kernels.gemm(a, Packed::new(&packed, k, n), c, false, epilogue, &mut scratch);
            });
        };
        product(&format!("{set}/{name}"), false);
        product(&format!("{set}/{name}/bias and gelu"), true);
        let mut scratch = zeros(kernels.unpacked_scratch_len(m, n, k).unwrap_or(0));
        let packing = kernels.with_packing(true);
        let differs = kernels.dtype() == Dtype::F32 && !core::ptr::eq(packing, kernels);
        let packing = differs.then_some(("both packed", packing));
        for (what, kernels) in [Some(("both unpacked", kernels)), packing].into_iter().flatten() {
            case(&format!("{set}/{name}/{what}"), || {
                let (a, b) = (MatRef::new(&a, k, m, m).t(), MatRef::new(&b, k, n, n));
                kernels.gemm_unpacked(a, b, MatMut::new(&mut c, m, n, n), true, &mut scratch);
            });
        }
    }
}

fn attention(kernels: &'static Kernels) {
    let (tokens, head, isa) = (100, 32, kernels.isa());
    let inputs = [(); 4].map(|()| floats(tokens * head));
    let [q, k, v, dout] = inputs.each_ref().map(|x| MatRef::new(x, tokens, head, head));
    let a = Attention { q, k, v, first: 0, starts: None, window: None, scale: 0.18, dropout: None };
    let (mut y, mut lse) = (zeros(tokens * head), zeros(tokens));
    let mut scratch = zeros(kernels.attention_scratch_len(tokens, head).unwrap_or(0));
    case(&format!("{isa}/attention"), || {
        let y = MatMut::new(&mut y, tokens, head, head);
        kernels.attention(&a, y, Some(&mut lse), &mut scratch);
    });
    let y = MatRef::new(&y, tokens, head, head);
    let mut scratch = zeros(kernels.attention_backward_scratch_len(tokens, head).unwrap_or(0));
    let mut grads = [(); 3].map(|()| zeros(tokens * head));
    case(&format!("{isa}/attention backward"), || {
        let [dq, dk, dv] = grads.each_mut().map(|g| MatMut::new(g, tokens, head, head));
        let mut grads = AttentionGrads { dq, dk, dv };
        kernels.attention_backward(&a, y, &lse, dout, &mut grads, &mut scratch);
    });
}

fn rows(kernels: &'static Kernels) {
    let (rows, cols, vocab, isa) = (20, 250, 1000, kernels.isa());
    let size = rows * cols;
    let (x, gain, bias) = (floats(size), floats(cols), floats(cols));
    let x = MatRef::new(&x, rows, cols, cols);
    let (mut y, mut mean, mut rstd) = (zeros(size), zeros(rows), zeros(rows));
    case(&format!("{isa}/layer norm"), || {
        let y = MatMut::new(&mut y, rows, cols, cols);
        kernels.layer_norm(x, &gain, Some(&bias), 1e-5, y, Some(&mut mean), &mut rstd);
    });
    let (mut dgain, mut dbias) = (zeros(cols), zeros(cols));
    let saved = NormSaved { x, gain: &gain, mean: Some(&mean), rstd: &rstd };
    case(&format!("{isa}/layer norm backward"), || {
        let y = MatMut::new(&mut y, rows, cols, cols);
        kernels.layer_norm_backward(&saved, x, y, false, &mut dgain, Some(&mut dbias));
    });
    let ids: Vec<u32> = (0..rows as u32).map(|i| i * 37 % vocab as u32).collect();
    let (mut logits, mut losses) = (floats(rows * vocab), zeros(rows));
    case(&format!("{isa}/cross-entropy and gradient"), || {
        let logits = MatMut::new(&mut logits, rows, vocab, vocab);
        kernels.cross_entropy(logits, &ids, &mut losses, Some(1.0), None);
    });
    let (mut table, places) = (floats(vocab * cols), floats(rows * cols));
    case(&format!("{isa}/embedding"), || {
        let y = MatMut::new(&mut y, rows, cols, cols);
        kernels.embedding(&ids, &table, Some(&places), 0, rows, 0, y);
    });
    case(&format!("{isa}/embedding backward"), || {
        kernels.embedding_backward(&ids, x, &mut table, 0);
    });
    case(&format!("{isa}/column sum"), || kernels.column_sum(x, &mut dgain, false));
    if let Some(dropout) = Dropout::new(0.1, 1, 2, 3) {
        case(&format!("{isa}/dropout"), || {
            kernels.dropout(x, MatMut::new(&mut y, rows, cols, cols), &dropout, 0);
        });
    }
}

fn arrays(kernels: &'static Kernels) {
    let (n, isa) = (5003, kernels.isa());
    let (a, mut b) = (floats(n), floats(n));
    case(&format!("{isa}/gelu"), || kernels.gelu(&mut b, &a));
    case(&format!("{isa}/gelu backward"), || kernels.gelu_backward(&mut b, &a));
    case(&format!("{isa}/accumulate"), || kernels.accumulate(&mut b, &a));
    case(&format!("{isa}/scale"), || kernels.scale(&mut b, -1.0));
    case(&format!("{isa}/sum of squares"), || {
        black_box(kernels.sum_squares(&a));
    });
    let (mut p, mut m, mut v) = (floats(n), zeros(n), zeros(n));
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
    case(&format!("{isa}/adamw"), || kernels.adamw(&rule, &mut p, &a, &mut m, &mut v));
    let (mut first, mut second, mut scales) = (vec![0; n], vec![0; n], zeros(2 * n.div_ceil(64)));
    case(&format!("{isa}/adamw, moments of 8 bits"), || {
        let moments = Moments8 { first: &mut first, second: &mut second, scales: &mut scales };
        kernels.adamw8(&rule, Dither::new(3, 0), &mut p, &a, moments);
    });
    let rule = Sgd { lr: 1e-3, decay: 0.1, grad_scale: 1.0 };
    case(&format!("{isa}/sgd"), || kernels.sgd(&rule, &mut p, &a));
    case(&format!("{isa}/momentum"), || kernels.momentum(&rule, 0.9, &mut p, &a, &mut m));
}

/// A training step of a small model by one worker, with and without its arithmetic.
fn steps(kernels: &'static Kernels) {
    let config = ModelConfig {
        vocab_size: 64,
        block_size: 48,
        n_layer: 2,
        n_head: 2,
        d_model: 32,
        d_ff: 128,
        bias: true,
        tied: true,
        dropout: 0.0,
        norm_eps: 1e-5,
        arch: Architecture::GPT2,
    };
    let batch = BatchShape { sequences: 4, tokens: 48 };
    let isa = kernels.isa();
    let plan = Plan::new(&config, batch, 1, Mode::Train, kernels).expect("the plan is sound");
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).expect("the memory is the plan's");
    case(&format!("{isa}/step that computes nothing"), || {
        black_box(engine.drill_step(&Spin).expect("nothing fails in it"));
    });
    let trainer = Trainer::new(&plan, kernels, pools, &engine, 7);
    let mut trainer = trainer.expect("memory and engine are of this plan");
    trainer.initialise();
    let ids = |of: u32| -> Vec<u32> {
        (0..plan.tokens() as u32).map(|i| (i * i + 5 * i + of) % 64).collect()
    };
    let (tokens, targets) = (ids(0), ids(1));
    let batch = Batch::new(&tokens, &targets);
    case(&format!("{isa}/training step"), || {
        black_box(trainer.accumulate(&batch, batch.counted()).expect("the step works"));
        trainer.update(&Optimizer::default(), 3e-3).expect("the gradient is finite");
    });
}

fn ring() {
    let mut slots = [const { Slot::new() }; 5];
    let mut ring = Ring::new(&mut slots);
    let (mut producer, mut consumer) = ring.split();
    case("ring/push and pop 1000 times", || {
        for item in 0..1000_u64 {
            let pushed = producer.push(black_box(item));
            let _ = black_box((pushed, consumer.pop()));
        }
    });
}
