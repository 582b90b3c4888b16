//! Bytes as tokens: nothing to train, nothing unknown, nothing lost.

/// Identifier of the end of a text: the first one after the 256 bytes.
pub(super) const END_OF_TEXT: u32 = 256;

/// Number of identifiers: 256 bytes and the end of text.
pub(super) const VOCAB_SIZE: usize = 257;

/// Appends one identifier a byte.
pub(super) fn encode_into(text: &[u8], ids: &mut Vec<u32>) {
    cllm_tokens::bytes_to_tokens(text, ids);
}

/// The byte of an identifier; `None` for the end of text and beyond.
pub(super) fn byte_of(id: u32) -> Option<u8> {
    u8::try_from(id).ok()
}
