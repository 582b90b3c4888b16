//! Chat templates: texts of messages.
//!
//! Templates are Jinja as `transformers` runs it: blocks take the line break behind them along, texts
//! have Python's methods, and `raise_exception` refuses messages in the template's words. Of messages they
//! see all fields, and they see the `tools`; those that use neither do without. `strftime_now` writes the day
//! (`day`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::machinery::{Instructions, eval, make_string_output};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind as JinjaError, Value as Jinja};

use super::day::Day;
use super::{Message, ahead, bounds, dialogue, json, weighed};
use crate::error::{Error, Result};
use crate::json::Ordered;
use crate::tokenizer::usage::Usage;

/// Most steps of a template: thousands of messages take a few hundred thousand. The library counts each
/// 64 bytes that a step makes as one more, so this bounds the memory too.
const FUEL: u64 = 600_000;

/// Most bytes that a template adds, and how often it may say messages again: tokenizers want a hundred
/// times the memory of a text.
const MOST_ADDED: usize = 256 << 10;
const MOST_REPEATED: usize = 16;

/// The template's name among those of its environment.
const NAME: &str = "chat";

/// A chat template and the names of the tokens that it may mention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    source: String,
    usage: Usage,
    /// Where it was found, for errors.
    origin: PathBuf,
}

impl Template {
    /// The template of a folder of a model; `None` if it has none.
    ///
    /// # Errors
    /// Names the file that cannot be read or is damaged.
    pub(crate) fn of_folder(dir: &Path) -> Result<Option<Self>> {
        Ok(Self::of(Usage::of_folder(dir)?, dir))
    }

    /// The template that goes with a tokenizer that was found at `origin`.
    pub(crate) fn of(mut usage: Usage, origin: &Path) -> Option<Self> {
        let source = usage.chat_template.take()?;
        Some(Self { source, usage, origin: origin.to_path_buf() })
    }

    /// Whether the template has a text that is `word`, as it has names of roles.
    pub(super) fn names(&self, word: &str) -> bool {
        let is_there = |quote: &char| self.source.contains(&format!("{quote}{word}{quote}"));
        !word.is_empty() && ['\'', '"'].iter().any(is_there)
    }

    /// The text of a conversation of today without tools, `to_reply` with the beginning of the assistant's
    /// next message.
    ///
    /// # Errors
    /// The template is damaged, does without what it wants, or refuses the messages.
    pub(crate) fn render(&self, messages: &[Message], to_reply: bool) -> Result<String> {
        let compiled = self.compiled(Day::now()).map_err(|e| self.error(&e))?;
        compiled.render(messages, &[], to_reply)
    }

    /// The text of a conversation of today with the beginning of a reply; the error does not say where the
    /// template lies.
    #[cfg(feature = "serve")]
    pub(crate) fn text(
        &self,
        said: &super::Dialogue,
    ) -> core::result::Result<String, minijinja::Error> {
        self.compiled(Day::now())?.text(&said.messages, &said.tools, true)
    }

    /// The template made ready for many conversations to learn from.
    ///
    /// # Errors
    /// The template is damaged.
    pub(crate) fn compile(&self) -> Result<Compiled<'_>> {
        self.compiled(Day::OF_EXAMPLES).map_err(|e| self.error(&e))
    }

    fn compiled(&self, day: Day) -> core::result::Result<Compiled<'_>, minijinja::Error> {
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        bounds::check(&self.source, &syntax).map_err(refusal)?;
        let steps = weighed::compile(NAME, &self.source, syntax)?;
        let mut jinja = Environment::new();
        jinja.set_fuel(Some(FUEL));
        jinja.set_unknown_method_callback(|state, value, method, args| {
            ahead::pay(state, value, method, args)?;
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
        });
        jinja.add_function("raise_exception", |text: String| -> core::result::Result<(), _> {
            Err(refusal(text))
        });
        jinja.add_function("strftime_now", move |format: &str| day.format(format).map_err(refusal));
        jinja.add_filter("tojson", json::filter);
        jinja.add_filter("trim", ahead::trim);
        // It prints all variables.
        jinja.remove_global("debug");
        Ok(Compiled { template: self, jinja, steps })
    }

    fn error(&self, cause: &minijinja::Error) -> Error {
        Error::failure(format!("{}: the chat template: {cause}", self.origin.display()))
    }
}

