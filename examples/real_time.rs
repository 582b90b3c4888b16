//! A control loop with a period of a millisecond, which trains in what is left of each period.
//!
//! `Slices::run_for` runs so many tiles of a step and returns. How long the longest tile takes is
//! measured before the loop starts, as such loops measure all that they do; from then on a
//! period's budget of tiles is the time that is left, divided by that. No other thread, nothing
//! that waits, and the weights are those of whole steps. (Tiles that are too long for a
//! period become shorter with smaller blocks: `Blocking`, for `Plan::with_tiling`.)
//!
//! Deadlines are missed on a system that takes the CPU away, whatever a program does: they are
//! counted, not forbidden. A system with real-time priorities, or none at all, has none of that.
//!
//! Run: `cargo run --release --example real_time`

mod common;

use cllm_core::{Batch, Engine, Optimizer, Slices, Spin};
use common::{Memory, RATE};
use core::time::Duration;
use std::time::Instant;

/// Steps that the longest tile is measured over, which count as training.
const MEASURED: u32 = 6;
const STEPS: u32 = 18;

/// What is controlled: a heater, whose power is set once a period.
struct Plant {
    temperature: f64,
    sum: f64,
}

impl Plant {
    const WANTED: f64 = 60.0;

    /// A proportional and integral controller, and the world.
    fn control(&mut self, seconds: f64) {
        let error = Self::WANTED - self.temperature;
        self.sum += error * seconds;
        let power = (4.0 * error + 8.0 * self.sum).clamp(0.0, 500.0);
        self.temperature += (power - 2.0 * (self.temperature - 20.0)) * seconds;
    }
}

/// The loop: what it controls, and how it keeps its time.
struct Loop {
    plant: Plant,
    period: Duration,
    longest_tile: Duration,
    /// When the current period ends.
    deadline: Instant,
    periods: u32,
    missed: u32,
    tiles: usize,
}

impl Loop {
    /// Goes through as many periods as a step needs, each with the control first.
    fn train<T: Copy>(&mut self, mut step: Slices<'_, '_, T>) -> T {
        loop {
            self.plant.control(self.period.as_secs_f64());
            let mut result = None;
            while result.is_none() {
                let rest = self.deadline.saturating_duration_since(Instant::now());
                let budget = (rest.as_nanos() / self.longest_tile.as_nanos()) as usize;
                if budget == 0 {
                    break;
                }
                let before = step.tiles_left();
                result = step.run_for(budget).expect("the step works");
                self.tiles += before - step.tiles_left();
            }
            self.end_period();
            if let Some(result) = result {
                return result;
            }
        }
    }

    fn end_period(&mut self) {
        self.periods += 1;
        if Instant::now() > self.deadline {
            // Too late for this one: the next period starts now.
            self.missed += 1;
            self.deadline = Instant::now();
        }
        while Instant::now() < self.deadline {
            core::hint::spin_loop();
        }
        self.deadline += self.period;
    }
}

/// Runs a step tile by tile, and writes down how long each takes: the least, of several such steps.
/// Tiles of a step come in the same order each time.
fn measure<T: Copy>(mut step: Slices<'_, '_, T>, times: &mut Vec<Duration>) -> T {
    let total = step.tiles_left();
    times.resize(total, Duration::MAX);
    loop {
        let tile = total - step.tiles_left();
        let begin = Instant::now();
        let result = step.run_for(1).expect("the step works");
        times[tile] = times[tile].min(begin.elapsed());
        if let Some(result) = result {
            return result;
        }
    }
}

pub(crate) fn main() {
    let plan = common::plan(1);
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).expect("the memory is the plan's");
    let mut trainer = common::trainer(&plan, pools, &engine, &Spin);
    let rule = Optimizer::default();

    let mut times = [Vec::new(), Vec::new()];
    for step in 0..MEASURED {
        let [tokens, targets] = common::inputs(&plan, step);
        let batch = Batch::new(&tokens, &targets);
        let gradients = trainer.accumulate_in_slices(&batch, batch.counted());
        measure(gradients.expect("the batch fits"), &mut times[0]);
        measure(trainer.update_in_slices(&rule, RATE).expect("there are gradients"), &mut times[1]);
    }
    let longest_tile = times.iter().flatten().max().copied().expect("a step has tiles");
    // On a machine that is too slow for a millisecond, a longer one.
    let period = Duration::from_millis(1).max(4 * longest_tile);

    let mut control = Loop {
        plant: Plant { temperature: 20.0, sum: 0.0 },
        period,
        longest_tile,
        deadline: Instant::now() + period,
        periods: 0,
        missed: 0,
        tiles: 0,
    };
    for step in MEASURED..STEPS {
        let [tokens, targets] = common::inputs(&plan, step);
        let batch = Batch::new(&tokens, &targets);
        let gradients = trainer.accumulate_in_slices(&batch, batch.counted());
        let loss = control.train(gradients.expect("the batch fits"));
        control.train(trainer.update_in_slices(&rule, RATE).expect("there are gradients"));
        println!("step {step}: loss {:.4}, {:.1} degrees", loss.mean(), control.plant.temperature);
    }
    let Loop { periods, missed, tiles, .. } = control;
    println!(
        "{periods} periods of {period:?}, {missed} deadlines missed; {:.1} tiles a period, of at most {longest_tile:?}",
        tiles as f64 / f64::from(periods)
    );
    // What is missed is the system's doing, which may put the thread aside.
    assert!(2 * missed <= periods, "{missed} of {periods} deadlines were missed");
    let hash = common::hash(trainer.parameters());
    println!("weights {hash:016x}");
    assert_eq!(hash, common::train_alone(STEPS), "the same bits in slices");
}
