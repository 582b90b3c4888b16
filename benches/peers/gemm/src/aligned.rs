//! Floats that begin where a cache line does, as in a training step's memory. Rust's vectors do not, and
//! tiles of AMX, for one, are then loaded several times slower.

use core::ops::{Deref, DerefMut};

/// Bytes of a cache line.
const LINE: usize = 64;

/// So many floats.
pub struct Aligned {
    /// With room for a line before the first.
    data: Vec<f32>,
    first: usize,
    len: usize,
}

impl Aligned {
    /// Zeros.
    #[must_use]
    pub fn zeros(len: usize) -> Self {
        let data = vec![0.0; len + LINE / size_of::<f32>()];
        let first = data.as_ptr().align_offset(LINE);
        assert!(first + len <= data.len(), "no line begins in {} floats", data.len());
        Self { data, first, len }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[self.first..][..self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.first..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sizes_begin_at_a_line_wherever_they_move() {
        for len in [0, 1, 15, 16, 1000] {
            let mut all: Vec<Aligned> = (0..20).map(|_| Aligned::zeros(len)).collect();
            all.swap(3, 7);
            for floats in &mut all {
                assert_eq!(floats.as_ptr().addr() % LINE, 0);
                assert_eq!(floats.len(), len);
                floats.fill(1.0);
            }
        }
    }
}
