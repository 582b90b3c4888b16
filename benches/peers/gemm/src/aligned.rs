//! Floats that begin where a cache line does, as in a training step's memory. Rust's vectors do not, and
//! tiles of AMX, for one, are then loaded several times slower.
//!
//! Where in a page they begin is not left to the allocator either: what is read waits for what was
//! written shortly before to an address some multiple of 4 KiB away, so that operands of a small product
//! which happened to lie like this made it take up to 1.8 times as long (16 x 16 x 16, Zen 4), whoever
//! computed it.

use core::ops::{Deref, DerefMut};

/// Bytes after which addresses look alike.
const PAGE: usize = 4096;

/// What floats are for: each begins in a quarter of a page of its own.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// The left operand.
    A,
    /// The right operand, packed or not: both are not read by one loop.
    B,
    /// The result.
    C,
    /// What a thread has for itself.
    Scratch,
}

/// So many floats.
pub struct Aligned {
    /// With room for a page before the first.
    data: Vec<f32>,
    first: usize,
    len: usize,
}

impl Aligned {
    /// Zeros.
    #[must_use]
    pub fn zeros(role: Role, len: usize) -> Self {
        let data = vec![0.0_f32; len + 2 * PAGE / size_of::<f32>()];
        let quarter = role as usize * PAGE / 4;
        let offset = (quarter + PAGE - data.as_ptr().addr() % PAGE) % PAGE;
        // Vectors of floats begin at multiples of 4 bytes, as quarters do.
        let first = offset / size_of::<f32>();
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

    /// Bytes of a cache line.
    const LINE: usize = 64;

    #[test]
    fn all_sizes_begin_at_a_line_wherever_they_move() {
        for len in [0, 1, 15, 16, 1000] {
            let mut all: Vec<Aligned> = (0..20).map(|_| Aligned::zeros(Role::C, len)).collect();
            all.swap(3, 7);
            for floats in &mut all {
                assert_eq!(floats.as_ptr().addr() % LINE, 0);
                assert_eq!(floats.as_ptr().addr() % PAGE, PAGE / 2);
                assert_eq!(floats.len(), len);
                floats.fill(1.0);
            }
        }
    }
}
