//! Row-wise kernels: layer norm, softmax cross-entropy, embeddings.
#![allow(clippy::needless_range_loop, reason = "indices read like the formulas")]

mod common;

use cllm_kernels::{IGNORE, Kernels, NormInPlace, NormSaved};
use common::{Grid, Rng, SIZES, assert_close, each_isa, reference, tolerance};

const EPS: f32 = 1e-5;

fn blank(rng: &mut Rng, n: usize) -> Grid {
    Grid::blank(1, n, 0, 1 + rng.below(7))
}

/// One layer norm, or if not `centred` RMS norm, forward and backward, with every element checked.
fn check_norm(kernels: &Kernels, rows: usize, cols: usize, centred: bool, rng: &mut Rng) {
    let what = format!("{kernels:?} {rows}x{cols} centred: {centred}");
    let mut x = Grid::random(rng, rows, cols);
    let shift = rng.float() * 2.0;
    let values = x.values();
    x.fill(|i, j| values[i * cols + j] + shift);
    let (gain, bias) = (Grid::vector(rng, cols), Grid::vector(rng, cols));
    let with_bias = rng.coin();
    let mut y = Grid::blank_somewhere(rng, rows, cols);
    let (mut mean, mut rstd) = (blank(rng, rows), blank(rng, rows));
    kernels.layer_norm(
        x.view(),
        gain.slice(),
        with_bias.then(|| bias.slice()),
        EPS,
        y.view_mut(),
        centred.then(|| mean.slice_mut()),
        rstd.slice_mut(),
    );
    let means = || centred.then(|| mean.slice());
    for grid in [&y, &mean, &rstd] {
        grid.assert_frame(&what);
    }

    let dy = Grid::random(rng, rows, cols);
    let accumulate = rng.coin();
    let mut dx = Grid::blank_somewhere(rng, rows, cols);
    if accumulate {
        dx.fill(|_, _| rng.float());
    }
    let before = if accumulate { dx.wide() } else { vec![0.0; rows * cols] };
    let (mut dgain, mut dbias) = (blank(rng, cols), blank(rng, cols));
    let saved = NormSaved { x: x.view(), gain: gain.slice(), mean: means(), rstd: rstd.slice() };
    kernels.layer_norm_backward(
        &saved,
        dy.view(),
        dx.view_mut(),
        accumulate,
        dgain.slice_mut(),
        with_bias.then(|| dbias.slice_mut()),
    );
    for grid in [&dx, &dgain, &dbias] {
        grid.assert_frame(&what);
    }

    let mut again = Grid::blank_somewhere(rng, rows, cols);
    again.fill(|i, j| x.at(i, j));
    let mut dx_again = Grid::blank_somewhere(rng, rows, cols);
    dx_again.fill(|i, j| before[i * cols + j] as f32);
    let (mut dgain_again, mut dbias_again) = (blank(rng, cols), blank(rng, cols));
    kernels.layer_norm_backward_in_place(
        &mut NormInPlace {
            x: again.view_mut(),
            halves: false,
            gain: gain.slice(),
            bias: with_bias.then(|| bias.slice()),
            mean: means(),
            rstd: rstd.slice(),
        },
        dy.view(),
        dx_again.view_mut(),
        accumulate,
        dgain_again.slice_mut(),
        with_bias.then(|| dbias_again.slice_mut()),
    );
    for (again, first) in
        [(&again, &y), (&dx_again, &dx), (&dgain_again, &dgain), (&dbias_again, &dbias)]
    {
        again.assert_frame(&what);
        assert_eq!(again.bits(), first.bits(), "{what}: in place");
    }

    let (gains, eps) = (gain.wide(), f64::from(EPS));
    let biases = if with_bias { bias.wide() } else { vec![0.0; cols] };
    let (mut dgains, mut dgain_sizes) = (vec![0.0; cols], vec![0.0; cols]);
    let (mut dbiases, mut dbias_sizes) = (vec![0.0; cols], vec![0.0; cols]);
    for i in 0..rows {
        let mut row = x.wide()[i * cols..][..cols].to_vec();
        let grads = dy.wide()[i * cols..][..cols].to_vec();
        let (centre, root) = reference::moments(&row, eps, centred);
        // What the mean is off by, if there is one.
        let size = row.iter().map(|x| x.abs()).sum::<f64>() / cols as f64;
        let size = if centred { size } else { 0.0 };
        let at = format!("{what} row {i}");
        let bound = tolerance::layer_norm(cols, size, 1.0, 0.0);
        if centred {
            assert_close(mean.at(0, i), centre, bound, format!("{at}: mean"));
        }
        // The mean's own error enters the variance squared: it matters where rows are constant.
        let slack = tolerance::layer_norm(cols, root, 1.0, 0.0) + (bound * root).powi(2) * root;
        assert_close(rstd.at(0, i), root, slack, format!("{at}: rstd"));
        let exact = reference::norm(&row, &gains, &biases, eps, centred);
        let spread = |x: f64| (size + (x - centre).abs()) * root;
        let n = cols as f64;
        let w_size = (0..cols).map(|j| (gains[j] * grads[j]).abs()).sum::<f64>() / n;
        let w_size = if centred { w_size } else { 0.0 };
        let wh_size =
            (0..cols).map(|j| (gains[j] * grads[j]).abs() * spread(row[j])).sum::<f64>() / n;
        for j in 0..cols {
            let bound = tolerance::layer_norm(cols, spread(row[j]), gains[j], biases[j]);
            assert_close(y.at(i, j), exact[j], bound, format!("{at} column {j}"));
            let hat = (row[j] - centre) * root;
            dgains[j] += grads[j] * hat;
            dgain_sizes[j] += grads[j].abs() * spread(row[j]);
            dbiases[j] += grads[j];
            dbias_sizes[j] += grads[j].abs();

            let w = |j: usize| gains[j] * grads[j];
            let mean_w = if centred { (0..cols).map(w).sum::<f64>() / n } else { 0.0 };
            let mean_wh = (0..cols).map(|j| w(j) * (row[j] - centre) * root).sum::<f64>() / n;
            let formula = before[i * cols + j] + root * (w(j) - mean_w - hat * mean_wh);
            let size = root * (w(j).abs() + w_size + spread(row[j]) * wh_size);
            let size = size + before[i * cols + j].abs();
            let bound = tolerance::layer_norm_backward(0, cols, size);
            assert_close(dx.at(i, j), formula, bound, format!("{at} dx {j}"));
            // Differences lose their accuracy where eps alone holds the variance up.
            if cols <= 33 && root < 30.0 {
                let slope = reference::difference(&mut row, j, |row| {
                    let y = reference::norm(row, &gains, &biases, eps, centred);
                    y.iter().zip(&grads).map(|(y, g)| y * g).sum()
                });
                let bound = bound + tolerance::DIFFERENCES * root.powi(3).max(1.0);
                let exact = before[i * cols + j] + slope;
                assert_close(dx.at(i, j), exact, bound, format!("{at} dx {j}, differences"));
            }
        }
    }
    for j in 0..cols {
        let bound = tolerance::layer_norm_backward(rows, cols, dgain_sizes[j]);
        assert_close(dgain.at(0, j), dgains[j], bound, format!("{what} dgain {j}"));
        if with_bias {
            let bound = tolerance::sum(rows, dbias_sizes[j]);
            assert_close(dbias.at(0, j), dbiases[j], bound, format!("{what} dbias {j}"));
        }
    }
}

