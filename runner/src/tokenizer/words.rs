//! GPT-2's byte-level words, found and remembered.
//!
//! The `tokenizers` crate cuts texts with a regular expression, keeps track of where each character
//! comes from, and asks the model for each word. Where that is all that a tokenizer does, this does it
//! with less: words are cut by hand, and a word that was there before costs a look into a table. What
//! the tokens of a new word are, the crate's model says.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use ahash::AHashMap;
use regex_syntax::hir::{Class, HirKind};
use tokenizers::{Model, ModelWrapper, PreTokenizerWrapper};

use super::bpe::byte_char;

/// Most words that a table remembers, and most bytes of one of them.
const MOST_WORDS: usize = 1 << 16;
const MOST_BYTES: usize = 64;

/// What a character is to GPT-2's pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// Neither of the others; zero, so that only pages of the table with others are made.
    Sign = 0,
    Letter,
    Number,
    Space,
}

/// The kinds of all characters, as the engine of regular expressions has them.
static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    let mut kinds = vec![Kind::Sign; char::MAX as usize + 1];
    for (class, kind) in [(r"\p{L}", Kind::Letter), (r"\p{N}", Kind::Number), (r"\s", Kind::Space)]
    {
        let parsed = regex_syntax::parse(class).map(regex_syntax::hir::Hir::into_kind);
        let Ok(HirKind::Class(Class::Unicode(class))) = parsed else {
            unreachable!("{class} is a class of characters")
        };
        for range in class.ranges() {
            kinds[range.start() as usize..=range.end() as usize].fill(kind);
        }
    }
    kinds
});

/// Tokens of words that were there before.
#[derive(Default)]
struct Table {
    /// Where in `ids` the tokens of a word are, and how many.
    words: AHashMap<Box<[u8]>, (u32, u32)>,
    ids: Vec<u32>,
}

/// The tables of the threads that encode; clones of a tokenizer share them.
#[derive(Clone, Default)]
pub(super) struct Words(Arc<Mutex<Vec<Table>>>);

impl Words {
    /// For a tokenizer that only cuts GPT-2's words and takes the tokens of each from byte pairs.
    /// `None` for one that does more.
    pub(super) fn of(inner: &tokenizers::Tokenizer) -> Option<Self> {
        let cuts = matches!(
            inner.get_pre_tokenizer(),
            Some(PreTokenizerWrapper::ByteLevel(cut)) if cut.use_regex && !cut.add_prefix_space
        );
        // Dropped merges are drawn anew for each word.
        let pairs = matches!(inner.get_model(), ModelWrapper::BPE(bpe) if bpe.dropout.is_none());
        // Special ones are text like any other, see `set_encode_special_tokens`.
        let plain = inner.get_encode_special_tokens()
            && inner.get_added_tokens_decoder().values().all(|token| token.special);
        (cuts && pairs && plain && inner.get_normalizer().is_none()).then(Self::default)
    }

    /// Appends the tokens of `text` by `model`; the library's error as text.
    pub(super) fn encode_into(
        &self,
        model: &ModelWrapper,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), String> {
        let tables = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = tables().pop().unwrap_or_default();
        let done =
            Cuts { rest: text, kinds: &KINDS }.try_for_each(|word| table.append(model, word, ids));
        tables().push(table);
        done
    }
}

impl Table {
    fn append(
        &mut self,
        model: &ModelWrapper,
        word: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), String> {
        if let Some(&(start, count)) = self.words.get(word.as_bytes()) {
            ids.extend_from_slice(&self.ids[start as usize..][..count as usize]);
            return Ok(());
        }
        let bytes: String = word.bytes().map(byte_char).collect();
        let tokens = model.tokenize(&bytes).map_err(|e| e.to_string())?;
        let start = ids.len();
        ids.extend(tokens.iter().map(|token| token.id));
        if word.len() <= MOST_BYTES {
            if self.words.len() == MOST_WORDS {
                self.words.clear();
                self.ids.clear();
            }
            let new = &ids[start..];
            self.words.insert(word.as_bytes().into(), (self.ids.len() as u32, new.len() as u32));
            self.ids.extend_from_slice(new);
        }
        Ok(())
    }
}

/// The words of a text by GPT-2's pattern:
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
struct Cuts<'a> {
    rest: &'a str,
    kinds: &'a [Kind],
}

impl Cuts<'_> {
    /// The kind and the length of the character at `at`.
    fn look(&self, at: usize) -> Option<(Kind, usize)> {
        let &byte = self.rest.as_bytes().get(at)?;
        if byte < 0x80 {
            return Some((self.kinds[byte as usize], 1));
        }
        let c = self.rest[at..].chars().next()?;
        Some((self.kinds[c as usize], c.len_utf8()))
    }

    /// Where characters of that kind end, from `at` on.
    fn run(&self, mut at: usize, kind: Kind) -> usize {
        while let Some((_, length)) = self.look(at).filter(|(next, _)| *next == kind) {
            at += length;
        }
        at
    }

    /// The length of the first word; zero at the end.
    fn first(&self) -> usize {
        let bytes = self.rest.as_bytes();
        let Some((kind, length)) = self.look(0) else { return 0 };
        match bytes {
            [b'\'', b's' | b't' | b'm' | b'd', ..] => return 2,
            [b'\'', b'r' | b'v', b'e', ..] | [b'\'', b'l', b'l', ..] => return 3,
            _ => {}
        }
        if kind != Kind::Space {
            return self.run(length, kind);
        }
        if bytes[0] == b' '
            && let Some((next, length)) = self.look(1).filter(|(next, _)| *next != Kind::Space)
        {
            return self.run(1 + length, next);
        }
        let end = self.run(length, Kind::Space);
        // The last space before a word is left to it, unless it is the only one.
        let last = self.rest[..end].chars().next_back().map_or(0, char::len_utf8);
        if end == bytes.len() || end == last { end } else { end - last }
    }
}

impl<'a> Iterator for Cuts<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (word, rest) = self.rest.split_at(self.first());
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    /// The words that the library finds.
    fn theirs(text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        ByteLevel::new(false, true, true).pre_tokenize(&mut cut).unwrap();
        let words = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        words.into_iter().map(|(_, (start, end), _)| text[start..end].to_owned()).collect()
    }

    fn ours(text: &str) -> Vec<String> {
        Cuts { rest: text, kinds: &KINDS }.map(str::to_owned).collect()
    }

    #[test]
    fn words_are_those_of_the_library() {
        for text in [
            "",
            " ",
            "  ",
            "a",
            " a  b   c ",
            "it's we're 'tis ''s don'T I'll 'l 've 'v !'s",
            "one\ntwo\n\nthree \n four\t\tfive  \n",
            "a1b22 333 ½ ² Ⅳ x\u{301}y é 日本語 ١٢",
            "a\u{a0}b\u{2003}\u{3000}c \u{a0}d\u{85}",
            " \u{2003}x",
            "... !? (a) _b_ 🙂🙂 🙂",
        ] {
            assert_eq!(ours(text), theirs(text), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn words_of_any_text_are_those_of_the_library(
            text in r"([ \n\t'a-eslrtvmd0-9.!]|\PC|\s|\p{L}|\p{N}|'(s|re|ll)){0,40}"
        ) {
            prop_assert_eq!(ours(&text), theirs(&text));
        }
    }
}
