//! Matrix products against the naive reference, on every instruction set.
#![allow(clippy::needless_range_loop, reason = "indices read like the formulas")]

mod common;

use cllm_kernels::{Dropout, Dtype, Epilogue, Kernels, MatMut, MatRef, Packed};
use common::{Grid, Rng, SIZES, assert_close, each_dtype, reference, room, tolerance};

/// A random `rows x cols` matrix, plain or as the transpose of a stored one.
fn operand(rng: &mut Rng, rows: usize, cols: usize, transposed: bool) -> Grid {
    if transposed { Grid::random(rng, cols, rows) } else { Grid::random(rng, rows, cols) }
}

fn view(grid: &Grid, transposed: bool) -> MatRef<'_> {
    if transposed { grid.view().t() } else { grid.view() }
}

/// What the kernels take the operand for.
fn wide(kernels: &Kernels, grid: &Grid, transposed: bool) -> Vec<f64> {
    let at = |e: usize| match transposed {
        true => grid.at(e % grid.rows, e / grid.rows),
        false => grid.at(e / grid.cols, e % grid.cols),
    };
    (0..grid.rows * grid.cols).map(|e| common::operand(kernels.dtype(), at(e))).collect()
}

/// Packs into a guarded, unaligned buffer.
fn pack(kernels: &Kernels, rng: &mut Rng, b: MatRef<'_>) -> Grid {
    let len = kernels.packed_len(b.rows(), b.cols()).unwrap();
    let mut packed = Grid::blank(1, len, 0, 1 + rng.below(7));
    kernels.pack(b, packed.slice_mut());
    packed.assert_frame("pack");
    assert!(packed.slice().iter().all(|x| x.is_finite()), "pack left padding unwritten");
    packed
}

#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    a_t: bool,
    b_t: bool,
    accumulate: bool,
}

impl Case {
    fn random(rng: &mut Rng, most: usize) -> Self {
        let (m, n, k) = (rng.size(most), rng.size(most), rng.size(most));
        Self { m, n, k, a_t: rng.coin(), b_t: rng.coin(), accumulate: rng.coin() }
    }
}

/// Kinds of epilogue, by number, so that a test can go through them.
const EPILOGUES: usize = 11;

