//! What workers record of their tiles, in buffers that were allocated before the run.
//!
//! Each worker has a track that only it writes: five words for each operation of a
//! tile, then the number of those that are there. Whoever reads a track sees the events up to
//! that number whole. The training thread switches the recording on and off between steps, when
//! no tile is under way; a worker that finds it off, or its track full, records nothing.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use cllm_core::{Activity, Engine, Op, Run};
use crossbeam_utils::CachePadded;

/// Words of an event.
const WORDS: usize = 5;

/// An operation of a tile. Times are nanoseconds since the recording was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileEvent {
    /// When it began.
    pub begin: u64,
    /// When it ended.
    pub end: u64,
    /// Which of [`Op::KINDS`].
    pub kind: u8,
    /// Block of the model, if it belongs to one.
    pub layer: Option<u32>,
    /// Number of the stage.
    pub stage: u16,
    /// Which of the stage's tiles.
    pub tile: u32,
    /// Whether it was another worker's.
    pub stolen: bool,
    /// Nanoseconds between the event before and this one that went into saying that a tile
    /// was done, and finding this one.
    pub search: u32,
    /// Those in which no tile was ready.
    pub wait: u32,
}

impl TileEvent {
    fn pack(&self) -> [u64; WORDS] {
        let layer = self.layer.map_or(0, |layer| layer.wrapping_add(1));
        [
            self.begin,
            self.end,
            u64::from(self.kind)
                | u64::from(self.stolen) << 8
                | u64::from(self.stage) << 16
                | u64::from(layer) << 32,
            u64::from(self.tile),
            u64::from(self.search) | u64::from(self.wait) << 32,
        ]
    }

    fn unpack([begin, end, what, tile, gap]: [u64; WORDS]) -> Self {
        Self {
            begin,
            end,
            kind: what as u8,
            stolen: what >> 8 & 1 == 1,
            stage: (what >> 16) as u16,
            layer: ((what >> 32) as u32).checked_sub(1),
            tile: tile as u32,
            search: gap as u32,
            wait: (gap >> 32) as u32,
        }
    }
}

/// The events of one worker.
#[derive(Debug)]
struct Track {
    words: Box<[AtomicU64]>,
    events: AtomicUsize,
    lost: AtomicU64,
}

impl Track {
    fn new(capacity: usize) -> Self {
        let words = (0..capacity * WORDS).map(|_| AtomicU64::new(0)).collect();
        Self { words, events: AtomicUsize::new(0), lost: AtomicU64::new(0) }
    }

    /// Only its worker calls it.
    fn push(&self, event: &TileEvent) {
        let events = self.events.load(Ordering::Relaxed);
        let Some(place) = self.words.get(events * WORDS..(events + 1) * WORDS) else {
            self.lost.store(self.lost.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            return;
        };
        for (place, word) in place.iter().zip(event.pack()) {
            place.store(word, Ordering::Relaxed);
        }
        self.events.store(events + 1, Ordering::Release);
    }

    fn events(&self) -> impl Iterator<Item = TileEvent> {
        let events = self.events.load(Ordering::Acquire);
        self.words[..events * WORDS].as_chunks().0.iter().map(|words: &[AtomicU64; WORDS]| {
            TileEvent::unpack(core::array::from_fn(|i| words[i].load(Ordering::Relaxed)))
        })
    }
}

/// The tracks of all workers.
#[derive(Debug)]
pub struct Recording {
    epoch: Instant,
    on: AtomicBool,
    tracks: Vec<CachePadded<Track>>,
}

impl Recording {
    /// Room for `events` events in the track of each of `workers` workers. Off at first.
    #[must_use]
    pub fn new(workers: usize, events: usize) -> Self {
        let tracks = (0..workers).map(|_| CachePadded::new(Track::new(events))).collect();
        Self { epoch: Instant::now(), on: AtomicBool::new(false), tracks }
    }

    /// Room for `steps` steps of `engine`, each of `micro_batches` micro-batches, shared out
    /// among `workers` workers, any of which may do four times its part.
    #[must_use]
    pub fn for_steps(
        engine: &Engine<'_>,
        workers: usize,
        micro_batches: usize,
        steps: usize,
    ) -> Self {
        let turns = |run| {
            engine.stages().filter(|stage| stage.is_in(run)).map(|s| s.turns()).sum::<usize>()
        };
        let packed = turns(Run::Gradients { pack: true });
        let more = turns(Run::Gradients { pack: false }).saturating_mul(micro_batches - 1);
        let step = packed.saturating_add(more).saturating_add(turns(Run::Update));
        let all = step.saturating_mul(steps);
        Self::new(workers, all.min(all.saturating_mul(4).div_ceil(workers.max(1))))
    }

    /// Whether tiles are recorded from now on. No run is under way.
    pub fn switch(&self, on: bool) {
        // Workers see it with the next run's tiles.
        self.on.store(on, Ordering::Relaxed);
    }

