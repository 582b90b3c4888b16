//! What models of the Llama family have beside GPT-2's: rotary positions and gated activations. RMS norms
//! are in `rows.rs`.
#![allow(clippy::needless_range_loop, reason = "indices read like the formulas")]

mod common;

use cllm_kernels::{Angles, Kernels, MatMut, MatRef};
use common::{Grid, Rng, SIZES, assert_close, each_isa, reference, tolerance};

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
#[should_panic(expected = "5 positions for 6")]
fn positions_beyond_the_tables_are_refused() {
    let table = [0.0; 20];
    let angles = Angles { cos: MatRef::new(&table, 5, 4, 4), sin: MatRef::new(&table, 5, 4, 4) };
    let mut x = [0.0; 48];
    Kernels::scalar().rotate(MatMut::new(&mut x, 6, 8, 8), 8, &angles, 0, 9, false);
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
    kernels.swiglu_backward(pre.view_mut(), dy.view(), dpre.view_mut());
    for grid in [&y, &pre, &dpre] {
        grid.assert_frame(&what);
    }
    for i in 0..rows {
        for j in 0..n {
            let (g, u) = (before[i * 2 * n + j], before[i * 2 * n + n + j]);
            let (gate, grad) = (reference::logistic(g), f64::from(dy.at(i, j)));
            let what = format!("{what} at ({i}, {j}), gate {g}");
            let exact = g * gate * u;
            assert_close(y.at(i, j), exact, tolerance::swiglu(exact.abs()), &what);
            assert_eq!(pre.at(i, j).to_bits(), y.at(i, j).to_bits(), "{what}: made again");
            assert_eq!(f64::from(pre.at(i, n + j)), u, "{what}: changed");
            let slope = reference::silu_slope(g);
            let dg_bound = tolerance::silu_slope(g) * (grad * u).abs()
                + tolerance::swiglu((grad * u * slope).abs());
            assert_close(dpre.at(i, j), grad * u * slope, dg_bound, format!("{what}: dg"));
            let silu = grad * g * gate;
            let bound = tolerance::swiglu(silu.abs());
            assert_close(dpre.at(i, n + j), silu, bound, format!("{what}: du"));
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
            kernels.swiglu_backward(pre, MatRef::new(&[1.0], 1, 1, 1), dpre);
            assert_eq!(grad[0], dg, "{kernels:?}: slope at {g}");
        }
        for g in [f32::NAN, f32::NEG_INFINITY] {
            let mut out = [7.0];
            kernels.swiglu(MatRef::new(&[g, 1.0], 1, 2, 2), MatMut::new(&mut out, 1, 1, 1));
            assert!(out[0].is_nan(), "{kernels:?} {g}");
        }
    });
}