/// Runs one packed product with epilogue `kind` and checks every element.
fn check(kernels: &Kernels, case: Case, kind: usize, rng: &mut Rng) {
    let Case { m, n, k, a_t, b_t, accumulate } = case;
    let what = format!("{kernels:?} {case:?} epilogue {kind}");
    let (a, b) = (operand(rng, m, k, a_t), operand(rng, k, n, b_t));
    let packed = pack(kernels, rng, view(&b, b_t));
    let bias = Grid::random(rng, 1, n);
    let other = Grid::random(rng, m, n);
    let mut pre = Grid::blank_somewhere(rng, m, n);
    let mut c = Grid::blank_somewhere(rng, m, n);
    if accumulate {
        c.fill(|_, _| rng.float());
    }
    let before: Vec<f64> = if accumulate { c.wide() } else { vec![0.0; m * n] };
    let dropout = Dropout::new(0.3, 11, 5, 2).unwrap();
    let first_row = 1000;
    let epilogue = match kind {
        0 => Epilogue::None,
        1 => Epilogue::Bias(bias.slice()),
        2 => Epilogue::Gelu { bias: None, pre: pre.view_mut().into() },
        3 => Epilogue::Gelu { bias: Some(bias.slice()), pre: pre.view_mut().into() },
        4 => Epilogue::Residual { bias: None, residual: other.view(), dropout: None },
        5 => Epilogue::Residual {
            bias: Some(bias.slice()),
            residual: other.view(),
            dropout: Some((dropout, first_row)),
        },
        6 => Epilogue::Residual { bias: Some(bias.slice()), residual: other.view(), dropout: None },
        7 => Epilogue::Relu2 { bias: None, pre: pre.view_mut().into() },
        8 => Epilogue::Relu2 { bias: Some(bias.slice()), pre: pre.view_mut().into() },
        _ => {
            pre.fill(|i, j| other.at(i, j));
            let pre = pre.view_mut().into();
            if kind == 9 { Epilogue::GeluGrad { pre } } else { Epilogue::Relu2Grad { pre } }
        }
    };
    let with_bias = matches!(kind, 1 | 3 | 5 | 6 | 8);
    let packed_b = Packed::new(packed.slice(), k, n).uncached(rng.coin());
    let mut scratch = Grid::blank(1, kernels.gemm_scratch_len(m, k), 0, 1 + rng.below(7));
    let (a_view, scratch_view) = (view(&a, a_t), scratch.slice_mut());
    kernels.gemm(a_view, packed_b, c.view_mut(), accumulate, epilogue, scratch_view);
    scratch.assert_frame(&what);
    c.assert_frame(&what);
    pre.assert_frame(&what);

    let (sums, sizes) =
        reference::matmul(&wide(kernels, &a, a_t), &wide(kernels, &b, b_t), m, n, k);
    let mut mask = vec![1.0; n];
    for i in 0..m {
        if kind == 5 {
            dropout.fill_mask(first_row + i as u32, 0, &mut mask);
        }
        for j in 0..n {
            let e = i * n + j;
            let add = if with_bias { f64::from(bias.at(0, j)) } else { 0.0 };
            let sum = sums[e] + before[e] + add;
            let bound = tolerance::gemm(k, sizes[e] + before[e].abs() + add.abs());
            let (other, kept) = (f64::from(other.at(i, j)), f64::from(mask[j]));
            let at = format!("{what} at ({i}, {j})");
            match kind {
                0 | 1 => assert_close(c.at(i, j), sum, bound, at),
                2 | 3 => {
                    assert_close(pre.at(i, j), sum, bound, format!("{at}, pre"));
                    let bound = bound * tolerance::GELU_STEEPEST + tolerance::gelu(sum);
                    assert_close(c.at(i, j), reference::gelu(sum), bound, at);
                }
                4..=6 => {
                    let exact = sum * kept + other;
                    let bound = bound * kept + tolerance::sum(1, (sum * kept).abs() + other.abs());
                    assert_close(c.at(i, j), exact, bound, at);
                }
                7 | 8 => {
                    assert_close(pre.at(i, j), sum, bound, format!("{at}, pre"));
                    // The slope between the exact input and the one that was made, and a rounding.
                    let y = reference::relu2(sum);
                    let bound = bound * 2.0 * (sum.abs() + bound) + y * tolerance::U;
                    assert_close(c.at(i, j), y, bound + tolerance::TINY, at);
                }
                10 => {
                    let (y, slope) = (reference::relu2(other), 2.0 * other.max(0.0));
                    let bound = (bound + sum.abs() * tolerance::U) * slope;
                    assert_close(c.at(i, j), sum * slope, bound + tolerance::TINY, &at);
                    assert_close(pre.at(i, j), y, y * tolerance::U + tolerance::TINY, at);
                }
                _ => {
                    let slope = reference::gelu_slope(other);
                    let bound =
                        bound * slope.abs() + (sum.abs() + bound) * tolerance::gelu_slope(other);
                    assert_close(c.at(i, j), sum * slope, bound + tolerance::TINY, &at);
                    let bound = tolerance::gelu(other);
                    assert_close(pre.at(i, j), reference::gelu(other), bound, at);
                }
            }
        }
    }
}

/// What backward makes again is what forward made, to the bit.
#[test]
fn the_activation_made_again_has_the_bits_of_the_first() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(9);
        for (m, n, k) in [(7, 17, 5), (13, 100, 9), (96, 64, 33)] {
            let (a, b) = (Grid::random(&mut rng, m, k), Grid::random(&mut rng, k, n));
            let packed = pack(kernels, &mut rng, b.view());
            let packed = Packed::new(packed.slice(), k, n);
            let (mut first, mut pre, mut grad) =
                (Grid::blank(m, n, 0, 0), Grid::blank(m, n, 0, 0), Grid::blank(m, n, 0, 0));
            let scratch = &mut room(kernels, m, k);
            let epilogue = Epilogue::Gelu { bias: None, pre: pre.view_mut().into() };
            kernels.gemm(a.view(), packed, first.view_mut(), false, epilogue, scratch);
            assert_ne!(pre.bits(), first.bits());
            let epilogue = Epilogue::GeluGrad { pre: pre.view_mut().into() };
            kernels.gemm(a.view(), packed, grad.view_mut(), false, epilogue, scratch);
            assert_eq!(pre.bits(), first.bits(), "{kernels:?} {m}x{n}x{k}");
        }
    });
}

