//! No two tiles that may run at the same time, or in another order than the program's, touch
//! the same bytes unless both read: found by asking the board, not by luck of threads.
//!
//! ```text
//! run all tiles in the order of the program, and remember what each borrows
//! for each tile X
//!   complete whatever becomes ready while X is not done, as the engine would let it
//!   what came behind X in the program and is done now must not conflict with X
//! ```
//! Buffers that are reused, or whose contents are replaced in place, are safe if what the
//! stages wait for says so: this is what says it of them, for shapes of every kind.

extern crate std;

use super::stage::Board;
use super::*;
use crate::line::{LANES, Line};
use crate::plan::{BatchShape, Blocking, Mode, Packing, Tiling};
use crate::program::Run;
use crate::shared::{Shared, record};
use crate::step::{DropoutKey, Outcome, Step};
use crate::{
    Activation, AdapterSite, AdapterSites, Adapters, Architecture, Dtype, Kernels, ModelConfig,
    Optimizer, OptimizerKind,
};
use core::ops::Range as Bytes;
use std::vec;
use std::vec::Vec;

/// A tile, and what it borrowed when it ran: sorted, apart from one another.
struct Tile {
    taken: Taken,
    reads: Vec<Bytes<usize>>,
    writes: Vec<Bytes<usize>>,
}

/// Sorts ranges and joins those that meet.
fn joined(mut ranges: Vec<Bytes<usize>>) -> Vec<Bytes<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut all: Vec<Bytes<usize>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

/// The first byte that is in both.
fn common(a: &[Bytes<usize>], b: &[Bytes<usize>]) -> Option<usize> {
    let (mut i, mut j) = (0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        if x.start < y.end && y.start < x.end {
            return Some(x.start.max(y.start));
        }
        if x.end <= y.end { i += 1 } else { j += 1 }
    }
    None
}

/// A byte that one of them writes and the other touches.
fn conflict(a: &Tile, b: &Tile) -> Option<usize> {
    common(&a.writes, &b.writes)
        .or_else(|| common(&a.writes, &b.reads))
        .or_else(|| common(&a.reads, &b.writes))
}

/// A plan's program, and pools to run it on.
struct Program<'p> {
    plan: &'p Plan,
    kernels: &'static Kernels,
    ops: Vec<Op>,
    stages: Vec<(Section, Stage)>,
    pools: [Vec<Line>; 6],
}

impl<'p> Program<'p> {
    fn new(plan: &'p Plan, kernels: &'static Kernels) -> Self {
        let mut ops = vec![Op::EMPTY; plan.ops()];
        let mut slots: Vec<_> = (0..plan.slots()).map(|_| Slot::new()).collect();
        let program = program::build(plan, To::Queue(&mut ops, &mut slots));
        assert!(program.fits && program.ops == ops.len() && program.stages == slots.len());
        let of = |section: Section| program.sections[section as usize].clone();
        let stages = Section::ALL
            .into_iter()
            .flat_map(|section| slots[of(section)].iter().map(move |slot| (section, slot.stage)));
        let stages: Vec<_> = stages.collect();
        assert_eq!(stages.len(), slots.len());
        let pools = [
            Pool::Parameters,
            Pool::Gradients,
            Pool::Moments,
            Pool::Packed,
            Pool::Activations,
            Pool::Scratch,
        ];
        let pools = pools.map(|pool| vec![Line([0.01; LANES]); plan.lines(pool)]);
        Self { plan, kernels, ops, stages, pools }
    }

    /// Slots of the stages: those of the run open, the others done.
    fn slots(&self, run: Run) -> Vec<Slot> {
        let slots = self.stages.iter().map(|(section, stage)| {
            let slot = Slot::of(*stage);
            if run.sections().contains(section) {
                slot.done().store(0, Ordering::Relaxed);
            }
            slot
        });
        slots.collect()
    }

