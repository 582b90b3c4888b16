//! Rehearsals: the engine's policy without tiles that compute.

mod support;

use cllm_core::{
    Actor, BatchShape, Engine, EngineError, Kernels, Mode, Plan, Rehearsal, Run, Tiling,
};
use std::collections::BTreeMap;
use support::config::SMALL as CONFIG;
use support::memory::Memory;

const SHAPE: BatchShape = BatchShape { sequences: 13, tokens: 40 };

fn plan(workers: usize, tiles_for: usize) -> Plan {
    plan_for(workers, tiles_for, Mode::Train)
}

fn plan_for(workers: usize, tiles_for: usize, mode: Mode) -> Plan {
    let kernels = Kernels::scalar();
    Plan::with_tiling(&CONFIG, SHAPE, workers, &Tiling::for_workers(tiles_for), mode, kernels)
        .unwrap()
}

/// The tiles (stage, tile) that the stages of a run have.
fn expected(engine: &Engine<'_>, run: Run) -> Vec<(usize, u32)> {
    let stages = engine.stages().enumerate().filter(|(_, stage)| stage.is_in(run));
    stages.flat_map(|(id, stage)| (0..stage.tiles()).map(move |tile| (id, tile))).collect()
}

/// Actors take and complete in turns, each holding a tile for as many turns as it has number.
/// Gives the tiles and how many were stolen.
fn act(engine: &Engine<'_>, run: Run, workers: usize) -> (Vec<(usize, u32)>, usize) {
    let mut actors: Vec<_> = (0..workers).map(|_| Actor::join(engine).unwrap()).collect();
    let rehearsal = Rehearsal::begin(engine, run).unwrap();
    let (mut tiles, mut stolen, mut held) = (Vec::new(), 0, BTreeMap::new());
    let mut turn = 0;
    while !rehearsal.has_ended() {
        for (n, actor) in actors.iter_mut().enumerate() {
            match held.get(&n) {
                None => {
                    if let Some(tile) = actor.take() {
                        tiles.push((tile.stage(), tile.tile()));
                        stolen += usize::from(tile.stolen());
                        held.insert(n, (tile, turn + n));
                    }
                }
                Some((tile, until)) if *until <= turn => {
                    rehearsal.complete(tile);
                    held.remove(&n);
                }
                Some(_) => {}
            }
        }
        turn += 1;
        assert!(turn < 1_000_000, "the rehearsal does not end");
    }
    assert!(held.is_empty());
    (tiles, stolen)
}

#[test]
fn every_tile_is_taken_once_by_any_number_of_actors() {
    for workers in [1, 2, 5, 64] {
        let tiles = [1, 3, 64].into_iter();
        for (tiles_for, mode) in tiles.flat_map(|n| [(n, Mode::Train), (n, Mode::Recompute)]) {
            let plan = plan_for(workers, tiles_for, mode);
            let mut memory = Memory::new(&plan);
            let engine = Engine::new(&plan, memory.parts().1).unwrap();
            for run in [
                Run::Gradients { pack: true },
                Run::Gradients { pack: false },
                Run::Update,
                Run::Losses { pack: false },
            ] {
                let expected = expected(&engine, run);
                assert!(!expected.is_empty());
                let (mut tiles, stolen) = act(&engine, run, workers);
                // Alone, an actor takes them in their order: later stages wait for earlier.
                assert_eq!(workers == 1, stolen == 0, "{workers} {tiles_for} {run:?}");
                tiles.sort_unstable();
                assert_eq!(tiles, expected, "{workers} {tiles_for} {run:?}");
            }
        }
    }
}

#[test]
fn stages_say_what_their_tiles_go_through() {
    let plan = plan(1, 4);
    let mut memory = Memory::new(&plan);
    let engine = Engine::new(&plan, memory.parts().1).unwrap();
    let first = engine.stages().find(|stage| stage.section() == "forward").unwrap();
    let names: Vec<_> = first.ops_of(2).map(|(op, tile)| (op.name(), tile)).collect();
    assert_eq!(names, [("embed", 2), ("norm1", 2), ("qkv", 2)]);
    assert_eq!(first.turns(), 3 * first.tiles() as usize);
    let last = engine.stages().last().unwrap();
    let mut floats = 0;
    for tile in 0..last.tiles() {
        let ops: Vec<_> = last.ops_of(tile).collect();
        assert_eq!((ops.len(), ops[0].0.name()), (1, "optimizer"));
        floats += plan.streamed_bytes(ops[0].0, ops[0].1) / 28;
    }
    assert_eq!(floats, plan.table().parameters() as u64);
    assert_eq!(last.ops_of(last.tiles()).count(), 0);
}

#[test]
fn a_rehearsal_that_is_dropped_leaves_the_engine_free() {
    let plan = plan(2, 2);
    let mut memory = Memory::new(&plan);
    let engine = Engine::new(&plan, memory.parts().1).unwrap();
    {
        let mut actor = Actor::join(&engine).unwrap();
        let rehearsal = Rehearsal::begin(&engine, Run::Update).unwrap();
        let busy = Rehearsal::begin(&engine, Run::Update);
        assert_eq!(busy.err(), Some(EngineError::Busy));
        let tile = actor.take().unwrap();
        rehearsal.complete(&tile);
        assert!(!rehearsal.has_ended());
        drop(rehearsal);
        assert!(actor.take().is_none());
    }
    let (tiles, _) = act(&engine, Run::Update, 2);
    assert_eq!(tiles.len(), expected(&engine, Run::Update).len());
}
