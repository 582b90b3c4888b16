//! Texts from a model: a generator and its sampler, in the caller's memory.
//!
//! ```text
//! handle | parameters | packed | cache | activations | candidates | text
//! ```

use core::mem::MaybeUninit;

use cllm_core::checkpoint::Checkpoint;
use cllm_core::generate::{GenerateError, GeneratePlan, GeneratePools, Generator};
use cllm_core::sample::{Candidate, Sampler, SamplerConfig, SamplerError};
use cllm_core::{Line, ParamTable, PlanError, floats, floats_mut};

use crate::config::kernels;
use crate::door::{Call, Door, Handle};
use crate::error::{CllmError, CllmStatus, Failed, Result, told};
use crate::memory::{CLLM_ALIGNMENT, Pieces, checked, piece, read, slice};

/// A model that continues texts: a handle.
#[repr(C, align(128))]
pub struct CllmGenerator {
    door: Door,
    inner: MaybeUninit<Inner>,
}

struct Inner {
    generator: Generator<'static>,
    sampler: Sampler,
    candidates: &'static mut [Candidate],
    /// The text so far, of which `len` tokens are there.
    text: &'static mut [u32],
    len: usize,
    vocab_size: usize,
}

// SAFETY: so it is declared.
unsafe impl Handle for CllmGenerator {
    const MARK: u64 = 0x6372_7973_7461_6c32;
    const NAME: &'static str = "generator";
}

/// How tokens are chosen; `cllm_sampler_default` takes them as the model has them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CllmSampler {
    /// Logits are divided by it; 0 takes the most probable token.
    pub temperature: f32,
    /// Keeps the most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest tokens whose probabilities reach it; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this share as probable as the most probable; 0 keeps all.
    pub min_p: f32,
    /// Divides logits of tokens that the text has; 1 does nothing.
    pub repetition_penalty: f32,
    /// Of the draws.
    pub seed: u64,
}

/// Plain sampling from the model's distribution.
#[unsafe(no_mangle)]
pub extern "C" fn cllm_sampler_default() -> CllmSampler {
    let SamplerConfig { temperature, top_k, top_p, min_p, repetition_penalty, seed } =
        SamplerConfig::default();
    CllmSampler { temperature, top_k: top_k as u32, top_p, min_p, repetition_penalty, seed }
}

/// Where the pieces of a generator lie.
struct Places {
    parameters: usize,
    packed: usize,
    cache: usize,
    activations: usize,
    candidates: usize,
    text: usize,
    bytes: usize,
}

impl Places {
    fn of(plan: &GeneratePlan, arena: usize, longest: usize) -> Result<Self> {
        let mut pieces = Pieces { taken: 0 };
        let mut cut = || -> Option<Self> {
            pieces.take::<CllmGenerator>(1)?;
            Some(Self {
                parameters: pieces.take::<Line>(arena)?,
                packed: pieces.take::<Line>(plan.packed_lines())?,
                cache: pieces.take::<Line>(plan.cache_lines())?,
                activations: pieces.take::<Line>(plan.activation_lines())?,
                candidates: pieces.take::<Candidate>(plan.config().vocab_size)?,
                text: pieces.take::<u32>(longest)?,
                bytes: 0,
            })
        };
        let too_large =
            || Failed::new(CllmStatus::BadSetting, "the model is larger than memory can be");
        let places = cut().ok_or_else(too_large)?;
        Ok(Self { bytes: pieces.taken, ..places })
    }
}

/// A checkpoint with the plan of its model.
///
/// # Safety
/// The pointer is null or points at as many bytes.
unsafe fn opened<'a>(
    bytes: *const u8,
    len: usize,
    isa: u32,
    dtype: u32,
) -> Result<(Checkpoint<'a>, GeneratePlan, &'static cllm_core::Kernels, usize)> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { slice(bytes, len, "checkpoint") }?;
    let checkpoint =
        Checkpoint::parse_model(bytes).map_err(Failed::of(CllmStatus::BadCheckpoint))?;
    let header = checkpoint.header();
    if header.adapters.is_some() {
        return Err(Failed::new(CllmStatus::BadCheckpoint, "the checkpoint is of adapters alone"));
    }
    let kernels = kernels(isa, dtype)?;
    let bad = Failed::of::<PlanError>(CllmStatus::BadSetting);
    let plan = GeneratePlan::new(&header.config, kernels).map_err(bad)?;
    let table = ParamTable::new(&header.config).map_err(Failed::of(CllmStatus::BadSetting))?;
    let lines = table.arena_len().div_ceil(cllm_core::LANES);
    Ok((checkpoint, plan, kernels, lines))
}

