//! Products of few columns have the bits that these columns have in a wider product.

mod common;

use cllm_kernels::{Epilogue, KC, Kernels, MatRef, Packed};
use common::halves::{Halves, each};
use common::{Grid, Rng, each_dtype, room};

/// Columns of the wider product: more than tiles of few columns have, on any instruction set.
const WIDE: usize = 30;

/// Rows: fewer than a vector's lanes, as many, and several groups with a rest; around those of the tallest tile.
const ROWS: [usize; 11] = [1, 7, 8, 15, 16, 17, 31, 32, 33, 43, 100];

/// Depths around whole squares of 8 and of 16 words of one element or two, and around a block's.
const DEPTHS: [usize; 12] = [1, 7, 8, 9, 15, 16, 17, 31, 33, KC, KC + 1, 2 * KC + 77];

fn packed(kernels: &Kernels, b: MatRef<'_>) -> Vec<f32> {
    let mut packed = vec![0.0; kernels.packed_len(b.rows(), b.cols()).unwrap()];
    kernels.pack(b, &mut packed);
    packed
}

#[track_caller]
fn assert_columns(few: &Grid, wide: &Grid, what: &str) {
    few.assert_frame(what);
    for i in 0..few.rows {
        for j in 0..few.cols {
            let (x, y) = (few.at(i, j), wide.at(i, j));
            assert_eq!(x.to_bits(), y.to_bits(), "{what}: {x} for {y} at ({i}, {j})");
        }
    }
}

#[test]
fn few_columns_have_the_bits_of_many() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(81);
        for m in ROWS {
            for k in DEPTHS {
                let (a, b) = (Grid::random(&mut rng, m, k), Grid::random(&mut rng, k, WIDE));
                let (start, residual) =
                    (Grid::random(&mut rng, m, WIDE), Grid::random(&mut rng, m, WIDE));
                let accumulate = rng.coin();
                for with_epilogue in [false, true] {
                    let mut run = |n: usize| {
                        let panels = packed(kernels, b.view().col_range(0, n));
                        let mut c = Grid::blank_somewhere(&mut rng, m, n);
                        c.fill(|i, j| start.at(i, j));
                        let residual = residual.view().col_range(0, n);
                        let epilogue = match with_epilogue {
                            true => Epilogue::Residual { bias: None, residual, dropout: None },
                            false => Epilogue::None,
                        };
                        let (panels, room) = (Packed::new(&panels, k, n), &mut room(kernels, m, k));
                        kernels.gemm(a.view(), panels, c.view_mut(), accumulate, epilogue, room);
                        c
                    };
                    let wide = run(WIDE);
                    for n in 1..=9 {
                        let what = format!("{kernels:?} {m}x{n}x{k} {accumulate} {with_epilogue}");
                        assert_columns(&run(n), &wide, &what);
                    }
                }
            }
        }
    });
}

#[test]
fn few_columns_of_bf16_in_memory_have_the_bits_of_many() {
    each(|kernels| {
        let mut rng = Rng::new(82);
        for (m, k) in [(16, 32), (17, 34), (50, 2 * KC + 78), (100, KC)] {
            let a = Halves::random(&mut rng, m, k, k);
            let b = Grid::random(&mut rng, k, WIDE);
            let run = |n: usize, half: bool| {
                let panels = packed(kernels, b.view().col_range(0, n));
                let panels = Packed::new(&panels, k, n);
                let (mut c, mut halves) = (Grid::blank(m, n, 3, 1), Halves::blank(m, n, n + 1));
                let scratch = kernels.gemm_into_halves_scratch_len(m, k);
                let mut scratch = vec![0.0; scratch.max(kernels.gemm_scratch_len(m, k))];
                let out = if half { halves.view_mut() } else { c.view_mut().into() };
                kernels.gemm(a.even(), panels, out, false, Epilogue::None, &mut scratch);
                let what = format!("{kernels:?} {m}x{n}x{k}, C of bf16: {half}");
                c.assert_frame(&what);
                if half { halves.written(&what) } else { c.bits() }
            };
            for half in [false, true] {
                let wide = run(WIDE, half);
                for n in 1..=9 {
                    let few = run(n, half);
                    for (i, row) in few.chunks_exact(n).enumerate() {
                        assert_eq!(*row, wide[i * WIDE..][..n], "{m}x{n}x{k} {half}, row {i}");
                    }
                }
            }
        }
    });
}
