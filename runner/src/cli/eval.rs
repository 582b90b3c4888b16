//! `cllm eval`: its flags, and what they mean.

use super::args::MachineArgs;
use super::commands::chosen_isa;
use super::value::parse;
use crate::choices::{self, ChoiceSettings};
use crate::error::{Error, Result};
use crate::eval::{self, EvalSettings};
use crate::settings::{LossOn, Threads, TuningChoice};
use clap::Args;
use std::path::PathBuf;

/// Examples below the help.
pub(super) const HELP: &str = "\
Examples:
  cllm eval --checkpoint out --data held-out.txt
  cllm eval --checkpoint tuned --data held-out.jsonl --loss-on completions
  cllm eval --checkpoint out --choices hellaswag_val.jsonl";

/// Flags of `cllm eval`.
#[derive(Args, Debug, Clone)]
pub struct EvalArgs {
    /// A run folder (its best checkpoint counts) or a checkpoint file.
    #[arg(long, value_name = "PATH", value_parser = parse::<PathBuf>)]
    pub checkpoint: PathBuf,
    /// Files and folders of text, JSON lines or token shards; - is standard input.
    ///
    /// Without it the run's own validation data.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub data: Vec<String>,
    /// The data are examples, as `cllm finetune` has them; what counts of them is completions or all.
    #[arg(long, value_name = "WHAT", value_parser = parse::<LossOn>, requires = "data")]
    pub loss_on: Option<LossOn>,
    /// Questions to choose answers for instead, as JSON lines: {"ctx", "endings", "label"} as of
    /// HellaSwag, or {"question" or "prompt", "choices", "answer"} as of ARC.
    ///
    /// Each answer is scored by its probability behind the question.
    #[arg(long, value_name = "PATH", num_args = 1..,
          conflicts_with_all = ["data", "block_size", "batch_size", "batches", "tuning"])]
    pub choices: Vec<String>,
    /// Field of a JSON line that holds the text.
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_field: String,
    /// A tokenizer.json [default: the checkpoint's].
    #[arg(long, value_name = "FILE", value_parser = parse::<PathBuf>)]
    pub tokenizer: Option<PathBuf>,
    /// Tokens of a sequence [default: the run's; of an imported model its context, at most 1024].
    #[arg(long, value_name = "N", value_parser = parse::<usize>)]
    pub block_size: Option<usize>,
    /// Sequences computed together; how sure the loss is follows from the spread between batches.
    #[arg(long, value_name = "N", default_value = "16", value_parser = parse::<usize>)]
    pub batch_size: usize,
    /// Batches to measure; 0 takes all there are.
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse::<usize>)]
    pub batches: usize,
    /// Workers that compute: a number, or auto for one on each CPU.
    #[arg(long, value_name = "N", default_value = "auto", value_parser = parse::<Threads>)]
    pub threads: Threads,
    /// Sizes of blocks: auto takes those that `cllm tune` has stored for such batches, off those
    /// that follow from the CPU's caches; or a file of `cllm tune --out`.
    #[arg(long, value_name = "FILE", default_value = "auto", value_parser = parse::<TuningChoice>)]
    pub tuning: TuningChoice,
    /// What all commands that compute have.
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Measures, and prints what was measured.
pub(super) fn evaluate(args: EvalArgs) -> Result<()> {
    let isa = chosen_isa(args.machine.isa)?;
    if !args.choices.is_empty() {
        return choices::choose(&ChoiceSettings {
            isa,
            dtype: args.machine.dtype,
            log_format: args.machine.log_format,
            checkpoint: args.checkpoint,
            files: args.choices,
            tokenizer: args.tokenizer,
            threads: args.threads,
        });
    }
    if args.batch_size == 0 {
        return Err(Error::usage("--batch-size 0: it must be at least 1"));
    }
    eval::evaluate(&EvalSettings {
        isa,
        dtype: args.machine.dtype,
        log_format: args.machine.log_format,
        checkpoint: args.checkpoint,
        data: args.data,
        loss_on: args.loss_on,
        text_field: args.text_field,
        tokenizer: args.tokenizer,
        block_size: args.block_size,
        batch_size: args.batch_size,
        batches: args.batches,
        threads: args.threads,
        tuning: args.tuning,
    })
}
