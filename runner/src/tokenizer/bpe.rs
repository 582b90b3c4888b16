//! Byte-pair encoding, and whatever else a `tokenizer.json` describes.
//!
//! Trained here: byte-level as GPT-2's, so any text has an encoding and
//! decodes to the same bytes. Loaded: any file the `tokenizers` crate reads.

use core::fmt;

use serde_json::Value;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper};

use super::parts::parts;
use super::settle::{parts_get_a_space, settle};
use super::words::Words;
use super::{END_OF_TEXT, EncodeError};
use crate::error::{Error, Result};

/// Names that well-known tokenizers give to the end of a text, tried in order.
const END_NAMES: [&str; 7] =
    [END_OF_TEXT, "<|end_of_text|>", "</s>", "<|im_end|>", "<|eot_id|>", "<eos>", "<|end|>"];

/// The key of a `tokenizer.json` that names its end of text where it would not be guessed. It is this
/// program's own.
pub(crate) const END_KEY: &str = "end_of_text";

/// The key with the names of other tokens that end a text, or what is said: chat models have some.
pub(crate) const OTHER_ENDS_KEY: &str = "other_ends";

/// The identifier of the end of text that is found without [`END_KEY`].
fn guessed(inner: &tokenizers::Tokenizer) -> Option<u32> {
    END_NAMES.iter().find_map(|name| inner.token_to_id(name))
}

/// The name of that in JSON, which need not be a tokenizer that the library takes yet.
#[cfg(any(feature = "hf", feature = "gguf"))]
pub(crate) fn end_of_text_guess(json: &Value) -> Option<&'static str> {
    let added = json["added_tokens"].as_array();
    let is_there = |name: &&&str| {
        json["model"]["vocab"].get(**name).is_some()
            || added.into_iter().flatten().any(|token| token["content"] == **name)
    };
    END_NAMES.iter().find(is_there).copied()
}

/// A tokenizer of the `tokenizers` crate that knows how a text ends.
#[derive(Clone)]
pub struct BpeTokenizer {
    inner: tokenizers::Tokenizer,
    end_of_text: u32,
    other_ends: Vec<u32>,
    vocab_size: usize,
    /// The bytes of each token, where the decoder is byte-level; otherwise the
    /// text of a token depends on its neighbours and this is `None`.
    token_bytes: Option<Vec<Box<[u8]>>>,
    /// The short way to the tokens of a text, where there is one.
    words: Option<Words>,
    /// The library puts a space before whatever it is given.
    puts_space: bool,
}

impl fmt::Debug for BpeTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BpeTokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("end_of_text", &self.end_of_text)
            .finish_non_exhaustive()
    }
}

impl BpeTokenizer {
    /// Trains byte-level byte-pair encoding of at most `vocab_size`
    /// identifiers: the end of text, the 256 bytes, then merges by frequency.
    ///
    /// The same texts give the same tokenizer, bit for bit. Texts may be
    /// pieces of documents, best cut where white space begins. A text with
    /// little variety gives fewer identifiers than asked for.
    ///
    /// # Errors
    /// A usage error when `vocab_size` is below 257.
    pub fn train<I>(texts: I, vocab_size: usize) -> Result<Self>
    where
        I: Iterator<Item = String> + Send,
    {
        if vocab_size < super::bytes::VOCAB_SIZE {
            return Err(Error::usage(format!(
                "a byte-pair vocabulary of {vocab_size} is too small: it holds the 256 bytes and \
                 the end of text, so ask for at least {}",
                super::bytes::VOCAB_SIZE
            )));
        }
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .build()
            .into();
        let mut inner = byte_level(BPE::default());
        inner
            .train(&mut trainer, texts)
            .map_err(|e| Error::failure(format!("cannot train the tokenizer: {e}")))?;
        Self::from_inner(inner, None, &[]).map_err(Error::failure)
    }

