//! The large parts of products, each in a function of its own that all kernels of a format share.
//!
//! A shell (`crate::shells`) around each gives it its instructions. Built into every product they were there several
//! times, and in one function with each other the optimiser took three times as long: what some of its passes do for
//! a loop grows with the function around it.

use super::beside::Panels;
use super::block::Panel;
use super::fetch::Run;
use super::format::Format;
use super::micro::Tile;
use super::narrow::Narrow;
use super::pack::PackFn;
use super::{RawGemm, Rows};
use crate::built::COMPACT;
use crate::footprint::Footprint;
use crate::simd::Simd;

/// A tile of some rows and columns: [`edge::tile`](super::edge::tile), or [`narrow::tile`](super::narrow::tile).
pub(crate) type TileFn = unsafe fn(&Tile, usize, usize, bool);

/// [`few::gemm`](super::few::gemm).
pub(crate) type FewFn = unsafe fn(&RawGemm, &Rows);

/// [`block`](super::block::block), of a format that has nothing to set up.
pub(crate) type BlockFn = unsafe fn(&RawGemm, &Rows, usize, usize);

/// [`block::whole`](super::block::whole).
pub(crate) type WholeFn = unsafe fn(&RawGemm, &Rows, &Panel, &mut Run) -> usize;

/// [`beside::side_by_side`](super::beside::side_by_side).
pub(crate) type BesideFn = unsafe fn(&Tile, &Panels, usize, usize, bool);

/// Those of one format and instruction set. The CPU has what its token stands for: who has a token may call them.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    /// Tiles at the edges of C, where elements of a row of A are adjacent, and where those of a column are.
    pub(crate) along: Edges,
    pub(crate) across: Edges,
    pub(crate) few: FewFn,
    pub(crate) beside: BesideFn,
    pub(crate) block: BlockFn,
    pub(crate) whole: Whole,
}

/// The loops over whole register blocks of a panel: what each is for is known beforehand.
#[derive(Clone, Copy)]
pub(crate) struct Whole {
    /// To C, and with rows of A asked for, or with what is ahead of the product.
    pub(crate) plain: WholeFn,
    pub(crate) rows: WholeFn,
    pub(crate) ahead: WholeFn,
    /// Through an epilogue, and with rows of A asked for.
    pub(crate) through: WholeFn,
    pub(crate) through_rows: WholeFn,
}

impl Parts {
    /// The function for a tile of so many rows and columns.
    #[inline(always)]
    pub(crate) const fn edge<S: Simd, F: Format<S>>(
        &self,
        t: &Tile,
        rows: usize,
        cols: usize,
    ) -> TileFn {
        if COMPACT {
            // One does for all, and nothing refers to the others.
            return self.across.half;
        }
        let edges = if t.a_col == 1 { &self.along } else { &self.across };
        edges.of(F::FOOTPRINT, Narrow::of::<S, F>(), rows, cols)
    }
}

/// Tiles at the edges of C.
#[derive(Clone, Copy)]
pub(crate) struct Edges {
    /// Of up to half of a panel's columns, and of more.
    pub(crate) half: TileFn,
    pub(crate) wide: TileFn,
    pub(crate) narrow: TileFn,
}

impl Edges {
    /// The function for a tile of so many rows and columns.
    #[inline(always)]
    pub(crate) const fn of(
        &self,
        f: Footprint,
        narrow: Narrow,
        rows: usize,
        cols: usize,
    ) -> TileFn {
        if narrow.is(rows, f.mr) {
            self.narrow
        } else if cols > f.nr / 2 {
            self.wide
        } else {
            self.half
        }
    }
}

/// The functions of an instruction set that kernels of the formats that every set has share.
pub(crate) trait Shared {
    /// Of both formats: what they multiply are floats.
    const PARTS: Parts;
    const PACK_SINGLE: PackFn;
    const PACK_ROUNDED: PackFn;
}
