//! Products so small that the way to them takes as long as they do.
//!
//! A product of 16 x 16 x 16 is 256 multiply-adds of 16 lanes. The other drivers split all three
//! dimensions and keep much in registers and on the stack for it; here there is one panel of B
//! with one block of depth, and nothing behind the sums, so each group of rows is one call of the
//! micro-kernel, which writes C. The additions are those of the other drivers, in their order.
//!
//! ```text
//! for each group of M <= MR rows of A      (groups of one size, or one less; of few columns those of `narrow`)
//!   M x n sums in registers over k products, stored to C
//! ```

use super::KC;
use super::micro::Tile;
use super::narrow::Narrow;
use super::parts::Edges;
use crate::footprint::Footprint;

/// Most rows that are taken so: with more of them the lines of C had better be asked for ahead.
const ROWS: usize = 32;

/// A product of one panel: `C = A B`.
pub(crate) struct Small {
    pub(crate) m: usize,
    pub(crate) n: usize,
    /// Words of the inner dimension.
    pub(crate) words: usize,
    /// Words of A, contiguous in rows that are `a_row` apart.
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    /// The packed panel.
    pub(crate) b: *const f32,
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    pub(crate) accumulate: bool,
}

impl Small {
    /// Whether a product of this shape is one of these.
    #[inline(always)]
    pub(crate) const fn suits(f: Footprint, m: usize, n: usize, k: usize) -> bool {
        m <= ROWS && 0 < n && n <= f.nr && k <= KC
    }

    /// Overwrites C, or adds to it, by the tiles of a format with register blocks of `f`.
    ///
    /// # Safety
    /// A, the panel and C are valid memory of the format's words and of this shape, which
    /// [`Small::suits`]; C overlaps none of the others, and the CPU has the tile's instructions.
    #[inline(always)]
    pub(crate) unsafe fn multiply(&self, edges: &Edges, f: Footprint, narrow: Narrow) {
        let most = f.mr;
        // Few: counted, and halved, without a division, which would take as long as some steps.
        let mut groups = 1;
        while groups * most < self.m {
            groups += 1;
        }
        let mut i = 0;
        while i < self.m {
            // As many rows as a group needs if all that are left are to be of one size.
            let left = self.m - i;
            let even = match groups {
                1 => left,
                2 => left.div_ceil(2),
                _ => left.div_ceil(groups),
            };
            let rows = narrow.height(left, self.n, even);
            let c = self.c.wrapping_add(i * self.c_row);
            let of = Tile {
                kc: self.words,
                a: self.a.wrapping_add(i * self.a_row),
                a_row: self.a_row,
                a_col: 1,
                b: self.b,
                b_row: f.nr,
                c,
                c_row: self.c_row,
                start: c,
                start_row: self.c_row,
                stream: false,
            };
            // SAFETY: rows inside of A and C, at most those of a register block, or those of a tile of
            // few columns; all columns of the panel that C has.
            unsafe {
                let tile = edges.of(f, narrow, rows, self.n);
                tile(&of, rows, self.n, self.accumulate);
            }
            i += rows;
            groups -= 1;
        }
    }
}
