//! First weights that know which token follows which (`--bigram-init`).
//!
//! A short run spends most of its steps on what counting tells at once: how often a token follows another. So the
//! token table E and the output projection H begin as factors of what was counted in the training tokens, and the
//! blocks, whose outputs are small at first, learn what else there is.
//!
//! With n(a, b) the times that b follows a, t(a) the number of tokens that do, and p(b) the share of all pairs that b
//! ends, Witten and Bell's smoothing ("The Zero-Frequency Problem", 1991, method C) is
//!
//! ```text
//! log P(b | a) = log p(b) + log(1 + n(a, b) / (K t(a) p(b))) + what depends on a alone, which a softmax does not see
//! ```
//!
//! for K = 1. The second part, S, is zero for all pairs but those that were seen. Its best factors of rank r are found
//! by orthogonal iteration (Halko, Martinsson and Tropp, "Finding Structure with Randomness", 2011, algorithm 4.4):
//!
//! ```text
//! Q = r random columns
//! 3 times:  Q = orthonormal(S^T orthonormal(S Q))
//! B = S Q                                             so that S is about B Q^T
//! E[a] = size (C, rest(a), alpha B[a])                rows of one length, which the model's last norm takes away
//! H[b] = (log p(b) / C, 0, Q[b] / alpha) / size'      so that H E[a] behind the norm is log p(b) + (B Q^T)(a, b)
//! ```
//!
//! All of it is one thread's work, and so has the same bits for any number of workers.

use cllm_core::{Dtype, Kernels, NormKind, Param, Trainer};
use cllm_kernels::{MatMut, MatRef};

use crate::data::stream::TokenStream;
use crate::error::{Error, Result};

/// Most tokens that are counted: eight bytes of memory each. Of a longer text as many, in parts from all over it.
const MOST: u64 = 1 << 22;
/// Those parts.
const PARTS: u64 = 64;
/// `K` above. More of it than Witten and Bell have leaves the factors to what is seen often: the loss of byte-pair tokens
/// of the bundled Bible after 50 steps is 5.012 with 2, 4.995 with 4 and 4.987 with 8 (benches/speedrun/prototype.py,
/// `counts`, seed 1).
const SMOOTHING: f32 = 4.0;
/// Rounds of the iteration.
const ROUNDS: usize = 3;
/// The share of a row of E, in length, that is the same for all tokens, and the largest that is of what was counted.
const CONSTANT: f32 = 0.3;
const COUNTED: f32 = 0.9;
/// Columns that factors have not.
const TAKEN: usize = 2;
/// Models that are less wide have too few that are left.
pub(crate) const LEAST_WIDTH: usize = 8;
/// What takes so many operations of products is announced: some seconds of one thread.
const ANNOUNCED: f64 = 1e11;

/// Most bytes that [`begin`] allocates for such a vocabulary and width, and so many tokens of text.
pub(super) fn bytes(vocab: usize, d: usize, tokens: u64) -> usize {
    // A pair, its column and its value, which grow to twice what they hold.
    let counted = tokens.min(MOST) as usize * (8 + 2 * 8) + vocab * 12;
    // Two factors and two between them (or E and H), what the triangle is made in, and panels of products.
    counted + 16 * vocab * d + 1024 * vocab + 12 * d * d + (1 << 22)
}

/// Sets the token table and the output projection of `trainer`, whose other weights are there, from the pairs of `text`.
///
/// # Errors
/// The model has no output projection of its own, another norm than RMS norm, or less than [`LEAST_WIDTH`]; `text`
/// cannot be read, or has a token beyond the vocabulary.
pub(super) fn begin(
    trainer: &mut Trainer<'_>,
    text: &TokenStream,
    kernels: &Kernels,
) -> Result<()> {
    let table = *trainer.plan().table();
    let (Some(tokens), Some(head)) = (table.spec(Param::TokenTable), table.spec(Param::Head))
    else {
        return Err(Error::usage("--bigram-init: it wants --tied false"));
    };
    let config = *trainer.plan().config();
    let (vocab, d) = (config.vocab_size, config.d_model);
    if config.arch.norm != NormKind::Rms || d < LEAST_WIDTH {
        return Err(Error::usage(format!(
            "--bigram-init: it wants --norm rms, and --n-embd {LEAST_WIDTH} at least"
        )));
    }
    let operations = (ROUNDS * 8 * vocab) as f64 * (d * d) as f64;
    if operations > ANNOUNCED {
        say!(
            "cllm: --bigram-init: counting which token follows which, which takes a while (one thread)"
        );
    }
    let counted = Counted::of(text, vocab)?;
    let rank = (d - TAKEN).min(vocab);
    let random = &trainer.parameters()[tokens.range()];
    let first = random.chunks_exact(d).flat_map(|row| &row[..rank]).copied().collect();
    let (left, right) = counted.factors(first, rank, kernels);
    let (e, h) = rows(&counted.shares, &left, &right, d);
    let weights = trainer.parameters_mut();
    weights[tokens.range()].copy_from_slice(&e);
    weights[head.range()].copy_from_slice(&h);
    Ok(())
}

