//! One text that is being generated, a turn at a time.
//!
//! A turn feeds a chunk of the prompt or draws one token. Chunks are cut where those of the text alone
//! would be, since logits depend on that in their last bits: what others ask meanwhile, and what is
//! known already of a prompt, changes nothing.

use std::collections::HashMap;
use std::sync::Arc;

use cllm_core::ROW_BLOCK;
use cllm_core::generate::Generator;
use cllm_core::sample::{Candidate, Sampler};

use super::events::{Event, Finish, Scored};
use super::problem::Problem;
use super::queue::Ask;
use super::texts::Texts;
use crate::error::Result;
use crate::stops::Stops;
use crate::streams::filled;
use crate::tokenizer::StreamDecoder;

/// Memory of a turn: one for each id of the vocabulary.
#[derive(Debug)]
pub(super) struct Scratch {
    candidates: Vec<Candidate>,
    logits: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(vocab_size: usize) -> Result<Self> {
        let candidates = filled(vocab_size, || Candidate::EMPTY)?;
        Ok(Self { candidates, logits: filled(vocab_size, || 0.0)? })
    }
}

/// A text.
#[derive(Debug)]
pub(super) struct Sequence<'t> {
    ask: Arc<Ask>,
    texts: &'t Texts,
    choice: usize,
    text: Vec<u32>,
    /// Tokens of the prompt, and how many of them the model has seen; at first `cached`.
    prompt: usize,
    fed: usize,
    cached: usize,
    most: usize,
    spoken: usize,
    sampler: Sampler,
    decoder: StreamDecoder<'t>,
    stops: Stops,
    /// How often tokens were drawn, if that matters.
    drawn: HashMap<u32, u32>,
    /// What is to be handed out: text that is certain, and tokens that it may not be of yet.
    ready: String,
    scored: Vec<Scored>,
    /// Characters of the reply that the tokens so far stand for.
    decoded: usize,
    /// Those that are certain.
    shown: usize,
}

/// Whether a text wants more turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    More,
    Last,
}

impl<'t> Sequence<'t> {
    /// Text number `choice` of `ask`.
    ///
    /// # Errors
    /// The sampler's settings are out of range.
    pub(super) fn new(
        ask: Arc<Ask>,
        choice: usize,
        texts: &'t Texts,
    ) -> core::result::Result<Self, Problem> {
        let at = choice / ask.n;
        let mut config = ask.sampler;
        config.seed = config.seed.wrapping_add((choice % ask.n) as u64);
        let text = ask.prompts[at].clone();
        let decoder = texts.tokenizer.stream_decoder();
        Ok(Self {
            texts,
            choice,
            prompt: text.len(),
            text,
            fed: 0,
            cached: 0,
            most: ask.most[at],
            spoken: 0,
            sampler: Sampler::new(config).map_err(|e| Problem::bad(e.to_string()))?,
            decoder,
            stops: Stops::new(&ask.stop),
            drawn: HashMap::new(),
            ready: String::new(),
            scored: Vec::new(),
            decoded: 0,
            shown: 0,
            ask,
        })
    }

    /// Tokens at the beginning of the text that need not be fed if `seen` were, in whole chunks.
    pub(super) fn known(&self, seen: &[u32]) -> usize {
        if self.scores_the_prompt() {
            return 0;
        }
        // The last token is fed in any case, for its logits.
        let most = (self.prompt - 1).min(seen.len());
        let same = seen[..most].iter().zip(&self.text).take_while(|(a, b)| a == b).count();
        same / ROW_BLOCK * ROW_BLOCK
    }

    /// Begins behind `known` tokens of the prompt.
    pub(super) fn begin(&mut self, known: usize) {
        (self.fed, self.cached) = (known, known);
        if let Some(echo) = self.ask.echo.as_ref().filter(|_| !self.scores_the_prompt()) {
            let text = echo[self.choice / self.ask.n].clone();
            (self.decoded, self.shown) = (text.chars().count(), text.chars().count());
            self.send(text, Vec::new());
        }
    }

    /// Whether how likely the prompt's own tokens are is to be told: they are then fed one by one.
    fn scores_the_prompt(&self) -> bool {
        self.ask.echo.is_some() && self.ask.logprobs.is_some()
    }

    /// Feeds more of the prompt, or draws a token. `seen` becomes the tokens that were fed in whole
    /// chunks.
    pub(super) fn turn(
        &mut self,
        generator: &mut Generator<'_>,
        seen: &mut Vec<u32>,
        scratch: &mut Scratch,
    ) -> Turn {
        if self.ask.out.is_closed() {
            return Turn::Last;
        }
        if self.most == 0 && !self.scores_the_prompt() {
            return self.end(Finish::Length);
        }
        let scores = self.scores_the_prompt();
        let end = match (self.fed < self.prompt, scores) {
            (true, true) => self.fed + 1,
            (true, false) => ((self.fed / ROW_BLOCK + 1) * ROW_BLOCK).min(self.prompt),
            (false, _) => self.text.len(),
        };
        let logits = match generator.logits_after(&self.text[..end]) {
            Ok(logits) => logits,
            Err(error) => {
                seen.clear();
                return self.fail(Problem::internal(error.to_string()));
            }
        };
        if self.fed < self.prompt {
            if scores {
                self.score_given(logits, end);
            } else if end % ROW_BLOCK == 0 {
                seen.truncate(self.fed);
                seen.extend_from_slice(&self.text[self.fed..end]);
            }
            self.fed = end;
            if end < self.prompt {
                return Turn::More;
            }
            if scores && let Some(echo) = &self.ask.echo {
                let text = echo[self.choice / self.ask.n].clone();
                self.decoder = self.texts.tokenizer.stream_decoder();
                self.decoded = text.chars().count();
                self.shown = self.decoded;
                let scored = core::mem::take(&mut self.scored);
                self.send(text, scored);
            }
            if self.most == 0 {
                return self.end(Finish::Length);
            }
        }
        let id = self.draw(logits, scratch);
        self.say(id, logits)
    }

