//! Products of little depth have the bits of their rows by themselves, which no loop for little depth makes.

mod common;

use cllm_kernels::{Epilogue, Kernels, Operand, Packed};
use common::halves::{Halves, each};
use common::{Grid, Rng, each_dtype, room};

/// Rows: more than products of few rows have, with each rest of groups of up to four, and than a block of scratch has.
const ROWS: [usize; 5] = [17, 18, 31, 96, 131];

/// Columns around vectors and panels of each instruction set.
const COLS: [usize; 9] = [1, 9, 16, 17, 31, 32, 33, 50, 100];

/// Depths of one to nine words of an element or two.
const DEPTHS: [usize; 13] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 15, 16, 17];

/// `start (+)= A B`: all of it, and each row by itself, whose elements are adjacent.
fn assert_rows<'a>(
    kernels: &Kernels,
    start: &Grid,
    a: Operand<'_>,
    a_row: impl Fn(usize) -> Operand<'a>,
    b: &Grid,
    accumulate: bool,
    what: &str,
) {
    let (m, k) = (start.rows, b.rows);
    let mut panels = vec![0.0; kernels.packed_len(k, b.cols).unwrap()];
    kernels.pack(b.view(), &mut panels);
    let panels = Packed::new(&panels, k, b.cols);
    let mut scratch = room(kernels, m, k);
    let mut whole = start.clone();
    kernels.gemm(a, panels, whole.view_mut(), accumulate, Epilogue::None, &mut scratch);
    whole.assert_frame(what);
    for i in 0..m {
        let mut row = Grid::blank(1, b.cols, 0, 3);
        row.fill(|_, j| start.at(i, j));
        kernels.gemm(a_row(i), panels, row.view_mut(), accumulate, Epilogue::None, &mut scratch);
        for j in 0..b.cols {
            let (x, y) = (whole.at(i, j), row.at(0, j));
            assert_eq!(x.to_bits(), y.to_bits(), "{what}: {x} for {y} at ({i}, {j})");
        }
    }
}

/// Calls `test` with a start of each shape, a B of it, whether to accumulate, and words for that.
fn each_shape(seed: u64, kernels: &Kernels, test: impl Fn(&mut Rng, &Grid, &Grid, bool, &str)) {
    let mut rng = Rng::new(seed);
    for (m, n) in ROWS.into_iter().flat_map(|m| COLS.map(|n| (m, n))) {
        for k in DEPTHS {
            let (start, b) = (Grid::random(&mut rng, m, n), Grid::random(&mut rng, k, n));
            let accumulate = rng.coin();
            let what = format!("{kernels:?} {m}x{n}x{k} {accumulate}");
            test(&mut rng, &start, &b, accumulate, &what);
        }
    }
}

#[test]
fn products_of_little_depth_have_the_bits_of_single_rows() {
    each_dtype(|kernels| {
        each_shape(91, kernels, |rng, start, b, accumulate, what| {
            let (m, k) = (start.rows, b.rows);
            let a = Grid::random(rng, m, k);
            let mut turned = Grid::blank_somewhere(rng, k, m);
            turned.fill(|p, i| a.at(i, p));
            for (all, how) in [(a.view(), "by rows"), (turned.view().t(), "by columns")] {
                let row = |i| a.view().row_range(i, 1).into();
                assert_rows(
                    kernels,
                    start,
                    all.into(),
                    row,
                    b,
                    accumulate,
                    &format!("{what} {how}"),
                );
            }
        });
    });
}

#[test]
fn products_of_little_depth_of_bf16_in_memory_have_the_bits_of_single_rows() {
    each(|kernels| {
        each_shape(92, kernels, |rng, start, b, accumulate, what| {
            let (m, k) = (start.rows, b.rows);
            let a = Halves::random(rng, m, k, k.next_multiple_of(2) + 2);
            // Of floats: rows of bf16 in memory have no loops of their own.
            let Operand::Float(floats) = a.as_floats() else { unreachable!("these are floats") };
            let row = |i| floats.row_range(i, 1).into();
            assert_rows(kernels, start, a.even(), row, b, accumulate, what);
        });
    });
}
