//! The training loop: steps, validations, checkpoints, until done or asked to stop.
//!
//! Everything that a step depends on is a function of the number of updates done
//! (batches, learning rate, dropout) or lies in a checkpoint (weights, moments, the
//! best validation so far, what spikes are told by), so a resumed run gives the same bits.

use std::path::PathBuf;
use std::time::Instant;

use cllm_core::{Engine, Kernels, Optimizer, Origin, Schedule, StepError, Trainer};

use super::Outcome;
use super::event::{Done, Eval, Event, Interrupted, Sample, Step, ThreadsFound};
use super::farewell::Farewell;
use super::folder::RunFolder;
use super::inputs::Inputs;
use super::report::Reporter;
use super::spikes::Ended;
use super::stop::Stop;
use super::team::Team;
use super::tuner::Tuner;
use super::watch::Watch;
use super::work::Work;
use crate::checkpoint::{self, MappedValues, Meta, Validated};
use crate::data::prefetch::{Prefetch, ReadyBatch, StepTokens};
use crate::error::{Error, Result};
use crate::generate::{self, Speaker, Until};
use crate::lora;
use crate::memory::peak_rss_bytes;
use crate::settings::{SpikeChoice, TrainSettings};
use crate::trace::tracer::{Tracer, What};
use crate::validation::Rounds;

/// A run under way in this process.
pub(super) struct Session<'a, 'p> {
    pub(super) settings: &'a TrainSettings,
    pub(super) folder: &'a RunFolder,
    pub(super) inputs: &'a Inputs,
    pub(super) kernels: &'static Kernels,
    pub(super) trainer: Trainer<'a>,
    pub(super) optimizer: Optimizer,
    pub(super) schedule: Schedule,
    pub(super) reporter: Reporter<'a>,
    pub(super) stop: &'a Stop,
    /// This rank and the others, if the run has more than one.
    pub(super) team: Team<'a>,
    /// Until the run has ended by itself.
    pub(super) farewell: Option<Farewell>,
    /// What checkpoints remember; its seconds are as of the start of the session.
    pub(super) meta: Meta,
    /// Losses and gradient norms of the steps so far, and what came of spikes: what checkpoints remember of it.
    pub(super) watch: Watch,
    /// The newest good checkpoint.
    pub(super) newest: Option<PathBuf>,
    /// Steps whose checkpoints are damaged.
    pub(super) bad_steps: Vec<u64>,
    /// Where steps get their batches.
    pub(super) prefetch: Prefetch<'p>,
    /// For validations and checks before saving.
    pub(super) batch: ReadyBatch,
    pub(super) rates: Rates,
    pub(super) engine: &'a Engine<'a>,
    /// How many workers steps have.
    pub(super) tuner: Tuner,
    /// What the workers do in steps.
    pub(super) work: Work<'a>,
    /// Records steps, if asked to.
    pub(super) tracer: Tracer<'a>,
    /// What of a base's weights steps read where they are stored.
    pub(super) token_table: Option<&'a MappedValues>,
    pub(super) begin: Instant,
}

/// Speed since the last reported step.
pub(super) struct Rates {
    pub(super) flops_per_step: f64,
    pub(super) peak_flops: f64,
    pub(super) steps: u64,
    pub(super) tokens: u64,
    pub(super) seconds: f64,
    /// No step has been done in the session.
    pub(super) is_first: bool,
    /// Seconds that the session had waited for batches then.
    pub(super) waited: f64,
}

impl Rates {
    /// Tokens a second and the share of the peak; starts over.
    fn take(&mut self) -> (f64, f64) {
        let (steps, seconds) = (self.steps as f64, self.seconds.max(1e-9));
        let tokens = self.tokens as f64 / seconds;
        (self.steps, self.tokens, self.seconds) = (0, 0, 0.0);
        (tokens, steps * self.flops_per_step / seconds / self.peak_flops)
    }
}

/// Whether something that happens every `interval` steps happens after `step`.
fn is_due(step: u64, interval: u64) -> bool {
    interval > 0 && step.is_multiple_of(interval)
}

