//! The engine: who runs which tile of a step, on threads that the caller owns.
//!
//! ```text
//! caller (Trainer)          engine (this memory)               workers (Worker::run)
//! run(job, sections) --->   slots: stage, done                 take: own share, front;
//!   resets, publishes       shares: one word a seat and stage <- else steal, back half
//!   waits                   board: counters of token blocks    run the tile
//!   <----------------------- remaining stages: 0 <------------ done: counters, notify
//! ```
//! The stages of a step are known when the plan is, so they lie in the slots for good;
//! publishing a *run* of them resets their counters and opens a share of each stage's
//! tiles for every seat. A slot is used again run after run: a run starts when all tiles
//! of the last one are **done** (not: taken), and its number is part of each share, so who
//! slept through the change can take nothing. Shares are cut in proportion, so
//! the worker that made a row block is offered the same block in the next stage.
//! `range` has the protocol of taking and stealing, `stage` that of readiness, `idle` that of
//! waiting.
//!
//! **What protects the job.** The job is borrowed for the time of [`Engine::run`] and
//! lies in a cell. The publisher writes the cell before it opens the first share (release);
//! a worker reads it after it has taken a tile (acquire), and the run cannot end before that
//! tile is done (release, acquired through `remaining`). Without a tile nobody looks. A caller that
//! does its run in slices lends the job for each of them: `sliced`.
//!
//! **Progress.** Taking, stealing, completing and publishing are lock-free: a thread that is
//! stopped anywhere between two tiles keeps nobody else from taking, running and completing
//! theirs, but for what follows. Stopped *inside* a tile it delays that tile and what depends on it; stopped within
//! the few instructions that hand over what it stole, those tiles too; stopped between two
//! tiles of one stage, or before it has counted the last of them, the stages that wait for
//! the whole of that one. The run as a whole waits for its last tile. One run is under way at a time.
//!
//! **Panics.** A tile that panics poisons the run: no tile is taken any more, the caller
//! waits until those that were taken are through, and gets [`EngineError::Panicked`].
//! The thread unwinds out of [`Worker::run`] and its seat is free.
#![expect(unsafe_code, reason = "lends a borrowed job to other threads")]

mod alone;
mod along;
mod drill;
mod fault;
mod followed;
mod idle;
#[cfg(all(test, loom))]
mod models;
mod observe;
#[cfg(all(test, not(loom)))]
mod races;
mod range;
mod rehearsal;
mod sliced;
mod stage;
mod stepwise;
#[cfg(all(test, not(loom)))]
mod tests;
mod worker;

pub use drill::{DrillSeat, Drilled};
pub use idle::{Idle, Spin};
pub use observe::{Activity, Observer, Unobserved};
pub(crate) use range::MAX_TILES;
pub use rehearsal::{ActedTile, Actor, Rehearsal, StageView};
pub(crate) use sliced::Sliced;
pub use stage::Slot;
pub(crate) use stage::{Cut, NONE, Needs, Reads, Shape, Stage};
pub(crate) use stepwise::Watched;
use worker::Sitter;
pub use worker::{SeatError, Worker};

use crate::arithmetic::some;
use crate::built::{PIECES, WORKERS};
use crate::plan::{Plan, PlanError, Pool};
use crate::primitive::{AtomicBool, AtomicU32, AtomicWord, Bits, Ordering, UnsafeCell, spin_loop};
use crate::program::{self, Op, Section, To};
use core::fmt;
use crossbeam_utils::CachePadded;
use fault::{Access, fence, happens, order};
use idle::Event;
use range::{Range, Share, next_run};
use stage::Board;

/// Words of a cache line.
const LINE: usize = 8;

/// What [`Pool::Words`] is made of: the widest atomic that the machine has, up to 64 bits. That is
/// `AtomicU64`, or `AtomicU32` where there is none (Cortex-M among others), where a stage has at most
/// 4,095 tiles ([`PlanError::TooManyTiles`]).
///
/// With words of 32 bits there are to be no more workers than cores, where threads can be put aside: the number
/// of a run has 8 bits there, and one that stood still in the middle of taking a tile for exactly a multiple of 256
/// runs (some hundred steps) could take a tile of another run for its own.
pub type Word = AtomicWord;