#[test]
fn norms_and_their_gradients_match_the_reference() {
    each_isa(|kernels| {
        check_norms(kernels, true);
        check_norms(kernels, false);
    });
}

fn check_norms(kernels: &Kernels, centred: bool) {
    let rng = &mut Rng::new(41);
    for cols in SIZES {
        for rows in [1, 2, 5] {
            check_norm(kernels, rows, cols, centred, rng);
        }
    }
    for _ in 0..100 {
        let (rows, cols) = (rng.size(17), 1 + rng.below(300));
        check_norm(kernels, rows, cols, centred, rng);
    }
    check_norm(kernels, 2, 1024, centred, rng);
}

/// Cross-entropy of one block, loss alone and with gradient, every element checked.
fn check_cross_entropy(kernels: &Kernels, rows: usize, cols: usize, range: f32, rng: &mut Rng) {
    let what = format!("{kernels:?} {rows}x{cols} range {range}");
    let mut logits = Grid::random(rng, rows, cols);
    let values = logits.values();
    logits.fill(|i, j| values[i * cols + j] * range);
    let targets: Vec<u32> = (0..rows)
        .map(|_| if rng.below(5) == 0 { IGNORE } else { rng.below(cols) as u32 })
        .collect();
    let before = logits.bits();
    let wide = logits.wide();
    let (mut alone, mut losses) = (blank(rng, rows), blank(rng, rows));
    kernels.cross_entropy(logits.view_mut(), &targets, alone.slice_mut(), None, None);
    assert_eq!(logits.bits(), before, "{what}: logits changed without a gradient");
    logits.assert_frame(&what);
    let scale = 0.37_f32;
    kernels.cross_entropy(logits.view_mut(), &targets, losses.slice_mut(), Some(scale), None);
    for grid in [&logits, &alone, &losses] {
        grid.assert_frame(&what);
    }
    for i in 0..rows {
        if targets[i] == IGNORE {
            assert_eq!((alone.at(0, i), losses.at(0, i)), (0.0, 0.0), "{what}: ignored row");
            assert!((0..cols).all(|j| logits.at(i, j) == 0.0), "{what}: ignored row");
            continue;
        }
        let target = targets[i] as usize;
        let mut row = wide[i * cols..][..cols].to_vec();
        let (loss, p) = reference::cross_entropy(&row, target);
        let most = row.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let bound = tolerance::cross_entropy_loss(cols, most - row[target]);
        assert_close(losses.at(0, i), loss, bound, format!("{what} loss {i}"));
        assert_close(alone.at(0, i), loss, bound, format!("{what} loss alone {i}"));
        for j in 0..cols {
            let hit = if j == target { 1.0 } else { 0.0 };
            let exact = (p[j] - hit) * f64::from(scale);
            let bound = tolerance::cross_entropy_grad(cols, most - row[j], p[j], f64::from(scale));
            let at = format!("{what} gradient ({i}, {j})");
            assert_close(logits.at(i, j), exact, bound, &at);
            if cols <= 65 {
                let slope = reference::difference(&mut row, j, |row| {
                    reference::cross_entropy(row, target).0 * f64::from(scale)
                });
                // The loss itself may be large: its last bit limits the differences.
                let bound = bound + tolerance::DIFFERENCES + loss * 1e-11;
                assert_close(logits.at(i, j), slope, bound, format!("{at}, differences"));
            }
        }
    }
}

