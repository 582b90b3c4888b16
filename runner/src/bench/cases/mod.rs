//! Every kernel in the shapes of the reference workload, ready to be timed.

mod passes;
mod products;
mod thin;

use super::lines::Lines;
use cllm_core::{Dtype, Kernels, ROW_BLOCK};
use cllm_kernels::{MatMut, MatRef};

/// Tokens of a row block: what a tile of a step works on.
const ROWS: usize = ROW_BLOCK;
/// Tokens of a batch.
pub(super) const TOKENS: usize = 4096;
/// Tokens of a sequence.
pub(super) const SEQUENCE: usize = 128;
/// Width of the model.
pub(super) const WIDTH: usize = 256;
/// Width of a head.
pub(super) const HEAD: usize = 32;
/// Tokens of a long sequence, and the width of its heads: those of GPT-2.
pub(super) const LONG: (usize, usize) = (1024, 64);
/// Width of the feed-forward layer.
pub(super) const FORWARD: usize = 1024;
/// Size of the vocabulary.
pub(super) const VOCAB: usize = 5000;

/// Inputs whose every element is denormal, for [`visit`].
pub const DENORMAL: f32 = 1e-39;

/// What one call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Floating-point operations of products, and what their operands are rounded to; what
    /// surrounds them is not counted.
    Flops(u64, Dtype),
    /// Bytes read and written in a working set that stays in a core's own cache.
    Cache(u64),
    /// Bytes read and written in a working set larger than any cache.
    Memory(u64),
}

impl Work {
    /// Operations or bytes.
    #[must_use]
    pub fn amount(self) -> u64 {
        match self {
            Self::Flops(n, _) | Self::Cache(n) | Self::Memory(n) => n,
        }
    }
}

/// A kernel with data to work on.
pub struct Case {
    /// `kernel/what of the step`.
    pub name: String,
    /// What one call of `run` does.
    pub work: Work,
    /// Calls the kernel once.
    pub run: Box<dyn FnMut()>,
}

impl core::fmt::Debug for Case {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Case").field("name", &self.name).field("work", &self.work).finish()
    }
}

impl Case {
    fn flops(
        name: impl Into<String>,
        dtype: Dtype,
        flops: usize,
        run: impl FnMut() + 'static,
    ) -> Self {
        Self { name: name.into(), work: Work::Flops(flops as u64, dtype), run: Box::new(run) }
    }

    fn cache(name: impl Into<String>, floats: usize, run: impl FnMut() + 'static) -> Self {
        Self { name: name.into(), work: Work::Cache(4 * floats as u64), run: Box::new(run) }
    }
}

/// Makes all cases one after the other, so that only one's data is there at a time, with
/// inputs of about `range`.
pub fn visit(kernels: &'static Kernels, range: f32, see: &mut dyn FnMut(Case)) {
    products::visit(kernels, range, see);
    thin::visit(kernels, range, see);
    passes::visit(kernels, range, see);
}

/// `n` reproducible floats in -0.5..0.5 times `range`.
fn floats(n: usize, range: f32) -> Lines {
    let mut state = 1_u64;
    let mut floats = Lines::zeros(n);
    for x in floats.iter_mut() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *x = ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * range;
    }
    floats
}

fn mat(data: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef::new(data, rows, cols, data.len() / rows)
}

fn out(data: &mut [f32], rows: usize, cols: usize) -> MatMut<'_> {
    let stride = data.len() / rows;
    MatMut::new(data, rows, cols, stride)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cllm_core::Isa;

    #[test]
    fn all_products_are_of_the_type_asked_for() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut attention = 0;
            visit(Kernels::scalar().with_dtype(dtype), 1.0, &mut |case| {
                if let Work::Flops(_, of) = case.work {
                    assert_eq!(of, dtype, "{}", case.name);
                    attention += usize::from(case.name.starts_with("attention"));
                }
            });
            assert_eq!(attention, 4, "forward and backward, of a short and a long sequence");
        }
    }

    #[test]
    fn small_products_are_of_16_or_more_and_attentions_are_among_them() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut small = Vec::new();
            visit(Kernels::scalar().with_dtype(dtype), 1.0, &mut |case| {
                let Some(name) = case.name.strip_prefix("small/") else { return };
                let shape = name.rsplit(' ').next().unwrap();
                let sizes: Vec<u64> = shape.split('x').map(|size| size.parse().unwrap()).collect();
                assert!(sizes.len() == 3 && sizes.iter().all(|size| *size >= 16), "{name}");
                assert_eq!(case.work, Work::Flops(2 * sizes.iter().product::<u64>(), dtype));
                small.push(shape.to_owned());
            });
            assert_eq!(small, ["128x128x32", "128x32x128", "16x16x16", "32x32x32", "64x64x64"]);
        }
    }

    #[test]
    fn every_case_runs_on_every_instruction_set() {
        for isa in Isa::ALL {
            let Some(kernels) = Kernels::for_isa(isa) else { continue };
            let mut names = Vec::new();
            visit(kernels, 1.0, &mut |mut case| {
                // The large working sets only cost time here.
                if !matches!(case.work, Work::Memory(_)) {
                    (case.run)();
                }
                assert!(case.work.amount() > 0, "{}", case.name);
                names.push(case.name);
            });
            let all = names.len();
            names.sort();
            names.dedup();
            assert!(all == names.len() && all > 25, "{names:?}");
        }
    }
}
