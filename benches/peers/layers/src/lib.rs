//! What the programs have in common: the start file, the steps, and what is reported of them.

use clap::Parser;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Losses may differ from the start file's by so much of them, in `f32`.
pub const TOLERANCE: f64 = 1e-4;

/// Trains the model of a start file on its batches, and prints one JSON object.
#[derive(Parser)]
pub struct Options {
    /// Written by examples/peer_inputs.rs, or a golden file of tests/golden.
    start: PathBuf,
    /// Steps, at most those that the file has batches for.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
}

/// The settings in the file's metadata that are needed here.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "these are the names of tests/golden/README.md")]
pub struct Config {
    pub vocab_size: usize,
    pub block_size: usize,
    pub n_layer: usize,
    pub n_head: usize,
    pub d_model: usize,
    pub bias: bool,
    pub tied: bool,
    pub batch: usize,
    pub accum: usize,
    pub tokens_per_sequence: usize,
    pub betas: [f64; 2],
    pub eps: f64,
    pub layer_norm_eps: f64,
    pub weight_decay: f64,
    pub clip: f64,
    pub parameters: Vec<String>,
}

/// A tensor of floats, row after row.
#[derive(Clone, Debug)]
pub struct Values {
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its elements.
    pub data: Vec<f32>,
}

impl Values {
    /// The transpose, of a matrix.
    ///
    /// # Panics
    /// If it is not one.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let &[rows, cols] = self.shape.as_slice() else { panic!("a matrix is transposed") };
        let element = |i: usize| self.data[i % rows * cols + i / rows];
        Self { shape: vec![cols, rows], data: (0..rows * cols).map(element).collect() }
    }
}

/// What a run starts with, and what it has to come to.
#[derive(Debug)]
pub struct Start {
    /// Model and settings.
    pub config: Config,
    parameters: HashMap<String, Values>,
    /// Of all steps, one after the other.
    tokens: Vec<u32>,
    targets: Vec<u32>,
    /// Learning rates of the steps.
    rates: Vec<f64>,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
}

impl Start {
    /// Reads a file in the layout of tests/golden/README.md.
    ///
    /// # Errors
    /// If it is not one, or asks for what the programs cannot do.
    pub fn load(path: &Path) -> Result<Self, String> {
        let told = |what: String| format!("{}: {what}", path.display());
        let bytes = std::fs::read(path).map_err(|e| told(e.to_string()))?;
        Self::parse(&bytes).map_err(told)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let config = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get("config"))
            .ok_or("no start file: it has no metadata `config`")?;
        let config: Config =
            serde_json::from_str(config).map_err(|e| format!("its metadata `config`: {e}"))?;
        if config.accum != 1 || !config.tied || !config.bias {
            return Err("the programs accumulate no gradients, and know only models with biases \
                        whose head is the embedding"
                .into());
        }
        let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let mut parameters = HashMap::new();
        for name in &config.parameters {
            let tensor = format!("param/{name}");
            let shape = file.tensor(&tensor).map_err(|e| format!("{tensor}: {e}"))?.shape().into();
            let data = numbers(&file, &tensor, Dtype::F32, f32::from_le_bytes)?;
            parameters.insert(name.clone(), Values { shape, data });
        }
        let ids = |name: &str| -> Result<Vec<u32>, String> {
            numbers(&file, name, Dtype::I32, i32::from_le_bytes)?
                .into_iter()
                .map(|id| u32::try_from(id).map_err(|_| format!("{name}: {id} is not compared")))
                .collect()
        };
        let doubles = |name: &str| numbers(&file, name, Dtype::F64, f64::from_le_bytes);
        Ok(Self {
            tokens: ids("tokens")?,
            targets: ids("targets")?,
            rates: doubles("lrs")?,
            losses: doubles("losses")?,
            grad_norms: doubles("grad_norms")?,
            config,
            parameters,
        })
    }

    /// The initial values of a parameter.
    ///
    /// # Errors
    /// If the file has no such parameter.
    pub fn parameter(&self, name: &str) -> Result<&Values, String> {
        self.parameters.get(name).ok_or(format!("the start file has no parameter {name}"))
    }
}

