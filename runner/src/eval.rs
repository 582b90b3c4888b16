//! The loss of a trained model on a text: `cllm eval`.

use core::f64::consts::LN_2;
use std::io::Write as _;
use std::path::PathBuf;

use cllm_core::{Batch, BatchShape, Dtype, Engine, Evaluator, IGNORE, Isa, Mode, Plan, Tiling};
use serde::Serialize;

use crate::data::loader::Validation;
use crate::data::prepare::{self, Request};
use crate::data::source::{Input, discover};
use crate::data::stream::{TokenStream, find_shards};
use crate::error::{Error, Result};
use crate::memory::PoolMemory;
use crate::model;
use crate::pool::{self, Crew};
use crate::settings::{LogFormat, Threads, TrainSettings, TuningChoice};
use crate::tokenizer::Tokenizer;
use crate::train::base::BLOCK;
use crate::train::folder::RunFolder;
use crate::train::inputs::Inputs;
use crate::trained::Trained;
use crate::tune::{self, Key, TUNED};
use crate::validation::Rounds;

/// What `cllm eval` is told.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalSettings {
    /// Run folder or checkpoint file.
    pub checkpoint: PathBuf,
    /// Files and folders of text, JSON lines or token shards, `-` for standard input;
    /// none means the run's own validation data.
    pub data: Vec<String>,
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
    /// `exp(val_loss)`.
    pub perplexity: f64,
    /// Bits to tell a byte of the text, if a tokenizer says how many bytes there are.
    pub bits_per_byte: Option<f64>,
    /// Tokens that count.
    pub tokens: usize,
    /// The kernels that computed it.
    pub kernels: String,
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
        LogFormat::Text => {
            let bits =
                report.bits_per_byte.map_or(String::new(), |b| format!("\nbits/byte   {b:.4}"));
            format!(
                "checkpoint  {} (step {})\nloss        {:.4} nats a token\nperplexity  {:.3}{bits}\n\
                 tokens      {}\nkernels     {}",
                report.checkpoint,
                report.step,
                report.val_loss,
                report.perplexity,
                report.tokens,
                report.kernels
            )
        }
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
        let stream = given_data(settings, tokenizer.as_ref())?;
        Validation::open(stream, config.vocab_size, block_size)?
    };
    let rounds = Rounds::new(data.sequences(), settings.batch_size, settings.batches);
    let batch = BatchShape { sequences: settings.batch_size, tokens: block_size };
    let workers = model::workers(settings.threads)?;
    let chosen = tune::choose(&settings.tuning, &Key::new(&config, batch, workers, kernels))?;
    if let Some(file) = chosen.file_name() {
        eprintln!("cllm: {TUNED} {file}");
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
    let (mut tokens, mut targets) = (vec![0; plan.tokens()], vec![0; plan.tokens()]);
    let mut bytes = 0;
    let mut row = Vec::with_capacity(block_size);
    let count = |batch: &Batch<'_>| {
        if let Some(tokenizer) = &tokenizer {
            for targets in batch.targets.chunks(block_size) {
                row.clear();
                row.extend(targets.iter().filter(|id| **id != IGNORE));
                bytes += tokenizer.decode_bytes(&row).len();
            }
        }
        Some(evaluator.evaluate(batch))
    };
    let loss = pool::with_workers(&engine, &Crew::new(workers, false), || {
        rounds.mean(&data, &mut tokens, &mut targets, count)
    })?;
    // Nobody interrupts it, and there is at least one sequence.
    let Some(loss) = loss.filter(|loss| loss.counted > 0) else {
        return Err(Error::failure("there is nothing to evaluate on"));
    };
    Ok(Report {
        event: "eval",
        checkpoint: trained.path().display().to_string(),
        step: trained.step(),
        val_loss: loss.mean(),
        perplexity: loss.mean().exp(),
        bits_per_byte: (bytes > 0).then(|| loss.sum / LN_2 / bytes as f64),
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
fn own_data(trained: &Trained, block_size: usize) -> Result<Validation> {
    let dir = trained.dir();
    let folder = RunFolder::existing(&dir);
    if !folder.has_settings() {
        return Err(Error::usage(format!(
            "{}: not a run folder, so it has no data of its own; give --data",
            dir.display()
        )));
    }
    if folder.data().is_dir() {
        // Text was made into shards, which are enough even where the text has gone.
        let shards = find_shards(&folder.data(), "val")?;
        if !shards.is_empty() {
            let config = trained.config();
            let stream = TokenStream::open(&shards)?;
            return Validation::open(stream, config.vocab_size, block_size);
        }
    }
    let settings = TrainSettings { block_size, ..folder.settings()? };
    let inputs = Inputs::open(&settings, &folder, true)?;
    inputs.validation.ok_or_else(|| {
        Error::usage(format!(
            "{}: the run has no validation data (--val-fraction 0); give --data",
            dir.display()
        ))
    })
}

fn given_data(settings: &EvalSettings, tokenizer: Option<&Tokenizer>) -> Result<TokenStream> {
    let paths: Vec<PathBuf> = settings.data.iter().map(PathBuf::from).collect();
    match discover(&paths)? {
        Input::Shards { train, val } => {
            TokenStream::open(if val.is_empty() { &train } else { &val })
        }
        Input::Text(sources) => {
            let Some(tokenizer) = tokenizer else {
                return Err(Error::usage(format!(
                    "{}: there is no tokenizer beside the checkpoint to read text with; give \
                     --tokenizer",
                    settings.checkpoint.display()
                )));
            };
            let request = Request {
                text_field: settings.text_field.clone(),
                val_fraction: 0.0,
                ..Request::new(sources)
            };
            Ok(prepare::encode_in_memory(&request, tokenizer)?.0)
        }
    }
}
