//! A worker's share of an operation's tiles, in one word that others can steal from.
//!
//! ```text
//! bits 63..40   run      which run the share belongs to, modulo 2^24
//! bits 39..20   start    first tile nobody has taken
//! bits 19..0    end      one past the last
//! ```
//! The owner takes tiles from the front (`start + 1`), a thief takes some from the back
//! (a smaller `end`), both by compare-and-swap on the whole word: of those who try at
//! one time one succeeds, so a tile has one taker. A share that was taken from can
//! only shrink; it grows when its owner, having found it empty, puts what it stole
//! elsewhere there. Nobody else writes an empty share, so a plain store does.
//!
//! **ABA.** A word is all there is to a share: who finds the value expected has the tiles it
//! names, whatever happened in between. The run's number keeps a thread that slept since
//! an earlier run from taking a tile of this one; it would have to sleep for a
//! multiple of 2^24 runs to the compare-and-swap, exactly.
//!
//! **Orderings.** Who takes a tile must see what the run's publisher wrote before it opened
//! the share: the job, and the counters, which must be those of this run before
//! anybody asks whether a tile is ready. `open` releases and `load` acquires. The exchange
//! itself need order nothing: it only succeeds on the value that was loaded, and an
//! exchange by others in between belongs to the same release sequence. A share that is
//! opened with stolen tiles is opened by who has loaded the one they come from.
//!
//! **Progress.** Lock-free: an exchange fails only because another one has succeeded.

use super::fault::{Access, order};
use crate::primitive::{AtomicU64, Ordering};

/// Bits of a tile number.
const TILE_BITS: u32 = 20;
/// Most tiles that an operation can have.
pub(crate) const MAX_TILES: usize = (1 << TILE_BITS) - 1;
/// Runs are numbered modulo this.
const RUNS: u32 = 1 << 24;

/// The run after `run`.
pub(super) fn next_run(run: u32) -> u32 {
    (run + 1) % RUNS
}

/// The content of a [`Range`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) run: u32,
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Share {
    /// No run has this number.
    pub(super) const NO_RUN: u32 = u32::MAX;

    pub(super) fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// Part `seat` of `tiles` tiles cut into `members` parts that differ by one at most.
    pub(super) fn part(run: u32, tiles: u32, seat: usize, members: usize) -> Self {
        let cut = |i: usize| (u64::from(tiles) * i as u64 / members as u64) as u32;
        Self { run, start: cut(seat), end: cut(seat + 1) }
    }

    fn pack(self) -> u64 {
        let (run, start) = (u64::from(self.run), u64::from(self.start));
        run << (2 * TILE_BITS) | start << TILE_BITS | u64::from(self.end)
    }

    fn unpack(word: u64) -> Self {
        let tile = |bits: u64| (bits & MAX_TILES as u64) as u32;
        Self {
            run: (word >> (2 * TILE_BITS)) as u32,
            start: tile(word >> TILE_BITS),
            end: tile(word),
        }
    }
}

/// A share that its owner and thieves take tiles from.
pub(super) struct Range<'w>(pub(super) &'w AtomicU64);

impl Range<'_> {
    /// Sets the share. The caller is the publisher and nobody is in the run, or the owner
    /// of an empty share.
    pub(super) fn open(&self, share: Share) {
        self.0.store(share.pack(), order(Access::OpenShare, Ordering::Release));
    }

    pub(super) fn load(&self) -> Share {
        Share::unpack(self.0.load(order(Access::LoadShare, Ordering::Acquire)))
    }

    fn exchange(&self, seen: Share, left: Share) -> bool {
        let (seen, left) = (seen.pack(), left.pack());
        self.0.compare_exchange(seen, left, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Takes tile `seen.start` if the share is still as seen, which is not empty.
    pub(super) fn take_front(&self, seen: Share) -> bool {
        self.exchange(seen, Share { start: seen.start + 1, ..seen })
    }

    /// Takes the tiles from `from` on if the share is still as seen.
    pub(super) fn take_back(&self, seen: Share, from: u32) -> bool {
        self.exchange(seen, Share { end: from, ..seen })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_what_was_packed() {
        for share in [
            Share { run: 0, start: 0, end: 0 },
            Share { run: RUNS - 1, start: MAX_TILES as u32 - 1, end: MAX_TILES as u32 },
            Share { run: 77, start: 5, end: 1000 },
        ] {
            assert_eq!(Share::unpack(share.pack()), share);
        }
    }

    #[test]
    fn parts_cover_all_tiles_once() {
        for tiles in [0, 1, 2, 7, 43, MAX_TILES as u32] {
            for members in [1, 2, 3, 64] {
                let mut next = 0;
                for seat in 0..members {
                    let part = Share::part(1, tiles, seat, members);
                    assert_eq!(part.start, next);
                    let fair = tiles / members as u32;
                    assert!((fair..=fair + 1).contains(&(part.end - part.start)));
                    next = part.end;
                }
                assert_eq!(next, tiles);
            }
        }
    }

    #[test]
    fn a_share_of_another_run_is_not_taken_from() {
        let word = AtomicU64::new(0);
        let range = Range(&word);
        let seen = Share { run: 1, start: 2, end: 6 };
        range.open(Share { run: 2, ..seen });
        assert!(!range.take_front(seen) && !range.take_back(seen, 4));
        let seen = range.load();
        assert!(range.take_back(seen, 4) && !range.take_front(seen));
        assert!(range.take_front(range.load()));
        assert_eq!(range.load(), Share { run: 2, start: 3, end: 4 });
        assert_eq!(next_run(RUNS - 1), 0);
    }
}
