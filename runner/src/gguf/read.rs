//! Reading a file: keys and the places of tensors, of bytes that anybody may have written.
//!
//! Counts are believed only as far as there are bytes for them; tensors lie inside the file, do not
//! overlap, and are of whole rows.

use core::ops::Range;
use std::collections::BTreeMap;

use super::blocks::Kind;
use super::value::{ARRAY, I32, TEXT, Value};
use super::{ALIGNMENT, ALIGNMENT_KEY, MAGIC, READ_VERSIONS};

/// What is wrong, in words.
type Result<T> = core::result::Result<T, String>;

/// Most dimensions of a tensor, as in ggml.
const DIMENSIONS: usize = 4;
/// Most keys and tensors: beside so few bytes what is kept of each would be large.
const MOST: usize = 1 << 16;
/// Fewest bytes of a key (an empty name, a kind, a byte) and of a tensor.
const LEAST_KEY: usize = 8 + 4 + 1;
const LEAST_TENSOR: usize = 8 + 4 + 4 + 8;

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    /// Elements of each dimension, that of adjacent ones first.
    pub(super) dims: Vec<usize>,
    pub(super) kind: Kind,
    /// Its bytes in the file.
    pub(super) bytes: Range<usize>,
}

impl Tensor {
    /// Whether another one has the same elements, in the file of these bytes.
    pub(super) fn is_copy_of(&self, other: &Self, bytes: &[u8]) -> bool {
        let elements = |tensor: &Self| bytes.get(tensor.bytes.clone());
        self.dims == other.dims && self.kind == other.kind && elements(self) == elements(other)
    }
}

/// A file that has been looked through.
#[derive(Debug)]
pub(super) struct File {
    pub(super) keys: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Tensor>,
}

impl File {
    /// Reads all but the tensors' elements.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut at = Reader { bytes, at: 0 };
        if at.take(4)? != MAGIC {
            return Err("not a GGUF file, nor a folder of transformers".to_owned());
        }
        match at.u32()? {
            version if READ_VERSIONS.contains(&version) => {}
            other if READ_VERSIONS.contains(&other.swap_bytes()) => {
                return Err("a GGUF file of a big-endian machine".to_owned());
            }
            other => {
                return Err(format!(
                    "GGUF of version {other}, but this program reads {READ_VERSIONS:?}"
                ));
            }
        }
        let tensors = at.count(LEAST_TENSOR, "tensors")?;
        let keys = at.count(LEAST_KEY, "keys")?;
        if tensors.max(keys) > MOST {
            return Err(format!("{tensors} tensors and {keys} keys: at most {MOST} are read"));
        }
        let keys = at.keys(keys)?;
        let alignment = match keys.get(ALIGNMENT_KEY) {
            None => ALIGNMENT,
            Some(value) => value
                .count()
                .filter(|n| n.is_power_of_two() && (8..=1 << 20).contains(n))
                .ok_or_else(|| format!("{ALIGNMENT_KEY} is no alignment"))?,
        };
        let places = at.tensors(tensors)?;
        let data = at.at.next_multiple_of(alignment);
        let tensors = places
            .into_iter()
            .map(|(name, place)| {
                let tensor = place.tensor(data, alignment, bytes.len());
                tensor.map(|t| (name.clone(), t)).map_err(|e| format!("tensor {name}: {e}"))
            })
            .collect::<Result<BTreeMap<_, _>>>()?;
        check_apart(&tensors)?;
        Ok(Self { keys, tensors })
    }
}

/// No byte is of two tensors.
fn check_apart(tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let mut all: Vec<_> = tensors.iter().collect();
    all.sort_by_key(|(_, tensor)| (tensor.bytes.start, tensor.bytes.end));
    for pair in all.windows(2) {
        let [(first, a), (second, b)] = pair else { continue };
        if a.bytes.end > b.bytes.start {
            return Err(format!("tensors {first} and {second} overlap"));
        }
    }
    Ok(())
}

