//! Batches made ready ahead of the step that needs them, by a thread of their own.
//!
//! A pool of a few batches goes round between two threads over two rings, each batch owned
//! by whoever holds it:
//!
//! ```text
//!                 full ring: filled batches, or the error that filling one gave
//!            +--------------------------------------------------------------+
//!            |                                                              v
//!     loader thread                                                 training thread
//!            ^                                                              |
//!            +--------------------------------------------------------------+
//!                 free ring: batches that a step has done with
//! ```
//!
//! **The same batches whatever the timing.** One thread fills them in the order of the
//! run, one ring passes them on in that order; how far the loader is ahead changes nothing.
//! So an error, too, arrives in its place: after all batches before it, instead of the
//! batch that could not be filled.
//!
//! **Waiting.** A loader without a free batch parks; a training thread without a full one
//! tries a little longer, then parks, and counts the time. Each side unparks the other
//! after every push. No wake-up is lost, because unparking leaves a token: whoever looks
//! into a ring, finds it empty and then parks either looked after the push, and would have
//! found the item, or looked before it, and then the token comes after that look and the
//! park returns at once or is ended. A token that is left over costs one more look. What
//! was pushed before the token is seen after the park.
//!
//! **The end.** The loader stops when it has filled the last batch, when filling fails, when
//! it panics, and when [`Prefetch`] is dropped, which it looks for before each batch and
//! after each park. On its way out, panicking or not, it says that it has ended and unparks
//! the training thread, which therefore never waits for a thread that is gone. Dropping
//! [`Prefetch`] joins it.

use core::any::Any;
use core::hint::spin_loop;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use cllm_core::Batch;
use cllm_core::ring::{Consumer, Producer, Ring, Slot};
use crossbeam_utils::sync::{Parker, Unparker};

use crate::error::{Error, Result};

/// Most batches that may be ready.
pub const MAX_DEPTH: usize = 64;
/// Looks for a full batch before parking: some microseconds, what waking up costs.
const LOOKS: u32 = 200;
/// The loader's name.
const THREAD: &str = "cllm-loader";

/// What a step's rows hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTokens {
    /// Places that are no padding.
    pub places: usize,
    /// Targets that count.
    pub counted: usize,
}

/// Room for one batch, filled when it comes from [`Prefetch::take`].
#[derive(Debug)]
pub struct ReadyBatch {
    tokens: Box<[u32]>,
    targets: Box<[u32]>,
    /// Empty until there are documents that must not see one another.
    starts: Box<[u32]>,
    /// What all micro-batches hold of the step that this one is of.
    pub step: StepTokens,
}

impl ReadyBatch {
    /// Room for so many tokens.
    #[must_use]
    pub fn new(tokens: usize) -> Self {
        let ids = || vec![0; tokens].into_boxed_slice();
        Self { tokens: ids(), targets: ids(), starts: Box::default(), step: StepTokens::default() }
    }

    /// The ids, for a step.
    #[must_use]
    pub fn get(&self) -> Batch<'_> {
        let starts = (!self.starts.is_empty()).then_some(&*self.starts);
        Batch { tokens: &self.tokens, targets: &self.targets, starts }
    }

    /// Tokens and targets, to be filled with sequences without borders.
    pub fn ids(&mut self) -> (&mut [u32], &mut [u32]) {
        self.starts = Box::default();
        (&mut self.tokens, &mut self.targets)
    }

    /// The targets alone.
    pub fn targets_mut(&mut self) -> &mut [u32] {
        &mut self.targets
    }

    /// Tokens, targets and starts of each row of `block_size`, to be filled. Takes memory for starts
    /// at the first time.
    pub fn rows(
        &mut self,
        block_size: usize,
    ) -> impl Iterator<Item = (&mut [u32], &mut [u32], &mut [u32])> {
        if self.starts.is_empty() {
            self.starts = vec![0; self.tokens.len()].into();
        }
        let tokens = self.tokens.chunks_exact_mut(block_size);
        let (targets, starts) = (&mut self.targets, &mut self.starts);
        let others = targets.chunks_exact_mut(block_size).zip(starts.chunks_exact_mut(block_size));
        tokens.zip(others).map(|(tokens, (targets, starts))| (tokens, targets, starts))
    }
}

