//! Plans that stop the compilation, each with a message of its own, and two that do not.
#![no_std]

#[path = "../../freestanding/src/small.rs"]
#[allow(dead_code, reason = "its memory is for programs")]
mod small;

use cllm_core::generate::GeneratePlan;
use cllm_core::{BatchShape, KernelSet, Mode, ModelConfig, Plan, Sizes};
use small::{CONFIG, SHAPE};

const PLAN: Plan = Plan::fixed(&CONFIG, SHAPE, 1, Mode::Train, KernelSet::SCALAR);
const SPEECH: GeneratePlan = GeneratePlan::fixed(&CONFIG, 1, KernelSet::SCALAR);

// To the byte.
const NEED: usize = PLAN.total_bytes().unwrap();
const _: () = PLAN.assert_fits(NEED);
const _: () = PLAN.assert_fits(NEED - 1);
const _: () = PLAN.assert_fits(256 * 1024);
const _: () = SPEECH.assert_fits(1000);
const _: () = Sizes::on_any(&CONFIG, SHAPE, 1, Mode::Evaluate).assert_fits(999);

/// What is no model, or no batch of it.
const _: Plan =
    Plan::fixed(&ModelConfig { n_head: 3, ..CONFIG }, SHAPE, 1, Mode::Train, KernelSet::SCALAR);
const _: Plan =
    Plan::fixed(&ModelConfig { dropout: 1.5, ..CONFIG }, SHAPE, 1, Mode::Train, KernelSet::SCALAR);
const _: Plan = Plan::fixed(
    &CONFIG,
    BatchShape { sequences: 4, tokens: 33 },
    1,
    Mode::Train,
    KernelSet::SCALAR,
);
/// Scalar kernels have no products of bf16 of the CPU's own.
const _: GeneratePlan = GeneratePlan::fixed(
    &CONFIG,
    1,
    KernelSet { dtype: cllm_core::Dtype::Bf16, ..KernelSet::SCALAR },
);