impl Session<'_, '_> {
    pub(super) fn run(mut self) -> Result<Outcome> {
        if self.meta.validation_due {
            self.validate()?;
            if self.is_to_stop() {
                return self.interrupt();
            }
            self.save()?;
        }
        if self.settings.on_spike != SpikeChoice::Rewind {
            self.watch.kept_mut().rewind_to = None;
        } else if self.is_place_to_rewind_to() {
            // At the beginning, or killed between a validation and the checkpoint behind it.
            self.save()?;
        }
        while self.trainer.updates() < self.settings.max_steps {
            if self.is_to_stop() {
                return self.interrupt();
            }
            self.work.begin_step();
            let threads = self.tuner.threads();
            self.tracer.begin_step();
            let done = self.step()?;
            self.work.end_step(threads);
            self.tracer.end_step()?;
            // After a rewind the step before is the checkpoint's, and all that follows it is done.
            let Some(is_reported) = done else { continue };
            let step = self.trainer.updates();
            let is_last = step == self.settings.max_steps;
            if is_reported && (self.work.is_due() || is_last) {
                self.tell_work()?;
            }
            if is_due(step, self.settings.sample_interval) && !is_last {
                self.sample()?;
            }
            if is_last || is_due(step, self.settings.eval_interval) {
                self.meta.validation_due = self.inputs.validation.is_some();
                self.validate()?;
            }
            if self.is_to_stop() {
                return self.interrupt();
            }
            if is_last || is_due(step, self.settings.save_interval) {
                self.save()?;
            }
        }
        self.finish()
    }

    /// Somebody asked, or nobody listens any more: of all ranks, when they last met.
    fn is_to_stop(&self) -> bool {
        if self.team.is_many() { self.team.stops() } else { self.is_asked_to_stop() }
    }

    fn is_asked_to_stop(&self) -> bool {
        self.stop.requested() || self.reporter.lost().is_some()
    }

    /// One step, and whether it is reported; `None` if the run has gone back instead. Nothing here allocates
    /// unless it is reported.
    fn step(&mut self) -> Result<Option<bool>> {
        let start = Instant::now();
        let waited = self.prefetch.waited();
        self.engine.limit_workers(self.tuner.threads());
        let done = self.trainer.updates();
        let mut held = StepTokens::default();
        for place in 0..self.team.mine() {
            let begin = self.tracer.now();
            let batch = self.prefetch.take()?;
            self.tracer.span(What::Data, begin);
            let begin = self.tracer.now();
            held = batch.step;
            let (trainer, team) = (&mut self.trainer, &mut self.team);
            let at = (held.counted, place);
            let summed = team.accumulate(trainer, &batch.get(), at, &mut self.tracer);
            self.tracer.span(What::Gradients, begin);
            self.prefetch.recycle(batch);
            summed.map_err(|error| self.stopped(done + 1, error))?;
        }
        let stops = self.is_asked_to_stop();
        let sum = match self.team.meet(&mut self.trainer, stops, &mut self.tracer)? {
            Ok(sum) => sum,
            Err(_) if self.goes_on() => f64::NAN,
            Err(error) => return Err(self.stopped(done + 1, error)),
        };
        let lr = self.schedule.rate(done);
        let begin = self.tracer.now();
        let loss = sum / held.counted as f64;
        let Ended::Done(grad_norm) = self.end_step(loss, lr)? else { return Ok(None) };
        self.tracer.span(What::Update, begin);
        self.rates.steps += 1;
        self.rates.tokens += held.places as u64;
        let seconds = start.elapsed().as_secs_f64();
        self.rates.seconds += seconds;
        let step = done + 1;
        // The first step finds memory that was never touched.
        let timed = if self.rates.is_first { None } else { Some(seconds) };
        self.rates.is_first = false;
        let found = timed.and_then(|s| self.tuner.step(s - (self.prefetch.waited() - waited)));
        if let Some(threads) = found {
            let tried = self.tuner.tried().to_vec();
            self.reporter.event(&Event::Threads(ThreadsFound { step, threads, tried }))?;
        }
        let is_edge = step == 1 || step == self.settings.max_steps;
        let is_reported = is_edge || is_due(step, self.settings.log_interval);
        if is_reported {
            let (tokens_per_s, mfu) = self.rates.take();
            let waited = self.prefetch.waited();
            let data_wait = waited - self.rates.waited;
            self.rates.waited = waited;
            self.reporter.event(&Event::Step(Step {
                step,
                loss,
                lr,
                grad_norm,
                tokens_per_s,
                mfu,
                data_wait,
                seconds: self.seconds(),
            }))?;
        } else {
            self.reporter.progress(step);
        }
        Ok(Some(is_reported))
    }

    fn tell_work(&mut self) -> Result<()> {
        let (step, data) = (self.trainer.updates(), self.prefetch.waited());
        self.reporter.event(&Event::Work(self.work.so_far(step, data)))
    }

