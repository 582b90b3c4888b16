//! Matrix products of the table: packing, packed products, weight gradients.

use crate::gemm::pack::{Source, packed_b_len};
use crate::gemm::{RawEpilogue, RawGemm};
use crate::mat::{MatMut, MatRef};
use crate::{Epilogue, Kernels};
use core::fmt;
use core::ops::Range;
use core::str::FromStr;

/// What the operands of products are rounded to; sums, and all else, are `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// Not at all.
    #[default]
    F32,
    /// bf16: the upper half of an `f32`, rounded to nearest even.
    Bf16,
}

impl Dtype {
    /// Both.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// The name that `--dtype` takes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of a [`Dtype`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownDtype;

impl fmt::Display for UnknownDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a type of operands: use f32 or bf16")
    }
}

impl core::error::Error for UnknownDtype {}

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(text: &str) -> Result<Self, UnknownDtype> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or(UnknownDtype)
    }
}

/// The kernels of products for operands of one type.
#[derive(Clone, Copy)]
pub(crate) struct Products {
    pub(crate) dtype: Dtype,
    /// Elements of the inner dimension in a word of a packed operand.
    pub(crate) depth: usize,
    pub(crate) gemm_scratch: fn(usize, usize) -> usize,
    pub(crate) unpacked_scratch: fn(usize, usize, usize) -> Option<usize>,
    pub(crate) gemm: unsafe fn(&RawGemm),
    pub(crate) gemm_both: unsafe fn(&RawGemm, Source),
    pub(crate) pack_b: unsafe fn(Source, usize, usize, *mut f32),
    pub(crate) peak: unsafe fn(u64) -> (u64, f32),
}

/// A packed right-hand side: `k x n`, laid out by [`Kernels::pack`] of the same table. Its
/// floats are words of the table's own making: in bf16 two elements, or one that is rounded.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    data: &'a [f32],
    k: usize,
    n: usize,
}

impl<'a> Packed<'a> {
    /// Names the shape of what [`Kernels::pack`] wrote to `data`.
    #[must_use]
    pub fn new(data: &'a [f32], k: usize, n: usize) -> Self {
        Self { data, k, n }
    }
}

