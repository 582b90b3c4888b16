//! Why there is no plan.

use super::{BlockingError, Pool};
use crate::adapter::AdapterError;
use crate::built::LeftOut;
use crate::config::ConfigError;
use crate::message::Argument::{Number, Word};
use crate::message::Message;
use cllm_kernels::KernelSet;
use core::fmt;

/// Why there is no plan, or why memory does not fit one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PlanError {
    /// The model's config is wrong.
    Config(ConfigError),
    /// A batch needs at least one sequence of one token.
    EmptyBatch,
    /// Sequences are longer than the position table.
    TooLong {
        /// Tokens asked for.
        tokens: usize,
        /// The model's `block_size`.
        block_size: usize,
    },
    /// At least one worker is needed.
    NoWorker,
    /// Blocks of a size that the core cannot take.
    Blocking(BlockingError),
    /// What is asked for is not built into this program.
    LeftOut(LeftOut),
    /// Adapters that the model cannot have.
    Adapters(AdapterError),
    /// There are no kernels of this name on this target.
    NoKernels(KernelSet),
    /// The plan was made for other kernels, whose packed weights differ.
    WrongKernels {
        /// The plan's.
        plan: KernelSet,
        /// That of the kernels handed over.
        kernels: KernelSet,
    },
    /// A stage of the step has more tiles than a word of this machine ([`Word`](crate::Word)) can number: a smaller
    /// batch or model has fewer, and so have larger blocks and fewer workers.
    TooManyTiles {
        /// Tiles of the largest stage, or `u32::MAX` for any more.
        tiles: usize,
        /// Most that are possible here.
        most: usize,
    },
    /// Panels that are only read are for a plan that keeps them ([`Packing::Kept`](super::Packing::Kept)).
    NothingKept,
    /// Training needs a plan for [`Mode::Train`](super::Mode::Train) or [`Mode::Recompute`](super::Mode::Recompute).
    WrongMode,
    /// The engine was made for a plan with other stages.
    WrongEngine,
    /// A pool handed over is smaller than planned. Sizes in bytes.
    TooSmall {
        /// Which one.
        pool: Pool,
        /// Bytes planned.
        need: usize,
        /// Bytes given.
        got: usize,
    },
}

impl From<ConfigError> for PlanError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl PlanError {
    /// Stops the compilation of a `const` with the message, or the program: for plans with more to say about
    /// them than [`Plan::fixed`](super::Plan::fixed) takes.
    ///
    /// ```
    /// use cllm_core::*;
    ///
    /// # const CONFIG: ModelConfig = ModelConfig { vocab_size: 32, block_size: 8, n_layer: 1, n_head: 2,
    /// #     d_model: 16, d_ff: 64, bias: true, tied: true, dropout: 0.0, norm_eps: 1e-5,
    /// #     arch: Architecture::GPT2 };
    /// const SITES: AdapterSites = AdapterSites::of(&[AdapterSite::Qkv]);
    /// const ADAPTERS: Adapters = Adapters { rank: 2, scale: 1.0, sites: SITES };
    /// const SHAPE: BatchShape = BatchShape { sequences: 1, tokens: 8 };
    /// const TILING: Tiling = Tiling { packing: Some(Packing::Kept), ..Tiling::DEFAULT };
    /// const PLAN: Plan = match Plan::of_set(
    ///     &CONFIG, Some(&ADAPTERS), SHAPE, 1, &TILING, Mode::Train, KernelSet::SCALAR,
    /// ) {
    ///     Ok(plan) => plan,
    ///     Err(error) => error.stop(),
    /// };
    /// static GRADIENTS: [Line; PLAN.lines(Pool::Gradients)] = [Line::ZERO; _];
    /// assert!(GRADIENTS.len() < PLAN.lines(Pool::Packed));
    /// ```
    ///
    /// # Panics
    /// Always.
    #[track_caller]
    pub const fn stop(self) -> ! {
        self.message().panic()
    }

    /// The message, but for names of kernels and of pools that are there at run time alone.
    const fn message(&self) -> Message {
        match *self {
            Self::Config(error) => error.message(),
            Self::EmptyBatch => {
                Message::plain("the batch is empty: it needs a sequence of a token")
            }
            Self::TooLong { tokens, block_size } => Message::two(
                "sequences of ",
                Number(tokens),
                " tokens exceed the model's block_size ",
                Number(block_size),
                "",
            ),
            Self::NoWorker => Message::plain("no worker: at least one is needed"),
            Self::Blocking(error) => error.message(),
            Self::LeftOut(missing) => missing.message(),
            Self::Adapters(error) => error.message(),
            Self::NoKernels(KernelSet { isa, dtype, is_native }) => Message::two(
                "there are no kernels of ",
                Word(isa.name()),
                if is_native { " with products of " } else { " with converted products of " },
                Word(dtype.name()),
                " on this target",
            ),
            Self::WrongKernels { .. } => {
                Message::plain("the plan is for other kernels than were given")
            }
            Self::TooManyTiles { tiles, most } => Message::two(
                "a stage of the step has ",
                Number(tiles),
                " tiles, more than the ",
                Number(most),
                " that this machine can number: use a smaller batch, larger blocks or fewer workers",
            ),
            Self::NothingKept => Message::plain(
                "the plan keeps no panels that could be read from elsewhere: it wants adapters and Packing::Kept",
            ),
            Self::WrongMode => Message::plain("the plan is for evaluation: it has no gradients"),
            Self::WrongEngine => Message::plain("the engine was made for another plan"),
            Self::TooSmall { need, got, .. } => Message::two(
                "a pool has ",
                Number(got),
                " bytes but the plan needs ",
                Number(need),
                "",
            ),
        }
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::WrongKernels { plan, kernels } => {
                write!(f, "the plan is for other kernels ({plan}) than were given ({kernels})")
            }
            Self::TooSmall { pool, need, got } => {
                write!(f, "the {} pool has {got} bytes but the plan needs {need}", pool.name())
            }
            _ => self.message().fmt(f),
        }
    }
}

impl core::error::Error for PlanError {}
