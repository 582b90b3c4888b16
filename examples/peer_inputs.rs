//! Turns a run of `cllm train` into a file that other programs can start from: the same
//! initial weights and the same batches, and the losses that the run got.
//!
//! The layout is that of the golden files (`tests/golden/README.md`), without logits and
//! gradients, and with final weights only if `--final` is given. The run must have logged
//! every step:
//!
//! ```sh
//! cllm train --preset reference --data DIR --max-steps 20 --log-interval 1 --out-dir RUN
//! cargo run --release --example peer_inputs -- RUN start.safetensors
//! ```
//!
//! `benches/peers` compares Crystalline with PyTorch and others by such files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cllm::checkpoint::CheckpointFile;
use cllm::data::prefetch::ReadyBatch;
use cllm::error::{Error, Result};
use cllm::memory::PoolMemory;
use cllm::model;
use cllm::parts::Parts;
use cllm::settings::TrainSettings;
use cllm::train::folder::RunFolder;
use cllm::train::inputs::Inputs;
use cllm::train::stored_settings;
use cllm_core::{
    Batch, BatchShape, Dtype, Engine, Kernels, Mode, ModelConfig, ParamTable, Plan, Trainer,
};
use safetensors::Dtype as Type;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

/// The layout's version, as `tests/golden/make_golden.py` counts it.
const FORMAT: u32 = 1;

/// What the program is told.
const USAGE: &str = "usage: peer_inputs RUN_FOLDER FILE.safetensors [--final]";

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (run, file, ends) = match arguments.as_slice() {
        [run, file] => (run, file, Ends::Start),
        [run, file, flag] if flag.as_os_str() == "--final" => (run, file, Ends::Both),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match write(run, file, ends) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer_inputs: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Which weights the file has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// Those that the run began with.
    Start,
    /// Also those that it ended with.
    Both,
}

/// A tensor as the file holds it.
struct Tensor {
    name: String,
    dtype: Type,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// What the run reported of its steps.
#[derive(Default)]
struct Logged {
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
}

/// Writes the start of the run in `run`, or both of its ends, to `file`.
///
/// # Errors
/// There is no such run, it is not of a kind that others can follow, its data has changed, or
/// the file cannot be written.
pub(crate) fn write(run: &Path, file: &Path, ends: Ends) -> Result<()> {
    let settings = stored_settings(run)?;
    check(&settings, run)?;
    let folder = RunFolder::existing(run);
    let logged = logged(&folder.metrics(), settings.max_steps)?;
    // As resumed: what the run trained on must still be there, and nothing is made anew.
    let inputs = Inputs::open(&settings, &folder, true)?;
    let config = model::run_config(&settings, inputs.vocab_size)?;

    let mut tensors = match &settings.base {
        Some(base) => of_base(base, &config)?,
        None => initial(&config, settings.seed)?,
    };
    if ends == Ends::Both {
        tensors.extend(last(&folder, &config, settings.max_steps)?);
    }
    tensors.extend(batches(&settings, &inputs)?);
    let schedule = model::schedule(&settings)?;
    let lrs: Vec<f64> = (0..settings.max_steps).map(|n| f64::from(schedule.rate(n))).collect();
    tensors.push(per_step("losses", &logged.losses));
    tensors.push(per_step("grad_norms", &logged.grad_norms));
    tensors.push(per_step("lrs", &lrs));

    let about = metadata(&settings, &config, run)?.to_string();
    let views = tensors.iter().map(|t| {
        let view = TensorView::new(t.dtype, t.shape.clone(), &t.bytes);
        view.map(|view| (&t.name, view))
    });
    let cannot =
        |e: safetensors::SafeTensorError| Error::failure(format!("{}: {e}", file.display()));
    let views = views.collect::<core::result::Result<Vec<_>, _>>().map_err(cannot)?;
    let metadata = HashMap::from([("config".to_owned(), about)]);
    serialize_to_file(views, Some(metadata), file).map_err(cannot)
}

/// Refuses runs whose losses another program cannot be expected to get.
fn check(settings: &TrainSettings, run: &Path) -> Result<()> {
    let refused = |why: &str| Err(Error::failure(format!("{}: {why}", run.display())));
    if settings.dtype != Dtype::F32 {
        return refused("the run's losses are of bf16; train it with --dtype f32");
    }
    if settings.dropout > 0.0 {
        return refused("the run has dropout, which others draw differently; --dropout 0 has none");
    }
    if settings.lora_rank.is_some() {
        return refused("the run trained adapters, of which the layout has no tensors");
    }
    if settings.grad_clip == 0.0 {
        return refused("the layout has no word for --grad-clip 0; give a large one");
    }
    Ok(())
}

/// Loss and gradient norm of the steps 1 to `steps`.
fn logged(path: &Path, steps: u64) -> Result<Logged> {
    let io = |e| Error::io("read", path, &e);
    let mut logged = Logged::default();
    for line in BufReader::new(File::open(path).map_err(io)?).lines() {
        let event: Value = serde_json::from_str(&line.map_err(io)?)
            .map_err(|e| Error::failure(format!("{}: {e}", path.display())))?;
        let next = logged.losses.len() as u64 + 1;
        if event["event"] == "step"
            && event["step"] == next
            && let (Some(loss), Some(norm)) = (event["loss"].as_f64(), event["grad_norm"].as_f64())
        {
            logged.losses.push(loss);
            logged.grad_norms.push(norm);
        }
    }
    if logged.losses.len() as u64 == steps {
        return Ok(logged);
    }
    Err(Error::failure(format!(
        "{}: {} of {steps} steps were logged one after the other; train with --log-interval 1, to \
         the end",
        path.display(),
        logged.losses.len()
    )))
}

/// The weights that a run with this seed begins with.
fn initial(config: &ModelConfig, seed: u64) -> Result<Vec<Tensor>> {
    // Weights depend on neither the batch nor the kernels: the smallest plan will do.
    let (batch, kernels) = (BatchShape { sequences: 1, tokens: 1 }, Kernels::detect());
    let plan = Plan::new(config, batch, 1, Mode::Train, kernels).map_err(model::plan_error)?;
    let mut memory = PoolMemory::allocate(&plan)?;
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).map_err(model::plan_error)?;
    let trainer = Trainer::new(&plan, kernels, pools, &engine, seed);
    let mut trainer = trainer.map_err(model::plan_error)?;
    trainer.initialise();
    Ok(weights("param", plan.table(), trainer.parameters()))
}

