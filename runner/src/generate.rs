//! Text from a trained model: `cllm generate`, and the sample at the end of a run.

use std::borrow::Cow;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use cllm_core::generate::{GenerateError, GeneratePlan, Generator};
use cllm_core::sample::{Candidate, Sampler, SamplerConfig, SamplerError};
use cllm_core::{Dtype, Isa, Kernels, Line, ModelConfig, Positions};
use serde::Serialize;

#[cfg(feature = "chat")]
use crate::chat::{self, ChatSettings, Template};
use crate::error::{Error, Result};
use crate::model;
use crate::settings::{LogFormat, Threads};
use crate::stops::Stops;
use crate::streams::{Streams, filled};
use crate::tokenizer::Tokenizer;
use crate::train::stop::Stop;
use crate::trained::Trained;

/// What `cllm generate` is told.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateSettings {
    /// Run folder or checkpoint file.
    pub checkpoint: PathBuf,
    /// Text to continue; if empty, the start of a document.
    pub prompt: String,
    /// Most tokens to generate; less if the model ends the document.
    pub tokens: usize,
    /// Texts of which the first that comes up ends what is generated, and is not part of it. None is
    /// empty.
    pub stop: Vec<String>,
    /// Logits are divided by this.
    pub temperature: f32,
    /// Keeps the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this.
    pub top_p: f32,
    /// Keeps tokens at least this share as probable as the most probable.
    pub min_p: f32,
    /// Makes what was said before less probable; 1 does nothing.
    pub repetition_penalty: f32,
    /// Always takes the most probable token.
    pub greedy: bool,
    /// Seed of the draws; sample `i` has `seed + i`.
    pub seed: u64,
    /// Texts to generate.
    pub samples: usize,
    /// Threads that compute; the text does not depend on it.
    pub threads: Threads,
    /// Instruction set; `None` is the best that the CPU has.
    pub isa: Option<Isa>,
    /// What the operands of products are rounded to.
    pub dtype: Dtype,
    /// Most tokens that the model sees at a time; `None` is what the prompt and the new tokens need.
    pub context: Option<usize>,
    /// What standard output carries.
    pub log_format: LogFormat,
    /// Answers the lines of standard input instead of continuing the prompt.
    #[cfg(feature = "chat")]
    pub interactive: bool,
    /// What the system says first in a conversation.
    #[cfg(feature = "chat")]
    pub system: Option<String>,
}

/// A text as a line of JSON.
#[derive(Serialize)]
struct Spoken<'a> {
    event: &'static str,
    index: usize,
    seed: u64,
    prompt: &'a str,
    text: &'a str,
    tokens: usize,
    finish_reason: &'static str,
    kernels: &'a str,
}

/// Generates text to standard output as it is made, or a JSON line for each text.
///
/// # Errors
/// A missing or damaged checkpoint or tokenizer, a prompt that the tokenizer refuses,
/// settings out of range, a closed standard output.
pub fn generate(settings: &GenerateSettings) -> Result<()> {
    // Before anything is read: a wrong flag needs no checkpoint to be found.
    Sampler::new(sampler_config(settings, 0)).map_err(sampler_error)?;
    let kernels = model::kernels(settings.isa, settings.dtype)?;
    let trained = Trained::open(&settings.checkpoint)?;
    let tokenizer = trained.tokenizer(None)?;
    let (parameters, config) = (trained.parameters()?, *trained.config());
    #[cfg(feature = "chat")]
    let template = conversation_template(settings, &trained)?;
    // The mapped file counts as memory of this program as long as it is held.
    drop(trained);
    let prompt = tokenizer.encode_prompt(settings.prompt.as_bytes());
    let prompt = prompt.map_err(|e| Error::failure(format!("the prompt: {e}")))?.len();
    let context = context(settings, &config, prompt)?;
    if prompt > context {
        say!(
            "cllm: the prompt has {prompt} tokens, and the model sees {context} at a time: only the \
             last of them count"
        );
    }
    let config = for_context(config, context);
    let workers = workers(settings.threads, &config, kernels)?;
    let mut speaker = Speaker::new(&config, workers, kernels, &tokenizer)?;
    speaker.speak(&parameters, |voice| {
        #[cfg(feature = "chat")]
        if let Some(template) = &template {
            let system = settings.system.clone();
            let chat = ChatSettings {
                system,
                tokens: settings.tokens,
                stop: settings.stop.clone(),
                context,
                log_format: settings.log_format,
            };
            let sampler = |reply| sampler_config(settings, reply);
            let input = &mut std::io::stdin().lock();
            return chat::talk(&chat, template, &tokenizer, voice, sampler, input);
        }
        (0..settings.samples).try_for_each(|index| say(settings, index, voice))
    })
}

