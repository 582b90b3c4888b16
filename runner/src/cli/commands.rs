//! The commands that hand their flags to the rest of the program.

use super::Status;
use super::args::{
    BenchArgs, BenchCommand, IsaChoice, KernelBenchArgs, SimulateArgs, TokenizeArgs,
};
use super::flags::TrainArgs;
use super::output;
use super::resolve::{ISA_VARIABLE, Resolved, isa_from_environment};
use super::validate::check_isa;
use crate::bench;
use crate::data::prepare::{self, Request};
use crate::data::source::{Input, Source, discover};
use crate::data::{reference, vocabulary};
use crate::doctor::Report;
use crate::error::{Error, Result};
use crate::inspect;
#[cfg(feature = "mpi")]
use crate::ranks::{Ranks as _, mpi::MpiRanks};
use crate::settings::TokenizerChoice;
use crate::simulate::{self, Cluster, Link, Network, SimulateSettings};
use crate::tokenizer::{self, Tokenizer};
use crate::train::{self, Outcome};
use cllm_core::Isa;
use core::time::Duration;
use std::path::{Path, PathBuf};

pub(super) fn train(args: TrainArgs) -> Result<Status> {
    run(&args.resolve()?)
}

/// Trains as resolved.
pub(super) fn run(resolved: &Resolved) -> Result<Status> {
    let say = || {
        if let Some(warning) = resolved.warning() {
            say!("cllm: {warning}");
        }
        if let Some(hint) = resolved.hint().filter(|_| !resolved.settings.quiet) {
            say!("cllm: {hint}");
        }
    };
    Ok(match train::train_behind(&resolved.settings, &say)? {
        Outcome::Finished => Status::Done,
        Outcome::Interrupted => Status::Interrupted,
    })
}

/// The instruction set of a flag, else of the environment; the CPU has it.
pub(super) fn chosen_isa(flag: Option<Isa>) -> Result<Option<Isa>> {
    let isa = match flag {
        Some(isa) => Some((isa, "--isa")),
        None => isa_from_environment()?.map(|isa| (isa, ISA_VARIABLE)),
    };
    if let Some((isa, source)) = isa {
        check_isa(isa, source)?;
    }
    Ok(isa.map(|(isa, _)| isa))
}

pub(super) fn tokenize(args: &TokenizeArgs) -> Result<()> {
    let choice = tokenizer_choice(args)?;
    let request = Request {
        validation: text_sources("--val-data", &args.val_data)?,
        text_field: args.text_field.clone(),
        val_fraction: args.val_fraction,
        ..Request::new(text_sources("--data", &args.data)?)
    };
    let request = match args.shard_tokens {
        Some(shard_tokens) => Request { shard_tokens, ..request },
        None => request,
    };
    let tokenizer = match choice {
        TokenizerChoice::Bytes => Tokenizer::Bytes,
        TokenizerChoice::Chars => {
            // A character that only the validation text has must have a number too.
            let all = [request.train.clone(), request.validation.clone()].concat();
            vocabulary::train_chars(&all, &request.text_field)?
        }
        TokenizerChoice::Bpe(size) => {
            vocabulary::train_bpe(&request.train, &request.text_field, size)?
        }
        TokenizerChoice::File(path) => Tokenizer::load(&path)?,
    };
    let name = format!("{} tokenizer of {} ids", tokenizer.name(), tokenizer.vocab_size());
    if args.tokenizer_only {
        prepare::refuse_another_tokenizer(&tokenizer, &args.out)?;
        crate::files::create_dir(&args.out)?;
        let path = args.out.join(tokenizer::FILE_NAME);
        tokenizer.save(&path)?;
        return output::print(&format!("{}: {name}\n", path.display()));
    }
    let meta = match prepare::current(&request, &tokenizer, &args.out)? {
        // It is there already.
        Some(meta) => meta,
        None => {
            prepare::refuse_to_replace(&tokenizer, &args.out)?;
            prepare::prepare(&request, &tokenizer, &args.out)?
        }
    };
    output::print(&format!(
        "{}: {} tokens to train on, {} to validate on, of {} bytes in {} documents, {name}\n",
        args.out.display(),
        meta.train_tokens,
        meta.val_tokens,
        meta.bytes,
        meta.documents,
    ))
}

fn tokenizer_choice(args: &TokenizeArgs) -> Result<TokenizerChoice> {
    match (args.train.as_deref(), &args.tokenizer, args.vocab_size) {
        (Some("bpe"), _, Some(size)) if size < 257 => Err(Error::usage(format!(
            "--vocab-size {size}: 256 bytes and the end of text need at least 257 ids"
        ))),
        (Some("bpe"), _, Some(size)) => Ok(TokenizerChoice::Bpe(size)),
        (Some("bpe"), _, None) => Err(Error::usage("--train bpe: give --vocab-size as well")),
        (Some(_), _, Some(size)) => Err(Error::usage(format!(
            "--vocab-size {size}: the characters of the text decide how many ids --train chars has"
        ))),
        (Some(_), _, None) => Ok(TokenizerChoice::Chars),
        (None, Some(_), Some(size)) => Err(Error::usage(format!(
            "--vocab-size {size}: it goes with --train bpe; --tokenizer bpe:{size} says the same"
        ))),
        (None, Some(choice), None) => Ok(choice.clone()),
        (None, None, _) => Err(Error::usage("--tokenizer <KIND> is missing")),
    }
}

