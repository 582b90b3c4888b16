//! The engine with real threads and jobs that panic: whatever happens, the caller has an
//! answer, nobody is left behind, and the engine works afterwards.

extern crate std;

use super::worker::Served;
use super::*;
use core::panic::AssertUnwindSafe;
use core::time::Duration;
use std::boxed::Box;
use std::panic::catch_unwind;
use std::sync::{Condvar, Mutex, mpsc};
use std::thread;
use std::vec::Vec;

/// What tests have made for the rest of the process, by address: what nothing pointed at, LeakSanitizer would report.
static KEPT: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// A value that stays.
fn kept<T: ?Sized>(value: Box<T>) -> &'static mut T {
    let value = Box::leak(value);
    KEPT.lock().unwrap().push((&raw mut *value).cast::<()>().expose_provenance());
    value
}

/// Sleeps at once: a wake-up that is missing shows.
struct Sleeper {
    lock: Mutex<()>,
    woken: Condvar,
}

impl Sleeper {
    fn lasting() -> &'static Self {
        kept(Box::new(Self { lock: Mutex::new(()), woken: Condvar::new() }))
    }
}

impl Idle for Sleeper {
    fn pause(&self, _: u32) -> bool {
        false
    }

    fn park(&self, word: &AtomicU32, seen: u32) {
        let mut guard = self.lock.lock().unwrap();
        while word.load(Ordering::SeqCst) == seen {
            guard = self.woken.wait(guard).unwrap();
        }
    }

    fn wake(&self, _: &AtomicU32) {
        drop(self.lock.lock().unwrap());
        self.woken.notify_all();
    }
}

/// One who works on what it asks for.
struct Working(&'static Sleeper);

impl Idle for Working {
    fn pause(&self, round: u32) -> bool {
        self.0.pause(round)
    }

    fn park(&self, word: &AtomicU32, seen: u32) {
        self.0.park(word, seen);
    }

    fn wake(&self, word: &AtomicU32) {
        self.0.wake(word);
    }

    fn works(&self) -> bool {
        true
    }
}

/// Counts tiles and panics at some.
struct Counted {
    tiles: AtomicU32,
    panics_at: u32,
}

impl Counted {
    const fn new(panics_at: u32) -> Self {
        Self { tiles: AtomicU32::new(0), panics_at }
    }
}

impl Job for Counted {
    unsafe fn run(&self, _: &[Op], _: &Taken, _: usize, _: &mut dyn Observer) {
        thread::sleep(Duration::from_micros(200));
        let tile = self.tiles.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(tile != self.panics_at, "forced by the test");
    }
}

const CUT: Cut = Cut { rows: 12, row_block: 1, sequence: 12, span: 12, levels: 2, in_place: false };

/// Twelve tiles, then one that waits for them all.
const TILES: u32 = 13;

fn engine(seats: usize) -> &'static Engine<'static> {
    let rows = Shape::Rows { first_block: 0, level: 1 };
    engine_of(seats, [(rows, 12, 0), (Shape::List, 1, 1)])
}

/// With a stage of each shape, so many tiles, waiting for such a level.
fn engine_of<const N: usize>(
    seats: usize,
    stages: [(Shape, u32, u32); N],
) -> &'static Engine<'static> {
    let slots = stages.map(|(shape, tiles, level)| {
        let needs = Needs { level, ..Needs::NOTHING };
        Slot::of(Stage { first_op: 0, ops: 0, tiles, shape, needs })
    });
    let slots = kept(Box::new(slots));
    let count = words(seats, slots.len(), &CUT).unwrap();
    let words: Vec<AtomicWord> = (0..count).map(|_| AtomicWord::new(0)).collect();
    let words = kept(words.into_boxed_slice());
    let mut sections = [const { 0..0 }; Section::COUNT];
    sections[Section::Forward as usize] = 0..N;
    kept(Box::new(Engine::over(&[], slots, words, seats, CUT, sections)))
}

/// Publishes a run that the test is to serve itself.
fn begin<'e>(engine: &'e Engine<'static>, job: &dyn Job) -> UnderWay<'e, 'static, Spin> {
    assert!(!engine.busy.swap(true, Ordering::SeqCst));
    let under_way = UnderWay { engine, idle: &Spin };
    engine.publish(job, &[Section::Forward], &Spin);
    under_way
}

