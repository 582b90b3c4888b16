//! Text sources encoded once into a folder of token shards.
//!
//! The folder holds `train_000000.bin` and so on, `val_000000.bin`, the
//! `tokenizer.json` and a `meta.json` that says what it was made from. Each
//! document begins with the end-of-text token, as llm.c has it, which keeps
//! documents apart. `meta.json` is written first as incomplete and last as
//! complete, so a folder left by a crash is not taken for a finished one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use super::encode::{Counts, encode};
use super::shard::ShardWriter;
use super::source::{Source, TEXT_FIELD};
use super::stream::{TokenStream, find_shards};
use super::sums;
use crate::error::{Error, Result};
use crate::files;
use crate::tokenizer::{self, Tokenizer};
use crate::train::folder::RunFolder;

/// The file that says what a folder of shards was made from.
pub const META_FILE: &str = "meta.json";
/// No `meta.json`, which names each file of the text, has more bytes: it is refused before the text is encoded.
const LARGEST_META: u64 = 64 << 20;
/// Bytes that the numbers of a finished one may take more than those of an incomplete one.
const MOST_DIGITS: u64 = 256;

const META_FORMAT: &str = "cllm-data";
const META_VERSION: u32 = 1;

/// What to encode.
#[derive(Debug, Clone)]
pub struct Request {
    /// Text to train on.
    pub train: Vec<Source>,
    /// Text to validate on; none means a part of the training text.
    pub validation: Vec<Source>,
    /// The field of JSON lines that holds the text.
    pub text_field: String,
    /// Share of the tokens, at the end, that validation takes when it has no
    /// sources of its own: at least 0 and below 1.
    pub val_fraction: f64,
    /// Most tokens in a shard.
    pub shard_tokens: u64,
}

impl Request {
    /// To train on `train`, a tenth of it kept for validation.
    #[must_use]
    pub fn new(train: Vec<Source>) -> Self {
        Self {
            train,
            validation: Vec::new(),
            text_field: TEXT_FIELD.to_owned(),
            val_fraction: 0.1,
            shard_tokens: 100_000_000,
        }
    }

    fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.val_fraction) {
            return Err(Error::usage(format!(
                "--val-fraction {}: must be at least 0 and below 1",
                self.val_fraction
            )));
        }
        if self.shard_tokens == 0 || self.shard_tokens > ShardWriter::MAX_TOKENS {
            return Err(Error::usage(format!(
                "--shard-tokens {}: must be 1 to {}",
                self.shard_tokens,
                ShardWriter::MAX_TOKENS
            )));
        }
        Ok(())
    }

    /// How many of `total` tokens at the end are for validation.
    fn tail(&self, total: u64) -> u64 {
        if self.validation.is_empty() { (total as f64 * self.val_fraction) as u64 } else { 0 }
    }
}

/// What a folder of shards holds and was made from: its `meta.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    format: String,
    version: u32,
    complete: bool,
    /// `bytes`, `chars` or `bpe`.
    pub tokenizer: String,
    /// SHA-256 of the tokenizer's JSON.
    pub tokenizer_sha256: String,
    /// Number of identifiers.
    pub vocab_size: usize,
    /// Bytes of text, training and validation together.
    pub bytes: u64,
    /// Documents, training and validation together.
    pub documents: u64,
    /// Tokens to train on.
    pub train_tokens: u64,
    /// Tokens to validate on.
    pub val_tokens: u64,
    text_field: String,
    val_fraction: f64,
    shard_tokens: u64,
    sources: Vec<Option<String>>,
    validation_sources: Vec<Option<String>>,
}

impl Meta {
    /// The description of a folder yet to be filled.
    pub(super) fn new(request: &Request, tokenizer: &Tokenizer) -> Result<Self> {
        let prints = |sources: &[Source]| -> Result<Vec<Option<String>>> {
            sources.iter().map(Source::fingerprint).collect()
        };
        Ok(Self {
            format: META_FORMAT.to_owned(),
            version: META_VERSION,
            complete: false,
            tokenizer: tokenizer.name().to_owned(),
            tokenizer_sha256: super::sha256_hex(tokenizer.to_json()?.as_bytes()),
            vocab_size: tokenizer.vocab_size(),
            bytes: 0,
            documents: 0,
            train_tokens: 0,
            val_tokens: 0,
            text_field: request.text_field.clone(),
            val_fraction: request.val_fraction,
            shard_tokens: request.shard_tokens,
            sources: prints(&request.train)?,
            validation_sources: prints(&request.validation)?,
        })
    }

