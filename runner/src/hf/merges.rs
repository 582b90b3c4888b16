//! Tokenizers of folders from before `tokenizer.json`: GPT-2's two files, which Qwen2 has as well.
//!
//! ```text
//! vocab.json              ids by tokens
//! merges.txt              a merge of two tokens on each line, the earlier the sooner
//! added_tokens.json       ids of tokens beside those of vocab.json, if there are any
//! tokenizer_config.json   the class, which decides how texts are cut into words; its special tokens
//! ```
//! They say the same as a `tokenizer.json` does, which is made of them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::import::file_of;
use crate::error::{Error, Result};
use crate::tokenizer::{Cut, added_token, byte_level_json, usage};

/// The file of the ids, which is named where both are meant.
pub(super) const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const ADDED: &str = "added_tokens.json";

/// The token that GPT-2's and Qwen2's classes take for their end if nothing else is said.
const END: &str = "<|endoftext|>";

/// The text of a `tokenizer.json` that says what the older files of the folder `from` say; `None` if it has
/// none, or those of another kind of tokenizer.
///
/// # Errors
/// Names the file that cannot be read, and what in it is damaged.
pub(super) fn read(from: &Path) -> Result<Option<Vec<u8>>> {
    let (vocab_path, merges_path) = (from.join(VOCAB), from.join(MERGES));
    let (Some(vocab), Some(merges)) = (file_of(&vocab_path)?, file_of(&merges_path)?) else {
        return Ok(None);
    };
    let about = parsed(&from.join(usage::FILE_NAME))?;
    let config = parsed(&from.join(super::CONFIG))?;
    let Some((cut, normalizer)) = kind(&about, &config) else { return Ok(None) };

    let Ok(Value::Object(vocab)) = crate::json::from_slice::<Value>(&vocab) else {
        return Err(bad(&vocab_path, "not a JSON object of tokens and their ids"));
    };
    if let Some((token, _)) = vocab.iter().find(|(_, id)| id.as_u64().is_none()) {
        return Err(bad(&vocab_path, &format!("the token {token:?} has no id")));
    }
    let merges = merges_of(&merges_path, merges, &vocab)?;
    let added = added(from, &vocab, &about)?;
    let text = byte_level_json(cut, vocab, &merges, added);
    let mut all: Value =
        crate::json::from_slice(text.as_bytes()).map_err(|e| bad(&vocab_path, &e.to_string()))?;
    all["normalizer"] = normalizer;
    Ok(Some(all.to_string().into_bytes()))
}

fn bad(path: &Path, what: &str) -> Error {
    Error::failure(format!("{}: {what}", path.display()))
}

/// A JSON file; null if it is not there.
fn parsed(path: &Path) -> Result<Value> {
    let Some(text) = file_of(path)? else { return Ok(Value::Null) };
    crate::json::from_slice(&text).map_err(|e| bad(path, &e.to_string()))
}

/// How `transformers` would cut texts into words, and what it does to them before.
fn kind(about: &Value, config: &Value) -> Option<(Cut, Value)> {
    // A space before every text is another tokenizer.
    if about["add_prefix_space"] == true {
        return None;
    }
    let class = about["tokenizer_class"].as_str().map(|class| class.trim_end_matches("Fast"));
    // Without a class the model's kind decides.
    let class = class.or(match config["model_type"].as_str()? {
        "gpt2" => Some("GPT2Tokenizer"),
        "qwen2" | "qwen3" => Some("Qwen2Tokenizer"),
        _ => None,
    });
    match class? {
        "GPT2Tokenizer" => Some((Cut::Gpt2, Value::Null)),
        "Qwen2Tokenizer" => Some((Cut::Qwen2, serde_json::json!({ "type": "NFC" }))),
        _ => None,
    }
}

/// The merges, each of tokens that there are.
fn merges_of(path: &Path, text: Vec<u8>, vocab: &Map<String, Value>) -> Result<Vec<String>> {
    let text = String::from_utf8(text).map_err(|_| bad(path, "no UTF-8 text"))?;
    let mut merges = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        // The first line tells the version.
        if line.is_empty() || number == 1 && line.starts_with("#version") {
            continue;
        }
        let is_known = line.split_once(' ').is_some_and(|(first, second)| {
            [first, second, &format!("{first}{second}")]
                .iter()
                .all(|part| vocab.contains_key(*part))
        });
        if !is_known {
            let what = format!("line {number}: {line:?} is no merge of tokens in {VOCAB}");
            return Err(bad(path, &what));
        }
        merges.push(line.to_owned());
    }
    Ok(merges)
}

/// The tokens that no text turns into unless it spells them.
fn added(from: &Path, vocab: &Map<String, Value>, about: &Value) -> Result<Vec<Value>> {
    let mut tokens: BTreeMap<u64, (String, bool)> = BTreeMap::new();
    let path = from.join(ADDED);
    if let Value::Object(own) = parsed(&path)? {
        for (token, id) in own {
            let id = id.as_u64().ok_or_else(|| bad(&path, &format!("{token:?} has no id")))?;
            tokens.insert(id, (token, true));
        }
    }
    for (id, token) in about["added_tokens_decoder"].as_object().into_iter().flatten() {
        if let (Ok(id), Some(content)) = (id.parse(), token["content"].as_str()) {
            let is_special = token["special"].as_bool().unwrap_or(true);
            tokens.insert(id, (content.to_owned(), is_special));
        }
    }
    let name = |value: &Value| value.as_str().or(value["content"].as_str()).map(str::to_owned);
    let roles = ["bos_token", "eos_token", "pad_token", "unk_token"].into_iter();
    let more = about["additional_special_tokens"].as_array().into_iter().flatten();
    let named = roles.filter_map(|role| name(&about[role])).chain(more.filter_map(name));
    for token in named.chain([END.to_owned()]) {
        if let Some(id) = vocab.get(&token).and_then(Value::as_u64) {
            tokens.entry(id).or_insert((token, true));
        }
    }
    let tokens = tokens.into_iter();
    Ok(tokens.map(|(id, (token, is))| added_token(id as usize, &token, is)).collect())
}
