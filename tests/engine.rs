//! The engine's promises: the same bits for any number of workers and any order of
//! stealing, workers that come and go, panics that become errors.

mod support;

use cllm_core::{
    Activity, Batch, BatchShape, Blocking, Dtype, Engine, EngineError, Idle, Isa, Kernels, Mode,
    ModelConfig, Observer, Optimizer, Packing, Plan, Spin, StepError, Tiling, Trainer, Worker,
};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;
use support::config::{LLAMA, SHIFTED, SMALL as CONFIG};
use support::memory::Memory;
use support::tables::tables;

const SHAPE: BatchShape = BatchShape { sequences: 13, tokens: 40 };

/// Spins a little, then yields: for more threads than cores.
struct Yield;

impl Idle for Yield {
    fn pause(&self, round: u32) -> bool {
        if round < 64 {
            core::hint::spin_loop()
        } else {
            std::thread::yield_now()
        }
        true
    }

    fn park(&self, _: &AtomicU32, _: u32) {}

    fn wake(&self, _: &AtomicU32) {}
}

/// A caller that works on its own steps.
struct Working;

impl Idle for Working {
    fn pause(&self, round: u32) -> bool {
        Yield.pause(round)
    }

    fn park(&self, _: &AtomicU32, _: u32) {}

    fn wake(&self, _: &AtomicU32) {}

    fn works(&self) -> bool {
        true
    }
}

/// Sleeps at random moments: other workers overtake.
struct Delays(u32);

/// How often any [`Delays`] slept, and how many stolen tiles it saw.
static DELAYED: AtomicU32 = AtomicU32::new(0);
static STOLEN: AtomicU32 = AtomicU32::new(0);

impl Observer for Delays {
    fn enter(&mut self, activity: Activity) {
        if matches!(activity, Activity::Tile { stolen: true, .. }) {
            STOLEN.fetch_add(1, Ordering::Relaxed);
        }
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if self.0 >> 24 < 6 {
            DELAYED.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(u64::from(self.0 >> 8 & 0xff)));
        }
    }
}

/// How a run is shared out.
#[derive(Clone, Copy, Debug)]
struct Crew {
    workers: usize,
    /// Whether one of them is the caller.
    works: bool,
    tiles_for: usize,
    steal_seed: u32,
    delays: bool,
    mode: Mode,
    packing: Option<Packing>,
    blocking: Option<Blocking>,
}

impl Crew {
    const fn of(workers: usize) -> Self {
        let mode = Mode::Train;
        let tiles_for = workers;
        let (packing, blocking) = (None, None);
        Self {
            workers,
            works: false,
            tiles_for,
            steal_seed: 0,
            delays: false,
            mode,
            packing,
            blocking,
        }
    }
}

fn ids(n: usize, mut x: u32, vocab: usize) -> Vec<u32> {
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) % vocab as u32
    };
    (0..n).map(|_| next()).collect()
}

/// These models, and for the best instruction set one of the Llama family and one of later parts: their
/// tiles are the same on all of them.
fn with_llama(kernels: &Kernels, models: &[ModelConfig]) -> Vec<ModelConfig> {
    let is_best = kernels.isa() == Isa::best();
    models
        .iter()
        .copied()
        .chain(is_best.then_some([LLAMA, SHIFTED]).into_iter().flatten())
        .collect()
}

