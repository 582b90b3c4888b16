//! What models of the Llama family have beside GPT-2's: rotary positions and gated activations. RMS norms
//! are in `rows.rs`.
#![allow(clippy::needless_range_loop, reason = "indices read like the formulas")]

mod common;

use cllm_kernels::{Angles, Kernels, MatMut, MatRef, OperandMut};
use common::halves::{self, Halves, rounded};
use common::{Grid, Rng, SIZES, assert_close, each_dtype, each_isa, panics, reference, tolerance};

/// Tables of `positions x half`, of real angles.
fn tables(rng: &mut Rng, positions: usize, half: usize) -> [Grid; 2] {
    let turns: Vec<f32> = (0..positions * half).map(|_| rng.float() * 40.0).collect();
    let of = |rng: &mut Rng, f: fn(f32) -> f32| {
        let mut table = Grid::blank_somewhere(rng, positions, half);
        table.fill(|i, j| f(turns[i * half + j]));
        table
    };
    [of(rng, f32::cos), of(rng, f32::sin)]
}

/// Rows of heads turned and turned back, every element checked.
fn check_rotation(kernels: &Kernels, rows: usize, heads: usize, head: usize, rng: &mut Rng) {
    let half = if rng.coin() { head / 2 } else { rng.below(head / 2 + 1) };
    let period = 1 + rng.below(9);
    let (positions, first) = (period + rng.below(3), rng.below(20));
    let what = format!("{kernels:?} {rows} rows of {heads} heads of {head}, {half} turned");
    let [cos, sin] = tables(rng, positions, half);
    let angles = Angles { cos: cos.view(), sin: sin.view() };
    let x = Grid::random(rng, rows, heads * head);
    let mut y = Grid::blank_somewhere(rng, rows, heads * head);
    y.fill(|i, j| x.at(i, j));
    kernels.rotate(y.view_mut(), head, &angles, first, period, false);
    y.assert_frame(&what);
    let mut back = Grid::blank_somewhere(rng, rows, heads * head);
    back.fill(|i, j| y.at(i, j));
    kernels.rotate(back.view_mut(), head, &angles, first, period, true);
    back.assert_frame(&what);
    for i in 0..rows {
        let at = (first + i) % period;
        for j in 0..heads * head {
            let (start, within) = (j / head * head, j % head);
            let what = format!("{what} at ({i}, {j})");
            if within >= 2 * half {
                assert_eq!((y.at(i, j), back.at(i, j)), (x.at(i, j), x.at(i, j)), "{what}");
                continue;
            }
            let (angle, upper) = (within % half, within >= half);
            let wide = |grid: &Grid, i: usize, j: usize| f64::from(grid.at(i, j));
            let (c, s) = (wide(&cos, at, angle), wide(&sin, at, angle));
            let other = if upper { j - half } else { j + half };
            let (own, other) = (wide(&x, i, start + within), wide(&x, i, other));
            let exact = if upper { own * c + other * s } else { own * c - other * s };
            let bound = tolerance::rotation((own * c).abs() + (other * s).abs());
            assert_close(y.at(i, j), exact, bound, &what);
            // The tables' own rounding: cos^2 + sin^2 is 1 to 4 U.
            let bound = 10.0 * tolerance::rotation(own.abs() + other.abs());
            assert_close(back.at(i, j), own, bound, format!("{what} and back"));
        }
    }
    // Any rows by themselves have the same bits.
    let (mut parts, cols) = (x.values(), heads * head);
    let cut = rng.below(rows + 1);
    let (upper, lower) = parts.split_at_mut(cut * cols);
    for (part, done) in [(upper, 0), (lower, cut)] {
        let part_rows = part.len() / cols;
        let part = MatMut::new(part, part_rows, cols, cols);
        kernels.rotate(part, head, &angles, first + done, period, false);
    }
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(&parts) == bits(&y.values()), "{what}: cut at {cut}");
}

#[test]
fn rotations_match_the_reference_and_turn_back() {
    each_isa(|kernels| {
        let mut rng = Rng::new(51);
        for head in [1, 2, 8, 16, 30, 32, 64, 96, 128] {
            for rows in [0, 1, 3, 8] {
                let heads = 1 + rng.below(4);
                check_rotation(kernels, rows, heads, head, &mut rng);
            }
        }
    });
}