/// The memory of an [`Engine`]: see [`Plan::ops`], [`Plan::slots`], [`Plan::words`].
///
/// Contents need not be initialised. Words should start on a cache line: workers share
/// lines otherwise.
#[derive(Debug)]
pub struct Queue<'a> {
    /// [`Pool::Operations`].
    pub ops: &'a mut [Op],
    /// [`Pool::Slots`].
    pub slots: &'a mut [Slot],
    /// [`Pool::Words`].
    pub words: &'a mut [Word],
}

/// Why a run did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineError {
    /// A tile panicked; what the run wrote is not to be used.
    Panicked,
    /// Another run is under way.
    Busy,
    /// Workers serve the engine, and the run was to be in slices of a caller that is alone.
    Attended,
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panicked => "a worker panicked in the middle of the step",
            Self::Busy => "the engine is running another step",
            Self::Attended => {
                "workers serve the engine: a step in slices is for a caller alone, so have them leave first, or take the step as a whole"
            }
        })
    }
}

impl core::error::Error for EngineError {}

/// What the tiles of a run do.
pub(crate) trait Job: Sync {
    /// Runs one tile.
    ///
    /// # Safety
    /// The tile is ready (see [`Stage`]), nobody else runs it, and nobody else runs a tile
    /// for `seat`.
    unsafe fn run(&self, ops: &[Op], tile: &Taken, seat: usize, observer: &mut dyn Observer);
}

/// A tile that a worker has taken and must complete.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) id: usize,
    pub(crate) stage: Stage,
    pub(crate) tile: u32,
    pub(crate) stolen: bool,
}

/// Shares a step's tiles among workers. Lives as long as the workers serve it; trainers
/// and evaluators of the plan borrow it.
#[derive(Debug)]
pub struct Engine<'a> {
    /// Seats for workers: each has scratch of its own.
    seats: usize,
    ops: &'a [Op],
    slots: &'a [Slot],
    sections: [core::ops::Range<usize>; Section::COUNT],
    /// Per seat a line: taken, inside a tile.
    seat_words: &'a [Word],
    /// Per seat the shares of all stages, in lines of their own.
    shares: &'a [Word],
    board: Board<'a>,
    /// The run and its stages, as a share.
    published: CachePadded<Word>,
    /// Seats that have shares of the run.
    members: AtomicU32,
    /// Stages of the run that are not done.
    remaining: CachePadded<AtomicU32>,
    /// There may be a tile to take. For those who take part in the run under way.
    work: CachePadded<Event>,
    /// A run has begun or ended, a seat is free, or the engine is closed. For those who take
    /// no part: they are not to be woken for every tile.
    turn: CachePadded<Event>,
    /// The run may be over.
    finished: CachePadded<Event>,
    job: UnsafeCell<Option<*const (dyn Job + 'static)>>,
    busy: AtomicBool,
    poisoned: AtomicBool,
    closed: AtomicBool,
    /// The caller of the run under way is to be told of every stage.
    followed: AtomicBool,
    limit: AtomicU32,
    steal_seed: AtomicU32,
    /// Workers that wait for the caller's seat.
    queueing: AtomicU32,
}

// SAFETY: the job is `Sync`; who reads or writes its cell when is the module's protocol.
unsafe impl Sync for Engine<'_> {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Engine<'_> {}

/// Words of shares of a seat.
const fn share_stride(stages: usize) -> usize {
    stages.next_multiple_of(LINE)
}

/// Words that `seats` workers need for `stages` stages; `None` on overflow.
pub(crate) const fn words(seats: usize, stages: usize, cut: &Cut) -> Option<usize> {
    some!(seats.checked_mul(LINE + share_stride(stages))).checked_add(cut.counters())
}

impl<'a> Engine<'a> {
    /// An engine for the steps of `plan`.
    ///
    /// # Errors
    /// A pool of the queue is smaller than planned.
    pub fn new(plan: &Plan, queue: Queue<'a>) -> Result<Self, PlanError> {
        plan.check(Pool::Operations, size_of_val(queue.ops))?;
        plan.check(Pool::Slots, size_of_val(queue.slots))?;
        plan.check(Pool::Words, size_of_val(queue.words))?;
        // `Plan::new` has seen every operation and stage fit.
        let Queue { ops, slots, words } = queue;
        let program = program::build(plan, To::Queue(ops, slots));
        let (slots, words) = (&mut slots[..program.stages], &mut words[..plan.words()]);
        let (workers, sections) = (plan.workers(), program.sections);
        Ok(Self::over(&ops[..program.ops], slots, words, workers, plan.cut(), sections))
    }

