//! Instruction data: lines of JSON that become examples.
//!
//! ```text
//! {"text": "..."}                                   all of it counts, and the end
//! {"prompt": "...", "completion": "..."}            the completion and the end count
//! {"prompt": [...], "completion": [...]}            messages: those of the assistant in the completion
//! {"messages": [{"role": "...", "content": "..."}]} the assistant's messages count, and what ends them
//! {"conversations": [{"from": "...", "value": "..."}]} the same, as ShareGPT has it
//! ```
//! A line is what the first of `messages`, `conversations`, `completion` and `text` says that it has; other
//! fields are passed over, but for the `tools` beside messages, which are the chat template's. Messages are
//! read and judged as those of requests (`chat`). Special tokens are the program's and the chat template's:
//! texts, prompts and completions that spell one have it as plain text, messages that do are refused.
//!
//! A prompt is encoded as it will be when the model is asked, and what follows as it goes on from there
//! (`Tokenizer::encode_after`).

use std::path::{Path, PathBuf};
use std::thread;

use super::examples::{Example, Examples};
use super::pieces::Lines;
use super::shapes;
use super::source::{Input, Source, discover};
#[cfg(feature = "chat")]
use crate::chat::{self, Dialogue, Template};
use crate::error::{Error, Result};
use crate::json::Ordered;
use crate::pool::cpus;
use crate::settings::LossOn;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::usage::Usage;

/// Lines that are read at a time, for all threads to encode.
const LINES: usize = 4096;

/// The files of `--data` or `--val-data`, which `flag` names: of folders those with lines of JSON.
///
/// # Errors
/// A missing or empty file, a folder without such files, token shards.
pub fn sources(flag: &str, names: &[String]) -> Result<Vec<Source>> {
    let mut all = Vec::new();
    for name in names {
        let path = PathBuf::from(name);
        let Input::Text(mut found) = discover(core::slice::from_ref(&path))? else {
            return Err(Error::usage(format!(
                "{flag}: {name} holds tokens, but examples are lines of JSON"
            )));
        };
        if path.is_dir() {
            found.retain(Source::is_json_lines);
            if found.is_empty() {
                return Err(Error::failure(format!(
                    "{name}: no file of JSON lines (.jsonl or .ndjson) in this folder"
                )));
            }
        }
        all.extend(found);
    }
    Ok(all)
}

/// How lines become examples.
#[derive(Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    loss_on: LossOn,
    text_field: &'a str,
    /// Most tokens of an example.
    most: usize,
    /// What prompts begin with, and what texts do.
    begin: [Vec<u32>; 2],
    #[cfg(feature = "chat")]
    conversations: Conversations,
}

/// What messages are encoded with.
#[cfg(feature = "chat")]
#[derive(Debug)]
struct Conversations {
    commanding: Tokenizer,
    special: Vec<String>,
    template: Option<Template>,
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Read {
    /// The examples of all lines.
    pub examples: Examples,
    /// Examples up to the end of each line.
    lines: Vec<usize>,
    /// Examples that were too long and have been cut.
    pub cut: usize,
    /// Examples that were so long that nothing would count of them, and have been left out.
    pub dropped: usize,
}

impl Read {
    /// What was cut or left out of these examples, if anything was.
    #[must_use]
    pub fn cut_line(all: &[&Self], block_size: usize) -> Option<String> {
        let sum = |of: fn(&Self) -> usize| all.iter().map(|read| of(read)).sum::<usize>();
        let (cut, dropped) = (sum(|read| read.cut), sum(|read| read.dropped));
        if cut + dropped == 0 {
            return None;
        }
        let dropped_line = match dropped {
            0 => String::new(),
            n => format!(", and {n} left out, whose completions would be cut off"),
        };
        let all = sum(|read| read.examples.len()) + dropped;
        Some(format!("{cut} of {all} examples cut at block size {block_size}{dropped_line}"))
    }

