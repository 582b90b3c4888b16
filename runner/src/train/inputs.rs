//! What a run trains on: text made into shards in the run folder, shards in place, or examples.

use std::path::{Path, PathBuf};

use crate::checkpoint::Meta;
use crate::data::loader::{Dataset, Validation};
use crate::data::packing::Packing;
use crate::data::prefetch::{ReadyBatch, StepTokens};
use crate::data::prepare::{self, Request};
use crate::data::source::{Input, Source, discover, is_gone};
use crate::data::stream::{TokenStream, find_shards, sampled_sha256};
use crate::data::{embedded, sha256_hex, vocabulary};
use crate::error::{Error, Result};
use crate::files;
use crate::settings::{TokenizerChoice, TrainSettings};
use crate::tokenizer::{self, Tokenizer};
use crate::validation::Held;

use super::examples::{self, ReadExamples};
use super::folder::RunFolder;

/// The data of a run and what its numbers mean.
#[derive(Debug)]
pub struct Inputs {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// How ids become text, if anybody knows.
    pub tokenizer: Option<Tokenizer>,
    /// SHA-256 of the tokenizer's JSON.
    pub tokenizer_sha256: Option<String>,
    /// What to train on.
    pub train: Train,
    /// What to validate on.
    pub validation: Option<Held>,
    /// What was read, if that was examples.
    pub examples: Option<ReadExamples>,
    /// Of text and token shards: see [`sampled_sha256`].
    sampled_sha256: Option<String>,
    /// Where shards have been made again of the text, which may be another one now.
    remade: Option<PathBuf>,
    /// The data are token shards that lie outside of the run folder.
    in_place: bool,
    /// They lie elsewhere than those that the run began with.
    has_moved: bool,
    /// Sequences of a micro-batch.
    batch_size: usize,
    /// Micro-batches of a step.
    accumulated: usize,
    block_size: usize,
}

/// What a run trains on.
#[derive(Debug)]
pub enum Train {
    /// Windows of text.
    Windows(Dataset),
    /// Rows of examples.
    Examples(Packing),
}

/// Token streams before windows are cut out of them.
struct Streams {
    train: TokenStream,
    validation: Option<TokenStream>,
    tokenizer: Option<Tokenizer>,
    vocab_size: usize,
    /// See [`sampled_sha256`].
    sha256: Option<String>,
    /// Where shards have been made again of the text.
    remade: Option<PathBuf>,
    /// They are shards in the run folder, made of text.
    is_text: bool,
}

impl Inputs {
    /// Opens the data of `settings`. With `resumed` set the run has checkpoints: then
    /// its data may not have changed, and its tokenizer is the one in the folder.
    ///
    /// # Errors
    /// Missing, empty, malformed, too short or changed data, each named.
    pub fn open(settings: &TrainSettings, folder: &RunFolder, resumed: bool) -> Result<Self> {
        if let Some(loss_on) = settings.loss_on {
            if resumed {
                refuse_gone(settings)?;
            }
            return examples::open(settings, loss_on, folder, resumed);
        }
        let block_size = settings.block_size;
        let kept = if resumed { kept_text(settings, folder)? } else { None };
        let streams = match kept {
            Some(streams) => streams,
            None => {
                if resumed {
                    refuse_gone(settings)?;
                }
                find(settings, folder, resumed)?
            }
        };
        let Streams { train, validation, tokenizer, vocab_size, sha256, remade, is_text } = streams;
        if train.len() <= block_size as u64 {
            let named = settings.data.join(", ");
            return Err(Error::failure(format!(
                "{}: {} tokens to train on, but a block of {block_size} needs at least {}; give more \
                 data or lower --block-size",
                if named.is_empty() { embedded::NAME } else { &named },
                train.len(),
                block_size.saturating_add(1)
            )));
        }
        let validation = match validation {
            Some(stream) if stream.len() <= block_size as u64 => {
                return Err(Error::failure(format!(
                    "the validation data has {} tokens, but a block of {block_size} needs at least \
                     {}; give more data, lower --block-size, or set --val-fraction (0 for no \
                     validation)",
                    stream.len(),
                    block_size.saturating_add(1)
                )));
            }
            Some(stream) => Some(Held::Windows(Validation::open(stream, vocab_size, block_size)?)),
            None => None,
        };
        let train = Train::Windows(Dataset::open(train, vocab_size, block_size, settings.seed)?);
        let inputs = Self::new(settings, (tokenizer, vocab_size), train, validation, None)?;
        let in_place = !is_text;
        Ok(Self { sampled_sha256: sha256, remade, in_place, ..inputs })
    }

