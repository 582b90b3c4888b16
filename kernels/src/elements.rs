//! How the elements of a matrix lie in memory: as floats, or as bf16 that are rounded already.
//!
//! What only products read need not be kept in more bits than products take. Written once
//! as bf16, an activation costs half of the memory's traffic and no conversion at each use;
//! as both operands of a product are rounded anyway, its bits are the same.
//!
//! bf16 lies in memory only where the CPU multiplies it (words of pairs); a product by conversion
//! reads floats.

use crate::gemm::format::{Format, round};
use crate::mat::{MatMut, MatRef};
use crate::simd::{Simd, load_up_to, store_up_to};

/// A bf16 in memory: the upper half of an `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(u16);

impl Bf16 {
    /// The nearest to `x`, ties to even. NaN stays NaN.
    #[must_use]
    pub fn from_f32(x: f32) -> Self {
        Self((round(x).to_bits() >> 16) as u16)
    }

    /// The same number as an `f32`.
    #[must_use]
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    /// The two halves of each float.
    pub(crate) fn slice(floats: &[f32]) -> &[Self] {
        // SAFETY: two halves take the memory of a float, all bits are one, and the memory is
        // borrowed for as long.
        unsafe { core::slice::from_raw_parts(floats.as_ptr().cast(), 2 * floats.len()) }
    }

    /// [`Bf16::slice`] for writing.
    pub(crate) fn slice_mut(floats: &mut [f32]) -> &mut [Self] {
        // SAFETY: as above; all bits are a float too.
        unsafe { core::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), 2 * floats.len()) }
    }
}

/// A matrix that products read.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// Of floats, which products in another format convert.
    Float(MatRef<'a>),
    /// Of bf16, which products take as it is.
    ///
    /// Only for tables with [`crate::Kernels::keeps_halves`]. As a left-hand side it has rows
    /// at even distances, the first of them where an `f32` could lie, and an even number of
    /// columns.
    Half(MatRef<'a, Bf16>),
}

/// A matrix for products to read, which is written.
#[derive(Debug)]
pub enum OperandMut<'a> {
    /// Of floats.
    Float(MatMut<'a>),
    /// Of bf16, to which what is written is rounded.
    ///
    /// Only for tables with [`crate::Kernels::keeps_halves`].
    Half(MatMut<'a, Bf16>),
}

impl<'a> From<MatRef<'a>> for Operand<'a> {
    fn from(m: MatRef<'a>) -> Self {
        Self::Float(m)
    }
}

impl<'a> From<MatMut<'a>> for OperandMut<'a> {
    fn from(m: MatMut<'a>) -> Self {
        Self::Float(m)
    }
}

/// Where a matrix of either kind lies; strides count elements.
#[derive(Clone, Copy)]
pub(crate) struct RawOperand {
    pub(crate) ptr: *const f32,
    pub(crate) row: usize,
    pub(crate) col: usize,
    /// The pointer is to bf16.
    pub(crate) half: bool,
}

impl RawOperand {
    /// Bytes of an element: of bf16 (`half`), or of a float.
    #[inline(always)]
    pub(crate) const fn bytes_of(half: bool) -> usize {
        if half { size_of::<Bf16>() } else { size_of::<f32>() }
    }

    /// Bytes of an element.
    #[inline(always)]
    pub(crate) const fn element_bytes(self) -> usize {
        Self::bytes_of(self.half)
    }

    /// Floats: element (i, j) is `ptr[i * row + j * col]`.
    #[inline(always)]
    pub(crate) const fn floats(ptr: *const f32, row: usize, col: usize) -> Self {
        Self { ptr, row, col, half: false }
    }

    /// The transposed view of the same memory.
    #[inline(always)]
    pub(crate) fn flip(self) -> Self {
        Self { row: self.col, col: self.row, ..self }
    }

    /// What is behind some rows and columns.
    #[inline(always)]
    pub(crate) fn skip(self, rows: usize, cols: usize) -> Self {
        let by = rows * self.row + cols * self.col;
        Self { ptr: self.ptr.wrapping_byte_add(by.wrapping_mul(self.element_bytes())), ..self }
    }
}

