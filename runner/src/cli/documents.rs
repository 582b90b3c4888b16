//! What is written from the declared commands: completions of shells and manual pages.

use super::{args, output};
use crate::error::{Error, Result};
use crate::files;
use clap_complete::{Shell, generate};
use std::path::Path;

const NAME: &str = "cllm";

pub(super) fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    generate(shell, &mut args::command(), NAME, &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

/// A page for the program, and one for each command.
pub(super) fn man(out: &Path) -> Result<()> {
    files::create_dir(out)?;
    let mut program = args::command().disable_help_subcommand(true);
    // Commands then know the program's name and version.
    program.build();
    let mut pages = Vec::new();
    collect(&program, NAME.to_owned(), &mut pages);
    for (name, command) in pages {
        let path = out.join(format!("{name}.1"));
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut page)
            .map_err(|cause| Error::io("write", &path, &cause))?;
        files::write_atomic(&path, &page)?;
    }
    output::print(&format!("{}: the manual pages of {NAME}\n", out.display()))
}

/// The page of a command, then those of its own commands.
fn collect(command: &clap::Command, name: String, pages: &mut Vec<(String, clap::Command)>) {
    pages.push((name.clone(), command.clone().display_name(name.clone())));
    for part in command.get_subcommands() {
        collect(part, format!("{name}-{}", part.get_name()), pages);
    }
}