/// The template of a conversation, if there is to be one.
#[cfg(feature = "chat")]
fn conversation_template(
    settings: &GenerateSettings,
    trained: &Trained,
) -> Result<Option<Template>> {
    if !settings.interactive {
        return Ok(None);
    }
    match Template::of_folder(&trained.dir())? {
        Some(template) => Ok(Some(template)),
        None => Err(Error::failure(format!(
            "{}: no chat template in {} beside the model, so it was not made for conversations; \
             --prompt continues a text",
            trained.dir().display(),
            crate::tokenizer::usage::FILE_NAME
        ))),
    }
}

/// One of the texts.
fn say(settings: &GenerateSettings, index: usize, voice: &mut Voice<'_>) -> Result<()> {
    let prompt = &settings.prompt;
    let config = sampler_config(settings, index);
    let until = Until { tokens: settings.tokens, stop: &settings.stop, request: None };
    if settings.log_format == LogFormat::Json {
        let mut text = prompt.clone();
        let said = voice.speak(prompt, until, config, &mut |piece| {
            text.push_str(piece);
            Ok(())
        })?;
        let (tokens, finish_reason) = (said.tokens, said.finish_reason());
        let seed = config.seed;
        let kernels = &voice.kernels.set().to_string();
        let (event, text) = ("sample", &text);
        let spoken = Spoken { event, index, seed, prompt, text, tokens, finish_reason, kernels };
        let line = serde_json::to_string(&spoken)
            .map_err(|e| Error::failure(format!("cannot write the text: {e}")))?;
        return write(&format!("{line}\n"));
    }
    if settings.samples > 1 {
        write(&format!("--- {} ---\n", index + 1))?;
    }
    write(prompt)?;
    voice.speak(prompt, until, config, &mut write)?;
    write("\n")
}

/// Tokens of a conversation of a model that can have more, unless they are told: their keys and values
/// take memory from the start.
#[cfg(feature = "chat")]
const CONVERSATION: usize = 8192;

/// Tokens that the model sees at a time, given those of the prompt.
fn context(settings: &GenerateSettings, config: &ModelConfig, prompt: usize) -> Result<usize> {
    let most = config.block_size;
    #[cfg(feature = "chat")]
    let usual = if settings.interactive { Some(CONVERSATION) } else { None };
    #[cfg(not(feature = "chat"))]
    let usual: Option<usize> = None;
    match (settings.context, usual) {
        (Some(0), _) => Err(Error::usage("--context 0: it must be at least 1")),
        (Some(context), _) if context > most => Err(Error::usage(format!(
            "--context {context}: the model is for texts of up to {most} tokens"
        ))),
        (Some(context), _) => Ok(context),
        (None, Some(usual)) => Ok(usual.min(most)),
        (None, None) => Ok(prompt.saturating_add(settings.tokens).min(most)),
    }
}

/// The model for texts of fewer tokens: where positions are angles it has the same weights, and takes
/// less memory.
pub(crate) fn for_context(config: ModelConfig, context: usize) -> ModelConfig {
    match config.arch.positions {
        Positions::Learned => config,
        Positions::Rotary(_) => {
            ModelConfig { block_size: context.min(config.block_size), ..config }
        }
    }
}

/// Bytes of packed weights for each thread of [`Threads::Auto`]: reading so many takes about
/// as long as it takes threads to wait for one another in all stages of a token.
const BYTES_PER_WORKER: usize = 512 * 1024;

/// How many threads compute: with [`Threads::Auto`] one on each CPU, but fewer for a small model.
pub(crate) fn workers(threads: Threads, config: &ModelConfig, kernels: &Kernels) -> Result<usize> {
    let workers = model::workers(threads)?;
    if threads != Threads::Auto {
        return Ok(workers);
    }
    let plan = GeneratePlan::new(config, kernels).map_err(model::plan_error)?;
    let bytes = plan.packed_lines().saturating_mul(size_of::<Line>());
    Ok(workers.min(bytes / BYTES_PER_WORKER).max(1))
}

/// Writes to standard output, at once.
pub(crate) fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let text = if out.is_terminal() { for_terminal(text) } else { Cow::Borrowed(text) };
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Error::failure(format!("cannot write to standard output: {e}")))
}

/// A text of a model without what would command a terminal: a model that has seen little says anything.
pub(crate) fn for_terminal(text: &str) -> Cow<'_, str> {
    let commands = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    match text.contains(commands) {
        true => text.replace(commands, "\u{fffd}").into(),
        false => text.into(),
    }
}

fn sampler_config(settings: &GenerateSettings, index: usize) -> SamplerConfig {
    SamplerConfig {
        temperature: if settings.greedy { 0.0 } else { settings.temperature },
        top_k: settings.top_k,
        top_p: settings.top_p,
        min_p: settings.min_p,
        repetition_penalty: settings.repetition_penalty,
        seed: settings.seed.wrapping_add(index as u64),
    }
}

/// How the sample at the end of a run is drawn.
pub(crate) fn sample_config(seed: u64) -> SamplerConfig {
    SamplerConfig { temperature: 0.8, top_p: 0.95, seed, ..SamplerConfig::default() }
}

