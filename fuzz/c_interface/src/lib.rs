//! The functions of `capi/`, to be called from Rust as C calls them. A panic in one of them ends the program, as
//! there: it does not unwind into C.

#[path = "../../../capi/src/checkpoint.rs"]
mod checkpoint;
#[path = "../../../capi/src/config.rs"]
mod config;
#[path = "../../../capi/src/door.rs"]
mod door;
#[path = "../../../capi/src/error.rs"]
mod error;
#[path = "../../../capi/src/generator.rs"]
mod generator;
#[path = "../../../capi/src/idle.rs"]
mod idle;
#[path = "../../../capi/src/memory.rs"]
mod memory;
#[path = "../../../capi/src/trainer.rs"]
mod trainer;

pub use checkpoint::*;
pub use config::*;
pub use error::*;
pub use generator::*;
pub use idle::*;
pub use memory::*;
pub use trainer::*;
