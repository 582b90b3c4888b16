//! Row-wise kernels in parts: the bits of a row depend on that row alone, those of a flat
//! array's element on that element, those of a column's sum on that column.
//!
//! Sums over the rows of a call (a norm's gradients of gain and bias) are the exception:
//! who splits the rows adds the parts in an order of his own.

mod common;

use cllm_kernels::{AdamW, Dropout, IGNORE, Kernels, NormSaved, Sgd};
use common::{Grid, Rng, each_isa};
use core::ops::Range;

const ROWS: usize = 130;
const COLS: [usize; 6] = [1, 7, 8, 33, 250, 256];

/// Partitions of `n`: into two, into pieces of one size, into unequal pieces.
fn partitions(n: usize) -> Vec<Vec<Range<usize>>> {
    let sizes: [&[usize]; 7] = [&[n], &[96], &[64], &[32], &[5, n], &[1, 2, 3, 23], &[16, 7, 48]];
    let parts = |sizes: &[usize]| {
        let mut start = 0;
        let ends = sizes.iter().cycle().map_while(|size| {
            let part = start..n.min(start + size);
            start = part.end;
            (!part.is_empty()).then_some(part)
        });
        ends.collect()
    };
    sizes.into_iter().map(parts).collect()
}

/// The rows of `grid`, elsewhere.
fn copy(rng: &mut Rng, grid: &Grid, rows: &Range<usize>) -> Grid {
    let mut part = Grid::blank_somewhere(rng, rows.len(), grid.cols);
    part.fill(|i, j| grid.at(rows.start + i, j));
    part
}

/// Fails unless `part` holds the bits of `rows` of `whole`.
#[track_caller]
fn assert_rows(part: &Grid, whole: &Grid, rows: &Range<usize>, what: &str) {
    part.assert_frame(what);
    let bits = &whole.bits()[rows.start * whole.cols..rows.end * whole.cols];
    assert_eq!(part.bits(), bits, "{what}");
}

/// A norm of some rows, forward and backward: y, mean and rstd as columns, dx.
fn norm(
    kernels: &Kernels,
    [x, dy, dx]: [&Grid; 3],
    [gain, bias]: [&[f32]; 2],
    rows: &Range<usize>,
    (centred, accumulate): (bool, bool),
    rng: &mut Rng,
) -> [Grid; 4] {
    let (n, cols) = (rows.len(), x.cols);
    let (x, dy) = (x.view().row_range(rows.start, n), dy.view().row_range(rows.start, n));
    let mut dx = copy(rng, dx, rows);
    let mut y = Grid::blank_somewhere(rng, n, cols);
    let (mut mean, mut rstd) = (vec![0.0; n], vec![0.0; n]);
    let means = centred.then_some(&mut mean[..]);
    kernels.layer_norm(x, gain, Some(bias), 1e-5, y.view_mut(), means, &mut rstd);
    let saved = NormSaved { x, gain, mean: centred.then_some(&mean[..]), rstd: &rstd };
    let (mut dgain, mut dbias) = (vec![0.0; cols], vec![0.0; cols]);
    let result = dx.view_mut();
    kernels.layer_norm_backward(&saved, dy, result, accumulate, &mut dgain, Some(&mut dbias));
    let column = |values: Vec<f32>| {
        let mut grid = Grid::blank(n, 1, 0, 1);
        grid.fill(|i, _| values[i]);
        grid
    };
    [y, column(mean), column(rstd), dx]
}

#[test]
fn norms_of_some_rows_have_the_bits_of_all() {
    each_isa(|kernels| {
        let mut rng = Rng::new(71);
        for cols in COLS {
            for how in [(true, false), (true, true), (false, false), (false, true)] {
                let grids = [0; 3].map(|_| Grid::random(&mut rng, ROWS, cols));
                let rows = [0; 2].map(|_| Grid::vector(&mut rng, cols));
                let (grids, weights) = (grids.each_ref(), rows.each_ref().map(Grid::slice));
                let whole = norm(kernels, grids, weights, &(0..ROWS), how, &mut rng);
                for rows in partitions(ROWS).into_iter().flatten() {
                    let part = norm(kernels, grids, weights, &rows, how, &mut rng);
                    for (part, whole) in part.iter().zip(&whole) {
                        let what = format!("{kernels:?} {cols} columns, rows {rows:?}");
                        assert_rows(part, whole, &rows, &what);
                    }
                }
            }
        }
    });
}