/// Checks the number of batches that may be ready.
///
/// # Errors
/// None, or more than [`MAX_DEPTH`].
pub fn check_depth(depth: usize) -> Result<()> {
    if (1..=MAX_DEPTH).contains(&depth) {
        return Ok(());
    }
    Err(Error::usage(format!("--prefetch {depth}: it must be from 1 to {MAX_DEPTH}")))
}

/// What the threads tell each other beside batches.
#[derive(Debug, Default)]
struct Signals {
    /// Nobody takes batches any more.
    closed: AtomicBool,
    /// The loader fills no more.
    ended: AtomicBool,
}

/// Calls `body` with the batches `batches`, filled ahead by a thread that ends with it.
///
/// `fill` is called with each number in turn, and room for `tokens` ids. At most `depth` batches are
/// filled and not given back; theirs is all the memory that is taken, here and now, but for starts.
///
/// # Errors
/// Those of `body`; the thread cannot be started; a `depth` that [`check_depth`] refuses.
///
/// # Panics
/// If `body` does.
pub fn with_loader<R>(
    depth: usize,
    tokens: usize,
    batches: Range<u64>,
    fill: impl FnMut(u64, &mut ReadyBatch) -> Result<()> + Send,
    body: impl FnOnce(Prefetch<'_>) -> Result<R>,
) -> Result<R> {
    check_depth(depth)?;
    let (mut full_slots, mut free_slots) = (slots(depth), slots(depth));
    let (mut full, mut free) = (Ring::new(&mut full_slots), Ring::new(&mut free_slots));
    let ((filled, full), (mut free, empty)) = (full.split(), free.split());
    while free.len() < free.capacity() {
        // There is room, as was just asked.
        let _ = free.push(ReadyBatch::new(tokens));
    }
    let signals = &Signals::default();
    let (ready, room) = (Parker::new(), Parker::new());
    let wake = room.unparker().clone();
    let loader = Loader { empty, filled, ready: ready.unparker().clone(), room, signals };
    thread::scope(|scope| {
        let builder = thread::Builder::new().name(THREAD.to_owned());
        let thread = builder.spawn_scoped(scope, move || loader.run(batches, fill));
        let thread = thread.map_err(|e| {
            Error::failure(format!(
                "cannot start the thread {THREAD}: {e}; allow more threads, or more memory \
                 (ulimit -u, -v)"
            ))
        })?;
        let loader = Some(thread);
        body(Prefetch { full, free, ready, room: wake, signals, loader, waited: 0.0 })
    })
}

fn slots<T>(count: usize) -> Vec<Slot<T>> {
    (0..count).map(|_| Slot::new()).collect()
}

/// The training thread's end: full batches come out, used ones go back in.
#[derive(Debug)]
pub struct Prefetch<'s> {
    full: Consumer<'s, Result<ReadyBatch>>,
    free: Producer<'s, ReadyBatch>,
    /// Where this thread waits for a full batch.
    ready: Parker,
    /// Where the loader waits for a free one.
    room: Unparker,
    signals: &'s Signals,
    loader: Option<ScopedJoinHandle<'s, ()>>,
    waited: f64,
}

impl Prefetch<'_> {
    /// The next batch, as soon as it is there. Allocates nothing.
    ///
    /// # Errors
    /// What filling this batch gave; a panic of the loader; all batches have been taken.
    pub fn take(&mut self) -> Result<ReadyBatch> {
        match self.full.pop() {
            Some(batch) => batch,
            None => self.wait(),
        }
    }

    /// Gives a batch back, to be filled anew.
    pub fn recycle(&mut self, batch: ReadyBatch) {
        // There is room for all batches of the pool.
        let _ = self.free.push(batch);
        self.room.unpark();
    }

    /// Seconds that [`take`](Self::take) has waited, all in all.
    #[must_use]
    pub fn waited(&self) -> f64 {
        self.waited
    }

    #[cold]
    fn wait(&mut self) -> Result<ReadyBatch> {
        let start = Instant::now();
        let batch = self.wait_for_batch();
        self.waited += start.elapsed().as_secs_f64();
        batch.unwrap_or_else(|| Err(self.ended()))
    }

    /// `None` if the loader has ended and nothing is left.
    fn wait_for_batch(&mut self) -> Option<Result<ReadyBatch>> {
        for _ in 0..LOOKS {
            if let Some(batch) = self.full.pop() {
                return Some(batch);
            }
            spin_loop();
        }
        loop {
            // In this order: once the loader has ended, an empty ring stays empty.
            let ended = self.signals.ended.load(Ordering::Acquire);
            if let Some(batch) = self.full.pop() {
                return Some(batch);
            }
            if ended {
                return None;
            }
            self.ready.park();
        }
    }

    /// Why there is no batch and never will be.
    fn ended(&mut self) -> Error {
        match self.loader.take().map(ScopedJoinHandle::join) {
            Some(Err(panic)) => Error::failure(format!(
                "the thread {THREAD} panicked while it read the data: {}",
                message(&*panic)
            )),
            _ => Error::failure("there are no more batches: the loader has ended"),
        }
    }
}