/// Bytes of memory that a generator of a checkpoint's model works in, for texts of up to `longest` tokens (also more than
/// the model's `block_size`: it then sees the last of them), aligned to `CLLM_ALIGNMENT`. `isa` and `dtype` are numbers of `CllmIsa` and `CllmDtype`.
///
/// # Safety
/// Pointers are null or point at what their types say, `checkpoint` at as many bytes as its length says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_generator_bytes(
    checkpoint: *const u8,
    checkpoint_bytes: usize,
    isa: u32,
    dtype: u32,
    longest: usize,
    bytes: *mut usize,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let bytes = checked(bytes, "bytes")?;
            let (_, plan, _, arena) = opened(checkpoint, checkpoint_bytes, isa, dtype)?;
            bytes.write(Places::of(&plan, arena, longest)?.bytes);
            Ok(())
        })
    }
}

/// Makes a generator of a checkpoint's model in `memory`; the checkpoint is read, and not wanted any more then. It does not
/// lie in that memory. `sampler` may be null for the default.
///
/// # Safety
/// Pointers are null or point at what their types say, `checkpoint` at as many bytes as its length says; `memory`
/// has as many bytes as `bytes` says, which are the handle's until it is destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_generator_create(
    checkpoint: *const u8,
    checkpoint_bytes: usize,
    isa: u32,
    dtype: u32,
    longest: usize,
    sampler: *const CllmSampler,
    memory: *mut core::ffi::c_void,
    bytes: usize,
    generator: *mut *mut CllmGenerator,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            checked(generator, "generator")?;
            let bytes_of = checkpoint..checkpoint.wrapping_add(checkpoint_bytes);
            let (checkpoint, plan, kernels, arena) =
                opened(checkpoint, checkpoint_bytes, isa, dtype)?;
            let places = Places::of(&plan, arena, longest)?;
            let handle = checked(memory.cast::<CllmGenerator>(), "memory")?;
            let (from, to) = (bytes_of.start.addr(), handle.as_ptr().addr());
            if from < to.saturating_add(places.bytes) && to < bytes_of.end.addr() {
                return Err(Failed::new(
                    CllmStatus::BadSetting,
                    "the checkpoint lies in the memory that is to be the generator's",
                ));
            }
            if bytes < places.bytes {
                let need = places.bytes;
                return Err(Failed::new(
                    CllmStatus::TooShort,
                    format_args!("memory has {bytes} bytes, and the model wants {need}"),
                ));
            }
            let chosen =
                if sampler.is_null() { cllm_sampler_default() } else { read(sampler, "sampler")? };
            let CllmSampler { temperature, top_k, top_p, min_p, repetition_penalty, seed } = chosen;
            let top_k = top_k as usize;
            let config =
                SamplerConfig { temperature, top_k, top_p, min_p, repetition_penalty, seed };
            let sampler =
                Sampler::new(config).map_err(Failed::of::<SamplerError>(CllmStatus::BadSetting))?;
            let start = handle.cast::<u8>();
            let parameters = piece(start, places.parameters, arena, || Line::ZERO);
            checkpoint.read_parameters(floats_mut(parameters));
            let pools = GeneratePools {
                parameters: floats(parameters),
                packed: piece(start, places.packed, plan.packed_lines(), || Line::ZERO),
                cache: piece(start, places.cache, plan.cache_lines(), || Line::ZERO),
                activations: piece(start, places.activations, plan.activation_lines(), || {
                    Line::ZERO
                }),
            };
            let vocab_size = plan.config().vocab_size;
            let made = Generator::new(&plan, kernels, pools);
            let inner = Inner {
                generator: made.map_err(Failed::of(CllmStatus::BadSetting))?,
                sampler,
                candidates: piece(start, places.candidates, vocab_size, || Candidate::EMPTY),
                text: piece(start, places.text, longest, || 0),
                len: 0,
                vocab_size,
            };
            let this = handle.as_ptr();
            (&raw mut (*this).inner).write(MaybeUninit::new(inner));
            (&raw mut (*this).door).write(Door::of::<CllmGenerator>());
            generator.write(this);
            Ok(())
        })
    }
}

