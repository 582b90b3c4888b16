//! What the machine trains, and what the hosted test trains beside it: a model of bytes on the first day of the
//! world, its losses, a sample of what it says then, and the hash of its weights.

#[path = "common.rs"]
mod common;
#[path = "../../freestanding/src/small.rs"]
mod small;

use cllm_core::generate::{GeneratePlan, GeneratePools, Generator};
use cllm_core::sample::{Candidate, Sampler, SamplerConfig};
use cllm_core::{
    Batch, Engine, Idle, KernelSet, Kernels, Line, Mode, Optimizer, Plan, Run, Sizes, StageView,
    Trainer, floats,
};
use common::{Failure, weights_sha256};
use core::fmt::Write;
use small::{CONFIG, SHAPE};

/// Workers of a step, at most.
pub(crate) const WORKERS: usize = 2;

const SIZES: Sizes = small::sizes(WORKERS);
type Training = cllm_core::Memory<{ SIZES.lines }, { SIZES.ops }, { SIZES.slots }, { SIZES.words }>;

/// Tokens of a step.
const TOKENS: usize = SHAPE.sequences * SHAPE.tokens;
const STEPS: usize = 200;
const TEXT: &[u8] = include_bytes!("text.txt");
/// What the model is to go on from, and bytes of what it then says.
const PROMPT: &[u8] = b"And God ";
const SPOKEN: usize = 64;

/// Lines of keys and values while it speaks, which are the same on any kernels.
const CACHE: usize = GeneratePlan::fixed(&CONFIG, 1, KernelSet::SCALAR).cache_lines();

/// All memory that the training touches, besides stacks.
pub(crate) struct Memory {
    training: Training,
    cache: [Line; CACHE],
}

impl Memory {
    pub(crate) const fn new() -> Self {
        Self { training: Training::new(), cache: [Line::ZERO; CACHE] }
    }
}

/// What came of it.
pub(crate) struct Trained {
    /// SHA-256 of the weights, as the runner's `weights_sha256` has it.
    pub(crate) hash: [u8; 32],
    /// Operations of tiles that all cores did together, as observers of workers count them.
    pub(crate) operations: usize,
}

/// Trains from scratch, and tells the losses and a sample to `tell`.
///
/// `beside` has other workers join the engine that it gets, calls what it gets, closes the engine, and comes
/// back when the workers have left. The calling one waits for them, or works beside them, by `idle`.
///
/// # Errors
/// What went wrong, in the core's words.
pub(crate) fn train(
    kernels: &'static Kernels,
    memory: &mut Memory,
    tell: &mut dyn Write,
    idle: &(dyn Idle + Sync),
    beside: impl for<'e> FnOnce(&'e Engine<'e>, &mut dyn FnMut()),
) -> Result<Trained, Failure> {
    let plan = Plan::new(&CONFIG, SHAPE, WORKERS, Mode::Train, kernels)?;
    let (pools, queue) = memory.training.parts(&plan)?;
    let engine = Engine::new(&plan, queue)?;
    let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 42)?.wait_with(idle);
    trainer.initialise();
    let is_done = |stage: &StageView<'_>| {
        stage.is_in(Run::Gradients { pack: true }) || stage.is_in(Run::Update)
    };
    let operations =
        STEPS * engine.stages().filter(is_done).map(|stage| stage.turns()).sum::<usize>();
    let mut done = Ok(());
    beside(&engine, &mut || done = steps(&mut trainer, tell));
    done?;

    let hash = weights_sha256(plan.table(), trainer.parameters());
    say(&plan, kernels, memory, tell)?;
    Ok(Trained { hash, operations })
}

/// The steps, and a line for some of them.
fn steps(trainer: &mut Trainer<'_>, tell: &mut dyn Write) -> Result<(), Failure> {
    for step in 1..=STEPS {
        let (mut tokens, mut targets) = ([0; TOKENS], [0; TOKENS]);
        for sequence in 0..SHAPE.sequences {
            for t in 0..SHAPE.tokens {
                let at = (step * 389 + sequence * 97 + t) % (TEXT.len() - 1);
                tokens[sequence * SHAPE.tokens + t] = u32::from(TEXT[at]);
                targets[sequence * SHAPE.tokens + t] = u32::from(TEXT[at + 1]);
            }
        }
        let loss = trainer.accumulate(&Batch::new(&tokens, &targets), TOKENS)?;
        trainer.update(&Optimizer::default(), 3e-3)?;
        if step == 1 || step % 40 == 0 {
            writeln!(tell, "step {step:3}  loss {:.4}", loss.mean())?;
        }
    }
    Ok(())
}

/// What the model has learnt to say, in the memory of its training: `trained` knows where the weights are.
fn say(
    trained: &Plan,
    kernels: &'static Kernels,
    memory: &mut Memory,
    tell: &mut dyn Write,
) -> Result<(), Failure> {
    let plan = GeneratePlan::new(&CONFIG, kernels)?;
    let (pools, _) = memory.training.parts(trained)?;
    let pools = GeneratePools {
        parameters: floats(pools.parameters),
        packed: pools.packed,
        cache: &mut memory.cache,
        activations: pools.activations,
    };
    let mut generator = Generator::new(&plan, kernels, pools)?;
    let config = SamplerConfig { temperature: 0.5, seed: 1, ..SamplerConfig::default() };
    let mut sampler = Sampler::new(config).map_err(|_| Failure("no such sampler"))?;
    let mut text = [0; PROMPT.len() + SPOKEN];
    for (to, byte) in text.iter_mut().zip(PROMPT) {
        *to = u32::from(*byte);
    }
    let mut candidates = [Candidate::EMPTY; CONFIG.vocab_size];
    for len in PROMPT.len()..text.len() {
        let logits = generator.logits_after(&text[..len])?;
        text[len] = sampler.sample(logits, &text[..len], &mut candidates);
    }
    write!(tell, "sample    ")?;
    for byte in text {
        let c = char::from(byte as u8);
        write!(tell, "{}", if c.is_ascii_graphic() || c == ' ' { c } else { '.' })?;
    }
    writeln!(tell)?;
    Ok(())
}
