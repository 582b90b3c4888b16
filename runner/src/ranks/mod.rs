//! Ranks: the processes of a run that goes over many machines, of which each has a copy of the weights.
//!
//! ```text
//! cut       which sequences of a step are whose, and which gradients are added up first
//! tree      sums of a rank's own gradients        \  one tree, whatever the number of ranks
//! reduce    sums over ranks, blocks for each       /
//! launch    whether this process is one of several, and how they reach one another
//! threads   ranks that are threads of one process, to try all of it without MPI
//! mpi       ranks that MPI has started (feature `mpi`)
//! ```
//! What a run makes of it is [`crate::train`]'s business (`train/team.rs`).

pub mod cut;
pub mod launch;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod reduce;
pub mod threads;
pub mod tree;

use crate::error::Result;

/// One of the processes, numbered from 0, and how it reaches the others. All of them call the same functions in the
/// same order.
pub trait Ranks {
    /// The number of this one.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// How many there are on this machine.
    fn here(&self) -> usize;

    /// Hands floats to others, and takes theirs: each send of one is a receive of the same length of another, and
    /// between two ranks they come in the order of both lists. Returns when what was sent may be changed and what
    /// was to be received is there. No list has a rank's own number.
    ///
    /// # Errors
    /// Another rank is gone.
    fn exchange(
        &self,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
        wait: Wait,
    ) -> Result<()>;

    /// Tells all ranks some numbers, of everyone as many: `all` has those of rank 0 first.
    ///
    /// # Errors
    /// Another rank is gone.
    ///
    /// # Panics
    /// If `all` has not room for just as many of each.
    fn tell(&self, mine: &[u64], all: &mut [u64]) -> Result<()>;

    /// Ends all ranks, this one with them if it can be ended. What went wrong has been said.
    fn abort(&self, exit_code: u8);

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// Another rank is gone.
    fn barrier(&self) -> Result<()> {
        self.tell(&[0], &mut vec![0; self.size()])
    }
}

/// How a rank waits for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Its core has nothing else to do.
    Awake,
    /// Its core is a worker's, who is busy.
    Asleep,
}

/// Floats for the rank of this number.
pub type Outgoing<'a> = (usize, &'a [f32]);

/// Room for floats of the rank of this number.
pub type Incoming<'a> = (usize, &'a mut [f32]);

/// The only one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn here(&self) -> usize {
        1
    }

    fn exchange(
        &self,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
        _: Wait,
    ) -> Result<()> {
        assert!(sends.is_empty() && receives.is_empty(), "there is nobody else");
        Ok(())
    }

    fn tell(&self, mine: &[u64], all: &mut [u64]) -> Result<()> {
        all.copy_from_slice(mine);
        Ok(())
    }

    fn abort(&self, _: u8) {}
}
