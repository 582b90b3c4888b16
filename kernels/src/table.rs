//! The table of kernels: one value per instruction set, safe methods that check shapes.
//!
//! The fields are private `unsafe fn`s that trust their arguments; the methods
//! check every shape first and panic with the numbers if a caller got one wrong.
//! Matrices and vectors live in the sibling modules of this one: products in
//! `product`, everything that works on a row in `rows`, on a head in `heads`.

use crate::adamw::AdamW;
use crate::adamw8::{Dither, MOMENTS_BLOCK, Moments8, RawMoments8};
#[cfg(target_arch = "x86_64")]
use crate::built::COMPACT;
use crate::dropout::Dropout;
use crate::embedding::RawEmbedding;
use crate::footprint::Footprint;
use crate::gated::{RawGated, RawGatedBackward};
use crate::isa::Isa;
use crate::norm::RawNorm;
use crate::product::{Dtype, Products};
use crate::rotary::RawRotary;
use crate::sgd::Sgd;
use crate::shells;
use crate::softmax::RawCrossEntropy;

/// The kernels of one instruction set. Get one from [`Kernels::detect`],
/// [`Kernels::for_isa`] or, where the CPU cannot be asked, `Kernels::assume_*`.
///
/// Any table of an instruction set that the CPU has can be asked for, by name too:
///
/// ```
/// use cllm_kernels::{Isa, Kernels};
///
/// let isa: Isa = "scalar".parse()?;
/// let oracle = Kernels::for_isa(isa).expect("scalar kernels run everywhere");
/// for kernels in Isa::ALL.into_iter().filter_map(Kernels::for_isa) {
///     let (mut got, mut want) = ([0.0; 5], [0.0; 5]);
///     kernels.gelu(&mut got, &[-2.0, -0.5, 0.0, 0.5, 2.0]);
///     oracle.gelu(&mut want, &[-2.0, -0.5, 0.0, 0.5, 2.0]);
///     // Sets round differently.
///     assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-5));
/// }
/// assert_eq!(Kernels::detect().isa(), Isa::best());
/// # Ok::<(), cllm_kernels::UnknownIsa>(())
/// ```
pub struct Kernels {
    pub(crate) isa: Isa,
    pub(crate) lanes: usize,
    /// Whether floats that are used once are packed: see [`Kernels::with_packing`].
    pub(crate) packs: bool,
    pub(crate) products: Products,
    pub(crate) norm_forward: unsafe fn(&RawNorm),
    pub(crate) norm_backward: unsafe fn(&RawNorm),
    pub(crate) cross_entropy: unsafe fn(&RawCrossEntropy),
    pub(crate) embedding_gather: unsafe fn(&RawEmbedding),
    pub(crate) embedding_scatter:
        unsafe fn(*const u32, usize, *const f32, usize, usize, *mut f32, usize, usize),
    pub(crate) accumulate: unsafe fn(*mut f32, *const f32, usize),
    pub(crate) scale: unsafe fn(*mut f32, f32, usize),
    pub(crate) soft_cap: unsafe fn(*mut f32, f32, usize),
    pub(crate) gelu: unsafe fn(*mut f32, *const f32, usize),
    pub(crate) gelu_backward: unsafe fn(*mut f32, *const f32, usize),
    pub(crate) swiglu: unsafe fn(&RawGated),
    pub(crate) swiglu_backward: unsafe fn(&RawGatedBackward),
    pub(crate) rotate: unsafe fn(&RawRotary),
    pub(crate) dropout_row: unsafe fn(*mut f32, *const f32, usize, &Dropout, u32),
    pub(crate) column_sum: unsafe fn(*const f32, usize, usize, usize, *mut f32, bool),
    pub(crate) sum_squares: unsafe fn(*const f32, usize) -> f32,
    pub(crate) adamw: unsafe fn(&AdamW, *mut f32, *const f32, *mut f32, *mut f32, usize),
    pub(crate) adamw8: unsafe fn(&AdamW, Dither, *mut f32, *const f32, RawMoments8, usize),
    pub(crate) sgd: unsafe fn(&Sgd, *mut f32, *const f32, usize),
    pub(crate) momentum: unsafe fn(&Sgd, f32, *mut f32, *const f32, *mut f32, usize),
}