#[test]
fn cross_entropy_and_its_gradient_match_the_reference() {
    each_isa(|kernels| {
        let mut rng = Rng::new(42);
        for cols in SIZES.into_iter().chain([5000]) {
            for range in [1.0, 8.0] {
                check_cross_entropy(kernels, 5, cols, range, &mut rng);
            }
        }
        for _ in 0..50 {
            let cols = 1 + rng.below(300);
            check_cross_entropy(kernels, 3, cols, 4.0, &mut rng);
        }
    });
}

/// Cross-entropy of capped logits: the logits that are capped, and the gradient of those that are not.
fn check_capped(kernels: &Kernels, cols: usize, range: f32, cap: f32, rng: &mut Rng) {
    let (rows, scale) = (4, 0.37_f32);
    let what = format!("{kernels:?} {rows}x{cols} range {range} cap {cap}");
    let mut logits = Grid::random(rng, rows, cols);
    let values = logits.values();
    logits.fill(|i, j| values[i * cols + j] * range);
    let mut targets: Vec<u32> = (0..rows).map(|_| rng.below(cols) as u32).collect();
    targets[2] = IGNORE;
    let wide = logits.wide();
    let of = |x: f64| f64::from(cap) * (x / f64::from(cap)).tanh();
    let mut alone = logits.clone();
    let (mut losses, mut with_gradient) = (blank(rng, rows), blank(rng, rows));
    kernels.cross_entropy(alone.view_mut(), &targets, losses.slice_mut(), None, Some(cap));
    let (to, wanted) = (with_gradient.slice_mut(), Some(scale));
    kernels.cross_entropy(logits.view_mut(), &targets, to, wanted, Some(cap));
    for grid in [&logits, &alone, &losses, &with_gradient] {
        grid.assert_frame(&what);
    }
    assert_eq!(losses.bits(), with_gradient.bits(), "{what}: the loss is another with a gradient");
    for i in 0..rows {
        if targets[i] == IGNORE {
            assert_eq!(losses.at(0, i), 0.0, "{what}: ignored row");
            assert!((0..cols).all(|j| logits.at(i, j) == 0.0), "{what}: ignored row");
            continue;
        }
        let (target, mut row) = (targets[i] as usize, wide[i * cols..][..cols].to_vec());
        let capped: Vec<f64> = row.iter().map(|x| of(*x)).collect();
        let (loss, p) = reference::cross_entropy(&capped, target);
        // What is capped is off by 7 U of itself: so are the differences of two by twice as much of the cap.
        let off = 14.0 * tolerance::U * f64::from(cap).min(f64::from(range) * 4.0);
        let bound = tolerance::cross_entropy_loss(cols, 2.0 * f64::from(cap)) + off;
        assert_close(losses.at(0, i), loss, bound, format!("{what} loss {i}"));
        // As `Kernels::soft_cap` makes it, which generation calls.
        let mut plain: Vec<f32> = row.iter().map(|x| *x as f32).collect();
        kernels.soft_cap(&mut plain, cap);
        for j in 0..cols {
            let at = format!("{what} ({i}, {j})");
            let bound = 7.0 * tolerance::U * capped[j].abs() + tolerance::TINY;
            assert_close(alone.at(i, j), capped[j], bound, format!("{at}, capped"));
            assert_eq!(alone.at(i, j).to_bits(), plain[j].to_bits(), "{at}");
            let tanh = capped[j] / f64::from(cap);
            let hit = if j == target { 1.0 } else { 0.0 };
            let exact = (p[j] - hit) * f64::from(scale) * (1.0 - tanh * tanh);
            let whole = (p[j] + hit) * f64::from(scale);
            let bound =
                tolerance::cross_entropy_grad(cols, 2.0 * f64::from(cap), p[j], scale.into())
                    + whole * (off + 24.0 * tolerance::U);
            assert_close(logits.at(i, j), exact, bound, format!("{at}, gradient"));
            if cols <= 65 && range < 100.0 {
                let slope = reference::difference(&mut row, j, |row| {
                    let row: Vec<f64> = row.iter().map(|x| of(*x)).collect();
                    reference::cross_entropy(&row, target).0 * f64::from(scale)
                });
                let bound = bound + tolerance::DIFFERENCES + loss * 1e-11;
                assert_close(logits.at(i, j), slope, bound, format!("{at}, differences"));
            }
        }
    }
}

