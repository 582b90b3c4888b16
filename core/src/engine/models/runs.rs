//! Whole runs of an engine under the model checker: its own publisher and worker, parkers that
//! park at once, and two or three threads.
//!
//! There are many more places for a preemption than in the models of single protocols, so
//! there are fewer of them: one or two.

use super::super::idle::Lookout;
use super::super::worker::Served;
use super::*;

/// Some row blocks, then a tile that reads them all.
struct Sum {
    rows: Vec<Plain<u32>>,
    total: Plain<u32>,
}

impl Sum {
    fn new(blocks: usize) -> Self {
        Self { rows: (0..blocks).map(|_| Plain::new(0)).collect(), total: Plain::new(0) }
    }
}

impl Job for Sum {
    unsafe fn run(&self, _: &[Op], taken: &Taken, _: usize, _: &mut dyn Observer) {
        match taken.stage.shape {
            Shape::Rows { .. } => {
                let row = &self.rows[taken.tile as usize];
                row.set(row.get() + 1 + taken.tile);
            }
            _ => self.total.set(self.total.get() + self.rows.iter().map(Plain::get).sum::<u32>()),
        }
    }
}

fn engine(seats: usize) -> &'static Engine<'static> {
    engine_for(seats, 2)
}

fn engine_for(seats: usize, blocks: usize) -> &'static Engine<'static> {
    let cut = Cut { rows: blocks, sequence: blocks, span: blocks, ..CUT };
    let rows = Shape::Rows { first_block: 0, level: 1 };
    let slots: Vec<Slot> =
        [stage(rows, blocks as u32, 0, 0), stage(Shape::List, 1, 1, 0)].map(Slot::of).into();
    let slots = Box::leak(slots.into_boxed_slice());
    let count = words(seats, slots.len(), &cut).unwrap();
    let words: Vec<AtomicWord> = (0..count).map(|_| AtomicWord::new(0)).collect();
    let words = Box::leak(words.into_boxed_slice());
    let mut sections = [const { 0..0 }; Section::COUNT];
    sections[Section::Forward as usize] = 0..2;
    leak(Engine::over(&[], slots, words, seats, cut, sections))
}

