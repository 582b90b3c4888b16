//! What the small numbers of a block stand for, of the types that ggml's files are full of.
//!
//! ```text
//! Q8_0   scale (f16), 32 x i8                                x = scale q
//! Q4_0   scale (f16), 16 bytes of two nibbles                x = scale (q - 8)
//! Q4_1   scale, least (f16), 16 bytes                        x = scale q + least
//! Q5_0   scale (f16), 32 fifth bits, 16 bytes                x = scale (q - 16)
//! Q5_1   scale, least (f16), 32 fifth bits, 16 bytes         x = scale q + least
//! Q4_K   256 values: scale, step (f16), 8 scales and leasts of 6 bits, 128 bytes of two nibbles
//!                                            x = scale scales[i / 32] q - step leasts[i / 32]
//! Q5_K   the same, with 32 bytes of fifth bits before the nibbles
//! Q6_K   256 values: low nibbles, upper pairs of bits, 16 scales (i8), scale (f16)
//!                                            x = scale scales[i / 16] (q - 32)
//! ```
//! Of nibbles the low ones are the first values, the high ones as many after them: of 32 values in a small
//! block, of 64 in a large one. As in ggml (`ggml-quants.c`). A file that llama.cpp calls `Q4_K_M` has Q4_K
//! and Q6_K in it, and Q5_0 and Q8_0 where rows are not of 256 values.
//!
//! Every function reads one block: `from` has its bytes, `to` its values (overwritten).

use half::f16;

/// Values of a small block.
pub(super) const BLOCK: usize = 32;
/// Values of a large block, and of each scale of Q6_K.
pub(super) const LARGE: usize = 256;
pub(super) const SCALED: usize = 16;
/// Bytes of the scales and smallest values of Q4_K and Q5_K.
pub(super) const SCALES: usize = 12;

pub(super) fn eight(from: &[u8], to: &mut [f32]) {
    let scale = half(from);
    for (to, q) in to.iter_mut().zip(&from[2..]) {
        *to = scale * f32::from(q.cast_signed());
    }
}

pub(super) fn four(from: &[u8], to: &mut [f32]) {
    let scale = half(from);
    nibbles(&from[2..], to, |_, q| scale * (f32::from(q) - 8.0));
}

pub(super) fn four_and_least(from: &[u8], to: &mut [f32]) {
    let (scale, least) = (half(from), half(&from[2..]));
    nibbles(&from[4..], to, |_, q| scale * f32::from(q) + least);
}

pub(super) fn five(from: &[u8], to: &mut [f32]) {
    let (scale, fifths) = (half(from), fifths(&from[2..]));
    nibbles(&from[6..], to, |i, q| scale * (f32::from(q | fifths(i)) - 16.0));
}

pub(super) fn five_and_least(from: &[u8], to: &mut [f32]) {
    let (scale, least, fifths) = (half(from), half(&from[2..]), fifths(&from[4..]));
    nibbles(&from[8..], to, |i, q| scale * f32::from(q | fifths(i)) + least);
}

pub(super) fn four_of_scales(from: &[u8], to: &mut [f32]) {
    of_scales(from, &from[4 + SCALES..], to, |_, _| 0);
}

pub(super) fn five_of_scales(from: &[u8], to: &mut [f32]) {
    let (fifths, low) = from[4 + SCALES..].split_at(LARGE / 8);
    // A byte for each value of 32, with a bit for each 32 values of the block.
    of_scales(from, low, to, |group, i| (fifths[i] >> group & 1) << 4);
}

/// Of each half of the block, 64 bytes of nibbles and 32 of pairs of bits make four times 32 values.
pub(super) fn six_of_scales(from: &[u8], to: &mut [f32]) {
    let (low, rest) = from.split_at(LARGE / 2);
    let (high, rest) = rest.split_at(LARGE / 4);
    let (scales, scale) = rest.split_at(LARGE / SCALED);
    let scale = half(scale);
    for (i, to) in to.iter_mut().enumerate() {
        let (half, quarter, at) = (i / 128, i % 128 / 32, i % 32);
        let nibbles = low[half * 64 + quarter % 2 * 32 + at];
        let nibble = if quarter < 2 { nibbles & 15 } else { nibbles >> 4 };
        let pair = high[half * 32 + at] >> (2 * quarter) & 3;
        let q = i16::from(nibble | pair << 4) - 32;
        *to = scale * f32::from(scales[i / SCALED].cast_signed()) * f32::from(q);
    }
}

