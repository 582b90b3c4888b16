//! Whether this process is one of several that something like `mpirun` has started.

use super::Ranks;
use crate::error::Result;

/// What Open MPI's mpirun, and what other starters that speak PMI (MPICH, Slurm), set to the number of processes.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

/// How many processes were started together; `None` if this one was started by itself.
fn started() -> Option<usize> {
    SIZES.iter().find_map(|name| number(name))
}

/// How many of `size` are on this machine, as far as their starter tells.
#[cfg(feature = "mpi")]
pub(super) fn here(size: usize) -> usize {
    let told = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"];
    told.iter().find_map(|name| number(name)).unwrap_or(size).clamp(1, size)
}

/// The ranks that this process was started with; `None` if it was started by itself.
///
/// # Errors
/// MPI cannot be used.
#[cfg(feature = "mpi")]
pub fn ranks() -> Result<Option<Box<dyn Ranks>>> {
    started().map(|_| super::mpi::MpiRanks::new().map(|ranks| Box::new(ranks) as _)).transpose()
}

/// None: this program was built without MPI.
///
/// # Errors
/// It was started with others all the same.
#[cfg(not(feature = "mpi"))]
pub fn ranks() -> Result<Option<Box<dyn Ranks>>> {
    match started() {
        Some(size) if size > 1 => Err(crate::error::Error::usage(format!(
            "started as one of {size} processes, but this program was built without MPI: build it with its feature \
             mpi (cargo build --release --package cllm --features mpi), or start it by itself"
        ))),
        _ => Ok(None),
    }
}
