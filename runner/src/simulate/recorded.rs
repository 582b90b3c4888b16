//! What a trace tells of each tile of a step: how long it takes, how much it moves.

use core::ops::Range;

use cllm_core::{Engine, Plan, Run};

use crate::error::{Error, Result};
use crate::trace::chrome::{Tile, Trace};
use crate::trace::costs::median;

/// A tile of the step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct TileCost {
    /// Nanoseconds, the median of those recorded.
    pub(super) nanos: u64,
    /// Bytes from and to memory, of the kinds that memory limits.
    pub(super) bytes: u64,
    /// Which of [`Recorded::labels`].
    pub(super) label: usize,
}

/// The tiles of a step.
#[derive(Debug)]
pub(super) struct Recorded {
    /// By stage.
    stages: Vec<Vec<TileCost>>,
    /// What reports call the tiles: an operation, or the first and last of a chain.
    pub(super) labels: Vec<String>,
}

impl Recorded {
    /// The tiles of `trace`, whose step is that of `engine` and `plan`: as they were in the
    /// time `within`, by their medians or their `fastest` times.
    ///
    /// # Errors
    /// The trace has other tiles than the plan, or lacks some.
    pub(super) fn new(
        trace: &Trace,
        engine: &Engine<'_>,
        plan: &Plan,
        within: &Range<u64>,
        fastest: bool,
    ) -> Result<Self> {
        let tiles: Vec<_> = engine.stages().map(|stage| stage.tiles() as usize).collect();
        let mut samples: Vec<Vec<Vec<f64>>> =
            tiles.iter().map(|tiles| vec![Vec::new(); *tiles]).collect();
        let within = |tile: &&Tile| within.contains(&tile.begin);
        for tile in trace.workers.iter().flatten().filter(within) {
            let place = samples.get_mut(tile.stage as usize);
            let Some(place) = place.and_then(|stage| stage.get_mut(tile.tile as usize)) else {
                return Err(Error::failure(format!(
                    "tile {} of stage {} is not one of this program's step: the trace is of \
                     another version of the program; record it again",
                    tile.tile, tile.stage
                )));
            };
            place.push((tile.end - tile.begin) as f64);
        }
        let mut recorded = Self { stages: Vec::new(), labels: Vec::new() };
        for (id, (stage, mut samples)) in engine.stages().zip(samples).enumerate() {
            let is_needed = [Run::Gradients { pack: true }, Run::Update];
            let is_needed = is_needed.into_iter().any(|run| stage.is_in(run));
            let mut costs = Vec::with_capacity(samples.len());
            for (tile, samples) in samples.iter_mut().enumerate() {
                if is_needed && samples.is_empty() {
                    return Err(Error::failure(format!(
                        "tile {tile} of stage {id} was not recorded: the trace is too short, or of \
                         another version of the program; record again, with a higher --trace-steps"
                    )));
                }
                let mut names = stage.ops_of(tile as u32).map(|(op, _)| op.name());
                let label = match (names.next(), names.last()) {
                    (Some(first), Some(last)) => format!("{first} .. {last}"),
                    (first, _) => first.unwrap_or_default().to_owned(),
                };
                let bytes = stage.ops_of(tile as u32);
                costs.push(TileCost {
                    nanos: if fastest {
                        samples.iter().copied().reduce(f64::min).unwrap_or_default() as u64
                    } else {
                        median(samples) as u64
                    },
                    bytes: bytes.map(|(op, tile)| plan.streamed_bytes(op, tile)).sum(),
                    label: recorded.label(label),
                });
            }
            recorded.stages.push(costs);
        }
        Ok(recorded)
    }

    fn label(&mut self, label: String) -> usize {
        self.labels.iter().position(|known| *known == label).unwrap_or_else(|| {
            self.labels.push(label);
            self.labels.len() - 1
        })
    }

    /// A tile's cost.
    pub(super) fn tile(&self, stage: usize, tile: u32) -> TileCost {
        let costs = self.stages.get(stage).and_then(|stage| stage.get(tile as usize));
        costs.copied().unwrap_or_default()
    }
}