    /// Runs all tiles in the order of the program.
    fn tiles(&mut self, run: Run) -> Vec<Tile> {
        let counters: Vec<AtomicWord> =
            (0..self.plan.cut().counters()).map(|_| AtomicWord::new(0)).collect();
        let board = Board::new(self.plan.cut(), &counters);
        let slots = self.slots(run);
        let n = self.plan.tokens();
        let vocab_size = self.plan.config().vocab_size;
        let ids: Vec<u32> = (0..n).map(|i| (i * 7 % vocab_size) as u32).collect();
        let starts: Vec<u32> = (0..n)
            .scan((0, 1, 0), |(start, len, next), i| {
                let place = i % self.plan.batch.tokens;
                if place == 0 {
                    (*start, *len, *next) = (0, 1, 1);
                } else if place == *next {
                    (*start, *len, *next) = (place, *len + 1, place + *len + 1);
                }
                Some(*start as u32)
            })
            .collect();
        let table = std::vec![0; 4 * vocab_size * self.plan.config().d_model];
        let outcome = Outcome::new();
        let [parameters, gradients, moments, packed, activations, scratch] = &mut self.pools;
        let scratch_at = scratch.as_ptr_range();
        let scratch_at = scratch_at.start.addr()..scratch_at.end.addr();
        let probability = self.plan.config().dropout;
        let dropout =
            (probability > 0.0).then_some(DropoutKey { probability, seed: 3, step: 0, micro: 0 });
        let step = Step {
            plan: self.plan,
            kernels: self.kernels,
            params: Shared::new(parameters),
            grads: Shared::new(gradients),
            moments: Shared::new(moments),
            packed: Shared::new(packed),
            act: Shared::new(activations),
            scratch: Shared::new(scratch),
            tokens: &ids,
            targets: &ids,
            token_table: Some(&table),
            // Documents of one token, two, and so on: positions of a table are then theirs.
            starts: (self.plan.mode != Mode::Recompute).then_some(&starts),
            accumulate: true,
            loss_scale: 1.0,
            dropout,
            // Where there is no training there is no room for what it leaves.
            adapter_dropout: dropout.filter(|_| self.plan.mode.trains()),
            rule: Optimizer { kind: self.plan.optimizer(), ..Optimizer::default() }.rule(1e-3, 1),
            by_tensor: Optimizer::default().by_tensor(),
            grad_clip: Some(1.0),
            most: f64::MAX,
            outcome: &outcome,
        };
        let mut tiles = Vec::new();
        for (id, (section, stage)) in self.stages.iter().enumerate() {
            if !run.sections().contains(section) {
                continue;
            }
            for tile in 0..stage.tiles {
                let ready = board.stage_ready(stage, &slots) && board.tile_ready(stage, tile);
                assert!(ready, "tile {tile} of stage {id} waits for what comes behind it");
                let taken = Taken { id, stage: *stage, tile, stolen: false };
                let _ = record::take();
                // SAFETY: the tile is ready, and this thread is the only one.
                unsafe { step.run(&self.ops, &taken, 0, &mut Unobserved) };
                let mut borrows = record::take();
                borrows.retain(|borrow| !scratch_at.contains(&borrow.bytes.start));
                let of = |writes: bool| {
                    let some = borrows.iter().filter(|borrow| borrow.writes == writes);
                    joined(some.map(|borrow| borrow.bytes.clone()).collect())
                };
                tiles.push(Tile { taken, reads: of(false), writes: of(true) });
                done(&board, &slots, &taken);
            }
        }
        tiles
    }

    fn name(&self, tile: &Tile) -> std::string::String {
        let stage = &tile.taken.stage;
        let ops = &self.ops[stage.first_op as usize..][..stage.ops as usize];
        let op = match stage.shape {
            Shape::List => program::op_of(ops, tile.taken.tile).unwrap().0,
            _ => ops[0],
        };
        std::format!(
            "tile {} of stage {} ({} {:?} ...)",
            tile.taken.tile,
            tile.taken.id,
            op.name(),
            op.layer()
        )
    }

