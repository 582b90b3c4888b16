//! Where events go: always to `metrics.jsonl`, to TensorBoard's files if they are wanted, and to standard
//! output as JSON lines, as plain lines, as a progress bar, or not.

use std::borrow::Cow;
use std::io::Write;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::board::{self, Board};
use super::event::{Done, Event, Spike, Start, Step, ThreadsFound};
use super::metrics::{self, Metrics, Place};
use super::tuner::Tried;
use crate::error::{Error, Result};
use crate::generate::for_terminal;
use crate::memory::human_bytes;
use crate::settings::{LogFormat, TrainSettings};
use crate::tune::TUNED;

/// Reports a run.
pub struct Reporter<'o> {
    /// None where another rank reports.
    files: Option<(Metrics, Option<Board>)>,
    out: &'o mut dyn Write,
    output: Output,
    /// Why nothing is written to standard output any more.
    lost: Option<Error>,
}

#[derive(Debug)]
enum Output {
    Quiet,
    Json,
    Text(Text),
}

/// Output for people.
#[derive(Debug)]
struct Text {
    /// Hidden unless standard output is a terminal.
    bar: Option<ProgressBar>,
    max_steps: u64,
    first_step: u64,
    begin: Instant,
    val_loss: Option<f64>,
    spikes: Told,
}

/// Spikes that were told, of which there may be many.
#[derive(Debug, Default)]
struct Told {
    /// The last that has a line of its own.
    last: Option<u64>,
    /// Those since.
    untold: u64,
}

impl<'o> Reporter<'o> {
    /// Reports to the files and to `out` as the settings say, for a session that begins after
    /// `step` steps. With `is_terminal`, `out` is standard output and a person watches. Without files nothing is
    /// reported.
    #[must_use]
    pub fn new(
        files: Option<(Metrics, Option<Board>)>,
        out: &'o mut dyn Write,
        is_terminal: bool,
        settings: &TrainSettings,
        step: u64,
    ) -> Self {
        let max_steps = settings.max_steps;
        let output = match settings.log_format {
            _ if settings.quiet || files.is_none() => Output::Quiet,
            LogFormat::Json => Output::Json,
            LogFormat::Text => Output::Text(Text {
                bar: is_terminal.then(|| progress_bar(step, max_steps)),
                max_steps,
                first_step: step,
                begin: Instant::now(),
                val_loss: None,
                spikes: Told::default(),
            }),
        };
        Self { files, out, output, lost: None }
    }

    /// Reports an event. Standard output that cannot be written is no error yet, for what was trained is to be
    /// saved first: see [`Reporter::lost`].
    ///
    /// # Errors
    /// `metrics.jsonl` or TensorBoard's file cannot be written.
    pub fn event(&mut self, event: &Event) -> Result<()> {
        let Some((metrics, board)) = &mut self.files else { return Ok(()) };
        let line = metrics::line(event)?;
        metrics.write(&line)?;
        if let Some(board) = board {
            board.event(event)?;
        }
        let told = match &mut self.output {
            Output::Quiet => Ok(()),
            Output::Json => print(self.out, &line),
            Output::Text(text) => text.event(self.out, event),
        };
        if let Err(error) = told {
            self.output = Output::Quiet;
            self.lost = Some(error);
        }
        Ok(())
    }

    /// Why standard output cannot be written any more: whoever read it has gone, or its disk is full.
    #[must_use]
    pub fn lost(&self) -> Option<&Error> {
        self.lost.as_ref()
    }

    /// Goes back to step `step`, `rewinds` times by now: the files say no more of the steps behind it.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn rewind(&mut self, settings: &TrainSettings, step: u64, rewinds: u32) -> Result<()> {
        let Some((metrics, board)) = &mut self.files else { return Ok(()) };
        metrics.rewind(Place { step, rewinds, within: true })?;
        *board = board::begin(settings, step)?;
        self.progress(step);
        Ok(())
    }

    /// Shows that a step is done that is not reported.
    pub fn progress(&self, step: u64) {
        if let Output::Text(Text { bar: Some(bar), .. }) = &self.output {
            bar.set_position(step);
        }
    }

    /// Makes the metrics durable.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn sync(&self) -> Result<()> {
        self.files.as_ref().map_or(Ok(()), |(metrics, _)| metrics.sync())
    }
}

fn progress_bar(step: u64, max_steps: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(max_steps), ProgressDrawTarget::stdout());
    if let Ok(style) = ProgressStyle::with_template("{bar:16} {pos}/{len} {msg} eta {eta}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_position(step);
    bar.reset_eta();
    bar
}

