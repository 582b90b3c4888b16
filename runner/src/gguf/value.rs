//! Values of keys.

use core::fmt;

/// A value. Of arrays those of texts and of small numbers are kept, which tokenizers have; of others it
/// is known how many there are: a file may have as many as it has bytes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Texts(Vec<String>),
    Ints(Vec<i32>),
    /// An array of so many others, of the kind with that number.
    Others(u32, usize),
}

/// Numbers of kinds.
pub(super) const I32: u32 = 5;
pub(super) const TEXT: u32 = 8;
pub(super) const ARRAY: u32 = 9;

impl Value {
    /// The number that files have for its kind.
    pub(super) fn kind(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => I32,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => TEXT,
            Self::Texts(_) | Self::Ints(_) | Self::Others(..) => ARRAY,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// Bytes of a value of a kind, the fewest for texts; `None` if there is no such kind.
    pub(super) fn least_bytes(kind: u32) -> Option<usize> {
        Some(match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4 | I32 | 6 => 4,
            TEXT | 10..=12 => 8,
            ARRAY => 12,
            _ => return None,
        })
    }

    /// A whole number that is not negative.
    pub(super) fn count(&self) -> Option<usize> {
        match *self {
            Self::U8(x) => Some(x.into()),
            Self::U16(x) => Some(x.into()),
            Self::U32(x) => x.try_into().ok(),
            Self::U64(x) => x.try_into().ok(),
            Self::I8(x) => x.try_into().ok(),
            Self::I16(x) => x.try_into().ok(),
            Self::I32(x) => x.try_into().ok(),
            Self::I64(x) => x.try_into().ok(),
            _ => None,
        }
    }

    pub(super) fn number(&self) -> Option<f64> {
        match *self {
            Self::F32(x) => Some(x.into()),
            Self::F64(x) => Some(x),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Values of a long array that are shown.
const SHOWN: usize = 4;

/// For people: arrays by their first values, and how many there are.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(x) => write!(f, "{x}"),
            Self::I8(x) => write!(f, "{x}"),
            Self::U16(x) => write!(f, "{x}"),
            Self::I16(x) => write!(f, "{x}"),
            Self::U32(x) => write!(f, "{x}"),
            Self::I32(x) => write!(f, "{x}"),
            Self::F32(x) => write!(f, "{x}"),
            Self::Bool(x) => write!(f, "{x}"),
            Self::Text(x) => write!(f, "{x:?}"),
            Self::U64(x) => write!(f, "{x}"),
            Self::I64(x) => write!(f, "{x}"),
            Self::F64(x) => write!(f, "{x}"),
            Self::Texts(values) => some(f, values),
            Self::Ints(values) => some(f, values),
            Self::Others(_, count) => write!(f, "{count} values"),
        }
    }
}

fn some<T: fmt::Debug>(f: &mut fmt::Formatter<'_>, values: &[T]) -> fmt::Result {
    write!(f, "{} values", values.len())?;
    for (i, value) in values.iter().take(SHOWN).enumerate() {
        write!(f, "{}{value:?}", if i == 0 { ": " } else { ", " })?;
    }
    f.write_str(if values.len() > SHOWN { ", ..." } else { "" })
}
