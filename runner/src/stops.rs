//! Stop strings: text is held back as long as it may be the beginning of one.

use crate::error::Result;

/// What of a text may be shown.
#[derive(Debug)]
pub(crate) struct Stops {
    wanted: Vec<String>,
    held: String,
}

impl Stops {
    /// Stops at the first of `wanted`, none of which is empty.
    pub(crate) fn new(wanted: &[String]) -> Self {
        Self { wanted: wanted.to_vec(), held: String::new() }
    }

    /// What becomes certain with `piece`, and whether the text ends there.
    pub(crate) fn push(&mut self, piece: &str) -> (String, bool) {
        if self.wanted.is_empty() {
            return (piece.to_owned(), false);
        }
        self.held.push_str(piece);
        if let Some(at) = self.wanted.iter().filter_map(|stop| self.held.find(stop.as_str())).min()
        {
            self.held.truncate(at);
            return (core::mem::take(&mut self.held), true);
        }
        let begun = |at: usize| self.wanted.iter().any(|stop| stop.starts_with(&self.held[at..]));
        let longest = self.wanted.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest);
        let keep = (first..self.held.len())
            .find(|at| self.held.is_char_boundary(*at) && begun(*at))
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        (core::mem::replace(&mut self.held, rest), false)
    }

    /// Hands what becomes certain with `piece` to `out`; whether the text ends there.
    ///
    /// # Errors
    /// Those of `out`.
    pub(crate) fn pass(
        &mut self,
        piece: &str,
        out: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<bool> {
        let (certain, stopped) = self.push(piece);
        if !certain.is_empty() {
            out(&certain)?;
        }
        Ok(stopped)
    }

    /// What was held back when no more text comes.
    pub(crate) fn finish(&mut self) -> String {
        core::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|stop| (*stop).to_owned()).collect()
    }

    /// All that is shown of pieces, whether it was stopped, and the most that was held.
    fn shown(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut stops = Stops::new(&wanted(stops));
        let mut text = String::new();
        for piece in pieces {
            let (out, stopped) = stops.push(piece);
            text.push_str(&out);
            if stopped {
                return (text, true);
            }
        }
        text.push_str(&stops.finish());
        (text, false)
    }

    #[test]
    fn a_stop_string_ends_the_text_wherever_it_was_cut() {
        let text = "one two é three";
        for stop in ["two", " ", "é", "three", "one", "wo é t"] {
            let expected = &text[..text.find(stop).unwrap()];
            for size in 1..6 {
                let chars: Vec<char> = text.chars().collect();
                let pieces: Vec<String> = chars.chunks(size).map(|c| c.iter().collect()).collect();
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                assert_eq!(shown(&[stop, "never"], &pieces), (expected.to_owned(), true), "{stop}");
            }
        }
        assert_eq!(shown(&["twof"], &["one tw", "o"]), ("one two".to_owned(), false));
        // The first in the text counts, not the first in the list.
        assert_eq!(shown(&["c", "b"], &["abc"]), ("a".to_owned(), true));
    }

    #[test]
    fn no_more_is_held_than_may_be_a_beginning() {
        let mut stops = Stops::new(&wanted(&["\n\n"]));
        assert_eq!(stops.push("a"), ("a".to_owned(), false));
        assert_eq!(stops.push("\n"), (String::new(), false));
        assert_eq!(stops.push("b\n"), ("\nb".to_owned(), false));
        assert_eq!(stops.push("\nc"), (String::new(), true));
    }
}
