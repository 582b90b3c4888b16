//! Writing a checkpoint, front to back.

use super::{
    CheckpointError, END, FRAME, Header, LONGEST, MAGIC, META, MOMENTS1, MOMENTS2, PARAMETERS,
    PREAMBLE, SCALES, Tensors, UNUSED_LEN, header_len, version_of,
};
use crate::adapter::Adapters;
use crate::architecture::{Activation, Architecture, NormKind, Scaling};
use crate::config::ConfigError;
use crate::moments::{Moments, blocks, first_block};
use crate::optimizer::OptimizerKind;
use core::fmt;
use core::ops::Range;
use crc32fast::Hasher;

/// Where an encoder's bytes go: a slice here, a file in the runner.
pub trait Sink {
    /// What can go wrong.
    type Error;

    /// Takes the next bytes, all of them.
    ///
    /// # Errors
    /// The bytes could not be taken; the encoder stops.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// A [`Sink`] that fills a slice.
#[derive(Debug)]
pub struct SliceSink<'a> {
    out: &'a mut [u8],
    len: usize,
}

/// The slice is shorter than the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceFull;

impl fmt::Display for SliceFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the slice is shorter than the checkpoint")
    }
}

impl core::error::Error for SliceFull {}

impl<'a> SliceSink<'a> {
    /// Starts at the front of `out`.
    #[must_use]
    pub fn new(out: &'a mut [u8]) -> Self {
        Self { out, len: 0 }
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written(&self) -> usize {
        self.len
    }
}

impl Sink for SliceSink<'_> {
    type Error = SliceFull;

    fn write(&mut self, bytes: &[u8]) -> Result<(), SliceFull> {
        let room = self.out.get_mut(self.len..).and_then(|rest| rest.get_mut(..bytes.len()));
        room.ok_or(SliceFull)?.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }
}

/// Bytes of a checkpoint, exactly: with the moments of an optimizer, or without any.
///
/// # Errors
/// What is wrong with the config or with the adapters.
pub fn encoded_len(
    header: &Header,
    meta: usize,
    moments: Option<OptimizerKind>,
) -> Result<usize, CheckpointError> {
    let overflow = CheckpointError::Config(ConfigError::Overflow);
    let table = Tensors::of(header)?;
    // Weights and the most moments that there can be.
    table.values().checked_mul(12).ok_or(overflow)?;
    let sections = moments.map_or_else(Default::default, |optimizer| table.moments(optimizer));
    let payloads: usize = sections.iter().map(|(_, _, bytes)| bytes).sum();
    let frames = FRAME * (3 + sections.len());
    (4 * table.values())
        .checked_add(payloads)
        .and_then(|n| n.checked_add(PREAMBLE + header_len(version_of(header, moments)) + frames))
        .and_then(|n| n.checked_add(meta))
        .ok_or(overflow)
}

/// Writes the checkpoint of a model without moments, whose tensors are in memory one at a time: `give` hands
/// the values of all of them, in the order of the table, to the function that it gets.
///
/// # Errors
/// The sink's, at the first byte it does not take, and those of `give`.
///
/// # Panics
/// If the config or the adapters are invalid, or there are not as many values as their table says.
pub fn encode_weights<S: Sink, E: From<S::Error>>(
    header: &Header,
    meta: &[u8],
    sink: &mut S,
    give: impl FnOnce(&mut dyn FnMut(&[f32]) -> Result<(), S::Error>) -> Result<(), E>,
) -> Result<(), E> {
    let table = begin(header, meta, None, sink)?;
    let mut section = Section::start(sink, PARAMETERS, table.values() * 4)?;
    let mut left = table.values();
    give(&mut |values| {
        left = left.checked_sub(values.len()).expect("no more values than the table has");
        section.values(values)
    })?;
    assert_eq!(left, 0, "values are missing");
    section.end()?;
    Ok(Section::start(sink, END, 0)?.end()?)
}