    /// Over stages that lie in their slots.
    pub(crate) fn over(
        ops: &'a [Op],
        slots: &'a mut [Slot],
        words: &'a mut [Word],
        seats: usize,
        cut: Cut,
        sections: [core::ops::Range<usize>; Section::COUNT],
    ) -> Self {
        for word in &mut *words {
            *word = Word::new(0);
        }
        for slot in &mut *slots {
            *slot = Slot::of(slot.stage);
        }
        let words = &*words;
        let (seat_words, rest) = words.split_at(seats * LINE);
        let (shares, rest) = rest.split_at(seats * share_stride(slots.len()));
        Self {
            seats,
            ops,
            slots,
            sections,
            seat_words,
            shares,
            board: Board::new(cut, rest),
            published: CachePadded::new(Word::new(0)),
            members: AtomicU32::new(0),
            remaining: CachePadded::new(AtomicU32::new(0)),
            work: CachePadded::new(Event::new()),
            turn: CachePadded::new(Event::new()),
            finished: CachePadded::new(Event::new()),
            job: UnsafeCell::new(None),
            busy: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            followed: AtomicBool::new(false),
            limit: AtomicU32::new(u32::MAX),
            steal_seed: AtomicU32::new(0),
            queueing: AtomicU32::new(0),
        }
    }

    /// Whether it was made for this plan, or one with the same stages.
    pub(crate) fn is_for(&self, plan: &Plan) -> bool {
        let same = self.seats == plan.workers() && self.slots.len() == plan.slots();
        let same = same && program::build(plan, To::Same(self.ops, self.slots)).fits;
        same && *self.board.cut() == plan.cut()
    }

    /// Most workers that can serve at one time.
    #[must_use]
    pub fn seats(&self) -> usize {
        self.seats
    }

    /// Workers that serve now.
    #[must_use]
    pub fn workers(&self) -> usize {
        let word = |seat: usize| self.seat_words[seat * LINE].load(Ordering::Acquire);
        (0..self.seats).filter(|seat| word(*seat) == Sitter::Worker as Bits).count()
    }

    /// Lets at most `workers` (at least one) take part from the next run on; the others
    /// rest. The bits of a step do not depend on it.
    pub fn limit_workers(&self, workers: usize) {
        self.limit.store(u32::try_from(workers.max(1)).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Whom a worker tries to steal from first; the bits of a step do not depend on it.
    pub fn seed_steals(&self, seed: u32) {
        self.steal_seed.store(seed, Ordering::Relaxed);
    }

    /// Sends all workers home: their [`Worker::run`] returns after the run under way.
    /// Later runs are done by the caller alone, and nobody can join.
    pub fn close(&self, idle: &(impl Idle + ?Sized)) {
        self.closed.store(true, Ordering::Release);
        if happens(Access::Close) {
            self.work.notify(idle);
            self.turn.notify(idle);
        }
    }

    fn is_taken(&self, seat: usize) -> bool {
        self.seat_words[seat * LINE].load(Ordering::Acquire) != 0
    }

    /// Whether all tiles of the run are done; what they wrote is then visible.
    fn has_ended(&self) -> bool {
        self.remaining.load(order(Access::SeeEnd, Ordering::Acquire)) == 0
    }

    /// Whether workers are to leave.
    fn is_over(&self) -> bool {
        self.closed.load(Ordering::Acquire) && self.has_ended()
    }

    /// The word that says whether a seat is inside a tile.
    fn inside(&self, seat: usize) -> &Word {
        &self.seat_words[seat * LINE + 1]
    }

    fn share(&self, seat: usize, stage: usize) -> Range<'_> {
        Range(&self.shares[seat * share_stride(self.slots.len()) + stage])
    }

    /// The run under way: its number and stages.
    fn published(&self) -> Share {
        Range(&self.published).load()
    }

    /// Runs sections, which the program has next to each other in this order, and returns
    /// when all their tiles are done. The calling thread runs them where nobody else does, and helps
    /// if it [works](Idle::works).
    ///
    /// # Errors
    /// A tile panicked, or another run is under way.
    pub(crate) fn run(
        &self,
        job: &dyn Job,
        sections: &[Section],
        idle: &dyn Idle,
    ) -> Result<(), EngineError> {
        if !WORKERS {
            return self.run_alone(job, sections);
        }
        if idle.works() {
            return self.run_along(job, sections, idle);
        }
        let under_way = self.begin(idle)?;
        self.publish(job, sections, idle);
        self.finish(under_way, idle, &mut || {})
    }

    fn begin<'e, I: Idle + ?Sized>(
        &'e self,
        idle: &'e I,
    ) -> Result<UnderWay<'e, 'a, I>, EngineError> {
        if self.busy.swap(true, Ordering::Acquire) {
            return Err(EngineError::Busy);
        }
        if self.followed.load(Ordering::Relaxed) {
            self.followed.store(false, Ordering::Relaxed);
        }
        Ok(UnderWay { engine: self, idle })
    }

