//! Round trips, and every single-byte damage to a small checkpoint.

use super::*;
use crate::adapter::{AdapterError, AdapterSites};
extern crate std;
use crate::config::ConfigError;
use crate::moments::{Moments, MomentsMut, first_block};
use crate::optimizer::OptimizerKind;
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
    arch: Architecture::GPT2,
};
const HEADER: Header = Header { config: CONFIG, adapters: None, seed: 7, updates: 1234 };

/// An arena with a different value everywhere, the gaps included.
fn arena(start: f32) -> Vec<f32> {
    let len = ParamTable::new(&CONFIG).unwrap().arena_len();
    (0..len).map(|i| start + i as f32).collect()
}

fn encoded(moments: bool) -> Vec<u8> {
    let (p, m, v) = (arena(1.0), arena(2000.5), arena(-9000.25));
    let moments = moments.then_some(Moments::AdamW { first: &m, second: &v });
    let len = encoded_len(&HEADER, 5, moments.map(|moments| moments.kind())).unwrap();
    let mut out = vec![0; len];
    let mut sink = SliceSink::new(&mut out);
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
    checkpoint.read_moments(MomentsMut::AdamW { first: &mut m, second: &mut v }).unwrap();
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
    assert_eq!(checkpoint.optimizer(), None);
    let (mut m, mut v) = (arena(0.0), arena(0.0));
    for moments in [MomentsMut::AdamW { first: &mut m, second: &mut v }, MomentsMut::Sgd] {
        assert_eq!(checkpoint.read_moments(moments), Err(CheckpointError::NoMoments));
    }
}

#[test]
fn every_flipped_bit_is_found() {
    assert_every_flip_is_found(&encoded(true));
}

#[track_caller]
fn assert_every_flip_is_found(good: &[u8]) {
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.to_vec();
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
    newer[8] = VERSION as u8 + 1;
    // Its header is not longer: it is not a newer one, but damaged, and a run may pass over it.
    assert_eq!(Checkpoint::parse(&newer).unwrap_err(), CheckpointError::Altered("version"));
    newer[12..16].copy_from_slice(&(LONGEST as u32 + 1).to_le_bytes());
    assert_eq!(
        Checkpoint::parse(&newer).unwrap_err(),
        CheckpointError::Newer { version: VERSION + 1 }
    );
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

/// A model of the Llama family with every field of the second version's in use.
fn llama() -> (Header, Vec<u8>) {
    use crate::architecture::{Positions, Rotary, Scaling};
    let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 };
    let positions = Positions::Rotary(Rotary { theta: 5e5, scaling });
    let arch = Architecture {
        positions,
        n_kv_head: Some(1),
        head_size: Some(4),
        qkv_bias: true,
        qk_norm: true,
        window: Some(2),
        ..Architecture::LLAMA
    };
    let header =
        Header { config: ModelConfig { n_head: 2, bias: false, arch, ..CONFIG }, ..HEADER };
    let len = ParamTable::new(&header.config).unwrap().arena_len();
    let arena: Vec<f32> = (0..len).map(|i| i as f32).collect();
    let moments = Moments::AdamW { first: &arena, second: &arena };
    let mut out = vec![0; encoded_len(&header, 5, Some(OptimizerKind::AdamW)).unwrap()];
    let mut sink = SliceSink::new(&mut out);
    encode(&header, b"hello", &arena, Some(moments), &mut sink).unwrap();
    assert_eq!(sink.written(), out.len());
    (header, out)
}

#[test]
fn architectures_come_back_and_every_flipped_bit_of_them_is_found() {
    let (header, good) = llama();
    let checkpoint = Checkpoint::parse(&good).unwrap();
    assert_eq!((*checkpoint.header(), checkpoint.meta()), (header, &b"hello"[..]));
    assert_every_flip_is_found(&good);
}

