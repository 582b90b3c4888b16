//! Memory of a run: what the machine has, and the pools that a [`Plan`] asks for.
//!
//! Pools are anonymous mappings, not vectors: a vector of 64-byte aligned lines is
//! zeroed by writing to it, which makes every page resident at once. A mapping is zero
//! already and its pages appear when first written, for a plan's pools and packed weights huge ones
//! where the system has them: a first touch then costs a quarter, and one row of weights is read faster
//! (GPT-2 124M, one thread of Zen 4, in turns: 1.02 to 1.06 times as many tokens a second). The cache
//! of generation takes small ones: that of a whole context would be made resident with its first tokens.
#![expect(unsafe_code, reason = "views a mapping as cache lines")]

mod machine;

pub use machine::{MachineMemory, machine, peak_rss_bytes};

use crate::error::{Error, Result};
use cllm_core::{Line, Mode, Op, Plan, Pool, Pools, Queue, Slot};
use core::sync::atomic::AtomicU64;
use memmap2::MmapMut;

/// Zeroed cache lines in a mapping of their own.
#[derive(Debug)]
pub(crate) struct Lines {
    map: Option<MmapMut>,
    len: usize,
}

impl Lines {
    fn allocate(plan: &Plan, pool: Pool) -> Result<Self> {
        let lines = Self::zeroed_in_huge_pages(plan.lines(pool));
        lines.map_err(|cause| refused(pool, plan.bytes(pool), &cause))
    }

    /// So many, in huge pages where the system has them.
    pub(crate) fn zeroed_in_huge_pages(len: usize) -> std::io::Result<Self> {
        let lines = Self::zeroed(len)?;
        #[cfg(target_os = "linux")]
        if let Some(map) = &lines.map {
            // Advice only: without huge pages everything works as before.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(lines)
    }

    /// So many.
    pub(crate) fn zeroed(len: usize) -> std::io::Result<Self> {
        if len == 0 {
            return Ok(Self { map: None, len });
        }
        let map = MmapMut::map_anon(len.saturating_mul(size_of::<Line>()))?;
        Ok(Self { map: Some(map), len })
    }

    /// All of them, for reading.
    pub(crate) fn view(&self) -> &[Line] {
        let Some(map) = &self.map else { return &[] };
        let start = map.as_ptr().cast::<Line>();
        // SAFETY: as in `get`, but that the borrow is shared.
        unsafe { core::slice::from_raw_parts(start, self.len) }
    }

    /// All of them.
    pub(crate) fn get(&mut self) -> &mut [Line] {
        let Some(map) = &mut self.map else { return &mut [] };
        let start = map.as_mut_ptr().cast::<Line>();
        // SAFETY: a mapping starts on a page, so it is aligned; it holds at least `len`
        // lines (see `zeroed`), all bytes of which are initialised, and any bits are
        // floats. The borrow of `self` makes it exclusive.
        unsafe { core::slice::from_raw_parts_mut(start, self.len) }
    }
}

/// All pools of one plan but the batch, whose ids the caller fills.
///
/// ```
/// # use cllm_core::*;
/// # let config = ModelConfig { vocab_size: 257, block_size: 8, n_layer: 1, n_head: 2,
/// #     d_model: 16, d_ff: 64, bias: true, tied: true, dropout: 0.0, norm_eps: 1e-5,
/// #     arch: Architecture::GPT2 };
/// # let batch = BatchShape { sequences: 2, tokens: 8 };
/// let kernels = Kernels::detect();
/// let plan = Plan::new(&config, batch, 1, Mode::Train, kernels)?;
/// let mut memory = cllm::memory::PoolMemory::allocate(&plan)?;
/// let (pools, queue) = memory.parts();
/// let engine = Engine::new(&plan, queue)?;
/// let trainer = Trainer::new(&plan, kernels, pools, &engine, 1337)?;
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PoolMemory {
    parameters: Lines,
    gradients: Lines,
    moments: Lines,
    packed: Lines,
    activations: Lines,
    scratch: Lines,
    ops: Vec<Op>,
    slots: Vec<Slot>,
    words: Vec<AtomicU64>,
}

impl PoolMemory {
    /// Allocates exactly what `plan` says, after [`check_available`].
    ///
    /// # Errors
    /// The machine has not that much, or the system refuses it.
    pub fn allocate(plan: &Plan) -> Result<Self> {
        check_available(plan, Batches::ONE, 0)?;
        Ok(Self {
            parameters: Lines::allocate(plan, Pool::Parameters)?,
            gradients: Lines::allocate(plan, Pool::Gradients)?,
            moments: Lines::allocate(plan, Pool::Moments)?,
            packed: Lines::allocate(plan, Pool::Packed)?,
            activations: Lines::allocate(plan, Pool::Activations)?,
            scratch: Lines::allocate(plan, Pool::Scratch)?,
            ops: items(plan, Pool::Operations, plan.ops(), || Op::EMPTY)?,
            slots: items(plan, Pool::Slots, plan.slots(), Slot::new)?,
            words: items(plan, Pool::Words, plan.words(), || AtomicU64::new(0))?,
        })
    }

