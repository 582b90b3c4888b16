//! Steps that compute nothing: what the engine itself costs, for benchmarks.
//!
//! [`Engine::drill_step`] takes the workers through all stages and tiles of a training step,
//! with every counter and every notification of a real one. [`Engine::drill_seats`] hands
//! out two seats of a run of many equal tiles, to take and to steal them one by one from
//! threads of the caller's choice. Neither needs a trainer or its pools.
#![expect(unsafe_code, reason = "a job's interface")]

use super::idle::Idle;
use super::observe::{Activity, Observer, Unobserved};
use super::worker::Served;
use super::{Engine, EngineError, Job, Taken, UnderWay, Worker};
use crate::primitive::Ordering;
use crate::program::{Op, Run, Section};

/// Does nothing, and says so as a step does.
pub(super) struct Nothing;

impl Job for Nothing {
    unsafe fn run(&self, ops: &[Op], taken: &Taken, _seat: usize, observer: &mut dyn Observer) {
        let Taken { id: stage, tile, stolen, .. } = *taken;
        let op = ops.get(taken.stage.first_op as usize).copied().unwrap_or(Op::EMPTY);
        observer.enter(Activity::Tile { stage, op, tile, stolen });
    }
}

/// The runs of a training step of one batch.
const STEP: [Run; 2] = [Run::Gradients { pack: true }, Run::Update];

/// What a drilled step consisted of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drilled {
    /// Runs of the engine.
    pub runs: usize,
    /// Stages of all runs.
    pub stages: usize,
    /// Tiles of all stages.
    pub tiles: usize,
}

impl Engine<'_> {
    /// Runs all that a training step of one batch does, but for what its tiles compute.
    ///
    /// # Errors
    /// Another run is under way.
    pub fn drill_step(&self, idle: &dyn Idle) -> Result<Drilled, EngineError> {
        let mut drilled = Drilled::default();
        for run in STEP {
            let sections = run.sections();
            self.run(&Nothing, sections, idle)?;
            drilled.runs += 1;
            for section in sections {
                let slots = &self.slots[self.sections[*section as usize].clone()];
                drilled.stages += slots.len();
                drilled.tiles += slots.iter().map(|slot| slot.stage.tiles as usize).sum::<usize>();
            }
        }
        Ok(drilled)
    }

    /// Calls `body` with two seats, between which the tiles of an update of the parameters
    /// are shared out, and no other workers. Tiles that are left when it returns are dropped.
    ///
    /// # Errors
    /// Another run is under way, or fewer than two seats are free.
    pub fn drill_seats<I: Idle, R>(
        &self,
        idle: &I,
        body: impl FnOnce([DrillSeat<'_, I>; 2]) -> R,
    ) -> Result<R, EngineError> {
        if self.busy.swap(true, Ordering::Acquire) {
            return Err(EngineError::Busy);
        }
        let under_way = UnderWay { engine: self, idle };
        let id = self.sections[Section::Update as usize].start;
        let join = || Worker::join(self, idle).map_err(|_| EngineError::Busy);
        let seats = [join()?, join()?].map(|worker| DrillSeat { worker, id });
        self.publish(&Nothing, &[Section::Update], idle);
        let result = body(seats);
        drop(under_way);
        Ok(result)
    }
}

/// A seat of [`Engine::drill_seats`], for one thread.
#[derive(Debug)]
pub struct DrillSeat<'e, I: Idle> {
    worker: Worker<'e, I>,
    id: usize,
}

impl<I: Idle> DrillSeat<'_, I> {
    /// Takes the next tile of the own share and runs it; false if there is none.
    pub fn take(&mut self) -> bool {
        let id = self.id;
        let served = self.worker.serve_one(&mut Unobserved, |worker| {
            worker.look()?;
            worker.take_own(id)
        });
        served == Served::Tile
    }

    /// Takes a tile from the back of the other's share and runs it; false if there is
    /// none. While the own share is not empty it is one tile, and then half of theirs.
    pub fn steal(&mut self) -> bool {
        let id = self.id;
        let served = self.worker.serve_one(&mut Unobserved, |worker| {
            let (members, _) = worker.look()?;
            worker.steal(id, members)
        });
        served == Served::Tile
    }
}
