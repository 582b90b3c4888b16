//! `cllm generate`: its flags, and what of them makes no sense.

use super::args::MachineArgs;
use super::commands::chosen_isa;
use super::value::parse;
use crate::error::{Error, Result};
use crate::files;
use crate::generate::{self, GenerateSettings};
use crate::settings::Threads;
use clap::Args;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Flags of `cllm generate`.
#[derive(Args, Debug, Clone)]
pub struct GenerateArgs {
    /// A run folder (its best checkpoint counts) or a checkpoint file.
    #[arg(long, value_name = "PATH", value_parser = parse::<PathBuf>)]
    pub checkpoint: PathBuf,
    /// Text to continue [default: none, the start of a document].
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub prompt: String,
    /// File with the text to continue, a new line at its end left out; - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt", value_parser = parse::<PathBuf>)]
    pub prompt_file: Option<PathBuf>,
    /// Most tokens to generate.
    #[arg(long, value_name = "N", default_value = "256", value_parser = parse::<usize>,
          aliases = ["max-new-tokens", "max-tokens", "n-predict"])]
    pub tokens: usize,
    /// Text that ends what is generated and is not part of it; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Most tokens that the model sees at a time [default: what the prompt and --tokens need; in
    /// conversations the model's, at most 8192].
    ///
    /// Of a model with a table of positions it saves no memory.
    #[arg(long, value_name = "N", value_parser = parse::<usize>)]
    pub context: Option<usize>,
    /// Below 1 likely tokens become more likely; 0 is --greedy.
    #[arg(long, value_name = "X", default_value = "0.8", value_parser = parse::<f32>)]
    pub temperature: f32,
    /// Only the K likeliest tokens; 0 for all.
    #[arg(long, value_name = "K", default_value = "0", value_parser = parse::<usize>)]
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability; 1 for all.
    #[arg(long, value_name = "P", default_value = "1", value_parser = parse::<f32>)]
    pub top_p: f32,
    /// Only tokens at least this likely compared with the likeliest; 0 for all.
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse::<f32>)]
    pub min_p: f32,
    /// Above 1 tokens that have occurred become less likely.
    #[arg(long, value_name = "X", default_value = "1", value_parser = parse::<f32>)]
    pub repetition_penalty: f32,
    /// Always the likeliest token.
    #[arg(long)]
    pub greedy: bool,
    /// Seed of the choices.
    #[arg(long, value_name = "N", default_value = "1337", value_parser = parse::<u64>)]
    pub seed: u64,
    /// How many continuations.
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse::<usize>,
          aliases = ["num-samples"])]
    pub samples: usize,
    /// Talk: answer each line of standard input, by the model's own chat template.
    #[cfg(feature = "chat")]
    #[arg(long, alias = "chat", conflicts_with_all = ["prompt", "prompt_file", "samples"])]
    pub interactive: bool,
    /// What the system tells the model before a conversation [default: the template's words].
    #[cfg(feature = "chat")]
    #[arg(long, value_name = "TEXT", requires = "interactive")]
    pub system: Option<String>,
    /// Threads that compute: a number, or auto for one on each CPU, and fewer for small models.
    ///
    /// The text does not depend on it.
    #[arg(long, value_name = "N", default_value = "auto", value_parser = parse::<Threads>)]
    pub threads: Threads,
    /// What all commands that compute have.
    #[command(flatten)]
    pub machine: MachineArgs,
}

pub(super) fn generate(args: GenerateArgs) -> Result<()> {
    if args.samples == 0 {
        return Err(Error::usage("--samples 0: it must be at least 1"));
    }
    if args.stop.iter().any(String::is_empty) {
        return Err(Error::usage("--stop '': it must not be empty"));
    }
    let prompt = match &args.prompt_file {
        Some(path) => prompt_of(path)?,
        None => args.prompt,
    };
    generate::generate(&GenerateSettings {
        isa: chosen_isa(args.machine.isa)?,
        dtype: args.machine.dtype,
        log_format: args.machine.log_format,
        checkpoint: args.checkpoint,
        prompt,
        tokens: args.tokens,
        stop: args.stop,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        greedy: args.greedy || args.temperature == 0.0,
        seed: args.seed,
        samples: args.samples,
        context: args.context,
        threads: args.threads,
        #[cfg(feature = "chat")]
        interactive: args.interactive,
        #[cfg(feature = "chat")]
        system: args.system,
    })
}

/// Most bytes of a prompt in a file: no model sees as many tokens.
const LONGEST: u64 = 16 << 20;

/// The prompt in a file, or in standard input.
fn prompt_of(path: &Path) -> Result<String> {
    let (name, bytes) = if path == Path::new("-") {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().take(LONGEST + 1).read_to_end(&mut bytes);
        ("standard input".to_owned(), read.map(|_| bytes))
    } else {
        (path.display().to_string(), files::read_given(path, LONGEST))
    };
    let bytes = bytes
        .map_err(|cause| Error::failure(format!("--prompt-file: cannot read {name}: {cause}")))?;
    if bytes.len() as u64 > LONGEST {
        return Err(Error::failure(format!(
            "--prompt-file: {name} has more than {LONGEST} bytes: give the end of it, which is all that a \
             model sees"
        )));
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::failure(format!("--prompt-file: {name}: no UTF-8 text from byte {at} on"))
    })?;
    // Some editors begin a file with a byte order mark.
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    // Editors end a file with a new line that nobody means to be continued.
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}