#[test]
fn headers_with_good_checksums_and_nonsense_are_refused() {
    let (_, good) = llama();
    let len = HEADER_LEN + ARCH_LEN;
    let with = |field: usize, value: u64| {
        let mut bad = good.clone();
        bad[16 + HEADER_LEN + 8 * field..][..8].copy_from_slice(&value.to_le_bytes());
        let sum = crc32fast::hash(&bad[16..16 + len]);
        bad[16 + len..][..4].copy_from_slice(&sum.to_le_bytes());
        Checkpoint::parse(&bad).map(|_| ())
    };
    assert_eq!(with(0, 1), Ok(()));
    // Kinds and flags that do not exist, and a length of no 32 bits (9).
    for (field, value) in [(0, 2), (1, 2), (2, 3), (3, 3), (6, 2), (7, 2), (9, 1 << 32)] {
        assert_eq!(with(field, value), Err(CheckpointError::Altered("header")), "{field}");
    }
    // Learned positions with what only angles have, and no scaling with its numbers.
    for field in [1, 2] {
        assert_eq!(with(field, 0), Err(CheckpointError::Altered("header")), "{field}");
    }
    let heads = ConfigError::KvHeads { n_head: 2, n_kv_head: 3 };
    assert_eq!(with(4, 3), Err(CheckpointError::Config(heads)));
    assert_eq!(with(5, 3), Err(CheckpointError::Config(ConfigError::OddHead(3))));
}

/// A model and adapters of some of its parts.
fn adapted_header() -> Header {
    use crate::adapter::AdapterSite::{AttnOut, Queries, Values};
    let sites = AdapterSites::of(&[Queries, Values, AttnOut]);
    Header { adapters: Some(Adapters { rank: 2, scale: 0.5, sites }), ..llama().0 }
}

/// A checkpoint of those.
fn adapted() -> (Header, AdapterTable, Vec<u8>) {
    let header = adapted_header();
    let table = AdapterTable::new(&header.config, &header.adapters.unwrap()).unwrap();
    let arena: Vec<f32> = (0..table.arena_len()).map(|i| i as f32).collect();
    let moments = Moments::AdamW { first: &arena, second: &arena };
    let mut out = vec![0; encoded_len(&header, 5, Some(OptimizerKind::AdamW)).unwrap()];
    let mut sink = SliceSink::new(&mut out);
    encode(&header, b"hello", &arena, Some(moments), &mut sink).unwrap();
    assert_eq!(sink.written(), out.len());
    (header, table, out)
}

#[test]
fn adapters_come_back_without_the_model() {
    let (header, table, good) = adapted();
    let checkpoint = Checkpoint::parse(&good).unwrap();
    assert_eq!((*checkpoint.header(), checkpoint.meta()), (header, &b"hello"[..]));
    let mut arenas = [(); 3].map(|()| vec![-1.0; table.arena_len()]);
    let [values, first, second] = &mut arenas;
    checkpoint.read_parameters(values);
    checkpoint.read_moments(MomentsMut::AdamW { first, second }).unwrap();
    let mut written = 0;
    for index in 0..table.count() {
        let factor = table.get(index).unwrap();
        for at in factor.offset..factor.offset + factor.len() {
            assert_eq!([values[at], first[at], second[at]], [at as f32; 3]);
            written += 1;
        }
    }
    assert_eq!(checkpoint.parameter_bytes().len(), 4 * written);
    assert_every_flip_is_found(&good);
    let with = |field: usize, value: u64| {
        let (mut bad, fields) = (good.clone(), HEADER_LEN + ARCH_LEN);
        bad[16 + fields + 8 * field..][..8].copy_from_slice(&value.to_le_bytes());
        let sum = crc32fast::hash(&bad[16..16 + header_len(3)]);
        bad[16 + header_len(3)..][..4].copy_from_slice(&sum.to_le_bytes());
        Checkpoint::parse(&bad).map(|_| ())
    };
    assert_eq!(with(0, 2), Ok(()));
    assert_eq!(with(0, 0), Err(CheckpointError::Adapters(AdapterError::Rank(0))));
    assert_eq!(with(0, 1 << 28), Err(CheckpointError::Altered("weights")));
    assert_eq!(with(1, 0), Err(CheckpointError::Adapters(AdapterError::NoSite)));
    assert_eq!(with(1, 1 << 9), Err(CheckpointError::Altered("header")));
}

