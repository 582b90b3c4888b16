//! Dropout from a counter-based generator: a mask is a function, not a buffer.
//!
//! Whether element (row, col) survives depends on the seed, the step, the place in
//! the model and the element, never on what was drawn before. So the backward pass
//! draws the forward pass's mask again, and any split of the work over threads
//! gives the same one.
//!
//! The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
//! as 1, 2, 3", SC 2011, section 3.3): four 32-bit words per counter.

/// One dropout site in one step: which elements of a matrix are zeroed.
///
/// ```
/// use cllm_kernels::Dropout;
///
/// let site = Dropout::new(0.25, 7, 100, 0).expect("something is dropped");
/// let mut mask = [0.0; 64];
/// site.fill_mask(3, 0, &mut mask);
/// let dropped = mask.iter().filter(|x| **x == 0.0).count();
/// assert!(mask.iter().all(|x| [0.0, 1.0 / 0.75].contains(x)) && dropped > 0 && dropped < 64);
/// // Who works on the columns from 10 on draws the same.
/// let mut part = [0.0; 54];
/// site.from_column(10).fill_mask(3, 0, &mut part);
/// assert_eq!(part, mask[10..]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    key: [u32; 2],
    stream: u32,
    step: u32,
    threshold: u32,
    scale: f32,
    /// The site's column that a caller's column 0 is.
    column: usize,
}

impl Dropout {
    /// Dropout with `probability` in `0.0..1.0`; survivors are scaled by
    /// `1 / (1 - probability)`. `None` for probability 0.
    ///
    /// `stream` tells the sites of a model apart; rows and columns count within it.
    ///
    /// # Panics
    /// If the probability is outside `0.0..1.0`.
    #[must_use]
    pub fn new(probability: f32, seed: u64, step: u32, stream: u32) -> Option<Self> {
        assert!((0.0..1.0).contains(&probability), "dropout must be in 0.0..1.0");
        (probability > 0.0).then(|| Self {
            key: [seed as u32, (seed >> 32) as u32],
            stream,
            step,
            threshold: (f64::from(probability) * 4_294_967_296.0) as u32,
            scale: 1.0 / (1.0 - probability),
            column: 0,
        })
    }

    /// The same site for somebody who works on its columns from `first` on, counting
    /// from 0: a part of a matrix gets its part of the mask.
    #[must_use]
    pub fn from_column(self, first: usize) -> Self {
        Self { column: self.column + first, ..self }
    }

    /// Writes the mask of columns `col..col + mask.len()` of `row`: 0 or the scale.
    pub fn fill_mask(&self, row: u32, col: usize, mask: &mut [f32]) {
        let mut words = [0; 4];
        let mut drawn = usize::MAX;
        for (offset, x) in mask.iter_mut().enumerate() {
            let at = self.column + col + offset;
            if at / 4 != drawn {
                drawn = at / 4;
                words = philox4x32([drawn as u32, row, self.stream, self.step], self.key);
            }
            *x = if words[at % 4] < self.threshold { 0.0 } else { self.scale };
        }
    }
}

/// Philox4x32 with 10 rounds.
fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let p = MULTIPLIERS[0] * u64::from(a);
        let q = MULTIPLIERS[1] * u64::from(c);
        [a, b, c, d] = [(q >> 32) as u32 ^ b ^ k0, q as u32, (p >> 32) as u32 ^ d ^ k1, p as u32];
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the authors' Random123 distribution (`kat_vectors`).
    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_mask_does_not_depend_on_how_it_is_cut() {
        let dropout = Dropout::new(0.3, 7, 11, 2).unwrap();
        let mut whole = [0.0; 37];
        dropout.fill_mask(5, 3, &mut whole);
        for cut in 0..37 {
            let mut parts = [0.0; 37];
            let (a, b) = parts.split_at_mut(cut);
            dropout.fill_mask(5, 3, a);
            dropout.fill_mask(5, 3 + cut, b);
            assert_eq!(parts, whole);
            let (a, b) = parts.split_at_mut(cut);
            dropout.from_column(3).fill_mask(5, 0, a);
            dropout.from_column(2).from_column(1).fill_mask(5, cut, b);
            assert_eq!(parts, whole);
        }
    }

    #[test]
    fn the_share_of_zeros_is_the_probability() {
        let dropout = Dropout::new(0.25, 1, 0, 0).unwrap();
        let mut mask = [0.0; 1000];
        let mut zeros = 0;
        for row in 0..100 {
            dropout.fill_mask(row, 0, &mut mask);
            zeros += mask.iter().filter(|x| **x == 0.0).count();
            assert!(mask.iter().all(|x| *x == 0.0 || *x == 1.0 / 0.75));
        }
        // 100,000 draws: a standard deviation is 137.
        assert!((24_300..=25_700).contains(&zeros), "{zeros} of 100000 dropped");
        assert!(Dropout::new(0.0, 1, 0, 0).is_none());
    }
}
