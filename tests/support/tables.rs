//! All kernels that this CPU can run.

use cllm_core::{Dtype, Isa, Kernels};

/// For each instruction set those of `f32`, of bf16 by conversion, and of the CPU's own bf16 if those
/// are others.
pub(crate) fn tables() -> impl Iterator<Item = &'static Kernels> {
    Isa::ALL.into_iter().filter_map(Kernels::for_isa).flat_map(|f32| {
        let (converting, own) = (f32.converting(), f32.with_dtype(Dtype::Bf16));
        let own = (!core::ptr::eq(own, converting)).then_some(own);
        [Some(f32), Some(converting), own].into_iter().flatten()
    })
}
