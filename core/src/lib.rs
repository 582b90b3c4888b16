//! Training of transformers in memory that the caller hands over.
//!
//! `no_std`, no allocation, no thread, no file, no clock. The order of use:
//!
//! 1. a [`ModelConfig`],
//! 2. a [`Plan`]: how many bytes of which pool, exactly,
//! 3. an [`Engine`] over a [`Queue`], and on each thread that is to work for it
//!    [`Worker::run`] (none is needed: the caller then does everything),
//! 4. a [`Trainer`] (or [`Evaluator`]) over the [`Pools`],
//! 5. [`Trainer::accumulate`] and [`Trainer::update`] for each step, or a few tiles of it at a time
//!    ([`Slices`]) in a loop that must be back in time,
//! 6. [`checkpoint`]s on byte slices, and text from a [`generate::Generator`].
//!
//! Plans may be made while a program is compiled ([`Plan::fixed`]): then memory is a static of just the sizes
//! that the model needs ([`Memory`]), and a budget that it exceeds is an error of the compiler's
//! ([`Plan::assert_fits`]).
//!
//! A step is a list of operations over tiles (`program`); what a tile computes is in
//! `step`; who runs it and when is up to `engine`.
//!
//! ```
//! use cllm_core::*;
//!
//! let config = ModelConfig {
//!     vocab_size: 32,
//!     block_size: 8,
//!     n_layer: 1,
//!     n_head: 2,
//!     d_model: 16,
//!     d_ff: 64,
//!     bias: true,
//!     tied: true,
//!     dropout: 0.0,
//!     norm_eps: 1e-5,
//!     arch: Architecture::GPT2,
//! };
//! let (kernels, shape) = (Kernels::detect(), BatchShape { sequences: 2, tokens: 8 });
//! let plan = Plan::new(&config, shape, 1, Mode::Train, kernels)?;
//!
//! // The memory is on the heap here; it may as well be a static or a mapped file.
//! let lines = |pool| vec![Line::ZERO; plan.lines(pool)];
//! let pools = Pools {
//!     parameters: &mut lines(Pool::Parameters),
//!     gradients: &mut lines(Pool::Gradients),
//!     moments: &mut lines(Pool::Moments),
//!     packed: &mut lines(Pool::Packed),
//!     activations: &mut lines(Pool::Activations),
//!     scratch: &mut lines(Pool::Scratch),
//! };
//! let queue = Queue {
//!     ops: &mut vec![Op::EMPTY; plan.ops()],
//!     slots: &mut (0..plan.slots()).map(|_| Slot::new()).collect::<Vec<_>>(),
//!     words: &mut (0..plan.words()).map(|_| 0.into()).collect::<Vec<_>>(),
//! };
//!
//! // No thread serves the engine, so this one does everything.
//! let engine = Engine::new(&plan, queue)?;
//! let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 1337)?;
//! trainer.initialise();
//!
//! // Two micro-batches a step: what follows each token is the next number.
//! let ids: Vec<u32> = (0..=32).map(|i| i % 32).collect();
//! let batches = [0, 16].map(|at| Batch::new(&ids[at..at + 16], &ids[at + 1..at + 17]));
//! let counted = batches.iter().map(Batch::counted).sum();
//! let before = trainer.evaluate(&batches[0])?;
//! for _ in 0..20 {
//!     for batch in &batches {
//!         trainer.accumulate(batch, counted)?;
//!     }
//!     trainer.update(&Optimizer::default(), 1e-2)?;
//! }
//! assert_eq!(trainer.updates(), 20);
//! assert!(trainer.evaluate(&batches[0])?.mean() < 0.9 * before.mean());
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```
#![no_std]
#![cfg_attr(feature = "compact", allow(unused_variables, reason = "what only messages said"))]

// Its checks without messages.
#[cfg(feature = "compact")]
#[macro_use]
extern crate cllm_kernels;

mod adapter;
mod architecture;
mod arithmetic;
mod batch;
mod built;
pub mod checkpoint;
mod config;
mod engine;
pub mod generate;
mod init;
mod line;
#[cfg(not(loom))]
mod memory;
mod message;
mod moments;
mod muon;
mod optimizer;
mod params;
mod plan;
mod previous;
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
pub use built::LeftOut;
pub use cllm_kernels::{Caches, Dtype, Footprint, IGNORE, Isa, KernelSet, Kernels};
pub use config::{ConfigError, MAX_DIMENSION, ModelConfig};
pub use engine::{
    ActedTile, Activity, Actor, DrillSeat, Drilled, Engine, EngineError, Idle, Observer, Queue,
    Rehearsal, SeatError, Slot, Spin, StageView, Unobserved, Word, Worker,
};
pub use line::{LANES, Line, floats, floats_mut};
#[cfg(not(loom))]
pub use memory::Memory;
pub use moments::{Moments, MomentsMut};
pub use optimizer::{Optimizer, OptimizerError, OptimizerKind, UnknownOptimizer, UpdateReport};
pub use params::{BlockParam, Init, Name, Param, ParamSpec, ParamTable};
pub use plan::{
    BatchShape, Blocking, BlockingError, Mode, Packing, Piece, Plan, PlanError, Pool, ROW_BLOCK,
    Sizes, Tiling,
};
pub use program::{Op, Run};
pub use schedule::{Decay, Schedule, ScheduleError};
pub use trainer::{Evaluator, Origin, Part, Pools, Ripening, Slices, Tensor, Trainer};
