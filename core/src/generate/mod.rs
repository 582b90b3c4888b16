//! Running a model token by token, with a cache of keys and values.
//!
//! A [`Generator`] feeds tokens through the model in chunks of up to [`crate::ROW_BLOCK`] and
//! keeps every block's keys and values, so each token is computed once. Those hold their
//! positions, so a context that is full cannot slide: the generator starts again
//! from its newer half ([`Generator::logits_after`]).
//!
//! A chunk is a list of stages (`plan`) of which each is cut into tiles (`feed`). The calling
//! thread computes them one after the other, or shares them with the workers of an
//! [`Engine`] ([`Generator::with_engine`]); the bits are the same.
#![expect(unsafe_code, reason = "reads what the tiles of a chunk have written")]

mod feed;
mod plan;
#[cfg(all(test, not(loom)))]
mod tests;

use crate::engine::{Engine, EngineError, Idle, Queue, Slot, Word};
use crate::line::{LANES, Line, floats_mut};
use crate::params::{BlockParam, Param};
use crate::plan::{PlanError, Pool, check_kernels};
use crate::previous::Previous;
use crate::program::Section;
use crate::shared::Shared;
use cllm_kernels::{Kernels, MatRef};
use core::fmt;
use feed::Feed;
pub use plan::GeneratePlan;

/// The memory that a [`Generator`] works in: lines as the plan says.
#[derive(Debug)]
pub struct GeneratePools<'a> {
    /// The weights: an arena of the config's table. Only read.
    pub parameters: &'a [f32],
    /// [`GeneratePlan::packed_lines`] lines.
    pub packed: &'a mut [Line],
    /// [`GeneratePlan::cache_lines`] lines.
    pub cache: &'a mut [Line],
    /// [`GeneratePlan::activation_lines`] lines.
    pub activations: &'a mut [Line],
}

impl<'a> Engine<'a> {
    /// An engine that shares the work of a [`Generator`] among threads: those that serve it
    /// ([`crate::Worker::run`]), one fewer than the plan's, and the one that asks for logits.
    ///
    /// Of the queue no operations are needed, and [`GeneratePlan::slots`] and
    /// [`GeneratePlan::words`].
    ///
    /// # Errors
    /// A pool of the queue is smaller than planned.
    pub fn for_generation(plan: &GeneratePlan, queue: Queue<'a>) -> Result<Self, PlanError> {
        let (slots, words) = (plan.slots(), plan.words());
        enough(Pool::Slots, slots * size_of::<Slot>(), size_of_val(queue.slots))?;
        enough(Pool::Words, words * size_of::<Word>(), size_of_val(queue.words))?;
        let (stages, words) = (&mut queue.slots[..slots], &mut queue.words[..words]);
        for (id, slot) in stages.iter_mut().enumerate() {
            *slot = Slot::of(plan.stage(id));
        }
        let mut sections = [const { 0..0 }; Section::COUNT];
        sections[Section::Forward as usize] = 0..slots - 1;
        sections[Section::Loss as usize] = slots - 1..slots;
        Ok(Self::over(&[], stages, words, plan.workers(), plan::CUT, sections))
    }
}

/// The sections of a chunk that more of the text follows, and of the last one.
const CHUNK: &[Section] = &[Section::Forward];
const LAST_CHUNK: &[Section] = &[Section::Forward, Section::Loss];

/// # Errors
/// There is too little of a pool.
fn enough(pool: Pool, need: usize, got: usize) -> Result<(), PlanError> {
    if got < need { Err(PlanError::TooSmall { pool, need, got }) } else { Ok(()) }
}

/// Why tokens were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerateError {
    /// There is no text to continue.
    Empty,
    /// A token id is not in the vocabulary.
    UnknownToken {
        /// The id.
        id: u32,
        /// The vocabulary.
        vocab_size: usize,
    },
    /// The work was not done to its end; the context is empty.
    Engine(EngineError),
}

