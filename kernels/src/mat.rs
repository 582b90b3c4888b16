//! Strided views of matrices that may share memory with other views.
//!
//! Two workers write different columns of the same rows (two heads of one
//! attention output, two tiles of one weight gradient). Their `&mut [f32]` would
//! overlap, so the mutable view holds a pointer and a shape instead of a slice.

use core::marker::PhantomData;

/// A read-only `rows x cols` matrix with any strides.
///
/// ```
/// use cllm_kernels::MatRef;
///
/// // Two rows of three, each padded to four.
/// let data = [1, 2, 3, 0, 4, 5, 6, 0];
/// let m = MatRef::new(&data, 2, 3, 4);
/// assert_eq!(m.row(1), [4, 5, 6]);
/// // Views of views copy nothing.
/// let last = m.col_range(1, 2).row_range(1, 1);
/// assert_eq!((last.rows(), last.cols(), last.row(0)), (1, 2, &[5, 6][..]));
/// assert_eq!((m.t().rows(), m.t().cols()), (3, 2));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a, T = f32> {
    pub(crate) ptr: *const T,
    rows: usize,
    cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
    memory: PhantomData<&'a [T]>,
}

/// A writable `rows x cols` matrix whose rows are contiguous.
#[derive(Debug)]
pub struct MatMut<'a, T = f32> {
    pub(crate) ptr: *mut T,
    rows: usize,
    cols: usize,
    pub(crate) row_stride: usize,
    memory: PhantomData<&'a mut [T]>,
}

// SAFETY: a view is a borrow of elements; whoever made it promised the same as for `&[T]`.
unsafe impl<T: Sync> Send for MatRef<'_, T> {}
// SAFETY: as above: shared reads only.
unsafe impl<T: Sync> Sync for MatRef<'_, T> {}
// SAFETY: a view is an exclusive borrow of its elements; whoever made it promised the same as for `&mut [T]`.
unsafe impl<T: Send> Send for MatMut<'_, T> {}

/// Elements from the first to one past the last element, `None` on overflow.
fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    let last_row = (rows - 1).checked_mul(row_stride)?;
    let last_col = (cols - 1).checked_mul(col_stride)?;
    last_row.checked_add(last_col)?.checked_add(1)
}

/// The stride of an empty matrix is 0, so that no row of it starts outside its memory.
fn stride_of(rows: usize, cols: usize, row_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { row_stride }
}

impl<'a, T: Copy> MatRef<'a, T> {
    /// Rows of `cols` contiguous elements, `row_stride` apart.
    ///
    /// # Panics
    /// If `data` is too short.
    #[must_use]
    pub fn new(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(extent(rows, cols, row_stride, 1).is_some_and(|n| n <= data.len()));
        // SAFETY: the slice holds every element, as just checked, for 'a.
        unsafe { Self::from_raw(data.as_ptr(), rows, cols, row_stride) }
    }

    /// # Safety
    /// Every element `ptr[i * row_stride + j]` is valid for reads, and nobody writes those
    /// that are read, for `'a`; a kernel that says it works in place may.
    #[must_use]
    pub unsafe fn from_raw(ptr: *const T, rows: usize, cols: usize, row_stride: usize) -> Self {
        let row_stride = stride_of(rows, cols, row_stride);
        Self { ptr, rows, cols, row_stride, col_stride: 1, memory: PhantomData }
    }

    /// The transposed view of the same memory.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// `rows` rows from `first` on.
    ///
    /// # Panics
    /// If they are not inside the matrix.
    #[must_use]
    pub fn row_range(self, first: usize, rows: usize) -> Self {
        assert!(first <= self.rows && rows <= self.rows - first, "rows outside the matrix");
        let empty = rows == 0 || self.cols == 0;
        let skip = if empty { 0 } else { first * self.row_stride };
        // SAFETY: a sub-block of a valid matrix (or its untouched start when empty).
        Self { ptr: unsafe { self.ptr.add(skip) }, rows, ..self }
    }

    /// `cols` columns from `first` on.
    ///
    /// # Panics
    /// If they are not inside the matrix.
    #[must_use]
    pub fn col_range(self, first: usize, cols: usize) -> Self {
        self.t().row_range(first, cols).t()
    }

    /// A row.
    ///
    /// # Panics
    /// If there is no such row, or rows are not contiguous.
    #[must_use]
    pub fn row(self, row: usize) -> &'a [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert!(self.col_stride == 1 || self.cols < 2, "rows must be contiguous");
        // SAFETY: a row of a valid matrix, which nobody writes for 'a.
        unsafe { core::slice::from_raw_parts(self.ptr.add(row * self.row_stride), self.cols) }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }
}

impl<'a, T: Copy> MatMut<'a, T> {
    /// Rows of `cols` contiguous elements, `row_stride` apart.
    ///
    /// # Panics
    /// If `data` is too short or rows would overlap.
    #[must_use]
    pub fn new(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(extent(rows, cols, row_stride, 1).is_some_and(|n| n <= data.len()));
        // SAFETY: the slice holds every element, as just checked, exclusively, for 'a.
        unsafe { Self::from_raw(data.as_mut_ptr(), rows, cols, row_stride) }
    }

    /// # Panics
    /// If rows would overlap.
    ///
    /// # Safety
    /// Every element `ptr[i * row_stride + j]` is valid for reads and writes, and
    /// nobody else touches it, for `'a`. The gaps between rows belong to others.
    #[must_use]
    pub unsafe fn from_raw(ptr: *mut T, rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows <= 1 || row_stride >= cols, "rows of a writable matrix overlap");
        let row_stride = stride_of(rows, cols, row_stride);
        Self { ptr, rows, cols, row_stride, memory: PhantomData }
    }

    /// A shorter borrow of the same matrix.
    #[must_use]
    pub fn reborrow(&mut self) -> MatMut<'_, T> {
        MatMut { memory: PhantomData, ..*self }
    }

    /// The matrix for reading.
    #[must_use]
    pub fn as_ref(&self) -> MatRef<'_, T> {
        // SAFETY: a valid matrix, shared for as long as `self` is borrowed.
        unsafe { MatRef::from_raw(self.ptr, self.rows, self.cols, self.row_stride) }
    }

    /// The matrix for reading, for as long as it was borrowed.
    #[must_use]
    pub fn into_ref(self) -> MatRef<'a, T> {
        // SAFETY: a valid matrix, of which the exclusive borrow is given up.
        unsafe { MatRef::from_raw(self.ptr, self.rows, self.cols, self.row_stride) }
    }

    /// One row.
    ///
    /// # Panics
    /// If `row` is outside.
    #[must_use]
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row outside the matrix");
        // SAFETY: the row is inside, its `cols` elements are contiguous and exclusively ours.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.add(row * self.row_stride), self.cols) }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }
}
