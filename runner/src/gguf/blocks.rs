//! Types of elements: plain ones, and blocks of 32 small numbers with a scale.
//!
//! ```text
//! Q8_0   scale (f16), 32 x i8                      x = scale q
//! Q4_0   scale (f16), 16 bytes of two nibbles      x = scale (q - 8)
//! Q4_1   scale, least (f16), 16 bytes              x = scale q + least
//! Q6_K   256 values: low nibbles, upper pairs of bits, 16 scales (i8), scale (f16)
//!                                                  x = scale scales[i / 16] (q - 32)
//! ```
//! Of nibbles the low ones are the first 16 values, the high ones the last. As in ggml
//! (`ggml-quants.c`). Q6_K is read because llama.cpp's files of four bits have the token table in it.

use half::f16;

use crate::exchange::Element;

/// Values of a block.
const BLOCK: usize = 32;
/// Values of a block of Q6_K, and of each of its scales.
const LARGE: usize = 256;
const SCALED: usize = 16;

/// What elements of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Upper half of single precision.
    Bf16,
    /// 8 bits and a scale.
    Q8_0,
    /// 4 bits and a scale.
    Q4_0,
    /// 4 bits, a scale and a smallest value.
    Q4_1,
    /// 6 bits, and scales of scales.
    Q6K,
}

impl Kind {
    /// ggml's number for it.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 8,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    pub(super) fn of_number(number: u32) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Q6K]
            .into_iter()
            .find(|kind| kind.number() == number)
    }

    /// ggml's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q6K => "Q6_K",
        }
    }

    /// llama.cpp's number for a file of such matrices (`general.file_type`).
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q6K => 18,
            Self::Bf16 => 32,
        }
    }

    /// Values that are stored together, and their bytes.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (BLOCK, 2 + BLOCK),
            Self::Q4_0 => (BLOCK, 2 + BLOCK / 2),
            Self::Q4_1 => (BLOCK, 4 + BLOCK / 2),
            Self::Q6K => (LARGE, LARGE / 2 + LARGE / 4 + LARGE / SCALED + 2),
        }
    }

    /// Those that are not of blocks.
    fn plain(self) -> Option<Element> {
        match self {
            Self::F32 => Some(Element::F32),
            Self::F16 => Some(Element::F16),
            Self::Bf16 => Some(Element::Bf16),
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q6K => None,
        }
    }

    /// The first of some values that cannot be written: not finite, or too large.
    pub(super) fn lost(self, row: &[f32]) -> Option<f32> {
        let holds = |value: f32| match self.plain() {
            Some(element) => element.holds(value),
            None => f16::from_f32(value / 127.0).is_finite(),
        };
        row.iter().copied().find(|value| !holds(*value))
    }

    /// Bytes of a row of `n` values; `None` if it is not of whole blocks.
    pub(super) fn row_bytes(self, n: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        if n.is_multiple_of(values) { (n / values).checked_mul(bytes) } else { None }
    }

    /// Values of a row.
    ///
    /// # Panics
    /// If `from` has not the bytes of `to`'s values.
    pub(super) fn read(self, from: &[u8], to: &mut [f32]) {
        if let Some(element) = self.plain() {
            return element.read(from, to);
        }
        let (values, bytes) = self.block();
        assert_eq!(from.len() * values, to.len() * bytes, "a row of whole blocks");
        let half = |at: &[u8]| f16::from_le_bytes([at[0], at[1]]).to_f32();
        for (from, to) in from.chunks_exact(bytes).zip(to.chunks_exact_mut(values)) {
            match self {
                Self::Q8_0 => {
                    let scale = half(from);
                    for (to, q) in to.iter_mut().zip(&from[2..]) {
                        *to = scale * f32::from(q.cast_signed());
                    }
                }
                Self::Q4_0 => {
                    let scale = half(from);
                    nibbles(&from[2..], to, |q| scale * (q - 8.0));
                }
                Self::Q4_1 => {
                    let (scale, least) = (half(from), half(&from[2..]));
                    nibbles(&from[4..], to, |q| scale * q + least);
                }
                Self::Q6K => six_bits(from, half(&from[bytes - 2..]), to),
                Self::F32 | Self::F16 | Self::Bf16 => {}
            }
        }
    }

    /// Appends the bytes of a row.
    ///
    /// # Panics
    /// For types that are only read; if the row is not of whole blocks.
    pub(super) fn write(self, row: &[f32], to: &mut Vec<u8>) {
        if let Some(element) = self.plain() {
            return element.write(row, to);
        }
        match self {
            Self::Q8_0 => {
                assert!(row.len().is_multiple_of(BLOCK), "a row of whole blocks");
                for block in row.chunks_exact(BLOCK) {
                    let largest = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                    let scale = largest / 127.0;
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    to.extend(f16::from_f32(scale).to_le_bytes());
                    // Within -127..=127: the largest is 127 times the scale.
                    to.extend(block.iter().map(|x| ((x * inverse).round() as i8).cast_unsigned()));
                }
            }
            _ => panic!("{self:?} is only read"),
        }
    }
}

