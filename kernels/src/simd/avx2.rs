//! Eight lanes on AVX2 with fused multiply-add.

use super::Simd;
use super::avx::shared_avx_operations;
use core::arch::x86_64::*;

/// Proof that the CPU and the system run AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU has AVX2 and FMA and the system saves the 256-bit registers.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }
}

impl Simd for Avx2 {
    shared_avx_operations!();

    shared_avx_operations!(@op mul_add(a: __m256, b: __m256, c: __m256) = _mm256_fmadd_ps(a, b, c));
    shared_avx_operations!(@op low_bits_to_exponent(a: __m256) =
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a))));
}
