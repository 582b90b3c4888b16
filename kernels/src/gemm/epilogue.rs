//! What happens to a tile of a product while it is still in L1.

use super::Place;
use super::fetch::Near;
use super::format::Format;
use crate::built::{COMPACT, DROPOUT};
use crate::dropout::Dropout;
use crate::elements::{Elements, OperandMut, RawOperand};
use crate::mat::MatRef;
use crate::math;
use crate::simd::{Simd, load_up_to};

/// Work fused into a product `C = A B`, applied once all of the sum is there.
///
/// Every operand has the shape of C, a bias its number of columns. With
/// accumulation the sum includes what C held before.
///
/// ```
/// use cllm_kernels::{Epilogue, Kernels, MatMut, MatRef, Packed};
///
/// let kernels = Kernels::detect();
/// let mut panels = vec![0.0; kernels.packed_len(2, 2).unwrap()];
/// kernels.pack(MatRef::new(&[1.0, 0.0, 0.0, 1.0], 2, 2, 2), &mut panels);
/// let a = [1.0, 2.0];
/// let (mut c, mut pre) = ([0.0; 2], [0.0; 2]);
/// let activation = Epilogue::Relu2 {
///     bias: Some(&[2.0, -5.0]),
///     pre: MatMut::new(&mut pre, 1, 2, 2).into(),
/// };
/// let b = Packed::new(&panels, 2, 2);
/// let (a, out) = (MatRef::new(&a, 1, 2, 2), MatMut::new(&mut c, 1, 2, 2));
/// kernels.gemm(a, b, out, false, activation, &mut []);
/// assert_eq!((pre, c), ([3.0, -3.0], [9.0, 0.0]));
/// ```
#[derive(Debug)]
pub enum Epilogue<'a> {
    /// `C = A B`
    None,
    /// `C = A B + bias`
    Bias(&'a [f32]),
    /// `pre = A B + bias`, `C = gelu(pre)`: both are kept, the backward pass wants `pre`. GELU
    /// is of what `pre` keeps, so the backward pass finds the same.
    Gelu {
        /// Added to each row before the activation.
        bias: Option<&'a [f32]>,
        /// Receives the input of the activation: overwritten. Of elements as those of C.
        pre: OperandMut<'a>,
    },
    /// As [`Epilogue::Gelu`], of `relu2(pre) = max(pre, 0)^2`.
    Relu2 {
        /// Added to each row before the activation.
        bias: Option<&'a [f32]>,
        /// Receives the input of the activation: overwritten. Of elements as those of C.
        pre: OperandMut<'a>,
    },
    /// `C = dropout(A B + bias) + residual`
    Residual {
        /// Added to each row.
        bias: Option<&'a [f32]>,
        /// Added to C, never dropped.
        residual: MatRef<'a>,
        /// Mask and scale for the product, and the mask's row of C's row 0.
        dropout: Option<(Dropout, u32)>,
    },
    /// `C = (A B) * gelu'(pre)`, then `pre = gelu(pre)`: the backward pass of
    /// [`Epilogue::Gelu`]. The gradient of the next weights wants the activation, which so
    /// need not be kept beside its input: it comes with the slope, with the bits it had.
    GeluGrad {
        /// The input of the activation, from the forward pass; becomes its output. Of elements
        /// as those of C.
        pre: OperandMut<'a>,
    },
    /// As [`Epilogue::GeluGrad`], for [`Epilogue::Relu2`].
    Relu2Grad {
        /// The input of the activation, from the forward pass; becomes its output. Of elements
        /// as those of C.
        pre: OperandMut<'a>,
    },
}

/// What a product goes through on its way to C: each element may get one more summand, behind those of
/// the product, and then goes through the epilogue.
#[derive(Debug)]
pub struct Finish<'a> {
    /// A matrix of C's shape that is added to the product, of contiguous rows: what an adapter adds to
    /// a layer.
    pub addend: Option<MatRef<'a>>,
    /// What becomes of the sum.
    pub epilogue: Epilogue<'a>,
}

impl Finish<'_> {
    /// Whether C is the product.
    #[inline(always)]
    pub(crate) const fn is_none(&self) -> bool {
        self.addend.is_none() && matches!(self.epilogue, Epilogue::None)
    }
}

impl<'a> From<Epilogue<'a>> for Finish<'a> {
    fn from(epilogue: Epilogue<'a>) -> Self {
        Self { addend: None, epilogue }
    }
}

/// [`Finish`] with pointers in place of borrows.
#[derive(Clone, Copy)]
pub(crate) struct RawEpilogue {
    kind: Kind,
    /// Where the addend begins, and from a row to the next.
    addend: Option<(*const f32, usize)>,
    bias: Option<*const f32>,
    other: *mut f32,
    other_row: usize,
    dropout: Option<(Dropout, u32)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    None,
    Bias,
    Gelu,
    Residual,
    GeluGrad,
    Relu2,
    Relu2Grad,
}