/// Parts that version 4 brought, of a model and of its adapters.
#[test]
fn later_parts_are_of_a_version_that_older_programs_refuse() {
    let arch = |activation, logit_softcap| Architecture {
        activation,
        logit_softcap,
        ..llama().0.config.arch
    };
    let later = [
        arch(Activation::Relu2, None),
        arch(Activation::SwiGlu, Some(15.0)),
        arch(Activation::Relu2, Some(30.0)),
        Architecture { activation: Activation::Relu2, ..Architecture::GPT2 },
    ];
    for (arch, adapted) in later.into_iter().flat_map(|arch| [(arch, false), (arch, true)]) {
        let header = if adapted { adapted_header() } else { llama().0 };
        let header = Header { config: ModelConfig { arch, d_model: 4, ..header.config }, ..header };
        let mut good = vec![0; encoded_len(&header, 5, None).unwrap()];
        let arena = vec![0.5; 1000];
        encode(&header, b"hello", &arena, None, &mut SliceSink::new(&mut good)).unwrap();
        // A program that knows 3 versions says that it is too old: `Newer`.
        assert_eq!(good[8], 4, "version");
        assert_eq!(*Checkpoint::parse(&good).unwrap().header(), header);
        assert_every_flip_is_found(&good);
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[16 + at..][..bytes.len()].copy_from_slice(bytes);
            let sum = crc32fast::hash(&bad[16..16 + header_len(4)]);
            bad[16 + header_len(4)..][..4].copy_from_slice(&sum.to_le_bytes());
            Checkpoint::parse(&bad).map(|_| ())
        };
        let cap = |cap: f32| with(header_len(4) - LATER_LEN, &cap.to_le_bytes());
        assert_eq!(cap(20.0), Ok(()));
        for bad in [-15.0, 1e-4, 1e7, f32::INFINITY] {
            let error = Err(CheckpointError::Config(ConfigError::LogitSoftcap(bad)));
            assert_eq!(cap(bad), error);
        }
        assert!(matches!(cap(f32::NAN), Err(CheckpointError::Config(_))));
        assert_eq!(cap(-0.0), Err(CheckpointError::Altered("header")));
        if !adapted {
            // Adapters of no rank have nothing else.
            let scale = with(header_len(4) - LATER_LEN - 4, &1.0_f32.to_le_bytes());
            assert_eq!(scale, Err(CheckpointError::Altered("header")));
        }
    }
}

/// Embeddings of previous tokens, which version 7 brought, with moments and without.
#[test]
fn previous_tokens_are_of_a_version_that_older_programs_refuse() {
    let arch = Architecture { previous_tokens: 2, ..Architecture::GPT2 };
    let header = Header { config: ModelConfig { arch, ..CONFIG }, ..HEADER };
    let arena = vec![0.5; 1000];
    let moments = Moments::Momentum(&arena);
    for moments in [None, Some(moments)] {
        let kind = moments.as_ref().map(Moments::kind);
        let mut good = vec![0; encoded_len(&header, 5, kind).unwrap()];
        encode(&header, b"hello", &arena, moments, &mut SliceSink::new(&mut good)).unwrap();
        assert_eq!(good[8], 7, "version");
        assert_eq!(*Checkpoint::parse(&good).unwrap().header(), header);
        assert_every_flip_is_found(&good);
        let with = |back: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            let end = 16 + header_len(7);
            bad[end - back..][..bytes.len()].copy_from_slice(bytes);
            let sum = crc32fast::hash(&bad[16..end]);
            bad[end..][..4].copy_from_slice(&sum.to_le_bytes());
            Checkpoint::parse(&bad).map(|_| ())
        };
        let error = CheckpointError::Config(ConfigError::PreviousTokens(17));
        assert_eq!(with(8, &17_u64.to_le_bytes()), Err(error));
        // A model without is no model of this version, and what is not used is zeros.
        assert!(with(8, &0_u64.to_le_bytes()).is_err());
        assert_eq!(with(12, &[1]), Err(CheckpointError::Altered("header")));
    }
}

/// Scaled embeddings, which version 8 brought, with previous tokens and without.
#[test]
fn scaled_embeddings_are_of_a_version_that_older_programs_refuse() {
    for previous_tokens in [0, 2] {
        let arch = Architecture { embedding_scale: 8.0, previous_tokens, ..Architecture::GPT2 };
        let header = Header { config: ModelConfig { arch, ..CONFIG }, ..HEADER };
        let arena = vec![0.5; 1000];
        let mut good = vec![0; encoded_len(&header, 5, None).unwrap()];
        encode(&header, b"hello", &arena, None, &mut SliceSink::new(&mut good)).unwrap();
        assert_eq!(good[8], 8, "version");
        assert_eq!(*Checkpoint::parse(&good).unwrap().header(), header);
        assert_every_flip_is_found(&good);
        let with = |scale: f32| {
            let mut bad = good.clone();
            let end = 16 + header_len(8);
            bad[end - 4..end].copy_from_slice(&scale.to_le_bytes());
            let sum = crc32fast::hash(&bad[16..end]);
            bad[end..][..4].copy_from_slice(&sum.to_le_bytes());
            Checkpoint::parse(&bad).map(|_| ())
        };
        assert_eq!(with(4.0), Ok(()));
        for scale in [0.0, -8.0, 1e7, f32::INFINITY] {
            let error = CheckpointError::Config(ConfigError::EmbeddingScale(scale));
            assert_eq!(with(scale), Err(error));
        }
        // A model that scales nothing is no model of this version.
        assert!(with(1.0).is_err() && with(f32::NAN).is_err());
    }
}

