//! Conversations that are to be learnt from or gone on with, and who may speak in them.
//!
//! The rules are the same wherever messages come from, data or requests:
//!
//! - Roles are system (which newer interfaces call developer), user, assistant and tool, and those that the
//!   chat template names. Others would be misspelt ones, which most templates write down as they are.
//! - In which order they speak, and whether the system may speak at all, is the template's to say.
//! - An assistant that is to be learnt from says something or calls tools. Of what was said before it may
//!   have been silent: models are, at times.
//! - Nobody but the template says special tokens.

use core::fmt;

use super::message::{ASSISTANT, Message};
use super::template::Template;
use crate::cli::nearest::nearest;
use crate::json::Ordered;

/// Roles that need no template to know them.
const ROLES: [&str; 4] = ["system", "user", ASSISTANT, "tool"];
/// Most values in the fields of messages and in tools, but for texts that are said: each may take as much
/// memory as a message.
const VALUES: usize = 1 << 16;
/// How deep they may lie in one another: templates are bounded too (`weighed`), and have them in lists.
const DEEPEST: usize = 24;

/// What is wrong with a conversation, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The message, counted from 0.
    message: Option<usize>,
    /// The place in it, or in the line or request; empty if it is the whole.
    path: String,
    words: String,
}

impl Fault {
    /// One in a message or beside the messages.
    pub(super) fn new(path: impl Into<String>, words: impl Into<String>) -> Self {
        // Names of fields are anybody's.
        let path: String = path.into();
        let path = if path.len() > 80 { path.chars().take(80).collect() } else { path };
        Self { message: None, path, words: words.into() }
    }

    /// A value of the wrong kind.
    pub(super) fn wrong(path: &str, expected: &str, got: &Ordered) -> Self {
        Self::new(path, format!("expected {expected}, not {}", got.kind()))
    }

    /// The same in message number `at`, counted from 0.
    fn of_message(self, at: usize) -> Self {
        Self { message: Some(at), ..self }
    }

    /// The path of what is at fault in a request, and what is wrong with it.
    #[cfg(feature = "serve")]
    pub(crate) fn parts(&self) -> (String, &str) {
        let path = match self.message {
            Some(at) if self.path.is_empty() => format!("messages[{at}]"),
            Some(at) => format!("messages[{at}].{}", self.path),
            None if self.path.is_empty() => "messages".to_owned(),
            None => self.path.clone(),
        };
        (path, &self.words)
    }
}

/// For people, who count messages from 1.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = self.message {
            write!(f, "message {}: ", at + 1)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.words)
    }
}

/// A conversation, and the tools that its assistant may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dialogue {
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: Vec<Ordered>,
    /// Values that were read besides what is said.
    values: usize,
}

impl Dialogue {
    /// These messages, without tools.
    #[cfg(test)]
    pub(crate) fn of(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }

    /// Adds messages; of `from` and `value` if they are `shared` and have no role.
    ///
    /// # Errors
    /// The first that is none, or has too much in it.
    pub(crate) fn hear(&mut self, list: &[Ordered], shared: bool) -> Result<(), Fault> {
        for value in list {
            let at = self.messages.len();
            let read = if shared { Message::shared(value) } else { Message::read(value) };
            let message = read.map_err(|fault| fault.of_message(at))?;
            for (name, field) in &message.more {
                self.bound(name, field).map_err(|fault| fault.of_message(at))?;
            }
            self.messages.push(message);
        }
        Ok(())
    }

    /// Takes tools: objects, each as whoever made it wrote it.
    ///
    /// # Errors
    /// It is no list of objects, or has too much in it.
    pub(crate) fn equip(&mut self, tools: &Ordered) -> Result<(), Fault> {
        let Ordered::List(list) = tools else {
            return Err(Fault::wrong("tools", "an array of tools", tools));
        };
        for (at, tool) in list.iter().enumerate() {
            let path = format!("tools[{at}]");
            if !matches!(tool, Ordered::Object(_)) {
                return Err(Fault::wrong(&path, "an object", tool));
            }
            self.bound(&path, tool)?;
            self.tools.push(tool.clone());
        }
        Ok(())
    }

