//! The text as the model reads it: characters, and windows of them.

/// The characters of the bundled text, in the order of their numbers.
pub(crate) const CHARACTERS: &[u8; 73] =
    b"\n !'(),-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWYZabcdefghijklmnopqrstuvwxyz";

/// The number of each byte; that of the blank for bytes that are no character.
const NUMBERS: [u8; 256] = {
    let mut numbers = [1; 256];
    let mut number = 0;
    while number < CHARACTERS.len() {
        numbers[CHARACTERS[number] as usize] = number as u8;
        number += 1;
    }
    numbers
};

/// The number of a character.
pub(crate) const fn number(character: u8) -> u32 {
    NUMBERS[character as usize] as u32
}

/// The `nth` window of `len` characters: somewhere in the text, the same wherever it is asked for.
pub(crate) fn window(text: &[u8], nth: u64, len: usize) -> &[u8] {
    // 2^64 by the golden ratio: multiples of it are spread evenly (Knuth, volume 3, 6.4).
    let spread = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let places = (text.len() - len + 1) as u64;
    let at = ((spread * places) >> 32) as usize;
    &text[at..at + len]
}
