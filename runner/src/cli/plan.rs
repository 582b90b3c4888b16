//! `cllm plan`: what a run will take, before anything starts.

use super::args::PlanArgs;
use super::output;
use super::presets::Preset;
use crate::bench::machine;
use crate::data::source::{Input, Source, discover};
use crate::data::{embedded, vocabulary};
use crate::error::{Error, Result};
use crate::memory::{self, human_bytes};
use crate::model;
use crate::parts::Parts;
use crate::pool::cpus;
use crate::settings::{TokenizerChoice, TrainSettings};
use crate::tokenizer::{self, Tokenizer};
use crate::train::{self, event::Model};
use crate::tune::{Sizes, TUNED};
use cllm_core::{Kernels, Plan, Pool, ROW_BLOCK};
use core::fmt::Write as _;
use core::time::Duration;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Prints the plan of a run.
pub(super) fn plan(args: PlanArgs) -> Result<()> {
    let resolved = args.train.resolve()?;
    let settings = &resolved.settings;
    if let Some(epochs) = settings.epochs {
        return Err(Error::usage(format!(
            "--epochs {epochs}: how many steps that is depends on the data, which are not read here; give \
             --max-steps"
        )));
    }
    let kernels = model::kernels(settings.isa, settings.dtype)?;
    let config = model::run_config(settings, vocab_size(settings)?)?;
    let (plan, chosen) = model::train_plan(settings, &config, kernels)?;
    let report = Report {
        settings,
        preset: resolved.preset.map(Preset::name),
        kernels,
        plan: &plan,
        tuning: chosen.file_name(),
        estimate: (!args.no_estimate).then(|| Estimate::measure(&plan, settings, kernels)),
        memory: memory::machine(),
    };
    output::print(&if args.json { format!("{}\n", report.json()) } else { report.text() })
}

/// Ids of the vocabulary that training would find, without training a tokenizer of pairs.
pub(super) fn vocab_size(settings: &TrainSettings) -> Result<usize> {
    if let Some(size) = settings.vocab_size {
        return Ok(size);
    }
    let sources = if settings.data.is_empty() {
        None
    } else {
        let paths: Vec<PathBuf> = settings.data.iter().map(PathBuf::from).collect();
        match discover(&paths)? {
            Input::Text(sources) => Some(sources),
            Input::Shards { train, val } => {
                let beside = train.first().or(val.first());
                let beside = beside.map(|shard| shard.with_file_name(tokenizer::FILE_NAME));
                return match (&settings.tokenizer, beside) {
                    (TokenizerChoice::File(path), _) => Ok(Tokenizer::load(path)?.vocab_size()),
                    (_, Some(path)) if path.exists() => Ok(Tokenizer::load(&path)?.vocab_size()),
                    _ => Err(Error::usage(
                        "--data: token shards without a tokenizer.json beside them: give \
                         --vocab-size",
                    )),
                };
            }
        }
    };
    Ok(match &settings.tokenizer {
        TokenizerChoice::Bytes => Tokenizer::Bytes.vocab_size(),
        TokenizerChoice::Bpe(size) => *size,
        TokenizerChoice::File(path) => Tokenizer::load(path)?.vocab_size(),
        TokenizerChoice::Chars => {
            let sources = match sources {
                Some(sources) => sources,
                None => vec![Source::from_memory(embedded::NAME, embedded::text()?)],
            };
            vocabulary::train_chars(&sources, &settings.text_field)?.vocab_size()
        }
    })
}

/// What this machine was measured to do, and what follows for a run.
struct Estimate {
    /// FLOP/s in registers, of the strongest instruction set.
    peak: f64,
    /// FLOP/s of a product shaped like the model's, with the run's instruction set.
    gemm: f64,
    seconds_per_step: f64,
}

/// Rate of a whole step as a share of that of its products alone: the rest are norms, the
/// softmax, attention's small products, packing and the optimizer. Measured steps of the
/// presets and of models between them had 0.63 to 0.78.
const STEP_SHARE: f64 = 0.7;

