//! Going on from a model that is there already: `--base`.
//!
//! ```text
//! first session     config, weights, tokenizer and chat template of the base
//! resumed session   all of that from the run's own checkpoint and folder: the base may be gone
//! ```
//! Moments start at zero, and so does the count of steps: it is another run.

use std::path::{Path, PathBuf};

use cllm_core::checkpoint::Header;
use cllm_core::{ModelConfig, Packing, ParamTable, Plan, Positions, Trainer};

use crate::checkpoint::{self, CheckpointFile, MappedValues, Meta};
use crate::error::{Error, Result};
use crate::lora;
use crate::parts::Parts;
use crate::settings::{TokenizerChoice, TrainSettings};
use crate::tokenizer::{self, usage::Usage};
use crate::trained::Trained;

/// The settings that a base decides.
pub(crate) const DECIDED: [&str; 20] = [
    "n_layer",
    "n_head",
    "n_kv_head",
    "head_size",
    "n_embd",
    "d_ff",
    "bias",
    "tied",
    "norm",
    "positions",
    "rope_theta",
    "activation",
    "qkv_bias",
    "qk_norm",
    "zero_init",
    "bigram_init",
    "window",
    "logit_softcap",
    "previous_tokens",
    "embedding_scale",
];
/// Longest sequences of a model that was made elsewhere, unless they are told: it may be for many more
/// tokens than a text has, or than fit into the memory of a batch.
pub(crate) const BLOCK: usize = 1024;

/// Highest learning rate of adapters unless told: ten times that of all weights, as people take it.
pub(crate) const LORA_RATE: f32 = 2e-4;

/// Fills `settings` with what the base says, of which `is_set` says what somebody has set.
///
/// # Errors
/// The base cannot be read, or somebody has set what it decides.
pub(crate) fn settle(
    settings: &mut TrainSettings,
    base: &Path,
    is_set: impl Fn(&str) -> bool,
) -> Result<()> {
    if let Some(field) = DECIDED.into_iter().find(|field| is_set(field)) {
        let flag = field.replace('_', "-");
        return Err(Error::usage(format!(
            "--{flag}: with --base the model is that of {}; leave --{flag} out",
            base.display()
        )));
    }
    let trained = open(base)?;
    let c = trained.config();
    // Adapters start from nothing and bear larger steps.
    if settings.lora_rank.is_some() && settings.loss_on.is_some() && !is_set("learning_rate") {
        settings.learning_rate = LORA_RATE;
    }
    (settings.n_layer, settings.n_head, settings.n_embd) = (c.n_layer, c.n_head, c.d_model);
    (settings.d_ff, settings.bias, settings.tied) = (Some(c.d_ff), c.bias, c.tied);
    let Parts {
        norm,
        positions,
        activation,
        rope_theta,
        n_kv_head,
        head_size,
        qkv_bias,
        qk_norm,
        window,
        logit_softcap,
        previous_tokens,
        embedding_scale,
        ..
    } = Parts::from(&c.arch);
    (settings.norm, settings.positions, settings.activation) = (norm, positions, activation);
    (settings.rope_theta, settings.n_kv_head) = (rope_theta, n_kv_head);
    (settings.head_size, settings.qkv_bias, settings.qk_norm) = (head_size, qkv_bias, qk_norm);
    (settings.window, settings.logit_softcap) = (window, logit_softcap.unwrap_or(0.0));
    (settings.previous_tokens, settings.embedding_scale) = (previous_tokens, embedding_scale);
    if !is_set("block_size") {
        settings.block_size = c.block_size.min(BLOCK);
    }
    let beside = trained.dir().join(tokenizer::FILE_NAME);
    if is_set("tokenizer") {
        return Ok(());
    }
    if beside.exists() {
        settings.tokenizer = TokenizerChoice::File(beside);
    } else if settings.vocab_size.is_none() {
        return Err(Error::usage(format!(
            "--base {}: there is no {} beside it, so what its ids mean is not known; give \
             --tokenizer, or token shards with --vocab-size {}",
            base.display(),
            tokenizer::FILE_NAME,
            c.vocab_size
        )));
    }
    Ok(())
}

fn open(base: &Path) -> Result<Trained> {
    Trained::open(base).map_err(|error| Error::failure(format!("--base: {error}")))
}

/// What a run's model is: the base's, or that of the checkpoint that goes on from one.
#[derive(Debug)]
pub(crate) struct Start {
    /// The model.
    pub(crate) config: ModelConfig,
    base: Option<Trained>,
}

