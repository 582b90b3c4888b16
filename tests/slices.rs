//! Steps that are run a few tiles at a time: the bits of whole steps, what is left of one that is
//! dropped, and who may not come between.

mod support;

use cllm_core::{
    Activity, AdapterSite, AdapterSites, Adapters, Batch, BatchShape, Engine, EngineError,
    Evaluator, Idle, Kernels, Mode, ModelConfig, Moments, Observer, Optimizer, Packing, Param,
    Plan, Slices, Spin, StepError, Tiling, Trainer, Worker,
};
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::panic::catch_unwind;
use support::config::{LLAMA, SHIFTED, SMALL};
use support::counting::{Counting, own_calls};
use support::memory::{self, Memory};
use support::tables::tables;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SHAPE: BatchShape = BatchShape { sequences: 5, tokens: 37 };
const TOKENS: usize = SHAPE.sequences * SHAPE.tokens;
const SEED: u64 = 9;
const LR: f32 = 1e-2;
const ALL: usize = usize::MAX;

fn ids(mut x: u32) -> Vec<u32> {
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) % SMALL.vocab_size as u32
    };
    (0..TOKENS).map(|_| next()).collect()
}

fn plan(config: &ModelConfig, mode: Mode, kernels: &'static Kernels) -> Plan {
    Plan::new(config, SHAPE, 2, mode, kernels).unwrap()
}