    /// Reads the `meta.json` of `dir`; `None` when there is none, or none of
    /// this program's.
    #[must_use]
    pub fn load(dir: &Path) -> Option<Self> {
        let text = files::read_most(&dir.join(META_FILE), LARGEST_META).ok()?;
        let meta: Self = crate::json::from_slice(&text).ok()?;
        let counts = meta.train_tokens.checked_add(meta.val_tokens).filter(|_| meta.vocab_size > 0);
        (meta.format == META_FORMAT && meta.version == META_VERSION && counts.is_some())
            .then_some(meta)
    }

    /// Whether any of it came from standard input.
    #[must_use]
    pub fn is_of_stdin(&self) -> bool {
        self.sources.iter().chain(&self.validation_sources).any(Option::is_none)
    }

    /// Whether the folder was finished.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Writes the `meta.json` of `dir`.
    pub(super) fn save(&self, dir: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::failure(format!("cannot write {META_FILE}: {e}")))?;
        text.push('\n');
        let path = dir.join(META_FILE);
        let room = if self.complete { 0 } else { MOST_DIGITS };
        if text.len() as u64 + room > LARGEST_META {
            return Err(Error::failure(format!(
                "{}: {} files of text are more than it can name in {}: put many documents into one file, as JSON lines",
                path.display(),
                self.sources.len() + self.validation_sources.len(),
                crate::memory::human_bytes(LARGEST_META)
            )));
        }
        files::write_atomic(&path, text.as_bytes())
    }

    /// Fills in what was counted and marks the folder as finished.
    pub(super) fn finished(mut self, counts: Counts, train_tokens: u64, val_tokens: u64) -> Self {
        self.complete = true;
        self.bytes = counts.bytes;
        self.documents = counts.documents;
        (self.train_tokens, self.val_tokens) = (train_tokens, val_tokens);
        self
    }

    fn made_alike(&self, other: &Self) -> bool {
        let recipe = |meta: &Self| {
            (
                meta.tokenizer_sha256.clone(),
                meta.text_field.clone(),
                meta.val_fraction.to_bits(),
                meta.sources.clone(),
                meta.validation_sources.clone(),
            )
        };
        recipe(self) == recipe(other)
    }
}

/// Refuses a folder that holds a tokenizer, a run or a model to which another tokenizer would do harm.
///
/// # Errors
/// Names it, and what to do.
pub fn refuse_another_tokenizer(tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    if RunFolder::existing(dir).is_run() {
        return Err(Error::failure(format!(
            "{}: a run folder, whose tokenizer would become another one; choose another --out",
            dir.display()
        )));
    }
    // What was cut off is made anew.
    let is_cut_off = Meta::load(dir).is_some_and(|meta| !meta.is_complete());
    let path = dir.join(tokenizer::FILE_NAME);
    if is_cut_off || !path.exists() {
        return Ok(());
    }
    let there = Tokenizer::load(&path).and_then(|there| there.to_json()).unwrap_or_default();
    if there == tokenizer.to_json()? {
        return Ok(());
    }
    Err(Error::failure(format!(
        "{}: another tokenizer is there already; choose another --out, or remove what is there",
        path.display()
    )))
}

/// Refuses a folder that holds data, which [`prepare`] would replace, and what [`refuse_another_tokenizer`]
/// does. Whether they are the wanted ones, [`current`] says.
///
/// # Errors
/// Names it, and what to do.
pub fn refuse_to_replace(tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    let there = Meta::load(dir).filter(Meta::is_complete);
    let Some(there) = there.filter(|_| !find_shards(dir, "train").unwrap_or_default().is_empty())
    else {
        return refuse_another_tokenizer(tokenizer, dir);
    };
    Err(Error::failure(format!(
        "{}: there are data of {} tokens in this folder, made from something else; choose another \
         --out, or remove them",
        dir.display(),
        there.train_tokens + there.val_tokens
    )))
}

