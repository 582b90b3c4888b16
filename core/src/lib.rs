//! Training of transformers in memory that the caller hands over.
//!
//! `no_std`, no allocation, no thread, no file, no clock. The order of use:
//!
//! 1. a [`ModelConfig`],
//! 2. a [`Plan`]: how many bytes of which pool, exactly,
//! 3. an [`Engine`] over a [`Queue`], and on each thread that is to work for it
//!    [`Worker::run`] (none is needed: the caller then does everything),
//! 4. a [`Trainer`] (or [`Evaluator`]) over the [`Pools`],
//! 5. [`Trainer::accumulate`] and [`Trainer::update`] for each step,
//! 6. [`checkpoint`]s on byte slices, and text from a [`generate::Generator`].
//!
//! A step is a list of operations over tiles (`program`); what a tile computes is in
//! `step`; who runs it and when is up to `engine`.
#![no_std]

mod adapter;
mod architecture;
mod batch;
pub mod checkpoint;
mod config;
mod engine;
pub mod generate;
mod init;
mod line;
mod optimizer;
mod params;
mod plan;
mod primitive;
mod program;
pub mod ring;
mod rotary;
pub mod sample;
mod schedule;
mod shared;
mod step;
mod trainer;

pub use adapter::{AdapterError, AdapterSite, AdapterSites, AdapterSpec, AdapterTable, Adapters};
pub use architecture::{Activation, Architecture, NormKind, Positions, Rotary, Scaling};
pub use batch::{Batch, Loss, StepError};
pub use cllm_kernels::{Caches, Dtype, IGNORE, Isa, KernelSet, Kernels};
pub use config::{ConfigError, MAX_DIMENSION, ModelConfig};
pub use engine::{
    ActedTile, Activity, Actor, DrillSeat, Drilled, Engine, EngineError, Idle, Observer, Queue,
    Rehearsal, SeatError, Slot, Spin, StageView, Unobserved, Worker,
};
pub use line::{LANES, Line, floats, floats_mut};
pub use optimizer::{Optimizer, OptimizerError, UpdateReport};
pub use params::{BlockParam, Init, Name, Param, ParamSpec, ParamTable};
pub use plan::{
    BatchShape, Blocking, BlockingError, Mode, Packing, Plan, PlanError, Pool, ROW_BLOCK, Tiling,
};
pub use program::{Op, Run};
pub use schedule::{Decay, Schedule, ScheduleError};
pub use trainer::{Evaluator, Pools, Trainer};