fn with_trainer<R>(plan: &Plan, test: impl FnOnce(&mut Trainer<'_>) -> R) -> R {
    memory::with_trainer(plan, Kernels::detect(), SEED, test)
}

/// Runs a step to its end, `tiles` tiles a call, none more and none less.
fn finish<T: Copy>(mut step: Slices<'_, '_, T>, tiles: usize) -> T {
    let total = step.tiles_left();
    assert!(total > 4, "{step:?}");
    let mut left = total;
    loop {
        let done = step.run_for(tiles).unwrap();
        left = left.saturating_sub(tiles);
        assert_eq!((step.tiles_left(), done.is_some()), (left, left == 0));
        if let Some(result) = done {
            return result;
        }
    }
}

/// All that a trainer knows, as bits.
fn state(trainer: &Trainer<'_>) -> Vec<u32> {
    let Moments::AdamW { first, second } = trainer.moments() else {
        unreachable!("the plans are for AdamW");
    };
    let floats = trainer.parameters().iter().chain(first).chain(second);
    floats.map(|x| x.to_bits()).chain([trainer.updates() as u32]).collect()
}

/// Two steps of two micro-batches with an evaluation in their middle, as wholes or in slices of so many
/// tiles: what came of each, and the state behind them.
fn train(trainer: &mut Trainer<'_>, slices: Option<usize>) -> Vec<u32> {
    let mut bits = Vec::new();
    for step in 0..2 {
        for micro in 0..2 {
            let (tokens, targets) = (ids(2 * step + micro), ids(100 + 2 * step + micro));
            let batch = Batch::new(&tokens, &targets);
            let [loss, held_out] = match slices {
                None => [trainer.accumulate(&batch, 2 * TOKENS), trainer.evaluate(&batch)]
                    .map(Result::unwrap),
                Some(tiles) => [
                    finish(trainer.accumulate_in_slices(&batch, 2 * TOKENS).unwrap(), tiles),
                    finish(trainer.evaluate_in_slices(&batch).unwrap(), tiles),
                ],
            };
            bits.extend([loss, held_out].map(|loss| (loss.sum as f32).to_bits()));
        }
        let report = match slices {
            None => trainer.update(&Optimizer::default(), LR).unwrap(),
            Some(tiles) => {
                finish(trainer.update_in_slices(&Optimizer::default(), LR).unwrap(), tiles)
            }
        };
        bits.extend([(report.grad_norm as f32).to_bits(), report.scale.to_bits()]);
    }
    bits.extend(state(trainer));
    bits
}

#[test]
fn slices_of_any_size_give_the_bits_of_whole_steps() {
    for kernels in tables() {
        let plain = ModelConfig { dropout: 0.0, ..LLAMA };
        let adapters = Adapters {
            rank: 4,
            scale: 1.5,
            sites: AdapterSites::of(&[AdapterSite::Qkv, AdapterSite::MlpOut]),
        };
        let fresh = Tiling { packing: Some(Packing::Fresh), workers: Some(8), ..Tiling::default() };
        let kept = Tiling { packing: Some(Packing::Once), ..Tiling::default() };
        for (config, mode, adapters, tiling) in [
            (SMALL, Mode::Train, None, Tiling::default()),
            (SMALL, Mode::Recompute, Some(&adapters), kept),
            (SHIFTED, Mode::Recompute, None, fresh),
            (plain, Mode::Train, None, fresh),
        ] {
            let plan = Plan::with_adapters(&config, adapters, SHAPE, 2, &tiling, mode, kernels);
            let plan = plan.unwrap();
            let run = |slices| {
                memory::with_adapter_dropout(&plan, kernels, SEED, &[0; 1 << 17], 0.1, |trainer| {
                    train(trainer, slices)
                })
            };
            let whole = run(None);
            // How tiles are counted off does not depend on the kernels.
            let here = core::ptr::eq(kernels, Kernels::detect());
            let sizes: &[usize] = if here { &[1, 3, 7, 1000, ALL] } else { &[3] };
            for &tiles in sizes {
                let sliced = run(Some(tiles));
                assert!(sliced == whole, "{kernels:?}: {config:?} {mode:?}, slices of {tiles}");
            }
        }
    }
}

#[test]
fn evaluators_work_in_slices_too() {
    let kernels = Kernels::detect();
    let plan = plan(&SMALL, Mode::Evaluate, kernels);
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    let mut evaluator = Evaluator::new(&plan, kernels, pools, &engine).unwrap();
    for (at, weight) in evaluator.parameters_mut().iter_mut().enumerate() {
        *weight = (at as f32).sin() / 8.0;
    }
    let (tokens, targets) = (ids(1), ids(2));
    let batch = Batch::new(&tokens, &targets);
    // The first one packs the weights, unless it is dropped before its end.
    assert_eq!(evaluator.evaluate_in_slices(&batch).unwrap().run_for(3), Ok(None));
    let sliced = finish(evaluator.evaluate_in_slices(&batch).unwrap(), 3);
    assert_eq!(evaluator.evaluate(&batch), Ok(sliced));
    let short = Batch::new(&tokens[1..], &targets);
    assert!(matches!(evaluator.evaluate_in_slices(&short), Err(StepError::BatchSize { .. })));
}

#[test]
fn a_step_in_slices_allocates_nothing_and_may_go_from_thread_to_thread() {
    let plan = plan(&SMALL, Mode::Train, Kernels::detect());
    let (tokens, targets) = (ids(1), ids(2));
    let batch = Batch::new(&tokens, &targets);
    let whole = with_trainer(&plan, |trainer| trainer.accumulate(&batch, TOKENS)).unwrap();
    with_trainer(&plan, |trainer| {
        let before = own_calls();
        let loss = finish(trainer.accumulate_in_slices(&batch, TOKENS).unwrap(), 2);
        assert_eq!(trainer.evaluate_in_slices(&batch).unwrap().run_for(5), Ok(None));
        assert_eq!((own_calls() - before, loss), (0, whole));

        trainer.initialise();
        let mut step = trainer.accumulate_in_slices(&batch, TOKENS).unwrap();
        while step.tiles_left() > 0 {
            step = std::thread::scope(|scope| {
                let elsewhere = scope.spawn(move || {
                    let _ = step.run_for(9).unwrap();
                    step
                });
                elsewhere.join().unwrap()
            });
        }
        assert_eq!((step.run_for(1), step.run_for(0)), (Ok(Some(whole)), Ok(Some(whole))));
    });
}

/// Where a step of so many tiles is dropped.
fn cuts(total: usize) -> [usize; 6] {
    [0, 1, 2, total / 3, total / 2, total - 1]
}

#[test]
fn gradients_that_are_dropped_begin_anew() {
    let plan = plan(&SMALL, Mode::Recompute, Kernels::detect());
    let never = with_trainer(&plan, |trainer| train(trainer, None));
    let (tokens, targets) = (ids(1), ids(2));
    let batch = Batch::new(&tokens, &targets);
    with_trainer(&plan, |trainer| {
        let before = state(trainer);
        for cut in 0..6 {
            // With gradients of an earlier micro-batch, which are gone as well.
            trainer.accumulate(&batch, 2 * TOKENS).unwrap();
            let mut step = trainer.accumulate_in_slices(&batch, 2 * TOKENS).unwrap();
            let tiles = cuts(step.tiles_left())[cut];
            assert_eq!(step.run_for(tiles), Ok(None));
            drop(step);
            assert!(state(trainer) == before, "dropped after {tiles} tiles");
            let none = Err(StepError::NoGradients);
            assert_eq!(trainer.update(&Optimizer::default(), LR), none);
        }
        assert!(train(trainer, Some(5)) == never, "a step that was dropped has left something");
    });
}

#[test]
fn an_evaluation_that_is_dropped_leaves_the_gradients() {
    let plan = plan(&SMALL, Mode::Train, Kernels::detect());
    let (tokens, targets) = (ids(1), ids(2));
    let batch = Batch::new(&tokens, &targets);
    let step = |evaluate: &dyn Fn(&mut Trainer<'_>)| {
        with_trainer(&plan, |trainer| {
            trainer.accumulate(&batch, 2 * TOKENS).unwrap();
            evaluate(trainer);
            trainer.accumulate(&batch, 2 * TOKENS).unwrap();
            trainer.update(&Optimizer::default(), LR).unwrap();
            state(trainer)
        })
    };
    let plain = step(&|_| ());
    let dropped = step(&|trainer| {
        let total = trainer.evaluate_in_slices(&batch).unwrap().tiles_left();
        for tiles in cuts(total) {
            assert_eq!(trainer.evaluate_in_slices(&batch).unwrap().run_for(tiles), Ok(None));
        }
    });
    assert!(dropped == plain);
}

#[test]
fn an_update_that_is_dropped_is_half_done_and_steps_are_refused() {
    let plan = plan(&SMALL, Mode::Train, Kernels::detect());
    let fresh = with_trainer(&plan, |trainer| train(trainer, None));
    let (tokens, targets) = (ids(1), ids(2));
    let batch = Batch::new(&tokens, &targets);
    let rule = Optimizer::default();
    with_trainer(&plan, |trainer| {
        let before = state(trainer);
        let weights = trainer.parameters().to_vec();
        trainer.accumulate(&batch, TOKENS).unwrap();
        let mut step = trainer.update_in_slices(&rule, LR).unwrap();
        let total = step.tiles_left();
        assert_eq!(step.run_for(0), Ok(None));
        drop(step);
        // Without a tile nothing has happened, but that the gradients are used up.
        assert!(state(trainer) == before);
        assert_eq!(trainer.update_in_slices(&rule, LR).err(), Some(StepError::NoGradients));

        let mut updated = 0;
        for tiles in cuts(total).into_iter().skip(1) {
            trainer.accumulate(&batch, TOKENS).unwrap();
            assert_eq!(trainer.update_in_slices(&rule, LR).unwrap().run_for(tiles), Ok(None));
            updated += usize::from(state(trainer) != before);
            let half = Some(StepError::HalfUpdated);
            assert_eq!(trainer.accumulate(&batch, TOKENS).err(), half);
            assert_eq!(trainer.accumulate_in_slices(&batch, TOKENS).err(), half);
            assert_eq!(trainer.evaluate(&batch).err(), half);
            assert_eq!(trainer.evaluate_in_slices(&batch).err(), half);
            assert_eq!(trainer.update(&rule, LR).err(), half);
            assert_eq!(trainer.update_in_slices(&rule, LR).err(), half);
            assert_eq!(trainer.updates(), 0);
            let failed = trainer.restore(0, |_, _| Err("no checkpoint"));
            assert_eq!((failed, trainer.evaluate(&batch).err()), (Err("no checkpoint"), half));
            let restored = trainer.restore(0, |all, _| {
                all.copy_from_slice(&weights);
                Ok::<(), ()>(())
            });
            assert_eq!((restored, state(trainer) == before), (Ok(()), true));
        }
        assert!(updated > 2, "no weight was updated before an update was dropped");
        trainer.accumulate(&batch, TOKENS).unwrap();
        assert_eq!(trainer.update_in_slices(&rule, LR).unwrap().run_for(total / 2), Ok(None));
        trainer.initialise();
        assert!(train(trainer, Some(2)) == fresh);
    });
}

#[test]
fn what_makes_no_sense_is_refused_as_of_whole_steps() {
    let plan = plan(&SMALL, Mode::Train, Kernels::detect());
    let (tokens, targets) = (ids(1), ids(2));
    let good = Batch::new(&tokens, &targets);
    let rule = Optimizer::default();
    with_trainer(&plan, |trainer| {
        let short = Batch::new(&tokens[1..], &targets);
        let size = StepError::BatchSize { need: TOKENS, tokens: TOKENS - 1, targets: TOKENS };
        assert_eq!(trainer.accumulate_in_slices(&short, TOKENS).err(), Some(size));
        assert_eq!(trainer.evaluate_in_slices(&short).err(), Some(size));
        let nothing = Some(StepError::NothingCounts);
        assert_eq!(trainer.accumulate_in_slices(&good, 0).err(), nothing);
        assert_eq!(trainer.update_in_slices(&rule, LR).err(), Some(StepError::NoGradients));
        finish(trainer.accumulate_in_slices(&good, TOKENS).unwrap(), 4);
        let error = trainer.update_in_slices(&rule, f32::NAN).err();
        assert!(matches!(error, Some(StepError::Optimizer(_))), "{error:?}");
        assert_eq!(trainer.update_in_slices(&rule, LR).err(), Some(StepError::NoGradients));

        let before = trainer.parameters().to_vec();
        let at = before.len() / 2;
        trainer.parameters_mut()[at] = f32::NAN;
        let mut step = trainer.accumulate_in_slices(&good, TOKENS).unwrap();
        for _ in 0..2 {
            assert!(matches!(step.run_for(ALL), Err(StepError::NonFiniteLoss(_))));
        }
        drop(step);
        trainer.parameters_mut()[at] = before[at];
        assert_eq!((trainer.updates(), trainer.parameters() == before), (0, true));
        assert!(trainer.accumulate(&good, TOKENS).is_ok());
    });
}

/// A token of which the model is wrongly sure by a number that is finite, and its gradient is not.
#[test]
fn a_gradient_that_is_not_finite_leaves_the_weights() {
    let config = ModelConfig { tied: false, dropout: 0.0, ..SMALL };
    let plan = plan(&config, Mode::Train, Kernels::detect());
    let at = |param| plan.table().spec(param).unwrap().offset;
    let (tokens, targets) = (ids(1), ids(2));
    let batch = Batch::new(&tokens, &targets);
    with_trainer(&plan, |trainer| {
        trainer.parameters_mut()[at(Param::Head)] = 1e38;
        trainer.parameters_mut()[at(Param::FinalGain)] = 1e-3;
        let before = state(trainer);
        finish(trainer.accumulate_in_slices(&batch, 1).unwrap(), 5);
        let mut step = trainer.update_in_slices(&Optimizer::default(), LR).unwrap();
        for _ in 0..2 {
            assert!(matches!(step.run_for(ALL), Err(StepError::NonFiniteGradient(_))));
        }
        drop(step);
        assert!(state(trainer) == before);
        assert!(trainer.accumulate(&batch, TOKENS).is_ok(), "no weight is half updated");
    });
}

/// Yields, until it is wanted elsewhere.
struct Borrowed<'a>(&'a AtomicBool);

