//! Reads the golden files of `tests/golden`: tiny models with the logits,
//! gradients, losses and updated weights that PyTorch computes for them.
//!
//! ```ignore
//! mod support;
//! use support::golden::Golden;
//!
//! for golden in Golden::all() {
//!     // Build a model from `golden.config` and fill it from `golden.params`;
//!     // then for each step hand over `golden.tokens(step, micro)` and
//!     // `golden.targets(step, micro)` for each of `golden.config.accum`
//!     // micro-batches, use `golden.config.lrs[step]`, and compare with
//!     // `golden.losses[step]`, `golden.grad_norms[step]` and, after the last
//!     // step, `golden.finals`.
//! }
//! ```
//!
//! `tests/golden/README.md` says what each file is there for, what the numbers
//! mean exactly, and which of them no float32 program can reproduce.

use cllm::parts::Parts;
use cllm_core::{ModelConfig, ParamTable};
use core::ops::Range;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// The version of the file layout that this reader knows.
const FORMAT: u32 = 1;

/// A target that does not count, as the kernels know it (`-1` in the files).
pub(crate) const IGNORED: u32 = u32::MAX;

/// A named tensor in row-major order: name, shape, values.
pub(crate) type Tensor = (String, Vec<usize>, Vec<f32>);

/// The model, the shape of its batches, and the optimizer of one golden file.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct GoldenConfig {
    /// Name of the file without its extension.
    pub(crate) name: String,
    /// Rows of `wte` and, when untied, of `lm_head`.
    pub(crate) vocab_size: usize,
    /// Rows of `wpe`, if there is one: the longest sequence; `tokens_per_sequence` may be less.
    pub(crate) block_size: usize,
    /// Number of transformer layers.
    pub(crate) n_layer: usize,
    /// Number of attention heads, of queries.
    pub(crate) n_head: usize,
    /// Width of the residual stream.
    pub(crate) d_model: usize,
    /// Width of the hidden layer of the feed-forward part.
    pub(crate) d_ff: usize,
    /// Whether linear layers and norms have biases.
    pub(crate) bias: bool,
    /// Whether the head is `wte` itself.
    pub(crate) tied: bool,
    /// Added to the variance in every layer norm, and to the mean of squares in every RMS norm.
    pub(crate) layer_norm_eps: f64,
    /// Sequences in a micro-batch.
    pub(crate) batch: usize,
    /// Tokens in each sequence.
    pub(crate) tokens_per_sequence: usize,
    /// Micro-batches in a step.
    pub(crate) accum: usize,
    /// Number of optimizer steps.
    pub(crate) steps: usize,
    /// Learning rate of each step.
    #[serde(skip)]
    pub(crate) lrs: Vec<f64>,
    /// Decay of AdamW's first and second moment.
    pub(crate) betas: (f64, f64),
    /// Added to the root of AdamW's second moment.
    pub(crate) eps: f64,
    /// Decoupled decay of tensors of two dimensions; others have none.
    pub(crate) weight_decay: f64,
    /// Largest global gradient norm: gradients are multiplied by
    /// `min(1, clip / (norm + 1e-6))`.
    pub(crate) clip: f64,
    /// What blocks are made of; files of GPT-2 do not say.
    #[serde(default)]
    pub(crate) parts: Parts,
    format: u32,
    parameters: Vec<String>,
}

impl GoldenConfig {
    /// The model, as the core knows it.
    pub(crate) fn model(&self) -> ModelConfig {
        ModelConfig {
            vocab_size: self.vocab_size,
            block_size: self.block_size,
            n_layer: self.n_layer,
            n_head: self.n_head,
            d_model: self.d_model,
            d_ff: self.d_ff,
            bias: self.bias,
            tied: self.tied,
            dropout: 0.0,
            norm_eps: self.layer_norm_eps as f32,
            arch: self.parts.architecture(),
        }
    }

    /// Tokens of one micro-batch.
    pub(crate) fn micro_tokens(&self) -> usize {
        self.batch * self.tokens_per_sequence
    }

