//! A thread's part in the engine: take a tile, run it, say it is done.
//!
//! ```text
//! until closed or no longer wanted
//!   no own tiles left of the stage of the last tile: count those done of it
//!   own shares, oldest stage first: take the front tile if it is ready
//!   else, oldest stage first, seats in turn from a random one:
//!     the back half of the share if its first tile is ready, or the front tile if that is
//!   of another stage than the last: count those done of that one
//!   run it, say that its block is done
//!   found nothing: count, look again, wait for `work`, or for `turn` if no run is under
//!     way, or one without this seat
//! ```
//! Own shares come first at every stage: the tiles of a later stage that are ready are
//! those whose inputs this worker has just made. Stealing looks at the oldest stage, where
//! the others are behind.
//!
//! **No tile is forgotten.** Of the unfinished tiles of a run take the first, by stage and
//! number. All that it waits for comes before it, so it is ready; every tile before it in
//! its share is done or taken, so it is at the front, where its owner and every thief look.
//!
//! **Counting.** A stage's count is a line that all workers write; those who wait for it wait
//! until it is full. A worker therefore adds up its tiles of a stage as long as it has more of
//! them in its share or in hand: until then the stage is not full anyway. It counts before
//! it runs a tile of another one and before it waits. What is left uncounted when a run
//! breaks is of a run that is no longer published.
#![expect(unsafe_code, reason = "reads the job that the caller lent")]

use super::fault::{Access, fence, happens};
use super::idle::{Idle, Lookout};
use super::observe::{Activity, Observer, Unobserved};
use super::range::Share;
use super::{Engine, LINE, Taken};
use crate::primitive::{Bits, Ordering};
use core::fmt;

/// Why a thread cannot serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeatError {
    /// All seats of the plan are taken.
    Full {
        /// How many there are.
        seats: usize,
    },
    /// The engine was closed.
    Closed,
}

impl fmt::Display for SeatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { seats } => {
                write!(f, "all {seats} seats of the engine are taken: plan for more workers")
            }
            Self::Closed => f.write_str("the engine is closed"),
        }
    }
}

impl core::error::Error for SeatError {}

/// Who sits on a seat: what its word says, 0 if nobody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sitter {
    Worker = 1,
    /// The caller of a run, until that is over.
    Caller = 2,
}

/// A seat that the caller has left to a worker who waits for it: not the caller's again,
/// who would be back for the next run before the worker is awake.
const KEPT: Bits = 3;

/// A worker in the queue for the caller's seat.
struct Queueing<'e, I: Idle + ?Sized> {
    engine: &'e Engine<'e>,
    idle: &'e I,
}

impl<I: Idle + ?Sized> Drop for Queueing<'_, I> {
    fn drop(&mut self) {
        self.engine.queueing.fetch_sub(1, Ordering::Relaxed);
        // If it goes without the seat, that is not to be kept for it. The caller keeps the
        // seat, fences and looks for the queue: one of the two sees the other.
        fence(Access::Keep);
        self.engine.unkeep();
        self.engine.finished.notify(self.idle);
    }
}

