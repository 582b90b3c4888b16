//! What of a `tokenizer.json` is refused, and what is changed, before the library reads it: what it would take at
//! its word, or stumble over, and what would not give the same tokens each time.

use core::result::Result;
use std::collections::HashMap;

use serde_json::{Value, json};

/// Most identifiers of a tokenizer: a table of them is made.
const MOST_IDS: u64 = 1 << 22;

/// Most bytes of an added token: the library's search for them takes long to make of longer ones.
const LONGEST_ADDED: usize = 4096;

/// Most bytes of a piece of a vocabulary with scores (Unigram): each is a step deeper in the library's tree of them, which
/// goes down the stack when it is dropped. Those that people use have some dozens.
const LONGEST_PIECE: usize = 1024;

/// How many times as long replacing may make a text: one after the other they multiply. People's tokenizers make three
/// bytes of a space.
const MOST_GROWTH: usize = 256;

/// Most characters of a word that pieces are looked for in: the library looks at each part of each of its ends. Those
/// that people use have 100.
const LONGEST_WORD: u64 = 1000;

/// Refuses what cannot be used, and changes what is not to count.
pub(super) fn settle(json: &mut Value) -> Result<(), String> {
    check(json)?;
    // Words that fall apart by chance belong to the training of the model that has this tokenizer.
    if let Some(dropout) = json.pointer_mut("/model/dropout") {
        *dropout = Value::Null;
    }
    Ok(())
}

fn check(json: &Value) -> Result<(), String> {
    let model = &json["model"];
    let vocab = model["vocab"].as_object().into_iter().flat_map(|vocab| vocab.values());
    let added = json["added_tokens"].as_array().into_iter().flatten().map(|token| &token["id"]);
    if let Some(id) = vocab.chain(added).filter_map(Value::as_u64).find(|id| *id >= MOST_IDS) {
        return Err(format!("an id of {id}: the largest accepted is {}", MOST_IDS - 1));
    }
    // The library would forget one of the two, and not read what it writes itself.
    let mut of_id = HashMap::new();
    for (token, id) in model["vocab"].as_object().into_iter().flatten() {
        if let Some(id) = id.as_u64()
            && let Some(other) = of_id.insert(id, token)
        {
            return Err(format!("its tokens {other:?} and {token:?} have the same id {id}"));
        }
    }
    drop(of_id);
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let lengths = added.filter_map(|token| Some(token["content"].as_str()?.len()));
    if let Some(length) = lengths.max().filter(|length| *length > LONGEST_ADDED) {
        return Err(format!(
            "an added token of {length} bytes: the longest accepted has {LONGEST_ADDED}"
        ));
    }
    // Old files do not say what a model with merges is.
    let is_pairs = model["type"] == "BPE" || model["type"].is_null() && !model["merges"].is_null();
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    if is_pairs && !prefix.is_empty() {
        return Err(format!(
            "byte pairs with the prefix {prefix:?} inside of words are not supported"
        ));
    }
    let pieces = model["vocab"].as_array().into_iter().flatten();
    let lengths = pieces.filter_map(|piece| Some(piece[0].as_str()?.len()));
    if let Some(length) = lengths.max().filter(|length| *length > LONGEST_PIECE) {
        return Err(format!("a piece of {length} bytes: the longest accepted has {LONGEST_PIECE}"));
    }
    if let Some(longest) = model["max_input_chars_per_word"].as_u64()
        && longest > LONGEST_WORD
    {
        return Err(format!(
            "words of up to {longest} characters: at most {LONGEST_WORD} are read"
        ));
    }
    for steps in [normalizers(json), parts(&json["decoder"], "decoders")] {
        let growth = steps.into_iter().map(growth).fold(1, usize::saturating_mul);
        if growth > MOST_GROWTH {
            return Err(format!(
                "replacements that make a text up to {growth} times as long: {MOST_GROWTH} times is accepted"
            ));
        }
    }
    if normalizers(json).iter().any(|one| one["type"] == "Precompiled") {
        return Err(
            "its normalizer is a precompiled table, as T5 and XLM-RoBERTa have, which is not \
                    supported"
                .to_owned(),
        );
    }
    Ok(())
}