impl Kernels {
    /// What the operands of products are rounded to.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.products.dtype
    }

    /// Whether the CPU multiplies what products are rounded to by instructions of its own: not
    /// so where bf16 is converted to `f32` for every product.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.dtype() == Dtype::F32 || self.products.depth == 2
    }

    /// Words of `k` elements.
    fn words(&self, k: usize) -> usize {
        k.div_ceil(self.products.depth)
    }

    /// Floats that a packed `k x n` matrix takes, `None` on overflow.
    #[must_use]
    pub fn packed_len(&self, k: usize, n: usize) -> Option<usize> {
        packed_b_len(self.words(k), n, self.nr)
    }

    /// Columns of a panel of a packed matrix, a divisor of 32. Panels of as many rows take as
    /// many floats, whatever columns they are of.
    #[must_use]
    pub fn panel(&self) -> usize {
        self.nr
    }

    /// Some columns of a packed matrix, for a part of a product.
    ///
    /// # Panics
    /// If `columns` does not start at a multiple of [`Kernels::panel`], or is not inside
    /// the matrix.
    #[must_use]
    pub fn packed_columns<'a>(&self, b: Packed<'a>, columns: Range<usize>) -> Packed<'a> {
        let Range { start, end } = columns;
        assert!(start <= end && end <= b.n, "packed_columns: {start}..{end} of {}", b.n);
        assert!(start.is_multiple_of(self.nr), "packed_columns: {start} is inside a panel");
        assert_eq!(Some(b.data.len()), self.packed_len(b.k, b.n), "packed_columns: not packed so");
        let n = columns.len();
        let words = self.words(b.k);
        let data = &b.data[start * words..][..n.next_multiple_of(self.nr) * words];
        Packed { data, n, ..b }
    }

    /// Packs `b` for use as a right-hand side. Overwrites `dst`, padding included.
    /// Pass `w.t()` to pack the transpose.
    ///
    /// Panels stand one after the other: a matrix may be packed in parts of some panels'
    /// columns each.
    ///
    /// # Panics
    /// If `dst` is not exactly [`Kernels::packed_len`] long.
    pub fn pack(&self, b: MatRef<'_>, dst: &mut [f32]) {
        assert_eq!(Some(dst.len()), self.packed_len(b.rows(), b.cols()), "pack: wrong length");
        let src = Source { ptr: b.ptr, row: b.row_stride, col: b.col_stride };
        // SAFETY: `b` is valid for its shape, `dst` has the length of its packed form,
        // and `&mut` keeps them apart.
        unsafe { (self.products.pack_b)(src, b.rows(), b.cols(), dst.as_mut_ptr()) }
    }

    /// Floats of scratch that [`Kernels::gemm`] wants for `m` rows of `k` elements: none in
    /// `f32`. It grows with neither beyond some 100 rows and [`crate::KC`] elements.
    #[must_use]
    pub fn gemm_scratch_len(&self, m: usize, k: usize) -> usize {
        (self.products.gemm_scratch)(m, k)
    }

    /// `C = A B`, or `C += A B` with `accumulate`, then the epilogue.
    ///
    /// A is `m x k` with any strides, B packed `k x n`, C `m x n`. C overlaps neither
    /// A nor B nor an operand of the epilogue.
    /// The bits of an element depend on `k`, A's row and B's column alone: any partition
    /// of the rows, and any of the columns at panels ([`Kernels::packed_columns`]), into
    /// calls gives the same. Columns from j on take a mask [`crate::Dropout::from_column`] j.
    ///
    /// # Panics
    /// If the shapes do not fit together or `scratch` is too short.
    pub fn gemm(
        &self,
        a: MatRef<'_>,
        b: Packed<'_>,
        c: MatMut<'_>,
        accumulate: bool,
        epilogue: Epilogue<'_>,
        scratch: &mut [f32],
    ) {
        let (m, n, k) = (c.rows(), c.cols(), a.cols());
        assert!(a.rows() == m && b.k == k && b.n == n, "gemm: shapes differ");
        assert_eq!(Some(b.data.len()), self.packed_len(k, n), "gemm: B is not packed so");
        assert!(self.gemm_scratch_len(m, k) <= scratch.len(), "gemm: scratch is too short");
        let g = RawGemm {
            m,
            n,
            k,
            a: a.ptr,
            a_row: a.row_stride,
            a_col: a.col_stride,
            b: b.data.as_ptr(),
            b_panel: self.words(k) * self.nr,
            c: c.ptr,
            c_row: c.row_stride,
            accumulate,
            epilogue: RawEpilogue::new(&epilogue, m, n),
            scratch: scratch.as_mut_ptr(),
        };
        // SAFETY: the views are valid for the shapes just checked; `c` and `scratch` are
        // exclusive, and scratch is long enough.
        unsafe { (self.products.gemm)(&g) }
    }

    /// Floats of scratch that [`Kernels::gemm_unpacked`] wants for an `m x n` result of
    /// `k` products each.
    #[must_use]
    pub fn unpacked_scratch_len(&self, m: usize, n: usize, k: usize) -> Option<usize> {
        (self.products.unpacked_scratch)(m, n, k)
    }

    /// `C = A B`, or `C += A B`, for operands used once: both are packed on the way.
    ///
    /// For weight gradients `dW = X^T dY`: pass `x.t()`, `dy`. Blocks of [`crate::KC`] of the
    /// inner dimension are added in their order, whatever `m` and `n` are: any partition
    /// of the rows and columns, and one of `k` at multiples of [`crate::KC`] with accumulation,
    /// into calls gives the same bits.
    ///
    /// # Panics
    /// If the shapes do not fit together or `scratch` is too short.
    pub fn gemm_unpacked(
        &self,
        a: MatRef<'_>,
        b: MatRef<'_>,
        c: MatMut<'_>,
        accumulate: bool,
        scratch: &mut [f32],
    ) {
        let (m, n, k) = (c.rows(), c.cols(), a.cols());
        assert!(a.rows() == m && b.rows() == k && b.cols() == n, "gemm_unpacked: shapes differ");
        assert!(
            self.unpacked_scratch_len(m, n, k).is_some_and(|need| need <= scratch.len()),
            "gemm_unpacked: scratch is too short"
        );
        let g = RawGemm {
            m,
            n,
            k,
            a: a.ptr,
            a_row: a.row_stride,
            a_col: a.col_stride,
            b: core::ptr::null(),
            b_panel: 0,
            c: c.ptr,
            c_row: c.row_stride,
            accumulate,
            epilogue: RawEpilogue::NONE,
            scratch: scratch.as_mut_ptr(),
        };
        let b = Source { ptr: b.ptr, row: b.row_stride, col: b.col_stride };
        // SAFETY: the views are valid for the shapes just checked; `c` and `scratch` are
        // exclusive, and scratch is long enough.
        unsafe { (self.products.gemm_both)(&g, b) }
    }
}
