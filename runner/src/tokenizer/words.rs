//! The short way from texts to the tokens of GPT-2's byte-level words.
//!
//! The `tokenizers` crate cuts texts with a regular expression, keeps track of where each character
//! comes from, and asks the model for each word. Where that is all that a tokenizer does,
//! [`cllm_tokens::Words`] does it with less. What the tokens of a new word are, the crate's model says.

use tokenizers::{Model, ModelWrapper, PreTokenizerWrapper};

use super::bpe::byte_char;

/// Words and their tokens; clones of a tokenizer share them.
#[derive(Clone, Default)]
pub(super) struct Words(cllm_tokens::Words);

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
        self.0.encode_into(text, ids, &mut |word, ids| {
            let bytes: String = word.bytes().map(byte_char).collect();
            let tokens = model.tokenize(&bytes).map_err(|e| e.to_string())?;
            ids.extend(tokens.iter().map(|token| token.id));
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
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
        cllm_tokens::words(text).map(str::to_owned).collect()
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
