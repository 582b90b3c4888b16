//! How a thread waits: the engine does not know how to sleep, the caller's threads do.
//!
//! [`Event`] is a count that only grows, and only while somebody watches: a notification
//! that nobody waits for writes nothing, so that workers who are all busy do not pass
//! a cache line to and fro with every tile. Who waits has said so *before* it read the count,
//! and read the count *before* it looked for work, found none, and waits until the count has
//! moved on:
//!
//! ```text
//! waiting thread                      notifying thread
//! watchers += 1; fence                make work visible; fence
//! seen = count                        if watchers > 0:
//! look for work: none                     count += 1; fence
//! pause a few rounds while                if sleepers > 0: wake(count)
//!     count == seen
//! sleepers += 1; fence
//! if count == seen: park(count, seen)
//! sleepers -= 1
//! watchers -= 1
//! ```
//! **No wake-up is lost.** Of `watchers += 1; fence; look` on one side and `make visible;
//! fence; read watchers` on the other one sees the other's, for the fences are sequentially
//! consistent: either the look finds the work, or the notifier finds a watcher and
//! moves the count. Work made visible before `seen` was read is found by the look;
//! when the count moves later, the pause ends. For the parked it is the same once more:
//! `sleepers += 1; fence; read count` and `count += 1; fence; read sleepers`. Between the
//! sleeper's last look and its sleep lies [`Idle::park`], which like a futex compares the
//! word again and sleeps in one step.

use super::fault::{Access, fence};
use crate::primitive::{AtomicU32, Ordering, spin_loop};

/// What a thread does while there is nothing to do.
///
/// All threads of an engine that park must use parkers that know each other: a thread
/// that parks is woken by [`Idle::wake`] of any other, with the address of the same word.
///
/// A thread of a system that has other work too:
///
/// ```
/// use cllm_core::*;
/// use core::sync::atomic::AtomicU32;
///
/// struct Yield;
///
/// impl Idle for Yield {
///     fn pause(&self, round: u32) -> bool {
///         if round < 100 { core::hint::spin_loop() } else { std::thread::yield_now() }
///         // Never asks to be parked, so nobody has to be woken.
///         true
///     }
///     fn park(&self, _: &AtomicU32, _: u32) {}
///     fn wake(&self, _: &AtomicU32) {}
/// }
///
/// # let config = ModelConfig { vocab_size: 40, block_size: 32, n_layer: 1, n_head: 2, d_model: 16,
/// #     d_ff: 48, bias: false, tied: true, dropout: 0.0, norm_eps: 1e-5, arch: Architecture::GPT2 };
/// # let batch = BatchShape { sequences: 4, tokens: 32 };
/// # let plan = Plan::new(&config, batch, 2, Mode::Train, Kernels::detect())?;
/// # let mut ops = vec![Op::EMPTY; plan.ops()];
/// # let mut slots: Vec<_> = (0..plan.slots()).map(|_| Slot::new()).collect();
/// # let mut words: Vec<_> = (0..plan.words()).map(|_| 0.into()).collect();
/// # let queue = Queue { ops: &mut ops, slots: &mut slots, words: &mut words };
/// // Over the memory of a plan for two workers, see `Queue`.
/// let engine = Engine::new(&plan, queue)?;
/// std::thread::scope(|scope| {
///     for _ in 0..2 {
///         scope.spawn(|| Worker::run(&engine, &Yield).expect("there is a seat for each"));
///     }
///     while engine.workers() < 2 {
///         std::thread::yield_now();
///     }
///     // Here a trainer, made with `wait_with(&Yield)`, would ask for steps: this is one in which
///     // nothing is computed.
///     let drilled = engine.drill_step(&Yield).expect("no other run is under way");
///     assert!(drilled.tiles > drilled.stages);
///     // The workers return, or the scope would wait for them.
///     engine.close(&Yield);
/// });
/// assert_eq!(engine.workers(), 0);
/// # Ok::<(), PlanError>(())
/// ```
pub trait Idle {
    /// One round of waiting awake: a processor hint, a bounded number of them, or a
    /// yield to the system. `round` counts from 0 since the thread last had work.
    /// Returns whether to go on like this; `false` asks to be parked.
    fn pause(&self, round: u32) -> bool;

    /// Sleeps while `*word == seen`, until woken. Comparing and falling asleep are one step
    /// with regard to [`Idle::wake`] of the same word. May return for no reason.
    fn park(&self, word: &AtomicU32, seen: u32);

