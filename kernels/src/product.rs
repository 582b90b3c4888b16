//! Matrix products of the table: packing, packed products, weight gradients.

use crate::attention::RawAttention;
use crate::built::{COMPACT, HALVES};
use crate::elements::{Bf16, Operand, OperandMut, RawOperand};
use crate::footprint::{Footprint, some};
use crate::gated::{RawGated, RawGatedBackward};
use crate::gemm::both;
use crate::gemm::kept::{self, Halved};
use crate::gemm::narrow::Narrow;
use crate::gemm::pack::PackFn;
use crate::gemm::parts::Edges;
use crate::gemm::small::Small;
use crate::gemm::{ColumnSums, RawEpilogue, RawGemm, SumKernel};
use crate::mat::{MatMut, MatRef};
use crate::norm::RawNorm;
use crate::softmax::RawCrossEntropy;
use crate::{Finish, Kernels};
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

/// What a product does to its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It overwrites it.
    Overwrite,
    /// It adds to it.
    Accumulate,
    /// It overwrites it and keeps it out of the caches, which then need not read first what is
    /// overwritten: for results that are not used before much else has been. Where the inner
    /// dimension has more than one block of [`crate::KC`], or rows of the result are not whole
    /// lines of 64 bytes, it is the same as [`Write::Overwrite`]. So are the bits.
    ///
    /// Gradients of the weights of GPT-2 124M for 256 tokens take 0.84 of the time, its step 0.96 in
    /// `f32` and 0.87 in bf16 (Granite Rapids, AVX-512 and AMX, two workers, seven pairs in turns).
    Stream,
}

impl From<bool> for Write {
    /// Whether it accumulates.
    fn from(accumulate: bool) -> Self {
        if accumulate { Self::Accumulate } else { Self::Overwrite }
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
    /// What they and [`Heads`] want of memory.
    pub(crate) footprint: Footprint,
    pub(crate) gemm: unsafe fn(&RawGemm),
    pub(crate) gemm_both: unsafe fn(&RawGemm, RawOperand, RawOperand),
    /// What products of one panel are made of, if their A are words as it lies.
    pub(crate) edges: Option<Edges>,
    pub(crate) narrow: Narrow,
    pub(crate) pack_b: PackFn,
    pub(crate) peak: unsafe fn(u64) -> (u64, f32),
    pub(crate) heads: Heads,
    /// What works on operands that lie in memory as bf16, where products take them so.
    pub(crate) keeps: Option<Keeps>,
}

/// The kernels of attention for operands of one type.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    /// Without and with a first key of each query.
    pub(crate) forward: [unsafe fn(&RawAttention); 2],
    pub(crate) backward: [unsafe fn(&RawAttention); 2],
}

/// Kernels that read or write matrices of bf16: pointers to their results, and to A, C and
/// the epilogue's operands of a product, may be to bf16, and so may what is gated.
#[derive(Clone, Copy)]
pub(crate) struct Keeps {
    pub(crate) product: unsafe fn(&RawGemm, Halved),
    pub(crate) norm_forward: unsafe fn(&RawNorm),
    pub(crate) norm_backward: unsafe fn(&RawNorm),
    pub(crate) cross_entropy: unsafe fn(&RawCrossEntropy),
    pub(crate) column_sum: unsafe fn(*const Bf16, usize, usize, usize, *mut f32, bool),
    pub(crate) swiglu: unsafe fn(&RawGated),
    pub(crate) swiglu_backward: unsafe fn(&RawGatedBackward),
}

/// A packed right-hand side: `k x n`, laid out by [`Kernels::pack`] of the same table. Its
/// floats are words of the table's own making: in bf16 two elements, or one that is rounded.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    data: &'a [f32],
    k: usize,
    n: usize,
    uncached: bool,
}

impl<'a> Packed<'a> {
    /// Names the shape of what [`Kernels::pack`] wrote to `data`.
    #[must_use]
    pub fn new(data: &'a [f32], k: usize, n: usize) -> Self {
        Self { data, k, n, uncached: false }
    }

    /// The same, if it `is` so large, with what is read beside it, that no cache has it at its next use.
    /// Of speed alone, where there are few rows.
    #[must_use]
    pub fn uncached(self, is: bool) -> Self {
        Self { uncached: is, ..self }
    }
}

impl Kernels {
    /// What the operands of products are rounded to.
    #[must_use]
    pub const fn dtype(&self) -> Dtype {
        self.products.dtype
    }

    /// Whether the CPU multiplies what products are rounded to by instructions of its own: not
    /// so where bf16 is converted to `f32` for every product.
    #[must_use]
    pub const fn is_native(&self) -> bool {
        matches!(self.dtype(), Dtype::F32) || self.footprint().depth == 2
    }