/// The state of each optimizer, of a model and of adapters, comes back and goes to no other.
#[test]
fn moments_of_every_optimizer_come_back_and_every_flipped_bit_of_them_is_found() {
    // Tensors of more than a block, of a part of one, and of an odd number of values.
    let wide = ModelConfig { vocab_size: 7, d_model: 12, d_ff: 15, ..CONFIG };
    let of_model = Header { config: wide, ..HEADER };
    for (header, optimizer) in [of_model, adapted_header()]
        .into_iter()
        .flat_map(|header| OptimizerKind::ALL.map(|optimizer| (header, optimizer)))
    {
        let table = Tensors::of(&header).unwrap();
        let ranges: Vec<_> = table.ranges().collect();
        let (len, last) = (ranges.last().unwrap().end, ranges.len() - 1);
        let blocks = first_block(last, ranges[last].start) + blocks(ranges[last].len());
        let floats =
            |start: f32, len: usize| -> Vec<f32> { (0..len).map(|i| start + i as f32).collect() };
        let bytes =
            |factor: usize| -> Vec<u8> { (0..len).map(|i| (factor * i + 1) as u8).collect() };
        let (p, m, v, scales) =
            (floats(1.0, len), floats(0.5, len), floats(0.25, len), floats(3.0, 2 * blocks));
        let (q, r) = (bytes(3), bytes(5));
        let moments = match optimizer {
            OptimizerKind::AdamW => Moments::AdamW { first: &m, second: &v },
            OptimizerKind::AdamW8 => Moments::AdamW8 { first: &q, second: &r, scales: &scales },
            OptimizerKind::Momentum => Moments::Momentum(&m),
            OptimizerKind::Sgd => Moments::Sgd,
            OptimizerKind::Muon => Moments::Muon { first: &m, second: &v },
        };
        assert_eq!(moments.kind(), optimizer);
        let mut good = vec![0; encoded_len(&header, 5, Some(optimizer)).unwrap()];
        let mut sink = SliceSink::new(&mut good);
        encode(&header, b"hello", &p, Some(moments), &mut sink).unwrap();
        assert_eq!(sink.written(), good.len(), "encoded_len is exact");
        let before = if header.adapters.is_some() { 3 } else { 1 };
        let version = match optimizer {
            OptimizerKind::AdamW => before,
            OptimizerKind::Muon => 6,
            _ => 5,
        };
        assert_eq!(good[8], version);
        let checkpoint = Checkpoint::parse(&good).unwrap();
        assert_eq!((*checkpoint.header(), checkpoint.meta()), (header, &b"hello"[..]));
        assert_eq!(checkpoint.optimizer(), Some(optimizer));
        let model = Checkpoint::parse_model(&good).unwrap();
        assert_eq!(
            (model.optimizer(), model.parameter_bytes()),
            (None, checkpoint.parameter_bytes())
        );

        let (mut a, mut b, mut c) = (vec![-1.0; len], vec![-1.0; len], vec![-1.0; 2 * blocks]);
        let (mut d, mut e) = (vec![0; len], vec![0; len]);
        for wanted in OptimizerKind::ALL {
            let into = match wanted {
                OptimizerKind::AdamW => MomentsMut::AdamW { first: &mut a, second: &mut b },
                OptimizerKind::AdamW8 => {
                    MomentsMut::AdamW8 { first: &mut d, second: &mut e, scales: &mut c }
                }
                OptimizerKind::Momentum => MomentsMut::Momentum(&mut a),
                OptimizerKind::Sgd => MomentsMut::Sgd,
                OptimizerKind::Muon => MomentsMut::Muon { first: &mut a, second: &mut b },
            };
            assert_eq!(into.kind(), wanted);
            let other = CheckpointError::OtherOptimizer { checkpoint: optimizer, wanted };
            let expected = if wanted == optimizer { Ok(()) } else { Err(other) };
            assert_eq!(checkpoint.read_moments(into), expected);
        }
        for (index, range) in ranges.into_iter().enumerate() {
            let first = 2 * first_block(index, range.start);
            let of_tensor = first..first + 2 * super::blocks(range.len());
            match optimizer {
                OptimizerKind::AdamW => {
                    assert_eq!(
                        (&a[range.clone()], &b[range.clone()]),
                        (&m[range.clone()], &v[range])
                    );
                }
                OptimizerKind::AdamW8 => {
                    assert_eq!(
                        (&d[range.clone()], &e[range.clone()]),
                        (&q[range.clone()], &r[range])
                    );
                    assert_eq!(c[of_tensor.clone()], scales[of_tensor]);
                }
                OptimizerKind::Momentum | OptimizerKind::Muon => {
                    assert_eq!(a[range.clone()], m[range]);
                }
                OptimizerKind::Sgd => {}
            }
        }
        if optimizer == OptimizerKind::Muon {
            // As long as what the plan has for it, and nothing in the gaps between tensors.
            let seconds: Vec<_> = table.second_ranges().collect();
            let count: usize = seconds.iter().map(Range::len).sum();
            assert_eq!(count, table.second_values());
            assert!(seconds.iter().all(|range| b[range.clone()] == v[range.clone()]));
            assert_eq!(b.iter().filter(|x| **x != -1.0).count(), count);
        }
        assert_every_flip_is_found(&good);
        for cut in 1..good.len() {
            assert_eq!(Checkpoint::parse(&good[..cut]).unwrap_err(), CheckpointError::Truncated);
        }
    }
}