    /// Inputs of these parts.
    pub(super) fn new(
        settings: &TrainSettings,
        (tokenizer, vocab_size): (Option<Tokenizer>, usize),
        train: Train,
        validation: Option<Held>,
        examples: Option<ReadExamples>,
    ) -> Result<Self> {
        let json = tokenizer.as_ref().map(Tokenizer::to_json).transpose()?;
        Ok(Self {
            vocab_size,
            tokenizer,
            tokenizer_sha256: json.map(|json| sha256_hex(json.as_bytes())),
            train,
            validation,
            examples,
            sampled_sha256: None,
            remade: None,
            in_place: false,
            has_moved: false,
            batch_size: settings.batch_size,
            accumulated: settings.gradient_accumulation_steps,
            block_size: settings.block_size,
        })
    }

    /// Fills `batch` with the run's micro-batch number `n`.
    ///
    /// # Errors
    /// What [`Dataset::fill_batch`] refuses.
    pub fn fill(&self, n: u64, batch: &mut ReadyBatch) -> Result<()> {
        let first = n.wrapping_mul(self.batch_size as u64);
        match &self.train {
            Train::Windows(data) => {
                let places = self.batch_size * self.accumulated * self.block_size;
                batch.step = StepTokens { places, counted: places };
                let (tokens, targets) = batch.ids();
                data.fill_batch(first, self.batch_size, tokens, targets)
            }
            Train::Examples(packing) => {
                let step = n / self.accumulated as u64;
                batch.step = packing.held(step * self.rows_of_step(), self.rows_of_step());
                packing.fill(first, batch);
                Ok(())
            }
        }
    }

    fn rows_of_step(&self) -> u64 {
        self.batch_size as u64 * self.accumulated as u64
    }

    /// Steps in which the data are gone through `epochs` times; at least one.
    #[must_use]
    pub fn steps_of(&self, epochs: f64) -> u64 {
        let rows = match &self.train {
            Train::Windows(data) => (data.sequences_per_epoch() as f64 * epochs).ceil() as u64,
            Train::Examples(packing) => packing.rows_of(epochs),
        };
        rows.div_ceil(self.rows_of_step()).max(1)
    }

    /// Tokens that the first `steps` steps are trained on.
    #[must_use]
    pub fn tokens_of(&self, steps: u64) -> u64 {
        let rows = steps * self.rows_of_step();
        match &self.train {
            Train::Windows(_) => rows * self.block_size as u64,
            Train::Examples(packing) => packing.places_before(rows),
        }
    }

    /// Tokens to train on.
    #[must_use]
    pub fn train_tokens(&self) -> u64 {
        match &self.train {
            Train::Windows(data) => data.tokens(),
            Train::Examples(packing) => packing.examples().all_places(),
        }
    }

    /// The text to train on, if that is what the data are.
    #[must_use]
    pub(super) fn text(&self) -> Option<&TokenStream> {
        match &self.train {
            Train::Windows(data) => Some(data.stream()),
            Train::Examples(_) => None,
        }
    }

    /// Tokens to validate on.
    #[must_use]
    pub fn val_tokens(&self) -> u64 {
        self.validation.as_ref().map_or(0, Held::tokens)
    }

    /// What [`Meta::data_sha256`] says.
    #[must_use]
    pub fn data_sha256(&self) -> Option<String> {
        let examples = self.examples.as_ref().map(|read| read.sha256.clone());
        examples.or_else(|| self.sampled_sha256.clone())
    }

    /// The data lie elsewhere than before: token shards have to have the checkpoint's fingerprint then. (Text is
    /// compared as a whole, and so are examples.)
    pub fn want_fingerprint(&mut self) {
        self.has_moved = true;
    }

    /// Checks that a checkpoint was trained on this data.
    ///
    /// # Errors
    /// Says what differs.
    pub fn check(&self, meta: &Meta, checkpoint: &Path) -> Result<()> {
        let checked = self.compare(meta, checkpoint);
        if let (Err(_), Some(dir)) = (&checked, &self.remade) {
            prepare::spoil(dir);
        }
        checked
    }

