//! Checkpoints on byte slices: a header, the caller's own bytes, weights, moments.
//!
//! Little-endian throughout. Tensors follow one another in table order without the
//! arena's padding, so the weights' bytes do not depend on alignment.
//!
//! ```text
//! magic    8  "CLLMCKPT"
//! version  4  1 for GPT-2's architecture, 2 for any other, 3 for adapters of any; 4 for what has a part
//!             that programs before it do not know, and for its adapters; 5 with the moments of another
//!             optimizer than AdamW, 6 with Muon's
//! length   4  bytes of the header that follows
//! header      the config and counters (see `HEADER_LEN`), from version 2 on the architecture
//!             (`ARCH_LEN`), from version 3 on the adapters (`ADAPTERS_LEN`; of zeros in a model of
//!             later versions), from version 4 on `LATER_LEN`, from 5 on `OPTIMIZER_LEN`, in 6
//!             `UNUSED_LEN`, then its CRC-32
//! section*    tag 4, zero 4, length 8, payload, CRC-32 of tag..payload
//!             "meta" the caller's bytes; "parm" weights; "mom1", "mom2" moments, of which momentum has
//!             the first alone and plain descent none; of moments in 8 bits codes of a byte, and "scal"
//!             two scales for each 64 elements of a tensor; Muon's "mom2" are without the matrices of blocks
//! section     "end " of length 0
//! ```
//! A checkpoint of adapters has no weights of the model that they stand beside: weights and moments are
//! theirs, each A and B after the other.
//!
//! Every byte is covered by a checksum or compared with a constant. An encoder
//! writes front to back through a [`Sink`]; a decoder works on the whole file as a
//! slice (memory-mapped, on a desktop) and copies nothing but tensors.

mod decode;
mod encode;

pub use decode::{Checkpoint, CheckpointError};
pub use encode::{Sink, SliceFull, SliceSink, encode, encode_weights, encoded_len};

use crate::adapter::{AdapterTable, Adapters};
use crate::architecture::{Activation, Architecture};
use crate::config::ModelConfig;
use crate::line::LANES;
use crate::moments::blocks;
use crate::optimizer::OptimizerKind;
use crate::params::ParamTable;
use crate::plan::muon_takes;
use core::ops::Range;

/// First bytes of every checkpoint.
pub const MAGIC: [u8; 8] = *b"CLLMCKPT";
/// The newest version that is written and read. Each version has a longer header than those before it, by
/// which a version that is newer is told from one that was damaged. A model of GPT-2's architecture is written as
/// version 1, which older programs read too.
pub const VERSION: u32 = 8;

/// Bytes of the header's fields: six sizes, two flags, three counters (64 bits each),
/// two `f32`.
const HEADER_LEN: usize = (6 + 2 + 3) * 8 + 2 * 4;
/// Bytes of the architecture's fields behind them: kinds of norm, positions, scaling and activation,
/// heads of keys and values and columns of a head (0: as GPT-2 has it), two flags, the window (0: none)
/// and the original length of scaled positions (64 bits each); theta, factor, low and high (`f32`).
const ARCH_LEN: usize = (4 + 2 + 2 + 2) * 8 + 4 * 4;
/// Bytes of the adapters' fields behind those: rank and set of sites (64 bits each), scale (`f32`).
const ADAPTERS_LEN: usize = 2 * 8 + 4;
/// Bytes of what version 4 has behind those: the cap of logits (`f32`; 0: none).
const LATER_LEN: usize = 4;
/// Bytes of what version 5 has behind that: the optimizer whose moments follow (64 bits).
const OPTIMIZER_LEN: usize = 8;
/// Bytes of what version 6 has behind that: zeros, for its header has to be longer.
const UNUSED_LEN: usize = 4;
/// Bytes of what version 7 has behind that: how many previous tokens are added to each (64 bits).
const PREVIOUS_LEN: usize = 8;
/// Bytes of what version 8 has behind that: what embeddings are multiplied by (`f32`).
const SCALE_LEN: usize = 4;
/// Bytes of the longest header.
const LONGEST: usize = header_len(VERSION);
/// Bytes of the header of a version.
const fn header_len(version: u32) -> usize {
    match version {
        1 => HEADER_LEN,
        2 => HEADER_LEN + ARCH_LEN,
        3 => HEADER_LEN + ARCH_LEN + ADAPTERS_LEN,
        4 => HEADER_LEN + ARCH_LEN + ADAPTERS_LEN + LATER_LEN,
        5 => HEADER_LEN + ARCH_LEN + ADAPTERS_LEN + LATER_LEN + OPTIMIZER_LEN,
        6 => header_len(5) + UNUSED_LEN,
        7 => header_len(6) + PREVIOUS_LEN,
        _ => header_len(7) + SCALE_LEN,
    }
}
/// The version that a model, or its adapters, are written as, with the moments of `optimizer` or none.
fn version_of(header: &Header, optimizer: Option<OptimizerKind>) -> u32 {
    let arch = &header.config.arch;
    match header.adapters {
        _ if arch.embedding_scale != 1.0 => 8,
        _ if arch.previous_tokens > 0 => 7,
        _ if matches!(optimizer, Some(OptimizerKind::Muon)) => 6,
        _ if !matches!(optimizer, None | Some(OptimizerKind::AdamW)) => 5,
        _ if arch.activation == Activation::Relu2 || arch.logit_softcap.is_some() => 4,
        Some(_) => 3,
        None if *arch == Architecture::GPT2 => 1,
        None => 2,
    }
}
/// Bytes before the first section, besides the header's fields: magic, version, length, checksum.
const PREAMBLE: usize = 8 + 4 + 4 + 4;
/// Bytes of a section around its payload.
const FRAME: usize = 4 + 4 + 8 + 4;