/// Whether the library would put a space before every part of a text: as Llama 2's tokenizer has it, `▁` in
/// front and for each space, without the question of the later ones whether there is one.
pub(super) fn parts_get_a_space(json: &Value) -> bool {
    let space = json!({"String": " "});
    match normalizers(json)[..] {
        [prepend, replace] => {
            prepend["type"] == "Prepend"
                && prepend["prepend"] == "▁"
                && replace["type"] == "Replace"
                && replace["pattern"] == space
                && replace["content"] == "▁"
        }
        _ => false,
    }
}

/// How many times as long a replacement makes a text that consists of what it replaces.
fn growth(one: &Value) -> usize {
    let content = one["content"].as_str().map_or(0, str::len);
    match one["pattern"]["String"].as_str().map(str::len) {
        _ if one["type"] != "Replace" => 1,
        Some(pattern @ 1..) => content.div_ceil(pattern).max(1),
        // A pattern may match a byte, or between any two.
        _ => content + 1,
    }
}

/// The normalizers that are not sequences of others, in their order.
fn normalizers(json: &Value) -> Vec<&Value> {
    parts(&json["normalizer"], "normalizers")
}

/// What is done one after the other, by a step or by the sequence of steps that it is.
fn parts<'v>(step: &'v Value, sequence: &str) -> Vec<&'v Value> {
    let (mut left, mut found) = (vec![step], Vec::new());
    while let Some(one) = left.pop() {
        match one[sequence].as_array() {
            Some(more) => left.extend(more.iter().rev()),
            None if one.is_null() => {}
            None => found.push(one),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use super::*;
    use crate::data::prepare;
    use crate::data::source::Source;

    fn pairs(fields: Value) -> Value {
        let mut json = json!({"added_tokens": [], "model": {
            "type": "BPE",
            "vocab": {"</s>": 0, "a": 1, "b": 2, "ab": 3, "▁": 4, "▁a": 5, "▁▁": 6, ",": 7, "c": 8},
            "merges": ["a b", "▁ a", "▁ ▁"],
        }});
        for (place, value) in fields.as_object().unwrap() {
            let (parent, key) = place.rsplit_once('/').unwrap();
            json.pointer_mut(parent).unwrap()[key] = value.clone();
        }
        json
    }

    fn read(json: &Value) -> Result<Tokenizer, String> {
        Tokenizer::from_json(json.to_string().as_bytes())
    }

    #[test]
    fn what_the_library_would_stumble_over_is_refused() {
        read(&pairs(json!({}))).unwrap();
        let table = json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="});
        for (fields, words) in [
            (json!({"/model/continuing_subword_prefix": "##"}), "the prefix \"##\""),
            (
                json!({"/model/continuing_subword_prefix": "####", "/model/type": null}),
                "the prefix \"####\"",
            ),
            (json!({"/normalizer": table}), "precompiled"),
            (
                json!({"/normalizer": {"type": "Sequence", "normalizers": [
                    {"type": "NFC"}, {"type": "Sequence", "normalizers": [table]}]}}),
                "precompiled",
            ),
            (json!({"/model/vocab/a": MOST_IDS}), "the largest accepted"),
            (
                json!({"/model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["x".repeat(200_000), -1.0]]}}),
                "a piece of 200000 bytes",
            ),
            (
                json!({"/model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a",
                    "continuing_subword_prefix": "", "max_input_chars_per_word": 1_000_000}}),
                "words of up to 1000000 characters",
            ),
            (json!({"/added_tokens": [{"content": "x".repeat(5000)}]}), "5000 bytes"),
            (json!({"/model/vocab/b": 1}), "tokens \"a\" and \"b\" have the same id 1"),
        ] {
            let cause = read(&pairs(fields)).unwrap_err();
            assert!(cause.contains(words), "{cause}");
        }
    }

    #[test]
    fn of_a_key_that_is_there_twice_nothing_is_read_that_was_not_checked() {
        let long = json!({"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["x".repeat(200_000), -1.0]]});
        let good = pairs(json!({})).to_string();
        let twice = format!("{{\"model\": {long}, {}", &good[1..]);
        let tokenizer = Tokenizer::from_json(twice.as_bytes()).unwrap();
        assert_eq!(tokenizer.encode(b"ab").unwrap(), [3]);
    }

    #[test]
    fn replacements_do_not_multiply() {
        let twice = |pattern: Value, content: &str| {
            let one = json!({"type": "Replace", "pattern": pattern, "content": content});
            json!({"type": "Sequence", "normalizers": vec![&one; 30], "decoders": vec![&one; 30]})
        };
        let word = |word: &str| json!({ "String": word });
        for steps in [
            twice(word("a"), "aa"),
            twice(word(""), "a"),
            twice(json!({"Regex": "a|b"}), "ab"),
            twice(json!({"Regex": ""}), "a"),
        ] {
            for place in ["/normalizer", "/decoder"] {
                let cause = read(&pairs(json!({place: steps.clone()}))).unwrap_err();
                assert!(cause.contains("times as long"), "{cause}");
            }
        }
        // Once each, as people have it.
        read(&pairs(json!({"/normalizer": twice(word("ab"), "b")}))).unwrap();
        let quotes = json!([
            {"type": "Replace", "pattern": word("``"), "content": "\""},
            {"type": "Replace", "pattern": word(" "), "content": "▁"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]);
        read(&pairs(json!({"/normalizer": {"type": "Sequence", "normalizers": quotes}}))).unwrap();
    }

    #[test]
    fn words_do_not_fall_apart_by_chance() {
        let tokenizer = read(&pairs(json!({"/model/dropout": 0.9}))).unwrap();
        for _ in 0..50 {
            assert_eq!(tokenizer.encode(b"ab").unwrap(), [3]);
        }
    }

    #[test]
    fn a_long_text_gets_no_more_spaces_than_it_has() {
        let normalizers = json!([
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]);
        let of_llama = json!({"type": "Sequence", "normalizers": normalizers});
        let tokenizer = read(&pairs(json!({"/normalizer": of_llama}))).unwrap();
        let line = "ab a, ab";
        assert_eq!(tokenizer.encode(line.as_bytes()).unwrap(), [4, 3, 5, 7, 4, 3]);
        let again = 100_000;
        let text = vec![line; again].join(" ");
        let ids = [4, 3, 5, 7, 4, 3].repeat(again);
        assert!(tokenizer.encode(text.as_bytes()).unwrap() == ids);
        let (sources, mut read) = ([Source::from_memory("text", text.into_bytes())], Vec::new());
        prepare::encode(&sources, "text", &tokenizer, &mut |part| {
            read.extend_from_slice(part);
            Ok(())
        })
        .unwrap();
        assert!(read[1..] == ids, "{} for {}", read.len() - 1, ids.len());
    }

    #[test]
    fn what_is_refused_is_named_by_its_place() {
        let words = json!({"type": "WordLevel", "vocab": {"</s>": 0, "a": 1}, "unk_token": "none"});
        let split = json!({"type": "WhitespaceSplit"});
        let tokenizer =
            read(&json!({"added_tokens": [], "model": words, "pre_tokenizer": split})).unwrap();
        let text = ["a ".repeat(300_000), "b".to_owned()].concat();
        let error = tokenizer.encode(text.as_bytes()).unwrap_err().to_string();
        let place: usize = error.split([' ', ':']).nth(2).unwrap().parse().unwrap();
        assert!((500_000..600_000).contains(&place), "{error}");
    }
}