impl Call<CllmGenerator> {
    fn inner(&mut self) -> &mut Inner {
        // SAFETY: the handle lives, so it is there, and no other call has it.
        unsafe { (*self.0.as_ptr()).inner.assume_init_mut() }
    }
}

/// Adds tokens to the text.
///
/// # Safety
/// Pointers are null or point at what their types say, `tokens` at as many as `len` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_generator_add(
    generator: *mut CllmGenerator,
    tokens: *const u32,
    len: usize,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let mut call = Call::begin(generator)?;
            let inner = call.inner();
            // Before tokens are looked at, of which there cannot be so many.
            if len > inner.text.len() - inner.len {
                return Err(Failed::new(
                    CllmStatus::TooShort,
                    format_args!(
                        "the text has {} tokens and {len} more are too many: {} is the longest",
                        inner.len,
                        inner.text.len()
                    ),
                ));
            }
            let tokens = slice(tokens, len, "tokens")?;
            if let Some(id) = tokens.iter().find(|id| **id as usize >= inner.vocab_size) {
                return Err(
                    GenerateError::UnknownToken { id: *id, vocab_size: inner.vocab_size }.into()
                );
            }
            inner.text[inner.len..][..len].copy_from_slice(tokens);
            inner.len += len;
            Ok(())
        })
    }
}

impl From<GenerateError> for Failed {
    fn from(error: GenerateError) -> Self {
        let status = match error {
            GenerateError::Engine(_) => CllmStatus::Broken,
            _ => CllmStatus::BadBatch,
        };
        Self::new(status, error)
    }
}

/// Chooses the token that follows the text, and adds it. `CLLM_STATUS_NOT_FINITE`: the weights are too large to compute
/// with, and there is nothing to choose by; the text is as it was.
///
/// # Safety
/// Pointers are null or point at what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_generator_next(
    generator: *mut CllmGenerator,
    token: *mut u32,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let mut call = Call::begin(generator)?;
            let token = checked(token, "token")?;
            let Inner { generator, sampler, candidates, text, len, .. } = call.inner();
            if *len == text.len() {
                return Err(Failed::new(
                    CllmStatus::TooShort,
                    format_args!("the text has its {len} tokens"),
                ));
            }
            let so_far = &text[..*len];
            let logits = generator.logits_after(so_far)?;
            if let Some(id) = logits.iter().position(|logit| !logit.is_finite()) {
                return Err(Failed::new(
                    CllmStatus::NotFinite,
                    format_args!("the logit of token {id} is {}", logits[id]),
                ));
            }
            let id = sampler.sample(logits, so_far, candidates);
            text[*len] = id;
            *len += 1;
            token.write(id);
            Ok(())
        })
    }
}

/// Copies the logits of the token that follows the text: as many as the vocabulary has.
///
/// # Safety
/// Pointers are null or point at what their types say, `logits` at as many as `len` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_generator_logits(
    generator: *mut CllmGenerator,
    logits: *mut f32,
    len: usize,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let mut call = Call::begin(generator)?;
            let to = checked(logits, "logits")?;
            let inner = call.inner();
            if len < inner.vocab_size {
                return Err(Failed::new(
                    CllmStatus::TooShort,
                    format_args!(
                        "logits has {len} places, and the vocabulary {} ids",
                        inner.vocab_size
                    ),
                ));
            }
            let found = inner.generator.logits_after(&inner.text[..inner.len])?;
            core::ptr::copy_nonoverlapping(found.as_ptr(), to.as_ptr(), found.len());
            Ok(())
        })
    }
}

/// Forgets the text. The sampler goes on with its draws.
///
/// # Safety
/// Pointers are null or point at what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_generator_reset(
    generator: *mut CllmGenerator,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let mut call = Call::begin(generator)?;
            let inner = call.inner();
            inner.generator.reset();
            inner.len = 0;
            Ok(())
        })
    }
}

/// Ends a handle: its memory is the caller's again.
///
/// # Safety
/// Pointers are null or point at what their types say; no other thread is about to call with the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_generator_destroy(
    generator: *mut CllmGenerator,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let call = Call::begin(generator)?;
            // Nothing in it wants to be dropped: all memory is the caller's.
            call.door().shut();
            Ok(())
        })
    }
}

const _: () = assert!(align_of::<CllmGenerator>() == CLLM_ALIGNMENT);
