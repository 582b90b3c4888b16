//! How a tokenizer is used: the tokens around texts, the template of conversations, and what a model's
//! makers advise for generation.
//!
//! Folders of `transformers` have that in `tokenizer_config.json` and `generation_config.json`, newer ones
//! the template in a file of its own; a run folder has the first two with what matters here, so that
//! whoever exports the model gives it on.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files;

/// File that says it, beside the tokenizer.
pub(crate) const FILE_NAME: &str = "tokenizer_config.json";
/// File of what is advised for generation, and of all tokens that end a text.
pub(crate) const GENERATION: &str = "generation_config.json";
/// File that older versions of `transformers` put the tokens into.
pub(crate) const SPECIAL_FILE: &str = "special_tokens_map.json";
/// File that newer versions of `transformers` put the template into.
pub(crate) const TEMPLATE_FILE: &str = "chat_template.jinja";

/// How a model's tokenizer is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Jinja that makes a text of messages.
    pub(crate) chat_template: Option<String>,
    /// The token that every text begins with, if there is one.
    pub(crate) bos_token: Option<String>,
    /// The token that ends a text or a reply.
    pub(crate) eos_token: Option<String>,
    /// The token that fills short texts of a batch up, which other programs want; nothing here does.
    pub(crate) pad_token: Option<String>,
    /// All of [`GENERATION`], for other programs.
    pub(crate) generation: Map<String, Value>,
}

impl Usage {
    /// What a folder says; nothing of what it does not.
    ///
    /// # Errors
    /// Names the file that cannot be read or is damaged.
    pub(crate) fn of_folder(dir: &Path) -> Result<Self> {
        let json = |name: &str| crate::json::of_file(&dir.join(name));
        let (config, special) = (json(FILE_NAME)?, json(SPECIAL_FILE)?);
        let token = |name: &str| {
            let text =
                |token: &Value| token.as_str().or(token["content"].as_str()).map(str::to_owned);
            text(&config[name]).or_else(|| text(&special[name]))
        };
        let own = read(&dir.join(TEMPLATE_FILE))?;
        let of_config = || of_config(&config["chat_template"]).map(str::to_owned);
        Ok(Self {
            chat_template: own.or_else(of_config),
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            pad_token: token("pad_token"),
            generation: match json(GENERATION)? {
                Value::Object(keys) => keys,
                _ => Map::new(),
            },
        })
    }

    /// The keys of [`FILE_NAME`] that say it.
    pub(crate) fn keys(&self) -> Map<String, Value> {
        let keys = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("pad_token", &self.pad_token),
            ("chat_template", &self.chat_template),
        ];
        let said = keys.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        said.map(|(key, value)| (key.to_owned(), json!(value))).collect()
    }

    /// Writes the files that [`Usage::of_folder`] reads it from again, those that say anything.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        let files = [(FILE_NAME, self.keys()), (GENERATION, self.generation.clone())];
        for (name, keys) in files.into_iter().filter(|(_, keys)| !keys.is_empty()) {
            let text = format!("{:#}\n", Value::Object(keys));
            files::write_atomic(&dir.join(name), text.as_bytes())?;
        }
        Ok(())
    }
}

/// A file's text; `None` if it is not there.
fn read(path: &Path) -> Result<Option<String>> {
    match files::read_text(path, u64::MAX) {
        Ok(text) => Ok(Some(text)),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("read", path, &cause)),
    }
}

/// One template, or of several named ones the usual one.
fn of_config(value: &Value) -> Option<&str> {
    let named = |name: &str| {
        let all = value.as_array()?.iter();
        all.filter(|one| one["name"] == name).find_map(|one| one["template"].as_str())
    };
    value.as_str().or_else(|| named("default"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn folders_say_it_in_either_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Usage::of_folder(dir.path()), Ok(Usage::default()));
        Usage::default().save(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let text = |text: &str| Some(text.to_owned());
        let advised = json!({"eos_token_id": [2, 7], "temperature": 0.6});
        let all = Usage {
            chat_template: text("t"),
            bos_token: text("<s>"),
            eos_token: None,
            pad_token: text("<pad>"),
            generation: advised.as_object().unwrap().clone(),
        };
        all.save(dir.path()).unwrap();
        assert_eq!(Usage::of_folder(dir.path()), Ok(all));
        // As transformers writes tokens and several templates.
        put(
            FILE_NAME,
            r#"{"eos_token": {"content": "</s>"}, "bos_token": null,
                "chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]}"#,
        );
        let found = Usage::of_folder(dir.path()).unwrap();
        assert_eq!((found.chat_template, found.bos_token), (text("d"), None));
        assert_eq!(found.eos_token, text("</s>"));
        put(SPECIAL_FILE, r#"{"eos_token": "<other>", "pad_token": {"content": "<pad>"}}"#);
        let found = Usage::of_folder(dir.path()).unwrap();
        assert_eq!((found.eos_token, found.pad_token), (text("</s>"), text("<pad>")));
        put(TEMPLATE_FILE, "own");
        assert_eq!(Usage::of_folder(dir.path()).unwrap().chat_template, text("own"));
        put(FILE_NAME, "{");
        assert!(Usage::of_folder(dir.path()).unwrap_err().to_string().contains(FILE_NAME));
    }
}
