//! What is built: by the crate's features, as constants for plain `if`s.
//!
//! | feature | |
//! |---|---|
//! | `adapters` | adapters trained in the place of the parameters (with `fresh`) |
//! | `compact` | off unless asked for: less code before speed, panics without messages; the bits of a step are the same, but attention of fewer than a strip of queries (4 to 12) rounds otherwise |
//! | `documents` | documents in a row that do not see one another ([`Batch::starts`](crate::Batch::starts)), windows of attention |
//! | `dropout` | masks of dropout |
//! | `fresh` | weights packed on the way ([`Packing::Fresh`](crate::Packing::Fresh)) |
//! | `halves` | activations in memory as bf16 where the CPU multiplies it; the same bits without |
//! | `llama` | RMS norms, rotary positions, SwiGLU, norms of heads, shared keys and values, squared ReLU, capped logits, embeddings of previous tokens, multiplied embeddings |
//! | `optimizers` | other optimizers than AdamW |
//! | `pieces` | a step shared by several trainers, each of which updates a piece ([`Plan::with_piece`](crate::Plan::with_piece)) |
//! | `recompute` | [`Mode::Recompute`](crate::Mode::Recompute) |
//! | `workers` | more than one worker |
//!
//! Whoever asks a program without one for it gets a [`PlanError`](crate::PlanError) that names it.

use crate::message::Argument::Word;
use crate::message::Message;
use core::fmt;

pub(crate) const ADAPTERS: bool = cfg!(feature = "adapters");
pub(crate) const COMPACT: bool = cfg!(feature = "compact");
pub(crate) const DOCUMENTS: bool = cfg!(feature = "documents");
pub(crate) const DROPOUT: bool = cfg!(feature = "dropout");
pub(crate) const FRESH: bool = cfg!(feature = "fresh");
pub(crate) const HALVES: bool = cfg!(feature = "halves");
pub(crate) const LLAMA: bool = cfg!(feature = "llama");
pub(crate) const OPTIMIZERS: bool = cfg!(feature = "optimizers");
pub(crate) const PIECES: bool = cfg!(feature = "pieces");
pub(crate) const RECOMPUTE: bool = cfg!(feature = "recompute");
pub(crate) const WORKERS: bool = cfg!(feature = "workers");

/// Something that is asked for, and the feature that would build it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// What it is.
    pub part: &'static str,
    /// The feature of this crate.
    pub feature: &'static str,
}

impl LeftOut {
    /// What is said of it.
    pub(crate) const fn message(&self) -> Message {
        let Self { part, feature } = *self;
        let (part, feature) = (Word(part), Word(feature));
        Message::two("", part, ": not built; cllm-core has this by its feature `", feature, "`")
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message().fmt(f)
    }
}

/// What of these a plan wants.
pub(crate) struct Asked {
    pub(crate) adapters: bool,
    pub(crate) fresh: bool,
    pub(crate) recompute: bool,
    /// More than one.
    pub(crate) workers: bool,
}

impl Asked {
    /// Whether all of it is built.
    pub(crate) const fn check(&self) -> Result<(), LeftOut> {
        let (part, feature) = match *self {
            Self { adapters: true, .. } if !ADAPTERS => ("adapters", "adapters"),
            Self { fresh: true, .. } if !FRESH => ("weights packed on the way", "fresh"),
            Self { recompute: true, .. } if !RECOMPUTE => ("activations made again", "recompute"),
            Self { workers: true, .. } if !WORKERS => ("more than one worker", "workers"),
            _ => return Ok(()),
        };
        Err(LeftOut { part, feature })
    }
}