impl fmt::Display for GenerateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => f.write_str("there is no token to continue from"),
            Self::UnknownToken { id, vocab_size } => {
                write!(f, "token id {id} is not below the vocabulary's {vocab_size}")
            }
            Self::Engine(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for GenerateError {}

/// Continues one text.
///
/// ```
/// use cllm_core::generate::{GeneratePlan, GeneratePools, Generator};
/// use cllm_core::sample::{Candidate, Sampler, SamplerConfig};
/// use cllm_core::{Architecture, Kernels, Line, ModelConfig, ParamTable};
///
/// # let config = ModelConfig { vocab_size: 40, block_size: 16, n_layer: 1, n_head: 2, d_model: 16,
/// #     d_ff: 48, bias: false, tied: true, dropout: 0.0, norm_eps: 1e-5, arch: Architecture::LLAMA };
/// // Weights as a checkpoint would have them, in the order of the table.
/// let table = ParamTable::new(&config)?;
/// let mut weights = vec![0.0; table.arena_len()];
/// for (i, weight) in weights.iter_mut().enumerate() {
///     *weight = (i as f32 * 0.7).sin();
/// }
///
/// let kernels = Kernels::detect();
/// let plan = GeneratePlan::new(&config, kernels)?;
/// let pools = GeneratePools {
///     parameters: &weights,
///     packed: &mut vec![Line::ZERO; plan.packed_lines()],
///     cache: &mut vec![Line::ZERO; plan.cache_lines()],
///     activations: &mut vec![Line::ZERO; plan.activation_lines()],
/// };
/// let mut generator = Generator::new(&plan, kernels, pools)?;
///
/// let greedy = SamplerConfig { temperature: 0.0, ..SamplerConfig::default() };
/// let (mut sampler, mut memory) = (Sampler::new(greedy)?, vec![Candidate::EMPTY; 40]);
/// let mut text = vec![3, 1, 4];
/// for _ in 0..8 {
///     // Of a longer text only what is new is computed.
///     let logits = generator.logits_after(&text)?;
///     text.push(sampler.sample(logits, &[], &mut memory));
/// }
///
/// // The same text anew, token by token as before: the same choice.
/// generator.reset();
/// let prompt = generator.logits_after(&text[..3])?;
/// assert_eq!(sampler.sample(prompt, &[], &mut memory), text[3]);
/// assert_eq!(prompt.len(), 40);
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
pub struct Generator<'a> {
    plan: GeneratePlan,
    kernels: &'static Kernels,
    parameters: &'a [f32],
    packed: &'a [f32],
    cache: Shared<'a>,
    activations: Shared<'a>,
    /// Who works besides, and how the calling thread waits for them.
    engine: Option<(&'a Engine<'a>, &'a (dyn Idle + Sync))>,
    /// Where in the caller's text position 0 of the cache is.
    start: usize,
    /// Positions that the cache holds.
    cached: usize,
}

impl fmt::Debug for Generator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Generator({} of {} positions)", self.cached, self.plan.config.block_size)
    }
}

impl<'a> Generator<'a> {
    /// Packs the weights and starts with an empty context.
    ///
    /// # Errors
    /// The plan is for other kernels, or a pool is too small; the cache counts as activations.
    pub fn new(
        plan: &GeneratePlan,
        kernels: &'static Kernels,
        pools: GeneratePools<'a>,
    ) -> Result<Self, PlanError> {
        check_kernels(plan.set, kernels)?;
        let check = |pool, need: usize, got: usize| {
            enough(pool, need * size_of::<f32>(), got * size_of::<f32>())
        };
        check(Pool::Parameters, plan.table.arena_len(), pools.parameters.len())?;
        check(Pool::Packed, plan.packed_len, pools.packed.len() * LANES)?;
        check(Pool::Activations, plan.cache_len, pools.cache.len() * LANES)?;
        check(Pool::Activations, plan.activations_len, pools.activations.len() * LANES)?;
        let packed = floats_mut(pools.packed);
        pack(plan, kernels, pools.parameters, packed);
        fill_angles(plan, pools.activations);
        Ok(Self {
            plan: *plan,
            kernels,
            parameters: pools.parameters,
            packed,
            cache: Shared::new(pools.cache),
            activations: Shared::new(pools.activations),
            engine: None,
            start: 0,
            cached: 0,
        })
    }