    /// Waits for the end of the run, looking before each wait, and works while nobody else does.
    fn finish<I: Idle + ?Sized>(
        &self,
        under_way: UnderWay<'_, '_, I>,
        idle: &dyn Idle,
        look: &mut dyn FnMut(),
    ) -> Result<(), EngineError> {
        let members = self.members.load(Ordering::Relaxed) as usize;
        let finished = self.finished.watch();
        loop {
            let seen = finished.seen();
            if self.has_ended() || self.poisoned.load(Ordering::Acquire) {
                break;
            }
            // Nobody there, or no more: the caller does it.
            if !(0..members).any(|seat| self.is_taken(seat))
                && let Ok(worker) = Worker::join_as(self, idle, Sitter::Caller)
            {
                // Another seat has no share: somebody has just sat down on one that has.
                if worker.seat() < members {
                    worker.help();
                }
                continue;
            }
            look();
            finished.wait(seen, idle);
        }
        let panicked = self.poisoned.load(Ordering::Acquire);
        drop(under_way);
        if panicked { Err(EngineError::Panicked) } else { Ok(()) }
    }

    fn publish(&self, job: &dyn Job, sections: &[Section], idle: &dyn Idle) {
        // SAFETY: no run is under way, and who publishes one keeps the job until every tile taken
        // is done or, after a panic, left.
        unsafe { self.lend(job) };
        self.open(sections, self.choose_members(), idle);
    }

    /// Has the tiles do `job`.
    ///
    /// # Safety
    /// Nobody has a tile of a run, and while anybody has one, `job` lives.
    unsafe fn lend(&self, job: &dyn Job) {
        // SAFETY: only the lifetime changes: the pointer is read with a tile taken only, and as
        // long as there is one the caller keeps the job.
        let job = unsafe {
            core::mem::transmute::<*const (dyn Job + '_), *const (dyn Job + 'static)>(job)
        };
        // SAFETY: nobody has taken a tile, so nobody reads it.
        self.job.with_mut(|cell| unsafe { *cell = Some(job) });
    }

    /// Opens the shares of `members` seats. The job is there, or comes before they take a tile.
    fn open(&self, sections: &[Section], members: usize, idle: &(impl Idle + ?Sized)) {
        let of = |section: Section| self.sections[section as usize].clone();
        let ranges = sections.iter().map(|s| of(*s)).filter(|range| range.start < range.end);
        let first = ranges.clone().map(|range| range.start).min().unwrap_or(0);
        let end = ranges.clone().map(|range| range.end).max().unwrap_or(0);
        let run = next_run(self.published().run);
        self.board.reset();
        let mut remaining = 0;
        for (id, slot) in self.slots.iter().enumerate() {
            // A stage that is not run counts as done for those that wait for it.
            let runs = slot.stage.tiles > 0 && ranges.clone().any(|range| range.contains(&id));
            remaining += u32::from(runs);
            slot.done().store(if runs { 0 } else { slot.stage.tiles }, Ordering::Relaxed);
        }
        self.remaining.store(remaining, Ordering::Relaxed);
        self.members.store(members as u32, Ordering::Relaxed);
        let stages = Share { run, start: first as u32, end: end as u32 };
        Range(&self.published).open(stages);
        let mut opened = false;
        for id in ranges.flatten() {
            let tiles = self.slots[id].stage.tiles;
            for seat in 0..members {
                self.share(seat, id).open(Share::part(run, tiles, seat, members));
            }
            if !opened {
                // Spinning workers begin while the other stages are opened.
                self.turn.notify(idle);
                opened = true;
            }
        }
        // Who has begun may have found the other stages closed.
        self.work.notify(idle);
        self.turn.notify(idle);
    }

