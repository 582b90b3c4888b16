//! Sums over ranks, and the way back: the blocks of an arena are dealt out to ranks in turns, and each adds up its own
//! and hands them out.
//!
//! ```text
//! sum      each rank gets the others' values of its blocks, and adds them up over the tree of ranks:
//!          0 + 1, 2 + 3, ...; then those of pairs; and so on. It goes by buckets, groups of blocks of every
//!          rank, from the last to the first, as gradients become final
//! gather   each rank gets the others' blocks
//! ```
//! A rank sends and receives `(R - 1) / R` of the arena each time, as in a ring, but in an order that does not depend
//! on who is where. Any part of the arena is about as much work for all.

use core::ops::Range;

use cllm_core::{Kernels, Plan};

use super::{Incoming, Outgoing, Ranks, Wait};
use crate::error::Result;

/// Most floats of a bucket, unless a block of each rank is more: what caches hold when they are added up.
const ROOM: usize = 256 << 10;
/// Buckets of an arena, at least, if it has blocks for them: the fewer there are, the later the first is final.
const BUCKETS: usize = 16;

/// What rank 0, which has most, has of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// The bucket's first float.
    pub(crate) first: usize,
    /// Blocks of the rank.
    pub(crate) blocks: usize,
    /// Their floats.
    pub(crate) own: usize,
}

/// The blocks of an arena, and room for what the others send.
#[derive(Debug)]
pub(crate) struct Reducer {
    /// Next to one another, from the first float on. Block `n` is that of rank `n % size`.
    blocks: Vec<Range<usize>>,
    /// Floats of a block; of the last there may be fewer.
    block: usize,
    /// Ranks.
    size: usize,
    /// Blocks of a rank in a bucket.
    group: usize,
    /// Of each of a rank's blocks in a bucket those of all ranks.
    received: Vec<f32>,
    /// Buckets of a step that are still to be summed: the first so many.
    left: usize,
}

impl Reducer {
    /// For what `size` trainers of `plan` train.
    pub(crate) fn new(plan: &Plan, size: usize) -> Self {
        Self::of_blocks((0..plan.blocks()).map(|n| plan.block(n)).collect(), size)
    }

    pub(crate) fn of_blocks(blocks: Vec<Range<usize>>, size: usize) -> Self {
        let block = blocks.first().map_or(0, Range::len);
        let len = blocks.last().map_or(0, |last| last.end);
        let group = Self::group(block, len, size);
        let received = vec![0.0; if size > 1 { group * block * size } else { 0 }];
        Self { blocks, block, size, group, received, left: 0 }
    }