#[test]
fn optimizers_that_do_not_exist_and_adamw_as_a_later_version_are_refused() {
    let mut good = vec![0; encoded_len(&HEADER, 5, Some(OptimizerKind::Sgd)).unwrap()];
    let mut sink = SliceSink::new(&mut good);
    encode(&HEADER, b"hello", &arena(1.0), Some(Moments::Sgd), &mut sink).unwrap();
    let end = header_len(5);
    let with = |at: usize, value: u64| {
        let mut bad = good.clone();
        bad[16 + at..][..8].copy_from_slice(&value.to_le_bytes());
        let sum = crc32fast::hash(&bad[16..16 + end]);
        bad[16 + end..][..4].copy_from_slice(&sum.to_le_bytes());
        Checkpoint::parse(&bad).map(|_| ())
    };
    let kind = end - OPTIMIZER_LEN;
    assert_eq!(with(kind, 3), Ok(()));
    // Muon's are of the next version.
    for bad in [0, 4, 5, 1 << 32] {
        assert_eq!(with(kind, bad), Err(CheckpointError::Altered("header")), "{bad}");
    }
    // Of momentum there is a section more.
    assert_eq!(with(kind, 2), Err(CheckpointError::Altered("momentum")));
    // The last of the counters: whether there are moments.
    assert_eq!(with(10 * 8, 0), Err(CheckpointError::Altered("header")));
}

#[test]
fn gpt2_is_written_as_before_and_as_nothing_else() {
    let good = encoded(false);
    assert_eq!(good[8], 1, "version");
    // The same model as version 2: one model is one sequence of bytes.
    let mut other = good[..16 + HEADER_LEN].to_vec();
    other[8] = 2;
    other[12] = (HEADER_LEN + ARCH_LEN) as u8;
    other.extend([0; ARCH_LEN]);
    other.extend(crc32fast::hash(&other[16..]).to_le_bytes());
    other.extend(&good[16 + HEADER_LEN + 4..]);
    assert_eq!(Checkpoint::parse(&other).unwrap_err(), CheckpointError::Altered("header"));
}

#[test]
fn a_short_slice_is_an_error() {
    let mut out = vec![0; encoded_len(&HEADER, 5, None).unwrap() - 1];
    let p = arena(0.0);
    let mut sink = SliceSink::new(&mut out);
    assert_eq!(encode(&HEADER, b"hello", &p, None, &mut sink), Err(SliceFull));
}