    /// Counts the values of a field.
    fn bound(&mut self, path: &str, field: &Ordered) -> Result<(), Fault> {
        if depth(field) > DEEPEST {
            return Err(Fault::new(path, format!("values that lie more than {DEEPEST} deep")));
        }
        self.values += values(field);
        if self.values > VALUES {
            let words = format!("more than {VALUES} values in the fields of messages and in tools");
            return Err(Fault::new(path, words));
        }
        Ok(())
    }

    /// Says that replies of the messages so far are not to be learnt.
    pub(crate) fn skip(&mut self) {
        self.messages.iter_mut().for_each(|message| message.is_learnt = false);
    }

    /// Whether these messages may be said with a template, to learn from what the assistant says if
    /// `learns`.
    ///
    /// # Errors
    /// There is no message, a role that nobody knows, a reply with nothing to learn in it.
    pub(crate) fn judge(&self, template: &Template, learns: bool) -> Result<(), Fault> {
        if self.messages.is_empty() {
            return Err(Fault::new("", "there must be one message at least"));
        }
        for (at, message) in self.messages.iter().enumerate() {
            let role = &message.role;
            if !ROLES.contains(&role.as_str()) && !template.names(role) {
                let shown: String = role.chars().take(60).collect();
                let meant = nearest(role, ROLES).map_or_else(
                    || {
                        "system, user, assistant and tool speak, and whom the chat template names"
                            .to_owned()
                    },
                    |meant| format!("did you mean {meant}?"),
                );
                return Err(
                    Fault::new("role", format!("no role {shown:?}: {meant}")).of_message(at)
                );
            }
            if learns && role == ASSISTANT && message.is_learnt && message.is_empty() {
                let words = "the assistant says nothing, so there is nothing to learn";
                return Err(Fault::new("content", words).of_message(at));
            }
        }
        Ok(())
    }

    /// The first text that spells one of the tokens `special`.
    pub(crate) fn spelled(&self, special: &[String]) -> Option<Fault> {
        let found = |path: &str, text: &str| {
            let token = special.iter().find(|token| text.contains(token.as_str()))?;
            let words =
                format!("it spells {token}, which only the chat template may say; take it out");
            Some(Fault::new(path, words))
        };
        let in_message = |message: &Message| {
            let content = message.content.as_deref().unwrap_or_default();
            let mut fields = message.more.iter();
            found("role", &message.role)
                .or_else(|| found("content", content))
                .or_else(|| {
                    fields.find_map(|(name, field)| {
                        found(name, name).or_else(|| any(field, &mut |text| found(name, text)))
                    })
                })
                .or_else(|| any(message.calls.as_ref()?, &mut |text| found("tool_calls", text)))
        };
        let mut messages = self.messages.iter().enumerate();
        let of_messages =
            messages.find_map(|(at, message)| Some(in_message(message)?.of_message(at)));
        of_messages.or_else(|| {
            let mut tools = self.tools.iter().enumerate();
            tools.find_map(|(at, tool)| any(tool, &mut |text| found(&format!("tools[{at}]"), text)))
        })
    }
}

/// What the first text says of which `found` says anything, among all in a value.
fn any(value: &Ordered, found: &mut impl FnMut(&str) -> Option<Fault>) -> Option<Fault> {
    match value {
        Ordered::Text(text) => found(text),
        Ordered::List(items) => items.iter().find_map(|item| any(item, found)),
        Ordered::Object(fields) => {
            fields.iter().find_map(|(name, field)| found(name).or_else(|| any(field, found)))
        }
        _ => None,
    }
}

/// How deep values lie in this one.
fn depth(value: &Ordered) -> usize {
    match value {
        Ordered::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Ordered::Object(fields) => {
            1 + fields.iter().map(|(_, field)| depth(field)).max().unwrap_or(0)
        }
        _ => 0,
    }
}

