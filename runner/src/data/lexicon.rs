//! The words of the reference data set: an invented language with English
//! small words, the same on every machine.
//!
//! A word is one token, with its leading space. Nouns have a singular and a
//! plural, verbs a singular, a plural and a past form; small words that open
//! sentences also exist with a capital, and with a capital and no space for
//! the start of a paragraph.

use std::collections::BTreeSet;

use super::dice::Dice;

/// Identifiers of the reference tokenizer: end of text, 256 bytes, the words.
pub(super) const VOCAB_SIZE: usize = 5000;
/// Identifier of the first word.
const FIRST_WORD: u32 = 257;
/// Percentage of stems of three syllables: what makes the text 73 MB long.
const LONG_STEMS: u32 = 38;

pub(super) const NOUNS: usize = 800;
pub(super) const VERBS: usize = 440;
pub(super) const ADVERBS: usize = 240;
pub(super) const NAMES: usize = 240;
pub(super) const PLACES: usize = 160;

/// Small words inside sentences. Their order is that of [`Small`].
const SMALL: [&str; 42] = [
    "the", "a", "this", "these", "every", "several", "another", "many", "of", "with", "without",
    "between", "beneath", "beside", "through", "towards", "against", "and", "but", "because",
    "although", "while", "until", "after", "before", "which", "who", "that", "he", "she", "they",
    "his", "her", "their", "not", "never", "often", "always", "in", "from", "itself", "together",
];

/// Words that open a sentence: once after a space, once at the very start.
const OPENERS: [&str; 16] = [
    "The", "This", "These", "Every", "Several", "Another", "Many", "He", "She", "They", "Although",
    "While", "After", "Before", "Because", "In",
];

/// Beginnings, middles and endings of invented words.
const ONSETS: [&str; 28] = [
    "b", "br", "c", "ch", "cl", "d", "dr", "f", "fl", "g", "gl", "gr", "h", "j", "k", "l", "m",
    "n", "p", "pr", "qu", "r", "s", "st", "t", "tr", "v", "w",
];
const VOWELS: [&str; 10] = ["a", "e", "i", "o", "u", "ai", "ea", "io", "ou", "ie"];
const CODAS: [&str; 12] = ["n", "r", "l", "m", "nd", "rt", "st", "ck", "nt", "ll", "rm", "lt"];

/// One noun: its two forms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noun {
    pub(super) singular: u32,
    pub(super) plural: u32,
}

/// One verb: its three forms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verb {
    pub(super) singular: u32,
    pub(super) plural: u32,
    pub(super) past: u32,
}

/// All words, their spelling and their identifiers by kind.
#[derive(Debug)]
pub(super) struct Lexicon {
    /// Spelling of the words from [`FIRST_WORD`] on.
    words: Vec<String>,
    pub(super) nouns: Vec<Noun>,
    pub(super) verbs: Vec<Verb>,
    pub(super) adjectives: Vec<u32>,
    pub(super) adverbs: Vec<u32>,
    pub(super) names: Vec<u32>,
    pub(super) opening_names: Vec<u32>,
    pub(super) places: Vec<u32>,
}

impl Lexicon {
    /// Draws the words; there are exactly as many as the vocabulary needs.
    pub(super) fn new(dice: &mut Dice) -> Self {
        let mut maker = Maker { dice, words: Vec::new(), taken: BTreeSet::new() };
        for word in SMALL {
            maker.add(format!(" {word}"));
        }
        for word in OPENERS {
            maker.add(format!(" {word}"));
        }
        for word in OPENERS {
            maker.add(word.to_owned());
        }
        let nouns = (0..NOUNS)
            .map(|_| {
                let [singular, plural] = maker.forms(["", "s"]);
                Noun { singular, plural }
            })
            .collect();
        let verbs = (0..VERBS)
            .map(|_| {
                let [singular, plural, past] = maker.forms(["es", "", "ed"]);
                Verb { singular, plural, past }
            })
            .collect();
        let adverbs = (0..ADVERBS).map(|_| maker.forms(["ly"])[0]).collect();
        let mut names = Vec::new();
        let mut opening_names = Vec::new();
        for _ in 0..NAMES {
            let name = capital(&maker.stem(2));
            names.push(maker.add(format!(" {name}")));
            opening_names.push(maker.add(name));
        }
        let places = (0..PLACES)
            .map(|_| {
                let place = capital(&maker.stem(3));
                maker.add(format!(" {place}"))
            })
            .collect();
        let mut adjectives = Vec::new();
        while maker.words.len() < VOCAB_SIZE - FIRST_WORD as usize {
            adjectives.extend(maker.forms(["ous"]));
        }
        Self { words: maker.words, nouns, verbs, adjectives, adverbs, names, opening_names, places }
    }

    /// The words in the order of their identifiers, with leading spaces.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        self.words.iter().map(String::as_str)
    }

    /// The text of an identifier; a byte that is no ASCII has none.
    pub(super) fn push_text(&self, id: u32, text: &mut Vec<u8>) {
        match id.checked_sub(FIRST_WORD) {
            Some(word) => text.extend_from_slice(self.words[word as usize].as_bytes()),
            None => text.extend(id.checked_sub(1).map(|byte| byte as u8)),
        }
    }
}

/// Identifier of a byte.
pub(super) const fn byte(byte: u8) -> u32 {
    1 + byte as u32
}

/// Identifier of a small word inside a sentence.
///
/// # Panics
/// When it is not one of them: a mistake in the grammar that a test finds.
pub(super) fn small(word: &str) -> u32 {
    let place = SMALL.iter().position(|&w| w == word);
    FIRST_WORD + place.unwrap_or_else(|| unreachable!("no small word {word}")) as u32
}

/// Identifier of the form of a small word that opens a sentence, or, at the
/// start of a paragraph, of the one without a space.
pub(super) fn opening(word: &str, paragraph: bool) -> u32 {
    let place = OPENERS.iter().position(|&w| w.eq_ignore_ascii_case(word));
    let place = place.unwrap_or_else(|| unreachable!("no opening word {word}"));
    FIRST_WORD + (SMALL.len() + place + if paragraph { OPENERS.len() } else { 0 }) as u32
}

struct Maker<'a> {
    dice: &'a mut Dice,
    words: Vec<String>,
    taken: BTreeSet<String>,
}

impl Maker<'_> {
    fn add(&mut self, word: String) -> u32 {
        self.words.push(word);
        FIRST_WORD + self.words.len() as u32 - 1
    }

    /// A stem that is no beginning that was used before.
    fn stem(&mut self, syllables: u32) -> String {
        loop {
            let mut stem = String::new();
            for _ in 0..syllables {
                stem += self.dice.choose(&ONSETS);
                stem += self.dice.choose(&VOWELS);
            }
            stem += self.dice.choose(&CODAS);
            // Forms of different stems differ too, as no stem ends in a vowel
            // or an s, and no small word is that long.
            if stem.len() > 4 && !SMALL.contains(&stem.as_str()) && self.taken.insert(stem.clone())
            {
                return stem;
            }
        }
    }

    /// Adds the forms of a new stem of two or three syllables.
    fn forms<const N: usize>(&mut self, endings: [&str; N]) -> [u32; N] {
        let syllables = if self.dice.percent(LONG_STEMS) { 3 } else { 2 };
        let stem = self.stem(syllables);
        endings.map(|ending| self.add(format!(" {stem}{ending}")))
    }
}

fn capital(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_ascii_uppercase() + rest
}
