//! Which part of the text a model learns from.

/// One byte of this many is held back, at the end of the text: for validation.
const HELD_BACK: usize = 10;

/// Bytes of a text of so many that the model learns from.
pub(crate) const fn learnt(bytes: usize) -> usize {
    bytes - bytes / HELD_BACK
}

/// Bytes of the text that adapters learn.
const ADAPTED: usize = 400_000;

/// What adapters learn: the text's beginning in capitals.
pub(crate) fn capitals(text: &[u8]) -> Vec<u8> {
    text[..ADAPTED].to_ascii_uppercase()
}
