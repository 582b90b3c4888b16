//! Adapters of low rank beside the matrices of blocks, to train in the place of those (Hu et al.,
//! "LoRA: low-rank adaptation of large language models", 2021, section 4.1):
//!
//! ```text
//! y = x W + scale (x A) B      A: inputs x rank, random;  B: rank x outputs, zero at first
//! ```
//! W is only read. What others know as matrices of their own may lie side by side here (queries,
//! keys and values; a gate and what it lets through): an adapter is of the whole matrix or of one of
//! those parts. The As of a matrix's parts lie side by side, and so do their Bs, each in its part's
//! columns:
//!
//! ```text
//! A: inputs x (parts * rank)      B: rank x all columns of the matrix, zero beside the parts
//! ```
//! The arena of all adapters, block by block, lies behind that of the model's parameters; gradients
//! and moments are of adapters alone.

mod site;

pub use site::{AdapterSite, AdapterSites};

use crate::arithmetic::{ok, some};
use crate::config::{MAX_DIMENSION, ModelConfig};
use crate::message::Argument::{Float, Number, Word};
use crate::message::Message;
use crate::params::{ParamSpec, ParamTable};
use crate::plan::Bump;
use crate::program::Matrix;
use AdapterSite::{Fc, Gate, Keys, Qkv, Queries, Up, Values};
use core::fmt;
use core::ops::Range;

/// The adapters of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adapters {
    /// Columns of each A, rows of each B.
    pub rank: usize,
    /// Factor of what they add: `alpha / rank` in the words of the paper.
    pub scale: f32,
    /// What has one, in every block.
    pub sites: AdapterSites,
}

/// What is wrong with [`Adapters`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AdapterError {
    /// The rank is 0 or above [`MAX_DIMENSION`].
    Rank(usize),
    /// The scale is not a positive number.
    Scale(f32),
    /// Nothing has an adapter.
    NoSite,
    /// A matrix and a part of it have one.
    Twice(AdapterSite),
    /// The model has no gate.
    NoGate,
    /// Their sizes overflow the address space.
    Overflow,
}

impl AdapterError {
    /// What is said of it.
    pub(crate) const fn message(&self) -> Message {
        match *self {
            Self::Rank(rank) => Message::two(
                "adapters have rank ",
                Number(rank),
                ": it must be from 1 to ",
                Number(MAX_DIMENSION),
                "",
            ),
            Self::Scale(scale) => Message::one(
                "the scale of adapters is ",
                Float(scale),
                ": it must be a positive number",
            ),
            Self::NoSite => Message::plain("no matrix has an adapter: at least one must"),
            Self::Twice(site) => Message::one(
                "",
                Word(site.name()),
                " has an adapter as part of its matrix and with all of it",
            ),
            Self::NoGate => Message::plain("the feed-forward layer has no gate to have an adapter"),
            Self::Overflow => Message::plain("the adapters are too large for the address space"),
        }
    }
}

impl fmt::Display for AdapterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message().fmt(f)
    }
}

impl core::error::Error for AdapterError {}

impl Adapters {
    /// Checks them for a model.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub const fn validate(&self, config: &ModelConfig) -> Result<(), AdapterError> {
        if self.rank == 0 || self.rank > MAX_DIMENSION {
            return Err(AdapterError::Rank(self.rank));
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            return Err(AdapterError::Scale(self.scale));
        }
        if self.sites.0 == 0 {
            return Err(AdapterError::NoSite);
        }
        let parts = [(Queries, Qkv), (Keys, Qkv), (Values, Qkv), (Gate, Fc), (Up, Fc)];
        let mut i = 0;
        while i < parts.len() {
            let (part, whole) = parts[i];
            if self.sites.has(part) && self.sites.has(whole) {
                return Err(AdapterError::Twice(part));
            }
            i += 1;
        }
        let gated = self.sites.has(Gate) || self.sites.has(Up);
        if gated && !config.arch.is_gated() { Err(AdapterError::NoGate) } else { Ok(()) }
    }
}