/// The weights of the base that a run went on from.
fn of_base(base: &Path, config: &ModelConfig) -> Result<Vec<Tensor>> {
    let file = if base.is_dir() {
        let none = || Error::failure(format!("{}: no checkpoint in this folder", base.display()));
        RunFolder::existing(base).for_use()?.checkpoint.ok_or_else(none)?
    } else {
        CheckpointFile::open(base)?
    };
    stored("param", &file, config)
}

/// The weights in the checkpoint of the run's last step.
fn last(folder: &RunFolder, config: &ModelConfig, steps: u64) -> Result<Vec<Tensor>> {
    stored("final", &CheckpointFile::open(&folder.step(steps))?, config)
}

/// The weights in a checkpoint of the model.
fn stored(prefix: &str, file: &CheckpointFile, config: &ModelConfig) -> Result<Vec<Tensor>> {
    let checkpoint = file.parse().map_err(|e| file.error(e))?;
    if checkpoint.header().adapters.is_some() {
        return Err(file.error("it has adapters, of which the layout has no tensors"));
    }
    let table = ParamTable::new(config).map_err(model::config_error)?;
    let mut values = vec![0.0; table.arena_len()];
    checkpoint.read_parameters(&mut values);
    Ok(weights(prefix, &table, &values))
}

/// The tensors of an arena, as `<prefix>/<name>`.
fn weights(prefix: &str, table: &ParamTable, values: &[f32]) -> Vec<Tensor> {
    let tensors = table.iter().map(|spec| Tensor {
        name: format!("{prefix}/{}", spec.name()),
        dtype: Type::F32,
        shape: if spec.is_vector() { vec![spec.cols] } else { vec![spec.rows, spec.cols] },
        bytes: values[spec.range()].iter().flat_map(|x| x.to_le_bytes()).collect(),
    });
    tensors.collect()
}

/// `tokens` and `targets` of all steps.
fn batches(settings: &TrainSettings, inputs: &Inputs) -> Result<[Tensor; 2]> {
    let micro_batches = settings.max_steps * settings.gradient_accumulation_steps as u64;
    let mut batch = ReadyBatch::new(settings.batch_size * settings.block_size);
    let mut bytes = [Vec::new(), Vec::new()];
    for n in 0..micro_batches {
        inputs.fill(n, &mut batch)?;
        let Batch { tokens, targets, .. } = batch.get();
        for (bytes, ids) in bytes.iter_mut().zip([tokens, targets]) {
            // Ids are below 2^31; the mark of what does not count is -1 in two's complement.
            bytes.extend(ids.iter().flat_map(|id: &u32| id.to_le_bytes()));
        }
    }
    let shape = vec![
        settings.max_steps as usize,
        settings.gradient_accumulation_steps,
        settings.batch_size,
        settings.block_size,
    ];
    let tensor = |name: &str, bytes| Tensor {
        name: name.to_owned(),
        dtype: Type::I32,
        shape: shape.clone(),
        bytes,
    };
    let [tokens, targets] = bytes;
    Ok([tensor("tokens", tokens), tensor("targets", targets)])
}

/// A number for each step.
fn per_step(name: &str, values: &[f64]) -> Tensor {
    Tensor {
        name: name.to_owned(),
        dtype: Type::F64,
        shape: vec![values.len()],
        bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// The model, the batches, and the numbers of an update as the run had them in f32.
fn metadata(settings: &TrainSettings, config: &ModelConfig, run: &Path) -> Result<Value> {
    let optimizer = model::optimizer(settings)?;
    let table = ParamTable::new(config).map_err(model::config_error)?;
    let names: Vec<String> = table.iter().map(|spec| spec.name().to_string()).collect();
    let (batch, tokens) = (settings.batch_size, settings.block_size);
    let wide = f64::from;
    let mut about = json!({
        "name": run.file_name().map(|name| name.to_string_lossy()),
        "seed": settings.seed,
        "vocab_size": config.vocab_size,
        "block_size": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "bias": config.bias,
        "tied": config.tied,
        "batch": batch,
        "tokens_per_sequence": tokens,
        "accum": settings.gradient_accumulation_steps,
        "format": FORMAT,
        "steps": settings.max_steps,
        "betas": [wide(optimizer.beta1), wide(optimizer.beta2)],
        "eps": wide(optimizer.eps),
        "weight_decay": wide(optimizer.weight_decay),
        "clip": optimizer.grad_clip.map(wide),
        "layer_norm_eps": wide(config.norm_eps),
        "flops_per_token": config.step_flops(batch, tokens) / (batch * tokens) as f64,
        "parameters": names,
    });
    // As golden files say it, where it is not GPT-2.
    let parts = Parts::from(&config.arch);
    if !parts.is_gpt2() {
        about["parts"] = json!(parts);
    }
    Ok(about)
}
