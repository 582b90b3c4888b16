//! The commands of `cllm` and their flags.

use super::eval::EvalArgs;
#[cfg(any(feature = "hf", feature = "gguf"))]
use super::exchange::{ExportArgs, ImportArgs};
use super::finetune;
use super::flags::TrainArgs;
use super::generate::GenerateArgs;
use super::presets::Preset;
#[cfg(feature = "report")]
use super::report::ReportArgs;
#[cfg(feature = "serve")]
use super::serve::ServeArgs;
use super::value::{Setting, parse};
use crate::json::as_written;
use crate::settings::{LogFormat, TokenizerChoice};
use crate::simulate::Link;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use cllm_core::{Dtype, Isa};
use serde_json::Value;
use std::ffi::OsString;
use std::path::PathBuf;

/// The first example: a run that this program can do.
#[cfg(feature = "text")]
macro_rules! first_run {
    () => {
        "  cllm train                                 a model of bytes learns the built-in text"
    };
}
#[cfg(not(feature = "text"))]
macro_rules! first_run {
    () => {
        "  cllm train --data book.txt                 a model of bytes learns a text"
    };
}

/// A run on the built-in text, if there is one.
#[cfg(feature = "text")]
macro_rules! run_on_own_text {
    () => {
        "  cllm train\n"
    };
}
#[cfg(not(feature = "text"))]
macro_rules! run_on_own_text {
    () => {
        ""
    };
}

/// A run on given texts.
#[cfg(feature = "bpe")]
macro_rules! run_on_texts {
    () => {
        "  cllm train --data book.txt notes/ --tokenizer bpe:2000 --out-dir runs/books"
    };
}
#[cfg(not(feature = "bpe"))]
macro_rules! run_on_texts {
    () => {
        "  cllm train --data book.txt notes/ --tokenizer chars --out-dir runs/books"
    };
}

/// Train, evaluate and run small language models on any CPU.
#[derive(Parser, Debug)]
#[command(name = "cllm", version, arg_required_else_help = true)]
#[command(after_help = concat!(
    "Examples:\n",
    first_run!(),
    "
  cllm generate --checkpoint out --prompt 'In the beginning'
  cllm plan --preset gpt2                    memory and time, before anything starts

_ and - are the same in the names of flags. `cllm COMMAND --help` tells more."
))]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Parses the arguments; help shows the defaults of the settings of a run.
///
/// # Errors
/// What is wrong with them, or a request for help.
pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&command().try_get_matches_from(args)?)
}

/// All commands and flags, with the defaults of the settings in their help.
#[must_use]
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    for name in ["train", "plan"] {
        command = command.mut_subcommand(name, |of| show_defaults(of, Preset::default()));
    }
    command = command
        .mut_subcommand("finetune", |of| show_defaults(finetune::own_help(of), Preset::Finetune));
    let preset = "Settings to start from: tiny, fast, reference (the default), gpt2 or smollm2";
    let command =
        command.mut_subcommand("tune", |tune| tune.mut_arg("preset", |arg| arg.help(preset)));
    with_negative_numbers(command)
}

/// What follows a flag is its value even if it is below 0: the flag's own error tells what it takes.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_action().takes_values() {
        true if !arg.is_positional() => arg.allow_negative_numbers(true),
        _ => arg,
    });
    command.mut_subcommands(with_negative_numbers)
}

/// Adds the default, which is the preset's, to the help of each setting.
fn show_defaults(command: clap::Command, preset: Preset) -> clap::Command {
    let Value::Object(defaults) = as_written(&preset.settings()) else { return command };
    command.mut_args(|arg| {
        let shown = match defaults.get(arg.get_id().as_str()) {
            None | Some(Value::Null | Value::Array(_)) => None,
            Some(Value::String(text)) if text.trim() == text => Some(text.clone()),
            Some(other) => Some(other.to_string()),
        };
        match (shown, arg.get_help().cloned()) {
            // Unless the help says what it is.
            (Some(shown), Some(help)) if !help.to_string().contains("[default: ") => {
                arg.help(format!("{help} [default: {shown}]"))
            }
            _ => arg,
        }
    })
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Train a model.
    #[command(after_help = concat!(
        "Examples:\n",
        run_on_own_text!(),
        run_on_texts!(),
        "
  cllm train --config run.toml --learning-rate 5e-4
  cllm train --resume --out-dir runs/books
  cllm train --preset reference --data DIR   (made by `cllm data reference --out DIR`)

Ctrl-C saves a checkpoint and ends with exit status 130."
    ))]
    Train(Box<TrainArgs>),
    /// Train a model that is there already on examples: prompts and completions, or conversations.
    #[command(after_help = finetune::HELP)]
    Finetune(Box<TrainArgs>),
    /// Continue a text with a trained model.
    #[command(after_help = "\
