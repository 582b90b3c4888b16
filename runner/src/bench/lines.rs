//! Floats from the start of a cache line on, as the core's pools have them: some kernels are far
//! faster there than where an allocator happens to put a vector.

use cllm_core::{LANES, Line, floats, floats_mut};
use core::ops::{Deref, DerefMut};

/// So many floats.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    lines: Vec<Line>,
    len: usize,
}

impl Lines {
    /// Zeros.
    pub(super) fn zeros(len: usize) -> Self {
        Self { lines: vec![Line::ZERO; len.div_ceil(LANES)], len }
    }

    /// The same number everywhere.
    pub(super) fn filled(len: usize, x: f32) -> Self {
        let mut filled = Self::zeros(len);
        filled.fill(x);
        filled
    }
}

impl Deref for Lines {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &floats(&self.lines)[..self.len]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut floats_mut(&mut self.lines)[..self.len]
    }
}
