//! The loss of a trained model on a text or on examples: `cllm eval`.

use core::f64::consts::LN_2;
use std::io::Write as _;
use std::path::PathBuf;

use cllm_core::{Batch, BatchShape, Dtype, Engine, Evaluator, IGNORE, Isa, Mode, Plan, Tiling};
use serde::Serialize;

use crate::data::instructions::{self, Encoder, Read};
use crate::data::loader::Validation;
use crate::data::packing::FixedRows;
use crate::data::prefetch::ReadyBatch;
use crate::data::prepare::{self, Request};
use crate::data::source::{Input, discover};
use crate::data::stream::{TokenStream, find_shards};
use crate::error::{Error, Result};
use crate::memory::PoolMemory;
use crate::model;
use crate::pool::{self, Crew};
use crate::settings::{LogFormat, LossOn, Threads, TrainSettings, TuningChoice};
use crate::statistics::ratio;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::usage::Usage;
use crate::train::base::BLOCK;
use crate::train::folder::RunFolder;
use crate::train::inputs::Inputs;
use crate::trained::Trained;
use crate::tune::{self, Key, TUNED};
use crate::validation::{Held, Rounds};

/// What `cllm eval` is told.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalSettings {
    /// Run folder or checkpoint file.
    pub checkpoint: PathBuf,
    /// Files and folders of text, JSON lines or token shards, `-` for standard input;
    /// none means the run's own validation data.
    pub data: Vec<String>,
    /// `data` are examples, of which this counts.
    pub loss_on: Option<LossOn>,
    /// Field of a JSON line that holds the text.
    pub text_field: String,
    /// Tokenizer file or folder; `None` is the one beside the checkpoint.
    pub tokenizer: Option<PathBuf>,
    /// Tokens of a sequence; `None` is as many as in the run, and for a model that no run here has
    /// trained its context, but at most 1,024.
    pub block_size: Option<usize>,
    /// Sequences of a batch.
    pub batch_size: usize,
    /// Batches, spread over the data; 0 takes all.
    pub batches: usize,
    /// Number of workers.
    pub threads: Threads,
    /// Sizes of blocks.
    pub tuning: TuningChoice,
    /// Instruction set; `None` is the best that the CPU has.
    pub isa: Option<Isa>,
    /// What the operands of products are rounded to.
    pub dtype: Dtype,
    /// What standard output carries.
    pub log_format: LogFormat,
}

/// The result, as a line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    event: &'static str,
    /// The checkpoint.
    pub checkpoint: String,
    /// Steps it was trained for.
    pub step: u64,
    /// Mean loss in nats a token.
    pub val_loss: f64,
    /// Its standard error, from the spread of the batches' losses; `None` if there are too few.
    pub val_loss_error: Option<f64>,
    /// 95 % confidence interval of it.
    pub val_loss_interval: Option<[f64; 2]>,
    /// `exp(val_loss)`.
    pub perplexity: f64,
    /// 95 % confidence interval of it.
    pub perplexity_interval: Option<[f64; 2]>,
    /// Bits to tell a byte of the text, if a tokenizer says how many bytes there are.
    pub bits_per_byte: Option<f64>,
    /// 95 % confidence interval of it.
    pub bits_per_byte_interval: Option<[f64; 2]>,
    /// Tokens that count.
    pub tokens: usize,
    /// The kernels that computed it.
    pub kernels: String,
}

impl Report {
    /// The result for people.
    fn text(&self) -> String {
        let sure = |interval: Option<[f64; 2]>, digits: usize| {
            interval.map_or(String::new(), |[low, high]| {
                format!(" (95 %: {low:.digits$} to {high:.digits$})")
            })
        };
        let bits = self.bits_per_byte.map_or(String::new(), |bits| {
            format!("\nbits/byte   {bits:.4}{}", sure(self.bits_per_byte_interval, 4))
        });
        format!(
            "checkpoint  {} (step {})\nloss        {:.4} nats a token{}\nperplexity  {:.3}{}{bits}\n\
             tokens      {}\nkernels     {}",
            self.checkpoint,
            self.step,
            self.val_loss,
            sure(self.val_loss_interval, 4),
            self.perplexity,
            sure(self.perplexity_interval, 3),
            self.tokens,
            self.kernels
        )
    }
}

