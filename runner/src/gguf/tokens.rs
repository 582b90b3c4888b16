//! Tokenizers inside files: llama.cpp's keys to a `tokenizer.json`, and the other way round.
//!
//! llama.cpp has byte-level byte-pair encoding by the name of `gpt2`, with a name for how a text is
//! cut into words (`tokenizer.ggml.pre`). Tokenizers of bytes, and of characters of one byte each, are
//! such encodings without merges.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};

use super::value::Value;
use crate::exchange::{Around, End};
use crate::tokenizer::usage::Usage;
use crate::tokenizer::{Cut, Tokenizer, added_token, byte_char, byte_level_json};

/// What the names of a tokenizer's keys begin with.
const PREFIX: &str = "tokenizer.ggml.";
/// Tokens that end what is said, if they are others than the end of text: of a turn, and of a message.
const OTHER_ENDS: [&str; 2] = ["eot_token_id", "eom_token_id"];
/// All of them, where these are too few.
const ALL_ENDS: &str = "cllm.end_token_ids";
/// The key of the template of conversations.
const TEMPLATE: &str = "tokenizer.chat_template";
/// llama.cpp's name of the kind of tokenizer.
const MODEL: &str = "gpt2";
/// Kinds of tokens: ordinary and special ones, and ids without any.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
/// Added ones that texts may spell.
const OWN: i32 = 4;
const UNUSED: i32 = 5;

/// The keys of a tokenizer for a model of so many ids.
///
/// # Errors
/// It cuts texts in another way than GPT-2's, or has characters of several bytes, in words.
pub(super) fn keys(
    tokenizer: &Tokenizer,
    usage: &Usage,
    ids: usize,
) -> Result<Vec<(String, Value)>, String> {
    let Parts { tokens, merges, added, cut } = match tokenizer {
        Tokenizer::Bytes => Parts {
            tokens: (0..=255).map(|byte| byte_char(byte).to_string()).collect(),
            ..Parts::default()
        },
        Tokenizer::Chars(chars) => of_chars(chars.chars())?,
        Tokenizer::Bpe(_) => of_json(&tokenizer.to_json().map_err(|e| e.to_string())?)?,
    };
    let mut kinds = vec![UNUSED; ids];
    let mut texts: Vec<_> = (0..ids).map(|id| format!("<unused {id}>")).collect();
    for (id, text) in tokens.into_iter().enumerate().take(ids) {
        if !text.is_empty() {
            (texts[id], kinds[id]) = (text, NORMAL);
        }
    }
    let end = tokenizer.end_of_text();
    texts[end as usize] = tokenizer.end_of_text_name();
    let begun = tokenizer.begin_of_text();
    let named = usage.bos_token.as_ref().and_then(|bos| texts.iter().position(|text| text == bos));
    let begin = begun.first().copied().or(named.map(|id| id as u32)).unwrap_or(end);
    let pad = usage.pad_token.as_ref().and_then(|pad| texts.iter().position(|text| text == pad));
    let pad = pad.map(|id| (format!("{PREFIX}padding_token_id"), Value::U32(id as u32)));
    let others = tokenizer.other_ends();
    let other_ends = OTHER_ENDS.into_iter().zip(others);
    let other_ends = other_ends.map(|(name, id)| (format!("{PREFIX}{name}"), Value::U32(*id)));
    let all_ends = (others.len() > OTHER_ENDS.len()).then(|| {
        let ids = others.iter().map(|id| id.cast_signed()).collect();
        (ALL_ENDS.to_owned(), Value::Ints(ids))
    });
    for (id, is_special) in added.into_iter().chain([(end as usize, true)]) {
        kinds[id] = if is_special { CONTROL } else { OWN };
    }
    let text = |text: &str| Value::Text(text.to_owned());
    let template = usage.chat_template.as_deref().map(text);
    let template = template.map(|template| (TEMPLATE.to_owned(), template));
    let keys = [
        ("model", text(MODEL)),
        ("pre", text(cut.names()[0])),
        ("tokens", Value::Texts(texts)),
        ("token_type", Value::Ints(kinds)),
        ("merges", Value::Texts(merges)),
        ("bos_token_id", Value::U32(begin)),
        ("eos_token_id", Value::U32(end)),
        ("add_bos_token", Value::Bool(!begun.is_empty())),
    ]
    .map(|(name, value)| (format!("{PREFIX}{name}"), value));
    Ok(keys.into_iter().chain(pad).chain(other_ends).chain(all_ends).chain(template).collect())
}

