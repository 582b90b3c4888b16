//! Tokenizers in the form that other programs read: the `tokenizers` crate's `tokenizer.json`.
//!
//! Bytes and characters are byte-pair encodings without merges there: every text falls apart
//! into the symbols of the vocabulary. Ids are the same.

use serde_json::{Map, Value, json};

use super::bpe::byte_char;
#[cfg(any(feature = "hf", feature = "gguf"))]
use super::cuts::Cut;
use super::{CharTokenizer, END_OF_TEXT};

/// That of bytes.
pub(super) fn of_bytes() -> Value {
    let vocab = (0..=255).map(|byte| (byte_char(byte).to_string(), json!(byte))).collect();
    // Without its regular expression, which would only cut the text for merges.
    let part = byte_level(false);
    let end = added_token(super::bytes::END_OF_TEXT as usize, END_OF_TEXT, true);
    bpe(vocab, &[], vec![end], [part.clone(), part])
}

/// That of characters. A character that is not in the vocabulary vanishes there, as in every
/// encoding without a token for what is unknown.
pub(super) fn of_chars(chars: &CharTokenizer) -> Value {
    let vocab = chars.chars().iter().zip(0_u32..).map(|(c, id)| (c.to_string(), json!(id)));
    let end = added_token(chars.end_of_text() as usize, END_OF_TEXT, true);
    let parts = [Value::Null, json!({ "type": "Fuse" })];
    bpe(vocab.collect(), &[], vec![end], parts)
}

/// The text of GPT-2's kind of tokenizer: ids by tokens, merges of two parts with a space between,
/// and [added tokens](added_token).
#[cfg(any(feature = "hf", feature = "gguf"))]
pub(crate) fn byte_level_json(
    cut: Cut,
    vocab: Map<String, Value>,
    merges: &[String],
    added: Vec<Value>,
) -> String {
    let mut json = bpe(vocab, merges, added, [cut.json(), byte_level(true)]);
    json["model"]["ignore_merges"] = json!(cut.takes_words_whole());
    json.to_string()
}

/// A token beside those of the encoding; special ones are those that no text turns into.
pub(crate) fn added_token(id: usize, content: &str, is_special: bool) -> Value {
    json!({
        "id": id,
        "content": content,
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": false,
        "special": is_special,
    })
}

/// The part of a `tokenizer.json` that puts texts behind a token.
#[cfg(any(feature = "hf", feature = "gguf", test))]
pub(crate) fn behind(token: &str, id: u32) -> Value {
    let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    json!({
        "type": "TemplateProcessing",
        "single": [special, text("A")],
        "pair": [special, text("A"), special, text("B")],
        "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
    })
}

/// The part that turns bytes into characters, with GPT-2's pattern or without.
pub(super) fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": use_regex,
    })
}

fn bpe(
    mut vocab: Map<String, Value>,
    merges: &[String],
    added: Vec<Value>,
    [before, decoder]: [Value; 2],
) -> Value {
    for token in &added {
        let content = token["content"].as_str().unwrap_or_default().to_owned();
        vocab.insert(content, token["id"].clone());
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": before,
        "post_processor": null,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::{CharTokenizer, Tokenizer};

    const TEXT: &str = "In the  beginning\n\t<|endoftext|> été 日本 🙂 .'s\r\n";

    fn as_others_read_it(tokenizer: &Tokenizer) -> Tokenizer {
        let json = tokenizer.to_transformers().unwrap();
        Tokenizer::from_json(json.as_bytes()).unwrap()
    }

    #[test]
    fn others_see_the_same_ids_and_the_same_text() {
        for tokenizer in
            [Tokenizer::Bytes, Tokenizer::Chars(CharTokenizer::from_chars(TEXT.chars()))]
        {
            let theirs = as_others_read_it(&tokenizer);
            assert_eq!(theirs.name(), "bpe");
            assert_eq!(theirs.vocab_size(), tokenizer.vocab_size());
            assert_eq!(theirs.end_of_text(), tokenizer.end_of_text());
            assert_eq!(theirs.end_of_text_name(), tokenizer.end_of_text_name());
            for text in [TEXT, "", " ", "the"] {
                let ids = tokenizer.encode(text.as_bytes()).unwrap();
                assert_eq!(theirs.encode(text.as_bytes()).unwrap(), ids, "{text:?}");
                assert_eq!(theirs.decode(&ids), text);
            }
        }
    }

    #[test]
    fn a_loaded_tokenizer_is_written_as_it_is() {
        let bytes = as_others_read_it(&Tokenizer::Bytes);
        assert_eq!(bytes.to_transformers().unwrap(), bytes.to_json().unwrap());
    }
}