/// Evaluates and prints the result.
///
/// # Errors
/// A missing or damaged checkpoint, tokenizer or data, too much memory, a closed
/// standard output.
pub fn evaluate(settings: &EvalSettings) -> Result<()> {
    let report = measure(settings)?;
    let text = match settings.log_format {
        LogFormat::Json => serde_json::to_string(&report)
            .map_err(|e| Error::failure(format!("cannot report: {e}")))?,
        LogFormat::Text => report.text(),
    };
    writeln!(std::io::stdout(), "{text}")
        .map_err(|e| Error::failure(format!("cannot write to standard output: {e}")))
}

/// Evaluates.
///
/// # Errors
/// As [`evaluate`], but for standard output.
pub fn measure(settings: &EvalSettings) -> Result<Report> {
    if settings.batch_size == 0 {
        return Err(Error::usage("--batch-size 0: it must be at least 1"));
    }
    let kernels = model::kernels(settings.isa, settings.dtype)?;
    let trained = Trained::open(&settings.checkpoint)?;
    let config = *trained.config();
    let block_size = block_size(settings, &trained)?;
    let given = settings.tokenizer.as_deref();
    let tokenizer = if given.is_some() || trained.has_tokenizer() {
        Some(trained.tokenizer(given)?)
    } else {
        None
    };
    let data = if settings.data.is_empty() {
        own_data(&trained, block_size)?
    } else {
        given_data(settings, &trained, tokenizer.as_ref(), block_size)?
    };
    let rounds = Rounds::new(data.sequences(), settings.batch_size, settings.batches);
    let batch = BatchShape { sequences: settings.batch_size, tokens: block_size };
    let workers = model::workers(settings.threads)?;
    let chosen = tune::choose(&settings.tuning, &Key::new(&config, batch, workers, kernels))?;
    if let Some(file) = chosen.file_name() {
        say!("cllm: {TUNED} {file}");
    }
    let tiling = Tiling { blocking: chosen.blocking, ..Tiling::default() };
    let plan = Plan::with_tiling(&config, batch, workers, &tiling, Mode::Evaluate, kernels);
    let plan = plan.map_err(model::plan_error)?;
    let mut memory = PoolMemory::allocate(&plan)?;
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).map_err(model::plan_error)?;
    let evaluator = Evaluator::new(&plan, kernels, pools, &engine).map_err(model::plan_error)?;
    let mut evaluator = evaluator.wait_with(&pool::CALLER);
    trained.read_parameters(evaluator.parameters_mut())?;
    let mut row = Vec::with_capacity(block_size);
    let mut parts = Vec::new();
    let measure = |batch: &Batch<'_>| {
        let mut bytes = 0;
        if let Some(tokenizer) = &tokenizer {
            for targets in batch.targets.chunks(block_size) {
                row.clear();
                row.extend(targets.iter().filter(|id| **id != IGNORE));
                bytes += tokenizer.decode_bytes(&row).len();
            }
        }
        let loss = evaluator.evaluate(batch);
        parts.extend(loss.ok().map(|loss| [loss.sum, loss.counted as f64, bytes as f64]));
        Some(loss)
    };
    let mut batch = ReadyBatch::new(plan.tokens());
    let loss = pool::with_workers(&engine, &Crew::new(workers, false), || {
        rounds.mean(&data, &mut batch, measure)
    })?;
    // Nobody interrupts it, and there is at least one sequence.
    let Some(loss) = loss.filter(|loss| loss.counted > 0) else {
        return Err(Error::failure("there is nothing to evaluate on"));
    };
    let bytes: f64 = parts.iter().map(|part| part[2]).sum();
    let sure = ratio(&parts.iter().map(|part| [part[0], part[1]]).collect::<Vec<_>>());
    let bits = ratio(&parts.iter().map(|part| [part[0] / LN_2, part[2]]).collect::<Vec<_>>());
    let interval = sure.map(|sure| sure.interval);
    Ok(Report {
        event: "eval",
        checkpoint: trained.path().display().to_string(),
        step: trained.step(),
        val_loss: loss.mean(),
        val_loss_error: sure.map(|sure| sure.error),
        val_loss_interval: interval,
        perplexity: loss.mean().exp(),
        perplexity_interval: interval.map(|interval| interval.map(f64::exp)),
        bits_per_byte: (bytes > 0.0).then(|| loss.sum / LN_2 / bytes),
        bits_per_byte_interval: bits.filter(|_| bytes > 0.0).map(|bits| bits.interval),
        tokens: loss.counted,
        kernels: kernels.set().to_string(),
    })
}

