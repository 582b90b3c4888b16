//! JSON lines: documents, examples to learn from, questions with answers to choose from.

use cllm::data::pieces::Pieces;
use cllm::data::source::{Input, discover};
use cllm::hostile::{examples, questions};

use crate::files::Folder;

/// A template that writes all that messages and tools have.
const TEMPLATE: &str = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}\
    {{ m.role }}: {{ m.content if m.content is string else m.tool_calls | tojson }}</s>{% endfor %}\
    {% if add_generation_prompt %}assistant: {% endif %}";

/// A file of JSON lines.
pub(crate) fn target(data: &[u8]) -> bool {
    let folder = Folder::new();
    let path = folder.put("lines.jsonl", data);
    if let Ok(Input::Text(sources)) = discover(core::slice::from_ref(&path)) {
        let mut pieces = Pieces::new(&sources, "text");
        while let Ok(Some(piece)) = pieces.next_piece() {
            assert!(!piece.bytes.is_empty());
            assert!(core::str::from_utf8(piece.bytes).is_ok(), "JSON has texts of UTF-8 alone");
        }
    }
    let some = examples(data, TEMPLATE, false, 64).is_ok();
    let all = examples(data, TEMPLATE, true, 1 << 20).is_ok();
    some || all || path.exists() && questions(&path).is_ok()
}
