//! Floats from the start of a cache line on and in huge pages, as the core's pools have them: some kernels are far
//! faster there than where an allocator happens to put a vector.

use crate::memory;
use cllm_core::{LANES, floats, floats_mut};
use core::ops::{Deref, DerefMut};

/// So many floats.
#[derive(Debug)]
pub(super) struct Lines {
    lines: memory::Lines,
    len: usize,
}

impl Lines {
    /// Zeros.
    ///
    /// # Panics
    /// If the system has no memory for them, as a vector would.
    #[expect(clippy::expect_used, reason = "a vector would end the process")]
    pub(super) fn zeros(len: usize) -> Self {
        let lines = memory::Lines::zeroed_in_huge_pages(len.div_ceil(LANES));
        Self { lines: lines.expect("no memory for a benchmark's operands"), len }
    }

    /// The same number everywhere.
    pub(super) fn filled(len: usize, x: f32) -> Self {
        let mut filled = Self::zeros(len);
        filled.fill(x);
        filled
    }
}

impl Clone for Lines {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl Deref for Lines {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &floats(self.lines.view())[..self.len]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut floats_mut(self.lines.get())[..self.len]
    }
}
