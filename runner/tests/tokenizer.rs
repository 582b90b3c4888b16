//! Tokenizers as a user meets them: saved, loaded, fed with odd text.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use cllm::tokenizer::{BpeTokenizer, CharTokenizer, Tokenizer};
use proptest::prelude::*;

/// Enough repetition for merges, with ties in frequency on purpose: those are
/// where an order taken from a hash map would show.
fn corpus() -> Vec<String> {
    (0..300)
        .map(|i| format!("abc abd xyz xyw line {} the cat's {} naïve 🙂 end.\n", i % 7, i % 5))
        .collect()
}

fn bpe() -> Tokenizer {
    Tokenizer::Bpe(Box::new(BpeTokenizer::train(corpus().into_iter(), 300).unwrap()))
}

fn chars() -> Tokenizer {
    Tokenizer::Chars(CharTokenizer::train([corpus().concat().as_bytes()]).unwrap())
}

#[test]
fn training_twice_gives_the_same_file() {
    let first = bpe().to_json().unwrap();
    for _ in 0..5 {
        assert_eq!(first, bpe().to_json().unwrap());
    }
    assert!((270..=300).contains(&bpe().vocab_size()), "{}", bpe().vocab_size());
}

#[test]
fn saved_and_loaded_is_the_same_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let text = corpus().concat();
    for tokenizer in [Tokenizer::Bytes, chars(), bpe()] {
        tokenizer.save(dir.path()).unwrap();
        let loaded = Tokenizer::load(dir.path()).unwrap();
        let by_file = Tokenizer::load(&dir.path().join("tokenizer.json")).unwrap();
        assert_eq!(loaded.name(), tokenizer.name());
        assert_eq!(loaded.vocab_size(), tokenizer.vocab_size());
        assert_eq!(loaded.end_of_text(), tokenizer.end_of_text());
        assert_eq!(loaded.to_json().unwrap(), tokenizer.to_json().unwrap());
        let ids = tokenizer.encode(text.as_bytes()).unwrap();
        assert_eq!(by_file.encode(text.as_bytes()).unwrap(), ids);
        assert_eq!(loaded.decode(&ids), text);
        assert!(ids.iter().all(|&id| id != tokenizer.end_of_text()));
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    }
}

#[test]
fn merges_shorten_the_text() {
    let text = corpus().concat();
    let ids = bpe().encode(text.as_bytes()).unwrap();
    assert!(ids.len() * 2 < text.len(), "{} tokens for {} bytes", ids.len(), text.len());
}

#[test]
fn text_that_spells_a_special_token_is_text() {
    let text = "before <|endoftext|> after";
    let tokenizer = bpe();
    let ids = tokenizer.encode(text.as_bytes()).unwrap();
    assert!(!ids.contains(&tokenizer.end_of_text()), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids), text);
    assert_eq!(tokenizer.decode(&[tokenizer.end_of_text(), 1_000_000]), "");
}

#[test]
fn text_that_is_not_utf8_is_placed_or_kept() {
    let text = b"abc\xff";
    assert_eq!(Tokenizer::Bytes.decode_bytes(&Tokenizer::Bytes.encode(text).unwrap()), text);
    for tokenizer in [chars(), bpe()] {
        let error = tokenizer.encode(text).unwrap_err();
        assert_eq!(error.offset(), 3);
        let named = error.in_origin(&"corpus.txt", 1000).to_string();
        assert!(named.contains("corpus.txt: at byte 1003"), "{named}");
    }
}

#[test]
fn streaming_gives_the_text_of_decoding_at_once() {
    let text = "the cat's naïve 🙂 end. 日本語";
    for tokenizer in [Tokenizer::Bytes, bpe(), metaspace(text)] {
        let ids = tokenizer.encode(text.as_bytes()).unwrap();
        let mut stream = tokenizer.stream_decoder();
        let mut out = String::new();
        for &id in &ids {
            let piece = stream.push(id);
            assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{piece:?}");
            out += &piece;
        }
        out += &stream.finish();
        assert_eq!(out, text, "{}", tokenizer.name());
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

/// A foreign tokenizer: words, a decoder whose text depends on neighbours
/// (the first space goes), cut to 3 tokens, and no end of text.
fn metaspace(text: &str) -> Tokenizer {
    let vocab: serde_json::Map<String, serde_json::Value> = text
        .split(' ')
        .map(|word| format!("▁{word}"))
        .chain(["[UNK]".to_owned()])
        .enumerate()
        .map(|(id, token)| (token, id.into()))
        .collect();
    let space = serde_json::json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true
    });
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": {
            "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
        },
        "padding": null,
        "added_tokens": [], "normalizer": null, "pre_tokenizer": space,
        "post_processor": null, "decoder": space,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    });
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

#[test]
fn a_long_stream_of_a_foreign_tokenizer_keeps_its_spaces() {
    let tokenizer = metaspace("one two three");
    let text = "one two three ".repeat(100);
    let ids = tokenizer.encode(text.trim_end().as_bytes()).unwrap();
    assert_eq!(ids.len(), 300);
    let mut stream = tokenizer.stream_decoder();
    let out: String = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(out + &stream.finish(), text.trim_end());
}

#[test]
fn a_foreign_tokenizer_gets_an_end_of_text_or_has_one() {
    let tokenizer = metaspace("a b");
    assert_eq!(tokenizer.end_of_text(), 3, "added after a, b and [UNK]");
    assert_eq!(tokenizer.vocab_size(), 4);
    let json = tokenizer.to_json().unwrap().replace("<|endoftext|>", "</s>");
    let renamed = Tokenizer::from_json(json.as_bytes()).unwrap();
    assert_eq!((renamed.end_of_text(), renamed.vocab_size()), (3, 4));
}

#[test]
fn a_file_that_is_no_tokenizer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let error = |path: &Path| Tokenizer::load(path).unwrap_err().to_string();
    assert!(error(&path).contains("tokenizer.json"), "{}", error(&path));
    for text in ["", "{", "[]", "3", "{}", r#"{"type":"cllm-chars"}"#, r#"{"type":"BPE"}"#] {
        fs::write(&path, text).unwrap();
        let message = error(&path);
        assert!(message.contains("is not a usable tokenizer"), "{text}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

proptest! {
    #[test]
    fn any_text_comes_back(text in "\\PC{0,40}[ \\t\\n]{0,3}\\PC{0,10}") {
        static BPE: LazyLock<Tokenizer> = LazyLock::new(bpe);
        let ids = BPE.encode(text.as_bytes()).unwrap();
        prop_assert_eq!(BPE.decode(&ids), text.clone());
        let mut stream = BPE.stream_decoder();
        let streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        prop_assert_eq!(streamed + &stream.finish(), text);
    }
}
