//! Runs that their caller goes through a few tiles at a time, on its own thread.
//!
//! ```text
//! begin               takes the first seat, opens the shares: all tiles are that seat's
//! run_for(job, n)     lends the job, runs n tiles, counts them, has the job back
//! drop                before the end: takes back the rest, as after a panic; then gets up
//! ```
//! **Alone.** A caller that goes away between two tiles can wait for nobody, and nobody for it. So the
//! run has one member, the caller, which is refused if workers serve the engine. Workers that come
//! while the run is under way sit where there are no shares, as others do who come late, and rest
//! until it is over; if there is but one seat, they wait for that.
//!
//! **What protects the job.** It is lent for a call. Only who has taken a tile reads the cell, only the
//! member takes tiles, and when a call returns (or unwinds) it has none in hand. So the job need not
//! outlive the call, whatever becomes of the run afterwards.
//!
//! **Bounded.** The oldest tile that is not done is ready and at the front of the member's share, in the
//! first stage that is not counted as done ("no tile is forgotten", `worker`). So a tile is found in
//! the time of one look, and a call takes what its tiles take.
#![expect(unsafe_code, reason = "lends a borrowed job to the engine")]

use super::idle::Idle;
use super::observe::{Observer, Unobserved};
use super::worker::{Served, Sitter, Worker};
use super::{Engine, EngineError, Job, UnderWay};
use crate::primitive::Ordering;
use crate::program::Section;

/// A run under way, of which tiles are run when the caller says so.
pub(crate) struct Sliced<'e, I: Idle + ?Sized> {
    // Dropped in this order: what is left of the run is gone before somebody else has the seat.
    under_way: UnderWay<'e, 'e, I>,
    worker: Worker<'e, I>,
    tiles_left: usize,
}

/// The engine has a job for as long as this lives.
struct Loan<'e>(&'e Engine<'e>);

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        // SAFETY: as when it was lent: nobody has a tile, and without one nobody looks.
        self.0.job.with_mut(|cell| unsafe { *cell = None });
    }
}

impl<'e, I: Idle + ?Sized> Sliced<'e, I> {
    /// Begins a run of sections, as [`Engine::run`] does. No tile is run.
    ///
    /// # Errors
    /// Another run is under way, or workers serve the engine.
    pub(crate) fn begin(
        engine: &'e Engine<'e>,
        sections: &[Section],
        idle: &'e I,
    ) -> Result<Self, EngineError> {
        let under_way = engine.begin(idle)?;
        let seated = Worker::sit(engine, idle, Sitter::Caller);
        let Some(worker) = seated.ok().filter(|worker| worker.seat() == 0) else {
            return Err(EngineError::Attended);
        };
        // Who sits down from now on comes late.
        if engine.workers() > 0 {
            return Err(EngineError::Attended);
        }
        engine.open(sections, 1, idle);
        let slots =
            sections.iter().flat_map(|of| &engine.slots[engine.sections[*of as usize].clone()]);
        let tiles_left = slots.map(|slot| slot.stage.tiles as usize).sum();
        Ok(Self { under_way, worker, tiles_left })
    }

    /// Tiles that are not run yet.
    pub(crate) fn tiles_left(&self) -> usize {
        self.tiles_left
    }

    /// Runs `tiles` tiles, or those that are left; whether the run has ended. It is the same job each time.
    ///
    /// # Errors
    /// A tile has panicked in an earlier call, which unwound.
    pub(crate) fn run_for(
        &mut self,
        job: &dyn Job,
        tiles: usize,
        observer: &mut dyn Observer,
    ) -> Result<bool, EngineError> {
        let engine = self.under_way.engine;
        // SAFETY: this seat alone takes tiles of the run, and between calls it has none; the loan ends
        // before the call does.
        unsafe { engine.lend(job) };
        let _loan = Loan(engine);
        let mut run = 0;
        while run < tiles {
            match self.worker.serve_one(observer, Worker::take) {
                Served::Tile => run += 1,
                Served::Count => {}
                // All are done, or the run is poisoned.
                Served::Nothing => break,
            }
        }
        // To be seen at the end of the run, and not to be found at the beginning of the next call.
        self.worker.serve_one(&mut Unobserved, |_| None);
        self.tiles_left -= run;
        if engine.poisoned.load(Ordering::Acquire) {
            return Err(EngineError::Panicked);
        }
        Ok(engine.has_ended())
    }
}
