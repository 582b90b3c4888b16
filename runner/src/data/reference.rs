//! The data set of the reference workload: 73 MB of invented text that a
//! language model can learn from, the same bytes each time and everywhere.
//!
//! Under its tokenizer of 5,000 identifiers the training text is 2,272 batches
//! of 4,096 tokens. What there is to learn is told in `grammar.rs`.

use std::io::Write;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::dice::Dice;
use super::grammar::Grammar;
use super::lexicon::VOCAB_SIZE;
use super::prepare::{self, Counts, META_FILE, Meta, Request, Split};
use super::source::Source;
use crate::error::{Error, Result};
use crate::files::{self, AtomicFile};
use crate::tokenizer::{self, BpeTokenizer, Tokenizer};

/// Sequences in a batch of the reference workload.
pub const BATCH_SIZE: u64 = 32;
/// Tokens in a sequence of the reference workload.
pub const BLOCK_SIZE: u64 = 128;
/// Batches in an epoch of the reference workload.
pub const BATCHES: u64 = 2272;
/// Batches in its validation text.
pub const VAL_BATCHES: u64 = 16;

/// The file with the whole text, the validation documents at its end.
pub const TEXT_FILE: &str = "reference.txt";

const SEED: u64 = 2272;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of text.
    pub bytes: u64,
    /// Documents.
    pub documents: u64,
    /// Tokens in the training shard, an end-of-text token for each document
    /// among them.
    pub train_tokens: u64,
    /// Tokens in the validation shard.
    pub val_tokens: u64,
    /// Whole batches in an epoch of training.
    pub batches: u64,
    /// Name and SHA-256 (hexadecimal) of each file.
    pub sha256: Vec<(String, String)>,
}

/// Writes the reference data set into `dir`: `reference.txt`,
/// `tokenizer.json`, `train_000000.bin`, `val_000000.bin` and `meta.json`.
///
/// # Errors
/// When a file cannot be written, or shards of somebody else are in the way.
pub fn write_reference(dir: &Path) -> Result<Summary> {
    write_scaled(dir, BATCHES, VAL_BATCHES)
}

/// As [`write_reference`], with other numbers of batches. The language and its
/// tokenizer stay the same, and so does the text as far as it goes.
///
/// # Errors
/// As [`write_reference`].
pub fn write_scaled(dir: &Path, batches: u64, val_batches: u64) -> Result<Summary> {
    files::create_dir(dir)?;
    prepare::clear(dir)?;
    let grammar = Grammar::new(SEED);
    let bpe = BpeTokenizer::from_words(grammar.lexicon.words())?;
    let tokenizer = Tokenizer::Bpe(Box::new(bpe));
    // The text is made here and now: its seed is what it was made from.
    let name = format!("reference seed {SEED} batches {batches} {val_batches}");
    let request = Request::new(vec![Source::from_memory(&name, *b"")]);
    let meta = Meta::new(&request, &tokenizer)?;
    meta.save(dir)?;
    tokenizer.save(&dir.join(tokenizer::FILE_NAME))?;

    let mut text = TextFile::create(dir)?;
    let mut dice = Dice::new(SEED + 1);
    let mut counts = Counts::default();
    let mut split = |name, batches| -> Result<u64> {
        // One block more than the batches hold, so that a sampler that shifts
        // its windows from epoch to epoch also finds that many.
        let wanted = batches * BATCH_SIZE * BLOCK_SIZE + BLOCK_SIZE;
        let mut split = Split::new(dir, name, request.shard_tokens, VOCAB_SIZE);
        let mut ids = Vec::new();
        while split.tokens < wanted {
            ids.clear();
            ids.push(tokenizer.end_of_text());
            grammar.document(&mut dice, &mut ids);
            split.write(&ids)?;
            counts.bytes += text.write(&grammar, &ids[1..])?;
            counts.documents += 1;
            counts.tokens += ids.len() as u64;
        }
        split.finish()?;
        Ok(split.tokens)
    };
    let train_tokens = split("train", batches)?;
    let val_tokens = split("val", val_batches)?;
    let text_sha256 = text.finish()?;
    meta.finished(counts, train_tokens, val_tokens).save(dir)?;

    let mut sha256 = vec![(TEXT_FILE.to_owned(), text_sha256)];
    for file in [tokenizer::FILE_NAME, "train_000000.bin", "val_000000.bin", META_FILE] {
        let path = dir.join(file);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, &e))?;
        sha256.push((file.to_owned(), super::sha256_hex(&bytes)));
    }
    Ok(Summary {
        bytes: counts.bytes,
        documents: counts.documents,
        train_tokens,
        val_tokens,
        batches: (train_tokens - 1) / (BATCH_SIZE * BLOCK_SIZE),
        sha256,
    })
}

/// Whether `dir` holds a finished folder of shards with a description.
#[must_use]
pub fn is_complete(dir: &Path) -> bool {
    dir.join(META_FILE).is_file() && Meta::load(dir).is_some_and(|meta| meta.is_complete())
}

/// The text as it is written, and its hash.
struct TextFile {
    file: AtomicFile,
    hash: Sha256,
    buffer: Vec<u8>,
}

impl TextFile {
    fn create(dir: &Path) -> Result<Self> {
        let file = AtomicFile::create(&dir.join(TEXT_FILE))?;
        Ok(Self { file, hash: Sha256::new(), buffer: Vec::new() })
    }

    /// Writes the text of `ids` and says how long it is.
    fn write(&mut self, grammar: &Grammar, ids: &[u32]) -> Result<u64> {
        self.buffer.clear();
        for &id in ids {
            grammar.lexicon.push_text(id, &mut self.buffer);
        }
        self.hash.update(&self.buffer);
        let written = self.file.write_all(&self.buffer);
        written.map_err(|e| Error::io("write", self.file.path(), &e))?;
        Ok(self.buffer.len() as u64)
    }

    fn finish(self) -> Result<String> {
        self.file.commit()?;
        Ok(super::hex(&self.hash.finalize()))
    }
}
