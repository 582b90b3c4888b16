//! Talking with a model: messages, the template that makes a text of them, and a conversation on a
//! terminal (`talk`). Messages of data and of requests are read and judged alike (`message`, `dialogue`).
//!
//! A model that was tuned for it expects messages in a form of its own. Hugging Face's folders say which
//! in `tokenizer_config.json` or `chat_template.jinja`, llama.cpp's files among their keys: a Jinja
//! template, which goes along with a model as it is (`template`).

mod ahead;
mod bounds;
mod day;
mod dialogue;
mod json;
mod message;
#[cfg(test)]
mod published;
mod talk;
mod template;
mod turns;
mod weighed;

pub(crate) use dialogue::{Dialogue, Fault};
pub use message::Message;
pub use talk::ChatSettings;
pub(crate) use talk::talk;
pub(crate) use template::{Compiled, Template};
pub(crate) use turns::{Spoken, spoken};
