//! The data of a run on examples: read and encoded as it starts, and packed as it goes.

use serde::Serialize;

use super::base;
use super::folder::RunFolder;
use super::inputs::{Inputs, Train};
use crate::data::examples::Examples;
use crate::data::instructions::{Encoder, Read, sources};
use crate::data::packing::{FixedRows, Packing};
use crate::data::sha256_hex;
use crate::error::{Error, Result};
use crate::settings::{LossOn, TokenizerChoice, TrainSettings};
use crate::tokenizer::usage::Usage;
use crate::tokenizer::{self, Tokenizer};
use crate::validation::Held;

/// What was read for a run, of which its start tells.
#[derive(Clone, Debug, Serialize)]
pub struct ReadExamples {
    /// Examples to train on.
    pub train: usize,
    /// Examples to validate on.
    pub val: usize,
    /// Tokens to train on that count.
    pub counted_tokens: u64,
    /// Rows of the first epoch.
    pub rows_per_epoch: u64,
    /// Share of these rows that is padding.
    pub padding: f64,
    /// Examples that are cut at a block's end.
    pub cut: usize,
    /// Examples that are left out, for nothing would count of them before a block's end.
    pub dropped: usize,
    /// SHA-256 of all of them as tokens.
    #[serde(skip)]
    pub sha256: String,
}

/// Checks that examples have what they want.
pub(super) fn check(settings: &TrainSettings) -> Result<()> {
    if settings.loss_on.is_some() && settings.base.is_none() {
        return Err(Error::usage(
            "--loss-on: examples are for a model that is there already; give --base",
        ));
    }
    if settings.loss_on.is_some() && settings.data.is_empty() {
        return Err(Error::usage("--data <PATH> is missing: files of JSON lines"));
    }
    Ok(())
}

/// Reads the examples of `settings`: see [`Inputs::open`].
pub(super) fn open(
    settings: &TrainSettings,
    loss_on: LossOn,
    folder: &RunFolder,
    resumed: bool,
) -> Result<Inputs> {
    check(settings)?;
    if !(0.0..1.0).contains(&settings.val_fraction) {
        return Err(Error::usage(format!(
            "--val-fraction {}: must be at least 0 and below 1",
            settings.val_fraction
        )));
    }
    let saved = folder.dir().join(tokenizer::FILE_NAME);
    let is_saved = resumed && saved.exists();
    let tokenizer = match &settings.tokenizer {
        _ if is_saved => Tokenizer::load(&saved)?,
        TokenizerChoice::File(path) => Tokenizer::load(path)?,
        TokenizerChoice::Bytes => Tokenizer::Bytes,
        TokenizerChoice::Chars | TokenizerChoice::Bpe(_) => {
            return Err(Error::usage(
                "--tokenizer: examples are not text to train a tokenizer on; give that of --base",
            ));
        }
    };
    // Where it came from may be gone.
    let told = match settings.base.as_deref() {
        Some(base) if !is_saved => base::folder_of(base),
        _ => folder.dir().to_path_buf(),
    };
    let usage = (Usage::of_folder(&told)?, told.as_path());
    let encoder =
        Encoder::new(&tokenizer, usage, loss_on, &settings.text_field, settings.block_size);
    let read = encoder.read(&sources("--data", &settings.data)?)?;
    let val = if settings.val_data.is_empty() {
        None
    } else {
        Some(encoder.read(&sources("--val-data", &settings.val_data)?)?)
    };
    let all: Vec<&Read> = [Some(&read), val.as_ref()].into_iter().flatten().collect();
    let (cut, dropped) = all.iter().fold((0, 0), |(a, b), r| (a + r.cut, b + r.dropped));
    if let Some(line) = Read::cut_line(&all, settings.block_size).filter(|_| !settings.quiet) {
        say!("cllm: {line}");
    }
    let [train, val] = match val {
        Some(val) => [read.examples, val.examples],
        None => read.split(settings.val_fraction),
    };
    if train.is_empty() {
        return Err(Error::failure(format!(
            "--val-fraction {} leaves nothing to train on",
            settings.val_fraction
        )));
    }
    if !is_saved {
        // Generation looks for it beside the checkpoints.
        tokenizer.save(&saved)?;
    }
    let sha256 = sha256_hex([train.sha256(), val.sha256()].concat().as_bytes());
    let (counts, counted_tokens) = ([train.len(), val.len()], train.all_counted());
    let packing = Packing::new(train, settings.block_size, settings.seed);
    let rows_per_epoch = packing.rows_of(1.0);
    let room = rows_per_epoch * settings.block_size as u64;
    let examples = ReadExamples {
        train: counts[0],
        val: counts[1],
        counted_tokens,
        rows_per_epoch,
        padding: 1.0 - packing.examples().all_places() as f64 / room as f64,
        cut,
        dropped,
        sha256,
    };
    let validation = held(val, settings.block_size);
    let vocab_size = tokenizer.vocab_size();
    let train = Train::Examples(packing);
    Inputs::new(settings, (Some(tokenizer), vocab_size), train, validation, Some(examples))
}

/// Examples to measure a loss on; `None` if there are none.
fn held(examples: Examples, block_size: usize) -> Option<Held> {
    (!examples.is_empty()).then(|| Held::Examples(FixedRows::new(examples, block_size)))
}
