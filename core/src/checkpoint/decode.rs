//! Reading a checkpoint from a slice, with every byte checked.

use super::encode::header_bytes;
use super::{
    END, Header, LONGEST, MAGIC, META, PARAMETERS, Tensors, VERSION, header_len, version_of,
};
use crate::adapter::{AdapterError, AdapterSites, Adapters};
use crate::architecture::{Activation, Architecture, NormKind, Positions, Rotary, Scaling};
use crate::config::{ConfigError, ModelConfig};
use crate::moments::{MomentsMut, blocks, first_block};
use crate::optimizer::OptimizerKind;
use crate::plan::Piece;
use core::fmt;
use core::ops::Range;

/// Why bytes are not a usable checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CheckpointError {
    /// The first bytes are not a checkpoint's.
    Foreign,
    /// Written by a newer version of this software.
    Newer {
        /// The file's version.
        version: u32,
    },
    /// The bytes end before the checkpoint does.
    Truncated,
    /// A checksum or a fixed byte is wrong; names the part.
    Altered(&'static str),
    /// There are bytes behind the end.
    Trailing,
    /// The header's config makes no sense.
    Config(ConfigError),
    /// The header's adapters make no sense.
    Adapters(AdapterError),
    /// The checkpoint has no optimizer state: it can be run but not trained on.
    NoMoments,
    /// The optimizer's state is that of another one than is wanted.
    OtherOptimizer {
        /// The checkpoint's.
        checkpoint: OptimizerKind,
        /// Whose is wanted.
        wanted: OptimizerKind,
    },
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Foreign => f.write_str("not a Crystalline checkpoint"),
            Self::Newer { version } => write!(
                f,
                "checkpoint version {version} is newer than this program reads ({VERSION}): use a newer cllm"
            ),
            Self::Truncated => f.write_str("truncated checkpoint: the file ends early"),
            Self::Altered(part) => write!(f, "altered checkpoint: its {part} fails the checksum"),
            Self::Trailing => f.write_str("altered checkpoint: there are bytes behind its end"),
            Self::Config(error) => write!(f, "unusable checkpoint: {error}"),
            Self::Adapters(error) => write!(f, "unusable checkpoint: {error}"),
            Self::NoMoments => f.write_str("the checkpoint has no optimizer state to resume from"),
            Self::OtherOptimizer { checkpoint, wanted } => {
                write!(f, "the checkpoint has the optimizer state of {checkpoint}, not of {wanted}")
            }
        }
    }
}

impl core::error::Error for CheckpointError {}

/// A checkpoint whose structure and checksums have been verified.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoint<'a> {
    header: Header,
    table: Tensors,
    meta: &'a [u8],
    parameters: &'a [u8],
    /// Whose moments there are.
    optimizer: Option<OptimizerKind>,
    /// The payloads of their sections, in the order of those.
    moments: [&'a [u8]; 3],
}

/// Takes fixed-size pieces off the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], CheckpointError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(CheckpointError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CheckpointError> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| CheckpointError::Truncated)
    }

    fn u32(&mut self) -> Result<u32, CheckpointError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, CheckpointError> {
        self.array().map(u64::from_le_bytes)
    }

    fn size(&mut self) -> Result<usize, CheckpointError> {
        usize::try_from(self.u64()?).map_err(|_| CheckpointError::Config(ConfigError::Overflow))
    }

    fn flag(&mut self) -> Result<bool, CheckpointError> {
        match self.u64()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CheckpointError::Altered("header")),
        }
    }

    fn f32(&mut self) -> Result<f32, CheckpointError> {
        self.array().map(f32::from_le_bytes)
    }

    /// The section `tag`, of `len` bytes of payload if that is known: what its checksum is of, whose
    /// last bytes are the payload, the payload's length, and the checksum, not verified.
    fn frame(
        &mut self,
        tag: [u8; 4],
        name: &'static str,
        len: Option<usize>,
    ) -> Result<(&'a [u8], usize, u32), CheckpointError> {
        let start = self.0;
        let (found, zero, stored) = (self.array::<4>()?, self.u32()?, self.u64()?);
        if found != tag || zero != 0 || len.is_some_and(|len| stored != len as u64) {
            return Err(CheckpointError::Altered(name));
        }
        let stored = usize::try_from(stored).map_err(|_| CheckpointError::Truncated)?;
        self.take(stored)?;
        // 16 bytes of tag, zero and length stand before the payload.
        Ok((&start[..16 + stored], stored, self.u32()?))
    }

    /// The payload of the section `tag`, of `len` bytes if that is known.
    fn section(
        &mut self,
        tag: [u8; 4],
        name: &'static str,
        len: Option<usize>,
    ) -> Result<&'a [u8], CheckpointError> {
        let (covered, stored, sum) = self.frame(tag, name, len)?;
        if crc32fast::hash(covered) != sum {
            return Err(CheckpointError::Altered(name));
        }
        Ok(&covered[covered.len() - stored..])
    }
}

