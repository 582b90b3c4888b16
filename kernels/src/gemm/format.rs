//! How the elements of operands are held while they are multiplied: in *words* of the
//! size of an `f32`.
//!
//! | format | a word holds | products of a word |
//! |---|---|---|
//! | [`Single`] | an `f32` | multiply-add |
//! | [`Rounded`] | an `f32` rounded to the precision of bf16 | multiply-add: exact products of bf16 |
//! | [`Paired`] | two bf16, neighbours along the inner dimension | two at once (`vdpbf16ps`) |
//! | [`Tiled`](super::tiled::Tiled) | the same | 16 x 16 sums of 32 at once (`tdpbf16ps`) |
//!
//! Sums are `f32` in every format. The micro-kernel and packing are the same code for all of
//! them: an inner dimension of `k` elements is one of [`Format::words`] words.
//!
//! bf16 is the upper half of an `f32`; rounding is to nearest, ties to even, and keeps NaN and
//! infinity. `vdpbf16ps` takes denormal operands for zero and gives no denormal sums, and the
//! instructions that convert make zeros of denormals before they round: so does every path to
//! a word of [`Paired`], or bits would depend on which elements go through vectors.

use super::fetch::Fetch;
use super::micro::{self, Tile};
use super::pack::PackFn;
use super::parts::Parts;
use crate::elements::{Elements, Floats};
use crate::footprint::Footprint;
use crate::simd::{MOST_LANES, Simd};

/// A way to hold operands, on one instruction set. A value is a token, as of [`Simd`].
pub(crate) trait Format<S: Simd>: Copy {
    /// Elements of the inner dimension in a word.
    const DEPTH: usize;
    /// Floats are words as they lie.
    const IS_PLAIN: bool = false;

    /// Rows of a register block; its columns are [`Simd::NR`].
    const MR: usize = S::MR;

    /// Whether words are read in tiles: rows of A have whole lines of words, zeros at the end, and lie in one piece, or
    /// packed for gradients of weights in such lines. Scratch that begins where a cache line does is faster.
    const TILES: bool = false;

    /// These, as sizes are computed from.
    const FOOTPRINT: Footprint = Footprint {
        nr: S::NR,
        mr: Self::MR,
        depth: Self::DEPTH,
        plain: Self::IS_PLAIN,
        tiles: Self::TILES,
        may_pack: Self::IS_PLAIN && S::LANES > 1 && cfg!(target_arch = "x86_64"),
    };

    /// What a thread sets up to multiply, from the first product of a call to the last.
    type Unit;

    /// [`pack_b`](super::pack::pack_b) in a function of its own.
    ///
    /// All that packs B calls it: it is large, and what it is called for are whole matrices.
    const PACK_B: PackFn;

    /// A unit that nothing is set up for yet.
    fn unit(self) -> Self::Unit;

    /// How often a tile's loop over `kc` words asks for a far line.
    #[inline(always)]
    fn turns(kc: usize) -> usize {
        kc / micro::UNROLL
    }

    /// One tile of sums: see [`micro::run`].
    ///
    /// # Safety
    /// A is valid for `rows x kc` words, B for `kc` rows of `NR`, C and, to accumulate, its start
    /// for the size, `rows x cols`; `rows <= MR`, `cols <= NR`; `a_col == 1`, or `a_row == 1` in a format
    /// without [`Format::TILES`]. With [`Format::TILES`] `kc` is whole lines, and `a_col` what lies from a line of a row to
    /// its next, in lines. Or, without them, a tile of [`super::narrow`].
    unsafe fn multiply(
        self,
        s: S,
        unit: &mut Self::Unit,
        t: &Tile,
        size: (usize, usize),
        accumulate: bool,
        fetch: &mut impl Fetch,
    );

    /// [`Format::multiply`] of a whole register block of columns of A.
    ///
    /// # Safety
    /// As for [`Format::multiply`], of `MR x NR`, with `a_row == 1` in a format without [`Format::TILES`].
    #[inline(always)]
    unsafe fn across(
        self,
        s: S,
        unit: &mut Self::Unit,
        t: &Tile,
        accumulate: bool,
        fetch: &mut impl Fetch,
    ) {
        // SAFETY: passed on from the caller.
        unsafe { self.multiply(s, unit, t, (Self::MR, S::NR), accumulate, fetch) }
    }

    /// [`Format::multiply`] that asks for few lines or none: in vectors, by a function that all edges and
    /// small products of the format share.
    ///
    /// # Safety
    /// As for [`Format::multiply`].
    #[inline(always)]
    unsafe fn apart(
        self,
        s: S,
        unit: &mut Self::Unit,
        t: &Tile,
        size: (usize, usize),
        accumulate: bool,
    ) {
        // SAFETY: passed on from the caller.
        unsafe { self.multiply(s, unit, t, size, accumulate, &mut ()) }
    }

