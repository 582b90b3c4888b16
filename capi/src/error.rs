//! What a call came to: a number for programs, words for people.

use core::fmt::{self, Write};

/// What a call came to. Negative numbers are errors.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CllmStatus {
    /// It did what it was called for.
    Ok = 0,
    /// A pointer that must point at something is null.
    Null = -1,
    /// A pointer is not aligned as what it points at has to be; memory of handles to `CLLM_ALIGNMENT`.
    Misaligned = -2,
    /// There are fewer bytes or elements than are wanted.
    TooShort = -3,
    /// It is no handle: it was destroyed, or never created. Seen as long as nothing else was put there.
    NotAHandle = -4,
    /// Another thread is in a call with this handle, or workers are still with it.
    Busy = -5,
    /// The handle does not do that: it was created for another mode, or it is closed.
    WrongMode = -6,
    /// The model, the plan or a setting makes no sense.
    BadSetting = -7,
    /// The CPU does not run the instruction set.
    NoSuchIsa = -8,
    /// A token, a target or the start of a document is not one that the model has.
    BadBatch = -9,
    /// The loss or the gradient is not a number; weights are as before.
    NotFinite = -10,
    /// A checkpoint is damaged, or of another model.
    BadCheckpoint = -11,
    /// All seats of the plan are taken.
    Full = -12,
    /// A step was not run to its end: load a checkpoint.
    Broken = -13,
}

/// Bytes of the words for an error, with the zero byte behind them.
pub const CLLM_ERROR_BYTES: usize = 240;

/// What is wrong, in words.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CllmError {
    /// UTF-8, cut to what fits, with a zero byte behind it; empty after a success.
    pub text: [u8; CLLM_ERROR_BYTES],
}

/// An error on its way to the caller.
pub(crate) struct Failed {
    status: CllmStatus,
    text: Text,
}

pub(crate) type Result<T = ()> = core::result::Result<T, Failed>;

impl Failed {
    pub(crate) fn new(status: CllmStatus, words: impl fmt::Display) -> Self {
        let mut text = Text { bytes: [0; CLLM_ERROR_BYTES], len: 0 };
        // Cut off, not refused.
        let _ = write!(text, "{words}");
        Self { status, text }
    }

    /// An error of this status in the core's words.
    pub(crate) fn of<E: fmt::Display>(status: CllmStatus) -> impl Fn(E) -> Self {
        move |error| Self::new(status, error)
    }
}

/// Text in a place of its own.
struct Text {
    bytes: [u8; CLLM_ERROR_BYTES],
    len: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let mut utf8 = [0; 4];
            let bytes = c.encode_utf8(&mut utf8).as_bytes();
            // The zero byte stays.
            let room = CLLM_ERROR_BYTES - 1 - self.len;
            if bytes.len() > room {
                return Err(fmt::Error);
            }
            self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
            self.len += bytes.len();
        }
        Ok(())
    }
}

/// Does something, and tells C what came of it.
///
/// # Safety
/// `error` is null, or points at a [`CllmError`] that nobody else looks at meanwhile.
pub(crate) unsafe fn told(error: *mut CllmError, what: impl FnOnce() -> Result) -> CllmStatus {
    let (status, text) = match what() {
        Ok(()) => (CllmStatus::Ok, [0; CLLM_ERROR_BYTES]),
        Err(failed) => (failed.status, failed.text.bytes),
    };
    if !error.is_null() {
        // SAFETY: the caller's promise; bytes have no alignment.
        unsafe { error.write(CllmError { text }) }
    }
    status
}

/// What a status means, in a few words: text that stays, with a zero byte behind it. For a number that is none,
/// "unknown status".
#[unsafe(no_mangle)]
pub extern "C" fn cllm_status_text(status: i32) -> *const core::ffi::c_char {
    let text = match status {
        0 => c"ok",
        -1 => c"a null pointer",
        -2 => c"a misaligned pointer",
        -3 => c"too short",
        -4 => c"not a handle",
        -5 => c"busy",
        -6 => c"wrong mode",
        -7 => c"bad setting",
        -8 => c"no such instruction set",
        -9 => c"bad batch",
        -10 => c"not finite",
        -11 => c"bad checkpoint",
        -12 => c"all seats are taken",
        -13 => c"a broken step",
        _ => c"unknown status",
    };
    text.as_ptr()
}