impl Operand<'_> {
    /// The transposed view of the same memory.
    #[must_use]
    pub fn t(self) -> Self {
        match self {
            Self::Float(m) => Self::Float(m.t()),
            Self::Half(m) => Self::Half(m.t()),
        }
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Float(m) => (m.rows(), m.cols()),
            Self::Half(m) => (m.rows(), m.cols()),
        }
    }

    pub(crate) fn raw(&self) -> RawOperand {
        match self {
            Self::Float(m) => RawOperand::floats(m.ptr, m.row_stride, m.col_stride),
            Self::Half(m) => {
                RawOperand { ptr: m.ptr.cast(), row: m.row_stride, col: m.col_stride, half: true }
            }
        }
    }
}

impl OperandMut<'_> {
    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Float(m) => (m.rows(), m.cols()),
            Self::Half(m) => (m.rows(), m.cols()),
        }
    }

    /// The pointer may be written through.
    pub(crate) fn raw(&self) -> RawOperand {
        match self {
            Self::Float(m) => RawOperand::floats(m.ptr, m.row_stride, 1),
            Self::Half(m) => {
                RawOperand { ptr: m.ptr.cast(), row: m.row_stride, col: 1, half: true }
            }
        }
    }
}

/// A way for elements to lie in memory, and how words of a format are made of them.
pub(crate) trait Elements<S: Simd, F: Format<S>>: Copy {
    type Element: Copy;

    /// `n <= LANES` elements as floats, zero in the lanes beyond.
    ///
    /// # Safety
    /// `p` is valid for reading `n` elements.
    unsafe fn load(self, s: S, p: *const Self::Element, n: usize) -> S::V;

    /// Stores the first `n <= LANES` lanes.
    ///
    /// # Safety
    /// `p` is valid for writing `n` elements.
    unsafe fn store(self, s: S, p: *mut Self::Element, x: S::V, n: usize);

    /// What [`Elements::load`] gives after [`Elements::store`].
    fn rounded(self, s: S, x: S::V) -> S::V;

    /// Words of `n <= LANES` elements at `low` and at `high`, zeros without it: see
    /// [`Format::join`]. Zeros in the lanes beyond.
    ///
    /// # Safety
    /// Both are valid for reading `n` elements.
    unsafe fn join(
        self,
        s: S,
        f: F,
        low: *const Self::Element,
        high: Option<*const Self::Element>,
        n: usize,
    ) -> S::V;

    /// [`Elements::join`] of single elements.
    ///
    /// # Safety
    /// Both are valid for reading.
    unsafe fn join_one(self, low: *const Self::Element, high: Option<*const Self::Element>) -> f32;

    /// The words of `LANES * DEPTH` contiguous elements.
    ///
    /// # Safety
    /// `src` is valid for so many.
    unsafe fn contiguous(self, s: S, f: F, src: *const Self::Element) -> S::V;
}

/// Floats.
#[derive(Clone, Copy)]
pub(crate) struct Floats;

impl<S: Simd, F: Format<S>> Elements<S, F> for Floats {
    type Element = f32;