/// Tokens of a sequence.
fn block_size(settings: &EvalSettings, trained: &Trained) -> Result<usize> {
    let most = trained.config().block_size;
    match settings.block_size {
        Some(0) => Err(Error::usage("--block-size 0: it must be at least 1")),
        Some(size) if size > most => Err(Error::usage(format!(
            "--block-size {size}: the model is for sequences of up to {most} tokens"
        ))),
        Some(size) => Ok(size),
        None => {
            let folder = RunFolder::existing(&trained.dir());
            let own =
                if folder.has_settings() { Some(folder.settings()?.block_size) } else { None };
            Ok(own.unwrap_or(BLOCK).min(most))
        }
    }
}

/// The validation data of the run that the checkpoint is of.
fn own_data(trained: &Trained, block_size: usize) -> Result<Held> {
    let dir = trained.dir();
    let folder = RunFolder::existing(&dir);
    if !folder.has_settings() {
        return Err(Error::usage(format!(
            "{}: a model that came in or stands alone has no data of its own; give --data",
            dir.display()
        )));
    }
    if folder.data().is_dir() {
        // Text was made into shards, which are enough even where the text has gone.
        let shards = find_shards(&folder.data(), "val")?;
        if !shards.is_empty() {
            let config = trained.config();
            let stream = TokenStream::open(&shards)?;
            return Ok(Held::Windows(Validation::open(stream, config.vocab_size, block_size)?));
        }
    }
    let settings = TrainSettings { block_size, quiet: true, ..folder.settings()? };
    let stdin = |names: &[String]| names.iter().any(|name| name == "-");
    if settings.loss_on.is_some() && (stdin(&settings.data) || stdin(&settings.val_data)) {
        return Err(Error::usage(format!(
            "{}: the run's examples came from standard input; give --data, with --loss-on",
            dir.display()
        )));
    }
    let inputs = Inputs::open(&settings, &folder, true)?;
    inputs.validation.ok_or_else(|| {
        Error::usage(format!(
            "{}: the run has no validation data (--val-fraction 0); give --data",
            dir.display()
        ))
    })
}

fn given_data(
    settings: &EvalSettings,
    trained: &Trained,
    tokenizer: Option<&Tokenizer>,
    block_size: usize,
) -> Result<Held> {
    let known = || {
        tokenizer.ok_or_else(|| {
            Error::usage(format!(
                "{}: there is no tokenizer beside the checkpoint to read text with; give --tokenizer",
                settings.checkpoint.display()
            ))
        })
    };
    if let Some(loss_on) = settings.loss_on {
        let dir = trained.dir();
        let usage = (Usage::of_folder(&dir)?, dir.as_path());
        let encoder = Encoder::new(known()?, usage, loss_on, &settings.text_field, block_size);
        let read = encoder.read(&instructions::sources("--data", &settings.data)?)?;
        if let Some(line) = Read::cut_line(&[&read], block_size) {
            say!("cllm: {line}");
        }
        return Ok(Held::Examples(FixedRows::new(read.examples, block_size)));
    }
    let paths: Vec<PathBuf> = settings.data.iter().map(PathBuf::from).collect();
    let stream = match discover(&paths)? {
        Input::Shards { train, val } => {
            TokenStream::open(if val.is_empty() { &train } else { &val })?
        }
        Input::Text(sources) => {
            let request = Request {
                text_field: settings.text_field.clone(),
                val_fraction: 0.0,
                ..Request::new(sources)
            };
            prepare::encode_in_memory(&request, known()?)?.0
        }
    };
    let vocab_size = trained.config().vocab_size;
    Ok(Held::Windows(Validation::open(stream, vocab_size, block_size)?))
}
