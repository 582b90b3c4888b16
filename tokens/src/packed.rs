//! Tokens of 16 and 32 bits in little-endian bytes, and bytes that are tokens.

/// Appends one token a byte.
pub fn bytes_to_tokens(text: &[u8], tokens: &mut Vec<u32>) {
    tokens.extend(text.iter().map(|&byte| u32::from(byte)));
}

/// Writes tokens of 16 bits into `bytes`, two for each.
///
/// ```
/// use cllm_tokens::{pack_narrow, unpack_narrow};
///
/// let (mut bytes, mut back) = ([0; 4], [0; 2]);
/// assert_eq!(pack_narrow(&[7, 50_256], &mut bytes), Ok(()));
/// unpack_narrow(&bytes, &mut back);
/// assert_eq!((bytes, back), ([7, 0, 0x50, 0xc4], [7, 50_256]));
/// assert_eq!(pack_narrow(&[1 << 16], &mut bytes), Err(1 << 16));
/// ```
///
/// # Errors
/// The first token that has more bits.
pub fn pack_narrow(tokens: &[u32], bytes: &mut [u8]) -> Result<(), u32> {
    for (slot, &token) in bytes.chunks_exact_mut(2).zip(tokens) {
        slot.copy_from_slice(&u16::try_from(token).map_err(|_| token)?.to_le_bytes());
    }
    Ok(())
}

/// Writes tokens of 32 bits into `bytes`, four for each.
pub fn pack_wide(tokens: &[u32], bytes: &mut [u8]) {
    for (slot, token) in bytes.chunks_exact_mut(4).zip(tokens) {
        slot.copy_from_slice(&token.to_le_bytes());
    }
}

/// Reads tokens of 16 bits.
pub fn unpack_narrow(bytes: &[u8], tokens: &mut [u32]) {
    for (slot, b) in tokens.iter_mut().zip(bytes.chunks_exact(2)) {
        *slot = u32::from(u16::from_le_bytes([b[0], b[1]]));
    }
}

/// Reads tokens of 32 bits.
pub fn unpack_wide(bytes: &[u8], tokens: &mut [u32]) {
    for (slot, b) in tokens.iter_mut().zip(bytes.chunks_exact(4)) {
        *slot = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_and_large_ones_are_refused() {
        let tokens: Vec<u32> = (0..70_000).step_by(7).collect();
        let mut bytes = vec![0; tokens.len() * 4];
        pack_wide(&tokens, &mut bytes);
        let mut back = vec![0; tokens.len()];
        unpack_wide(&bytes, &mut back);
        assert_eq!(back, tokens);
        assert_eq!(pack_narrow(&tokens, &mut bytes), Err(65_541));
        let narrow = &tokens[..9000];
        assert_eq!(pack_narrow(narrow, &mut bytes), Ok(()));
        unpack_narrow(&bytes, &mut back[..9000]);
        assert_eq!(back[..9000], *narrow);
        bytes_to_tokens(b"\x00a\xff", &mut back);
        assert_eq!(back[tokens.len()..], [0, 97, 255]);
    }
}