/// What a tokenizer is made of.
#[derive(Default)]
struct Parts {
    /// By id; empty where there is none.
    tokens: Vec<String>,
    merges: Vec<String>,
    /// Ids of added tokens, and whether they are special.
    added: Vec<(usize, bool)>,
    /// How texts are cut.
    cut: Cut,
}

/// A character of several bytes would be merged from parts, which have no ids.
fn of_chars(chars: &[char]) -> Result<Parts, String> {
    let token = |c: &char| match u8::try_from(*c) {
        Ok(byte) if byte.is_ascii() => Ok(byte_char(byte).to_string()),
        _ => Err(format!(
            "llama.cpp cannot have the character {c:?} for a token; train with --tokenizer bpe:N or \
             bytes to export a model of such text"
        )),
    };
    let tokens = chars.iter().map(token).collect::<Result<_, _>>()?;
    Ok(Parts { tokens, ..Parts::default() })
}

/// Parts of the `tokenizers` crate's JSON.
fn of_json(text: &str) -> Result<Parts, String> {
    let json: Json = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let before = &json["pre_tokenizer"];
    let model = &json["model"];
    let is_nothing = |value: &Json| value.is_null() || *value == false || *value == "";
    // Without merges it does not matter how texts are cut.
    let has_merges = model["merges"].as_array().is_some_and(|merges| !merges.is_empty());
    let is_uncut = before["type"] == "ByteLevel" && before["add_prefix_space"] == false;
    let cut = Cut::of_json(before).or((!has_merges && is_uncut).then_some(Cut::Gpt2));
    // Qwen's puts characters together first, which llama.cpp leaves to the text.
    let normalizer = &json["normalizer"];
    let is_normal = normalizer.is_null() || cut == Some(Cut::Qwen2) && normalizer["type"] == "NFC";
    let is_gpt2s = model["type"] == "BPE"
        && is_normal
        && ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"]
            .iter()
            .all(|name| is_nothing(&model[name]));
    let merges = model["merges"].as_array();
    let vocab = model["vocab"].as_object();
    let (true, Some(merges), Some(vocab)) = (is_gpt2s, merges, vocab) else {
        return Err("only byte-level byte-pair tokenizers like GPT-2's can be exported".to_owned());
    };
    let Some(cut) = cut else {
        return Err("a tokenizer that cuts texts in another way than GPT-2, SmolLM, Llama 3 or \
                    Qwen 2 cannot be exported"
            .to_owned());
    };
    let is_special = |token: &str| {
        let added = json["added_tokens"].as_array();
        added.into_iter().flatten().any(|added| added["content"] == token)
    };
    let is_long = |token: &str| token.chars().nth(1).is_some() && !is_special(token);
    if model["ignore_merges"] == true
        && !cut.takes_words_whole()
        && vocab.keys().any(|token| is_long(token))
    {
        return Err(
            "a tokenizer that takes words whole, without merges, cannot be exported; train \
                    with --tokenizer bpe:N for a model that llama.cpp can have"
                .to_owned(),
        );
    }
    let merges = merges
        .iter()
        .map(|merge| match merge {
            Json::String(merge) => Some(merge.clone()),
            Json::Array(pair) => {
                Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?))
            }
            _ => None,
        })
        .collect::<Option<Vec<_>>>()
        .ok_or("a merge of the tokenizer is not of two texts")?;
    let mut tokens = Vec::new();
    let mut put = |id: &Json, token: &str| -> Option<usize> {
        let id = usize::try_from(id.as_u64()?).ok()?;
        if tokens.len() <= id {
            tokens.resize(id + 1, String::new());
        }
        token.clone_into(&mut tokens[id]);
        Some(id)
    };
    let wrong = "an id of the tokenizer is not a number";
    for (token, id) in vocab {
        put(id, token).ok_or(wrong)?;
    }
    let mut added = Vec::new();
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let id = put(&token["id"], token["content"].as_str().unwrap_or_default()).ok_or(wrong)?;
        added.push((id, token["special"] == true));
    }
    Ok(Parts { tokens, merges, added, cut })
}

/// Keys of a file by their names.
type Keys = BTreeMap<String, Value>;

fn get<'k>(keys: &'k Keys, name: &str) -> Option<&'k Value> {
    keys.get(&format!("{PREFIX}{name}"))
}