#[test]
fn every_stride_accumulation_and_epilogue_matches_the_reference() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(1);
        for kind in 0..EPILOGUES {
            for bits in 0..8 {
                let (a_t, b_t, accumulate) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
                for (m, n, k) in [(7, 17, 5), (13, 33, 9), (6, 16, 8), (1, 1, 1)] {
                    check(kernels, Case { m, n, k, a_t, b_t, accumulate }, kind, &mut rng);
                }
            }
        }
    });
}

#[test]
fn every_odd_size_in_each_dimension_matches_the_reference() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(2);
        for size in SIZES {
            for (m, n, k) in [(size, 9, 7), (5, size, 7), (5, 9, size)] {
                let (a_t, b_t, accumulate) = (rng.coin(), rng.coin(), rng.coin());
                let case = Case { m, n, k, a_t, b_t, accumulate };
                let kind = rng.below(EPILOGUES);
                check(kernels, case, kind, &mut rng);
            }
        }
    });
}

#[test]
fn random_shapes_match_the_reference() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(3);
        for round in 0..150 {
            let most = if round % 10 == 0 { 257 } else { 65 };
            let (case, kind) = (Case::random(&mut rng, most), rng.below(EPILOGUES));
            check(kernels, case, kind, &mut rng);
        }
    });
}

#[test]
fn more_rows_than_are_converted_at_a_time_match_the_reference() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(14);
        for (m, k) in [(96, 5), (97, 257), (203, 33)] {
            for a_t in [false, true] {
                for kind in [0, 5, 7] {
                    let case = Case { m, n: 35, k, a_t, b_t: false, accumulate: rng.coin() };
                    check(kernels, case, kind, &mut rng);
                }
            }
        }
    });
}

/// A value between two of bf16, and halfway: rounding as an operand is the only rounding.
#[test]
fn bf16_products_round_their_operands_and_nothing_else() {
    each_dtype(|kernels| {
        for (x, rounded) in [
            (1.0 + 1.0 / 512.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
            (-3.001, -3.0),
        ] {
            let is_rounded = kernels.dtype() == Dtype::Bf16;
            let expected = if is_rounded { rounded } else { x };
            let (a, b) = ([x, 1.0, 0.5], [1.0, x, -0.25]);
            let mut packed = vec![0.0; kernels.packed_len(3, 1).unwrap()];
            kernels.pack(MatRef::new(&b, 3, 1, 1), &mut packed);
            let (mut c, pre) = ([0.0], [0.0]);
            let epilogue = Epilogue::Residual {
                bias: Some(&[x]),
                residual: MatRef::new(&pre, 1, 1, 1),
                dropout: None,
            };
            kernels.gemm(
                MatRef::new(&a, 1, 3, 3),
                Packed::new(&packed, 3, 1),
                MatMut::new(&mut c, 1, 1, 1),
                false,
                epilogue,
                &mut room(kernels, 1, 3),
            );
            assert_eq!(c[0], (2.0 * expected - 0.125) + x, "{kernels:?} {x}");
        }
    });
}

/// Those are copied where they would drive one another out of the cache.
#[test]
fn rows_4_kib_apart_give_the_bits_of_rows_beside_one_another() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(7);
        for (m, n, k) in
            [(17, 33, 1024), (40, 100, 300), (25, 65, 7), (30, 40, 0), (25, 65, 3), (25, 65, 8)]
        {
            let (near, b) = (Grid::random(&mut rng, m, k), Grid::random(&mut rng, k, n));
            let mut apart = Grid::blank(m, k, 1024 - k, 1);
            apart.fill(|i, p| near.at(i, p));
            let (packed, start) = (pack(kernels, &mut rng, b.view()), Grid::random(&mut rng, m, n));
            for accumulate in [false, true] {
                let run = |a: &Grid| {
                    let mut c = Grid::blank(m, n, 5, 2);
                    c.fill(|i, j| start.at(i, j));
                    let (b, room) = (Packed::new(packed.slice(), k, n), &mut room(kernels, m, k));
                    kernels.gemm(a.view(), b, c.view_mut(), accumulate, Epilogue::None, room);
                    c.assert_frame("rows 4 KiB apart");
                    c.bits()
                };
                assert_eq!(run(&apart), run(&near), "{kernels:?} {m}x{n}x{k} {accumulate}");
            }
        }
    });
}