/// Fails instead of hanging.
fn within_a_minute(test: impl FnOnce() + Send + 'static) {
    let (done, end) = mpsc::channel();
    let test = thread::spawn(move || {
        test();
        done.send(()).unwrap();
    });
    if let Err(mpsc::RecvTimeoutError::Timeout) = end.recv_timeout(Duration::from_secs(60)) {
        panic!("it hangs");
    }
    test.join().unwrap();
}

fn quietly(work: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(work)).is_err()
}

#[test]
fn a_panic_of_the_callers_own_tile_leaves_the_engine_usable() {
    within_a_minute(|| {
        let engine = engine(2);
        for panics_at in [1, 5, TILES] {
            let job = Counted::new(panics_at);
            assert!(quietly(|| {
                let _ = engine.run(&job, &[Section::Forward], &Spin);
            }));
            assert_eq!((job.tiles.into_inner(), engine.workers()), (panics_at, 0));
            let job = Counted::new(0);
            assert_eq!(engine.run(&job, &[Section::Forward], &Spin), Ok(()));
            assert_eq!(job.tiles.into_inner(), TILES);
        }
    });
}

#[test]
fn a_caller_that_works_along_takes_a_share_and_panics_alone() {
    within_a_minute(|| {
        let (engine, idle) = (engine(2), Sleeper::lasting());
        let worker = thread::spawn(move || Worker::run(engine, idle));
        while engine.workers() < 1 {
            thread::yield_now();
        }
        let mut by_caller = 0;
        for round in 0..40 {
            let job = ByCaller::new(thread::current().id(), round % 4 == 3);
            let mut result = Ok(());
            let panicked = quietly(|| result = engine.run_along(&job, &[Section::Forward], idle));
            assert_eq!((panicked, result), (round % 4 == 3, Ok(())), "round {round}");
            let (own, all) = (job.own.into_inner(), job.all.into_inner());
            assert!(own >= 1 && (panicked || all == TILES), "{own} of {all}");
            by_caller += own;
            // Its seat is free again.
            assert_eq!((0..2).filter(|seat| engine.is_taken(*seat)).count(), 1);
        }
        assert!(by_caller < 40 * TILES, "the worker has done nothing");
        // As a caller that works asks for any run.
        let job = ByCaller::new(thread::current().id(), false);
        assert_eq!(engine.run(&job, &[Section::Forward], &Working(idle)), Ok(()));
        assert!(job.own.into_inner() >= 1);
        engine.close(idle);
        assert_eq!(worker.join().unwrap(), Ok(()));
        // Alone, and when everybody has gone home.
        let job = Counted::new(0);
        assert_eq!(engine.run_along(&job, &[Section::Forward], idle), Ok(()));
        assert_eq!(job.tiles.into_inner(), TILES);
    });
}

/// Counts the tiles of the calling thread, which panics at its first if told to.
struct ByCaller {
    caller: thread::ThreadId,
    panics: bool,
    own: AtomicU32,
    all: AtomicU32,
}

impl ByCaller {
    const fn new(caller: thread::ThreadId, panics: bool) -> Self {
        Self { caller, panics, own: AtomicU32::new(0), all: AtomicU32::new(0) }
    }
}

impl Job for ByCaller {
    unsafe fn run(&self, _: &[Op], _: &Taken, _: usize, _: &mut dyn Observer) {
        thread::sleep(Duration::from_micros(200));
        self.all.fetch_add(1, Ordering::SeqCst);
        if thread::current().id() != self.caller {
            // One tile at most is not the caller's before it has had one.
            while self.own.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
        } else {
            self.own.fetch_add(1, Ordering::SeqCst);
            assert!(!self.panics, "forced by the test");
        }
    }
}

