//! Settings of runs: flags, configuration files and what `cllm tune` has stored. Those that are taken can be planned
//! for, or are refused in words; and a run folder keeps them as they are.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use cllm::cli::args::{Command, from_args};
use cllm::cli::flags::TrainArgs;
use cllm::model;
use cllm::settings::{TrainSettings, TuningChoice};
use cllm_core::Kernels;

use crate::files::{Folder, parts};

/// Flags, one a line; a configuration file; a tuning file.
pub(crate) fn target(data: &[u8]) -> bool {
    let [flags, file, tuned] = parts(data);
    let folder = Folder::new();
    let tuned = folder.put("tune.toml", tuned);
    let tuning =
        || if tuned.exists() { TuningChoice::File(tuned.clone()) } else { TuningChoice::Off };
    let mut taken = false;
    let words = flags.split(|byte| *byte == b'\n').filter(|word| !word.contains(&0));
    let words = words.map(|word| OsString::from_vec(word.to_vec()));
    if let Ok(cli) = from_args(["cllm", "train"].map(OsString::from).into_iter().chain(words))
        && let Command::Train(args) = cli.command
    {
        let mut args = *args;
        // Files that are somebody's are left alone.
        (args.config, args.flags.base, args.flags.resume) = (None, None, None);
        taken |= settled(args, tuning());
    }
    let config = folder.put("run.toml", file);
    if config.exists() {
        // A run to resume there is not: its folder is this one.
        let mut args = TrainArgs { config: Some(config), ..TrainArgs::default() };
        args.flags.out_dir = Some(folder.at("run"));
        taken |= settled(args, tuning());
    }
    taken
}

/// Whether they make sense.
fn settled(args: TrainArgs, tuning: TuningChoice) -> bool {
    let Ok(resolved) = args.resolve() else { return false };
    let settings = TrainSettings { tuning, ..resolved.settings };
    assert_eq!(settings.check(), Ok(()), "{settings:?}");
    let text = serde_json::to_string(&settings).expect("settings can be written");
    let again: TrainSettings = serde_json::from_str(&text).expect("settings that were written");
    assert_eq!(again, settings);
    let Ok(config) = model::config(&settings, 300) else { return false };
    let _ = model::schedule(&settings);
    let _ = model::optimizer(&settings);
    model::train_plan(&settings, &config, Kernels::scalar()).is_ok()
}
