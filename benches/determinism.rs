//! What it costs that a step has the same bits for any number of workers.
//!
//! Gradients of weights are where the order of additions could be given up: they are the
//! only large sums over all tokens. Three ways to make those of the reference workload
//! (4 layers and the output projection, 4,096 tokens), on as many threads as there are
//! CPUs, in turns:
//!
//! - `tiles`: the step's own way. A tile of a gradient goes over all tokens in order.
//!   The same bits for any number of threads.
//! - `copies`: each thread adds up gradients of its own, over the blocks of tokens that it
//!   happens to get, whole matrices at a time; the copies are added at the end.
//! - `arrival`: a tile's tokens are cut in two; each half is made apart and added under the
//!   tile's lock in the order of arrival.
//!
//! All other sums of a step (norms, biases, losses, squares) go over a fixed tree whose
//! cost is that of any tree. So the cost of determinism is that of `tiles` over the
//! faster of the others, as a share of a whole step, which is timed in the same turns.
//!
//! `cargo bench --bench determinism [-- ROUNDS]`

#[path = "../tests/support/mod.rs"]
mod support;

use cllm::pool::CALLER;
use cllm::pool::idle::Parking;
use cllm_core::{
    Architecture, Batch, BatchShape, Engine, Kernels, Mode, ModelConfig, Optimizer, Plan, Trainer,
    Worker,
};
use cllm_kernels::{KC, MatMut, MatRef};
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, RwLock};
use std::thread;
use std::time::Instant;

const CONFIG: ModelConfig = ModelConfig {
    vocab_size: 5000,
    block_size: 128,
    n_layer: 4,
    n_head: 8,
    d_model: 256,
    d_ff: 1024,
    bias: true,
    tied: true,
    dropout: 0.0,
    norm_eps: 1e-5,
    arch: Architecture::GPT2,
};
const SHAPE: BatchShape = BatchShape { sequences: 32, tokens: 128 };
const TOKENS: usize = 4096;
/// Side of a tile of a gradient, as in a step for two workers.
const TILE: usize = 256;

/// One gradient `dW = X^T dY`: `rows x cols`.
struct Gradient {
    rows: usize,
    cols: usize,
    x: Vec<f32>,
    dy: Vec<f32>,
}

/// Part of a gradient: first row, first column, rows, columns.
type Part = (usize, usize, usize, usize);

