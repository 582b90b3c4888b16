//! Four lanes on WebAssembly's fixed-width SIMD: no fused multiply-add.
//!
//! Relaxed SIMD would have one, but whether it fuses is each engine's choice, and bits would be its.

use super::{MOST_LANES, Simd};
use core::arch::wasm32::*;

/// Proof that the engine runs these instructions: this module is compiled for targets alone that all have them.
#[derive(Clone, Copy)]
pub(crate) struct Simd128(());

impl Simd128 {
    /// # Safety
    /// The engine has WebAssembly's SIMD.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }
}

/// Masks of lanes: `LANE_MASK[4 - n..]` has `n` set lanes.
static LANE_MASK: [u32; 8] = [u32::MAX, u32::MAX, u32::MAX, u32::MAX, 0, 0, 0, 0];

/// The first `n <= 4` bytes at `p`, zeros behind them.
///
/// # Safety
/// `p` is valid for reading `n` bytes.
#[inline(always)]
unsafe fn bytes(p: *const u8, n: usize) -> v128 {
    let mut four = [0; 4];
    // SAFETY: passed on from the caller; the shorter copy fits in what it is copied to.
    unsafe {
        if n >= 4 {
            four = p.cast::<[u8; 4]>().read();
        } else {
            core::ptr::copy_nonoverlapping(p, four.as_mut_ptr(), n);
        }
    }
    u32x4(u32::from_le_bytes(four), 0, 0, 0)
}

macro_rules! operation {
    ($name:ident($($arg:ident: $ty:ty),*) = $body:expr) => {
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> v128 {
            $body
        }
    };
}

impl Simd for Simd128 {
    type V = v128;
    const LANES: usize = 4;
    // 8 sums, 2 columns, an element of A and a product, which is there before it is added: 12 of the 16 registers that an
    // engine on x86-64 has. With 6 rows a product of 96 x 256 x 1024 took twice as long (Node.js 20, AMD EPYC).
    const MR: usize = 4;
    const NR: usize = 8;

    operation!(splat(x: f32) = f32x4_splat(x));
    operation!(add(a: v128, b: v128) = f32x4_add(a, b));
    operation!(sub(a: v128, b: v128) = f32x4_sub(a, b));
    operation!(mul(a: v128, b: v128) = f32x4_mul(a, b));
    operation!(div(a: v128, b: v128) = f32x4_div(a, b));
    // These return the first operand if either is NaN; `min` and `max` proper would give NaN.
    operation!(min(a: v128, b: v128) = f32x4_pmin(b, a));
    operation!(max(a: v128, b: v128) = f32x4_pmax(b, a));
    operation!(sqrt(a: v128) = f32x4_sqrt(a));
    operation!(mul_add(a: v128, b: v128, c: v128) = f32x4_add(f32x4_mul(a, b), c));
    operation!(low_bits_to_exponent(a: v128) = u32x4_shl(a, 23));
    operation!(with_sign_of(a: v128, sign: v128) = v128_bitselect(sign, a, f32x4_splat(-0.0)));

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> v128 {
        // SAFETY: the caller's promise.
        unsafe { v128_load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: v128) {
        // SAFETY: the caller's promise.
        unsafe { v128_store(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> v128 {
        debug_assert!(n < 4);
        // SAFETY: each arm reads no more than the caller's `n` floats.
        unsafe {
            match n {
                0 => f32x4_splat(0.0),
                1 => v128_load32_zero(p.cast()),
                2 => v128_load64_zero(p.cast()),
                _ => v128_load32_lane::<2>(v128_load64_zero(p.cast()), p.add(2).cast()),
            }
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: v128, n: usize) {
        debug_assert!(n < 4);
        // SAFETY: each step writes its own of the caller's `n` floats.
        unsafe {
            if n >= 2 {
                v128_store64_lane::<0>(v, p.cast());
            }
            match n {
                1 => v128_store32_lane::<0>(v, p.cast()),
                3 => v128_store32_lane::<2>(v, p.add(2).cast()),
                _ => {}
            }
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8, n: usize) -> v128 {
        // SAFETY: the caller's promise.
        let bytes = unsafe { bytes(p, n) };
        f32x4_convert_u32x4(u32x4_extend_low_u16x8(u16x8_extend_low_u8x16(bytes)))
    }
    #[inline(always)]
    unsafe fn load_signed_bytes(self, p: *const u8, n: usize) -> v128 {
        // SAFETY: the caller's promise.
        let bytes = unsafe { bytes(p, n) };
        f32x4_convert_i32x4(i32x4_extend_low_i16x8(i16x8_extend_low_i8x16(bytes)))
    }
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, v: v128, n: usize) {
        let words = v128_and(i32x4_trunc_sat_f32x4(v), u32x4_splat(0xff));
        let halves = u16x8_narrow_i32x4(words, words);
        let four = u32x4_extract_lane::<0>(u8x16_narrow_i16x8(halves, halves)).to_le_bytes();
        // SAFETY: the caller's promise; the shorter copy is of a part of what is there.
        unsafe {
            if n >= 4 {
                p.cast::<[u8; 4]>().write(four);
            } else {
                core::ptr::copy_nonoverlapping(four.as_ptr(), p, n);
            }
        }
    }
    // WebAssembly has no prefetches.
    #[inline(always)]
    fn prefetch(self, _: *const f32) {}
    #[inline(always)]
    fn prefetch_near(self, _: *const f32) {}
    #[inline(always)]
    fn prefetch_to_write(self, _: *const f32) {}

    #[inline(always)]
    fn transpose(self, lines: &mut [v128; MOST_LANES]) {
        // Two by two, then the squares of two.
        let [a, b, c, d] = [lines[0], lines[1], lines[2], lines[3]];
        let even = [i32x4_shuffle::<0, 4, 2, 6>(a, b), i32x4_shuffle::<0, 4, 2, 6>(c, d)];
        let odd = [i32x4_shuffle::<1, 5, 3, 7>(a, b), i32x4_shuffle::<1, 5, 3, 7>(c, d)];
        lines[0] = i64x2_shuffle::<0, 2>(even[0], even[1]);
        lines[1] = i64x2_shuffle::<0, 2>(odd[0], odd[1]);
        lines[2] = i64x2_shuffle::<1, 3>(even[0], even[1]);
        lines[3] = i64x2_shuffle::<1, 3>(odd[0], odd[1]);
    }
    #[inline(always)]
    fn first(self, a: v128, n: usize, other: v128) -> v128 {
        debug_assert!(n <= 4);
        // SAFETY: `4 - n` is at most 4, so 4 of the 8 entries follow.
        let mask = unsafe { v128_load(LANE_MASK.as_ptr().add(4 - n).cast()) };
        v128_bitselect(a, other, mask)
    }
    #[inline(always)]
    fn sum(self, a: v128) -> f32 {
        let x = f32x4_add(a, i64x2_shuffle::<1, 1>(a, a));
        f32x4_extract_lane::<0>(x) + f32x4_extract_lane::<1>(x)
    }
    #[inline(always)]
    fn max_lane(self, a: v128) -> f32 {
        let x = f32x4_pmax(a, i64x2_shuffle::<1, 1>(a, a));
        f32x4_extract_lane::<0>(f32x4_pmax(x, i32x4_shuffle::<1, 1, 1, 1>(x, x)))
    }
}
