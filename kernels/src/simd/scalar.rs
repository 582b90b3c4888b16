//! One lane of plain `f32`: the oracle, compiled for every target.
//!
//! Basic IEEE operations and `libm` only, so the same bits on every platform.
//! `mul_add` is two roundings on purpose: a software `fma` costs a hundred times
//! more than the product.

use super::{MOST_LANES, Simd};

/// The token of the scalar instruction set: always available.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    type V = f32;
    const LANES: usize = 1;
    // 16 sums and 8 operands: what LLVM keeps in the 16 SSE registers of x86-64
    // when it packs the four columns.
    const MR: usize = 4;
    const NR: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *p }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: f32) {
        // SAFETY: the caller's promise.
        unsafe { *p = v }
    }
    #[inline(always)]
    unsafe fn load_first(self, _: *const f32, _: usize) -> f32 {
        0.0
    }
    #[inline(always)]
    unsafe fn store_first(self, _: *mut f32, _: f32, _: usize) {}
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8, _: usize) -> f32 {
        // SAFETY: the caller's promise, of one byte.
        f32::from(unsafe { *p })
    }
    #[inline(always)]
    unsafe fn load_signed_bytes(self, p: *const u8, _: usize) -> f32 {
        // SAFETY: the caller's promise, of one byte.
        f32::from(unsafe { *p }.cast_signed())
    }
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, v: f32, _: usize) {
        // SAFETY: the caller's promise, of one byte.
        unsafe { *p = v as i32 as u8 }
    }
    #[inline(always)]
    fn prefetch(self, _: *const f32) {}
    #[inline(always)]
    fn prefetch_near(self, _: *const f32) {}
    #[inline(always)]
    fn prefetch_to_write(self, _: *const f32) {}
    #[inline(always)]
    fn transpose(self, _: &mut [f32; MOST_LANES]) {}
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn sqrt(self, a: f32) -> f32 {
        libm::sqrtf(a)
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    #[inline(always)]
    fn with_sign_of(self, a: f32, sign: f32) -> f32 {
        libm::copysignf(a, sign)
    }
    #[inline(always)]
    fn first(self, _: f32, _: usize, other: f32) -> f32 {
        other
    }
    #[inline(always)]
    fn low_bits_to_exponent(self, a: f32) -> f32 {
        f32::from_bits(a.to_bits() << 23)
    }
    #[inline(always)]
    fn sum(self, a: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn max_lane(self, a: f32) -> f32 {
        a
    }
}
