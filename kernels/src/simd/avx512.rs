//! Sixteen lanes on AVX-512 (F, BW, DQ and VL), with fused multiply-add and lane masks.

use super::{MOST_LANES, Simd};
use core::arch::x86_64::*;

/// Proof that the CPU and the system run AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ and VL, AVX2 and FMA, and the system saves the 512-bit
    /// and the mask registers.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }
}

/// A mask of the first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    debug_assert!(n <= 16);
    ((1_u32 << n) - 1) as __mmask16
}

macro_rules! operation {
    ($name:ident($($arg:ident: $ty:ty),*) = $body:expr) => {
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> __m512 {
            // SAFETY: register arithmetic; the token stands for the instruction set.
            unsafe { $body }
        }
    };
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    // 24 sums and 2 columns; the broadcasts are operands of the multiply-adds. Of the
    // 32 registers 6 are left for addresses that the compiler keeps as vectors.
    const MR: usize = 12;
    const NR: usize = 32;

    operation!(splat(x: f32) = _mm512_set1_ps(x));
    operation!(add(a: __m512, b: __m512) = _mm512_add_ps(a, b));
    operation!(sub(a: __m512, b: __m512) = _mm512_sub_ps(a, b));
    operation!(mul(a: __m512, b: __m512) = _mm512_mul_ps(a, b));
    operation!(div(a: __m512, b: __m512) = _mm512_div_ps(a, b));
    operation!(min(a: __m512, b: __m512) = _mm512_min_ps(a, b));
    operation!(max(a: __m512, b: __m512) = _mm512_max_ps(a, b));
    operation!(sqrt(a: __m512) = _mm512_sqrt_ps(a));
    operation!(mul_add(a: __m512, b: __m512, c: __m512) = _mm512_fmadd_ps(a, b, c));
    operation!(low_bits_to_exponent(a: __m512) =
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(a))));

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller's promise; the token stands for AVX-512.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: the caller's promise; the token stands for AVX-512.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: __m512) {
        // SAFETY: the caller's promise; the token stands for AVX-512.
        unsafe { _mm512_stream_ps(p, v) }
    }
    #[inline(always)]
    fn fence(self) {
        // SAFETY: x86-64 has SSE.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: masked lanes are not read; the caller's promise covers the rest.
        unsafe { _mm512_maskz_loadu_ps(first(n), p) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: __m512, n: usize) {
        // SAFETY: masked lanes are not written; the caller's promise covers the rest.
        unsafe { _mm512_mask_storeu_ps(p, first(n), v) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8, n: usize) -> __m512 {
        // SAFETY: masked lanes are not read; the token stands for AVX-512 with BW and VL.
        unsafe {
            let bytes = _mm_maskz_loadu_epi8(first(n), p.cast());
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
        }
    }
    #[inline(always)]
    unsafe fn load_signed_bytes(self, p: *const u8, n: usize) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let bytes = _mm_maskz_loadu_epi8(first(n), p.cast());
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, v: __m512, n: usize) {
        // SAFETY: as above, for writing.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(v));
            _mm_mask_storeu_epi8(p.cast(), first(n), bytes);
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
        super::prefetch_to_write(p);
    }
    #[inline(always)]
    fn with_sign_of(self, a: __m512, sign: __m512) -> __m512 {
        // SAFETY: register arithmetic; the token stands for AVX-512 with DQ.
        unsafe {
            let bit = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(bit, a), _mm512_and_ps(bit, sign))
        }
    }
    #[inline(always)]
    fn first(self, a: __m512, n: usize, other: __m512) -> __m512 {
        // SAFETY: register arithmetic; the token stands for AVX-512.
        unsafe { _mm512_mask_mov_ps(other, first(n), a) }
    }
    #[inline(always)]
    fn transpose(self, lines: &mut [__m512; MOST_LANES]) {
        // SAFETY: register arithmetic; the token stands for AVX-512.
        unsafe {
            let mut fours = [_mm512_setzero_ps(); 16];
            for i in [0, 4, 8, 12] {
                // Two by two, then four by four, in each 128 bits apart.
                let [a, b, c, d] = [lines[i], lines[i + 1], lines[i + 2], lines[i + 3]];
                let low = [_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d)];
                let high = [_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d)];
                // No closures: functions without the features would be called for each.
                let low = [_mm512_castps_pd(low[0]), _mm512_castps_pd(low[1])];
                let high = [_mm512_castps_pd(high[0]), _mm512_castps_pd(high[1])];
                fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low[0], low[1]));
                fours[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low[0], low[1]));
                fours[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high[0], high[1]));
                fours[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high[0], high[1]));
            }
            // Now 128 bits number l of `fours[4 i + c]` are lines 4 i and on of column 4 l + c.
            for c in 0..4 {
                let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
                let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(d, e)];
                let odd = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(d, e)];
                lines[c] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
                lines[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
                lines[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
                lines[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
            }
        }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: register arithmetic; the token stands for AVX-512 with DQ and VL.
        unsafe {
            let x = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    fn max_lane(self, a: __m512) -> f32 {
        // SAFETY: register arithmetic; the token stands for AVX-512 with DQ and VL.
        unsafe {
            let x = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }
}