/// Writes a checkpoint. `parameters` and the moments are whole arenas of the
/// config's table, or of that of the adapters; leave the moments out for a model that is only run.
///
/// ```
/// use cllm_core::checkpoint::{Checkpoint, CheckpointError, Header, SliceSink, encode, encoded_len};
/// use cllm_core::{Architecture, ModelConfig, Moments, MomentsMut, OptimizerKind, ParamTable};
///
/// # let config = ModelConfig { vocab_size: 40, block_size: 16, n_layer: 1, n_head: 2, d_model: 16,
/// #     d_ff: 48, bias: false, tied: true, dropout: 0.0, norm_eps: 1e-5, arch: Architecture::GPT2 };
/// let header = Header { config, adapters: None, seed: 1337, updates: 200 };
/// let table = ParamTable::new(&config)?;
/// // Of a trainer they would be `trainer.parameters()` and `trainer.moments()`.
/// let (weights, values) = (vec![0.5; table.arena_len()], vec![0.25; table.arena_len()]);
/// let moments = Moments::AdamW { first: &values, second: &values };
///
/// let meta = b"what else there is to say";
/// let mut bytes = vec![0; encoded_len(&header, meta.len(), Some(moments.kind()))?];
/// let mut sink = SliceSink::new(&mut bytes);
/// encode(&header, meta, &weights, Some(moments), &mut sink)?;
/// assert_eq!(sink.written(), bytes.len());
///
/// let checkpoint = Checkpoint::parse(&bytes)?;
/// assert_eq!((checkpoint.header(), checkpoint.meta()), (&header, &meta[..]));
/// let mut back = vec![0.0; table.arena_len()];
/// checkpoint.read_parameters(&mut back);
/// let last = table.iter().last().expect("there are tensors").range();
/// assert_eq!(back[last.clone()], weights[last]);
/// // Of no other optimizer.
/// assert_eq!(checkpoint.optimizer(), Some(OptimizerKind::AdamW));
/// assert!(checkpoint.read_moments(MomentsMut::Momentum(&mut back)).is_err());
///
/// // Not a bit may differ.
/// bytes[300] ^= 1;
/// assert_eq!(Checkpoint::parse(&bytes).unwrap_err(), CheckpointError::Altered("weights"));
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
///
/// # Errors
/// The sink's, at the first byte it does not take.
///
/// # Panics
/// If the config or the adapters are invalid or an arena is shorter than its table.
pub fn encode<S: Sink>(
    header: &Header,
    meta: &[u8],
    parameters: &[f32],
    moments: Option<Moments<'_>>,
    sink: &mut S,
) -> Result<(), S::Error> {
    let table = begin(header, meta, moments.map(|moments| moments.kind()), sink)?;
    tensors(sink, PARAMETERS, &table, parameters)?;
    match moments {
        Some(Moments::AdamW { first, second }) => {
            tensors(sink, MOMENTS1, &table, first)?;
            tensors(sink, MOMENTS2, &table, second)?;
        }
        Some(Moments::Muon { first, second }) => {
            tensors(sink, MOMENTS1, &table, first)?;
            values(sink, MOMENTS2, table.second_values(), table.second_ranges(), second)?;
        }
        Some(Moments::AdamW8 { first, second, scales: all }) => {
            codes(sink, MOMENTS1, &table, first)?;
            codes(sink, MOMENTS2, &table, second)?;
            scales(sink, &table, all)?;
        }
        Some(Moments::Momentum(moments)) => tensors(sink, MOMENTS1, &table, moments)?,
        Some(Moments::Sgd) | None => {}
    }
    Section::start(sink, END, 0)?.end()
}

/// Writes all that stands before the weights; what there will be values of.
fn begin<S: Sink>(
    header: &Header,
    meta: &[u8],
    optimizer: Option<OptimizerKind>,
    sink: &mut S,
) -> Result<Tensors, S::Error> {
    let table = match Tensors::of(header) {
        Ok(table) => table,
        Err(error) => panic!("cannot encode a checkpoint: {error}"),
    };
    sink.write(&MAGIC)?;
    let version = version_of(header, optimizer);
    sink.write(&version.to_le_bytes())?;
    sink.write(&(header_len(version) as u32).to_le_bytes())?;
    let fields = header_bytes(header, optimizer);
    let fields = &fields[..header_len(version)];
    sink.write(fields)?;
    sink.write(&crc32fast::hash(fields).to_le_bytes())?;
    let mut section = Section::start(sink, META, meta.len())?;
    section.bytes(meta)?;
    section.end()?;
    Ok(table)
}

/// The fields of the header, behind all others those of the architecture, of the adapters and of later
/// versions.
pub(super) fn header_bytes(header: &Header, optimizer: Option<OptimizerKind>) -> [u8; LONGEST] {
    let c = &header.config;
    let mut out = [0; LONGEST];
    let mut sink = SliceSink::new(&mut out);
    let sizes =
        [c.vocab_size, c.block_size, c.n_layer, c.n_head, c.d_model, c.d_ff].map(|x| x as u64);
    let flags = [u64::from(c.bias), u64::from(c.tied)];
    let counters = [header.seed, header.updates, u64::from(optimizer.is_some())];
    let mut write = |bytes: &[u8]| {
        // The array has exactly the fields' bytes.
        let _ = sink.write(bytes);
    };
    for value in sizes.into_iter().chain(flags).chain(counters) {
        write(&value.to_le_bytes());
    }
    write(&c.dropout.to_le_bytes());
    write(&c.norm_eps.to_le_bytes());
    let (kinds, angles) = arch_fields(&c.arch);
    for value in kinds {
        write(&value.to_le_bytes());
    }
    for value in angles {
        write(&value.to_le_bytes());
    }
    let adapters =
        header.adapters.map(|Adapters { rank, scale, sites }| (rank, sites.bits(), scale));
    let (rank, sites, scale) = adapters.unwrap_or((0, 0, 0.0));
    for value in [rank as u64, sites] {
        write(&value.to_le_bytes());
    }
    write(&scale.to_le_bytes());
    write(&c.arch.logit_softcap.unwrap_or(0.0).to_le_bytes());
    let kind = optimizer.and_then(|kind| OptimizerKind::ALL.iter().position(|k| *k == kind));
    write(&(kind.unwrap_or(0) as u64).to_le_bytes());
    write(&[0; UNUSED_LEN]);
    write(&(c.arch.previous_tokens as u64).to_le_bytes());
    write(&c.arch.embedding_scale.to_le_bytes());
    out
}

