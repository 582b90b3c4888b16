//! Sizes of blocks: how much of a step's work stays in which cache.
//!
//! [`Blocking`] holds what may differ from machine to machine. **No bit depends on it.** What
//! bits do depend on is fixed: the depth of a product's blocks ([`cllm_kernels::KC`]), the rows
//! whose sums of norm gradients are added up together (32), the rows of a group of logits (a
//! multiple of 384, by the vocabulary), and the floats whose squares are added up together. So
//! blocks of rows are multiples of the one and divide the other, and the rest is free.

use crate::arithmetic::{least, most};
use crate::line::LANES;
use crate::message::Argument::{Number, Word};
use crate::message::Message;
use cllm_kernels::Caches;
use core::fmt;

/// Rows of a block, largest first: multiples of [`super::PARTIAL_ROWS`], and the rows of a group
/// of logits are whole blocks of each.
pub(super) const ROW_BLOCKS: [usize; 6] = [384, 192, 128, 96, 64, 32];
/// Sides of tiles of weights' gradients come in multiples of this: the widest panel.
const SIDE: usize = 32;

/// Sizes of the blocks and tiles of a step.
///
/// A plan may use smaller ones, to have enough tiles for its workers. [`Blocking::check`] says
/// what is accepted.
///
/// ```
/// use cllm_core::{Blocking, Caches, Tiling};
///
/// // Of this machine's caches, with one size that was measured here.
/// let mut blocking = Blocking::for_caches(&Caches::detect());
/// assert!(blocking.set("tiles_per_worker", 8));
/// assert_eq!(blocking.check(), Ok(()));
/// // For `Plan::with_tiling`.
/// let tiling = Tiling { blocking, ..Tiling::default() };
/// assert_eq!(tiling.blocking.tiles_per_worker, 8);
///
/// blocking.row_block = 100;
/// let error = blocking.check().unwrap_err();
/// assert_eq!(error.to_string(), "row_block 100: it must be 32, 64, 96, 128, 192 or 384");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocking {
    /// Most rows (tokens) of a tile of the forward and backward pass, which goes through a chain
    /// of operations while its activations are in the second level of cache: 32, 64, 96, 128,
    /// 192 or 384. Where weights are packed on the way rows decide, not this.
    pub row_block: usize,
    /// Rows of the largest tile of a weight's gradient, a multiple of 32. The more rows, the more
    /// often a packed gradient of the product's output is used.
    pub weight_rows: usize,
    /// Columns of that tile, a multiple of 32. The more, the more often a packed input of the
    /// product is used; rows times columns are added to for each block of tokens.
    pub weight_cols: usize,
    /// Tiles of an operation that each of several workers should have, at least 1: the more, the
    /// smaller the imbalance of one tile, and the slower the tiles.
    pub tiles_per_worker: usize,
    /// Row blocks of logits in flight for each of several workers, at least 1. Groups of logits
    /// are whole; a worker that is alone has one.
    pub logits_blocks: usize,
    /// Floats of a tile of the update, a multiple of 16, unless there would be more tiles than an
    /// operation can have. Four arrays of so many are read and three written.
    pub update_floats: usize,
    /// Floats of a model's matrices from which on weights may be packed on the way
    /// ([`super::Packing::Fresh`]): packed both ways round they are twice as many.
    pub fresh_floats: usize,
    /// Most rows of a batch for which they are: more rows use a packed weight often enough. With
    /// 0 they never are.
    pub fresh_rows: usize,
}

/// A size that the core cannot take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockingError {
    /// The field of [`Blocking`].
    pub field: &'static str,
    /// Its value.
    pub value: usize,
    /// What is accepted.
    pub accepts: &'static str,
}

impl BlockingError {
    /// What is said of it.
    pub(super) const fn message(&self) -> Message {
        Message::three(
            Word(self.field),
            " ",
            Number(self.value),
            ": it must be ",
            Word(self.accepts),
        )
    }
}

impl fmt::Display for BlockingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message().fmt(f)
    }
}

impl core::error::Error for BlockingError {}

