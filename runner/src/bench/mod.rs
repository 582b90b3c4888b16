//! Measurements of this machine and of the kernels on it.

pub mod machine;
pub mod timing;