/// What names a table: two of one name give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSet {
    /// The instruction set.
    pub isa: Isa,
    /// What the operands of products are rounded to.
    pub dtype: Dtype,
    /// Whether the CPU multiplies those by instructions of its own.
    pub is_native: bool,
}

impl KernelSet {
    /// Of the scalar kernels, on every target.
    pub const SCALAR: Self = Self::of(Isa::Scalar);
    /// Of NEON.
    pub const NEON: Self = Self::of(Isa::Neon);
    /// Of WebAssembly's SIMD.
    pub const SIMD128: Self = Self::of(Isa::Simd128);
    /// Of AVX.
    pub const AVX: Self = Self::of(Isa::Avx);
    /// Of AVX2 with FMA.
    pub const AVX2: Self = Self::of(Isa::Avx2);
    /// Of AVX-512.
    pub const AVX512: Self = Self::of(Isa::Avx512);
    /// Of AVX-512 with its products of bf16.
    pub const AVX512_BF16: Self = Self { dtype: Dtype::Bf16, ..Self::AVX512 };
    /// Of AMX, whose products are of bf16 in tiles.
    pub const AMX: Self = Self { isa: Isa::Amx, ..Self::AVX512_BF16 };

    /// All that there are kernels for on any target.
    pub const ALL: [Self; 14] = [
        Self::SCALAR,
        Self::SCALAR.converting(),
        Self::NEON,
        Self::NEON.converting(),
        Self::SIMD128,
        Self::SIMD128.converting(),
        Self::AVX,
        Self::AVX.converting(),
        Self::AVX2,
        Self::AVX2.converting(),
        Self::AVX512,
        Self::AVX512.converting(),
        Self::AVX512_BF16,
        Self::AMX,
    ];

    const fn of(isa: Isa) -> Self {
        Self { isa, dtype: Dtype::F32, is_native: true }
    }

    /// With products of bf16 by conversion: see [`Kernels::converting`].
    #[must_use]
    pub const fn converting(self) -> Self {
        Self { dtype: Dtype::Bf16, is_native: false, ..self }
    }

    /// The [`Footprint`] of the kernels of this name, whether or not this CPU runs them; `None` if there
    /// are none, on this target. So memory can be planned for another machine, or before there is any.
    #[must_use]
    pub const fn footprint(self) -> Option<Footprint> {
        match self.table() {
            Some(kernels) => Some(kernels.footprint()),
            None => None,
        }
    }

    /// The kernels: not to be handed out, for the CPU was not asked.
    pub(crate) const fn table(self) -> Option<&'static Kernels> {
        Some(match (self.isa, self.dtype, self.is_native) {
            (Isa::Scalar, Dtype::F32, true) => &shells::scalar::F32,
            (Isa::Scalar, Dtype::Bf16, false) => &shells::scalar::BF16,
            #[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
            (Isa::Neon, Dtype::F32, true) => &shells::neon::F32,
            #[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
            (Isa::Neon, Dtype::Bf16, false) => &shells::neon::BF16,
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            (Isa::Simd128, Dtype::F32, true) => &shells::simd128::F32,
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            (Isa::Simd128, Dtype::Bf16, false) => &shells::simd128::BF16,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx, Dtype::F32, true) => &shells::avx::F32,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx, Dtype::Bf16, false) => &shells::avx::BF16,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Dtype::F32, true) => &shells::avx2::F32,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Dtype::Bf16, false) => &shells::avx2::BF16,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Dtype::F32, true) => &shells::avx512::F32,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Dtype::Bf16, false) => &shells::avx512::BF16,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Dtype::Bf16, true) => &shells::avx512bf16::BF16,
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, Dtype::Bf16, true) => &shells::amx_bf16::BF16,
            _ => return None,
        })
    }
}

impl core::fmt::Display for KernelSet {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let products = match (self.dtype, self.is_native) {
            (Dtype::F32, _) => "",
            (Dtype::Bf16, true) => ", bf16 products",
            (Dtype::Bf16, false) => ", bf16 products by conversion",
        };
        write!(f, "{}{products}", self.isa)
    }
}

