//! The engine's protocols in every order of a few threads, under a model checker.
//!
//! What tiles write is plain memory to the checker: an access that the protocol does not
//! order behind another one is reported as a race, even if it would have read the right
//! bytes; a wake-up that can get lost is reported as a deadlock. Each protocol has
//! models in which one of its orderings or steps is missing, and which must fail:
//!
//! | protocol | sound | broken: what is missing |
//! |---|---|---|
//! | claim and steal | `each_tile_has_one_taker` | release of a share, acquire of a share |
//! | shares used again | `a_late_thief_takes_nothing_of_the_next_run` | the run's number |
//! | slots and counters used again | `slots_are_used_again_by_the_next_run` | as for claim and steal |
//! | dependency release | `a_ready_tile_finds_its_inputs` | release and acquire of a counter |
//! | completion on *done* | `a_run_ends_when_all_tiles_are_done`, `a_caller_works_beside_a_worker`, `a_tile_is_counted_when_it_is_done` | counting after running, release and acquire of the last count |
//! | shutdown with work queued | `a_shutdown_with_work_queued_leaves_none_undone`, `a_worker_may_leave_a_run_to_the_caller`, `nobody_sleeps_through_the_end` | word to the workers, word to the caller |
//! | park and wake | `no_wake_up_is_lost` | each of two fences on either side |
//! | poison | `a_poisoned_run_ends_after_those_inside` | a fence |
//!
//! The last of these are in `runs`, those of the ring in `ring/models`.
//!
//! The whole worker loop has no scheduler of its own beside loom: `runs` tries every order of two
//! threads and many of three, weakly ordered loads among them, which a scheduler that draws
//! orders at random from a seed does not; and many threads over many steps are shuffled by
//! seeded delays in `tests/engine.rs` and `tests/engine_stress.rs` of the workspace, on the real
//! atomics.

#![expect(unsafe_code, reason = "plain memory that the protocols are to protect")]

extern crate std;

mod runs;

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
    /// Whether who asks for a run works on it.
    works: bool,
}

impl Futex {
    fn new() -> Self {
        Self { lock: Mutex::new(()), woken: Condvar::new(), works: false }
    }
}

impl Idle for Futex {
    fn works(&self) -> bool {
        self.works
    }

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
        let words = leak([AtomicWord::new(0), AtomicWord::new(0)]);
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

/// A thief that slept since run 1 finds the same tiles in a share of run `next`.
fn late_thief(next: u32) {
    loom::model(move || {
        let word = leak(AtomicWord::new(0));
        Range(word).open(Share { run: 1, start: 0, end: 2 });
        let late = Range(word).load();
        let thief = thread::spawn(move || Range(word).take_back(late, 1));
        // All that is left, but for what the thief has or will have.
        let mut share = Range(word).load();
        while !share.is_empty() && !Range(word).take_front(share) {
            share = Range(word).load();
        }
        // The word is opened for the next run with the thief on its way.
        Range(word).open(Share { run: next, start: 0, end: 2 });
        let in_time = thief.join().unwrap();
        let left = Range(word).load();
        let took = left != Share { run: next, start: 0, end: 2 };
        assert!(!(in_time && took), "a tile of the next run was taken for one of the last");
    });
}

#[test]
fn a_late_thief_takes_nothing_of_the_next_run() {
    late_thief(2);
}

#[test]
#[should_panic(expected = "a tile of the next run was taken")]
fn a_share_used_again_needs_the_runs_number() {
    late_thief(1);
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
        let counters: &'static Vec<AtomicWord> =
            leak((0..CUT.counters()).map(|_| AtomicWord::new(0)).collect());
        let rows = leak([Plain::new(0), Plain::new(0)]);
        let first = stage(Shape::Rows { first_block: 0, level: 1 }, 2, 0, 0);
        let other = thread::spawn(move || {
            rows[1].set(5);
            let board = Board::new(CUT, counters);
            board.tile_done(&first, 1);
            board.count(&first, 1);
        });
        let board = Board::new(CUT, counters);
        rows[0].set(4);
        board.tile_done(&first, 0);
        board.count(&first, 1);
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

/// A parker that knows when the last notification has been given, so that a lost wake-up can
/// be told: who sleeps then would sleep for ever.
struct Bed {
    sleep: Mutex<Sleep>,
    woken: Condvar,
}

#[derive(Default)]
struct Sleep {
    is_asleep: bool,
    is_over: bool,
    is_lost: bool,
}

impl Bed {
    fn new() -> Self {
        Self { sleep: Mutex::new(Sleep::default()), woken: Condvar::new() }
    }

    /// Nobody notifies again. Frees who sleeps, so that the model ends.
    fn last_call(&self) {
        let mut sleep = self.sleep.lock().unwrap();
        sleep.is_over = true;
        sleep.is_lost |= sleep.is_asleep;
        sleep.is_asleep = false;
        drop(sleep);
        self.woken.notify_all();
    }

    fn check(&self) {
        assert!(!self.sleep.lock().unwrap().is_lost, "a wake-up was lost");
    }
}

impl Idle for Bed {
    fn pause(&self, _: u32) -> bool {
        false
    }

    fn park(&self, word: &AtomicU32, seen: u32) {
        let mut sleep = self.sleep.lock().unwrap();
        // The protocol's fences are to suffice: the weakest look that a system could take.
        let sleeps = word.load(Ordering::Relaxed) == seen;
        sleep.is_lost |= sleeps && sleep.is_over;
        sleep.is_asleep = sleeps && !sleep.is_over;
        while sleep.is_asleep {
            sleep = self.woken.wait(sleep).unwrap();
        }
    }

    fn wake(&self, _: &AtomicU32) {
        self.sleep.lock().unwrap().is_asleep = false;
        self.woken.notify_all();
    }
}

fn park_and_wake() {
    loom::model(|| {
        let event = Arc::new((Event::new(), AtomicBool::new(false)));
        let bed = Arc::new(Bed::new());
        let sleeper = {
            let (event, bed) = (Arc::clone(&event), Arc::clone(&bed));
            thread::spawn(move || {
                let watch = event.0.watch();
                let seen = watch.seen();
                if !event.1.load(Ordering::Acquire) {
                    watch.wait(seen, &*bed);
                }
            })
        };
        event.1.store(true, Ordering::Release);
        event.0.notify(&*bed);
        bed.last_call();
        sleeper.join().unwrap();
        bed.check();
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

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn who_looks_for_watchers_needs_a_fence() {
    weaken(Access::Tell);
    park_and_wake();
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn who_watches_needs_a_fence() {
    weaken(Access::Watch);
    park_and_wake();
}