    /// Blocks of a rank in a bucket, for arenas of `len` floats.
    fn group(block: usize, len: usize, size: usize) -> usize {
        (ROOM.min(len / BUCKETS) / (block * size).max(1)).max(1)
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(plan: &Plan, size: usize) -> usize {
        let block = plan.block(0).len();
        let room = Self::group(block, plan.arena_len(), size) * block * size;
        if size > 1 { room * size_of::<f32>() } else { 0 }
    }

    /// The buckets of the gradients of `size` trainers of `plan`, the first first.
    pub(crate) fn shares(plan: &Plan, size: usize) -> Vec<Share> {
        let group = Self::group(plan.block(0).len(), plan.arena_len(), size);
        let numbers = (0..plan.blocks()).step_by(group * size);
        let share = |first: usize| {
            let own = (first..plan.blocks()).step_by(size).take(group);
            Share {
                first: plan.block(first).start,
                blocks: own.len(),
                own: own.map(|n| plan.block(n).len()).sum(),
            }
        };
        numbers.map(share).collect()
    }

    /// Buckets that a step's gradients of `size` trainers of `plan` are summed in.
    pub(crate) fn buckets_of(plan: &Plan, size: usize) -> usize {
        let group = Self::group(plan.block(0).len(), plan.arena_len(), size);
        plan.blocks().div_ceil(group * size)
    }

    /// No bucket of a step has been summed.
    pub(crate) fn begin(&mut self) {
        self.left = self.blocks.len().div_ceil(self.group * self.size);
    }

    /// The floats of the bucket to be summed next: whole blocks.
    pub(crate) fn next(&self) -> Option<Range<usize>> {
        let blocks = self.bucket()?;
        Some(blocks.first()?.start..blocks.last()?.end)
    }

    /// Its blocks. The first is one of rank 0.
    fn bucket(&self) -> Option<&[Range<usize>]> {
        let blocks = self.group * self.size;
        self.blocks.chunks(blocks).nth(self.left.checked_sub(1)?)
    }

    /// Has this rank's blocks of the next bucket, whose floats are `values`, be the sums over all ranks. The other
    /// blocks are as before.
    ///
    /// # Errors
    /// Another rank is gone.
    pub(crate) fn sum_next(
        &mut self,
        ranks: &dyn Ranks,
        kernels: &Kernels,
        values: &mut [f32],
        wait: Wait,
    ) -> Result<()> {
        let (me, size, length) = (ranks.rank(), ranks.size(), self.block);
        self.left = self.left.saturating_sub(1);
        // Blocks come in turns from rank 0 on.
        let rooms = self.received.chunks_exact_mut(length * size);
        let own: Vec<&[f32]> = values.chunks(length).skip(me).step_by(size).collect();
        let mut receives: Vec<Incoming<'_>> = Vec::new();
        for (block, room) in own.iter().zip(rooms) {
            for (rank, room) in room.chunks_exact_mut(length).enumerate() {
                let room = &mut room[..block.len()];
                match rank == me {
                    true => room.copy_from_slice(block),
                    false => receives.push((rank, room)),
                }
            }
        }
        let all = values.chunks(length).enumerate().map(|(n, block)| (n % size, block));
        let sends: Vec<Outgoing<'_>> = all.filter(|(owner, _)| *owner != me).collect();
        ranks.exchange(&sends, &mut receives, wait)?;
        let rooms = self.received.chunks_exact_mut(length * size);
        for (block, room) in values.chunks_mut(length).skip(me).step_by(size).zip(rooms) {
            let mut stride = 1;
            while stride < size {
                for rank in (0..size - stride).step_by(2 * stride) {
                    let (left, right) = room.split_at_mut((rank + stride) * length);
                    let left = &mut left[rank * length..][..block.len()];
                    kernels.accumulate(left, &right[..block.len()]);
                }
                stride *= 2;
            }
            block.copy_from_slice(&room[..block.len()]);
        }
        Ok(())
    }

    /// Has all blocks of `arena` be those of their ranks.
    ///
    /// # Errors
    /// Another rank is gone.
    pub(crate) fn gather(&self, ranks: &dyn Ranks, arena: &mut [f32]) -> Result<()> {
        let (me, size) = (ranks.rank(), ranks.size());
        let (mut sends, mut receives): (Vec<Outgoing<'_>>, Vec<Incoming<'_>>) = Default::default();
        for (n, block) in self.split(arena).enumerate() {
            if n % size == me {
                let block: &[f32] = block;
                sends.extend((0..size).filter(|rank| *rank != me).map(|rank| (rank, block)));
            } else {
                receives.push((n % size, block));
            }
        }
        ranks.exchange(&sends, &mut receives, Wait::Awake)
    }

    /// The arena, on rank 0, of which every rank has its blocks one after the other; nothing on the others.
    ///
    /// # Errors
    /// Another rank is gone.
    pub(crate) fn collect(&self, ranks: &dyn Ranks, own: &[f32]) -> Result<Vec<f32>> {
        let mut own = own.chunks(self.block.max(1));
        if ranks.rank() > 0 {
            let sends: Vec<Outgoing<'_>> = own.map(|block| (0, block)).collect();
            ranks.exchange(&sends, &mut [], Wait::Awake)?;
            return Ok(Vec::new());
        }
        let mut arena = vec![0.0; self.blocks.last().map_or(0, |last| last.end)];
        let mut receives: Vec<Incoming<'_>> = Vec::new();
        for (n, block) in self.split(&mut arena).enumerate() {
            match n % ranks.size() {
                0 => block.copy_from_slice(own.next().unwrap_or_default()),
                owner => receives.push((owner, block)),
            }
        }
        ranks.exchange(&[], &mut receives, Wait::Awake)?;
        Ok(arena)
    }

    /// Has all of `sums`, of which there is one for each block, be those of the blocks' ranks.
    ///
    /// # Errors
    /// Another rank is gone.
    pub(crate) fn tell_sums(&self, ranks: &dyn Ranks, sums: &mut [f32]) -> Result<()> {
        let (me, size) = (ranks.rank(), ranks.size());
        let most = sums.len().div_ceil(size);
        let own = sums.iter().skip(me).step_by(size).map(|sum| u64::from(sum.to_bits()));
        let own: Vec<u64> = own.chain(core::iter::repeat(0)).take(most).collect();
        let mut all = vec![0; most * size];
        ranks.tell(&own, &mut all)?;
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = f32::from_bits(all[n % size * most + n / size] as u32);
        }
        Ok(())
    }