    /// Operands that lie in memory as this format's words are made of them: floats, where
    /// there is nothing else.
    type Kept: Elements<S, Self>;

    /// Its token.
    fn kept(self) -> Self::Kept;

    /// Words that `k` elements take: some formats have whole groups of them, and zeros at the end.
    #[inline(always)]
    fn words(k: usize) -> usize {
        Self::FOOTPRINT.words(k)
    }

    /// The words of elements `low` and, where a word has two, `high`, which come one
    /// after the other along the inner dimension.
    fn join(self, s: S, low: S::V, high: S::V) -> S::V;

    /// The words of `LANES * DEPTH` elements that come one after the other, `second` the upper
    /// half of them where a word has two.
    fn fold(self, s: S, first: S::V, second: S::V) -> S::V;

    /// `x` to the precision of a word's elements.
    fn rounded(self, s: S, x: S::V) -> S::V;

    /// [`Format::join`] of a single word.
    fn join_one(low: f32, high: f32) -> f32;

    /// The words of `LANES * DEPTH` contiguous elements.
    ///
    /// # Safety
    /// `src` is valid for so many floats.
    unsafe fn contiguous(self, s: S, src: *const f32) -> S::V;
}

/// A format whose words are multiplied in vectors.
pub(crate) trait Dot<S: Simd>: Format<S, Unit = ()> {
    /// Parts of this format's products.
    const PARTS: Parts;

    /// `sum` plus the products of the words of `a` and `b`, lane by lane.
    fn dot(self, s: S, a: S::V, b: S::V, sum: S::V) -> S::V;
}

/// Nothing to set up, and the micro-kernel of vectors.
macro_rules! in_vectors {
    ($S:ty) => {
        type Unit = ();

        #[inline(always)]
        fn unit(self) {}

        #[inline(always)]
        unsafe fn multiply(
            self,
            s: $S,
            (): &mut (),
            t: &Tile,
            size: (usize, usize),
            accumulate: bool,
            fetch: &mut impl Fetch,
        ) {
            // SAFETY: passed on from the caller.
            unsafe { micro::run(s, self, t, size, accumulate, fetch) }
        }

        #[inline(always)]
        unsafe fn across(
            self,
            s: $S,
            (): &mut (),
            t: &Tile,
            accumulate: bool,
            fetch: &mut impl Fetch,
        ) {
            // SAFETY: passed on from the caller.
            unsafe { micro::whole::<$S, Self, _, false>(s, self, t, accumulate, fetch) }
        }

        #[inline(always)]
        unsafe fn apart(
            self,
            _: $S,
            (): &mut (),
            t: &Tile,
            (rows, cols): (usize, usize),
            accumulate: bool,
        ) {
            // SAFETY: passed on from the caller.
            unsafe {
                <Self as Dot<$S>>::PARTS.edge::<$S, Self>(t, rows, cols)(t, rows, cols, accumulate)
            }
        }
    };
}

/// Plain floats.
#[derive(Clone, Copy)]
pub(crate) struct Single;

impl<S: Simd> Format<S> for Single {
    const DEPTH: usize = 1;
    const IS_PLAIN: bool = true;
    const PACK_B: PackFn = S::PACK_SINGLE;
    type Kept = Floats;

    in_vectors!(S);

    #[inline(always)]
    fn kept(self) -> Floats {
        Floats
    }

    #[inline(always)]
    fn join(self, _: S, low: S::V, _: S::V) -> S::V {
        low
    }
    #[inline(always)]
    fn fold(self, _: S, first: S::V, _: S::V) -> S::V {
        first
    }
    #[inline(always)]
    fn rounded(self, _: S, x: S::V) -> S::V {
        x
    }
    #[inline(always)]
    fn join_one(low: f32, _: f32) -> f32 {
        low
    }
    #[inline(always)]
    unsafe fn contiguous(self, s: S, src: *const f32) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { s.load(src) }
    }
}

impl<S: Simd> Dot<S> for Single {
    const PARTS: Parts = S::PARTS;

    #[inline(always)]
    fn dot(self, s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        s.mul_add(a, b, sum)
    }
}

/// Floats of the precision of bf16, for CPUs without bf16 products.
#[derive(Clone, Copy)]
pub(crate) struct Rounded;

impl<S: Simd> Format<S> for Rounded {
    const DEPTH: usize = 1;
    const PACK_B: PackFn = S::PACK_ROUNDED;
    type Kept = Floats;

