//! `cllm tune`: sizes of blocks for this machine.

use super::args::TuneArgs;
use super::commands::one_line;
use super::output;
use super::plan::vocab_size;
use super::presets::Preset;
use crate::error::{Error, Result};
use crate::tune::{self, TuneSettings};
use core::time::Duration;

/// Seconds of `--quick`.
const QUICK: f64 = 20.0;
/// Seconds that somebody may mean.
const MOST: f64 = 86_400.0;

/// Measures, prints what was tried and stores what is better.
pub(super) fn tune(args: TuneArgs) -> Result<()> {
    let seconds = if args.quick { QUICK } else { args.seconds };
    if !(seconds > 0.0 && seconds <= MOST) {
        return Err(Error::usage(format!(
            "--seconds {seconds}: it must be above 0, at most {MOST}"
        )));
    }
    let resolved = args.train.resolve_from(Preset::Reference)?;
    let settings = TuneSettings {
        vocab_size: vocab_size(&resolved.settings)?,
        train: resolved.settings,
        time: Duration::from_secs_f64(seconds),
        out: args.out,
    };
    let mut print = |text: &str| if args.json { Ok(()) } else { output::print(text) };
    let report = tune::tune(&settings, &mut print)?;
    if args.json { output::print(&one_line(&report)?) } else { Ok(()) }
}
