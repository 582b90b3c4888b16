//! Measurements of this machine, of the kernels on it and of the engine: `cllm bench`.
//!
//! [`machine`] tells what is possible at most, [`cases`] what a training step does,
//! [`report`] how much of the one the other reaches; [`engine`] what it costs to share a step
//! among workers.

pub mod cases;
pub mod engine;
mod lines;
pub mod machine;
#[cfg(feature = "mpi")]
pub mod ranks;
pub mod report;
pub mod timing;
