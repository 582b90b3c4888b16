//! A trained model whose losses are computed for one text at a time, with nothing beside it.
#![allow(dead_code, reason = "every test program uses a part of it")]

use std::path::Path;

use cllm::checkpoint::CheckpointFile;
use cllm::memory::PoolMemory;
use cllm_core::{
    Batch, BatchShape, Engine, Evaluator, IGNORE, Kernels, Mode, ModelConfig, ParamTable, Plan,
};

/// The weights of a checkpoint.
pub(crate) struct Model {
    config: ModelConfig,
    weights: Vec<f32>,
}

impl Model {
    /// Opens a checkpoint file.
    pub(crate) fn open(path: &Path) -> Self {
        let file = CheckpointFile::open(path).unwrap();
        let checkpoint = file.parse().unwrap();
        let config = checkpoint.header().config;
        let mut weights = vec![0.0; ParamTable::new(&config).unwrap().arena_len()];
        checkpoint.read_parameters(&mut weights);
        Self { config, weights }
    }

    /// The sum of the losses of the tokens from `first` on, each behind those before it.
    pub(crate) fn loss(&mut self, ids: &[u32], first: usize) -> f64 {
        let shape = BatchShape { sequences: 1, tokens: ids.len() - 1 };
        let kernels = Kernels::detect();
        let plan = Plan::new(&self.config, shape, 1, Mode::Evaluate, kernels).unwrap();
        let mut memory = PoolMemory::allocate(&plan).unwrap();
        let (pools, queue) = memory.parts();
        let engine = Engine::new(&plan, queue).unwrap();
        let mut evaluator = Evaluator::new(&plan, kernels, pools, &engine).unwrap();
        evaluator.parameters_mut().copy_from_slice(&self.weights);
        let mut targets = ids[1..].to_vec();
        targets[..first - 1].fill(IGNORE);
        evaluator.evaluate(&Batch::new(&ids[..ids.len() - 1], &targets)).unwrap().sum
    }
}