Examples:
  cllm generate --checkpoint out --prompt 'And God said'
  cllm generate --checkpoint out --greedy --tokens 50
  cllm generate --checkpoint out/best.cllm --temperature 0.8 --top-k 40 --samples 3")]
    Generate(GenerateArgs),
    /// Measure the loss of a trained model on data, or what it chooses.
    #[command(after_help = super::eval::HELP)]
    Eval(EvalArgs),
    /// Turn text into token shards, or train a tokenizer.
    #[command(after_help = "\
Examples:
  cllm tokenize --data book.txt --tokenizer bytes --out shards
  cllm tokenize --data corpus/ --train bpe --vocab-size 8000 --out shards
  cllm tokenize --data more/ --tokenizer shards/tokenizer.json --out more-shards")]
    Tokenize(TokenizeArgs),
    /// Tell what a run will take: parameters, bytes of each pool, FLOPs, time.
    #[command(after_help = "\
Takes every flag of `cllm train` and changes nothing on disk.

Examples:
  cllm plan
  cllm plan --preset gpt2 --batch-size 8 --json")]
    Plan(PlanArgs),
    /// Measure each kernel as a share of this machine's multiply-add peak, or the engine.
    #[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
    #[command(after_help = "\
Examples:
  cllm bench
  cllm bench --isa all --only gemm
  cllm bench --isa avx --isa avx2 --json
  cllm bench engine")]
    Bench(BenchArgs),
    /// Measure which sizes of blocks are fastest on this machine, and store them for `train`.
    #[command(after_help = "\
Takes every flag of `cllm train`, but starts from the preset reference. Takes training steps on
random tokens, with the default sizes and with others in turns; what is better by more than the
noise is stored in $XDG_CONFIG_HOME/cllm/tune.toml or ~/.config/cllm/tune.toml, for this CPU,
instruction set, dtype, number of threads, layers, the model's widths, and the tokens of a batch.
`cllm train`, `plan` and `eval` use it by themselves where all of these are the same, and the default
sizes elsewhere. No weights depend on it, to the bit.

Measure on a machine that does nothing else.

Examples:
  cllm tune
  cllm tune --preset gpt2 --dtype bf16 --threads 8 --seconds 600
  cllm tune --config run.toml --out tune.toml")]
    Tune(TuneArgs),
    /// Predict the speed of a recorded step on other numbers of workers, or of ranks.
    #[command(after_help = "\
Replays the tiles of a trace through the scheduler itself in virtual time. A trace's tiles are
cut for some number of workers: record with --tiles-for 64 to predict 64.

Memory: tiles that do little but move bytes share a bandwidth. Without --bandwidth it is what
the recording's machine was measured to have, and grows with the number of workers beyond its
CPUs. Other traffic, caches, and contention for the scheduler's words are not modelled.

Ranks: each has the workers and the batch of the recording. Gradients of a bucket go when the replay
has them final, and what is not through at the end of the backward pass is waited for.

Examples:
  cllm train --preset reference --data DIR --max-steps 15 --tiles-for 64 --trace t.json
  cllm simulate --trace t.json --workers 1,2,64,128
  cllm simulate --trace t.json --workers 64 --bandwidth 200 --json
  cllm simulate --trace t.json --ranks 1,2,64,1024 --link 10gbe
  cllm simulate --trace t.json --ranks 2,4 --gbit 40 --latency-us 5 --fixed-batch")]
    Simulate(SimulateArgs),
    /// Write a page about one run or several: a file of HTML that browsers open.
    #[cfg(feature = "report")]
    #[command(after_help = "\
Losses, learning rate, speed, what the workers did, samples of text, settings, and how runs differ. The
file needs nothing else, no network either. A run that is under way is shown as far as it is; a report
that is there already is overwritten.

