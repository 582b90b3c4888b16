//! Memory for generation: the packed weights once, and for each text that is being continued a cache
//! and activations of its own.
//!
//! Texts take turns: the threads compute one token of one of them at a time.

use core::sync::atomic::AtomicU64;

use cllm_core::generate::{GeneratePlan, GeneratePools, Generator};
use cllm_core::{Engine, Kernels, ModelConfig, Queue, Slot};

use crate::error::{Error, Result};
use crate::memory::Lines;
use crate::model;
use crate::pool::idle::Parking;
use crate::pool::{self, Crew, cpus};

/// What several texts of one model need besides its weights.
#[derive(Debug)]
pub(crate) struct Streams {
    plan: GeneratePlan,
    kernels: &'static Kernels,
    packed: Lines,
    texts: Vec<Text>,
    slots: Vec<Slot>,
    words: Vec<AtomicU64>,
}

/// What a text has for itself. Pages that it does not come to use take no memory.
#[derive(Debug)]
struct Text {
    cache: Lines,
    activations: Lines,
}

impl Streams {
    /// Allocates for `texts` texts, at least one, computed by `workers` threads.
    ///
    /// # Errors
    /// The config makes no plan; the system has not that much memory.
    pub(crate) fn new(
        config: &ModelConfig,
        workers: usize,
        texts: usize,
        kernels: &'static Kernels,
    ) -> Result<Self> {
        let plan =
            GeneratePlan::with_workers(config, workers, kernels).map_err(model::plan_error)?;
        let lines = |len| Lines::zeroed(len).map_err(|e| refused(&e));
        let text = || {
            let (cache, activations) =
                (lines(plan.cache_lines())?, lines(plan.activation_lines())?);
            Ok(Text { cache, activations })
        };
        // A thread alone needs no engine.
        let (slots, words) = if workers > 1 { (plan.slots(), plan.words()) } else { (0, 0) };
        Ok(Self {
            plan,
            kernels,
            packed: Lines::zeroed_in_huge_pages(plan.packed_lines()).map_err(|e| refused(&e))?,
            texts: (0..texts.max(1)).map(|_| text()).collect::<Result<_>>()?,
            slots: filled(slots, Slot::new)?,
            words: filled(words, || AtomicU64::new(0))?,
        })
    }

    /// Packs the weights of `parameters` and calls `body` with a generator for each text, beside the
    /// threads that compute for them.
    ///
    /// # Errors
    /// Those of `body`; a thread cannot be started.
    pub(crate) fn with_generators<R>(
        &mut self,
        parameters: &[f32],
        body: impl FnOnce(Vec<Generator<'_>>) -> Result<R>,
    ) -> Result<R> {
        let Self { plan, kernels, packed, texts, slots, words } = self;
        let (kernels, packed) = (*kernels, packed.get());
        let mut texts =
            texts.iter_mut().map(|Text { cache, activations }| (cache.get(), activations.get()));
        let (cache, activations) = texts.next().unwrap_or_default();
        let pools = GeneratePools { parameters, packed, cache, activations };
        let first = Generator::new(plan, kernels, pools).map_err(model::plan_error)?;
        if plan.workers() == 1 {
            return body(all(first, texts)?);
        }
        let queue = Queue { ops: &mut [], slots, words };
        let engine = Engine::for_generation(plan, queue).map_err(model::plan_error)?;
        let idle = Parking::worker(plan.workers(), cpus::available());
        let first = first.with_engine(&engine, &idle).map_err(model::plan_error)?;
        let generators = all(first, texts)?;
        let crew = Crew::new(plan.workers() - 1, false).beside_the_caller();
        pool::with_workers(&engine, &crew, || body(generators))
    }
}

/// The generators of all texts.
fn all<'a>(
    first: Generator<'a>,
    others: impl Iterator<Item = (&'a mut [cllm_core::Line], &'a mut [cllm_core::Line])>,
) -> Result<Vec<Generator<'a>>> {
    let others: Vec<_> = others
        .map(|(cache, activations)| first.beside(cache, activations))
        .collect::<core::result::Result<_, _>>()
        .map_err(model::plan_error)?;
    Ok(core::iter::once(first).chain(others).collect())
}

/// The system has not that much memory.
fn refused(cause: &dyn core::fmt::Display) -> Error {
    Error::failure(format!("not enough memory to generate text: {cause}"))
}

/// `len` items, or an error where `vec!` would end the program.
pub(crate) fn filled<T>(len: usize, item: impl FnMut() -> T) -> Result<Vec<T>> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(len).map_err(|e| refused(&e))?;
    memory.resize_with(len, item);
    Ok(memory)
}
