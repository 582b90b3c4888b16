//! Models and plans, as C says them.

use core::mem::offset_of;

use cllm_core::{
    Activation, Architecture, BatchShape, Dtype, Isa, Kernels, Mode, ModelConfig, NormKind,
    OptimizerKind, Plan, Positions, Rotary, Scaling,
};

use crate::error::{CllmStatus, Failed, Result};
use crate::memory::{checked, read};

/// Which instruction set computes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CllmIsa {
    /// The best that the CPU and the system run.
    Best = 0,
    /// None in particular: the same bits on every machine.
    Scalar = 1,
    /// AVX.
    Avx = 2,
    /// AVX2 and FMA.
    Avx2 = 3,
    /// AVX-512.
    Avx512 = 4,
    /// AVX-512, with AMX for products of bf16.
    Amx = 5,
    /// NEON of 64-bit ARM.
    Neon = 6,
}

/// What products are made of; sums, weights and moments are `f32` either way.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CllmDtype {
    /// `f32`.
    F32 = 0,
    /// bf16.
    Bf16 = 1,
}

/// What a trainer does.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CllmMode {
    /// Trains; each layer keeps its activations.
    Train = 0,
    /// Trains to the same bits in less memory and more time.
    Recompute = 1,
    /// Measures losses alone.
    Evaluate = 2,
}

/// A model: the parts of GPT-2, or of the Llama family. Start from `cllm_model_gpt2` or `cllm_model_llama`. Booleans are
/// 0 or 1: a byte that is neither is refused.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CllmModel {
    /// Token ids are below it.
    pub vocab_size: u32,
    /// Longest sequence, in tokens.
    pub block_size: u32,
    /// Blocks.
    pub n_layer: u32,
    /// Heads of queries.
    pub n_head: u32,
    /// Heads of keys and values; 0: as many.
    pub n_kv_head: u32,
    /// Width of the residual stream.
    pub d_model: u32,
    /// Width of the feed-forward layer.
    pub d_ff: u32,
    /// Columns of a head; 0: `d_model / n_head`.
    pub head_size: u32,
    /// The last tokens that a query sees; 0: all of its sequence.
    pub window: u32,
    /// Tokens before each one whose embeddings are added to its own, by weights that are learnt; 0: none.
    pub previous_tokens: u32,
    /// Biases in linear layers and norms.
    pub bias: bool,
    /// Biases of queries, keys and values in a model that has no others.
    pub qkv_bias: bool,
    /// Norms of heads of queries and keys.
    pub qk_norm: bool,
    /// The output projection is the token table.
    pub tied: bool,
    /// RMS norms in the place of layer norms.
    pub rms_norm: bool,
    /// Rotary positions in the place of a table.
    pub rotary: bool,
    /// SwiGLU in the place of GELU.
    pub swiglu: bool,
    /// Squared ReLU in the place of GELU. Not with `swiglu`.
    pub relu2: bool,
    /// Probability of dropout in training, below 1.
    pub dropout: f32,
    /// Added to the variance in norms.
    pub norm_eps: f32,
    /// The base of rotary angles.
    pub rope_theta: f32,
    /// Logits are kept between it and its negative; 0: they are as they are.
    pub logit_softcap: f32,
    /// The first block's input is so many times the sum of the embeddings; 0 or 1: the sum itself.
    pub embedding_scale: f32,
}

/// What weights are updated by, and so what is remembered for them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CllmUpdater {
    /// AdamW: 8 bytes for each weight.
    AdamW = 0,
    /// AdamW with moments of 8 bits: 2.125 bytes.
    AdamW8 = 1,
    /// Gradient descent with momentum: 4 bytes.
    Momentum = 2,
    /// Gradient descent: nothing.
    Sgd = 3,
    /// Muon for matrices of blocks, 4 bytes; AdamW for the rest.
    Muon = 4,
}

/// What a trainer is planned for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CllmPlan {
    /// Sequences of a batch.
    pub sequences: u32,
    /// Tokens of each.
    pub tokens: u32,
    /// Most threads that work at a time.
    pub workers: u32,
    /// What for.
    pub mode: CllmMode,
    /// On which instruction set.
    pub isa: CllmIsa,
    /// On products of what.
    pub dtype: CllmDtype,
    /// Updated by what.
    pub updater: CllmUpdater,
}

/// A model of GPT-2's parts, of the given sizes and `d_ff = 4 d_model`.
#[unsafe(no_mangle)]
pub extern "C" fn cllm_model_gpt2(
    vocab_size: u32,
    block_size: u32,
    n_layer: u32,
    n_head: u32,
    d_model: u32,
) -> CllmModel {
    CllmModel {
        vocab_size,
        block_size,
        n_layer,
        n_head,
        n_kv_head: 0,
        d_model,
        d_ff: d_model.saturating_mul(4),
        head_size: 0,
        window: 0,
        previous_tokens: 0,
        bias: true,
        qkv_bias: false,
        qk_norm: false,
        tied: true,
        rms_norm: false,
        rotary: false,
        swiglu: false,
        relu2: false,
        dropout: 0.0,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        logit_softcap: 0.0,
        embedding_scale: 1.0,
    }
}

