//! What is made of a step whose loss or gradient stands out: `--on-spike`.
//!
//! ```text
//! step n: loss of its micro-batches, known before anything changes
//!   a spike, and  stop     the run ends with an error
//!                 skip     no update; the step counts
//!                 rewind   weights, moments and what is watched are those of the last regular checkpoint,
//!                          after step m; the data go on behind step n, whatever the steps are called
//!   else the update; with skip it is left out if the gradient's norm is a spike
//! ```
//! **The same bits, however often the run is stopped.** A decision follows from the losses before it, which
//! lie in checkpoints (`watch`), and a rewind goes to a checkpoint that every course of the run has: one that
//! `--save-interval` is due for, not one of an interruption. Pruning spares that one. How far the data are
//! ahead lies in checkpoints as well; a run that is killed behind a rewind, before its next checkpoint, begins
//! again in front of it and comes to the same rewind.

use cllm_core::{Origin, StepError};

use super::event::{Event, Spike};
use super::first_state::restore;
use super::session::Session;
use super::watch::{Limit, Watch};
use crate::checkpoint::{CheckpointFile, Meta, WatchState};
use crate::error::{Error, Result};
use crate::settings::SpikeChoice;

/// Most steps without an update one after the other: what lasts longer is no spike.
const MOST_SKIPPED: u32 = 10;
/// Most times that a run goes back to one checkpoint.
const MOST_REWINDS: u32 = 3;

/// How a step ended.
pub(super) enum Ended {
    /// With its update or without; and the gradient's norm, NaN if nobody knows.
    Done(f64),
    /// The run has gone back.
    Rewound,
}

/// What stands out.
#[derive(Clone, Copy)]
struct Seen {
    what: &'static str,
    value: f64,
    /// NaN where too few steps are known to say.
    median: f64,
    limit: f64,
}

impl Session<'_, '_> {
    /// Whether a step that is not finite is no error.
    pub(super) fn goes_on(&self) -> bool {
        matches!(self.settings.on_spike, SpikeChoice::Skip | SpikeChoice::Rewind)
    }

    /// Ends a step whose gradients are there, and whose loss is this; if it is NaN, they are not.
    pub(super) fn end_step(&mut self, loss: f64, lr: f32) -> Result<Ended> {
        let step = self.trainer.updates() + 1;
        let limit = self.watch.loss_limit();
        let is_spike = !loss.is_finite() || limit.is_some_and(|known| loss > known.limit);
        let of_loss = is_spike.then(|| Seen::new("loss", loss, limit));
        match (of_loss, self.settings.on_spike) {
            (None, _) => {}
            (Some(seen), SpikeChoice::Off) => self.tell(step, &seen, "none")?,
            (Some(seen), SpikeChoice::Stop) => {
                self.tell(step, &seen, "stop")?;
                return Err(self.given_up(step, &seen, ""));
            }
            (Some(seen), SpikeChoice::Skip) => {
                self.skip(step, &seen)?;
                return Ok(Ended::Done(f64::NAN));
            }
            (Some(seen), SpikeChoice::Rewind) => return self.rewind(step, &seen),
        }
        let limit = self.watch.norm_limit();
        let skips = self.settings.on_spike == SpikeChoice::Skip;
        let most = limit.filter(|_| skips).map_or(f64::MAX, |known| known.limit);
        let updated = self.team.update(&mut self.trainer, &self.optimizer, lr, most)?;
        let norm = match updated {
            Ok(report) => report.grad_norm,
            Err(StepError::NonFiniteGradient(norm)) if self.goes_on() => norm,
            Err(error) => return Err(self.stopped(step, error)),
        };
        let is_spike = !norm.is_finite() || limit.is_some_and(|known| norm > known.limit);
        let seen = is_spike.then(|| Seen::new("grad_norm", norm, limit));
        match seen {
            Some(seen) if skips => self.skip(step, &seen)?,
            Some(seen) if !norm.is_finite() => return self.rewind(step, &seen),
            seen => {
                if let Some(seen) = seen {
                    self.tell(step, &seen, "none")?;
                }
                self.watch.push(loss, norm);
            }
        }
        Ok(Ended::Done(norm))
    }

    fn tell(&mut self, step: u64, seen: &Seen, action: &'static str) -> Result<()> {
        let Seen { what, value, median, limit } = *seen;
        let spike = Spike { step, at: step, what, value, median, limit, action, rewinds: None };
        self.reporter.event(&Event::Spike(spike))
    }

