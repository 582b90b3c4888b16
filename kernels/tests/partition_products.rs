//! A product in parts: whatever the partition of its rows, columns and inner dimension
//! into calls, the bits of an element are those of one call.

mod common;

use cllm_kernels::{Dropout, Epilogue, KC, Kernels, Packed};
use common::{Grid, Rng, each_dtype, panics, room};
use core::ops::Range;

const M: usize = 130;
const N: usize = 290;

/// Parts of these sizes in turn, the last one of what is left.
fn parts(n: usize, sizes: &[usize]) -> Vec<Range<usize>> {
    let mut sizes = sizes.iter().cycle();
    let mut parts = Vec::new();
    let mut start = 0;
    while start < n {
        let end = n.min(start + sizes.next().unwrap());
        parts.push(start..end);
        start = end;
    }
    parts
}

/// Partitions of rows that meet at and beside register blocks of 4, 6 and 12.
fn rows() -> Vec<Vec<Range<usize>>> {
    let sizes: [&[usize]; 8] =
        [&[M], &[96, 34], &[64, 66], &[32], &[5, 125], &[1, 2, 3, 23], &[6], &[12, 11, 7]];
    sizes.iter().map(|sizes| parts(M, sizes)).collect()
}

/// Partitions of columns that meet at panels of `panel` columns.
fn columns(panel: usize) -> Vec<Vec<Range<usize>>> {
    [[N, N], [16, 16], [32, 32], [64, 64], [256, 256], [48, 128], [96, 32]]
        .iter()
        .filter(|sizes| sizes.iter().all(|size| *size == N || size.is_multiple_of(panel)))
        .map(|sizes| parts(N, sizes))
        .collect()
}

#[track_caller]
fn assert_part(part: &Grid, whole: &Grid, at: (usize, usize), what: &str) {
    part.assert_frame(what);
    for r in 0..part.rows {
        for c in 0..part.cols {
            let (x, y) = (part.at(r, c), whole.at(at.0 + r, at.1 + c));
            let place = (at.0 + r, at.1 + c);
            assert_eq!(x.to_bits(), y.to_bits(), "{what}: {x} for {y} at {place:?}");
        }
    }
}

/// The elements `rows` x `cols` of `grid`, elsewhere.
fn copy(rng: &mut Rng, grid: &Grid, rows: &Range<usize>, cols: &Range<usize>) -> Grid {
    let mut part = Grid::blank_somewhere(rng, rows.len(), cols.len());
    part.fill(|i, j| grid.at(rows.start + i, cols.start + j));
    part
}

/// Kinds of epilogue, by number.
const EPILOGUES: usize = 9;

/// A packed product with all that an epilogue may want.
struct Product {
    a: Grid,
    packed: Vec<f32>,
    k: usize,
    bias: Grid,
    other: Grid,
    start: Grid,
    kind: usize,
    accumulate: bool,
}

impl Product {
    fn new(kernels: &Kernels, k: usize, kind: usize, rng: &mut Rng) -> Self {
        let b = Grid::random(rng, k, N);
        let mut packed = vec![f32::NAN; kernels.packed_len(k, N).unwrap()];
        kernels.pack(b.view(), &mut packed);
        let mut grid = |rows, cols| Grid::random(rng, rows, cols);
        let (a, bias, other, start) = (grid(M, k), grid(1, N), grid(M, N), grid(M, N));
        Self { a, packed, k, bias, other, start, kind, accumulate: rng.coin() }
    }

    /// C, and what the epilogue keeps, of `rows` x `cols`.
    fn run(
        &self,
        kernels: &Kernels,
        rows: &Range<usize>,
        cols: &Range<usize>,
        rng: &mut Rng,
    ) -> [Grid; 2] {
        let (m, n) = (rows.len(), cols.len());
        let a = self.a.view().row_range(rows.start, m);
        let b = Packed::new(&self.packed, self.k, N);
        let b = kernels.packed_columns(b, cols.clone());
        let mut c = copy(rng, &self.start, rows, cols);
        let mut pre = copy(rng, &self.other, rows, cols);
        let other = self.other.view().row_range(rows.start, m).col_range(cols.start, n);
        let bias = &self.bias.slice()[cols.clone()];
        let dropout = Dropout::new(0.3, 11, 5, 2).unwrap().from_column(cols.start);
        let dropout = Some((dropout, 1000 + rows.start as u32));
        let epilogue = match self.kind {
            0 => Epilogue::None,
            1 => Epilogue::Bias(bias),
            2 => Epilogue::Gelu { bias: None, pre: pre.view_mut().into() },
            3 => Epilogue::Gelu { bias: Some(bias), pre: pre.view_mut().into() },
            4 => Epilogue::Residual { bias: None, residual: other, dropout: None },
            5 => Epilogue::Residual { bias: Some(bias), residual: other, dropout },
            6 => Epilogue::GeluGrad { pre: pre.view_mut().into() },
            7 => Epilogue::Relu2 { bias: Some(bias), pre: pre.view_mut().into() },
            _ => Epilogue::Relu2Grad { pre: pre.view_mut().into() },
        };
        let room = &mut room(kernels, m, self.k);
        kernels.gemm(a, b, c.view_mut(), self.accumulate, epilogue, room);
        [c, pre]
    }
}