#[test]
// Compact code says nothing when it panics.
#[cfg_attr(not(feature = "compact"), should_panic(expected = "5 positions for 6"))]
#[cfg_attr(feature = "compact", should_panic)]
fn positions_beyond_the_tables_are_refused() {
    let table = [0.0; 20];
    let angles = Angles { cos: MatRef::new(&table, 5, 4, 4), sin: MatRef::new(&table, 5, 4, 4) };
    let mut x = [0.0; 48];
    Kernels::scalar().rotate(MatMut::new(&mut x, 6, 8, 8), 8, &angles, 0, 9, false);
}

/// `y`, `dg` and `du`, and how far off each may be.
fn swiglu_exactly(g: f64, u: f64, grad: f64) -> [(f64, f64); 3] {
    let silu = g * reference::logistic(g);
    let (y, dg, du) = (silu * u, grad * u * reference::silu_slope(g), grad * silu);
    let dg_bound = tolerance::silu_slope(g) * (grad * u).abs() + tolerance::swiglu(dg.abs());
    [(y, tolerance::swiglu(y.abs())), (dg, dg_bound), (du, tolerance::swiglu(du.abs()))]
}

/// SwiGLU and its gradients of rows whose gates are in `-range..range`.
fn check_swiglu(kernels: &Kernels, rows: usize, n: usize, range: f32, rng: &mut Rng) {
    let what = format!("{kernels:?} {rows}x{n} range {range}");
    let mut pre = Grid::random(rng, rows, 2 * n);
    let values = pre.values();
    pre.fill(|i, j| values[i * 2 * n + j] * if j < n { range } else { 1.0 });
    let before = pre.wide();
    let mut y = Grid::blank_somewhere(rng, rows, n);
    kernels.swiglu(pre.view(), y.view_mut());
    let dy = Grid::random(rng, rows, n);
    let mut dpre = Grid::blank_somewhere(rng, rows, 2 * n);
    kernels.swiglu_backward(pre.view_mut().into(), dy.view(), dpre.view_mut().into());
    for grid in [&y, &pre, &dpre] {
        grid.assert_frame(&what);
    }
    for i in 0..rows {
        for j in 0..n {
            let (g, u) = (before[i * 2 * n + j], before[i * 2 * n + n + j]);
            let grad = f64::from(dy.at(i, j));
            let what = format!("{what} at ({i}, {j}), gate {g}");
            let [(exact, bound), (dg, dg_bound), (du, du_bound)] = swiglu_exactly(g, u, grad);
            assert_close(y.at(i, j), exact, bound, &what);
            assert_eq!(pre.at(i, j).to_bits(), y.at(i, j).to_bits(), "{what}: made again");
            assert_eq!(f64::from(pre.at(i, n + j)), u, "{what}: changed");
            assert_close(dpre.at(i, j), dg, dg_bound, format!("{what}: dg"));
            assert_close(dpre.at(i, n + j), du, du_bound, format!("{what}: du"));
            let difference =
                reference::difference(&mut [g], 0, |g| grad * u * g[0] * reference::logistic(g[0]));
            let bound = dg_bound + tolerance::DIFFERENCES * f64::from(range);
            assert_close(dpre.at(i, j), difference, bound, format!("{what}: dg, differences"));
        }
    }
}

#[test]
fn swiglu_and_its_gradients_match_the_reference() {
    each_isa(|kernels| {
        let mut rng = Rng::new(52);
        for n in SIZES.into_iter().chain([0, 1024]) {
            for range in [1.0, 6.0, 100.0] {
                check_swiglu(kernels, 1 + rng.below(3), n, range, &mut rng);
            }
        }
    });
}