/// Which token follows which.
struct Counted {
    /// `p` above.
    shares: Vec<f32>,
    /// S, row by row: where each begins in what follows, and where the last ends.
    starts: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<f32>,
}

impl Counted {
    /// Of the pairs of a text.
    fn of(text: &TokenStream, vocab: usize) -> Result<Self> {
        let mut pairs = Vec::with_capacity(text.len().min(MOST) as usize);
        let (parts, len) = if text.len() <= MOST { (1, text.len()) } else { (PARTS, MOST / PARTS) };
        let mut tokens = vec![0; len as usize];
        for part in 0..parts {
            text.fill_checked(text.len() / parts * part, &mut tokens, vocab)?;
            pairs.extend(tokens.windows(2).map(|two| u64::from(two[0]) << 32 | u64::from(two[1])));
        }
        pairs.sort_unstable();
        Ok(Self::of_pairs(&pairs, vocab))
    }

    /// Of pairs in their order, the first token in the upper half.
    fn of_pairs(pairs: &[u64], vocab: usize) -> Self {
        // Half a time more than it was, so that no token is impossible.
        let mut shares = vec![0.5_f32; vocab];
        let (mut starts, mut columns, mut values) = (vec![0; vocab + 1], Vec::new(), Vec::new());
        for same in pairs.chunk_by(|one, other| one == other) {
            let (before, behind) = ((same[0] >> 32) as usize, same[0] as u32);
            shares[behind as usize] += same.len() as f32;
            starts[before + 1] += 1;
            columns.push(behind);
            values.push(same.len() as f32);
        }
        let all: f32 = shares.iter().sum();
        shares.iter_mut().for_each(|share| *share /= all);
        for a in 0..vocab {
            starts[a + 1] += starts[a];
            let row = starts[a]..starts[a + 1];
            let followers = row.len() as f32;
            for (n, b) in values[row.clone()].iter_mut().zip(&columns[row]) {
                *n = libm::log1pf(*n / (SMOOTHING * followers * shares[*b as usize]));
            }
        }
        Self { shares, starts, columns, values }
    }

    /// B and Q above, `vocab x rank` both, from random numbers of that shape. Products are of floats, whatever those of
    /// the model are: columns at right angles by bf16 are not, and factors of what they span lose what was counted.
    fn factors(&self, first: Vec<f32>, rank: usize, kernels: &Kernels) -> (Vec<f32>, Vec<f32>) {
        let kernels = kernels.with_dtype(Dtype::F32);
        let vocab = self.shares.len();
        let mut q = first;
        if vocab == rank {
            // S has no more columns: it is its own factor.
            q.fill(0.0);
            q.iter_mut().step_by(rank + 1).for_each(|one| *one = 1.0);
            return (self.times(&q, rank), q);
        }
        let mut room = vec![0.0; kernels.unpacked_scratch_len(rank, rank, vocab).unwrap_or(0)];
        room.resize(
            room.len().max(kernels.unpacked_scratch_len(vocab, rank, rank).unwrap_or(0)),
            0.0,
        );
        for _ in 0..ROUNDS {
            let y = orthonormal(self.times(&q, rank), rank, kernels, &mut room);
            q = orthonormal(self.transposed_times(&y, rank), rank, kernels, &mut room);
        }
        (self.times(&q, rank), q)
    }

    fn row(&self, a: usize) -> impl Iterator<Item = (usize, f32)> {
        let row = self.starts[a]..self.starts[a + 1];
        self.columns[row.clone()].iter().map(|b| *b as usize).zip(self.values[row].iter().copied())
    }

