//! What the workloads of machines without an operating system have in common: the hash of their weights, and why
//! there is none.

use cllm_core::{ParamTable, PlanError, StepError};
use sha2::{Digest as _, Sha256};

/// SHA-256 of the weights, as the runner's `weights_sha256` has it.
pub(crate) fn weights_sha256(table: &ParamTable, parameters: &[f32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for spec in table.iter() {
        for value in &parameters[spec.range()] {
            hash.update(value.to_le_bytes());
        }
    }
    hash.finalize().into()
}

/// Why there is no hash.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) &'static str);

macro_rules! failures {
    ($($error:ty: $words:literal,)*) => {
        $(impl From<$error> for Failure {
            fn from(_: $error) -> Self {
                Self($words)
            }
        })*
    };
}

failures! {
    PlanError: "the memory is not that of the plan",
    StepError: "a step failed",
    cllm_core::generate::GenerateError: "the sample failed",
    core::fmt::Error: "nobody listens",
}
