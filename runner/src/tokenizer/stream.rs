//! Tokens to printable text one at a time, never showing half a character.

use super::Tokenizer;

/// Turns identifiers into text as they come, for printing while generating.
///
/// Bytes that may still become a character are held back until they do, or
/// until it is certain that they never will (then U+FFFD stands for them).
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The incomplete character at the end, at most three bytes.
    held: Vec<u8>,
    /// For tokenizers whose text of a token depends on its neighbours: the
    /// tokens since the last safe place, and how much of their text is out.
    window: Vec<u32>,
    printed: usize,
}

/// Tokens kept as context for the next one when a window is cut.
const CONTEXT: usize = 4;
/// A window is cut at this length even inside an unfinished character, so a
/// model that produces only broken bytes costs no more than one that speaks.
const LONGEST_WINDOW: usize = 64;

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, held: Vec::new(), window: Vec::new(), printed: 0 }
    }

    /// The text that became certain with this identifier, often empty or one
    /// word. The end of text and unknown identifiers give nothing.
    pub fn push(&mut self, id: u32) -> String {
        if self.tokenizer.append_bytes(id, &mut self.held) {
            return take_certain(&mut self.held);
        }
        self.push_in_context(id)
    }

    /// The text still held back when no more identifiers come.
    pub fn finish(mut self) -> String {
        let mut rest = String::from_utf8_lossy(&self.held).into_owned();
        if !self.window.is_empty() {
            let text = self.tokenizer.decode(&self.window);
            rest.push_str(text.get(self.printed..).unwrap_or_default());
            self.window.clear();
        }
        rest
    }

    fn push_in_context(&mut self, id: u32) -> String {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window);
        let unfinished = text.ends_with(char::REPLACEMENT_CHARACTER);
        if unfinished && self.window.len() < LONGEST_WINDOW {
            return String::new();
        }
        let new = text.get(self.printed..).unwrap_or_default().to_owned();
        self.printed = text.len();
        if self.window.len() >= LONGEST_WINDOW / 2 {
            self.window.drain(..self.window.len() - CONTEXT);
            self.printed = self.tokenizer.decode(&self.window).len();
        }
        new
    }
}

/// Splits off everything but a possible beginning of a character at the end.
fn take_certain(held: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        match core::str::from_utf8(held) {
            Ok(all) => {
                text.push_str(all);
                held.clear();
                return text;
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&held[..valid]));
                let Some(bad) = error.error_len() else {
                    held.drain(..valid);
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                held.drain(..valid + bad);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_character_waits_for_the_other_half() {
        let tokenizer = Tokenizer::Bytes;
        let mut stream = tokenizer.stream_decoder();
        let pieces: Vec<String> = "né🙂!".bytes().map(|b| stream.push(u32::from(b))).collect();
        assert_eq!(pieces, ["n", "", "é", "", "", "", "🙂", "!"]);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn bytes_that_can_never_be_text_do_not_block() {
        let tokenizer = Tokenizer::Bytes;
        let mut stream = tokenizer.stream_decoder();
        assert_eq!(stream.push(0xff), "\u{fffd}");
        assert_eq!(stream.push(0xc3), "");
        assert_eq!(stream.push(u32::from(b'a')), "\u{fffd}a");
        assert_eq!(stream.push(0xe2), "");
        assert_eq!(stream.push(256), "", "the end of text prints nothing");
        assert_eq!(stream.finish(), "\u{fffd}");
    }
}
