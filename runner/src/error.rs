//! The one error type of the runner: a message for a person and an exit code.

use core::fmt;

/// What went wrong, in one line, and whether the caller's usage is at fault.
///
/// The binary prints the message on standard error after `cllm: ` and exits
/// with [`Error::exit_code`]. A message names the file, flag or key at fault
/// and says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Usage,
    Failure,
}

/// Shorthand for results of the runner.
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    /// An error in how the program was called (flag, key, value): exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: message.into() }
    }

    /// Any other error (files, data, memory, numbers): exit code 1.
    pub fn failure(message: impl Into<String>) -> Self {
        Self { kind: Kind::Failure, message: message.into() }
    }

    /// A failed operation on a file: `cannot <verb> <path>: <cause>`.
    pub fn io(verb: &str, path: &std::path::Path, cause: &std::io::Error) -> Self {
        Self::failure(format!("cannot {verb} {}: {cause}", path.display()))
    }

    /// 2 for usage, 1 for the rest.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Usage => 2,
            Kind::Failure => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl core::error::Error for Error {}