    /// Measures the loss on the validation data, and saves the best weights. Leaves
    /// the validation due if asked to stop in between.
    fn validate(&mut self) -> Result<()> {
        let Some(data) = &self.inputs.validation else { return Ok(()) };
        let settings = self.settings;
        let rounds = Rounds::new(data.sequences(), settings.batch_size, settings.eval_batches);
        let (trainer, stop) = (&mut self.trainer, self.stop);
        let begin = self.tracer.now();
        let loss = if self.team.is_many() {
            Some(self.team.validate(trainer, (&rounds, data), &mut self.batch)?)
        } else {
            rounds.mean(data, &mut self.batch, |batch| {
                (!stop.requested()).then(|| trainer.evaluate(batch))
            })?
        };
        self.tracer.span(What::Validation, begin);
        let Some(loss) = loss else { return Ok(()) };
        let (step, val_loss) = (self.trainer.updates(), loss.mean());
        if !val_loss.is_finite() {
            return Err(self.failed(step, StepError::NonFiniteLoss(val_loss)));
        }
        let now = Validated { step, val_loss };
        let best = self.meta.best.is_none_or(|best| val_loss < best.val_loss);
        let seconds = self.seconds();
        self.reporter.event(&Event::Eval(Eval { step, val_loss, best, seconds }))?;
        self.meta.last = Some(now);
        self.meta.validation_due = false;
        if best {
            self.meta.best = Some(now);
            self.write(self.folder.best())?;
        }
        Ok(())
    }

    /// Whether the run goes back to here from now on, as it would if it were never stopped.
    fn is_place_to_rewind_to(&self) -> bool {
        let (step, now) = (self.trainer.updates(), self.watch.kept().rewind_to);
        self.settings.on_spike == SpikeChoice::Rewind
            && now != Some(step)
            && (now.is_none() || is_due(step, self.settings.save_interval))
    }

    /// Saves `step-<n>` and removes the oldest, unless the weights are bad: a bad
    /// checkpoint must not take the place of a good one.
    fn save(&mut self) -> Result<PathBuf> {
        let step = self.trainer.updates();
        if self.is_place_to_rewind_to() {
            let kept = self.watch.kept_mut();
            (kept.rewind_to, kept.rewinds) = (Some(step), 0);
        }
        self.inputs.fill(self.next_batch(), &mut self.batch)?;
        let loss = self.trainer.evaluate(&self.batch.get());
        let loss = loss.map_err(|e| self.failed(step, e))?.mean();
        if !loss.is_finite() {
            return Err(self.failed(step, StepError::NonFiniteLoss(loss)));
        }
        let path = self.folder.step(step);
        self.write(path.clone())?;
        self.bad_steps.retain(|bad| *bad != step);
        let spared = self.watch.kept().rewind_to;
        if self.team.is_first() {
            let keep = self.settings.keep_checkpoints;
            self.folder.prune(step, keep, spared, &self.bad_steps)?;
        }
        Ok(path)
    }

    fn write(&mut self, path: PathBuf) -> Result<()> {
        let begin = self.tracer.now();
        // What follows from other values must not become a checkpoint.
        self.token_table.map_or(Ok(()), MappedValues::verify)?;
        self.reporter.sync()?;
        let meta = Meta {
            seconds: self.seconds(),
            data_wait_seconds: self.data_wait_seconds(),
            watch: self.watch.state(),
            ..self.meta.clone()
        };
        let moments = self.team.moments(&self.trainer)?;
        if self.team.is_first() {
            checkpoint::save_with(&path, &self.trainer, moments.as_ref(), &meta)?;
        }
        // From now on it is there for all.
        self.team.barrier()?;
        self.tracer.span(What::Checkpoint, begin);
        self.newest = Some(path);
        Ok(())
    }

    fn seconds(&self) -> f64 {
        self.meta.seconds + self.begin.elapsed().as_secs_f64()
    }

    fn data_wait_seconds(&self) -> f64 {
        self.meta.data_wait_seconds + self.prefetch.waited()
    }

    /// The error of a step that went wrong.
    pub(super) fn stopped(&mut self, step: u64, cause: StepError) -> Error {
        let origin = self.origin(cause, true);
        self.error(step, cause, origin)
    }

    /// The error of a loss behind step `step` that went wrong.
    fn failed(&mut self, step: u64, cause: StepError) -> Error {
        let origin = self.origin(cause, false);
        self.error(step, cause, origin)
    }