impl Engine<'_> {
    /// Seats that are kept for somebody are free again.
    fn unkeep(&self) {
        for seat in 0..self.seats {
            let word = &self.seat_words[seat * LINE];
            let _ = word.compare_exchange(KEPT, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// A seat at an engine.
#[derive(Debug)]
pub struct Worker<'e, I: Idle + ?Sized> {
    engine: &'e Engine<'e>,
    idle: &'e I,
    seat: usize,
    who: Sitter,
    run: u32,
    /// Stages before this one are done in `run`.
    first: usize,
    /// Tiles of a stage that are done and not counted.
    uncounted: Option<Uncounted>,
    dice: u32,
}

/// What a worker that looked for a tile has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// Run one.
    Tile,
    /// Found none, but counted those it had done: a look may find some that waited for that.
    Count,
    /// Found none.
    Nothing,
}

/// Tiles of stage `id` that a worker has done in `run`.
#[derive(Clone, Copy, Debug)]
struct Uncounted {
    run: u32,
    id: usize,
    tiles: u32,
}

impl<'e, I: Idle + ?Sized> Worker<'e, I> {
    /// Serves the engine on this thread until it is closed or `idle` no longer stays. Any
    /// thread may call it at any time, also while a run is under way.
    ///
    /// # Errors
    /// There is no free seat, or the engine is closed.
    ///
    /// # Panics
    /// If a tile does; the engine's caller then has an error, and other workers go on.
    pub fn run(engine: &'e Engine<'e>, idle: &'e I) -> Result<(), SeatError> {
        Self::run_observed(engine, idle, &mut Unobserved)
    }

    /// As [`Worker::run`]; `observer` is told what the worker turns to.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub fn run_observed(
        engine: &'e Engine<'e>,
        idle: &'e I,
        observer: &mut dyn Observer,
    ) -> Result<(), SeatError> {
        let mut worker = match Self::join(engine, idle) {
            Err((SeatError::Full { .. }, Some(Sitter::Caller))) => Self::queue(engine, idle)?,
            joined => joined.map_err(|(error, _)| error)?,
        };
        observer.enter(Activity::Rest);
        let mut lookout = Lookout::new();
        loop {
            lookout.before_look();
            if engine.is_over() {
                return Ok(());
            }
            if worker.serve_one(observer, Self::take) != Served::Nothing {
                lookout.found();
                continue;
            }
            if !idle.stays() {
                return Ok(());
            }
            let activity = worker.nothing_to_do();
            let event = if activity == Activity::Wait { &engine.work } else { &engine.turn };
            let waits = lookout.watches(event);
            if waits {
                observer.enter(activity);
            }
            lookout.found_none(event, idle);
            if waits {
                observer.enter(Activity::Search);
            }
        }
    }

    /// Waits for the seat of the caller, who gets up when its run is over.
    fn queue(engine: &'e Engine<'e>, idle: &'e I) -> Result<Self, SeatError> {
        engine.queueing.fetch_add(1, Ordering::Relaxed);
        let _queueing = Queueing { engine, idle };
        let turn = engine.turn.watch();
        loop {
            let seen = turn.seen();
            match Self::join(engine, idle) {
                Err((SeatError::Full { .. }, Some(Sitter::Caller))) if idle.stays() => {
                    turn.wait(seen, idle);
                }
                joined => return joined.map_err(|(error, _)| error),
            }
        }
    }

    /// Takes a seat, or says who sits on one of those that are taken.
    pub(super) fn join(
        engine: &'e Engine<'e>,
        idle: &'e I,
    ) -> Result<Self, (SeatError, Option<Sitter>)> {
        Self::join_as(engine, idle, Sitter::Worker)
    }

    /// As [`Worker::join`], for a worker or for the caller of a run.
    pub(super) fn join_as(
        engine: &'e Engine<'e>,
        idle: &'e I,
        who: Sitter,
    ) -> Result<Self, (SeatError, Option<Sitter>)> {
        if engine.is_over() {
            return Err((SeatError::Closed, None));
        }
        Self::sit(engine, idle, who)
    }

    /// As [`Worker::join_as`], also of an engine that is closed: its caller works on.
    pub(super) fn sit(
        engine: &'e Engine<'e>,
        idle: &'e I,
        who: Sitter,
    ) -> Result<Self, (SeatError, Option<Sitter>)> {
        let mut sitter = None;
        for seat in 0..engine.seats {
            let word = &engine.seat_words[seat * LINE];
            let take = |from: Bits| {
                word.compare_exchange(from, who as Bits, Ordering::AcqRel, Ordering::Relaxed)
            };
            let taken = match take(0) {
                Err(KEPT) if who == Sitter::Worker => take(KEPT),
                taken => taken,
            };
            match taken {
                Ok(_) => {
                    let dice = engine.steal_seed.load(Ordering::Relaxed) ^ (seat as u32 + 1);
                    let run = Share::NO_RUN;
                    let (first, uncounted) = (0, None);
                    let dice = dice | 1;
                    return Ok(Self { engine, idle, seat, who, run, first, uncounted, dice });
                }
                Err(taken) if taken == Sitter::Caller as Bits => sitter = Some(Sitter::Caller),
                Err(_) => {}
            }
        }
        Err((SeatError::Full { seats: engine.seats }, sitter))
    }

    pub(super) fn seat(&self) -> usize {
        self.seat
    }

    /// The caller's own part in the run that it waits for.
    pub(super) fn help(mut self) {
        let engine = self.engine;
        let mut lookout = Lookout::new();
        loop {
            lookout.before_look();
            if engine.has_ended() || engine.poisoned.load(Ordering::Acquire) {
                return;
            }
            if self.serve_one(&mut Unobserved, Self::take) != Served::Nothing {
                lookout.found();
            } else {
                lookout.found_none(&engine.work, self.idle);
            }
        }
    }

    fn nothing_to_do(&self) -> Activity {
        let takes_part = self.seat < self.engine.members.load(Ordering::Relaxed) as usize;
        let under_way = self.engine.remaining.load(Ordering::Relaxed) > 0;
        if takes_part && under_way { Activity::Wait } else { Activity::Rest }
    }

    /// Runs the tile that `take` finds.
    pub(super) fn serve_one(
        &mut self,
        observer: &mut dyn Observer,
        take: impl FnOnce(&mut Self) -> Option<Taken>,
    ) -> Served {
        let engine = self.engine;
        // Whoever ends a poisoned run waits until nobody is inside. Both store, fence and
        // look: one of them sees the other's store.
        engine.inside(self.seat).store(1, Ordering::Relaxed);
        fence(Access::Enter);
        let guard = Inside { worker: self };
        if engine.poisoned.load(Ordering::Acquire) {
            return Served::Nothing;
        }
        if !guard.worker.goes_on_with_its_stage() {
            guard.worker.count();
        }
        let Some(taken) = take(guard.worker) else {
            return if guard.worker.count() { Served::Count } else { Served::Nothing };
        };
        // SAFETY: a tile of the run is taken, so its publisher has written the cell before
        // and waits for the tile; what it points to lives as long.
        let job = engine.job.with(|cell| unsafe { (*cell).map(|job| &*job) });
        // Until the tile is to be counted: an observer or a wake-up may panic as well.
        let mut unwinding = Poison { worker: guard.worker, is_over: false };
        let worker = &mut *unwinding.worker;
        if worker.uncounted.is_some_and(|of| of.id != taken.id) {
            worker.count();
        }
        if taken.stolen {
            // There may be more where it came from, seen by nobody while it was moved.
            engine.work.notify(worker.idle);
        }
        if let Some(job) = job {
            // SAFETY: `take` gives a ready tile to one worker; the seat is this worker's.
            unsafe { job.run(engine.ops, &taken, worker.seat, observer) }
        }
        observer.enter(Activity::Search);
        engine.tile_done(&taken, worker.idle);
        let before = worker.uncounted.map_or(0, |of| of.tiles);
        worker.uncounted = Some(Uncounted { run: worker.run, id: taken.id, tiles: before + 1 });
        unwinding.is_over = true;
        Served::Tile
    }

    /// Whether the own share of the stage that is not counted has tiles left.
    fn goes_on_with_its_stage(&self) -> bool {
        self.uncounted.is_some_and(|Uncounted { run, id, .. }| {
            let own = self.engine.share(self.seat, id).load();
            own.run == run && !own.is_empty()
        })
    }

    /// Counts what is done and not counted, inside and seen not to be poisoned; false if that is
    /// nothing.
    fn count(&mut self) -> bool {
        let engine = self.engine;
        // A run's end takes all counts but those that a panic leaves over.
        let of_this_run = self.uncounted.take().filter(|of| of.run == engine.published().run);
        let Some(Uncounted { id, tiles, .. }) = of_this_run else { return false };
        let mut unwinding = Told { engine, idle: self.idle, is_over: false };
        engine.count(id, tiles, self.idle);
        unwinding.is_over = true;
        true
    }

    /// A ready tile of the run under way.
    pub(super) fn take(&mut self) -> Option<Taken> {
        let engine = self.engine;
        let (members, end) = self.look()?;
        while self.first < end && engine.slots[self.first].is_done() {
            self.first += 1;
        }
        (self.first..end)
            .find_map(|id| self.take_own(id))
            .or_else(|| (self.first..end).find_map(|id| self.steal(id, members)))
    }

    /// Looks which run is under way: how many seats take part and where its stages end, if
    /// this seat does.
    pub(super) fn look(&mut self) -> Option<(usize, usize)> {
        let engine = self.engine;
        let stages = engine.published();
        if stages.run != self.run {
            self.run = stages.run;
            self.first = stages.start as usize;
        }
        let members = engine.members.load(Ordering::Relaxed) as usize;
        (self.seat < members).then_some((members, stages.end as usize))
    }

    fn taken(&self, id: usize, tile: u32, stolen: bool) -> Taken {
        Taken { id, stage: self.engine.slots[id].stage, tile, stolen }
    }

    pub(super) fn take_own(&self, id: usize) -> Option<Taken> {
        let engine = self.engine;
        let own = engine.share(self.seat, id);
        let mut share = own.load();
        let is_open = |share: Share| share.run == self.run && !share.is_empty();
        let stage = &engine.slots[id].stage;
        if !is_open(share) || !engine.board.stage_ready(stage, engine.slots) {
            return None;
        }
        while is_open(share) && engine.board.tile_ready(stage, share.start) {
            if own.take_front(share) {
                return Some(self.taken(id, share.start, false));
            }
            share = own.load();
        }
        None
    }

    pub(super) fn steal(&mut self, id: usize, members: usize) -> Option<Taken> {
        let engine = self.engine;
        let stage = &engine.slots[id].stage;
        let own = engine.share(self.seat, id);
        let keeps = own.load();
        // Until the publisher has opened the own share, what is stolen has no place.
        if keeps.run != self.run
            || engine.slots[id].is_done()
            || !engine.board.stage_ready(stage, engine.slots)
        {
            return None;
        }
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 17;
        self.dice ^= self.dice << 5;
        let offset = self.dice as usize % members;
        for i in 0..members {
            let victim = (offset + i) % members;
            if victim == self.seat {
                continue;
            }
            let theirs = engine.share(victim, id);
            let mut share = theirs.load();
            while share.run == self.run && !share.is_empty() {
                // What is left of an own share whose front is not ready must not be lost.
                let takes =
                    if keeps.is_empty() { (share.end - share.start).div_ceil(2) } else { 1 };
                let from = share.end - takes;
                let (tile, got) = if engine.board.tile_ready(stage, from) {
                    (from, theirs.take_back(share, from))
                } else if engine.board.tile_ready(stage, share.start) {
                    (share.start, theirs.take_front(share))
                } else {
                    break;
                };
                if got {
                    if tile == from && takes > 1 {
                        let rest = Share { run: self.run, start: from + 1, end: share.end };
                        own.open(rest);
                    }
                    return Some(self.taken(id, tile, true));
                }
                share = theirs.load();
            }
        }
        None
    }
}