    /// Number of tokens in a step, all micro-batches together.
    pub(crate) fn step_tokens(&self) -> usize {
        self.accum * self.micro_tokens()
    }
}

/// One golden file. `params`, `grads` and `finals` have the same names and
/// shapes in the same order, that of the project's table of parameters.
#[derive(Debug, Clone)]
pub(crate) struct Golden {
    /// Model, batches and hyper-parameters.
    pub(crate) config: GoldenConfig,
    /// Initial weights, exact.
    pub(crate) params: Vec<Tensor>,
    /// Gradient of `loss`, before clipping.
    pub(crate) grads: Vec<Tensor>,
    /// Weights after all steps.
    pub(crate) finals: Vec<Tensor>,
    /// Logits `[batch, tokens_per_sequence, vocab_size]` of the first
    /// micro-batch of the first step.
    pub(crate) logits: Vec<f32>,
    /// Loss of the first step: the mean over all its targets that count.
    pub(crate) loss: f64,
    /// Loss of each step, before its update.
    pub(crate) losses: Vec<f64>,
    /// Global gradient norm of each step, before clipping.
    pub(crate) grad_norms: Vec<f64>,
    tokens: Vec<u32>,
    targets: Vec<u32>,
}

impl Golden {
    /// Every golden file, in order of name.
    ///
    /// # Panics
    /// Where there is none, or one cannot be read: a test has nothing to do then.
    pub(crate) fn all() -> Vec<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("golden");
        let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut paths: Vec<PathBuf> = entries
            .map(|entry| entry.expect("golden folder").path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "safetensors"))
            .collect();
        paths.sort();
        assert!(!paths.is_empty(), "{} holds no golden files", dir.display());
        paths.iter().map(|path| Self::load(path)).collect()
    }

    /// The golden file of that name, such as `"tied_bias"`.
    ///
    /// # Panics
    /// Where there is none.
    pub(crate) fn named(name: &str) -> Self {
        let found = Self::all().into_iter().find(|golden| golden.config.name == name);
        found.unwrap_or_else(|| panic!("no golden file is called {name}"))
    }

    /// Token ids `[batch, tokens_per_sequence]` of a micro-batch.
    pub(crate) fn tokens(&self, step: usize, micro: usize) -> &[u32] {
        &self.tokens[self.micro_range(step, micro)]
    }

    /// Targets `[batch, tokens_per_sequence]` of a micro-batch; [`IGNORED`]
    /// marks those that do not count.
    pub(crate) fn targets(&self, step: usize, micro: usize) -> &[u32] {
        &self.targets[self.micro_range(step, micro)]
    }

    /// Token ids of a whole step, its micro-batches one after the other.
    pub(crate) fn step_tokens(&self, step: usize) -> &[u32] {
        &self.tokens[self.step_range(step)]
    }

    /// Targets of a whole step, its micro-batches one after the other.
    pub(crate) fn step_targets(&self, step: usize) -> &[u32] {
        &self.targets[self.step_range(step)]
    }

    /// Number of targets of a step that count, which is what its loss divides by.
    pub(crate) fn counted_targets(&self, step: usize) -> usize {
        self.step_targets(step).iter().filter(|&&target| target != IGNORED).count()
    }

    fn step_range(&self, step: usize) -> Range<usize> {
        let len = self.config.step_tokens();
        step * len..(step + 1) * len
    }

    fn micro_range(&self, step: usize, micro: usize) -> Range<usize> {
        assert!(micro < self.config.accum, "micro-batch {micro} of {}", self.config.accum);
        let len = self.config.micro_tokens();
        let start = self.step_range(step).start + micro * len;
        start..start + len
    }

    fn load(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = File {
            path,
            tensors: SafeTensors::deserialize(&bytes)
                .unwrap_or_else(|e| panic!("{}: {e}", path.display())),
        };
        let mut config = read_config(path, &bytes);
        let names = core::mem::take(&mut config.parameters);
        let all = |prefix: &str| -> Vec<Tensor> {
            let read = |name: &String| {
                let (shape, values) = file.f32(&format!("{prefix}/{name}"));
                (name.clone(), shape, values)
            };
            names.iter().map(read).collect()
        };
        let golden = Self {
            params: all("param"),
            grads: all("grad"),
            finals: all("final"),
            logits: file.f32("logits").1,
            loss: file.f64("loss")[0],
            losses: file.f64("losses"),
            grad_norms: file.f64("grad_norms"),
            tokens: file.ids("tokens"),
            targets: file.ids("targets"),
            config: GoldenConfig { lrs: file.f64("lrs"), ..config },
        };
        golden.check_lengths(path);
        golden
    }

    /// A file that contradicts its own metadata would fail far from its cause.
    fn check_lengths(&self, path: &Path) {
        let config = &self.config;
        let ids = config.steps * config.step_tokens();
        for (what, got, want) in [
            ("tokens", self.tokens.len(), ids),
            ("targets", self.targets.len(), ids),
            ("logits", self.logits.len(), config.micro_tokens() * config.vocab_size),
            ("losses", self.losses.len(), config.steps),
            ("grad_norms", self.grad_norms.len(), config.steps),
            ("lrs", config.lrs.len(), config.steps),
        ] {
            assert_eq!(got, want, "{}: length of {what}", path.display());
        }
    }
}

