//! Plain elements of files: `f32`, and its two halves.

use half::{bf16, f16};

/// What a weight is stored as, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// As it is computed with: nothing is lost.
    F32,
    /// Rounded to the nearest, half of the size; up to 65,504.
    F16,
    /// Rounded to the nearest, half of the size, with the range of `f32`.
    Bf16,
}

impl Element {
    /// Bytes of one.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Whether `value` is a finite number in it too.
    pub(crate) fn holds(self, value: f32) -> bool {
        match self {
            Self::F32 => value.is_finite(),
            Self::F16 => f16::from_f32(value).is_finite(),
            Self::Bf16 => bf16::from_f32(value).is_finite(),
        }
    }

    /// Reads as many values as `to` has.
    ///
    /// # Panics
    /// If `from` has not their bytes.
    pub(crate) fn read(self, from: &[u8], to: &mut [f32]) {
        assert_eq!(from.len(), to.len() * self.bytes(), "bytes of {self:?}");
        let halves = from.as_chunks::<2>().0.iter();
        match self {
            Self::F32 => {
                for (to, from) in to.iter_mut().zip(from.as_chunks::<4>().0) {
                    *to = f32::from_le_bytes(*from);
                }
            }
            Self::F16 => {
                for (to, from) in to.iter_mut().zip(halves) {
                    *to = f16::from_le_bytes(*from).to_f32();
                }
            }
            Self::Bf16 => {
                for (to, from) in to.iter_mut().zip(halves) {
                    *to = bf16::from_le_bytes(*from).to_f32();
                }
            }
        }
    }

    /// Appends the bytes of values.
    pub(crate) fn write(self, values: &[f32], to: &mut Vec<u8>) {
        match self {
            Self::F32 => to.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            Self::F16 => to.extend(values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes())),
            Self::Bf16 => to.extend(values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_the_nearest_and_know_their_range() {
        for element in [Element::F32, Element::F16, Element::Bf16] {
            let (mut bytes, mut back) = (Vec::new(), [9.0; 3]);
            element.write(&[1.0, -2.5, 0.0], &mut bytes);
            element.read(&bytes, &mut back);
            assert_eq!(back, [1.0, -2.5, 0.0]);
            assert!(!element.holds(f32::NAN) && element.holds(65_504.0));
        }
        assert!(!Element::F16.holds(65_520.0) && Element::Bf16.holds(1e38));
        assert!(!Element::Bf16.holds(f32::MAX) && Element::F32.holds(f32::MAX));
    }
}