/// An A or a B of a block's matrix, all parts of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Factor {
    /// First float in the arena of adapters.
    pub(crate) offset: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Factor {
    pub(crate) const fn len(&self) -> usize {
        self.rows * self.cols
    }
}

/// One adapter: of one site in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterSpec {
    /// The block.
    pub block: usize,
    /// Which of its matrices, or parts of them.
    pub site: AdapterSite,
    /// Rows of A.
    pub inputs: usize,
    /// Columns of A, rows of B.
    pub rank: usize,
    /// Columns of B.
    pub outputs: usize,
    /// First float of A in the arena of adapters, and from a row to the next.
    pub a: (usize, usize),
    /// The same of B.
    pub b: (usize, usize),
    /// Where B's columns begin in the matrix.
    pub first_output: usize,
}

/// Where all adapters of a model lie in their arena: each A and B starts on a cache line, and the gap
/// behind it stays zero.
///
/// ```
/// use cllm_core::{AdapterSite, AdapterSites, AdapterTable, Adapters, Architecture, ModelConfig};
///
/// # let config = ModelConfig { vocab_size: 300, block_size: 8, n_layer: 2, n_head: 4, d_model: 32,
/// #     d_ff: 80, bias: false, tied: true, dropout: 0.0, norm_eps: 1e-5, arch: Architecture::LLAMA };
/// // For a model of two blocks, 32 wide. `alpha` is 16.
/// let sites = AdapterSites::of(&[AdapterSite::Queries, AdapterSite::Values]);
/// let adapters = Adapters { rank: 4, scale: 16.0 / 4.0, sites };
/// let table = AdapterTable::new(&config, &adapters)?;
/// // A and B of each of two parts in each of two blocks.
/// assert_eq!(table.parameters(), 2 * 2 * (32 * 4 + 4 * 32));
///
/// let values = table.spec(1, AdapterSite::Values).expect("every block has one");
/// assert_eq!((values.inputs, values.rank, values.outputs), (32, 4, 32));
/// // In the matrix of queries, keys and values, theirs are the last columns. The As of the two parts
/// // lie side by side.
/// assert_eq!((values.first_output, values.a.1), (64, 2 * 4));
/// assert_eq!(table.spec(1, AdapterSite::Keys), None);
/// # Ok::<(), cllm_core::AdapterError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterTable {
    config: ModelConfig,
    adapters: Adapters,
    /// Parts of each matrix of a block that have an adapter.
    parts: [usize; 4],
    /// Offsets of A and B of each matrix in a block.
    in_block: [[usize; 2]; 4],
    block_len: usize,
    len: usize,
}

impl AdapterTable {
    /// Lays out `adapters` of a valid `config`.
    ///
    /// # Errors
    /// What [`Adapters::validate`] finds, or [`AdapterError::Overflow`].
    pub const fn new(config: &ModelConfig, adapters: &Adapters) -> Result<Self, AdapterError> {
        ok!(adapters.validate(config));
        match Self::laid_out(config, adapters) {
            Some(table) => Ok(table),
            None => Err(AdapterError::Overflow),
        }
    }

    const fn laid_out(config: &ModelConfig, adapters: &Adapters) -> Option<Self> {
        let (mut parts, mut i) = ([0_usize; 4], 0);
        while i < AdapterSite::ALL.len() {
            let site = AdapterSite::ALL[i];
            parts[site.matrix() as usize] += adapters.sites.has(site) as usize;
            i += 1;
        }
        let (mut in_block, mut bump) = ([[0; 2]; 4], Bump(0));
        let matrices = config.matrices();
        let mut matrix = 0;
        while matrix < matrices.len() {
            let (inputs, outputs) = matrices[matrix];
            let ranks = some!(parts[matrix].checked_mul(adapters.rank));
            let b = if ranks > 0 { some!(adapters.rank.checked_mul(outputs)) } else { 0 };
            in_block[matrix] =
                [some!(bump.take(some!(inputs.checked_mul(ranks)))), some!(bump.take(b))];
            matrix += 1;
        }
        let block_len = bump.0;
        let len = some!(block_len.checked_mul(config.n_layer));
        if len > isize::MAX as usize / 16 {
            return None;
        }
        let (config, adapters) = (*config, *adapters);
        Some(Self { config, adapters, parts, in_block, block_len, len })
    }

