//! Muon's direction for a matrix: its update with all singular values brought near 1.
//!
//! The gradients of a matrix add up to a momentum whose singular values lie far apart, and a step along it is
//! a step along a few directions. Muon goes as far in all of them: for the momentum `U S V^T` it takes about
//! `U V^T`, which three steps of polynomials find by products alone (Jordan et al., "Muon: An optimizer for
//! hidden layers in neural networks", 2024; five steps of one polynomial there):
//!
//! ```text
//! X = U / (1.02 |U|)              (Frobenius norm: no singular value is above 1, of rounded products neither)
//! for each factors a, b, c:
//!   A = X X^T                     (X^T X of a matrix with more rows than columns: the smaller of both)
//!   P = b A + c A A
//!   X = a X + P X                 (X P)
//! ```
//! Of a matrix with more outputs than inputs the outputs come away with steps of unlike lengths, and
//! those of the others are as unlike as the singular values. So the last thing is to have all as long as they are in the
//! mean of squares, which leaves the length of the whole (Li et al., "NorMuon: making Muon more efficient and scalable",
//! 2025, whose lengths are means over steps: those of the step alone did as well in `benches/speedrun/prototype.py`,
//! and nothing is remembered for them):
//!
//! ```text
//! X_j = X_j |X| / (sqrt(outputs) |X_j|)        (X_j: what goes to output j, a column)
//! ```
//! Products are those of the step's kernels, in bf16 where the step's are. A matrix, or a part of one that
//! is several side by side, is one worker's from its momentum to its weights: nothing of it is waited for, and the
//! bits cannot depend on how many workers there are.

use crate::arithmetic::{least, most, some};
use crate::plan::to_lines;
use cllm_kernels::{Footprint, Kernels, MatMut, MatRef, Sgd};

/// The polynomials' factors, step by step: of X, of its Gram matrix times X, and of the square of that times X. Together
/// they take all singular values from 1e-3 to 1 as near to one value as three such steps can, but for a cushion (Amsel
/// et al., "The Polar Express", 2025, section 3, whose factors these are, rounded; `fitted` of
/// `benches/speedrun/prototype.py` finds them). Those above 0.002 end between 0.18 and 1.87. Fitted to 3e-4 without a
/// cushion one of 0.82 ended at 0.04, and in bf16 with another sign at times; with a cushion twice as large the recipe
/// for characters ended 0.004 higher (220 steps, five seeds).
const FACTORS: [[f32; 3]; 3] =
    [[8.2872, -23.5959, 17.3004], [4.1071, -2.9478, 0.5448], [3.9487, -2.9089, 0.5518]];

/// How far below 1 all singular values begin: products in bf16 round, and the first polynomial grows fast above 1.
const MARGIN: f32 = 1.02;

/// Rows and columns of a result that are made at a time, by [`Kernels::gemm_unpacked`]: what
/// a weight's gradient is cut into by default (`Blocking::weight_rows`).
const TILE: usize = 256;

/// Rows of a symmetric result that are made at a time, as far as the diagonal. On a Zen 4 with AVX-512, beside whole
/// results in turns (the shortest of 20), directions took 0.89 of the time in f32 and 0.95 in bf16 (128 x 512), and
/// 0.82 (384 x 1536); with 64 rows 0.93, 0.97 and 0.80.
const BAND: usize = 32;

/// Sizes of what a matrix wants while it is worked on, in floats: each in whole lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    matrix: usize,
    gram: usize,
    products: usize,
}

impl Room {
    /// Of a matrix of so many rows and columns; `None` on overflow.
    pub(crate) const fn new(rows: usize, cols: usize, kernels: Footprint) -> Option<Self> {
        let (short, long) = (least(rows, cols), most(rows, cols));
        // The Gram matrix is as deep as the longer side; results of its products with X are as long. All lie row by
        // row.
        let is_wide = rows <= cols;
        let x = if is_wide { None } else { Some(cols) };
        let gram = some!(symmetric_len(kernels, short, (x, x), long));
        let square = some!(symmetric_len(kernels, short, (None, Some(short)), short));
        let (left, right) = if is_wide {
            ((short, None), (long, Some(cols)))
        } else {
            ((long, None), (short, Some(short)))
        };
        let last = kernels.lying_tiles_scratch_len(left, right, short, (TILE, TILE));
        Some(Self {
            matrix: some!(to_lines(some!(rows.checked_mul(cols)))),
            gram: some!(to_lines(some!(short.checked_mul(short)))),
            products: some!(to_lines(most(gram, most(square, some!(last))))),
        })
    }

    /// All of it.
    pub(crate) const fn len(self) -> Option<usize> {
        let matrices = some!(self.matrix.checked_mul(2));
        let grams = some!(self.gram.checked_mul(2));
        some!(matrices.checked_add(grams)).checked_add(self.products)
    }

