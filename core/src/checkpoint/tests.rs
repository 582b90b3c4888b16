//! Round trips, and every single-byte damage to a small checkpoint.

use super::*;
extern crate std;
use crate::params::ParamTable;
use std::vec;
use std::vec::Vec;

const CONFIG: ModelConfig = ModelConfig {
    vocab_size: 5,
    block_size: 3,
    n_layer: 1,
    n_head: 1,
    d_model: 3,
    d_ff: 4,
    bias: true,
    tied: true,
    dropout: 0.125,
    norm_eps: 1e-5,
};
const HEADER: Header = Header { config: CONFIG, seed: 7, updates: 1234 };

/// An arena with a different value everywhere, the gaps included.
fn arena(start: f32) -> Vec<f32> {
    let len = ParamTable::new(&CONFIG).unwrap().arena_len();
    (0..len).map(|i| start + i as f32).collect()
}

fn encoded(moments: bool) -> Vec<u8> {
    let (p, m, v) = (arena(1.0), arena(2000.5), arena(-9000.25));
    let len = encoded_len(&HEADER, 5, moments).unwrap();
    let mut out = vec![0; len];
    let mut sink = SliceSink::new(&mut out);
    let moments = moments.then_some((&m[..], &v[..]));
    encode(&HEADER, b"hello", &p, moments, &mut sink).unwrap();
    assert_eq!(sink.written(), len, "encoded_len is exact");
    out
}

#[test]
fn round_trip_brings_everything_back() {
    let bytes = encoded(true);
    let checkpoint = Checkpoint::parse(&bytes).unwrap();
    assert_eq!(*checkpoint.header(), HEADER);
    assert_eq!(checkpoint.meta(), b"hello");
    let table = ParamTable::new(&CONFIG).unwrap();
    let (mut p, mut m, mut v) = (vec![0.0; table.arena_len()], arena(0.0), arena(0.0));
    checkpoint.read_parameters(&mut p);
    checkpoint.read_moments(&mut m, &mut v).unwrap();
    for spec in table.iter() {
        assert_eq!(p[spec.range()], arena(1.0)[spec.range()]);
        assert_eq!(m[spec.range()], arena(2000.5)[spec.range()]);
        assert_eq!(v[spec.range()], arena(-9000.25)[spec.range()]);
    }
    assert_eq!(checkpoint.parameter_bytes().len(), table.parameters() * 4);
    // The gap behind the first tensor (15 of 16 floats) was not written.
    assert_eq!(p[15], 0.0);
}

#[test]
fn a_model_without_moments_cannot_be_resumed() {
    let bytes = encoded(false);
    let checkpoint = Checkpoint::parse(&bytes).unwrap();
    assert!(!checkpoint.has_moments());
    let (mut m, mut v) = (arena(0.0), arena(0.0));
    assert_eq!(checkpoint.read_moments(&mut m, &mut v), Err(CheckpointError::NoMoments));
}

#[test]
fn every_flipped_bit_is_found() {
    let good = encoded(true);
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(Checkpoint::parse(&bad).is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn a_model_is_read_without_its_moments() {
    let good = encoded(true);
    let checkpoint = Checkpoint::parse_model(&good).unwrap();
    assert_eq!((checkpoint.header(), checkpoint.meta()), (&HEADER, &b"hello"[..]));
    assert!(!checkpoint.has_moments());
    let mut p = arena(0.0);
    checkpoint.read_parameters(&mut p);
    assert_eq!(p[0], 1.0);
    // Two sections of moments and their sums, then the end.
    let section = 16 + ParamTable::new(&CONFIG).unwrap().parameters() * 4 + 4;
    let end = good.len() - 20;
    let payloads = [end - 2 * section + 16..end - section, end - section + 16..end];
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            let unseen = payloads.iter().any(|payload| payload.contains(&at));
            assert_eq!(Checkpoint::parse_model(&bad).is_ok(), unseen, "byte {at} bit {bit}");
        }
    }
    for len in 1..good.len() {
        let cut = Checkpoint::parse_model(&good[..len]).unwrap_err();
        assert_eq!(cut, CheckpointError::Truncated, "{len}");
    }
    assert!(Checkpoint::parse_model(&encoded(false)).is_ok());
}

#[test]
fn every_truncation_is_found() {
    let good = encoded(true);
    assert_eq!(Checkpoint::parse(&[]).unwrap_err(), CheckpointError::Foreign);
    for len in 1..good.len() {
        assert_eq!(
            Checkpoint::parse(&good[..len]).unwrap_err(),
            CheckpointError::Truncated,
            "{len}"
        );
    }
    let longer = [&good[..], &[0]].concat();
    assert_eq!(Checkpoint::parse(&longer).unwrap_err(), CheckpointError::Trailing);
}

#[test]
fn other_files_and_other_versions_are_named() {
    assert_eq!(Checkpoint::parse(b"GGUF....").unwrap_err(), CheckpointError::Foreign);
    let mut newer = encoded(true);
    newer[8] = 2;
    assert_eq!(Checkpoint::parse(&newer).unwrap_err(), CheckpointError::Newer { version: 2 });
}

#[test]
fn absurd_headers_with_good_checksums_are_refused() {
    // vocab_size 2^60: no allocation can follow from it.
    let mut bad = encoded(false);
    bad[16..24].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    let sum = crc32fast::hash(&bad[16..16 + HEADER_LEN]);
    bad[16 + HEADER_LEN..][..4].copy_from_slice(&sum.to_le_bytes());
    assert!(matches!(Checkpoint::parse(&bad), Err(CheckpointError::Config(_))));
}

#[test]
fn a_short_slice_is_an_error() {
    let mut out = vec![0; encoded_len(&HEADER, 5, false).unwrap() - 1];
    let p = arena(0.0);
    let mut sink = SliceSink::new(&mut out);
    assert_eq!(encode(&HEADER, b"hello", &p, None, &mut sink), Err(SliceFull));
}