    /// The blocks of an arena.
    fn split<'a>(&self, arena: &'a mut [f32]) -> impl Iterator<Item = &'a mut [f32]> {
        arena.chunks_mut(self.block.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::threads;
    use crate::ranks::tree::recursive;

    fn value(rank: usize, at: usize) -> f32 {
        let mixed = (at as u32).wrapping_mul(2_654_435_761).wrapping_add(rank as u32 * 97_531);
        (mixed >> 9) as f32 * 10_f32.powi((mixed % 5) as i32 - 8)
    }

    #[test]
    fn every_rank_has_the_sum_over_the_tree_of_all() {
        for (size, block, len) in
            [(1, 10, 95), (2, 10, 95), (3, 10, 41), (4, 64 << 10, 700_000), (7, 1000, 300_500)]
        {
            let blocks: Vec<_> =
                (0..len).step_by(block).map(|start| start..len.min(start + block)).collect();
            let expected: Vec<u32> = (0..len)
                .map(|at| {
                    let values: Vec<f32> = (0..size).map(|rank| value(rank, at)).collect();
                    recursive(&values).to_bits()
                })
                .collect();
            threads::run(size, |ranks| {
                let arena: Vec<f32> = (0..len).map(|at| value(ranks.rank(), at)).collect();
                let (kernels, mut summed) = (Kernels::detect(), Vec::new());
                let mut reducer = Reducer::of_blocks(blocks.clone(), size);
                for _ in 0..2 {
                    let mut copy = arena.clone();
                    reducer.begin();
                    let mut end = len;
                    while let Some(bucket) = reducer.next() {
                        assert_eq!(bucket.end, end, "from the last on");
                        end = bucket.start;
                        let values = &mut copy[bucket];
                        reducer.sum_next(ranks, kernels, values, Wait::Asleep).unwrap();
                    }
                    assert_eq!(end, 0);
                    summed = copy;
                }
                let mut arena = summed;
                let own = blocks.iter().skip(ranks.rank()).step_by(size);
                let own: Vec<f32> = own.flat_map(|block| arena[block.clone()].to_vec()).collect();
                let whole = reducer.collect(ranks, &own).unwrap();
                let mut sums: Vec<f32> = blocks.iter().map(|block| arena[block.start]).collect();
                reducer.tell_sums(ranks, &mut sums).unwrap();
                reducer.gather(ranks, &mut arena).unwrap();
                let bits: Vec<u32> = arena.iter().map(|x| x.to_bits()).collect();
                assert!(bits == expected, "rank {} of {size}", ranks.rank());
                assert!(if ranks.rank() == 0 { whole == arena } else { whole.is_empty() });
                assert!(sums.into_iter().eq(blocks.iter().map(|block| arena[block.start])));
            });
        }
    }
}
