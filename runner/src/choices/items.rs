//! Questions with answers to choose from: lines of JSON as the usual data sets have them.
//!
//! ```text
//! context   "ctx" or "prompt" as it stands, or "question", which becomes `Question: ...\nAnswer:`
//! answers   "endings" or "choices", a list of texts; or "choices": {"text": [...], "label": [...]}
//! right     "label", "answer", "answerKey" or "gold": a number from 0 on, one of the labels, or a letter
//! ```

use serde_json::{Map, Value};

use crate::data::instructions::sources;
use crate::data::pieces::Lines;
use crate::error::{Error, Result};

/// A question.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// File and line.
    pub(super) origin: String,
    pub(super) context: String,
    pub(super) answers: Vec<String>,
    /// Which answer is right.
    pub(super) right: usize,
}

/// Reads all questions.
///
/// # Errors
/// A file that cannot be read, a line that is no question, with its file and number; none at all.
pub(super) fn read(files: &[String]) -> Result<Vec<Item>> {
    let sources = sources("--choices", files)?;
    let (mut lines, mut buffer, mut items) = (Lines::new(&sources), Vec::new(), Vec::new());
    while let Some(origin) = lines.next_line(&mut buffer)? {
        let origin = origin.to_string();
        match parse(&buffer) {
            Ok((context, answers, right)) => items.push(Item { origin, context, answers, right }),
            Err(cause) => return Err(Error::failure(format!("{origin}: {cause}"))),
        }
    }
    if items.is_empty() {
        return Err(Error::failure(format!("{}: no question in the data", files.join(", "))));
    }
    Ok(items)
}

type Parsed<T> = core::result::Result<T, String>;

/// The first of these fields that there is.
fn field<'v>(
    fields: &'v Map<String, Value>,
    names: &[&'static str],
) -> Parsed<(&'static str, &'v Value)> {
    let found = names.iter().find_map(|name| Some((*name, fields.get(*name)?)));
    found.ok_or_else(|| format!("no field \"{}\" in this line", names.join("\" or \"")))
}

fn parse(line: &[u8]) -> Parsed<(String, Vec<String>, usize)> {
    let json: Value =
        crate::json::from_slice(line).map_err(|e| crate::json::line_error(line, &e))?;
    let Value::Object(fields) = json else { return Err("not a JSON object".to_owned()) };
    let (name, context) = field(&fields, &["ctx", "prompt", "question"])?;
    let context = context.as_str().ok_or_else(|| format!("the field \"{name}\" is not a text"))?;
    let context = match name {
        "question" => format!("Question: {context}\nAnswer:"),
        _ => context.to_owned(),
    };
    let (name, choices) = field(&fields, &["endings", "choices"])?;
    let (texts, labels) = match choices {
        Value::Object(choices) => (choices.get("text"), choices.get("label")),
        choices => (Some(choices), None),
    };
    let answers = texts.and_then(texts_of).ok_or_else(|| {
        format!("the field \"{name}\" is no list of texts, nor an object with one as \"text\"")
    })?;
    let labels = match labels {
        None => Vec::new(),
        Some(labels) => texts_of(labels)
            .filter(|labels| labels.len() == answers.len())
            .ok_or_else(|| format!("\"label\" of \"{name}\" is no list of as many texts"))?,
    };
    if answers.len() < 2 {
        return Err(format!("{} answers to choose from; give at least two", answers.len()));
    }
    if let Some(at) = answers.iter().position(String::is_empty) {
        return Err(format!("answer {} is empty", at + 1));
    }
    let (name, gold) = field(&fields, &["label", "answer", "answerKey", "gold"])?;
    let right = match gold {
        Value::Number(number) => number.as_u64().and_then(|n| usize::try_from(n).ok()),
        Value::String(text) => index(text, &labels),
        _ => None,
    };
    let right = right.filter(|right| *right < answers.len()).ok_or_else(|| {
        format!("the field \"{name}\" is {gold}, which is none of the {} answers", answers.len())
    })?;
    Ok((context, answers, right))
}

fn texts_of(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
}

/// The answer that a text means: its label, its number from 0 on, or its letter.
fn index(text: &str, labels: &[String]) -> Option<usize> {
    if !labels.is_empty() {
        return labels.iter().position(|label| label == text);
    }
    if let [letter @ (b'a'..=b'z' | b'A'..=b'Z')] = text.as_bytes() {
        return Some(usize::from(letter.to_ascii_lowercase() - b'a'));
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_forms_are_read() {
        let two = ["x", "y"].map(str::to_owned).to_vec();
        for (line, context, right) in [
            (r#"{"ctx": "c", "endings": ["x", "y"], "label": 1, "ind": 3}"#, "c", 1),
            (r#"{"ctx": "c", "endings": ["x", "y"], "label": "0"}"#, "c", 0),
            (r#"{"prompt": "p", "choices": ["x", "y"], "gold": 1}"#, "p", 1),
            (
                r#"{"question": "q", "choices": ["x", "y"], "answer": "B"}"#,
                "Question: q\nAnswer:",
                1,
            ),
            (
                r#"{"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"}"#,
                "Question: q\nAnswer:",
                0,
            ),
            (
                r#"{"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}"#,
                "Question: q\nAnswer:",
                1,
            ),
        ] {
            assert_eq!(
                parse(line.as_bytes()),
                Ok((context.to_owned(), two.clone(), right)),
                "{line}"
            );
        }
    }

    #[test]
    fn what_is_no_question_is_named() {
        for (line, what) in [
            ("{", "not a line of JSON"),
            ("[]", "not a JSON object"),
            (r#"{"endings": []}"#, "no field \"ctx\" or \"prompt\" or \"question\""),
            (r#"{"ctx": 1}"#, "\"ctx\" is not a text"),
            (r#"{"ctx": "c", "endings": "x"}"#, "\"endings\" is no list of texts"),
            (r#"{"ctx": "c", "endings": ["x"], "label": 0}"#, "1 answers to choose from"),
            (r#"{"ctx": "c", "endings": ["x", ""], "label": 0}"#, "answer 2 is empty"),
            (r#"{"ctx": "c", "endings": ["x", "y"]}"#, "no field \"label\""),
            (r#"{"ctx": "c", "endings": ["x", "y"], "label": 2}"#, "\"label\" is 2, which is none"),
            (
                r#"{"ctx": "c", "endings": ["x", "y"], "label": ""}"#,
                "which is none of the 2 answers",
            ),
            (
                r#"{"ctx": "c", "choices": {"text": ["x", "y"], "label": ["1"]}, "answer": "1"}"#,
                "no list of as many texts",
            ),
        ] {
            let message = parse(line.as_bytes()).unwrap_err();
            assert!(message.contains(what), "{message}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.jsonl");
        let good = r#"{"ctx": "c", "endings": ["x", "y"], "label": 0}"#;
        std::fs::write(&path, format!("{good}\n\n{{}}\n")).unwrap();
        let path = [path.to_str().unwrap().to_owned()];
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("q.jsonl:3: no field \"ctx\""), "{message}");
    }
}
