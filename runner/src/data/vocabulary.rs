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
    let trained = BpeTokenizer::train(texts.flat_map(|text| parts(&text)), vocab_size)?;
    match failure {
        Some(error) => Err(error),
        None => Ok(Tokenizer::Bpe(Box::new(trained))),
    }
}

/// Bytes of a text from which on it is cut, and of a run of letters, digits, white space or signs: the
/// library takes hundreds of bytes for each word of a text, and time by the square of a word's length.
const PART: usize = 1 << 14;
const RUN: usize = 512;

/// A text in parts, cut between words where there are any.
fn parts(text: &str) -> Vec<String> {
    let kind = |c: char| match c {
        c if c.is_alphabetic() => 0,
        c if c.is_numeric() => 1,
        c if c.is_whitespace() => 2,
        _ => 3,
    };
    let (mut parts, mut begin, mut run, mut last) = (Vec::new(), 0, 0, ' ');
    for (at, c) in text.char_indices() {
        let goes_on = kind(c) == kind(last);
        // A word has the space before it, and `'s` its apostrophe.
        let is_between = !goes_on && !last.is_whitespace() && last != '\'';
        if is_between && at - begin >= PART || goes_on && at - run >= RUN {
            parts.push(text[begin..at].to_owned());
            (begin, run) = (at, at);
        }
        if !goes_on {
            run = at;
        }
        last = c;
    }
    parts.push(text[begin..].to_owned());
    parts
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

    #[cfg(feature = "bpe")]
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
    fn texts_are_cut_between_words_and_long_runs_anywhere() {
        let verse = "And the evening's light, 12 times;\n\n  was the first day. ".repeat(2000);
        let cut = parts(&verse);
        assert_eq!(cut.concat(), verse);
        assert!(cut.len() > 5 && cut.iter().all(|part| part.len() < PART + 64));
        for pair in cut.windows(2) {
            let (before, after) =
                (pair[0].chars().last().unwrap(), pair[1].chars().next().unwrap());
            assert!(!before.is_whitespace() && before != '\'', "{:?}", pair[0]);
            assert!(!before.is_alphanumeric() || !after.is_alphanumeric());
        }
        for run in ["x", "7", "é", " ", ".", "\n"] {
            let text = run.repeat(5000);
            let cut = parts(&text);
            assert_eq!(cut.concat(), text);
            assert!(cut.iter().all(|part| part.len() <= RUN), "{run:?}");
        }
        assert_eq!(parts(""), [""]);
        assert_eq!(parts("short text"), ["short text"]);
    }

    #[cfg(feature = "bpe")]
    #[test]
    fn long_words_take_no_time() {
        let sources = [Source::from_memory("a", "ab".repeat(500_000).into_bytes())];
        let begin = std::time::Instant::now();
        let tokenizer = train_bpe(&sources, TEXT_FIELD, 300).unwrap();
        assert_eq!(tokenizer.encode(&b"ab".repeat(256)).unwrap().len(), 1);
        assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
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