fn read_config(path: &Path, bytes: &[u8]) -> GoldenConfig {
    let (_, metadata) = SafeTensors::read_metadata(bytes).expect("the header was read before");
    let json = metadata.metadata().as_ref().and_then(|map| map.get("config"));
    let json = json.unwrap_or_else(|| panic!("{}: no config in the metadata", path.display()));
    let config: GoldenConfig =
        serde_json::from_str(json).unwrap_or_else(|e| panic!("{}: config: {e}", path.display()));
    assert_eq!(config.format, FORMAT, "{}: format", path.display());
    config
}

/// An open file that names itself when something in it is wrong.
struct File<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
}

impl File<'_> {
    /// Shape and values of a tensor, decoded from chunks of `N` bytes.
    fn read<T, const N: usize>(
        &self,
        name: &str,
        dtype: Dtype,
        decode: fn([u8; N]) -> T,
    ) -> (Vec<usize>, Vec<T>) {
        let tensor = self.tensors.tensor(name);
        let tensor = tensor.unwrap_or_else(|e| panic!("{}: {name}: {e}", self.path.display()));
        assert_eq!(tensor.dtype(), dtype, "{}: type of {name}", self.path.display());
        let (chunks, rest) = tensor.data().as_chunks::<N>();
        assert!(rest.is_empty(), "{}: {name} ends inside a value", self.path.display());
        (tensor.shape().to_vec(), chunks.iter().map(|&chunk| decode(chunk)).collect())
    }

    fn f32(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        self.read(name, Dtype::F32, f32::from_le_bytes)
    }

    fn f64(&self, name: &str) -> Vec<f64> {
        self.read(name, Dtype::F64, f64::from_le_bytes).1
    }

    /// Token ids; the files' `-1` has the bits of [`IGNORED`].
    fn ids(&self, name: &str) -> Vec<u32> {
        self.read(name, Dtype::I32, u32::from_le_bytes).1
    }
}

/// Writes golden tensors into a parameter arena, checking names and shapes.
pub(crate) fn scatter(table: &ParamTable, tensors: &[Tensor], arena: &mut [f32]) {
    assert_eq!(tensors.len(), table.count());
    for (spec, (name, shape, values)) in table.iter().zip(tensors) {
        assert_eq!(spec.name().as_str(), name);
        let expected = if spec.is_vector() { vec![spec.cols] } else { vec![spec.rows, spec.cols] };
        assert_eq!(&expected, shape, "{name}");
        arena[spec.range()].copy_from_slice(values);
    }
}