impl Idle for Borrowed<'_> {
    fn pause(&self, _: u32) -> bool {
        std::thread::yield_now();
        true
    }

    fn park(&self, _: &AtomicU32, _: u32) {}

    fn wake(&self, _: &AtomicU32) {}

    fn stays(&self) -> bool {
        !self.0.load(SeqCst)
    }
}

/// Counts tiles' operations.
struct Count<'a>(&'a AtomicU32);

impl Observer for Count<'_> {
    fn enter(&mut self, activity: Activity) {
        self.0.fetch_add(u32::from(matches!(activity, Activity::Tile { .. })), SeqCst);
    }
}

/// Runs `test` on a trainer of an engine with so many seats; the second function has a worker come and the
/// third one has all leave; the count is of workers' operations.
fn with_workers(
    seats: usize,
    test: impl FnOnce(&mut Trainer<'_>, &Engine<'_>, &dyn Fn(), &dyn Fn(), &AtomicU32),
) {
    let kernels = Kernels::detect();
    let plan = Plan::new(&SMALL, SHAPE, seats, Mode::Train, kernels).unwrap();
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    let (elsewhere, count) = (AtomicBool::new(false), AtomicU32::new(0));
    let idle = Borrowed(&elsewhere);
    let for_trainer = AtomicBool::new(false);
    let own_idle = Borrowed(&for_trainer);
    std::thread::scope(|scope| {
        let come = || {
            scope.spawn(|| Worker::run_observed(&engine, &idle, &mut Count(&count)).unwrap());
        };
        let leave = || {
            elsewhere.store(true, SeqCst);
            while engine.workers() > 0 {
                std::thread::yield_now();
            }
            elsewhere.store(false, SeqCst);
        };
        let trainer = Trainer::new(&plan, kernels, pools, &engine, SEED).unwrap();
        let mut trainer = trainer.wait_with(&own_idle);
        trainer.initialise();
        let ran = catch_unwind(AssertUnwindSafe(|| {
            test(&mut trainer, &engine, &come, &leave, &count);
        }));
        // Or the scope would wait for the workers.
        engine.close(&own_idle);
        if let Err(panic) = ran {
            std::panic::resume_unwind(panic);
        }
    });
}