    in_vectors!(S);

    #[inline(always)]
    fn kept(self) -> Floats {
        Floats
    }

    #[inline(always)]
    fn join(self, s: S, low: S::V, _: S::V) -> S::V {
        self.rounded(s, low)
    }
    #[inline(always)]
    fn fold(self, s: S, first: S::V, _: S::V) -> S::V {
        self.rounded(s, first)
    }
    #[inline(always)]
    fn rounded(self, s: S, x: S::V) -> S::V {
        let mut lanes = [0.0; MOST_LANES];
        // SAFETY: the array has room for a vector of any instruction set.
        unsafe {
            s.store(lanes.as_mut_ptr(), x);
            for lane in &mut lanes[..S::LANES] {
                *lane = round(*lane);
            }
            s.load(lanes.as_ptr())
        }
    }
    #[inline(always)]
    fn join_one(low: f32, _: f32) -> f32 {
        round(low)
    }
    #[inline(always)]
    unsafe fn contiguous(self, s: S, src: *const f32) -> S::V {
        // SAFETY: passed on from the caller.
        let x = unsafe { s.load(src) };
        self.rounded(s, x)
    }
}

impl<S: Simd> Dot<S> for Rounded {
    const PARTS: Parts = S::PARTS;

    #[inline(always)]
    fn dot(self, s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        s.mul_add(a, b, sum)
    }
}

/// The bits of `x` rounded to bf16, those of the lower half not yet cleared.
#[inline(always)]
fn rounded_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    // Half of the last place kept, and a bit less if that is even.
    let up = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding could carry a NaN's fraction away: it is made quiet instead.
    if x.is_nan() { bits | 0x0040_0000 } else { up }
}

/// The bf16 nearest to `x`, as an `f32`.
#[inline(always)]
pub(crate) fn round(x: f32) -> f32 {
    f32::from_bits(rounded_bits(x) & 0xffff_0000)
}

/// As [`rounded_bits`], of zero where `x` is denormal: what the CPU's conversion does.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn flushed_bits(x: f32) -> u32 {
    if x.to_bits() & 0x7f80_0000 == 0 { x.to_bits() & 0x8000_0000 } else { rounded_bits(x) }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use paired::Paired;

#[cfg(target_arch = "x86_64")]
mod paired {
    use super::{Dot, Fetch, Format, PackFn, Parts, Tile, flushed_bits, micro};
    use crate::elements::{Elements, Halves};
    use crate::simd::avx512::Avx512;
    use core::arch::x86_64::*;
    use core::mem::transmute;

    /// Pairs of bf16: proof that the CPU runs AVX-512 BF16.
    #[derive(Clone, Copy)]
    pub(crate) struct Paired(());

    impl Paired {
        /// # Safety
        /// The CPU has AVX-512 BF16 beside what [`Avx512`] stands for.
        #[inline(always)]
        pub(crate) unsafe fn assume() -> Self {
            Self(())
        }
    }

    /// Numbers of a vector's halves: 0, 16, 1, 17 and so on.
    const TURNS: [u16; 32] = {
        let mut turns = [0; 32];
        let mut i = 0;
        while i < 32 {
            turns[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        turns
    };

    impl Format<Avx512> for Paired {
        const DEPTH: usize = 2;
        const PACK_B: PackFn = crate::shells::avx512bf16::PACK_B;
        type Kept = Halves;

        in_vectors!(Avx512);

        #[inline(always)]
        fn kept(self) -> Halves {
            Halves(self)
        }

        #[inline(always)]
        fn join(self, s: Avx512, low: __m512, high: __m512) -> __m512 {
            // SAFETY: register arithmetic, the token stands for the instruction; vectors are of
            // the same 512 bits, of which every pattern is valid.
            unsafe {
                // All lower ones and all upper ones, then one of each in turns.
                let halves = transmute::<__m512, __m512i>(self.fold(s, low, high));
                let turns: __m512i = transmute(TURNS);
                _mm512_castsi512_ps(_mm512_permutexvar_epi16(turns, halves))
            }
        }
        #[inline(always)]
        fn fold(self, _: Avx512, first: __m512, second: __m512) -> __m512 {
            // SAFETY: as above.
            unsafe { transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second, first)) }
        }
        #[inline(always)]
        fn rounded(self, s: Avx512, x: __m512) -> __m512 {
            Elements::<Avx512, Self>::rounded(Halves(self), s, x)
        }
        #[inline(always)]
        fn join_one(low: f32, high: f32) -> f32 {
            f32::from_bits(flushed_bits(low) >> 16 | flushed_bits(high) & 0xffff_0000)
        }
        #[inline(always)]
        unsafe fn contiguous(self, s: Avx512, src: *const f32) -> __m512 {
            // SAFETY: the caller's promise of 32 floats; as above.
            unsafe { self.fold(s, _mm512_loadu_ps(src), _mm512_loadu_ps(src.add(16))) }
        }
    }

