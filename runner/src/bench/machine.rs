//! What the machine can do at most: multiply-adds, and bytes moved.

use super::lines::Lines;
use super::timing::fastest;
use cllm_core::Kernels;
use cllm_kernels::{Epilogue, MatMut, MatRef, Packed};
use core::hint::black_box;
use core::time::Duration;
use std::time::Instant;

/// Floating-point operations a second of one thread that multiplies and adds in
/// registers.
#[must_use]
pub fn fma_peak(kernels: &Kernels, time: Duration) -> f64 {
    // Some 100 us: long for the clock, short for the scheduler.
    const ITERATIONS: u64 = 100_000;
    let mut flops = 0;
    let seconds = fastest(time, || {
        let (done, checksum) = kernels.fma_peak_pass(black_box(ITERATIONS));
        black_box(checksum);
        flops = done;
    });
    flops as f64 / seconds
}

/// Floating-point operations a second of one thread in a product of `rows` rows with a
/// packed `inner x cols` matrix.
///
/// # Panics
/// If the sizes overflow.
#[must_use]
pub fn gemm_rate(
    kernels: &Kernels,
    (rows, inner, cols): (usize, usize, usize),
    time: Duration,
) -> f64 {
    let a = Lines::filled(rows * inner, 0.5);
    let b = Lines::filled(inner * cols, 0.25);
    let mut packed = Lines::zeros(kernels.packed_len(inner, cols).unwrap_or(0));
    kernels.pack(MatRef::new(&b, inner, cols, cols), &mut packed);
    let mut c = Lines::zeros(rows * cols);
    let mut scratch = Lines::zeros(kernels.gemm_scratch_len(rows, inner));
    let seconds = fastest(time, || {
        kernels.gemm(
            MatRef::new(black_box(&a), rows, inner, inner),
            Packed::new(&packed, inner, cols),
            MatMut::new(&mut c, rows, cols, cols),
            false,
            Epilogue::None,
            &mut scratch,
        );
        black_box(&mut c);
    });
    (2 * rows * inner * cols) as f64 / seconds
}

/// Bytes of each of the two buffers of [`copy_rate`] that stay in every CPU's level 2.
pub const CACHED: usize = 64 * 1024;
/// Bytes of each that do not stay in most CPUs' caches.
pub const FAR: usize = 32 << 20;

/// Bytes a second that one thread moves between two buffers of `bytes` bytes each, read
/// and written bytes both counted.
///
/// By the library's copy or by a plain loop, whichever is faster: the copy instruction
/// that libraries use is slow on some machines and for some alignments.
#[must_use]
pub fn copy_rate(bytes: usize, time: Duration) -> f64 {
    let from = vec![1_u64; bytes / 8];
    let mut to = vec![2_u64; bytes / 8];
    let copy = fastest(time / 2, || {
        black_box(&mut to).copy_from_slice(black_box(&from));
    });
    let moved = fastest(time / 2, || {
        // The addition keeps it from becoming the library's copy again.
        for (to, from) in black_box(&mut to).iter_mut().zip(black_box(&from)) {
            *to = from.wrapping_add(1);
        }
    });
    (2 * 8 * from.len()) as f64 / copy.min(moved)
}

/// Bytes a second that `threads` threads read and write together in arrays too large for
/// caches: each adds an array of 25 MB to another one, again and again.
///
/// # Panics
/// If a thread cannot be started.
#[must_use]
pub fn memory_rate(threads: usize, time: Duration) -> f64 {
    const FLOATS: usize = 6 << 20;
    const BYTES: usize = 3 * FLOATS * size_of::<f32>();
    let rate = || {
        let (add, mut to) = (vec![1.0_f32; FLOATS], vec![2.0_f32; FLOATS]);
        let begin = Instant::now();
        let mut passes = 0;
        // The first pass may wait for the other threads' memory.
        while passes < 2 || begin.elapsed() < time {
            for (to, add) in black_box(&mut to).iter_mut().zip(black_box(&add)) {
                *to += add;
            }
            passes += 1;
        }
        (passes * BYTES) as f64 / begin.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(rate)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn a_product_stays_below_the_peak_and_near_it() {
        let kernels = Kernels::detect();
        let peak = fma_peak(kernels, SHORT);
        let gemm = gemm_rate(kernels, (96, 256, 256), SHORT);
        // Other work on the machine may slow either down for a while.
        assert!(gemm < 1.3 * peak && gemm > 0.05 * peak, "{gemm} of {peak}");
    }

    #[test]
    fn memory_is_slower_than_registers_and_faster_than_a_disk() {
        let rate = memory_rate(2, SHORT);
        assert!((1e8..1e13).contains(&rate), "{rate}");
    }

    #[test]
    fn copying_is_between_a_disk_and_a_cache() {
        let rate = copy_rate(8 << 20, SHORT);
        assert!((1e8..1e13).contains(&rate), "{rate}");
    }
}