    /// A byte-level tokenizer with exactly these words (with their leading
    /// space where they have one) as tokens after the end of text and the 256
    /// bytes; anything else is encoded byte by byte.
    ///
    /// # Errors
    /// When a word repeats another one or a single byte.
    pub fn from_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut vocab: Vec<(String, u32)> = vec![(END_OF_TEXT.to_owned(), 0)];
        let mut add = |token: String| {
            let id = vocab.len() as u32;
            vocab.push((token, id));
        };
        (0..=255).for_each(|byte| add(byte_char(byte).to_string()));
        words.into_iter().for_each(|word| add(word.bytes().map(byte_char).collect()));
        let wanted = vocab.len();
        let bpe = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), Vec::new())
            // Without merges, a word is found whole or falls apart into bytes.
            .ignore_merges(true)
            .build()
            .map_err(|e| Error::failure(format!("cannot build the tokenizer: {e}")))?;
        let mut inner = byte_level(bpe);
        inner.add_special_tokens(&[AddedToken::from(END_OF_TEXT, true)]);
        let tokenizer = Self::from_inner(inner, None, &[]).map_err(Error::failure)?;
        if tokenizer.inner.get_vocab_size(true) != wanted {
            return Err(Error::failure("cannot build the tokenizer: a word is there twice"));
        }
        Ok(tokenizer)
    }

    /// Reads the JSON of a `tokenizer.json`; the cause in words if it fails.
    pub(super) fn from_json(mut json: Value) -> core::result::Result<Self, String> {
        settle(&mut json)?;
        let puts_space = parts_get_a_space(&json);
        let mut own = |key| json.as_object_mut().and_then(|fields| fields.remove(key));
        let (end, others) = (own(END_KEY), own(OTHER_ENDS_KEY));
        // Never the text itself: the library stumbles over keys that it does not know, and of a key that is there
        // twice it reads both values, of which only the last has been checked. It makes values of its own, beside
        // which there is to be no room for these.
        let plain = json.to_string();
        drop(json);
        let inner = tokenizers::Tokenizer::from_bytes(plain.as_bytes());
        drop(plain);
        let others = others.as_ref().and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let end = end.as_ref().and_then(Value::as_str);
        let tokenizer = Self::from_inner(inner.map_err(|e| e.to_string())?, end, others)?;
        Ok(Self { puts_space, ..tokenizer })
    }

    /// With the end of text of that name, or else the one that is guessed or added; and the other ends.
    fn from_inner(
        mut inner: tokenizers::Tokenizer,
        end: Option<&str>,
        others: &[Value],
    ) -> core::result::Result<Self, String> {
        // Settings for fixed-length classifiers would cut and fill documents.
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        let end_of_text = match (end, guessed(&inner)) {
            (Some(name), _) => inner
                .token_to_id(name)
                .ok_or_else(|| format!("its end of text {name:?} is not one of its tokens"))?,
            (None, Some(id)) => id,
            (None, None) => {
                let taken = inner.get_vocab(true).values().copied().max();
                inner.add_special_tokens(&[AddedToken::from(END_OF_TEXT, true)]);
                inner
                    .token_to_id(END_OF_TEXT)
                    .filter(|id| taken.is_none_or(|taken| *id > taken))
                    .ok_or("it has no end of text, and gaps among its ids where one would be")?
            }
        };
        let mut other_ends = Vec::new();
        for name in others {
            let id = name.as_str().and_then(|name| inner.token_to_id(name));
            other_ends
                .push(id.ok_or_else(|| format!("another end {name} is not one of its tokens"))?);
        }
        // Data that spells a special token is plain text, not a command.
        inner.set_encode_special_tokens(true);
        let vocab = inner.get_vocab(true);
        let vocab_size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        let token_bytes = match inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => {
                let mut table = vec![Box::default(); vocab_size];
                for (token, id) in vocab {
                    if id != end_of_text && !inner.get_added_vocabulary().is_special_token(&token) {
                        table[id as usize] = token_bytes(&token);
                    }
                }
                Some(table)
            }
            _ => None,
        };
        let words = Words::of(&inner);
        Ok(Self {
            inner,
            end_of_text,
            other_ends,
            vocab_size,
            token_bytes,
            words,
            puts_space: false,
        })
    }

    /// One more than the largest identifier.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Identifier of the end of text.
    #[must_use]
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// Identifiers of other tokens that end a text, or what is said.
    pub(super) fn other_ends(&self) -> &[u32] {
        &self.other_ends
    }

    /// How the vocabulary spells the end of text.
    #[must_use]
    pub(super) fn end_of_text_name(&self) -> String {
        self.inner.id_to_token(self.end_of_text).unwrap_or_else(|| END_OF_TEXT.to_owned())
    }

    /// The same tokenizer for texts that command: special tokens that a text spells are themselves.
    #[cfg(feature = "chat")]
    pub(super) fn commanding(&self) -> Self {
        let mut inner = self.inner.clone();
        inner.set_encode_special_tokens(false);
        Self { inner, words: None, ..self.clone() }
    }

    /// The spellings of special tokens.
    #[cfg(feature = "chat")]
    pub(super) fn special_tokens(&self) -> Vec<String> {
        let added = self.inner.get_added_tokens_decoder();
        let special =
            added.into_values().filter(|token| token.special && !token.content.is_empty());
        special.map(|token| token.content).collect()
    }

    /// What the tokenizer's own template has before a text.
    pub(super) fn begin_of_text(&self) -> Vec<u32> {
        const TEXT: &str = "a";
        let ids = |special| self.inner.encode_fast(TEXT, special).map(|e| e.get_ids().to_vec());
        let (Ok(mut whole), Ok(text)) = (ids(true), ids(false)) else { return Vec::new() };
        let at = whole.windows(text.len().max(1)).position(|part| part == text).unwrap_or(0);
        whole.truncate(at);
        whole
    }

    /// The identifier of a token by its spelling in `tokenizer.json`.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// As the library has it, whatever ends its texts.
    pub(super) fn to_transformers(&self) -> core::result::Result<String, String> {
        self.inner.to_string(true).map_err(|e| e.to_string())
    }

    pub(super) fn to_json(&self) -> core::result::Result<String, String> {
        let text = self.to_transformers()?;
        let is_guessed = guessed(&self.inner) == Some(self.end_of_text);
        if is_guessed && self.other_ends.is_empty() {
            return Ok(text);
        }
        let mut json: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        if !is_guessed {
            json[END_KEY] = self.end_of_text_name().into();
        }
        if !self.other_ends.is_empty() {
            let names = self.other_ends.iter().filter_map(|id| self.inner.id_to_token(*id));
            json[OTHER_ENDS_KEY] = names.collect();
        }
        Ok(format!("{json:#}"))
    }

    /// Appends the identifiers of `text`, which `goes_on` with a text that was encoded before, if it does.
    pub(super) fn encode_into(
        &self,
        text: &[u8],
        goes_on: bool,
        ids: &mut Vec<u32>,
    ) -> core::result::Result<(), EncodeError> {
        let text = super::utf8(text)?;
        let mut behind = 0;
        for part in parts(text) {
            let at = behind;
            let refuses = |e| {
                EncodeError::new(at, format!("the tokenizer refuses the text from there on: {e}"))
            };
            behind += part.len();
            // It is there already where a text goes on.
            let inside = self.puts_space && (goes_on || at > 0);
            let part = match part.strip_prefix(' ').filter(|rest| inside && !rest.is_empty()) {
                Some(rest) => rest,
                None => part,
            };
            if let Some(words) = &self.words {
                words.encode_into(self.inner.get_model(), part, ids).map_err(refuses)?;
            } else {
                let encoding = self.inner.encode_fast(part, false);
                ids.extend_from_slice(encoding.map_err(|e| refuses(e.to_string()))?.get_ids());
            }
        }
        Ok(())
    }

    /// Appends the bytes of a token; false when they depend on its neighbours.
    pub(super) fn append_bytes(&self, id: u32, bytes: &mut Vec<u8>) -> bool {
        let Some(table) = &self.token_bytes else { return false };
        bytes.extend_from_slice(table.get(id as usize).map_or(&[], |token| token));
        true
    }

    /// The text of several tokens together.
    pub(super) fn decode_together(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_default()
    }
}