#[test]
fn several_depth_blocks_match_the_reference() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(4);
        for k in [256, 512, 513, 770, 1025] {
            for accumulate in [false, true] {
                for kind in [0, 3, 5, 7] {
                    let (a_t, b_t) = (rng.coin(), rng.coin());
                    let case = Case { m: 7, n: 18, k, a_t, b_t, accumulate };
                    check(kernels, case, kind, &mut rng);
                }
            }
        }
    });
}

#[test]
fn an_empty_inner_dimension_leaves_the_epilogue() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(5);
        for kind in 0..EPILOGUES {
            for accumulate in [false, true] {
                for a_t in [false, true] {
                    let case = Case { m: 7, n: 17, k: 0, a_t, b_t: false, accumulate };
                    check(kernels, case, kind, &mut rng);
                }
            }
        }
    });
}

#[test]
fn empty_results_touch_nothing() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(6);
        for (m, n) in [(0, 5), (5, 0), (0, 0)] {
            let case = Case { m, n, k: 3, a_t: false, b_t: false, accumulate: false };
            check(kernels, case, 0, &mut rng);
            let (a, b) = (Grid::random(&mut rng, m, 3), Grid::random(&mut rng, 3, n));
            let mut c = Grid::blank_somewhere(&mut rng, m, n);
            let mut scratch = vec![0.0; kernels.unpacked_scratch_len(m, n, 3).unwrap()];
            kernels.gemm_unpacked(a.view(), b.view(), c.view_mut(), true, &mut scratch);
            c.assert_frame("empty");
        }
    });
}

/// Runs one product that gets both operands as they are, and checks every element.
fn check_unpacked(kernels: &Kernels, case: Case, rng: &mut Rng) {
    let Case { m, n, k, a_t, b_t, accumulate } = case;
    let what = format!("{kernels:?} unpacked {case:?}");
    let (a, b) = (operand(rng, m, k, a_t), operand(rng, k, n, b_t));
    let mut c = Grid::blank_somewhere(rng, m, n);
    if accumulate {
        c.fill(|_, _| rng.float());
    }
    let before: Vec<f64> = if accumulate { c.wide() } else { vec![0.0; m * n] };
    let len = kernels.unpacked_scratch_len(m, n, k).unwrap();
    let mut scratch = Grid::blank(1, len, 0, 1 + rng.below(7));
    let (a_view, b_view) = (view(&a, a_t), view(&b, b_t));
    kernels.gemm_unpacked(a_view, b_view, c.view_mut(), accumulate, scratch.slice_mut());
    c.assert_frame(&what);
    scratch.assert_frame(&what);
    let (sums, sizes) =
        reference::matmul(&wide(kernels, &a, a_t), &wide(kernels, &b, b_t), m, n, k);
    for i in 0..m {
        for j in 0..n {
            let e = i * n + j;
            let bound = tolerance::gemm(k, sizes[e] + before[e].abs());
            let at = format!("{what} at ({i}, {j})");
            assert_close(c.at(i, j), sums[e] + before[e], bound, at);
        }
    }
}

#[test]
fn products_of_unpacked_operands_match_the_reference() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(7);
        for bits in 0..8 {
            let (a_t, b_t, accumulate) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
            for (m, n, k) in [(7, 17, 5), (13, 33, 300), (8, 16, 256), (6, 3, 0), (1, 1, 1)] {
                check_unpacked(kernels, Case { m, n, k, a_t, b_t, accumulate }, &mut rng);
            }
        }
        for size in SIZES {
            for (m, n, k) in [(size, 9, 7), (5, size, 7), (5, 9, size), (size, 17, 2)] {
                let (a_t, b_t, accumulate) = (true, false, rng.coin());
                check_unpacked(kernels, Case { m, n, k, a_t, b_t, accumulate }, &mut rng);
            }
        }
        for _ in 0..60 {
            let case = Case { k: rng.size(257) * 3, ..Case::random(&mut rng, 65) };
            check_unpacked(kernels, case, &mut rng);
        }
    });
}

