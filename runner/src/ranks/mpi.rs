//! Ranks that MPI has started: `mpirun -n 4 cllm train ...`.

use core::time::Duration;
use std::thread;

use ::mpi::Threading;
use ::mpi::collective::SystemOperation;
use ::mpi::environment::Universe;
use ::mpi::request::{self, Request};
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{
    Communicator as _, CommunicatorCollectives as _, Destination as _, Source as _,
};

use super::{Incoming, Outgoing, Ranks, Wait, launch};
use crate::error::{Error, Result};

/// Between two looks at an exchange that a worker's core is not to wait for: half a bucket takes as long on a network of
/// 100 Gbit/s.
const NAP: Duration = Duration::from_micros(50);

/// This process among those of `MPI_COMM_WORLD`. What MPI itself cannot do ends them all, with its own message.
pub struct MpiRanks {
    world: SimpleCommunicator,
    rank: usize,
    size: usize,
    /// Dropped, it ends MPI, for which it waits for the others.
    _universe: Universe,
}

impl MpiRanks {
    /// Begins MPI, which a process can do once. One thread at a time may use it.
    ///
    /// # Errors
    /// It has begun already, or cannot be used beside other threads.
    pub fn new() -> Result<Self> {
        let Some((universe, threading)) = ::mpi::initialize_with_threading(Threading::Serialized)
        else {
            return Err(Error::failure("MPI has begun already"));
        };
        if threading < Threading::Funneled {
            return Err(Error::failure(
                "this MPI was built without threads (MPI_THREAD_FUNNELED), which cllm has: use another one",
            ));
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        Ok(Self { world, rank, size, _universe: universe })
    }
}

impl Drop for MpiRanks {
    /// A rank that panics would else wait here for the others to end MPI too, and they for it, without an end.
    fn drop(&mut self) {
        if thread::panicking() {
            self.world.abort(1);
        }
    }
}

impl MpiRanks {
    /// Sums over all ranks, in the order that MPI chooses: to be compared with.
    pub(crate) fn all_reduce(&self, values: &[f32], sums: &mut [f32]) {
        self.world.all_reduce_into(values, sums, SystemOperation::sum());
    }
}

impl Ranks for MpiRanks {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn here(&self) -> usize {
        launch::here(self.size)
    }

    fn exchange(
        &self,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
        wait: Wait,
    ) -> Result<()> {
        let of = |rank: usize| self.world.process_at_rank(rank as i32);
        request::scope(|scope| {
            let received: Vec<_> = receives
                .iter_mut()
                .map(|(from, room)| of(*from).immediate_receive_into(scope, &mut **room))
                .collect();
            let sent: Vec<_> =
                sends.iter().map(|(to, values)| of(*to).immediate_send(scope, *values)).collect();
            if wait == Wait::Awake {
                received.into_iter().for_each(Request::wait_without_status);
                sent.into_iter().for_each(Request::wait_without_status);
                return;
            }
            // Waits of MPI take a core. It gets on with all of them whenever it is asked after one.
            for request in received.into_iter().chain(sent) {
                let mut request = request.test();
                while let Err(unfinished) = request {
                    thread::sleep(NAP);
                    request = unfinished.test();
                }
            }
        });
        Ok(())
    }

    fn tell(&self, mine: &[u64], all: &mut [u64]) -> Result<()> {
        assert_eq!(all.len(), mine.len() * self.size, "room for the numbers of all");
        self.world.all_gather_into(mine, all);
        Ok(())
    }

    fn abort(&self, exit_code: u8) {
        self.world.abort(exit_code.into())
    }
}