impl RawEpilogue {
    pub(crate) const NONE: Self = Self {
        kind: Kind::None,
        addend: None,
        bias: None,
        other: core::ptr::null_mut(),
        other_row: 0,
        dropout: None,
    };

    pub(super) fn is_none(&self) -> bool {
        self.kind == Kind::None && self.addend.is_none()
    }

    /// That of the columns from `first` on; of bf16 operands if C is of them (`halves`).
    pub(crate) fn beginning_at(&self, first: usize, halves: bool) -> Self {
        let bytes = RawOperand::bytes_of(halves);
        Self {
            addend: self.addend.map(|(addend, row)| (addend.wrapping_add(first), row)),
            bias: self.bias.map(|bias| bias.wrapping_add(first)),
            other: self.other.wrapping_byte_add(first * bytes),
            dropout: self.dropout.map(|(mask, row)| (mask.from_column(first), row)),
            ..*self
        }
    }

    /// # Panics
    /// If an operand has not the shape of the `m x n` product, or not its elements.
    pub(crate) fn new(finish: &Finish<'_>, m: usize, n: usize, halves: bool) -> Self {
        let addend = finish.addend.map(|addend| {
            let (rows, cols) = (addend.rows(), addend.cols());
            assert!((rows, cols) == (m, n), "the addend is {rows}x{cols}, not {m}x{n}");
            assert!(addend.col_stride == 1, "the addend's rows must be contiguous");
            (addend.ptr, addend.row_stride)
        });
        Self { addend, ..Self::of(&finish.epilogue, m, n, halves) }
    }

    fn of(epilogue: &Epilogue<'_>, m: usize, n: usize, halves: bool) -> Self {
        let check = |shape| assert!(shape == (m, n), "epilogue operand is not {m}x{n}");
        let kind = |half| assert!(half == halves, "epilogue operand has not the elements of C");
        let bias = |b: &Option<&[f32]>| {
            b.map(|b| {
                assert!(b.len() == n, "bias has {} elements, not {n}", b.len());
                b.as_ptr()
            })
        };
        let activation = |of, bias, pre: &OperandMut<'_>| {
            check(pre.shape());
            let pre = pre.raw();
            kind(pre.half);
            let (other, other_row) = (pre.ptr.cast_mut(), pre.row);
            Self { kind: of, bias, other, other_row, ..Self::NONE }
        };
        match epilogue {
            Epilogue::None => Self::NONE,
            Epilogue::Bias(b) => Self { kind: Kind::Bias, bias: bias(&Some(b)), ..Self::NONE },
            Epilogue::Gelu { bias: b, pre } => activation(Kind::Gelu, bias(b), pre),
            Epilogue::Relu2 { bias: b, pre } => activation(Kind::Relu2, bias(b), pre),
            Epilogue::GeluGrad { pre } => activation(Kind::GeluGrad, None, pre),
            Epilogue::Relu2Grad { pre } => activation(Kind::Relu2Grad, None, pre),
            Epilogue::Residual { bias: b, residual, dropout } => {
                check((residual.rows(), residual.cols()));
                kind(false);
                assert!(residual.col_stride == 1, "residual rows must be contiguous");
                assert!(DROPOUT || dropout.is_none(), "dropout is not built (feature `dropout`)");
                Self {
                    kind: Kind::Residual,
                    bias: bias(b),
                    other: residual.ptr.cast_mut(),
                    other_row: residual.row_stride,
                    dropout: dropout.filter(|_| DROPOUT),
                    ..Self::NONE
                }
            }
        }
    }
}

/// What [`apply`] will read and write, to be fetched while the tile's sums are made: saved
/// activations come from memory, in lines too far apart for the CPU to see them coming.
#[inline(always)]
pub(super) fn ahead<E>(e: &RawEpilogue, c: *const E, c_row: usize, at: &Place) -> Near {
    let c = c.wrapping_add(at.i * c_row + at.j);
    let other = e.other.cast_const().cast::<E>().wrapping_add(at.i * e.other_row + at.j);
    let other = (e.other_row > 0).then_some((other, e.other_row));
    Near::new((c, c_row), other, (at.rows, at.cols))
}

/// Sends the sums of a tile through the epilogue to C's tile at `c`.
///
/// # Safety
/// `sums` holds the tile in rows of `NR`, which the addend may be added to; the tile of C and the
/// operands' tiles are valid memory of the epilogue's kind, of elements as `m` takes them.
#[inline(always)]
pub(super) unsafe fn apply<S: Simd, F: Format<S>, M: Elements<S, F>>(
    s: S,
    m: M,
    e: &RawEpilogue,
    sums: *mut f32,
    c: *mut M::Element,
    c_row: usize,
    at: &Place,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        if let Some(addend) = e.addend {
            add(sums, S::NR, addend, at);
        }
        let tile = Tile { sums: sums.cast_const(), c, c_row, at };
        if COMPACT {
            return tile.through(s, m, e, e.kind);
        }
        // Each kind by its name: what is asked of each vector is then known beforehand.
        match e.kind {
            Kind::None | Kind::Bias => tile.through(s, m, e, Kind::Bias),
            Kind::Gelu => tile.through(s, m, e, Kind::Gelu),
            Kind::Residual => tile.through(s, m, e, Kind::Residual),
            Kind::GeluGrad => tile.through(s, m, e, Kind::GeluGrad),
            Kind::Relu2 => tile.through(s, m, e, Kind::Relu2),
            Kind::Relu2Grad => tile.through(s, m, e, Kind::Relu2Grad),
        }
    }
}

