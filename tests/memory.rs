//! The memory plan is exact, and a step allocates nothing.

mod support;

use cllm::data::loader::Dataset;
use cllm::data::prefetch::{ReadyBatch, with_loader};
use cllm::data::stream::TokenStream;
use cllm_core::{
    Architecture, Batch, BatchShape, Blocking, BlockingError, Dtype, Engine, Evaluator, Isa,
    Kernels, LANES, Line, Mode, ModelConfig, Op, Optimizer, OptimizerKind, Packing, Plan,
    PlanError, Pool, Pools, Queue, Slot, Tiling, Trainer,
};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::thread;
use support::counting::{Counting, own_calls};
use support::memory::{LINE_POOLS, Memory};
use support::tables::tables;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Queries of a block of attention's backward pass, of vectors.
const QUERIES: usize = 48;
const SHAPE: BatchShape = BatchShape { sequences: 4, tokens: 64 };

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 256,
        block_size: 64,
        n_layer: 2,
        n_head: 2,
        d_model: 64,
        d_ff: 256,
        bias: true,
        tied: false,
        dropout: 0.1,
        norm_eps: 1e-5,
        arch: Architecture::GPT2,
    }
}

/// One whole step and a validation.
fn step(trainer: &mut Trainer<'_>, tokens: &[u32], targets: &[u32]) {
    let batch = Batch::new(tokens, targets);
    for _ in 0..2 {
        trainer.accumulate(&batch, 2 * targets.len()).unwrap();
    }
    let kind = trainer.plan().optimizer();
    trainer.update(&Optimizer { kind, ..Optimizer::default() }, 1e-3).unwrap();
    trainer.evaluate(&batch).unwrap();
}

/// Token ids that reach the whole vocabulary.
fn ids(plan: &Plan) -> (Vec<u32>, Vec<u32>) {
    let n = plan.tokens() as u32;
    let v = plan.config().vocab_size as u32;
    ((0..n).map(|i| i * 7 % v).collect(), (0..n).map(|i| i * 11 % v).collect())
}

#[test]
fn a_step_allocates_nothing() {
    let tables = Isa::ALL.into_iter().filter_map(|isa| Some((isa, Kernels::for_isa(isa)?)));
    for ((isa, kernels), mode) in
        tables.flat_map(|table| [(table, Mode::Train), (table, Mode::Recompute)])
    {
        let plan = Plan::new(&config(), SHAPE, 1, mode, kernels).unwrap();
        let (tokens, targets) = ids(&plan);
        let mut memory = Memory::new(&plan);
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&plan, queue).unwrap();
        let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 1).unwrap();
        trainer.initialise();
        for window in 0..3 {
            let before = own_calls();
            step(&mut trainer, &tokens, &targets);
            assert_eq!(own_calls() - before, 0, "{isa}: allocations in step {window}");
        }
    }
}