    /// The pools, for a trainer or an evaluator, and the queue, for its engine.
    pub fn parts(&mut self) -> (Pools<'_>, Queue<'_>) {
        let queue = Queue { ops: &mut self.ops, slots: &mut self.slots, words: &mut self.words };
        let pools = Pools {
            parameters: self.parameters.get(),
            gradients: self.gradients.get(),
            moments: self.moments.get(),
            packed: self.packed.get(),
            activations: self.activations.get(),
            scratch: self.scratch.get(),
        };
        (pools, queue)
    }
}

/// `count` items of one of the engine's pools.
fn items<T>(plan: &Plan, pool: Pool, count: usize, item: impl FnMut() -> T) -> Result<Vec<T>> {
    let mut items = Vec::new();
    items.try_reserve_exact(count).map_err(|cause| refused(pool, plan.bytes(pool), &cause))?;
    items.resize_with(count, item);
    Ok(items)
}

/// The batches that a run holds at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// How many.
    pub count: usize,
    /// Each tells where the document of a token starts, beside the tokens and the targets.
    pub with_starts: bool,
}

impl Batches {
    /// One, of a text in which there are no documents.
    pub const ONE: Self = Self { count: 1, with_starts: false };
}

/// Bytes of a pool for a run that holds `batches` at a time.
#[must_use]
pub fn pool_bytes(plan: &Plan, pool: Pool, batches: Batches) -> usize {
    let bytes = plan.bytes(pool);
    if pool != Pool::Batch {
        return bytes;
    }
    let starts = if batches.with_starts { plan.tokens() * size_of::<u32>() } else { 0 };
    (bytes + starts).saturating_mul(batches.count)
}

/// Bytes of all pools for a run that holds `batches` at a time.
#[must_use]
pub fn total_bytes(plan: &Plan, batches: Batches) -> usize {
    Pool::ALL.iter().fold(0, |sum, pool| sum.saturating_add(pool_bytes(plan, *pool, batches)))
}

/// Refuses a plan that needs more memory than the machine has to give, with the numbers, when
/// `batches` are held at a time, and `more` bytes beside it.
///
/// # Errors
/// The plan needs more than [`MachineMemory::available`]. Where the system cannot be
/// asked, nothing is refused.
pub fn check_available(plan: &Plan, batches: Batches, more: usize) -> Result<()> {
    // Models of few layers have nothing to win.
    let may_recompute = plan.mode() == Mode::Train && plan.config().n_layer > 2;
    let remedy = if may_recompute { ", or --recompute" } else { "" };
    let need = total_bytes(plan, batches).saturating_add(more) as u64;
    check_against("training needs", need, remedy, machine().as_ref())
}

/// Refuses to hold two plans at a time for which the machine has not the memory.
///
/// # Errors
/// As [`check_available`].
pub fn check_two(first: &Plan, second: &Plan) -> Result<()> {
    let of = |plan| total_bytes(plan, Batches::ONE);
    let need = of(first).saturating_add(of(second)) as u64;
    check_against("two runs in turns need", need, "", machine().as_ref())
}

fn check_against(
    who: &str,
    need: u64,
    remedy: &str,
    machine: Option<&MachineMemory>,
) -> Result<()> {
    match machine {
        Some(machine) if need > machine.available => Err(Error::failure(format!(
            "{who} {} of memory but this machine has {} available of {}: use a smaller \
             --batch-size, --block-size or model{} (`cllm plan` shows what takes the memory)",
            human_bytes(need),
            human_bytes(machine.available),
            human_bytes(machine.total),
            remedy,
        ))),
        _ => Ok(()),
    }
}

