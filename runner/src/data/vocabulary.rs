//! Tokenizers trained on sources.

use cllm_tokens::CharSet;

use super::pieces::Pieces;
use super::source::Source;
use crate::error::{Error, Result};
use crate::tokenizer::{BpeTokenizer, CharTokenizer, Tokenizer};

/// The character tokenizer of all characters in `sources`.
///
/// # Errors
/// Text that is not UTF-8, named with its place; sources that cannot be read,
/// or only once (standard input).
pub fn train_chars(sources: &[Source], text_field: &str) -> Result<Tokenizer> {
    let mut seen = CharSet::default();
    for_each_text(sources, text_field, |text| seen.add(text))?;
    Ok(Tokenizer::Chars(CharTokenizer::from_chars(seen.chars())))
}

/// Byte-pair encoding of at most `vocab_size` identifiers for `sources`.
///
/// # Errors
/// As [`train_chars`], and a vocabulary too small for the bytes.
pub fn train_bpe(sources: &[Source], text_field: &str, vocab_size: usize) -> Result<Tokenizer> {
    refuse_stdin(sources)?;
    let mut pieces = Pieces::new(sources, text_field);
    let mut failure = None;
    // The library wants an iterator that cannot fail: a failure ends it early
    // and is looked at afterwards.
    let texts = core::iter::from_fn(|| {
        next_text(&mut pieces).unwrap_or_else(|error| {
            failure = Some(error);
            None
        })
    });
    let trained = BpeTokenizer::train(texts, vocab_size)?;
    match failure {
        Some(error) => Err(error),
        None => Ok(Tokenizer::Bpe(Box::new(trained))),
    }
}

fn for_each_text(sources: &[Source], field: &str, mut see: impl FnMut(&str)) -> Result<()> {
    refuse_stdin(sources)?;
    let mut pieces = Pieces::new(sources, field);
    while let Some(text) = next_text(&mut pieces)? {
        see(&text);
    }
    Ok(())
}

fn next_text(pieces: &mut Pieces) -> Result<Option<String>> {
    let Some(piece) = pieces.next_piece()? else { return Ok(None) };
    match core::str::from_utf8(piece.bytes) {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(e) => Err(Error::failure(format!(
            "{}: not UTF-8 text at byte {}; convert it, or use the tokenizer `bytes`",
            piece.origin,
            piece.offset + e.valid_up_to() as u64
        ))),
    }
}

fn refuse_stdin(sources: &[Source]) -> Result<()> {
    if sources.iter().any(Source::is_stdin) {
        return Err(Error::usage(
            "a tokenizer cannot be trained on standard input, which can be read only once; give a \
             file, a trained tokenizer, or use the tokenizer `bytes`",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::{Input, TEXT_FIELD, discover};

    #[test]
    fn bytes_that_are_not_text_are_named_by_both_trainers() {
        let text = [b"good ".repeat(100_000), b"\xff".to_vec()].concat();
        let sources = [Source::from_memory("bad.txt", text)];
        for error in [
            train_chars(&sources, TEXT_FIELD).unwrap_err(),
            train_bpe(&sources, TEXT_FIELD, 300).unwrap_err(),
        ] {
            let message = error.to_string();
            assert!(message.contains("bad.txt: not UTF-8 text at byte 500000"), "{message}");
        }
    }

    #[test]
    fn standard_input_is_refused() {
        let Input::Text(sources) = discover(&["-".into()]).unwrap() else { panic!() };
        assert_eq!(train_chars(&sources, TEXT_FIELD).unwrap_err().exit_code(), 2);
        assert_eq!(train_bpe(&sources, TEXT_FIELD, 300).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_vocabulary_is_that_of_all_sources() {
        let sources = [Source::from_memory("a", *b"ab"), Source::from_memory("b", *b"cb")];
        let tokenizer = train_chars(&sources, TEXT_FIELD).unwrap();
        assert_eq!(tokenizer.vocab_size(), 4);
        assert_eq!(tokenizer.encode(b"abc").unwrap(), [0, 1, 2]);
    }
}
