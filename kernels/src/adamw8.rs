//! AdamW whose moments take a byte each: the rule of [`crate::adamw`] on moments that are kept by
//! blocks in 8 bits.
//!
//! As in Dettmers et al., "8-bit optimizers via block-wise quantization" (2021), every block of
//! [`MOMENTS_BLOCK`] elements is scaled by its largest one, and codes lie denser near zero. Theirs are
//! looked up in a table; here they are squares, which are made of a product and a root:
//!
//! ```text
//! m       = c1 q |q|        q whole, -127 to 127, c1 = max |m| / 127^2
//! sqrt v  = c2 r^2          r whole, 0 to 255,    c2 = max sqrt v / 255^2
//! ```
//! Of the block's largest, `m` and `sqrt v` so have values down to 1/16,129 and 1/65,025, and near a
//! hundredth of it they are 8 % and 4 % apart. (Near the largest it is 1.6 % and 0.8 %.)
//!
//! Between two codes the dither decides, so that **what is kept is the moment in the mean over steps**:
//! the nearest code would never leave its place where a step changes a moment by less than half the
//! distance, which with `beta2 = 0.95` begins at a twentieth of the largest. The upper one is taken with the
//! probability at which the mean is `m` itself, or `v` itself. The dither of an element goes on from step to step
//! by the golden ratio, which spreads any number of steps evenly, rather than by chance; that of the next
//! element is 0.7549 further.
//!
//! A `v` that is not zero keeps a code of at least 2: `m` divided by nothing would be a leap, and so the
//! least `m` beside the least `sqrt v` is no more than the largest beside the largest. The update itself sees
//! moments before they are put in 8 bits.

use crate::adamw::{AdamW, Numbers};
use crate::simd::{Simd, load_lanes, load_up_to, store_up_to};

/// Elements of AdamW's 8-bit moments that have their scales together: two floats.
pub const MOMENTS_BLOCK: usize = 64;

/// Codes of the largest first moment of a block and of the largest root of a second one.
const MOST: [f32; 2] = [127.0, 255.0];

/// `2^32 (sqrt(5) - 1) / 2`: what the dither goes on by in a step.
const TURN: u32 = 0x9e37_79b9;
/// `2^32 / g`, `g^3 = g + 1`: what it goes on by from an element to the next (Roberts, "The unreasonable
/// effectiveness of quasirandom sequences", 2018).
const NEXT: u32 = 0xc13f_a9a9;
/// `1.5 * 2^23`: added and taken off again, it rounds to a whole number.
const WHOLE: f32 = 12_582_912.0;
/// `2^-48`. Where the largest root of a block is below, its moments are let go: nothing beside `eps`. From here
/// on no second moment is denormal, and so slow: `(LEAST^2 / 255^2 END)^2` is a normal number.
const END: f32 = 3.552_713_7e-15;
/// The least code of a root of a second moment that is not zero, and what makes more than that of each:
/// they are `2^-53` or more.
const LEAST: f32 = 2.0;
const LARGE: f32 = 1e18;

/// Moments of AdamW in 8 bits, of `n` elements from the start of a block on.
///
/// All zeros are moments of zero.
#[derive(Debug)]
pub struct Moments8<'a> {
    /// `n` codes of first moments.
    pub first: &'a mut [u8],
    /// `n` codes of roots of second moments.
    pub second: &'a mut [u8],
    /// Scales of the one and of the other for each block, `2 * n.div_ceil(MOMENTS_BLOCK)` floats.
    pub scales: &'a mut [f32],
}

/// Where the dither of an update stands, for one element and those behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dither(u32);

impl Dither {
    /// For update number `update`, of element number `element` of all that are updated.
    #[must_use]
    pub const fn new(update: u64, element: usize) -> Self {
        // Both wrap, as turns do.
        let turns = (update as u32).wrapping_mul(TURN);
        Self(turns.wrapping_add((element as u32).wrapping_mul(NEXT)))
    }

    /// From 0 to below 1, for the `LANES` elements from element `i` behind the first on.
    #[inline(always)]
    fn lanes<S: Simd>(self, s: S, i: usize) -> S::V {
        let first = self.0.wrapping_add((i as u32).wrapping_mul(NEXT));
        load_lanes(s, S::LANES, |lane| {
            let turn = first.wrapping_add((lane as u32).wrapping_mul(NEXT));
            // 24 bits, which a float has.
            (turn >> 8) as i32 as f32 * (1.0 / (1 << 24) as f32)
        })
    }
}

/// Where [`Moments8`] lie.
#[derive(Clone, Copy)]
pub(crate) struct RawMoments8 {
    pub(crate) first: *mut u8,
    pub(crate) second: *mut u8,
    pub(crate) scales: *mut f32,
}

/// The whole number at or below `y >= 0`, or of a whole `y` perhaps the one before.
#[inline(always)]
fn below<S: Simd>(s: S, y: S::V) -> S::V {
    let whole = s.splat(WHOLE);
    s.sub(s.add(s.sub(y, s.splat(0.5)), whole), whole)
}