/// Weights and losses after some steps, as bits.
fn train(
    config: &ModelConfig,
    shape: BatchShape,
    kernels: &'static Kernels,
    crew: Crew,
    steps: u32,
) -> Vec<u32> {
    let Crew { workers, tiles_for, mode, packing, blocking, .. } = crew;
    let blocking = blocking.unwrap_or_default();
    let tiling = Tiling { workers: Some(tiles_for), packing, blocking };
    let plan = Plan::with_tiling(config, shape, workers, &tiling, mode, kernels).unwrap();
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    engine.seed_steals(crew.steal_seed);
    std::thread::scope(|scope| {
        // One alone is the caller.
        if crew.workers > 1 {
            let engine = &engine;
            let others = crew.workers - usize::from(crew.works);
            for worker in 1..=others {
                scope.spawn(move || {
                    let seed = crew.steal_seed.wrapping_add(worker as u32);
                    if crew.delays {
                        Worker::run_observed(engine, &Yield, &mut Delays(seed)).unwrap();
                    } else {
                        Worker::run(engine, &Yield).unwrap();
                    }
                });
            }
            while engine.workers() < others {
                std::thread::yield_now();
            }
        }
        let idle: &(dyn Idle + Sync) = if crew.works { &Working } else { &Yield };
        let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 5).unwrap().wait_with(idle);
        trainer.initialise();
        let n = plan.tokens();
        let mut bits = Vec::new();
        for step in 0..steps {
            for micro in 0..2 {
                let tokens = ids(n, 2 * step + micro, config.vocab_size);
                let targets = ids(n, 1000 + 2 * step + micro, config.vocab_size);
                let batch = Batch::new(&tokens, &targets);
                let loss = trainer.accumulate(&batch, 2 * n).unwrap();
                bits.push((loss.sum as f32).to_bits());
            }
            let report = trainer.update(&Optimizer::default(), 1e-3).unwrap();
            bits.push((report.grad_norm as f32).to_bits());
        }
        let tokens = ids(n, 77, config.vocab_size);
        let loss = trainer.evaluate(&Batch::new(&tokens, &tokens)).unwrap();
        bits.push((loss.sum as f32).to_bits());
        bits.extend(trainer.parameters().iter().map(|x| x.to_bits()));
        engine.close(&Yield);
        bits
    })
}

#[test]
fn any_number_of_workers_gives_the_same_bits() {
    for isa in Isa::ALL {
        let Some(kernels) = Kernels::for_isa(isa) else { continue };
        let plain = ModelConfig { dropout: 0.0, tied: false, bias: false, ..CONFIG };
        for config in with_llama(kernels, &[CONFIG, plain]) {
            let alone = train(&config, SHAPE, kernels, Crew::of(1), 2);
            for workers in [2, 3, 4, 7, 8] {
                let bits = train(&config, SHAPE, kernels, Crew::of(workers), 2);
                assert!(bits == alone, "{isa}: {workers} workers differ from one");
            }
            for workers in [2, 3] {
                let crew = Crew { works: true, ..Crew::of(workers) };
                let bits = train(&config, SHAPE, kernels, crew, 2);
                assert!(bits == alone, "{isa}: a caller and others, {workers}, differ from one");
            }
            for tiles_for in [2, 16, 64] {
                let crew = Crew { tiles_for, ..Crew::of(1) };
                let bits = train(&config, SHAPE, kernels, crew, 2);
                assert!(bits == alone, "{isa}: tiles for {tiles_for} differ");
            }
        }
    }
}

#[test]
fn products_of_bf16_give_the_same_bits_too() {
    let best = Kernels::detect();
    let tables = [best.with_dtype(Dtype::Bf16), best.converting(), Kernels::scalar().converting()];
    for (kernels, config) in
        tables.into_iter().flat_map(|k| [(k, CONFIG), (k, LLAMA), (k, SHIFTED)])
    {
        let alone = |kernels| train(&config, SHAPE, kernels, Crew::of(1), 2);
        let bits = alone(kernels);
        assert!(bits != alone(kernels.with_dtype(Dtype::F32)), "{kernels:?} is as f32");
        for crew in [Crew::of(2), Crew::of(7), Crew { tiles_for: 16, ..Crew::of(3) }] {
            let other = train(&config, SHAPE, kernels, crew, 2);
            assert!(other == bits, "{kernels:?}: {crew:?} differs from one");
        }
    }
}

#[test]
fn one_sequence_alone_gives_the_same_bits() {
    let best = Kernels::detect();
    let shape = BatchShape { sequences: 1, tokens: 290 };
    for (kernels, config) in [(best, CONFIG), (best, LLAMA), (best.with_dtype(Dtype::Bf16), LLAMA)]
    {
        let config = ModelConfig { block_size: 300, ..config };
        let alone = train(&config, shape, kernels, Crew::of(1), 2);
        for workers in [2, 3, 8, 16] {
            let bits = train(&config, shape, kernels, Crew::of(workers), 2);
            assert!(bits == alone, "{kernels:?}: {workers} workers differ from one");
        }
    }
}

