//! What the program says on standard error.

/// A line on standard error, as by `eprintln`, which panics if nobody can be told: a run is not to end because its
/// log's disk is full, or because the program that read its words is gone.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let mut line = format!($($words)*);
        line.push('\n');
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }};
}
