//! The numbers of an update: the optimizer's settings and the clip by global norm.

use crate::built::OPTIMIZERS;
use crate::params::Param;
use crate::plan::Trained;
use cllm_kernels::{AdamW, Sgd};
use core::fmt;
use core::str::FromStr;

/// How weights follow from gradients, and so what is remembered for them from step to step. All decay weights
/// apart from the gradient (Loshchilov and Hutter, 2019).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OptimizerKind {
    /// AdamW: two moments, 8 bytes for each value that is trained.
    #[default]
    AdamW,
    /// AdamW with moments of 8 bits by blocks ([`cllm_kernels::Kernels::adamw8`]): 2.125 bytes.
    AdamW8,
    /// Gradient descent with momentum: a sum of gradients, 4 bytes.
    Momentum,
    /// Gradient descent: nothing.
    Sgd,
    /// Muon for the matrices of blocks (Jordan et al., 2024): a sum of gradients, 4 bytes, of which all singular
    /// values are brought near 1. AdamW for all else. The rate is one for both, but for scales: Muon's steps are as
    /// long as AdamW's usually are (Liu et al., "Muon is Scalable for LLM Training", 2025, section 2.2).
    Muon,
}

impl OptimizerKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::AdamW, Self::AdamW8, Self::Momentum, Self::Sgd, Self::Muon];

    /// The name that `--optimizer` takes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AdamW => "adamw",
            Self::AdamW8 => "adamw8",
            Self::Momentum => "momentum",
            Self::Sgd => "sgd",
            Self::Muon => "muon",
        }
    }

    /// What is usually left of its sum of gradients in a step; `None` if it has none.
    #[must_use]
    pub const fn usual_momentum(self) -> Option<f32> {
        match self {
            Self::Momentum => Some(0.9),
            Self::Muon => Some(0.95),
            Self::AdamW | Self::AdamW8 | Self::Sgd => None,
        }
    }
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of an optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownOptimizer;

impl fmt::Display for UnknownOptimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an optimizer: use adamw, adamw8, momentum, sgd or muon")
    }
}

impl core::error::Error for UnknownOptimizer {}

impl FromStr for OptimizerKind {
    type Err = UnknownOptimizer;

    fn from_str(text: &str) -> Result<Self, UnknownOptimizer> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or(UnknownOptimizer)
    }
}

/// Settings of an optimizer and of the clip. The learning rate comes with each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    /// Which one: that of the plan ([`Plan::with_optimizer`](crate::Plan::with_optimizer)).
    pub kind: OptimizerKind,
    /// Decay of the first moment of AdamW.
    pub beta1: f32,
    /// Decay of its second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// What is left of the sum of gradients in a step of [`OptimizerKind::Momentum`] or
    /// [`OptimizerKind::Muon`]: see [`OptimizerKind::usual_momentum`].
    pub momentum: f32,
    /// Decoupled decay of matrices; norms and biases never decay.
    pub weight_decay: f32,
    /// Learning rate of the tables of tokens and positions, by that of the step; their decay goes by it too. Adapters
    /// have that of the step.
    pub embedding_lr_scale: f32,
    /// That of the output projection. A tied model's is the token table, and goes by that one's.
    pub head_lr_scale: f32,
    /// Largest global norm of the gradient; `None` does not clip.
    pub grad_clip: Option<f32>,
}

impl Default for Optimizer {
    /// nanoGPT's settings of AdamW, and a momentum of 0.9.
    fn default() -> Self {
        Self {
            kind: OptimizerKind::AdamW,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            momentum: 0.9,
            weight_decay: 0.1,
            embedding_lr_scale: 1.0,
            head_lr_scale: 1.0,
            grad_clip: Some(1.0),
        }
    }
}

/// A setting that makes no sense, and its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerError {
    /// Which one.
    pub setting: &'static str,
    /// What it is.
    pub value: f32,
}

impl fmt::Display for OptimizerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: it is out of range", self.setting, self.value)
    }
}

impl core::error::Error for OptimizerError {}

impl Optimizer {
    /// Checks every setting: decays from 0 to below 1, the others finite and at least 0
    /// (the clip and the scales of rates above 0).
    ///
    /// # Errors
    /// The first one out of range.
    pub fn validate(&self) -> Result<(), OptimizerError> {
        let below_one = |x: f32| (0.0..1.0).contains(&x);
        let natural = |x: f32| x >= 0.0 && x.is_finite();
        let positive = |x: f32| natural(x) && x > 0.0;
        let clip = self.grad_clip.unwrap_or(1.0);
        for (setting, value, good) in [
            ("beta1", self.beta1, below_one(self.beta1)),
            ("beta2", self.beta2, below_one(self.beta2)),
            ("eps", self.eps, natural(self.eps)),
            ("momentum", self.momentum, below_one(self.momentum)),
            ("weight_decay", self.weight_decay, natural(self.weight_decay)),
            ("embedding_lr_scale", self.embedding_lr_scale, positive(self.embedding_lr_scale)),
            ("head_lr_scale", self.head_lr_scale, positive(self.head_lr_scale)),
            ("grad_clip", clip, positive(clip)),
        ] {
            if !good {
                return Err(OptimizerError { setting, value });
            }
        }
        Ok(())
    }

