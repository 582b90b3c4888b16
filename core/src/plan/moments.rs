//! The pool of moments: how large it is for each kind of optimizer, and what lies where in it.

use super::{Layout, Plan};
use crate::arithmetic::most;
use crate::built::{LeftOut, OPTIMIZERS};
use crate::line::{LANES, bytes, bytes_mut};
use crate::moments::{Moments, MomentsMut, blocks, first_block};
use crate::optimizer::OptimizerKind;
use cllm_kernels::MOMENTS_BLOCK;
use core::ops::Range;

/// Where 8-bit moments lie in their pool, in floats: codes of the first moments, then of the second, then
/// scales.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments8Layout {
    pub(crate) second: usize,
    pub(crate) scales: usize,
    len: usize,
}

impl Plan {
    /// The same plan for another optimizer: [`Pool::Moments`](super::Pool::Moments) has what that remembers, and the
    /// update goes by it. A plan is for [`OptimizerKind::AdamW`] unless told.
    ///
    /// ```
    /// use cllm_core::{Architecture, BatchShape, Kernels, Mode, ModelConfig, OptimizerKind, Plan, Pool};
    ///
    /// # let config = ModelConfig { vocab_size: 256, block_size: 32, n_layer: 2, n_head: 2, d_model: 64,
    /// #     d_ff: 256, bias: false, tied: true, dropout: 0.0, norm_eps: 1e-5, arch: Architecture::GPT2 };
    /// let (kernels, batch) = (Kernels::detect(), BatchShape { sequences: 1, tokens: 32 });
    /// let plan = Plan::new(&config, batch, 1, Mode::Train, kernels)?;
    /// let moments = |kind| plan.with_optimizer(kind).bytes(Pool::Moments);
    /// let parameters = plan.bytes(Pool::Parameters) / 4;
    /// assert_eq!(moments(OptimizerKind::AdamW), 8 * parameters);
    /// assert_eq!(moments(OptimizerKind::Momentum), 4 * parameters);
    /// assert_eq!(moments(OptimizerKind::Sgd), 0);
    /// // A byte for each moment, and two scales for 64 parameters.
    /// assert!(moments(OptimizerKind::AdamW8) < 9 * parameters / 4);
    /// # Ok::<(), cllm_core::PlanError>(())
    /// ```
    ///
    /// # Panics
    /// If it is another than AdamW and those are not built: without this crate's feature `optimizers`. If workers'
    /// scratch for Muon is larger than any memory.
    #[must_use]
    #[track_caller]
    pub const fn with_optimizer(mut self, optimizer: OptimizerKind) -> Self {
        if !OPTIMIZERS && !matches!(optimizer, OptimizerKind::AdamW) {
            let missing = LeftOut { part: "this optimizer", feature: "optimizers" };
            missing.message().panic();
        }
        // No other kind remembers more than AdamW, for which the plan was found to fit; Muon's scratch may not.
        self.optimizer = optimizer;
        if !self.is_addressable() {
            panic!("the scratch of this optimizer is larger than any memory");
        }
        self
    }

    /// Whose moments there is memory for.
    #[must_use]
    pub const fn optimizer(&self) -> OptimizerKind {
        if OPTIMIZERS { self.optimizer } else { OptimizerKind::AdamW }
    }

    /// Floats of scratch of one worker.
    pub(crate) const fn scratch_len(&self) -> usize {
        let Layout { scratch_len, muon_scratch_len, .. } = self.layout;
        match self.optimizer() {
            OptimizerKind::Muon => most(scratch_len, muon_scratch_len),
            _ => scratch_len,
        }
    }

    /// Floats of a tile of the update: of whole blocks, where moments have any.
    pub(crate) const fn update_block(&self) -> usize {
        let block = self.grain.update_block(self.trained_len());
        match self.optimizer() {
            OptimizerKind::AdamW8 => block.next_multiple_of(MOMENTS_BLOCK),
            _ => block,
        }
    }

