//! Chat templates, which come with models, and conversations, which come with requests and data.

use cllm::hostile::templated;

use crate::files::parts;

/// Most bytes of a text: what the template adds, and what it says again of messages of the longest input.
const LONGEST: usize = 64 << 20;

/// A template and a conversation in JSON.
pub(crate) fn target(data: &[u8]) -> bool {
    let [template, conversation] = parts(data);
    let Ok(template) = core::str::from_utf8(template) else { return false };
    let Ok(text) = templated(template, conversation) else { return false };
    assert!(text.len() <= LONGEST, "{} bytes", text.len());
    true
}
