//! From flags, environment, file and preset to the settings of a run.
//!
//! A flag wins over the environment, that over the file, the file over the preset, or over
//! what a run to be resumed was told. Where each value came from is kept, so that one that
//! makes no sense is reported there.

use super::file::ConfigFile;
use super::flags::{TrainArgs, TrainFlags};
use super::presets::Preset;
use super::validate::Invalid;
use super::value::Setting;
use crate::error::{Error, Result};
use crate::lora;
use crate::settings::TrainSettings;
use crate::train::{self, stored_settings};
use cllm_core::{Isa, OptimizerKind};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The environment variable behind `--isa`.
pub const ISA_VARIABLE: &str = "CLLM_ISA";

/// The settings of a run and where they came from.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Checked settings.
    pub settings: TrainSettings,
    /// What everything started from; `None` if that was the run that is resumed.
    pub preset: Option<Preset>,
    /// Whether anybody has said by which recipe to learn, rather than what and how long alone.
    is_chosen: bool,
    origins: BTreeMap<&'static str, Origin>,
}

/// What says of a run which text it is to learn.
const OF_TEXT: [&str; 5] = ["data", "val_data", "val_fraction", "text_field", "tokenizer"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    File { line: usize },
    Environment,
    Flag,
}

impl Resolved {
    /// Whether somebody set this field, rather than the preset.
    #[must_use]
    pub fn is_set(&self, field: &str) -> bool {
        self.origins.contains_key(field)
    }

    /// What to say of settings that go together badly, though nobody has asked for just that.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let TrainSettings { optimizer, learning_rate, .. } = self.settings;
        let preset = self.preset.filter(|_| is_descent(optimizer))?;
        // Presets' rates are AdamW's, whose steps are as long as the rate, whatever the gradient.
        let rate = if optimizer == OptimizerKind::Sgd { "0.3" } else { "0.03" };
        (!self.is_set("learning_rate")).then(|| {
            format!(
                "--optimizer {optimizer} with the learning rate of the preset {}, {learning_rate}, which is AdamW's, \
                 learns very slowly: give --learning-rate, {rate} for one",
                preset.name()
            )
        })
    }

    /// What is worth knowing to somebody who has said which text to learn, and nothing of how: that is not learnt by the
    /// recipe which learns it soonest, as a run without any text is.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        (!self.is_chosen && self.is_set("data")).then_some(
            "--preset fast often learns as much in a third of the time, with a model that few other programs can \
             load; --preset tiny, which this is, goes without this line",
        )
    }
}

/// The instruction set that the environment asks for.
///
/// # Errors
/// It names none.
pub fn isa_from_environment() -> Result<Option<Isa>> {
    isa_from(std::env::var_os(ISA_VARIABLE).as_deref())
}

fn isa_from(value: Option<&OsStr>) -> Result<Option<Isa>> {
    // An empty variable is one that was switched off.
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    let isa = value.to_str().and_then(Isa::from_text);
    isa.map(Some).ok_or_else(|| {
        let value = value.to_string_lossy();
        Error::usage(format!("{ISA_VARIABLE}={value}: expected {}", Isa::ACCEPTS))
    })
}

impl TrainArgs {
    /// Reads the configuration file and the environment and settles every setting.
    ///
    /// # Errors
    /// A file that cannot be read, or a setting that makes no sense.
    pub fn resolve(self) -> Result<Resolved> {
        let fallback = if self.is_demo() { Preset::Fast } else { Preset::default() };
        self.resolve_from(fallback)
    }

    /// Whether nothing is said of model, data or recipe, only of how long, where and how visibly to train: then the
    /// embedded text is shown off with, by the recipe that learns it soonest. Who says more builds on plainer parts,
    /// which go together with other settings, and which other programs know.
    fn is_demo(&self) -> bool {
        let mut settings = Preset::default().settings();
        let mut is_plain = self.config.is_none();
        self.flags.clone().apply(&mut settings, |key| is_plain &= train::is_of_session(key));
        is_plain
    }