    /// Has the step count without an update.
    fn skip(&mut self, step: u64, seen: &Seen) -> Result<()> {
        // Unless the update itself was left out, and so has counted.
        if self.trainer.updates() < step {
            self.trainer.skip_update().map_err(|e| self.stopped(step, e))?;
        }
        let kept = self.watch.kept_mut();
        kept.skipped += 1;
        kept.skipped_in_row += 1;
        if kept.skipped_in_row > MOST_SKIPPED {
            let why = format!(
                "; so were the {MOST_SKIPPED} steps before it, which --on-spike skip left out: that is no spike"
            );
            return Err(self.given_up(step, seen, &why));
        }
        self.tell(step, seen, "skip")
    }

    /// Goes back to the last regular checkpoint, and on from there with the data behind `step`.
    fn rewind(&mut self, step: u64, seen: &Seen) -> Result<Ended> {
        let WatchState { rewind_to, rewinds, data_ahead, skipped, .. } = *self.watch.kept();
        let Some(to) = rewind_to else {
            return Err(self.given_up(step, seen, "; there is no checkpoint to go back to"));
        };
        if rewinds >= MOST_REWINDS {
            let why = format!(
                "; --on-spike rewind has gone back to step {to} {MOST_REWINDS} times, each time on with other data"
            );
            return Err(self.given_up(step, seen, &why));
        }
        let path = self.folder.step(to);
        let config = *self.trainer.plan().config();
        let restored = CheckpointFile::open(&path)
            .and_then(|file| restore(&mut self.trainer, &file, self.inputs, &config, self.kernels));
        let Meta { last, validation_due, watch, .. } = match restored {
            Ok(meta) => meta,
            Err(error) => {
                return Err(self.given_up(step, seen, &format!("; --on-spike rewind: {error}")));
            }
        };
        self.meta.last = last;
        self.meta.validation_due = validation_due;
        self.newest = Some(path);
        let rewinds = rewinds + 1;
        let data_ahead = data_ahead + (step - to);
        let kept = WatchState { rewind_to, rewinds, data_ahead, skipped, ..watch };
        self.watch = Watch::new(self.settings.spike_window, self.settings.spike_threshold, kept);
        // They are of steps that have not been: those that come have other weights.
        self.team.barrier()?;
        if self.team.is_first() {
            self.folder.remove_behind(to)?;
        }
        self.reporter.rewind(self.settings, to, rewinds)?;
        let Seen { what, value, median, limit } = *seen;
        self.reporter.event(&Event::Spike(Spike {
            step: to,
            at: step,
            what,
            value,
            median,
            limit,
            action: "rewind",
            rewinds: Some(rewinds),
        }))?;
        Ok(Ended::Rewound)
    }

    /// The first batch of the next step.
    pub(super) fn next_batch(&self) -> u64 {
        let steps = self.trainer.updates().saturating_add(self.watch.kept().data_ahead);
        steps.saturating_mul(self.settings.gradient_accumulation_steps as u64)
    }

    /// The error of a step that stands out, and is not gone on from.
    fn given_up(&self, step: u64, seen: &Seen, why: &str) -> Error {
        let kept = self.kept();
        let advice = match self.settings.on_spike {
            SpikeChoice::Stop => {
                "--resume goes on from there, with --on-spike skip or rewind past the spike"
            }
            _ => "lower --learning-rate, or warm up longer",
        };
        Error::failure(format!("stopped at step {step}: {seen}{why}; {kept}; {advice}"))
    }

    /// What of a step that failed was the first that is not finite, to follow a semicolon: `step` is done
    /// once more, on this thread. Nothing if that cannot be told.
    pub(super) fn origin(&mut self, cause: StepError, is_step: bool) -> Option<Origin> {
        if !matches!(cause, StepError::NonFiniteLoss(_) | StepError::NonFiniteGradient(_)) {
            return None;
        }
        let first = self.next_batch();
        let micros = if is_step { self.settings.gradient_accumulation_steps as u64 } else { 1 };
        (0..micros).find_map(|micro| {
            self.inputs.fill(first + micro, &mut self.batch).ok()?;
            let (batch, counted) = (self.batch.get(), self.batch.step.counted);
            let found = match is_step {
                true => self.trainer.find_origin(&batch, counted, micro as u32),
                false => self.trainer.find_origin_of_loss(&batch),
            };
            found.ok().flatten()
        })
    }
}

impl Seen {
    fn new(what: &'static str, value: f64, known: Option<Limit>) -> Self {
        let [median, limit] = known.map_or([f64::NAN; 2], |known| [known.median, known.limit]);
        Self { what, value, median, limit }
    }
}

impl core::fmt::Display for Seen {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { what, value, median, limit } = self;
        let what = if *what == "loss" { "the loss" } else { "the gradient's norm" };
        if !value.is_finite() {
            return write!(f, "{what} is {value}");
        }
        write!(
            f,
            "{what} {value:.4} is a spike: above {limit:.4}, for the median before it is {median:.4}"
        )
    }
}