    /// Takes out a share of the lines, evenly spread, for validation; at least one of two or more,
    /// unless the share is 0.
    #[must_use]
    pub fn split(&self, share: f64) -> [Examples; 2] {
        let count = self.lines.len();
        let wanted = ((count as f64 * share).round() as usize).max(usize::from(share > 0.0));
        let wanted = wanted.min(count.saturating_sub(1));
        let mut split = [Examples::default(), Examples::default()];
        let mut first = 0;
        for (i, end) in self.lines.iter().enumerate() {
            let is_taken = (i + 1) * wanted / count > i * wanted / count;
            (first..*end).for_each(|n| split[usize::from(is_taken)].push_from(&self.examples, n));
            first = *end;
        }
        split
    }
}

impl<'a> Encoder<'a> {
    /// For the model of a tokenizer whose `usage` was found at `origin`, and examples of at most
    /// `block_size` tokens and one that is only predicted.
    pub(crate) fn new(
        tokenizer: &'a Tokenizer,
        (usage, origin): (Usage, &Path),
        loss_on: LossOn,
        text_field: &'a str,
        block_size: usize,
    ) -> Self {
        let begin = tokenizer.begin_of_text();
        // Documents that models learn from are set apart by the end of text, unless their tokenizer has
        // a beginning of its own.
        let end = tokenizer.end_of_text_name();
        let is_apart = usage.bos_token.as_ref().is_none_or(|token| *token == end)
            && usage.eos_token.as_ref().is_none_or(|token| *token == end)
            && usage.chat_template.is_none();
        let of_texts = if begin.is_empty() && is_apart {
            vec![tokenizer.end_of_text()]
        } else {
            begin.clone()
        };
        #[cfg(not(feature = "chat"))]
        let _ = origin;
        Self {
            tokenizer,
            loss_on,
            text_field,
            most: block_size.saturating_add(1),
            begin: [begin, of_texts],
            #[cfg(feature = "chat")]
            conversations: Conversations {
                commanding: tokenizer.commanding(),
                special: tokenizer.special_tokens(),
                template: Template::of(usage, origin),
            },
        }
    }

    /// The examples of all lines of `sources`, on all CPUs.
    ///
    /// # Errors
    /// A file that cannot be read; the first line that is no example, with its file and number; no
    /// example at all.
    pub fn read(&self, sources: &[Source]) -> Result<Read> {
        let (mut read, mut lines) = (Read::default(), Lines::new(sources));
        let (mut texts, mut buffer) = (Vec::new(), Vec::new());
        loop {
            let origin = lines.next_line(&mut buffer)?.map(|origin| origin.to_string());
            let is_last = origin.is_none();
            if let Some(origin) = origin {
                texts.push((origin, core::mem::take(&mut buffer)));
            }
            if is_last || texts.len() == LINES {
                for examples in self.encode_all(&texts) {
                    self.take(&mut read, examples?);
                }
                texts.clear();
            }
            if is_last {
                break;
            }
        }
        if read.examples.is_empty() {
            let first =
                sources.first().map_or_else(String::new, |s| s.name().display().to_string());
            return Err(Error::failure(match read.dropped {
                0 => format!("{first}: no example in the data"),
                n => format!(
                    "{first}: each of the {n} examples has a prompt that is longer than a block, so nothing \
                     is left to learn; raise --block-size above {}",
                    self.most - 1
                ),
            }));
        }
        Ok(read)
    }

    /// The examples of each line, or why it has none.
    fn encode_all(&self, texts: &[(String, Vec<u8>)]) -> Vec<Result<Vec<Example>>> {
        let part = texts.len().div_ceil(cpus::available().max(1)).max(1);
        let encode = |texts: &[(String, Vec<u8>)]| -> Vec<Result<Vec<Example>>> {
            #[cfg(feature = "chat")]
            let template = self.conversations.template.as_ref().map(Template::compile);
            let one = |(origin, text): &(String, Vec<u8>)| {
                let line = Line {
                    encoder: self,
                    #[cfg(feature = "chat")]
                    template: template.as_ref().map(Result::as_ref),
                };
                let examples = line.examples(text);
                examples.map_err(|e| Error::failure(format!("{origin}: {e}")))
            };
            texts.iter().map(one).collect()
        };
        thread::scope(|scope| {
            let encode = &encode;
            let start = |texts| {
                let thread = thread::Builder::new().name("cllm-encoder".to_owned());
                thread.spawn_scoped(scope, move || encode(texts)).map_err(|_| texts)
            };
            let parts: Vec<_> = texts.chunks(part).map(start).collect();
            let lost = || vec![Err(Error::failure("a thread that encoded examples panicked"))];
            // Where the system starts no more threads, this one does it.
            let done = |part: core::result::Result<thread::ScopedJoinHandle<'_, _>, _>| match part {
                Ok(thread) => thread.join().unwrap_or_else(|_| lost()),
                Err(texts) => encode(texts),
            };
            parts.into_iter().flat_map(done).collect()
        })
    }