impl Default for Blocking {
    /// [`Blocking::DEFAULT`], for [`Caches::FALLBACK`].
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What is accepted of a field.
#[derive(Clone, Copy)]
enum Accepts {
    RowBlocks,
    MultiplesOf(usize),
    AtLeastOne,
    All,
}

impl Accepts {
    const fn takes(self, value: usize) -> bool {
        match self {
            Self::RowBlocks => row_block_up_to(value) == value,
            Self::MultiplesOf(of) => value > 0 && value.is_multiple_of(of),
            Self::AtLeastOne => value > 0,
            Self::All => true,
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::RowBlocks => "32, 64, 96, 128, 192 or 384",
            Self::MultiplesOf(SIDE) => "a multiple of 32",
            Self::MultiplesOf(_) => "a multiple of 16",
            Self::AtLeastOne => "at least 1",
            Self::All => "any number",
        }
    }
}

/// The largest of [`ROW_BLOCKS`] of no more than so many rows, or the smallest.
const fn row_block_up_to(rows: usize) -> usize {
    let mut i = 0;
    while i + 1 < ROW_BLOCKS.len() && ROW_BLOCKS[i] > rows {
        i += 1;
    }
    ROW_BLOCKS[i]
}

/// `usize::clamp`.
const fn within(value: usize, low: usize, high: usize) -> usize {
    least(most(value, low), high)
}

impl Blocking {
    /// For [`Caches::FALLBACK`]: what plans have that are made before there is a CPU to be asked.
    pub const DEFAULT: Self = Self::for_caches(&Caches::FALLBACK);

    /// Sizes for a CPU with these caches; those of level 2 decide.
    ///
    /// - `row_block`: the most rows of a 1,024-wide activation that leave a quarter of level 2 to
    ///   weights, but no more than 96: 96 from 512 KiB on. With 2 MiB, 192 rows took 0.98 to 1.02
    ///   of the reference step's time, 384 rows 0.97 (one thread, `f32`) to 1.06.
    /// - `weight_rows`, `weight_cols`: the largest square, of a power of two, that is at most half
    ///   of level 2, from 128 to 512: 256 from 512 KiB on, 512 from 2 MiB on. Against 128 rows,
    ///   256 made the reference step 1 to 7 % faster with 512 KiB (Zen 3, one thread, four runs in
    ///   turns); against 256 x 256, 512 x 512 took 0.98 of its time with 2 MiB on one thread in bf16
    ///   (AMX), and 0.98 to 1.03, within the noise, on two and in `f32` (AVX-512; `cllm tune`,
    ///   medians of 7 to 28 rounds in turns).
    /// - `update_floats`: four arrays are level 2, from 8,192 to 32,768 floats.
    /// - The rest does not follow from caches. Four tiles a worker; two row blocks of logits.
    ///   Weights are packed on the way from 32 Mi floats on, which packed both ways round are
    ///   256 MiB, more than few caches hold, for up to 384 rows: GPT-2 124M took 0.77 of the time
    ///   for 256 rows, 1.04 of it for 2,048 (AVX-512, two workers, in turns).
    #[must_use]
    pub const fn for_caches(caches: &Caches) -> Self {
        const FLOAT: usize = size_of::<f32>();
        let l2 = caches.l2;
        let rows = l2 / 4 * 3 / (1024 * FLOAT);
        let side = most((l2 / 2 / FLOAT).isqrt(), 1);
        let side = within(1 << side.ilog2(), 128, 512);
        Self {
            row_block: row_block_up_to(least(rows, 96)),
            weight_rows: side,
            weight_cols: side,
            tiles_per_worker: 4,
            logits_blocks: 2,
            update_floats: within((l2 / 4 / FLOAT).next_multiple_of(LANES), 8 * 1024, 32 * 1024),
            fresh_floats: 32 << 20,
            fresh_rows: 384,
        }
    }

