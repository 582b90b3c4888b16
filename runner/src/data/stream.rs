//! Several shards as one long stream of tokens.

use core::ops::Range;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::hex;
use super::shard::{Shard, is_shard};
use crate::error::{Error, Result};

/// A range of the tokens of some shards, in order, as one sequence. Cloning
/// and cutting share the shards.
#[derive(Debug, Clone)]
pub struct TokenStream {
    shards: Arc<[Shard]>,
    /// Place of each shard's first token in the whole sequence.
    starts: Arc<[u64]>,
    /// The part of the whole sequence that this stream shows.
    range: Range<u64>,
}

/// Most shards of a stream whose files stay open: systems let a process have 1,024.
const MOST_OPEN: usize = 256;

impl TokenStream {
    /// Opens the shards at `paths`, in the order given. The time depends on the
    /// number of shards, not on their size.
    ///
    /// # Errors
    /// No path at all, or what [`Shard::open`] refuses.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        if paths.is_empty() {
            return Err(Error::failure("no token shards given"));
        }
        let shards: Result<Vec<Shard>> = paths.iter().map(|path| Shard::open(path)).collect();
        let mut shards = shards?;
        if shards.len() > MOST_OPEN {
            shards.iter_mut().for_each(Shard::close);
        }
        Ok(Self::from_shards(shards))
    }

    /// Tokens that live in memory; `name` stands for the file in errors.
    #[must_use]
    pub fn from_tokens(name: &str, tokens: Vec<u32>) -> Self {
        Self::from_shards(vec![Shard::from_tokens(name, tokens)])
    }

    fn from_shards(shards: Vec<Shard>) -> Self {
        let mut total = 0;
        let starts = shards
            .iter()
            .map(|shard| {
                let start = total;
                total += shard.len();
                start
            })
            .collect();
        Self { shards: shards.into(), starts, range: 0..total }
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether there is no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Number of shards behind the stream.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Number of tokens in the shards that are a split's and lie in `dir`, whatever part the stream shows.
    pub(super) fn tokens_of(&self, dir: &Path, split: &str) -> u64 {
        let is_one = |path: &Path| path.parent() == Some(dir) && is_of_split(path, split);
        self.shards.iter().filter(|shard| is_one(shard.path())).map(Shard::len).sum()
    }

    /// What the tokens came from, for messages: one file or "FILE and N more".
    #[must_use]
    pub fn name(&self) -> String {
        let first =
            self.shards.first().map_or_else(String::new, |s| s.path().display().to_string());
        match self.shards.len() {
            0 | 1 => first,
            n => format!("{first} and {} more", n - 1),
        }
    }

    /// The first `at` tokens and the rest; all and nothing when there are fewer.
    #[must_use]
    pub fn split_at(&self, at: u64) -> (Self, Self) {
        let middle = self.range.start + at.min(self.len());
        let part = |range| Self { range, ..self.clone() };
        (part(self.range.start..middle), part(middle..self.range.end))
    }

    /// Copies the tokens from place `start` on into `out`, across shards.
    ///
    /// # Errors
    /// When they reach beyond the end; what [`Shard::fill`] refuses.
    pub fn fill(&self, start: u64, out: &mut [u32]) -> Result<()> {
        if start.checked_add(out.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(Error::failure(format!(
                "{}: tokens {start} and {} after it asked for, but there are {}",
                self.name(),
                out.len(),
                self.len()
            )));
        }
        let mut at = self.range.start + start;
        let mut rest = out;
        while !rest.is_empty() {
            let (shard, inside) = self.locate(at);
            let here = (shard.len() - inside).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(here as usize);
            shard.fill(inside, now)?;
            at += here;
            rest = later;
        }
        Ok(())
    }

    /// As [`fill`](Self::fill), and every token must be below `vocab_size`.
    ///
    /// # Errors
    /// Also names the shard, the place and the identifier that is not.
    pub fn fill_checked(&self, start: u64, out: &mut [u32], vocab_size: usize) -> Result<()> {
        self.fill(start, out)?;
        // A maximum vectorises; the search for the place is for the failure.
        let largest = out.iter().copied().max().unwrap_or(0);
        if (largest as usize) < vocab_size {
            return Ok(());
        }
        let place = out.iter().position(|&id| id as usize >= vocab_size).unwrap_or(0);
        let (shard, inside) = self.locate(self.range.start + start + place as u64);
        Err(Error::failure(format!(
            "{}: token {inside} is {}, but the vocabulary has {vocab_size}; the data was made with \
             another tokenizer than the model's",
            shard.path().display(),
            out[place]
        )))
    }

    /// Where the tokens of each shard lie in the stream, as far as they do.
    fn bounds(&self) -> impl Iterator<Item = Range<u64>> {
        let all = self.starts.iter().zip(self.shards.iter());
        all.filter_map(|(first, shard)| {
            let start = (*first).max(self.range.start);
            let end = (first + shard.len()).min(self.range.end);
            (start < end).then(|| start - self.range.start..end - self.range.start)
        })
    }

    /// The shard that holds place `at` of the whole sequence, and where in it.
    fn locate(&self, at: u64) -> (&Shard, u64) {
        let index = self.starts.partition_point(|&start| start <= at) - 1;
        (&self.shards[index], at - self.starts[index])
    }
}

