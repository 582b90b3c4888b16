//! `cllm report`: a page about runs.

use super::output;
use super::value::parse;
use crate::error::{Error, Result};
use crate::files;
use crate::report::{data, page};
use clap::Args;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

const NAME: &str = "report.html";

/// Flags of `cllm report`.
#[derive(Args, Debug, Clone)]
pub struct ReportArgs {
    /// Run folders.
    #[arg(value_name = "RUN", required = true, value_parser = parse::<PathBuf>)]
    pub runs: Vec<PathBuf>,
    /// File to write [default: report.html, of one run in its folder].
    #[arg(long, value_name = "FILE", value_parser = parse::<PathBuf>)]
    pub out: Option<PathBuf>,
    /// Overwrite a file that is no report.
    #[arg(long)]
    pub force: bool,
}

pub(super) fn report(args: ReportArgs) -> Result<()> {
    let out = match (args.out, &args.runs[..]) {
        (Some(out), _) => out,
        (None, [run]) => run.join(NAME),
        (None, _) => NAME.into(),
    };
    let runs = data::load_all(&args.runs)?;
    if !args.force {
        refuse_to_replace(&out)?;
    }
    files::write_atomic(&out, page::render(&runs, false).as_bytes())?;
    output::print(&format!("{}\n", out.display()))
}

/// Refuses a file that is there and is no report: somebody may want it.
fn refuse_to_replace(path: &Path) -> Result<()> {
    let mut start = Vec::new();
    match files::open(path).and_then(|file| file.take(1024).read_to_end(&mut start)) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        // What is wrong with it is told when it is written.
        Err(_) => Ok(()),
        Ok(_) if String::from_utf8_lossy(&start).contains(page::MARK) => Ok(()),
        Ok(_) => Err(Error::failure(format!(
            "{}: it is there already and no report; choose another --out, or give --force",
            path.display()
        ))),
    }
}