/// With matrices deeper and wider than what is packed at a time, in one of the models.
#[test]
fn weights_packed_on_the_way_give_the_same_bits() {
    for kernels in tables() {
        let wide = ModelConfig { vocab_size: 2500, n_layer: 1, d_ff: 1100, ..CONFIG };
        let plain = ModelConfig { dropout: 0.0, tied: false, bias: false, ..CONFIG };
        for config in with_llama(kernels, &[CONFIG, plain, wide]) {
            let with = |packing, crew| {
                let crew = Crew { packing: Some(packing), ..crew };
                train(&config, SHAPE, kernels, crew, 2)
            };
            let once = with(Packing::Once, Crew::of(1));
            let again = Crew { mode: Mode::Recompute, ..Crew::of(2) };
            for crew in [Crew::of(1), Crew::of(3), Crew { tiles_for: 64, ..Crew::of(2) }, again] {
                let bits = with(Packing::Fresh, crew);
                assert!(bits == once, "{kernels:?}: {crew:?} differs from packing beforehand");
            }
        }
    }
}

/// Sizes of blocks as different as can be, several groups of logits and sums of squares among
/// them.
#[test]
fn sizes_of_blocks_do_not_change_a_bit() {
    let smallest = Blocking {
        row_block: 32,
        weight_rows: 32,
        weight_cols: 32,
        tiles_per_worker: 1,
        logits_blocks: 1,
        update_floats: 16,
        fresh_floats: usize::MAX,
        fresh_rows: 0,
    };
    let largest = Blocking {
        row_block: 384,
        weight_rows: 4096,
        weight_cols: 2048,
        tiles_per_worker: 1,
        logits_blocks: 1000,
        update_floats: 1 << 30,
        ..smallest
    };
    let fresh = Blocking { fresh_floats: 0, fresh_rows: usize::MAX, ..largest };
    let oblong = Blocking {
        row_block: 192,
        weight_rows: 96,
        weight_cols: 224,
        tiles_per_worker: 3,
        logits_blocks: 3,
        update_floats: 4800,
        ..smallest
    };
    let many = Blocking { tiles_per_worker: 100, ..oblong };
    for kernels in tables() {
        // 520 rows are two groups of logits of so large a vocabulary.
        let wide = ModelConfig { vocab_size: 2800, n_layer: 1, ..CONFIG };
        for config in with_llama(kernels, &[CONFIG, wide]) {
            let steps = if config == CONFIG { 2 } else { 1 };
            let usual = train(&config, SHAPE, kernels, Crew::of(1), steps);
            let mut plans = Vec::new();
            for (workers, blocking) in
                [(1, smallest), (2, largest), (1, fresh), (3, oblong), (2, many)]
            {
                let crew = Crew { blocking: Some(blocking), ..Crew::of(workers) };
                let bits = train(&config, SHAPE, kernels, crew, steps);
                assert!(bits == usual, "{kernels:?}: {crew:?} differs from the usual blocks");
                let tiling = Tiling { blocking, ..Tiling::default() };
                let plan = Plan::with_tiling(&config, SHAPE, workers, &tiling, crew.mode, kernels);
                plans.push(plan.unwrap());
            }
            let same = |a: &Plan, b: &Plan| a.has_tiles_of(b);
            let distinct =
                plans.iter().enumerate().all(|(n, a)| plans[..n].iter().all(|b| !same(a, b)));
            assert!(distinct, "blockings that cut the step the same way test nothing");
        }
    }
}