/// The description of `dir` if it already holds what [`prepare`] would make;
/// `None` if anything differs: a source, the tokenizer, the split, a missing
/// shard. Standard input always differs.
///
/// # Errors
/// When a source has gone.
pub fn current(request: &Request, tokenizer: &Tokenizer, dir: &Path) -> Result<Option<Meta>> {
    let wanted = Meta::new(request, tokenizer)?;
    if wanted.sources.iter().chain(&wanted.validation_sources).any(Option::is_none) {
        return Ok(None);
    }
    let meta = Meta::load(dir).filter(|meta| meta.made_alike(&wanted) && is_whole(dir));
    Ok(meta)
}

/// Encodes `request` into the folder `dir`, in bounded memory.
///
/// # Errors
/// Unreadable, malformed or empty sources, text that the tokenizer refuses
/// (with file and byte), a folder with shards that this program did not make,
/// and failed writes. The folder is then left marked as incomplete.
pub fn prepare(request: &Request, tokenizer: &Tokenizer, dir: &Path) -> Result<Meta> {
    request.check()?;
    let meta = Meta::new(request, tokenizer)?;
    files::create_dir(dir)?;
    clear(dir)?;
    meta.save(dir)?;
    tokenizer.save(&dir.join(tokenizer::FILE_NAME))?;

    let mut train = Split::new(dir, "train", request.shard_tokens, tokenizer.vocab_size());
    let mut counts =
        encode(&request.train, &request.text_field, tokenizer, &mut |ids| train.write(ids))?;
    train.finish()?;
    let mut val = Split::new(dir, "val", request.shard_tokens, tokenizer.vocab_size());
    if !request.validation.is_empty() {
        let sources = &request.validation;
        let more = encode(sources, &request.text_field, tokenizer, &mut |ids| val.write(ids))?;
        counts.bytes += more.bytes;
        counts.documents += more.documents;
    }
    let tail = request.tail(train.tokens);
    if tail > 0 {
        move_tail(&mut train, tail, &mut val, tokenizer.vocab_size())?;
    }
    val.finish()?;
    let meta = meta.finished(counts, train.tokens, val.tokens);
    meta.save(dir)?;
    Ok(meta)
}

/// Whether `dir` holds what [`prepare`] would make although [`current`] says that it was made from something
/// else: the same text lies in another place, or has another time of change. Then the folder is described
/// as made from `request`. Takes the time of encoding all of it.
///
/// # Errors
/// Unreadable or malformed sources, and a folder that cannot be read or written.
pub fn adopt(request: &Request, tokenizer: &Tokenizer, dir: &Path) -> Result<bool> {
    let wanted = Meta::new(request, tokenizer)?;
    let Some(meta) = Meta::load(dir).filter(|meta| meta.complete) else { return Ok(false) };
    let (shards, val) = (find_shards(dir, "train")?, find_shards(dir, "val")?);
    let is_same = meta.tokenizer_sha256 == wanted.tokenizer_sha256
        && if request.validation.is_empty() {
            // The tail of the text is for validation.
            meta.val_tokens == request.tail(meta.train_tokens + meta.val_tokens)
                && holds(&[shards, val].concat(), &request.train, &request.text_field, tokenizer)?
        } else {
            holds(&shards, &request.train, &request.text_field, tokenizer)?
                && holds(&val, &request.validation, &request.text_field, tokenizer)?
        };
    if is_same {
        let (sources, validation_sources) = (wanted.sources, wanted.validation_sources);
        let (text_field, val_fraction) = (wanted.text_field, wanted.val_fraction);
        Meta { sources, validation_sources, text_field, val_fraction, ..meta }.save(dir)?;
    }
    Ok(is_same)
}

/// Whether `dir` is finished, and has all the shards that it was finished with.
#[must_use]
pub fn is_whole(dir: &Path) -> bool {
    let Some(meta) = Meta::load(dir).filter(Meta::is_complete) else { return false };
    [("train", meta.train_tokens), ("val", meta.val_tokens)].into_iter().all(|(split, tokens)| {
        let Ok(paths) = find_shards(dir, split) else { return false };
        let held = if paths.is_empty() {
            Some(0)
        } else {
            TokenStream::open(&paths).ok().map(|stream| stream.len())
        };
        held == Some(tokens)
    })
}