    /// As [`TrainArgs::resolve`], from another preset where nobody names one.
    ///
    /// # Errors
    /// As [`TrainArgs::resolve`].
    pub fn resolve_from(self, fallback: Preset) -> Result<Resolved> {
        let isa = isa_from_environment();
        // A flag wins over a variable, even over one that makes no sense.
        let isa = if self.flags.isa.is_some() { isa.unwrap_or(None) } else { isa? };
        self.settle(isa, fallback)
    }

    fn settle(self, environment: Option<Isa>, fallback: Preset) -> Result<Resolved> {
        let Self { config, preset, flags } = self;
        let file = config.as_deref().map(ConfigFile::read).transpose()?.unwrap_or_default();
        let base = Base::of(preset.or(file.preset), fallback, &flags, &file.settings)?;
        let mut settings = base.settings;
        let mut origins = BTreeMap::new();
        let lines = file.lines;
        file.settings.apply(&mut settings, |key| {
            let line = lines.get(key).copied().unwrap_or(1);
            origins.insert(key, Origin::File { line });
        });
        if let Some(isa) = environment {
            settings.isa = Some(isa);
            origins.insert("isa", Origin::Environment);
        }
        flags.apply(&mut settings, |key| {
            origins.insert(key, Origin::Flag);
        });
        settle_length(&mut settings, &origins)?;
        check_adapters(&settings, &origins)?;
        check_optimizer(&settings, &origins)
            .map_err(|wrong| report(&wrong, &origins, config.as_ref(), base.preset))?;
        // Who names a preset wants its schedule.
        if preset.or(file.preset).is_none() && !settings.resume {
            settle_warmup(&mut settings, &origins);
        }
        // A run that goes on has its model already.
        if let Some(path) = settings.base.clone().filter(|_| !settings.resume) {
            train::base::settle(&mut settings, &path, |field| origins.contains_key(field))?;
        }
        // That of the run to resume goes with its optimizer: it is the change of that which is refused.
        if base.preset.is_none()
            && settings.optimizer.usual_momentum().is_none()
            && !origins.contains_key("momentum")
        {
            settings.momentum = None;
        }
        settings.check().map_err(|wrong| report(&wrong, &origins, config.as_ref(), base.preset))?;
        let is_chosen = preset.or(file.preset).is_some()
            || config.is_some()
            || base.preset != Some(Preset::Tiny)
            || !origins.keys().all(|key| OF_TEXT.contains(key) || train::is_of_session(key));
        Ok(Resolved { settings, preset: base.preset, is_chosen, origins })
    }
}

