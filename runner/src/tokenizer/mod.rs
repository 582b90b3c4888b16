//! Text to token identifiers and back: bytes, characters, byte-pair encoding.
//!
//! A tokenizer lives in a file called `tokenizer.json`. Byte and character
//! tokenizers have small formats of their own there
//! (`{"type":"cllm-bytes"}`, `{"type":"cllm-chars","chars":[..]}`); anything
//! else is the format of the `tokenizers` crate.
//!
//! Text never turns into the end of text or another special token, even when
//! it spells one. (Tokens that a loaded file adds *without* calling them
//! special do match: they are part of its ordinary vocabulary.)

use core::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

#[cfg_attr(not(feature = "bpe"), path = "no_bpe.rs")]
mod bpe;
mod bytes;
mod chars;
#[cfg(any(feature = "hf", feature = "gguf"))]
#[cfg_attr(
    not(feature = "gguf"),
    allow(dead_code, reason = "llama.cpp's names, and kinds that have them")
)]
mod cuts;
mod parts;
#[cfg(feature = "bpe")]
mod settle;
mod stream;
#[cfg(feature = "bpe")]
mod transformers;
pub(crate) mod usage;
#[cfg(feature = "bpe")]
mod words;

pub use bpe::BpeTokenizer;
pub use chars::CharTokenizer;
pub use stream::StreamDecoder;

#[cfg(any(feature = "hf", feature = "gguf"))]
pub(crate) use bpe::byte_char;
#[cfg(any(feature = "hf", feature = "gguf"))]
pub(crate) use bpe::{END_KEY, OTHER_ENDS_KEY, end_of_text_guess};
#[cfg(any(feature = "hf", feature = "gguf"))]
pub(crate) use cuts::Cut;
pub(crate) use parts::cut;
#[cfg(any(feature = "hf", feature = "gguf", all(test, feature = "chat")))]
pub(crate) use transformers::added_token;
#[cfg(any(feature = "hf", feature = "gguf", all(test, feature = "bpe")))]
pub(crate) use transformers::behind;
#[cfg(any(feature = "hf", feature = "gguf"))]
pub(crate) use transformers::byte_level_json;

use crate::error::{Error, Result};
use crate::files;

/// The file name of a saved tokenizer.
pub const FILE_NAME: &str = "tokenizer.json";

/// The spelling of the token that ends a text.
pub const END_OF_TEXT: &str = "<|endoftext|>";

const BYTES_TYPE: &str = "cllm-bytes";
const CHARS_TYPE: &str = "cllm-chars";

/// How text becomes token identifiers and the other way round.
#[derive(Debug, Clone)]
pub enum Tokenizer {
    /// One token a byte; any data at all can be encoded.
    Bytes,
    /// One token a character that occurred in the training text.
    Chars(CharTokenizer),
    /// Byte-pair encoding, or another model from a `tokenizer.json`.
    Bpe(Box<BpeTokenizer>),
}

/// Why a text could not be encoded, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeError {
    offset: usize,
    what: String,
}

impl EncodeError {
    fn new(offset: usize, what: String) -> Self {
        Self { offset, what }
    }

    /// Offset in bytes of the offending place in the text given.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The same as an [`Error`] that names where the text came from and the
    /// offset there, for a text that starts `base` bytes into its origin.
    #[must_use]
    pub fn in_origin(&self, origin: &dyn fmt::Display, base: u64) -> Error {
        Error::failure(format!("{origin}: at byte {}: {}", base + self.offset as u64, self.what))
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.offset, self.what)
    }
}

impl core::error::Error for EncodeError {}

impl From<EncodeError> for Error {
    fn from(error: EncodeError) -> Self {
        Self::failure(format!("cannot encode the text: {error}"))
    }
}

impl Tokenizer {
    /// Reads the tokenizer in `path`: the file itself, or a folder that holds
    /// a `tokenizer.json`.
    ///
    /// # Errors
    /// Names the file when it is missing or not a tokenizer.
    pub fn load(path: &Path) -> Result<Self> {
        let path = file_in(path);
        let text = files::read(&path).map_err(|e| Error::io("read the tokenizer", &path, &e))?;
        Self::from_json(&text).map_err(|cause| {
            Error::failure(format!("{} is not a usable tokenizer: {cause}", path.display()))
        })
    }

    /// Reads the text of a `tokenizer.json`; on failure the cause in words.
    ///
    /// # Errors
    /// When it is not JSON, or of no known form.
    pub fn from_json(text: &[u8]) -> core::result::Result<Self, String> {
        let json: Value = crate::json::from_slice(text).map_err(|e| e.to_string())?;
        match json["type"].as_str() {
            Some(BYTES_TYPE) => Ok(Self::Bytes),
            Some(CHARS_TYPE) => CharTokenizer::from_json(&json).map(Self::Chars),
            _ => BpeTokenizer::from_json(json).map(|bpe| Self::Bpe(Box::new(bpe))),
        }
    }