    /// Wakes every thread that is parked on `word`.
    fn wake(&self, word: &AtomicU32);

    /// Whether the thread goes on serving; asked between runs, when it has nothing to
    /// do. `false` makes [`crate::Worker::run`] return.
    fn stays(&self) -> bool {
        true
    }

    /// Whether a thread that asks for a run works on it as well; asked before each run. It then sits on
    /// a seat of its own until the run is over, if the plan has one that nobody else has taken, so a
    /// plan for it counts one worker more. Without, who asks only waits while there are workers: for a
    /// thread that is to sleep, or has been given no core of its own.
    fn works(&self) -> bool {
        false
    }
}

/// Waits awake, for cores that have nothing else to do: bare metal, or one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spin;

impl Idle for Spin {
    fn pause(&self, _round: u32) -> bool {
        spin_loop();
        true
    }

    fn park(&self, _word: &AtomicU32, _seen: u32) {
        spin_loop();
    }

    fn wake(&self, _word: &AtomicU32) {}
}

/// Something that threads wait for: see the module's documentation.
#[derive(Debug)]
pub(super) struct Event {
    count: AtomicU32,
    watchers: AtomicU32,
    sleepers: AtomicU32,
}

impl Event {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self { count: AtomicU32::new(0), watchers: AtomicU32::new(0), sleepers: AtomicU32::new(0) }
    }

    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self { count: AtomicU32::new(0), watchers: AtomicU32::new(0), sleepers: AtomicU32::new(0) }
    }

    /// Announces that the calling thread is going to look for work and to wait.
    pub(super) fn watch(&self) -> Watch<'_> {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        fence(Access::Watch);
        Watch(self)
    }

    /// Says that there may be something to do.
    pub(super) fn notify(&self, idle: &(impl Idle + ?Sized)) {
        fence(Access::Tell);
        if self.watchers.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.count.fetch_add(1, Ordering::Release);
        fence(Access::Notify);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            idle.wake(&self.count);
        }
    }
}

/// Somebody who watches an [`Event`], until it is dropped.
#[derive(Debug)]
pub(super) struct Watch<'e>(&'e Event);

impl Watch<'_> {
    /// To be read before looking for work.
    pub(super) fn seen(&self) -> u32 {
        self.0.count.load(Ordering::Acquire)
    }

    /// Waits for a notification since `seen` was read, or until `idle` no longer stays.
    pub(super) fn wait(&self, seen: u32, idle: &(impl Idle + ?Sized)) {
        let Event { count, sleepers, .. } = self.0;
        let mut round = 0_u32;
        while count.load(Ordering::Acquire) == seen && idle.stays() {
            if idle.pause(round) {
                round = round.saturating_add(1);
                continue;
            }
            sleepers.fetch_add(1, Ordering::Relaxed);
            fence(Access::Sleep);
            if count.load(Ordering::Relaxed) == seen {
                idle.park(count, seen);
            }
            sleepers.fetch_sub(1, Ordering::Relaxed);
            return;
        }
    }
}

/// Waits for one event or another between looks for work, the first of which is free: only who
/// found nothing watches, and looks again before it waits.
#[derive(Debug)]
pub(super) struct Lookout<'e> {
    watch: Option<Watch<'e>>,
    seen: u32,
}

impl<'e> Lookout<'e> {
    pub(super) const fn new() -> Self {
        Self { watch: None, seen: 0 }
    }

    /// To be called before each look.
    pub(super) fn before_look(&mut self) {
        if let Some(watch) = &self.watch {
            self.seen = watch.seen();
        }
    }

    /// There was work.
    pub(super) fn found(&mut self) {
        self.watch = None;
    }

    /// Whether `event` was watched during the look.
    pub(super) fn watches(&self, event: &Event) -> bool {
        self.watch.as_ref().is_some_and(|watch| core::ptr::eq(watch.0, event))
    }

    /// There was none, and `event` will tell of some: waits for it if it was watched during
    /// the look, or else begins to watch it.
    pub(super) fn found_none(&mut self, event: &'e Event, idle: &(impl Idle + ?Sized)) {
        match &self.watch {
            Some(watch) if self.watches(event) => watch.wait(self.seen, idle),
            _ => self.watch = Some(event.watch()),
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}
