//! What every family of kernel tests shares: the runner over instruction sets,
//! a seeded generator, guarded matrices and the comparison with an error bound.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::needless_range_loop, reason = "indices read like the formulas")]

pub(crate) mod epilogues;
pub(crate) mod halves;
pub(crate) mod reference;
pub(crate) mod tolerance;

use cllm_kernels::{Dtype, Isa, Kernels, MatMut, MatRef};
use core::fmt::Display;
use core::ops::Range;
use core::panic::AssertUnwindSafe;
use std::panic::catch_unwind;

/// The test runner: drives every instruction set that this CPU has.
pub(crate) fn each_isa(test: impl Fn(&'static Kernels)) {
    let tables: Vec<_> = Isa::ALL.into_iter().filter_map(Kernels::for_isa).collect();
    assert_eq!(tables[0].isa(), Isa::Scalar, "the oracle runs everywhere");
    for kernels in tables {
        test(kernels);
    }
}

/// As [`each_isa`], for products: operands of each type, converted or not, packed or read where they lie.
pub(crate) fn each_dtype(test: impl Fn(&'static Kernels)) {
    each_isa(|kernels| {
        test(kernels);
        for other in [false, true].map(|packs| kernels.with_packing(packs)) {
            if !core::ptr::eq(other, kernels) {
                test(other);
            }
        }
        test(kernels.converting());
        let native = kernels.with_dtype(Dtype::Bf16);
        assert_eq!(native.is_native(), kernels.isa().has_bf16());
        if native.is_native() {
            test(native);
        }
    });
}

/// Scratch for a product of `m` rows of `k` elements.
pub(crate) fn room(kernels: &Kernels, m: usize, k: usize) -> Vec<f32> {
    vec![f32::from_bits(CANARY); kernels.gemm_scratch_len(m, k)]
}

/// What a product takes `x` for: the bf16 nearest to it, ties to even, by looking at both.
pub(crate) fn operand(dtype: Dtype, x: f32) -> f64 {
    if dtype == Dtype::F32 {
        return f64::from(x);
    }
    let below = f32::from_bits(x.to_bits() & 0xffff_0000);
    let above = f32::from_bits((x.to_bits() & 0xffff_0000) + 0x1_0000);
    let away = |y: f32| (f64::from(x) - f64::from(y)).abs();
    let is_even = |y: f32| y.to_bits() >> 16 & 1 == 0;
    let takes_below = away(below) < away(above) || away(below) == away(above) && is_even(below);
    f64::from(if takes_below { below } else { above })
}

/// Lengths around the edges of vectors (8), register blocks (4, 6, 16) and depth blocks (256).
pub(crate) const SIZES: [usize; 16] = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 255, 257];

/// SplitMix64 (Steele, Lea and Flood, 2014): small, seeded, the same everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A whole number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in -1..1, all 24 bits of the mantissa in use.
    pub(crate) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// One of the [`SIZES`] up to `most`.
    pub(crate) fn size(&mut self, most: usize) -> usize {
        let fit = SIZES.iter().filter(|s| **s <= most).count();
        SIZES[self.below(fit)]
    }

    pub(crate) fn coin(&mut self) -> bool {
        self.bits() & 1 == 0
    }
}

/// A NaN with a payload: whoever reads it spoils a result, whoever writes it is seen.
const CANARY: u32 = 0x7FC0_DEAD;

/// A matrix at an odd place in a larger buffer of canaries: some before it, some after
/// it, some between its rows.
#[derive(Clone)]
pub(crate) struct Grid {
    data: Vec<f32>,
    offset: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    stride: usize,
}

impl Grid {
    /// Rows `gap` floats apart, from float `offset` of the buffer on; the elements are
    /// canaries too, so an element that is never written is found.
    pub(crate) fn blank(rows: usize, cols: usize, gap: usize, offset: usize) -> Self {
        let stride = cols + gap;
        let data = vec![f32::from_bits(CANARY); offset + rows * stride + 19];
        Self { data, offset, rows, cols, stride }
    }

    /// [`Grid::blank`] at an unaligned place, with a gap in three cases of four.
    pub(crate) fn blank_somewhere(rng: &mut Rng, rows: usize, cols: usize) -> Self {
        let (gap, offset) = ([0, 1, 5, 8][rng.below(4)], 1 + rng.below(7));
        Self::blank(rows, cols, gap, offset)
    }