    /// Whether matrices that only products read may lie in memory as bf16
    /// ([`Operand::Half`]): so where the CPU multiplies bf16.
    #[must_use]
    pub const fn keeps_halves(&self) -> bool {
        self.footprint().keeps_halves()
    }

    /// Whether rows of `cols` elements may, for use as a left-hand side.
    #[must_use]
    pub const fn keeps_halves_of(&self, cols: usize) -> bool {
        self.footprint().keeps_halves_of(cols)
    }

    /// Elements from a row to the next of `cols` elements of [`Kernels::operand`], `None` on
    /// overflow: see [`row_stride`].
    #[must_use]
    pub const fn operand_stride(&self, cols: usize) -> Option<usize> {
        self.footprint().operand_stride(cols)
    }

    /// Floats that `rows x cols` elements of [`Kernels::operand`] take, `None` on overflow.
    #[must_use]
    pub const fn operand_len(&self, rows: usize, cols: usize) -> Option<usize> {
        self.footprint().operand_len(rows, cols)
    }

    /// The matrix that [`Kernels::operand_mut`] has made of the same memory.
    ///
    /// # Panics
    /// If the memory is shorter than [`Kernels::operand_len`].
    #[must_use]
    pub fn operand<'a>(&self, memory: &'a [f32], rows: usize, cols: usize) -> Operand<'a> {
        let stride = self.operand_stride(cols).unwrap_or(usize::MAX);
        if self.keeps_halves_of(cols) {
            Operand::Half(MatRef::new(Bf16::slice(memory), rows, cols, stride))
        } else {
            MatRef::new(memory, rows, cols, stride).into()
        }
    }

    /// A matrix for products to read, in floats' memory: of bf16 where
    /// [`Kernels::keeps_halves_of`] its rows.
    ///
    /// # Panics
    /// If the memory is shorter than [`Kernels::operand_len`].
    #[must_use]
    pub fn operand_mut<'a>(
        &self,
        memory: &'a mut [f32],
        rows: usize,
        cols: usize,
    ) -> OperandMut<'a> {
        let stride = self.operand_stride(cols).unwrap_or(usize::MAX);
        if self.keeps_halves_of(cols) {
            OperandMut::Half(MatMut::new(Bf16::slice_mut(memory), rows, cols, stride))
        } else {
            MatMut::new(memory, rows, cols, stride).into()
        }
    }

    /// The kernels of bf16 in memory.
    ///
    /// # Panics
    /// If the table has none.
    pub(crate) fn keeps(&self) -> &Keeps {
        match &self.products.keeps {
            Some(keeps) if HALVES => keeps,
            _ => panic!("these kernels keep no operands as bf16"),
        }
    }

    /// Words of `k` elements.
    fn words(&self, k: usize) -> usize {
        self.footprint().words(k)
    }

    /// Floats that a packed `k x n` matrix takes, `None` on overflow.
    #[must_use]
    pub const fn packed_len(&self, k: usize, n: usize) -> Option<usize> {
        self.footprint().packed_len(k, n)
    }

    /// Columns of a panel of a packed matrix, a divisor of 32. Panels of as many rows take as
    /// many floats, whatever columns they are of.
    #[must_use]
    pub const fn panel(&self) -> usize {
        self.footprint().panel()
    }

    /// Some columns of a packed matrix, for a part of a product.
    ///
    /// ```
    /// use cllm_kernels::{Epilogue, Kernels, MatMut, MatRef, Packed};
    ///
    /// let kernels = Kernels::detect();
    /// let (m, k, n) = (3, 5, 2 * kernels.panel() + 1);
    /// let a: Vec<f32> = (0..m * k).map(|i| (i as f32).sin()).collect();
    /// let b: Vec<f32> = (0..k * n).map(|i| (i as f32).cos()).collect();
    /// let mut panels = vec![0.0; kernels.packed_len(k, n).unwrap()];
    /// kernels.pack(MatRef::new(&b, k, n, n), &mut panels);
    ///
    /// let (a, b) = (MatRef::new(&a, m, k, k), Packed::new(&panels, k, n));
    /// let mut whole = vec![0.0; m * n];
    /// kernels.gemm(a, b, MatMut::new(&mut whole, m, n, n), false, Epilogue::None, &mut []);
    ///
    /// // The columns from the second panel on, as another thread would make them: the same bits.
    /// let first = kernels.panel();
    /// let (part, cols) = (kernels.packed_columns(b, first..n), n - first);
    /// let mut c = vec![0.0; m * cols];
    /// kernels.gemm(a, part, MatMut::new(&mut c, m, cols, cols), false, Epilogue::None, &mut []);
    /// let whole = MatRef::new(&whole, m, n, n).col_range(first, cols);
    /// for row in 0..m {
    ///     assert_eq!(c[row * cols..][..cols], *whole.row(row));
    /// }
    /// ```
    ///
    /// # Panics
    /// If `columns` does not start at a multiple of [`Kernels::panel`], or is not inside
    /// the matrix.
    #[must_use]
    pub fn packed_columns<'a>(&self, b: Packed<'a>, columns: Range<usize>) -> Packed<'a> {
        let Range { start, end } = columns;
        assert!(start <= end && end <= b.n, "packed_columns: {start}..{end} of {}", b.n);
        assert!(start.is_multiple_of(self.panel()), "packed_columns: {start} is inside a panel");
        assert_eq!(Some(b.data.len()), self.packed_len(b.k, b.n), "packed_columns: not packed so");
        let n = columns.len();
        let words = self.words(b.k);
        let data = &b.data[start * words..][..n.next_multiple_of(self.panel()) * words];
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
        let src = Operand::Float(b).raw();
        // SAFETY: `b` is valid for its shape, `dst` has the length of its packed form,
        // and `&mut` keeps them apart.
        unsafe { (self.products.pack_b)(src, b.rows(), b.cols(), dst.as_mut_ptr()) }
    }

    /// Floats of scratch that [`Kernels::gemm`] wants for `m` rows of `k` elements: none in
    /// `f32`. A of bf16 wants no more, and none where it is multiplied in vectors. It grows with
    /// neither beyond some 100 rows and [`crate::KC`] elements.
    #[must_use]
    pub const fn gemm_scratch_len(&self, m: usize, k: usize) -> usize {
        self.footprint().gemm_scratch_len(m, k)
    }

    /// The same for a product whose result is of bf16. It grows with `k`.
    #[must_use]
    pub const fn gemm_into_halves_scratch_len(&self, m: usize, k: usize) -> usize {
        self.footprint().gemm_into_halves_scratch_len(m, k)
    }

    /// `C = A B`, or `C += A B` with `accumulate`, then what finishes it: an [`crate::Epilogue`], or one
    /// behind an addend.
    ///
    /// A is `m x k` with any strides, B packed `k x n`, C `m x n`. C overlaps neither
    /// A nor B nor an operand of what finishes it.
    /// The bits of an element depend on `k`, A's row and B's column alone: any partition
    /// of the rows, and any of the columns at panels ([`Kernels::packed_columns`]), into
    /// calls gives the same. Columns from j on take a mask [`crate::Dropout::from_column`] j.
    ///
    /// An A of bf16 has contiguous rows at even distances, the first of them where an `f32`
    /// could lie, and an even number of columns, of which the last is of zeros if `k` is odd. A
    /// C of bf16 is overwritten.
    ///
    /// # Panics
    /// If the shapes do not fit together, `scratch` is too short, or a matrix of bf16 is not
    /// as said.
    pub fn gemm<'a, 'c, 'f>(
        &self,
        a: impl Into<Operand<'a>>,
        b: Packed<'_>,
        c: impl Into<OperandMut<'c>>,
        accumulate: bool,
        finish: impl Into<Finish<'f>>,
        scratch: &mut [f32],
    ) {
        let (a, c) = (a.into(), c.into());
        let ((m, n), k) = (c.shape(), b.k);
        let columns = if matches!(a, Operand::Half(_)) { k.next_multiple_of(2) } else { k };
        assert!(a.shape() == (m, columns) && b.n == n, "gemm: shapes differ");
        assert_eq!(Some(b.data.len()), self.packed_len(k, n), "gemm: B is not packed so");
        let (a, c, finish) = (a.raw(), c.raw(), finish.into());
        let halves = Halved { a: a.half, c: c.half };
        let keeps = (halves.a || halves.c).then(|| self.keeps());
        if keeps.is_none() {
            assert!(self.gemm_scratch_len(m, k) <= scratch.len(), "gemm: scratch is too short");
        } else {
            let need = kept::scratch_len(self.footprint(), halves, m, k);
            assert!(need <= scratch.len(), "gemm: scratch is too short");
            assert!(!(halves.c && accumulate), "gemm: a C of bf16 is overwritten");
            // An empty A may lie anywhere.
            let aligned = m == 0 || k == 0 || a.ptr.is_aligned();
            let words = a.col == 1 && a.row.is_multiple_of(2) && aligned;
            assert!(!halves.a || words, "gemm: rows of an A of bf16 are not whole words of memory");
        }
        let f = self.footprint();
        let as_words = a.col == 1 && (halves.a || f.plain);
        if !COMPACT
            && let Some(edges) = &self.products.edges
            && Small::suits(f, m, n, k)
            && as_words
            && !halves.c
            && finish.is_none()
        {
            let small = Small {
                m,
                n,
                words: f.words(k),
                a: a.ptr,
                a_row: f.words_apart(a.row),
                b: b.data.as_ptr(),
                c: c.ptr.cast_mut(),
                c_row: c.row,
                accumulate,
            };
            // SAFETY: as below.
            return unsafe { small.multiply(edges, f, self.products.narrow) };
        }
        let g = RawGemm {
            m,
            n,
            k,
            a: a.ptr,
            a_row: a.row,
            a_col: a.col,
            b: b.data.as_ptr(),
            b_panel: self.words(k) * self.panel(),
            uncached: b.uncached,
            c: c.ptr.cast_mut(),
            c_row: c.row,
            accumulate,
            stream: false,
            epilogue: RawEpilogue::new(&finish, m, n, c.half),
            lies: (false, false),
            sums: None,
            scratch: scratch.as_mut_ptr(),
            ahead: None,
        };
        // SAFETY: the views are valid for the shapes just checked; `c` and `scratch` are
        // exclusive, and scratch is long enough. If something is of halves the table keeps
        // bf16, and A's rows are words as they lie.
        unsafe {
            match keeps {
                Some(keeps) => (keeps.product)(&g, halves),
                None => (self.products.gemm)(&g),
            }
        }
    }

    /// Floats of scratch that [`Kernels::gemm_unpacked`] wants for an `m x n` result of
    /// `k` products each, at most: where all CPUs read operands where they lie less
    /// ([`Footprint::lying_scratch_len`]).
    #[must_use]
    pub const fn unpacked_scratch_len(&self, m: usize, n: usize, k: usize) -> Option<usize> {
        self.footprint().unpacked_scratch_len(m, n, k)
    }

    /// `C = A B`, or `C += A B`, for operands used once: each is packed on the way, or read where it lies if
    /// that is as good. `write` is what becomes of C, `true` for [`Write::Accumulate`].
    ///
    /// For weight gradients `dW = X^T dY`: pass `x.t()`, `dy`. Blocks of [`crate::KC`] of the
    /// inner dimension are added in their order, whatever `m` and `n` are: any partition
    /// of the rows and columns, and one of `k` at multiples of [`crate::KC`] with accumulation,
    /// into calls gives the same bits.
    ///
    /// ```
    /// use cllm_kernels::{Kernels, MatMut, MatRef};
    ///
    /// let kernels = Kernels::detect();
    /// // Three rows (tokens) of two inputs and of one output's gradient.
    /// let (x, dy) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, -1.0]);
    /// let (x, dy) = (MatRef::new(&x, 3, 2, 2), MatRef::new(&dy, 3, 1, 1));
    /// let mut scratch = vec![0.0; kernels.unpacked_scratch_len(2, 1, 3).unwrap()];
    /// let mut dw = [0.0; 2];
    /// kernels.gemm_unpacked(x.t(), dy, MatMut::new(&mut dw, 2, 1, 1), false, &mut scratch);
    /// assert_eq!(dw, [-4.0, -4.0]);
    /// // The next micro-batch is added.
    /// kernels.gemm_unpacked(x.t(), dy, MatMut::new(&mut dw, 2, 1, 1), true, &mut scratch);
    /// assert_eq!(dw, [-8.0, -8.0]);
    /// ```
    ///
    /// # Panics
    /// If the shapes do not fit together or `scratch` is too short.
    pub fn gemm_unpacked<'a, 'b>(
        &self,
        a: impl Into<Operand<'a>>,
        b: impl Into<Operand<'b>>,
        c: MatMut<'_>,
        write: impl Into<Write>,
        scratch: &mut [f32],
    ) {
        self.unpacked(a.into(), b.into(), c, None, write.into(), scratch);
    }

    /// [`Kernels::gemm_unpacked`], and the sums of B's columns, overwritten or added to as C is:
    /// with the bits of [`Kernels::column_sum`], while B is in cache. The gradients of a weight
    /// and of its bias.
    ///
    /// # Panics
    /// As [`Kernels::gemm_unpacked`]; if `sums` has not as many elements as B has columns, or rows of
    /// B are not contiguous.
    pub fn gemm_unpacked_with_sums<'a, 'b>(
        &self,
        a: impl Into<Operand<'a>>,
        b: impl Into<Operand<'b>>,
        c: MatMut<'_>,
        sums: &mut [f32],
        write: impl Into<Write>,
        scratch: &mut [f32],
    ) {
        self.unpacked(a.into(), b.into(), c, Some(sums), write.into(), scratch);
    }

    fn unpacked(
        &self,
        a: Operand<'_>,
        b: Operand<'_>,
        c: MatMut<'_>,
        sums: Option<&mut [f32]>,
        write: Write,
        scratch: &mut [f32],
    ) {
        let (m, n, k) = (c.rows(), c.cols(), a.shape().1);
        assert!(a.shape().0 == m && b.shape() == (k, n), "gemm_unpacked: shapes differ");
        let (a, b) = (a.raw(), b.raw());
        if a.half || b.half {
            let _ = self.keeps();
        }
        // What is wanted of the caller does not depend on the CPU.
        let (a_col, b_row) = ((a.row == 1).then_some(a.col), (b.col == 1).then_some(b.row));
        let need = self.footprint().lying_scratch_len((m, a_col), (n, b_row), k);
        assert!(
            need.is_some_and(|need| need <= scratch.len()),
            "gemm_unpacked: scratch is too short"
        );
        let sums = sums.map(|sums| {
            assert!(sums.len() == n, "gemm_unpacked: B has {n} columns, not {}", sums.len());
            assert!(b.col == 1, "gemm_unpacked: rows of B must be contiguous");
            let kernel = if HALVES && b.half {
                SumKernel::Halves(self.keeps().column_sum)
            } else {
                SumKernel::Floats(self.column_sum)
            };
            ColumnSums { kernel, to: sums.as_mut_ptr() }
        });
        let g = RawGemm {
            m,
            n,
            k,
            a: core::ptr::null(),
            a_row: 0,
            a_col: 0,
            b: core::ptr::null(),
            b_panel: 0,
            uncached: false,
            c: c.ptr,
            c_row: c.row_stride,
            accumulate: write == Write::Accumulate,
            stream: write == Write::Stream,
            epilogue: RawEpilogue::NONE,
            lies: if self.packs { (false, false) } else { both::lying(self.footprint(), a, b) },
            sums,
            scratch: scratch.as_mut_ptr(),
            ahead: None,
        };
        // SAFETY: the views are valid for the shapes just checked; `c`, `sums` and `scratch` are
        // exclusive, and scratch is long enough; sums are made by this table's kernel for B's
        // kind; the table takes bf16 if there are any.
        unsafe { (self.products.gemm_both)(&g, a, b) }
    }
}