impl Drop for Prefetch<'_> {
    fn drop(&mut self) {
        self.signals.closed.store(true, Ordering::Release);
        self.room.unpark();
        if let Some(thread) = self.loader.take() {
            // Nobody wants a batch any more, so a panic there is no error here.
            let _ = thread.join();
        }
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}

/// The loader thread's end.
struct Loader<'s> {
    empty: Consumer<'s, ReadyBatch>,
    filled: Producer<'s, Result<ReadyBatch>>,
    ready: Unparker,
    room: Parker,
    signals: &'s Signals,
}

impl Loader<'_> {
    fn run(
        mut self,
        batches: Range<u64>,
        mut fill: impl FnMut(u64, &mut ReadyBatch) -> Result<()>,
    ) {
        for n in batches {
            let Some(mut batch) = self.wait_for_room() else { return };
            let filled = fill(n, &mut batch).map(|()| batch);
            let is_last = filled.is_err();
            // There is room for all batches of the pool.
            let _ = self.filled.push(filled);
            self.ready.unpark();
            if is_last {
                return;
            }
        }
    }

    /// `None` if nobody takes batches any more.
    fn wait_for_room(&mut self) -> Option<ReadyBatch> {
        loop {
            if self.signals.closed.load(Ordering::Acquire) {
                return None;
            }
            match self.empty.pop() {
                Some(batch) => return Some(batch),
                None => self.room.park(),
            }
        }
    }
}