    /// Another text by the same model, with an empty context: it reads the packed weights of this one,
    /// and shares its work with the same threads. The two take turns.
    ///
    /// # Errors
    /// A pool is too small, as for [`Generator::new`].
    pub fn beside(
        &self,
        cache: &'a mut [Line],
        activations: &'a mut [Line],
    ) -> Result<Self, PlanError> {
        let check = |need: usize, got: &[Line]| {
            enough(Pool::Activations, need * size_of::<f32>(), size_of_val(got))
        };
        check(self.plan.cache_len, cache)?;
        check(self.plan.activations_len, activations)?;
        fill_angles(&self.plan, activations);
        Ok(Self {
            cache: Shared::new(cache),
            activations: Shared::new(activations),
            start: 0,
            cached: 0,
            ..*self
        })
    }

    /// Shares the work with those who serve `engine`, for which the calling thread waits by
    /// `idle`: it must know how to wake them, so with workers that park hand over an [`Idle`] of
    /// their kind. If there are none, the calling thread does everything.
    ///
    /// # Errors
    /// The engine is for another plan.
    pub fn with_engine(
        self,
        engine: &'a Engine<'a>,
        idle: &'a (dyn Idle + Sync),
    ) -> Result<Self, PlanError> {
        let plan = self.plan;
        let stages = (0..plan.slots()).map(|id| plan.stage(id));
        if !engine.consists_of(plan.workers(), &plan::CUT, stages) {
            return Err(PlanError::WrongEngine);
        }
        Ok(Self { engine: Some((engine, idle)), ..self })
    }

    /// Forgets the text.
    pub fn reset(&mut self) {
        self.start = 0;
        self.cached = 0;
    }

    /// Forgets all of the text but its first `len` tokens: the next one may go on from there in other
    /// words. Bits of logits depend on where chunks begin and end: they are those of a new context if
    /// what is kept was fed in whole chunks of [`crate::ROW_BLOCK`].
    pub fn keep(&mut self, len: usize) {
        match len.checked_sub(self.start) {
            Some(kept) if kept > 0 => self.cached = self.cached.min(kept),
            _ => self.reset(),
        }
    }

    /// The logits of the token that follows `text`.
    ///
    /// `text` is the whole text so far: what earlier calls were given, and more behind
    /// it. Only what is new is computed. When the context is full, it starts
    /// again from the newer half of it.
    ///
    /// # Errors
    /// The text is empty or has an unknown token: the context is as before. A worker panicked,
    /// or the engine is busy: the context is empty.
    ///
    /// # Panics
    /// If a tile does that the calling thread computes.
    pub fn logits_after(&mut self, text: &[u32]) -> Result<&[f32], GenerateError> {
        let c = self.plan.config;
        if text.is_empty() {
            return Err(GenerateError::Empty);
        }
        if let Some(id) = text.iter().find(|id| **id as usize >= c.vocab_size) {
            return Err(GenerateError::UnknownToken { id: *id, vocab_size: c.vocab_size });
        }
        if text.len() <= self.start {
            self.reset();
        }
        if text.len() - self.start > c.block_size {
            self.start = text.len() - c.block_size.div_ceil(2);
            self.cached = 0;
        }
        // The last token of a text that was fed before is fed again at its own place.
        let fresh = (self.start + self.cached).min(text.len() - 1);
        self.cached = fresh - self.start;
        let context = &text[self.start..];
        while self.cached < context.len() {
            let end = context.len().min(self.cached + self.plan.chunk);
            if let Err(error) = self.feed(&context[..end], end == context.len()) {
                self.reset();
                return Err(GenerateError::Engine(error));
            }
        }
        let places = &self.plan.places;
        // SAFETY: all tiles are done, and the next are under way when `self` is borrowed again.
        Ok(unsafe { self.activations.slice(places.logits, c.vocab_size) })
    }