#[test]
fn batches_made_ready_allocate_nothing_in_either_thread() {
    const STEPS: u64 = 40;
    let kernels = Kernels::detect();
    let plan = Plan::new(&config(), SHAPE, 1, Mode::Train, kernels).unwrap();
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 1).unwrap();
    trainer.initialise();
    let stream = TokenStream::from_tokens("t", (0..20_000).map(|i| i * 7 % 256).collect());
    let data = Dataset::open(stream, 256, SHAPE.tokens, 1).unwrap();
    // The loader's count at the start of each batch: what it did since the last one, waiting
    // and handing over among it, is in between.
    let in_loader = [const { AtomicUsize::new(0) }; STEPS as usize];
    let fill = |n: u64, batch: &mut ReadyBatch| {
        let (tokens, targets) = batch.ids();
        in_loader[n as usize].store(own_calls(), Relaxed);
        if n % 10 == 5 {
            // Now the other thread waits.
            thread::sleep(Duration::from_millis(20));
        }
        data.fill_batch(n * SHAPE.sequences as u64, SHAPE.sequences, tokens, targets)
    };
    let (calls, waited) = with_loader(1, plan.tokens(), 0..STEPS, fill, |mut prefetch| {
        let before = own_calls();
        for n in 0..STEPS {
            let batch = prefetch.take()?;
            trainer.accumulate(&batch.get(), plan.tokens()).unwrap();
            prefetch.recycle(batch);
            trainer.update(&Optimizer::default(), 1e-3).unwrap();
            if n % 10 == 0 {
                // Now the loader waits.
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok((own_calls() - before, prefetch.waited()))
    })
    .unwrap();
    assert_eq!(calls, 0, "allocations in the training thread");
    assert!(waited > 0.0, "the training thread never waited");
    let in_loader = in_loader.map(AtomicUsize::into_inner);
    assert!(in_loader.iter().all(|calls| *calls == in_loader[0]), "in the loader: {in_loader:?}");
}

/// Runs a step in pools of a pattern: of each pool `idle` lines of the plan stay as they are, each of
/// them alone, and so does what is beyond it.
fn every_other_line_is_used(plan: &Plan, kernels: &'static Kernels, idle: impl Fn(Pool) -> usize) {
    // Plans are for CPUs that pack, whatever this one does.
    let kernels = kernels.with_packing(true);
    let isa = kernels.set();
    let poison = Line([f32::from_bits(0x7fc0_dead); LANES]);
    let (tokens, targets) = ids(plan);
    let pools = LINE_POOLS;
    // A guard line behind each pool: larger pools are allowed, the rest is not touched.
    let mut lines = pools.map(|pool| vec![poison; plan.lines(pool) + 1]);
    let mut ops = vec![Op::EMPTY; plan.ops() + 1];
    let mut slots: Vec<Slot> = (0..=plan.slots()).map(|_| Slot::new()).collect();
    let mut words: Vec<AtomicU64> = (0..=plan.words()).map(|_| AtomicU64::new(u64::MAX)).collect();
    {
        let [parameters, gradients, moments, packed, activations, scratch] = &mut lines;
        let queue = Queue { ops: &mut ops, slots: &mut slots, words: &mut words };
        let pools = Pools { parameters, gradients, moments, packed, activations, scratch };
        let engine = Engine::new(plan, queue).unwrap();
        let mut trainer = Trainer::new(plan, kernels, pools, &engine, 1).unwrap();
        trainer.initialise();
        step(&mut trainer, &tokens, &targets);
    }
    // Weights, gradients and moments start as zeros: a line that a step uses has more.
    for (pool, lines) in pools.iter().zip(&lines).take(3) {
        let zeros = lines.iter().filter(|line| line.0 == [0.0; LANES]).count();
        assert_eq!(zeros, 0, "{isa}: lines of {} stayed zero", pool.name());
    }
    let untouched = |line: &Line| line.0.map(f32::to_bits) == poison.0.map(f32::to_bits);
    // However far apart rows are.
    let lying = kernels.footprint().lying_scratch_len((32, Some(256)), (32, Some(256)), 1);
    let in_place = lying == Some(0);
    for (pool, lines) in pools.iter().zip(&lines) {
        let (guard, planned) = lines.split_last().unwrap();
        assert!(untouched(guard), "{isa}: {} wrote past the plan", pool.name());
        let found: Vec<usize> = (0..planned.len()).filter(|i| untouched(&planned[*i])).collect();
        let what = format!("{isa}: idle of {} lines of {}: {found:?}", planned.len(), pool.name());
        // Gradients whose operands all CPUs read where they lie leave scratch to attention. Of the scores of a block
        // of queries, and of their gradients, there are a line between rows and some behind the diagonal.
        let scores = if *pool == Pool::Scratch && in_place { 2 * QUERIES * 2 } else { 0 };
        assert!((idle(*pool)..=idle(*pool) + scores).contains(&found.len()), "{what}");
        let together = if scores > 0 { 2 } else { 1 };
        let mut runs = found.windows(together + 1);
        assert!(runs.all(|run| run[0] + together < run[together]), "{what}");
    }
    assert_eq!(ops[plan.ops()], Op::EMPTY);
    assert!(ops[..plan.ops()].iter().all(|op| *op != Op::EMPTY));
    assert_eq!(words.pop().unwrap().into_inner(), u64::MAX);
    assert!(words.into_iter().all(|word| word.into_inner() != u64::MAX));
}

#[test]
fn every_planned_line_is_used_and_no_other() {
    let all = tables().flat_map(|k| [(k, Mode::Train), (k, Mode::Recompute)]);
    let large = Blocking {
        row_block: 192,
        weight_rows: 512,
        weight_cols: 96,
        update_floats: 1 << 20,
        ..Blocking::default()
    };
    for ((kernels, mode), (packing, blocking)) in all.flat_map(|table| {
        let (usual, packings) = (Blocking::default(), [Packing::Once, Packing::Fresh]);
        packings.into_iter().flat_map(move |p| [(table, (p, usual)), (table, (p, large))])
    }) {
        // Three layers, of which two are made again.
        let config = ModelConfig { n_layer: 3, ..config() };
        let arch = Architecture { n_kv_head: Some(2), head_size: Some(32), ..Architecture::LLAMA };
        let llama = ModelConfig { n_head: 4, bias: false, arch, ..config };
        let normed = ModelConfig { arch: Architecture { qk_norm: true, ..arch }, ..llama };
        for config in [config, llama, normed] {
            let tiling = Tiling { packing: Some(packing), blocking, ..Tiling::default() };
            let plan = Plan::with_tiling(&config, SHAPE, 1, &tiling, mode, kernels).unwrap();
            assert_eq!(plan.bytes(Pool::Packed) == 0, packing == Packing::Fresh);
            every_other_line_is_used(&plan, kernels, |_| 0);
        }
    }
}

/// Of every optimizer, as of AdamW above: what it remembers has its pool, to the line.
#[test]
fn every_optimizer_has_the_memory_of_its_moments_and_no_more() {
    // Of blocks of moments some tensors have a part, or some and a part.
    let odd = ModelConfig { d_model: 50, d_ff: 170, vocab_size: 255, ..config() };
    let arch = Architecture { n_kv_head: Some(1), ..Architecture::LLAMA };
    let llama = ModelConfig { bias: false, tied: true, arch, ..config() };
    for (config, kernels) in [config(), odd, llama]
        .into_iter()
        .flat_map(|config| [(config, Kernels::scalar()), (config, Kernels::detect())])
    {
        let plan = Plan::new(&config, SHAPE, 1, Mode::Train, kernels).unwrap();
        let arena = plan.table().arena_len();
        // Two codes of a byte, in lines; two scales a block of 64, of which there are as many as the tensors'
        // own and perhaps one between two of them.
        let blocks: usize = plan.table().iter().map(|spec| spec.len().div_ceil(64)).sum();
        let codes = 2 * arena.next_multiple_of(64);
        let least = codes + 8 * blocks;
        let most = codes + (8 * (blocks + plan.table().count())).next_multiple_of(64);
        for kind in OptimizerKind::ALL {
            let plan = plan.with_optimizer(kind);
            let bytes = plan.bytes(Pool::Moments);
            match kind {
                OptimizerKind::AdamW => assert_eq!(bytes, 8 * arena),
                OptimizerKind::AdamW8 => assert!((least..=most).contains(&bytes), "{bytes}"),
                OptimizerKind::Momentum => assert_eq!(bytes, 4 * arena),
                OptimizerKind::Sgd => assert_eq!(bytes, 0),
                OptimizerKind::Muon => assert!(bytes > 4 * arena && bytes < 8 * arena, "{bytes}"),
            }
            every_other_line_is_used(&plan, kernels, |_| 0);
        }
        let evaluate = Plan::new(&config, SHAPE, 1, Mode::Evaluate, kernels).unwrap();
        assert_eq!(evaluate.with_optimizer(OptimizerKind::AdamW8).bytes(Pool::Moments), 0);
    }
}

/// Rows of logits, of the feed-forward layer and, of floats, of the model's width would be a
/// multiple of 4 KiB apart, or of 2 KiB of bf16: behind each of them is a line that nobody touches.
#[test]
fn of_rows_a_period_of_the_cache_apart_all_but_a_line_is_used() {
    const LAYERS: usize = 2;
    const ROWS: usize = 64;
    let shape = BatchShape { sequences: 1, tokens: ROWS };
    let config = ModelConfig {
        // 4 KiB of floats only once they are whole lines.
        vocab_size: 1015,
        n_layer: LAYERS,
        n_head: 16,
        d_model: 1024,
        d_ff: 2048,
        // So that ids which the batch lacks have gradients too.
        tied: true,
        ..config()
    };
    let best = Kernels::detect();
    // Where bf16 is rounded rows are as for floats, and scratch has room for products of few rows that are not here.
    let halves = Some(best.with_dtype(Dtype::Bf16)).filter(|kernels| kernels.keeps_halves());
    for kernels in [Some(best), halves].into_iter().flatten() {
        let element = if kernels.keeps_halves() { 2 } else { 4 };
        let behind = |cols: usize| usize::from((cols * element).is_multiple_of(1024 * element));
        let (width, wider) = (behind(config.d_model), behind(config.d_ff));
        assert_eq!((width, wider), (1, 1));
        for (mode, packing) in [
            (Mode::Train, Packing::Once),
            (Mode::Train, Packing::Fresh),
            (Mode::Recompute, Packing::Once),
        ] {
            let tiling = Tiling { packing: Some(packing), ..Tiling::default() };
            let plan = Plan::with_tiling(&config, shape, 1, &tiling, mode, kernels).unwrap();
            // Inputs of activations, which layers that are made again share, as they do outputs
            // of norms; one gradient of them, and one group of logits.
            let activations = match mode {
                Mode::Recompute => wider + width,
                _ => LAYERS * wider,
            };
            every_other_line_is_used(&plan, kernels, |pool| match pool {
                Pool::Activations => ROWS * (activations + wider + 1),
                // What a worker holds of a row block: outputs of a norm and of the activation.
                Pool::Scratch => ROWS * (width + wider),
                _ => 0,
            });
        }
    }
}

#[test]
fn bytes_are_those_of_the_shapes() {
    // Tiles as for one worker: with more, gradients of activations and logits are doubled.
    let scalar = Kernels::scalar();
    let plan = Plan::with_tiling(&config(), SHAPE, 3, &Tiling::for_workers(1), Mode::Train, scalar)
        .unwrap();
    let arena = plan.table().arena_len() * 4;
    assert_eq!(plan.bytes(Pool::Parameters), arena);
    assert_eq!(plan.bytes(Pool::Gradients), arena);
    assert_eq!(plan.bytes(Pool::Moments), 2 * arena);
    assert_eq!(plan.bytes(Pool::Batch), 2 * 4 * 256);
    assert_eq!(plan.bytes(Pool::Operations), plan.ops() * size_of::<Op>());
    // What is read for every tile lies apart from what is written for every tile.
    assert_eq!(plan.bytes(Pool::Slots), plan.slots() * 2 * 64);
    assert_eq!(plan.bytes(Pool::Words), plan.words() * 8);
    // Scalar panels are 4 wide and these widths are multiples of 16: no padding.
    let matrices = 2 * (64 * 192 + 64 * 64 + 2 * 64 * 256) + 64 * 256;
    assert_eq!(plan.bytes(Pool::Packed), 2 * 4 * matrices);
    let one = Plan::new(&config(), SHAPE, 1, Mode::Train, Kernels::scalar()).unwrap();
    assert_eq!(plan.bytes(Pool::Scratch), 3 * one.bytes(Pool::Scratch));
    let sum: usize = Pool::ALL.iter().map(|pool| plan.bytes(*pool)).sum();
    assert_eq!(plan.total_bytes(), Some(sum));
    // Per token and block: x, att, mid and qkv are 6 widths of 64, the feed-forward layer
    // one of 256, norms 4 values, lse one a head. With dropout one gradient of the stream is
    // for all blocks, beside that of the norms.
    let (kept, inner) = (256 * (2 * 64 + 2), 256 * (4 * 64 + 256 + 4));
    let shared = 256 * (64 + 3) + 256 * 256;
    let grads = 256 * (2 * 64 + 2 * 64 + 256) + 2 * 8 * 128 + 16;
    assert_eq!(plan.bytes(Pool::Activations), 4 * (2 * (kept + inner) + shared + grads));
    // Blocks that are made again share the inner part, and it has the first norm's output.
    let remade =
        Plan::with_tiling(&config(), SHAPE, 3, &Tiling::for_workers(1), Mode::Recompute, scalar)
            .unwrap();
    let inner = inner + 256 * 64;
    assert_eq!(remade.bytes(Pool::Activations), 4 * (2 * kept + inner + shared + grads));
    assert_eq!(remade.recomputed_flops(), f64::from(256 * (8 * 64 * 64 + 2 * 64 * 256)));
    assert_eq!(plan.recomputed_flops(), 0.0);
}

/// As above for parts of the Llama family: heads of 32 columns, four of queries and two of keys and
/// values, without dropout.
#[test]
fn bytes_of_the_llama_family_are_those_of_its_shapes() {
    let arch = Architecture { n_kv_head: Some(2), head_size: Some(32), ..Architecture::LLAMA };
    let config = ModelConfig { n_head: 4, bias: false, dropout: 0.0, arch, ..config() };
    let plan = Plan::new(&config, SHAPE, 1, Mode::Train, Kernels::scalar()).unwrap();
    let block = 64 * 256 + 128 * 64 + 3 * 64 * 256 + 2 * 64;
    assert_eq!(plan.table().parameters(), 2 * block + 2 * 64 * 256 + 64);
    // x, mid; att; lse; qkv; the gate and what it lets through; one value of each norm.
    let layer = 256 * (2 * 64 + 128 + 4 + 256 + 2 * 256 + 2);
    let shared = 256 * (64 + 2) + 256 * 256 + 2 * 64 * 16;
    // Of the stream, its middle, norms' outputs, attention's, the first matrix; sums of gains.
    let grads = 256 * (3 * 64 + 128 + 2 * 256) + 2 * 8 * 64 + 16;
    assert_eq!(plan.bytes(Pool::Activations), 4 * (2 * layer + shared + grads));
}

/// GPT-2's shape: its packed weights are as large as its weights and gradients.
#[test]
fn large_models_have_no_packed_weights_for_small_batches() {
    let gpt2 = ModelConfig {
        vocab_size: 50_257,
        block_size: 1024,
        n_layer: 12,
        n_head: 12,
        d_model: 768,
        d_ff: 3072,
        dropout: 0.0,
        tied: true,
        ..config()
    };
    let plan = |config: &ModelConfig, tokens, workers| {
        let shape = BatchShape { sequences: 4, tokens };
        Plan::new(config, shape, workers, Mode::Train, Kernels::scalar()).unwrap()
    };
    for (tokens, workers) in [(64, 1), (64, 2), (96, 4)] {
        let plan = plan(&gpt2, tokens, workers);
        let matrices = plan.bytes(Pool::Packed);
        assert_eq!((plan.packing(), matrices), (Packing::Fresh, 0), "{tokens} {workers}");
    }
    // Blocks of so few rows would be packed for in vain, and many rows use what is packed once.
    assert_eq!(plan(&gpt2, 64, 8).packing(), Packing::Once);
    assert_eq!(plan(&gpt2, 1024, 2).packing(), Packing::Once);
    assert_eq!(plan(&config(), 64, 2).packing(), Packing::Once);
    let total = plan(&gpt2, 64, 2).total_bytes().unwrap();
    assert!(total < 2_290_000_000, "{total} bytes");
}

#[test]
fn blocks_that_the_core_cannot_take_are_refused() {
    let plan = |blocking| {
        let tiling = Tiling { blocking, ..Tiling::default() };
        Plan::with_tiling(&config(), SHAPE, 1, &tiling, Mode::Train, Kernels::scalar())
    };
    let usual = Blocking::default();
    assert_eq!(plan(usual).unwrap().blocking(), &usual);
    let error = plan(Blocking { row_block: 48, ..usual }).unwrap_err();
    assert!(matches!(error, PlanError::Blocking(BlockingError { value: 48, .. })), "{error:?}");
    assert_eq!(error.to_string(), "row_block 48: it must be 32, 64, 96, 128, 192 or 384");
    let plan = plan(Blocking { weight_rows: 0, ..usual });
    assert_eq!(plan.unwrap_err().to_string(), "weight_rows 0: it must be a multiple of 32");
}

#[test]
fn making_blocks_again_never_takes_more() {
    for kernels in [Kernels::scalar(), Kernels::detect().with_dtype(Dtype::Bf16)] {
        for (n_layer, tiles_for) in (1..5).flat_map(|n| [(n, 1), (n, 2), (n, 16)]) {
            let config = ModelConfig { n_layer, ..config() };
            let tiling = Tiling::for_workers(tiles_for);
            let plan = |mode| Plan::with_tiling(&config, SHAPE, 1, &tiling, mode, kernels);
            let (kept, remade) = (plan(Mode::Train).unwrap(), plan(Mode::Recompute).unwrap());
            let bytes = |plan: &Plan| plan.bytes(Pool::Activations);
            let what = format!("{n_layer} layers, tiles for {tiles_for}");
            assert_eq!(remade.recomputed_flops() > 0.0, n_layer > tiles_for.min(2), "{what}");
            if remade.recomputed_flops() > 0.0 {
                assert!(bytes(&remade) < bytes(&kept), "{what}");
            } else {
                assert!(bytes(&remade) <= bytes(&kept), "{what}");
            }
        }
    }
}

#[test]
fn a_pool_one_line_short_is_named() {
    let kernels = Kernels::detect();
    let plan = Plan::new(&config(), SHAPE, 1, Mode::Train, kernels).unwrap();
    for pool in Pool::ALL {
        if pool == Pool::Batch {
            continue;
        }
        let mut memory = Memory::new(&plan);
        let unit = memory.shorten(pool);
        let mut whole = Memory::new(&plan);
        let (pools, queue) = memory.parts();
        let of_engine = [Pool::Operations, Pool::Slots, Pool::Words].contains(&pool);
        let error = if of_engine {
            Engine::new(&plan, queue).unwrap_err()
        } else {
            let engine = Engine::new(&plan, whole.parts().1).unwrap();
            Trainer::new(&plan, kernels, pools, &engine, 1).unwrap_err()
        };
        let need = plan.bytes(pool);
        assert_eq!(error, PlanError::TooSmall { pool, need, got: need - unit });
    }
}

#[test]
fn evaluation_needs_less_and_gives_the_same_loss() {
    let kernels = Kernels::detect();
    let plan = Plan::new(&config(), SHAPE, 1, Mode::Train, kernels).unwrap();
    let small = Plan::new(&config(), SHAPE, 1, Mode::Evaluate, kernels).unwrap();
    assert_eq!(small.bytes(Pool::Gradients), 0);
    assert!(small.total_bytes().unwrap() * 2 < plan.total_bytes().unwrap());
    let (tokens, targets) = ids(&plan);
    let batch = Batch::new(&tokens, &targets);
    let (mut a, mut b) = (Memory::new(&plan), Memory::new(&small));
    let (pools, queue) = a.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 1).unwrap();
    trainer.initialise();
    let (pools, queue) = b.parts();
    let engine_of_small = Engine::new(&small, queue).unwrap();
    let mut evaluator = Evaluator::new(&small, kernels, pools, &engine_of_small).unwrap();
    evaluator.parameters_mut().copy_from_slice(trainer.parameters());
    assert_eq!(evaluator.evaluate(&batch).unwrap(), trainer.evaluate(&batch).unwrap());
    let (mut c, mut d) = (Memory::new(&small), Memory::new(&small));
    let refused = Trainer::new(&small, kernels, c.parts().0, &engine_of_small, 1);
    assert_eq!(refused.unwrap_err(), PlanError::WrongMode);
    let refused = Evaluator::new(&small, kernels, d.parts().0, &engine);
    assert_eq!(refused.unwrap_err(), PlanError::WrongEngine);
}

