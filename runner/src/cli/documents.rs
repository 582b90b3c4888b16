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
    let mut pages = vec![(NAME.to_owned(), program.clone())];
    for command in program.get_subcommands() {
        let name = format!("{NAME}-{}", command.get_name());
        pages.push((name.clone(), command.clone().display_name(name)));
    }
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
