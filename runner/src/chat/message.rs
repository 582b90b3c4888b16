//! Messages as other programs write them: OpenAI's interface, and the data of `transformers` and TRL.
//!
//! ```text
//! {"role": "user", "content": "..."}
//! {"role": "user", "content": [{"type": "text", "text": "..."}, ...]}
//! {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {...}}]}
//! {"role": "tool", "tool_call_id": "...", "name": "...", "content": "..."}
//! {"from": "gpt", "value": "..."}                                         ShareGPT
//! ```
//! Data and requests are read here alike. Who speaks is judged in `dialogue`, by the template.
//!
//! - The texts of several parts are put together without anything between them, as templates that know
//!   parts write them one after the other.
//! - Other fields are the template's. Those that are null are left out: tables have every field in every
//!   row, and templates ask whether one is there.
//! - The arguments of a call are a text of JSON in OpenAI's interface, and `transformers` hands them over
//!   as they are; but templates write them by `tojson`, which would make a quoted text of a text. So a text
//!   is read, and templates get the object that they are made for. Those that put the text itself beside
//!   others refuse an object, and get the text.

use super::dialogue::Fault;
use crate::json::{self, Ordered};

/// Who the model speaks as.
pub(super) const ASSISTANT: &str = "assistant";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or `tool`, or who else a template knows.
    pub role: String,
    /// What is said, if anything is: who calls tools may say nothing.
    pub content: Option<String>,
    /// The other fields, and a content of null, in their order.
    pub(super) more: Vec<(String, Ordered)>,
    /// The calls of tools as they were given, if their arguments were texts.
    pub(super) calls: Option<Ordered>,
    /// Whether it is to be learnt, if the assistant says it.
    pub(super) is_learnt: bool,
}

impl Message {
    /// A message of `role` that says `content`.
    #[must_use]
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: role.to_owned(),
            content: Some(content.into()),
            more: Vec::new(),
            calls: None,
            is_learnt: true,
        }
    }

    /// The message of an object.
    ///
    /// # Errors
    /// A field that is missing or of another kind, by its path in the message.
    pub(super) fn read(value: &Ordered) -> Result<Self, Fault> {
        let Ordered::Object(fields) = value else {
            return Err(Fault::wrong("", "an object of role and content", value));
        };
        let mut message = Self {
            // The newer name of the same.
            role: match text(value, "role")? {
                "developer" => "system".to_owned(),
                role => role.to_owned(),
            },
            content: content(value)?,
            more: Vec::new(),
            calls: None,
            is_learnt: true,
        };
        for (name, field) in fields {
            match name.as_str() {
                "role" => {}
                "content" if *field != Ordered::Null || message.content.is_some() => {}
                // As OpenAI's own data say it.
                "weight" if message.role == ASSISTANT => {
                    message.is_learnt = match field {
                        Ordered::Null => true,
                        Ordered::Number(weight) if weight.as_f64() == Some(1.0) => true,
                        Ordered::Number(weight) if weight.as_f64() == Some(0.0) => false,
                        other => return Err(Fault::wrong("weight", "0 or 1", other)),
                    };
                }
                "tool_calls" => {
                    let calls = calls(field)?;
                    if calls.as_ref().is_some_and(|calls| calls != field) {
                        message.calls = Some(field.clone());
                    }
                    message.more.extend(calls.map(|calls| (name.clone(), calls)));
                }
                _ if *field == Ordered::Null && name != "content" => {}
                _ => message.more.push((name.clone(), field.clone())),
            }
        }
        if message.content.is_none() && !(message.role == ASSISTANT && message.calls_tools()) {
            let content = value.get("content").unwrap_or(&Ordered::Null);
            let expected = if message.role == ASSISTANT {
                "a text or an array of parts, or else tool_calls"
            } else {
                "a text or an array of parts"
            };
            return Err(Fault::wrong("content", expected, content));
        }
        Ok(message)
    }

    /// The message of an object of `from` and `value`, as ShareGPT has them; others have their conversations
    /// with `role` and `content`.
    ///
    /// # Errors
    /// As [`Message::read`].
    pub(super) fn shared(value: &Ordered) -> Result<Self, Fault> {
        if !matches!(value, Ordered::Object(_)) || value.get("role").is_some() {
            return Self::read(value);
        }
        let role = match text(value, "from")? {
            "human" => "user",
            "gpt" | "chatgpt" | "model" => ASSISTANT,
            "observation" => "tool",
            other => other,
        };
        Ok(Self::new(role, text(value, "value")?))
    }

    /// Whether it calls tools.
    pub(super) fn calls_tools(&self) -> bool {
        self.more.iter().any(|(name, _)| name == "tool_calls")
    }

    /// Whether nothing is said, and no tool called.
    pub(super) fn is_empty(&self) -> bool {
        self.content.as_ref().is_none_or(String::is_empty) && !self.calls_tools()
    }
}