/// Adds the tile of an addend to its sums, which lie in rows of `nr`. In a function of its own, not of
/// vectors of the instruction set: few products have one, and it is a small part of those.
///
/// # Safety
/// As for [`apply`].
#[inline(never)]
unsafe fn add(sums: *mut f32, nr: usize, (addend, row): (*const f32, usize), at: &Place) {
    let &Place { i, j, rows, cols } = at;
    for r in 0..rows {
        let (sums, addend) = (sums.wrapping_add(r * nr), addend.wrapping_add((i + r) * row + j));
        for q in 0..cols {
            // SAFETY: elements (r, q) of the buffer and of the addend's tile.
            unsafe { *sums.add(q) += *addend.add(q) };
        }
    }
}

/// Sums on their way to C.
struct Tile<'a, E> {
    sums: *const f32,
    c: *mut E,
    c_row: usize,
    at: &'a Place,
}

impl<E: Copy> Tile<'_, E> {
    /// All of the tile, through an epilogue of one kind.
    ///
    /// # Safety
    /// As for [`apply`], with the kind of `e`, or with a bias where that is none.
    #[inline(always)]
    unsafe fn through<S: Simd, F: Format<S>, M: Elements<S, F, Element = E>>(
        &self,
        s: S,
        m: M,
        e: &RawEpilogue,
        kind: Kind,
    ) {
        let &Place { i, j, rows, cols } = self.at;
        let mut mask = [1.0_f32; super::MAX_COLS];
        for r in 0..rows {
            if DROPOUT
                && kind == Kind::Residual
                && let Some((dropout, first_row)) = &e.dropout
            {
                let row = first_row.wrapping_add((i + r) as u32);
                dropout.fill_mask(row, j, &mut mask[..cols]);
            }
            let mut q = 0;
            // SAFETY: vectors of row r before `cols`.
            unsafe {
                while !COMPACT && q + S::LANES <= cols {
                    self.vector(s, m, e, kind, &mask, (r, q), S::LANES);
                    q += S::LANES;
                }
                while q < cols {
                    let n = S::LANES.min(cols - q);
                    self.vector(s, m, e, kind, &mask, (r, q), n);
                    q += n;
                }
            }
        }
    }

    /// `n <= LANES` elements of row `r` from column `q` on.
    ///
    /// # Safety
    /// As for [`Tile::through`]; they are in the tile.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "an epilogue, and a place in a tile")]
    unsafe fn vector<S: Simd, F: Format<S>, M: Elements<S, F, Element = E>>(
        &self,
        s: S,
        m: M,
        e: &RawEpilogue,
        kind: Kind,
        mask: &[f32; super::MAX_COLS],
        (r, q): (usize, usize),
        n: usize,
    ) {
        let &Place { i, j, .. } = self.at;
        let is_slope = matches!(kind, Kind::GeluGrad | Kind::Relu2Grad);
        // SAFETY: elements (r, q .. q + n) of the buffer and of the tile of C, and
        // (i + r, j + q .. j + q + n) of the operands.
        unsafe {
            let mut x = load_up_to(s, self.sums.add(r * S::NR + q), n);
            if !is_slope && let Some(bias) = e.bias {
                x = s.add(x, load_up_to(s, bias.add(j + q), n));
            }
            let other = e.other.cast::<E>().wrapping_add((i + r) * e.other_row + j + q);
            match kind {
                Kind::None | Kind::Bias => {}
                Kind::Gelu => {
                    m.store(s, other, x, n);
                    x = math::gelu(s, m.rounded(s, x));
                }
                Kind::Relu2 => {
                    m.store(s, other, x, n);
                    x = math::relu2_and_slope(s, m.rounded(s, x)).0;
                }
                Kind::Residual => {
                    let residual = m.load(s, other, n);
                    if DROPOUT && e.dropout.is_some() {
                        x = s.mul(x, load_up_to(s, mask.as_ptr().add(q), n));
                    }
                    x = s.add(x, residual);
                }
                Kind::GeluGrad | Kind::Relu2Grad => {
                    let pre = m.load(s, other, n);
                    let (value, slope) = match kind {
                        Kind::GeluGrad => math::gelu_and_slope(s, pre),
                        _ => math::relu2_and_slope(s, pre),
                    };
                    m.store(s, other, value, n);
                    x = s.mul(x, slope);
                }
            }
            m.store(s, self.c.add(r * self.c_row + q), x, n);
        }
    }
}
