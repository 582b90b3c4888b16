//! Checkpoint files: written atomically, mapped and verified on the way back.
//!
//! The core encodes and decodes; this module gives it files. What a run must know
//! beyond the core's header travels as JSON in the checkpoint's metadata.

use core::fmt::Display;
use core::ops::Range;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use cllm_core::checkpoint::{self, Checkpoint, CheckpointError, Header, Sink};
use cllm_core::{Moments, ParamTable, Trainer};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::data::hex;
use crate::error::{Error, Result};
use crate::files::{self, AtomicFile};

/// A validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validated {
    /// After this many steps.
    pub step: u64,
    /// Mean loss in nats a token.
    pub val_loss: f64,
}

/// What a run remembers of the losses and gradient norms of its steps: see [`crate::train::watch`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchState {
    /// Losses of the last steps, the oldest first: the bits of `f32`s, which JSON does not round.
    pub losses: Vec<u32>,
    /// The same of the gradient's norm.
    pub grad_norms: Vec<u32>,
    /// Steps without an update, one after the other, up to this one.
    pub skipped_in_row: u32,
    /// The step whose checkpoint the run goes back to.
    pub rewind_to: Option<u64>,
    /// Times that it has gone back there.
    pub rewinds: u32,
    /// Steps that the data are ahead of the run, for it has gone back and they have not.
    pub data_ahead: u64,
    /// All steps without an update.
    pub skipped: u64,
}

/// What a run remembers beside weights and moments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// The best validation so far.
    pub best: Option<Validated>,
    /// The last validation so far.
    pub last: Option<Validated>,
    /// The step is due for validation, but was saved before it.
    pub validation_due: bool,
    /// Seconds of training so far, over all sessions.
    pub seconds: f64,
    /// Those among them in which training waited for batches.
    #[serde(default)]
    pub data_wait_seconds: f64,
    /// Tokens in the training data.
    pub train_tokens: u64,
    /// Tokens in the validation data.
    pub val_tokens: u64,
    /// SHA-256 of the tokenizer's JSON, if there is one.
    pub tokenizer_sha256: Option<String>,
    /// SHA-256 of the examples, if the data are examples; of text and token shards, which may be terabytes, that
    /// of their lengths and of samples. Older checkpoints have none of these.
    #[serde(default)]
    pub data_sha256: Option<String>,
    /// Where an imported model has come from: its name on the Hub, or a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// What spikes are told by. Older checkpoints have nothing of it.
    #[serde(default)]
    pub watch: WatchState,
    /// The kernels of the session that wrote the checkpoint: its instruction set, and what its
    /// products are made of if not of `f32`.
    pub isa: String,
}

impl Meta {
    /// That of a model which no run has trained: imported, or cut off from its run.
    #[must_use]
    pub fn untrained() -> Self {
        Self {
            best: None,
            last: None,
            validation_due: false,
            seconds: 0.0,
            data_wait_seconds: 0.0,
            train_tokens: 0,
            val_tokens: 0,
            tokenizer_sha256: None,
            data_sha256: None,
            origin: None,
            watch: WatchState::default(),
            isa: "none".to_owned(),
        }
    }
}

/// A mapped checkpoint file.
#[derive(Debug)]
pub struct CheckpointFile {
    path: PathBuf,
    file: File,
    bytes: Mmap,
}

impl CheckpointFile {
    /// Maps the file at `path`; [`parse`](Self::parse) says whether it is good.
    ///
    /// # Errors
    /// Names the file when it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io("read the checkpoint", path, &e);
        let file = files::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.is_dir() {
            return Err(Error::failure(format!(
                "{} is a folder, not a checkpoint",
                path.display()
            )));
        }
        let bytes = files::map(&file, path).map_err(io)?;
        Ok(Self { path: path.to_path_buf(), file, bytes })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Verifies every byte.
    ///
    /// # Errors
    /// What is wrong; [`CheckpointFile::error`] puts the file's name before it.
    pub fn parse(&self) -> core::result::Result<Checkpoint<'_>, CheckpointError> {
        Checkpoint::parse(&self.bytes)
    }

    /// Verifies what a model that is only run wants: pages of the optimizer's state stay on disk.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_model(&self) -> core::result::Result<Checkpoint<'_>, CheckpointError> {
        Checkpoint::parse_model(&self.bytes)
    }

    /// An error about this file.
    #[must_use]
    pub fn error(&self, cause: impl Display) -> Error {
        Error::failure(format!("{}: {cause}", self.path.display()))
    }

    /// Verifies as [`parse_model`](Self::parse_model), and keeps no more of the file than where its
    /// weights lie, and what the run remembered: what is mapped counts as memory of the process as long as
    /// it is.
    ///
    /// # Errors
    /// What is wrong, with the file's name.
    pub(crate) fn into_weights(self) -> Result<(Header, StoredWeights, Option<Meta>)> {
        let checkpoint = self.parse_model().map_err(|e| self.error(e))?;
        let header = *checkpoint.header();
        // Of a checkpoint that another program has made nothing is known.
        let meta = self.meta(&checkpoint).ok();
        let offset = checkpoint.parameter_bytes().as_ptr().addr() - self.bytes.as_ptr().addr();
        let Self { path, file, .. } = self;
        Ok((header, StoredWeights { path, file, offset: offset as u64 }, meta))
    }

    /// What the run that wrote `checkpoint` remembered in it.
    ///
    /// # Errors
    /// The metadata is not of this program.
    pub fn meta(&self, checkpoint: &Checkpoint<'_>) -> Result<Meta> {
        serde_json::from_slice(checkpoint.meta())
            .map_err(|e| self.error(format_args!("not a checkpoint of a training run: {e}")))
    }
}