fn numbers<T, const N: usize>(
    file: &SafeTensors<'_>,
    name: &str,
    dtype: Dtype,
    number: fn([u8; N]) -> T,
) -> Result<Vec<T>, String> {
    let tensor = file.tensor(name).map_err(|e| format!("{name}: {e}"))?;
    if tensor.dtype() != dtype {
        return Err(format!("{name}: {:?} and not {dtype:?}", tensor.dtype()));
    }
    let (chunks, _) = tensor.data().as_chunks::<N>();
    Ok(chunks.iter().copied().map(number).collect())
}

/// What a step found before its update.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Mean over all targets.
    pub loss: f64,
    /// Of all gradients, before clipping.
    pub grad_norm: f64,
}

/// By what gradients of a norm are multiplied: as PyTorch's `clip_grad_norm_`.
#[must_use]
pub fn clip_factor(clip: f64, norm: f64) -> f64 {
    (clip / (norm + 1e-6)).min(1.0)
}

/// A model of another library with its optimizer.
pub trait Trainer: Sized {
    /// With the weights of a start file.
    ///
    /// # Errors
    /// If the library does not like them.
    fn new(start: &Start) -> Result<Self, String>;

    /// Forward, backward, clip, update.
    ///
    /// # Errors
    /// If the library finds one, or a parameter got no gradient.
    fn step(&mut self, tokens: &[u32], targets: &[u32], rate: f64) -> Result<Found, String>;
}

/// What is printed of a run.
#[derive(Debug, Serialize)]
struct Report {
    peer: &'static str,
    steps: usize,
    /// By the median of all steps but the first, which touches fresh memory.
    tokens_per_s: f64,
    /// Of the last step.
    loss: f64,
    /// Largest differences from the start file, relative.
    loss_difference: f64,
    grad_norm_difference: f64,
}

/// Does what the command line says.
#[must_use]
pub fn main<T: Trainer>(peer: &'static str) -> ExitCode {
    let options = Options::parse();
    let report = run::<T>(peer, &options);
    let json = report.and_then(|report| {
        println!("{}", serde_json::to_string(&report).map_err(|e| e.to_string())?);
        if report.loss_difference < TOLERANCE {
            Ok(())
        } else {
            Err(format!("losses differ by {:.1e} from the start file's", report.loss_difference))
        }
    });
    match json {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{peer}: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run<T: Trainer>(peer: &'static str, options: &Options) -> Result<Report, String> {
    let start = Start::load(&options.start)?;
    let steps = usize::from(options.steps);
    let tokens_per_step = start.config.batch * start.config.tokens_per_sequence;
    let batches = start.tokens.chunks_exact(tokens_per_step);
    if batches.len() < steps {
        return Err(format!("--steps {steps}: the start file has {} batches", batches.len()));
    }
    let mut trainer = T::new(&start)?;
    let mut report = Report {
        peer,
        steps,
        tokens_per_s: 0.0,
        loss: 0.0,
        loss_difference: 0.0,
        grad_norm_difference: 0.0,
    };
    let mut seconds = Vec::new();
    let batches = batches.zip(start.targets.chunks_exact(tokens_per_step));
    for (step, (tokens, targets)) in batches.take(steps).enumerate() {
        let begin = Instant::now();
        let found = trainer.step(tokens, targets, start.rates[step])?;
        seconds.push(begin.elapsed().as_secs_f64());
        let difference = |got: f64, wanted: f64| (got - wanted).abs() / wanted.abs();
        let (loss, norm) = (start.losses[step], start.grad_norms[step]);
        report.loss = found.loss;
        report.loss_difference = report.loss_difference.max(difference(found.loss, loss));
        report.grad_norm_difference =
            report.grad_norm_difference.max(difference(found.grad_norm, norm));
    }
    let timed = if steps == 1 { &seconds[..] } else { &seconds[1..] };
    // All of them, as `cllm` logs them.
    report.tokens_per_s = (tokens_per_step * timed.len()) as f64 / timed.iter().sum::<f64>();
    Ok(report)
}
