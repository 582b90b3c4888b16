//! Tiles of several panels of B at one time, for results of few rows.
//!
//! One row's products with a panel are a few chains of additions, each of which waits for the one
//! before; several panels, or rows, make enough of them. And where a call reads all of B once, lines of it are
//! asked for as far ahead as memory is away.

use super::LINE;
use super::format::Dot;
use super::micro::{Tile, UNROLL, step};
use crate::simd::Simd;
use core::hint::black_box;

/// Panels of B next to each other, for [`side_by_side`].
pub(crate) struct Panels {
    /// Words between two panels.
    pub(super) stride: usize,
    /// Floats between two panels' parts of C.
    pub(super) c_stride: usize,
    /// How many words ahead of their use lines are asked for; 0 for not at all.
    pub(super) ahead: usize,
    /// Lines come from memory, and are asked for as far as L2. GPT-2 124M (Zen 4, in turns with L1): one thread
    /// 1.19 times as many tokens a second in `f32`, 1.21 in bf16, AVX2 1.13; two 1.08, AVX2 1.05 to 1.10. What
    /// caches hold is read 0.83 to 0.9 times as fast so from L2, 0.94 to 0.97 from L3.
    pub(super) uncached: bool,
    /// Rows of words that each panel has from here on.
    pub(super) left: usize,
}

/// A tile of several panels of B, or of one with its lines asked for ahead.
///
/// # Safety
/// As for [`micro::run`](super::micro::run), with `a_col == 1` and all of `panels` panels' columns: C has a part for each,
/// `c_stride` apart, its start one `NR` apart. `rows <= MR`; 4 panels are for one row, 2 for up
/// to 3.
#[inline(always)]
pub(crate) unsafe fn side_by_side<S: Simd, F: Dot<S>>(
    s: S,
    f: F,
    t: &Tile,
    p: &Panels,
    (rows, panels): (usize, usize),
    accumulate: bool,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        if const { S::NR == 2 * S::LANES } {
            beside::<S, F, 2>(s, f, t, p, (rows, panels), accumulate);
        } else {
            beside::<S, F, 4>(s, f, t, p, (rows, panels), accumulate);
        }
    }
}

/// # Safety
/// As for [`side_by_side`], `NR == V * LANES`.
#[inline(always)]
unsafe fn beside<S: Simd, F: Dot<S>, const V: usize>(
    s: S,
    f: F,
    t: &Tile,
    p: &Panels,
    (rows, panels): (usize, usize),
    accumulate: bool,
) {
    // SAFETY: passed on from the caller; each arm is given exactly its rows and panels.
    unsafe {
        match (rows, panels) {
            (1, 4) => stream::<S, F, 1, 4, V>(s, f, t, p, accumulate),
            (1, 2) => stream::<S, F, 1, 2, V>(s, f, t, p, accumulate),
            (1, _) => stream::<S, F, 1, 1, V>(s, f, t, p, accumulate),
            (2, 2) => stream::<S, F, 2, 2, V>(s, f, t, p, accumulate),
            (2, _) => stream::<S, F, 2, 1, V>(s, f, t, p, accumulate),
            // Of vectors of several lanes these would be 24 sums: `few` asks for one panel then.
            (3, 2) if V == 2 || S::LANES == 1 => stream::<S, F, 3, 2, V>(s, f, t, p, accumulate),
            (3, _) => stream::<S, F, 3, 1, V>(s, f, t, p, accumulate),
            (4, _) => stream::<S, F, 4, 1, V>(s, f, t, p, accumulate),
            (5, _) => stream::<S, F, 5, 1, V>(s, f, t, p, accumulate),
            (6, _) => stream::<S, F, 6, 1, V>(s, f, t, p, accumulate),
            (7, _) => stream::<S, F, 7, 1, V>(s, f, t, p, accumulate),
            (8, _) => stream::<S, F, 8, 1, V>(s, f, t, p, accumulate),
            (9, _) => stream::<S, F, 9, 1, V>(s, f, t, p, accumulate),
            (10, _) => stream::<S, F, 10, 1, V>(s, f, t, p, accumulate),
            (11, _) => stream::<S, F, 11, 1, V>(s, f, t, p, accumulate),
            _ => stream::<S, F, 12, 1, V>(s, f, t, p, accumulate),
        }
    }
}

/// [`micro::tile`](super::micro::tile) over `P` whole panels at one time, `V` vectors a row of each.
///
/// # Safety
/// As for [`side_by_side`], with `rows == M` and `panels == P`.
#[inline(always)]
unsafe fn stream<S: Simd, F: Dot<S>, const M: usize, const P: usize, const V: usize>(
    s: S,
    f: F,
    t: &Tile,
    p: &Panels,
    accumulate: bool,
) {
    // No code for rows that a register block has not: see `micro::whole`.
    debug_assert!(M <= S::MR);
    if const { M > S::MR } {
        return;
    }
    debug_assert!(V * S::LANES == S::NR && t.b_row == S::NR);
    let mut sums = [[[s.splat(0.0); V]; M]; P];
    let mut rows = [t.a; M];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = black_box(t.a.wrapping_add(i * t.a_row));
    }
    let mut panels = [t.b; P];
    for (q, panel) in panels.iter_mut().enumerate() {
        *panel = t.b.wrapping_add(q * p.stride);
    }
    // Behind the last panel's end the next group of them begins.
    let near = (p.left * S::NR).saturating_sub(p.ahead) / (UNROLL * S::NR);
    // SAFETY: kc words of each row of A and kc rows of each panel, as the caller promised.
    unsafe {
        for turn in 0..t.kc / UNROLL {
            if p.ahead > 0 {
                let skips = if turn < near { 0 } else { (P - 1) * p.stride };
                for panel in panels {
                    let mut line = 0;
                    while line < UNROLL * S::NR {
                        let line_ahead = panel.wrapping_add(p.ahead + skips + line);
                        if p.uncached {
                            s.prefetch(line_ahead);
                        } else {
                            s.prefetch_near(line_ahead);
                        }
                        line += LINE;
                    }
                }
            }
            for u in 0..UNROLL {
                for (sums, panel) in sums.iter_mut().zip(panels) {
                    step(s, f, sums, &rows, u, panel.wrapping_add(u * S::NR));
                }
            }
            rows = rows.map(|row| row.wrapping_add(UNROLL));
            panels = panels.map(|panel| panel.wrapping_add(UNROLL * S::NR));
        }
        for u in 0..t.kc % UNROLL {
            for (sums, panel) in sums.iter_mut().zip(panels) {
                step(s, f, sums, &rows, u, panel.wrapping_add(u * S::NR));
            }
        }
        for (q, sums) in sums.iter().enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                for (v, &lanes) in sum.iter().enumerate() {
                    let at = v * S::LANES;
                    let c = t.c.add(q * p.c_stride + i * t.c_row + at);
                    let start = t.start.wrapping_add(q * S::NR + i * t.start_row + at);
                    s.store(c, if accumulate { s.add(lanes, s.load(start)) } else { lanes });
                }
            }
        }
    }
}