/// With dropout, two micro-batches a step, and a validation between training's runs.
#[test]
fn blocks_that_are_made_again_give_the_same_bits() {
    for kernels in tables() {
        let deep = ModelConfig { n_layer: 5, ..CONFIG };
        let plain = ModelConfig { dropout: 0.0, tied: false, bias: false, ..deep };
        for config in with_llama(kernels, &[deep, plain]) {
            let config = ModelConfig { n_layer: 5, ..config };
            let kept = train(&config, SHAPE, kernels, Crew::of(1), 2);
            // What is made again, and when, is the same on all sets.
            let is_best = kernels.isa() == Isa::best();
            let more = is_best.then_some([(1, 1), (3, 3), (3, 1)]).into_iter().flatten();
            for (workers, tiles_for) in [(2, 2), (2, 64)].into_iter().chain(more) {
                let crew = Crew { tiles_for, mode: Mode::Recompute, ..Crew::of(workers) };
                let bits = train(&config, SHAPE, kernels, crew, 2);
                assert!(bits == kept, "{kernels:?}: {crew:?} differs from keeping them");
            }
        }
    }
}

#[test]
fn blocks_of_one_sequence_made_again_give_the_same_bits() {
    let kernels = Kernels::detect();
    let shape = BatchShape { sequences: 1, tokens: 290 };
    for (config, workers) in
        [CONFIG, LLAMA, SHIFTED].into_iter().flat_map(|c| [1, 2, 3, 16].map(|w| (c, w)))
    {
        let config = ModelConfig { block_size: 300, n_layer: 5, ..config };
        let kept = train(&config, shape, kernels, Crew::of(1), 2);
        for seed in 0..4 {
            let crew = Crew {
                mode: Mode::Recompute,
                steal_seed: seed * 7919,
                delays: seed > 0 && workers > 1,
                ..Crew::of(workers)
            };
            let bits = train(&config, shape, kernels, crew, 2);
            assert!(bits == kept, "{crew:?} differs from keeping them");
        }
    }
}

/// Seeds of delays and steals; `STEAL_SEEDS` overrides, for checkers under which each takes long.
fn seeds() -> u32 {
    std::env::var("STEAL_SEEDS").map_or(100, |seeds| seeds.parse().unwrap())
}

#[test]
fn delays_and_steals_do_not_change_the_bits() {
    let kernels = Kernels::detect();
    let alone = train(&CONFIG, SHAPE, kernels, Crew::of(1), 2);
    let counts = || [&DELAYED, &STOLEN].map(|count| count.load(Ordering::Relaxed));
    for seed in 0..seeds() {
        let [delayed, stolen] = counts();
        let mode = if seed % 3 == 2 { Mode::Recompute } else { Mode::Train };
        let crew =
            Crew { steal_seed: seed * 7919, delays: true, mode, ..Crew::of(2 + seed as usize % 4) };
        let bits = train(&CONFIG, SHAPE, kernels, crew, 2);
        assert!(bits == alone, "{crew:?} differs from one worker");
        assert!(counts()[0] > delayed && counts()[1] > stolen, "{crew:?}: nothing was shuffled");
    }
    let [delayed, stolen] = counts();
    println!("{delayed} delays, {stolen} operations of stolen tiles");
}

/// Panics at one tile.
struct Bomb(u32);

impl Observer for Bomb {
    fn enter(&mut self, activity: Activity) {
        if let Activity::Tile { .. } = activity {
            self.0 -= 1;
            assert!(self.0 > 0, "forced by the test");
        }
    }
}

#[test]
fn a_panic_in_a_tile_is_an_error_and_nobody_hangs() {
    let kernels = Kernels::detect();
    for fuse in [1, 2, 17, 60] {
        let plan = Plan::new(&CONFIG, SHAPE, 3, Mode::Train, kernels).unwrap();
        let mut memory = Memory::new(&plan);
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&plan, queue).unwrap();
        let panicked = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let engine = &engine;
            for _ in 0..2 {
                scope.spawn(|| Worker::run(engine, &Yield).unwrap());
            }
            scope.spawn(|| {
                let run = || Worker::run_observed(engine, &Yield, &mut Bomb(fuse));
                let result = std::panic::catch_unwind(core::panic::AssertUnwindSafe(run));
                panicked.store(result.is_err(), Ordering::SeqCst);
            });
            while engine.workers() < 3 {
                std::thread::yield_now();
            }
            let mut trainer =
                Trainer::new(&plan, kernels, pools, engine, 5).unwrap().wait_with(&Yield);
            trainer.initialise();
            let n = plan.tokens();
            let tokens = ids(n, 1, CONFIG.vocab_size);
            let batch = Batch::new(&tokens, &tokens);
            let failed = (0..100).find_map(|_| trainer.accumulate(&batch, n).err());
            assert_eq!(failed, Some(StepError::Engine(EngineError::Panicked)));
            // The others are still there and the engine works.
            assert_eq!(engine.workers(), 2);
            trainer.initialise();
            let loss = trainer.accumulate(&batch, n).unwrap();
            assert_eq!(trainer.update(&Optimizer::default(), 1e-3).map(|_| ()), Ok(()));
            engine.close(&Yield);
            let after = trainer.evaluate(&batch).unwrap();
            assert!(after.sum < loss.sum);
        });
        assert!(panicked.into_inner());
    }
}

