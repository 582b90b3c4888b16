//! Tokenizers of folders from before `tokenizer.json`: GPT-2's two files, which Qwen2 has as well.
//!
//! ```text
//! vocab.json              ids by tokens
//! merges.txt              a merge of two tokens on each line, the earlier the sooner
//! added_tokens.json       ids of tokens beside those of vocab.json, if there are any
//! tokenizer_config.json   the class, which decides how texts are cut into words; its special tokens
//! ```
//! They say the same as a `tokenizer.json` does, which is made of them.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value};

use super::import::file_of;
use crate::error::{Error, Result};
use crate::json;
use crate::tokenizer::{Cut, added_token, byte_char, byte_level_json, usage};

/// The file of the ids, which is named where both are meant.
pub(super) const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const ADDED: &str = "added_tokens.json";

/// The token that GPT-2's and Qwen2's classes take for their end if nothing else is said.
pub(super) const END: &str = "<|endoftext|>";

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
    let about = json::of_file(&from.join(usage::FILE_NAME))?;
    let config = json::of_file(&from.join(super::CONFIG))?;
    let Some((cut, normalizer)) = kind(&about, &config) else { return Ok(None) };

    let Ok(Value::Object(vocab)) = json::from_slice::<Value>(&vocab) else {
        return Err(bad(&vocab_path, "not a JSON object of tokens and their ids"));
    };
    check_ids(&vocab).map_err(|what| bad(&vocab_path, &what))?;
    let merges = merges_of(&merges_path, merges, &vocab)?;
    let added = added(from, &vocab, &about)?;
    check_whole(&vocab, &merges, &added).map_err(|what| bad(&merges_path, &what))?;
    let text = byte_level_json(cut, vocab, &merges, added);
    let mut all: Value =
        json::from_slice(text.as_bytes()).map_err(|e| bad(&vocab_path, &e.to_string()))?;
    all["normalizer"] = normalizer;
    Ok(Some(all.to_string().into_bytes()))
}

fn bad(path: &Path, what: &str) -> Error {
    Error::failure(format!("{}: {what}", path.display()))
}

/// How `transformers` would cut texts into words, and what it does to them before.
fn kind(about: &Value, config: &Value) -> Option<(Cut, Value)> {
    // A space before every text is another tokenizer.
    if about["add_prefix_space"] == true {
        return None;
    }
    // As AutoTokenizer looks for it: without a class the model's kind decides.
    let named = [about, config].into_iter().find_map(|from| from["tokenizer_class"].as_str());
    let class = named.map(|class| class.trim_end_matches("Fast"));
    let class = class.or(match config["model_type"].as_str() {
        Some("gpt2") => Some("GPT2Tokenizer"),
        Some("qwen2" | "qwen3") => Some("Qwen2Tokenizer"),
        _ => None,
    });
    match class? {
        "GPT2Tokenizer" => Some((Cut::Gpt2, Value::Null)),
        "Qwen2Tokenizer" => Some((Cut::Qwen2, serde_json::json!({ "type": "NFC" }))),
        _ => None,
    }
}

/// Each token has an id of its own, and each byte has a token.
fn check_ids(vocab: &Map<String, Value>) -> core::result::Result<(), String> {
    let mut seen = BTreeMap::new();
    for (token, id) in vocab {
        let Some(id) = id.as_u64() else { return Err(format!("the token {token:?} has no id")) };
        if let Some(other) = seen.insert(id, token) {
            return Err(format!("the tokens {other:?} and {token:?} have the id {id} both"));
        }
    }
    match (0..=255).map(byte_char).find(|c| !vocab.contains_key(c.encode_utf8(&mut [0; 4]))) {
        None => Ok(()),
        Some(c) => Err(format!("no token {c:?}, but each byte has one")),
    }
}

/// Tokens that no merge makes, of a tokenizer that is not damaged: names that were never added as such.
const UNMADE: usize = 256;

/// The merges make the tokens; a file of them that was cut off makes too few.
fn check_whole(
    vocab: &Map<String, Value>,
    merges: &[String],
    added: &[Value],
) -> core::result::Result<(), String> {
    let made: HashSet<String> = merges.iter().map(|merge| merge.replacen(' ', "", 1)).collect();
    let added: HashSet<&str> = added.iter().filter_map(|token| token["content"].as_str()).collect();
    let is_made = |token: &&String| {
        token.chars().count() < 2 || made.contains(*token) || added.contains(token.as_str())
    };
    let mut unmade = vocab.keys().filter(|token| !is_made(token));
    match (unmade.next(), unmade.count() + 1) {
        (Some(token), count) if count > UNMADE => Err(format!(
            "{count} tokens of {VOCAB} come of no merge, {token:?} among them: the file is not whole"
        )),
        _ => Ok(()),
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

/// Fields of a token beside the vocabulary, as `added_tokens_decoder` has them.
const FIELDS: [&str; 5] = ["special", "lstrip", "rstrip", "single_word", "normalized"];

/// The tokens beside those that merges make, by their ids. Special are those that have a role, which no text
/// turns into; the others are found in texts as they stand.
fn added(from: &Path, vocab: &Map<String, Value>, about: &Value) -> Result<Vec<Value>> {
    let special = json::of_file(&from.join(usage::SPECIAL_FILE))?;
    let name = |value: &Value| value.as_str().or(value["content"].as_str()).map(str::to_owned);
    let mut roles: Vec<String> = vec![END.to_owned()];
    for file in [about, &special] {
        let named = ["bos", "eos", "pad", "unk", "cls", "sep", "mask"];
        roles.extend(named.iter().filter_map(|role| name(&file[format!("{role}_token")])));
        for list in ["additional_special_tokens", "extra_special_tokens"] {
            roles.extend(file[list].as_array().into_iter().flatten().filter_map(name));
        }
    }
    let token = |id: u64, content: &str| {
        let is_special = roles.iter().any(|role| role == content);
        let mut token = added_token(id as usize, content, is_special);
        token["normalized"] = (!is_special).into();
        token
    };

    let mut tokens: BTreeMap<u64, Value> = BTreeMap::new();
    let path = from.join(ADDED);
    let taken: BTreeMap<u64, &String> =
        vocab.iter().filter_map(|(token, id)| Some((id.as_u64()?, token))).collect();
    match json::of_file(&path)? {
        Value::Null => {}
        Value::Object(own) => {
            for (content, id) in own {
                let id =
                    id.as_u64().ok_or_else(|| bad(&path, &format!("{content:?} has no id")))?;
                if let Some(other) = taken.get(&id).filter(|other| ***other != content) {
                    let what = format!("{content:?} has the id {id}, which is that of {other:?}");
                    return Err(bad(&path, &what));
                }
                tokens.insert(id, token(id, &content));
            }
        }
        _ => return Err(bad(&path, "not a JSON object of tokens and their ids")),
    }
    let path = from.join(usage::FILE_NAME);
    for (id, fields) in about["added_tokens_decoder"].as_object().into_iter().flatten() {
        let (Ok(number), Some(content)) = (id.parse(), fields["content"].as_str()) else {
            return Err(bad(&path, &format!("added_tokens_decoder {id:?} is no token with an id")));
        };
        let mut token = token(number, content);
        for field in FIELDS.into_iter().filter(|field| fields[*field].is_boolean()) {
            token[field] = fields[field].clone();
        }
        tokens.insert(number, token);
    }
    for role in &roles {
        if let Some(id) = vocab.get(role).and_then(Value::as_u64) {
            tokens.entry(id).or_insert_with(|| token(id, role));
        }
    }
    Ok(tokens.into_values().collect())
}