    fn compare(&self, meta: &Meta, checkpoint: &Path) -> Result<()> {
        let differs = |what: &str, was: u64, is: u64| {
            Err(Error::failure(format!(
                "{}: the run began with {was} tokens of {what} data, but --data has {is} now; \
                 restore the data, or start anew in another --out-dir",
                checkpoint.display()
            )))
        };
        if meta.train_tokens != self.train_tokens() {
            return differs("training", meta.train_tokens, self.train_tokens());
        }
        if meta.val_tokens != self.val_tokens() {
            return differs("validation", meta.val_tokens, self.val_tokens());
        }
        if meta.tokenizer_sha256 != self.tokenizer_sha256 {
            return Err(Error::failure(format!(
                "{}: the run began with another tokenizer; restore its {}, or start anew in \
                 another --out-dir",
                checkpoint.display(),
                tokenizer::FILE_NAME
            )));
        }
        // Older checkpoints say nothing of text and shards.
        if meta.data_sha256.is_none() && self.in_place && self.has_moved {
            return Err(Error::failure(format!(
                "{}: the checkpoint is too old to tell whether --data has the shards that the run began with; \
                 put them where they were",
                checkpoint.display()
            )));
        }
        if meta.data_sha256.is_some() && meta.data_sha256 != self.data_sha256() {
            return Err(Error::failure(format!(
                "{}: the run began with other data than --data and --val-data have now; restore \
                 them, or start anew in another --out-dir",
                checkpoint.display()
            )));
        }
        Ok(())
    }
}

fn mixed() -> Error {
    Error::usage("--data and --val-data: one is text and the other token shards; give one kind")
}

