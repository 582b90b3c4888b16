//! Plans that are made while a program is compiled, and the sizes of statics that follow from them.

use super::{BatchShape, Mode, Plan, Pool, Tiling};
use crate::arithmetic::most;
use crate::config::ModelConfig;
use crate::engine::{Slot, Word};
use crate::line::Line;
use crate::message::Text;
use crate::program::Op;
use cllm_kernels::KernelSet;

impl Plan {
    /// [`Plan::new`] for a `const`, for the kernels of a name: what is wrong stops the compilation.
    ///
    /// It is the plan that [`Plan::new`] makes with those kernels at run time, and a trainer takes it with
    /// those alone. Nobody is asked for the sizes of caches: blocks are [`Blocking::DEFAULT`]. For adapters,
    /// or other tiles, there are [`Plan::of_set`] and [`PlanError::stop`].
    ///
    /// The compiler counts what it computes: some 100 steps for each tensor of the model. If those of a
    /// large model become too many for its lint, `#[allow(long_running_const_eval)]` at the `const` is what it
    /// asks for.
    ///
    /// ```
    /// use cllm_core::*;
    ///
    /// const CONFIG: ModelConfig = ModelConfig {
    ///     vocab_size: 32,
    ///     block_size: 8,
    ///     n_layer: 1,
    ///     n_head: 2,
    ///     d_model: 16,
    ///     d_ff: 64,
    ///     bias: true,
    ///     tied: true,
    ///     dropout: 0.0,
    ///     norm_eps: 1e-5,
    ///     arch: Architecture::GPT2,
    /// };
    /// const SHAPE: BatchShape = BatchShape { sequences: 2, tokens: 8 };
    /// const PLAN: Plan = Plan::fixed(&CONFIG, SHAPE, 1, Mode::Train, KernelSet::SCALAR);
    /// // More memory than that, and the program is not compiled.
    /// const _: () = PLAN.assert_fits(256 * 1024);
    ///
    /// static MOMENTS: [Line; PLAN.lines(Pool::Moments)] = [Line::ZERO; _];
    /// assert_eq!(size_of_val(&MOMENTS), PLAN.bytes(Pool::Moments));
    /// assert_eq!(Plan::new(&CONFIG, SHAPE, 1, Mode::Train, Kernels::scalar()), Ok(PLAN));
    /// ```
    ///
    /// Here it is not: the plan needs so many bytes, says the compiler, so many more than the 4096 there are, and how
    /// many each pool does.
    ///
    /// ```compile_fail
    /// # use cllm_core::*;
    /// # const CONFIG: ModelConfig = ModelConfig { vocab_size: 32, block_size: 8, n_layer: 1, n_head: 2,
    /// #     d_model: 16, d_ff: 64, bias: true, tied: true, dropout: 0.0, norm_eps: 1e-5,
    /// #     arch: Architecture::GPT2 };
    /// # const SHAPE: BatchShape = BatchShape { sequences: 2, tokens: 8 };
    /// # const PLAN: Plan = Plan::fixed(&CONFIG, SHAPE, 1, Mode::Train, KernelSet::SCALAR);
    /// const _: () = PLAN.assert_fits(4096);
    /// ```
    ///
    /// # Panics
    /// With the message of the error that [`Plan::of_set`] has; in a `const` that is an error of the
    /// compiler's.
    ///
    /// [`Blocking::DEFAULT`]: crate::Blocking::DEFAULT
    /// [`PlanError::stop`]: crate::PlanError::stop
    #[must_use]
    #[track_caller]
    pub const fn fixed(
        config: &ModelConfig,
        batch: BatchShape,
        workers: usize,
        mode: Mode,
        set: KernelSet,
    ) -> Self {
        match Self::of_set(config, None, batch, workers, &Tiling::DEFAULT, mode, set) {
            Ok(plan) => plan,
            Err(error) => error.stop(),
        }
    }

    /// The sizes of the memory, as an array for each type: those of a [`Memory`](crate::Memory).
    #[must_use]
    pub const fn sizes(&self) -> Sizes {
        let (mut lines, mut i) = (0, 0);
        while i < Pool::ALL.len() {
            lines += self.lines(Pool::ALL[i]);
            i += 1;
        }
        Sizes { lines, ops: self.ops(), slots: self.slots(), words: self.words() }
    }