Examples:
  cllm report out
  cllm report runs/a runs/b --out compare.html")]
    Report(ReportArgs),
    /// Serve a model over HTTP by OpenAI's interface, and show its run.
    #[cfg(feature = "serve")]
    #[command(after_help = "\
POST /v1/completions and /v1/chat/completions (of models with a chat template), streaming or not,
GET /v1/models and /health; of a run folder / is a live page of the run. A run may go on meanwhile: its
best checkpoint takes the place of the one before, between two texts.

Examples:
  cllm serve out
  cllm serve smol --port 9000 --context 2048
  CLLM_TOKEN=$(cat token) cllm serve out --host 0.0.0.0
  curl http://127.0.0.1:8080/v1/completions -d '{\"prompt\": \"In the\", \"max_tokens\": 20}'")]
    Serve(ServeArgs),
    /// Make a run folder of a model of other programs.
    #[cfg(any(feature = "hf", feature = "gguf"))]
    #[command(after_help = "\
Reads a folder of Hugging Face's transformers (config.json, model.safetensors or several files and
their index, tokenizer.json; weights of f32, f16 or bf16), or a GGUF file of llama.cpp (F32, F16, BF16,
Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1 or Q4_0, which files of Q4_K_M and Q5_K_M are made of; with the
tokenizer inside), of these families: GPT-2, Llama, Mistral, SmolLM, Qwen2 and Qwen3; of nanochat,
folders alone. What cannot be computed here is refused.

Examples:
  cllm import gpt2/ --out-dir runs/gpt2
  cllm import gpt2.Q8_0.gguf --out-dir runs/gpt2
  cllm generate --checkpoint runs/gpt2 --prompt 'Once upon a time'")]
    Import(ImportArgs),
    /// Write a trained model for other programs.
    #[cfg(any(feature = "hf", feature = "gguf"))]
    #[command(after_help = "\
safetensors: a folder of config.json, model.safetensors, and tokenizer.json if the model has a tokenizer,
which AutoModelForCausalLM and AutoTokenizer of transformers load.
gguf: one file, the tokenizer inside, which llama.cpp runs.
llmc: a folder of gpt2_124M.bin and gpt2_tokenizer.bin, from which llm.c's trainers go on.
`cllm import` reads the first two again. llmc is for GPT-2's parts alone; the others have the families
GPT-2, Llama, Mistral, SmolLM, Qwen2 and Qwen3, and a model of parts that none of these has is refused.

Examples:
  cllm export --checkpoint out --out model
  cllm export --checkpoint out/best.cllm --weights bf16 --out model-bf16
  cllm export --checkpoint out --format gguf --weights q8_0 --out model.gguf
  cllm export --checkpoint out --format llmc --out model-llmc")]
    Export(ExportArgs),
    /// Tell what is in a file or folder, and whether it is whole.
    #[command(after_help = "\
Knows run folders, their settings and reports, checkpoints, data and shards of tokens, tokenizers, traces,
models of transformers, adapters of PEFT, safetensors, GGUF, JSON and JSON lines.

Examples:
  cllm inspect out
  cllm inspect out/best.cllm --tensors
  cllm inspect model.gguf --json")]
    Inspect {
        /// File or folder.
        #[arg(value_name = "PATH", value_parser = parse::<PathBuf>)]
        path: PathBuf,
        /// Every tensor with its shape, of checkpoints with figures of its values.
        #[arg(long)]
        tensors: bool,
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Tell what this machine has, what a run would use of it, and why.
    Doctor {
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Print the completions of a shell.
    #[command(after_help = "\
Examples:
  cllm completions bash > ~/.local/share/bash-completion/completions/cllm
  cllm completions zsh > \"${fpath[1]}/_cllm\"
  cllm completions fish > ~/.config/fish/completions/cllm.fish")]
    Completions {
        /// bash, zsh, fish, elvish or powershell.
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, of the program and of each command.
    #[command(after_help = "\
Example:
  cllm man --out ~/.local/share/man/man1")]
    Man {
        /// Folder for the pages.
        #[arg(long, value_name = "DIR", value_parser = parse::<PathBuf>)]
        out: PathBuf,
    },
    /// Make data sets.
    #[command(subcommand, arg_required_else_help = true)]
    Data(DataCommand),
}

/// Flags of all commands that compute with a trained model.
#[derive(Args, Debug, Clone, Copy)]
pub struct MachineArgs {
    /// Instruction set: scalar, neon, avx, avx2, avx512 or amx [default: CLLM_ISA, or the CPU's best].
    #[arg(long, value_name = "NAME", value_parser = parse::<Isa>)]
    pub isa: Option<Isa>,
    /// f32, or bf16: operands of the model's products are rounded to it. Whatever the model was
    /// trained with.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = parse::<Dtype>)]
    pub dtype: Dtype,
    /// text for people, json for JSON objects.
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = parse::<LogFormat>)]
    pub log_format: LogFormat,
}