    /// Which byte of which pool.
    fn place(&self, byte: usize) -> std::string::String {
        let at = self.pools.iter().position(|pool| {
            let range = pool.as_ptr_range();
            (range.start.addr()..range.end.addr()).contains(&byte)
        });
        let at = at.unwrap();
        std::format!("byte {} of pool {at}", byte - self.pools[at].as_ptr().addr())
    }

    /// Goes through a run; gives the number of pairs that may run in either order.
    #[track_caller]
    fn check(&mut self, run: Run, what: &str) -> usize {
        let tiles = self.tiles(run);
        let slots = self.slots(run);
        let counters: Vec<AtomicWord> =
            (0..self.plan.cut().counters()).map(|_| AtomicWord::new(0)).collect();
        let board = Board::new(self.plan.cut(), &counters);
        let mut free = 0;
        for (x, withheld) in tiles.iter().enumerate() {
            board.reset();
            for (slot, (section, stage)) in slots.iter().zip(&self.stages) {
                let runs = run.sections().contains(section);
                slot.done().store(if runs { 0 } else { stage.tiles }, Ordering::Relaxed);
            }
            let mut left: Vec<usize> = (0..tiles.len()).filter(|y| *y != x).collect();
            loop {
                let before = left.len();
                left.retain(|y| {
                    let Taken { stage, tile, .. } = tiles[*y].taken;
                    let ready = board.stage_ready(&stage, &slots) && board.tile_ready(&stage, tile);
                    if ready {
                        done(&board, &slots, &tiles[*y].taken);
                        if *y > x {
                            free += 1;
                            if let Some(byte) = conflict(withheld, &tiles[*y]) {
                                panic!(
                                    "{what}: {} does not wait for {}: both at {}",
                                    self.name(&tiles[*y]),
                                    self.name(withheld),
                                    self.place(byte)
                                );
                            }
                        }
                    }
                    !ready
                });
                if left.len() == before {
                    break;
                }
            }
        }
        free
    }
}

/// Counts a tile as done.
fn done(board: &Board<'_>, slots: &[Slot], taken: &Taken) {
    board.tile_done(&taken.stage, taken.tile);
    board.count(&taken.stage, 1);
    slots[taken.id].done().fetch_add(1, Ordering::Relaxed);
}

const CONFIG: ModelConfig = ModelConfig {
    vocab_size: 50,
    block_size: 256,
    n_layer: 3,
    n_head: 2,
    d_model: 8,
    d_ff: 24,
    bias: true,
    tied: true,
    dropout: 0.0,
    norm_eps: 1e-5,
    arch: Architecture::GPT2,
};

/// What of case `number` has adapters: of two in five, all matrices, some parts, or one matrix.
fn adapters(number: usize, config: &ModelConfig) -> Option<Adapters> {
    use AdapterSite::{AttnOut, Fc, Gate, Keys, MlpOut, Qkv, Queries, Values};
    let fc = if config.arch.is_gated() { Gate } else { Fc };
    let some: [&[AdapterSite]; 5] =
        [&[Qkv, AttnOut, fc, MlpOut], &[Queries, Values], &[Keys, fc], &[AttnOut, MlpOut], &[fc]];
    let sites = AdapterSites::of(some[number / 5 % some.len()]);
    (number % 5 < 2).then_some(Adapters { rank: 3, scale: 0.5, sites })
}