/// A model of Llama's parts, of the given sizes.
#[unsafe(no_mangle)]
pub extern "C" fn cllm_model_llama(
    vocab_size: u32,
    block_size: u32,
    n_layer: u32,
    n_head: u32,
    n_kv_head: u32,
    d_model: u32,
    d_ff: u32,
) -> CllmModel {
    CllmModel {
        n_kv_head,
        d_ff,
        bias: false,
        rms_norm: true,
        rotary: true,
        swiglu: true,
        ..cllm_model_gpt2(vocab_size, block_size, n_layer, n_head, d_model)
    }
}

impl CllmModel {
    /// The model in the core's words. It is not validated.
    pub(crate) fn config(&self) -> ModelConfig {
        let given = |n: u32| (n != 0).then_some(n as usize);
        let rotary = Rotary { theta: self.rope_theta, scaling: Scaling::None };
        ModelConfig {
            vocab_size: self.vocab_size as usize,
            block_size: self.block_size as usize,
            n_layer: self.n_layer as usize,
            n_head: self.n_head as usize,
            d_model: self.d_model as usize,
            d_ff: self.d_ff as usize,
            bias: self.bias,
            tied: self.tied,
            dropout: self.dropout,
            norm_eps: self.norm_eps,
            arch: Architecture {
                norm: if self.rms_norm { NormKind::Rms } else { NormKind::Layer },
                positions: if self.rotary { Positions::Rotary(rotary) } else { Positions::Learned },
                activation: match (self.swiglu, self.relu2) {
                    (true, _) => Activation::SwiGlu,
                    (false, true) => Activation::Relu2,
                    (false, false) => Activation::Gelu,
                },
                n_kv_head: given(self.n_kv_head),
                head_size: given(self.head_size),
                qkv_bias: self.qkv_bias,
                qk_norm: self.qk_norm,
                window: given(self.window),
                logit_softcap: (self.logit_softcap != 0.0).then_some(self.logit_softcap),
                previous_tokens: self.previous_tokens as usize,
                embedding_scale: if self.embedding_scale == 0.0 {
                    1.0
                } else {
                    self.embedding_scale
                },
            },
        }
    }
}

/// The kernels of an instruction set and a type, by their numbers.
pub(crate) fn kernels(isa: u32, dtype: u32) -> Result<&'static Kernels> {
    const BEST: u32 = CllmIsa::Best as u32;
    const NAMED: [(CllmIsa, Isa); 6] = [
        (CllmIsa::Scalar, Isa::Scalar),
        (CllmIsa::Avx, Isa::Avx),
        (CllmIsa::Avx2, Isa::Avx2),
        (CllmIsa::Avx512, Isa::Avx512),
        (CllmIsa::Amx, Isa::Amx),
        (CllmIsa::Neon, Isa::Neon),
    ];
    let kernels = match NAMED.into_iter().find(|(number, _)| *number as u32 == isa) {
        None if isa == BEST => Kernels::detect(),
        None => return Err(unknown("isa", isa)),
        Some((_, isa)) => Kernels::for_isa(isa).ok_or_else(|| {
            Failed::new(CllmStatus::NoSuchIsa, format_args!("this machine does not run {isa}"))
        })?,
    };
    match dtype {
        0 => Ok(kernels),
        1 => Ok(kernels.with_dtype(Dtype::Bf16)),
        other => Err(unknown("dtype", other)),
    }
}

/// Of a number that C has put where an enumeration's is meant.
fn unknown(what: &str, value: u32) -> Failed {
    Failed::new(CllmStatus::BadSetting, format_args!("{what} {value}: there is no such {what}"))
}

/// Enumerations of a plan as numbers: C may have put any there.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawPlan {
    sizes: [u32; 3],
    mode: u32,
    isa: u32,
    dtype: u32,
    updater: u32,
}

/// The booleans of a model, in their order.
const FLAGS: [&str; 8] =
    ["bias", "qkv_bias", "qk_norm", "tied", "rms_norm", "rotary", "swiglu", "relu2"];