/// The weights of a verified checkpoint, read a piece at a time: they are in memory once.
#[derive(Debug)]
pub(crate) struct StoredWeights {
    path: PathBuf,
    file: File,
    offset: u64,
}

impl StoredWeights {
    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads all tensors, one after the other, to their ranges of `arena`.
    ///
    /// # Errors
    /// Names the file when it cannot be read any more.
    pub(crate) fn read(
        &self,
        ranges: impl Iterator<Item = Range<usize>>,
        arena: &mut [f32],
    ) -> Result<()> {
        let mut values = self.values()?;
        ranges.into_iter().try_for_each(|range| values.read(&mut arena[range]))
    }

    /// From the first value on.
    ///
    /// # Errors
    /// As for [`StoredWeights::read`].
    pub(crate) fn values(&self) -> Result<StoredValues> {
        let io = |e| Error::io("read the weights", &self.path, &e);
        let mut file = self.file.try_clone().map_err(io)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(io)?;
        Ok(StoredValues { path: self.path.clone(), file, bytes: vec![0; 1 << 20] })
    }

    /// The first `values` where they are in the file.
    ///
    /// # Errors
    /// As for [`StoredWeights::read`].
    pub(crate) fn map(&self, values: usize) -> Result<MappedValues> {
        let io = |e| Error::io("read the weights", &self.path, &e);
        let bytes = files::map(&self.file, &self.path).map_err(io)?;
        let first = self.offset as usize;
        let range = first..first + 4 * values;
        let sum = crc32fast::hash(&bytes[range.clone()]);
        Ok(MappedValues { path: self.path.clone(), bytes, range, sum })
    }
}

/// Values that stay in their file.
#[derive(Debug)]
pub(crate) struct MappedValues {
    path: PathBuf,
    bytes: Mmap,
    range: Range<usize>,
    /// CRC-32 of their bytes when they were mapped.
    sum: u32,
}

impl MappedValues {
    /// Their bytes, the lowest of each value first.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }

    /// Checks that nobody has written to the file since: what was computed meanwhile would be of other values.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn verify(&self) -> Result<()> {
        if crc32fast::hash(self.bytes()) == self.sum {
            return Ok(());
        }
        Err(Error::failure(format!(
            "{}: it was changed while the run read from it; put it back as it was, and go on with --resume from \
             the last checkpoint",
            self.path.display()
        )))
    }
}

/// The values of stored weights, read one after the other.
#[derive(Debug)]
pub(crate) struct StoredValues {
    path: PathBuf,
    file: File,
    bytes: Vec<u8>,
}

impl StoredValues {
    /// Reads the next `values`.
    ///
    /// # Errors
    /// Names the file when it cannot be read any more.
    pub(crate) fn read(&mut self, values: &mut [f32]) -> Result<()> {
        for values in values.chunks_mut(self.bytes.len() / 4) {
            let bytes = &mut self.bytes[..values.len() * 4];
            let read = self.file.read_exact(bytes);
            read.map_err(|e| Error::io("read the weights", &self.path, &e))?;
            for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        Ok(())
    }
}

/// Hands an encoder's bytes to a file.
struct FileSink<'p> {
    path: &'p Path,
    file: AtomicFile,
}

impl<'p> FileSink<'p> {
    fn create(path: &'p Path) -> Result<Self> {
        Ok(Self { path, file: AtomicFile::create(path)? })
    }
}

impl Sink for FileSink<'_> {
    type Error = Error;

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", self.path, &e))
    }
}