impl<I: Idle + ?Sized> Drop for Worker<'_, I> {
    fn drop(&mut self) {
        let engine = self.engine;
        let is_caller = self.who == Sitter::Caller;
        let is_wanted = is_caller && engine.queueing.load(Ordering::Relaxed) > 0;
        let left = if is_wanted { KEPT } else { 0 };
        engine.seat_words[self.seat * LINE].store(left, Ordering::Release);
        if is_wanted {
            fence(Access::Keep);
            if engine.queueing.load(Ordering::Relaxed) == 0 {
                engine.unkeep();
            }
        }
        // The caller may be waiting for this worker alone.
        if happens(Access::Leave) {
            self.engine.finished.notify(self.idle);
        }
        if is_caller {
            // A worker may be waiting for the seat.
            self.engine.turn.notify(self.idle);
        }
    }
}

/// Says that the worker no longer touches the run, also when unwinding.
struct Inside<'w, 'e, I: Idle + ?Sized> {
    worker: &'w mut Worker<'e, I>,
}

impl<I: Idle + ?Sized> Drop for Inside<'_, '_, I> {
    fn drop(&mut self) {
        self.worker.engine.inside(self.worker.seat).store(0, Ordering::Release);
    }
}

/// Gives the notifications of a count if one of them unwinds: the tiles are counted, and no
/// other worker may have been told.
struct Told<'e, I: Idle + ?Sized> {
    engine: &'e Engine<'e>,
    idle: &'e I,
    is_over: bool,
}

impl<I: Idle + ?Sized> Drop for Told<'_, I> {
    fn drop(&mut self) {
        if !self.is_over {
            self.engine.work.notify(self.idle);
            self.engine.finished.notify(self.idle);
            self.engine.turn.notify(self.idle);
        }
    }
}

/// Poisons the run if the tile unwinds.
struct Poison<'w, 'e, I: Idle + ?Sized> {
    worker: &'w mut Worker<'e, I>,
    is_over: bool,
}

impl<I: Idle + ?Sized> Drop for Poison<'_, '_, I> {
    fn drop(&mut self) {
        if !self.is_over {
            self.worker.engine.poisoned.store(true, Ordering::Release);
            self.worker.engine.finished.notify(self.worker.idle);
            // The caller may be among those who look for tiles.
            self.worker.engine.work.notify(self.worker.idle);
        }
    }
}
