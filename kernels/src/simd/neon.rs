//! Four lanes on NEON, with fused multiply-add: what every 64-bit ARM CPU that runs an operating
//! system has.
//!
//! Intrinsics are those of `core::arch::aarch64`, but for prefetches, which are not stable there.

use super::{MOST_LANES, Simd};
use core::arch::aarch64::*;
use core::arch::asm;

/// Proof that the CPU runs NEON: this module is compiled for targets alone that all have it.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The CPU has NEON, and the system saves its registers.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }
}

/// Masks of lanes: `LANE_MASK[4 - n..]` has `n` set lanes.
static LANE_MASK: [u32; 8] = [u32::MAX, u32::MAX, u32::MAX, u32::MAX, 0, 0, 0, 0];

macro_rules! operation {
    ($name:ident($($arg:ident: $ty:ty),*) = $body:expr) => {
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> float32x4_t {
            // SAFETY: register arithmetic; the token stands for the instruction set.
            unsafe { $body }
        }
    };
}

/// A prefetch of one kind, see the architecture's `PRFM`.
macro_rules! prefetch {
    ($name:ident, $kind:literal) => {
        #[inline(always)]
        fn $name(self, p: *const f32) {
            // SAFETY: a hint, whatever the address; it changes no register, flag or memory.
            unsafe {
                asm!(
                    concat!("prfm ", $kind, ", [{0}]"),
                    in(reg) p,
                    options(nostack, readonly, preserves_flags)
                );
            }
        }
    };
}

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    // 16 sums, as many as four units with a latency of 4 cycles want. Two steps' columns and elements
    // of A, each multiplied from a lane, take the rest of the 32 registers: with 24 sums the compiler,
    // which loads ahead, kept half of them in memory. A panel's row is a line of 64 bytes.
    const MR: usize = 4;
    const NR: usize = 16;

    operation!(splat(x: f32) = vdupq_n_f32(x));
    operation!(add(a: float32x4_t, b: float32x4_t) = vaddq_f32(a, b));
    operation!(sub(a: float32x4_t, b: float32x4_t) = vsubq_f32(a, b));
    operation!(mul(a: float32x4_t, b: float32x4_t) = vmulq_f32(a, b));
    operation!(div(a: float32x4_t, b: float32x4_t) = vdivq_f32(a, b));
    // FMIN and FMAX give NaN for NaN on either side.
    operation!(min(a: float32x4_t, b: float32x4_t) = vbslq_f32(vcltq_f32(a, b), a, b));
    operation!(max(a: float32x4_t, b: float32x4_t) = vbslq_f32(vcgtq_f32(a, b), a, b));
    operation!(sqrt(a: float32x4_t) = vsqrtq_f32(a));
    operation!(mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) = vfmaq_f32(c, a, b));
    operation!(low_bits_to_exponent(a: float32x4_t) =
        vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(a))));

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        // SAFETY: the caller's promise; the token stands for NEON.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: float32x4_t) {
        // SAFETY: the caller's promise; the token stands for NEON.
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> float32x4_t {
        debug_assert!(n < 4);
        // SAFETY: each arm reads no more than the caller's `n` floats; the token stands for NEON.
        unsafe {
            let none = vdup_n_f32(0.0);
            match n {
                0 => vdupq_n_f32(0.0),
                1 => vcombine_f32(vld1_lane_f32::<0>(p, none), none),
                2 => vcombine_f32(vld1_f32(p), none),
                _ => vcombine_f32(vld1_f32(p), vld1_lane_f32::<0>(p.add(2), none)),
            }
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: float32x4_t, n: usize) {
        debug_assert!(n < 4);
        // SAFETY: each step writes its own of the caller's `n` floats; the token stands for NEON.
        unsafe {
            if n >= 2 {
                vst1_f32(p, vget_low_f32(v));
            }
            match n {
                1 => vst1q_lane_f32::<0>(p, v),
                3 => vst1q_lane_f32::<2>(p.add(2), v),
                _ => {}
            }
        }
    }
    prefetch!(prefetch, "pldl2keep");
    prefetch!(prefetch_near, "pldl1keep");
    prefetch!(prefetch_to_write, "pstl1keep");

    #[inline(always)]
    fn transpose(self, lines: &mut [float32x4_t; MOST_LANES]) {
        // SAFETY: register arithmetic; the token stands for NEON.
        unsafe {
            // Two by two, then the squares of two: pairs of floats are moved as one f64.
            let [a, b, c, d] = [lines[0], lines[1], lines[2], lines[3]];
            let even = [vtrn1q_f32(a, b), vtrn1q_f32(c, d)];
            let odd = [vtrn2q_f32(a, b), vtrn2q_f32(c, d)];
            let even = [vreinterpretq_f64_f32(even[0]), vreinterpretq_f64_f32(even[1])];
            let odd = [vreinterpretq_f64_f32(odd[0]), vreinterpretq_f64_f32(odd[1])];
            lines[0] = vreinterpretq_f32_f64(vtrn1q_f64(even[0], even[1]));
            lines[1] = vreinterpretq_f32_f64(vtrn1q_f64(odd[0], odd[1]));
            lines[2] = vreinterpretq_f32_f64(vtrn2q_f64(even[0], even[1]));
            lines[3] = vreinterpretq_f32_f64(vtrn2q_f64(odd[0], odd[1]));
        }
    }
    #[inline(always)]
    fn first(self, a: float32x4_t, n: usize, other: float32x4_t) -> float32x4_t {
        debug_assert!(n <= 4);
        // SAFETY: `4 - n` is at most 4, so 4 of the 8 entries follow; the token stands for NEON.
        unsafe { vbslq_f32(vld1q_u32(LANE_MASK.as_ptr().add(4 - n)), a, other) }
    }
    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        // SAFETY: register arithmetic; the token stands for NEON.
        unsafe { vpadds_f32(vadd_f32(vget_low_f32(a), vget_high_f32(a))) }
    }
    #[inline(always)]
    fn max_lane(self, a: float32x4_t) -> f32 {
        // SAFETY: register arithmetic; the token stands for NEON.
        unsafe { vmaxvq_f32(a) }
    }
}