/// What a file says of the tokens around texts.
pub(super) fn around(keys: &Keys) -> Around {
    let id = |name: &str| get(keys, name).and_then(Value::count).map(|id| id as u64);
    let mut ends: Vec<u64> = OTHER_ENDS.into_iter().filter_map(id).collect();
    if let Some(Value::Ints(all)) = keys.get(ALL_ENDS) {
        ends = all.iter().filter_map(|id| u64::try_from(*id).ok()).collect();
    }
    // As llama.cpp has it where nothing is said.
    let is_llama3 =
        || get(keys, "pre").and_then(Value::text).and_then(Cut::by_name) == Some(Cut::Llama3);
    let is_begun = match get(keys, "add_bos_token") {
        Some(Value::Bool(is_begun)) => *is_begun,
        _ => is_llama3(),
    };
    let begin = id("bos_token_id").map(|id| (End::Id(id), is_begun));
    Around { end: id("eos_token_id").map(End::Id), ends, begin }
}

/// How a file's tokenizer is used.
pub(super) fn usage(keys: &Keys) -> Usage {
    let token = |name: &str| match get(keys, "tokens") {
        Some(Value::Texts(texts)) => texts.get(get(keys, name)?.count()?).cloned(),
        _ => None,
    };
    Usage {
        chat_template: keys.get(TEMPLATE).and_then(Value::text).map(str::to_owned),
        bos_token: token("bos_token_id"),
        eos_token: token("eos_token_id"),
        pad_token: token("padding_token_id"),
        generation: serde_json::Map::new(),
    }
}

