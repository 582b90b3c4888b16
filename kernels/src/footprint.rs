//! How much memory kernels want, as arithmetic on a few numbers: at run time, or in a `const`.
//!
//! A [`Footprint`] is all that sizes depend on. The kernels of a format have theirs as a constant, which
//! they lay out their scratch by; a table gives it out ([`Kernels::footprint`]), and so does the name of
//! a table, without the CPU that runs it ([`KernelSet::footprint`]).

use crate::attention::{self, Wanted};
use crate::built::HALVES;
use crate::elements::RawOperand;
use crate::fresh;
use crate::gemm::kept::{self, Halved};
use crate::gemm::{self, LINE};
use crate::product::row_stride;

#[expect(unused_imports, reason = "docs name them")]
use crate::{KernelSet, Kernels};

/// What the memory that kernels want depends on. Lengths are in floats, `None` on overflow.
///
/// ```
/// use cllm_kernels::{Footprint, KernelSet, Kernels};
///
/// const SCALAR: Footprint = match KernelSet::SCALAR.footprint() {
///     Some(footprint) => footprint,
///     None => panic!("scalar kernels are there on every target"),
/// };
/// // Memory for a packed matrix of 10 x 30, as a static.
/// const LEN: usize = match SCALAR.packed_len(10, 30) {
///     Some(len) => len,
///     None => panic!("too large"),
/// };
/// static PACKED: [f32; LEN] = [0.0; LEN];
/// assert_eq!(Some(PACKED.len()), Kernels::scalar().packed_len(10, 30));
/// assert_eq!(Kernels::scalar().footprint(), SCALAR);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Columns and rows of a register block.
    pub(crate) nr: usize,
    pub(crate) mr: usize,
    /// Elements of the inner dimension in a word of a packed operand. Formats of two keep operands that
    /// lie in memory as bf16.
    pub(crate) depth: usize,
    /// Floats are words as they lie.
    pub(crate) plain: bool,
    /// Words are read in tiles: rows have whole lines of them.
    pub(crate) tiles: bool,
    /// Some CPUs pack floats although those are words as they lie ([`Kernels::with_packing`]): sizes are
    /// for those too.
    pub(crate) may_pack: bool,
}

/// `?` of an `Option` in a `const fn`.
macro_rules! some {
    ($option:expr) => {
        match $option {
            Some(value) => value,
            None => return None,
        }
    };
}
pub(crate) use some;

