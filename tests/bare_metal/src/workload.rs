//! What the machine trains, and what the hosted test trains beside it: a model of bytes on the first day of the
//! world, its losses, a sample of what it says then, and the hash of its weights.

use cllm_core::generate::{GeneratePlan, GeneratePools, Generator};
use cllm_core::sample::{Candidate, Sampler, SamplerConfig};
use cllm_core::{
    Architecture, Batch, BatchShape, Engine, Idle, Kernels, Line, Mode, ModelConfig, Op, Optimizer,
    Plan, Pools, Queue, Run, Slot, StageView, Trainer, floats,
};
use core::fmt::Write;
use core::sync::atomic::AtomicU64;
use sha2::{Digest as _, Sha256};

/// A model of bytes.
pub(crate) const CONFIG: ModelConfig = ModelConfig {
    vocab_size: 256,
    block_size: 32,
    n_layer: 2,
    n_head: 2,
    d_model: 32,
    d_ff: 128,
    bias: true,
    tied: true,
    dropout: 0.0,
    norm_eps: 1e-5,
    arch: Architecture::GPT2,
};
const SHAPE: BatchShape = BatchShape { sequences: 4, tokens: 32 };
/// Tokens of a step.
const TOKENS: usize = SHAPE.sequences * SHAPE.tokens;
const STEPS: usize = 200;
const TEXT: &[u8] = include_bytes!("text.txt");
/// Cores that work on a step.
pub(crate) const WORKERS: usize = 2;
/// What the model is to go on from, and bytes of what it then says.
const PROMPT: &[u8] = b"And God ";
const SPOKEN: usize = 64;

/// Lines of each pool: at least what the plan asks for on any instruction set.
const PARAMETERS: usize = 2304;
const PACKED: usize = 6144;
const ACTIVATIONS: usize = 24576;
const SCRATCH: usize = 16384;
const CACHE: usize = 512;
const OPS: usize = 192;
const SLOTS: usize = 64;
const WORDS: usize = 128;

/// All memory that the training touches, besides stacks.
pub(crate) struct Memory {
    parameters: [Line; PARAMETERS],
    gradients: [Line; PARAMETERS],
    moments: [Line; 2 * PARAMETERS],
    packed: [Line; PACKED],
    activations: [Line; ACTIVATIONS],
    scratch: [Line; SCRATCH],
    cache: [Line; CACHE],
    ops: [Op; OPS],
    slots: [Slot; SLOTS],
    words: [AtomicU64; WORDS],
}

impl Memory {
    pub(crate) const fn new() -> Self {
        Self {
            parameters: [Line::ZERO; PARAMETERS],
            gradients: [Line::ZERO; PARAMETERS],
            moments: [Line::ZERO; 2 * PARAMETERS],
            packed: [Line::ZERO; PACKED],
            activations: [Line::ZERO; ACTIVATIONS],
            scratch: [Line::ZERO; SCRATCH],
            cache: [Line::ZERO; CACHE],
            ops: [Op::EMPTY; OPS],
            slots: [const { Slot::new() }; SLOTS],
            words: [const { AtomicU64::new(0) }; WORDS],
        }
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
/// back when the workers have left. The calling one waits for them by `idle`.
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
    let pools = Pools {
        parameters: &mut memory.parameters,
        gradients: &mut memory.gradients,
        moments: &mut memory.moments,
        packed: &mut memory.packed,
        activations: &mut memory.activations,
        scratch: &mut memory.scratch,
    };
    let queue = Queue { ops: &mut memory.ops, slots: &mut memory.slots, words: &mut memory.words };
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

    let mut hash = Sha256::new();
    for spec in plan.table().iter() {
        for value in &trainer.parameters()[spec.range()] {
            hash.update(value.to_le_bytes());
        }
    }
    let hash = hash.finalize().into();
    say(kernels, memory, tell)?;
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
        trainer.update(&Optimizer::default(), 2e-3)?;
        if step == 1 || step % 40 == 0 {
            writeln!(tell, "step {step:3}  loss {:.4}", loss.mean())?;
        }
    }
    Ok(())
}

/// What the model has learnt to say.
fn say(
    kernels: &'static Kernels,
    memory: &mut Memory,
    tell: &mut dyn Write,
) -> Result<(), Failure> {
    let plan = GeneratePlan::new(&CONFIG, kernels)?;
    let pools = GeneratePools {
        parameters: floats(&memory.parameters),
        packed: &mut memory.packed,
        cache: &mut memory.cache,
        activations: &mut memory.activations,
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

/// Why there is no hash.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) &'static str);

macro_rules! failures {
    ($($error:ty: $words:literal,)*) => {
        $(impl From<$error> for Failure {
            fn from(_: $error) -> Self {
                Self($words)
            }
        })*
    };
}

failures! {
    cllm_core::PlanError: "the memory is not that of the plan",
    cllm_core::StepError: "a step failed",
    cllm_core::generate::GenerateError: "the sample failed",
    core::fmt::Error: "nobody listens",
}
