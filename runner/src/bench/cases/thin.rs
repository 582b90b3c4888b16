//! Products of few rows, few columns, or a short inner dimension, and small ones.
//!
//! What is small has operands and result in the L1 or L2 cache: as attention's own products of a
//! head, but each for itself and of its whole square, and cubes down to 16 in each dimension. No
//! product of that size or larger should be below 60 % of the peak.
//!
//! Up to four rows are a pass over the packed weights, whose bytes count; the others are bound by
//! multiply-adds. What pads the last panel is not counted as work.

use super::super::lines::Lines;
use super::{Case, FORWARD, HEAD, ROWS, SEQUENCE, WIDTH, floats, mat, out};
use cllm_core::Kernels;
use cllm_kernels::{Epilogue, Packed};

pub(super) fn visit(kernels: &'static Kernels, range: f32, see: &mut dyn FnMut(Case)) {
    let mut case = |name: &str, shape| see(product(kernels, range, name, shape));
    for rows in [1, 2, 4, 8, 16] {
        case("thin/", (rows, FORWARD, WIDTH));
    }
    for columns in [1, 16, 48] {
        case("thin/", (ROWS, columns, WIDTH));
    }
    for depth in [1, 16, 64] {
        case("thin/", (ROWS, WIDTH, depth));
    }
    case("small/scores of a head ", (SEQUENCE, SEQUENCE, HEAD));
    case("small/values of a head ", (SEQUENCE, HEAD, SEQUENCE));
    for size in [16, 32, 64] {
        case("small/", (size, size, size));
    }
}

/// `m x n`, of `k` products each.
fn product(
    kernels: &'static Kernels,
    range: f32,
    name: &str,
    (m, n, k): (usize, usize, usize),
) -> Case {
    let (a, b, mut c) = (floats(m * k, range), floats(k * n, range), Lines::zeros(m * n));
    let mut packed = Lines::zeros(kernels.packed_len(k, n).unwrap_or(0));
    kernels.pack(mat(&b, k, n), &mut packed);
    let mut scratch = Lines::zeros(kernels.gemm_scratch_len(m, k));
    let name = format!("{name}{m}x{n}x{k}");
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