#[test]
fn a_worker_that_comes_late_and_panics_does_not_leave_the_caller_waiting() {
    within_a_minute(|| {
        for round in 0..60 {
            let (engine, idle) = (engine(2), Sleeper::lasting());
            let worker = thread::spawn(move || {
                thread::sleep(Duration::from_micros(60 * round));
                quietly(|| {
                    let _ = Worker::run(engine, idle);
                })
            });
            // The worker's tiles come in between the caller's own.
            let job = Counted::new(if round % 2 == 0 { TILES } else { 7 });
            let mut result = Ok(());
            let callers = quietly(|| result = engine.run(&job, &[Section::Forward], idle));
            assert!(callers || result == Err(EngineError::Panicked), "{result:?}");
            engine.close(idle);
            assert_eq!(worker.join().unwrap(), !callers);
        }
    });
}

#[test]
fn workers_go_home_though_the_run_under_way_panics() {
    within_a_minute(|| {
        let mut by_workers = 0;
        for round in 0..60 {
            let (engine, idle) = (engine(4), Sleeper::lasting());
            let serve = move || {
                quietly(|| {
                    let _ = Worker::run(engine, idle);
                })
            };
            let workers = [(); 4].map(|()| thread::spawn(serve));
            while engine.workers() < 4 {
                thread::yield_now();
            }
            // Two take part and two rest.
            engine.limit_workers(2);
            let closer = thread::spawn(move || {
                thread::sleep(Duration::from_micros(30 * round));
                engine.close(idle);
            });
            let job = Counted::new(3 + round as u32 % 11);
            let run = || engine.run(&job, &[Section::Forward], idle);
            let answer = catch_unwind(AssertUnwindSafe(run));
            closer.join().unwrap();
            let panicked = workers.map(|worker| worker.join().unwrap());
            match answer {
                Ok(answer) => {
                    assert_eq!(answer, Err(EngineError::Panicked));
                    assert!(panicked.contains(&true));
                    by_workers += 1;
                }
                // On a busy machine all may have gone home before the run began: then it is the caller's.
                Err(_) => assert!(!panicked.contains(&true)),
            }
        }
        assert!(by_workers > 0, "no worker was there for any run");
    });
}

/// Panics when the worker looks for its next tile.
struct Search;

impl Observer for Search {
    fn enter(&mut self, activity: Activity) {
        assert!(activity != Activity::Search, "forced by the test");
    }
}

#[test]
fn an_observer_that_panics_between_two_tiles_is_an_error() {
    within_a_minute(|| {
        let (engine, idle) = (engine(1), Sleeper::lasting());
        let worker = thread::spawn(move || {
            quietly(|| {
                let _ = Worker::run_observed(engine, idle, &mut Search);
            })
        });
        while engine.workers() < 1 {
            thread::yield_now();
        }
        let job = Counted::new(0);
        // Nobody looked for a tile, or somebody did and is counted as having panicked.
        match engine.run(&job, &[Section::Forward], idle) {
            Err(EngineError::Panicked) => assert!(job.tiles.load(Ordering::SeqCst) < TILES),
            Ok(()) => assert_eq!(job.tiles.load(Ordering::SeqCst), TILES),
            Err(EngineError::Busy | EngineError::Attended) => unreachable!("there is one caller"),
        }
        assert!(worker.join().unwrap());
    });
}

/// A worker counts its tiles of a stage when it has no more of them.
#[test]
fn what_a_broken_run_leaves_uncounted_is_of_no_later_run() {
    within_a_minute(|| {
        for looks_between in [false, true] {
            let engine = engine(2);
            let [mut first, mut second] = [(); 2].map(|()| Worker::join(engine, &Spin).unwrap());
            let counted = || engine.slots[0].done().load(Ordering::SeqCst);
            let job = Counted::new(0);
            let broken = begin(engine, &job);
            assert_eq!(first.serve_one(&mut Unobserved, Worker::take), Served::Tile);
            assert_eq!(counted(), 0, "the tile was counted at once: the test tests nothing");
            drop(broken);
            if looks_between {
                assert_eq!(first.serve_one(&mut Unobserved, Worker::take), Served::Nothing);
                assert_eq!(counted(), 0);
            }
            let job = Counted::new(0);
            let whole = begin(engine, &job);
            for turn in 0.. {
                let serves = |worker: &mut Worker<'_, _>| {
                    worker.serve_one(&mut Unobserved, Worker::take) != Served::Nothing
                };
                if !(serves(&mut second) | serves(&mut first)) {
                    break;
                }
                assert!(turn < 2 * TILES, "they count without end");
            }
            assert!(engine.has_ended());
            assert_eq!((job.tiles.load(Ordering::SeqCst), counted()), (TILES, 12));
            drop(whole);
        }
    });
}

