//! `cllm serve`: its flags, and what of them makes no sense.

use super::args::MachineArgs;
use super::commands::chosen_isa;
use super::value::parse;
use crate::error::{Error, Result};
use crate::serve::{self, ServeSettings};
use crate::settings::Threads;
use clap::Args;
use std::path::PathBuf;

/// Flags of `cllm serve`.
#[derive(Args, Debug, Clone)]
pub struct ServeArgs {
    /// A run folder (its best checkpoint counts, also one that comes later) or a checkpoint file.
    #[arg(value_name = "PATH", value_parser = parse::<PathBuf>)]
    pub path: PathBuf,
    /// Address to listen on. Others than this machine's want a token.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes one that is free.
    #[arg(long, value_name = "N", default_value = "8080", value_parser = parse::<usize>)]
    pub port: usize,
    /// What requests call the model [default: the name of the folder].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Texts that take turns, a token each: a short one needs not wait for a long one. Each keeps the
    /// beginning of its last prompt for those who go on from it.
    #[arg(long, value_name = "N", default_value = "4", value_parser = parse::<usize>)]
    pub parallel: usize,
    /// Requests that may wait; more are sent away with status 429.
    #[arg(long, value_name = "N", default_value = "256", value_parser = parse::<usize>)]
    pub queue: usize,
    /// Most tokens that the model sees at a time [default: the model's, at most 8192].
    #[arg(long, value_name = "N", value_parser = parse::<usize>)]
    pub context: Option<usize>,
    /// File with the token that clients must send [default: the variable CLLM_TOKEN, else none].
    ///
    /// There is no flag for the token itself, for others on the machine would see it.
    #[arg(long, value_name = "FILE", value_parser = parse::<PathBuf>)]
    pub token_file: Option<PathBuf>,
    /// Let everybody ask who reaches --host.
    #[arg(long)]
    pub without_token: bool,
    /// Let pages from there ask, such as https://example.org.
    #[arg(long, value_name = "ORIGIN")]
    pub allow_origin: Vec<String>,
    /// Go on with the first checkpoint when there are newer ones.
    #[arg(long)]
    pub no_reload: bool,
    /// Say nothing of single requests.
    #[arg(long)]
    pub quiet: bool,
    /// Threads that compute: a number, or auto for one on each CPU, and fewer for small models.
    ///
    /// Texts do not depend on it.
    #[arg(long, value_name = "N", default_value = "auto", value_parser = parse::<Threads>)]
    pub threads: Threads,
    /// What all commands that compute have.
    #[command(flatten)]
    pub machine: MachineArgs,
}

pub(super) fn serve(args: ServeArgs) -> Result<()> {
    let port = u16::try_from(args.port)
        .map_err(|_| Error::usage(format!("--port {}: it must be below 65536", args.port)))?;
    in_range("--parallel", args.parallel, 64)?;
    in_range("--queue", args.queue, 65536)?;
    if args.name.as_ref().is_some_and(|name| name.trim().is_empty()) {
        return Err(Error::usage("--name: it must have a character at least"));
    }
    for origin in &args.allow_origin {
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let host = host.map(|host| host.trim_end_matches('/'));
        if host.is_none_or(|host| host.is_empty() || host.contains(['/', ' ', '*'])) {
            return Err(Error::usage(format!(
                "--allow-origin {origin}: expected http:// or https:// and a host, nothing behind it"
            )));
        }
    }
    serve::serve(ServeSettings {
        isa: chosen_isa(args.machine.isa)?,
        dtype: args.machine.dtype,
        log_format: args.machine.log_format,
        path: args.path,
        host: args.host,
        port,
        name: args.name,
        parallel: args.parallel,
        queue: args.queue,
        context: args.context,
        token_file: args.token_file,
        without_token: args.without_token,
        origins: args.allow_origin,
        reload: !args.no_reload,
        threads: args.threads,
        quiet: args.quiet,
    })
}

fn in_range(flag: &str, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::usage(format!("{flag} {value}: it must be from 1 to {most}")))
}