    /// What they are.
    #[must_use]
    pub const fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// Floats of the arena, padding included: a whole number of lines.
    #[must_use]
    pub const fn arena_len(&self) -> usize {
        self.len
    }

    /// Number of trained values: without padding, and without columns of B beside the parts.
    #[must_use]
    pub fn parameters(&self) -> usize {
        let sites = self.adapters.sites.iter().filter_map(|site| self.spec(0, site));
        let block: usize = sites.map(|spec| (spec.inputs + spec.outputs) * spec.rank).sum();
        block * self.config.n_layer
    }

    /// Number of values of all factors, without padding: those that are written.
    pub(crate) fn stored(&self) -> usize {
        let factors = Matrix::OF_BLOCK.into_iter().filter_map(|matrix| self.factors(matrix, 0));
        let block: usize = factors.flatten().map(|factor| factor.len()).sum();
        block * self.config.n_layer
    }

    /// The adapters, block by block, in the order of [`AdapterSite::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = AdapterSpec> + '_ {
        (0..self.config.n_layer).flat_map(move |block| {
            self.adapters.sites.iter().filter_map(move |site| self.spec(block, site))
        })
    }

    /// One of them; `None` if there is none.
    #[must_use]
    pub fn spec(&self, block: usize, site: AdapterSite) -> Option<AdapterSpec> {
        if !self.adapters.sites.has(site) {
            return None;
        }
        let [a, b] = self.factors(site.matrix(), block)?;
        let before = self.adapters.sites.iter().take_while(|other| *other != site);
        let part = before.filter(|other| other.matrix() == site.matrix()).count();
        let (first_output, outputs) = site.columns(&self.config);
        let rank = self.adapters.rank;
        Some(AdapterSpec {
            block,
            site,
            inputs: a.rows,
            rank,
            outputs,
            a: (a.offset + part * rank, a.cols),
            b: (b.offset + first_output, b.cols),
            first_output,
        })
    }

    /// A and B of a block's matrix; `None` if it has no adapter.
    pub(crate) const fn factors(&self, matrix: Matrix, block: usize) -> Option<[Factor; 2]> {
        let number = matrix as usize;
        // The output projection, which is in no block, has none.
        if number >= self.parts.len() || self.parts[number] == 0 || block >= self.config.n_layer {
            return None;
        }
        let (inputs, outputs) = self.config.matrices()[number];
        let start = block * self.block_len;
        let [a, b] = self.in_block[number];
        let (parts, rank) = (self.parts[number], self.adapters.rank);
        Some([
            Factor { offset: start + a, rows: inputs, cols: parts * rank },
            Factor { offset: start + b, rows: rank, cols: outputs },
        ])
    }

    /// First column and columns of each part of a matrix that has an adapter.
    pub(crate) fn parts(&self, matrix: Matrix) -> impl Iterator<Item = (usize, usize)> + '_ {
        let of = move |site: &AdapterSite| site.matrix() == matrix;
        self.adapters.sites.iter().filter(of).map(|site| site.columns(&self.config))
    }

    /// Where each factor lies in the arena, one behind another: what is written of it.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let factors = (0..self.count()).filter_map(|index| self.get(index));
        factors.map(|factor| factor.offset..factor.offset + factor.len())
    }

    /// Factors of the arena: number `index` in the order of blocks and matrices, A before B.
    pub(crate) const fn get(&self, index: usize) -> Option<Factor> {
        let of_block = 2 * self.adapted();
        let (block, within) = (index / of_block, index % of_block);
        // Matrices in front of the wanted one.
        let (mut left, mut i) = (within / 2, 0);
        while i < Matrix::OF_BLOCK.len() {
            if self.parts[i] > 0 {
                if left == 0 {
                    return Some(some!(self.factors(Matrix::OF_BLOCK[i], block))[within % 2]);
                }
                left -= 1;
            }
            i += 1;
        }
        None
    }

    /// How many [`AdapterTable::get`] knows.
    pub(crate) const fn count(&self) -> usize {
        2 * self.adapted() * self.config.n_layer
    }

    /// Matrices of a block that have an adapter.
    const fn adapted(&self) -> usize {
        let (mut adapted, mut i) = (0, 0);
        while i < self.parts.len() {
            adapted += (self.parts[i] > 0) as usize;
            i += 1;
        }
        adapted
    }

    /// Adds what the adapters compute to the matrices they stand beside: `W += scale A B`, summed in
    /// `f64` and rounded once.
    ///
    /// # Panics
    /// If an arena is shorter than its table.
    pub fn merge(&self, table: &ParamTable, adapters: &[f32], parameters: &mut [f32]) {
        for weight in table.iter() {
            self.merge_into(&weight, 0, adapters, &mut parameters[weight.range()]);
        }
    }

    /// As [`AdapterTable::merge`], to the `values` of whole rows of one of the model's tensors, from row
    /// `first` on: nothing if no adapter stands beside it.
    ///
    /// # Panics
    /// If the values are more than those rows have, or `adapters` fewer than the table.
    pub fn merge_into(
        &self,
        weight: &ParamSpec,
        first: usize,
        adapters: &[f32],
        values: &mut [f32],
    ) {
        /// Columns whose sums are made at a time.
        const COLUMNS: usize = 64;
        let beside = |spec: &AdapterSpec| spec.site.matrix().param(spec.block) == weight.param;
        for spec in self.iter().filter(beside) {
            for (i, row) in values.chunks_exact_mut(weight.cols).enumerate() {
                let a = &adapters[spec.a.0 + (first + i) * spec.a.1..][..spec.rank];
                let row = &mut row[spec.first_output..][..spec.outputs];
                for (number, weights) in row.chunks_mut(COLUMNS).enumerate() {
                    let mut sums = [0.0_f64; COLUMNS];
                    for (q, a) in a.iter().enumerate() {
                        let b = spec.b.0 + q * spec.b.1 + number * COLUMNS;
                        for (sum, b) in sums.iter_mut().zip(&adapters[b..b + weights.len()]) {
                            *sum += f64::from(*a) * f64::from(*b);
                        }
                    }
                    for (w, sum) in weights.iter_mut().zip(sums) {
                        *w = (f64::from(*w) + f64::from(self.adapters.scale) * sum) as f32;
                    }
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::AdapterSite::{AttnOut, MlpOut};
    use super::*;
    use crate::architecture::Architecture;
    use crate::line::LANES;
    use crate::params::ParamTable;
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    const CONFIG: ModelConfig = ModelConfig {
        vocab_size: 20,
        block_size: 8,
        n_layer: 3,
        n_head: 4,
        d_model: 12,
        d_ff: 10,
        bias: false,
        tied: true,
        dropout: 0.0,
        norm_eps: 1e-5,
        arch: Architecture { n_kv_head: Some(2), head_size: Some(4), ..Architecture::LLAMA },
    };

    fn adapters(sites: &[AdapterSite]) -> Adapters {
        Adapters { rank: 3, scale: 0.5, sites: AdapterSites::of(sites) }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let check = |sites: &[AdapterSite]| adapters(sites).validate(&CONFIG);
        assert_eq!(check(&[Queries, Values, Gate, MlpOut]), Ok(()));
        assert_eq!(check(&[Qkv, AttnOut, Fc]), Ok(()));
        assert_eq!(check(&[]), Err(AdapterError::NoSite));
        assert_eq!(check(&[Qkv, Keys]), Err(AdapterError::Twice(Keys)));
        assert_eq!(check(&[Up, Fc]), Err(AdapterError::Twice(Up)));
        let plain = ModelConfig { arch: Architecture::GPT2, ..CONFIG };
        assert_eq!(adapters(&[Up]).validate(&plain), Err(AdapterError::NoGate));
        for rank in [0, MAX_DIMENSION + 1] {
            let adapters = Adapters { rank, ..adapters(&[Qkv]) };
            assert_eq!(adapters.validate(&CONFIG), Err(AdapterError::Rank(rank)));
        }
        for scale in [0.0, -1.0, f32::INFINITY] {
            let adapters = Adapters { scale, ..adapters(&[Qkv]) };
            assert_eq!(adapters.validate(&CONFIG), Err(AdapterError::Scale(scale)));
        }
        let huge = Adapters { rank: MAX_DIMENSION, ..adapters(&[Qkv]) };
        let wide = ModelConfig { d_model: 1 << 28, n_layer: 1 << 28, ..CONFIG };
        assert_eq!(AdapterTable::new(&wide, &huge).unwrap_err(), AdapterError::Overflow);
    }

    #[test]
    fn factors_are_adjacent_and_parts_share_them() {
        let table = AdapterTable::new(&CONFIG, &adapters(&[Queries, Values, Up, MlpOut])).unwrap();
        let mut end = 0;
        for index in 0..table.count() {
            let factor = table.get(index).unwrap();
            assert_eq!(factor.offset, end);
            end = (factor.offset + factor.len()).next_multiple_of(LANES);
        }
        assert_eq!((end, table.count()), (table.arena_len(), 3 * 3 * 2));
        assert_eq!(table.get(table.count()), None);
        // Queries have 16 columns, keys and values 8 each.
        let [q, v] = [Queries, Values].map(|site| table.spec(2, site).unwrap());
        assert_eq!((q.inputs, q.outputs, q.a.1, q.b.1), (12, 16, 6, 32));
        assert_eq!((v.a.0 - q.a.0, v.b.0 - q.b.0, v.outputs), (3, 24, 8));
        let up = table.spec(0, Up).unwrap();
        assert_eq!((up.a.1, up.first_output, up.outputs), (3, 10, 10));
        assert_eq!(table.spec(0, Gate), None);
        let values = (12 + 16) + (12 + 8) + (12 + 10) + (10 + 12);
        assert_eq!(table.parameters(), 3 * 3 * values);
        let parts: Vec<_> = table.parts(Matrix::Qkv).collect();
        assert_eq!(parts, [(0, 16), (24, 8)]);
    }

    #[test]
    fn merging_adds_the_product_of_each_part() {
        let table = AdapterTable::new(&CONFIG, &adapters(&[Values, Gate])).unwrap();
        let params = ParamTable::new(&CONFIG).unwrap();
        let arena: Vec<f32> = (0..table.arena_len()).map(|i| (i % 13) as f32 - 6.0).collect();
        let mut weights = vec![1.0; params.arena_len()];
        table.merge(&params, &arena, &mut weights);
        let mut changed = vec![1.0; params.arena_len()];
        for block in 0..3 {
            for (site, width, first) in [(Values, 32, 24), (Gate, 20, 0)] {
                let spec = table.spec(block, site).unwrap();
                let at = params.spec(site.matrix().param(block)).unwrap().offset;
                for i in 0..spec.inputs {
                    for j in 0..spec.outputs {
                        let term = |q: usize| {
                            arena[spec.a.0 + i * spec.a.1 + q] * arena[spec.b.0 + q * spec.b.1 + j]
                        };
                        changed[at + i * width + first + j] += 0.5 * (0..3).map(term).sum::<f32>();
                    }
                }
            }
        }
        assert!(weights == changed, "small whole numbers are exact");
    }
}