impl<'a> Checkpoint<'a> {
    /// Verifies `bytes` from the first to the last.
    ///
    /// # Errors
    /// What is wrong with them; see [`CheckpointError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CheckpointError> {
        Self::parse_with(bytes, true)
    }

    /// As [`Checkpoint::parse`], for a model that is only run: the optimizer's state, of AdamW two thirds of
    /// the bytes, is neither read nor verified, and counts as not there.
    ///
    /// # Errors
    /// As [`Checkpoint::parse`], but for what is wrong within that state.
    pub fn parse_model(bytes: &'a [u8]) -> Result<Self, CheckpointError> {
        Self::parse_with(bytes, false)
    }

    fn parse_with(bytes: &'a [u8], moments: bool) -> Result<Self, CheckpointError> {
        let mut r = Reader(bytes);
        let magic = &bytes[..bytes.len().min(MAGIC.len())];
        if magic.is_empty() || !MAGIC.starts_with(magic) {
            return Err(CheckpointError::Foreign);
        }
        r.take(MAGIC.len())?;
        let version = r.u32()?;
        let length = r.u32()? as usize;
        if version > VERSION {
            // With the header of a version that is known it is one of those: no checksum covers this field.
            let is_newer = length > LONGEST;
            let altered = CheckpointError::Altered("version");
            return Err(if is_newer { CheckpointError::Newer { version } } else { altered });
        }
        if version == 0 || length != header_len(version) {
            return Err(CheckpointError::Altered("header"));
        }
        let fields = r.take(header_len(version))?;
        if r.u32()? != crc32fast::hash(fields) {
            return Err(CheckpointError::Altered("header"));
        }
        let (header, optimizer) = read_header(fields, version)?;
        // One model is one sequence of bytes.
        let written = header_bytes(&header, optimizer);
        if version_of(&header, optimizer) != version || !written.starts_with(fields) {
            return Err(CheckpointError::Altered("header"));
        }
        let table = Tensors::of(&header)?;
        let overflow = CheckpointError::Config(ConfigError::Overflow);
        let len = table.values().checked_mul(4).ok_or(overflow)?;
        let meta = r.section(META, "metadata", None)?;
        let parameters = r.section(PARAMETERS, "weights", Some(len))?;
        let mut payloads: [&[u8]; 3] = [&[]; 3];
        let sections = optimizer.map_or_else(Default::default, |kind| table.moments(kind));
        for (payload, (tag, name, len)) in payloads.iter_mut().zip(sections) {
            if moments {
                *payload = r.section(tag, name, Some(len))?;
            } else {
                // Passed over without a look at its payload.
                r.frame(tag, name, Some(len))?;
            }
        }
        r.section(END, "end", Some(0))?;
        if !r.0.is_empty() {
            return Err(CheckpointError::Trailing);
        }
        let optimizer = optimizer.filter(|_| moments);
        Ok(Self { header, table, meta, parameters, optimizer, moments: payloads })
    }

    /// The model and the run's counters.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The bytes that the writer added for itself.
    #[must_use]
    pub fn meta(&self) -> &'a [u8] {
        self.meta
    }

    /// Whether the optimizer's state is there.
    #[must_use]
    pub fn has_moments(&self) -> bool {
        self.optimizer.is_some()
    }

    /// Whose state that is.
    #[must_use]
    pub fn optimizer(&self) -> Option<OptimizerKind> {
        self.optimizer
    }

    /// The weights' bytes in table order: what `weights_sha256` is taken over.
    #[must_use]
    pub fn parameter_bytes(&self) -> &'a [u8] {
        self.parameters
    }

    /// Copies the weights into a parameter arena of the header's config, or into one of its adapters. The
    /// gaps between tensors are left alone.
    ///
    /// # Panics
    /// If the arena is shorter than the config's table.
    pub fn read_parameters(&self, arena: &mut [f32]) {
        read(self.parameters, self.table.ranges(), Piece::WHOLE, arena);
    }

    /// Copies the optimizer's state into that of a trainer of the header's config.
    ///
    /// # Errors
    /// [`CheckpointError::NoMoments`], or [`CheckpointError::OtherOptimizer`].
    ///
    /// # Panics
    /// If an arena is shorter than the config's table.
    pub fn read_moments(&self, moments: MomentsMut<'_>) -> Result<(), CheckpointError> {
        self.read_moments_of(Piece::WHOLE, moments)
    }

    /// As [`Checkpoint::read_moments`], for a trainer that has those of a [piece](crate::Plan::with_piece) of the arena
    /// alone.
    ///
    /// # Errors
    /// As [`Checkpoint::read_moments`].
    ///
    /// # Panics
    /// If an arena is shorter than the piece.
    pub fn read_moments_of(
        &self,
        piece: Piece,
        moments: MomentsMut<'_>,
    ) -> Result<(), CheckpointError> {
        let (wanted, [a, b, c]) = (moments.kind(), self.moments);
        match self.optimizer {
            None => return Err(CheckpointError::NoMoments),
            Some(checkpoint) if checkpoint != wanted => {
                return Err(CheckpointError::OtherOptimizer { checkpoint, wanted });
            }
            Some(_) => {}
        }
        match moments {
            MomentsMut::AdamW { first, second } => {
                read(a, self.table.ranges(), piece, first);
                read(b, self.table.ranges(), piece, second);
            }
            MomentsMut::AdamW8 { first, second, scales } => {
                self.read_codes(a, first);
                self.read_codes(b, second);
                let mut values = values(c);
                for (index, range) in self.table.ranges().enumerate() {
                    let at = 2 * first_block(index, range.start);
                    let of_tensor = &mut scales[at..at + 2 * blocks(range.len())];
                    of_tensor.iter_mut().zip(&mut values).for_each(|(to, value)| *to = value);
                }
            }
            MomentsMut::Momentum(moments) => read(a, self.table.ranges(), piece, moments),
            MomentsMut::Sgd => {}
            MomentsMut::Muon { first, second } => {
                read(a, self.table.ranges(), piece, first);
                read(b, self.table.second_ranges(), piece, second);
            }
        }
        Ok(())
    }

    fn read_codes(&self, mut bytes: &[u8], arena: &mut [u8]) {
        for range in self.table.ranges() {
            let (of_tensor, rest) = bytes.split_at(range.len());
            arena[range].copy_from_slice(of_tensor);
            bytes = rest;
        }
    }
}