/// Kinds and sizes of an architecture, and the numbers of its angles, in the order of the file.
fn arch_fields(arch: &Architecture) -> ([u64; 10], [f32; 4]) {
    let norm = match arch.norm {
        NormKind::Layer => 0,
        NormKind::Rms => 1,
    };
    let activation = match arch.activation {
        Activation::Gelu => 0,
        Activation::SwiGlu => 1,
        Activation::Relu2 => 2,
    };
    let (positions, theta, scaling) = match arch.rotary() {
        None => (0, 0.0, Scaling::None),
        Some(rotary) => (1, rotary.theta, rotary.scaling),
    };
    let (kind, [factor, low, high], original) = match scaling {
        Scaling::None => (0, [0.0; 3], 0),
        Scaling::Linear { factor } => (1, [factor, 0.0, 0.0], 0),
        Scaling::Llama3 { factor, low, high, original } => (2, [factor, low, high], original),
    };
    let size = |size: Option<usize>| size.map_or(0, |size| size as u64);
    let (heads, head_size) = (size(arch.n_kv_head), size(arch.head_size));
    let (qkv_bias, qk_norm) = (u64::from(arch.qkv_bias), u64::from(arch.qk_norm));
    let (original, window) = (u64::from(original), size(arch.window));
    (
        [norm, positions, kind, activation, heads, head_size, qkv_bias, qk_norm, window, original],
        [theta, factor, low, high],
    )
}

/// A section being written, and the checksum of what it has so far.
struct Section<'s, S> {
    sink: &'s mut S,
    hash: Hasher,
}

impl<'s, S: Sink> Section<'s, S> {
    fn start(sink: &'s mut S, tag: [u8; 4], len: usize) -> Result<Self, S::Error> {
        let mut section = Self { sink, hash: Hasher::new() };
        section.bytes(&tag)?;
        section.bytes(&[0; 4])?;
        section.bytes(&(len as u64).to_le_bytes())?;
        Ok(section)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), S::Error> {
        self.hash.update(bytes);
        self.sink.write(bytes)
    }

    fn values(&mut self, values: &[f32]) -> Result<(), S::Error> {
        let mut chunk = [0; 4096];
        for values in values.chunks(chunk.len() / 4) {
            let bytes = &mut chunk[..values.len() * 4];
            for (to, value) in bytes.chunks_exact_mut(4).zip(values) {
                to.copy_from_slice(&value.to_le_bytes());
            }
            self.bytes(bytes)?;
        }
        Ok(())
    }

    fn end(self) -> Result<(), S::Error> {
        self.sink.write(&self.hash.finalize().to_le_bytes())
    }
}

/// A section of all tensors of an arena.
fn tensors<S: Sink>(
    sink: &mut S,
    tag: [u8; 4],
    table: &Tensors,
    arena: &[f32],
) -> Result<(), S::Error> {
    values(sink, tag, table.values(), table.ranges(), arena)
}

/// A section of so many floats, of these ranges of an arena.
fn values<S: Sink>(
    sink: &mut S,
    tag: [u8; 4],
    count: usize,
    ranges: impl Iterator<Item = Range<usize>>,
    arena: &[f32],
) -> Result<(), S::Error> {
    let mut section = Section::start(sink, tag, count * 4)?;
    for range in ranges {
        section.values(&arena[range])?;
    }
    section.end()
}

/// A section of the bytes of all tensors of an arena that has a byte for each element.
fn codes<S: Sink>(
    sink: &mut S,
    tag: [u8; 4],
    table: &Tensors,
    arena: &[u8],
) -> Result<(), S::Error> {
    let mut section = Section::start(sink, tag, table.values())?;
    for range in table.ranges() {
        section.bytes(&arena[range])?;
    }
    section.end()
}

/// The section of the scales of 8-bit moments.
fn scales<S: Sink>(sink: &mut S, table: &Tensors, all: &[f32]) -> Result<(), S::Error> {
    let mut section = Section::start(sink, SCALES, 4 * table.scales())?;
    for (index, range) in table.ranges().enumerate() {
        let first = 2 * first_block(index, range.start);
        section.values(&all[first..first + 2 * blocks(range.len())])?;
    }
    section.end()
}