/// A setting out of range in the words of the flags.
fn sampler_error(error: SamplerError) -> Error {
    let flag = match error {
        SamplerError::Temperature(_) => "--temperature",
        SamplerError::TopP(_) => "--top-p",
        SamplerError::MinP(_) => "--min-p",
        SamplerError::RepetitionPenalty(_) => "--repetition-penalty",
    };
    Error::usage(format!("{flag}: {error}"))
}

/// The memory that generation works in.
#[derive(Debug)]
pub(crate) struct Speaker<'t> {
    streams: Streams,
    kernels: &'static Kernels,
    tokenizer: &'t Tokenizer,
    candidates: Vec<Candidate>,
}

impl<'t> Speaker<'t> {
    /// Allocates for one text at a time, computed by `workers` threads.
    pub(crate) fn new(
        config: &ModelConfig,
        workers: usize,
        kernels: &'static Kernels,
        tokenizer: &'t Tokenizer,
    ) -> Result<Self> {
        let streams = Streams::new(config, workers, 1, kernels)?;
        let candidates = filled(config.vocab_size, || Candidate::EMPTY)?;
        Ok(Self { streams, kernels, tokenizer, candidates })
    }

    /// Packs the weights of `parameters` and calls `body` with a voice, beside the threads that
    /// compute for it.
    pub(crate) fn speak<R>(
        &mut self,
        parameters: &[f32],
        body: impl FnOnce(&mut Voice<'_>) -> Result<R>,
    ) -> Result<R> {
        let Self { streams, kernels, tokenizer, candidates } = self;
        let (kernels, tokenizer) = (*kernels, *tokenizer);
        streams.with_generators(parameters, |mut generators| {
            let generator = generators.remove(0);
            body(&mut Voice { generator, kernels, tokenizer, candidates })
        })
    }
}

/// A model ready to continue texts.
#[derive(Debug)]
pub(crate) struct Voice<'s> {
    generator: Generator<'s>,
    kernels: &'static Kernels,
    tokenizer: &'s Tokenizer,
    candidates: &'s mut [Candidate],
}

/// How far a text goes, unless the model ends it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until<'a> {
    /// Most tokens.
    pub tokens: usize,
    /// Texts that end it and are not part of it.
    pub stop: &'a [String],
    /// A request to end it where it is.
    pub request: Option<&'a Stop>,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    /// Tokens, that which ended it among them.
    pub tokens: usize,
    /// There were as many as there may be, and nothing has ended the text.
    pub is_cut: bool,
}

impl Said {
    /// `length` if it was cut, else `stop`: as `cllm serve` says it.
    pub(crate) fn finish_reason(self) -> &'static str {
        if self.is_cut { "length" } else { "stop" }
    }
}

impl Voice<'_> {
    /// Continues `prompt` and hands the text to `out` as it comes, never half a character, nor what may
    /// be the beginning of a text that ends it.
    pub(crate) fn speak(
        &mut self,
        prompt: &str,
        until: Until<'_>,
        config: SamplerConfig,
        out: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Said> {
        let text = self.tokenizer.encode_prompt(prompt.as_bytes());
        let mut text = text.map_err(|e| Error::failure(format!("the prompt: {e}")))?;
        self.forget();
        self.go_on(&mut text, until, config, out)
    }

    /// Forgets what was said.
    pub(crate) fn forget(&mut self) {
        self.generator.reset();
    }

    /// Continues `text`, to which it adds what is spoken but the end: as [`Voice::speak`]. It must begin
    /// with the text of the call before, unless that was forgotten since.
    pub(crate) fn go_on(
        &mut self,
        text: &mut Vec<u32>,
        until: Until<'_>,
        config: SamplerConfig,
        out: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Said> {
        let mut sampler = Sampler::new(config).map_err(sampler_error)?;
        let mut decoder = self.tokenizer.stream_decoder();
        let mut stops = Stops::new(until.stop);
        let (mut spoken, mut is_cut) = (0, true);
        while spoken < until.tokens && !until.request.is_some_and(Stop::requested) {
            let logits = self.generator.logits_after(text).map_err(|e| match e {
                GenerateError::Engine(e) => Error::failure(e.to_string()),
                e => Error::failure(format!("the prompt: {e}")),
            })?;
            let id = sampler.sample(logits, text, self.candidates);
            spoken += 1;
            is_cut = !self.tokenizer.is_end(id);
            if !is_cut {
                break;
            }
            text.push(id);
            if stops.pass(&decoder.push(id), out)? {
                return Ok(Said { tokens: spoken, is_cut: false });
            }
        }
        if stops.pass(&decoder.finish(), out)? {
            return Ok(Said { tokens: spoken, is_cut: false });
        }
        let held = stops.finish();
        if !held.is_empty() {
            out(&held)?;
        }
        Ok(Said { tokens: spoken, is_cut })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_commands() {
        assert_eq!(for_terminal("a\tb\né"), "a\tb\né");
        assert_eq!(
            for_terminal("a\u{1b}[2Jb\r\u{7}\u{9b}"),
            "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}"
        );
    }
}
