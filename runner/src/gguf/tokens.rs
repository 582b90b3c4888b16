//! Tokenizers inside files: llama.cpp's keys to a `tokenizer.json`, and the other way round.
//!
//! llama.cpp has byte-level byte-pair encoding by the name of `gpt2`, with a name for how a text is
//! cut into words (`tokenizer.ggml.pre`). Tokenizers of bytes, and of characters of one byte each, are
//! such encodings without merges.

use serde_json::{Value as Json, json};

use super::value::Value;
use crate::tokenizer::{Tokenizer, byte_char, byte_level_json, special_token};

/// llama.cpp's name of the kind of tokenizer, and of GPT-2's way to cut texts.
const MODEL: &str = "gpt2";
const PRE: &str = "gpt-2";
/// Kinds of tokens: ordinary and special ones, and ids without any.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

/// The keys of a tokenizer for a model of so many ids.
///
/// # Errors
/// It cuts texts in another way than GPT-2's, or has characters of several bytes, in words.
pub(super) fn keys(tokenizer: &Tokenizer, ids: usize) -> Result<Vec<(String, Value)>, String> {
    let Parts { tokens, merges, special } = match tokenizer {
        Tokenizer::Bytes => Parts {
            tokens: (0..=255).map(|byte| byte_char(byte).to_string()).collect(),
            merges: Vec::new(),
            special: Vec::new(),
        },
        Tokenizer::Chars(chars) => of_chars(chars.chars())?,
        Tokenizer::Bpe(_) => of_json(&tokenizer.to_json().map_err(|e| e.to_string())?)?,
    };
    let end = tokenizer.end_of_text() as usize;
    let mut kinds = vec![UNUSED; ids];
    let mut texts: Vec<_> = (0..ids).map(|id| format!("<unused {id}>")).collect();
    for (id, text) in tokens.into_iter().enumerate().take(ids) {
        if !text.is_empty() {
            (texts[id], kinds[id]) = (text, NORMAL);
        }
    }
    texts[end] = tokenizer.end_of_text_name();
    for id in special.into_iter().chain([end]) {
        kinds[id] = CONTROL;
    }
    let text = |text: &str| Value::Text(text.to_owned());
    let id = Value::U32(tokenizer.end_of_text());
    Ok([
        ("model", text(MODEL)),
        ("pre", text(PRE)),
        ("tokens", Value::Array(texts.iter().map(|token| text(token)).collect())),
        ("token_type", Value::Array(kinds.into_iter().map(Value::I32).collect())),
        ("merges", Value::Array(merges.iter().map(|merge| text(merge)).collect())),
        ("bos_token_id", id.clone()),
        ("eos_token_id", id),
        ("add_bos_token", Value::Bool(false)),
    ]
    .map(|(name, value)| (format!("tokenizer.ggml.{name}"), value))
    .to_vec())
}

/// What a tokenizer is made of.
struct Parts {
    /// By id; empty where there is none.
    tokens: Vec<String>,
    merges: Vec<String>,
    special: Vec<usize>,
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
    Ok(Parts { tokens, merges: Vec::new(), special: Vec::new() })
}

/// Parts of the `tokenizers` crate's JSON.
fn of_json(text: &str) -> Result<Parts, String> {
    let json: Json = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let before = &json["pre_tokenizer"];
    let model = &json["model"];
    let is_gpt2s = model["type"] == "BPE"
        && before["type"] == "ByteLevel"
        && before["add_prefix_space"] == false
        && json["normalizer"].is_null();
    let merges = model["merges"].as_array().ok_or("the tokenizer has no merges")?;
    // Without merges it does not matter how texts are cut.
    if !is_gpt2s || (before["use_regex"] == false && !merges.is_empty()) {
        return Err("only byte-level byte-pair tokenizers that cut texts as GPT-2's does can be \
                    exported"
            .to_owned());
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
    for (token, id) in model["vocab"].as_object().ok_or("the tokenizer has no vocabulary")? {
        put(id, token).ok_or(wrong)?;
    }
    let mut special = Vec::new();
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let id = put(&added["id"], added["content"].as_str().unwrap_or_default()).ok_or(wrong)?;
        if added["special"] == true {
            special.push(id);
        }
    }
    Ok(Parts { tokens, merges, special })
}

