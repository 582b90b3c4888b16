//! Tokenizers that come with models: whose end of text is which.

use serde_json::Value;

use crate::tokenizer::{END_KEY, Tokenizer, end_of_text_guess};

/// What a model says of the token that ends its texts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    #[cfg(feature = "hf")]
    Name(String),
    Id(u64),
}

/// The text of a `tokenizer.json` for a run folder of a model of `ids` ids: as it is, or with the end
/// of text that the model names if nobody would guess it.
///
/// # Errors
/// It is no tokenizer, or has more ids, in words.
pub(crate) fn checked_tokenizer(
    text: Vec<u8>,
    end: Option<&End>,
    ids: usize,
) -> Result<Vec<u8>, String> {
    let mut json: Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    let name = match end {
        #[cfg(feature = "hf")]
        Some(End::Name(name)) => Some(name.clone()),
        Some(End::Id(id)) => token_of(&json, *id),
        None => None,
    };
    let text = match name {
        Some(name) if end_of_text_guess(&json) != Some(name.as_str()) => {
            // Indexing what is no object would panic.
            let all = json.as_object_mut().ok_or("not a usable tokenizer: not a JSON object")?;
            all.insert(END_KEY.to_owned(), name.into());
            json.to_string().into_bytes()
        }
        _ => text,
    };
    let own = Tokenizer::from_json(&text).map_err(|e| format!("not a usable tokenizer: {e}"))?;
    let own = own.vocab_size();
    if own > ids {
        return Err(format!("a tokenizer of {own} ids does not go with a model of {ids}"));
    }
    Ok(text)
}

/// The token of an id.
fn token_of(json: &Value, id: u64) -> Option<String> {
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let mut added = added.filter(|token| token["id"].as_u64() == Some(id));
    if let Some(token) = added.next() {
        return token["content"].as_str().map(str::to_owned);
    }
    let mut vocab = json["model"]["vocab"].as_object()?.iter();
    vocab.find(|(_, of)| of.as_u64() == Some(id)).map(|(token, _)| token.clone())
}
