//! A worker's share of an operation's tiles, in one word that others can steal from.
//!
//! ```text
//!         of 64 bits   of 32
//! run     63..40       31..24   which run the share belongs to, modulo 2^24 or 2^8
//! start   39..20       23..12   first tile nobody has taken
//! end     19..0        11..0    one past the last
//! ```
//! Words have 32 bits where there are no atomics of 64 ([`crate::Word`]). An operation then has 4,095
//! tiles at most rather than a million, which the plan refuses to exceed.
//!
//! The owner takes tiles from the front (`start + 1`), a thief takes some from the back
//! (a smaller `end`), both by compare-and-swap on the whole word: of those who try at
//! one time one succeeds, so a tile has one taker. A share that was taken from can
//! only shrink; it grows when its owner, having found it empty, puts what it stole
//! elsewhere there. Nobody else writes an empty share, so a plain store does.
//!
//! **ABA.** A word is all there is to a share: who finds the value expected has the tiles it
//! names, whatever happened in between. The run's number keeps a thread that slept since
//! an earlier run from taking a tile of this one; it would have to sleep for a
//! multiple of 2^24 runs to the compare-and-swap, exactly. In a word of 32 bits that is a multiple
//! of 256 runs, some hundred steps: a thread may be put aside for so long, where threads outnumber
//! cores, and then still has to wake at the very share that it saw. Machines with such words have few
//! cores and run no more workers than cores, each of them to its end but for interrupts: one of those
//! would have to last as long. A worker that is alone has nobody to take from it.
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
use crate::primitive::{AtomicWord, Bits, Ordering, wide};

/// How a share lies in a word of so many bits: 64 or 32.
struct Form<const BITS: u32>;

impl<const BITS: u32> Form<BITS> {
    /// Bits of a tile number.
    const TILE_BITS: u32 = if BITS == 64 { 20 } else { 12 };
    /// Most tiles that an operation can have.
    const MAX_TILES: u32 = (1 << Self::TILE_BITS) - 1;
    /// Runs are numbered modulo this.
    const RUNS: u32 = 1 << (BITS - 2 * Self::TILE_BITS);

    const fn next_run(run: u32) -> u32 {
        (run + 1) % Self::RUNS
    }

    fn pack(share: Share) -> u64 {
        let (run, start) = (u64::from(share.run), u64::from(share.start));
        run << (2 * Self::TILE_BITS) | start << Self::TILE_BITS | u64::from(share.end)
    }

    fn unpack(word: u64) -> Share {
        let tile = |bits: u64| bits as u32 & Self::MAX_TILES;
        Share {
            run: (word >> (2 * Self::TILE_BITS)) as u32,
            start: tile(word >> Self::TILE_BITS),
            end: tile(word),
        }
    }
}

/// That of this machine's words.
type Here = Form<{ Bits::BITS }>;

/// Most tiles that an operation can have.
pub(crate) const MAX_TILES: usize = Here::MAX_TILES as usize;

/// The run after `run`.
pub(super) fn next_run(run: u32) -> u32 {
    Here::next_run(run)
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
}

/// A share that its owner and thieves take tiles from.
pub(super) struct Range<'w>(pub(super) &'w AtomicWord);

impl Range<'_> {
    /// Sets the share. The caller is the publisher and nobody is in the run, or the owner
    /// of an empty share.
    pub(super) fn open(&self, share: Share) {
        self.0.store(Here::pack(share) as Bits, order(Access::OpenShare, Ordering::Release));
    }

    pub(super) fn load(&self) -> Share {
        Here::unpack(wide(self.0.load(order(Access::LoadShare, Ordering::Acquire))))
    }

    fn exchange(&self, seen: Share, left: Share) -> bool {
        let [seen, left] = [seen, left].map(|share| Here::pack(share) as Bits);
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

    fn packs<const BITS: u32>(runs: u32, tiles: u32) {
        assert_eq!((Form::<BITS>::RUNS, Form::<BITS>::MAX_TILES), (runs, tiles));
        let last = runs - 1;
        let mut words = [0; 6];
        let shares =
            [(0, 0, 0), (last, tiles - 1, tiles), (last, 0, 0), (0, tiles, 0), (0, 0, tiles)];
        for ((run, start, end), word) in shares.into_iter().chain([(77, 5, 1000)]).zip(&mut words) {
            let share = Share { run, start, end };
            *word = Form::<BITS>::pack(share);
            assert!(BITS == 64 || *word >> BITS == 0, "{share:?} fits into a word");
            assert_eq!(Form::<BITS>::unpack(*word), share);
        }
        // Every bit of a word is one of a share, and of one part of it alone.
        assert_eq!(words[2..5].iter().sum::<u64>(), u64::MAX >> (64 - BITS));
        assert_eq!((Form::<BITS>::next_run(last), Form::<BITS>::next_run(0)), (0, 1));
    }

    #[test]
    fn a_share_is_what_was_packed_in_words_of_either_size() {
        packs::<64>(1 << 24, (1 << 20) - 1);
        packs::<32>(1 << 8, (1 << 12) - 1);
        assert_eq!(MAX_TILES, Here::MAX_TILES as usize);
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
        let word = AtomicWord::new(0);
        let range = Range(&word);
        let seen = Share { run: 1, start: 2, end: 6 };
        range.open(Share { run: 2, ..seen });
        assert!(!range.take_front(seen) && !range.take_back(seen, 4));
        let seen = range.load();
        assert!(range.take_back(seen, 4) && !range.take_front(seen));
        assert!(range.take_front(range.load()));
        assert_eq!(range.load(), Share { run: 2, start: 3, end: 4 });
    }
}
