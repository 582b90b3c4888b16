//! Where the operations and stages of a program go as they are made.
//!
//! What makes them is a `const fn`, which can call no closure: so what may become of them is listed here.

use super::{Kind, Op, Section};
use crate::arithmetic::most;
use crate::engine::{Slot, Stage};
use core::ops::Range;

/// Where operations and stages go.
pub(crate) enum To<'a> {
    /// They are counted alone.
    Nowhere,
    /// Into the memory of an engine, as far as there is any.
    Queue(&'a mut [Op], &'a mut [Slot]),
    /// They are compared with those of an engine.
    Same(&'a [Op], &'a [Slot]),
}

/// What has been made.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) ops: usize,
    pub(crate) stages: usize,
    /// Tiles of the stage that has most.
    pub(crate) tiles: usize,
    /// No number is too large, and all are the same if they were to be.
    pub(crate) fits: bool,
    /// The stages of each section.
    pub(crate) sections: [Range<usize>; Section::COUNT],
}

impl Program {
    pub(super) const EMPTY: Self = Self {
        ops: 0,
        stages: 0,
        tiles: 0,
        fits: true,
        sections: [const { 0..0 }; Section::COUNT],
    };

    pub(super) const fn op(&mut self, to: &mut To<'_>, kind: Kind, index: usize, tiles: usize) {
        self.fits &= index <= u32::MAX as usize && tiles <= u32::MAX as usize;
        let op = Op { kind, index: index as u32, tiles: tiles as u32 };
        match to {
            To::Nowhere => {}
            To::Queue(ops, _) => {
                if self.ops < ops.len() {
                    ops[self.ops] = op;
                }
            }
            To::Same(ops, _) => self.fits &= self.ops < ops.len() && ops[self.ops].is(op),
        }
        self.ops += 1;
    }

    pub(super) const fn stage(&mut self, to: &mut To<'_>, section: Section, stage: Stage) {
        let number = self.stages;
        self.tiles = most(self.tiles, stage.tiles as usize);
        match to {
            To::Nowhere => {}
            To::Queue(_, slots) => {
                if number < slots.len() {
                    slots[number].stage = stage;
                }
            }
            To::Same(_, slots) => {
                self.fits &= number < slots.len() && slots[number].stage.is(stage);
            }
        }
        let of = &mut self.sections[section as usize];
        if of.end == 0 {
            of.start = number;
        }
        of.end = number + 1;
        self.stages += 1;
    }
}

/// An operation to emit: kind, index, tiles.
pub(super) type NewOp = (Kind, usize, usize);

/// Some of them: the longest chain has nine operations.
pub(super) struct Few {
    pub(super) ops: [NewOp; 9],
    pub(super) len: usize,
}

impl Few {
    pub(super) const NONE: Self = Self { ops: [(Kind::Embed, 0, 0); 9], len: 0 };

    /// One alone.
    pub(super) const fn one(op: NewOp) -> Self {
        let mut one = Self::NONE;
        one.push(op);
        one
    }

    pub(super) const fn push(&mut self, op: NewOp) {
        self.ops[self.len] = op;
        self.len += 1;
    }

    /// Appends an operation of a chain, whose tiles are row blocks.
    pub(super) const fn then(&mut self, kind: Kind, index: usize) {
        self.push((kind, index, 0));
    }
}
