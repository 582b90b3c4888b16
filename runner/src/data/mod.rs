//! From text to batches: token shards, the shuffled order, the loader.
//!
//! The path of a token: [`shard`] files are mapped and joined by [`stream`],
//! [`sampler`] says which window of the stream comes when, [`loader`] copies
//! windows into a batch.

pub mod loader;
pub mod sampler;
pub mod shard;
pub mod stream;