impl Estimate {
    fn measure(plan: &Plan, settings: &TrainSettings, kernels: &Kernels) -> Self {
        let time = Duration::from_millis(200);
        let peak = machine::fma_peak(Kernels::detect().with_dtype(settings.dtype), time);
        let config = plan.config();
        // A row block against the first matrix of the feed-forward layer, but no more of
        // it than measures quickly.
        let (inner, cols) = (config.d_model.min(2048), config.d_ff.min(4096));
        let gemm = machine::gemm_rate(kernels, (ROW_BLOCK, inner, cols), time);
        let threads = plan.workers().min(cpus::available()) as f64;
        let flops = step_flops(plan, settings) + recomputed_flops(plan, settings);
        let seconds_per_step = flops / (threads * gemm * STEP_SHARE);
        Self { peak, gemm, seconds_per_step }
    }
}

fn step_flops(plan: &Plan, settings: &TrainSettings) -> f64 {
    let batch = plan.batch();
    plan.config().step_flops(batch.sequences, batch.tokens)
        * settings.gradient_accumulation_steps as f64
}

/// What `--recompute` does on top of it.
fn recomputed_flops(plan: &Plan, settings: &TrainSettings) -> f64 {
    plan.recomputed_flops() * settings.gradient_accumulation_steps as f64
}

/// All that is told.
struct Report<'a> {
    settings: &'a TrainSettings,
    preset: Option<&'static str>,
    kernels: &'a Kernels,
    plan: &'a Plan,
    /// The file of `cllm tune` that the sizes of blocks are from.
    tuning: Option<String>,
    estimate: Option<Estimate>,
    memory: Option<memory::MachineMemory>,
}