    /// Runs the tokens of a context that are behind the cached ones, a chunk at most; of the last one the logits are
    /// wanted.
    fn feed(&mut self, context: &[u32], is_last: bool) -> Result<(), EngineError> {
        let first = self.cached;
        let tokens = &context[first..];
        let rows = tokens.len();
        let feed = Feed {
            plan: &self.plan,
            kernels: self.kernels,
            parameters: self.parameters,
            packed: self.packed,
            cache: self.cache,
            act: self.activations,
            rows,
            first,
        };
        let vector = |param| {
            let spec = self.plan.table.spec(param);
            spec.map(|spec| &self.parameters[spec.range()])
        };
        let token_table = vector(Param::TokenTable).unwrap_or(&[]);
        let positions = vector(Param::PositionTable);
        // SAFETY: no tile is under way: `self` is borrowed.
        let x = unsafe { feed.stream() };
        self.kernels.embedding(tokens, token_table, positions, 0, rows, first, x);
        if self.plan.config.arch.previous() > 0 {
            let (weights, d) = (vector(Param::Previous).unwrap_or(&[]), self.plan.config.d_model);
            // A context is one sequence.
            let previous =
                Previous { weights, d, tokens: context, period: usize::MAX, starts: None };
            // SAFETY: as above, and the view before is not used any more.
            let mut x = unsafe { feed.stream() };
            for row in 0..rows {
                previous.add(first + row, token_table, x.row_mut(row));
            }
        }
        if let Some(scale) = self.plan.config.arch.scale() {
            // SAFETY: as above, and the views before are not used any more.
            let mut x = unsafe { feed.stream() };
            (0..rows).for_each(|row| self.kernels.scale(x.row_mut(row), scale));
        }
        match self.engine {
            Some((engine, idle)) => {
                let sections = if is_last { LAST_CHUNK } else { CHUNK };
                engine.run_along(&feed, sections, idle)?;
            }
            None => {
                for id in 0..self.plan.slots() - usize::from(!is_last) {
                    for tile in 0..self.plan.tiles(id) {
                        // SAFETY: one tile after the other, stage by stage, on one seat.
                        unsafe { feed.tile(id, tile, 0) }
                    }
                }
            }
        }
        self.cached = first + rows;
        Ok(())
    }
}

/// Writes the angles of all positions, if they are rotary.
fn fill_angles(plan: &GeneratePlan, activations: &mut [Line]) {
    if let (Some(rotary), Some(places)) = (plan.config.arch.rotary(), plan.places.angles) {
        let (head, positions) = (plan.config.head_size(), plan.config.block_size);
        rotary.fill(head, positions, places, floats_mut(activations));
    }
}

/// Packs every matrix of the model.
fn pack(plan: &GeneratePlan, kernels: &Kernels, arena: &[f32], pool: &mut [f32]) {
    let (c, places) = (&plan.config, &plan.packed);
    let mut put = |at: usize, source: MatRef<'_>| {
        let len = kernels.packed_len(source.rows(), source.cols()).unwrap_or(0);
        kernels.pack(source, &mut pool[at..at + len]);
    };
    let matrix = |param| {
        plan.table.spec(param).map(|s| MatRef::new(&arena[s.range()], s.rows, s.cols, s.cols))
    };
    for block in 0..c.n_layer {
        let of_block = |param| matrix(Param::Block(block, param));
        for (param, at) in [
            (BlockParam::Qkv, places.qkv),
            (BlockParam::AttnOut, places.att),
            (BlockParam::MlpOut, places.mlp),
        ] {
            if let Some(source) = of_block(param) {
                put(block * places.stride + at, source);
            }
        }
        // A gate and what it lets through are panels of their own, for columns of both.
        let Some(fc) = of_block(BlockParam::Fc) else { continue };
        put(block * places.stride + places.fc, fc.col_range(0, c.d_ff));
        if c.arch.is_gated() {
            put(block * places.stride + places.up, fc.col_range(c.d_ff, c.d_ff));
        }
    }
    if let Some(head) = matrix(plan.table.head()) {
        put(places.head, head.t());
    }
}
