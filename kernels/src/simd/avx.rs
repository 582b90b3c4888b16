//! Eight lanes on AVX: no fused multiply-add, no 256-bit integers.

use super::Simd;
use core::arch::x86_64::*;

/// Proof that the CPU and the system run AVX.
#[derive(Clone, Copy)]
pub(crate) struct Avx(());

impl Avx {
    /// # Safety
    /// The CPU has AVX and the system saves the 256-bit registers.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }
}

/// Mask vectors for partial loads and stores: `LANE_MASK[8 - n..]` has `n` set lanes.
static LANE_MASK: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
pub(in crate::simd) fn lane_mask(n: usize) -> __m256i {
    debug_assert!(n <= 8);
    // SAFETY: `8 - n` is at most 8, so 8 of the 16 entries follow; callers hold a token of AVX.
    unsafe { _mm256_loadu_si256(LANE_MASK.as_ptr().add(8 - n).cast()) }
}

/// Transposes the two squares that each 128 bits of four vectors are.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(in crate::simd) unsafe fn turn_fours([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    // SAFETY: register arithmetic.
    unsafe {
        let low = [_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d)];
        let high = [_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d)];
        [
            _mm256_shuffle_ps::<0x44>(low[0], low[1]),
            _mm256_shuffle_ps::<0xee>(low[0], low[1]),
            _mm256_shuffle_ps::<0x44>(high[0], high[1]),
            _mm256_shuffle_ps::<0xee>(high[0], high[1]),
        ]
    }
}

/// The first `n <= 8` bytes at `p`, zeros behind them.
///
/// # Safety
/// The CPU has AVX; `p` is valid for reading `n` bytes.
#[inline(always)]
pub(in crate::simd) unsafe fn bytes(p: *const u8, n: usize) -> __m128i {
    let mut eight = [0; 8];
    // SAFETY: passed on from the caller; the shorter copy fits in what it is copied to.
    unsafe {
        if n >= 8 {
            eight = p.cast::<[u8; 8]>().read();
        } else {
            core::ptr::copy_nonoverlapping(p, eight.as_mut_ptr(), n);
        }
        _mm_cvtsi64_si128(i64::from_le_bytes(eight))
    }
}

/// Stores the first `n <= 8` bytes.
///
/// # Safety
/// The CPU has AVX; `p` is valid for writing `n` bytes.
#[inline(always)]
pub(in crate::simd) unsafe fn store_bytes(p: *mut u8, bytes: __m128i, n: usize) {
    // SAFETY: passed on from the caller; the shorter copy is of a part of what is there.
    unsafe {
        let eight = _mm_cvtsi128_si64(bytes).to_le_bytes();
        if n >= 8 {
            p.cast::<[u8; 8]>().write(eight);
        } else {
            core::ptr::copy_nonoverlapping(eight.as_ptr(), p, n);
        }
    }
}