/// Tiles of matrices that are no whole panels, and few tokens: no product wants more than what is planned, of gradients
/// and of Muon's. Heads are narrow, so that attention does not want most of it.
#[test]
fn scratch_suffices_for_matrices_of_any_sizes() {
    let shape = BatchShape { sequences: 24, tokens: 3 };
    let tables: Vec<_> = tables().collect();
    for (d_model, d_ff, vocab_size) in
        [(48, 700, 255), (272, 40, 600), (16, 16, 1000), (32, 257, 33)]
    {
        let arch = Architecture { n_kv_head: Some(1), ..Architecture::LLAMA };
        let usual = ModelConfig { block_size: 3, n_head: 8, d_model, d_ff, vocab_size, ..config() };
        let llama = ModelConfig { bias: false, tied: true, arch, ..usual };
        for (config, kernels) in
            [usual, llama].into_iter().flat_map(|c| tables.iter().map(move |k| (c, *k)))
        {
            for (kind, packing) in [
                (OptimizerKind::Muon, Packing::Once),
                (OptimizerKind::AdamW, Packing::Once),
                (OptimizerKind::AdamW, Packing::Fresh),
            ] {
                let tiling = Tiling { packing: Some(packing), ..Tiling::default() };
                let plan = Plan::with_tiling(&config, shape, 1, &tiling, Mode::Train, kernels);
                let plan = plan.unwrap().with_optimizer(kind);
                let mut memory = Memory::new(&plan);
                let (pools, queue) = memory.parts();
                let engine = Engine::new(&plan, queue).unwrap();
                let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 1).unwrap();
                trainer.initialise();
                let (tokens, targets) = ids(&plan);
                step(&mut trainer, &tokens, &targets);
                assert!(trainer.parameters().iter().all(|x| x.is_finite()));
            }
        }
    }
}
