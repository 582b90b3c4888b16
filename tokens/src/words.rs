//! GPT-2's byte-level words, found and remembered.
//!
//! Words are cut by hand, not by a regular expression, and a word that was there before costs a look
//! into a table.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use ahash::AHashMap;
use regex_syntax::hir::{Class, HirKind};

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

/// The tables of the threads that encode; clones share them.
#[derive(Clone, Default)]
pub struct Words(Arc<Mutex<Vec<Table>>>);

/// Appends the tokens of a word.
type Encode<'a> = &'a mut dyn FnMut(&str, &mut Vec<u32>) -> Result<(), String>;

impl Words {
    /// Appends the tokens of `text`, those of new words by `encode`, whose tokens of a word must always
    /// be the same.
    ///
    /// # Errors
    /// What `encode` fails with.
    pub fn encode_into(
        &self,
        text: &str,
        ids: &mut Vec<u32>,
        encode: Encode<'_>,
    ) -> Result<(), String> {
        let tables = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = tables().pop().unwrap_or_default();
        let done = cuts(text).try_for_each(|word| table.append(word, ids, encode));
        tables().push(table);
        done
    }
}

impl Table {
    fn append(&mut self, word: &str, ids: &mut Vec<u32>, encode: Encode<'_>) -> Result<(), String> {
        if let Some(&(start, count)) = self.words.get(word.as_bytes()) {
            ids.extend_from_slice(&self.ids[start as usize..][..count as usize]);
            return Ok(());
        }
        let start = ids.len();
        encode(word, ids)?;
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

/// Whether a character is `\p{L}` or `\p{N}` to a pattern.
#[must_use]
pub fn is_letter_or_number(c: char) -> bool {
    matches!(KINDS[c as usize], Kind::Letter | Kind::Number)
}

/// The words of a text by GPT-2's pattern.
///
/// ```
/// let words: Vec<&str> = cllm_tokens::words("It's 42  dogs.\n").collect();
/// assert_eq!(words, ["It", "'s", " 42", " ", " dogs", ".", "\n"]);
/// ```
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    cuts(text)
}

fn cuts(text: &str) -> Cuts<'_> {
    Cuts { rest: text, kinds: &KINDS }
}

/// What is left of a text to be cut by the pattern
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
