//! A run of a step in virtual time.
//!
//! ```text
//! every actor looks `start` after the call
//! look at t:   a tile -> it begins (after the cost of a steal), ends after what it took,
//!                        or when memory has moved its bytes
//!              none   -> the actor waits
//! end at t:    completed; the actor looks `dispatch` later, those that wait `wake` later
//! the call returns `end` after the last tile
//! ```
//! Which tile an actor gets is not modelled but asked of the engine: see
//! [`cllm_core::Rehearsal`].

use core::cmp::Reverse;
use std::collections::BinaryHeap;

use cllm_core::{ActedTile, Actor, Engine, Rehearsal, Run};

use super::recorded::Recorded;
use crate::error::{Error, Result};

/// What scheduling costs. Nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prices {
    /// To say that a tile is done and take one's own next.
    pub(super) dispatch: u64,
    /// What it takes longer if that is another's.
    pub(super) steal: u64,
    /// To notice that there may be a tile.
    pub(super) wake: u64,
    /// From the call to the first look.
    pub(super) start: u64,
    /// From the last tile to the return.
    pub(super) end: u64,
    /// Bytes a nanosecond that memory moves.
    pub(super) bandwidth: f64,
}

/// Sums over the runs of a step. Nanoseconds, of all workers together unless said.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    /// Of the runs, from call to return: not of all workers together.
    pub(super) elapsed: u64,
    /// Running tiles.
    pub(super) busy: u64,
    /// Between tiles without a wait.
    pub(super) dispatch: u64,
    /// Tiles took longer by this, for memory was busy.
    pub(super) memory: u64,
    /// No tile was ready, by the label of the tile that ended the wait.
    pub(super) waits: Vec<u64>,
    /// Before the first tiles and behind the last one.
    pub(super) edges: u64,
    /// Time on the critical path, by label: not of all workers together.
    pub(super) critical: Vec<u64>,
    /// Tiles run.
    pub(super) tiles: u64,
    /// Those of them that were stolen.
    pub(super) stolen: u64,
}

impl Sums {
    pub(super) fn new(labels: usize) -> Self {
        let zeros = vec![0; labels];
        Self {
            elapsed: 0,
            busy: 0,
            dispatch: 0,
            memory: 0,
            waits: zeros.clone(),
            edges: 0,
            critical: zeros,
            tiles: 0,
            stolen: 0,
        }
    }
}

/// Something that happens to an actor. In the order of time, then of planning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    time: u64,
    number: u64,
    actor: usize,
    /// The actor's tile ends; otherwise it looks for one.
    is_end: bool,
}

/// What an actor is at.
struct State {
    tile: Option<ActedTile>,
    /// Waits since then.
    waits: Option<u64>,
    will_look: bool,
    /// What it did last, in the order of all tiles.
    last: Option<usize>,
}

/// A tile in the past.
struct Past {
    label: usize,
    nanos: u64,
    /// What it had to be behind: the actor's last tile, or the one that it waited for.
    behind: Option<usize>,
}

/// Goes through `run` and adds it to `sums`. Behind each tile `seen` is told the time since the call.
///
/// # Errors
/// The engine is at something else, or it gave no tile though the run was not over.
pub(super) fn replay<'e>(
    engine: &'e Engine<'e>,
    actors: &mut [Actor<'e>],
    run: Run,
    recorded: &Recorded,
    prices: &Prices,
    sums: &mut Sums,
    seen: &mut dyn FnMut(&Rehearsal<'_>, u64),
) -> Result<()> {
    let rehearsal = Rehearsal::begin(engine, run)
        .map_err(|e| Error::failure(format!("cannot simulate: {e}")))?;
    let mut events = BinaryHeap::new();
    let mut number = 0;
    let mut plan = |events: &mut BinaryHeap<_>, time, actor, is_end| {
        events.push(Reverse(Event { time, number, actor, is_end }));
        number += 1;
    };
    let mut states: Vec<_> = (0..actors.len())
        .map(|_| State { tile: None, waits: None, will_look: true, last: None })
        .collect();
    for actor in 0..actors.len() {
        plan(&mut events, prices.start, actor, false);
    }
    let mut past = Vec::<Past>::new();
    let (mut memory_free, mut ended, mut enabler) = (0, 0, None);
    while let Some(Reverse(Event { time, actor, is_end, .. })) = events.pop() {
        let state = &mut states[actor];
        if is_end {
            let Some(tile) = state.tile.take() else { continue };
            rehearsal.complete(&tile);
            seen(&rehearsal, time);
            (ended, enabler) = (time, state.last);
            if rehearsal.has_ended() {
                break;
            }
            state.will_look = true;
            plan(&mut events, time + prices.dispatch, actor, false);
            for (waiting, state) in states.iter_mut().enumerate() {
                if state.waits.is_some() && !state.will_look {
                    state.will_look = true;
                    plan(&mut events, time + prices.wake, waiting, false);
                }
            }
            continue;
        }
        state.will_look = false;
        let Some(tile) = actors[actor].take() else {
            state.waits.get_or_insert(time);
            continue;
        };
        let cost = recorded.tile(tile.stage(), tile.tile());
        let behind = match state.waits.take() {
            Some(since) => {
                let label = enabler.and_then(|tile: usize| past.get(tile)).map(|past| past.label);
                sums.waits[label.unwrap_or(cost.label)] += time - since;
                enabler.or(state.last)
            }
            None => state.last,
        };
        let steal = if tile.stolen() { prices.steal } else { 0 };
        let begin = time + steal;
        let mut end = begin + cost.nanos;
        if cost.bytes > 0 {
            let moving = (cost.bytes as f64 / prices.bandwidth) as u64;
            memory_free = moving + begin.max(memory_free);
            end = end.max(memory_free);
        }
        sums.busy += cost.nanos;
        sums.memory += end - begin - cost.nanos;
        sums.dispatch += steal + if state.last.is_some() { prices.dispatch } else { 0 };
        sums.tiles += 1;
        sums.stolen += u64::from(tile.stolen());
        state.last = Some(past.len());
        state.tile = Some(tile);
        past.push(Past { label: cost.label, nanos: end - begin, behind });
        plan(&mut events, end, actor, true);
    }
    if !rehearsal.has_ended() {
        return Err(Error::failure("cannot simulate: no tile is ready but the run is not over"));
    }
    let last_label = enabler.and_then(|tile| past.get(tile)).map_or(0, |past| past.label);
    for state in &states {
        if let Some(since) = state.waits {
            sums.waits[last_label] += ended.saturating_sub(since);
        }
    }
    sums.elapsed += ended + prices.end;
    sums.edges += (prices.start + prices.end) * actors.len() as u64;
    let mut at = enabler;
    while let Some(tile) = at.and_then(|at| past.get(at)) {
        sums.critical[tile.label] += tile.nanos;
        at = tile.behind;
    }
    Ok(())
}