    #[inline(always)]
    unsafe fn load(self, s: S, p: *const f32, n: usize) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { load_up_to(s, p, n) }
    }
    #[inline(always)]
    unsafe fn store(self, s: S, p: *mut f32, x: S::V, n: usize) {
        // SAFETY: passed on from the caller.
        unsafe { store_up_to(s, p, x, n) }
    }
    #[inline(always)]
    fn rounded(self, _: S, x: S::V) -> S::V {
        x
    }
    #[inline(always)]
    unsafe fn join(self, s: S, f: F, low: *const f32, high: Option<*const f32>, n: usize) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe {
            let high = high.map_or(s.splat(0.0), |high| load_up_to(s, high, n));
            f.join(s, load_up_to(s, low, n), high)
        }
    }
    #[inline(always)]
    unsafe fn join_one(self, low: *const f32, high: Option<*const f32>) -> f32 {
        // SAFETY: passed on from the caller.
        unsafe { F::join_one(*low, high.map_or(0.0, |high| *high)) }
    }
    #[inline(always)]
    unsafe fn contiguous(self, s: S, f: F, src: *const f32) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { f.contiguous(s, src) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use halves::Halves;

#[cfg(target_arch = "x86_64")]
mod halves {
    use super::{Bf16, Elements};
    use crate::gemm::format::{Format, Paired};
    use crate::simd::avx512::Avx512;
    use core::arch::x86_64::*;
    use core::mem::transmute;

    /// bf16 for words of pairs, with the token of [`Paired`] for the instructions.
    #[derive(Clone, Copy)]
    pub(crate) struct Halves(pub(crate) Paired);

    /// A mask of the first `n` lanes.
    fn first(n: usize) -> __mmask16 {
        debug_assert!(n <= 16);
        ((1_u32 << n) - 1) as __mmask16
    }

    /// `n <= 16` of them, zeros beyond.
    ///
    /// # Safety
    /// The CPU has AVX-512 BW and VL; `p` is valid for reading so many.
    #[inline(always)]
    unsafe fn halves(p: *const Bf16, n: usize) -> __m256i {
        // SAFETY: passed on from the caller; masked lanes are not read.
        unsafe {
            if n >= 16 {
                _mm256_loadu_si256(p.cast())
            } else {
                _mm256_maskz_loadu_epi16(first(n), p.cast())
            }
        }
    }

    impl<F: Format<Avx512, Kept = Self>> Elements<Avx512, F> for Halves {
        type Element = Bf16;

        #[inline(always)]
        unsafe fn load(self, _: Avx512, p: *const Bf16, n: usize) -> __m512 {
            // SAFETY: masked lanes are not read; the tokens stand for the instructions.
            unsafe {
                let low = _mm512_cvtepu16_epi32(halves(p, n));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(low))
            }
        }
        #[inline(always)]
        unsafe fn store(self, _: Avx512, p: *mut Bf16, x: __m512, n: usize) {
            // SAFETY: masked lanes are not written; the tokens stand for the instructions; a
            // vector of 16 halves is 256 bits.
            unsafe {
                let halves = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                if n >= 16 {
                    _mm256_storeu_si256(p.cast(), halves);
                } else {
                    _mm256_mask_storeu_epi16(p.cast(), first(n), halves);
                }
            }
        }
        #[inline(always)]
        fn rounded(self, _: Avx512, x: __m512) -> __m512 {
            // SAFETY: register arithmetic; the tokens stand for the instructions.
            unsafe {
                let halves = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
            }
        }
        #[inline(always)]
        unsafe fn join(
            self,
            _: Avx512,
            _: F,
            low: *const Bf16,
            high: Option<*const Bf16>,
            n: usize,
        ) -> __m512 {
            // SAFETY: passed on from the caller; the tokens stand for the instructions.
            unsafe {
                let low = _mm512_cvtepu16_epi32(halves(low, n));
                let Some(high) = high else { return _mm512_castsi512_ps(low) };
                let high = _mm512_cvtepu16_epi32(halves(high, n));
                _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
            }
        }
        #[inline(always)]
        unsafe fn join_one(self, low: *const Bf16, high: Option<*const Bf16>) -> f32 {
            // SAFETY: passed on from the caller.
            unsafe {
                let high = high.map_or(0, |high| u32::from((*high).0) << 16);
                f32::from_bits(u32::from((*low).0) | high)
            }
        }
        #[inline(always)]
        unsafe fn contiguous(self, _: Avx512, _: F, src: *const Bf16) -> __m512 {
            // SAFETY: 32 halves are 512 bits, as pairs lie in words: the lower first.
            unsafe { _mm512_loadu_ps(src.cast()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_either_kind_lie_as_far_apart_as_they_are_large() {
        let memory = [0.0_f32; 64];
        let (floats, halves) = (MatRef::new(&memory, 4, 10, 16), Bf16::slice(&memory));
        let halves = MatRef::new(halves, 4, 10, 32);
        for (m, bytes) in [(Operand::Float(floats), 4), (Operand::Half(halves), 2)] {
            let raw = m.raw();
            assert_eq!(raw.element_bytes(), bytes);
            let distance = |to: RawOperand| to.ptr.addr() - raw.ptr.addr();
            assert_eq!(distance(raw.skip(0, 3)), 3 * bytes);
            // The rows of both are a line apart.
            assert_eq!(distance(raw.skip(2, 0)), 2 * 64);
            assert_eq!(distance(raw.flip().skip(3, 2)), 2 * 64 + 3 * bytes);
        }
    }
}
