//! Sums over ranks, and the way back: the blocks of an arena are dealt out to ranks in turns, and each adds up its own
//! and hands them out.
//!
//! ```text
//! sum      each rank gets the others' values of its blocks, and adds them up over the tree of ranks:
//!          0 + 1, 2 + 3, ...; then those of pairs; and so on
//! gather   each rank gets the others' blocks
//! ```
//! A rank sends and receives `(R - 1) / R` of the arena each time, as in a ring, but in an order that does not depend
//! on who is where. Any part of the arena is about as much work for all.

use core::ops::Range;

use cllm_core::{Kernels, Plan};

use super::{Incoming, Outgoing, Ranks};
use crate::error::Result;

/// Floats that are received before they are added up, unless a block of each rank is more: what caches hold.
const ROOM: usize = 256 << 10;

/// The blocks of an arena, and room for what the others send.
#[derive(Debug)]
pub(crate) struct Reducer {
    /// Next to one another, from the first float on. Block `n` is that of rank `n % size`.
    blocks: Vec<Range<usize>>,
    /// Floats of a block; of the last there may be fewer.
    block: usize,
    /// Blocks of a rank that are added up at a time.
    group: usize,
    /// Of each block of a group those of all ranks.
    received: Vec<f32>,
}

impl Reducer {
    /// For what `size` trainers of `plan` train.
    pub(crate) fn new(plan: &Plan, size: usize) -> Self {
        Self::of_blocks((0..plan.blocks()).map(|n| plan.block(n)).collect(), size)
    }

    fn of_blocks(blocks: Vec<Range<usize>>, size: usize) -> Self {
        let block = blocks.first().map_or(0, Range::len);
        let (group, room) = Self::room(block, size);
        Self { blocks, block, group, received: vec![0.0; room] }
    }

    /// Blocks of a group, and floats of all that is received of one.
    fn room(block: usize, size: usize) -> (usize, usize) {
        let group = (ROOM / (block * size).max(1)).max(1);
        (group, if size > 1 { group * block * size } else { 0 })
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(plan: &Plan, size: usize) -> usize {
        Self::room(plan.block(0).len(), size).1 * size_of::<f32>()
    }

    /// Has this rank's blocks of `arena` be the sums over all ranks. The other blocks are as before.
    ///
    /// # Errors
    /// Another rank is gone.
    pub(crate) fn sum(
        &mut self,
        ranks: &dyn Ranks,
        kernels: &Kernels,
        arena: &mut [f32],
    ) -> Result<()> {
        let (me, size) = (ranks.rank(), ranks.size());
        // Groups begin with a block of rank 0.
        for blocks in self.blocks.chunks(self.group * size) {
            let of_all = || blocks.iter().enumerate().map(|(n, block)| (n % size, block.clone()));
            let others = of_all().filter(|(owner, _)| *owner != me);
            let sends: Vec<Outgoing<'_>> =
                others.map(|(owner, block)| (owner, &arena[block])).collect();
            let mut receives: Vec<Incoming<'_>> = Vec::new();
            let own = of_all().filter(|(owner, _)| *owner == me).map(|(_, block)| block);
            let own: Vec<Range<usize>> = own.collect();
            let rooms = self.received.chunks_exact_mut(self.block * size);
            for (block, room) in own.iter().zip(rooms) {
                for (rank, room) in room.chunks_exact_mut(self.block).enumerate() {
                    let room = &mut room[..block.len()];
                    match rank == me {
                        true => room.copy_from_slice(&arena[block.clone()]),
                        false => receives.push((rank, room)),
                    }
                }
            }
            ranks.exchange(&sends, &mut receives)?;
            let rooms = self.received.chunks_exact_mut(self.block * size);
            for (block, room) in own.into_iter().zip(rooms) {
                let len = block.len();
                let mut stride = 1;
                while stride < size {
                    for rank in (0..size - stride).step_by(2 * stride) {
                        let (left, right) = room.split_at_mut((rank + stride) * self.block);
                        kernels.accumulate(&mut left[rank * self.block..][..len], &right[..len]);
                    }
                    stride *= 2;
                }
                arena[block].copy_from_slice(&room[..len]);
            }
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
        ranks.exchange(&sends, &mut receives)
    }

    /// The arena, on rank 0, of which every rank has its blocks one after the other; nothing on the others.
    ///
    /// # Errors
    /// Another rank is gone.
    pub(crate) fn collect(&self, ranks: &dyn Ranks, own: &[f32]) -> Result<Vec<f32>> {
        let mut own = own.chunks(self.block.max(1));
        if ranks.rank() > 0 {
            let sends: Vec<Outgoing<'_>> = own.map(|block| (0, block)).collect();
            ranks.exchange(&sends, &mut [])?;
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
        ranks.exchange(&[], &mut receives)?;
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
                let mut arena: Vec<f32> = (0..len).map(|at| value(ranks.rank(), at)).collect();
                let mut reducer = Reducer::of_blocks(blocks.clone(), size);
                reducer.sum(ranks, Kernels::detect(), &mut arena).unwrap();
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