/// The `tokenizer.json` of a file; `None` if it has no tokenizer of a kind that is known here.
///
/// # Errors
/// Keys that are missing or contradict one another, in words.
pub(super) fn json(keys: &Keys) -> Result<Option<String>, String> {
    let text = |name: &str| get(keys, name).and_then(Value::text);
    // Without a name it is an old file of GPT-2's own.
    let cut = text("pre").map_or(Some(Cut::Gpt2), Cut::by_name);
    let Some(cut) = cut.filter(|_| text("model") == Some(MODEL)) else { return Ok(None) };
    let texts = |name: &str| match get(keys, name) {
        Some(Value::Texts(texts)) => Ok(texts),
        Some(_) => Err(format!("{PREFIX}{name} is not a list of texts")),
        None => Err(format!("no key {PREFIX}{name}")),
    };
    let (tokens, merges) = (texts("tokens")?, texts("merges")?);
    let kinds = match get(keys, "token_type") {
        Some(Value::Ints(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
        Some(_) => return Err(format!("{PREFIX}token_type has not a number for each token")),
        None => vec![NORMAL; tokens.len()],
    };
    let mut vocab = serde_json::Map::new();
    let mut added = Vec::new();
    let mut seen = BTreeSet::new();
    for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
        if kind == UNUSED {
            continue;
        }
        if !seen.insert(token) {
            return Err(format!("the token {token:?} is there twice"));
        }
        match kind {
            CONTROL => added.push(added_token(id, token, true)),
            OWN => added.push(added_token(id, token, false)),
            _ => {
                vocab.insert(token.clone(), json!(id));
            }
        }
    }
    for merge in merges {
        let parts = merge.split_once(' ').ok_or_else(|| format!("{merge:?} is no merge"))?;
        let whole = format!("{}{}", parts.0, parts.1);
        if [parts.0, parts.1, &whole].iter().any(|part| !vocab.contains_key(*part)) {
            return Err(format!("the merge {merge:?} is of or to what is no token"));
        }
    }
    Ok(Some(byte_level_json(cut, vocab, merges, added)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::checked_tokenizer;
    use crate::tokenizer::{BpeTokenizer, CharTokenizer};

    const TEXT: &str = "In the  beginning\n\tGod's <|endoftext|> light, 12345 and the light.\r\n";

    fn keys_of(tokenizer: &Tokenizer, ids: usize) -> Keys {
        keys(tokenizer, &Usage::default(), ids).unwrap().into_iter().collect()
    }

    fn back(tokenizer: &Tokenizer, ids: usize) -> Tokenizer {
        let text = json(&keys_of(tokenizer, ids)).unwrap().unwrap();
        Tokenizer::from_json(text.as_bytes()).unwrap()
    }

    #[test]
    fn tokenizers_come_back_with_the_same_ids() {
        let texts = vec![TEXT.repeat(20)];
        let bpe = BpeTokenizer::train(texts.into_iter(), 280).unwrap();
        let chars = CharTokenizer::from_chars(TEXT.chars());
        for tokenizer in [Tokenizer::Bytes, Tokenizer::Chars(chars), Tokenizer::Bpe(Box::new(bpe))]
        {
            let ids = tokenizer.vocab_size();
            for more in [0, 7] {
                let read = back(&tokenizer, ids + more);
                assert_eq!(read.vocab_size(), ids, "{}", tokenizer.name());
                assert_eq!(read.end_of_text(), tokenizer.end_of_text());
                let encoded = tokenizer.encode(TEXT.as_bytes()).unwrap();
                assert_eq!(read.encode(TEXT.as_bytes()).unwrap(), encoded, "{}", tokenizer.name());
                assert_eq!(read.decode(&encoded), TEXT);
            }
        }
    }

    #[test]
    fn templates_and_the_tokens_around_texts_come_back() {
        let text = |text: &str| Some(text.to_owned());
        let end = Tokenizer::Bytes.end_of_text_name();
        let said = Usage {
            chat_template: text("{{ x }}"),
            bos_token: text("A"),
            eos_token: Some(end),
            pad_token: text("B"),
            ..Usage::default()
        };
        let keys: Keys = keys(&Tokenizer::Bytes, &said, 257).unwrap().into_iter().collect();
        assert_eq!(get(&keys, "bos_token_id"), Some(&Value::U32(65)));
        assert_eq!(usage(&keys), said);
        assert_eq!(usage(&Keys::new()), Usage::default());
    }

    #[test]
    fn other_ends_and_the_beginning_come_back() {
        let mut with: Json =
            serde_json::from_str(&Tokenizer::Bytes.to_transformers().unwrap()).unwrap();
        let names = ["<s>", "<|eot|>", "<|eom|>", "<|call|>"];
        for (id, name) in (257..).zip(names) {
            with["added_tokens"].as_array_mut().unwrap().push(added_token(id, name, true));
        }
        let text = with.to_string().into_bytes();
        let said = |count: u64, is_begun| Around {
            end: Some(End::Id(256)),
            ends: (256..258 + count).filter(|id| *id != 257).collect(),
            begin: Some((End::Id(257), is_begun)),
        };
        for (count, is_begun) in [(0, false), (1, true), (2, false), (3, true)] {
            let said = said(count, is_begun);
            let text = checked_tokenizer(text.clone(), &said, 300).unwrap();
            let tokenizer = Tokenizer::from_json(&text).unwrap();
            let others: Vec<u32> = (258..).take(count as usize).collect();
            assert_eq!(tokenizer.other_ends(), others);
            let ends = (0..300).filter(|id| tokenizer.is_end(*id));
            assert_eq!(ends.count(), 1 + count as usize);
            // What this program writes of it says the same.
            let again = Tokenizer::from_json(tokenizer.to_json().unwrap().as_bytes()).unwrap();
            assert_eq!(again.other_ends(), others);
            let keys = keys_of(&tokenizer, 300);
            assert_eq!(get(&keys, "add_bos_token"), Some(&Value::Bool(is_begun)));
            assert_eq!(keys.contains_key(ALL_ENDS), count > 2);
            let text = json(&keys).unwrap().unwrap().into_bytes();
            let back = checked_tokenizer(text, &around(&keys), 300).unwrap();
            let back = Tokenizer::from_json(&back).unwrap();
            assert_eq!((back.end_of_text(), back.other_ends()), (256, &others[..]));
            let begun = if is_begun { vec![257, 65] } else { vec![65] };
            for tokenizer in [&tokenizer, &again, &back] {
                assert_eq!(tokenizer.encode_prompt(b"A").unwrap(), begun);
                assert_eq!(tokenizer.encode(b"A").unwrap(), [65]);
            }
        }
        // A beginning can be taken away too.
        let json = checked_tokenizer(text, &said(0, true), 300).unwrap();
        let json = checked_tokenizer(json, &said(0, false), 300).unwrap();
        assert_eq!(Tokenizer::from_json(&json).unwrap().encode_prompt(b"A").unwrap(), [65]);
        let many = Around { ends: (0..65).collect(), ..Around::default() };
        assert!(checked_tokenizer(json, &many, 300).unwrap_err().contains("65 tokens that end"));
        // As llama.cpp has it where nothing is said.
        for (pre, is_begun) in [("llama-bpe", true), ("gpt-2", false)] {
            let keys: [(&str, Value); 2] =
                [("pre", Value::Text(pre.to_owned())), ("bos_token_id", Value::U32(3))];
            let keys = keys.map(|(name, value)| (format!("{PREFIX}{name}"), value));
            assert_eq!(around(&keys.into_iter().collect()).begin, Some((End::Id(3), is_begun)));
        }
    }

    #[test]
    fn ways_to_cut_texts_come_back() {
        let texts = vec![TEXT.repeat(20)];
        let bpe = BpeTokenizer::train(texts.into_iter(), 280).unwrap();
        let json = Tokenizer::Bpe(Box::new(bpe)).to_json().unwrap();
        for name in ["gpt-2", "smollm", "qwen2", "llama-bpe"] {
            let cut = Cut::by_name(name).unwrap();
            let mut json: Json = serde_json::from_str(&json).unwrap();
            json["pre_tokenizer"] = cut.json();
            json["model"]["ignore_merges"] = json!(cut.takes_words_whole());
            let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
            let keys = keys_of(&tokenizer, tokenizer.vocab_size());
            assert_eq!(get(&keys, "pre").and_then(Value::text), Some(name));
            let read = back(&tokenizer, tokenizer.vocab_size());
            let encoded = tokenizer.encode(TEXT.as_bytes()).unwrap();
            assert_eq!(read.encode(TEXT.as_bytes()).unwrap(), encoded, "{name}");
        }
    }

    #[test]
    fn added_tokens_keep_their_kinds() {
        let text = Tokenizer::Bytes.to_transformers().unwrap();
        let mut with: Json = serde_json::from_str(&text).unwrap();
        let mut own = added_token(257, "<think>", false);
        own["special"] = json!(false);
        with["added_tokens"].as_array_mut().unwrap().push(own);
        let tokenizer = Tokenizer::from_json(with.to_string().as_bytes()).unwrap();
        let encoded = tokenizer.encode(b"a<think>b").unwrap();
        assert_eq!(encoded, [97, 257, 98]);
        assert_eq!(back(&tokenizer, 258).encode(b"a<think>b").unwrap(), encoded);
    }

    #[test]
    fn what_llama_cannot_have_is_refused() {
        let text = byte_level_json(Cut::Gpt2, serde_json::Map::new(), &[], Vec::new());
        let json: Json = serde_json::from_str(&text).unwrap();
        assert!(of_json(&text).is_ok());
        let changes: [fn(&mut Json); 4] = [
            |json| json["pre_tokenizer"] = json!({ "type": "Whitespace" }),
            |json| json["model"]["type"] = json!("Unigram"),
            |json| json["model"]["byte_fallback"] = json!(true),
            |json| json["normalizer"] = json!({ "type": "NFC" }),
        ];
        for change in changes {
            let mut json = json.clone();
            change(&mut json);
            assert!(of_json(&json.to_string()).is_err(), "{json}");
        }
        let words = BpeTokenizer::from_words(["The", " cat"]).unwrap();
        let words = keys(&Tokenizer::Bpe(Box::new(words)), &Usage::default(), 260);
        assert!(words.unwrap_err().contains("words whole"));
        let chars = Tokenizer::Chars(CharTokenizer::from_chars("a\u{e9}".chars()));
        assert!(keys(&chars, &Usage::default(), 3).unwrap_err().contains('\u{e9}'));
    }

    #[test]
    fn keys_that_are_missing_or_contradict_one_another_are_refused() {
        let with = |name: &str, value: Option<Value>| {
            let mut keys = keys_of(&Tokenizer::Bytes, 257);
            let name = format!("{PREFIX}{name}");
            match value {
                Some(value) => drop(keys.insert(name, value)),
                None => drop(keys.remove(&name)),
            }
            json(&keys)
        };
        let text = |text: &str| Some(Value::Text(text.to_owned()));
        assert_eq!(with("pre", text("command-r")), Ok(None));
        assert!(with("pre", text("qwen2")).unwrap().unwrap().contains("pretokenizers"));
        assert_eq!(with("model", text("llama")), Ok(None));
        assert!(with("tokens", None).unwrap_err().contains("no key tokenizer.ggml.tokens"));
        assert!(with("tokens", text("x")).unwrap_err().contains("not a list of texts"));
        assert!(with("token_type", Some(Value::Ints(vec![1]))).unwrap_err().contains("token_type"));
        let twice = Value::Texts(vec!["x".to_owned(); 257]);
        assert!(with("tokens", Some(twice)).unwrap_err().contains("twice"));
        let merge = Value::Texts(vec!["no such".to_owned()]);
        assert!(with("merges", Some(merge)).unwrap_err().contains("no such"));
    }
}