/// A code whose square is `x >= 0` in the mean over the dither, which is whole only once it is cut off.
#[inline(always)]
fn square_code<S: Simd>(s: S, x: S::V, dither: S::V) -> S::V {
    let q = below(s, s.sqrt(x));
    // (x - q^2) / ((q + 1)^2 - q^2)
    let distance = s.add(s.add(q, q), s.splat(1.0));
    let share = s.div(s.sub(x, s.mul(q, q)), distance);
    s.add(q, s.add(share, dither))
}

/// A code whose fourth power is `x^2` in the mean over the dither, `x >= 0`.
#[inline(always)]
fn fourth_code<S: Simd>(s: S, x: S::V, dither: S::V) -> S::V {
    let q = below(s, s.sqrt(x));
    // (x^2 - q^4) / ((q + 1)^4 - q^4), both as a difference of squares times their sum.
    let (square, twice) = (s.mul(q, q), s.add(q, q));
    let distance = s.add(twice, s.splat(1.0));
    let sum = s.add(s.add(square, square), distance);
    let share = s.div(s.mul(s.sub(x, square), s.add(x, square)), s.mul(distance, sum));
    s.add(q, s.add(share, dither))
}

/// The scale of a block whose largest value is `largest >= 0`, and what makes codes' powers of values.
#[inline(always)]
fn scales(largest: f32, most: f32) -> (f32, f32) {
    if largest > 0.0 { (largest / (most * most), most * most / largest) } else { (0.0, 0.0) }
}

/// Updates parameters and moments in place; the gradient is only read. What an element's update is depends
/// on its block and on the dither.
///
/// # Safety
/// The arrays of parameters and gradients hold `n` floats each, those of codes `n` bytes, that of scales two
/// floats for each [`MOMENTS_BLOCK`] of `n` or part of it; they are disjoint.
#[inline(always)]
pub(crate) unsafe fn adamw8<S: Simd>(
    s: S,
    h: &AdamW,
    dither: Dither,
    p: *mut f32,
    g: *const f32,
    moments: RawMoments8,
    n: usize,
) {
    let numbers = Numbers::new(s, h);
    let zero = s.splat(0.0);
    let size = |x: S::V| s.with_sign_of(x, zero);
    let mut at = 0;
    while at < n {
        let len = (n - at).min(MOMENTS_BLOCK);
        // SAFETY: elements at .. at + len, and their block's scales.
        unsafe {
            let (p, g) = (p.add(at), g.add(at));
            let (codes1, codes2) = (moments.first.add(at), moments.second.add(at));
            let scale = moments.scales.add(2 * (at / MOMENTS_BLOCK));
            let (scale1, scale2) = (s.splat(*scale), s.splat(*scale.add(1)));
            let (mut first, mut roots) = ([0.0_f32; MOMENTS_BLOCK], [0.0_f32; MOMENTS_BLOCK]);
            let (mut largest1, mut largest2) = (zero, zero);
            let mut i = 0;
            while i < len {
                let left = (len - i).min(S::LANES);
                let q = s.load_signed_bytes(codes1.add(i), left);
                let r = s.load_bytes(codes2.add(i), left);
                let (m, root) = (s.mul(s.mul(q, size(q)), scale1), s.mul(s.mul(r, r), scale2));
                let (weight, grad) = (load_up_to(s, p.add(i), left), load_up_to(s, g.add(i), left));
                let updated = numbers.update(s, weight, grad, m, s.mul(root, root));
                store_up_to(s, p.add(i), updated.weight, left);
                // Beyond the last element both are zero: a block is whole vectors.
                s.store(first.as_mut_ptr().add(i), updated.first);
                s.store(roots.as_mut_ptr().add(i), updated.root);
                largest1 = s.max(size(updated.first), largest1);
                largest2 = s.max(updated.root, largest2);
                i += left;
            }
            let (largest1, largest2) = (s.max_lane(largest1), s.max_lane(largest2));
            let ends = largest2 < END;
            let (scale1, of1) = scales(if ends { 0.0 } else { largest1 }, MOST[0]);
            let (scale2, of2) = scales(if ends { 0.0 } else { largest2 }, MOST[1]);
            (*scale, *scale.add(1)) = (scale1, scale2);
            let (of1, of2) = (s.splat(of1), s.splat(of2));
            let large = s.splat(if ends { 0.0 } else { LARGE });
            let mut i = 0;
            while i < len {
                let left = (len - i).min(S::LANES);
                let dither = dither.lanes(s, at + i);
                let (m, root) = (s.load(first.as_ptr().add(i)), s.load(roots.as_ptr().add(i)));
                let q = square_code(s, s.mul(size(m), of1), dither);
                let q = s.min(q, s.splat(MOST[0]));
                s.store_bytes(codes1.add(i), s.with_sign_of(q, m), left);
                let r = fourth_code(s, s.mul(root, of2), dither);
                let least = s.min(s.mul(root, large), s.splat(LEAST));
                let r = s.max(s.min(r, s.splat(MOST[1])), least);
                s.store_bytes(codes2.add(i), r, left);
                i += left;
            }
        }
        at += len;
    }
}
