//! What goes into a step, and what comes of it: batches, losses, and why one was not taken.

use crate::built::LeftOut;
use crate::engine::EngineError;
use crate::optimizer::{OptimizerError, OptimizerKind};
use cllm_kernels::IGNORE;
use core::fmt;

/// Token ids and what should follow each, sequence after sequence.
///
/// A target of [`IGNORE`] does not count.
///
/// A sequence of six tokens: a document of four tokens, of which the first is a question that is not
/// to be learnt, and one of two.
///
/// ```
/// use cllm_core::{Batch, IGNORE};
///
/// let (tokens, starts) = ([5, 6, 7, 8, 2, 3], [0, 0, 0, 0, 4, 4]);
/// let targets = [IGNORE, 7, 8, IGNORE, 3, IGNORE];
/// let batch = Batch { starts: Some(&starts), ..Batch::new(&tokens, &targets) };
/// assert_eq!(batch.counted(), 3);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// `sequences * tokens` ids below `vocab_size`.
    pub tokens: &'a [u32],
    /// As many targets.
    pub targets: &'a [u32],
    /// As many places in their sequence, where each token's document begins: documents that lie in a
    /// sequence one behind the other do not see one another, and positions of a table are those in the
    /// document. A document's last token has no target in it. `None`: each sequence is one document.
    pub starts: Option<&'a [u32]>,
}

impl<'a> Batch<'a> {
    /// Sequences of one document each.
    #[must_use]
    pub const fn new(tokens: &'a [u32], targets: &'a [u32]) -> Self {
        Self { tokens, targets, starts: None }
    }

    /// Targets that count.
    #[must_use]
    pub fn counted(&self) -> usize {
        self.targets.iter().filter(|t| **t != IGNORE).count()
    }
}

/// The summed loss of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Sum over the targets that count, in nats.
    pub sum: f64,
    /// Targets that count.
    pub counted: usize,
}

impl Loss {
    /// Mean in nats a token; NaN if no target counts.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum / self.counted as f64
    }
}

/// Why a step was not taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepError {
    /// The batch has not the planned shape.
    BatchSize {
        /// Tokens planned.
        need: usize,
        /// Tokens given.
        tokens: usize,
        /// Targets given.
        targets: usize,
    },
    /// A token or target id is not in the vocabulary.
    UnknownToken {
        /// Where in the batch.
        position: usize,
        /// The id.
        id: u32,
        /// The vocabulary.
        vocab_size: usize,
    },
    /// There is not one start of a document for each token, or one is neither the token's own place
    /// in its sequence nor that of the token before.
    Documents {
        /// Where in the batch; how many starts there are if those are not as many as tokens.
        position: usize,
    },
    /// What the batch asks for is not built into this program.
    LeftOut(LeftOut),
    /// No target counts, so there is no mean loss.
    NothingCounts,
    /// The loss is NaN or infinite.
    NonFiniteLoss(f64),
    /// The gradient's norm is NaN or infinite.
    NonFiniteGradient(f64),
    /// `update` without gradients.
    NoGradients,
    /// The matrices that are kept as panels have not been loaded, or there is no token table.
    NotLoaded,
    /// An update was not run to its end: some weights are updated and others not. What is trained has to
    /// come anew, by [`crate::Trainer::restore`] or [`crate::Trainer::initialise`].
    HalfUpdated,
    /// A setting of the update makes no sense.
    Optimizer(OptimizerError),
    /// The update is by another optimizer than the plan has moments of.
    WrongOptimizer {
        /// The plan's.
        plan: OptimizerKind,
        /// That of the update.
        update: OptimizerKind,
    },
    /// The step was not run to its end.
    Engine(EngineError),
}

impl From<EngineError> for StepError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BatchSize { need, tokens, targets } => write!(
                f,
                "the batch has {tokens} tokens and {targets} targets but the plan is for {need}"
            ),
            Self::UnknownToken { position, id, vocab_size } => write!(
                f,
                "token id {id} at position {position} of the batch is not below the vocabulary's {vocab_size}"
            ),
            Self::Documents { position } => write!(
                f,
                "the start of a document at position {position} of the batch is neither the token's own place in its sequence nor the start of the token before it"
            ),
            Self::LeftOut(missing) => missing.fmt(f),
            Self::NothingCounts => f.write_str("no target of the step counts"),
            Self::NonFiniteLoss(loss) => write!(f, "the loss is {loss}"),
            Self::NonFiniteGradient(norm) => write!(f, "the gradient's norm is {norm}"),
            Self::NoGradients => f.write_str("there are no gradients to update from"),
            Self::NotLoaded => f.write_str(
                "the model's matrices, kept as panels, or its token table are not there",
            ),
            Self::HalfUpdated => f.write_str(
                "an update was not run to its end, so that some weights are updated and others not: restore a checkpoint",
            ),
            Self::Optimizer(error) => error.fmt(f),
            Self::WrongOptimizer { plan, update } => write!(
                f,
                "the update is by {update} but the plan has the moments of {plan}: make it with Plan::with_optimizer"
            ),
            Self::Engine(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for StepError {}

/// The first of `need` tokens, in sequences of `tokens`, whose start is not one of a document.
pub(crate) fn misplaced(starts: &[u32], need: usize, tokens: usize) -> Option<usize> {
    if starts.len() != need {
        return Some(starts.len());
    }
    let fits = |at: usize| {
        let (place, start) = (at % tokens, starts[at] as usize);
        start == place || place > 0 && starts[at - 1] as usize == start
    };
    (0..need).find(|at| !fits(*at))
}