/// The lesser and the greater of two lengths, in a `const fn`.
pub(crate) const fn least(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

pub(crate) const fn most(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

impl Footprint {
    /// Words of a packed operand that `k` elements take: some formats have whole groups of them.
    #[inline(always)]
    pub(crate) const fn words(self, k: usize) -> usize {
        // Without a division, which small products would wait for.
        let words = if self.depth == 2 { k.div_ceil(2) } else { k };
        if self.tiles { words.next_multiple_of(LINE) } else { words }
    }

    /// Words that a distance between rows is, of whole words.
    #[inline(always)]
    pub(crate) const fn words_apart(self, elements: usize) -> usize {
        if self.depth == 2 { elements / 2 } else { elements }
    }

    /// As [`Kernels::keeps_halves`].
    #[must_use]
    pub const fn keeps_halves(self) -> bool {
        HALVES && self.depth == 2
    }

    /// As [`Kernels::keeps_halves_of`].
    #[must_use]
    pub const fn keeps_halves_of(self, cols: usize) -> bool {
        self.keeps_halves() && cols.is_multiple_of(2)
    }

    /// As [`Kernels::operand_stride`].
    #[must_use]
    pub const fn operand_stride(self, cols: usize) -> Option<usize> {
        row_stride(cols, RawOperand::bytes_of(self.keeps_halves_of(cols)))
    }

    /// As [`Kernels::operand_len`].
    #[must_use]
    pub const fn operand_len(self, rows: usize, cols: usize) -> Option<usize> {
        let elements = some!(rows.checked_mul(some!(self.operand_stride(cols))));
        Some(if self.keeps_halves_of(cols) { elements / 2 } else { elements })
    }

    /// As [`Kernels::packed_len`].
    #[must_use]
    pub const fn packed_len(self, k: usize, n: usize) -> Option<usize> {
        // Columns of a panel are a power of two: this is `packed_b_len` without a division.
        let last = self.nr - 1;
        (some!(n.checked_add(last)) & !last).checked_mul(self.words(k))
    }

    /// As [`Kernels::panel`].
    #[must_use]
    pub const fn panel(self) -> usize {
        self.nr
    }

    /// As [`Kernels::gemm_scratch_len`].
    #[must_use]
    pub const fn gemm_scratch_len(self, m: usize, k: usize) -> usize {
        if self.plain { 0 } else { gemm::scratch_len(self, m, k) }
    }

    /// As [`Kernels::gemm_into_halves_scratch_len`].
    #[must_use]
    pub const fn gemm_into_halves_scratch_len(self, m: usize, k: usize) -> usize {
        let halves = Halved { a: false, c: true };
        if self.keeps_halves() { kept::scratch_len(self, halves, m, k) } else { 0 }
    }

    /// As [`Kernels::unpacked_scratch_len`].
    #[must_use]
    pub const fn unpacked_scratch_len(self, m: usize, n: usize, k: usize) -> Option<usize> {
        gemm::both::scratch_len(self, (m, false), (n, false), k)
    }

    /// Floats of scratch that [`Kernels::gemm_unpacked`] wants for operands that may be read where they lie: at most
    /// [`Footprint::unpacked_scratch_len`], and that where some CPUs pack them all the same
    /// ([`Kernels::with_packing`]). Elements between two columns of A, if elements of a column are
    /// adjacent, and between two rows of B, if elements of a row are: of a weight's gradient `X^T dY` between two rows
    /// of X and of dY.
    #[must_use]
    pub const fn lying_scratch_len(
        self,
        (m, a_col): (usize, Option<usize>),
        (n, b_row): (usize, Option<usize>),
        k: usize,
    ) -> Option<usize> {
        let a_lies = !self.may_pack && matches!(a_col, Some(col) if gemm::both::a_lies(self, col));
        let b_lies = !self.may_pack && matches!(b_row, Some(row) if gemm::both::lies(self, row));
        gemm::both::scratch_len(self, (m, a_lies), (n, b_lies), k)
    }

    /// [`Footprint::lying_scratch_len`] for each tile, of at most so many rows and columns, of a result: the last
    /// columns may want more than others, where they are no whole panels.
    #[must_use]
    pub const fn lying_tiles_scratch_len(
        self,
        (m, a_col): (usize, Option<usize>),
        (n, b_row): (usize, Option<usize>),
        k: usize,
        (rows, cols): (usize, usize),
    ) -> Option<usize> {
        let a = (least(m, rows), a_col);
        let whole = some!(self.lying_scratch_len(a, (least(n, cols), b_row), k));
        let rest = some!(self.lying_scratch_len(a, (n % cols, b_row), k));
        Some(most(whole, rest))
    }

    /// As [`Kernels::fresh_scratch_len`].
    #[must_use]
    pub const fn fresh_scratch_len(
        self,
        m: usize,
        k: usize,
        n: usize,
        into_halves: bool,
    ) -> Option<usize> {
        let slab = some!(fresh::slab_len(self, k, n, into_halves));
        let product = if into_halves {
            self.gemm_into_halves_scratch_len(m, k)
        } else {
            self.gemm_scratch_len(m, k)
        };
        slab.checked_add(product)
    }

    /// As [`Kernels::attention_block`].
    #[must_use]
    pub const fn attention_block(self) -> usize {
        attention::part(self)
    }

    /// As [`Kernels::attention_scratch_len`].
    #[must_use]
    pub const fn attention_scratch_len(self, keys: usize, head: usize) -> Option<usize> {
        attention::forward_scratch(self, keys, head)
    }

    /// As [`Kernels::attention_backward_scratch_len`].
    #[must_use]
    pub const fn attention_backward_scratch_len(self, keys: usize, head: usize) -> Option<usize> {
        attention::backward_scratch(self, keys, keys, head, Wanted::All)
    }

    /// As [`Kernels::attention_backward_queries_scratch_len`].
    #[must_use]
    pub const fn attention_backward_queries_scratch_len(
        self,
        keys: usize,
        head: usize,
    ) -> Option<usize> {
        attention::backward_scratch(self, keys, keys, head, Wanted::Queries)
    }

    /// As [`Kernels::attention_backward_keys_scratch_len`].
    #[must_use]
    pub const fn attention_backward_keys_scratch_len(
        self,
        keys: usize,
        part: usize,
        head: usize,
    ) -> Option<usize> {
        attention::backward_scratch(self, keys, least(part, keys), head, Wanted::Keys)
    }
}

#[cfg(test)]
mod tests {
    use crate::built::COMPACT;
    use crate::{Dtype, Isa, KernelSet, Kernels};

    #[test]
    fn names_have_the_footprints_of_their_kernels() {
        let mut known = 0;
        for set in KernelSet::ALL {
            let Some(kernels) = set.table() else { continue };
            known += 1;
            assert_eq!(kernels.set(), set);
            assert_eq!(set.footprint(), Some(kernels.footprint()));
            assert_eq!(kernels.products.keeps.is_some(), kernels.keeps_halves(), "{set}");
            assert!(kernels.panel().is_multiple_of(kernels.lanes()), "{set}");
        }
        // Of each kind of CPU the scalar ones besides.
        let own = [(Isa::Avx, 8), (Isa::Neon, 2), (Isa::Simd128, 2)];
        let own = own.into_iter().filter(|(isa, _)| isa.is_compiled());
        assert_eq!(known, 2 + own.map(|(_, sets)| sets).sum::<usize>());
        // And whatever is handed out has a name.
        for isa in Isa::ALL {
            let Some(kernels) = Kernels::for_isa(isa) else { continue };
            let others = [kernels, kernels.converting(), kernels.with_dtype(Dtype::Bf16)];
            let each =
                others.into_iter().flat_map(|k| [k, k.with_packing(false), k.with_packing(true)]);
            for kernels in each {
                assert!(KernelSet::ALL.contains(&kernels.set()));
                assert_eq!(kernels.set().footprint(), Some(kernels.footprint()));
            }
            for kernels in others {
                let [lying, packing] = [false, true].map(|packs| kernels.with_packing(packs));
                assert_eq!((lying.set(), packing.set()), (kernels.set(), kernels.set()));
                assert_eq!((lying.isa, packing.isa), (isa, isa));
                assert_eq!(packing.packs, isa == Isa::Amx || isa >= Isa::Avx && !COMPACT);
                assert_eq!(lying.packs, isa == Isa::Amx);
                assert_eq!(packing.with_dtype(kernels.dtype()).packs, packing.packs);
            }
        }
        // There is no such thing as native products of bf16 in scalar kernels.
        let nonsense = KernelSet { dtype: Dtype::Bf16, ..KernelSet::SCALAR };
        assert_eq!(nonsense.footprint(), None);
    }
}