impl Gradient {
    fn random(rows: usize, cols: usize, state: &mut u32) -> Self {
        let mut floats = |n: usize| -> Vec<f32> {
            let next = |_| {
                *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (*state >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            (0..n).map(next).collect()
        };
        Self { rows, cols, x: floats(TOKENS * rows), dy: floats(TOKENS * cols) }
    }

    fn tiles(&self) -> Vec<Part> {
        let across = |i| (0..self.cols).step_by(TILE).map(move |j| (i, j));
        let corners = (0..self.rows).step_by(TILE).flat_map(across);
        corners.map(|(i, j)| (i, j, TILE.min(self.rows - i), TILE.min(self.cols - j))).collect()
    }

    /// Overwrites `out`, a part by itself, with the products of some tokens, or adds them.
    fn make(&self, kernels: &Kernels, part: Part, tokens: Range<usize>, adds: bool, out: &mut Own) {
        let (i, j, m, n) = part;
        let count = tokens.len();
        let x = MatRef::new(&self.x, TOKENS, self.rows, self.rows).row_range(tokens.start, count);
        let dy = MatRef::new(&self.dy, TOKENS, self.cols, self.cols).row_range(tokens.start, count);
        let c = MatMut::new(&mut out.floats[..m * n], m, n, n);
        let (x, dy) = (x.col_range(i, m), dy.col_range(j, n));
        kernels.gemm_unpacked(x.t(), dy, c, adds, &mut out.scratch);
    }
}

/// A result and the scratch to make it.
struct Own {
    floats: Vec<f32>,
    scratch: Vec<f32>,
}

impl Own {
    fn new(kernels: &Kernels, (_, _, m, n): Part) -> Self {
        let scratch = kernels.unpacked_scratch_len(m, n, TOKENS).expect("small");
        Self { floats: vec![0.0; m * n], scratch: vec![0.0; scratch] }
    }
}

/// What the threads share.
struct Work {
    kernels: &'static Kernels,
    gradients: Vec<Gradient>,
    /// Gradient and part of every tile.
    tiles: Vec<(usize, Part)>,
    /// The tiles' results, and whether anything has been added yet.
    results: Vec<Mutex<(bool, Own)>>,
    /// For each thread the gradients of `copies`, and whether anything was added yet.
    copies: Vec<Vec<RwLock<(bool, Own)>>>,
    next: AtomicUsize,
    last: AtomicUsize,
}

impl Work {
    fn new(kernels: &'static Kernels, threads: usize) -> Self {
        let (d, f, v) = (CONFIG.d_model, CONFIG.d_ff, CONFIG.vocab_size);
        let layer = [(d, 3 * d), (d, d), (d, f), (f, d)];
        let shapes = core::iter::repeat_n(layer, CONFIG.n_layer).flatten().chain([(v, d)]);
        let mut state = 1;
        let gradients: Vec<_> = shapes.map(|(m, n)| Gradient::random(m, n, &mut state)).collect();
        let tiles: Vec<_> = gradients
            .iter()
            .enumerate()
            .flat_map(|(g, gradient)| gradient.tiles().into_iter().map(move |part| (g, part)))
            .collect();
        let own = |part| (false, Own::new(kernels, part));
        let results = tiles.iter().map(|(_, part)| Mutex::new(own(*part))).collect();
        let whole = |g: &Gradient| RwLock::new(own((0, 0, g.rows, g.cols)));
        let copies = (0..threads).map(|_| gradients.iter().map(whole).collect()).collect();
        let (next, last) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { kernels, gradients, tiles, results, copies, next, last }
    }

    /// Numbers below `end`, each to one thread.
    fn take(counter: &AtomicUsize, end: usize) -> Option<usize> {
        Some(counter.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < end)
    }

    fn fixed_tiles(&self) {
        while let Some(t) = Self::take(&self.next, self.tiles.len()) {
            let (g, part) = self.tiles[t];
            let out = &mut self.results[t].lock().unwrap().1;
            self.gradients[g].make(self.kernels, part, 0..TOKENS, false, out);
        }
    }

    fn copies(&self, thread: usize, barrier: &Barrier) {
        let blocks = TOKENS / KC;
        while let Some(n) = Self::take(&self.next, self.gradients.len() * blocks) {
            let (g, block) = (n / blocks, n % blocks);
            let gradient = &self.gradients[g];
            let (adds, out) = &mut *self.copies[thread][g].write().unwrap();
            let tokens = block * KC..(block + 1) * KC;
            gradient.make(self.kernels, (0, 0, gradient.rows, gradient.cols), tokens, *adds, out);
            *adds = true;
        }
        barrier.wait();
        while let Some(t) = Self::take(&self.last, self.tiles.len()) {
            let (g, (i, j, m, n)) = self.tiles[t];
            let out = &mut self.results[t].lock().unwrap().1.floats;
            out.fill(0.0);
            for copy in &self.copies {
                let (is_used, own) = &*copy[g].read().unwrap();
                for r in (0..m).filter(|_| *is_used) {
                    let from = &own.floats[(i + r) * self.gradients[g].cols + j..][..n];
                    self.kernels.accumulate(&mut out[r * n..][..n], from);
                }
            }
        }
    }

    fn arrival(&self, own: &mut Own) {
        while let Some(n) = Self::take(&self.next, 2 * self.tiles.len()) {
            let (t, half) = (n / 2, n % 2 * TOKENS / 2);
            let (g, part) = self.tiles[t];
            self.gradients[g].make(self.kernels, part, half..half + TOKENS / 2, false, own);
            let (adds, out) = &mut *self.results[t].lock().unwrap();
            let floats = &own.floats[..out.floats.len()];
            if *adds {
                self.kernels.accumulate(&mut out.floats, floats);
            } else {
                out.floats.copy_from_slice(floats);
            }
            *adds = true;
        }
    }

    /// Forgets all sums.
    fn reset(&mut self) {
        *self.next.get_mut() = 0;
        *self.last.get_mut() = 0;
        for result in &mut self.results {
            result.get_mut().unwrap().0 = false;
        }
        for copy in self.copies.iter_mut().flatten() {
            copy.get_mut().unwrap().0 = false;
        }
    }

    /// Seconds of one way to make all gradients.
    fn time(&mut self, way: &str) -> f64 {
        self.reset();
        let threads = self.copies.len();
        let (start, barrier) = (Barrier::new(threads + 1), Barrier::new(threads));
        let work = &*self;
        thread::scope(|scope| {
            for thread in 0..threads {
                let (start, barrier) = (&start, &barrier);
                scope.spawn(move || {
                    let mut own = Own::new(work.kernels, (0, 0, TILE, TILE));
                    start.wait();
                    match way {
                        "tiles" => work.fixed_tiles(),
                        "copies" => work.copies(thread, barrier),
                        _ => work.arrival(&mut own),
                    }
                    start.wait();
                });
            }
            start.wait();
            let begin = Instant::now();
            start.wait();
            begin.elapsed().as_secs_f64()
        })
    }

    fn values(&self) -> Vec<f32> {
        let of = |result: &Mutex<(bool, Own)>| result.lock().unwrap().1.floats.clone();
        self.results.iter().flat_map(of).collect()
    }
}

/// The largest difference as a share of the largest value.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let largest = a.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    a.iter().zip(b).fold(0.0_f32, |most, (x, y)| most.max((x - y).abs())) / largest
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let rounds = args.next().map_or(7, |text| text.parse().expect("a number of rounds"));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let kernels = Kernels::detect();
    let mut work = Work::new(kernels, threads);

    let plan = Plan::new(&CONFIG, SHAPE, threads, Mode::Train, kernels).expect("a sound plan");
    let mut memory = support::memory::Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = &Engine::new(&plan, queue).expect("memory of the planned size");
    let idle = &Parking::worker(threads, threads);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(move || Worker::run(engine, idle).expect("there is a seat"));
        }
        let trainer = Trainer::new(&plan, kernels, pools, engine, 1).expect("as planned");
        let mut trainer = trainer.wait_with(&CALLER);
        trainer.initialise();
        let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7919 % 5000).collect();
        let batch = Batch::new(&tokens, &tokens);
        let mut step = || {
            let begin = Instant::now();
            trainer.accumulate(&batch, TOKENS).expect("a finite loss");
            trainer.update(&Optimizer::default(), 1e-4).expect("a finite gradient");
            begin.elapsed().as_secs_f64()
        };
        let ways = ["tiles", "copies", "arrival"];
        let mut times = [const { Vec::new() }; 4];
        let mut first = Vec::new();
        // The first round warms up and checks that all three make the same gradients.
        for round in 0..=rounds {
            for (way, times) in ways.iter().zip(&mut times) {
                let seconds = work.time(way);
                if round == 0 {
                    let values = work.values();
                    first = if first.is_empty() { values.clone() } else { first };
                    let differs = difference(&first, &values);
                    assert!(differs < 1e-5, "{way} is {differs} off");
                } else {
                    times.push(seconds);
                }
            }
            let seconds = step();
            if round > 0 {
                times[3].push(seconds);
            }
        }
        let [tiles, copies, arrival, step] = times.each_mut().map(|times| 1e3 * median(times));
        println!("{} threads, {}, medians of {rounds} rounds in turns", threads, kernels.isa());
        println!("all weight gradients: tiles {tiles:.2} ms (deterministic)");
        println!("                      copies {copies:.2} ms, arrival {arrival:.2} ms (not)");
        let cost = (tiles - copies.min(arrival)) / step;
        println!("whole step {step:.2} ms: determinism costs {:.2} % of it", 100.0 * cost);
        engine.close(&CALLER);
    });
}
