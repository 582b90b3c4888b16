//! Examples in memory: texts as tokens, each of which counts in the loss or does not.
//!
//! ```text
//! tokens    t0 t1 t2 t3 t4      an example of five
//! places    t0 t1 t2 t3         of the row that it is put into: the last token is only predicted
//! targets   t1 t2 t3 t4         those that do not count are ignored
//! ```

use cllm_core::IGNORE;
use sha2::{Digest as _, Sha256};

use super::hex;

/// A token that counts has this bit, which no id has.
const COUNTS: u32 = 1 << 31;

/// An example that is being made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Example {
    tokens: Vec<u32>,
}

impl Example {
    /// Appends tokens that count, or do not.
    pub fn push(&mut self, ids: &[u32], counts: bool) {
        let bit = if counts { COUNTS } else { 0 };
        self.tokens.extend(ids.iter().map(|id| id | bit));
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Takes off the tokens behind the last one that counts: nothing is learned from them.
    pub fn trim(&mut self) {
        let last = self.tokens.iter().rposition(|token| token & COUNTS != 0);
        self.tokens.truncate(last.map_or(0, |at| at + 1));
    }

    /// Cuts it to `most` tokens; whether it was longer.
    pub fn cut(&mut self, most: usize) -> bool {
        let is_longer = self.tokens.len() > most;
        self.tokens.truncate(most);
        is_longer
    }

    /// Tokens that are predicted and count.
    #[must_use]
    pub fn counted(&self) -> usize {
        self.tokens.iter().skip(1).filter(|token| *token & COUNTS != 0).count()
    }
}

/// Many examples.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Examples {
    tokens: Vec<u32>,
    /// Where each ends.
    ends: Vec<usize>,
    /// What counts of each.
    counted: Vec<u32>,
}

impl Examples {
    /// Adds one; it must have a target that counts.
    pub fn push(&mut self, example: &Example) {
        debug_assert!(example.counted() > 0, "nothing is learned from it");
        self.tokens.extend_from_slice(&example.tokens);
        self.ends.push(self.tokens.len());
        self.counted.push(example.counted() as u32);
    }

    /// Adds example `i` of others.
    pub fn push_from(&mut self, others: &Self, i: usize) {
        self.tokens.extend_from_slice(others.of(i));
        self.ends.push(self.tokens.len());
        self.counted.push(others.counted[i]);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Places that example `i` takes of a row.
    #[must_use]
    pub fn places(&self, i: usize) -> usize {
        self.of(i).len() - 1
    }

    /// Targets of example `i` that count.
    #[must_use]
    pub fn counted(&self, i: usize) -> usize {
        self.counted[i] as usize
    }

    /// Places that all take.
    #[must_use]
    pub fn all_places(&self) -> u64 {
        (self.tokens.len() - self.len()) as u64
    }

    /// Targets of all that count.
    #[must_use]
    pub fn all_counted(&self) -> u64 {
        self.counted.iter().map(|n| u64::from(*n)).sum()
    }

    /// The largest id; `None` if there is no example.
    #[must_use]
    pub fn largest(&self) -> Option<u32> {
        self.tokens.iter().map(|token| token & !COUNTS).max()
    }

    /// Writes the tokens of example `i` and its targets, of both as many as its
    /// [`places`](Self::places).
    ///
    /// # Panics
    /// If there is room for more or fewer.
    pub fn fill(&self, i: usize, tokens: &mut [u32], targets: &mut [u32]) {
        let all = self.of(i);
        for (to, token) in tokens.iter_mut().zip(&all[..all.len() - 1]) {
            *to = token & !COUNTS;
        }
        assert_eq!(
            (tokens.len(), targets.len()),
            (all.len() - 1, all.len() - 1),
            "room of another size"
        );
        for (to, token) in targets.iter_mut().zip(&all[1..]) {
            *to = if token & COUNTS == 0 { IGNORE } else { token & !COUNTS };
        }
    }

    /// SHA-256 of all examples in their order.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for i in 0..self.len() {
            let tokens = self.of(i);
            hash.update((tokens.len() as u64).to_le_bytes());
            tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        }
        hex(&hash.finalize())
    }

    fn of(&self, i: usize) -> &[u32] {
        let begin = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.tokens[begin..self.ends[i]]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An example of these ids, those that count negative.
    pub(crate) fn example(ids: &[i64]) -> Example {
        let mut example = Example::default();
        ids.iter().for_each(|id| example.push(&[id.unsigned_abs() as u32], *id < 0));
        example
    }

    #[test]
    fn targets_are_the_next_tokens_that_count() {
        let mut all = Examples::default();
        all.push(&example(&[1, 2, -3, 4, -5]));
        all.push(&example(&[-6, -7]));
        assert_eq!((all.len(), all.places(0), all.places(1), all.all_places()), (2, 4, 1, 5));
        assert_eq!((all.counted(0), all.counted(1), all.all_counted()), (2, 1, 3));
        assert_eq!(all.largest(), Some(7));
        let (mut tokens, mut targets) = ([9; 4], [9; 4]);
        all.fill(0, &mut tokens, &mut targets);
        assert_eq!((tokens, targets), ([1, 2, 3, 4], [IGNORE, 3, IGNORE, 5]));
    }

    #[test]
    fn what_follows_the_last_that_counts_is_taken_off() {
        let mut one = example(&[1, -2, 3, 4]);
        one.trim();
        assert_eq!(one, example(&[1, -2]));
        assert!(!one.cut(2) && one.cut(1));
        assert_eq!((one.len(), one.counted()), (1, 0));
        one.trim();
        assert!(one.is_empty());
    }

    #[test]
    fn the_hash_knows_tokens_marks_and_borders() {
        let hash = |examples: &[&[i64]]| {
            let mut all = Examples::default();
            examples.iter().for_each(|ids| all.push(&example(ids)));
            all.sha256()
        };
        let one = hash(&[&[1, -2], &[3, -4]]);
        assert_eq!(one, hash(&[&[1, -2], &[3, -4]]));
        for other in [&[&[1i64, -2][..], &[3, -5]][..], &[&[-1, -2], &[3, -4]], &[&[1, -2, 3, -4]]]
        {
            assert_ne!(one, hash(other));
        }
    }
}