const META: [u8; 4] = *b"meta";
const PARAMETERS: [u8; 4] = *b"parm";
const MOMENTS1: [u8; 4] = *b"mom1";
const MOMENTS2: [u8; 4] = *b"mom2";
const SCALES: [u8; 4] = *b"scal";
const END: [u8; 4] = *b"end ";

/// What a checkpoint says about itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header {
    /// The model.
    pub config: ModelConfig,
    /// The adapters, if the weights are theirs.
    pub adapters: Option<Adapters>,
    /// Seed of the run.
    pub seed: u64,
    /// Updates done.
    pub updates: u64,
}

/// What a checkpoint has values of.
#[derive(Clone, Copy, Debug)]
enum Tensors {
    Model(ParamTable),
    Adapters(AdapterTable),
}

impl Tensors {
    /// # Errors
    /// What is wrong with the config or with the adapters.
    fn of(header: &Header) -> Result<Self, CheckpointError> {
        let config = &header.config;
        let table = ParamTable::new(config).map_err(CheckpointError::Config)?;
        let Some(adapters) = &header.adapters else { return Ok(Self::Model(table)) };
        let table = AdapterTable::new(config, adapters).map_err(CheckpointError::Adapters)?;
        Ok(Self::Adapters(table))
    }

    /// How many values, without gaps: in closed form, for a hostile header may claim any number of
    /// blocks.
    fn values(&self) -> usize {
        match self {
            Self::Model(table) => table.parameters(),
            Self::Adapters(table) => table.stored(),
        }
    }

    /// How many scales 8-bit moments have: by a look at each tensor, so only once the bytes of their values
    /// are there.
    fn scales(&self) -> usize {
        self.ranges().map(|range| 2 * blocks(range.len())).sum()
    }

    /// The sections of an optimizer's moments: tags, what errors call them, and bytes.
    fn moments(
        &self,
        optimizer: OptimizerKind,
    ) -> heapless::Vec<([u8; 4], &'static str, usize), 3> {
        let of = |bytes: usize| {
            [(MOMENTS1, "first moments", bytes), (MOMENTS2, "second moments", bytes)]
        };
        let values = self.values();
        let sections = match optimizer {
            OptimizerKind::AdamW => of(4 * values).map(Some),
            OptimizerKind::AdamW8 => of(values).map(Some),
            OptimizerKind::Momentum => [Some((MOMENTS1, "momentum", 4 * values)), None],
            OptimizerKind::Sgd => [None; 2],
            OptimizerKind::Muon => {
                let [first, _] = of(4 * values);
                [Some(first), Some((MOMENTS2, "second moments", 4 * self.second_values()))]
            }
        };
        let has_scales = optimizer == OptimizerKind::AdamW8;
        let scales = has_scales.then(|| (SCALES, "scales of moments", 4 * self.scales()));
        sections.into_iter().chain([scales]).flatten().collect()
    }

    /// How many of the values Muon remembers squares of: see [`Tensors::second_ranges`].
    fn second_values(&self) -> usize {
        match self {
            Self::Model(table) => {
                let c = table.config();
                let of_block: usize = c.matrices().map(|(rows, cols)| rows * cols).iter().sum();
                table.parameters() - c.n_layer * of_block
            }
            Self::Adapters(table) => table.stored(),
        }
    }

    /// Where each that is not Muon's lies in Muon's second moments: an arena without those matrices.
    fn second_ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let (model, adapters) = match self {
            Self::Model(table) => {
                let mut skipped = 0;
                let ranges = table.iter().filter_map(move |spec| {
                    let Range { start, end } = spec.range();
                    if muon_takes(spec.param).is_some() {
                        skipped += (end - start).next_multiple_of(LANES);
                        return None;
                    }
                    Some(start - skipped..end - skipped)
                });
                (Some(ranges), None)
            }
            Self::Adapters(table) => (None, Some(table.ranges())),
        };
        model.into_iter().flatten().chain(adapters.into_iter().flatten())
    }

    /// Where each lies in the arena.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let (model, adapters) = match self {
            Self::Model(table) => (Some(table.iter().map(|spec| spec.range())), None),
            Self::Adapters(table) => (None, Some(table.ranges())),
        };
        model.into_iter().flatten().chain(adapters.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests;
