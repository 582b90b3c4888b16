//! Products that pack their right-hand side on the way: the bits of those with one that is
//! packed beforehand.

mod common;

use cllm_kernels::{Bf16, Epilogue, Kernels, MatMut, MatRef, Operand, OperandMut, Packed};
use common::epilogues::{EPILOGUES, More, epilogue};
use common::{Grid, Rng, each_dtype, panics};

/// Rows, columns and depth: edges; several slabs of columns; little depth, and as little behind a slab of it; several of
/// depth in words of one element and of two.
const SHAPES: [(usize, usize, usize); 10] = [
    (1, 1, 1),
    (5, 33, 0),
    (13, 256, 256),
    (97, 290, 257),
    (6, 600, 40),
    (21, 300, 3),
    (21, 300, 259),
    (7, 48, 1025),
    (12, 257, 2049),
    (3, 513, 2304),
];

/// Packs `b`, all of it, then multiplies.
fn beforehand(
    kernels: &Kernels,
    a: Operand<'_>,
    b: MatRef<'_>,
    c: OperandMut<'_>,
    epilogue: Epilogue<'_>,
) {
    let (k, n) = (b.rows(), b.cols());
    let mut packed = vec![f32::NAN; kernels.packed_len(k, n).unwrap()];
    kernels.pack(b, &mut packed);
    let m = a.shape().0;
    let room = kernels.gemm_scratch_len(m, k).max(kernels.gemm_into_halves_scratch_len(m, k));
    let mut scratch = vec![f32::NAN; room];
    kernels.gemm(a, Packed::new(&packed, k, n), c, false, epilogue, &mut scratch);
}

/// Scratch of exactly the length that is asked for, in the middle of guards.
fn scratch(kernels: &Kernels, shape: (usize, usize, usize), halves: bool) -> Grid {
    let (m, n, k) = shape;
    Grid::blank(1, kernels.fresh_scratch_len(m, k, n, halves).unwrap(), 0, 3)
}

#[test]
fn packing_on_the_way_gives_the_bits_of_packing_beforehand() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(3);
        for (m, n, k) in SHAPES {
            for kind in 0..EPILOGUES {
                let b_t = rng.coin();
                let what = format!("{kernels:?} {m}x{n}x{k} transposed {b_t} epilogue {kind}");
                let a = Grid::random(&mut rng, m, k);
                let (rows, cols) = if b_t { (n, k) } else { (k, n) };
                let b = Grid::random(&mut rng, rows, cols);
                let b = if b_t { b.view().t() } else { b.view() };
                let bias = Grid::vector(&mut rng, n);
                let more = More { bias, other: Grid::random(&mut rng, m, n) };
                let run = |fresh: bool, rng: &mut Rng| {
                    let mut c = Grid::blank_somewhere(rng, m, n);
                    let mut pre = Grid::blank_somewhere(rng, m, n);
                    pre.fill(|i, j| more.other.at(i, j));
                    let epilogue = epilogue(kind, &more, pre.view_mut().into());
                    if fresh {
                        let mut room = scratch(kernels, (m, n, k), false);
                        let to = c.view_mut();
                        kernels.gemm_fresh(a.view(), b, to, epilogue, room.slice_mut());
                        room.assert_frame(&what);
                    } else {
                        beforehand(kernels, a.view().into(), b, c.view_mut().into(), epilogue);
                    }
                    c.assert_frame(&what);
                    pre.assert_frame(&what);
                    (c.bits(), pre.bits())
                };
                assert!(run(true, &mut rng) == run(false, &mut rng), "{what}");
            }
        }
    });
}

#[test]
fn so_it_is_with_matrices_of_bf16() {
    each_dtype(|kernels| {
        if !kernels.keeps_halves() {
            return;
        }
        let mut rng = Rng::new(4);
        let mut half =
            |n: usize| -> Vec<Bf16> { (0..n).map(|_| Bf16::from_f32(rng.float())).collect() };
        for (m, n, k) in SHAPES {
            let width = k.next_multiple_of(2);
            let mut a = half(m * width);
            if width > k {
                a.iter_mut().skip(k).step_by(width).for_each(|x| *x = Bf16::default());
            }
            let start = half(m * n);
            let b: Vec<f32> = half(k * n).into_iter().map(|x| x.to_f32() * 1.3).collect();
            let floats: Vec<f32> = half(m * k).into_iter().map(|x| x.to_f32() * 1.1).collect();
            let b = MatRef::new(&b, k, n, n);
            let mut rng = Rng::new(5);
            let bias = Grid::vector(&mut rng, n);
            let more = More { bias, other: Grid::random(&mut rng, m, n) };
            for (a_half, c_half) in [(true, false), (false, true), (true, true)] {
                for kind in 0..EPILOGUES {
                    // Residuals are of floats.
                    if c_half && matches!(kind, 3 | 4) {
                        continue;
                    }
                    let run = |fresh: bool| {
                        let mut c = vec![f32::NAN; m * n];
                        let mut pre: Vec<f32> = start.iter().map(|x| x.to_f32()).collect();
                        let mut pre_half = start.clone();
                        let mut c_halves = start.clone();
                        let from: Operand<'_> = if a_half {
                            Operand::Half(MatRef::new(&a, m, width, width))
                        } else {
                            MatRef::new(&floats, m, k, k).into()
                        };
                        let (to, kept): (OperandMut<'_>, OperandMut<'_>) = if c_half {
                            let kept = MatMut::new(&mut pre_half, m, n, n);
                            let to = MatMut::new(&mut c_halves, m, n, n);
                            (OperandMut::Half(to), OperandMut::Half(kept))
                        } else {
                            let kept = MatMut::new(&mut pre, m, n, n);
                            (MatMut::new(&mut c, m, n, n).into(), kept.into())
                        };
                        let epilogue = epilogue(kind, &more, kept);
                        if fresh {
                            let mut room = scratch(kernels, (m, n, k), c_half);
                            kernels.gemm_fresh(from, b, to, epilogue, room.slice_mut());
                            room.assert_frame("scratch");
                        } else {
                            beforehand(kernels, from, b, to, epilogue);
                        }
                        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                        (bits(&c), bits(&pre), c_halves, pre_half)
                    };
                    let what = format!("{m}x{n}x{k} A {a_half} C {c_half} epilogue {kind}");
                    assert!(run(true) == run(false), "{what}");
                }
            }
        }
    });
}

#[test]
fn shapes_that_do_not_fit_and_short_scratch_are_refused() {
    let kernels = Kernels::scalar();
    let (a, b) = ([1.0; 12], [1.0; 20]);
    let run = |rows: usize, k: usize, short: usize| {
        panics(|| {
            let mut c = [0.0; 15];
            let room = kernels.fresh_scratch_len(3, 4, 5, false).unwrap() - short;
            let to = MatMut::new(&mut c, 3, 5, 5);
            let a = MatRef::new(&a, rows, k, k);
            let mut scratch = vec![0.0; room];
            kernels.gemm_fresh(a, MatRef::new(&b, 4, 5, 5), to, Epilogue::None, &mut scratch);
        })
    };
    assert!(!run(3, 4, 0));
    assert!(run(3, 4, 1) && run(2, 4, 0) && run(3, 3, 0));
}
