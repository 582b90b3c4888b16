//! Tokenizers that come with models: whose end of text is which.

use serde_json::Value;

use crate::tokenizer::{END_KEY, OTHER_ENDS_KEY, Tokenizer, behind, end_of_text_guess};

/// Most other ends: chat models have one or two.
const MOST_ENDS: usize = 64;

/// What a model says of the token that ends its texts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    #[cfg(feature = "hf")]
    Name(String),
    Id(u64),
}

/// What a model says of the tokens around its texts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Around {
    pub(crate) end: Option<End>,
    /// Ids of all tokens that end a text, or what is said; the first may be the end of text.
    pub(crate) ends: Vec<u64>,
    /// The token that texts begin with, and whether they do; `None` if that is left to the tokenizer.
    pub(crate) begin: Option<(End, bool)>,
}

/// The text of a `tokenizer.json` for a run folder of a model of `ids` ids: as it is, or with the ends
/// that the model names if nobody would guess them, and the beginning that it says.
///
/// # Errors
/// It is no tokenizer, or has more ids, in words.
pub(crate) fn checked_tokenizer(
    text: Vec<u8>,
    around: &Around,
    ids: usize,
) -> Result<Vec<u8>, String> {
    if around.ends.len() > MOST_ENDS {
        return Err(format!("{} tokens that end a text: at most {MOST_ENDS}", around.ends.len()));
    }
    let mut json: Value = crate::json::from_slice(&text).map_err(|e| e.to_string())?;
    let name = |json: &Value, end: &End| match end {
        #[cfg(feature = "hf")]
        End::Name(name) => Some(name.clone()),
        End::Id(id) => token_of(json, *id),
    };
    let end = around.end.as_ref().and_then(|end| name(&json, end));
    let guess = end_of_text_guess(&json).map(str::to_owned);
    let is_end = |token: &String| end.as_ref().or(guess.as_ref()) == Some(token);
    let others = around.ends.iter().filter_map(|id| token_of(&json, *id));
    let mut others: Vec<String> = others.filter(|token| !is_end(token)).collect();
    others.dedup();
    let mut said = Vec::new();
    if let Some(end) = end.filter(|end| guess.as_ref() != Some(end)) {
        said.push((END_KEY, Value::from(end)));
    }
    if !others.is_empty() {
        said.push((OTHER_ENDS_KEY, Value::from(others)));
    }
    let usable = |text: &[u8]| {
        Tokenizer::from_json(text).map_err(|e| format!("not a usable tokenizer: {e}"))
    };
    if let Some((begin, is_put)) = &around.begin
        && let Some(token) = name(&json, begin)
    {
        let own = usable(&text)?;
        let id = own.id_of(&token).filter(|_| own.begin_of_text().is_empty() == *is_put);
        if let Some(id) = id {
            said.push(("post_processor", if *is_put { behind(&token, id) } else { Value::Null }));
        }
    }
    let text = if said.is_empty() {
        text
    } else {
        // Indexing what is no object would panic.
        let all = json.as_object_mut().ok_or("not a usable tokenizer: not a JSON object")?;
        all.extend(said.into_iter().map(|(key, value)| (key.to_owned(), value)));
        json.to_string().into_bytes()
    };
    // It takes several times the memory of the text, and what is parsed next as much.
    drop(json);
    let own = usable(&text)?.vocab_size();
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