    /// Checks that all pools ([`Plan::total_bytes`]) fit into so many bytes: for a
    /// `const _: () = PLAN.assert_fits(BYTES);`.
    ///
    /// # Panics
    /// If they do not: with what is needed, by how much it is too much, and the bytes of each pool; in a
    /// `const` that is an error of the compiler's.
    #[track_caller]
    pub const fn assert_fits(&self, bytes: usize) {
        let need = match self.total_bytes() {
            Some(need) => need,
            None => usize::MAX,
        };
        if need <= bytes {
            return;
        }
        let mut text = excess("the plan", need, bytes);
        let mut i = 0;
        while i < Pool::ALL.len() {
            text.push(if i == 0 { ": " } else { ", " });
            text.push(Pool::ALL[i].name());
            text.push(" ");
            text.push_number(self.bytes(Pool::ALL[i]));
            i += 1;
        }
        text.panic()
    }
}

/// Lengths of the arrays that a trainer and its engine work in.
///
/// A program that finds out at run time which kernels there are needs the most that any of them wants
/// ([`Sizes::on_any`]): plans differ by instruction set, in the padding of panels and in scratch.
///
/// ```
/// use cllm_core::*;
///
/// # const CONFIG: ModelConfig = ModelConfig { vocab_size: 32, block_size: 8, n_layer: 1, n_head: 2,
/// #     d_model: 16, d_ff: 64, bias: true, tied: true, dropout: 0.0, norm_eps: 1e-5,
/// #     arch: Architecture::GPT2 };
/// # const SHAPE: BatchShape = BatchShape { sequences: 2, tokens: 8 };
/// const SIZES: Sizes = Sizes::on_any(&CONFIG, SHAPE, 2, Mode::Train);
/// const _: () = SIZES.assert_fits(512 * 1024);
///
/// for workers in [1, 2] {
///     let plan = Plan::new(&CONFIG, SHAPE, workers, Mode::Train, Kernels::detect())?;
///     assert_eq!(plan.sizes().most(SIZES), SIZES);
/// }
/// # Ok::<(), PlanError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Lines of all pools of floats, one behind the other.
    pub lines: usize,
    /// [`Plan::ops`].
    pub ops: usize,
    /// [`Plan::slots`].
    pub slots: usize,
    /// [`Plan::words`].
    pub words: usize,
}

impl Sizes {
    /// Of nothing.
    pub const NONE: Self = Self { lines: 0, ops: 0, slots: 0, words: 0 };

    /// The most that plans as of [`Plan::fixed`] want on any kernels of this target, for up to so many
    /// workers.
    ///
    /// # Panics
    /// As [`Plan::fixed`].
    #[must_use]
    #[track_caller]
    pub const fn on_any(
        config: &ModelConfig,
        batch: BatchShape,
        workers: usize,
        mode: Mode,
    ) -> Self {
        let (mut sizes, mut i) = (Self::NONE, 0);
        while i < KernelSet::ALL.len() {
            let set = KernelSet::ALL[i];
            i += 1;
            if set.footprint().is_none() {
                continue;
            }
            // Fewer workers have larger tiles.
            let mut of = 1;
            while of < workers {
                sizes = sizes.most(Plan::fixed(config, batch, of, mode, set).sizes());
                of += 1;
            }
            sizes = sizes.most(Plan::fixed(config, batch, workers, mode, set).sizes());
        }
        sizes
    }

    /// The greater of each.
    #[must_use]
    pub const fn most(self, other: Self) -> Self {
        Self {
            lines: most(self.lines, other.lines),
            ops: most(self.ops, other.ops),
            slots: most(self.slots, other.slots),
            words: most(self.words, other.words),
        }
    }

    /// Bytes of the arrays; `usize::MAX` if those overflow.
    #[must_use]
    pub const fn bytes(self) -> usize {
        let Self { lines, ops, slots, words } = self;
        let of_lines = lines.saturating_mul(size_of::<Line>());
        let of_ops = ops.saturating_mul(size_of::<Op>());
        let of_slots = slots.saturating_mul(size_of::<Slot>());
        let of_words = words.saturating_mul(size_of::<Word>());
        of_lines.saturating_add(of_ops).saturating_add(of_slots).saturating_add(of_words)
    }

    /// Checks that all arrays ([`Sizes::bytes`]) fit into so many bytes, as [`Plan::assert_fits`] does.
    ///
    /// # Panics
    /// If they do not: with what is needed, and by how much it is too much.
    #[track_caller]
    pub const fn assert_fits(self, bytes: usize) {
        if self.bytes() > bytes {
            excess("the memory", self.bytes(), bytes).panic()
        }
    }
}

/// What is said of what needs more bytes than there are.
pub(crate) const fn excess(what: &str, need: usize, bytes: usize) -> Text {
    let mut text = Text::EMPTY;
    text.push(what);
    text.push(" needs ");
    text.push_number(need);
    text.push(" bytes, ");
    text.push_number(need - bytes);
    text.push(" more than the ");
    text.push_number(bytes);
    text.push(" there are");
    text
}