impl core::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Kernels({})", self.set())
    }
}

impl Kernels {
    /// The scalar kernels: the oracle, on every target.
    #[must_use]
    pub const fn scalar() -> &'static Self {
        &shells::scalar::F32
    }

    /// The strongest kernels that this CPU runs.
    #[must_use]
    pub fn detect() -> &'static Self {
        let isa = Isa::best();
        Self::tables(isa, isa.had_rather_pack())[0]
    }

    /// The kernels of `isa`, `None` if this CPU (or its system) does not run it.
    #[must_use]
    pub fn for_isa(isa: Isa) -> Option<&'static Self> {
        isa.is_supported().then(|| Self::tables(isa, isa.had_rather_pack())[0])
    }

    /// The kernels of the same instruction set with products of `dtype`: by instructions of
    /// the CPU's own where these kernels use them already or [`Isa::has_bf16`] finds them, or
    /// else by [conversion](Kernels::converting).
    ///
    /// ```
    /// use cllm_kernels::{Dtype, Epilogue, Kernels, MatMut, MatRef, Packed};
    ///
    /// // Between two numbers of bf16, which has 8 bits of a number.
    /// let x = [1.0 + 1.0 / 512.0];
    /// let of_product = |kernels: &Kernels| {
    ///     // Both depend on the dtype.
    ///     let mut panel = vec![0.0; kernels.packed_len(1, 1).unwrap()];
    ///     let mut scratch = vec![0.0; kernels.gemm_scratch_len(1, 1)];
    ///     kernels.pack(MatRef::new(&[1.0], 1, 1, 1), &mut panel);
    ///     let (a, b, mut c) = (MatRef::new(&x, 1, 1, 1), Packed::new(&panel, 1, 1), [0.0]);
    ///     let out = MatMut::new(&mut c, 1, 1, 1);
    ///     kernels.gemm(a, b, out, false, Epilogue::None, &mut scratch);
    ///     c[0]
    /// };
    /// let kernels = Kernels::detect();
    /// assert_eq!(of_product(kernels), x[0]);
    /// assert_eq!(of_product(kernels.with_dtype(Dtype::Bf16)), 1.0);
    /// ```
    #[must_use]
    pub fn with_dtype(&self, dtype: Dtype) -> &'static Self {
        match dtype {
            Dtype::F32 => Self::tables(self.isa, self.packs)[0],
            #[cfg(target_arch = "x86_64")]
            Dtype::Bf16 if self.isa == Isa::Amx => &shells::amx_bf16::BF16,
            #[cfg(target_arch = "x86_64")]
            Dtype::Bf16 if self.keeps_halves() || self.isa.has_bf16() => Self::pairs(self.packs),
            Dtype::Bf16 => self.converting(),
        }
    }

    /// The kernels of the same instruction set with products of bf16 that are made of `f32`
    /// rounded to bf16, whether or not the CPU has instructions for them.
    #[must_use]
    pub fn converting(&self) -> &'static Self {
        Self::tables(self.isa, self.packs)[1]
    }

    /// The same kernels, with the same bits, which pack floats that are used once
    /// ([`Kernels::gemm_unpacked`]), or which read them where they lie as far as that is as good. [`Kernels::detect`] and
    /// [`Kernels::for_isa`] ask the CPU who made it: with AMD's reading is faster (see `gemm::both`), with Intel's
    /// packing. Tables had on the caller's word read until they are told. It makes a difference to AVX, AVX2 and
    /// AVX-512 alone: [`Isa::Amx`], which only Intel's have, always packs, and so does compact code.
    ///
    /// Gradients of the reference's weights have 1.07 to 1.6 times the speed of those read where they lie on one
    /// thread of a Granite Rapids Xeon with AVX-512, the head's with AVX2 1.5 times (the others' rows are so far apart
    /// that they are packed anyway), and its step in `f32` 1.09 times (with two threads and AVX-512 1.07). No other of
    /// Intel's CPUs was measured.
    #[must_use]
    pub fn with_packing(&self, packs: bool) -> &'static Self {
        let [floats, rounded] = Self::tables(self.isa, packs);
        match self.set() {
            KernelSet { dtype: Dtype::F32, .. } => floats,
            KernelSet { is_native: false, .. } => rounded,
            #[cfg(target_arch = "x86_64")]
            KernelSet::AVX512_BF16 => Self::pairs(packs),
            _ => floats.with_dtype(self.dtype()),
        }
    }

    /// With products of `f32`, and of bf16 by conversion; if there is a difference such that pack.
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "of x86-64 alone"))]
    fn tables(isa: Isa, packs: bool) -> [&'static Self; 2] {
        #[cfg(target_arch = "x86_64")]
        if packs && !COMPACT {
            match isa {
                Isa::Avx => return shells::avx::PACKING.each_ref(),
                Isa::Avx2 => return shells::avx2::PACKING.each_ref(),
                Isa::Avx512 => return shells::avx512::PACKING.each_ref(),
                _ => {}
            }
        }
        match isa {
            Isa::Scalar => [&shells::scalar::F32, &shells::scalar::BF16],
            #[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
            Isa::Neon => [&shells::neon::F32, &shells::neon::BF16],
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::Simd128 => [&shells::simd128::F32, &shells::simd128::BF16],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx => [&shells::avx::F32, &shells::avx::BF16],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => [&shells::avx2::F32, &shells::avx2::BF16],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => [&shells::avx512::F32, &shells::avx512::BF16],
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => [&shells::amx_bf16::F32, &shells::amx_bf16::CONVERTING],
            // Of other CPUs, so nobody gets here with it.
            _ => [&shells::scalar::F32, &shells::scalar::BF16],
        }
    }

    /// With AVX-512's products of bf16.
    #[cfg(target_arch = "x86_64")]
    fn pairs(packs: bool) -> &'static Self {
        if packs && !COMPACT { &shells::avx512bf16::PACKING } else { &shells::avx512bf16::BF16 }
    }

    /// The AVX kernels, on the caller's word.
    ///
    /// # Safety
    /// The CPU has AVX, and the 256-bit registers are switched on (CR4.OSXSAVE, XCR0
    /// bits 1 and 2) and saved where threads are switched.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub unsafe fn assume_avx() -> &'static Self {
        &shells::avx::F32
    }

    /// The AVX2 kernels, on the caller's word.
    ///
    /// # Safety
    /// As for [`Kernels::assume_avx`], and the CPU has AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub unsafe fn assume_avx2() -> &'static Self {
        &shells::avx2::F32
    }

    /// The AVX-512 kernels, on the caller's word.
    ///
    /// # Safety
    /// As for [`Kernels::assume_avx2`], the CPU has AVX-512 F, BW, DQ and VL, and the 512-bit
    /// and mask registers are switched on (XCR0 bits 5 to 7) and saved too.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub unsafe fn assume_avx512() -> &'static Self {
        &shells::avx512::F32
    }

    /// The AVX-512 kernels with products of bf16, on the caller's word.
    ///
    /// # Safety
    /// As for [`Kernels::assume_avx512`], and the CPU has AVX-512 BF16.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub unsafe fn assume_avx512bf16() -> &'static Self {
        &shells::avx512bf16::BF16
    }

    /// The AVX-512 kernels with products of bf16 in the tiles of AMX, on the caller's word.
    ///
    /// # Safety
    /// As for [`Kernels::assume_avx512bf16`], the CPU has AMX-TILE and AMX-BF16, and the tiles'
    /// configuration and data are switched on (XCR0 bits 17 and 18) for all threads that will
    /// multiply, and saved too; Linux lets the process use them (`ARCH_REQ_XCOMP_PERM`).
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub unsafe fn assume_amx() -> &'static Self {
        &shells::amx_bf16::BF16
    }

    /// The instruction set of this table.
    #[must_use]
    pub const fn isa(&self) -> Isa {
        self.isa
    }

    /// Which kernels these are: what of [`Isa::Amx`] does not multiply in tiles is that of
    /// [`Isa::Avx512`], and has its name.
    #[must_use]
    pub const fn set(&self) -> KernelSet {
        let (dtype, is_native) = (self.dtype(), self.is_native());
        let in_tiles = matches!(dtype, Dtype::Bf16) && is_native;
        let isa = match self.isa {
            Isa::Amx if !in_tiles => Isa::Avx512,
            isa => isa,
        };
        KernelSet { isa, dtype, is_native }
    }

    /// What the memory that these kernels want depends on.
    #[must_use]
    pub const fn footprint(&self) -> Footprint {
        self.products.footprint
    }

    /// Floats in a vector register.
    #[must_use]
    pub const fn lanes(&self) -> usize {
        self.lanes
    }

    /// `dst += src`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn accumulate(&self, dst: &mut [f32], src: &[f32]) {
        assert_eq!(dst.len(), src.len(), "accumulate: lengths differ");
        // SAFETY: equal lengths, and `&mut` keeps them apart.
        unsafe { (self.accumulate)(dst.as_mut_ptr(), src.as_ptr(), dst.len()) }
    }

    /// `dst *= factor`.
    pub fn scale(&self, dst: &mut [f32], factor: f32) {
        // SAFETY: the slice is its own length.
        unsafe { (self.scale)(dst.as_mut_ptr(), factor, dst.len()) }
    }

    /// `dst = cap tanh(dst / cap)`: logits that are kept between `-cap` and `cap` (Gemma Team, "Gemma 2",
    /// 2024, section 2). Each element by itself, with the same bits wherever it stands.
    ///
    /// # Panics
    /// If `cap` is not positive and finite.
    pub fn soft_cap(&self, dst: &mut [f32], cap: f32) {
        assert!(cap > 0.0 && cap.is_finite(), "soft_cap: {cap}");
        // SAFETY: the slice is its own length.
        unsafe { (self.soft_cap)(dst.as_mut_ptr(), cap, dst.len()) }
    }

    /// `dst = gelu(src)` in the tanh form. Overwrites.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gelu(&self, dst: &mut [f32], src: &[f32]) {
        assert_eq!(dst.len(), src.len(), "gelu: lengths differ");
        // SAFETY: equal lengths, and `&mut` keeps them apart.
        unsafe { (self.gelu)(dst.as_mut_ptr(), src.as_ptr(), dst.len()) }
    }

    /// `grad *= gelu'(pre)`, with `pre` the input of the forward pass.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gelu_backward(&self, grad: &mut [f32], pre: &[f32]) {
        assert_eq!(grad.len(), pre.len(), "gelu_backward: lengths differ");
        // SAFETY: equal lengths, and `&mut` keeps them apart.
        unsafe { (self.gelu_backward)(grad.as_mut_ptr(), pre.as_ptr(), grad.len()) }
    }

    /// Sum of squares in `f32`: for pieces of up to some 100,000 elements, whose sums
    /// the caller adds in a fixed order.
    #[must_use]
    pub fn sum_squares(&self, src: &[f32]) -> f32 {
        // SAFETY: the slice is its own length.
        unsafe { (self.sum_squares)(src.as_ptr(), src.len()) }
    }

    /// One AdamW update of parameters `p` and moments `m` and `v`, in place.
    ///
    /// ```
    /// use cllm_kernels::{AdamW, Kernels};
    ///
    /// let step_1 = AdamW {
    ///     lr: 0.1,
    ///     beta1: 0.9,
    ///     beta2: 0.95,
    ///     eps: 1e-8,
    ///     decay: 0.0,
    ///     correction1: 1.0 - 0.9,
    ///     correction2: 1.0 - 0.95,
    ///     grad_scale: 1.0,
    /// };
    /// let (mut p, g) = ([1.0, 1.0, 1.0], [3.0, -0.002, 0.0]);
    /// let (mut m, mut v) = ([0.0; 3], [0.0; 3]);
    /// Kernels::detect().adamw(&step_1, &mut p, &g, &mut m, &mut v);
    /// // The first step goes by the rate, whatever the size of the gradient.
    /// for (p, expected) in p.iter().zip([0.9, 1.1, 1.0]) {
    ///     assert!((p - expected).abs() < 1e-5);
    /// }
    /// ```
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn adamw(&self, h: &AdamW, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let n = p.len();
        assert!(g.len() == n && m.len() == n && v.len() == n, "adamw: lengths differ");
        // SAFETY: equal lengths, and `&mut` keeps them apart.
        unsafe {
            (self.adamw)(h, p.as_mut_ptr(), g.as_ptr(), m.as_mut_ptr(), v.as_mut_ptr(), n);
        }
    }

    /// One AdamW update of parameters `p`, in place, with moments of 8 bits: in blocks of
    /// [`MOMENTS_BLOCK`], counted from the first element, which all have two scales. A piece of an array
    /// that starts at a multiple of that, with its dither, has the bits that it has within the whole.
    ///
    /// Moments are kept to the nearest codes, the dither deciding between two; the update is by the moments before that.
    ///
    /// ```
    /// use cllm_kernels::{AdamW, Dither, Kernels, MOMENTS_BLOCK, Moments8};
    ///
    /// let mut h = AdamW {
    ///     lr: 0.1,
    ///     beta1: 0.9,
    ///     beta2: 0.95,
    ///     eps: 1e-8,
    ///     decay: 0.0,
    ///     correction1: 1.0,
    ///     correction2: 1.0,
    ///     grad_scale: 1.0,
    /// };
    /// // Downhill on p^2 / 2, whose gradient is p.
    /// let mut p = [1.0; 100];
    /// let (mut first, mut second, mut scales) = ([0; 100], [0; 100], [0.0; 4]);
    /// assert_eq!(scales.len(), 2 * p.len().div_ceil(MOMENTS_BLOCK));
    /// for step in 1..=100 {
    ///     h.correction1 = 1.0 - 0.9_f32.powi(step);
    ///     h.correction2 = 1.0 - 0.95_f32.powi(step);
    ///     let (g, dither) = (p, Dither::new(step as u64, 0));
    ///     let moments =
    ///         Moments8 { first: &mut first, second: &mut second, scales: &mut scales };
    ///     Kernels::detect().adamw8(&h, dither, &mut p, &g, moments);
    /// }
    /// assert!(p.iter().all(|p| p.abs() < 0.1));
    /// ```
    ///
    /// # Panics
    /// If lengths do not go together.
    pub fn adamw8(
        &self,
        h: &AdamW,
        dither: Dither,
        p: &mut [f32],
        g: &[f32],
        moments: Moments8<'_>,
    ) {
        let n = p.len();
        let Moments8 { first, second, scales } = moments;
        assert!(g.len() == n && first.len() == n && second.len() == n, "adamw8: lengths differ");
        assert_eq!(scales.len(), 2 * n.div_ceil(MOMENTS_BLOCK), "adamw8: two scales a block");
        let raw = RawMoments8 {
            first: first.as_mut_ptr(),
            second: second.as_mut_ptr(),
            scales: scales.as_mut_ptr(),
        };
        // SAFETY: lengths as asked for, and `&mut` keeps them apart.
        unsafe { (self.adamw8)(h, dither, p.as_mut_ptr(), g.as_ptr(), raw, n) }
    }

    /// One step of gradient descent of parameters `p`, in place: `p -= lr (decay p + scale g)`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn sgd(&self, h: &Sgd, p: &mut [f32], g: &[f32]) {
        assert_eq!(p.len(), g.len(), "sgd: lengths differ");
        // SAFETY: equal lengths, and `&mut` keeps them apart.
        unsafe { (self.sgd)(h, p.as_mut_ptr(), g.as_ptr(), p.len()) }
    }

    /// As [`Kernels::sgd`] with momentum: `m = momentum m + scale g`, `p -= lr (decay p + m)`, in place.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn momentum(&self, h: &Sgd, momentum: f32, p: &mut [f32], g: &[f32], m: &mut [f32]) {
        let n = p.len();
        assert!(g.len() == n && m.len() == n, "momentum: lengths differ");
        // SAFETY: equal lengths, and `&mut` keeps them apart.
        unsafe { (self.momentum)(h, momentum, p.as_mut_ptr(), g.as_ptr(), m.as_mut_ptr(), n) }
    }
}