#[test]
fn gates_are_shut_and_open_at_the_ends_and_keep_nan() {
    each_isa(|kernels| {
        for (g, y) in [
            (0.0, 0.0),
            (-1e30, 0.0),
            (-200.0, 0.0),
            (f32::MIN, 0.0),
            (200.0, 200.0),
            (1e30, 1e30),
            (f32::INFINITY, f32::INFINITY),
        ] {
            let mut out = [7.0];
            kernels.swiglu(MatRef::new(&[g, 1.0], 1, 2, 2), MatMut::new(&mut out, 1, 1, 1));
            assert_eq!(out[0], y, "{kernels:?} {g}");
        }
        for (g, dg) in [
            (0.0, 0.5),
            (-1e30, 0.0),
            (f32::MIN, 0.0),
            (1e30, 1.0),
            (f32::MAX, 1.0),
            (f32::INFINITY, 1.0),
            (f32::NEG_INFINITY, 0.0),
        ] {
            let (mut pre, mut grad) = ([g, 1.0], [7.0; 2]);
            let [pre, dpre] = [&mut pre, &mut grad].map(|pair| MatMut::new(pair, 1, 2, 2));
            kernels.swiglu_backward(pre.into(), MatRef::new(&[1.0], 1, 1, 1), dpre.into());
            assert_eq!(grad[0], dg, "{kernels:?}: slope at {g}");
        }
        for g in [f32::NAN, f32::NEG_INFINITY] {
            let mut out = [7.0];
            kernels.swiglu(MatRef::new(&[g, 1.0], 1, 2, 2), MatMut::new(&mut out, 1, 1, 1));
            assert!(out[0].is_nan(), "{kernels:?} {g}");
        }
    });
}

/// y, what the backward pass leaves of `pre`, and `dpre`; all of floats, as [`check_swiglu`] checks them.
fn swiglu_of_floats(kernels: &Kernels, pre: &Halves, dy: &Grid) -> [Vec<f32>; 3] {
    let (rows, n) = (dy.rows, dy.cols);
    let (mut y, mut again, mut dpre) =
        (vec![0.0; rows * n], pre.floats.clone(), vec![0.0; rows * 2 * n]);
    kernels.swiglu(pre.as_floats(), MatMut::new(&mut y, rows, n, n));
    let [g, dg] = [&mut again, &mut dpre].map(|m| MatMut::new(m, rows, 2 * n, 2 * n).into());
    kernels.swiglu_backward(g, dy.view(), dg);
    [y, again, dpre]
}

/// The bits of the same three of bf16, as floats': all rows in one call, or each in its own. Frames are
/// checked.
fn swiglu_of_halves(
    kernels: &Kernels,
    values: &[f32],
    dy: &Grid,
    gaps: [usize; 3],
    by_row: bool,
    what: &str,
) -> [Vec<u32>; 3] {
    let (rows, n) = (dy.rows, dy.cols);
    let mut pre = Halves::of(values, rows, 2 * n, 2 * n + gaps[0]);
    let mut y = Halves::blank(rows, n, n + gaps[1]);
    let mut dpre = Halves::blank(rows, 2 * n, 2 * n + gaps[2]);
    if by_row {
        for r in 0..rows {
            kernels.swiglu(pre.row(r), y.row_mut(r));
            let dy = dy.view().row_range(r, 1);
            kernels.swiglu_backward(pre.row_mut(r), dy, dpre.row_mut(r));
        }
    } else {
        kernels.swiglu(pre.view(), y.view_mut());
        kernels.swiglu_backward(pre.view_mut(), dy.view(), dpre.view_mut());
    }
    [y, pre, dpre].map(|m| m.written(what))
}

