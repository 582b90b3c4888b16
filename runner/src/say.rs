//! What the program says on standard error.

/// Writes a text there, or not: `eprintln` panics if nobody can be told, and neither a run nor a reply is to end
/// because its log's disk is full, or because the program that read its words is gone.
pub(crate) fn put(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// A line of it.
pub(crate) fn line(mut text: String) {
    text.push('\n');
    put(&text);
}

/// A line, in the words of `eprintln`.
macro_rules! say {
    ($($words:tt)*) => {
        $crate::say::line(format!($($words)*))
    };
}