/// The model that C describes. Its booleans may be any bytes until they are looked at.
///
/// # Safety
/// The pointer is null, misaligned, or points at as many bytes as a model has.
unsafe fn model_of(model: *const CllmModel) -> Result<CllmModel> {
    const FIRST: usize = offset_of!(CllmModel, bias);
    const { assert!(offset_of!(CllmModel, relu2) == FIRST + FLAGS.len() - 1) };
    let there = checked(model, "model")?;
    // SAFETY: the caller's promise: they lie in the model, one behind the other, and any bytes are numbers.
    let flags: [u8; FLAGS.len()] = unsafe { there.byte_add(FIRST).cast().read() };
    for (name, flag) in FLAGS.into_iter().zip(flags) {
        boolean(name, flag)?;
    }
    // SAFETY: the caller's promise, and that of booleans is kept: they are 0 or 1.
    let model = unsafe { there.read() };
    if model.swiglu && model.relu2 {
        return Err(Failed::new(
            CllmStatus::BadSetting,
            format_args!("swiglu and relu2: a model has one activation"),
        ));
    }
    Ok(model)
}

/// Whether a byte of C's is a boolean.
pub(crate) fn boolean(name: &str, byte: u8) -> Result<()> {
    if byte > 1 {
        return Err(Failed::new(
            CllmStatus::BadSetting,
            format_args!("{name} is the byte {byte}: neither false (0) nor true (1)"),
        ));
    }
    Ok(())
}

/// The plan that C describes, and its kernels.
///
/// # Safety
/// The pointers are null, misaligned, or point at what they say.
pub(crate) unsafe fn planned(
    model: *const CllmModel,
    plan: *const CllmPlan,
) -> Result<(Plan, &'static Kernels)> {
    const { assert!(size_of::<RawPlan>() == size_of::<CllmPlan>()) };
    // In the order of C's numbers.
    const {
        use OptimizerKind::{AdamW, AdamW8, Momentum, Muon, Sgd};
        assert!(matches!(OptimizerKind::ALL, [AdamW, AdamW8, Momentum, Sgd, Muon]));
    }
    // SAFETY: the caller's promise.
    let config = unsafe { model_of(model) }?.config();
    // SAFETY: the caller's promise: as many bytes, of which any are numbers.
    let raw = unsafe { read(plan.cast::<RawPlan>(), "plan") }?;
    let mode = match raw.mode {
        0 => Mode::Train,
        1 => Mode::Recompute,
        2 => Mode::Evaluate,
        other => return Err(unknown("mode", other)),
    };
    let optimizer = *OptimizerKind::ALL
        .get(raw.updater as usize)
        .ok_or_else(|| unknown("updater", raw.updater))?;
    let kernels = kernels(raw.isa, raw.dtype)?;
    let [sequences, tokens, workers] = raw.sizes.map(|n| n as usize);
    let shape = BatchShape { sequences, tokens };
    config.validate().map_err(Failed::of(CllmStatus::BadSetting))?;
    // As `cllm` has it: its checkpoints, and those that it takes for one of its runs, say no more than they must.
    let plan = Plan::new(&config.normal(), shape, workers, mode, kernels);
    let plan = plan.map_err(Failed::of(CllmStatus::BadSetting))?;
    Ok((plan.with_optimizer(optimizer), kernels))
}

impl CllmModel {
    /// The core's model in C's words.
    ///
    /// # Errors
    /// It has parts that C has no words for: scaled rotary angles.
    pub(crate) fn of(config: &ModelConfig) -> Result<Self> {
        let none = |what: &str| {
            Failed::new(
                CllmStatus::BadCheckpoint,
                format_args!("a model with {what}: this interface has none"),
            )
        };
        let arch = &config.arch;
        let theta = match arch.positions {
            Positions::Learned => None,
            Positions::Rotary(Rotary { theta, scaling: Scaling::None }) => Some(theta),
            Positions::Rotary(_) => return Err(none("scaled rotary positions")),
        };
        let (swiglu, relu2) = match arch.activation {
            Activation::Gelu => (false, false),
            Activation::SwiGlu => (true, false),
            Activation::Relu2 => (false, true),
        };
        let size = |n: usize| u32::try_from(n).map_err(|_| none("such sizes"));
        Ok(Self {
            vocab_size: size(config.vocab_size)?,
            block_size: size(config.block_size)?,
            n_layer: size(config.n_layer)?,
            n_head: size(config.n_head)?,
            n_kv_head: size(arch.n_kv_head.unwrap_or(0))?,
            d_model: size(config.d_model)?,
            d_ff: size(config.d_ff)?,
            head_size: size(arch.head_size.unwrap_or(0))?,
            window: size(arch.window.unwrap_or(0))?,
            previous_tokens: size(arch.previous_tokens)?,
            bias: config.bias,
            qkv_bias: arch.qkv_bias,
            qk_norm: arch.qk_norm,
            tied: config.tied,
            rms_norm: arch.norm == NormKind::Rms,
            rotary: theta.is_some(),
            swiglu,
            relu2,
            dropout: config.dropout,
            norm_eps: config.norm_eps,
            rope_theta: theta.unwrap_or(10_000.0),
            logit_softcap: arch.logit_softcap.unwrap_or(0.0),
            embedding_scale: arch.embedding_scale,
        })
    }
}