/// SwiGLU between every two kinds, and its gradients, with `pre` rounded to bf16.
fn check_swiglu_of_halves(kernels: &Kernels, values: &[f32], dy: &Grid, rng: &mut Rng) {
    let (rows, n) = (dy.rows, dy.cols);
    let what = format!("{kernels:?} {rows}x{n} of bf16");
    let gaps = [0; 3].map(|_| 1 + rng.below(9));
    let pre = Halves::of(values, rows, 2 * n, 2 * n + gaps[0]);
    let [y, again, dpre] = swiglu_of_floats(kernels, &pre, dy);
    let got = swiglu_of_halves(kernels, values, dy, gaps, false, &what);
    // Rounded once, at the end.
    assert_eq!(got, [&y, &again, &dpre].map(|floats| rounded(floats)), "{what}");
    let rows_alone = swiglu_of_halves(kernels, values, dy, gaps, true, &what);
    assert_eq!(rows_alone, got, "{what}: rows by themselves");
    let [got_y, got_pre, got_dpre] = got;
    for i in 0..rows {
        let made_again = &got_pre[i * 2 * n..][..n];
        assert_eq!(made_again, &got_y[i * n..][..n], "{what}: made again");
    }
    // Where one of both is of floats.
    let mut floats = Grid::blank_somewhere(rng, rows, n);
    kernels.swiglu(pre.view(), floats.view_mut());
    floats.assert_frame(&what);
    let wanted: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
    assert_eq!(floats.bits(), wanted, "{what}: y of floats");
    let mut halves = Halves::blank(rows, n, n + gaps[1]);
    kernels.swiglu(pre.as_floats(), halves.view_mut());
    assert_eq!(halves.written(&what), rounded(&y), "{what}: pre of floats");
    for i in 0..rows {
        for j in 0..n {
            let at = i * 2 * n + j;
            let (g, u) = (pre.floats[at], pre.floats[at + n]);
            if !g.is_finite() {
                continue;
            }
            let what = format!("{what} at ({i}, {j}), gate {g}");
            let exact = swiglu_exactly(g.into(), u.into(), dy.at(i, j).into());
            let got = [got_y[i * n + j], got_dpre[at], got_dpre[at + n]].map(f32::from_bits);
            for (got, (exact, bound)) in got.into_iter().zip(exact) {
                assert_close(got, exact, tolerance::halves(exact, bound), &what);
            }
        }
    }
}

#[test]
fn swiglu_of_bf16_is_that_of_floats_rounded_once() {
    halves::each(|kernels| {
        let mut rng = Rng::new(53);
        for n in SIZES.into_iter().chain([0, 1024]) {
            for range in [1.0, 6.0, 100.0] {
                let rows = rng.below(5);
                let dy = Grid::random(&mut rng, rows, n);
                let scale = |e: usize| if e % (2 * n) < n { range } else { 1.0 };
                let values: Vec<f32> = (0..rows * 2 * n).map(|e| rng.float() * scale(e)).collect();
                check_swiglu_of_halves(kernels, &values, &dy, &mut rng);
            }
        }
        let ends = [0.0, -1e30, -200.0, 200.0, 1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let values: Vec<f32> = ends.into_iter().chain([1.0; 8]).collect();
        let mut dy = Grid::blank_somewhere(&mut rng, 1, 8);
        dy.fill(|_, _| 1.0);
        check_swiglu_of_halves(kernels, &values, &dy, &mut rng);
    });
}

/// Two rows of six elements, of one kind or the other.
fn of_kind<'a>(is_half: bool, half: &'a mut Halves, floats: &'a mut [f32]) -> OperandMut<'a> {
    if is_half { half.view_mut() } else { MatMut::new(floats, 2, 6, 6).into() }
}

#[test]
fn swiglu_takes_bf16_where_it_is_kept_and_gradients_of_the_same_kind_alone() {
    each_dtype(|kernels| {
        let keeps = kernels.keeps_halves();
        for (half_pre, half_other) in [(false, false), (false, true), (true, false), (true, true)] {
            let (mut half, mut other) = (Halves::of(&[0.0; 12], 2, 6, 6), Halves::blank(2, 6, 6));
            let (mut y, floats) = (Halves::blank(2, 3, 3), [&mut [0.0; 12], &mut [0.0; 12]]);
            let [pre, dpre] = floats;
            let what = format!("{kernels:?}: pre of bf16: {half_pre}, the other: {half_other}");
            let refused = panics(|| {
                let pre = if half_pre { half.view() } else { half.as_floats() };
                let y = if half_other { y.view_mut() } else { MatMut::new(dpre, 2, 3, 3).into() };
                kernels.swiglu(pre, y);
            });
            assert_eq!(refused, !keeps && (half_pre || half_other), "{what}");
            let refused = panics(|| {
                let pre = of_kind(half_pre, &mut half, pre);
                let dpre = of_kind(half_other, &mut other, dpre);
                kernels.swiglu_backward(pre, MatRef::new(&[0.0; 6], 2, 3, 3), dpre);
            });
            assert_eq!(refused, half_pre != half_other || half_pre && !keeps, "{what}: backward");
        }
    });
}
