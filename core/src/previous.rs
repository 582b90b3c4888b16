//! Tokens before each one whose rows of the token table are added to its own.
//!
//! With a row `e` of the table for each token and weights `w` for each column, of the tokens of a sequence or of a
//! document (`.` is element by element):
//!
//! ```text
//! x[t]  = e[t] + w[1] . e[t-1] + w[2] . e[t-2] + ...       (as far as there are tokens)
//! de[t] = dx[t] + w[1] . dx[t+1] + w[2] . dx[t+2] + ...
//! dw[n] = sum over t of  e[t-n] . dx[t]
//! ```
//! The sums go through the tokens in their order, each column for itself.

use cllm_kernels::MatRef;
use core::ops::Range;

/// Rows whose products are added up before they are added to the sum of all.
const SUM_ROWS: usize = 64;

/// Columns of a gradient of weights that are made at a time.
const SUM_COLUMNS: usize = 64;

/// The weights, and the tokens that they are for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Previous<'a> {
    /// `count x d_model`: first those of the last token before.
    pub(crate) weights: &'a [f32],
    /// Columns.
    pub(crate) d: usize,
    /// Of all sequences, one behind the other.
    pub(crate) tokens: &'a [u32],
    /// Tokens of a sequence.
    pub(crate) period: usize,
    /// As [`crate::Batch::starts`].
    pub(crate) starts: Option<&'a [u32]>,
}