    impl Dot<Avx512> for Paired {
        const PARTS: Parts = crate::shells::avx512bf16::PARTS;

        #[inline(always)]
        fn dot(self, _: Avx512, a: __m512, b: __m512, sum: __m512) -> __m512 {
            // SAFETY: register arithmetic, the token stands for the instruction; the vectors
            // are the same 512 bits, of which every pattern is valid.
            unsafe {
                let [a, b] = transmute::<[__m512; 2], [__m512bh; 2]>([a, b]);
                _mm512_dpbf16_ps(sum, a, b)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::round;

    #[test]
    fn rounding_is_to_nearest_and_ties_to_even() {
        let bits = |high: u32, low: u32| f32::from_bits(high << 16 | low);
        for sign in [0, 0x8000] {
            for (x, nearest) in [
                (bits(0x3f80 | sign, 0x7fff), 0x3f80),
                (bits(0x3f80 | sign, 0x8000), 0x3f80),
                (bits(0x3f81 | sign, 0x8000), 0x3f82),
                (bits(0x3f80 | sign, 0x8001), 0x3f81),
                (bits(0x3fff | sign, 0xffff), 0x4000),
                (bits(0x7f7f | sign, 0xffff), 0x7f80),
                (bits(0x7f80 | sign, 0), 0x7f80),
                (bits(sign, 0), 0),
                (bits(sign, 0x8001), 1),
            ] {
                assert_eq!(round(x).to_bits(), (nearest | sign) << 16, "{x:e}");
            }
            // A NaN whose fraction is all in the lower half, and one that would overflow.
            for low in [1, 0xffff] {
                assert!(round(bits(0x7f80 | sign, low)).is_nan());
                assert!(round(bits(0x7fff | sign, low)).is_nan());
            }
        }
    }

    /// All ways to a word of pairs give the same bits: vectors of two lines, of one line, and
    /// single words.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_way_to_a_pair_gives_the_same_bits() {
        use super::{Format, Paired};
        use crate::simd::Simd;
        use crate::simd::avx512::Avx512;

        /// Words of the elements by `join` of neighbours, by `contiguous` and by `join_one`.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
        fn words(x: &[f32; 32]) -> [[f32; 16]; 3] {
            // SAFETY: the test calls it where the CPU has the instructions.
            let (s, f) = unsafe { (Avx512::assume(), Paired::assume()) };
            let mut ways = [[0.0; 16]; 3];
            let [low, high] =
                [0, 1].map(|at| core::array::from_fn::<f32, 16, _>(|i| x[2 * i + at]));
            // SAFETY: arrays of 16 and of 32 floats.
            unsafe {
                let joined = f.join(s, s.load(low.as_ptr()), s.load(high.as_ptr()));
                s.store(ways[0].as_mut_ptr(), joined);
                s.store(ways[1].as_mut_ptr(), f.contiguous(s, x.as_ptr()));
            }
            ways[2] = core::array::from_fn(|i| Paired::join_one(low[i], high[i]));
            ways
        }

        if !crate::Isa::Avx512.has_bf16() {
            return;
        }
        let mut bits = [0_u32; 32];
        let edges = [
            0,
            1,
            0x7fff,
            0x8000,
            0x8001,
            0x40_0000,
            0x7f_7fff,
            0x7f_8000,
            0x7f_ffff,
            0x80_0000,
            0x80_8000,
            0x3f80_7fff,
            0x3f80_8000,
            0x3f81_8000,
            0x3f80_8001,
            0x7f7f_7fff,
            0x7f7f_8000,
            0x7f7f_ffff,
            0x7f80_0000,
            0x7f80_0001,
            0x7f80_ffff,
            0x7fff_ffff,
        ];
        for shift in 0..32 {
            for (i, bits) in bits.iter_mut().enumerate() {
                let sign = if i % 3 == 0 { 0x8000_0000 } else { 0 };
                *bits = edges[(i + shift) % edges.len()] | sign;
            }
            // SAFETY: the CPU has them: asked above.
            let ways = unsafe { words(&bits.map(f32::from_bits)) };
            let [joined, contiguous, single] = ways.map(|words| words.map(f32::to_bits));
            assert_eq!(joined, single, "{bits:x?}");
            assert_eq!(contiguous, single, "{bits:x?}");
        }
    }
}