    /// Random elements in -1..1 at an unaligned place.
    pub(crate) fn random(rng: &mut Rng, rows: usize, cols: usize) -> Self {
        let mut grid = Self::blank_somewhere(rng, rows, cols);
        grid.fill(|_, _| rng.float());
        grid
    }

    /// A random vector in -1..1 at an unaligned place.
    pub(crate) fn vector(rng: &mut Rng, n: usize) -> Self {
        let mut grid = Self::blank(1, n, 0, 1 + rng.below(7));
        grid.fill(|_, _| rng.float());
        grid
    }

    pub(crate) fn fill(&mut self, mut f: impl FnMut(usize, usize) -> f32) {
        for i in 0..self.rows {
            for j in 0..self.cols {
                self.set(i, j, f(i, j));
            }
        }
    }

    pub(crate) fn at(&self, i: usize, j: usize) -> f32 {
        assert!(i < self.rows && j < self.cols);
        self.data[self.offset + i * self.stride + j]
    }

    pub(crate) fn set(&mut self, i: usize, j: usize, x: f32) {
        assert!(i < self.rows && j < self.cols);
        self.data[self.offset + i * self.stride + j] = x;
    }

    /// The elements, row after row.
    pub(crate) fn wide(&self) -> Vec<f64> {
        self.values().into_iter().map(f64::from).collect()
    }

    pub(crate) fn values(&self) -> Vec<f32> {
        (0..self.rows * self.cols).map(|e| self.at(e / self.cols, e % self.cols)).collect()
    }

    pub(crate) fn bits(&self) -> Vec<u32> {
        self.values().into_iter().map(f32::to_bits).collect()
    }

    pub(crate) fn view(&self) -> MatRef<'_> {
        MatRef::new(&self.data[self.offset..], self.rows, self.cols, self.stride)
    }

    pub(crate) fn view_mut(&mut self) -> MatMut<'_> {
        MatMut::new(&mut self.data[self.offset..], self.rows, self.cols, self.stride)
    }

    /// The one row of a vector.
    pub(crate) fn slice(&self) -> &[f32] {
        assert_eq!(self.rows, 1);
        &self.data[self.offset..][..self.cols]
    }

    pub(crate) fn slice_mut(&mut self) -> &mut [f32] {
        assert_eq!(self.rows, 1);
        &mut self.data[self.offset..][..self.cols]
    }

    /// Fails if anything around the elements was touched.
    #[track_caller]
    pub(crate) fn assert_frame(&self, what: impl Display) {
        for (at, x) in self.data.iter().enumerate() {
            let inside = at >= self.offset
                && (at - self.offset) / self.stride.max(1) < self.rows
                && (at - self.offset) % self.stride.max(1) < self.cols;
            let distance = at as isize - self.offset as isize;
            assert!(
                inside || x.to_bits() == CANARY,
                "{what}: wrote {x} at {distance} of a {}x{} matrix with stride {}",
                self.rows,
                self.cols,
                self.stride
            );
        }
    }
}

/// A copy with NaN in the rows outside of `rows`.
pub(crate) fn only(grid: &Grid, rows: &Range<usize>) -> Grid {
    let mut copy = Grid::blank(grid.rows, grid.cols, 1, 2);
    copy.fill(|i, j| if rows.contains(&i) { grid.at(i, j) } else { f32::NAN });
    copy
}

/// As much scratch as is needed, at an unaligned place.
pub(crate) fn scratch(rng: &mut Rng, need: Option<usize>) -> Grid {
    Grid::blank(1, need.unwrap(), 0, 1 + rng.below(7))
}

/// Fails unless `actual` is within `bound` of `expected` (or both are NaN).
#[track_caller]
pub(crate) fn assert_close(actual: f32, expected: f64, bound: f64, what: impl Display) {
    let error = (f64::from(actual) - expected).abs();
    let same_infinity = expected.is_infinite() && f64::from(actual) == expected;
    let fine = error <= bound || same_infinity || (actual.is_nan() && expected.is_nan());
    assert!(fine, "{what}: {actual} instead of {expected}: off by {error:e}, bound {bound:e}");
}

/// Whether `f` panics: shape errors must, before any memory is touched.
pub(crate) fn panics(f: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(f)).is_err()
}
