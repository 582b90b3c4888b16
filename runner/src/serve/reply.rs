//! Replies in OpenAI's shapes, of what a request becomes: whole, or a piece at a time.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use super::events::{Event, Finish, Scored, Spelled};
use super::problem::Problem;

/// What all parts of a reply have.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Replies to messages, not continuations of texts.
    pub(super) chat: bool,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    /// Tells the model and its arithmetic from others.
    pub(super) fingerprint: String,
    pub(super) logprobs: bool,
    /// Texts.
    pub(super) choices: usize,
    /// Tokens of all prompts.
    pub(super) prompt_tokens: usize,
    pub(super) include_usage: bool,
}

/// Tokens that were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) new: usize,
    cached: usize,
    ended: usize,
}

impl Counted {
    fn add(&mut self, tokens: usize, cached: usize) {
        self.new += tokens;
        self.cached += cached;
        self.ended += 1;
    }
}

impl Shape {
    fn object(&self, streamed: bool, choices: Value, usage: Option<Value>) -> Value {
        let object = match (self.chat, streamed) {
            (false, _) => "text_completion",
            (true, false) => "chat.completion",
            (true, true) => "chat.completion.chunk",
        };
        let mut reply = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint, "choices": choices,
        });
        if let Some(usage) = usage {
            reply["usage"] = usage;
        }
        reply
    }

    fn usage(&self, counted: Counted) -> Value {
        let (prompt, new) = (self.prompt_tokens, counted.new);
        json!({
            "prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
            "prompt_tokens_details": { "cached_tokens": counted.cached.min(prompt) },
        })
    }

    /// The probabilities of tokens, null if they are not wanted.
    fn logprobs(&self, scored: &[Scored]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        if self.chat {
            let token = |Spelled { text, bytes }: &Spelled, logprob: f32| json!({"token": text, "bytes": bytes, "logprob": logprob});
            let each = scored.iter().map(|scored| {
                let mut one = token(&scored.token, scored.logprob.unwrap_or(0.0));
                let top = scored.top.iter().map(|(other, logprob)| token(other, *logprob));
                one["top_logprobs"] = top.collect();
                one
            });
            return json!({"content": each.collect::<Value>(), "refusal": null});
        }
        let top = |scored: &Scored| match scored.logprob {
            None => Value::Null,
            Some(_) => {
                let top = scored.top.iter().map(|(token, x)| (token.text.clone(), json!(x)));
                Value::Object(top.collect::<Map<_, _>>())
            }
        };
        json!({
            "tokens": scored.iter().map(|scored| &scored.token.text).collect::<Vec<_>>(),
            "token_logprobs": scored.iter().map(|scored| scored.logprob).collect::<Vec<_>>(),
            "top_logprobs": scored.iter().map(top).collect::<Vec<_>>(),
            "text_offset": scored.iter().map(|scored| scored.offset).collect::<Vec<_>>(),
        })
    }
}

/// A text, how likely its tokens were, and why it ended.
type Text = (String, Vec<Scored>, Option<Finish>);

/// A reply that is given when all of it is there.
#[derive(Debug)]
pub(super) struct Whole {
    shape: Shape,
    texts: Vec<Text>,
    counted: Counted,
}

impl Whole {
    pub(super) fn new(shape: Shape) -> Self {
        let texts = (0..shape.choices).map(|_| (String::new(), Vec::new(), None)).collect();
        Self { shape, texts, counted: Counted::default() }
    }

    /// Adds what has come.
    ///
    /// # Errors
    /// There will be no more.
    pub(super) fn add(&mut self, event: Event) -> Result<(), Problem> {
        match event {
            Event::Piece { choice, text, scored } => {
                self.texts[choice].0.push_str(&text);
                self.texts[choice].1.extend(scored);
            }
            Event::End { choice, reason, tokens, cached } => {
                self.texts[choice].2 = Some(reason);
                self.counted.add(tokens, cached);
            }
            Event::Failed(problem) => return Err(problem),
        }
        Ok(())
    }

