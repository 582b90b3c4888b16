//! Naive references in `f64`: the definitions, written down, nothing clever.

/// Step of the central differences.
pub(crate) const STEP: f64 = 1e-5;

/// Derivative of `f` by `x[i]`, by central differences.
pub(crate) fn difference(x: &mut [f64], i: usize, mut f: impl FnMut(&[f64]) -> f64) -> f64 {
    let kept = x[i];
    x[i] = kept + STEP;
    let above = f(x);
    x[i] = kept - STEP;
    let below = f(x);
    x[i] = kept;
    (above - below) / (2.0 * STEP)
}

/// `A B` of `m x k` and `k x n`, and the same product of the absolute values.
pub(crate) fn matmul(a: &[f64], b: &[f64], m: usize, n: usize, k: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut c, mut magnitude) = (vec![0.0; m * n], vec![0.0; m * n]);
    for i in 0..m {
        for j in 0..n {
            for p in 0..k {
                let term = a[i * k + p] * b[p * n + j];
                c[i * n + j] += term;
                magnitude[i * n + j] += term.abs();
            }
        }
    }
    (c, magnitude)
}

/// sqrt(2 / pi)
const ROOT: f64 = 0.797_884_560_802_865_4;

/// `0.5 (1 + tanh u)`, written as `1 / (1 + exp(-2u))` which does not cancel, and `2u`.
pub(crate) fn gelu_gate(x: f64) -> (f64, f64) {
    let two_u = 2.0 * ROOT * (x + 0.044715 * x * x * x);
    (1.0 / (1.0 + (-two_u).exp()), two_u)
}

/// Derivative of `2u`.
pub(crate) fn gelu_two_u_slope(x: f64) -> f64 {
    2.0 * ROOT * (1.0 + 3.0 * 0.044715 * x * x)
}

pub(crate) fn relu2(x: f64) -> f64 {
    x.max(0.0) * x.max(0.0)
}

pub(crate) fn gelu(x: f64) -> f64 {
    x * gelu_gate(x).0
}

pub(crate) fn gelu_slope(x: f64) -> f64 {
    let (gate, _) = gelu_gate(x);
    gate + x * gate * (1.0 - gate) * gelu_two_u_slope(x)
}

/// `1 / (1 + e^-x)`.
pub(crate) fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Derivative of `x logistic(x)`.
pub(crate) fn silu_slope(x: f64) -> f64 {
    let gate = logistic(x);
    gate + x * gate * (1.0 - gate)
}

/// Mean of a row and `1 / sqrt(variance + eps)`; if not `centred`, those of an RMS norm.
pub(crate) fn moments(x: &[f64], eps: f64, centred: bool) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = if centred { x.iter().sum::<f64>() / n } else { 0.0 };
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// Layer norm of one row, or RMS norm.
pub(crate) fn norm(x: &[f64], gain: &[f64], bias: &[f64], eps: f64, centred: bool) -> Vec<f64> {
    let (mean, rstd) = moments(x, eps, centred);
    (0..x.len()).map(|j| (x[j] - mean) * rstd * gain[j] + bias[j]).collect()
}

/// Cross-entropy of one row of logits, and the probabilities.
pub(crate) fn cross_entropy(x: &[f64], target: usize) -> (f64, Vec<f64>) {
    let most = x.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let sum: f64 = x.iter().map(|x| (x - most).exp()).sum();
    let p = x.iter().map(|x| (x - most).exp() / sum).collect();
    (sum.ln() + most - x[target], p)
}

/// Shape and masks of one head of attention.
pub(crate) struct Head<'a> {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) head: usize,
    pub(crate) first: usize,
    /// The first key that each query sees.
    pub(crate) start: &'a dyn Fn(usize) -> usize,
    pub(crate) scale: f64,
    /// Factor of the probability of (query, key): 1 without dropout.
    pub(crate) mask: &'a dyn Fn(usize, usize) -> f64,
}

/// What a pass over one head gives.
pub(crate) struct HeadResult {
    pub(crate) out: Vec<f64>,
    pub(crate) lse: Vec<f64>,
    /// Probabilities before dropout, `queries x keys`, zero where masked.
    pub(crate) p: Vec<f64>,
    /// Largest sum of `|q||k| scale`.
    pub(crate) largest: f64,
}

/// Causal attention of one head, by the definition.
pub(crate) fn attention(h: &Head<'_>, q: &[f64], k: &[f64], v: &[f64]) -> HeadResult {
    let (d, keys) = (h.head, h.keys);
    let mut result = HeadResult {
        out: vec![0.0; h.queries * d],
        lse: vec![0.0; h.queries],
        p: vec![0.0; h.queries * keys],
        largest: 0.0,
    };
    for i in 0..h.queries {
        let (start, seen) = ((h.start)(i), h.first + i + 1);
        let mut scores = vec![f64::NEG_INFINITY; seen];
        for j in start..seen {
            scores[j] = 0.0;
            let mut magnitude = 0.0;
            for c in 0..d {
                let term = h.scale * q[i * d + c] * k[j * d + c];
                scores[j] += term;
                magnitude += term.abs();
            }
            result.largest = result.largest.max(magnitude);
        }
        let most = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        result.lse[i] = most + sum.ln();
        for j in start..seen {
            let p = (scores[j] - most).exp() / sum;
            result.p[i * keys + j] = p;
            for c in 0..d {
                result.out[i * d + c] += p * (h.mask)(i, j) * v[j * d + c];
            }
        }
    }
    result
}

/// Gradients of one head, each beside the same formula over absolute values.
pub(crate) struct HeadGrads {
    pub(crate) dq: (Vec<f64>, Vec<f64>),
    pub(crate) dk: (Vec<f64>, Vec<f64>),
    pub(crate) dv: (Vec<f64>, Vec<f64>),
}

/// The gradient formulas of attention: `ds = scale p (m dp - sum p m dp)`.
pub(crate) fn attention_backward(
    h: &Head<'_>,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    dout: &[f64],
) -> HeadGrads {
    let (d, keys) = (h.head, h.keys);
    let forward = attention(h, q, k, v);
    let zeros = |n: usize| (vec![0.0; n * d], vec![0.0; n * d]);
    let mut grads = HeadGrads { dq: zeros(h.queries), dk: zeros(keys), dv: zeros(keys) };
    for i in 0..h.queries {
        let (start, seen) = ((h.start)(i), h.first + i + 1);
        let (mut dp, mut size) = (vec![0.0; seen], vec![0.0; seen]);
        let (mut delta, mut delta_size) = (0.0, 0.0);
        for j in start..seen {
            let mask = (h.mask)(i, j);
            for c in 0..d {
                let term = dout[i * d + c] * v[j * d + c] * mask;
                dp[j] += term;
                size[j] += term.abs();
                let dv = forward.p[i * keys + j] * mask * dout[i * d + c];
                grads.dv.0[j * d + c] += dv;
                grads.dv.1[j * d + c] += dv.abs();
            }
            delta += forward.p[i * keys + j] * dp[j];
            delta_size += forward.p[i * keys + j] * size[j];
        }
        for j in start..seen {
            let weight = h.scale * forward.p[i * keys + j];
            let (ds, ds_size) = (weight * (dp[j] - delta), weight * (size[j] + delta_size));
            for c in 0..d {
                grads.dq.0[i * d + c] += ds * k[j * d + c];
                grads.dq.1[i * d + c] += ds_size * k[j * d + c].abs();
                grads.dk.0[j * d + c] += ds * q[i * d + c];
                grads.dk.1[j * d + c] += ds_size * q[i * d + c].abs();
            }
        }
    }
    grads
}
