//! Where a long text is cut, so that its parts have the tokens that it has as a whole.
//!
//! Tokenizers split texts where white space begins, but not all of them wherever it does. Patterns such as
//! GPT-4's, Llama 3's and Qwen's have signs and the new lines behind them as one word
//! (`[^\s\p{L}\p{N}]+[\r\n]*`), GPT-2's has all white space but the last as one (`\s+(?!\S)`), and those of
//! SentencePiece's kind put a space before what does not begin with one. So a space behind a letter or a
//! digit is the best place, and `rank` has the others in their order.

/// Most bytes that are encoded at a time: the library takes a hundred times the memory of a long word, and somebody's
/// pattern may take the square of a part's time.
#[cfg(feature = "bpe")]
pub(super) const PART: usize = 1 << 15;

/// The rank of the best places.
const BEST: u8 = 0;

/// Whether words end behind this character where white space follows: whether it is a letter or a digit.
#[cfg(feature = "bpe")]
fn ends_word(c: char) -> bool {
    cllm_tokens::is_letter_or_number(c)
}

/// The same as nearly as the standard library knows it: without byte pairs no tokenizer has words.
#[cfg(not(feature = "bpe"))]
fn ends_word(c: char) -> bool {
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

/// Where the first part of a text ends that has more than `most` bytes.
#[cfg(feature = "bpe")]
fn place(text: &str, most: usize) -> usize {
    // What is behind the part says how good its end is.
    let next = text.ceil_char_boundary(text.floor_char_boundary(most) + 1);
    cut(&text.as_bytes()[..next])
}

/// Where to cut a text that goes on, which may hold bytes that are no text: in its second half at the last
/// of the best places there, else at the last place in its first half, else before the last character.
pub(crate) fn cut(text: &[u8]) -> usize {
    let mut best: Option<(u8, usize)> = None;
    for at in (1..text.len()).rev() {
        if best.is_some_and(|(rank, _)| rank == BEST || at < text.len() / 2) {
            break;
        }
        if let Some(rank) = rank(text, at)
            && best.is_none_or(|(least, _)| rank < least)
        {
            best = Some((rank, at));
        }
    }
    best.map_or_else(
        || {
            let begins = |at: &usize| text[*at] & 0xc0 != 0x80;
            let last = text.len().saturating_sub(4).max(1)..text.len();
            last.rev().find(begins).unwrap_or(text.len())
        },
        |(_, at)| at,
    )
}

/// How bad a place to cut is, from [`BEST`] on; `None` where words may be cut.
fn rank(text: &[u8], at: usize) -> Option<u8> {
    let (before, behind) = (char_before(text, at)?, char_at(text, at)?);
    if behind.is_whitespace() {
        return match behind {
            _ if before.is_whitespace() => None,
            ' ' if ends_word(before) => Some(BEST),
            _ if ends_word(before) => Some(1),
            // Signs may have these in their word.
            '\r' | '\n' => Some(5),
            _ => Some(2),
        };
    }
    // A single new line, to which nothing behind it belongs.
    let is_line = before == '\n' && char_before(text, at - 1).is_some_and(|c| !c.is_whitespace());
    // An apostrophe belongs to the letters before it in some patterns, as vowel signs do.
    let is_stop = behind.is_ascii_punctuation() && behind != '\''
        || matches!(behind, '，' | '。' | '、' | '；' | '：' | '！' | '？');
    match before {
        _ if is_line => Some(3),
        _ if is_stop && ends_word(before) => Some(4),
        _ => None,
    }
}

/// The character that ends at `at`, if text does.
fn char_before(text: &[u8], at: usize) -> Option<char> {
    let last = &text[at.saturating_sub(4)..at];
    let begin = last.iter().rposition(|byte| byte & 0xc0 != 0x80)?;
    core::str::from_utf8(&last[begin..]).ok()?.chars().next()
}

/// The character that begins at `at`, if text does.
fn char_at(text: &[u8], at: usize) -> Option<char> {
    let next = &text[at..text.len().min(at + 4)];
    next.utf8_chunks().next()?.valid().chars().next()
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

    #[test]
    fn a_text_is_cut_at_the_last_of_the_best_places_in_its_second_half() {
        // Each has worse places behind its cut, and most a better one in the first half.
        for (part, rest) in [
            ("a a a", " .\nb."),
            ("x x, one", " two\n\n"),
            ("a b, one", "\n\n., \n."),
            ("é, é語", "\u{3000}。\nx."),
            ("a b,,,,,,", " ,\n語.,\n"),
            ("a b,,,,,,,", "\u{3000},\n語.,\n"),
            ("a b,,,,語。\n", "語。語,\n"),
            ("a b,,語,語", "。\n\n,\r\n"),
            ("a b,,,one", "\"'s"),
            ("a b,,,,,,", "\n\n,,,,"),
            // None in the second half.
            ("a", " bbbbbbbb"),
            ("a b", " \n bbbbbbbbb"),
            ("a,\n", "bbbbbbbbbb"),
            // None at all.
            ("aaaa", "b"),
            ("aaa", "é"),
            ("🙂", "🙂"),
            ("   ", " "),
        ] {
            let text = [part, rest].concat();
            assert_eq!(cut(text.as_bytes()), part.len(), "{part:?} {rest:?}");
        }
    }

    #[test]
    fn what_is_no_text_is_cut_too() {
        assert_eq!(cut(b"\x80\x80\x80\x80\x80\x80"), 6);
        assert_eq!(cut(b"a ,,\x80\x80\x80\x80\x80\xff \xff"), 1);
        assert_eq!(cut(b"\xf0\x9f\xffone\xe3 \xff.\xf0\x9f"), 10);
        assert_eq!(cut(b"\xf0\x9f"), 2);
    }

    #[cfg(feature = "bpe")]
    #[test]
    fn a_part_has_at_most_as_many_bytes_as_it_may_have() {
        for (part, rest) in [
            ("one two", " 3,\n\nx"),
            ("one, two 3", " 4"),
            ("one-two-ab", "c"),
            ("ééééé", "éé"),
            ("é🙂🙂", "🙂🙂"),
            ("é🙂", "🙂🙂"),
        ] {
            let most = if part == "é🙂" { 9 } else { 10 };
            let wanted = if part == "one-two-ab" { 7 } else { part.len() };
            assert_eq!(place(&[part, rest].concat(), most), wanted, "{part:?}");
        }
    }

    #[cfg(feature = "bpe")]
    #[test]
    fn parts_make_up_the_text_and_are_bounded() {
        let verse = "In the  beginning\n\n God's é light. ".repeat(20_000);
        let cut: Vec<&str> = parts(&verse).collect();
        assert!(cut.len() > 2 && cut.concat() == verse);
        assert!(cut.iter().all(|part| part.len() <= PART));
        assert!(cut[1..].iter().all(|part| part.starts_with(' ')));
        let before = &cut[..cut.len() - 1];
        assert!(before.iter().all(|part| part.ends_with(ends_word)));
        let word = "é".repeat(PART);
        assert_eq!(parts(&word).map(str::len).collect::<Vec<_>>(), [PART; 2]);
        assert_eq!(parts("").collect::<Vec<_>>(), [""]);
    }
}