/// Parks on a sleeper, and panics in its first wake-up.
struct Clumsy {
    sleeper: &'static Sleeper,
    naps: AtomicU32,
    panics: AtomicBool,
}

impl Idle for Clumsy {
    fn pause(&self, _: u32) -> bool {
        false
    }

    fn park(&self, word: &AtomicU32, seen: u32) {
        self.naps.fetch_add(1, Ordering::SeqCst);
        self.sleeper.park(word, seen);
    }

    fn wake(&self, word: &AtomicU32) {
        assert!(!self.panics.swap(false, Ordering::SeqCst), "forced by the test");
        self.sleeper.wake(word);
    }
}

#[test]
fn a_wake_up_that_panics_when_tiles_are_counted_leaves_nobody_asleep() {
    within_a_minute(|| {
        let engine = engine(1);
        let (naps, panics) = (AtomicU32::new(0), AtomicBool::new(true));
        let idle: &'static Clumsy =
            kept(Box::new(Clumsy { sleeper: Sleeper::lasting(), naps, panics }));
        let mut worker = Worker::join(engine, idle).unwrap();
        let job = Counted::new(0);
        let under_way = begin(engine, &job);
        let mut serve = || worker.serve_one(&mut Unobserved, Worker::take);
        // Nobody watches yet, so nobody is told of the row blocks.
        for _ in 0..12 {
            assert_eq!(serve(), Served::Tile);
        }
        let sleeper = thread::spawn(move || {
            let watch = engine.work.watch();
            watch.wait(watch.seen(), idle);
        });
        while idle.naps.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        assert!(quietly(|| {
            serve();
        }));
        sleeper.join().unwrap();
        // All are counted, so the tile that waits for them can be run.
        assert_eq!((serve(), serve()), (Served::Tile, Served::Nothing));
        assert!(engine.has_ended());
        drop(under_way);
    });
}

/// The count of notifications when a stolen tile is run.
struct Told(&'static Engine<'static>, AtomicU32);

impl Job for Told {
    unsafe fn run(&self, _: &[Op], taken: &Taken, _: usize, _: &mut dyn Observer) {
        if taken.stolen {
            self.1.store(self.0.work.watch().seen(), Ordering::SeqCst);
        }
    }
}

#[test]
fn who_waits_is_told_of_what_a_thief_has_more_of() {
    let engine = engine_of(2, [(Shape::List, 12, 0)]);
    let [_first, mut second] = [(); 2].map(|()| Worker::join(engine, &Spin).unwrap());
    let job = Told(engine, AtomicU32::new(0));
    let under_way = begin(engine, &job);
    for _ in 0..6 {
        assert_eq!(second.serve_one(&mut Unobserved, Worker::take), Served::Tile);
    }
    let watch = engine.work.watch();
    let before = watch.seen();
    assert_eq!(second.serve_one(&mut Unobserved, Worker::take), Served::Tile);
    // Once for the tiles that are counted, and once for two that are now the thief's.
    assert_eq!(job.1.load(Ordering::SeqCst), before + 2);
    drop(under_way);
}

#[test]
fn a_worker_waits_for_the_seat_that_the_caller_has() {
    within_a_minute(|| {
        for round in 0..20 {
            let (engine, idle) = (engine(1), Sleeper::lasting());
            let worker = thread::spawn(move || {
                thread::sleep(Duration::from_micros(100 * round));
                Worker::run(engine, idle)
            });
            // Run after run: the caller would be back in its seat before the worker is awake.
            let mut runs = 0;
            while engine.workers() < 1 {
                let job = Counted::new(0);
                assert_eq!(engine.run(&job, &[Section::Forward], idle), Ok(()));
                assert_eq!(job.tiles.into_inner(), TILES);
                runs += 1;
                assert!(runs < 500, "the worker gets no seat");
            }
            assert_eq!(Worker::run(engine, idle), Err(SeatError::Full { seats: 1 }));
            engine.close(idle);
            assert_eq!(worker.join().unwrap(), Ok(()));
        }
    });
}

