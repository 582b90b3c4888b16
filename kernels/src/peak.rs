//! The peak of multiply-adds: a loop that touches registers only.
//!
//! A caller with a clock times [`crate::Kernels::fma_peak_pass`] and divides: the
//! table itself has no clock. A share of the peak is a share of what the
//! strongest instruction set of the machine reaches here, so that the shares
//! of weaker ones say what is lost by using them.

use crate::Kernels;
#[cfg(target_arch = "x86_64")]
use crate::amx::{Shape, Tiles};
use crate::gemm::format::{Dot, Format};
use crate::simd::Simd;
use core::hint::black_box;

/// Independent chains: two FMA units with a latency of 4 cycles want 8; 12 sums and two
/// operands fit in 16 registers.
const CHAINS: usize = 12;

/// `iterations` steps `x = x a + b` of every chain. Returns the floating-point operations
/// (a multiply-add is two, fused or not) and the sum of the chains.
#[inline(always)]
pub(crate) fn pass<S: Simd, F: Format<S>>(s: S, _: F, iterations: u64) -> (u64, f32) {
    // Hidden values: nothing can be computed before the loop runs. The chains converge
    // to b / (1 - a) = 1 and stay away from denormals and infinity.
    let (a, b) = (s.splat(black_box(0.75)), s.splat(black_box(0.25)));
    let mut chains = [s.splat(0.0); CHAINS];
    for (i, x) in chains.iter_mut().enumerate() {
        *x = s.splat(black_box(0.5 + i as f32));
    }
    for _ in 0..iterations {
        for x in &mut chains {
            *x = s.mul_add(*x, a, b);
        }
    }
    let checksum = chains.iter().map(|x| s.sum(*x)).sum();
    (iterations * (2 * CHAINS * S::LANES) as u64, checksum)
}

/// As [`pass`], for the products of a format: `x = x + a b` with a `b` of either sign in turns, so
/// that after an even number of iterations each chain is where it began, at 1.
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "for instruction sets of those")
)]
#[inline(always)]
pub(crate) fn dot_pass<S: Simd, F: Dot<S>>(s: S, f: F, iterations: u64) -> (u64, f32) {
    let word = |x: f32| s.splat(F::join_one(black_box(x), black_box(x)));
    let (a, b, back) = (word(0.75), word(0.25), word(-0.25));
    let mut chains = [s.splat(0.0); CHAINS];
    for x in &mut chains {
        *x = s.splat(black_box(1.0));
    }
    for i in 0..iterations {
        let b = if i % 2 == 0 { b } else { back };
        for x in &mut chains {
            *x = f.dot(s, a, b, *x);
        }
    }
    let checksum = chains.iter().map(|x| s.sum(*x)).sum();
    (iterations * (2 * CHAINS * S::LANES * F::DEPTH) as u64, checksum)
}

/// As [`dot_pass`], in the tiles of AMX: each of four chains is a tile of 16 x 16 sums.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn tile_pass<S: Simd, F: Format<S, Unit = Tiles>>(
    s: S,
    f: F,
    iterations: u64,
) -> (u64, f32) {
    const WORDS: usize = 256;
    const ROW: usize = 16;
    let tile = |x: f32| [F::join_one(black_box(x), black_box(x)); WORDS];
    let (a, b, back) = (tile(0.25), tile(0.125), tile(-0.125));
    let mut sums = [[black_box(1.0_f32); WORDS]; 4];
    let mut tiles = f.unit();
    tiles.shape(Shape { upper: 16, lower: 16 });
    // SAFETY: all tiles have 16 rows of 16 words, and so have the arrays.
    unsafe {
        tiles.load::<0>(sums[0].as_ptr(), ROW);
        tiles.load::<1>(sums[1].as_ptr(), ROW);
        tiles.load::<2>(sums[2].as_ptr(), ROW);
        tiles.load::<3>(sums[3].as_ptr(), ROW);
        tiles.load::<4>(a.as_ptr(), ROW);
        tiles.load::<6>(b.as_ptr(), ROW);
        tiles.load::<7>(back.as_ptr(), ROW);
        for i in 0..iterations {
            if i % 2 == 0 {
                tiles.dot::<0, 4, 6>();
                tiles.dot::<1, 4, 6>();
                tiles.dot::<2, 4, 6>();
                tiles.dot::<3, 4, 6>();
            } else {
                tiles.dot::<0, 4, 7>();
                tiles.dot::<1, 4, 7>();
                tiles.dot::<2, 4, 7>();
                tiles.dot::<3, 4, 7>();
            }
        }
        tiles.store::<0>(sums[0].as_mut_ptr(), ROW);
        tiles.store::<1>(sums[1].as_mut_ptr(), ROW);
        tiles.store::<2>(sums[2].as_mut_ptr(), ROW);
        tiles.store::<3>(sums[3].as_mut_ptr(), ROW);
    }
    let mut total = s.splat(0.0);
    for lanes in sums.as_flattened().chunks_exact(S::LANES) {
        // SAFETY: a chunk is a vector.
        total = s.add(total, unsafe { s.load(lanes.as_ptr()) });
    }
    (iterations * (2 * 4 * WORDS * ROW * F::DEPTH) as u64, s.sum(total))
}

impl Kernels {
    /// Multiply-adds in registers, to be timed by the caller: some 10 million iterations
    /// make a good measurement.
    ///
    /// Returns how many floating-point operations it did (a multiply-add counts two; products
    /// of bf16 are those of the CPU's own instruction, if it has one) and a sum that keeps
    /// them from being optimised away: after many iterations of an even number
    /// [`Kernels::lanes`] times 12, or 1,024 in the tiles of AMX.
    #[must_use]
    pub fn fma_peak_pass(&self, iterations: u64) -> (u64, f32) {
        // SAFETY: the pass touches no memory; the table stands for its instruction set.
        unsafe { (self.products.peak)(iterations) }
    }
}