/// Flags of `cllm tokenize`.
#[derive(Args, Debug, Clone)]
pub struct TokenizeArgs {
    /// Files and folders of text or JSON lines; - is standard input.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    pub data: Vec<String>,
    /// Separate validation data of the same kinds.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub val_data: Vec<String>,
    /// Share of the tokens held out for validation when there is no --val-data.
    #[arg(long, value_name = "SHARE", default_value = "0.1", value_parser = parse::<f64>)]
    pub val_fraction: f64,
    /// Field of a JSON line that holds the text.
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_field: String,
    /// bytes, chars, bpe:N (trained on the text, N ids) or a tokenizer.json.
    #[arg(long, value_name = "KIND", value_parser = parse::<TokenizerChoice>,
          required_unless_present = "train")]
    pub tokenizer: Option<TokenizerChoice>,
    /// Train a tokenizer on the text: bpe (give --vocab-size) or chars.
    #[arg(long, value_name = "KIND", value_parser = ["bpe", "chars"], conflicts_with = "tokenizer")]
    pub train: Option<String>,
    /// Ids of the tokenizer to train.
    #[arg(long, value_name = "N", value_parser = parse::<usize>)]
    pub vocab_size: Option<usize>,
    /// Only write the tokenizer.json, no shards.
    #[arg(long)]
    pub tokenizer_only: bool,
    /// Most tokens in a shard.
    #[arg(long, value_name = "N", value_parser = parse::<u64>)]
    pub shard_tokens: Option<u64>,
    /// Folder for the shards and the tokenizer.json.
    #[arg(long, value_name = "DIR", value_parser = parse::<PathBuf>)]
    pub out: PathBuf,
}

/// Flags of `cllm plan`.
#[derive(Args, Debug, Clone)]
pub struct PlanArgs {
    /// The run.
    #[command(flatten)]
    pub train: Box<TrainArgs>,
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    /// Do not measure this machine, so tell no time.
    #[arg(long)]
    pub no_estimate: bool,
}

/// Flags of `cllm tune`.
#[derive(Args, Debug, Clone)]
pub struct TuneArgs {
    /// The run to tune for.
    #[command(flatten)]
    pub train: Box<TrainArgs>,
    /// About how long to measure, in all; every set tried takes five turns at least.
    #[arg(long, value_name = "X", default_value = "180", value_parser = parse::<f64>)]
    pub seconds: f64,
    /// As --seconds 20: finds large differences.
    #[arg(long, conflicts_with = "seconds")]
    pub quick: bool,
    /// File to store in, for --tuning FILE [default: that of the user's configuration].
    #[arg(long, value_name = "FILE", value_parser = parse::<PathBuf>)]
    pub out: Option<PathBuf>,
    /// One JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Which instruction sets to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsaChoice {
    /// All that the CPU has.
    All,
    /// This one.
    One(Isa),
}

impl Setting for IsaChoice {
    const ACCEPTS: &'static str = "all, scalar, neon, avx, avx2, avx512 or amx";

    fn from_text(text: &str) -> Option<Self> {
        if text == "all" { Some(Self::All) } else { Isa::from_text(text).map(Self::One) }
    }
}

/// What `cllm bench` is to measure: the kernels unless told.
#[derive(Args, Debug, Clone)]
pub struct BenchArgs {
    /// The kernels' flags may stand alone.
    #[command(flatten)]
    pub kernels: KernelBenchArgs,
    /// Or one of these.
    #[command(subcommand)]
    pub what: Option<BenchCommand>,
}

