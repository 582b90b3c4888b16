//! From the texts of a request to tokens: the tokenizer, the chat template, and the room in the context.

use std::path::Path;

use super::events::Spelled;
use super::problem::Problem;
#[cfg(feature = "chat")]
use super::request::problem;
use super::request::{Piece, Prompt};
#[cfg(feature = "chat")]
use crate::chat::{Dialogue, Template};
use crate::error;
use crate::tokenizer::Tokenizer;

/// Passes through what an assistant is said to have said, for special tokens that it spells: text made
/// for it spells one again after each.
#[cfg(feature = "chat")]
const PASSES: usize = 64;

/// How texts become tokens of a model, and how many of them it sees.
#[derive(Debug)]
pub(super) struct Texts {
    pub(super) tokenizer: Tokenizer,
    /// The tokenizer's JSON, which tells it from others.
    json: String,
    #[cfg(feature = "chat")]
    chat: Option<(Template, Tokenizer)>,
    /// Ids of the model, which may be more than the tokenizer's.
    vocab_size: usize,
    /// Tokens that the model sees.
    pub(super) context: usize,
}

impl PartialEq for Texts {
    fn eq(&self, other: &Self) -> bool {
        #[cfg(feature = "chat")]
        let same_template = {
            let template = |(template, _): &(Template, Tokenizer)| template.clone();
            self.chat.as_ref().map(template) == other.chat.as_ref().map(template)
        };
        #[cfg(not(feature = "chat"))]
        let same_template = true;
        let sizes = |texts: &Self| (texts.vocab_size, texts.context);
        self.json == other.json && sizes(self) == sizes(other) && same_template
    }
}

impl Texts {
    /// Those of a model whose tokenizer and template lie in `dir`.
    ///
    /// # Errors
    /// Names the file that is damaged.
    pub(super) fn new(
        tokenizer: Tokenizer,
        dir: &Path,
        vocab_size: usize,
        context: usize,
    ) -> error::Result<Self> {
        #[cfg(feature = "chat")]
        let chat = Template::of_folder(dir)?.map(|template| (template, tokenizer.commanding()));
        #[cfg(not(feature = "chat"))]
        let _ = dir;
        Ok(Self {
            json: tokenizer.to_json()?,
            tokenizer,
            #[cfg(feature = "chat")]
            chat,
            vocab_size,
            context,
        })
    }

    /// Whether the model answers messages.
    pub(super) fn has_chat(&self) -> bool {
        #[cfg(feature = "chat")]
        return self.chat.is_some();
        #[cfg(not(feature = "chat"))]
        false
    }

    /// The tokens of what a request wants continued, and room for `most` more behind each.
    ///
    /// # Errors
    /// What cannot be said by this model, or is too long for it.
    pub(super) fn encode(
        &self,
        prompt: &Prompt,
        most: Option<usize>,
    ) -> Result<(Vec<Vec<u32>>, Vec<usize>), Problem> {
        let (name, prompts): (_, Vec<Vec<u32>>) = match prompt {
            Prompt::Texts(pieces) => {
                let one = pieces.len() == 1;
                let name =
                    |at: usize| if one { "prompt".to_owned() } else { format!("prompt[{at}]") };
                let tokens = |(at, piece)| self.piece(&name(at), piece);
                ("prompt", pieces.iter().enumerate().map(tokens).collect::<Result<_, _>>()?)
            }
            #[cfg(feature = "chat")]
            Prompt::Messages(said) => ("messages", vec![self.conversation(said)?]),
        };
        // Of a completion OpenAI's default, of a reply all that fits.
        let usual = if name == "prompt" { 16 } else { usize::MAX };
        let room = |tokens: &Vec<u32>| {
            let (len, context) = (tokens.len(), self.context);
            let room = context.saturating_sub(len);
            // With nothing to follow a full context is as good.
            if room < usize::from(most != Some(0)) || len > context {
                let words = format!("it has {len} tokens, and the model sees {context} at a time");
                return Err(Problem::too_long(name, words));
            }
            match most {
                Some(most) if most > room => {
                    let words = format!(
                        "it has {len} tokens and max_tokens asks for {most} more, but the model sees \
                         {context} at a time: ask for at most {room}"
                    );
                    Err(Problem::too_long(name, words))
                }
                most => Ok(most.unwrap_or(usual).min(room)),
            }
        };
        let most = prompts.iter().map(room).collect::<Result<_, _>>()?;
        Ok((prompts, most))
    }

    /// The texts of prompts, for replies that begin with them.
    pub(super) fn plain(&self, prompt: &Prompt) -> Vec<String> {
        let plain = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Ids(ids) => self.tokenizer.decode(ids),
        };
        match prompt {
            Prompt::Texts(pieces) => pieces.iter().map(plain).collect(),
            #[cfg(feature = "chat")]
            Prompt::Messages(_) => Vec::new(),
        }
    }

    fn piece(&self, name: &str, piece: &Piece) -> Result<Vec<u32>, Problem> {
        let mut tokens = match piece {
            Piece::Text(text) => {
                let tokens = self.tokenizer.encode_prompt(text.as_bytes());
                tokens.map_err(|e| Problem::param(name, e))?
            }
            Piece::Ids(ids) => {
                if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
                    let words =
                        format!("the id {id} is not below the vocabulary's {}", self.vocab_size);
                    return Err(Problem::param(name, words));
                }
                ids.clone()
            }
        };
        if tokens.is_empty() {
            // Every document of the training data begins so.
            tokens.push(self.tokenizer.end_of_text());
        }
        Ok(tokens)
    }

    /// The tokens of messages by the template, with the beginning of a reply.
    #[cfg(feature = "chat")]
    fn conversation(&self, said: &Dialogue) -> Result<Vec<u32>, Problem> {
        let Some((template, commanding)) = &self.chat else {
            return Err(Problem::param(
                "messages",
                "this model has no chat template, so it was not made for conversations; \
                 /v1/completions continues a text",
            ));
        };
        said.judge(template, false).map_err(|fault| problem(&fault))?;
        let mut said = said.clone();
        for message in said.messages.iter_mut().filter(|message| message.role == "assistant") {
            let cleared = |content| commanding.without_special(content, PASSES);
            if let Some(text) = message.content.clone().and_then(cleared) {
                message.content = Some(text);
            }
        }
        if let Some(spelled) = said.spelled(&commanding.special_tokens()) {
            return Err(problem(&spelled));
        }
        let text = template.text(&said).map_err(|e| {
            Problem::param("messages", format_args!("the chat template refuses them: {e}"))
        })?;
        let tokens = commanding.encode(text.as_bytes());
        let tokens = tokens.map_err(|e| Problem::param("messages", e))?;
        if tokens.is_empty() {
            return Err(Problem::param("messages", "the chat template makes no text of them"));
        }
        Ok(tokens)
    }

    /// The text of one token.
    pub(super) fn spell(&self, id: u32) -> Spelled {
        if id == self.tokenizer.end_of_text() {
            let text = self.tokenizer.end_of_text_name();
            return Spelled { bytes: text.clone().into_bytes(), text };
        }
        let bytes = self.tokenizer.decode_bytes(&[id]);
        let text = match core::str::from_utf8(&bytes) {
            Ok(text) => text.to_owned(),
            // As OpenAI writes a part of a character.
            Err(_) => {
                let hex = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
                format!("bytes:{}", hex.collect::<String>())
            }
        };
        Spelled { text, bytes }
    }
}
