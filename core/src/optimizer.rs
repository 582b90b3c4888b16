//! The numbers of an update: AdamW's settings and the clip by global norm.

use cllm_kernels::AdamW;
use core::fmt;

/// Settings of AdamW and of the clip. The learning rate comes with each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay of matrices; norms and biases never decay.
    pub weight_decay: f32,
    /// Largest global norm of the gradient; `None` does not clip.
    pub grad_clip: Option<f32>,
}

impl Default for Optimizer {
    /// nanoGPT's settings.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: Some(1.0) }
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
    /// (the clip above 0).
    ///
    /// # Errors
    /// The first one out of range.
    pub fn validate(&self) -> Result<(), OptimizerError> {
        let below_one = |x: f32| (0.0..1.0).contains(&x);
        let natural = |x: f32| x >= 0.0 && x.is_finite();
        let clip = self.grad_clip.unwrap_or(1.0);
        for (setting, value, good) in [
            ("beta1", self.beta1, below_one(self.beta1)),
            ("beta2", self.beta2, below_one(self.beta2)),
            ("eps", self.eps, natural(self.eps)),
            ("weight_decay", self.weight_decay, natural(self.weight_decay)),
            ("grad_clip", clip, natural(clip) && clip > 0.0),
        ] {
            if !good {
                return Err(OptimizerError { setting, value });
            }
        }
        Ok(())
    }

    /// The update of one step; `updates` counts from 1.
    pub(crate) fn adamw(&self, lr: f32, updates: u64, grad_scale: f32) -> AdamW {
        let correction = |beta: f32| (1.0 - libm::pow(f64::from(beta), updates as f64)) as f32;
        AdamW {
            lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            decay: 0.0,
            correction1: correction(self.beta1),
            correction2: correction(self.beta2),
            grad_scale,
        }
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
