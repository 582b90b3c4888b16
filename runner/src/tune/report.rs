//! What `cllm tune` says.

use super::choose::Sizes;
use super::key::Key;
use super::search::Trial;
use core::fmt::Write as _;
use serde::Serialize;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was measured for.
    #[serde(flatten)]
    pub key: Key,
    /// The sizes that follow from the caches.
    pub default: Sizes,
    /// A gain has to be larger than this share.
    pub noise: f64,
    /// Each set tried, in their order.
    pub trials: Vec<Trial>,
    /// The sizes that are better, if any are.
    pub better: Option<Sizes>,
    /// Time of a step with them as a share of that with the default ones.
    pub ratio: Option<f64>,
    /// The file of measured sets.
    pub file: String,
    /// It is not that of the user's configuration, which commands read by themselves.
    #[serde(skip)]
    pub asked_for: bool,
    /// Whether the file was written: a set was stored, or one that is no longer better removed.
    pub written: bool,
}

/// The line above the trials.
pub(super) fn head(key: &Key) -> String {
    format!(
        "{key}\n{:<56}{:>8}{:>17}{:>8}\n",
        "against the default sizes", "time", "(quartiles)", "rounds"
    )
}

/// A line of a trial.
pub(super) fn line(trial: &Trial) -> String {
    let mut line = format!("{:<56}", trial.change);
    if let Some(r) = &trial.ratios {
        let range = format!("({:.3} to {:.3})", r.low, r.high);
        // Writing to a String cannot fail.
        let _ = write!(line, "{:>8.3}{range:>17}{:>8}", r.median, r.rounds);
    }
    let _ = write!(line, "  {}", trial.verdict);
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

impl Report {
    /// What follows from the trials.
    #[must_use]
    pub fn conclusion(&self) -> String {
        let noise = 100.0 * self.noise;
        match (self.ratio, self.written) {
            (Some(ratio), _) => format!(
                "{:.1} % less time than with the default sizes, of which {noise:.1} % could be \
                 noise: stored in {}, and used by `cllm train{}` of this model from now on\n",
                100.0 * (1.0 - ratio),
                self.file,
                if self.asked_for { " --tuning FILE" } else { "" },
            ),
            (None, false) => format!(
                "nothing is better than the default sizes by more than the noise, {noise:.1} %: \
                 nothing is stored\n"
            ),
            (None, true) => format!(
                "nothing is better than the default sizes by more than the noise, {noise:.1} %: \
                 what was stored for this before is removed from {}\n",
                self.file
            ),
        }
    }
}