    /// Nanoseconds since the recording was made.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// The events of each worker, in their order. No run is under way.
    #[must_use]
    pub fn tracks(&self) -> Vec<Vec<TileEvent>> {
        self.tracks.iter().map(|track| track.events().collect()).collect()
    }

    /// Events that found no room.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.tracks.iter().map(|track| track.lost.load(Ordering::Relaxed)).sum()
    }

    /// What worker `worker` writes its track with; it has one.
    #[must_use]
    pub fn pen(&self, worker: usize) -> Option<Pen<'_>> {
        let track = self.tracks.get(worker)?;
        Some(Pen { recording: self, track, search: 0, wait: 0 })
    }
}

/// Writes one worker's track. Lives on its thread.
#[derive(Debug)]
pub struct Pen<'a> {
    recording: &'a Recording,
    track: &'a Track,
    search: u64,
    wait: u64,
}

impl Pen<'_> {
    /// When times begin to count.
    #[must_use]
    pub fn epoch(&self) -> Instant {
        self.recording.epoch
    }

    /// The worker did `activity` from `begin` to `end`, nanoseconds since the epoch.
    /// Allocates nothing.
    pub fn turn(&mut self, activity: Activity, begin: u64, end: u64) {
        match activity {
            Activity::Tile { stage, op, tile, stolen } => {
                let short = |nanos: u64| u32::try_from(nanos).unwrap_or(u32::MAX);
                if self.recording.on.load(Ordering::Relaxed) {
                    self.track.push(&TileEvent {
                        begin,
                        end,
                        kind: op.kind() as u8,
                        layer: op.layer(),
                        // Stages are numbered in 16 bits.
                        stage: stage as u16,
                        tile,
                        stolen,
                        search: short(self.search),
                        wait: short(self.wait),
                    });
                }
                (self.search, self.wait) = (0, 0);
            }
            Activity::Search => self.search += end - begin,
            Activity::Wait => self.wait += end - begin,
            Activity::Rest => (self.search, self.wait) = (0, 0),
        }
    }
}

const _: () = assert!(Op::KINDS.len() <= 256, "kinds are recorded in 8 bits");

#[cfg(test)]
mod tests {
    use super::*;

    fn event(tile: u32) -> TileEvent {
        TileEvent {
            begin: u64::MAX - 5,
            end: u64::MAX,
            kind: 44,
            layer: tile.is_multiple_of(2).then_some(tile),
            stage: u16::MAX,
            tile,
            stolen: tile == 1,
            search: u32::MAX,
            wait: 3,
        }
    }

    #[test]
    fn events_are_what_was_recorded_until_the_track_is_full() {
        let track = Track::new(3);
        for tile in 0..5 {
            track.push(&event(tile));
        }
        assert_eq!(track.events().collect::<Vec<_>>(), [event(0), event(1), event(2)]);
        assert_eq!(track.lost.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn an_event_costs_less_than_a_microsecond() {
        const EVENTS: u32 = 10_000;
        // The reference step has some 3,000 events a second: 2 % would be 6 us for each.
        let cost = || {
            let recording = Recording::new(1, EVENTS as usize);
            recording.switch(true);
            let mut pen = recording.pen(0).unwrap();
            let begin = Instant::now();
            for tile in 0..EVENTS {
                let activity = Activity::Tile { stage: 3, op: Op::EMPTY, tile, stolen: false };
                pen.turn(core::hint::black_box(activity), 5, 6);
            }
            assert_eq!(recording.lost(), 0);
            begin.elapsed().as_nanos() as u32 / EVENTS
        };
        let fastest = (0..10).map(|_| cost()).min().unwrap();
        println!("{fastest} ns an event");
        assert!(fastest < 1000, "{fastest} ns");
    }

    #[test]
    fn the_gap_before_a_tile_is_told_by_kind() {
        let recording = Recording::new(1, 10);
        let mut pen = recording.pen(0).unwrap();
        let tile = |tile| Activity::Tile { stage: 7, op: Op::EMPTY, tile, stolen: tile == 2 };
        // Not on yet.
        pen.turn(tile(0), 0, 5);
        recording.switch(true);
        pen.turn(Activity::Search, 5, 7);
        pen.turn(Activity::Wait, 7, 10);
        pen.turn(Activity::Search, 10, 11);
        pen.turn(tile(1), 11, 20);
        pen.turn(Activity::Search, 20, 25);
        pen.turn(Activity::Rest, 25, 30);
        pen.turn(Activity::Search, 30, 31);
        pen.turn(tile(2), 31, 40);
        let tracks = recording.tracks();
        let seen: Vec<_> = tracks[0].iter().map(|e| (e.tile, e.search, e.wait, e.stolen)).collect();
        assert_eq!(seen, [(1, 3, 3, false), (2, 1, 0, true)]);
        assert!(recording.pen(1).is_none());
    }
}
