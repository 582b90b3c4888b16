//! One tile: taken from the own share or stolen from the other's, and completed. Alone, and with
//! the other's owner at it on another thread.

use super::{Case, await_other, plan, with_engine};
use crate::error::Result;
use cllm_core::{DrillSeat, Engine, Spin};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use core::time::Duration;
use std::thread;
use std::time::Instant;

/// A vocabulary that makes the update of the parameters some 8,000 tiles.
const VOCAB: usize = 1 << 20;

/// Shares that are measured again for each time because the two threads did not meet.
const PATIENCE: u32 = 30;

/// Most tiles of a contended share that are timed: few enough for the other's to last longer.
const TOGETHER: u64 = 1000;

/// How a tile is come by.
#[derive(Clone, Copy)]
enum How {
    Taken,
    Stolen,
}

impl How {
    fn next(self, seat: &mut DrillSeat<'_, Spin>) -> bool {
        match self {
            Self::Taken => seat.take(),
            Self::Stolen => seat.steal(),
        }
    }
}

pub(super) fn visit(pairs: bool, see: &mut dyn FnMut(Case<'_>)) -> Result<()> {
    let plan = plan(VOCAB, 1, 2)?;
    let cases = [
        ("tile/own", How::Taken, false),
        ("tile/own, another worker at its", How::Taken, true),
        ("tile/stolen", How::Stolen, false),
        ("tile/stolen, its owner at it", How::Stolen, true),
    ];
    with_engine(&plan, |engine| {
        for (name, how, contended) in cases {
            if !contended || pairs {
                let mut run = |times| time_tiles(engine, how, contended, times);
                see(Case { name, target: None, tiles: None, singly: false, run: &mut run });
            }
        }
    })
}

/// Time of `times` tiles, from the time of as many shares as they need.
fn time_tiles(engine: &Engine<'_>, how: How, contended: bool, times: u64) -> Duration {
    let (mut tiles, mut spent, mut apart) = (0, Duration::ZERO, 0);
    while tiles < times {
        let most = (times - tiles).min(if contended { TOGETHER } else { u64::MAX });
        let drilled = engine.drill_seats(&Spin, |[mut here, there]| {
            if contended {
                contend(&mut here, there, how, most)
            } else {
                (take(&mut here, how, most), true)
            }
        });
        // Nobody else uses this engine.
        let Ok(((count, time), met)) = drilled else { break };
        // Threads that took turns on one CPU have not met: that does not count, unless the
        // machine is so busy that there is nothing else.
        if !met && apart < PATIENCE {
            apart += 1;
            continue;
        }
        tiles += count;
        spent += time;
    }
    spent
}

/// Up to `most` tiles: how many there were, and how long they took.
fn take(seat: &mut DrillSeat<'_, Spin>, how: How, most: u64) -> (u64, Duration) {
    let start = Instant::now();
    let mut count = 0;
    while count < most && how.next(seat) {
        count += 1;
    }
    (count, start.elapsed())
}

/// The same while the other seat takes its own on another thread, and whether that one was at
/// it from beginning to end.
fn contend(
    here: &mut DrillSeat<'_, Spin>,
    mut there: DrillSeat<'_, Spin>,
    how: How,
    most: u64,
) -> ((u64, Duration), bool) {
    let (ready, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
    let together = || {
        ready.fetch_add(1, SeqCst);
        await_other(|| ready.load(SeqCst) == 2);
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            together();
            let mut count = 0_u64;
            while !is_over.load(Relaxed) {
                if !there.take() {
                    return None;
                }
                count += 1;
            }
            Some(count)
        });
        together();
        let taken = take(here, how, most);
        is_over.store(true, Relaxed);
        let others = other.join().unwrap_or_default();
        (taken, others.is_some_and(|others| others > taken.0 / 4))
    })
}
