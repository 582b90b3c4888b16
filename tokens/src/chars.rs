//! Which characters texts have.

/// Characters that were there.
pub struct CharSet(Vec<bool>);

impl Default for CharSet {
    fn default() -> Self {
        // Zeros, of which pages are made where something is written.
        Self(vec![false; char::MAX as usize + 1])
    }
}

impl CharSet {
    /// Adds those of `text`.
    pub fn add(&mut self, text: &str) {
        for c in text.chars() {
            self.0[c as usize] = true;
        }
    }

    /// All of them, in order.
    pub fn chars(&self) -> impl Iterator<Item = char> {
        let places = (0..).zip(&self.0).filter(|(_, there)| **there);
        places.filter_map(|(place, _)| char::from_u32(place))
    }
}

#[cfg(test)]
mod tests {
    use super::CharSet;

    #[test]
    fn characters_come_once_and_in_order() {
        let mut set = CharSet::default();
        for text in ["banana", "", "n\u{e9}\u{10ffff}\0"] {
            set.add(text);
        }
        assert!(set.chars().eq(['\0', 'a', 'b', 'n', '\u{e9}', '\u{10ffff}']));
    }
}