    /// The fields by name, in their order.
    #[must_use]
    pub const fn fields(&self) -> [(&'static str, usize); 8] {
        let mut copy = *self;
        let places = copy.places();
        let (mut fields, mut i) = ([("", 0); 8], 0);
        while i < fields.len() {
            fields[i] = (places[i].0, *places[i].1);
            i += 1;
        }
        fields
    }

    /// Sets a field by name; false if there is none of that name.
    pub fn set(&mut self, field: &str, value: usize) -> bool {
        let place = self.places().into_iter().find(|(name, ..)| *name == field);
        place.map(|(_, place, _)| *place = value).is_some()
    }

    const fn places(&mut self) -> [(&'static str, &mut usize, Accepts); 8] {
        [
            ("row_block", &mut self.row_block, Accepts::RowBlocks),
            ("weight_rows", &mut self.weight_rows, Accepts::MultiplesOf(SIDE)),
            ("weight_cols", &mut self.weight_cols, Accepts::MultiplesOf(SIDE)),
            ("tiles_per_worker", &mut self.tiles_per_worker, Accepts::AtLeastOne),
            ("logits_blocks", &mut self.logits_blocks, Accepts::AtLeastOne),
            ("update_floats", &mut self.update_floats, Accepts::MultiplesOf(LANES)),
            ("fresh_floats", &mut self.fresh_floats, Accepts::All),
            ("fresh_rows", &mut self.fresh_rows, Accepts::All),
        ]
    }

    /// Checks that the core can take it. Nothing is rounded.
    ///
    /// # Errors
    /// The first field that it cannot take.
    pub const fn check(&self) -> Result<(), BlockingError> {
        let mut copy = *self;
        let places = copy.places();
        let mut i = 0;
        while i < places.len() {
            let (field, value, accepts) = (places[i].0, *places[i].1, places[i].2);
            if !accepts.takes(value) {
                return Err(BlockingError { field, value, accepts: accepts.words() });
            }
            i += 1;
        }
        Ok(())
    }

    /// Rows and columns of tiles of weights' gradients, largest first.
    pub(super) const fn weight_tiles(&self) -> [(usize, usize); 4] {
        const fn part(side: usize, of: usize) -> usize {
            (side / of).next_multiple_of(SIDE)
        }
        let (rows, cols) = (self.weight_rows, self.weight_cols);
        [
            (rows, cols),
            (rows, part(cols, 2)),
            (part(rows, 2), part(cols, 2)),
            (part(rows, 2), part(cols, 4)),
        ]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;

    use super::*;

    fn of_l2(kib: usize) -> Blocking {
        let blocking = Blocking::for_caches(&Caches { l2: kib << 10, ..Caches::FALLBACK });
        assert_eq!(blocking.check(), Ok(()));
        blocking
    }

    #[test]
    fn common_caches_have_the_sizes_that_were_tuned() {
        for kib in [512, 1024, 1280] {
            let blocking = of_l2(kib);
            assert_eq!(blocking.row_block, super::super::ROW_BLOCK);
            assert_eq!((blocking.weight_rows, blocking.weight_cols), (256, 256));
            assert_eq!(blocking.update_floats, 32 * 1024);
            let tiles = [(256, 256), (256, 128), (128, 128), (128, 64)];
            assert_eq!(blocking.weight_tiles(), tiles);
        }
        assert_eq!(of_l2(512), Blocking::default());
        let large = Blocking { weight_rows: 512, weight_cols: 512, ..Blocking::default() };
        assert!([2048, 4096, 1 << 20].into_iter().all(|kib| of_l2(kib) == large));
    }

    #[test]
    fn small_caches_have_small_blocks() {
        let quarter = of_l2(256);
        assert_eq!((quarter.row_block, quarter.weight_rows), (32, 128));
        assert_eq!(quarter.update_floats, 16 * 1024);
        let nothing = of_l2(0);
        assert_eq!(
            (nothing.row_block, nothing.weight_rows, nothing.update_floats),
            (32, 128, 8192)
        );
    }

    #[test]
    fn fields_are_found_by_name_and_what_the_core_cannot_take_is_refused() {
        for (field, value) in [
            ("row_block", 0),
            ("row_block", 48),
            ("row_block", 256),
            ("row_block", 768),
            ("weight_rows", 0),
            ("weight_cols", 100),
            ("tiles_per_worker", 0),
            ("logits_blocks", 0),
            ("update_floats", 0),
            ("update_floats", 40),
        ] {
            let mut blocking = Blocking::default();
            assert!(blocking.set(field, value));
            assert!(blocking.fields().contains(&(field, value)));
            let error = blocking.check().unwrap_err();
            assert_eq!((error.field, error.value), (field, value));
        }
        let mut blocking = Blocking::default();
        assert!(!blocking.set("rows", 1));
        assert!(blocking.set("fresh_rows", 0) && blocking.set("fresh_floats", usize::MAX));
        assert_eq!(blocking.check(), Ok(()));
        let error = BlockingError { field: "row_block", value: 7, accepts: "a multiple of 8" };
        assert_eq!(std::format!("{error}"), "row_block 7: it must be a multiple of 8");
    }
}