#[test]
fn tiles_that_may_run_at_the_same_time_share_nothing_that_is_written() {
    let best = Kernels::detect();
    let tables = [Kernels::scalar(), best, best.with_dtype(Dtype::Bf16)];
    let deep = ModelConfig { n_layer: 5, ..CONFIG };
    let one = ModelConfig { n_layer: 1, n_head: 1, ..CONFIG };
    let bare = ModelConfig { bias: false, tied: false, ..deep };
    // Several groups of logits, and tiles of parameters.
    let wide = ModelConfig { vocab_size: 6_000, n_layer: 2, ..CONFIG };
    let odd = ModelConfig { d_model: 15, d_ff: 41, n_head: 3, vocab_size: 51, ..deep };
    let shapes = [(3, 40), (1, 200), (2, 150), (1, 1), (70, 7)];
    let mut cases = Vec::new();
    let llama = ModelConfig { bias: false, arch: Architecture::LLAMA, ..deep };
    let wide_heads = Architecture { n_kv_head: Some(2), head_size: Some(6), ..Architecture::LLAMA };
    let grouped = ModelConfig { n_head: 4, arch: wide_heads, ..llama };
    let arch = Architecture { qk_norm: true, window: Some(60), ..wide_heads };
    let normed = ModelConfig { arch, ..grouped };
    // Rows of tokens before each one, multiplied, squared ReLU and capped logits, on a table of its own and on one that is shared.
    let arch = Architecture {
        previous_tokens: 3,
        embedding_scale: 3.0,
        activation: Activation::Relu2,
        logit_softcap: Some(15.0),
        qk_norm: true,
        ..Architecture::LLAMA
    };
    let fast = ModelConfig { arch, ..llama };
    let untied = ModelConfig { tied: false, ..fast };
    for config in [CONFIG, deep, one, bare, odd, llama, grouped, normed, fast, untied] {
        for (sequences, tokens) in shapes {
            for tiles_for in [1, 2, 16] {
                cases.push((config, BatchShape { sequences, tokens }, tiles_for));
            }
        }
    }
    for tiles_for in [1, 2, 4] {
        cases.push((wide, BatchShape { sequences: 7, tokens: 130 }, tiles_for));
    }
    let usual = Blocking::default();
    let small = Blocking { row_block: 32, weight_rows: 32, weight_cols: 64, ..usual };
    let large = Blocking {
        row_block: 384,
        logits_blocks: 1,
        tiles_per_worker: 1,
        // Of whole lines, but not of whole blocks of moments.
        update_floats: 48,
        ..usual
    };
    let blockings = [usual, usual, small, large];
    let mut free = 0;
    for (number, (config, batch, tiles_for)) in cases.into_iter().enumerate() {
        let dropout = if number % 2 == 0 { 0.0 } else { 0.2 };
        let (config, kernels) = (ModelConfig { dropout, ..config }, tables[number % tables.len()]);
        let modes = [Mode::Train, Mode::Recompute, Mode::Evaluate];
        // Without packing there are other row blocks, and nothing that waits for it.
        let fresh = modes.map(|mode| (mode, Packing::Fresh));
        let fresh = if number % 5 == 0 { &fresh[..] } else { &[] };
        let once = modes.map(|mode| (mode, Packing::Once));
        let adapters = adapters(number, &config);
        let adapters = adapters.as_ref();
        let kept = modes.map(|mode| (mode, Packing::Kept));
        // Beside adapters matrices may be kept as panels, which nothing writes.
        let kept = if adapters.is_some() && number % 2 == 0 { &kept[..2] } else { &[] };
        for &(mode, packing) in once.iter().chain(fresh).chain(kept) {
            let blocking = blockings[number % blockings.len()];
            let tiling = Tiling { workers: Some(tiles_for), packing: Some(packing), blocking };
            let plan =
                Plan::with_adapters(&config, adapters, batch, 2, &tiling, mode, kernels).unwrap();
            // Moments of 8 bits in two cases of five, each other kind in one.
            let kinds = [[OptimizerKind::AdamW8].as_slice(), &OptimizerKind::ALL].concat();
            let plan = plan.with_optimizer(kinds[number % kinds.len()]);
            let what = std::format!(
                "{config:?} {adapters:?} {batch:?} {tiles_for} {mode:?} {packing:?} {kernels:?} {}",
                plan.optimizer()
            );
            let mut program = Program::new(&plan, kernels);
            free += program.check(Run::Losses { pack: true }, &what);
            if mode.trains() {
                free += program.check(Run::Gradients { pack: true }, &what);
                free += program.check(Run::Gradients { pack: false }, &what);
                free += program.check(Run::Update, &what);
            }
        }
    }
    std::println!("{free} pairs of tiles may run in either order");
    assert!(free > 1_000_000, "only {free} pairs of tiles could run in either order");
}