    /// How many seats get shares: up to the one that makes the limit full.
    fn choose_members(&self) -> usize {
        let limit = self.limit.load(Ordering::Relaxed) as usize;
        let taken = (0..self.seats).filter(|seat| self.is_taken(*seat));
        taken.take(limit).last().map_or(1, |seat| seat + 1)
    }

    /// Says that a tile is done, and counts it.
    fn complete(&self, taken: &Taken, idle: &(impl Idle + ?Sized)) {
        self.tile_done(taken, idle);
        self.count(taken.id, 1, idle);
    }

    /// Says that a tile is done, which is still to be counted.
    fn tile_done(&self, taken: &Taken, idle: &(impl Idle + ?Sized)) {
        self.board.tile_done(&taken.stage, taken.tile);
        if taken.stage.shape != Shape::List {
            self.work.notify(idle);
        }
    }

    /// Counts tiles of stage `id` that are done.
    fn count(&self, id: usize, tiles: u32, idle: &(impl Idle + ?Sized)) {
        let slot = &self.slots[id];
        self.board.count(&slot.stage, tiles);
        let counted = order(Access::CountDone, Ordering::AcqRel);
        let before = slot.done().fetch_add(tiles, counted);
        let ended = order(Access::EndStage, Ordering::AcqRel);
        let ends_stage = before + tiles == slot.stage.tiles;
        let is_last = ends_stage && self.remaining.fetch_sub(1, ended) == 1;
        self.work.notify(idle);
        if is_last || ends_stage && PIECES && self.followed.load(Ordering::Relaxed) {
            self.finished.notify(idle);
        }
        if is_last {
            // Whoever takes no part may have been told to go home meanwhile.
            self.turn.notify(idle);
        }
    }
}

/// Ends a run also when the caller's own tile unwinds.
struct UnderWay<'e, 'a, I: Idle + ?Sized> {
    engine: &'e Engine<'a>,
    idle: &'e I,
}

impl<I: Idle + ?Sized> Drop for UnderWay<'_, '_, I> {
    fn drop(&mut self) {
        let engine = self.engine;
        if !engine.has_ended() {
            // Not all was run: let those inside a tile leave it, then take back the rest.
            engine.poisoned.store(true, Ordering::Release);
            fence(Access::Enter);
            let inside = |seat| engine.inside(seat).load(Ordering::Acquire) != 0;
            // For the rest of a tile at most. Not with the caller's `Idle`: should that
            // panic, the job would go while somebody is still inside.
            while (0..engine.seats).any(inside) {
                spin_loop();
            }
            let run = engine.published().run;
            for seat in 0..engine.seats {
                for id in 0..engine.slots.len() {
                    engine.share(seat, id).open(Share { run, start: 0, end: 0 });
                }
            }
            // What a worker has done of this run and not counted is of no run any more.
            Range(&engine.published).open(Share { run: next_run(run), start: 0, end: 0 });
            engine.remaining.store(0, Ordering::Relaxed);
            engine.poisoned.store(false, Ordering::Release);
            engine.busy.store(false, Ordering::Release);
            // As at the end of any run: whoever was told to go home may now.
            engine.work.notify(self.idle);
            engine.turn.notify(self.idle);
            return;
        }
        // All workers read it for every tile: not to be written for nothing.
        if engine.poisoned.load(Ordering::Relaxed) {
            engine.poisoned.store(false, Ordering::Release);
        }
        engine.busy.store(false, Ordering::Release);
    }
}
