//! Muon's direction in `f64`, written as its paper has it.

/// `U` of so many rows and columns with its singular values brought near 1, and its columns then to one length.
pub(crate) fn direction(u: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let x = orthogonal(u, rows, cols);
    let mean = x.iter().map(|x| x * x).sum::<f64>() / cols as f64;
    let square = |col: usize| x.iter().skip(col).step_by(cols).map(|x| x * x).sum::<f64>();
    let factors: Vec<f64> =
        (0..cols).map(|col| (mean / (square(col) + 1e-6 * mean)).sqrt()).collect();
    x.iter().enumerate().map(|(at, x)| x * factors[at % cols]).collect()
}

/// `U` with its singular values brought near 1.
fn orthogonal(u: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let turned = |x: &[f64], (rows, cols): (usize, usize)| -> Vec<f64> {
        (0..cols * rows).map(|i| x[i % rows * cols + i / rows]).collect()
    };
    if rows > cols {
        return turned(&orthogonal(&turned(u, (rows, cols)), cols, rows), (cols, rows));
    }
    let times = |a: &[f64], b: &[f64], n: usize| -> Vec<f64> {
        let k = b.len() / n;
        let sum = |i: usize, j: usize| (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum();
        (0..a.len() / k * n).map(|at| sum(at / n, at % n)).collect()
    };
    let norm = 1.02 * u.iter().map(|x| x * x).sum::<f64>().sqrt() + 1e-7;
    let mut x: Vec<f64> = u.iter().map(|x| x / norm).collect();
    for [a, b, c] in
        [[8.2872, -23.5959, 17.3004], [4.1071, -2.9478, 0.5448], [3.9487, -2.9089, 0.5518]]
    {
        let gram = times(&x, &turned(&x, (rows, cols)), rows);
        let square = times(&gram, &gram, rows);
        let poly: Vec<f64> =
            gram.iter().zip(&square).map(|(gram, square)| b * gram + c * square).collect();
        let moved = times(&poly, &x, cols);
        x = x.iter().zip(moved).map(|(x, moved)| a * x + moved).collect();
    }
    x
}