fn until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::yield_now();
    }
}

#[test]
fn slices_are_refused_while_workers_serve_and_who_comes_later_rests() {
    let (tokens, targets) = (ids(1), ids(2));
    let batch = Batch::new(&tokens, &targets);
    let whole = with_trainer(&plan(&SMALL, Mode::Train, Kernels::detect()), |trainer| {
        trainer.accumulate(&batch, TOKENS).unwrap()
    });
    with_workers(2, |trainer, engine, come, leave, count| {
        come();
        until(|| engine.workers() == 1);
        let attended = Some(StepError::Engine(EngineError::Attended));
        assert_eq!(trainer.accumulate_in_slices(&batch, TOKENS).err(), attended);
        assert_eq!(trainer.evaluate_in_slices(&batch).err(), attended);
        trainer.accumulate(&batch, TOKENS).unwrap();
        let error = trainer.update_in_slices(&Optimizer::default(), LR).err();
        assert_eq!(error, attended);
        // The engine is as before.
        let before = count.load(SeqCst);
        assert_eq!(trainer.accumulate(&batch, TOKENS), Ok(whole));
        assert!(count.load(SeqCst) > before, "the worker does what whole steps want");
        leave();

        trainer.initialise();
        let before = count.load(SeqCst);
        let mut step = trainer.accumulate_in_slices(&batch, TOKENS).unwrap();
        assert_eq!(step.run_for(5), Ok(None));
        come();
        until(|| engine.workers() == 1);
        // Time enough for a worker that would take a tile.
        std::thread::sleep(core::time::Duration::from_millis(20));
        assert_eq!(finish(step, 2), whole);
        assert_eq!(count.load(SeqCst), before, "a worker has run a tile of slices");
        assert_eq!(trainer.evaluate_in_slices(&batch).err(), attended);
        assert!(trainer.evaluate(&batch).is_ok());
        assert!(count.load(SeqCst) > before, "it takes part in what is run as a whole");
    });
}