/// Moments of all that is trained, of trainers that have a piece of them each.
#[derive(Debug)]
pub(crate) enum WholeMoments {
    /// Whole arenas of [`Moments::AdamW`].
    AdamW {
        /// Means of gradients.
        first: Vec<f32>,
        /// Means of their squares.
        second: Vec<f32>,
    },
    /// The whole arena of [`Moments::Momentum`].
    Momentum(Vec<f32>),
}

impl WholeMoments {
    fn as_moments(&self) -> Moments<'_> {
        match self {
            Self::AdamW { first, second } => Moments::AdamW { first, second },
            Self::Momentum(moments) => Moments::Momentum(moments),
        }
    }
}

/// Saves the state of `trainer` to `path`: the old file or the new one, never a part.
///
/// # Errors
/// Names the file when it cannot be written; what was there stays.
pub fn save(path: &Path, trainer: &Trainer<'_>, meta: &Meta) -> Result<()> {
    save_with(path, trainer, None, meta)
}

/// As [`save`], with the moments of a trainer that has a piece of them.
///
/// # Errors
/// As [`save`].
pub(crate) fn save_with(
    path: &Path,
    trainer: &Trainer<'_>,
    moments: Option<&WholeMoments>,
    meta: &Meta,
) -> Result<()> {
    let config = *trainer.plan().config();
    let adapters = trainer.plan().adapters().map(|table| *table.adapters());
    let header = Header { config, adapters, seed: trainer.seed(), updates: trainer.updates() };
    let trained = if adapters.is_some() { trainer.adapters() } else { trainer.parameters() };
    let moments = moments.map_or_else(|| trainer.moments(), WholeMoments::as_moments);
    write(path, &header, meta, trained, Some(moments))
}

/// Saves a model without moments to `path`: the old file or the new one, never a part.
///
/// # Errors
/// As [`save`].
///
/// # Panics
/// If `parameters` are shorter than the arena of `header`'s config.
pub fn save_weights(path: &Path, header: &Header, meta: &Meta, parameters: &[f32]) -> Result<()> {
    write(path, header, meta, parameters, None)
}

fn write(
    path: &Path,
    header: &Header,
    meta: &Meta,
    parameters: &[f32],
    moments: Option<Moments<'_>>,
) -> Result<()> {
    let mut sink = FileSink::create(path)?;
    checkpoint::encode(header, &meta_bytes(path, meta)?, parameters, moments, &mut sink)?;
    sink.file.commit()
}

/// As [`save_weights`], of a model whose tensors are in memory one at a time: `give` hands the values of
/// each, in the order of the table, to the function that it gets.
///
/// # Errors
/// As [`save`], and those of `give`; what was there stays.
///
/// # Panics
/// If there are not as many values as the table says.
pub fn save_given(
    path: &Path,
    header: &Header,
    meta: &Meta,
    give: impl FnOnce(&mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let mut sink = FileSink::create(path)?;
    checkpoint::encode_weights(header, &meta_bytes(path, meta)?, &mut sink, give)?;
    sink.file.commit()
}

fn meta_bytes(path: &Path, meta: &Meta) -> Result<Vec<u8>> {
    let cannot = |e| Error::failure(format!("cannot write {}: {e}", path.display()));
    serde_json::to_vec(meta).map_err(cannot)
}

/// SHA-256 over the bytes of what a trainer trains, as [`weights_sha256`]: of its adapters, if it has any,
/// else of its parameters.
#[must_use]
pub fn trained_sha256(trainer: &Trainer<'_>) -> String {
    match trainer.plan().adapters() {
        Some(table) => sha256_of(table.ranges(), trainer.adapters()),
        None => weights_sha256(trainer.plan().table(), trainer.parameters()),
    }
}

/// SHA-256 over the parameters' bytes (little-endian `f32`) in table order, without
/// the arena's gaps.
#[must_use]
pub fn weights_sha256(table: &ParamTable, arena: &[f32]) -> String {
    sha256_of(table.iter().map(|spec| spec.range()), arena)
}

fn sha256_of(ranges: impl Iterator<Item = Range<usize>>, arena: &[f32]) -> String {
    let mut hash = Sha256::new();
    let mut chunk = [0; 4096];
    for range in ranges {
        for values in arena[range].chunks(chunk.len() / 4) {
            let bytes = &mut chunk[..values.len() * 4];
            for (to, value) in bytes.chunks_exact_mut(4).zip(values) {
                to.copy_from_slice(&value.to_le_bytes());
            }
            hash.update(bytes);
        }
    }
    hex(&hash.finalize())
}