    /// Writes the tokenizer atomically to `path`, a file or an existing folder
    /// (then as its `tokenizer.json`).
    ///
    /// # Errors
    /// Names the file when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        files::write_atomic(&file_in(path), self.to_json()?.as_bytes())
    }

    /// The text that [`save`](Self::save) writes, the same each time.
    ///
    /// # Errors
    /// When a loaded tokenizer cannot be written as JSON again.
    pub fn to_json(&self) -> Result<String> {
        match self {
            Self::Bytes => Ok(format!("{}\n", json!({ "type": BYTES_TYPE }))),
            Self::Chars(chars) => Ok(format!("{}\n", chars.to_json())),
            Self::Bpe(bpe) => bpe.to_json().map_err(unwritable),
        }
    }

    /// The text of a `tokenizer.json` that `transformers` reads, with the same identifiers.
    ///
    /// # Errors
    /// As [`to_json`](Self::to_json).
    #[cfg(feature = "bpe")]
    pub fn to_transformers(&self) -> Result<String> {
        let text = match self {
            Self::Bytes => transformers::of_bytes().to_string(),
            Self::Chars(chars) => transformers::of_chars(chars).to_string(),
            Self::Bpe(bpe) => return bpe.to_transformers().map_err(unwritable),
        };
        // Through the library, which is what will read it, and has an order of its own.
        Self::from_json(text.as_bytes()).map_err(unwritable)?.to_json()
    }

    /// `bytes`, `chars` or `bpe`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Chars(_) => "chars",
            Self::Bpe(_) => "bpe",
        }
    }

    /// Number of identifiers, the end of text among them: every identifier is
    /// below it.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Bytes => bytes::VOCAB_SIZE,
            Self::Chars(chars) => chars.chars().len() + 1,
            Self::Bpe(bpe) => bpe.vocab_size(),
        }
    }

    /// Identifier of `<|endoftext|>` (or what a loaded file calls it).
    #[must_use]
    pub fn end_of_text(&self) -> u32 {
        match self {
            Self::Bytes => bytes::END_OF_TEXT,
            Self::Chars(chars) => chars.end_of_text(),
            Self::Bpe(bpe) => bpe.end_of_text(),
        }
    }

    /// Identifiers of other tokens that end a text, or what is said.
    pub(crate) fn other_ends(&self) -> &[u32] {
        match self {
            Self::Bytes | Self::Chars(_) => &[],
            Self::Bpe(bpe) => bpe.other_ends(),
        }
    }

    /// Whether a token ends a text, or what is said.
    pub(crate) fn is_end(&self, id: u32) -> bool {
        id == self.end_of_text() || self.other_ends().contains(&id)
    }

    /// The id of a token by its spelling, if the tokenizer has spellings.
    #[cfg(any(feature = "hf", feature = "gguf"))]
    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        match self {
            Self::Bytes | Self::Chars(_) => None,
            Self::Bpe(bpe) => bpe.token_to_id(token),
        }
    }

    /// The same tokenizer for texts that command: special tokens that a text spells are themselves.
    #[cfg(feature = "chat")]
    pub(crate) fn commanding(&self) -> Self {
        match self {
            Self::Bytes => Self::Bytes,
            Self::Chars(chars) => Self::Chars(chars.clone()),
            Self::Bpe(bpe) => Self::Bpe(Box::new(bpe.commanding())),
        }
    }

    /// A special token that `text` spells, if it spells one.
    #[cfg(feature = "chat")]
    pub(crate) fn spelled(&self, text: &str) -> Option<String> {
        self.special_tokens().into_iter().find(|token| text.contains(token))
    }

    /// The spellings of special tokens.
    #[cfg(feature = "chat")]
    pub(crate) fn special_tokens(&self) -> Vec<String> {
        match self {
            Self::Bytes | Self::Chars(_) => Vec::new(),
            Self::Bpe(bpe) => bpe.special_tokens(),
        }
    }

    /// The identifiers that the tokenizer itself puts before every text, as those of Llama do.
    pub(crate) fn begin_of_text(&self) -> Vec<u32> {
        match self {
            Self::Bytes | Self::Chars(_) => Vec::new(),
            Self::Bpe(bpe) => bpe.begin_of_text(),
        }
    }

    /// The identifiers that a model is given of a text to go on with: behind the beginning that the
    /// tokenizer has, and of no text at all the end of the one before.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub(crate) fn encode_prompt(&self, text: &[u8]) -> core::result::Result<Vec<u32>, EncodeError> {
        let mut ids = self.begin_of_text();
        self.encode_into(text, &mut ids)?;
        if ids.is_empty() {
            // Every document of the training data begins so.
            ids.push(self.end_of_text());
        }
        Ok(ids)
    }

    /// The identifiers of `text` where it goes on from `before`, whose own are `ids`: those that the
    /// whole has behind them, unless the whole puts a token across the border.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub(crate) fn encode_after(
        &self,
        before: &str,
        ids: &[u32],
        text: &str,
    ) -> core::result::Result<Vec<u32>, EncodeError> {
        if matches!(self, Self::Bpe(_)) && !before.is_empty() {
            let mut whole = self.encode([before, text].concat().as_bytes())?;
            if whole.starts_with(ids) {
                whole.drain(..ids.len());
                return Ok(whole);
            }
        }
        self.encode(text.as_bytes())
    }

    /// A text without the special tokens that it spells, for templates alone may say them; `None` if
    /// after `passes` through it what is left still spells one.
    #[cfg(feature = "chat")]
    pub(crate) fn without_special(&self, mut text: String, passes: usize) -> Option<String> {
        let mut left = passes;
        while let Some(token) = self.spelled(&text) {
            left = left.checked_sub(1)?;
            text = text.replace(&token, "");
        }
        Some(text)
    }

    /// How the vocabulary spells the end of text.
    #[must_use]
    pub fn end_of_text_name(&self) -> String {
        match self {
            Self::Bytes | Self::Chars(_) => END_OF_TEXT.to_owned(),
            Self::Bpe(bpe) => bpe.end_of_text_name(),
        }
    }

    /// The identifiers of `text`.
    ///
    /// # Errors
    /// Text that is not UTF-8 (but for bytes), or a character that the
    /// character tokenizer does not know.
    pub fn encode(&self, text: &[u8]) -> core::result::Result<Vec<u32>, EncodeError> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// Appends the identifiers of `text` to `ids`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); `ids` may then hold a part of the text.
    pub fn encode_into(
        &self,
        text: &[u8],
        ids: &mut Vec<u32>,
    ) -> core::result::Result<(), EncodeError> {
        self.encode_more(text, false, ids)
    }

    /// As [`encode_into`](Self::encode_into), of a text that goes on with one that was encoded before if
    /// `goes_on`.
    ///
    /// # Errors
    /// As [`encode_into`](Self::encode_into).
    pub(crate) fn encode_more(
        &self,
        text: &[u8],
        goes_on: bool,
        ids: &mut Vec<u32>,
    ) -> core::result::Result<(), EncodeError> {
        match self {
            Self::Bytes => {
                bytes::encode_into(text, ids);
                Ok(())
            }
            Self::Chars(chars) => chars.encode_into(text, ids),
            Self::Bpe(bpe) => bpe.encode_into(text, goes_on, ids),
        }
    }

    /// The bytes that `ids` stand for. The end of text, other special tokens
    /// and identifiers beyond the vocabulary stand for nothing.
    #[must_use]
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        let mut out = Vec::new();
        for &id in ids {
            if !self.append_bytes(id, &mut out) {
                return match self {
                    Self::Bpe(bpe) => bpe.decode_together(ids).into_bytes(),
                    Self::Bytes | Self::Chars(_) => out,
                };
            }
        }
        out
    }

    /// As [`decode_bytes`](Self::decode_bytes), with U+FFFD for what is not
    /// UTF-8.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(ids)).into_owned()
    }

    /// Turns identifiers into printable text one at a time.
    #[must_use]
    pub fn stream_decoder(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// Appends the bytes of one token; false when the tokenizer can only
    /// decode tokens together.
    fn append_bytes(&self, id: u32, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Bytes => out.extend(bytes::byte_of(id)),
            Self::Chars(chars) => {
                let mut buffer = [0; 4];
                if let Some(c) = chars.char_of(id) {
                    out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
                }
            }
            Self::Bpe(bpe) => return bpe.append_bytes(id, out),
        }
        true
    }
}

fn unwritable(cause: String) -> Error {
    Error::failure(format!("cannot write the tokenizer: {cause}"))
}

fn file_in(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(FILE_NAME) } else { path.to_path_buf() }
}

fn utf8(text: &[u8]) -> core::result::Result<&str, EncodeError> {
    core::str::from_utf8(text).map_err(|e| {
        EncodeError::new(
            e.valid_up_to(),
            "this is not UTF-8 text; convert it, or use the tokenizer `bytes`".to_owned(),
        )
    })
}
