//! The vector abstraction that every kernel is written against once.
//!
//! A kernel is a generic `#[inline(always)]` function over [`Simd`]; the shells
//! in `crate::shells` carry `#[target_feature]` and instantiate it. A value of a
//! type that implements [`Simd`] is a *token*: it exists only where the
//! instruction set does, so its arithmetic is safe to call and only memory
//! access through pointers stays `unsafe`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
pub(crate) mod neon;
pub(crate) mod scalar;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) mod simd128;

use crate::gemm::parts::Shared;

/// Lanes of the widest vectors.
pub(crate) const MOST_LANES: usize = 16;

/// Lanes of `f32`, and the register block that suits their number.
///
/// `min` and `max` follow x86: **the second operand is returned if either is
/// NaN**, on every instruction set. Put the value whose NaN must survive second.
pub(crate) trait Simd: Copy + Shared {
    /// A vector of [`Simd::LANES`] floats.
    type V: Copy;
    /// Floats in a vector.
    const LANES: usize;
    /// Rows of the GEMM register block.
    const MR: usize;
    /// Columns of the GEMM register block: a multiple of `LANES`.
    const NR: usize;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `p` is valid for reading `LANES` floats (any alignment of 4).
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `p` is valid for writing `LANES` floats (any alignment of 4).
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// [`Simd::store`] past the caches, where the set can: what is there is not read first.
    /// # Safety
    /// As for [`Simd::store`], with `p` aligned to the size of a vector; [`Simd::fence`] is called
    /// before anybody reads or writes there.
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: Self::V) {
        // SAFETY: passed on from the caller.
        unsafe { self.store(p, v) }
    }
    /// Puts what was streamed before into the order of all stores.
    #[inline(always)]
    fn fence(self) {}
    /// The first `n < LANES` floats, zero in the other lanes.
    /// # Safety
    /// `p` is valid for reading `n` floats.
    unsafe fn load_first(self, p: *const f32, n: usize) -> Self::V;
    /// Stores the first `n < LANES` lanes and touches nothing else.
    /// # Safety
    /// `p` is valid for writing `n` floats.
    unsafe fn store_first(self, p: *mut f32, v: Self::V, n: usize);
    /// The first `n <= LANES` bytes as floats: 0 to 255. Zero in the other lanes.
    /// # Safety
    /// `p` is valid for reading `n` bytes.
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8, n: usize) -> Self::V {
        // SAFETY: passed on from the caller.
        unsafe { load_lanes(self, n, |i| f32::from(*p.add(i))) }
    }
    /// As [`Simd::load_bytes`], of bytes with a sign: -128 to 127.
    /// # Safety
    /// `p` is valid for reading `n` bytes.
    #[inline(always)]
    unsafe fn load_signed_bytes(self, p: *const u8, n: usize) -> Self::V {
        // SAFETY: passed on from the caller.
        unsafe { load_lanes(self, n, |i| f32::from((*p.add(i)).cast_signed())) }
    }
    /// Stores the first `n <= LANES` lanes, cut off towards zero, as bytes: of whole numbers from -128 to
    /// 255 those that the loads above give back.
    /// # Safety
    /// `p` is valid for writing `n` bytes.
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, v: Self::V, n: usize) {
        for (i, lane) in lanes(self, v).into_iter().enumerate().take(n) {
            // SAFETY: passed on from the caller: i is below n.
            unsafe { *p.add(i) = lane as i32 as u8 }
        }
    }

    /// Asks for the cache line at `p` ahead of its use. Any address will do.
    fn prefetch(self, p: *const f32);
    /// The same for a use that is a few hundred cycles away.
    fn prefetch_near(self, p: *const f32);
    /// The same for a line that will be written, all of it or some: no other core has it then.
    fn prefetch_to_write(self, p: *const f32);

    /// Transposes the square of the first `LANES` vectors.
    fn transpose(self, lines: &mut [Self::V; MOST_LANES]);
    /// The columns of a square of floats whose rows are `row` apart: loaded, and transposed.
    ///
    /// # Safety
    /// `p` is valid for `LANES` rows of as many floats.
    #[inline(always)]
    unsafe fn square(self, p: *const f32, row: usize) -> [Self::V; MOST_LANES] {
        let mut lines = [self.splat(0.0); MOST_LANES];
        for (i, line) in lines[..Self::LANES].iter_mut().enumerate() {
            // SAFETY: passed on from the caller.
            *line = unsafe { self.load(p.wrapping_add(i * row)) };
        }
        self.transpose(&mut lines);
        lines
    }

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    /// `a * b + c`: fused where the instruction set fuses, two roundings elsewhere.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a` with the sign of `sign`.
    #[inline(always)]
    fn with_sign_of(self, a: Self::V, sign: Self::V) -> Self::V {
        let (a, sign) = (lanes(self, a), lanes(self, sign));
        load_lanes(self, Self::LANES, |i| libm::copysignf(a[i], sign[i]))
    }
    /// The first `n < LANES` lanes of `a`, those of `other` beyond.
    fn first(self, a: Self::V, n: usize, other: Self::V) -> Self::V;
    /// The low nine bits of each lane, moved to where a float has its sign and exponent: `2^n`
    /// for a lane of bits that end in `n + 127`. `n = -127` gives 0 and `n = 128` infinity.
    fn low_bits_to_exponent(self, a: Self::V) -> Self::V;
    /// Sum of the lanes, halves first.
    fn sum(self, a: Self::V) -> f32;
    /// Largest lane, NaN ignored or not as the order falls.
    fn max_lane(self, a: Self::V) -> f32;
}

