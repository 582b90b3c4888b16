//! Characters as tokens: the Unicode scalar values that a text uses, sorted.

use std::collections::BTreeSet;

use cllm_tokens::CharSet;
use serde_json::{Value, json};

use super::EncodeError;

/// A vocabulary of single characters, then the end of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CharTokenizer {
    /// Sorted and without repeats; the identifier is the place in it.
    chars: Vec<char>,
    /// Identifier plus one for ASCII, zero for unknown: most text is ASCII.
    ascii: Box<[u32; 128]>,
}

impl CharTokenizer {
    /// The vocabulary of exactly these characters, whatever their order.
    pub fn from_chars(chars: impl IntoIterator<Item = char>) -> Self {
        let chars: Vec<char> = chars.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let mut ascii = Box::new([0; 128]);
        for (id, &c) in (1..).zip(&chars) {
            if let Some(slot) = ascii.get_mut(c as usize) {
                *slot = id;
            }
        }
        Self { chars, ascii }
    }

    /// The vocabulary of the characters in `texts`, given piece by piece.
    ///
    /// # Errors
    /// A byte sequence that is not UTF-8, with its offset in its piece.
    pub fn train<'a>(
        texts: impl IntoIterator<Item = &'a [u8]>,
    ) -> core::result::Result<Self, EncodeError> {
        let mut seen = CharSet::default();
        for text in texts {
            seen.add(super::utf8(text)?);
        }
        Ok(Self::from_chars(seen.chars()))
    }

    /// The characters in the order of their identifiers.
    #[must_use]
    pub fn chars(&self) -> &[char] {
        &self.chars
    }

    /// Identifier of the end of text: the one after the last character.
    #[must_use]
    pub fn end_of_text(&self) -> u32 {
        // At most 0x110000 scalar values exist.
        self.chars.len() as u32
    }

    fn id_of(&self, c: char) -> Option<u32> {
        match self.ascii.get(c as usize) {
            Some(&slot) => slot.checked_sub(1),
            None => self.chars.binary_search(&c).ok().map(|id| id as u32),
        }
    }

    pub(super) fn encode_into(
        &self,
        text: &[u8],
        ids: &mut Vec<u32>,
    ) -> core::result::Result<(), EncodeError> {
        for (offset, c) in super::utf8(text)?.char_indices() {
            let id = self.id_of(c).ok_or_else(|| {
                EncodeError::new(
                    offset,
                    format!(
                        "character {c:?} (U+{:04X}) is not in the vocabulary of the character \
                         tokenizer; train it on this text too, or use another tokenizer",
                        c as u32
                    ),
                )
            })?;
            ids.push(id);
        }
        Ok(())
    }

    pub(super) fn char_of(&self, id: u32) -> Option<char> {
        self.chars.get(id as usize).copied()
    }

    pub(super) fn to_json(&self) -> Value {
        let chars: Vec<String> = self.chars.iter().map(char::to_string).collect();
        json!({ "type": super::CHARS_TYPE, "chars": chars })
    }

    /// Reads the form of [`to_json`](Self::to_json); the cause in words if not.
    pub(super) fn from_json(json: &Value) -> core::result::Result<Self, String> {
        let list = json["chars"].as_array().ok_or("\"chars\" must be a list of characters")?;
        let mut chars = Vec::with_capacity(list.len());
        for entry in list {
            let mut one = entry.as_str().unwrap_or_default().chars();
            match (one.next(), one.next()) {
                (Some(c), None) => chars.push(c),
                _ => return Err(format!("\"chars\" holds {entry}, which is not one character")),
            }
        }
        // Sorting on load could silently renumber what a model was trained on.
        if !chars.is_sorted_by(|a, b| a < b) {
            return Err("\"chars\" must be sorted and without repeats".to_owned());
        }
        Ok(Self::from_chars(chars))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_the_sorted_characters() {
        let t = CharTokenizer::train([b"banana ".as_slice(), "né".as_bytes()]).unwrap();
        assert_eq!(t.chars(), [' ', 'a', 'b', 'n', 'é']);
        let mut ids = Vec::new();
        t.encode_into("né ab".as_bytes(), &mut ids).unwrap();
        assert_eq!(ids, [3, 4, 0, 1, 2]);
        assert_eq!(t.end_of_text(), 5);
        assert_eq!(t.char_of(4), Some('é'));
        assert_eq!(t.char_of(5), None);
    }

    #[test]
    fn unknown_characters_and_bad_bytes_are_placed() {
        let t = CharTokenizer::from_chars("abc".chars());
        let error = t.encode_into("abäc".as_bytes(), &mut Vec::new()).unwrap_err();
        assert_eq!(error.offset(), 2);
        assert!(error.to_string().contains("'ä' (U+00E4)"), "{error}");
        let error = t.encode_into(b"abc\xff", &mut Vec::new()).unwrap_err();
        assert_eq!(error.offset(), 3);
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }

    #[test]
    fn json_must_be_sorted_single_characters() {
        let t = CharTokenizer::from_chars("a\"\\\n🙂".chars());
        assert_eq!(CharTokenizer::from_json(&t.to_json()).unwrap(), t);
        for bad in [json!({}), json!({"chars": ["ab"]}), json!({"chars": ["b", "a"]})] {
            assert!(CharTokenizer::from_json(&bad).is_err(), "{bad}");
        }
    }
}