#[test]
fn a_packed_product_in_parts_has_the_bits_of_the_whole() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(61);
        for kind in 0..EPILOGUES {
            for k in [17, 270] {
                let product = Product::new(kernels, k, kind, &mut rng);
                let whole = product.run(kernels, &(0..M), &(0..N), &mut rng);
                for rows in rows() {
                    for cols in columns(kernels.panel()) {
                        for rows in &rows {
                            for cols in &cols {
                                let what = format!("{kernels:?} {k} {kind} {rows:?} {cols:?}");
                                let part = product.run(kernels, rows, cols, &mut rng);
                                let at = (rows.start, cols.start);
                                assert_part(&part[0], &whole[0], at, &what);
                                assert_part(&part[1], &whole[1], at, &what);
                            }
                        }
                    }
                }
            }
        }
    });
}

/// The epilogue goes with the last part, which is the one that has the whole sum.
#[test]
fn a_packed_product_in_parts_of_its_depth_has_the_bits_of_the_whole() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(64);
        let (m, n, k) = (13, 50, 2 * KC + 77);
        let (a, b) = (Grid::random(&mut rng, m, k), Grid::random(&mut rng, k, n));
        let (pre, start) = (Grid::random(&mut rng, m, n), Grid::random(&mut rng, m, n));
        for accumulate in [false, true] {
            for with_epilogue in [false, true] {
                let mut run = |sizes: &[usize]| {
                    let mut pre = copy(&mut rng, &pre, &(0..m), &(0..n));
                    let mut c = copy(&mut rng, &start, &(0..m), &(0..n));
                    for part in parts(k, sizes) {
                        let (first, depth) = (part.start, part.len());
                        let mut packed = vec![0.0; kernels.packed_len(depth, n).unwrap()];
                        kernels.pack(b.view().row_range(first, depth), &mut packed);
                        let packed = Packed::new(&packed, depth, n);
                        let epilogue = if with_epilogue && part.end == k {
                            Epilogue::GeluGrad { pre: pre.view_mut().into() }
                        } else {
                            Epilogue::None
                        };
                        let a = a.view().col_range(first, depth);
                        let adds = accumulate || first > 0;
                        let room = &mut room(kernels, m, depth);
                        kernels.gemm(a, packed, c.view_mut(), adds, epilogue, room);
                    }
                    c.bits()
                };
                let whole = run(&[k]);
                for sizes in [&[KC][..], &[2 * KC, KC], &[KC, 2 * KC]] {
                    assert_eq!(run(sizes), whole, "{kernels:?} {sizes:?}");
                }
            }
        }
    });
}

#[test]
fn a_matrix_packed_in_parts_is_packed_the_same() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(62);
        let k = 37;
        let b = Grid::random(&mut rng, k, N);
        for source in [b.view(), Grid::random(&mut rng, N, k).view().t()] {
            let len = kernels.packed_len(k, N).unwrap();
            let (mut whole, mut pieces) = (vec![f32::NAN; len], vec![f32::NAN; len]);
            kernels.pack(source, &mut whole);
            for cols in columns(kernels.panel()) {
                pieces.fill(f32::NAN);
                for cols in cols {
                    let to = &mut pieces[kernels.packed_len(k, cols.start).unwrap()..];
                    let to = &mut to[..kernels.packed_len(k, cols.len()).unwrap()];
                    kernels.pack(source.col_range(cols.start, cols.len()), to);
                }
                assert_eq!(pieces, whole);
            }
        }
    });
}

