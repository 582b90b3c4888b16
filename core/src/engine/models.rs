//! The engine's protocols in every order of a few threads, under a model checker.
//!
//! What tiles write is plain memory to the checker: an access that the protocol does not
//! order behind another one is reported as a race, even if it would have read the right
//! bytes; a wake-up that can get lost is reported as a deadlock. Each protocol has
//! models in which one of its orderings is missing, and which must fail.

#![expect(unsafe_code, reason = "plain memory that the protocols are to protect")]

extern crate std;

use super::fault::{Access, weaken};
use super::range::{Range, Share};
use super::stage::Board;
use super::*;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use std::boxed::Box;
use std::vec::Vec;

/// Plain memory.
struct Plain<T>(UnsafeCell<T>);

// SAFETY: whether accesses are ordered is what the models check.
unsafe impl<T: Send> Sync for Plain<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Plain<T> {}

impl<T: Copy> Plain<T> {
    fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    fn get(&self) -> T {
        // SAFETY: the checker ends the test before two accesses race.
        self.0.with(|value| unsafe { *value })
    }

    fn set(&self, value: T) {
        // SAFETY: as in `get`.
        self.0.with_mut(|place| unsafe { *place = value });
    }
}

/// A futex made of a lock: parks at once.
struct Futex {
    lock: Mutex<()>,
    woken: Condvar,
}

impl Futex {
    fn new() -> Self {
        Self { lock: Mutex::new(()), woken: Condvar::new() }
    }
}

impl Idle for Futex {
    fn pause(&self, _: u32) -> bool {
        false
    }

    fn park(&self, word: &AtomicU32, seen: u32) {
        let mut guard = self.lock.lock().unwrap();
        while word.load(Ordering::Relaxed) == seen {
            guard = self.woken.wait(guard).unwrap();
        }
    }