fn print(out: &mut dyn Write, line: &str) -> Result<()> {
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|e| Error::failure(format!("cannot write to standard output: {e}")))
}

impl Text {
    fn event(&mut self, out: &mut dyn Write, event: &Event) -> Result<()> {
        match event {
            Event::Start(start) => self.lines(out, &start_lines(start, self.max_steps)),
            Event::Threads(found) => self.lines(out, &threads_line(found)),
            Event::Step(step) => self.step(out, step),
            Event::Eval(eval) => {
                self.val_loss = Some(eval.val_loss);
                let best = if eval.best { ", the best so far" } else { "" };
                self.lines(
                    out,
                    &format!("step {}: validation loss {:.4}{best}", eval.step, eval.val_loss),
                )
            }
            Event::Spike(spike) => match self.spikes.line(spike) {
                Some(line) => self.lines(out, &line),
                None => Ok(()),
            },
            Event::Interrupted(at) => {
                self.finish();
                print(
                    out,
                    &format!(
                        "interrupted after step {}: saved {}; go on with --resume",
                        at.step, at.checkpoint
                    ),
                )
            }
            Event::Done(done) => {
                self.finish();
                print(out, &summary(done))
            }
            Event::Work(_) => Ok(()),
            Event::Sample(sample) if sample.step < self.max_steps => {
                let text = self.shown(&sample.text);
                self.lines(out, &format!("sample after step {}:\n{text}\n", sample.step))
            }
            Event::Sample(sample) => {
                print(out, &format!("\nsample:\n{}", self.shown(&sample.text)))
            }
        }
    }