fn refused(pool: Pool, bytes: usize, cause: &dyn core::fmt::Display) -> Error {
    Error::failure(format!(
        "cannot allocate {} for the {} pool: {cause}: use a smaller --batch-size or model",
        human_bytes(bytes as u64),
        pool.name()
    ))
}

/// Bytes for people: `3.2 GiB`, at most four digits.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use cllm_core::{
        Architecture, Batch, BatchShape, Engine, Kernels, ModelConfig, Optimizer, Trainer,
    };

    fn plan(n_layer: usize) -> Plan {
        let config = ModelConfig {
            vocab_size: 257,
            block_size: 16,
            n_layer,
            n_head: 2,
            d_model: 32,
            d_ff: 128,
            bias: true,
            tied: true,
            dropout: 0.0,
            norm_eps: 1e-5,
            arch: Architecture::GPT2,
        };
        let batch = BatchShape { sequences: 2, tokens: 16 };
        Plan::new(&config, batch, 1, Mode::Train, Kernels::detect()).unwrap()
    }

    #[test]
    fn pools_have_the_planned_sizes_and_are_zero() {
        let plan = plan(2);
        let mut memory = PoolMemory::allocate(&plan).unwrap();
        let (pools, queue) = memory.parts();
        for (pool, lines) in [
            (Pool::Parameters, &pools.parameters),
            (Pool::Gradients, &pools.gradients),
            (Pool::Moments, &pools.moments),
            (Pool::Packed, &pools.packed),
            (Pool::Activations, &pools.activations),
            (Pool::Scratch, &pools.scratch),
        ] {
            assert_eq!(size_of_val(&lines[..]), plan.bytes(pool), "{}", pool.name());
            assert!(lines.iter().all(|line| *line == Line::ZERO), "{}", pool.name());
        }
        assert_eq!(size_of_val(&queue.ops[..]), plan.bytes(Pool::Operations));
        assert_eq!(size_of_val(&queue.slots[..]), plan.bytes(Pool::Slots));
        assert_eq!(size_of_val(&queue.words[..]), plan.bytes(Pool::Words));
    }

    #[test]
    fn a_trainer_learns_in_them() {
        let plan = plan(1);
        let mut memory = PoolMemory::allocate(&plan).unwrap();
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&plan, queue).unwrap();
        let mut trainer = Trainer::new(&plan, Kernels::detect(), pools, &engine, 7).unwrap();
        trainer.initialise();
        let tokens: Vec<u32> = (0..32).collect();
        let targets: Vec<u32> = (1..33).collect();
        let batch = Batch::new(&tokens, &targets);
        let first = trainer.evaluate(&batch).unwrap().mean();
        for _ in 0..10 {
            trainer.accumulate(&batch, 32).unwrap();
            trainer.update(&Optimizer::default(), 1e-2).unwrap();
        }
        let last = trainer.evaluate(&batch).unwrap().mean();
        assert!(last < first - 1.0, "{first} -> {last}");
    }

    #[test]
    fn more_than_the_machine_has_is_refused_with_the_numbers() {
        let plan = plan(1);
        let need = total_bytes(&plan, Batches::ONE) as u64;
        assert_eq!(need, plan.total_bytes().unwrap() as u64);
        let nine = Batches { count: 9, with_starts: false };
        let batch = plan.bytes(Pool::Batch) as u64;
        assert_eq!(total_bytes(&plan, nine) as u64, need + 8 * batch);
        let more = Batches { with_starts: true, ..nine };
        assert_eq!(total_bytes(&plan, more) as u64, need + 8 * batch + 9 * batch / 2);
        let enough = MachineMemory { total: 1 << 40, available: need };
        assert_eq!(check_against("training needs", need, "", Some(&enough)), Ok(()));
        let short = MachineMemory { total: 8 << 30, available: need - 1 };
        let error =
            check_against("training needs", need, ", or --recompute", Some(&short)).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        assert!(text.contains(&human_bytes(need)) && text.contains("8.0 GiB"), "{text}");
        assert!(text.contains("model, or --recompute ("), "{text}");
        assert_eq!(check_against("training needs", need, "", None), Ok(()));
    }

    #[test]
    fn bytes_are_short_to_read() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (3_435_973_837, "3.2 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