/// Places of a stream that [`sampled_sha256`] looks at.
const SAMPLES: u64 = 256;
/// Tokens that it reads at each.
const SAMPLE: u64 = 1024;

/// SHA-256 of the lengths of some streams, of tokens at 256 places of each, evenly apart, and at the beginning and
/// the end of each shard: tells data from other data of the same size without reading all of it.
///
/// # Errors
/// Those of [`TokenStream::fill`].
pub fn sampled_sha256(streams: &[&TokenStream]) -> Result<String> {
    let mut hash = Sha256::new();
    for stream in streams {
        hash.update(stream.len().to_le_bytes());
        let len = stream.len().min(SAMPLE);
        let mut tokens = vec![0; len as usize];
        let last = stream.len() - len;
        let apart = |n| (u128::from(last) * u128::from(n) / u128::from(SAMPLES - 1)) as u64;
        let of_shards = stream.bounds().flat_map(|Range { start, end }| {
            [start.min(last), end.saturating_sub(len).max(start).min(last)]
        });
        for start in (0..SAMPLES).map(apart).chain(of_shards) {
            stream.fill(start, &mut tokens)?;
            for token in &tokens {
                hash.update(token.to_le_bytes());
            }
        }
    }
    Ok(hex(&hash.finalize()))
}

/// The shards of one split in `dir`, sorted by name: those whose name says
/// `split`, as [`is_of_split`] has it.
///
/// # Errors
/// When the folder cannot be listed.
pub fn find_shards(dir: &Path, split: &str) -> Result<Vec<PathBuf>> {
    let mut found = all_shards(dir)?;
    found.retain(|path| is_of_split(path, split));
    Ok(found)
}

/// All token shards in `dir` (not below it), sorted by name: files called
/// `*.bin` that start like one.
///
/// # Errors
/// When the folder cannot be listed.
pub fn all_shards(dir: &Path) -> Result<Vec<PathBuf>> {
    let io = |e| Error::io("list the folder", dir, &e);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == "bin") && is_shard(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a file's name has `split` (`train` or `val`) as one of its words,
/// as `train_000000.bin` and llm.c's `fineweb_train_000001.bin` do.
#[must_use]
pub fn is_of_split(path: &Path, split: &str) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    stem.is_some_and(|stem| stem.split(['_', '-', '.']).any(|word| word == split))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shard::ShardWriter;

    fn shards(dir: &Path, lengths: &[u32]) -> Vec<PathBuf> {
        let mut next = 0;
        let mut paths = Vec::new();
        for (i, &len) in lengths.iter().enumerate() {
            let path = dir.join(format!("train_{i:06}.bin"));
            let mut writer = ShardWriter::create(&path, 5000).unwrap();
            writer.write(&(next..next + len).collect::<Vec<_>>()).unwrap();
            writer.finish().unwrap();
            next += len;
            paths.push(path);
        }
        paths
    }

    #[test]
    fn shards_are_one_sequence_even_when_some_are_empty() {
        let dir = tempfile::tempdir().unwrap();
        let paths = shards(dir.path(), &[0, 5, 1, 0, 0, 7, 0]);
        assert_eq!(find_shards(dir.path(), "train").unwrap(), paths);
        assert!(find_shards(dir.path(), "val").unwrap().is_empty());
        let stream = TokenStream::open(&paths).unwrap();
        assert_eq!(stream.len(), 13);
        for start in 0..=13 {
            for len in 0..=13 - start {
                let mut out = vec![u32::MAX; len];
                stream.fill(start as u64, &mut out).unwrap();
                assert_eq!(out, (start as u32..(start + len) as u32).collect::<Vec<_>>());
            }
        }
        assert!(stream.fill(13, &mut [0]).is_err());
        assert!(stream.fill(u64::MAX, &mut [0]).is_err());
    }

    #[test]
    fn a_cut_stream_starts_at_its_cut() {
        let stream = TokenStream::from_tokens("t", (0..10).collect());
        let (head, tail) = stream.split_at(7);
        assert_eq!((head.len(), tail.len()), (7, 3));
        let mut out = [0; 3];
        tail.fill(0, &mut out).unwrap();
        assert_eq!(out, [7, 8, 9]);
        assert!(tail.fill(1, &mut out).is_err());
        assert!(head.fill(5, &mut out).is_err());
        assert_eq!(stream.split_at(99).1.len(), 0);
    }

    #[test]
    fn a_token_beyond_the_vocabulary_is_found_in_its_shard() {
        let dir = tempfile::tempdir().unwrap();
        let stream = TokenStream::open(&shards(dir.path(), &[5, 5])).unwrap();
        let mut out = [0; 6];
        stream.fill_checked(1, &mut out, 7).unwrap();
        let message = stream.fill_checked(2, &mut out, 7).unwrap_err().to_string();
        for part in ["train_000001.bin", "token 2 is 7", "vocabulary has 7"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
