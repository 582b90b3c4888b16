//! Readers that are private to their modules, as the fuzz targets (`fuzz/targets`) call them: on bytes that anybody
//! may have written, without the model or the socket that they come with. Nobody else has a use for them.

use std::path::Path;

use crate::choices;
use crate::error::Result;

#[cfg(feature = "serve")]
pub use crate::serve::given::Given;

/// How many questions with answers to choose from a file of JSON lines has.
///
/// # Errors
/// A line that is none, by its number; no question at all.
pub fn questions(path: &Path) -> Result<usize> {
    choices::questions(&[path.display().to_string()])
}

#[cfg(feature = "chat")]
mod with_templates {
    use core::ops::Range;
    use std::path::Path;

    use crate::chat::{Dialogue, Template};
    use crate::data::instructions::Encoder;
    use crate::data::source::Source;
    use crate::error::{Error, Result};
    use crate::json::Ordered;
    use crate::settings::LossOn;
    use crate::tokenizer::Tokenizer;
    use crate::tokenizer::usage::Usage;

    fn usage(template: &str) -> Usage {
        let name = |name: &str| Some(name.to_owned());
        Usage {
            chat_template: name(template),
            bos_token: name("<s>"),
            eos_token: name("</s>"),
            ..Usage::default()
        }
    }

    /// How many examples JSON lines have for a model of bytes that has this chat template: each with its counted
    /// tokens, of which none is beyond the block.
    ///
    /// # Errors
    /// The first line that is none; no example at all.
    pub fn examples(
        lines: &[u8],
        template: &str,
        all_count: bool,
        block_size: usize,
    ) -> Result<usize> {
        let loss_on = if all_count { LossOn::All } else { LossOn::Completions };
        let (usage, origin) = (usage(template), Path::new("there"));
        let tokenizer = Tokenizer::Bytes;
        let encoder = Encoder::new(&tokenizer, (usage, origin), loss_on, "text", block_size);
        let read = encoder.read(&[Source::from_memory("lines.jsonl", lines)])?;
        for n in 0..read.examples.len() {
            let (places, counted) = (read.examples.places(n), read.examples.counted(n));
            assert!(places <= block_size && (1..=places).contains(&counted), "example {n}");
        }
        Ok(read.examples.len())
    }

    /// The text that a chat template makes of a conversation: JSON of its `messages`, or an object with these and
    /// `tools`.
    ///
    /// # Errors
    /// It is no conversation; the template is damaged or refuses it.
    pub fn templated(template: &str, conversation: &[u8]) -> Result<String> {
        let bad =
            |what: &dyn core::fmt::Display| Error::failure(format!("the conversation: {what}"));
        let json: Ordered = crate::json::from_slice(conversation).map_err(|e| bad(&e))?;
        let messages = json.get("messages").unwrap_or(&json);
        let Ordered::List(messages) = messages else { return Err(bad(&messages.kind())) };
        let mut said = Dialogue::default();
        said.hear(messages, false).map_err(|e| bad(&e))?;
        if let Some(tools) = json.get("tools") {
            said.equip(tools).map_err(|e| bad(&e))?;
        }
        let Some(template) = Template::of(usage(template), Path::new("there")) else {
            return Err(Error::failure("no template"));
        };
        said.judge(&template, false).map_err(|e| bad(&e))?;
        let compiled = template.compile()?;
        // Both ways of using it: a text, and the parts of it that a reply is.
        let text = compiled.render(&said.messages, &said.tools, true)?;
        if let Ok(parts) = crate::chat::spoken(&compiled, &said) {
            for part in parts {
                let is_there = |reply: &Range<usize>| part.text.get(reply.clone()).is_some();
                assert!(part.replies.iter().all(is_there), "{part:?}");
            }
        }
        Ok(text)
    }
}

#[cfg(feature = "chat")]
pub use with_templates::{examples, templated};
