//! Hand-written SIMD kernels for training transformers on CPUs.
//!
//! `no_std`, no allocation, no state but what the CPU can do: slices and views in, slices
//! out. A kernel knows shapes and numbers, never a model. Get a table with
//! [`Kernels::detect`] (or force one: [`Kernels::for_isa`]) and call its methods.
//!
//! Every kernel is written once, over lanes, and instantiated for each instruction
//! set; the scalar one is compiled for every target and is the oracle of the tests.
//! Instruction sets round differently; within one, the same call gives the same bits,
//! and work split over calls has the bits of one call: a product by rows, by columns and
//! at multiples of [`KC`] by depth, a head at multiples of [`Kernels::attention_block`],
//! what works on rows or elements anywhere. Sums over all of a call are its own.
//!
//! ```
//! use cllm_kernels::{Epilogue, Kernels, MatMut, MatRef, Packed};
//!
//! let kernels = Kernels::detect();
//! let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
//! let mut packed = vec![0.0; kernels.packed_len(2, 2).unwrap()];
//! kernels.pack(MatRef::new(&b, 2, 2, 2), &mut packed);
//! let mut c = [0.0; 4];
//! kernels.gemm(
//!     MatRef::new(&a, 2, 2, 2),
//!     Packed::new(&packed, 2, 2),
//!     MatMut::new(&mut c, 2, 2, 2),
//!     false,
//!     Epilogue::None,
//!     &mut [],
//! );
//! assert_eq!(c, [19.0, 22.0, 43.0, 50.0]);
//! ```
#![no_std]
#![cfg_attr(feature = "compact", allow(unused_variables, reason = "what only messages said"))]
#![expect(unsafe_code, reason = "kernels read and write through pointers and use CPU intrinsics")]

#[cfg(feature = "compact")]
#[macro_use]
mod terse;

mod adamw;
mod adamw8;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod built;
mod caches;
mod dropout;
mod elements;
mod elementwise;
mod embedding;
mod footprint;
mod fresh;
mod gated;
mod gemm;
mod heads;
mod isa;
mod mat;
mod math;
mod norm;
mod peak;
mod product;
mod rotary;
mod rows;
mod sgd;
mod shells;
mod simd;
mod softmax;
mod table;

pub use adamw::AdamW;
pub use adamw8::{Dither, MOMENTS_BLOCK, Moments8};
pub use caches::Caches;
pub use dropout::Dropout;
pub use elements::{Bf16, Operand, OperandMut};
pub use footprint::Footprint;
pub use gemm::KC;
pub use gemm::epilogue::{Epilogue, Finish};
pub use heads::{Attention, AttentionGrads, AttentionInPlace};
pub use isa::{Isa, UnknownIsa};
pub use mat::{MatMut, MatRef};
pub use product::{Dtype, Packed, UnknownDtype, Write, row_stride};
pub use rotary::Angles;
pub use rows::{NormInPlace, NormSaved};
pub use sgd::Sgd;
pub use softmax::IGNORE;
pub use table::{KernelSet, Kernels};

/// Ends a check of a compact build, at one place for all of them.
#[cfg(feature = "compact")]
#[cold]
#[doc(hidden)]
#[inline(never)]
pub const fn failed() -> ! {
    core::panic!()
}