/// A field that is a text.
fn text<'v>(value: &'v Ordered, name: &str) -> Result<&'v str, Fault> {
    match value.get(name) {
        Some(Ordered::Text(text)) => Ok(text),
        Some(other) => Err(Fault::wrong(name, "a text", other)),
        None => Err(Fault::new("", format!("no field \"{name}\""))),
    }
}

/// The content of a message: a text, or parts of one.
fn content(message: &Ordered) -> Result<Option<String>, Fault> {
    let parts = match message.get("content") {
        None | Some(Ordered::Null) => return Ok(None),
        Some(Ordered::Text(text)) => return Ok(Some(text.clone())),
        Some(Ordered::List(parts)) => parts,
        Some(other) => return Err(Fault::wrong("content", "a text or an array of parts", other)),
    };
    let mut text = String::new();
    for (at, part) in parts.iter().enumerate() {
        let path = format!("content[{at}]");
        match (part.get("type"), part.get("text")) {
            (Some(Ordered::Text(kind)), Some(Ordered::Text(part))) if kind == "text" => {
                text.push_str(part);
            }
            (Some(Ordered::Text(kind)), part) if kind == "text" => {
                let part = part.unwrap_or(&Ordered::Null);
                return Err(Fault::wrong(&format!("{path}.text"), "a text", part));
            }
            (Some(Ordered::Text(kind)), _) => {
                let kind: String = kind.chars().take(60).collect();
                let words = format!(
                    "a part of type {kind:?}, but models here read only those of type \"text\""
                );
                return Err(Fault::new(path, words));
            }
            _ => return Err(Fault::wrong(&path, "an object of type and text", part)),
        }
    }
    Ok(Some(text))
}

/// The calls of an assistant with their arguments as objects; none, if there are none.
fn calls(value: &Ordered) -> Result<Option<Ordered>, Fault> {
    let calls = match value {
        Ordered::Null => return Ok(None),
        Ordered::List(calls) if calls.is_empty() => return Ok(None),
        Ordered::List(calls) => calls,
        other => return Err(Fault::wrong("tool_calls", "an array of calls", other)),
    };
    let call = |(at, call): (usize, &Ordered)| {
        let path = format!("tool_calls[{at}]");
        let mut call = match call {
            Ordered::Object(_) => call.clone(),
            other => return Err(Fault::wrong(&path, "an object", other)),
        };
        // Some write the function itself.
        settle(&mut call, &path)?;
        if let Ordered::Object(fields) = &mut call
            && let Some((_, function)) = fields.iter_mut().rfind(|(name, _)| name == "function")
        {
            settle(function, &format!("{path}.function"))?;
        }
        Ok(call)
    };
    let calls = calls.iter().enumerate().map(call).collect::<Result<_, _>>()?;
    Ok(Some(Ordered::List(calls)))
}