/// The error of a template that is not gone through, or whose text is not taken.
pub(super) fn refusal(text: String) -> minijinja::Error {
    minijinja::Error::new(JinjaError::InvalidOperation, text)
}

/// A template that has been parsed.
pub(crate) struct Compiled<'t> {
    template: &'t Template,
    jinja: Environment<'t>,
    steps: Instructions<'t>,
}

impl Compiled<'_> {
    /// The text of these messages of an assistant that may call `tools`, as [`Template::render`].
    ///
    /// # Errors
    /// As [`Template::render`].
    pub(crate) fn render(
        &self,
        messages: &[Message],
        tools: &[Ordered],
        to_reply: bool,
    ) -> Result<String> {
        self.text(messages, tools, to_reply).map_err(|e| self.template.error(&e))
    }

    /// Of a template that takes no objects as arguments of calls, the text with texts for them.
    fn text(
        &self,
        messages: &[Message],
        tools: &[Ordered],
        to_reply: bool,
    ) -> core::result::Result<String, minijinja::Error> {
        let text = |as_given| self.text_of(messages, tools, to_reply, as_given);
        text(false).or_else(|error| {
            let has_given = messages.iter().any(|message| message.calls.is_some());
            if has_given { text(true).map_err(|_| error) } else { Err(error) }
        })
    }

    fn text_of(
        &self,
        messages: &[Message],
        tools: &[Ordered],
        to_reply: bool,
        as_given: bool,
    ) -> core::result::Result<String, minijinja::Error> {
        let fields = || messages.iter().flat_map(|message| &message.more).map(|(_, field)| field);
        let said: usize = messages
            .iter()
            .map(|m| m.role.len() + m.content.as_ref().map_or(0, String::len))
            .chain(messages.iter().flat_map(|m| &m.more).map(|(name, _)| name.len()))
            .chain(fields().chain(tools).map(dialogue::bytes))
            .sum();
        let values = fields().chain(tools).map(dialogue::values).sum();
        let scales = weighed::scales(messages.len(), values, said);
        let messages: Vec<_> =
            messages.iter().map(|message| of_message(message, as_given)).collect();
        let usage = &self.template.usage;
        let token = |token: &Option<String>| Jinja::from(token.as_deref().unwrap_or_default());
        // What is not there is none, as for `transformers`.
        let tools =
            if tools.is_empty() { Jinja::from(()) } else { tools.iter().map(of_value).collect() };
        let known = [
            ("messages", Jinja::from(messages)),
            ("tools", tools),
            ("documents", Jinja::from(())),
            ("add_generation_prompt", Jinja::from(to_reply)),
            ("bos_token", token(&usage.bos_token)),
            ("eos_token", token(&usage.eos_token)),
        ];
        let known = Jinja::from_pairs(known.into_iter().chain(scales));
        let (mut rendered, blocks) = (String::new(), BTreeMap::new());
        let mut out = make_string_output(&mut rendered);
        eval(&self.jinja, &self.steps, known, &blocks, &mut out, AutoEscape::None)?;
        drop(out);
        if rendered.len() > MOST_ADDED + MOST_REPEATED * said {
            let bytes = rendered.len();
            return Err(refusal(format!("it makes {bytes} bytes of {said} of messages")));
        }
        Ok(rendered)
    }
}

