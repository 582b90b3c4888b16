//! Where a long text is cut, so that its parts have the tokens that it has as a whole.
//!
//! Tokenizers split texts where white space begins, but not all of them wherever it does: patterns such as
//! GPT-4's, Llama 3's and Qwen's have signs and the new lines behind them as one word
//! (`[^\s\p{L}\p{N}]+[\r\n]*`). Letters and digits they all part from white space behind them, so that is
//! the best place.

/// Most bytes that are encoded at a time: the library takes a hundred times the memory of a long word.
#[cfg(feature = "bpe")]
pub(super) const PART: usize = 1 << 18;

/// Whether words end behind this character where white space follows: whether it is a letter or a digit.
#[cfg(feature = "bpe")]
pub(crate) fn ends_word(c: char) -> bool {
    cllm_tokens::is_letter_or_number(c)
}

/// The same as nearly as the standard library knows it: without byte pairs no tokenizer has words.
#[cfg(not(feature = "bpe"))]
pub(crate) fn ends_word(c: char) -> bool {
    c.is_alphanumeric()
}

/// A text in parts of at most [`PART`] bytes.
#[cfg(feature = "bpe")]
pub(super) fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    core::iter::from_fn(move || {
        let text = rest.take()?;
        if text.len() <= PART {
            return Some(text);
        }
        let (part, more) = text.split_at(place(text, PART));
        rest = Some(more);
        Some(part)
    })
}

/// Where the first part of a text ends that has more than `most` bytes: in the second half of them where
/// white space begins behind a letter or a digit, else where it begins, else behind the last character.
#[cfg(feature = "bpe")]
fn place(text: &str, most: usize) -> usize {
    let end = text.floor_char_boundary(most);
    let is_space_behind = |at: &usize, suits: fn(char) -> bool| {
        text.is_char_boundary(*at)
            && text[*at..].starts_with(char::is_whitespace)
            && text[..*at].ends_with(suits)
    };
    let mut places = (most / 2..end).rev();
    let behind_word = places.clone().find(|at| is_space_behind(at, ends_word));
    behind_word
        .or_else(|| places.find(|at| is_space_behind(at, |c| !c.is_whitespace())))
        .unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_with_letters_and_digits_of_any_script() {
        assert!("aZ09éя語١½".chars().all(ends_word));
        assert!(!".,-_ \n\u{3000}。🙂".chars().any(ends_word));
        // A vowel sign is no letter to a pattern, though it is alphabetic.
        #[cfg(feature = "bpe")]
        assert!(!ends_word('\u{93f}') && '\u{93f}'.is_alphabetic());
    }

    #[cfg(feature = "bpe")]
    #[test]
    fn a_text_is_cut_behind_a_word_else_before_white_space_else_anywhere() {
        for (part, rest) in [
            ("one two", " 3,\n\nx"),
            ("one two 3", "\n,\n\nx."),
            ("é, 語", "\u{3000}。\nx."),
            ("one,two,", " \n,x!"),
            // A word in the first half is too far off.
            ("on t,---,", "\n,x!.."),
            ("one,two,th", "ree"),
            ("ééééé", "éé"),
            ("é🙂🙂", "🙂🙂"),
        ] {
            assert_eq!(place(&[part, rest].concat(), 10.max(part.len())), part.len(), "{part:?}");
        }
    }

    #[cfg(feature = "bpe")]
    #[test]
    fn parts_make_up_the_text_and_are_bounded() {
        let verse = "In the  beginning\n\n God's é light. ".repeat(20_000);
        let cut: Vec<&str> = parts(&verse).collect();
        assert!(cut.len() > 2 && cut.concat() == verse);
        assert!(cut.iter().all(|part| part.len() <= PART));
        assert!(cut[1..].iter().all(|part| part.starts_with(char::is_whitespace)));
        let before = &cut[..cut.len() - 1];
        assert!(before.iter().all(|part| part.ends_with(ends_word)));
        let word = "é".repeat(PART);
        assert_eq!(parts(&word).map(str::len).collect::<Vec<_>>(), [PART; 2]);
        assert_eq!(parts("").collect::<Vec<_>>(), [""]);
    }
}
