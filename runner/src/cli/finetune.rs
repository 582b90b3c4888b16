//! `cllm finetune`: a run of `cllm train` on examples, from a model that is there already.
//!
//! It has the same flags and keys, and starts from settings of its own ([`Preset::Finetune`]).

use super::Status;
use super::commands;
use super::flags::TrainArgs;
use super::presets::Preset;
use crate::error::{Error, Result};
use crate::train::base::{DECIDED, LORA_RATE};

/// What follows the help.
pub(super) const HELP: &str = "\
Each line of the data is a JSON object with \"text\", of which all tokens count in the loss; with
\"prompt\" and \"completion\", of which the completion and the end count; or with \"messages\", a list of
{\"role\", \"content\"} that the model's own chat template makes a text of, in which the assistant's
messages count, and what ends them (\"conversations\", a list of {\"from\", \"value\"}, is the same).
Prompt and completion may be lists of messages too, of which those of the completion count. Contents may
be lists of parts of text; \"tools\" beside the messages, and their \"tool_calls\", are the template's.
Whole examples are packed into rows of --block-size tokens and do not see one another.

The folder that comes out is a run folder like any other. Flags of `cllm train` that are not shown here
say what a base decides.

Examples:
  cllm finetune --base runs/smollm2 --data chats.jsonl --out-dir runs/mine
  cllm finetune --base runs/books --data train.jsonl --val-data val.jsonl --epochs 2 --lr 5e-5
  cllm finetune --resume --out-dir runs/mine
  cllm generate --checkpoint runs/mine --interactive";

/// The help without what a base decides and what is of text.
pub(super) fn own_help(command: clap::Command) -> clap::Command {
    let hidden = ["preset", "vocab_size", "trace_steps", "tiles_for"];
    command.mut_args(|arg| {
        let id = arg.get_id().as_str();
        match id {
            "data" => arg
                .help("Files of JSON lines, folders of such files; - is standard input")
                .long_help(None::<&str>),
            "loss_on" => arg.long_help(None::<&str>),
            "text_field" => arg.help("Field of a line that holds a whole text"),
            "val_fraction" => arg.help(
                "Share of the lines, evenly spread, held out for validation when there is no --val-data",
            ),
            "tokenizer" => arg.help("A tokenizer.json [default: that of --base]"),
            "learning_rate" => arg.help(format!(
                "Highest learning rate [default: {}, with --lora-rank {LORA_RATE}]",
                Preset::Finetune.settings().learning_rate
            )),
            "max_steps" => arg.help("Steps [default: those of --epochs]"),
            "block_size" => arg.help("Tokens of a row [default: the base's, at most 1024]"),
            _ if hidden.contains(&id) || DECIDED.contains(&id) => arg.hide(true),
            _ => arg,
        }
    })
}

/// Trains as told.
pub(super) fn finetune(args: TrainArgs) -> Result<Status> {
    if let Some(preset) = args.preset {
        return Err(Error::usage(format!(
            "--preset {}: presets are of models that are to be made; leave it out",
            preset.name()
        )));
    }
    let resolved = args.resolve_from(Preset::Finetune)?;
    let settings = &resolved.settings;
    if settings.loss_on.is_none() {
        return Err(Error::usage(format!(
            "--resume: the run in {} is not one of `cllm finetune`; go on with `cllm train --resume`",
            settings.out_dir.display()
        )));
    }
    if settings.base.is_none() {
        return Err(Error::usage(
            "--base <PATH> is missing: the run folder or checkpoint to start from",
        ));
    }
    if settings.data.is_empty() {
        return Err(Error::usage("--data <PATH> is missing: files of JSON lines"));
    }
    commands::run(&resolved)
}