    /// Draws a token.
    fn draw(&mut self, logits: &[f32], scratch: &mut Scratch) -> u32 {
        let Scratch { candidates, logits: changed } = scratch;
        let bias = &self.ask.bias;
        let mut chosen = logits;
        if bias.frequency != 0.0 || bias.presence != 0.0 || !bias.tokens.is_empty() {
            changed.copy_from_slice(logits);
            for (id, times) in &self.drawn {
                changed[*id as usize] -= bias.frequency * *times as f32 + bias.presence;
            }
            for (id, add) in &bias.tokens {
                if let Some(logit) = changed.get_mut(*id as usize) {
                    *logit += add;
                }
            }
            chosen = changed;
        }
        let repeated = self.ask.sampler.repetition_penalty != 1.0;
        let recent = if repeated { &self.text[..] } else { &[] };
        let id = self.sampler.sample(chosen, recent, candidates);
        *self.drawn.entry(id).or_default() += 1;
        id
    }

    /// Adds a token that was drawn from `logits`.
    fn say(&mut self, id: u32, logits: &[f32]) -> Turn {
        self.spoken += 1;
        if self.texts.tokenizer.is_end(id) {
            return self.end(Finish::Stop);
        }
        if let Some(likeliest) = self.ask.logprobs {
            let scored = self.score(id, logits, likeliest, self.decoded);
            self.scored.push(scored);
        }
        self.text.push(id);
        let piece = self.decoder.push(id);
        if self.show(&piece) {
            return self.end_now(Finish::Stop);
        }
        if self.spoken == self.most { self.end(Finish::Length) } else { Turn::More }
    }

    /// Hands out what is certain of the text with `piece`; whether a stop string ends it.
    fn show(&mut self, piece: &str) -> bool {
        self.decoded += piece.chars().count();
        let (text, stopped) = self.stops.push(piece);
        self.certain(&text);
        if !stopped && !self.ask.out.is_behind() {
            self.hand_out();
        }
        stopped
    }

    /// Adds text that is certain.
    fn certain(&mut self, text: &str) {
        self.shown += text.chars().count();
        self.ready.push_str(text);
    }

    /// Hands out what is certain, with the tokens that it is of.
    fn hand_out(&mut self) {
        if self.ready.is_empty() {
            return;
        }
        let out = self.scored.iter().take_while(|scored| scored.offset < self.shown).count();
        let scored = self.scored.drain(..out).collect();
        let text = core::mem::take(&mut self.ready);
        self.send(text, scored);
    }

    /// Ends with all that was held back.
    fn end(&mut self, reason: Finish) -> Turn {
        let new = self.texts.tokenizer.stream_decoder();
        let rest = core::mem::replace(&mut self.decoder, new).finish();
        if self.show(&rest) {
            return self.end_now(Finish::Stop);
        }
        let held = self.stops.finish();
        self.certain(&held);
        self.hand_out();
        if !self.scored.is_empty() {
            let scored = core::mem::take(&mut self.scored);
            self.send(String::new(), scored);
        }
        self.end_now(reason)
    }

    /// Ends with what is certain.
    fn end_now(&mut self, reason: Finish) -> Turn {
        self.hand_out();
        let Self { choice, spoken: tokens, cached, .. } = *self;
        self.ask.out.send(Event::End { choice, reason, tokens, cached });
        Turn::Last
    }

    fn fail(&self, problem: Problem) -> Turn {
        self.ask.out.send(Event::Failed(problem));
        Turn::Last
    }

    fn send(&self, text: String, scored: Vec<Scored>) {
        self.ask.out.send(Event::Piece { choice: self.choice, text, scored });
    }

    /// How likely the token of the prompt behind its first `end` was, and the first of all.
    fn score_given(&mut self, logits: &[f32], end: usize) {
        let Some(likeliest) = self.ask.logprobs else { return };
        if end == 1 {
            let token = self.texts.spell(self.text[0]);
            self.scored.push(Scored { token, logprob: None, top: Vec::new(), offset: 0 });
            self.decoded += self.decoder.push(self.text[0]).chars().count();
        }
        if end < self.prompt {
            let scored = self.score(self.text[end], logits, likeliest, self.decoded);
            self.scored.push(scored);
            self.decoded += self.decoder.push(self.text[end]).chars().count();
        }
    }

    /// How likely `id` is by `logits`, and which ones are likeliest.
    fn score(&self, id: u32, logits: &[f32], likeliest: usize, offset: usize) -> Scored {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|x| f64::from(x - most).exp()).sum();
        let all = f64::from(most) + sum.ln();
        // What JSON has no number for is as unlikely as OpenAI's least.
        let logprob = |id: u32| {
            let x = (f64::from(logits[id as usize]) - all) as f32;
            if x.is_finite() { x } else { -9999.0 }
        };
        let mut top: Vec<u32> = Vec::with_capacity(likeliest + 1);
        for id in (0..logits.len() as u32).filter(|_| likeliest > 0) {
            let better = |other: &u32| logits[id as usize] > logits[*other as usize];
            if let Some(at) = top.iter().position(better) {
                top.insert(at, id);
                top.truncate(likeliest);
            } else if top.len() < likeliest {
                top.push(id);
            }
        }
        let top = top.into_iter().map(|id| (self.texts.spell(id), logprob(id))).collect();
        Scored { token: self.texts.spell(id), logprob: Some(logprob(id)), top, offset }
    }
}
