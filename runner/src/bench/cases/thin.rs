//! Products of few rows, few columns, or a short inner dimension.
//!
//! Up to four rows are a pass over the packed weights, whose bytes count; the others are bound by
//! multiply-adds. What pads the last panel is not counted as work.

use super::super::lines::Lines;
use super::{Case, FORWARD, ROWS, WIDTH, floats, mat, out};
use cllm_core::Kernels;
use cllm_kernels::{Epilogue, Packed};

pub(super) fn visit(kernels: &'static Kernels, range: f32, see: &mut dyn FnMut(Case)) {
    for rows in [1, 2, 4, 8, 16] {
        see(product(kernels, range, (rows, FORWARD, WIDTH)));
    }
    for columns in [1, 16, 48] {
        see(product(kernels, range, (ROWS, columns, WIDTH)));
    }
    for depth in [1, 16, 64] {
        see(product(kernels, range, (ROWS, WIDTH, depth)));
    }
}

/// `m x n`, of `k` products each.
fn product(kernels: &'static Kernels, range: f32, (m, n, k): (usize, usize, usize)) -> Case {
    let (a, b, mut c) = (floats(m * k, range), floats(k * n, range), Lines::zeros(m * n));
    let mut packed = Lines::zeros(kernels.packed_len(k, n).unwrap_or(0));
    kernels.pack(mat(&b, k, n), &mut packed);
    let mut scratch = Lines::zeros(kernels.gemm_scratch_len(m, k));
    let name = format!("thin/{m}x{n}x{k}");
    let words = packed.len();
    let run = move || {
        let (a, c) = (mat(&a, m, k), out(&mut c, m, n));
        let packed = Packed::new(&packed, k, n);
        kernels.gemm(a, packed, c, false, Epilogue::None, &mut scratch);
    };
    if m <= 4 {
        Case::cache(name, words, run)
    } else {
        Case::flops(name, kernels.dtype(), 2 * m * n * k, run)
    }
}
