//! Lines and files in forms that others use, told apart by their fields: what they are, and how they become
//! lines that can be learnt from.
//!
//! Such lines are not read as they are: whether an instruction is a prompt as it stands or has words around
//! it is for whoever made the data to say. `docs/guides/finetune.md` has a command for each.

use crate::json::{ARRAY_HINT, Ordered};

/// What a form has, what it is called, and how a line of it becomes another.
struct Shape {
    /// One of each of these.
    fields: &'static [&'static [&'static str]],
    name: &'static str,
    /// What to do.
    how: &'static str,
}

/// Whoever has the first may have the others too.
const SHAPES: [Shape; 6] = [
    Shape {
        fields: &[&["instruction"], &["output", "response"]],
        name: "Alpaca or Dolly (instruction, input or context, output or response)",
        how: "jq -c '{prompt: (.instruction + \"\\n\" + (.input // .context // \"\") + \"\\n\"), completion: \
              (.output // .response)}' makes prompts and completions of such lines",
    },
    Shape {
        fields: &[&["chosen"], &["rejected"]],
        name: "preferences (chosen, rejected)",
        how: "there is no training on preferences; to learn what was chosen, jq -c '{messages: .chosen}' if that \
              is an array of messages, or {prompt, completion: .chosen} if it is a text",
    },
    Shape {
        fields: &[&["question"], &["answer"]],
        name: "questions and answers (question, answer)",
        how: "jq -c '{prompt: (.question + \"\\n\"), completion: .answer}' makes prompts and completions of such \
              lines",
    },
    Shape {
        fields: &[&["query", "prompt", "input"], &["response", "output", "answer"]],
        name: "prompts and completions by other names",
        how: "jq -c '{prompt: (.query // .prompt // .input), completion: (.response // .output // .answer)}' \
              renames them",
    },
    Shape {
        fields: &[&["conversation", "dialogue", "dialog", "turns", "chat"]],
        name: "conversations by another name",
        how: "the field with the messages is to be called messages (of role and content) or conversations (of \
              from and value): jq -c '{messages: .conversation}', with the field's own name",
    },
    Shape {
        fields: &[&["role", "from"], &["content", "value"]],
        name: "single messages",
        how: "a line has all messages of a conversation: {\"messages\": [...]}",
    },
];

/// What is wrong with a line that is no object.
pub(super) fn no_object(line: &Ordered) -> String {
    match line {
        Ordered::List(_) => format!("an array, where each line is to be an object{ARRAY_HINT}"),
        other => format!("not a JSON object, but {}", other.kind()),
    }
}

/// What is wrong with a line that has no example in it as far as its fields tell; `None` if it has a prompt
/// or a completion of which only the other is missing.
pub(super) fn known(line: &Ordered, text_field: &str) -> Option<String> {
    if line.get("completion").is_some() {
        return None;
    }
    let none = format!(
        "no field \"messages\", \"conversations\", \"{text_field}\", or \"prompt\" and \"completion\" in this line"
    );
    let has = |names: &[&str]| names.iter().any(|name| line.given(name).is_some());
    let shape = SHAPES.iter().find(|shape| shape.fields.iter().all(|names| has(names)));
    match shape {
        Some(Shape { name, how, .. }) => Some(format!("{none}: it looks like {name}; {how}")),
        None if line.get("prompt").is_some() => None,
        None => Some(none),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> Option<String> {
        known(&serde_json::from_str(line).unwrap(), "body")
    }

    #[test]
    fn lines_of_other_forms_are_named_with_what_to_do() {
        for (line, parts) in [
            (r#"{"instruction": "a", "input": "", "output": "b"}"#, ["Alpaca", ".instruction"]),
            (r#"{"instruction": "a", "context": "", "response": "b"}"#, ["Dolly", ".context"]),
            (r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#, ["preferences", ".chosen"]),
            (r#"{"question": "a", "answer": "b"}"#, ["questions", ".question"]),
            (r#"{"prompt": "a", "response": "b"}"#, ["other names", ".response"]),
            (r#"{"query": "a", "response": "b"}"#, ["other names", ".query"]),
            (r#"{"conversation": []}"#, ["another name", "{messages: "]),
            (r#"{"role": "user", "content": "a"}"#, ["single messages", "\"messages\": ["]),
            (r#"{"a": 1}"#, ["no field \"messages\"", "\"body\", or"]),
            (r#"{"instruction": "a", "output": null}"#, ["no field \"messages\"", "\"body\", or"]),
        ] {
            let error = told(line).unwrap_or_default();
            assert!(parts.iter().all(|part| error.contains(part)), "{line}: {error}");
            assert_eq!(error.contains("it looks like"), parts[1] != "\"body\", or", "{error}");
        }
        assert_eq!(told(r#"{"prompt": "a"}"#), None);
        assert_eq!(told(r#"{"instruction": "a", "output": "b", "completion": "c"}"#), None);
    }

    #[test]
    fn arrays_are_told_how_to_become_lines() {
        let told = |line: &str| no_object(&serde_json::from_str(line).unwrap());
        assert!(told("[{}, {}]").contains("jq -c '.[]'"), "{}", told("[]"));
        assert_eq!(told("3"), "not a JSON object, but a number");
    }
}