/// How often a thread was asked to wait.
struct Asked(AtomicU32);

impl Idle for Asked {
    fn pause(&self, round: u32) -> bool {
        if round == 0 {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        thread::yield_now();
        true
    }

    fn park(&self, _: &AtomicU32, _: u32) {}

    fn wake(&self, _: &AtomicU32) {}
}

#[test]
fn who_takes_no_part_is_not_woken_for_every_tile() {
    within_a_minute(|| {
        let engine = engine(2);
        let asked: &'static Asked = kept(Box::new(Asked(AtomicU32::new(0))));
        let first = thread::spawn(move || Worker::run(engine, &Spin));
        while engine.workers() < 1 {
            thread::yield_now();
        }
        let second = thread::spawn(move || Worker::run(engine, asked));
        while engine.workers() < 2 {
            thread::yield_now();
        }
        engine.limit_workers(1);
        let before = asked.0.load(Ordering::SeqCst);
        for _ in 0..10 {
            let job = Counted::new(0);
            assert_eq!(engine.run(&job, &[Section::Forward], &Spin), Ok(()));
        }
        let times = asked.0.load(Ordering::SeqCst) - before;
        // When a run begins, when it is open, and when it ends; not for 13 tiles.
        assert!(times <= 10 * 4, "{times}");
        engine.close(&Spin);
        assert_eq!((first.join().unwrap(), second.join().unwrap()), (Ok(()), Ok(())));
    });
}

/// Does nothing until the caller has seen all twelve tiles of the first stage done.
struct UntilSeen<'s>(&'s AtomicBool);

impl Job for UntilSeen<'_> {
    unsafe fn run(&self, _: &[Op], taken: &Taken, _: usize, _: &mut dyn Observer) {
        while taken.id == 1 && !self.0.load(Ordering::SeqCst) {
            thread::yield_now();
        }
    }
}

/// Callers and workers sleep at once: one that is not woken for a stage hangs.
#[test]
fn who_follows_a_run_is_told_of_every_stage() {
    within_a_minute(|| {
        let (engine, idle) = (engine(2), Sleeper::lasting());
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| Worker::run(engine, idle));
            }
            while engine.workers() < 2 {
                thread::yield_now();
            }
            for _ in 0..200 {
                let seen = AtomicBool::new(false);
                let look = &mut || {
                    if engine.slots[0].is_done() {
                        seen.store(true, Ordering::SeqCst);
                    }
                };
                let job = UntilSeen(&seen);
                let ran = engine.run_followed(&job, &[Section::Forward], idle, look);
                assert_eq!(ran, Ok(()));
                assert!(seen.load(Ordering::SeqCst));
                // Others are told of the end alone.
                let job = Counted::new(0);
                assert_eq!(engine.run(&job, &[Section::Forward], idle), Ok(()));
                assert!(!engine.followed.load(Ordering::SeqCst));
            }
            engine.close(idle);
        });
    });
}

#[test]
fn a_look_that_panics_takes_back_the_run() {
    within_a_minute(|| {
        let (engine, idle) = (engine(2), Sleeper::lasting());
        thread::scope(|scope| {
            scope.spawn(|| Worker::run(engine, idle));
            while engine.workers() < 1 {
                thread::yield_now();
            }
            for _ in 0..20 {
                let job = Counted::new(0);
                assert!(quietly(|| {
                    let look = &mut || panic!("forced by the test");
                    let _ = engine.run_followed(&job, &[Section::Forward], idle, look);
                }));
                let job = Counted::new(0);
                assert_eq!(engine.run(&job, &[Section::Forward], idle), Ok(()));
                assert_eq!(job.tiles.into_inner(), TILES);
            }
            engine.close(idle);
        });
    });
}