#[test]
fn capped_cross_entropy_and_its_gradient_match_the_reference() {
    each_isa(|kernels| {
        let mut rng = Rng::new(46);
        for cols in SIZES.into_iter().chain([5000]) {
            for (range, cap) in [(1.0, 15.0), (8.0, 2.0), (30.0, 30.0), (1e30, 15.0)] {
                check_capped(kernels, cols, range, cap, &mut rng);
            }
        }
        // What is not a number stays so: a run that diverges shows.
        let mut logits = [1.0, f32::NAN, 2.0];
        kernels.soft_cap(&mut logits, 15.0);
        assert!(logits[1].is_nan() && logits[0] > 0.99);
        let mut loss = [0.0];
        let view = cllm_kernels::MatMut::new(&mut logits, 1, 3, 3);
        kernels.cross_entropy(view, &[0], &mut loss, Some(1.0), Some(15.0));
        assert!(loss[0].is_nan());
    });
}

#[test]
fn large_logits_do_not_overflow() {
    each_isa(|kernels| {
        let mut rng = Rng::new(43);
        for range in [100.0, 1e4, 1e30] {
            for cols in [2, 8, 17, 65] {
                check_cross_entropy(kernels, 4, cols, range, &mut rng);
            }
        }
        // Half the largest number apart on both sides: the difference still fits.
        let mut logits = Grid::blank(1, 2, 0, 1);
        logits.fill(|_, j| if j == 0 { f32::MAX / 2.0 } else { -f32::MAX / 2.0 });
        let mut loss = [f32::NAN];
        kernels.cross_entropy(logits.view_mut(), &[0], &mut loss, Some(1.0), None);
        assert_eq!((loss, logits.values()), ([0.0], vec![0.0, 0.0]));
    });
}