/// Refuses a folder that was finished with more tokens of a split (`train` or `val`) than `opened`, a stream of all its
/// shards and perhaps of others, has of them: one was lost, or its first bytes are not those of a shard any more. A
/// run would train on the rest, and nothing would tell.
///
/// # Errors
/// Names the folder, and what to do.
pub fn refuse_missing(dir: &Path, split: &str, opened: Option<&TokenStream>) -> Result<()> {
    let Some(meta) = Meta::load(dir).filter(Meta::is_complete) else { return Ok(()) };
    let tokens = if split == "val" { meta.val_tokens } else { meta.train_tokens };
    let held = opened.map_or(0, |stream| stream.tokens_of(dir, split));
    if held < tokens {
        return Err(Error::failure(format!(
            "{}: by its {META_FILE} it has {tokens} tokens in shards called {split}, but there are {held}: one is \
             missing or damaged; put it back, or name the shards that are wanted (--data)",
            dir.display()
        )));
    }
    Ok(())
}

/// Marks what [`prepare`] has made as not finished: it was made of the wrong text.
pub fn spoil(dir: &Path) {
    if let Some(meta) = Meta::load(dir) {
        // Should that fail, the next session says what is wrong with the data.
        let _ = Meta { complete: false, ..meta }.save(dir);
    }
}

/// Whether the split of `dir` that `sources` were made into, `train` or `val`, still is what they would be made
/// into; by their fingerprints, or if those differ by encoding them.
///
/// # Errors
/// As for [`adopt`].
pub fn still_holds(
    dir: &Path,
    split: &str,
    sources: &[Source],
    text_field: &str,
    tokenizer: &Tokenizer,
) -> Result<bool> {
    let made = Meta::load(dir)
        .map(|meta| if split == "val" { meta.validation_sources } else { meta.sources });
    let prints: Result<Vec<_>> = sources.iter().map(Source::fingerprint).collect();
    if made == Some(prints?) {
        return Ok(true);
    }
    holds(&find_shards(dir, split)?, sources, text_field, tokenizer)
}

/// Whether some shards are the tokens of some sources.
fn holds(
    shards: &[PathBuf],
    sources: &[Source],
    text_field: &str,
    tokenizer: &Tokenizer,
) -> Result<bool> {
    if shards.is_empty() {
        return Ok(false);
    }
    let stream = TokenStream::open(shards)?;
    let mut stored = Vec::new();
    let (mut at, mut is_same) = (0, true);
    let encoded = encode(sources, text_field, tokenizer, &mut |ids| {
        stored.resize(ids.len(), 0);
        is_same = at + ids.len() as u64 <= stream.len();
        if is_same {
            stream.fill(at, &mut stored)?;
            is_same = stored == ids;
        }
        at += ids.len() as u64;
        // No error, but the end of what matters.
        if is_same { Ok(()) } else { Err(Error::failure("other data")) }
    });
    if !is_same {
        return Ok(false);
    }
    encoded?;
    Ok(at == stream.len())
}

/// Encodes `request` into memory: the training and the validation stream.
///
/// # Errors
/// As [`prepare`], but for writing.
pub fn encode_in_memory(
    request: &Request,
    tokenizer: &Tokenizer,
) -> Result<(TokenStream, TokenStream)> {
    request.check()?;
    let stream = |sources: &[Source]| -> Result<TokenStream> {
        let mut tokens = Vec::new();
        let name = sources.first().map_or_else(String::new, |s| s.name().display().to_string());
        encode(sources, &request.text_field, tokenizer, &mut |ids| {
            tokens.extend_from_slice(ids);
            Ok(())
        })?;
        Ok(TokenStream::from_tokens(&name, tokens))
    };
    let train = stream(&request.train)?;
    if !request.validation.is_empty() {
        return Ok((train, stream(&request.validation)?));
    }
    let keep = train.len() - request.tail(train.len());
    Ok(train.split_at(keep))
}

/// The shards of one split, begun and finished as tokens come.
pub(super) struct Split {
    dir: PathBuf,
    name: &'static str,
    shard_tokens: u64,
    vocab_size: usize,
    writer: Option<ShardWriter>,
    pub(super) paths: Vec<PathBuf>,
    pub(super) tokens: u64,
}

