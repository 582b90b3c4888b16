//! The command line: flags and files in, exit status out.
//!
//! [`args`] declares the commands, [`flags`] the settings of a run, [`resolve`] settles
//! them, `validate` refuses what makes no sense. A command is a function that
//! returns a [`Result`]; here it is chosen, and its error printed.

pub mod args;
mod commands;
mod documents;
pub mod eval;
#[cfg(any(feature = "hf", feature = "gguf"))]
pub mod exchange;
mod file;
mod finetune;
pub mod flags;
mod generate;
pub(crate) mod nearest;
mod output;
mod plan;
pub mod presets;
#[cfg(feature = "report")]
pub mod report;
pub mod resolve;
#[cfg(feature = "serve")]
mod serve;
mod tune;
mod usage;
mod validate;
mod value;

pub use validate::Invalid;

use crate::error::{Error, Result};
use crate::last_words;
use crate::train::stop::Stop;
use args::{Command, DataCommand};
use clap::error::ErrorKind;
use std::ffi::OsString;
use std::process::ExitCode;

/// Exit status of a run that Ctrl-C ended, as shells have it for SIGINT.
const INTERRUPTED: u8 = 130;

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Done,
    Interrupted,
}

/// Runs the program: parses `args`, does what they say, prints errors.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    output::quiet_panics();
    // First of all: memory may be short from the beginning.
    let prepared = last_words::prepare();
    let args = usage::normalise(args);
    // A panic is a mistake of this program. It has printed its line already.
    let result = std::panic::catch_unwind(|| match args::from_args(args) {
        Ok(cli) => Stop::outlive_large_files().and(prepared).and_then(|()| run(cli.command)),
        Err(error) => explain(&error),
    });
    match result {
        Ok(Ok(Status::Done)) => ExitCode::SUCCESS,
        Ok(Ok(Status::Interrupted)) => ExitCode::from(INTERRUPTED),
        Ok(Err(error)) => output::exit_of_error(&error),
        Err(payload) => output::exit_of_panic(payload.as_ref()),
    }
}

/// Help and version go to standard output; everything else is an error.
fn explain(error: &clap::Error) -> Result<Status> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            output::print(&error.render().to_string()).map(|()| Status::Done)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            crate::say::put(&error.render().to_string());
            Err(Error::usage("give a command"))
        }
        _ => Err(usage::error(error)),
    }
}

fn run(command: Command) -> Result<Status> {
    match command {
        Command::Train(args) => return commands::train(*args),
        Command::Finetune(args) => return finetune::finetune(*args),
        Command::Generate(args) => generate::generate(args),
        Command::Eval(args) => eval::evaluate(args),
        Command::Tokenize(args) => commands::tokenize(&args),
        Command::Plan(args) => plan::plan(args),
        Command::Bench(args) => commands::bench(&args),
        Command::Tune(args) => tune::tune(args),
        Command::Simulate(args) => commands::simulate(args),
        #[cfg(feature = "report")]
        Command::Report(args) => report::report(args),
        #[cfg(any(feature = "hf", feature = "gguf"))]
        Command::Import(args) => exchange::import(args),
        #[cfg(any(feature = "hf", feature = "gguf"))]
        Command::Export(args) => exchange::export(args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::serve(args),
        Command::Inspect { path, tensors, json } => commands::inspect(&path, tensors, json),
        Command::Doctor { json } => commands::doctor(json),
        Command::Completions { shell } => documents::completions(shell),
        Command::Man { out } => documents::man(&out),
        Command::Data(DataCommand::Reference { out }) => commands::reference(&out),
    }
    .map(|()| Status::Done)
}