/// What a file says of a tensor.
struct Place {
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl Place {
    fn tensor(self, data: usize, alignment: usize, len: usize) -> Result<Tensor> {
        let kind = Kind::of_number(self.kind).ok_or_else(|| {
            let known = Kind::ALL.map(Kind::name).join(", ");
            format!("elements of type {}; those that can be read are {known}", self.kind)
        })?;
        let dims: Option<Vec<usize>> =
            self.dims.iter().map(|n| usize::try_from(*n).ok().filter(|n| *n > 0)).collect();
        let dims = dims.ok_or("a dimension of no size, or too large")?;
        let (first, others) = dims.split_first().ok_or("no dimensions")?;
        let row = kind.row_bytes(*first).ok_or_else(|| {
            format!("rows of {first} elements are not of whole blocks of {}", kind.name())
        })?;
        let size = others.iter().try_fold(row, |bytes, n| bytes.checked_mul(*n));
        let start = usize::try_from(self.offset).ok().and_then(|offset| offset.checked_add(data));
        let end = start.zip(size).and_then(|(start, size)| start.checked_add(size));
        let (Some(start), Some(end)) = (start, end) else {
            return Err("its size overflows".to_owned());
        };
        if !start.is_multiple_of(alignment) {
            return Err(format!("it does not start at a multiple of {alignment}"));
        }
        if end > len {
            return Err(format!("it ends at byte {end}, but the file has {len}: it is cut off"));
        }
        Ok(Tensor { dims, kind, bytes: start..end })
    }
}

/// Where reading is.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        if n > self.left() {
            return Err(format!("it ends at byte {}, within its header", self.bytes.len()));
        }
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// How many of something follow that take at least so many bytes each.
    fn count(&mut self, least: usize, what: &str) -> Result<usize> {
        let count = self.u64()?;
        let most = self.left() / least;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(format!("it claims {count} {what}, and has no room for more than {most}")),
        }
    }

    fn text(&mut self) -> Result<String> {
        let len = self.count(1, "bytes of text")?;
        let text = core::str::from_utf8(self.take(len)?);
        Ok(text.map_err(|e| format!("a text that is not UTF-8: {e}"))?.to_owned())
    }

    fn keys(&mut self, count: usize) -> Result<BTreeMap<String, Value>> {
        let mut keys = BTreeMap::new();
        for _ in 0..count {
            let name = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind).map_err(|e| format!("key {name}: {e}"))?;
            if keys.insert(name.clone(), value).is_some() {
                return Err(format!("key {name} is there twice"));
            }
        }
        Ok(keys)
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(self.array::<1>()?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            ARRAY => {
                let of = self.u32()?;
                let least = Value::least_bytes(of).ok_or_else(|| unknown(of))?;
                let count = self.count(least, "values")?;
                match of {
                    TEXT => Value::Texts((0..count).map(|_| self.text()).collect::<Result<_>>()?),
                    I32 => {
                        let bytes = self.take(count * size_of::<i32>())?.as_chunks().0;
                        Value::Ints(bytes.iter().map(|x| i32::from_le_bytes(*x)).collect())
                    }
                    ARRAY => return Err("an array of arrays".to_owned()),
                    _ => {
                        self.take(count * least)?;
                        Value::Others(of, count)
                    }
                }
            }
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(unknown(other)),
        })
    }

    fn tensors(&mut self, count: usize) -> Result<BTreeMap<String, Place>> {
        let mut places = BTreeMap::new();
        for _ in 0..count {
            let name = self.text()?;
            let dims = self.u32()? as usize;
            if dims > DIMENSIONS {
                return Err(format!("tensor {name}: {dims} dimensions"));
            }
            let dims = (0..dims).map(|_| self.u64()).collect::<Result<_>>()?;
            let place = Place { dims, kind: self.u32()?, offset: self.u64()? };
            if places.insert(name.clone(), place).is_some() {
                return Err(format!("tensor {name} is there twice"));
            }
        }
        Ok(places)
    }
}

fn unknown(kind: u32) -> String {
    format!("a value of kind {kind}, of which there is none")
}