    fn wake(&self, _: &AtomicU32) {
        drop(self.lock.lock().unwrap());
        self.woken.notify_all();
    }
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

// ---- Claim and steal -------------------------------------------------------------------

/// An owner takes from the front, a thief half of the rest; what the publisher wrote before
/// it opened the share is there for both, and each tile has one taker.
fn claim_and_steal() {
    loom::model(|| {
        let words = leak([AtomicU64::new(0), AtomicU64::new(0)]);
        let job = leak(Plain::new(0));
        let tiles: &'static [Plain<bool>; 3] = leak(core::array::from_fn(|_| Plain::new(false)));
        let thief = thread::spawn(move || {
            let theirs = Range(&words[0]);
            let share = theirs.load();
            if share.run != 1 || share.is_empty() {
                return 0;
            }
            let from = share.end - (share.end - share.start).div_ceil(2);
            if !theirs.take_back(share, from) {
                return 0;
            }
            let own = Range(&words[1]);
            own.open(Share { run: 1, start: from + 1, end: share.end });
            assert_eq!(job.get(), 7);
            tiles[from as usize].set(true);
            1 + run_front(&own, job, tiles)
        });
        job.set(7);
        let own = Range(&words[0]);
        own.open(Share { run: 1, start: 0, end: 3 });
        let here = run_front(&own, job, tiles);
        let there = thief.join().unwrap();
        assert_eq!(here + there, 3);
        assert!(tiles.iter().all(Plain::get));
    });
}

fn run_front(own: &Range<'_>, job: &Plain<u32>, tiles: &[Plain<bool>; 3]) -> u32 {
    let mut count = 0;
    loop {
        let share = own.load();
        if share.is_empty() {
            return count;
        }
        if own.take_front(share) {
            assert_eq!(job.get(), 7);
            assert!(!tiles[share.start as usize].get(), "a tile has one taker");
            tiles[share.start as usize].set(true);
            count += 1;
        }
    }
}

#[test]
fn each_tile_has_one_taker() {
    claim_and_steal();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_share_needs_a_releasing_open() {
    weaken(Access::OpenShare);
    claim_and_steal();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_share_needs_an_acquiring_load() {
    weaken(Access::LoadShare);
    claim_and_steal();
}

/// A thief that slept since the last run finds the same numbers in a share of the next.
#[test]
fn a_late_thief_takes_nothing_of_the_next_run() {
    loom::model(|| {
        let word = leak(AtomicU64::new(0));
        Range(word).open(Share { run: 1, start: 0, end: 2 });
        let late = Range(word).load();
        let thief = thread::spawn(move || Range(word).take_back(late, 1));
        let share = Range(word).load();
        let mut left = 2;
        if share.end == 2 && Range(word).take_front(share) {
            left -= 1;
        }
        // Its tiles done, the word is opened for the next run.
        if thief.join().unwrap() {
            left -= 1;
        }
        assert!(left < 2);
        Range(word).open(Share { run: 2, start: 0, end: 2 });
        let thief = thread::spawn(move || Range(word).take_back(late, 1));
        assert!(!thief.join().unwrap());
        assert_eq!(Range(word).load(), Share { run: 2, start: 0, end: 2 });
    });
}

// ---- Dependencies ----------------------------------------------------------------------

const CUT: Cut = Cut { rows: 2, row_block: 1, sequence: 2, span: 2, levels: 2, in_place: false };

fn stage(shape: Shape, tiles: u32, level: u32, spans: u32) -> Stage {
    let needs = Needs { level, spans, stages: [NONE; 3] };
    Stage { first_op: 0, ops: 0, tiles, shape, needs }
}

/// What two threads wrote for a tile is there for who finds it ready.
fn dependencies() {
    loom::model(|| {
        let counters: &'static Vec<AtomicU64> =
            leak((0..CUT.counters()).map(|_| AtomicU64::new(0)).collect());
        let rows = leak([Plain::new(0), Plain::new(0)]);
        let first = stage(Shape::Rows { first_block: 0, level: 1 }, 2, 0, 0);
        let other = thread::spawn(move || {
            rows[1].set(5);
            Board::new(CUT, counters).tile_done(&first, 1);
        });
        let board = Board::new(CUT, counters);
        rows[0].set(4);
        board.tile_done(&first, 0);
        let attention = stage(Shape::Attention { parts: 1, reads: Reads::Sequence }, 1, 1, 0);
        if board.tile_ready(&attention, 0) {
            assert_eq!(rows[0].get() + rows[1].get(), 9);
        }
        let list = stage(Shape::List, 1, 1, 0);
        if board.stage_ready(&list, &[]) {
            assert_eq!(rows[1].get(), 5);
        }
        other.join().unwrap();
        assert!(board.tile_ready(&attention, 0) && board.stage_ready(&list, &[]));
    });
}

#[test]
fn a_ready_tile_finds_its_inputs() {
    dependencies();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_counter_needs_a_releasing_addition() {
    weaken(Access::CountDone);
    dependencies();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_counter_needs_an_acquiring_look() {
    weaken(Access::ReadCount);
    dependencies();
}

// ---- Park and wake ---------------------------------------------------------------------

/// A parker whose sleeper can be found and freed, so that a lost wake-up can be told.
struct Bed {
    asleep: Mutex<bool>,
    woken: Condvar,
}

impl Idle for Bed {
    fn pause(&self, _: u32) -> bool {
        false
    }

    fn park(&self, word: &AtomicU32, seen: u32) {
        let mut asleep = self.asleep.lock().unwrap();
        // The protocol's fences are to suffice: the weakest look that a system could take.
        *asleep = word.load(Ordering::Relaxed) == seen;
        while *asleep {
            asleep = self.woken.wait(asleep).unwrap();
        }
    }

    fn wake(&self, _: &AtomicU32) {
        *self.asleep.lock().unwrap() = false;
        self.woken.notify_all();
    }
}

fn park_and_wake() {
    loom::model(|| {
        let event = Arc::new((Event::new(), AtomicBool::new(false)));
        let bed = Arc::new(Bed { asleep: Mutex::new(false), woken: Condvar::new() });
        let sleeper = {
            let (event, bed) = (Arc::clone(&event), Arc::clone(&bed));
            thread::spawn(move || {
                let seen = event.0.seen();
                if !event.1.load(Ordering::Acquire) {
                    event.0.wait(seen, &*bed);
                }
            })
        };
        event.1.store(true, Ordering::Release);
        event.0.notify(&*bed);
        // Nobody notifies again: who sleeps now would sleep for ever.
        let is_lost = *bed.asleep.lock().unwrap();
        bed.wake(&AtomicU32::new(0));
        sleeper.join().unwrap();
        assert!(!is_lost, "a wake-up was lost");
    });
}

#[test]
fn no_wake_up_is_lost() {
    park_and_wake();
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn who_notifies_needs_a_fence() {
    weaken(Access::Notify);
    park_and_wake();
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn who_sleeps_needs_a_fence() {
    weaken(Access::Sleep);
    park_and_wake();
}

// ---- Whole runs ------------------------------------------------------------------------

/// Two row blocks, then a tile that reads both.
struct Sum {
    rows: [Plain<u32>; 2],
    total: Plain<u32>,
}

impl Job for Sum {
    unsafe fn run(&self, _: &[Op], taken: &Taken, _: usize, _: &mut dyn Observer) {
        match taken.stage.shape {
            Shape::Rows { .. } => {
                let row = &self.rows[taken.tile as usize];
                row.set(row.get() + 1 + taken.tile);
            }
            _ => self.total.set(self.total.get() + self.rows[0].get() + self.rows[1].get()),
        }
    }
}

fn engine(seats: usize) -> &'static Engine<'static> {
    let slots: Vec<Slot> =
        [stage(Shape::Rows { first_block: 0, level: 1 }, 2, 0, 0), stage(Shape::List, 1, 1, 0)]
            .map(|stage| Slot { stage, done: AtomicU32::new(0) })
            .into();
    let slots = Box::leak(slots.into_boxed_slice());
    let count = words(seats, slots.len(), &CUT).unwrap();
    let words: Vec<AtomicU64> = (0..count).map(|_| AtomicU64::new(0)).collect();
    let words = Box::leak(words.into_boxed_slice());
    let mut sections = [const { 0..0 }; Section::COUNT];
    sections[Section::Forward as usize] = 0..2;
    leak(Engine::over(&[], slots, words, seats, CUT, sections))
}

/// A worker beside the caller, for some runs; the worker may come late, and is sent home at
/// any time with work queued. Fewer preemptions than in the small models: there are many
/// more places for them.
fn whole_runs(runs: u32, close_early: bool) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(if runs == 1 && !close_early { 2 } else { 1 });
    model.check(move || {
        let idle: &'static Futex = leak(Futex::new());
        let engine = engine(2);
        let worker = thread::spawn(move || match Worker::run(engine, idle) {
            Ok(()) | Err(SeatError::Closed) => {}
            Err(full) => panic!("{full}"),
        });
        let closer = close_early.then(|| thread::spawn(move || engine.close(idle)));
        let job = Sum { rows: [Plain::new(0), Plain::new(0)], total: Plain::new(0) };
        for run in 1..=runs {
            assert_eq!(engine.run(&job, &[Section::Forward], idle), Ok(()));
            // Not taken: done, and visible here.
            assert_eq!((job.rows[0].get(), job.rows[1].get()), (run, 2 * run));
            assert_eq!(job.total.get(), 3 * run * (run + 1) / 2);
        }
        engine.close(idle);
        worker.join().unwrap();
        if let Some(closer) = closer {
            closer.join().unwrap();
        }
    });
}

#[test]
fn a_run_ends_when_all_tiles_are_done() {
    whole_runs(1, false);
}

#[test]
fn slots_are_used_again_by_the_next_run() {
    whole_runs(2, false);
}

#[test]
fn a_shutdown_with_work_queued_leaves_none_undone() {
    whole_runs(1, true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn the_end_of_a_stage_needs_a_releasing_count() {
    weaken(Access::EndStage);
    whole_runs(1, false);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn the_end_of_a_run_needs_an_acquiring_look() {
    weaken(Access::SeeEnd);
    whole_runs(1, false);
}

// ---- Poison ----------------------------------------------------------------------------

/// Of who enters a tile and who ends a poisoned run one sees the other: the job is not
/// read after the run is over.
fn poison() {
    loom::model(|| {
        let engine = engine(1);
        let job = leak(Plain::new(true));
        let worker = thread::spawn(move || {
            engine.inside(0).store(1, Ordering::Relaxed);
            fence(Access::Enter);
            if !engine.poisoned.load(Ordering::Acquire) {
                assert!(job.get(), "the job is gone");
            }
            engine.inside(0).store(0, Ordering::Release);
        });
        engine.poisoned.store(true, Ordering::Release);
        fence(Access::Enter);
        if engine.inside(0).load(Ordering::Acquire) == 0 {
            job.set(false);
        }
        worker.join().unwrap();
    });
}

#[test]
fn a_poisoned_run_ends_after_those_inside() {
    poison();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn entering_a_tile_needs_a_fence() {
    weaken(Access::Enter);
    poison();
}
