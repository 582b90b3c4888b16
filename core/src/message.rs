//! Messages of errors, with their numbers, at run time and while a `const` is computed.
//!
//! There nothing is formatted, but `panic!("{}", text)` prints a text: so texts are put together by hand.

use Argument::{Float, Number, Word};
use core::fmt;

/// A part of a [`Message`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    Word(&'static str),
    Number(usize),
    Float(f32),
}

/// Some pieces of text and arguments, one behind the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message([Argument; 5]);

impl Message {
    /// Without arguments.
    pub(crate) const fn plain(text: &'static str) -> Self {
        Self::one(text, Word(""), "")
    }

    /// With one.
    pub(crate) const fn one(before: &'static str, of: Argument, behind: &'static str) -> Self {
        Self::two(before, of, behind, Word(""), "")
    }

    /// With two.
    pub(crate) const fn two(
        before: &'static str,
        first: Argument,
        between: &'static str,
        second: Argument,
        behind: &'static str,
    ) -> Self {
        Self([Word(before), first, Word(between), second, Word(behind)])
    }

    /// With three, which it begins and ends with.
    pub(crate) const fn three(
        first: Argument,
        between: &'static str,
        second: Argument,
        then: &'static str,
        third: Argument,
    ) -> Self {
        Self([first, Word(between), second, Word(then), third])
    }

    /// Stops the compilation, or the program, with this message.
    #[track_caller]
    pub(crate) const fn panic(&self) -> ! {
        let mut text = Text::EMPTY;
        let mut i = 0;
        while i < self.0.len() {
            match self.0[i] {
                Word(word) => text.push(word),
                Number(number) => text.push_number(number),
                Float(float) => text.push_float(float),
            }
            i += 1;
        }
        text.panic()
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Word(word) => f.write_str(word),
            Number(number) => number.fmt(f),
            Float(float) => float.fmt(f),
        })
    }
}

/// A text that is put together in a `const`. What does not fit is left out.
#[derive(Clone, Copy)]
pub(crate) struct Text {
    bytes: [u8; Self::MOST],
    len: usize,
}

impl Text {
    const MOST: usize = 512;
    pub(crate) const EMPTY: Self = Self { bytes: [0; Self::MOST], len: 0 };

    pub(crate) const fn push(&mut self, text: &str) {
        let text = text.as_bytes();
        // A part of a character would be no text.
        if text.len() > Self::MOST - self.len {
            return;
        }
        let mut i = 0;
        while i < text.len() {
            self.bytes[self.len] = text[i];
            self.len += 1;
            i += 1;
        }
    }

    pub(crate) const fn push_number(&mut self, number: usize) {
        let mut place = 1;
        while number / place >= 10 {
            place *= 10;
        }
        while place > 0 && self.len < Self::MOST {
            self.bytes[self.len] = b'0' + (number / place % 10) as u8;
            self.len += 1;
            place /= 10;
        }
    }

    /// To a millionth, as a number of dimensions and probabilities: beyond what a `usize` holds it is the
    /// largest one.
    const fn push_float(&mut self, float: f32) {
        const DIGITS: usize = 1_000_000;
        if float.is_nan() {
            return self.push("NaN");
        }
        if float < 0.0 {
            self.push("-");
        }
        let float = float.abs() as f64;
        if float == f64::INFINITY {
            return self.push("inf");
        }
        let whole = float as usize;
        let millionths = ((float - whole as f64) * DIGITS as f64 + 0.5) as usize;
        self.push_number(whole + millionths / DIGITS);
        let (mut millionths, mut place) = (millionths % DIGITS, DIGITS / 10);
        if millionths > 0 {
            self.push(".");
        }
        while millionths > 0 {
            self.push_number(millionths / place);
            millionths %= place;
            place /= 10;
        }
    }

    pub(crate) const fn as_str(&self) -> &str {
        match core::str::from_utf8(self.bytes.split_at(self.len).0) {
            Ok(text) => text,
            // Whole texts and digits.
            Err(_) => "",
        }
    }

    /// Stops the compilation, or the program, with this text.
    #[track_caller]
    pub(crate) const fn panic(&self) -> ! {
        // Compact code has no other messages, but a compiler tells of this one.
        core::panic!("{}", self.as_str())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;

    use super::*;
    use std::string::ToString;

    const TEXT: Text = {
        let mut text = Text::EMPTY;
        text.push("7 = ");
        text.push_number(7);
        text.push(", ");
        text.push_number(usize::MAX);
        text
    };

    #[test]
    fn numbers_are_written_as_they_are_formatted() {
        assert_eq!(TEXT.as_str(), std::format!("7 = 7, {}", usize::MAX));
        for number in [0, 1, 9, 10, 99, 100, 1009, 123_456_789, usize::MAX - 1] {
            let mut text = Text::EMPTY;
            text.push_number(number);
            assert_eq!(text.as_str(), number.to_string());
        }
        let floats = [0.0, 1.0, -0.5, 0.25, 1.5, 100.0, 0.000_001, 10_000.125, -0.001];
        for float in floats.into_iter().chain([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
            let mut text = Text::EMPTY;
            text.push_float(float);
            assert_eq!(text.as_str(), float.to_string());
        }
        // Rounded up to the next whole number, and what is too small for a millionth.
        for (float, expected) in [(0.999_999_9, "1"), (1e-9, "0")] {
            let mut text = Text::EMPTY;
            text.push_float(float);
            assert_eq!(text.as_str(), expected);
        }
    }

    #[test]
    fn a_text_that_is_full_ends_with_what_fits() {
        let mut text = Text::EMPTY;
        for _ in 0..Text::MOST / 4 {
            text.push("abcd");
        }
        text.push("e");
        text.push_number(12);
        assert_eq!(text.as_str(), "abcd".repeat(Text::MOST / 4));
    }

    #[test]
    fn a_message_is_the_same_in_both_ways() {
        for (message, text) in [
            (Message::plain("nothing to say"), "nothing to say"),
            (Message::one("it is ", Number(12), ": more"), "it is 12: more"),
            (Message::two("", Word("n"), " ", Number(0), " is wrong"), "n 0 is wrong"),
            (Message::three(Float(1.5), " of ", Number(7), ", ", Word("no")), "1.5 of 7, no"),
        ] {
            let panicked = std::panic::catch_unwind(|| message.panic()).unwrap_err();
            let said = panicked.downcast_ref::<std::string::String>().unwrap();
            assert_eq!((said.as_str(), message.to_string().as_str()), (text, text));
        }
    }
}