/// What there is to measure.
#[derive(Subcommand, Debug, Clone)]
pub enum BenchCommand {
    /// Each kernel as a share of the multiply-add peak; the same as without a command.
    Kernels(KernelBenchArgs),
    /// What sharing a step among workers costs: rings, tiles, steals, starts, empty steps.
    Engine {
        /// Seconds to spend on each measurement.
        #[arg(long, value_name = "X", default_value = "0.5", value_parser = parse::<f64>)]
        seconds: f64,
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// What sums over ranks in a fixed order cost, against MPI_Allreduce: `mpirun -n 2 cllm bench ranks`.
    #[cfg(feature = "mpi")]
    Ranks {
        /// Floats to sum: as many as a model has parameters.
        #[arg(long, value_name = "N", default_value = "4456448", value_parser = parse::<usize>)]
        floats: usize,
        /// Times that each is measured.
        #[arg(long, value_name = "N", default_value = "30", value_parser = parse::<usize>)]
        rounds: usize,
        /// One JSON object instead of a row.
        #[arg(long)]
        json: bool,
    },
}

/// Flags of `cllm bench kernels`.
#[derive(Args, Debug, Clone)]
pub struct KernelBenchArgs {
    /// Instruction set, or all that the CPU has; may be repeated
    /// [default: CLLM_ISA, or the CPU's best].
    #[arg(long, value_name = "NAME", value_parser = parse::<IsaChoice>)]
    pub isa: Vec<IsaChoice>,
    /// f32, or bf16: what the operands of products are rounded to.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = parse::<Dtype>)]
    pub dtype: Dtype,
    /// Only kernels whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub only: String,
    /// Seconds to spend on each kernel.
    #[arg(long, value_name = "X", default_value = "0.2", value_parser = parse::<f64>)]
    pub seconds: f64,
    /// One JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `cllm simulate`.
#[derive(Args, Debug, Clone)]
pub struct SimulateArgs {
    /// A trace of `cllm train --trace`.
    #[arg(long, value_name = "FILE", value_parser = parse::<PathBuf>)]
    pub trace: PathBuf,
    /// Numbers of workers, with commas between.
    #[arg(long, value_name = "N,...", default_value = "1,2,4,8,16,32,64,128",
          value_delimiter = ',', value_parser = parse::<usize>)]
    pub workers: Vec<usize>,
    /// Bytes that memory moves, for any number of workers
    /// [default: as measured at the recording, for each so many cores].
    #[arg(long, value_name = "GB/S", value_parser = parse::<f64>)]
    pub bandwidth: Option<f64>,
    /// Each tile takes its fastest recorded time rather than its median: for recordings on a
    /// machine that was busy with other things.
    #[arg(long)]
    pub fastest: bool,
    /// Numbers of ranks, with commas between: predicts these rather than workers.
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = parse::<usize>,
          conflicts_with = "workers")]
    pub ranks: Vec<usize>,
    /// What joins ranks, by its published speed: 1gbe, 10gbe, 25gbe or 100gbe (Ethernet), hdr (InfiniBand)
    /// [default: 10gbe].
    #[arg(long, value_name = "LINK", value_parser = parse::<Link>, requires = "ranks")]
    pub link: Option<Link>,
    /// Billions of bits a second that a rank sends, and receives [default: the link's].
    #[arg(long, value_name = "X", value_parser = parse::<f64>, requires = "ranks")]
    pub gbit: Option<f64>,
    /// Microseconds that a message takes from program to program [default: 30; 2 for hdr].
    #[arg(long, value_name = "X", value_parser = parse::<f64>, requires = "ranks")]
    pub latency_us: Option<f64>,
    /// Microseconds of a rank for each message that it sends or receives.
    #[arg(long, value_name = "X", default_value = "1", value_parser = parse::<f64>, requires = "ranks")]
    pub message_us: f64,
    /// The recorded batch is that of all ranks together, not that of each.
    #[arg(long, requires = "ranks")]
    pub fixed_batch: bool,
    /// One JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// The data sets that can be made.
#[derive(Subcommand, Debug, Clone)]
pub enum DataCommand {
    /// The data set of the reference workload: 73 MB of text, 9.3 million tokens.
    ///
    /// The same bytes each time. Train on it with
    /// `cllm train --preset reference --data DIR`.
    Reference {
        /// Folder to write to.
        #[arg(long, value_name = "DIR", value_parser = parse::<PathBuf>)]
        out: PathBuf,
    },
}