#[test]
fn any_tiling_of_a_packed_product_gives_the_same_bits() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(8);
        for (m, n, k) in [(37, 50, 300), (19, 33, 17), (64, 64, 513)] {
            let (a, b) = (Grid::random(&mut rng, m, k), Grid::random(&mut rng, k, n));
            let mut whole = Grid::blank(m, n, 3, 1);
            let packed = pack(kernels, &mut rng, b.view());
            let all = Packed::new(packed.slice(), k, n);
            let room = &mut room(kernels, m, k);
            kernels.gemm(a.view(), all, whole.view_mut(), false, Epilogue::None, room);
            for _ in 0..6 {
                let (row, col) = (rng.below(m + 1), rng.below(n + 1));
                for (i, rows) in [(0, row), (row, m - row)] {
                    for (j, cols) in [(0, col), (col, n - col)] {
                        let packed = pack(kernels, &mut rng, b.view().col_range(j, cols));
                        let mut part = Grid::blank_somewhere(&mut rng, rows, cols);
                        kernels.gemm(
                            a.view().row_range(i, rows),
                            Packed::new(packed.slice(), k, cols),
                            part.view_mut(),
                            false,
                            Epilogue::None,
                            room,
                        );
                        for r in 0..rows {
                            for c in 0..cols {
                                let (x, y) = (part.at(r, c), whole.at(i + r, j + c));
                                assert_eq!(x.to_bits(), y.to_bits(), "{kernels:?} ({r}, {c})");
                            }
                        }
                    }
                }
            }
            let mut again = Grid::blank(m, n, 0, 5);
            kernels.gemm(a.view(), all, again.view_mut(), false, Epilogue::None, room);
            assert_eq!(again.bits(), whole.bits(), "{kernels:?}: a second call differs");
            let stored = {
                let mut t = Grid::blank(k, m, 2, 3);
                t.fill(|i, j| a.at(j, i));
                t
            };
            let mut strided = Grid::blank(m, n, 1, 5);
            kernels.gemm(stored.view().t(), all, strided.view_mut(), false, Epilogue::None, room);
            assert_eq!(strided.bits(), whole.bits(), "{kernels:?}: strides of A change bits");
        }
    });
}

#[test]
fn any_tiling_of_a_weight_gradient_gives_the_same_bits() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(9);
        let (m, n, k) = (45, 50, 700);
        let (x, dy) = (Grid::random(&mut rng, k, m), Grid::random(&mut rng, k, n));
        let run = |i: usize, rows: usize, j: usize, cols: usize| {
            let mut c = Grid::blank(rows, cols, 1, 2);
            let mut scratch = vec![f32::NAN; kernels.unpacked_scratch_len(rows, cols, k).unwrap()];
            let a = x.view().t().row_range(i, rows);
            let b = dy.view().col_range(j, cols);
            kernels.gemm_unpacked(a, b, c.view_mut(), false, &mut scratch);
            c
        };
        let whole = run(0, m, 0, n);
        assert_eq!(run(0, m, 0, n).bits(), whole.bits());
        for (i, rows, j, cols) in [(0, 12, 0, 16), (12, 33, 16, 34), (5, 7, 3, 11), (44, 1, 49, 1)]
        {
            let part = run(i, rows, j, cols);
            for r in 0..rows {
                for c in 0..cols {
                    let (x, y) = (part.at(r, c), whole.at(i + r, j + c));
                    assert_eq!(x.to_bits(), y.to_bits(), "{kernels:?} tile {i} {j} at {r} {c}");
                }
            }
        }
    });
}

/// Rows that overlap are a matrix too: element (i, j) lies at i + j.
#[test]
fn a_matrix_of_both_strides_one_packs_as_its_copy() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(17);
        for (k, n) in [(40, 44), (64, 63), (257, 52), (16, 33), (100, 16)] {
            let data: Vec<f32> = (0..k + n - 1).map(|_| rng.float()).collect();
            let copy: Vec<f32> = (0..k * n).map(|e| data[e / n + e % n]).collect();
            let want = pack(kernels, &mut rng, MatRef::new(&copy, k, n, n));
            let got = pack(kernels, &mut rng, MatRef::new(&data, k, n, 1));
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(got.slice()) == bits(want.slice()), "{kernels:?} {k}x{n}");
        }
    });
}
