//! Rehearsing a run: who would take which tile when, without computing anything.
//!
//! ```text
//! actors = one for each seat                    (join; the caller keeps them)
//! rehearsal = begin(run)                        shares are cut and opened as for a real run
//!   some actor: take() -> a tile or none        the worker's own code
//!   complete(tile)                              the engine's own code
//! until has_ended
//! ```
//! The caller decides in which order actors take and complete, by a clock of its own: what
//! comes out is what the scheduler does with tiles of such durations on as many workers,
//! however few cores there are here. An actor that found nothing may find something after
//! the next completion, not before. Real workers that serve the engine meanwhile would take
//! tiles too, so there should be none.

use super::drill::Nothing;
use super::worker::{SeatError, Worker};
use super::{Engine, EngineError, Shape, Spin, Taken, UnderWay};
use crate::plan::Plan;
use crate::primitive::Ordering;
use crate::program::{self, Op, Run, Section};

/// A run that is only rehearsed. Dropped before its end it is taken back.
///
/// ```
/// use cllm_core::*;
///
/// # let config = ModelConfig { vocab_size: 40, block_size: 32, n_layer: 1, n_head: 2, d_model: 16,
/// #     d_ff: 48, bias: false, tied: true, dropout: 0.0, norm_eps: 1e-5, arch: Architecture::GPT2 };
/// # let batch = BatchShape { sequences: 4, tokens: 32 };
/// # let plan = Plan::new(&config, batch, 2, Mode::Train, Kernels::detect())?;
/// # let mut ops = vec![Op::EMPTY; plan.ops()];
/// # let mut slots: Vec<_> = (0..plan.slots()).map(|_| Slot::new()).collect();
/// # let mut words: Vec<_> = (0..plan.words()).map(|_| 0.into()).collect();
/// # let queue = Queue { ops: &mut ops, slots: &mut slots, words: &mut words };
/// // Two workers, of which the second one is three times as fast.
/// let engine = Engine::new(&plan, queue)?;
/// let mut actors = [Actor::join(&engine)?, Actor::join(&engine)?];
/// let run = Run::Losses { pack: true };
/// let rehearsal = Rehearsal::begin(&engine, run)?;
/// let mut taken = [0_u32; 2];
/// for turn in 0.. {
///     if rehearsal.has_ended() {
///         break;
///     }
///     let who = usize::from(turn % 4 > 0);
///     if let Some(tile) = actors[who].take() {
///         taken[who] += 1;
///         rehearsal.complete(&tile);
///     }
/// }
/// let stages = engine.stages().filter(|stage| stage.is_in(run));
/// assert_eq!(taken[0] + taken[1], stages.map(|stage| stage.tiles()).sum::<u32>());
/// assert!(taken[0] < taken[1]);
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
pub struct Rehearsal<'e> {
    engine: &'e Engine<'e>,
    _under_way: UnderWay<'e, 'e, Spin>,
}

/// A worker that acts when it is told to.
#[derive(Debug)]
pub struct Actor<'e>(Worker<'e, Spin>);

/// A tile that an actor has taken.
#[derive(Clone, Copy, Debug)]
pub struct ActedTile(Taken);

impl ActedTile {
    /// Number of its stage.
    #[must_use]
    pub fn stage(&self) -> usize {
        self.0.id
    }

    /// Which of the stage's tiles.
    #[must_use]
    pub fn tile(&self) -> u32 {
        self.0.tile
    }

    /// Whether it was another worker's.
    #[must_use]
    pub fn stolen(&self) -> bool {
        self.0.stolen
    }
}

impl<'e> Actor<'e> {
    /// Takes a seat.
    ///
    /// # Errors
    /// There is none left, or the engine is closed.
    pub fn join(engine: &'e Engine<'e>) -> Result<Self, SeatError> {
        Worker::join(engine, &Spin).map(Self).map_err(|(error, _)| error)
    }

    /// Takes a tile that is ready, if there is one.
    pub fn take(&mut self) -> Option<ActedTile> {
        self.0.take().map(ActedTile)
    }
}

impl<'e> Rehearsal<'e> {
    /// Begins to rehearse `run` with the actors that have joined.
    ///
    /// # Errors
    /// Another run is under way.
    pub fn begin(engine: &'e Engine<'e>, run: Run) -> Result<Self, EngineError> {
        if engine.busy.swap(true, Ordering::Acquire) {
            return Err(EngineError::Busy);
        }
        let under_way = UnderWay { engine, idle: &Spin };
        engine.publish(&Nothing, run.sections(), &Spin);
        Ok(Self { engine, _under_way: under_way })
    }

    /// Says that a tile of this run is done; each is completed once.
    pub fn complete(&self, tile: &ActedTile) {
        self.engine.complete(&tile.0, &Spin);
    }

    /// Where the gradients begin that are final, up to the end of their arena, as
    /// [`Ripening::first`](crate::Ripening::first) would say. The engine's plan is `plan`.
    #[must_use]
    pub fn final_from(&self, plan: &Plan) -> usize {
        self.engine.final_from(plan).min(plan.arena_len())
    }

    /// Whether all tiles are done.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.engine.has_ended()
    }
}

/// A stage of the step, for those who look at one from outside.
#[derive(Clone, Copy, Debug)]
pub struct StageView<'e> {
    ops: &'e [Op],
    tiles: u32,
    is_chain: bool,
    section: Section,
}

impl<'e> StageView<'e> {
    /// How many tiles it has.
    #[must_use]
    pub fn tiles(&self) -> u32 {
        self.tiles
    }

    /// Its operations.
    #[must_use]
    pub fn ops(&self) -> &'e [Op] {
        self.ops
    }

    /// Operations that tile `tile` goes through, with its number among those of the
    /// operation.
    pub fn ops_of(&self, tile: u32) -> impl Iterator<Item = (Op, u32)> + use<'e> {
        let (all, one) = if self.is_chain {
            (self.ops, None)
        } else {
            (&[][..], program::op_of(self.ops, tile))
        };
        all.iter().map(move |op| (*op, tile)).chain(one)
    }

    /// Times that observers are told of one of its tiles, in a run.
    #[must_use]
    pub fn turns(&self) -> usize {
        self.tiles as usize * if self.is_chain { self.ops.len() } else { 1 }
    }

    /// The part of the step that it belongs to.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.section.name()
    }

    /// Whether `run` contains it.
    #[must_use]
    pub fn is_in(&self, run: Run) -> bool {
        run.sections().contains(&self.section)
    }
}

impl<'a> Engine<'a> {
    /// The stages of the step, in the order of their numbers.
    pub fn stages(&self) -> impl Iterator<Item = StageView<'a>> {
        self.slots.iter().enumerate().filter_map(|(id, slot)| {
            let stage = &slot.stage;
            let ops = self.ops.get(stage.first_op as usize..)?.get(..stage.ops as usize)?;
            let mut sections = Section::ALL.into_iter();
            let section = sections.find(|s| self.sections[*s as usize].contains(&id))?;
            let is_chain = matches!(stage.shape, Shape::Rows { .. });
            Some(StageView { ops, tiles: stage.tiles, is_chain, section })
        })
    }
}