#[test]
fn gated_activations_of_some_rows_have_the_bits_of_all() {
    each_isa(|kernels| {
        let mut rng = Rng::new(79);
        for n in COLS {
            let (pre, dy) = (Grid::random(&mut rng, ROWS, 2 * n), Grid::random(&mut rng, ROWS, n));
            let run = |rows: &Range<usize>, rng: &mut Rng| {
                let mut pre = copy(rng, &pre, rows);
                let mut y = Grid::blank_somewhere(rng, rows.len(), n);
                let mut dpre = Grid::blank_somewhere(rng, rows.len(), 2 * n);
                kernels.swiglu(pre.view(), y.view_mut());
                let dy = dy.view().row_range(rows.start, rows.len());
                kernels.swiglu_backward(pre.view_mut().into(), dy, dpre.view_mut().into());
                [y, pre, dpre]
            };
            let whole = run(&(0..ROWS), &mut rng);
            for rows in partitions(ROWS).into_iter().flatten() {
                let what = format!("{kernels:?} {n} columns, rows {rows:?}");
                for (part, whole) in run(&rows, &mut rng).iter().zip(&whole) {
                    assert_rows(part, whole, &rows, &what);
                }
            }
        }
    });
}

#[test]
fn losses_of_some_rows_have_the_bits_of_all() {
    each_isa(|kernels| {
        let mut rng = Rng::new(72);
        for cols in COLS {
            let logits = Grid::random(&mut rng, ROWS, cols);
            let target = |_| if rng.below(5) == 0 { IGNORE } else { rng.below(cols) as u32 };
            let targets: Vec<u32> = (0..ROWS).map(target).collect();
            for (grad_scale, cap) in
                [(None, None), (Some(0.37), None), (None, Some(2.0)), (Some(0.37), Some(2.0))]
            {
                let run = |rows: &Range<usize>, rng: &mut Rng| {
                    let mut grad = copy(rng, &logits, rows);
                    let mut losses = Grid::blank(1, rows.len(), 0, 1 + rng.below(7));
                    let targets = &targets[rows.clone()];
                    let sums = losses.slice_mut();
                    kernels.cross_entropy(grad.view_mut(), targets, sums, grad_scale, cap);
                    (grad, losses)
                };
                let whole = run(&(0..ROWS), &mut rng);
                for rows in partitions(ROWS).into_iter().flatten() {
                    let what = format!("{kernels:?} {cols} columns, rows {rows:?}");
                    let (grad, losses) = run(&rows, &mut rng);
                    assert_rows(&grad, &whole.0, &rows, &what);
                    assert_eq!(losses.bits(), whole.1.bits()[rows], "{what}: losses");
                }
            }
        }
    });
}

#[test]
fn a_mask_of_some_rows_and_columns_is_that_part_of_the_mask() {
    each_isa(|kernels| {
        let mut rng = Rng::new(73);
        let (cols, first_row) = (250, 41);
        let x = Grid::random(&mut rng, ROWS, cols);
        let mask = Dropout::new(0.3, 7, 11, 2).unwrap();
        let mut whole = copy(&mut rng, &x, &(0..ROWS));
        kernels.dropout_in_place(whole.view_mut(), &mask, first_row);
        for rows in partitions(ROWS).into_iter().flatten() {
            let mut part = copy(&mut rng, &x, &rows);
            let row = first_row + rows.start as u32;
            kernels.dropout_in_place(part.view_mut(), &mask, row);
            assert_rows(&part, &whole, &rows, &format!("{kernels:?} rows {rows:?}"));
            for columns in partitions(cols)[5..].iter().flatten() {
                let (from, n) = (columns.start, columns.len());
                let source = x.view().row_range(rows.start, rows.len()).col_range(from, n);
                let mut part = Grid::blank_somewhere(&mut rng, rows.len(), n);
                kernels.dropout(source, part.view_mut(), &mask.from_column(from), row);
                let mut exact = Grid::blank(rows.len(), n, 0, 0);
                exact.fill(|i, j| whole.at(rows.start + i, from + j));
                assert_eq!(part.bits(), exact.bits(), "{kernels:?} {rows:?} {columns:?}");
            }
        }
    });
}