/// The lanes of a vector, and zeros behind them.
#[inline(always)]
fn lanes<S: Simd>(s: S, v: S::V) -> [f32; MOST_LANES] {
    let mut lanes = [0.0; MOST_LANES];
    // SAFETY: there is room for the most that a vector has.
    unsafe { s.store(lanes.as_mut_ptr(), v) };
    lanes
}

/// A vector whose first `n` lanes are as said, and the others zero.
#[inline(always)]
pub(crate) fn load_lanes<S: Simd>(s: S, n: usize, lane: impl Fn(usize) -> f32) -> S::V {
    let mut lanes = [0.0; MOST_LANES];
    for (i, to) in lanes[..S::LANES].iter_mut().enumerate().take(n) {
        *to = lane(i);
    }
    // SAFETY: there are at least as many as a vector has.
    unsafe { s.load(lanes.as_ptr()) }
}

/// [`Simd::prefetch_to_write`] by PREFETCHW, which those x86-64 CPUs that lack it take for nothing. Rust
/// has it for CPUs that are known to have it alone, or else writes another one.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch_to_write(p: *const f32) {
    // SAFETY: a hint, whatever the address; it changes no register, flag or memory.
    unsafe {
        core::arch::asm!("prefetchw [{0}]", in(reg) p, options(nostack, readonly, preserves_flags));
    }
}

/// Loads `n <= LANES` floats, zero in the lanes beyond.
///
/// # Safety
/// `p` is valid for reading `n` floats.
#[inline(always)]
pub(crate) unsafe fn load_up_to<S: Simd>(s: S, p: *const f32, n: usize) -> S::V {
    // SAFETY: passed on from the caller; the branch keeps each call in its range.
    unsafe { if n >= S::LANES { s.load(p) } else { s.load_first(p, n) } }
}

/// Stores the first `n <= LANES` lanes.
///
/// # Safety
/// `p` is valid for writing `n` floats.
#[inline(always)]
pub(crate) unsafe fn store_up_to<S: Simd>(s: S, p: *mut f32, v: S::V, n: usize) {
    // SAFETY: passed on from the caller; the branch keeps each call in its range.
    unsafe { if n >= S::LANES { s.store(p, v) } else { s.store_first(p, v, n) } }
}