    /// Floats of the pool; `None` on overflow.
    pub(super) const fn moments_len(&self) -> Option<usize> {
        let arena = self.own_len();
        match self.optimizer() {
            _ if !self.mode.trains() => Some(0),
            OptimizerKind::AdamW => arena.checked_mul(2),
            OptimizerKind::AdamW8 => Some(self.moments8().len),
            OptimizerKind::Momentum => Some(arena),
            OptimizerKind::Sgd => Some(0),
            OptimizerKind::Muon => arena.checked_add(arena - self.muon_len()),
        }
    }

    /// Where 8-bit moments lie. Nothing overflows: arenas of twice as many floats do not.
    pub(crate) const fn moments8(&self) -> Moments8Layout {
        // An arena is whole lines, so its bytes are whole floats.
        let codes = (self.trained_len() / size_of::<f32>()).next_multiple_of(LANES);
        let last = self.trained_count().saturating_sub(1);
        let blocks = match self.trained(last) {
            Some(t) => first_block(last, t.offset) + blocks(t.len),
            None => 0,
        };
        let scales = (2 * blocks).next_multiple_of(LANES);
        Moments8Layout { second: codes, scales: 2 * codes, len: 2 * codes + scales }
    }

    /// Scales of `len` elements of the trained tensor number `index`, which begins at float `offset`, from its
    /// element `start` on, the start of a block: among all scales.
    pub(crate) fn scales(
        (index, offset): (usize, usize),
        start: usize,
        len: usize,
    ) -> Range<usize> {
        let first = first_block(index, offset) + start / MOMENTS_BLOCK;
        2 * first..2 * (first + blocks(len))
    }

    /// The moments in a pool of this plan's.
    pub(crate) fn moments_in<'p>(&self, pool: &'p [f32]) -> Moments<'p> {
        let arena = self.own_len();
        match self.optimizer() {
            OptimizerKind::AdamW => {
                let (first, second) = pool.split_at(arena);
                Moments::AdamW { first, second }
            }
            OptimizerKind::AdamW8 => {
                let Moments8Layout { second, scales, .. } = self.moments8();
                let (codes, scales) = pool.split_at(scales);
                let (first, second) = codes.split_at(second);
                let [first, second] = [first, second].map(|codes| &bytes(codes)[..arena]);
                Moments::AdamW8 { first, second, scales }
            }
            OptimizerKind::Momentum => Moments::Momentum(&pool[..arena]),
            OptimizerKind::Sgd => Moments::Sgd,
            OptimizerKind::Muon => {
                let (first, second) = pool.split_at(arena);
                Moments::Muon { first, second: &second[..arena - self.muon_len()] }
            }
        }
    }

    /// As [`Plan::moments_in`], to write.
    pub(crate) fn moments_in_mut<'p>(&self, pool: &'p mut [f32]) -> MomentsMut<'p> {
        let arena = self.own_len();
        match self.optimizer() {
            OptimizerKind::AdamW => {
                let (first, second) = pool.split_at_mut(arena);
                MomentsMut::AdamW { first, second }
            }
            OptimizerKind::AdamW8 => {
                let Moments8Layout { second, scales, .. } = self.moments8();
                let (codes, scales) = pool.split_at_mut(scales);
                let (first, second) = codes.split_at_mut(second);
                let [first, second] = [first, second].map(|codes| &mut bytes_mut(codes)[..arena]);
                MomentsMut::AdamW8 { first, second, scales }
            }
            OptimizerKind::Momentum => MomentsMut::Momentum(&mut pool[..arena]),
            OptimizerKind::Sgd => MomentsMut::Sgd,
            OptimizerKind::Muon => {
                let (first, second) = pool.split_at_mut(arena);
                MomentsMut::Muon { first, second: &mut second[..arena - self.muon_len()] }
            }
        }
    }
}