fn text_sources(flag: &str, names: &[String]) -> Result<Vec<Source>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let paths: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    match discover(&paths)? {
        Input::Text(sources) => Ok(sources),
        Input::Shards { train, val } => {
            let shard = train.first().or(val.first()).map(|path| path.display().to_string());
            let shard = shard.unwrap_or_default();
            Err(Error::usage(format!("{flag}: {shard} holds tokens already; give text")))
        }
    }
}

pub(super) fn reference(out: &Path) -> Result<()> {
    let summary = reference::write_reference(out)?;
    let mut text = format!(
        "{}: {} bytes of text in {} documents, {} tokens to train on ({} batches), {} to validate on\n",
        out.display(),
        summary.bytes,
        summary.documents,
        summary.train_tokens,
        summary.batches,
        summary.val_tokens,
    );
    for (name, sha256) in &summary.sha256 {
        text.push_str(&format!("{sha256}  {name}\n"));
    }
    output::print(&text)
}

pub(super) fn simulate(args: SimulateArgs) -> Result<()> {
    let SimulateArgs { trace, workers, bandwidth, fastest, ranks, fixed_batch, json, .. } = args;
    let link = args.link.unwrap_or(Link::Ethernet10);
    let network = Network {
        gbit_per_s: args.gbit.unwrap_or(link.gbit_per_s()),
        latency_us: args.latency_us.unwrap_or(link.latency_us()),
        message_us: args.message_us,
    };
    let cluster = (!ranks.is_empty()).then_some(Cluster { ranks, network, fixed_batch });
    let settings = SimulateSettings { trace, workers, bandwidth, fastest, cluster };
    simulate::check(&settings)?;
    let report = simulate::simulate(&settings)?;
    output::print(&if json { one_line(&report)? } else { report.text() })
}

pub(super) fn inspect(path: &Path, tensors: bool, json: bool) -> Result<()> {
    let report = inspect::Report::look(path, tensors)?;
    output::print(&if json { one_line(&report)? } else { report.text() })
}

pub(super) fn doctor(json: bool) -> Result<()> {
    let report = Report::look(chosen_isa(None)?)?;
    output::print(&if json { one_line(&report)? } else { report.text() })
}

pub(super) fn bench(args: &BenchArgs) -> Result<()> {
    match &args.what {
        None => bench_kernels(&args.kernels),
        Some(BenchCommand::Kernels(kernels)) => bench_kernels(kernels),
        Some(BenchCommand::Engine { seconds, json }) => {
            let report = bench::engine::Report::measure(bench_time(*seconds)?)?;
            output::print(&if *json { one_line(&report)? } else { report.text() })
        }
        #[cfg(feature = "mpi")]
        Some(BenchCommand::Ranks { floats, rounds, json }) => {
            let ranks = MpiRanks::new()?;
            let report = bench::ranks::Report::measure(&ranks, *floats, *rounds)?;
            if ranks.rank() > 0 {
                return Ok(());
            }
            output::print(&if *json { one_line(&report)? } else { report.text() })
        }
    }
}

fn bench_time(seconds: f64) -> Result<Duration> {
    if seconds > 0.0 && seconds <= 60.0 {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(Error::usage(format!("--seconds {seconds}: it must be above 0 and at most 60")))
}

pub(super) fn one_line(report: &impl serde::Serialize) -> Result<String> {
    let json = serde_json::to_string(report);
    Ok(json.map_err(|e| Error::failure(format!("cannot report: {e}")))? + "\n")
}

fn bench_kernels(args: &KernelBenchArgs) -> Result<()> {
    let time = bench_time(args.seconds)?;
    let mut isas = Vec::new();
    for choice in &args.isa {
        match choice {
            IsaChoice::All => isas.extend(Isa::ALL.into_iter().filter(|isa| isa.is_supported())),
            IsaChoice::One(isa) => isas.extend(chosen_isa(Some(*isa))?),
        }
    }
    if isas.is_empty() {
        isas.push(chosen_isa(None)?.unwrap_or_else(Isa::best));
    }
    isas.sort_unstable();
    isas.dedup();
    let report = bench::report::Report::measure(&isas, args.dtype, &args.only, time);
    if report.kernels.is_empty() {
        return Err(Error::usage(format!("--only {}: no kernel has this in its name", args.only)));
    }
    output::print(&if args.json { one_line(&report)? } else { report.text() })
}