#[test]
fn a_worker_waits_for_the_only_seat_and_has_it_after_a_drop() {
    let (tokens, targets) = (ids(1), ids(2));
    let batch = Batch::new(&tokens, &targets);
    with_workers(1, |trainer, engine, come, leave, count| {
        let mut step = trainer.accumulate_in_slices(&batch, TOKENS).unwrap();
        assert_eq!(step.run_for(3), Ok(None));
        come();
        std::thread::sleep(core::time::Duration::from_millis(20));
        assert_eq!(engine.workers(), 0);
        assert_eq!(step.run_for(3), Ok(None));
        drop(step);
        until(|| engine.workers() == 1);
        assert_eq!(count.load(SeqCst), 0);
        assert!(trainer.accumulate(&batch, TOKENS).is_ok());
        assert!(count.load(SeqCst) > 0, "the seat is the worker's");
        leave();
        // Where nobody can come any more, the caller works on.
        engine.close(&Spin);
        assert!(Worker::run(engine, &Spin).is_err());
        finish(trainer.accumulate_in_slices(&batch, TOKENS).unwrap(), 6);
        finish(trainer.update_in_slices(&Optimizer::default(), LR).unwrap(), 6);
        assert_eq!(trainer.updates(), 1);
    });
}

#[test]
fn one_run_is_under_way_at_a_time() {
    let kernels = Kernels::detect();
    let plan = plan(&SMALL, Mode::Train, kernels);
    let (mut memory, mut other) = (Memory::new(&plan), Memory::new(&plan));
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    let mut trainer = Trainer::new(&plan, kernels, pools, &engine, SEED).unwrap();
    trainer.initialise();
    let mut evaluator = Evaluator::new(&plan, kernels, other.parts().0, &engine).unwrap();
    let (tokens, targets) = (ids(1), ids(2));
    let batch = Batch::new(&tokens, &targets);
    let busy = Some(StepError::Engine(EngineError::Busy));
    let mut step = trainer.accumulate_in_slices(&batch, TOKENS).unwrap();
    assert_eq!(step.run_for(3), Ok(None));
    assert_eq!(evaluator.evaluate(&batch).err(), busy);
    assert_eq!(evaluator.evaluate_in_slices(&batch).err(), busy);
    let loss = step.run_for(ALL).unwrap();
    // The engine is free as soon as the step is over.
    assert!(evaluator.evaluate(&batch).is_ok());
    assert_eq!((step.run_for(1), loss.is_some()), (Ok(loss), true));
    drop(step);
    // Nobody can say when one that is forgotten is over.
    core::mem::forget(trainer.evaluate_in_slices(&batch));
    assert_eq!(trainer.evaluate(&batch).err(), busy);
}