    /// Cuts and counts the examples of a line.
    fn take(&self, read: &mut Read, examples: Vec<Example>) {
        for mut example in examples {
            example.trim();
            let is_cut = example.cut(self.most);
            example.trim();
            if example.counted() == 0 {
                read.dropped += 1;
            } else {
                read.cut += usize::from(is_cut);
                read.examples.push(&example);
            }
        }
        read.lines.push(read.examples.len());
    }
}

/// One line on its way.
struct Line<'e, 'a> {
    encoder: &'e Encoder<'a>,
    #[cfg(feature = "chat")]
    template: Option<core::result::Result<&'e chat::Compiled<'e>, &'e Error>>,
}

/// Why a line is no example.
fn bad<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::failure(what))
}

impl Line<'_, '_> {
    fn examples(&self, text: &[u8]) -> Result<Vec<Example>> {
        let line: Ordered = match crate::json::from_slice(text) {
            Ok(line) => line,
            Err(e) => return bad(crate::json::line_error(text, &e)),
        };
        if !matches!(line, Ordered::Object(_)) {
            return bad(shapes::no_object(&line));
        }
        let field = self.encoder.text_field;
        for name in ["messages", "conversations"] {
            if let Some(messages) = line.given(name) {
                return self.messages(&line, &[(name, messages)]);
            }
        }
        let (prompt, completion) = (line.get("prompt"), line.get("completion"));
        if completion.is_some() || line.get(field).is_none() {
            if let (Some(Ordered::List(_)), Some(Ordered::Text(_)))
            | (Some(Ordered::Text(_)), Some(Ordered::List(_))) = (prompt, completion)
            {
                return bad(
                    "of \"prompt\" and \"completion\" one is a text and one an array: make both texts, or both \
                     arrays of messages",
                );
            }
            if let (Some(prompt @ Ordered::List(_)), Some(completion @ Ordered::List(_))) =
                (prompt, completion)
            {
                return self.messages(&line, &[("prompt", prompt), ("completion", completion)]);
            }
            if let Some(shape) = shapes::known(&line, field) {
                return bad(shape);
            }
            let completion = text_of(&line, "completion")?;
            if completion.is_empty() {
                return bad("the completion is empty, so there is nothing to learn");
            }
            return self.completion(text_of(&line, "prompt")?, completion);
        }
        match text_of(&line, field)? {
            "" => bad(format!("the field \"{field}\" is empty")),
            text => self.text(text),
        }
    }