fn paths(names: &[String]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

fn text_or_shards(settings: &TrainSettings) -> Result<Input> {
    if settings.data.is_empty() {
        return Ok(Input::Text(vec![Source::from_memory(embedded::NAME, embedded::text()?)]));
    }
    discover(&paths(&settings.data))
}

fn validation_sources(settings: &TrainSettings) -> Result<Option<Input>> {
    if settings.val_data.is_empty() {
        return Ok(None);
    }
    discover(&paths(&settings.val_data)).map(Some)
}

/// Opens what the settings name, whatever it is.
fn find(settings: &TrainSettings, folder: &RunFolder, resumed: bool) -> Result<Streams> {
    match (text_or_shards(settings)?, validation_sources(settings)?) {
        (Input::Text(train), Some(Input::Text(validation))) => {
            text(settings, folder, resumed, train, validation)
        }
        (Input::Text(train), None) => text(settings, folder, resumed, train, Vec::new()),
        (Input::Shards { train, val }, validation) => {
            let more = match validation {
                Some(Input::Shards { train, val }) => [train, val].concat(),
                Some(Input::Text(_)) => return Err(mixed()),
                None => val,
            };
            shards(settings, folder, resumed, &train, &more)
        }
        (Input::Text(_), Some(Input::Shards { .. })) => Err(mixed()),
    }
}

/// Refuses data of a resumed run that are not where they were, of which it has no copy.
fn refuse_gone(settings: &TrainSettings) -> Result<()> {
    for (flag, names) in [("--data", &settings.data), ("--val-data", &settings.val_data)] {
        if let Some(name) = names.iter().find(|name| is_gone(name)) {
            return Err(Error::failure(format!(
                "{name}: it is not there any more; {flag} says where it is now"
            )));
        }
    }
    Ok(())
}

/// What the run folder has of text some of which is gone, or could be read only once; `None` if all text is
/// there, or nothing was made of it. What is there still is compared.
fn kept_text(settings: &TrainSettings, folder: &RunFolder) -> Result<Option<Streams>> {
    let dir = folder.data();
    let Some(meta) = prepare::Meta::load(&dir).filter(|_| prepare::is_whole(&dir)) else {
        return Ok(None);
    };
    let is_kept = |name: &String| name == "-" || is_gone(name);
    let all = || settings.data.iter().chain(&settings.val_data);
    if !all().any(is_kept) {
        return Ok(None);
    }
    if all().any(|name| name == "-") && !meta.is_of_stdin() {
        return Err(Error::usage(format!(
            "--data -: the run in {} did not begin with standard input; leave it out, and the run goes on with \
             its own data",
            folder.dir().display()
        )));
    }
    let tokenizer = Tokenizer::load(&folder.dir().join(tokenizer::FILE_NAME))?;
    for (split, names) in [("train", &settings.data), ("val", &settings.val_data)] {
        if names.is_empty() || names.iter().any(is_kept) {
            continue;
        }
        let is_same = match discover(&paths(names))? {
            Input::Text(text) => {
                prepare::still_holds(&dir, split, &text, &settings.text_field, &tokenizer)?
            }
            Input::Shards { .. } => false,
        };
        if !is_same {
            return Err(other_data(folder));
        }
    }
    if let Some(gone) = all().find(|name| is_gone(name)) {
        say!(
            "cllm: {gone} is not there any more: going on with what the run has made of it, in {}",
            dir.display()
        );
    }
    prepared(settings, &dir, tokenizer).map(Some)
}

/// The data of a resumed run are not its own.
fn other_data(folder: &RunFolder) -> Error {
    Error::failure(format!(
        "{}: the data is not what the run began with (--data, --val-data, or the shards in {}); restore it, or \
         start anew in another --out-dir",
        folder.dir().display(),
        folder.data().display()
    ))
}

fn other_tokenizer(saved: &Path, data: &Path) -> Error {
    Error::failure(format!(
        "{}: it is not the tokenizer that the run began with: put it back (the tokens in {} were made with it, and a \
         copy is there), or start anew in another --out-dir",
        saved.display(),
        data.display()
    ))
}

fn text(
    settings: &TrainSettings,
    folder: &RunFolder,
    resumed: bool,
    train: Vec<Source>,
    validation: Vec<Source>,
) -> Result<Streams> {
    let request = Request {
        validation,
        text_field: settings.text_field.clone(),
        val_fraction: settings.val_fraction,
        ..Request::new(train)
    };
    let saved = folder.dir().join(tokenizer::FILE_NAME);
    // A run on text has its tokenizer: this one is on shards.
    if resumed && !saved.exists() && !folder.data().exists() {
        return Err(other_data(folder));
    }
    let tokenizer = if resumed && saved.exists() {
        Tokenizer::load(&saved)?
    } else {
        let tokenizer = make_tokenizer(settings, &request)?;
        tokenizer.save(&saved)?;
        tokenizer
    };
    let dir = folder.data();
    files::refuse_link(&dir)?;
    let mut remade = None;
    if prepare::current(&request, &tokenizer, &dir)?.is_none() {
        if resumed && prepare::is_whole(&dir) {
            let made_with = prepare::Meta::load(&dir).map(|meta| meta.tokenizer_sha256);
            let sha256 = sha256_hex(tokenizer.to_json()?.as_bytes());
            if made_with.is_some_and(|other| other != sha256) {
                return Err(other_tokenizer(&saved, &dir));
            }
            say!("cllm: comparing the text with what the run began with");
            if !prepare::adopt(&request, &tokenizer, &dir)? {
                return Err(other_data(folder));
            }
        } else {
            if resumed {
                say!("cllm: {} is not whole: made again of the text", dir.display());
                remade = Some(dir.clone());
            }
            prepare::prepare(&request, &tokenizer, &dir)?;
        }
    }
    Ok(Streams { remade, ..prepared(settings, &dir, tokenizer)? })
}

/// Of the streams of a run.
fn fingerprint(train: &TokenStream, validation: Option<&TokenStream>) -> Result<Option<String>> {
    let streams: Vec<&TokenStream> = core::iter::once(train).chain(validation).collect();
    sampled_sha256(&streams).map(Some)
}

/// Ids of the model: those of the tokenizer, or more, which nothing stands for.
fn ids(settings: &TrainSettings, tokenizer: &Tokenizer) -> Result<usize> {
    match settings.vocab_size {
        None => Ok(tokenizer.vocab_size()),
        Some(size) if size < tokenizer.vocab_size() => Err(Error::usage(format!(
            "--vocab-size {size}: the tokenizer has {} ids; leave --vocab-size out",
            tokenizer.vocab_size()
        ))),
        Some(size) => Ok(size),
    }
}

/// The shards that text was made into.
fn prepared(settings: &TrainSettings, dir: &Path, tokenizer: Tokenizer) -> Result<Streams> {
    let open = |split| -> Result<Option<TokenStream>> {
        let paths = find_shards(dir, split)?;
        if paths.is_empty() { Ok(None) } else { TokenStream::open(&paths).map(Some) }
    };
    let Some(train) = open("train")? else {
        return Err(Error::failure(format!(
            "--val-fraction {} leaves nothing to train on",
            settings.val_fraction
        )));
    };
    let validation = open("val")?;
    let sha256 = fingerprint(&train, validation.as_ref())?;
    Ok(Streams {
        train,
        validation,
        vocab_size: ids(settings, &tokenizer)?,
        tokenizer: Some(tokenizer),
        sha256,
        remade: None,
        is_text: true,
    })
}

fn make_tokenizer(settings: &TrainSettings, request: &Request) -> Result<Tokenizer> {
    let all = || [request.train.clone(), request.validation.clone()].concat();
    match &settings.tokenizer {
        TokenizerChoice::Bytes => Ok(Tokenizer::Bytes),
        // A character that only the validation text has must have a number too.
        TokenizerChoice::Chars => vocabulary::train_chars(&all(), &request.text_field),
        TokenizerChoice::Bpe(size) => {
            vocabulary::train_bpe(&request.train, &request.text_field, *size)
        }
        TokenizerChoice::File(path) => Tokenizer::load(path),
    }
}

fn shards(
    settings: &TrainSettings,
    folder: &RunFolder,
    resumed: bool,
    train: &[PathBuf],
    val: &[PathBuf],
) -> Result<Streams> {
    let Some(first) = train.first() else {
        return Err(Error::failure(format!(
            "--data: {} is validation data by its name, and there is nothing to train on",
            val.first().map_or_else(String::new, |path| path.display().to_string())
        )));
    };
    let beside = first.with_file_name(tokenizer::FILE_NAME);
    let all = TokenStream::open(train)?;
    let held_out = if val.is_empty() { None } else { Some(TokenStream::open(val)?) };
    for dir in settings.data.iter().map(Path::new) {
        prepare::refuse_missing(dir, "train", Some(&all))?;
        // With data of its own, validation takes nothing of these.
        if settings.val_data.is_empty() {
            prepare::refuse_missing(dir, "val", held_out.as_ref())?;
        }
    }
    for dir in settings.val_data.iter().map(Path::new) {
        prepare::refuse_missing(dir, "train", held_out.as_ref())?;
        prepare::refuse_missing(dir, "val", held_out.as_ref())?;
    }
    let saved = folder.dir().join(tokenizer::FILE_NAME);
    let tokenizer = match &settings.tokenizer {
        // Where it came from may be gone.
        _ if resumed && saved.exists() => Some(Tokenizer::load(&saved)?),
        TokenizerChoice::File(path) => Some(Tokenizer::load(path)?),
        _ if beside.exists() => Some(Tokenizer::load(&beside)?),
        _ => None,
    };
    if let (Some(base), Some(tokenizer), true) = (&settings.base, &tokenizer, beside.exists())
        && Tokenizer::load(&beside)?.to_json()? != tokenizer.to_json()?
    {
        return Err(Error::usage(format!(
            "--data: {} was made with another tokenizer ({}) than that of --base {}: tokenize the \
             text again with --tokenizer and the base's",
            first.display(),
            beside.display(),
            base.display()
        )));
    }
    let made = first.parent().and_then(prepare::Meta::load);
    if let (Some(made), Some(tokenizer), false) = (made, &tokenizer, resumed)
        && made.tokenizer_sha256 != sha256_hex(tokenizer.to_json()?.as_bytes())
    {
        return Err(Error::failure(format!(
            "--data: {} was made with another tokenizer than the one that is beside it or that --tokenizer \
             names; tokenize the text again",
            first.display()
        )));
    }
    let vocab_size = match (&tokenizer, settings.vocab_size) {
        (Some(tokenizer), _) => ids(settings, tokenizer)?,
        (None, Some(size)) => size,
        (None, None) => {
            return Err(Error::usage(format!(
                "--data: {} does not say how many token ids there are; give --vocab-size, or \
                 --tokenizer with a tokenizer.json",
                first.display()
            )));
        }
    };
    if let Some(tokenizer) = tokenizer.as_ref().filter(|_| !resumed) {
        // Generation looks for it beside the checkpoints.
        tokenizer.save(&saved)?;
    }
    let (train, validation) = if held_out.is_none() {
        if !(0.0..1.0).contains(&settings.val_fraction) {
            return Err(Error::usage(format!(
                "--val-fraction {}: must be at least 0 and below 1",
                settings.val_fraction
            )));
        }
        let tail = (all.len() as f64 * settings.val_fraction) as u64;
        let (train, tail) = all.split_at(all.len() - tail);
        (train, (!tail.is_empty()).then_some(tail))
    } else {
        (all, held_out)
    };
    let sha256 = fingerprint(&train, validation.as_ref())?;
    Ok(Streams { train, validation, tokenizer, vocab_size, sha256, remade: None, is_text: false })
}