impl Drop for Loader<'_> {
    fn drop(&mut self) {
        self.signals.ended.store(true, Ordering::Release);
        self.ready.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU64;
    use core::time::Duration;

    /// Marks a batch with its number.
    fn mark(n: u64, batch: &mut ReadyBatch) -> Result<()> {
        let (tokens, targets) = batch.ids();
        tokens.fill(n as u32);
        targets.fill(!n as u32);
        Ok(())
    }

    fn assert_marked(batch: &ReadyBatch, n: u64) {
        let Batch { tokens, targets, .. } = batch.get();
        assert_eq!((tokens, targets), (&[n as u32; 6][..], &[!n as u32; 6][..]));
    }

    /// Now and then a while, differently for each number.
    fn dawdle(n: u64, seed: u64) {
        let random = (n ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        match random % 16 {
            0 => thread::sleep(Duration::from_micros(random % 512)),
            1..4 => thread::yield_now(),
            _ => {}
        }
    }

    #[test]
    fn batches_come_in_order_whatever_the_depth_and_the_timing() {
        for depth in [1, 2, 3, 16, 64] {
            let fill = |n, batch: &mut ReadyBatch| {
                dawdle(n, 1);
                mark(n, batch)
            };
            let end = with_loader(depth, 6, 1000..2500, fill, |mut prefetch| {
                for n in 1000..2500 {
                    let batch = prefetch.take()?;
                    assert_marked(&batch, n);
                    dawdle(n, 2);
                    assert_marked(&batch, n);
                    prefetch.recycle(batch);
                }
                Ok(prefetch.take().unwrap_err().to_string())
            });
            assert_eq!(end.unwrap(), "there are no more batches: the loader has ended");
        }
    }

    #[test]
    fn no_wake_up_is_lost_when_both_sides_keep_waiting() {
        let count = 100_000;
        let all = with_loader(1, 6, 0..count, mark, |mut prefetch| {
            for n in 0..count {
                let batch = prefetch.take()?;
                assert_marked(&batch, n);
                prefetch.recycle(batch);
            }
            Ok(())
        });
        assert_eq!(all, Ok(()));
    }

    #[test]
    fn an_error_comes_instead_of_its_batch() {
        let fill = |n, batch: &mut ReadyBatch| match n {
            7 => Err(Error::usage("batch 7 is bad")),
            n => mark(n, batch),
        };
        for depth in [1, 4, 64] {
            let error = with_loader(depth, 6, 0..20, fill, |mut prefetch| {
                for n in 0..7 {
                    let batch = prefetch.take()?;
                    assert_marked(&batch, n);
                    prefetch.recycle(batch);
                }
                let error = prefetch.take().unwrap_err();
                // Whoever goes on all the same does not wait for ever.
                assert!(prefetch.take().is_err());
                Ok(error)
            });
            assert_eq!(error, Ok(Error::usage("batch 7 is bad")), "depth {depth}");
        }
    }

    #[test]
    fn a_panic_of_the_loader_is_an_error() {
        let fill = |n, batch: &mut ReadyBatch| {
            assert!(n < 3, "batch {n} is the last straw");
            mark(n, batch)
        };
        let error = with_loader(2, 6, 0..20, fill, |mut prefetch| {
            for _ in 0..3 {
                let batch = prefetch.take()?;
                prefetch.recycle(batch);
            }
            // Long enough for the loader to be gone.
            thread::sleep(Duration::from_millis(20));
            prefetch.take().map(|_| ())
        });
        let message = error.unwrap_err().to_string();
        assert!(message.contains("cllm-loader panicked"), "{message}");
        assert!(message.contains("batch 3 is the last straw"), "{message}");
    }

    #[test]
    fn a_loader_that_is_not_needed_any_more_ends() {
        // Parked for lack of room, and in the middle of filling.
        for pause in [Duration::from_millis(20), Duration::ZERO] {
            let filled = AtomicU64::new(0);
            let fill = |n, batch: &mut ReadyBatch| {
                filled.fetch_add(1, Ordering::Relaxed);
                mark(n, batch)
            };
            let early = with_loader(3, 6, 0..u64::MAX, fill, |mut prefetch| {
                let batch = prefetch.take()?;
                prefetch.recycle(batch);
                thread::sleep(pause);
                Err::<(), _>(Error::failure("enough"))
            });
            assert_eq!(early, Err(Error::failure("enough")));
            assert!(filled.into_inner() <= 1 + 3);
        }
    }

    #[test]
    fn a_panic_of_training_ends_the_loader_too() {
        let panic = std::panic::catch_unwind(|| {
            with_loader(1, 6, 0..u64::MAX, mark, |_| -> Result<()> { panic!("training") })
        });
        assert_eq!(message(&*panic.unwrap_err()), "training");
    }

    #[test]
    fn waiting_is_counted_and_batches_that_are_ready_cost_none() {
        let fill = |n, batch: &mut ReadyBatch| {
            assert_eq!(thread::current().name(), Some(THREAD));
            mark(n, batch)
        };
        let waited = with_loader(4, 6, 0..4, fill, |mut prefetch| {
            while prefetch.full.len() < 4 {
                thread::yield_now();
            }
            for _ in 0..4 {
                let batch = prefetch.take()?;
                prefetch.recycle(batch);
            }
            Ok(prefetch.waited())
        });
        assert_eq!(waited, Ok(0.0));
        let slow = |n, batch: &mut ReadyBatch| {
            thread::sleep(Duration::from_millis(10));
            mark(n, batch)
        };
        let waited = with_loader(2, 6, 0..3, slow, |mut prefetch| {
            for _ in 0..3 {
                let batch = prefetch.take()?;
                prefetch.recycle(batch);
            }
            Ok(prefetch.waited())
        });
        assert!(waited.as_ref().is_ok_and(|seconds| *seconds > 0.02), "{waited:?}");
    }

    #[test]
    fn senseless_depths_are_refused() {
        for depth in [0, 65] {
            let error = with_loader(depth, 6, 0..1, mark, |_| Ok(())).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().starts_with(&format!("--prefetch {depth}: ")), "{error}");
        }
    }
}