    fn text(&self, text: &str) -> Result<Vec<Example>> {
        let Encoder { tokenizer, begin: [_, begin], most, .. } = self.encoder;
        let mut example = Example::default();
        example.push(begin, true);
        let mut ids = tokenizer.encode(text.as_bytes()).map_err(refused)?;
        // One more than is kept says that it was cut.
        ids.truncate(most.saturating_add(1));
        example.push(&ids, true);
        example.push(&[tokenizer.end_of_text()], true);
        Ok(vec![example])
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<Vec<Example>> {
        let Encoder { tokenizer, begin: [begin, _], loss_on, .. } = self.encoder;
        let counts = *loss_on == LossOn::All;
        let mut example = Example::default();
        example.push(begin, counts);
        let ids = tokenizer.encode(prompt.as_bytes()).map_err(refused)?;
        example.push(&ids, counts);
        if example.is_empty() {
            // What a model is asked with that has no prompt.
            example.push(&[tokenizer.end_of_text()], counts);
        }
        let more = tokenizer.encode_after(prompt, &ids, completion).map_err(refused)?;
        example.push(&more, true);
        example.push(&[tokenizer.end_of_text()], true);
        Ok(vec![example])
    }

    #[cfg(not(feature = "chat"))]
    fn messages(&self, _: &Ordered, _: &[(&str, &Ordered)]) -> Result<Vec<Example>> {
        bad(
            "messages want a chat template, and this program was built without its feature chat; give \
             prompt and completion as texts",
        )
    }

    /// The messages of several fields, of which only replies of the last are learnt.
    #[cfg(feature = "chat")]
    fn messages(&self, line: &Ordered, fields: &[(&str, &Ordered)]) -> Result<Vec<Example>> {
        let Conversations { special, template, .. } = &self.encoder.conversations;
        let fault = |fault: chat::Fault| {
            let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
            // Messages are counted through.
            let of = if names.len() > 1 { names.join(" and ") + ": " } else { String::new() };
            Error::failure(format!("{of}{fault}"))
        };
        let mut said = Dialogue::default();
        for (name, messages) in fields {
            let Ordered::List(list) = messages else {
                return bad(format!("the field \"{name}\" is {}, not an array", messages.kind()));
            };
            said.skip();
            said.hear(list, *name == "conversations").map_err(fault)?;
        }
        match line.given("tools") {
            None => {}
            // Tables have no lists of objects that differ in their fields.
            Some(Ordered::Text(text)) => match crate::json::from_slice(text.as_bytes()) {
                Ok(tools) => said.equip(&tools).map_err(fault)?,
                Err(e) => return bad(format!("tools: a text that is no JSON: {e}")),
            },
            Some(tools) => said.equip(tools).map_err(fault)?,
        }
        if let Some(spelled) = said.spelled(special) {
            return Err(fault(spelled));
        }
        let (Some(template), Some(compiled)) = (template, self.template) else {
            return bad(format!(
                "messages want a chat template, and the model has none in {}; give prompt and completion \
                 as texts instead",
                crate::tokenizer::usage::FILE_NAME
            ));
        };
        let learns = self.encoder.loss_on == LossOn::Completions;
        said.judge(template, learns).map_err(fault)?;
        let compiled = compiled.map_err(Clone::clone)?;
        if !learns {
            let text = compiled.render(&said.messages, &said.tools, false)?;
            let replies = core::iter::once(0..text.len()).collect();
            return Ok(vec![self.conversation(&chat::Spoken { text, replies })?]);
        }
        let texts = chat::spoken(compiled, &said)?;
        texts.iter().map(|spoken| self.conversation(spoken)).collect()
    }

    /// Of each reply what comes up to the token that ends it counts; without such a token all.
    #[cfg(feature = "chat")]
    fn conversation(&self, spoken: &chat::Spoken) -> Result<Example> {
        let tokenizer = &self.encoder.conversations.commanding;
        let all = self.encoder.loss_on == LossOn::All;
        let (mut example, mut ids, mut at) = (Example::default(), Vec::new(), 0);
        let text = &spoken.text;
        let mut go_on = |to: usize, counts: bool, example: &mut Example| -> Result<()> {
            let more = tokenizer.encode_after(&text[..at], &ids, &text[at..to]).map_err(refused)?;
            let last = more.iter().rposition(|id| tokenizer.is_end(*id)).filter(|_| !all);
            let counted = if counts { last.map_or(more.len(), |last| last + 1) } else { 0 };
            example.push(&more[..counted], true);
            example.push(&more[counted..], false);
            ids.extend(more);
            at = to;
            Ok(())
        };
        for reply in &spoken.replies {
            go_on(reply.start, false, &mut example)?;
            go_on(reply.end, true, &mut example)?;
        }
        Ok(example)
    }
}

fn refused(cause: crate::tokenizer::EncodeError) -> Error {
    Error::failure(cause.to_string())
}

/// A field that is a text.
fn text_of<'v>(line: &'v Ordered, name: &str) -> Result<&'v str> {
    match line.get(name) {
        Some(Ordered::Text(text)) => Ok(text),
        Some(other) => bad(format!("the field \"{name}\" is {}, not a text", other.kind())),
        None => bad(format!("no field \"{name}\" in this line")),
    }
}

#[cfg(all(test, feature = "bpe"))]
mod tests;