    /// Where in its scratch [`orthogonalize`] wants the matrix.
    pub(crate) fn matrix(self, scratch: &mut [f32]) -> &mut [f32] {
        &mut scratch[..self.matrix]
    }
}

/// Squares of a column below this share of their mean are not brought up to it: there is nothing in them but rounding.
const FAINT: f32 = 1e-6;

/// Brings the singular values of the matrix in [`Room::matrix`], of rows and columns one behind the other, near 1, and
/// its columns to one length. What comes of it is given back, and lies in `scratch`. A matrix of zeros stays one.
///
/// # Panics
/// If `scratch` is shorter than [`Room::len`] of this shape.
pub(crate) fn orthogonalize<'s>(
    kernels: &Kernels,
    room: Room,
    (rows, cols): (usize, usize),
    scratch: &'s mut [f32],
) -> &'s [f32] {
    let (mut x, rest) = scratch.split_at_mut(room.matrix);
    let (mut next, rest) = rest.split_at_mut(room.matrix);
    let (gram, rest) = rest.split_at_mut(room.gram);
    let (poly, scratch) = rest.split_at_mut(room.gram);
    let (len, short) = (rows * cols, least(rows, cols));
    let norm = libm::sqrtf(kernels.sum_squares(&x[..len]));
    // So that zeros stay zeros; singular values are not to be above 1.
    kernels.scale(&mut x[..len], 1.0 / (MARGIN * norm + 1e-7));
    for [a, b, c] in FACTORS {
        let of = MatRef::new(x, rows, cols, cols);
        let (left, right) = if rows <= cols { (of, of.t()) } else { (of.t(), of) };
        symmetric(kernels, left, right, gram, scratch);
        let square = MatRef::new(gram, short, short, short);
        symmetric(kernels, square, square, poly, scratch);
        kernels.scale(&mut poly[..short * short], c);
        add(kernels, &mut poly[..short * short], b, &gram[..short * short]);
        let poly = MatRef::new(poly, short, short, short);
        let (left, right) = if rows <= cols { (poly, of) } else { (of, poly) };
        product(kernels, left, right, next, cols, scratch);
        add(kernels, &mut next[..len], a, &x[..len]);
        (x, next) = (next, x);
    }
    even(kernels, &mut x[..len], &mut next[..cols]);
    &x[..len]
}

/// Brings all columns of a matrix to one length; `factors` is room for a number of each.
fn even(kernels: &Kernels, x: &mut [f32], factors: &mut [f32]) {
    let cols = factors.len();
    let mean = kernels.sum_squares(x) / cols as f32;
    factors.fill(0.0);
    for row in x.chunks_exact(cols) {
        factors.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
    }
    for factor in &mut *factors {
        // The last is so that zeros stay zeros.
        *factor = libm::sqrtf(mean / (*factor + FAINT * mean + f32::MIN_POSITIVE));
    }
    for row in x.chunks_exact_mut(cols) {
        row.iter_mut().zip(&*factors).for_each(|(x, factor)| *x *= factor);
    }
}

/// `to += factor from`.
pub(crate) fn add(kernels: &Kernels, to: &mut [f32], factor: f32, from: &[f32]) {
    // A step of gradient descent is just that.
    kernels.sgd(&Sgd { lr: 1.0, decay: 0.0, grad_scale: -factor }, to, from);
}

/// Floats of scratch that [`symmetric`] wants for a C of `n` rows: those of its last whole band, or of the rest.
const fn symmetric_len(
    kernels: Footprint,
    n: usize,
    (a, b): (Option<usize>, Option<usize>),
    depth: usize,
) -> Option<usize> {
    let (bands, rest) = (n / BAND * BAND, n % BAND);
    let tile = (BAND, TILE);
    let of_bands = kernels.lying_tiles_scratch_len((bands, a), (bands, b), depth, tile);
    let of_rest = kernels.lying_tiles_scratch_len((rest, a), (n, b), depth, tile);
    Some(most(some!(of_bands), if rest == 0 { 0 } else { some!(of_rest) }))
}

/// `C = A B` as [`product`] has it, where C is symmetric to the bit: an element above the diagonal adds the same products
/// in the same order as the one below it, and is copied from there. Rows of C are as long as C.
fn symmetric(kernels: &Kernels, a: MatRef<'_>, b: MatRef<'_>, c: &mut [f32], scratch: &mut [f32]) {
    let n = a.rows();
    for i in (0..n).step_by(BAND) {
        let rows = BAND.min(n - i);
        let (a, b) = (a.row_range(i, rows), b.col_range(0, i + rows));
        product(kernels, a, b, &mut c[i * n..], n, scratch);
        // Square by square, so that what is written lies in few lines.
        for j in (0..i + rows).step_by(BAND) {
            for row in i..i + rows {
                for col in j..row.min(j + BAND) {
                    c[col * n + row] = c[row * n + col];
                }
            }
        }
    }
}

