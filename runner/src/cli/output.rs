//! What the program prints: results on standard output, one line for an error.

use crate::error::{Error, Result};
use crate::last_words;
use core::any::Any;
use std::io::Write as _;
use std::process::ExitCode;

/// Exit status when the reader of standard output has gone away (`| head`), as shells
/// have it for SIGPIPE.
const BROKEN_PIPE: u8 = 141;

/// Prints a result.
pub(super) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|cause| Error::failure(format!("cannot write to standard output: {cause}")))
}

/// Prints why a command failed, and gives its exit status.
pub(super) fn exit_of_error(error: &Error) -> ExitCode {
    let message = error.to_string();
    if is_broken_pipe(&message) {
        return ExitCode::from(BROKEN_PIPE);
    }
    print_error(&message);
    ExitCode::from(error.exit_code())
}

/// Prints an error as one line; if even that fails nobody can be told.
fn print_error(message: &str) {
    let line = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let line = printable(&line);
    say!("cllm: {line}");
}

/// What a message quotes of a file may be of any length, and command a terminal: the middle is left out,
/// and signs that are not printed are replaced.
fn printable(line: &str) -> String {
    const END: usize = 1500;
    let sign = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut line: String = line.chars().map(sign).collect();
    if let (Some((from, _)), Some((to, _))) =
        (line.char_indices().nth(END), line.char_indices().rev().nth(END))
        && from < to
    {
        line.replace_range(from..to, " ... ");
    }
    line
}

/// Lets a panic print one line for a person, not a trace.
pub(super) fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let message = text_of(info.payload());
        // A thread that could not begin, of std's own: there may be no memory to unwind with either.
        if is_refused_memory(message) {
            last_words::refused();
            std::process::exit(1);
        }
        if !is_broken_pipe(message) {
            let place = info.location().map_or(String::new(), |at| format!(" ({at})"));
            print_error(&format!("internal error, please report it: {message}{place}"));
        }
        // Nobody would catch it: the program ends here, by a signal if it were let.
        #[cfg(panic = "abort")]
        std::process::exit(status_of_panic(message).into());
    }));
}

/// The exit status of a panic that was caught.
pub(super) fn exit_of_panic(payload: &(dyn Any + Send)) -> ExitCode {
    ExitCode::from(status_of_panic(text_of(payload)))
}

fn status_of_panic(message: &str) -> u8 {
    if is_broken_pipe(message) { BROKEN_PIPE } else { 1 }
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Whether standard output has no reader any more: nobody is left to be told. The error
/// is in the words of this crate, or of `println!`, which panics.
fn is_broken_pipe(message: &str) -> bool {
    let standard_output = ["cannot write to standard output: ", "failed printing to stdout: "]
        .iter()
        .any(|start| message.starts_with(start));
    standard_output && message.contains("Broken pipe")
}

/// Whether the system has refused memory (`ENOMEM`), in std's words of an error of the system.
fn is_refused_memory(message: &str) -> bool {
    message.contains("(os error 12)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_std_is_refused_is_no_mistake_of_ours() {
        let refused = std::io::Error::from(rustix::io::Errno::NOMEM);
        assert!(is_refused_memory(&format!("failed to allocate an alternative stack: {refused}")));
        let other = std::io::Error::from(rustix::io::Errno::INVAL);
        assert!(!is_refused_memory(&format!("failed to set up an alternative stack: {other}")));
    }

    #[test]
    fn what_a_message_quotes_is_short_and_commands_no_terminal() {
        assert_eq!(printable("a \u{1b}[2Jb\u{e9}"), "a \u{fffd}[2Jb\u{e9}");
        let long = format!("begin {} end", "\u{e9}".repeat(10_000));
        let short = printable(&long);
        assert!(short.starts_with("begin ") && short.ends_with(" end") && short.len() < 7000);
        let fits = "x".repeat(3000);
        assert_eq!(printable(&fits), fits);
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_errors() {
        assert!(is_broken_pipe("cannot write to standard output: Broken pipe (os error 32)"));
        assert!(!is_broken_pipe("cannot write out/metrics.jsonl: Broken pipe (os error 32)"));
        assert!(is_broken_pipe("failed printing to stdout: Broken pipe (os error 32)"));
        assert!(!is_broken_pipe("failed printing to stdout: No space left on device"));
        assert_eq!(text_of(&"plain"), "plain");
        assert_eq!(text_of(&"owned".to_owned()), "owned");
        assert_eq!(text_of(&7), "no message");
    }
}