    /// Text of the model as it is, or as a person's terminal bears it.
    fn shown<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.bar.is_some() { for_terminal(text) } else { text.into() }
    }

    fn step(&self, out: &mut dyn Write, step: &Step) -> Result<()> {
        let what = format!(
            "loss {:.4}  lr {:.2e}  grad norm {:.2}  {} tokens/s  {:.0} % of peak",
            step.loss,
            step.lr,
            step.grad_norm,
            thousands(step.tokens_per_s as u64),
            100.0 * step.mfu
        );
        if let Some(bar) = &self.bar {
            let val = self.val_loss.map_or(String::new(), |loss| format!("val {loss:.4}  "));
            bar.set_position(step.step);
            bar.set_message(format!("{val}{what}"));
            return Ok(());
        }
        let done = step.step.saturating_sub(self.first_step).max(1);
        let left = self.max_steps.saturating_sub(step.step);
        let eta = self.begin.elapsed().as_secs_f64() * left as f64 / done as f64;
        print(out, &format!("step {}/{}  {what}  eta {}", step.step, self.max_steps, duration(eta)))
    }

    /// Prints above the bar, if there is one.
    fn lines(&self, out: &mut dyn Write, text: &str) -> Result<()> {
        match &self.bar {
            Some(bar) => {
                bar.println(text);
                Ok(())
            }
            None => print(out, text),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// Steps between lines about spikes that nothing much is done about.
const SPIKES_APART: u64 = 100;

impl Told {
    /// What is said of a spike, unless there was a line of one not long before.
    fn line(&mut self, spike: &Spike) -> Option<String> {
        let Spike { step, at, what, value, median, limit, action, .. } = *spike;
        let is_near = self.last.is_some_and(|last| at > last && at < last + SPIKES_APART);
        if is_near && matches!(action, "none" | "skip") {
            self.untold += 1;
            return None;
        }
        self.last = Some(at);
        let untold = core::mem::take(&mut self.untold);
        let before = match untold {
            0 => String::new(),
            n => format!(" ({n} spikes since the last line about one: see metrics.jsonl)"),
        };
        let what = if what == "loss" { "loss" } else { "grad norm" };
        let done = match action {
            "skip" => ": no update".to_owned(),
            "rewind" => format!(": back to step {step}, and on with the data behind"),
            "stop" => ": the run stops".to_owned(),
            _ => String::new(),
        };
        Some(match value.is_finite() {
            true => format!(
                "step {at}: spike of the {what}, {value:.4} (median {median:.4}, limit {limit:.4}){done}{before}"
            ),
            false => format!("step {at}: the {what} is {value}{done}{before}"),
        })
    }
}

fn start_lines(start: &Start, max_steps: u64) -> String {
    let settings = &start.config;
    let going =
        if start.step > 0 { format!(", going on from {}", start.step) } else { String::new() };
    let adapters = start.adapters.as_ref().map_or(String::new(), |adapters| {
        format!(
            "train   adapters of rank {} ({}): {} parameters\n",
            adapters.rank,
            adapters.targets,
            thousands(adapters.parameters as u64)
        )
    });
    let tuned = start.tuning.as_ref();
    let tuned = tuned.map_or(String::new(), |file| format!("tuning  {TUNED} {file}\n"));
    format!(
        "model   {} layers, {} heads, {} wide, {} token ids: {} parameters\n{adapters}\
         memory  {} planned\n\
         machine {}, {} thread(s), peak {:.0} GFLOP/s\n{tuned}\
         data    {}\n\
         run     {max_steps} steps of {} tokens{going}, in {}",
        settings.n_layer,
        settings.n_head,
        settings.n_embd,
        thousands(start.model.vocab_size as u64),
        thousands(start.parameters as u64),
        human_bytes(start.planned_bytes.total as u64),
        start.kernels,
        start.threads,
        start.peak_gflops,
        data(start),
        thousands(start.tokens_per_step),
        settings.out_dir.display(),
    )
}

/// What there is to train and to validate on.
fn data(start: &Start) -> String {
    let (train, val) = (thousands(start.train_tokens), thousands(start.val_tokens));
    let Some(read) = &start.examples else {
        return format!("{train} tokens to train on, {val} to validate on");
    };
    format!(
        "{} examples of {train} tokens, of which {} count; {} examples to validate on\n\
         epoch   {} rows of {} tokens, {:.1} % of them padding",
        thousands(read.train as u64),
        thousands(read.counted_tokens),
        thousands(read.val as u64),
        thousands(read.rows_per_epoch),
        start.config.block_size,
        100.0 * read.padding,
    )
}

fn threads_line(found: &ThreadsFound) -> String {
    let tried = |t: &Tried| format!("{} take {:.1} ms a step", t.threads, 1e3 * t.seconds);
    let tried: Vec<_> = found.tried.iter().map(tried).collect();
    format!("threads {} ({})", found.threads, tried.join(", "))
}

fn summary(done: &Done) -> String {
    let loss = match (done.val_loss, done.best_val_loss, done.best_step) {
        (Some(last), Some(best), Some(step)) => {
            format!("\nvalidation loss {last:.4} (best {best:.4} after step {step})")
        }
        _ => String::new(),
    };
    let skipped = match done.skipped_steps {
        0 => String::new(),
        n => format!("\n{n} of the steps had no update (--on-spike skip)"),
    };
    let work = match done.work.step_seconds > 0.0 {
        true => done.work.text(),
        false => format!("no step was left to do; --max-steps above {} goes on", done.steps),
    };
    let exchange = done.exchange.map_or(String::new(), |exchange| format!("\n{}", exchange.text()));
    format!(
        "done: {} steps, {} tokens in {}, {:.1} s ({:.1} %) of it waiting for data{loss}{skipped}\n\
         {work}{exchange}\nweights sha256 {}",
        done.steps,
        thousands(done.tokens),
        duration(done.seconds),
        done.data_wait_seconds,
        100.0 * done.data_wait_share,
        done.weights_sha256
    )
}

/// `1234567` as `1,234,567`.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Seconds as `h:mm:ss` or `m:ss`.
fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_spikes_are_few_lines() {
        let spike = |at, action| Spike {
            step: at,
            at,
            what: "loss",
            value: 9.0,
            median: 3.0,
            limit: 4.0,
            action,
            rewinds: None,
        };
        let mut told = Told::default();
        let first = told.line(&spike(7, "none")).unwrap();
        assert_eq!(first, "step 7: spike of the loss, 9.0000 (median 3.0000, limit 4.0000)");
        assert_eq!((8..107).filter_map(|at| told.line(&spike(at, "skip"))).count(), 0);
        let next = told.line(&spike(107, "skip")).unwrap();
        assert!(next.contains(": no update (99 spikes since"), "{next}");
        // A rewind is always told, and so is what comes behind it.
        let back = told.line(&Spike { step: 100, ..spike(108, "rewind") }).unwrap();
        assert!(back.ends_with(": back to step 100, and on with the data behind"), "{back}");
        assert!(told.line(&spike(103, "none")).is_some());
        let nan = told.line(&Spike { value: f64::NAN, ..spike(900, "stop") }).unwrap();
        assert_eq!(nan, "step 900: the loss is NaN: the run stops");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(duration(59.6), "1:00");
        assert_eq!(duration(3725.0), "1:02:05");
    }
}