/// GPT-2's arrangement around a model, without the space before the text.
fn byte_level(model: BPE) -> tokenizers::Tokenizer {
    let mut inner = tokenizers::Tokenizer::new(model);
    inner
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_decoder(Some(ByteLevel::new(false, true, true)));
    inner
}

/// GPT-2's printable stand-in for a byte: itself where it prints, else the
/// next free character from U+0100 on.
pub(crate) fn byte_char(byte: u8) -> char {
    let shift = match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => return char::from(byte),
        0..=0x20 => u32::from(byte),
        0x7f..=0xa0 => u32::from(byte) - 0x7f + 0x21,
        0xad => 0x43,
    };
    char::from_u32(0x100 + shift).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The inverse over a whole token; a token with any other character (an added
/// one) stands for its own text.
fn token_bytes(token: &str) -> Box<[u8]> {
    let byte = |c: char| -> Option<u8> {
        let byte = match c as u32 {
            code @ 0x100..=0x120 => code - 0x100,
            code @ 0x121..=0x142 => code - 0x121 + 0x7f,
            0x143 => 0xad,
            code => code,
        };
        u8::try_from(byte).ok().filter(|&b| byte_char(b) == c)
    };
    let bytes: Option<Vec<u8>> = token.chars().map(byte).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec()).into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn long_texts_are_encoded_in_parts_and_to_the_same_tokens() {
        let verse = "In the  beginning\n\n God's é light. ".repeat(20_000);
        let t = BpeTokenizer::train(core::iter::once(verse.clone()), 300).unwrap();
        let (mut ids, mut whole) = (Vec::new(), Vec::new());
        t.encode_into(verse.as_bytes(), false, &mut ids).unwrap();
        whole.extend_from_slice(t.inner.encode_fast(verse.as_str(), false).unwrap().get_ids());
        assert!(ids == whole);
    }

    /// Patterns have signs and the new lines behind them as one word, or white space but for the last.
    #[cfg(feature = "gguf")]
    #[test]
    fn words_of_long_texts_are_not_cut_whatever_ends_their_lines() {
        use super::super::parts::PART;
        use super::super::{Cut, Tokenizer, added_token, byte_level_json};
        use crate::data::source::Source;
        let mut vocab: serde_json::Map<String, Value> =
            (0..=255).map(|byte| (byte_char(byte).to_string(), byte.into())).collect();
        let mut merges = Vec::new();
        for (first, second) in
            [(".", "Ċ"), (",", "Ċ"), ("Ċ", "Ċ"), ("č", "Ċ"), (".", "čĊ"), ("Ĥ", "Ċ"), ("Ċ", "ã")]
        {
            vocab.insert([first, second].concat(), vocab.len().into());
            merges.push(format!("{first} {second}"));
        }
        let added = vec![added_token(vocab.len(), END_OF_TEXT, true)];
        for cut in [Cut::Gpt2, Cut::Llama3, Cut::Qwen2] {
            let json = byte_level_json(cut, vocab.clone(), &merges, added.clone());
            let t = BpeTokenizer::from_json(serde_json::from_str(&json).unwrap()).unwrap();
            let verses = ["light.\n".repeat(1000), "and कि.\nnight;\n".to_owned()].concat();
            for lines in [
                verses.as_str(),
                "\"key\": \"value\",\n",
                "語語語，語語語語。\n",
                "語語語語語。\n\u{3000}\u{3000}",
                "one,two.\r\n",
                ",;.\n",
                "one,two\n\n",
            ] {
                let text = lines.repeat(8 * PART / lines.len() + 100);
                let whole = t.inner.encode_fast(text.as_str(), false).unwrap();
                let mut ids = Vec::new();
                t.encode_into(text.as_bytes(), false, &mut ids).unwrap();
                assert!(ids == whole.get_ids(), "{cut:?} {:?}", &lines[..8]);
                // And where files are cut as they are read.
                let sources = [Source::from_memory("text", text.into_bytes())];
                let (t, mut read) = (Tokenizer::Bpe(Box::new(t.clone())), Vec::new());
                crate::data::prepare::encode(&sources, "text", &t, &mut |part| {
                    read.extend_from_slice(part);
                    Ok(())
                })
                .unwrap();
                assert!(read[1..] == ids, "{cut:?} {:?}", &lines[..8]);
            }
        }
    }

    #[test]
    fn byte_characters_are_those_of_the_library() {
        let ours: HashSet<char> = (0..=255).map(byte_char).collect();
        assert_eq!(ours, ByteLevel::alphabet().into_iter().collect());
        assert_eq!(byte_char(b' '), 'Ġ');
        assert_eq!(byte_char(b'\n'), 'Ċ');
        for byte in 0..=255 {
            assert_eq!(*token_bytes(&byte_char(byte).to_string()), [byte], "{byte:#x}");
        }
        assert_eq!(*token_bytes("日本"), *"日本".as_bytes());
    }

    #[test]
    fn words_are_single_tokens_and_the_rest_is_bytes() {
        let t = BpeTokenizer::from_words(["The", " cat", " sat"]).unwrap();
        assert_eq!(t.vocab_size(), 260);
        let mut ids = Vec::new();
        t.encode_into(b"The cat sat.\n\nThe", false, &mut ids).unwrap();
        let byte = |b: u8| u32::from(b) + 1;
        assert_eq!(
            ids,
            [257, 258, 259]
                .map(|id: u32| id)
                .into_iter()
                .chain([
                    t.token_to_id(".").unwrap(),
                    t.token_to_id("Ċ").unwrap(),
                    t.token_to_id("Ċ").unwrap(),
                    257
                ])
                .collect::<Vec<_>>()
        );
        assert_eq!(t.token_to_id("."), Some(byte(b'.')));
        assert!(BpeTokenizer::from_words(["a"]).is_err(), "one byte is there already");
    }

    #[test]
    fn the_short_way_gives_the_tokens_of_the_library() {
        let text = "The cat's hat \u{a0}sat, and 1234 cats sat: \u{e9}t\u{e9}\n\n  on <|endoftext|> that.\n";
        let t = BpeTokenizer::train([text.repeat(20)].into_iter(), 300).unwrap();
        assert!(t.words.is_some(), "this one goes the long way");
        let long = BpeTokenizer { words: None, ..t.clone() };
        let (mut ids, mut wanted) = (Vec::new(), Vec::new());
        // Twice: new words, then known ones.
        for _ in 0..2 {
            t.encode_into(text.as_bytes(), false, &mut ids).unwrap();
            long.encode_into(text.as_bytes(), false, &mut wanted).unwrap();
        }
        assert_eq!(ids, wanted);
    }

    #[test]
    fn a_vocabulary_below_the_bytes_is_refused() {
        let error = BpeTokenizer::train(core::iter::empty(), 256).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("257"), "{error}");
    }
}