/// Makes an object of the arguments of a function, if they are a text.
fn settle(function: &mut Ordered, path: &str) -> Result<(), Fault> {
    let Ordered::Object(fields) = function else { return Ok(()) };
    let Some((_, arguments)) = fields.iter_mut().rfind(|(name, _)| name == "arguments") else {
        return Ok(());
    };
    let Ordered::Text(text) = &*arguments else { return Ok(()) };
    // Who calls a function without any writes nothing.
    let text = if text.trim().is_empty() { "{}" } else { text };
    let fault = |words: String| Err(Fault::new(format!("{path}.arguments"), words));
    *arguments = match json::from_slice(text.as_bytes()) {
        Ok(object @ Ordered::Object(_)) => object,
        Ok(other) => {
            return fault(format!("a text of JSON that is {}, not an object", other.kind()));
        }
        Err(cause) => return fault(format!("a text that is no object of JSON: {cause}")),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Message, String> {
        Message::read(&serde_json::from_str(text).unwrap()).map_err(|fault| fault.to_string())
    }

    fn said(text: &str) -> Option<String> {
        read(text).unwrap().content
    }

    fn names(message: &Message) -> Vec<&str> {
        message.more.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn contents_are_texts_or_parts_of_one() {
        let parts =
            r#"[{"type": "text", "text": "a "}, {"text": "b", "type": "text", "image": null}]"#;
        let said_in_parts = said(&format!(r#"{{"role": "user", "content": {parts}}}"#));
        assert_eq!(said_in_parts.as_deref(), Some("a b"));
        assert_eq!(said(r#"{"role": "user", "content": []}"#).as_deref(), Some(""));
        assert_eq!(
            read(r#"{"role": "developer", "content": "a"}"#),
            Ok(Message::new("system", "a"))
        );
        for (content, told) in [
            ("null", "content: expected a text or an array of parts, not null"),
            ("3", "content: expected a text or an array of parts, not a number"),
            ("{}", "content: expected a text or an array of parts, not an object"),
            (r#"["a"]"#, "content[0]: expected an object of type and text, not a text"),
            (
                r#"[{"text": "a"}]"#,
                "content[0]: expected an object of type and text, not an object",
            ),
            (r#"[{"type": "text"}]"#, "content[0].text: expected a text, not null"),
            (
                r#"[{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]"#,
                "content[1]: a part of type \"image_url\", but models here read only",
            ),
        ] {
            let error = read(&format!(r#"{{"role": "user", "content": {content}}}"#)).unwrap_err();
            assert!(error.starts_with(told), "{error}");
        }
        for (message, told) in [
            ("3", "expected an object of role and content, not a number"),
            ("{\"content\": \"a\"}", "no field \"role\""),
            ("{\"role\": null, \"content\": \"a\"}", "role: expected a text, not null"),
            ("{\"role\": \"user\"}", "content: expected a text or an array of parts, not null"),
            ("{\"role\": \"assistant\"}", "or else tool_calls, not null"),
            ("{\"role\": \"tool\", \"content\": null, \"tool_calls\": [{}]}", "content: expected"),
        ] {
            let error = read(message).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn other_fields_are_kept_in_their_order_but_for_nulls() {
        let message = read(
            r#"{"tool_call_id": "1", "role": "tool", "audio": null, "name": "f", "content": "7", "a": {"b": null}}"#,
        );
        let message = message.unwrap();
        assert_eq!(names(&message), ["tool_call_id", "name", "a"]);
        assert_eq!(message.more[2].1.get("b"), Some(&Ordered::Null), "only its own");
        let empty = read(r#"{"role": "assistant", "content": "a", "tool_calls": []}"#).unwrap();
        assert_eq!(empty, Message::new("assistant", "a"));
        let weighed = |weight: &str| {
            read(&format!(r#"{{"role": "assistant", "content": "a", "weight": {weight}}}"#))
        };
        assert!(weighed("1").unwrap().is_learnt && weighed("null").unwrap().is_learnt);
        assert!(!weighed("0").unwrap().is_learnt && names(&weighed("0").unwrap()).is_empty());
        assert!(weighed("0.5").unwrap_err().starts_with("weight: expected 0 or 1"));
    }

    #[test]
    fn arguments_of_calls_become_objects() {
        let called = |arguments: &str| {
            read(&format!(
                r#"{{"role": "assistant", "content": null, "tool_calls": [{{"id": "1", "type": "function",
                "function": {{"name": "f", "arguments": {arguments}}}}}]}}"#
            ))
        };
        let arguments = |message: &Message| {
            let Some((_, Ordered::List(calls))) = message.more.last() else {
                panic!("{message:?}")
            };
            calls[0].get("function").and_then(|function| function.get("arguments")).cloned()
        };
        let object = called(r#"{"b": 1, "a": [2]}"#).unwrap();
        assert_eq!((object.content.as_ref(), object.calls_tools()), (None, true));
        assert_eq!(
            (names(&object), object.calls.is_some()),
            (vec!["content", "tool_calls"], false)
        );
        let text = called(r#""{\"b\": 1,\"a\":[2]}""#).unwrap();
        assert_eq!(arguments(&text), arguments(&object));
        let Some(Ordered::List(given)) = &text.calls else { panic!("{text:?}") };
        let given = given[0].get("function").unwrap().get("arguments").unwrap();
        assert_eq!(*given, Ordered::Text("{\"b\": 1,\"a\":[2]}".to_owned()));
        assert_eq!(arguments(&called("\" \"").unwrap()), Some(Ordered::Object(Vec::new())));
        // The function itself, without what is around it.
        let bare = read(
            r#"{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{\"a\": 1}"}, {"custom": 1}]}"#,
        );
        let bare = bare.unwrap();
        let Ordered::List(calls) = &bare.more[0].1 else { panic!("{bare:?}") };
        assert_eq!(calls[0].get("arguments").unwrap().kind(), "an object");
        assert_eq!(names(&bare), ["tool_calls"], "no content is none of null");
        for (arguments, told) in [
            (
                "\"[1]\"",
                "tool_calls[0].function.arguments: a text of JSON that is an array, not an object",
            ),
            ("\"{oops\"", "tool_calls[0].function.arguments: a text that is no object of JSON: "),
        ] {
            let error = called(arguments).unwrap_err();
            assert!(error.starts_with(told), "{error}");
        }
        let error = read(r#"{"role": "assistant", "tool_calls": [3]}"#).unwrap_err();
        assert!(error.starts_with("tool_calls[0]: expected an object"), "{error}");
        let error = read(r#"{"role": "assistant", "content": "", "tool_calls": {}}"#).unwrap_err();
        assert!(error.starts_with("tool_calls: expected an array of calls"), "{error}");
    }
}
