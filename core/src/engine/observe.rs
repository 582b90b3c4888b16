//! What a worker is doing, told to whoever measures it: the engine has no clock.

use crate::program::Op;

/// What a worker turns to. It lasts until the next one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activity {
    /// An operation of a tile. A tile of row blocks goes through several.
    Tile {
        /// Number of the stage of the step.
        stage: usize,
        /// What it does, and where in the model.
        op: Op,
        /// Which of the stage's tiles: the same for all operations that it goes through.
        tile: u32,
        /// Whether the tile was another worker's.
        stolen: bool,
    },
    /// Looking for a tile, and saying that one is done.
    Search,
    /// No tile is ready, but the run is not over.
    Wait,
    /// No run is under way, or none that this worker takes part in.
    Rest,
}

/// Is told what a worker turns to. It is called on the worker's thread, between tiles.
pub trait Observer {
    /// The worker ends what it did and turns to `activity`.
    fn enter(&mut self, activity: Activity);
}

/// Looks at nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn enter(&mut self, _activity: Activity) {}
}