fn half(at: &[u8]) -> f32 {
    f16::from_le_bytes([at[0], at[1]]).to_f32()
}

/// The fifth bits of 32 values, each in its place.
fn fifths(at: &[u8]) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([at[0], at[1], at[2], at[3]]);
    move |i| ((bits >> i & 1) as u8) << 4
}

/// Two values of each byte: the low nibbles make the first half of `to`, the high ones the second.
fn nibbles(from: &[u8], to: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let half = to.len() / 2;
    let (first, last) = to.split_at_mut(half);
    for (i, ((byte, low), high)) in from.iter().zip(first).zip(last).enumerate() {
        *low = value(i, byte & 15);
        *high = value(i + half, byte >> 4);
    }
}

/// A block of Q4_K or Q5_K: `low` has its nibbles, `upper(group, i)` is what value `i` of 32 has above them.
fn of_scales(from: &[u8], low: &[u8], to: &mut [f32], upper: impl Fn(usize, usize) -> u8) {
    let (scale, step) = (half(from), half(&from[2..]));
    let factor = |group| {
        let (q, least) = scale_and_least(&from[4..4 + SCALES], group);
        (scale * f32::from(q), step * f32::from(least))
    };
    let pairs = low.chunks_exact(BLOCK).zip(to.chunks_exact_mut(2 * BLOCK));
    for (pair, (low, to)) in pairs.enumerate() {
        let factors = [factor(2 * pair), factor(2 * pair + 1)];
        nibbles(low, to, |i, q| {
            let (scale, least) = factors[i / BLOCK];
            scale * f32::from(q | upper(2 * pair + i / BLOCK, i % BLOCK)) - least
        });
    }
}

/// The scale and the smallest value of 32 values, of six bits each. Of the first four groups they are the
/// lower bits of bytes 0 to 7; of the last four the nibbles of bytes 8 to 11, below what the first left free.
fn scale_and_least(bytes: &[u8], group: usize) -> (u8, u8) {
    match group.checked_sub(4) {
        None => (bytes[group] & 63, bytes[group + 4] & 63),
        Some(at) => {
            let nibbles = bytes[8 + at];
            (nibbles & 15 | bytes[at] >> 6 << 4, nibbles >> 4 | bytes[4 + at] >> 6 << 4)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bits_are_what_ggml_says() {
        let scale = f16::from_f32(0.5).to_le_bytes();
        let least = f16::from_f32(-3.0).to_le_bytes();
        // Low nibbles 0 to 15, high ones 15 to 0.
        let bytes: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let mut to = [0.0; BLOCK];
        four(&[&scale[..], &bytes].concat(), &mut to);
        assert_eq!((to[0], to[15], to[16], to[31]), (-4.0, 3.5, 3.5, -4.0));
        four_and_least(&[&scale[..], &least, &bytes].concat(), &mut to);
        assert_eq!((to[0], to[15], to[16], to[31]), (-3.0, 4.5, 4.5, -3.0));
        // The fifth bit of the last value alone.
        five(&[&scale[..], &[0, 0, 0, 128], &bytes].concat(), &mut to);
        assert_eq!((to[0], to[15], to[16], to[31]), (-8.0, -0.5, -0.5, 0.0));
    }

    #[test]
    fn scales_of_six_bits_are_put_together() {
        // Scale 1 of group 0 with the upper bits of group 4's scale, and so on.
        let bytes = [0b1000_0001, 2, 3, 4, 0b0100_0101, 6, 7, 8, 0x9a, 0xbc, 0xde, 0xf0];
        assert_eq!(scale_and_least(&bytes, 0), (1, 5));
        assert_eq!(scale_and_least(&bytes, 3), (4, 8));
        assert_eq!(scale_and_least(&bytes, 4), (0b10_1010, 0b01_1001));
        assert_eq!(scale_and_least(&bytes, 7), (0, 15));
    }
}