/// Values about where denormals begin, which conversion may flush or round up.
#[test]
fn tiny_operands_have_the_same_bits_in_every_cut() {
    each_dtype(|kernels| {
        let edges = [0x7f_7fff, 0x7f_8000, 0x7f_ffff, 0x80_0000, 0x40_0000, 0x80_7fff_u32];
        let mut rng = Rng::new(64);
        let (m, n, k) = (33, 65, 67);
        let mut tiny = |rows, cols| {
            let mut grid = Grid::blank(rows, cols, 3, 1);
            grid.fill(|_, _| {
                let sign = if rng.coin() { 0x8000_0000 } else { 0 };
                f32::from_bits(edges[rng.below(edges.len())] | sign)
            });
            grid
        };
        let (x, dy) = (tiny(k, m), tiny(k, n));
        let mut large = Grid::blank(k, n.max(m), 1, 2);
        large.fill(|i, j| 1e30 * (1.0 + (i * 7 + j) as f32));
        for [x, dy] in [[&x, &large], [&large, &dy]] {
            let (m, n) = (x.cols.min(m), dy.cols.min(n));
            let depth = 0..k;
            let mut whole = Grid::blank(m, n, 0, 1);
            add_gradient(kernels, [x, dy], [&(0..m), &(0..n), &depth], &mut whole, false);
            let packed_product = |rows: &Range<usize>, cols: &Range<usize>, strided: bool| {
                let mut packed = vec![0.0; kernels.packed_len(k, cols.len()).unwrap()];
                kernels.pack(dy.view().col_range(cols.start, cols.len()), &mut packed);
                let mut straight = Grid::blank(m, k, 2, 1);
                straight.fill(|i, p| x.at(p, i));
                let a = if strided { x.view().col_range(0, m).t() } else { straight.view() };
                let mut c = Grid::blank(rows.len(), cols.len(), 1, 1);
                kernels.gemm(
                    a.row_range(rows.start, rows.len()),
                    Packed::new(&packed, k, cols.len()),
                    c.view_mut(),
                    false,
                    Epilogue::None,
                    &mut room(kernels, rows.len(), k),
                );
                c
            };
            for (rows, cols) in [(0..12, 0..n), (0..16, 0..31), (5..m, 32..n), (m - 1..m, 0..1)] {
                let what = format!("{kernels:?} {rows:?} {cols:?}");
                let mut part = Grid::blank(rows.len(), cols.len(), 0, 1);
                add_gradient(kernels, [x, dy], [&rows, &cols, &depth], &mut part, false);
                assert_part(&part, &whole, (rows.start, cols.start), &what);
                for strided in [false, true] {
                    let part = packed_product(&rows, &cols, strided);
                    assert_part(&part, &whole, (rows.start, cols.start), &what);
                }
            }
        }
    });
}

#[test]
fn columns_of_a_packed_matrix_are_checked() {
    each_dtype(|kernels| {
        let (k, n, panel) = (3, 50, kernels.panel());
        assert!(32 % panel == 0, "{panel}");
        let packed = vec![0.0; kernels.packed_len(k, n).unwrap()];
        let columns = |packed: &[f32], start: usize, end: usize| {
            let _ = kernels.packed_columns(Packed::new(packed, k, n), start..end);
        };
        for (start, end) in [(0, 0), (0, n), (panel, n), (panel, panel + 1), (32, 32), (32, n)] {
            columns(&packed, start, end);
        }
        for (start, end) in [(1, n), (panel / 2, n), (0, n + 1), (64, 64), (panel, 0)] {
            assert!(panics(|| columns(&packed, start, end)), "accepted {start}..{end}");
        }
        assert!(panics(|| columns(&packed[1..], 0, n)));
    });
}

/// `C (+)= X^T dY`, for some rows and columns of C and some of the inner dimension.
fn add_gradient(
    kernels: &Kernels,
    [x, dy]: [&Grid; 2],
    [rows, cols, depth]: [&Range<usize>; 3],
    c: &mut Grid,
    accumulate: bool,
) {
    let need = kernels.unpacked_scratch_len(rows.len(), cols.len(), depth.len());
    let mut scratch = Grid::blank(1, need.unwrap(), 0, 3);
    let (x, dy) = (x.view().col_range(rows.start, rows.len()), dy.view());
    let (first, k) = (depth.start, depth.len());
    let x = x.row_range(first, k);
    let dy = dy.row_range(first, k).col_range(cols.start, cols.len());
    kernels.gemm_unpacked(x.t(), dy, c.view_mut(), accumulate, scratch.slice_mut());
    scratch.assert_frame("scratch");
}

#[test]
fn a_weight_gradient_in_parts_has_the_bits_of_the_whole() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(63);
        let k = 2 * KC + 77;
        let [x, dy] = [M, N].map(|n| Grid::random(&mut rng, k, n));
        let start = Grid::random(&mut rng, M, N);
        // Columns need no panels here: this packing is the call's own.
        let (all_rows, mut all_columns) = (rows(), columns(kernels.panel()));
        all_columns.push(parts(N, &[1, 100, 7]));
        let depths = [&[k][..], &[KC], &[2 * KC, KC], &[KC, 2 * KC]].map(|sizes| parts(k, sizes));
        for accumulate in [false, true] {
            let mut whole = copy(&mut rng, &start, &(0..M), &(0..N));
            let all = [&(0..M), &(0..N), &(0..k)];
            add_gradient(kernels, [&x, &dy], all, &mut whole, accumulate);
            let parts = all_rows.iter().flatten().flat_map(|rows| {
                let columns = all_columns.iter().flatten();
                columns.map(move |cols| (rows, cols))
            });
            // Every part with one partition of the inner dimension, in turns.
            for ((rows, cols), depth) in parts.zip(depths.iter().cycle()) {
                let mut part = copy(&mut rng, &start, rows, cols);
                for depth in depth {
                    let adds = accumulate || depth.start > 0;
                    add_gradient(kernels, [&x, &dy], [rows, cols, depth], &mut part, adds);
                }
                let what = format!("{kernels:?} {rows:?} {cols:?} {depth:?}");
                assert_part(&part, &whole, (rows.start, cols.start), &what);
            }
        }
    });
}