/// The `tokenizer.json` of a file; `None` if it has no tokenizer of a kind that is known here.
///
/// # Errors
/// Keys that contradict one another, in words.
pub(super) fn json(get: impl Fn(&str) -> Option<Value>) -> Result<Option<String>, String> {
    let get = |name: &str| get(&format!("tokenizer.ggml.{name}"));
    let text = |name: &str| get(name).and_then(|value| value.text().map(str::to_owned));
    if text("model").as_deref() != Some(MODEL)
        || text("pre").is_some_and(|pre| pre != PRE && pre != "default")
    {
        return Ok(None);
    }
    let texts = |name: &str| -> Result<Vec<String>, String> {
        let value = get(name).unwrap_or(Value::Array(Vec::new()));
        let values = value.array().unwrap_or_default().iter();
        let texts: Option<Vec<_>> = values.map(|v| v.text().map(str::to_owned)).collect();
        texts.ok_or_else(|| format!("tokenizer.ggml.{name} has what is not a text"))
    };
    let (tokens, merges) = (texts("tokens")?, texts("merges")?);
    let kinds = get("token_type").unwrap_or(Value::Array(Vec::new()));
    let kind = |id: usize| match kinds.array().and_then(|kinds| kinds.get(id)) {
        Some(Value::I32(kind)) => *kind,
        _ => NORMAL,
    };
    let mut vocab = serde_json::Map::new();
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        match kind(id) {
            UNUSED => {}
            CONTROL => added.push(special_token(id, token)),
            _ => {
                if vocab.insert(token.clone(), json!(id)).is_some() {
                    return Err(format!("the token {token:?} is there twice"));
                }
            }
        }
    }
    let end =
        get("eos_token_id").and_then(|id| id.count()).and_then(|id| Some((id, tokens.get(id)?)));
    if let Some((id, token)) = end
        && kind(id) != CONTROL
    {
        added.push(special_token(id, token));
    }
    for merge in &merges {
        let parts = merge.split_once(' ').ok_or_else(|| format!("{merge:?} is no merge"))?;
        let whole = format!("{}{}", parts.0, parts.1);
        if [parts.0, parts.1, &whole].iter().any(|part| !vocab.contains_key(*part)) {
            return Err(format!("the merge {merge:?} is of or to what is no token"));
        }
    }
    Ok(Some(byte_level_json(vocab, merges, added)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{BpeTokenizer, CharTokenizer};

    const TEXT: &str = "In the  beginning\n\tGod's <|endoftext|> light, and the light.\r\n";

    fn back(tokenizer: &Tokenizer, ids: usize) -> Tokenizer {
        let keys = keys(tokenizer, ids).unwrap();
        let get = |name: &str| keys.iter().find(|(key, _)| key == name).map(|(_, v)| v.clone());
        Tokenizer::from_json(json(get).unwrap().unwrap().as_bytes()).unwrap()
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
    fn what_cuts_texts_in_another_way_is_refused() {
        let json = byte_level_json(serde_json::Map::new(), Vec::new(), Vec::new());
        let mut json: Json = serde_json::from_str(&json).unwrap();
        assert!(of_json(&json.to_string()).is_ok());
        json["pre_tokenizer"] = json!({ "type": "Whitespace" });
        assert!(of_json(&json.to_string()).is_err());
    }

    #[test]
    fn keys_that_contradict_one_another_are_refused() {
        let with = |change: fn(&mut Vec<(String, Value)>)| {
            let mut keys = keys(&Tokenizer::Bytes, 257).unwrap();
            change(&mut keys);
            let get = |name: &str| keys.iter().find(|(key, _)| key == name).map(|(_, v)| v.clone());
            json(get)
        };
        assert_eq!(with(|keys| keys[1].1 = Value::Text("qwen2".to_owned())), Ok(None));
        let twice = with(|keys| {
            let Value::Array(tokens) = &mut keys[2].1 else { return };
            tokens[1] = tokens[0].clone();
        });
        assert!(twice.unwrap_err().contains("twice"));
        let merge = with(|keys| keys[4].1 = Value::Array(vec![Value::Text("no such".to_owned())]));
        assert!(merge.unwrap_err().contains("no such"));
    }

    #[test]
    fn characters_of_several_bytes_are_refused() {
        let chars = Tokenizer::Chars(CharTokenizer::from_chars("aé".chars()));
        assert!(keys(&chars, 3).unwrap_err().contains("'é'"));
    }
}
