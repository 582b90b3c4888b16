//! What is said when the system ends the program: a line like that of any other error, and its exit code.
//!
//! Two things come as signals and not as errors. A mapped file that is cut while it is read has no bytes there any
//! more (SIGBUS). And memory that is refused where it has no error to be told by ends the program (SIGABRT, behind a
//! line of the standard library's with the number of bytes). The same for the stack of the main thread, which grows
//! as it is used, would be a SIGSEGV without a word: it gets what it needs before anything else. None of it touches
//! what lies on the disk: checkpoints have their names when they are whole.
#![expect(unsafe_code, reason = "handlers of signals")]

use core::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;

use signal_hook::consts::{SIGABRT, SIGBUS};
use signal_hook::low_level;

use crate::error::{Error, Result};

/// Names of the files that have been mapped, the last few.
static MAPPED: Mutex<String> = Mutex::new(String::new());

/// Most bytes of them.
const NAMES: usize = 1024;

/// A file has been mapped: it is named if it is cut.
pub(crate) fn mapped(path: &Path) {
    let Ok(mut names) = MAPPED.lock() else { return };
    let name = path.display().to_string();
    if names.split(", ").any(|known| known == name) {
        return;
    }
    if names.len() + name.len() > NAMES {
        names.clear();
    }
    let comma = if names.is_empty() { "" } else { ", " };
    // Writing to a String cannot fail.
    let _ = write!(names, "{comma}{name}");
}

/// Bytes of stack that the main thread is given at once. A training run was seen to have 132 KB of it (`VmStk`), in
/// a build without optimisation 956.
const STACK: usize = if cfg!(debug_assertions) { 3 << 19 } else { 1 << 19 };

/// Has the system give this thread its stack. If it cannot, the program ends here, where nothing has begun.
#[inline(never)]
fn grow_stack() {
    // Each page of it is touched by the compiler, in order: that is how stacks of this size are made.
    core::hint::black_box([0_u8; STACK]);
}

/// Has the two signals say what has happened, and end the program with exit code 1.
///
/// # Errors
/// The system refuses to hand over its signals.
pub(crate) fn prepare() -> Result<()> {
    grow_stack();
    for (signal, say) in [(SIGBUS, cut as fn()), (SIGABRT, refused)] {
        let action = move || {
            say();
            low_level::exit(1);
        };
        // SAFETY: what a handler may do: neither of the two functions allocates or waits (a lock is tried, not
        // taken, and the thread that reads a mapped file does not hold it), they only write to a descriptor; the
        // program ends in the handler, so the broken access is not repeated.
        let registered = unsafe { low_level::register(signal, action) };
        registered.map_err(|e| Error::failure(format!("cannot watch for signals: {e}")))?;
    }
    Ok(())
}

fn cut() {
    say(b"cllm: a file that was being read has been cut, or its disk fails; put it back as it was (a run goes on \
          with --resume). It is one of: ");
    match MAPPED.try_lock() {
        Ok(names) => say(names.as_bytes()),
        Err(_) => say(b"(not known)"),
    }
    say(b"\n");
}

/// Says that the system refuses memory.
pub(crate) fn refused() {
    say(b"cllm: the system refuses more memory: raise its limit (ulimit -v, a container's), or do with less \
          (--batch-size, --threads); a run goes on from its last checkpoint with --resume\n");
}

/// Writes to standard error past its buffers and locks.
fn say(mut bytes: &[u8]) {
    while let Ok(written @ 1..) = rustix::io::write(std::io::stderr(), bytes) {
        bytes = &bytes[written..];
    }
}
