//! Measurements of this machine and of the kernels on it: `cllm bench`.
//!
//! [`machine`] tells what is possible at most, [`cases`] what a training step does,
//! [`report`] how much of the one the other reaches.

pub mod cases;
pub mod machine;
pub mod report;
pub mod timing;
