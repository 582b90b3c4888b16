//! Types of elements: plain ones, and blocks of small numbers with a scale (see [`super::quants`]).

use half::f16;

use super::quants::{self, BLOCK, LARGE, SCALED, SCALES};
use crate::exchange::Element;

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
    /// 5 bits and a scale.
    Q5_0,
    /// 5 bits, a scale and a smallest value.
    Q5_1,
    /// 4 bits, and scales and smallest values with scales of their own.
    Q4K,
    /// 5 bits, and scales and smallest values with scales of their own.
    Q5K,
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
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// All that can be read, as messages list them.
    pub(super) const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q6K,
        Self::Q5K,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4K,
        Self::Q4_1,
        Self::Q4_0,
    ];

    pub(super) fn of_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
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
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
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
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            // Those of matrices of one type are told apart from mixed ones by a letter: the small ones.
            Self::Q4K => 14,
            Self::Q5K => 16,
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
            Self::Q5_0 => (BLOCK, 2 + BLOCK / 8 + BLOCK / 2),
            Self::Q5_1 => (BLOCK, 4 + BLOCK / 8 + BLOCK / 2),
            Self::Q4K => (LARGE, 4 + SCALES + LARGE / 2),
            Self::Q5K => (LARGE, 4 + SCALES + LARGE / 8 + LARGE / 2),
            Self::Q6K => (LARGE, LARGE / 2 + LARGE / 4 + LARGE / SCALED + 2),
        }
    }

    /// Those that are not of blocks.
    fn plain(self) -> Option<Element> {
        match self {
            Self::F32 => Some(Element::F32),
            Self::F16 => Some(Element::F16),
            Self::Bf16 => Some(Element::Bf16),
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => None,
            Self::Q4K | Self::Q5K | Self::Q6K => None,
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
        for (from, to) in from.chunks_exact(bytes).zip(to.chunks_exact_mut(values)) {
            match self {
                Self::Q8_0 => quants::eight(from, to),
                Self::Q4_0 => quants::four(from, to),
                Self::Q4_1 => quants::four_and_least(from, to),
                Self::Q5_0 => quants::five(from, to),
                Self::Q5_1 => quants::five_and_least(from, to),
                Self::Q4K => quants::four_of_scales(from, to),
                Self::Q5K => quants::five_of_scales(from, to),
                Self::Q6K => quants::six_of_scales(from, to),
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

    /// `tests/golden/make_gguf.py` makes it with ggml's own Python package.
    #[test]
    fn blocks_are_read_as_ggml_reads_them() {
        let golden = include_str!("../../../tests/golden/gguf/blocks.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let blocks = Kind::ALL.into_iter().filter(|kind| kind.plain().is_none());
        assert_eq!(golden.as_object().unwrap().len(), blocks.clone().count());
        for kind in blocks {
            let name = kind.name();
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
        for kind in Kind::ALL {
            assert_eq!(Kind::of_number(kind.number()), Some(kind));
        }
    }
}