#[test]
fn embeddings_are_gathered_exactly() {
    each_isa(|kernels| {
        let mut rng = Rng::new(44);
        for cols in SIZES {
            let (vocab, places, rows) = (11, 9, 1 + rng.below(20));
            let table = Grid::vector(&mut rng, vocab * cols);
            let positions = Grid::vector(&mut rng, places * cols);
            let (offset, first) = (rng.below(3), rng.below(50));
            let period = 1 + rng.below(places - offset);
            let tokens: Vec<u32> = (0..rows).map(|_| rng.below(vocab) as u32).collect();
            for positions in [Some(&positions), None] {
                let mut out = Grid::blank_somewhere(&mut rng, rows, cols);
                kernels.embedding(
                    &tokens,
                    table.slice(),
                    positions.map(Grid::slice),
                    first,
                    period,
                    offset,
                    out.view_mut(),
                );
                out.assert_frame("embedding");
                for i in 0..rows {
                    let place = (first + i) % period + offset;
                    for j in 0..cols {
                        let word = table.at(0, tokens[i] as usize * cols + j);
                        let exact = positions.map_or(word, |p| word + p.at(0, place * cols + j));
                        let what = format!("{kernels:?} {cols} ({i}, {j})");
                        assert_eq!(out.at(i, j).to_bits(), exact.to_bits(), "{what}");
                    }
                }
            }
        }
    });
}

#[test]
fn embedding_gradients_are_scattered_in_the_order_of_the_rows() {
    each_isa(|kernels| {
        let mut rng = Rng::new(45);
        for cols in SIZES {
            let (vocab, rows) = (11, 1 + rng.below(40));
            let tokens: Vec<u32> = (0..rows).map(|_| rng.below(vocab) as u32).collect();
            let grad = Grid::random(&mut rng, rows, cols);
            // All of the table, and the same in two ranges that ignore each other's tokens.
            let start = Grid::vector(&mut rng, vocab * cols);
            let cut = rng.below(vocab + 1);
            let mut exact = start.values();
            for i in 0..rows {
                for j in 0..cols {
                    exact[tokens[i] as usize * cols + j] += grad.at(i, j);
                }
            }
            for ranges in [vec![(0, vocab)], vec![(0, cut), (cut, vocab)]] {
                for (from, to) in ranges {
                    let mut part = Grid::blank(1, (to - from) * cols, 0, 1 + rng.below(7));
                    part.fill(|_, e| start.at(0, from * cols + e));
                    kernels.embedding_backward(&tokens, grad.view(), part.slice_mut(), from);
                    part.assert_frame("embedding_backward");
                    assert_eq!(part.values(), exact[from * cols..to * cols], "{kernels:?} {cols}");
                }
            }
        }
    });
}