    /// `S X`.
    fn times(&self, x: &[f32], rank: usize) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        for (a, out) in out.chunks_exact_mut(rank).enumerate() {
            for (b, s) in self.row(a) {
                add(out, s, &x[b * rank..][..rank]);
            }
        }
        out
    }

    /// `S^T X`.
    fn transposed_times(&self, x: &[f32], rank: usize) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        for (a, x) in x.chunks_exact(rank).enumerate() {
            for (b, s) in self.row(a) {
                add(&mut out[b * rank..][..rank], s, x);
            }
        }
        out
    }
}

fn add(to: &mut [f32], factor: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

/// Columns that span what those of `x` do, each of length 1 and at right angles to the others: twice the triangle of
/// Cholesky, by which they are so to the rounding (Yamamoto et al., "Roundoff Error Analysis of the CholeskyQR2
/// Algorithm", 2015).
fn orthonormal(mut x: Vec<f32>, rank: usize, kernels: &Kernels, room: &mut [f32]) -> Vec<f32> {
    let mut next = vec![0.0; x.len()];
    let mut gram = vec![0.0; rank * rank];
    for _ in 0..2 {
        let of = MatRef::new(&x, x.len() / rank, rank, rank);
        let square = MatMut::new(&mut gram, rank, rank, rank);
        kernels.gemm_unpacked(of.t(), of, square, false, room);
        triangle(&mut gram, rank);
        let by = MatRef::new(&gram, rank, rank, rank);
        let to = MatMut::new(&mut next, x.len() / rank, rank, rank);
        kernels.gemm_unpacked(of, by, to, false, room);
        core::mem::swap(&mut x, &mut next);
    }
    x
}

/// Puts the inverse of L^T in the place of `gram = L L^T`.
fn triangle(gram: &mut [f32], rank: usize) {
    let size: f64 = (0..rank).map(|i| f64::from(gram[i * rank + i])).sum();
    // So that columns that others make up, or that are zeros, do no harm.
    let least = 1e-7 * size + f64::MIN_POSITIVE;
    let mut l = vec![0.0_f64; rank * rank];
    for i in 0..rank {
        for j in 0..=i {
            let (row, other) = (&l[i * rank..][..j], &l[j * rank..][..j]);
            let dot: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
            let left = f64::from(gram[i * rank + j]) - dot;
            l[i * rank + j] = match i == j {
                true => libm::sqrt((left + least).max(least)),
                false => left / l[j * rank + j],
            };
        }
    }
    // Row by row of the inverse's transpose: L X = 1, and X^T is wanted.
    gram.fill(0.0);
    let mut column = vec![0.0_f64; rank];
    for j in 0..rank {
        for i in j..rank {
            let dot: f64 =
                l[i * rank + j..i * rank + i].iter().zip(&column[j..i]).map(|(a, b)| a * b).sum();
            let one = if i == j { 1.0 } else { 0.0 };
            column[i] = (one - dot) / l[i * rank + i];
            gram[j * rank + i] = column[i] as f32;
        }
    }
}

/// E and H above, `vocab x d` both. Behind the norm a row of E has a length of the root of `d`.
fn rows(shares: &[f32], left: &[f32], right: &[f32], d: usize) -> (Vec<f32>, Vec<f32>) {
    let (vocab, rank) = (shares.len(), left.len() / shares.len());
    let root = libm::sqrtf(d as f32);
    let (mut e, mut h) = (vec![0.0; vocab * d], vec![0.0; vocab * d]);
    let squares = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>();
    let longest = left.chunks_exact(rank).map(squares).fold(f32::MIN_POSITIVE, f32::max);
    let alpha = COUNTED * root / libm::sqrtf(longest);
    let mean = shares.iter().map(|share| libm::logf(*share)).sum::<f32>() / vocab as f32;
    for a in 0..vocab {
        let (e, h) = (&mut e[a * d..][..d], &mut h[a * d..][..d]);
        let (b, q) = (&left[a * rank..][..rank], &right[a * rank..][..rank]);
        e[0] = CONSTANT * root;
        e[TAKEN..].iter_mut().zip(b).for_each(|(e, b)| *e = alpha * b);
        e[1] = libm::sqrtf((root * root - squares(e)).max(0.0));
        h[0] = (libm::logf(shares[a]) - mean) / (CONSTANT * root);
        h[TAKEN..].iter_mut().zip(q).for_each(|(h, q)| *h = q / alpha);
    }
    (e, h)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of some first tokens is followed by some others, some times.
    fn pairs(first: u64, vocab: u64) -> Vec<u64> {
        let mut pairs = Vec::new();
        for a in 0..first {
            for b in (0..vocab).filter(|b| (a * 7 + b * b) % 3 == 0) {
                pairs.extend(core::iter::repeat_n(a << 32 | b, (1 + (a + 5 * b) % 4) as usize));
            }
        }
        pairs
    }

    /// Logits of `b` behind `a`, as the model has them behind its last norm.
    fn logits(e: &[f32], h: &[f32], d: usize, a: usize) -> Vec<f64> {
        let e = &e[a * d..][..d];
        let length = e.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let by = (d as f64).sqrt() / length;
        let dot =
            |h: &[f32]| h.iter().zip(e).map(|(h, e)| f64::from(*h) * f64::from(*e)).sum::<f64>();
        h.chunks_exact(d).map(|h| by * dot(h)).collect()
    }

    /// `pairs` of so many tokens in a model of width `d`, and the largest error of a probability.
    fn worst(first: u64, vocab: u64, d: usize) -> f64 {
        let (pairs, n) = (pairs(first, vocab), vocab as usize);
        let counted = Counted::of_pairs(&pairs, n);
        let rank = (d - TAKEN).min(n);
        let random =
            (0..n * rank).map(|i| ((i * i * 31 + i * 7) % 101) as f32 / 50.0 - 1.0).collect();
        let kernels = Kernels::detect().with_dtype(Dtype::Bf16);
        let (left, right) = counted.factors(random, rank, kernels);
        let (e, h) = rows(&counted.shares, &left, &right, d);
        let mut worst = 0.0_f64;
        for a in 0..n {
            let times = |b: usize| {
                pairs.iter().filter(|pair| **pair == (a << 32 | b) as u64).count() as f64
            };
            let followers = (0..n).filter(|b| times(*b) > 0.0).count() as f64;
            let k = f64::from(SMOOTHING) * followers.max(1.0);
            let share = |b: usize| f64::from(counted.shares[b]);
            let all: f64 = (0..n).map(|b| times(b) + k * share(b)).sum();
            let powers: Vec<f64> = logits(&e, &h, d, a).iter().map(|x| x.exp()).collect();
            let sum: f64 = powers.iter().sum();
            for (b, power) in powers.iter().enumerate() {
                worst = worst.max((power / sum - (times(b) + k * share(b)) / all).abs());
            }
        }
        worst
    }

    #[test]
    fn a_vocabulary_that_fits_the_width_is_what_was_counted() {
        assert!(worst(9, 9, 11) < 1e-5, "{}", worst(9, 9, 11));
        assert!(worst(9, 9, 64) < 1e-5, "{}", worst(9, 9, 64));
    }

    /// S has no more rows than columns are there.
    #[test]
    fn so_is_a_larger_one_that_says_little_enough() {
        assert!(worst(6, 40, 10) < 1e-4, "{}", worst(6, 40, 10));
        // Too few columns.
        assert!(worst(6, 40, 4) > 1e-3, "{}", worst(6, 40, 4));
    }

    #[test]
    fn columns_are_at_right_angles_even_where_some_are_the_same() {
        let (rows, rank) = (50, 6);
        let kernels = Kernels::detect();
        let mut room = vec![0.0; kernels.unpacked_scratch_len(rank, rank, rows).unwrap()];
        room.resize(room.len().max(kernels.unpacked_scratch_len(rows, rank, rank).unwrap()), 0.0);
        let x: Vec<f32> = (0..rows * rank).map(|i| ((i * i * 13 + i) % 17) as f32 - 8.0).collect();
        let q = orthonormal(x.clone(), rank, kernels, &mut room);
        let dot = |q: &[f32], i: usize, j: usize| {
            (0..rows).map(|a| q[a * rank + i] * q[a * rank + j]).sum::<f32>()
        };
        for (i, j) in (0..rank).flat_map(|i| (0..rank).map(move |j| (i, j))) {
            let wanted = if i == j { 1.0 } else { 0.0 };
            assert!((dot(&q, i, j) - wanted).abs() < 1e-4, "{i} {j}: {}", dot(&q, i, j));
        }
        let mut twice = x;
        twice.chunks_exact_mut(rank).for_each(|row| row[3] = row[1]);
        let q = orthonormal(twice, rank, kernels, &mut room);
        assert!(q.iter().all(|x| x.is_finite()) && (dot(&q, 1, 1) - 1.0).abs() < 1e-2);
    }
}
