//! Thousands of steps while workers join, leave and stall: nothing hangs, nothing is lost,
//! and the bits are those of one thread.

mod support;

use cllm_core::{
    Activity, Architecture, Batch, BatchShape, Engine, Idle, Kernels, Mode, ModelConfig, Observer,
    Optimizer, Plan, Tiling, Trainer, Worker,
};
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use support::memory::Memory;

const CONFIG: ModelConfig = ModelConfig {
    vocab_size: 32,
    block_size: 16,
    n_layer: 2,
    n_head: 2,
    d_model: 16,
    d_ff: 32,
    bias: true,
    tied: true,
    dropout: 0.0,
    norm_eps: 1e-5,
    arch: Architecture::GPT2,
};
const SHAPE: BatchShape = BatchShape { sequences: 20, tokens: 16 };

/// Steps of each run; `STRESS_STEPS` overrides, for checkers under which they take long.
fn steps() -> u32 {
    std::env::var("STRESS_STEPS").map_or(3000, |steps| steps.parse().unwrap())
}

fn random(state: &Cell<u32>) -> u32 {
    let mut x = state.get();
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    state.set(x);
    x
}

/// Pauses, yields and "parks" (sleeps a moment) at random, and leaves now and then.
struct Fickle<'a> {
    dice: Cell<u32>,
    /// Steps that are over; [`OVER`] at the end.
    step: &'a AtomicU32,
    /// It leaves when so many are. Counted in steps, not in times it is asked: how often
    /// that is depends on the machine.
    leaves_at: Cell<u32>,
    parked: &'a AtomicU64,
}

const OVER: u32 = u32::MAX;

impl Idle for Fickle<'_> {
    fn pause(&self, round: u32) -> bool {
        if round < 20 {
            core::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
        round < 200 || !random(&self.dice).is_multiple_of(4)
    }

    fn park(&self, word: &AtomicU32, seen: u32) {
        // Not a futex: it may oversleep a wake-up, as a stalled thread does.
        if word.load(Ordering::Acquire) == seen {
            self.parked.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn wake(&self, _: &AtomicU32) {}

    fn stays(&self) -> bool {
        self.step.load(Ordering::Relaxed) < self.leaves_at.get()
    }
}

/// Stalls inside a tile now and then.
struct Stalls(Cell<u32>);

impl Observer for Stalls {
    fn enter(&mut self, activity: Activity) {
        let rare = random(&self.0).is_multiple_of(5000);
        if rare && matches!(activity, Activity::Tile { .. }) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The weights after all steps, as bits; `threads` come and go.
fn train(kernels: &'static Kernels, threads: usize, counts: &[AtomicU64; 2]) -> Vec<u32> {
    let plan = Plan::with_tiling(
        &CONFIG,
        SHAPE,
        threads.max(1),
        &Tiling::for_workers(4),
        Mode::Train,
        kernels,
    )
    .unwrap();
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).unwrap();
    let n = plan.tokens();
    let ids: Vec<u32> = (0..n as u32 + 1).map(|i| i * i % 31).collect();
    let mut weights = Vec::new();
    let [joins, parked] = counts;
    let (steps, step) = (steps(), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for thread in 0..threads as u32 {
            let (engine, step) = (&engine, &step);
            scope.spawn(move || {
                let dice = Cell::new(thread * 7919 + 1);
                let idle = Fickle { dice, step, leaves_at: Cell::new(0), parked };
                let mut stalls = Stalls(Cell::new(thread + 77));
                loop {
                    let now = step.load(Ordering::Relaxed);
                    if now == OVER {
                        break;
                    }
                    // As often in few steps as in many.
                    let stay = 1 + random(&idle.dice) % (steps / 8).max(1);
                    idle.leaves_at.set(now + stay);
                    // Full while the caller sits in the only seat, having found nobody there.
                    if Worker::run_observed(engine, &idle, &mut stalls).is_ok() {
                        joins.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_micros(u64::from(random(&idle.dice) % 200)));
                }
            });
        }
        let never = Cell::new(OVER);
        let idle = Fickle { dice: Cell::new(99), step: &step, leaves_at: never, parked };
        let idle = Alone(std::sync::Mutex::new(idle));
        let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 3).unwrap().wait_with(&idle);
        trainer.initialise();
        for now in 0..steps {
            step.store(now, Ordering::Relaxed);
            engine.limit_workers(1 + now as usize / 10 % threads.max(1));
            let batch = Batch::new(&ids[..n], &ids[1..]);
            trainer.accumulate(&batch, n).unwrap();
            trainer.update(&Optimizer::default(), 1e-3).unwrap();
        }
        weights = trainer.parameters().iter().map(|x| x.to_bits()).collect();
        step.store(OVER, Ordering::Relaxed);
    });
    weights
}

/// The caller's idle is shared with the trainer.
struct Alone<'a>(std::sync::Mutex<Fickle<'a>>);

impl Idle for Alone<'_> {
    fn pause(&self, round: u32) -> bool {
        self.0.lock().unwrap().pause(round)
    }

    fn park(&self, word: &AtomicU32, seen: u32) {
        self.0.lock().unwrap().park(word, seen);
    }

    fn wake(&self, _: &AtomicU32) {}
}

#[test]
fn thousands_of_steps_survive_workers_that_come_and_go() {
    let kernels = Kernels::detect();
    let counts = [const { AtomicU64::new(0) }; 2];
    let alone = train(kernels, 0, &counts);
    let mut ever_parked = 0;
    for threads in [1, 2, 5] {
        let counts = [const { AtomicU64::new(0) }; 2];
        let bits = train(kernels, threads, &counts);
        assert!(bits == alone, "{threads} threads that come and go change the bits");
        let [joins, parked] = counts.map(AtomicU64::into_inner);
        assert!(joins > 2 * threads as u64, "only {joins} joins: nobody left");
        // One or two, to whom a busy machine gives no time to wait, may not.
        ever_parked += parked;
    }
    assert!(ever_parked > 0, "nobody parked");
}
