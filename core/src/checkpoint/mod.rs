//! Checkpoints on byte slices: a header, the caller's own bytes, weights, moments.
//!
//! Little-endian throughout. Tensors follow one another in table order without the
//! arena's padding, so the weights' bytes do not depend on alignment.
//!
//! ```text
//! magic    8  "CLLMCKPT"
//! version  4  1
//! length   4  bytes of the header that follows
//! header      the config and counters (see `HEADER_LEN`), then its CRC-32
//! section*    tag 4, zero 4, length 8, payload, CRC-32 of tag..payload
//!             "meta" the caller's bytes; "parm" weights; "mom1", "mom2" moments
//! section     "end " of length 0
//! ```
//! Every byte is covered by a checksum or compared with a constant. An encoder
//! writes front to back through a [`Sink`]; a decoder works on the whole file as a
//! slice (memory-mapped, on a desktop) and copies nothing but tensors.

mod decode;
mod encode;

pub use decode::{Checkpoint, CheckpointError};
pub use encode::{Sink, SliceFull, SliceSink, encode, encoded_len};

use crate::config::ModelConfig;

/// First bytes of every checkpoint.
pub const MAGIC: [u8; 8] = *b"CLLMCKPT";
/// The version that is written, and the newest that is read.
pub const VERSION: u32 = 1;

/// Bytes of the header's fields: six sizes, two flags, three counters (64 bits each),
/// two `f32`.
const HEADER_LEN: usize = (6 + 2 + 3) * 8 + 2 * 4;
/// Bytes before the first section: magic, version, length, header, checksum.
const PREAMBLE: usize = 8 + 4 + 4 + HEADER_LEN + 4;
/// Bytes of a section around its payload.
const FRAME: usize = 4 + 4 + 8 + 4;

const META: [u8; 4] = *b"meta";
const PARAMETERS: [u8; 4] = *b"parm";
const MOMENTS1: [u8; 4] = *b"mom1";
const MOMENTS2: [u8; 4] = *b"mom2";
const END: [u8; 4] = *b"end ";

/// What a checkpoint says about itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header {
    /// The model.
    pub config: ModelConfig,
    /// Seed of the run.
    pub seed: u64,
    /// Updates done.
    pub updates: u64,
}

#[cfg(test)]
mod tests;