impl Report<'_> {
    fn tokens_per_step(&self) -> u64 {
        self.plan.tokens() as u64 * self.settings.gradient_accumulation_steps as u64
    }

    /// Bytes of a pool; the run holds more batches than the plan's one.
    fn bytes(&self, pool: Pool) -> usize {
        memory::pool_bytes(self.plan, pool, model::batches(self.settings))
    }

    fn total_bytes(&self) -> u64 {
        memory::total_bytes(self.plan, model::batches(self.settings)) as u64
    }

    /// Bytes that a run takes besides while it makes its first weights, of a text that is long enough.
    fn counting_bytes(&self) -> u64 {
        train::most_first_bytes(self.settings, self.plan.config()) as u64
    }

    fn fits(&self) -> Option<bool> {
        self.memory.map(|memory| self.total_bytes() <= memory.available)
    }

    fn json(&self) -> Value {
        let config = self.plan.config();
        let pools: serde_json::Map<String, Value> = Pool::ALL
            .iter()
            .map(|pool| (pool.name().to_owned(), json!(self.bytes(*pool))))
            .collect();
        let steps = self.settings.max_steps;
        json!({
            "preset": self.preset,
            "config": Model::from(config),
            "batch_size": self.settings.batch_size,
            "gradient_accumulation_steps": self.settings.gradient_accumulation_steps,
            "threads": self.plan.workers(),
            "prefetch": self.settings.prefetch,
            "recompute": self.settings.recompute,
            "blocking": Sizes(*self.plan.blocking()),
            "tuning": self.tuning,
            "max_steps": steps,
            "isa": self.kernels.set().isa.name(),
            "dtype": self.kernels.dtype().name(),
            "parameters": self.plan.table().parameters(),
            "tensors": self.plan.table().count(),
            "pools": pools,
            "total_bytes": self.total_bytes(),
            "counting_bytes": self.counting_bytes(),
            "tokens_per_step": self.tokens_per_step(),
            "step_flops": step_flops(self.plan, self.settings),
            "recomputed_flops": recomputed_flops(self.plan, self.settings),
            "memory": self.memory.map(|memory| json!({
                "total_bytes": memory.total,
                "available_bytes": memory.available,
                "fits": self.fits(),
            })),
            "estimate": self.estimate.as_ref().map(|e| json!({
                "peak_flops_per_s": e.peak,
                "gemm_flops_per_s": e.gemm,
                "seconds_per_step": e.seconds_per_step,
                "tokens_per_s": self.tokens_per_step() as f64 / e.seconds_per_step,
                "seconds": e.seconds_per_step * steps as f64,
            })),
        })
    }

    fn text(&self) -> String {
        let config = self.plan.config();
        let settings = self.settings;
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<18}{value}");
        };
        line(
            "model",
            format!(
                "{} layers, {} heads, width {}, feed-forward {}, vocabulary {}, block {}",
                config.n_layer,
                config.n_head,
                config.d_model,
                config.d_ff,
                config.vocab_size,
                config.block_size,
            ),
        );
        let parts = Parts::from(&config.arch);
        if !parts.is_gpt2() {
            line("", parts.to_string());
        }
        let table = self.plan.table();
        line("parameters", format!("{} in {} tensors", grouped(table.parameters()), table.count()));
        line(
            "step",
            format!(
                "{} tokens ({} x {} sequences of {})",
                grouped(self.tokens_per_step() as usize),
                settings.gradient_accumulation_steps,
                settings.batch_size,
                settings.block_size,
            ),
        );
        let again = match recomputed_flops(self.plan, settings) {
            0.0 => String::new(),
            flops => format!(", and {:.3} recomputed", flops / 1e9),
        };
        line("", format!("{:.3} GFLOP{again}", step_flops(self.plan, settings) / 1e9));
        if let Some(file) = &self.tuning {
            line("tuning", format!("{TUNED} {file}"));
        }
        line("memory", format!("(bytes, kernels: {})", self.kernels.set()));
        for pool in Pool::ALL {
            line(&format!("  {}", pool.name()), pair(self.bytes(pool)));
        }
        line("  total", pair(self.total_bytes() as usize));
        if let bytes @ 1.. = self.counting_bytes() {
            let bytes = pair(bytes as usize);
            line("  besides", format!("{bytes} at most, before the first step (--bigram-init)"));
        }
        if let (Some(memory), Some(fits)) = (self.memory, self.fits()) {
            let verdict =
                verdict(fits, self.total_bytes() + self.counting_bytes() <= memory.available);
            line(
                "this machine",
                format!(
                    "{} available of {}: {verdict}",
                    human_bytes(memory.available),
                    human_bytes(memory.total),
                ),
            );
        }
        if let Some(e) = &self.estimate {
            line(
                "",
                format!(
                    "{:.1} GFLOP/s peak, {:.1} in products ({:.0} %), each of {} thread(s)",
                    e.peak / 1e9,
                    e.gemm / 1e9,
                    100.0 * e.gemm / e.peak,
                    self.plan.workers()
                ),
            );
            line(
                "estimate",
                format!(
                    "{} a step, {:.0} tokens/s, {} for {} steps",
                    human_time(e.seconds_per_step),
                    self.tokens_per_step() as f64 / e.seconds_per_step,
                    human_time(e.seconds_per_step * settings.max_steps as f64),
                    grouped(settings.max_steps as usize),
                ),
            );
        }
        text
    }
}

/// What to say of a run that fits or not, and of what it takes at most besides.
const fn verdict(fits: bool, fits_with_most: bool) -> &'static str {
    match (fits, fits_with_most) {
        (false, _) => "DOES NOT FIT: `cllm train` will refuse it",
        (true, false) => "fits, but not beside what --bigram-init takes of a long text",
        (true, true) => "fits",
    }
}

/// Bytes exactly and for people.
fn pair(bytes: usize) -> String {
    format!("{:>18}  {}", grouped(bytes), human_bytes(bytes as u64))
}

/// `1,234,567`
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time in the unit that suits it.
fn human_time(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.3} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_short_to_read() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(124_439_808), "124,439,808");
        assert_eq!(human_time(0.0123), "12.300 ms");
        assert_eq!(human_time(90.0), "90.0 s");
        assert_eq!(human_time(600.0), "10.0 min");
        assert_eq!(human_time(36_000.0), "10.0 h");
        assert_eq!(human_time(864_000.0), "10.0 days");
    }

    #[test]
    fn what_counting_takes_may_be_too_much_where_the_rest_is_not() {
        let all =
            [(true, true), (true, false), (false, false)].map(|(run, most)| verdict(run, most));
        assert_eq!(all[0], "fits");
        assert!(
            all[1].starts_with("fits, but not") && all[2].starts_with("DOES NOT FIT"),
            "{all:?}"
        );
    }
}