/// A message as templates see it.
fn of_message(message: &Message, as_given: bool) -> Jinja {
    let Message { role, content, more, calls, .. } = message;
    let content = content.iter().map(|content| ("content", Jinja::from(content.as_str())));
    let more = more.iter().map(|(name, field)| match calls {
        Some(calls) if as_given && name == "tool_calls" => (name.as_str(), of_value(calls)),
        _ => (name.as_str(), of_value(field)),
    });
    let role = ("role", Jinja::from(role.as_str()));
    Jinja::from_pairs(core::iter::once(role).chain(content).chain(more))
}

/// A value as templates see it.
fn of_value(value: &Ordered) -> Jinja {
    match value {
        Ordered::Null => Jinja::from(()),
        Ordered::Bool(truth) => Jinja::from(*truth),
        Ordered::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => Jinja::from(number),
            (None, Some(number)) => Jinja::from(number),
            (None, None) => number.as_f64().map_or_else(|| Jinja::from(()), Jinja::from),
        },
        Ordered::Text(text) => Jinja::from(text.as_str()),
        Ordered::List(items) => items.iter().map(of_value).collect(),
        Ordered::Object(fields) => {
            Jinja::from_pairs(fields.iter().map(|(name, field)| (name.as_str(), of_value(field))))
        }
    }
}

/// What a template makes of messages.
#[cfg(test)]
pub(super) fn rendered(source: &str, messages: &[Message]) -> core::result::Result<String, String> {
    let usage = Usage { chat_template: Some(source.to_owned()), ..Usage::default() };
    let template = Template::of(usage, Path::new("there")).unwrap();
    template.render(messages, true).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As SmolLM2 has it, with line breaks as people write them.
    const CHATML: &str = "{% for message in messages %}\n\
        {% if loop.first and messages[0]['role'] != 'system' %}\n\
        {{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}\n\
        {% endif %}\n\
        {{ '<|im_start|>' + message['role'] + '\\n' + message['content'].strip() + '<|im_end|>' }}\n\
        {% endfor %}\n\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n";

    fn template(source: &str) -> Template {
        let text = |text: &str| Some(text.to_owned());
        let (bos_token, eos_token) = (text("<s>"), text("</s>"));
        let usage = Usage { chat_template: text(source), bos_token, eos_token, ..Usage::default() };
        Template::of(usage, Path::new("there")).unwrap()
    }

    #[test]
    fn messages_become_the_text_that_transformers_makes() {
        let messages = [Message::new("user", " Hi \n"), Message::new("assistant", "Hello.")];
        let text = template(CHATML).render(&messages, true).unwrap();
        let expected = "<|im_start|>system\nBe brief.<|im_end|>\n\n\
            <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n\
            <|im_start|>assistant\n";
        assert_eq!(text, expected);
        let tokens = template("{{ bos_token }}{{ messages | tojson }}{{ eos_token }}");
        let text = tokens.render(&messages[1..], false).unwrap();
        // As Python writes it.
        assert_eq!(text, "<s>[{\"role\": \"assistant\", \"content\": \"Hello.\"}]</s>");
    }

    #[test]
    fn what_a_template_refuses_and_what_is_damaged_is_told() {
        let refused = |source: &str| {
            let messages = [Message::new("user", "Hi")];
            template(source).render(&messages, true).unwrap_err().to_string()
        };
        let error = refused("{{ raise_exception('Roles must alternate') }}");
        assert!(
            error.contains("there: the chat template") && error.contains("Roles must"),
            "{error}"
        );
        assert!(refused("{% for x in %}").contains("there: the chat template"));
        assert!(refused("{{ messages[0].foo() }}").contains("foo"));
        // Nothing runs for ever.
        let forever =
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(refused(forever).contains("fuel"));
        // Nor fills the memory or the stack.
        let doubled = "{% set n = namespace(s='x') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}\
                       {% endfor %}";
        assert!(refused(doubled).contains("far larger than the messages"));
        assert!(refused("{{ 'x' * 1000000 }}").contains("1000000 bytes"));
        for sign in ["-", "not "] {
            let source = format!("{{{{ {}1 }}}}", sign.repeat(100_000));
            assert!(refused(&source).contains("words and signs"));
        }
    }
}