/// A worker beside the caller, for some runs; the worker may come late, and is sent home at
/// any time with work queued; the caller waits for it, or works as well. Fewer preemptions than in the small models: there are many
/// more places for them.
fn whole_runs(runs: u32, close_early: bool, works: bool) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(if runs == 1 && !close_early { 2 } else { 1 });
    model.check(move || {
        let idle: &'static Futex = leak(Futex { works, ..Futex::new() });
        let engine = engine(2);
        let worker = thread::spawn(move || match Worker::run(engine, idle) {
            Ok(()) | Err(SeatError::Closed) => {}
            Err(full) => panic!("{full}"),
        });
        let closer = close_early.then(|| thread::spawn(move || engine.close(idle)));
        let job = Sum::new(2);
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

/// Two workers, who steal from each other, and the caller.
fn two_workers(blocks: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(1);
    // All orders of three threads would take too long: as many as there is time for.
    model.max_duration = Some(core::time::Duration::from_secs(5));
    model.check(move || {
        let idle: &'static Futex = leak(Futex::new());
        let engine = engine_for(2, blocks);
        // Both are there from the start: who comes late is in the other models.
        let seats = [(); 2].map(|()| Worker::join(engine, idle).unwrap());
        let workers = seats.map(|mut worker| {
            thread::spawn(move || {
                let mut lookout = Lookout::new();
                loop {
                    lookout.before_look();
                    if engine.is_over() {
                        return;
                    }
                    if worker.serve_one(&mut Unobserved, Worker::take) != Served::Nothing {
                        lookout.found();
                    } else {
                        lookout.found_none(&engine.work, idle);
                    }
                }
            })
        });
        let job = Sum::new(blocks);
        assert_eq!(engine.run(&job, &[Section::Forward], idle), Ok(()));
        assert_eq!(job.total.get() as usize, blocks * (blocks + 1) / 2);
        engine.close(idle);
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

#[test]
fn two_workers_share_a_run() {
    two_workers(2);
}

/// Tiles of a share are counted together, unless a thief takes the rest of it.
#[test]
fn two_workers_share_the_rest_of_a_share() {
    two_workers(4);
}

#[test]
fn a_run_ends_when_all_tiles_are_done() {
    whole_runs(1, false, false);
}

#[test]
fn a_caller_works_beside_a_worker() {
    whole_runs(1, false, true);
    whole_runs(2, false, true);
}

#[test]
fn slots_are_used_again_by_the_next_run() {
    whole_runs(2, false, false);
}

#[test]
fn a_shutdown_with_work_queued_leaves_none_undone() {
    whole_runs(1, true, false);
}

/// A worker that goes as soon as it has nothing to do, whether or not it has seen the run,
/// leaves its tiles to the caller, and the caller awake.
fn early_leave() {
    /// Wakes who sleeps in the bed, and does not stay.
    struct Leaving(&'static Bed);

    impl Idle for Leaving {
        fn pause(&self, _: u32) -> bool {
            false
        }

        fn park(&self, _: &AtomicU32, _: u32) {
            unreachable!("it leaves instead");
        }

        fn wake(&self, word: &AtomicU32) {
            self.0.wake(word);
        }

        fn stays(&self) -> bool {
            false
        }
    }

    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let bed = leak(Bed::new());
        let engine = engine(1);
        let worker = thread::spawn(move || {
            // Full while the caller sits in the only seat.
            drop(Worker::run(engine, leak(Leaving(bed))));
            bed.last_call();
        });
        let job = Sum::new(2);
        assert_eq!(engine.run(&job, &[Section::Forward], bed), Ok(()));
        assert_eq!(job.total.get(), 3);
        worker.join().unwrap();
        bed.check();
    });
}

#[test]
fn a_worker_may_leave_a_run_to_the_caller() {
    early_leave();
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn who_leaves_needs_to_tell_the_caller() {
    weaken(Access::Leave);
    early_leave();
}

/// A worker that sleeps, or is about to, goes home.
fn closing() {
    loom::model(|| {
        let bed = leak(Bed::new());
        let engine = engine(1);
        let worker = thread::spawn(move || drop(Worker::run(engine, bed)));
        engine.close(bed);
        bed.last_call();
        worker.join().unwrap();
        bed.check();
    });
}

#[test]
fn nobody_sleeps_through_the_end() {
    closing();
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn who_closes_needs_to_tell_the_workers() {
    weaken(Access::Close);
    closing();
}

/// A worker that counts a tile when it has run it, or already when it has taken it.
fn counting(when_taken: bool) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(1);
    model.check(move || {
        let idle: &'static Futex = leak(Futex::new());
        let engine = engine(1);
        let job: &'static Sum = leak(Sum::new(2));
        // Never dropped: that touches the engine, which a thread must not that fails.
        let worker = Box::leak(Box::new(Worker::join(engine, idle).unwrap()));
        let thread = thread::spawn(move || {
            let work = engine.work.watch();
            loop {
                let seen = work.seen();
                if engine.is_over() {
                    return;
                }
                let Some(taken) = worker.take() else {
                    work.wait(seen, idle);
                    continue;
                };
                if when_taken {
                    engine.complete(&taken, idle);
                }
                // SAFETY: whether the tile is this worker's alone is what the model checks.
                unsafe { job.run(&[], &taken, 0, &mut Unobserved) };
                if !when_taken {
                    engine.complete(&taken, idle);
                }
            }
        });
        assert_eq!(engine.run(job, &[Section::Forward], idle), Ok(()));
        // Reads what the worker may be writing.
        let _ = (job.rows[0].get(), job.rows[1].get(), job.total.get());
        engine.close(idle);
        thread.join().unwrap();
    });
}

#[test]
fn a_tile_is_counted_when_it_is_done() {
    counting(false);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_tile_is_not_counted_when_it_is_taken() {
    counting(true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn the_end_of_a_stage_needs_a_releasing_count() {
    weaken(Access::EndStage);
    // A lone worker's own loop would make up for it with the fence at its next look.
    counting(false);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn the_end_of_a_run_needs_an_acquiring_look() {
    weaken(Access::SeeEnd);
    whole_runs(1, false, false);
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
