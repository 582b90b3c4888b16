//! SIMD kernels.
#![no_std]
