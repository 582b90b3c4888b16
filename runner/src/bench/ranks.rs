//! What the fixed order of additions over ranks costs: `mpirun -n N cllm bench ranks`.
//!
//! The same values are summed by [`Reducer`], whose order depends on the number of ranks alone, and by `MPI_Allreduce`, whose
//! order is the library's choice; in turns, so that what else the machine does meets both. Of each the median over
//! rounds counts, and of a round the rank that took longest.

use std::time::Instant;

use cllm_core::Kernels;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::ranks::mpi::MpiRanks;
use crate::ranks::reduce::Reducer;
use crate::ranks::{Incoming, Outgoing, Ranks, Wait};
use crate::trace::costs::median;

/// Floats of a block, as in models of up to some hundred million parameters.
const BLOCK: usize = 32 << 10;
/// Exchanges of one float, of which each is a latency.
const PINGS: usize = 2000;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How many ranks there are.
    pub ranks: usize,
    /// Of them on this machine.
    pub here: usize,
    /// Floats that were summed.
    pub floats: usize,
    /// Seconds for the sum over the tree, and for handing it to all.
    pub tree: f64,
    /// Of them those for handing it out.
    pub gather: f64,
    /// Seconds of `MPI_Allreduce`.
    pub allreduce: f64,
    /// Microseconds in which each rank gives every other a float and takes one.
    pub exchange_us: f64,
}

impl Report {
    /// Measures `rounds` rounds of each.
    ///
    /// # Errors
    /// There is one rank; the sums are not the same on all; `floats` is 0.
    pub fn measure(ranks: &MpiRanks, floats: usize, rounds: usize) -> Result<Self> {
        let size = ranks.size();
        if size < 2 || floats == 0 || rounds == 0 {
            return Err(Error::usage(
                "bench ranks: start it with `mpirun -n 2 cllm bench ranks`, or more ranks, and with --floats and \
                 --rounds above 0",
            ));
        }
        let kernels = Kernels::detect();
        let blocks = (0..floats).step_by(BLOCK).map(|at| at..floats.min(at + BLOCK)).collect();
        let mut reducer = Reducer::of_blocks(blocks, size);
        // Whole numbers, so that any order gives the same sum.
        let values: Vec<f32> = (0..floats).map(|at| ((at + ranks.rank()) % 64) as f32).collect();
        let (mut arena, mut sums) = (values.clone(), values.clone());
        let (mut tree, mut gather, mut all) = (Vec::new(), Vec::new(), Vec::new());
        // The first touches memory, and connects.
        for round in 0..=rounds {
            arena.copy_from_slice(&values);
            ranks.barrier()?;
            let begin = Instant::now();
            reducer.begin();
            while let Some(bucket) = reducer.next() {
                reducer.sum_next(ranks, kernels, &mut arena[bucket], Wait::Awake)?;
            }
            let summed = begin.elapsed().as_secs_f64();
            reducer.gather(ranks, &mut arena)?;
            let whole = begin.elapsed().as_secs_f64();
            ranks.barrier()?;
            let begin = Instant::now();
            ranks.all_reduce(&values, &mut sums);
            let of = [whole, whole - summed, begin.elapsed().as_secs_f64()];
            let [whole, handed, library] = longest(ranks, of)?;
            if round > 0 {
                tree.push(whole);
                gather.push(handed);
                all.push(library);
            }
        }
        if arena != sums {
            return Err(Error::failure("the sums over the tree are not those of MPI_Allreduce"));
        }
        Ok(Self {
            ranks: size,
            here: ranks.here(),
            floats,
            tree: median(&mut tree),
            gather: median(&mut gather),
            allreduce: median(&mut all),
            exchange_us: 1e6 * ping(ranks)? / PINGS as f64,
        })
    }

    /// The report for people: one row.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "{} ranks, {} here, {:.1} MB: fixed tree {:.2} ms ({:.2} of it to hand out), MPI_Allreduce {:.2} ms, {:.2} \
             times as long; a float to and from each {:.1} us\n",
            self.ranks,
            self.here,
            4e-6 * self.floats as f64,
            1e3 * self.tree,
            1e3 * self.gather,
            1e3 * self.allreduce,
            self.tree / self.allreduce,
            self.exchange_us
        )
    }
}

/// Of each number the largest of all ranks.
fn longest<const N: usize>(ranks: &MpiRanks, of: [f64; N]) -> Result<[f64; N]> {
    let mut all = vec![0; N * ranks.size()];
    // Of what is not below 0 larger numbers have larger bits.
    ranks.tell(&of.map(f64::to_bits), &mut all)?;
    let largest = |n: usize| all.iter().skip(n).step_by(N).max().copied().unwrap_or_default();
    Ok(core::array::from_fn(|n| f64::from_bits(largest(n))))
}

/// Seconds of all exchanges of a float.
fn ping(ranks: &MpiRanks) -> Result<f64> {
    let others: Vec<usize> = (0..ranks.size()).filter(|rank| *rank != ranks.rank()).collect();
    let mut rooms = vec![[0.0]; others.len()];
    ranks.barrier()?;
    let begin = Instant::now();
    for _ in 0..PINGS {
        let sends: Vec<Outgoing<'_>> = others.iter().map(|rank| (*rank, &[1.0_f32][..])).collect();
        let rooms = others.iter().zip(&mut rooms);
        let mut receives: Vec<Incoming<'_>> =
            rooms.map(|(rank, room)| (*rank, &mut room[..])).collect();
        ranks.exchange(&sends, &mut receives, Wait::Awake)?;
    }
    Ok(begin.elapsed().as_secs_f64())
}
