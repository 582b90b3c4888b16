//! The filter `tojson` as `transformers` has it: Python's `json.dumps`, which escapes nothing for HTML and
//! leaves letters as they are.

use core::fmt::Write as _;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, State, Value};

use super::template::refusal;

/// Most spaces of one level.
const MOST_INDENT: usize = 16;

/// `value | tojson(ensure_ascii, indent, separators, sort_keys)`
///
/// # Errors
/// A value has no form in JSON, or an argument is none of these.
pub(super) fn filter(
    state: &State<'_, '_>,
    value: &Value,
    ensure_ascii: Option<bool>,
    args: Kwargs,
) -> Result<String, Error> {
    let ensure_ascii = ensure_ascii.or(args.get("ensure_ascii")?).unwrap_or(false);
    let indent =
        args.get::<Option<Value>>("indent")?.map(|indent| indentation(&indent)).transpose()?;
    let (item, key) = match args.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some([item, key]) if item.len() + key.len() <= MOST_INDENT => (item.clone(), key.clone()),
        Some(_) => return Err(refusal("tojson wants two short separators".to_owned())),
    };
    let sort_keys = args.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    args.assert_all_used()?;
    let mut writer = Writer { out: String::new(), ensure_ascii, indent, item, key, sort_keys };
    writer.value(value, 0)?;
    // The library counts what comes of it, but not the work.
    state.consume_fuel((writer.out.len() / 16) as u64)?;
    Ok(writer.out)
}

/// What one level is indented by: so many spaces, or a text.
fn indentation(indent: &Value) -> Result<String, Error> {
    let spaces = match (indent.as_str(), indent.as_i64()) {
        (Some(text), _) => text.to_owned(),
        // As Python does.
        (None, Some(spaces)) => {
            " ".repeat(usize::try_from(spaces).unwrap_or(0).min(MOST_INDENT + 1))
        }
        (None, None) => return Err(refusal(format!("tojson cannot indent by {}", indent.kind()))),
    };
    if spaces.len() > MOST_INDENT {
        return Err(refusal(format!("tojson indents by {MOST_INDENT} spaces at most")));
    }
    Ok(spaces)
}

struct Writer {
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.all('[', ']', &items, depth, |writer, item| writer.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.all('{', '}', &keys, depth, |writer, key| {
                    let text = match key.kind() {
                        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                        ValueKind::None => "null".to_owned(),
                        ValueKind::Bool => key.is_true().to_string(),
                        ValueKind::Number => number(key),
                        other => {
                            return Err(refusal(format!("tojson takes no key of type {other}")));
                        }
                    };
                    writer.text(&text);
                    writer.out.push_str(&writer.key);
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            other => return Err(refusal(format!("tojson takes no value of type {other}"))),
        }
        Ok(())
    }

    /// Items within brackets, on lines of their own if they are indented.
    fn all(
        &mut self,
        open: char,
        close: char,
        items: &[Value],
        depth: usize,
        write: impl Fn(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.item);
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn text(&mut self, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ensure_ascii {
            self.out.push_str(&quoted);
            return;
        }
        for unit in quoted.encode_utf16() {
            match u8::try_from(unit).ok().filter(u8::is_ascii) {
                Some(byte) => self.out.push(char::from(byte)),
                None => write!(self.out, "\\u{unit:04x}").unwrap_or_default(),
            }
        }
    }
}

/// A number as Python writes it, but for exponents.
fn number(value: &Value) -> String {
    match value.to_string() {
        text if text == "inf" => "Infinity".to_owned(),
        text if text == "-inf" => "-Infinity".to_owned(),
        text => text,
    }
}

#[cfg(test)]
mod tests {
    use crate::chat::Message;
    use crate::chat::template::rendered;

    fn render(source: &str) -> Result<String, String> {
        rendered(source, &[Message::new("user", "<é & 'q'>\n\u{1}\u{1f600}\\\"")])
    }

    /// Expected texts are Python's `json.dumps(..., ensure_ascii=False)`.
    #[test]
    fn json_is_as_python_writes_it() {
        for (source, text) in [
            ("messages[0].content | tojson", r#""<é & 'q'>\n\u0001😀\\\"""#),
            ("messages[0].content | tojson(true)", r#""<\u00e9 & 'q'>\n\u0001\ud83d\ude00\\\"""#),
            (
                "[1, -2.5, 3.0, true, false, none, 'a'] | tojson",
                r#"[1, -2.5, 3.0, true, false, null, "a"]"#,
            ),
            ("{'b': [], 'a': {}, 1: (2,)} | tojson", r#"{"b": [], "a": {}, "1": [2]}"#),
            (
                "{'b': 1, 'a': [2]} | tojson(sort_keys=true, separators=(',', ':'))",
                r#"{"a":[2],"b":1}"#,
            ),
            (
                "{'b': [1, {'c': 2}], 'a': []} | tojson(indent=2)",
                "{\n  \"b\": [\n    1,\n    {\n      \"c\": 2\n    }\n  ],\n  \"a\": []\n}",
            ),
            ("[1] | tojson(indent=0)", "[\n1\n]"),
            ("[1] | tojson(ensure_ascii=false, indent=none)", "[1]"),
        ] {
            assert_eq!(render(&format!("{{{{ {source} }}}}")).as_deref(), Ok(text), "{source}");
        }
        for (source, reason) in [
            ("[nothing] | tojson", "undefined"),
            ("[1] | tojson(indent=17)", "16 spaces"),
            ("[1] | tojson(indent=[])", "cannot indent"),
            ("[1] | tojson(separators=('xxxxxxxxxxxxxxxxx', ''))", "separators"),
            ("[1] | tojson(size=2)", "size"),
            ("{(1, 2): 1} | tojson", "key"),
        ] {
            let error = render(&format!("{{{{ {source} }}}}")).unwrap_err();
            assert!(error.contains(reason), "{source}: {error}");
        }
    }
}
