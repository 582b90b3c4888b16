//! How byte-level tokenizers cut a text into words, of which merges then join the bytes.
//!
//! The `tokenizers` crate says it as a pre-tokenizer, llama.cpp by a name for each kind that it knows.
//! Patterns are those of the models' own `tokenizer.json`, which llama.cpp's names stand for.

use serde_json::{Value, json};

use super::transformers::byte_level;

/// Llama 3's words: contractions, letters with a sign before them, up to three digits, signs, spaces.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's: the same with digits one by one.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A way to cut texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Cut {
    /// GPT-2's pattern, which is the crate's own.
    #[default]
    Gpt2,
    /// GPT-2's after every digit has been set apart.
    Smollm,
    Llama3,
    Qwen2,
}

impl Cut {
    const ALL: [Self; 4] = [Self::Gpt2, Self::Smollm, Self::Llama3, Self::Qwen2];

    /// llama.cpp's name, and others that it has for the same.
    pub(crate) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Gpt2 => &["gpt-2"],
            Self::Smollm => &["smollm"],
            Self::Llama3 => &["llama-bpe", "llama3", "llama-v3"],
            Self::Qwen2 => &["qwen2"],
        }
    }

    /// By a name of llama.cpp's.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cut| cut.names().contains(&name))
    }

    /// Whether a word that is a token is not made of merges.
    pub(crate) fn takes_words_whole(self) -> bool {
        self == Self::Llama3
    }

    /// The pre-tokenizer of the `tokenizers` crate.
    pub(crate) fn json(self) -> Value {
        let split = |pattern: &str| {
            json!({
                "type": "Split",
                "pattern": { "Regex": pattern },
                "behavior": "Isolated",
                "invert": false,
            })
        };
        let sequence = |first: Value, last: Value| json!({ "type": "Sequence", "pretokenizers": [first, last] });
        match self {
            Self::Gpt2 => byte_level(true),
            Self::Smollm => {
                sequence(json!({ "type": "Digits", "individual_digits": true }), byte_level(true))
            }
            Self::Llama3 => sequence(split(LLAMA3), byte_level(false)),
            Self::Qwen2 => sequence(split(QWEN2), byte_level(false)),
        }
    }

    /// The way of a pre-tokenizer, if it is one of these.
    pub(crate) fn of_json(before: &Value) -> Option<Self> {
        /// What does not change what the tokens are, taken off.
        fn bare(value: &Value) -> Value {
            match value {
                Value::Object(map) => {
                    let kept = map.iter().filter(|(key, _)| *key != "trim_offsets");
                    kept.map(|(key, value)| (key.clone(), bare(value))).collect()
                }
                Value::Array(all) => all.iter().map(bare).collect(),
                other => other.clone(),
            }
        }
        Self::ALL.into_iter().find(|cut| bare(&cut.json()) == bare(before))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Tokenizer, added_token, byte_char, byte_level_json};
    use super::*;

    /// Tokens of a text, by an encoding that has all pairs of ASCII's letters and digits.
    fn tokens(cut: Cut, text: &str) -> Vec<String> {
        let mut vocab: serde_json::Map<String, Value> =
            (0..=255).map(|byte| (byte_char(byte).to_string(), json!(byte))).collect();
        let letters: Vec<char> = ('a'..='e').chain('1'..='4').collect();
        let mut merges = Vec::new();
        for (first, second) in letters.iter().flat_map(|a| letters.iter().map(move |b| (a, b))) {
            vocab.insert(format!("{first}{second}"), json!(vocab.len()));
            merges.push(format!("{first} {second}"));
        }
        let end = vocab.len();
        let added = vec![added_token(end, "<|endoftext|>", true)];
        let json = byte_level_json(cut, vocab, &merges, added);
        let tokenizer = Tokenizer::from_json(json.as_bytes()).unwrap();
        let ids = tokenizer.encode(text.as_bytes()).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        ids.iter().map(|id| tokenizer.decode(&[*id])).collect()
    }

    #[test]
    fn digits_are_joined_as_the_kind_has_it() {
        let digits = "ab1234 cd";
        assert_eq!(tokens(Cut::Gpt2, digits), ["ab", "12", "34", " ", "cd"]);
        assert_eq!(tokens(Cut::Smollm, digits), ["ab", "1", "2", "3", "4", " ", "cd"]);
        assert_eq!(tokens(Cut::Llama3, digits), ["ab", "12", "3", "4", " ", "cd"]);
        assert_eq!(tokens(Cut::Qwen2, digits), ["ab", "1", "2", "3", "4", " ", "cd"]);
    }

    #[test]
    fn every_kind_is_found_by_its_names_and_its_json() {
        for cut in Cut::ALL {
            assert_eq!(Cut::of_json(&cut.json()), Some(cut));
            assert!(cut.names().iter().all(|name| Cut::by_name(name) == Some(cut)));
        }
        let mut other = Cut::Qwen2.json();
        other["pretokenizers"][1]["trim_offsets"] = json!(false);
        assert_eq!(Cut::of_json(&other), Some(Cut::Qwen2));
        other["pretokenizers"][0]["behavior"] = json!("Removed");
        assert_eq!(Cut::of_json(&other), None);
        assert_eq!(Cut::by_name("command-r"), None);
    }
}