/// The operations that AVX and AVX2 share, for a token type.
macro_rules! shared_avx_operations {
    () => {
        type V = __m256;
        const LANES: usize = 8;
        // 12 sums, 2 columns and 1 or 2 broadcasts fill the 16 registers.
        const MR: usize = 6;
        const NR: usize = 16;

        shared_avx_operations!(@op splat(x: f32) = _mm256_set1_ps(x));
        shared_avx_operations!(@op add(a: __m256, b: __m256) = _mm256_add_ps(a, b));
        shared_avx_operations!(@op sub(a: __m256, b: __m256) = _mm256_sub_ps(a, b));
        shared_avx_operations!(@op mul(a: __m256, b: __m256) = _mm256_mul_ps(a, b));
        shared_avx_operations!(@op div(a: __m256, b: __m256) = _mm256_div_ps(a, b));
        shared_avx_operations!(@op min(a: __m256, b: __m256) = _mm256_min_ps(a, b));
        shared_avx_operations!(@op max(a: __m256, b: __m256) = _mm256_max_ps(a, b));
        shared_avx_operations!(@op sqrt(a: __m256) = _mm256_sqrt_ps(a));

        #[inline(always)]
        unsafe fn load(self, p: *const f32) -> __m256 {
            // SAFETY: the caller's promise; the token stands for AVX.
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32, v: __m256) {
            // SAFETY: the caller's promise; the token stands for AVX.
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn stream(self, p: *mut f32, v: __m256) {
            // SAFETY: the caller's promise; the token stands for AVX.
            unsafe { _mm256_stream_ps(p, v) }
        }
        #[inline(always)]
        fn fence(self) {
            // SAFETY: x86-64 has SSE.
            unsafe { _mm_sfence() }
        }
        #[inline(always)]
        unsafe fn load_first(self, p: *const f32, n: usize) -> __m256 {
            // SAFETY: masked lanes are not read; the caller's promise covers the rest.
            unsafe { _mm256_maskload_ps(p, $crate::simd::avx::lane_mask(n)) }
        }
        #[inline(always)]
        unsafe fn store_first(self, p: *mut f32, v: __m256, n: usize) {
            // SAFETY: masked lanes are not written; the caller's promise covers the rest.
            unsafe { _mm256_maskstore_ps(p, $crate::simd::avx::lane_mask(n), v) }
        }
        #[inline(always)]
        unsafe fn load_bytes(self, p: *const u8, n: usize) -> __m256 {
            // SAFETY: the caller's promise; the token stands for AVX, which has SSE 4.1.
            unsafe {
                let bytes = $crate::simd::avx::bytes(p, n);
                let (low, high) = (_mm_cvtepu8_epi32(bytes), _mm_srli_si128::<4>(bytes));
                _mm256_cvtepi32_ps(_mm256_set_m128i(_mm_cvtepu8_epi32(high), low))
            }
        }
        #[inline(always)]
        unsafe fn load_signed_bytes(self, p: *const u8, n: usize) -> __m256 {
            // SAFETY: as above.
            unsafe {
                let bytes = $crate::simd::avx::bytes(p, n);
                let (low, high) = (_mm_cvtepi8_epi32(bytes), _mm_srli_si128::<4>(bytes));
                _mm256_cvtepi32_ps(_mm256_set_m128i(_mm_cvtepi8_epi32(high), low))
            }
        }
        #[inline(always)]
        unsafe fn store_bytes(self, p: *mut u8, v: __m256, n: usize) {
            // SAFETY: as above.
            unsafe {
                let whole = _mm256_cvttps_epi32(v);
                let (low, high) =
                    (_mm256_castsi256_si128(whole), _mm256_extractf128_si256::<1>(whole));
                let byte = _mm_set1_epi32(0xff);
                let words = _mm_packus_epi32(_mm_and_si128(low, byte), _mm_and_si128(high, byte));
                $crate::simd::avx::store_bytes(p, _mm_packus_epi16(words, words), n);
            }
        }
        #[inline(always)]
        fn prefetch(self, p: *const f32) {
            // SAFETY: a hint that touches no memory, whatever the address; x86-64 has SSE.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        }
        #[inline(always)]
        fn prefetch_near(self, p: *const f32) {
            // SAFETY: as above.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        fn prefetch_to_write(self, p: *const f32) {
            $crate::simd::prefetch_to_write(p);
        }
        #[inline(always)]
        unsafe fn square(self, p: *const f32, row: usize) -> [__m256; $crate::simd::MOST_LANES] {
            let mut columns = [self.splat(0.0); $crate::simd::MOST_LANES];
            for c in [0, 4] {
                let mut lines = [self.splat(0.0); 4];
                // The upper 128 bits of line r are of row 4 + r: from memory they get there without a shuffle.
                for (r, line) in lines.iter_mut().enumerate() {
                    let at = |i: usize| p.wrapping_add(i * row + c);
                    // SAFETY: four floats of a row of the square each, which are valid; the token stands for AVX.
                    unsafe {
                        let low = _mm256_castps128_ps256(_mm_loadu_ps(at(r)));
                        *line = _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(at(4 + r)));
                    }
                }
                // SAFETY: the token stands for AVX.
                let some = unsafe { $crate::simd::avx::turn_fours(lines) };
                columns[c..c + 4].copy_from_slice(&some);
            }
            columns
        }
        #[inline(always)]
        fn transpose(self, lines: &mut [__m256; $crate::simd::MOST_LANES]) {
            // SAFETY: register arithmetic; the token stands for AVX.
            unsafe {
                let mut fours = [_mm256_setzero_ps(); 8];
                for i in [0, 4] {
                    let some = [lines[i], lines[i + 1], lines[i + 2], lines[i + 3]];
                    fours[i..i + 4].copy_from_slice(&$crate::simd::avx::turn_fours(some));
                }
                for c in 0..4 {
                    let (a, b) = (fours[c], fours[4 + c]);
                    lines[c] = _mm256_permute2f128_ps::<0x20>(a, b);
                    lines[4 + c] = _mm256_permute2f128_ps::<0x31>(a, b);
                }
            }
        }
        #[inline(always)]
        fn with_sign_of(self, a: __m256, sign: __m256) -> __m256 {
            // SAFETY: register arithmetic; the token stands for AVX.
            unsafe {
                let bit = _mm256_set1_ps(-0.0);
                _mm256_or_ps(_mm256_andnot_ps(bit, a), _mm256_and_ps(bit, sign))
            }
        }
        #[inline(always)]
        fn first(self, a: __m256, n: usize, other: __m256) -> __m256 {
            // SAFETY: register arithmetic; the token stands for AVX.
            unsafe {
                let mask = _mm256_castsi256_ps($crate::simd::avx::lane_mask(n));
                _mm256_blendv_ps(other, a, mask)
            }
        }
        #[inline(always)]
        fn sum(self, a: __m256) -> f32 {
            // SAFETY: register arithmetic; the token stands for AVX.
            unsafe {
                let x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
                _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
            }
        }
        #[inline(always)]
        fn max_lane(self, a: __m256) -> f32 {
            // SAFETY: register arithmetic; the token stands for AVX.
            unsafe {
                let x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
                _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
            }
        }
    };
    (@op $name:ident($($arg:ident: $ty:ty),*) = $body:expr) => {
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> __m256 {
            // SAFETY: register arithmetic; the token stands for the instruction set.
            unsafe { $body }
        }
    };
}
pub(super) use shared_avx_operations;

impl Simd for Avx {
    shared_avx_operations!();

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn low_bits_to_exponent(self, a: __m256) -> __m256 {
        // SAFETY: register arithmetic; the token stands for AVX. The two 128-bit halves
        // are shifted apart, for AVX has no wider integers.
        unsafe {
            let a = _mm256_castps_si256(a);
            let lo = _mm_slli_epi32::<23>(_mm256_castsi256_si128(a));
            let hi = _mm_slli_epi32::<23>(_mm256_extractf128_si256::<1>(a));
            _mm256_castsi256_ps(_mm256_insertf128_si256::<1>(_mm256_castsi128_si256(lo), hi))
        }
    }
}