/// Panics at one operation.
struct Bomb(u32);

impl Observer for Bomb {
    fn enter(&mut self, activity: Activity) {
        if let Activity::Tile { .. } = activity {
            self.0 -= 1;
            assert!(self.0 > 0, "forced by the test");
        }
    }
}

/// Whether a tile of the next call panics, and what further calls say.
fn explode<T: Copy>(step: &mut Slices<'_, '_, T>, fuse: u32) -> Option<StepError> {
    let run = || step.run_for_observed(ALL, &mut Bomb(fuse));
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    let error = step.run_for(1).err();
    assert_eq!((step.run_for(ALL).err(), step.tiles_left()), (error, 0));
    error
}

#[test]
fn a_panic_in_a_tile_is_an_error_of_further_calls() {
    let plan = plan(&SMALL, Mode::Train, Kernels::detect());
    let fresh = with_trainer(&plan, |trainer| train(trainer, None));
    let (tokens, targets) = (ids(1), ids(2));
    let batch = Batch::new(&tokens, &targets);
    let panicked = Some(StepError::Engine(EngineError::Panicked));
    with_trainer(&plan, |trainer| {
        for fuse in [1, 2, 17, 60] {
            let mut step = trainer.accumulate_in_slices(&batch, TOKENS).unwrap();
            assert_eq!(explode(&mut step, fuse), panicked);
            drop(step);
            let none = Some(StepError::NoGradients);
            assert_eq!(trainer.update(&Optimizer::default(), LR).err(), none);
        }
        trainer.accumulate(&batch, TOKENS).unwrap();
        let mut step = trainer.update_in_slices(&Optimizer::default(), LR).unwrap();
        assert_eq!(explode(&mut step, 5), panicked);
        drop(step);
        assert_eq!(trainer.evaluate(&batch).err(), Some(StepError::HalfUpdated));
        trainer.initialise();
        assert!(train(trainer, Some(3)) == fresh);
    });
}
