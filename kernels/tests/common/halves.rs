//! Guarded matrices of bf16, and the runner over tables that keep them.

use super::{Rng, each_dtype};
use cllm_kernels::{Bf16, Dtype, Kernels, MatMut, MatRef, Operand, OperandMut};

/// Runs `test` on every table that keeps bf16.
pub(crate) fn each(test: impl Fn(&'static Kernels)) {
    each_dtype(|kernels| {
        let keeps = kernels.dtype() == Dtype::Bf16 && kernels.is_native();
        assert_eq!(kernels.keeps_halves(), keeps, "{kernels:?}");
        if keeps {
            test(kernels);
        }
    });
}

/// Written by nobody: a NaN that no rounding gives.
const GUARD: u16 = 0x7fa5;

/// A matrix of bf16 in the middle of guards, and the same numbers as floats.
pub(crate) struct Halves {
    data: Vec<Bf16>,
    pub(crate) floats: Vec<f32>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    stride: usize,
}

const BEFORE: usize = 2;

fn guard() -> Bf16 {
    Bf16::from_f32(f32::from_bits(u32::from(GUARD) << 16))
}

impl Halves {
    pub(crate) fn blank(rows: usize, cols: usize, stride: usize) -> Self {
        let data = vec![guard(); BEFORE + rows * stride + 37];
        Self { data, floats: vec![0.0; rows * cols], rows, cols, stride }
    }

    /// Random numbers; behind each row a zero if there is room.
    pub(crate) fn random(rng: &mut Rng, rows: usize, cols: usize, stride: usize) -> Self {
        let mut m = Self::blank(rows, cols, stride);
        for r in 0..rows {
            for c in 0..cols {
                let x = Bf16::from_f32(rng.float());
                m.data[BEFORE + r * stride + c] = x;
                m.floats[r * cols + c] = x.to_f32();
            }
            if stride > cols {
                m.data[BEFORE + r * stride + cols] = Bf16::default();
            }
        }
        m
    }

    /// `floats`, row after row, each rounded; guards between rows.
    pub(crate) fn of(floats: &[f32], rows: usize, cols: usize, stride: usize) -> Self {
        let mut m = Self::blank(rows, cols, stride);
        for (e, x) in floats.iter().enumerate() {
            let x = Bf16::from_f32(*x);
            m.data[BEFORE + e / cols * stride + e % cols] = x;
            m.floats[e] = x.to_f32();
        }
        m
    }

    pub(crate) fn view(&self) -> Operand<'_> {
        Operand::Half(MatRef::new(&self.data[BEFORE..], self.rows, self.cols, self.stride))
    }

    /// As a left-hand side: with a column of zeros behind an odd number.
    pub(crate) fn even(&self) -> Operand<'_> {
        let cols = self.cols.next_multiple_of(2);
        Operand::Half(MatRef::new(&self.data[BEFORE..], self.rows, cols, self.stride))
    }

    pub(crate) fn view_mut(&mut self) -> OperandMut<'_> {
        let data = &mut self.data[BEFORE..];
        OperandMut::Half(MatMut::new(data, self.rows, self.cols, self.stride))
    }

    /// One row.
    pub(crate) fn row(&self, row: usize) -> Operand<'_> {
        let data = &self.data[BEFORE + row * self.stride..];
        Operand::Half(MatRef::new(data, 1, self.cols, self.stride))
    }

    /// One row for writing.
    pub(crate) fn row_mut(&mut self, row: usize) -> OperandMut<'_> {
        let data = &mut self.data[BEFORE + row * self.stride..];
        OperandMut::Half(MatMut::new(data, 1, self.cols, self.stride))
    }

    pub(crate) fn as_floats(&self) -> Operand<'_> {
        MatRef::new(&self.floats, self.rows, self.cols, self.cols).into()
    }

    /// All elements, and the guards around them are as they were.
    #[track_caller]
    pub(crate) fn written(&self, what: &str) -> Vec<u32> {
        let mut elements = Vec::new();
        for (i, x) in self.data.iter().enumerate() {
            let at = i.checked_sub(BEFORE).map(|at| (at / self.stride, at % self.stride));
            match at {
                Some((r, c)) if r < self.rows && c < self.cols => {
                    elements.push(x.to_f32().to_bits());
                }
                _ => assert_eq!(*x, guard(), "{what}: wrote beside the matrix at {i}"),
            }
        }
        elements
    }
}

/// What the CPU's conversion makes of floats: of denormals zeros, of others the nearest bf16.
pub(crate) fn rounded(floats: &[f32]) -> Vec<u32> {
    let flushed = |x: f32| if x.is_subnormal() { 0.0_f32.copysign(x) } else { x };
    floats.iter().map(|x| Bf16::from_f32(flushed(*x)).to_f32().to_bits()).collect()
}
