//! Talking with a model: messages, the template that makes a text of them, and a conversation on a
//! terminal (`talk`).
//!
//! A model that was tuned for it expects messages in a form of its own. Hugging Face's folders say which
//! in `tokenizer_config.json` or `chat_template.jinja`, llama.cpp's files among their keys: a Jinja
//! template, which goes along with a model as it is (`template`).

mod bounds;
mod json;
mod talk;
mod template;
mod turns;
mod weighed;

pub use talk::ChatSettings;
pub(crate) use talk::talk;
pub(crate) use template::{Compiled, Template};
pub(crate) use turns::{Spoken, spoken};

use serde::{Deserialize, Serialize};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`, or what else a template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    #[must_use]
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}
