//! Pictures of a run for people: so far what TensorBoard reads.

pub mod tensorboard;