/// `C = A B`, of rows that begin `stride` floats behind each other.
fn product(
    kernels: &Kernels,
    a: MatRef<'_>,
    b: MatRef<'_>,
    c: &mut [f32],
    stride: usize,
    scratch: &mut [f32],
) {
    let (m, n) = (a.rows(), b.cols());
    for i in (0..m).step_by(TILE) {
        let a = a.row_range(i, TILE.min(m - i));
        for j in (0..n).step_by(TILE) {
            let b = b.col_range(j, TILE.min(n - j));
            let c = MatMut::new(&mut c[i * stride + j..], a.rows(), b.cols(), stride);
            kernels.gemm_unpacked(a, b, c, false, scratch);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use cllm_kernels::Dtype;
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    /// Numbers that look random, the same ones always.
    fn matrix(rows: usize, cols: usize) -> Vec<f32> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..rows * cols).map(|_| next()).collect()
    }

    fn made(kernels: &Kernels, x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        let room = Room::new(rows, cols, kernels.footprint()).unwrap();
        // What lay there before does not matter.
        let mut scratch = vec![f32::NAN; room.len().unwrap()];
        room.matrix(&mut scratch)[..x.len()].copy_from_slice(x);
        orthogonalize(kernels, room, (rows, cols), &mut scratch).to_vec()
    }

    #[test]
    fn symmetric_results_are_the_whole_ones() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let kernels = Kernels::detect().with_dtype(dtype);
            for (n, k) in [(1, 5), (31, 40), (33, 7), (100, 300), (300, 20)] {
                let x = matrix(n, k);
                let x = MatRef::new(&x, n, k, k);
                let room = Room::new(n, k.max(n), kernels.footprint()).unwrap();
                let mut scratch = vec![f32::NAN; room.len().unwrap()];
                let (mut some, mut all) = (vec![f32::NAN; n * n], vec![f32::NAN; n * n]);
                symmetric(kernels, x, x.t(), &mut some, &mut scratch);
                product(kernels, x, x.t(), &mut all, n, &mut scratch);
                let bits = |c: &[f32]| c.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!(all.iter().all(|x| x.is_finite()));
                assert_eq!(bits(&some), bits(&all), "{n} x {k}, {dtype}");
            }
        }
    }

    /// One direction that stands out among others that are alike goes the same way as they, however far it stands out:
    /// where the first polynomial is at its lowest too, and in bf16.
    #[test]
    fn no_direction_is_lost_or_turned_round() {
        const N: usize = 16;
        // Directions are rows of the cosine transform: no element of the matrix stands out.
        let row = |i: usize| {
            let size = if i == 0 { (1.0 / N as f32).sqrt() } else { (2.0 / N as f32).sqrt() };
            let turn = core::f32::consts::PI * i as f32 / N as f32;
            core::array::from_fn::<f32, N, _>(|k| size * (turn * (k as f32 + 0.5)).cos())
        };
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let kernels = Kernels::detect().with_dtype(dtype);
            for first in (26..100).map(|x| x as f32 / 100.0) {
                let rest = ((1.0 - first * first) / (N - 1) as f32).sqrt();
                let mut x = vec![0.0; N * N];
                for i in 0..N {
                    let (u, v) = (row(i), row((i + 5) % N));
                    let value = if i == 3 { first } else { rest };
                    for (at, x) in x.iter_mut().enumerate() {
                        *x += value * u[at / N] * v[at % N];
                    }
                }
                let got = made(kernels, &x, N, N);
                for i in 0..N {
                    let (u, v) = (row(i), row((i + 5) % N));
                    let along: f32 =
                        got.iter().enumerate().map(|(at, x)| x * u[at / N] * v[at % N]).sum();
                    assert!((0.15..2.3).contains(&along), "{dtype}, {first}: {along} of {i}");
                }
            }
        }
    }

    #[test]
    fn singular_values_come_near_one_and_zeros_stay() {
        let kernels = Kernels::detect();
        let (rows, cols) = (8, 64);
        let got = made(kernels, &matrix(rows, cols), rows, cols);
        // Rows of such a matrix are nearly at right angles, so that their lengths are nearly the singular values.
        for row in got.chunks(cols) {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!((0.5..1.8).contains(&length), "{length}");
        }
        // And columns have one length, so that the squares of all are still about the number of singular values.
        let mean = got.iter().map(|x| x * x).sum::<f32>() / cols as f32;
        for col in 0..cols {
            let square: f32 = (0..rows).map(|row| got[row * cols + col].powi(2)).sum();
            assert!((square / mean - 1.0).abs() < 1e-5, "{square} of {mean}");
        }
        assert!(made(kernels, &vec![0.0; rows * cols], rows, cols).iter().all(|x| *x == 0.0));
    }
}