/// Of steps and epochs the one counts that was told more directly.
fn settle_length(
    settings: &mut TrainSettings,
    origins: &BTreeMap<&'static str, Origin>,
) -> Result<()> {
    match (origins.get("max_steps"), origins.get("epochs")) {
        (Some(Origin::Flag), Some(Origin::Flag))
        | (Some(Origin::File { .. }), Some(Origin::File { .. })) => {
            Err(Error::usage("--epochs and --max-steps: both say how long the run is; give one"))
        }
        (Some(_), None | Some(Origin::File { .. })) => {
            settings.epochs = None;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whoever tells something of adapters wants some, not all weights trained.
fn check_adapters(
    settings: &TrainSettings,
    origins: &BTreeMap<&'static str, Origin>,
) -> Result<()> {
    // What says the same as nothing is no wish.
    let wishes = [
        ("lora_alpha", settings.lora_alpha.is_some()),
        ("lora_dropout", settings.lora_dropout > 0.0),
        ("lora_targets", settings.lora_targets != lora::ALL),
    ];
    let mut told =
        wishes.into_iter().filter(|(key, is_wish)| *is_wish && origins.contains_key(key));
    match told.next() {
        Some((key, _)) if settings.lora_rank.is_none() => Err(Error::usage(format!(
            "--{}: without --lora-rank there are no adapters, and all weights would be trained; \
             give --lora-rank as well (8, for one)",
            key.replace('_', "-")
        ))),
        _ => Ok(()),
    }
}

/// Whoever tells something of AdamW's moments wants them used. (Of `momentum` the settings tell.)
fn check_optimizer(
    settings: &TrainSettings,
    origins: &BTreeMap<&'static str, Origin>,
) -> core::result::Result<(), Invalid> {
    let kind = settings.optimizer;
    if !is_descent(kind) {
        return Ok(());
    }
    for (field, value) in
        [("beta1", settings.beta1), ("beta2", settings.beta2), ("adam_eps", settings.adam_eps)]
    {
        if origins.contains_key(field) {
            let problem = format!(
                "it is AdamW's, and --optimizer {kind} has none: leave it out, or give --optimizer adamw"
            );
            return Err(Invalid { field, value: value.to_string(), problem });
        }
    }
    Ok(())
}

/// Its steps are as long as the gradient, with momentum or without.
fn is_descent(kind: OptimizerKind) -> bool {
    matches!(kind, OptimizerKind::Momentum | OptimizerKind::Sgd)
}

/// A short run is not to be all warm-up, unless somebody says so.
fn settle_warmup(settings: &mut TrainSettings, origins: &BTreeMap<&'static str, Origin>) {
    if origins.contains_key("max_steps")
        && settings.epochs.is_none()
        && !origins.contains_key("warmup_steps")
    {
        settings.warmup_steps = settings.warmup_steps.min(settings.max_steps / 10);
    }
}

/// What everything else overrides: a preset, or the run that is to be resumed.
struct Base {
    settings: TrainSettings,
    preset: Option<Preset>,
}

impl Base {
    fn of(
        preset: Option<Preset>,
        fallback: Preset,
        flags: &TrainFlags,
        file: &TrainFlags,
    ) -> Result<Self> {
        let resume = flags.resume.or(file.resume).unwrap_or(false);
        if preset.is_some() || !resume {
            let preset = preset.unwrap_or(fallback);
            return Ok(Self { settings: preset.settings(), preset: Some(preset) });
        }
        let given = flags.out_dir.as_ref().or(file.out_dir.as_ref());
        let out_dir = given.cloned().unwrap_or_else(|| Preset::default().settings().out_dir);
        let settings = stored_settings(&out_dir)?;
        // The folder may have been moved, or be named from elsewhere.
        // A trace is of the session that was asked for it, and so is silence.
        let settings = TrainSettings { out_dir, trace: None, quiet: false, ..settings };
        Ok(Self { settings, preset: None })
    }
}

/// The problem, said where the value was set.
fn report(
    wrong: &Invalid,
    origins: &BTreeMap<&'static str, Origin>,
    config: Option<&PathBuf>,
    preset: Option<Preset>,
) -> Error {
    let Invalid { field, value, problem } = wrong;
    let flag = wrong.flag();
    Error::usage(match origins.get(field) {
        Some(Origin::Flag) => format!("{flag} {value}: {problem}"),
        Some(Origin::Environment) => format!("{ISA_VARIABLE}={value}: {problem}"),
        Some(Origin::File { line }) => {
            let file = config.map_or(Path::new(""), PathBuf::as_path).display();
            format!("{file}:{line}: {field} = {value}: {problem}")
        }
        None => {
            let base =
                preset.map_or("run to resume".to_owned(), |p| format!("preset {}", p.name()));
            format!("{flag} {value} (of the {base}): {problem}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::TokenizerChoice;

    impl TrainArgs {
        fn resolve_with(self, environment: Option<Isa>) -> Result<Resolved> {
            self.settle(environment, Preset::default())
        }
    }

    fn with_file(text: &str, args: TrainArgs, environment: Option<Isa>) -> Result<Resolved> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        std::fs::write(&path, text).unwrap();
        TrainArgs { config: Some(path), ..args }.resolve_with(environment)
    }

    #[test]
    fn flags_win_over_the_file_over_the_preset_over_the_default() {
        let flags = TrainFlags { n_head: Some(16), ..TrainFlags::default() };
        let args = TrainArgs { flags, ..TrainArgs::default() };
        let text = "preset = 'reference'\nn_head = 2\nbatch_size = 5";
        let resolved = with_file(text, args.clone(), None).unwrap();
        let settings = &resolved.settings;
        assert_eq!((settings.n_head, settings.batch_size, settings.n_embd), (16, 5, 256));
        assert!(resolved.is_set("n_head") && !resolved.is_set("n_embd"));
        // A preset by flag wins over the file's, but not over the file's keys.
        let args = TrainArgs { preset: Some(Preset::Gpt2), ..args };
        let settings = with_file(text, args, None).unwrap().settings;
        assert_eq!((settings.n_head, settings.batch_size, settings.n_embd), (16, 5, 768));
        let default = TrainArgs::default().resolve_with(None).unwrap();
        assert_eq!(default.settings, Preset::Tiny.settings());
    }

    #[test]
    fn a_run_of_which_nothing_is_said_is_fast() {
        let preset = |flags: TrainFlags| {
            TrainArgs { flags, ..TrainArgs::default() }.resolve().unwrap().preset.unwrap()
        };
        let none = TrainFlags::default();
        assert_eq!(preset(none.clone()), Preset::Fast);
        let session = TrainFlags { max_steps: Some(5), seed: Some(1), ..none.clone() };
        let session = TrainFlags { out_dir: Some("there".into()), quiet: Some(true), ..session };
        assert_eq!(preset(TrainFlags { isa: Some(Isa::best()), ..session }), Preset::Fast);
        assert_eq!(preset(TrainFlags { n_layer: Some(1), ..none.clone() }), Preset::Tiny);
        assert_eq!(
            preset(TrainFlags { data: Some(vec!["-".into()]), ..none.clone() }),
            Preset::Tiny
        );
        let kind = Some(OptimizerKind::AdamW);
        assert_eq!(preset(TrainFlags { optimizer: kind, ..none.clone() }), Preset::Tiny);
        let named = TrainArgs { preset: Some(Preset::Tiny), ..TrainArgs::default() };
        assert_eq!(named.resolve().unwrap().preset, Some(Preset::Tiny));
        // A file that says nothing is one of somebody's recipe all the same.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        std::fs::write(&path, "").unwrap();
        let empty = TrainArgs { config: Some(path), ..TrainArgs::default() };
        assert_eq!(empty.resolve().unwrap().preset, Some(Preset::Tiny));
    }

    #[test]
    fn who_says_what_to_learn_alone_hears_of_the_fast_recipe() {
        let of_text = TrainFlags { data: Some(vec!["-".into()]), ..TrainFlags::default() };
        let of_text = TrainFlags { tokenizer: Some(TokenizerChoice::Bytes), ..of_text };
        let hint = |flags, preset| {
            TrainArgs { flags, preset, ..TrainArgs::default() }.resolve().unwrap().hint()
        };
        let quick = TrainFlags { max_steps: Some(5), ..of_text.clone() };
        assert!(hint(quick, None).unwrap().contains("--preset fast"));
        assert_eq!(hint(of_text.clone(), Some(Preset::Tiny)), None);
        assert_eq!(hint(TrainFlags { n_layer: Some(1), ..of_text.clone() }, None), None);
        assert_eq!(hint(TrainFlags::default(), None), None);
        assert_eq!(with_file("data = ['-']", TrainArgs::default(), None).unwrap().hint(), None);
    }

    #[test]
    fn what_is_told_of_adapters_wants_a_rank() {
        for told in ["lora_alpha = 4", "lora_dropout = 0.1", "lora_targets = 'q_proj'"] {
            let error = with_file(told, TrainArgs::default(), None).unwrap_err().to_string();
            assert!(error.contains("--lora-rank") && error.starts_with("--lora-"), "{error}");
            // What is refused then is that there is no base.
            let with_rank = format!("lora_rank = 2\n{told}");
            let error = with_file(&with_rank, TrainArgs::default(), None).unwrap_err().to_string();
            assert!(error.contains("--base"), "{error}");
        }
    }

    #[test]
    fn a_short_run_is_not_all_warm_up() {
        let warmup =
            |text: &str| with_file(text, TrainArgs::default(), None).unwrap().settings.warmup_steps;
        let usual = Preset::Tiny.settings().warmup_steps;
        assert_eq!(warmup("max_steps = 100"), 10);
        assert_eq!(warmup("max_steps = 3"), 0);
        assert_eq!(warmup("max_steps = 100000"), usual);
        assert_eq!(warmup(""), usual);
        assert_eq!(warmup("max_steps = 100\nwarmup_steps = 90"), 90);
        let named = Preset::Reference.settings().warmup_steps;
        assert_eq!(warmup("preset = 'reference'\nmax_steps = 100"), named);
    }

    #[test]
    fn the_environment_stands_between_flag_and_file() {
        let isa = |resolved: Result<Resolved>| resolved.unwrap().settings.isa;
        let none = TrainArgs::default();
        assert_eq!(isa(with_file("", none.clone(), None)), None);
        assert_eq!(isa(with_file("", none.clone(), Some(Isa::Scalar))), Some(Isa::Scalar));
        let avx2_file = with_file("isa = 'avx2'", none, Some(Isa::Scalar));
        assert_eq!(isa(avx2_file), Some(Isa::Scalar));
        let best = Isa::best();
        let flags = TrainFlags { isa: Some(best), ..TrainFlags::default() };
        let flag = TrainArgs { flags, ..TrainArgs::default() };
        assert_eq!(isa(with_file("", flag, Some(Isa::Scalar))), Some(best));
    }

    #[test]
    fn a_wrong_variable_is_named() {
        assert_eq!(isa_from(None), Ok(None));
        assert_eq!(isa_from(Some(OsStr::new(""))), Ok(None));
        assert_eq!(isa_from(Some(OsStr::new("AVX"))), Ok(Some(Isa::Avx)));
        let error = isa_from(Some(OsStr::new("sse9"))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "CLLM_ISA=sse9: expected scalar, neon, avx, avx2, avx512 or amx"
        );
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn the_momentum_of_a_run_is_not_blamed_for_another_optimizer() {
        let dir = tempfile::tempdir().unwrap();
        let stored = TrainSettings {
            optimizer: OptimizerKind::Momentum,
            momentum: Some(0.8),
            ..Preset::Tiny.settings()
        };
        let text = serde_json::to_string(&stored).unwrap();
        std::fs::write(dir.path().join("settings.json"), text).unwrap();
        let resume = |optimizer, momentum| {
            let flags = TrainFlags {
                resume: Some(true),
                out_dir: Some(dir.path().into()),
                optimizer,
                momentum,
                ..TrainFlags::default()
            };
            TrainArgs { flags, ..TrainArgs::default() }.resolve_with(None)
        };
        let momentum = |resolved: Result<Resolved>| resolved.unwrap().settings.momentum;
        assert_eq!(momentum(resume(None, None)), Some(0.8));
        // The run refuses another optimizer, by name.
        assert_eq!(momentum(resume(Some(OptimizerKind::Sgd), None)), None);
        // Who asks for both is told.
        let told = resume(Some(OptimizerKind::Sgd), Some(0.7)).unwrap_err().to_string();
        assert!(told.starts_with("--momentum 0.7: --optimizer sgd has none"), "{told}");
    }

    #[test]
    fn what_is_adamws_alone_is_refused_for_others() {
        for (told, value) in [("beta1", "0.8"), ("beta2", "0.9"), ("adam_eps", "0.001")] {
            for kind in OptimizerKind::ALL {
                let text = format!("optimizer = '{kind}'\n{told} = {value}");
                let resolved = with_file(&text, TrainArgs::default(), None);
                if !is_descent(kind) {
                    assert!(resolved.is_ok(), "{text}");
                    continue;
                }
                let error = resolved.unwrap_err().to_string();
                let end = format!(
                    "run.toml:2: {told} = {value}: it is AdamW's, and --optimizer {kind} has"
                );
                assert!(error.contains(&end), "{error}");
            }
        }
        let flags = TrainFlags { beta2: Some(0.9), ..TrainFlags::default() };
        let args = TrainArgs { flags, ..TrainArgs::default() };
        let error = with_file("optimizer = 'sgd'", args, None).unwrap_err().to_string();
        assert!(error.starts_with("--beta2 0.9: it is AdamW's"), "{error}");
    }

    #[test]
    fn a_rate_that_is_adamws_is_warned_of_unless_somebody_gave_it() {
        let warning = |text: &str| with_file(text, TrainArgs::default(), None).unwrap().warning();
        for quiet in ["", "optimizer = 'adamw8'", "optimizer = 'sgd'\nlearning_rate = 0.001"] {
            assert_eq!(warning(quiet), None, "{quiet}");
        }
        for (kind, rate) in [("sgd", "0.3"), ("momentum", "0.03")] {
            let told = warning(&format!("optimizer = '{kind}'")).unwrap();
            let rate = format!("give --learning-rate, {rate} for one");
            assert!(
                told.contains(&rate) && told.starts_with(&format!("--optimizer {kind}")),
                "{told}"
            );
        }
    }

    #[test]
    fn a_resumed_run_goes_on_with_its_own_settings() {
        let dir = tempfile::tempdir().unwrap();
        let stored = TrainSettings {
            batch_size: 3,
            max_steps: 77,
            trace: Some("t.json".into()),
            out_dir: "elsewhere".into(),
            ..Preset::Reference.settings()
        };
        let text = serde_json::to_string(&stored).unwrap();
        std::fs::write(dir.path().join("settings.json"), text).unwrap();
        let flags = TrainFlags {
            resume: Some(true),
            max_steps: Some(99),
            out_dir: Some(dir.path().into()),
            ..TrainFlags::default()
        };
        let args = TrainArgs { flags, ..TrainArgs::default() };
        let resolved = args.clone().resolve_with(None).unwrap();
        assert_eq!(resolved.preset, None);
        let wanted = TrainSettings {
            max_steps: 99,
            out_dir: dir.path().into(),
            resume: true,
            trace: None,
            ..stored
        };
        assert_eq!(resolved.settings, wanted);
        // A preset that is asked for counts, so that it can be refused if it differs.
        let tiny = TrainArgs { preset: Some(Preset::Tiny), ..args };
        let batch_size = tiny.resolve_with(None).unwrap().settings.batch_size;
        assert_eq!(batch_size, Preset::Tiny.settings().batch_size);
    }

    #[test]
    fn what_makes_no_sense_is_reported_where_it_was_said() {
        let tiny = Preset::Tiny.settings();
        let (heads, width) = (tiny.n_head, tiny.n_embd);
        let file = with_file("\nn_head = 7", TrainArgs::default(), None);
        let file = file.unwrap_err().to_string();
        let end = format!("run.toml:2: n_head = 7: it must divide the width --n-embd {width}, as");
        assert!(file.contains(&end), "{file}");
        let message = |flags| {
            let args = TrainArgs { flags, ..TrainArgs::default() };
            args.resolve_with(None).unwrap_err().to_string()
        };
        let flag = message(TrainFlags { n_head: Some(7), ..TrainFlags::default() });
        assert!(flag.starts_with("--n-head 7: "), "{flag}");
        let width = heads * 64 + 1;
        let preset = message(TrainFlags { n_embd: Some(width), ..TrainFlags::default() });
        let start = format!("--n-head {heads} (of the preset tiny): it must divide the width");
        assert!(preset.starts_with(&start), "{preset}");
    }
}