    fn error(&self, step: u64, cause: StepError, origin: Option<Origin>) -> Error {
        let advice = match cause {
            StepError::NonFiniteLoss(_) | StepError::NonFiniteGradient(_) => {
                "; lower --learning-rate or --grad-clip, or warm up longer"
            }
            _ => "",
        };
        let origin = origin
            .map_or(String::new(), |origin| format!("; the first that is not finite is {origin}"));
        let kept = self.kept();
        Error::failure(format!("stopped at step {step}: {cause}{origin}{advice}; {kept}"))
    }

    /// What there is to go on from.
    pub(super) fn kept(&self) -> String {
        match &self.newest {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "no checkpoint was saved before".to_owned(),
        }
    }

    /// Saves and ends the session, not the run.
    fn interrupt(mut self) -> Result<Outcome> {
        if self.work.is_behind() {
            self.tell_work()?;
        }
        let path = self.save()?;
        self.tracer.finish()?;
        let (step, checkpoint) = (self.trainer.updates(), path.display().to_string());
        self.reporter.event(&Event::Interrupted(Interrupted { step, checkpoint }))?;
        match self.reporter.lost() {
            None => Ok(Outcome::Interrupted),
            Some(error) => {
                say!("cllm: saved {}; --resume goes on", path.display());
                if self.stop.requested() { Ok(Outcome::Interrupted) } else { Err(error.clone()) }
            }
        }
    }

    /// Reports the end of the run.
    fn finish(mut self) -> Result<Outcome> {
        self.tracer.finish()?;
        // All is saved: the next signal need not wait for anything.
        self.farewell = None;
        self.stop.request();
        let steps = self.trainer.updates();
        let (seconds, data_wait_seconds) = (self.seconds(), self.data_wait_seconds());
        let done = Done {
            steps,
            // Those that the run has gone back before are among them.
            tokens: self.inputs.tokens_of(steps + self.watch.kept().data_ahead),
            seconds,
            data_wait_seconds,
            data_wait_share: data_wait_seconds / seconds.max(1e-9),
            skipped_steps: self.watch.kept().skipped,
            val_loss: self.meta.last.map(|last| last.val_loss),
            best_val_loss: self.meta.best.map(|best| best.val_loss),
            best_step: self.meta.best.map(|best| best.step),
            weights_sha256: checkpoint::trained_sha256(&self.trainer),
            peak_rss_bytes: peak_rss_bytes(),
            work: self.work.report(self.prefetch.waited()),
            exchange: self.team.exchanged(),
        };
        self.reporter.event(&Event::Done(done))?;
        self.sample()?;
        self.reporter.lost().map_or(Ok(Outcome::Finished), |error| Err(error.clone()))
    }

    /// Lets the model speak as it is now. Neither weights nor what follows depend on it.
    fn sample(&mut self) -> Result<()> {
        let Some(tokenizer) = &self.inputs.tokenizer else { return Ok(()) };
        if self.settings.sample_tokens == 0 {
            return Ok(());
        }
        let prompt = self.settings.sample_prompt.clone();
        let mut text = prompt.clone();
        let config = generate::sample_config(self.settings.seed);
        let plan = self.trainer.plan();
        // A sample is short: the run's workers are not disturbed for it.
        let model = generate::for_context(*plan.config(), self.settings.block_size);
        let mut speaker = Speaker::new(&model, 1, self.kernels, tokenizer)?;
        let step = self.trainer.updates();
        // At the end nothing else is left to be stopped.
        let is_stopped = || step < self.settings.max_steps && self.stop.requested();
        let weights = match lora::merged(&self.trainer, &self.settings.out_dir) {
            Ok(weights) => weights,
            // The run does without: its base is not there any more, or does not fit beside it.
            Err(error) => {
                say!("cllm: no sample after step {step}: {error}");
                return Ok(());
            }
        };
        let spoken = speaker.speak(&weights, |voice| {
            let until = Until { tokens: self.settings.sample_tokens, stop: &[], request: None };
            voice.speak(&prompt, until, config, &mut |piece| {
                text.push_str(piece);
                if is_stopped() { Err(Error::failure("stopped")) } else { Ok(()) }
            })
        });
        if is_stopped() {
            return Ok(());
        }
        spoken?;
        self.reporter.event(&Event::Sample(Sample { step, prompt, text }))
    }
}