/// Copies what of a section, the values of these ranges of an arena, is the piece's: close together.
fn read(
    mut bytes: &[u8],
    ranges: impl Iterator<Item = Range<usize>>,
    piece: Piece,
    arena: &mut [f32],
) {
    for range in ranges {
        let (of_tensor, rest) = bytes.split_at(4 * range.len());
        bytes = rest;
        for (span, place) in piece.spans(range.clone()) {
            let values = values(&of_tensor[4 * (span.start - range.start)..]);
            let to = &mut arena[place..place + span.len()];
            to.iter_mut().zip(values).for_each(|(to, value)| *to = value);
        }
    }
}

/// The floats of a section.
fn values(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn read_header(
    fields: &[u8],
    version: u32,
) -> Result<(Header, Option<OptimizerKind>), CheckpointError> {
    let mut r = Reader(fields);
    let mut sizes = [0; 6];
    for size in &mut sizes {
        *size = r.size()?;
    }
    let [vocab_size, block_size, n_layer, n_head, d_model, d_ff] = sizes;
    let (bias, tied) = (r.flag()?, r.flag()?);
    let (seed, updates, has_moments) = (r.u64()?, r.u64()?, r.flag()?);
    let (dropout, norm_eps) = (r.f32()?, r.f32()?);
    let mut arch = if version == 1 { Architecture::GPT2 } else { read_arch(&mut r)? };
    let adapters = if version < 3 { None } else { read_adapters(&mut r, version)? };
    if version > 3 {
        arch.logit_softcap = Some(r.f32()?).filter(|cap| *cap != 0.0);
    }
    let mut optimizer = OptimizerKind::AdamW;
    if version > 4 {
        let kind = usize::try_from(r.u64()?).ok().and_then(|kind| OptimizerKind::ALL.get(kind));
        optimizer = *kind.ok_or(CheckpointError::Altered("header"))?;
    }
    if version > 6 {
        // Zeros, as the comparison with what would be written sees.
        r.u32()?;
        arch.previous_tokens = r.size()?;
    }
    if version > 7 {
        arch.embedding_scale = r.f32()?;
    }
    let config = ModelConfig {
        vocab_size,
        block_size,
        n_layer,
        n_head,
        d_model,
        d_ff,
        bias,
        tied,
        dropout,
        norm_eps,
        arch,
    };
    Ok((Header { config, adapters, seed, updates }, has_moments.then_some(optimizer)))
}

/// The adapters of a header of version 3, or of version 4 if it has any.
fn read_adapters(r: &mut Reader<'_>, version: u32) -> Result<Option<Adapters>, CheckpointError> {
    let (rank, sites, scale) = (r.size()?, r.u64()?, r.f32()?);
    if version > 3 && rank == 0 {
        // The fields are compared with what would be written: the others are zeros.
        return Ok(None);
    }
    let sites = AdapterSites::from_bits(sites).ok_or(CheckpointError::Altered("header"))?;
    Ok(Some(Adapters { rank, scale, sites }))
}

/// The architecture of a header of version 2.
fn read_arch(r: &mut Reader<'_>) -> Result<Architecture, CheckpointError> {
    const ALTERED: CheckpointError = CheckpointError::Altered("header");
    let norm = match r.u64()? {
        0 => NormKind::Layer,
        1 => NormKind::Rms,
        _ => return Err(ALTERED),
    };
    let (is_rotary, scaling) = (r.flag()?, r.u64()?);
    let activation = match r.u64()? {
        0 => Activation::Gelu,
        1 => Activation::SwiGlu,
        2 => Activation::Relu2,
        _ => return Err(ALTERED),
    };
    let some = |size: usize| (size > 0).then_some(size);
    let (n_kv_head, head_size) = (some(r.size()?), some(r.size()?));
    let (qkv_bias, qk_norm) = (r.flag()?, r.flag()?);
    let window = some(r.size()?);
    let original = u32::try_from(r.u64()?).map_err(|_| ALTERED)?;
    let (theta, factor, low, high) = (r.f32()?, r.f32()?, r.f32()?, r.f32()?);
    let scaling = match scaling {
        0 => Scaling::None,
        1 => Scaling::Linear { factor },
        2 => Scaling::Llama3 { factor, low, high, original },
        _ => return Err(ALTERED),
    };
    let positions = match is_rotary {
        true => Positions::Rotary(Rotary { theta, scaling }),
        false => Positions::Learned,
    };
    Ok(Architecture {
        norm,
        positions,
        activation,
        n_kv_head,
        head_size,
        qkv_bias,
        qk_norm,
        window,
        logit_softcap: None,
        previous_tokens: 0,
        embedding_scale: 1.0,
    })
}