#[test]
fn sums_of_some_columns_have_the_bits_of_all() {
    each_isa(|kernels| {
        let mut rng = Rng::new(74);
        for rows in [1, 5, 64, 65, 200] {
            let cols = 250;
            let x = Grid::random(&mut rng, rows, cols);
            let start = Grid::vector(&mut rng, cols);
            for accumulate in [false, true] {
                let mut sum = |columns: &Range<usize>| {
                    let mut part = Grid::blank(1, columns.len(), 0, 1 + rng.below(7));
                    part.fill(|_, j| start.at(0, columns.start + j));
                    let source = x.view().col_range(columns.start, columns.len());
                    kernels.column_sum(source, part.slice_mut(), accumulate);
                    part.assert_frame("column_sum");
                    part.bits()
                };
                let whole = sum(&(0..cols));
                let mut parts = partitions(cols);
                parts.extend((1..70).map(|cut| vec![0..cut, cut..cols]));
                for columns in parts.into_iter().flatten() {
                    let part = sum(&columns);
                    assert_eq!(part, whole[columns.clone()], "{kernels:?} {rows} {columns:?}");
                }
            }
        }
    });
}

const DESCENT: Sgd = Sgd { lr: 1e-3, decay: 0.1, grad_scale: 0.3 };

/// A pass over flat arrays and what it makes of one of them.
type Pass = fn(&Kernels, &mut [f32], [&[f32]; 3]);

#[test]
fn flat_passes_over_some_elements_have_the_bits_of_all() {
    let passes: [Pass; 8] = [
        |kernels, x, [y, ..]| kernels.accumulate(x, y),
        |kernels, x, _| kernels.scale(x, 0.7),
        |kernels, x, _| kernels.soft_cap(x, 0.7),
        |kernels, x, [y, ..]| kernels.gelu(x, y),
        |kernels, x, [y, ..]| kernels.gelu_backward(x, y),
        |kernels, x, [g, m, v]| {
            let rule = AdamW {
                lr: 1e-3,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                decay: 0.1,
                correction1: 0.5,
                correction2: 0.5,
                grad_scale: 0.3,
            };
            let v: Vec<f32> = v.iter().map(|v| v.abs()).collect();
            kernels.adamw(&rule, x, g, &mut m.to_vec(), &mut v.clone());
        },
        |kernels, x, [g, ..]| kernels.sgd(&DESCENT, x, g),
        |kernels, x, [g, m, _]| kernels.momentum(&DESCENT, 0.9, x, g, &mut m.to_vec()),
    ];
    each_isa(|kernels| {
        let mut rng = Rng::new(75);
        let n = 1000;
        let arrays = [0; 4].map(|_| Grid::vector(&mut rng, n));
        let [x, a, b, c] = arrays.each_ref().map(Grid::slice);
        for (at, pass) in passes.iter().enumerate() {
            let run = |part: Range<usize>| {
                let mut x = x[part.clone()].to_vec();
                pass(kernels, &mut x, [a, b, c].map(|y| &y[part.clone()]));
                x.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let whole = run(0..n);
            for part in partitions(n).into_iter().flatten() {
                let bits = run(part.clone());
                assert_eq!(bits, whole[part.clone()], "{kernels:?} pass {at}, {part:?}");
            }
        }
    });
}
