//! A product's operands, and its one right result.
//!
//! All elements are multiples of 1/16 between -1 and 1. bf16 holds them exactly, and every sum of
//! up to 2^16 of their products is a multiple of 1/256 below 2^16, which `f32` holds exactly: in
//! whatever order a library adds, it has to find the very same numbers.

use crate::aligned::{Aligned, Role};
use crate::shapes::{Layout, Product};
use cllm_kernels::Bf16;

/// Operands and result of a [`Product`].
pub struct Problem {
    /// What it is.
    pub product: Product,
    /// A, laid out as the product says.
    pub a: Aligned,
    /// B, likewise.
    pub b: Aligned,
    /// What C has to be.
    pub expected: Vec<f32>,
}

impl Problem {
    /// Makes the operands and computes the result.
    ///
    /// # Panics
    /// If the product is deeper than its sums are exact.
    #[must_use]
    pub fn new(product: Product) -> Self {
        let Product { m, n, k, .. } = product;
        assert!(k <= 1 << 16, "sums of {k} products may round");
        let (a, b) = (elements(Role::A, m * k, 1), elements(Role::B, k * n, 2));
        let mut expected = vec![0.0; m * n];
        let rows = |layout, data: &[f32], rows: usize, cols: usize| match layout {
            Layout::Plain => data.to_vec(),
            Layout::Transposed => transposed(data, cols, rows),
        };
        let (left, right) = (rows(product.a, &a, m, k), rows(product.b, &b, k, n));
        for (left, row) in left.chunks_exact(k).zip(expected.chunks_exact_mut(n)) {
            for (x, right) in left.iter().zip(right.chunks_exact(n)) {
                for (sum, y) in row.iter_mut().zip(right) {
                    *sum += x * y;
                }
            }
        }
        Self { product, a, b, expected }
    }

    /// The first element of C that is wrong, in words; sums are rounded to bf16 if it `rounds`.
    #[must_use]
    pub fn error(&self, c: &[f32], rounds: bool) -> Option<String> {
        let right = |sum: f32| if rounds { Bf16::from_f32(sum).to_f32() } else { sum };
        let wrong = c.iter().zip(&self.expected).position(|(got, want)| *got != right(*want))?;
        let (row, col) = (wrong / self.product.n, wrong % self.product.n);
        Some(format!("C[{row}, {col}] is {} and not {}", c[wrong], right(self.expected[wrong])))
    }

    /// Distances of a row and of a column of A, in elements.
    #[must_use]
    pub fn a_strides(&self) -> (isize, isize) {
        strides(self.product.a, self.product.m, self.product.k)
    }

    /// Distances of a row and of a column of B, in elements.
    #[must_use]
    pub fn b_strides(&self) -> (isize, isize) {
        strides(self.product.b, self.product.k, self.product.n)
    }
}

fn strides(layout: Layout, rows: usize, cols: usize) -> (isize, isize) {
    match layout {
        Layout::Plain => (cols.cast_signed(), 1),
        Layout::Transposed => (1, rows.cast_signed()),
    }
}

/// Reproducible multiples of 1/16.
fn elements(role: Role, len: usize, mut state: u64) -> Aligned {
    let mut elements = Aligned::zeros(role, len);
    for x in elements.iter_mut() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        *x = ((state >> 33) % 33) as f32 / 16.0 - 1.0;
    }
    elements
}

/// The transpose of a `rows x cols` matrix.
fn transposed(data: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; data.len()];
    for (i, row) in data.chunks_exact(cols).enumerate() {
        for (j, x) in row.iter().enumerate() {
            out[j * rows + i] = *x;
        }
    }
    out
}