impl Split {
    pub(super) fn new(
        dir: &Path,
        name: &'static str,
        shard_tokens: u64,
        vocab_size: usize,
    ) -> Self {
        let (dir, paths) = (dir.to_path_buf(), Vec::new());
        Self { dir, name, shard_tokens, vocab_size, writer: None, paths, tokens: 0 }
    }

    pub(super) fn write(&mut self, mut ids: &[u32]) -> Result<()> {
        while !ids.is_empty() {
            let mut writer = match self.writer.take() {
                Some(writer) => writer,
                None => {
                    let name = format!("{}_{:06}.bin", self.name, self.paths.len());
                    let path = self.dir.join(name);
                    self.paths.push(path.clone());
                    ShardWriter::create(&path, self.vocab_size)?
                }
            };
            let room = self.shard_tokens - writer.tokens();
            let (now, later) = ids.split_at(room.min(ids.len() as u64) as usize);
            writer.write(now)?;
            self.tokens += now.len() as u64;
            ids = later;
            if writer.tokens() == self.shard_tokens {
                writer.finish()?;
            } else {
                self.writer = Some(writer);
            }
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        self.writer.take().map_or(Ok(()), ShardWriter::finish)
    }
}

/// Moves the last `tail` tokens of `train` to `val`. The whole length is known
/// only when everything is encoded, so the split is made afterwards.
fn move_tail(train: &mut Split, tail: u64, val: &mut Split, vocab_size: usize) -> Result<()> {
    let keep = train.tokens - tail;
    let stream = TokenStream::open(&train.paths)?;
    copy(&stream.split_at(keep).1, &mut |ids| val.write(ids))?;
    let cut = (keep / train.shard_tokens) as usize;
    let inside = keep % train.shard_tokens;
    if inside > 0 {
        let start = cut as u64 * train.shard_tokens;
        let (kept, _) = stream.split_at(start).1.split_at(inside);
        // Of the old shard nothing is read any more once the new one has its name.
        let mut writer = ShardWriter::create(&train.paths[cut], vocab_size)?;
        copy(&kept, &mut |ids| writer.write(ids))?;
        writer.finish()?;
    }
    for path in train.paths.drain(cut + usize::from(inside > 0)..) {
        sums::remove_with(&path)?;
    }
    train.tokens = keep;
    Ok(())
}

fn copy(stream: &TokenStream, sink: &mut dyn FnMut(&[u32]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    while at < stream.len() {
        let part = &mut buffer[..(stream.len() - at).min(1 << 16) as usize];
        stream.fill(at, part)?;
        sink(part)?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Removes the shards of an earlier preparation, and of nobody else.
pub(super) fn clear(dir: &Path) -> Result<()> {
    let ours = Meta::load(dir).is_some();
    for split in ["train", "val"] {
        for path in find_shards(dir, split)? {
            if !ours {
                return Err(Error::failure(format!(
                    "{}: a token shard that this program did not make is in the way; choose \
                     another folder",
                    path.display()
                )));
            }
            sums::remove_with(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Before the text is encoded: of a finished one that is larger nobody would know what it says.
    #[test]
    fn more_files_than_can_be_named_are_refused_at_once() {
        let request = Request::new(vec![Source::from_memory("a", b"some text".to_vec())]);
        let meta = Meta::new(&request, &Tokenizer::Bytes).unwrap();
        let dir = tempfile::tempdir().unwrap();
        meta.save(dir.path()).unwrap();
        assert_eq!(Meta::load(dir.path()).as_ref(), Some(&meta));
        let room = LARGEST_META as usize - serde_json::to_string_pretty(&meta).unwrap().len() - 1;
        let with = |more: usize| Meta { text_field: "x".repeat(more), ..meta.clone() };
        let left = room + meta.text_field.len() - MOST_DIGITS as usize;
        with(left).save(dir.path()).unwrap();
        let of_most = Counts { bytes: u64::MAX, documents: u64::MAX, tokens: 0 };
        let done = with(left).finished(of_most, u64::MAX / 2, u64::MAX / 2);
        done.save(dir.path()).unwrap();
        assert_eq!(Meta::load(dir.path()), Some(done));
        let message = with(left + 1).save(dir.path()).unwrap_err().to_string();
        assert!(message.contains("1 files of text are more than"), "{message}");
    }
}