impl<'a> Previous<'a> {
    /// The weights of the tokens before a row that there are, and those tokens, the last one first.
    fn before(&self, row: usize) -> impl Iterator<Item = (&'a [f32], u32)> + use<'a> {
        let start = self.starts.map_or(0, |starts| starts[row] as usize);
        let place = row % self.period - start;
        let tokens = self.tokens[row - place..row].iter().rev();
        self.weights.chunks_exact(self.d).zip(tokens.copied())
    }

    /// Adds what comes from tokens before to `x` of a row.
    pub(crate) fn add(&self, row: usize, table: &[f32], x: &mut [f32]) {
        for (weights, token) in self.before(row) {
            add_products(x, weights, table[token as usize * self.d..][..self.d].iter().copied());
        }
    }

    /// The same of a table of which there are bytes.
    pub(crate) fn add_of_bytes(&self, row: usize, table: &[u8], x: &mut [f32]) {
        let len = 4 * self.d;
        for (weights, token) in self.before(row) {
            let (values, _) = table[token as usize * len..][..len].as_chunks::<4>();
            add_products(x, weights, values.iter().map(|value| f32::from_le_bytes(*value)));
        }
    }

    /// Adds to the gradient of rows of the table, of `ids`, what comes from tokens behind theirs.
    pub(crate) fn table_grad(&self, dx: MatRef<'_>, ids: Range<usize>, out: &mut [f32]) {
        for row in 0..self.tokens.len() {
            for (weights, token) in self.before(row) {
                if ids.contains(&(token as usize)) {
                    let to = &mut out[(token as usize - ids.start) * self.d..][..self.d];
                    add_products(to, weights, dx.row(row).iter().copied());
                }
            }
        }
    }

    /// Adds to some columns of the gradient of the weights of the `back`-th token before, from 0.
    pub(crate) fn weight_grad(
        &self,
        back: usize,
        first: usize,
        (table, dx): (&[f32], MatRef<'_>),
        out: &mut [f32],
    ) {
        for (part, out) in out.chunks_mut(SUM_COLUMNS).enumerate() {
            let (first, cols) = (first + part * SUM_COLUMNS, out.len());
            for begin in (0..self.tokens.len()).step_by(SUM_ROWS) {
                let mut sum = [0.0; SUM_COLUMNS];
                for row in begin..self.tokens.len().min(begin + SUM_ROWS) {
                    if let Some((_, token)) = self.before(row).nth(back) {
                        let of_token = &table[token as usize * self.d + first..][..cols];
                        let dx = dx.row(row)[first..first + cols].iter().copied();
                        add_products(&mut sum[..cols], of_token, dx);
                    }
                }
                out.iter_mut().zip(sum).for_each(|(out, sum)| *out += sum);
            }
        }
    }
}

/// `to += a b`, element by element.
fn add_products(to: &mut [f32], a: &[f32], b: impl Iterator<Item = f32>) {
    to.iter_mut().zip(a).zip(b).for_each(|((to, a), b)| *to += a * b);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    /// Two sequences of five tokens, the second of two documents, of four kinds; two columns.
    const TOKENS: [u32; 10] = [0, 1, 2, 3, 0, 2, 2, 1, 3, 3];
    const STARTS: [u32; 10] = [0, 0, 0, 0, 0, 0, 0, 2, 2, 2];
    const TABLE: [f32; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
    const WEIGHTS: [f32; 4] = [0.5, 2.0, 0.25, 4.0];

    fn previous(starts: Option<&[u32]>) -> Previous<'_> {
        Previous { weights: &WEIGHTS, d: 2, tokens: &TOKENS, period: 5, starts }
    }

    /// What a token that is so many before a row adds: the pairs (row, number of its token before, token).
    fn pairs(starts: Option<&[u32]>) -> Vec<(usize, usize, u32)> {
        let of = |row: usize| {
            let first = row / 5 * 5 + starts.map_or(0, |starts| starts[row] as usize);
            (0..2)
                .filter(move |back| row > back + first)
                .map(move |back| (row, back, TOKENS[row - 1 - back]))
        };
        (0..10).flat_map(of).collect()
    }

    #[test]
    fn rows_have_those_before_them_in_their_document() {
        for starts in [None, Some(&STARTS[..])] {
            let bytes: Vec<u8> = TABLE.iter().flat_map(|x| x.to_le_bytes()).collect();
            for row in 0..10 {
                let (mut got, mut of_bytes, mut want) = ([1.0; 2], [1.0; 2], [1.0; 2]);
                previous(starts).add(row, &TABLE, &mut got);
                previous(starts).add_of_bytes(row, &bytes, &mut of_bytes);
                for (_, back, token) in pairs(starts).into_iter().filter(|pair| pair.0 == row) {
                    for col in 0..2 {
                        want[col] += WEIGHTS[2 * back + col] * TABLE[2 * token as usize + col];
                    }
                }
                assert_eq!((got, of_bytes), (want, want), "{row}");
            }
        }
        // The first token of the second document sees nothing; without documents it sees two.
        let mut x = [0.0; 2];
        previous(Some(&STARTS)).add(7, &TABLE, &mut x);
        assert_eq!(x, [0.0; 2]);
        previous(None).add(7, &TABLE, &mut x);
        assert_eq!(x, [12.0, 192.0]);
    }

    #[test]
    fn gradients_are_sums_over_the_same_pairs() {
        let dx: Vec<f32> = (0..20).map(|i| 1.0 + i as f32).collect();
        let of_dx = || MatRef::new(&dx, 10, 2, 2);
        for starts in [None, Some(&STARTS[..])] {
            // Added to what there is.
            let (mut table, mut weights) = ([1.0; 8], [1.0; 4]);
            previous(starts).table_grad(of_dx(), 0..2, &mut table[..4]);
            previous(starts).table_grad(of_dx(), 2..4, &mut table[4..]);
            for back in 0..2 {
                let out = &mut weights[2 * back..][..2];
                previous(starts).weight_grad(back, 0, (&TABLE, of_dx()), &mut out[..1]);
                previous(starts).weight_grad(back, 1, (&TABLE, of_dx()), &mut out[1..]);
            }
            let (mut want_table, mut want_weights) = ([1.0; 8], [1.0; 4]);
            for (row, back, token) in pairs(starts) {
                for col in 0..2 {
                    let (at, of) = (2 * token as usize + col, 2 * back + col);
                    want_table[at] += WEIGHTS[of] * dx[2 * row + col];
                    want_weights[of] += TABLE[at] * dx[2 * row + col];
                }
            }
            // Of numbers that are sums of few powers of two: exact in any order.
            assert_eq!((table, weights), (want_table, want_weights));
        }
    }
}