/// How many values there are in this one, with itself and names.
pub(super) fn values(value: &Ordered) -> usize {
    match value {
        Ordered::List(items) => 1 + items.iter().map(values).sum::<usize>(),
        Ordered::Object(fields) => {
            1 + fields.iter().map(|(_, field)| 1 + values(field)).sum::<usize>()
        }
        _ => 1,
    }
}

/// About how many bytes a template needs to write this value once.
pub(super) fn bytes(value: &Ordered) -> usize {
    match value {
        Ordered::Text(text) => 2 + text.len(),
        Ordered::List(items) => 2 + items.iter().map(bytes).sum::<usize>(),
        Ordered::Object(fields) => {
            2 + fields.iter().map(|(name, field)| 4 + name.len() + bytes(field)).sum::<usize>()
        }
        Ordered::Null | Ordered::Bool(_) | Ordered::Number(_) => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::usage::Usage;
    use std::path::Path;

    fn value(text: &str) -> Ordered {
        serde_json::from_str(text).unwrap()
    }

    fn dialogue(messages: &str, tools: &str) -> Result<Dialogue, Fault> {
        let mut dialogue = Dialogue::default();
        let Ordered::List(list) = value(messages) else { panic!("{messages}") };
        dialogue.hear(&list, false)?;
        dialogue.equip(&value(tools))?;
        Ok(dialogue)
    }

    fn judged(source: &str, messages: &str, learns: bool) -> Result<(), String> {
        let usage = Usage { chat_template: Some(source.to_owned()), ..Usage::default() };
        let template = Template::of(usage, Path::new("there")).unwrap();
        let judged = dialogue(messages, "[]").and_then(|said| said.judge(&template, learns));
        judged.map_err(|fault| fault.to_string())
    }

    #[test]
    fn roles_are_known_or_named_by_the_template() {
        let plain = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}";
        let one = |role: &str| format!(r#"[{{"role": "{role}", "content": "a"}}]"#);
        for role in ["system", "developer", "user", "assistant", "tool"] {
            assert_eq!(judged(plain, &one(role), true), Ok(()), "{role}");
        }
        let error = judged(plain, &one("asistant"), true).unwrap_err();
        assert_eq!(error, "message 1: role: no role \"asistant\": did you mean assistant?");
        let error = judged(plain, &one("narrator"), false).unwrap_err();
        assert!(error.contains("whom the chat template names"), "{error}");
        for quote in ['\'', '"'] {
            let knows =
                format!("{{% if messages[0].role == {quote}narrator{quote} %}}{{% endif %}}");
            assert_eq!(judged(&knows, &one("narrator"), false), Ok(()));
        }
        assert!(judged("{{ '' }}", &one(""), false).is_err());
        // A name in a name is none.
        assert!(judged("{{ 'narrators' }}", &one("narrator"), false).is_err());
        // Where the system speaks is the template's to say.
        let late = r#"[{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]"#;
        assert_eq!(judged(plain, late, false), Ok(()));
        assert!(judged(plain, "[]", false).unwrap_err().contains("one message at least"));
    }

    #[test]
    fn who_is_to_be_learnt_from_says_something() {
        let silent = r#"[{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]"#;
        assert_eq!(judged("", silent, false), Ok(()));
        let error = judged("", silent, true).unwrap_err();
        assert!(error.starts_with("message 2: content: the assistant says nothing"), "{error}");
        assert_eq!(judged("", &silent.replace("\"\"}]", "\"\", \"weight\": 0}]"), true), Ok(()));
        let calls = silent.replace("\"\"}]", "\"\", \"tool_calls\": [{}]}]");
        assert_eq!(judged("", &calls, true), Ok(()));
        let mut skipped = dialogue(silent, "[]").unwrap();
        skipped.skip();
        assert!(skipped.messages.iter().all(|message| !message.is_learnt));
    }

    #[test]
    fn special_tokens_are_found_wherever_they_are() {
        let special = ["<s>".to_owned(), "<|im_end|>".to_owned()];
        let told = |message: &str, tools: &str| {
            let messages = format!(r#"[{{"role": "user", "content": "a"}}, {message}]"#);
            dialogue(&messages, tools).unwrap().spelled(&special).map(|fault| fault.to_string())
        };
        let fine = r#"{"role": "tool", "name": "f", "content": "<s"}"#;
        assert_eq!(told(fine, r#"[{"name": "<"}]"#), None);
        for (message, tools, place) in [
            (r#"{"role": "<s>", "content": "a"}"#, "[]", "message 2: role: it spells <s>"),
            (
                r#"{"role": "user", "content": "a<|im_end|>"}"#,
                "[]",
                "message 2: content: it spells <|im_end|>",
            ),
            (
                r#"{"role": "tool", "content": "a", "name": "<s>"}"#,
                "[]",
                "message 2: name: it spells <s>",
            ),
            (
                r#"{"role": "tool", "content": "a", "<s>": 1}"#,
                "[]",
                "message 2: <s>: it spells <s>",
            ),
            (
                // Only the object spells it, and only the text.
                r#"{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{\"a\": \"\\u003cs>\"}"}]}"#,
                "[]",
                "message 2: tool_calls: it spells <s>",
            ),
            (
                r#"{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{\"<s>\": 1, \"<s>\": 2}"}]}"#,
                "[]",
                "message 2: tool_calls: it spells <s>",
            ),
            (fine, r#"[{}, {"a": [1, {"b": "<s>"}]}]"#, "tools[1]: it spells <s>"),
            (fine, r#"[{"a<s>": 1}]"#, "tools[0]: it spells <s>"),
        ] {
            let fault = told(message, tools).unwrap_or_default();
            assert!(fault.starts_with(place), "{message} {tools}: {fault}");
        }
    }

    #[test]
    fn there_is_an_end_to_fields_and_tools() {
        let talk = r#"[{"role": "user", "content": "a"}]"#;
        let refused =
            |messages: &str, tools: &str| dialogue(messages, tools).unwrap_err().to_string();
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        let with = |field: &str| format!(r#"[{{"role": "user", "content": "a", "x": {field}}}]"#);
        assert!(dialogue(&with(&nested(24)), "[]").is_ok());
        let error = refused(&with(&nested(25)), "[]");
        assert_eq!(error, "message 1: x: values that lie more than 24 deep");
        let error = refused(talk, &format!(r#"[{{"a": {}}}]"#, nested(24)));
        assert_eq!(error, "tools[0]: values that lie more than 24 deep");
        let many = format!("[{}0]", "0,".repeat(VALUES - 2));
        assert!(dialogue(&with(&many), "[]").is_ok());
        assert!(refused(&with(&many), "[{}]").starts_with("tools[0]: more than 65536 values"));
        assert!(
            refused(&with(&many.replace("[0", "[{}, 0")), "[]").starts_with("message 1: x: more")
        );
        assert_eq!(refused(talk, "{}"), "tools: expected an array of tools, not an object");
        assert_eq!(refused(talk, "[{}, 3]"), "tools[1]: expected an object, not a number");
        let value = value(r#"{"a": [1, "bc", null], "d": {}}"#);
        assert_eq!((values(&value), depth(&value), bytes(&value)), (8, 2, 28));
        assert_eq!(dialogue(talk, "[{}]").unwrap().tools.len(), 1);
    }

    #[cfg(feature = "serve")]
    #[test]
    fn faults_of_requests_have_paths() {
        let fault = Fault::new("content[1]", "so");
        assert_eq!(fault.parts(), ("content[1]".to_owned(), "so"));
        assert_eq!(fault.of_message(2).parts().0, "messages[2].content[1]");
        assert_eq!(Fault::new("", "so").of_message(0).parts().0, "messages[0]");
        assert_eq!(Fault::new("", "so").parts().0, "messages");
    }
}