    /// The update of one step; `updates` counts from 1. Decay and scale are those of no tensor and no clip.
    pub(crate) fn rule(&self, lr: f32, updates: u64) -> Rule {
        if !OPTIMIZERS {
            return Rule::AdamW(self.adamw(lr, updates));
        }
        let sgd = Sgd { lr, decay: 0.0, grad_scale: 1.0 };
        match self.kind {
            OptimizerKind::AdamW => Rule::AdamW(self.adamw(lr, updates)),
            OptimizerKind::AdamW8 => Rule::AdamW8(self.adamw(lr, updates), updates),
            OptimizerKind::Momentum => Rule::Momentum(sgd, self.momentum),
            OptimizerKind::Sgd => Rule::Sgd(sgd),
            OptimizerKind::Muon => Rule::Muon(self.adamw(lr, updates), self.momentum),
        }
    }

    /// What of an update is a tensor's own.
    pub(crate) const fn by_tensor(&self) -> ByTensor {
        ByTensor {
            weight_decay: self.weight_decay,
            embedding_lr_scale: self.embedding_lr_scale,
            head_lr_scale: self.head_lr_scale,
        }
    }

    fn adamw(&self, lr: f32, updates: u64) -> AdamW {
        let correction = |beta: f32| (1.0 - libm::pow(f64::from(beta), updates as f64)) as f32;
        AdamW {
            lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            decay: 0.0,
            correction1: correction(self.beta1),
            correction2: correction(self.beta2),
            grad_scale: 1.0,
        }
    }
}

/// What of an update is a tensor's own: decay, and rate by that of the step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ByTensor {
    weight_decay: f32,
    embedding_lr_scale: f32,
    head_lr_scale: f32,
}

impl ByTensor {
    /// Decoupled decay of a tensor.
    pub(crate) const fn decay(&self, tensor: Trained) -> f32 {
        if tensor.decay { self.weight_decay } else { 0.0 }
    }

    /// Its rate by that of the step.
    pub(crate) const fn lr_scale(&self, tensor: Trained) -> f32 {
        match tensor.param {
            Some(Param::TokenTable | Param::PositionTable) => self.embedding_lr_scale,
            Some(Param::Head) => self.head_lr_scale,
            _ => 1.0,
        }
    }
}

/// What an update does to a tensor, but for its decay and scale, which are the tensor's and the clip's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    AdamW(AdamW),
    /// And the number of the update, for the dither.
    AdamW8(AdamW, u64),
    Momentum(Sgd, f32),
    Sgd(Sgd),
    /// AdamW for what is not Muon's, and Muon's momentum.
    Muon(AdamW, f32),
}

impl Rule {
    /// For runs without an update.
    pub(crate) const NONE: Self = Self::Sgd(Sgd { lr: 0.0, decay: 0.0, grad_scale: 0.0 });

    /// The same at so many times the rate.
    pub(crate) fn at_lr_scale(mut self, scale: f32) -> Self {
        match &mut self {
            Self::AdamW(adamw) | Self::AdamW8(adamw, _) | Self::Muon(adamw, _) => adamw.lr *= scale,
            Self::Momentum(sgd, _) | Self::Sgd(sgd) => sgd.lr *= scale,
        }
        self
    }
}

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateReport {
    /// Global norm of the gradient before the clip.
    pub grad_norm: f64,
    /// Factor that the clip applied: 1 if it did not bite.
    pub scale: f32,
}

impl UpdateReport {
    /// `min(1, clip / (norm + 1e-6))`, as PyTorch's `clip_grad_norm_` has it.
    pub(crate) fn new(grad_norm: f64, clip: Option<f32>) -> Self {
        let scale = match clip {
            Some(clip) => (f64::from(clip) / (grad_norm + 1e-6)).min(1.0) as f32,
            None => 1.0,
        };
        Self { grad_norm, scale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::string::ToString;

    #[test]
    fn names_round_trip_and_others_are_told() {
        let told = UnknownOptimizer.to_string();
        for kind in OptimizerKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert!(told.contains(kind.name()), "{told}");
        }
        assert_eq!("adam".parse::<OptimizerKind>(), Err(UnknownOptimizer));
        assert_eq!(OptimizerKind::default(), Optimizer::default().kind);
    }
}