impl Start {
    /// The model of a run with a base, of which `from` is a checkpoint if it has begun; `None` if it has
    /// no base.
    ///
    /// # Errors
    /// One of them cannot be read; sequences or token ids that are not the model's.
    pub(crate) fn of(
        settings: &TrainSettings,
        from: Option<&CheckpointFile>,
        vocab_size: usize,
    ) -> Result<Option<Self>> {
        let Some(path) = &settings.base else { return Ok(None) };
        let (base, config) = match from {
            Some(file) => {
                let header = *file.parse().map_err(|e| file.error(e))?.header();
                let dir = file.path().parent().unwrap_or(Path::new(""));
                // Verified before there is memory that it would come on top of.
                let beside = header.adapters.map(|_| lora::base_of(dir, &header.config));
                (beside.transpose()?, header.config)
            }
            None => {
                let base = open(path)?;
                let config = *base.config();
                (Some(base), config)
            }
        };
        let config = ModelConfig { dropout: settings.dropout, ..config };
        if vocab_size > config.vocab_size {
            return Err(Error::usage(format!(
                "--base {}: its model has {} ids, but the tokenizer or --vocab-size says {vocab_size}",
                path.display(),
                config.vocab_size
            )));
        }
        if settings.block_size > config.block_size {
            let what = match config.arch.positions {
                Positions::Learned => "has a table of",
                Positions::Rotary(_) => "is for",
            };
            return Err(Error::usage(format!(
                "--block-size {}: the model of --base {} {what} {} positions",
                settings.block_size,
                path.display(),
                config.block_size
            )));
        }
        Ok(Some(Self { config, base }))
    }

    /// Gives a new run's folder what it wants of the base: its chat template, and where adapters are trained
    /// its weights.
    pub(super) fn begin(&self, plan: &Plan, settings: &TrainSettings) -> Result<()> {
        let Some(base) = &self.base else { return Ok(()) };
        let out_dir = &settings.out_dir;
        Usage::of_folder(&base.dir())?.save(out_dir)?;
        if plan.adapters().is_some() {
            let (config, updates) = (self.config, base.step());
            let header = Header { config, adapters: None, seed: settings.seed, updates };
            copy(base, plan.table(), &lora::base_in(out_dir), &header)?;
        }
        Ok(())
    }

    /// Reads from now on what [`Start::begin`] has put into the folder.
    pub(super) fn move_in(&mut self, plan: &Plan, settings: &TrainSettings) -> Result<()> {
        if self.base.is_some() && plan.adapters().is_some() {
            self.base = Some(lora::base_of(&settings.out_dir, &self.config)?);
        }
        Ok(())
    }

    /// The token table where it is stored, for a plan that has it nowhere else.
    pub(super) fn token_table(&self, plan: &Plan) -> Result<Option<MappedValues>> {
        let base = self.base.as_ref().filter(|_| plan.packing() == Packing::Kept);
        base.map(Trained::token_table).transpose()
    }

    /// Gives a trainer the weights that it begins with, or that its adapters stand beside.
    pub(super) fn load(&self, trainer: &mut Trainer<'_>) -> Result<()> {
        let Some(base) = &self.base else { return Ok(()) };
        let mut tensors = base.tensors()?;
        let mut staging = vec![0.0; trainer.plan().staging_len()];
        trainer.load(&mut staging, |spec, first, values| tensors.read(spec, first, values))
    }
}

/// Writes the weights of a model to `path`, of which no more than some rows are in memory at a time.
fn copy(base: &Trained, table: &ParamTable, path: &Path, header: &Header) -> Result<()> {
    /// Rows of a tensor at a time.
    const ROWS: usize = 256;
    let mut tensors = base.tensors()?;
    let mut piece = Vec::new();
    let meta = Meta { origin: base.origin().map(str::to_owned), ..Meta::untrained() };
    checkpoint::save_given(path, header, &meta, |put| {
        for spec in table.iter() {
            for first in (0..spec.rows).step_by(ROWS) {
                piece.resize(ROWS.min(spec.rows - first) * spec.cols, 0.0);
                tensors.read(&spec, first, &mut piece)?;
                put(&piece)?;
            }
        }
        Ok(())
    })
}

/// The folder that a base's files lie in.
pub(super) fn folder_of(base: &Path) -> PathBuf {
    if base.is_dir() {
        return base.to_path_buf();
    }
    let parent = base.parent().filter(|dir| !dir.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_path_buf()
}

/// The base's path from any working folder.
pub(super) fn whole_path(base: &Path) -> PathBuf {
    base.canonicalize().unwrap_or_else(|_| base.to_path_buf())
}