    /// Whether all is there.
    pub(super) fn is_complete(&self) -> bool {
        self.counted.ended == self.shape.choices
    }

    /// Tokens of the prompts and new ones.
    pub(super) fn tokens(&self) -> (usize, usize) {
        (self.shape.prompt_tokens, self.counted.new)
    }

    /// The reply.
    pub(super) fn json(&self) -> Value {
        let choice = |(index, (text, scored, reason)): (usize, &Text)| {
            let reason = reason.map(Finish::name);
            let logprobs = self.shape.logprobs(scored);
            let rest = json!({"index": index, "logprobs": logprobs, "finish_reason": reason});
            let (key, value) = if self.shape.chat {
                ("message", json!({"role": "assistant", "content": text, "refusal": null}))
            } else {
                ("text", json!(text))
            };
            with(rest, key, value)
        };
        let choices = self.texts.iter().enumerate().map(choice).collect();
        self.shape.object(false, choices, Some(self.shape.usage(self.counted)))
    }
}

fn with(mut object: Value, key: &str, value: Value) -> Value {
    object[key] = value;
    object
}

/// A reply that is given as it comes, as events of a stream.
#[derive(Debug)]
pub(super) struct Streamed {
    shape: Shape,
    /// Which texts have begun.
    begun: Vec<bool>,
    counted: Counted,
}

impl Streamed {
    pub(super) fn new(shape: Shape) -> Self {
        Self { begun: vec![false; shape.choices], shape, counted: Counted::default() }
    }

    /// The events of what has come, and whether they are the last.
    pub(super) fn add(&mut self, event: Event, out: &mut VecDeque<String>) -> bool {
        match event {
            Event::Piece { choice, text, scored } => {
                self.begin(choice, out);
                let content = if self.shape.chat { json!({"content": text}) } else { json!(text) };
                let logprobs = self.shape.logprobs(&scored);
                out.push_back(self.chunk(choice, content, logprobs, None));
                false
            }
            Event::End { choice, reason, tokens, cached } => {
                self.begin(choice, out);
                self.counted.add(tokens, cached);
                let content = if self.shape.chat { json!({}) } else { json!("") };
                out.push_back(self.chunk(choice, content, Value::Null, Some(reason)));
                if self.counted.ended < self.shape.choices {
                    return false;
                }
                if self.shape.include_usage {
                    let usage = Some(self.shape.usage(self.counted));
                    out.push_back(event_of(&self.shape.object(true, json!([]), usage)));
                }
                out.push_back("data: [DONE]\n\n".to_owned());
                true
            }
            Event::Failed(problem) => {
                out.push_back(event_of(&problem.json()));
                true
            }
        }
    }

    /// Tokens of the prompts and new ones.
    pub(super) fn tokens(&self) -> (usize, usize) {
        (self.shape.prompt_tokens, self.counted.new)
    }

    /// A reply to messages begins with whose it is.
    fn begin(&mut self, choice: usize, out: &mut VecDeque<String>) {
        let begun = core::mem::replace(&mut self.begun[choice], true);
        if self.shape.chat && !begun {
            let content = json!({"role": "assistant", "content": "", "refusal": null});
            out.push_back(self.chunk(choice, content, Value::Null, None));
        }
    }

    fn chunk(
        &self,
        index: usize,
        content: Value,
        logprobs: Value,
        reason: Option<Finish>,
    ) -> String {
        let reason = reason.map(Finish::name);
        let rest = json!({"index": index, "logprobs": logprobs, "finish_reason": reason});
        let choice = with(rest, if self.shape.chat { "delta" } else { "text" }, content);
        let usage = self.shape.include_usage.then_some(Value::Null);
        event_of(&self.shape.object(true, json!([choice]), usage))
    }
}

fn event_of(value: &Value) -> String {
    format!("data: {value}\n\n")
}