fn nibbles(from: &[u8], to: &mut [f32], value: impl Fn(f32) -> f32) {
    let (first, last) = to.split_at_mut(BLOCK / 2);
    for ((byte, low), high) in from.iter().zip(first).zip(last) {
        *low = value(f32::from(byte & 15));
        *high = value(f32::from(byte >> 4));
    }
}

/// A block of Q6_K: of each half of it, 64 bytes of nibbles and 32 of pairs of bits make four times
/// 32 values.
fn six_bits(from: &[u8], scale: f32, to: &mut [f32]) {
    let (low, rest) = from.split_at(LARGE / 2);
    let (high, scales) = rest.split_at(LARGE / 4);
    for (i, to) in to.iter_mut().enumerate() {
        let (half, quarter, at) = (i / 128, i % 128 / 32, i % 32);
        let nibbles = low[half * 64 + quarter % 2 * 32 + at];
        let nibble = if quarter < 2 { nibbles & 15 } else { nibbles >> 4 };
        let pair = high[half * 32 + at] >> (2 * quarter) & 3;
        let q = i16::from(nibble | pair << 4) - 32;
        *to = scale * f32::from(scales[i / SCALED].cast_signed()) * f32::from(q);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_are_within_half_a_step() {
        let row: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.0) * 0.013).collect();
        let mut bytes = Vec::new();
        Kind::Q8_0.write(&row, &mut bytes);
        assert_eq!(Some(bytes.len()), Kind::Q8_0.row_bytes(64));
        let mut back = vec![0.0; 64];
        Kind::Q8_0.read(&bytes, &mut back);
        for (block, read) in row.chunks(BLOCK).zip(back.chunks(BLOCK)) {
            let largest = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            for (x, y) in block.iter().zip(read) {
                // Half a step, and what the scale loses as f16.
                let most = largest / 127.0 * 0.5 + x.abs() / 2048.0;
                assert!((x - y).abs() <= most, "{y} for {x}");
            }
        }
        let mut zeros = Vec::new();
        Kind::Q8_0.write(&[0.0; BLOCK], &mut zeros);
        assert_eq!(zeros, [0; 34]);
    }

    #[test]
    fn four_bits_are_what_ggml_says() {
        let scale = f16::from_f32(0.5).to_le_bytes();
        let least = f16::from_f32(-3.0).to_le_bytes();
        // Low nibbles 0 to 15, high ones 15 to 0.
        let bytes: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let mut to = [0.0; BLOCK];
        Kind::Q4_0.read(&[&scale[..], &bytes].concat(), &mut to);
        assert_eq!((to[0], to[15], to[16], to[31]), (-4.0, 3.5, 3.5, -4.0));
        Kind::Q4_1.read(&[&scale[..], &least, &bytes].concat(), &mut to);
        assert_eq!((to[0], to[15], to[16], to[31]), (-3.0, 4.5, 4.5, -3.0));
    }

    /// `tests/golden/make_gguf.py` makes it with ggml's own Python package.
    #[test]
    fn blocks_are_read_as_ggml_reads_them() {
        let golden = include_str!("../../../tests/golden/gguf/blocks.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let kinds =
            [("Q8_0", Kind::Q8_0), ("Q4_0", Kind::Q4_0), ("Q4_1", Kind::Q4_1), ("Q6_K", Kind::Q6K)];
        for (name, kind) in kinds {
            let bytes: Vec<u8> = serde_json::from_value(golden[name]["bytes"].clone()).unwrap();
            let wanted: Vec<f32> = serde_json::from_value(golden[name]["values"].clone()).unwrap();
            assert_eq!(kind.row_bytes(wanted.len()), Some(bytes.len()), "{name}");
            let mut values = vec![0.0; wanted.len()];
            kind.read(&bytes, &mut values);
            assert_eq!(values, wanted, "{name}");
        }
    }

    #[test]
    fn what_a_type_cannot_hold_is_found() {
        assert_eq!(Kind::F32.lost(&[1.0, f32::INFINITY]), Some(f32::INFINITY));
        assert_eq!(Kind::F16.lost(&[1.0, 7e4]), Some(7e4));
        assert_eq!(Kind::Q8_0.lost(&[1e6, 1e7]), Some(1e7));
        assert_eq!(Kind::Bf16.lost(&[1e30]), None);
    }

    #[test]
    fn rows_are_of_whole_blocks() {
        assert_eq!(Kind::Q4_0.row_bytes(33), None);
        assert_eq!(Kind::Q4_1.row_bytes(64), Some(40));
        assert_eq!(Kind::Q6K.row_bytes(256), Some(210));
        assert_eq!(Kind::of_number(99), None);
        for kind in [Kind::F32, Kind::F16, Kind::Bf16, Kind::Q6K] {
            assert_eq!(Kind::of_number(kind.number()), Some(kind));
        }
    }
}
