//! Writing a file: header first, then one tensor after the other.

use std::io::{self, Write};

use super::blocks::Kind;
use super::value::{I32, TEXT, Value};
use super::{ALIGNMENT, MAGIC, VERSION};

/// A tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Planned {
    pub(super) name: String,
    /// As in a file: that of adjacent elements first.
    pub(super) dims: Vec<usize>,
    pub(super) kind: Kind,
}

impl Planned {
    fn bytes(&self) -> usize {
        let (row, others) = self.dims.split_first().unwrap_or((&0, &[]));
        // The planner chose a kind of which rows are whole blocks.
        self.kind.row_bytes(*row).unwrap_or(0) * others.iter().product::<usize>()
    }
}

/// Everything before the data.
pub(super) fn header(keys: &[(String, Value)], tensors: &[Planned]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (name, value) in keys {
        text(&mut out, name);
        out.extend(value.kind().to_le_bytes());
        put(&mut out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.dims.len() as u32).to_le_bytes());
        out.extend(tensor.dims.iter().flat_map(|n| (*n as u64).to_le_bytes()));
        out.extend(tensor.kind.number().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// Writes the elements of a tensor, row by row as `row` gives them, and what is left of its last
/// line. Gives the first value of which the type can make nothing.
pub(super) fn data(
    to: &mut impl Write,
    tensor: &Planned,
    mut row: impl FnMut(usize, &mut [f32]),
) -> io::Result<Option<f32>> {
    let (len, others) = tensor.dims.split_first().unwrap_or((&0, &[]));
    let (mut values, mut bytes) = (vec![0.0; *len], Vec::new());
    for r in 0..others.iter().product() {
        row(r, &mut values);
        if let Some(value) = tensor.kind.lost(&values) {
            return Ok(Some(value));
        }
        bytes.clear();
        tensor.kind.write(&values, &mut bytes);
        to.write_all(&bytes)?;
    }
    let all = tensor.bytes();
    to.write_all(&[0; ALIGNMENT][..all.next_multiple_of(ALIGNMENT) - all])?;
    Ok(None)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn array(out: &mut Vec<u8>, kind: u32, len: usize) {
    out.extend(kind.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(x) => out.push(*x),
        Value::I8(x) => out.extend(x.to_le_bytes()),
        Value::U16(x) => out.extend(x.to_le_bytes()),
        Value::I16(x) => out.extend(x.to_le_bytes()),
        Value::U32(x) => out.extend(x.to_le_bytes()),
        Value::I32(x) => out.extend(x.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::Text(x) => text(out, x),
        Value::U64(x) => out.extend(x.to_le_bytes()),
        Value::I64(x) => out.extend(x.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
        Value::Texts(values) => {
            array(out, TEXT, values.len());
            values.iter().for_each(|value| text(out, value));
        }
        Value::Ints(values) => {
            array(out, I32, values.len());
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        // Nothing that is written has others.
        Value::Others(kind, _) => array(out, *kind, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::read::File;
    use super::*;

    fn keys() -> Vec<(String, Value)> {
        let text = |text: &str| Value::Text(text.to_owned());
        let all = [
            ("a", Value::U8(200)),
            ("b", Value::I8(-3)),
            ("c", Value::U16(60_000)),
            ("d", Value::I16(-300)),
            ("e", Value::U32(4_000_000_000)),
            ("f", Value::I32(-5)),
            ("g", Value::F32(0.5)),
            ("h", Value::Bool(true)),
            ("i", text("été")),
            ("j", Value::U64(1 << 40)),
            ("k", Value::I64(-1)),
            ("l", Value::F64(0.1)),
            ("m", Value::Texts(vec!["x".to_owned(), String::new()])),
            ("n", Value::Ints(vec![7, -8])),
            ("o", Value::Texts(Vec::new())),
        ];
        all.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    fn planned() -> Vec<Planned> {
        let of = |name: &str, dims: &[usize], kind| Planned {
            name: name.to_owned(),
            dims: dims.to_vec(),
            kind,
        };
        vec![
            of("one", &[3], Kind::F32),
            of("two", &[32, 2], Kind::Q8_0),
            of("three", &[5, 2], Kind::F16),
        ]
    }

    fn file() -> Vec<u8> {
        let mut bytes = header(&keys(), &planned());
        for tensor in planned() {
            data(&mut bytes, &tensor, |r, row| {
                for (i, x) in row.iter_mut().enumerate() {
                    *x = (r * 100 + i) as f32;
                }
            })
            .unwrap();
        }
        bytes
    }

    #[test]
    fn what_is_written_is_read_again() {
        let bytes = file();
        let read = File::parse(&bytes).unwrap();
        let wanted: Vec<_> = read.keys.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        assert_eq!(wanted, keys());
        for planned in planned() {
            let tensor = &read.tensors[&planned.name];
            assert_eq!((&tensor.dims, tensor.kind), (&planned.dims, planned.kind));
            let mut values = vec![0.0; planned.dims.iter().product()];
            tensor.kind.read(&bytes[tensor.bytes.clone()], &mut values);
            // Of eight bits each, in steps of 31 / 127.
            let most = if tensor.kind == Kind::Q8_0 { 0.13 } else { 0.0 };
            assert!((values[1] - 1.0).abs() <= most, "{}: {}", planned.name, values[1]);
        }
        assert_eq!(read.tensors["three"].bytes.end.next_multiple_of(ALIGNMENT), bytes.len());
    }

    #[test]
    fn no_beginning_of_a_file_is_a_file() {
        let bytes = file();
        let data = header(&keys(), &planned()).len();
        for len in (0..data).chain([data + 11, bytes.len() - ALIGNMENT]) {
            assert!(File::parse(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn claims_that_cannot_be_are_refused() {
        let bytes = file();
        let with = |at: usize, put: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[at..at + put.len()].copy_from_slice(put);
            File::parse(&bytes).unwrap_err()
        };
        let many = u64::MAX.to_le_bytes();
        assert!(with(0, b"GGML").contains("not a GGUF file"));
        assert!(with(4, &9_u32.to_le_bytes()).contains("version 9"));
        assert!(with(4, &3_u32.to_be_bytes()).contains("big-endian"));
        assert!(with(8, &many).contains("18446744073709551615 tensors"));
        assert!(with(16, &many).contains("18446744073709551615 keys"));
        assert!(with(24, &many).contains("bytes of text"));
        // The kind of key a, then its name again.
        assert!(with(33, &99_u32.to_le_bytes()).contains("key a: a value of kind 99"));
        let find = |name: &str| {
            let name = [&(name.len() as u64).to_le_bytes(), name.as_bytes()].concat();
            bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len()
        };
        let (two, three) = (find("two"), find("three"));
        assert!(with(two, &5_u32.to_le_bytes()).contains("two: 5 dimensions"));
        assert!(with(two + 4, &33_u64.to_le_bytes()).contains("whole blocks of Q8_0"));
        assert!(with(two + 12, &many).contains("overflows"));
        assert!(with(two + 12, &0_u64.to_le_bytes()).contains("no size"));
        assert!(with(two + 20, &77_u32.to_le_bytes()).contains("type 77"));
        assert!(with(three + 24, &32_u64.to_le_bytes()).contains("overlap"));
        assert!(with(three + 24, &5_u64.to_le_bytes()).contains("multiple of 32"));
        assert!(with(three + 24, &(1_u64 << 40).to_le_bytes()).contains("cut off"));
    }
}