/// Elements of `size` bytes from a row of `cols` of them to the next, for rows that begin where cache
/// lines do and are not a multiple of 4 KiB apart, of elements smaller than `f32` of 2 KiB: those would all lie in the same
/// few places of the L1 cache. A weight's gradient takes 1.05 times as long (`f32`, Zen 5, AVX-512), products of bf16
/// into bf16 with rows of 2 and 6 KiB 1.4 times (384 x 256 x 1024 and 384 x 768 x 3072, Zen 4, AVX-512), those of `f32`
/// with rows of 2 KiB no longer. `None` on overflow.
///
/// # Panics
/// If no whole number of elements makes a line of 64 bytes.
#[must_use]
pub const fn row_stride(cols: usize, size: usize) -> Option<usize> {
    const LINE: usize = 64;
    assert!(size > 0 && LINE.is_multiple_of(size), "elements of this size make no line");
    let line = LINE / size;
    let period = if size < size_of::<f32>() { 2048 } else { 4096 };
    let whole = some!(cols.checked_next_multiple_of(line));
    let bytes = some!(whole.checked_mul(size));
    if bytes > 0 && bytes.is_multiple_of(period) { whole.checked_add(line) } else { Some(whole) }
}

#[cfg(test)]
mod tests {
    use super::row_stride;

    #[test]
    fn rows_are_whole_lines_and_not_a_period_of_the_cache_apart() {
        for (cols, size, stride) in [
            (0, 4, 0),
            (1, 4, 16),
            (16, 4, 16),
            (1000, 4, 1008),
            (1009, 4, 1040),
            (1024, 4, 1040),
            (512, 4, 512),
            (512, 2, 512),
            (1024, 2, 1056),
            (2048, 2, 2080),
            (5000, 4, 5008),
        ] {
            assert_eq!(row_stride(cols, size), Some(stride), "{cols} of {size}");
        }
        assert_eq!(row_stride(usize::MAX, 4), None);
        assert_eq!(row_stride(usize::MAX / 4 + 1, 4), None);
    }
}