#[test]
fn the_callers_own_panic_leaves_the_engine_usable() {
    let kernels = Kernels::detect();
    let plan = Plan::new(&CONFIG, SHAPE, 2, Mode::Train, kernels).unwrap();
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 5).unwrap();
    trainer.initialise();
    assert_eq!((engine.workers(), engine.seats()), (0, 2));
    engine.close(&Spin);
    assert!(Worker::run(&engine, &Spin).is_err(), "a closed engine takes nobody");
    let n = plan.tokens();
    let tokens = ids(n, 1, CONFIG.vocab_size);
    let batch = Batch::new(&tokens, &tokens);
    assert!(trainer.accumulate(&batch, n).is_ok(), "the caller still works alone");
}

/// Counts the tiles that it is told of, and those that were stolen.
struct Count<'a>(&'a AtomicU32, &'a AtomicU32);

impl Observer for Count<'_> {
    fn enter(&mut self, activity: Activity) {
        if let Activity::Tile { stolen, .. } = activity {
            self.0.fetch_add(1, Ordering::Relaxed);
            self.1.fetch_add(u32::from(stolen), Ordering::Relaxed);
        }
    }
}

#[test]
fn a_drilled_step_goes_through_every_tile_and_leaves_the_engine_as_it_was() {
    let kernels = Kernels::detect();
    let plan = Plan::new(&CONFIG, SHAPE, 2, Mode::Train, kernels).unwrap();
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    let (tiles, stolen) = (AtomicU32::new(0), AtomicU32::new(0));
    // Between two seats of one thread: half is there to be taken, the other to be stolen.
    let (own, all) = engine
        .drill_seats(&Spin, |[mut here, mut there]| {
            assert_eq!(engine.drill_step(&Spin), Err(EngineError::Busy));
            // While the own share is not empty, one tile at a time is stolen.
            let back = core::iter::from_fn(|| there.steal().then_some(())).count();
            let own = core::iter::from_fn(|| there.take().then_some(())).count();
            assert!(!here.take() && !here.steal() && back > 0);
            (own, own + back)
        })
        .unwrap();
    assert_eq!(own, all / 2, "of {all}");
    // What a drill leaves undone is gone.
    engine.drill_seats(&Spin, |[mut here, _]| assert!(here.take())).unwrap();
    assert_eq!(engine.workers(), 0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut count = Count(&tiles, &stolen);
            let engine = &engine;
            scope.spawn(move || Worker::run_observed(engine, &Yield, &mut count).unwrap());
        }
        while engine.workers() < 2 {
            std::thread::yield_now();
        }
        assert!(engine.drill_seats(&Yield, |_| ()).is_err(), "all seats are taken");
        let drilled = engine.drill_step(&Yield).unwrap();
        assert_eq!((drilled.runs, drilled.tiles), (2, tiles.load(Ordering::Relaxed) as usize));
        assert!(drilled.stages > 20 && drilled.tiles > all);
        let mut trainer =
            Trainer::new(&plan, kernels, pools, &engine, 5).unwrap().wait_with(&Yield);
        trainer.initialise();
        let n = plan.tokens();
        let tokens = ids(n, 1, CONFIG.vocab_size);
        let batch = Batch::new(&tokens, &tokens);
        assert!(trainer.accumulate(&batch, n).is_ok());
        engine.close(&Yield);
    });
    assert!(stolen.into_inner() < tiles.into_inner());
}
