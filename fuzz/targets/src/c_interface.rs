//! The C interface, as a program of C's would call it that says anything at all in its numbers, and hands over a
//! checkpoint that anybody may have written. What C has to promise is kept: pointers point at what they say.
//!
//! A panic would end the program here as there.
#![expect(unsafe_code, reason = "functions that C calls, called as C does")]

use core::ptr::{null, null_mut};

use cllm_c_hosted::*;

use crate::checkpoint::with_sums;
use crate::files::parts;

/// Most bytes of a handle: what wants more is asked for its size, and not made.
const MOST: usize = 4 << 20;
/// Most calls of one handle.
const CALLS: usize = 24;

/// Numbers, and a checkpoint.
pub(crate) fn target(data: &[u8]) -> bool {
    let [numbers, checkpoint] = parts(data);
    let mut taken = false;
    for checkpoint in [checkpoint.to_vec(), with_sums(checkpoint)] {
        let mut numbers = Numbers(numbers);
        taken |= generate(&mut numbers, &checkpoint);
        taken |= train(&mut numbers, &checkpoint);
    }
    taken
}

/// The input as numbers; zeros where it has ended.
struct Numbers<'d>(&'d [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> u8 {
        let [first, rest @ ..] = self.0 else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([0; 4].map(|_: u8| self.byte()))
    }

    /// Small most of the time, so that what is asked for can be done.
    fn size(&mut self) -> u32 {
        match self.byte() {
            255 => self.word(),
            small => u32::from(small),
        }
    }

    fn float(&mut self) -> f32 {
        match self.byte() {
            byte @ 0..=127 => f32::from(byte) / 64.0,
            _ => f32::from_bits(self.word()),
        }
    }

    fn is(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn ids(&mut self, len: usize) -> Vec<u32> {
        (0..len).map(|_| self.size()).collect()
    }
}

/// Memory of a handle.
struct Memory {
    bytes: Vec<u8>,
    /// Where it is aligned.
    at: usize,
}

impl Memory {
    fn new(bytes: usize) -> Self {
        let all = vec![0xa5; bytes + CLLM_ALIGNMENT];
        let at = all.as_ptr().align_offset(CLLM_ALIGNMENT);
        Self { bytes: all, at }
    }

    fn start(&mut self) -> *mut u8 {
        self.bytes[self.at..].as_mut_ptr()
    }
}

/// Errors have words, and successes none.
struct Told(CllmError);

impl Told {
    fn new() -> Self {
        Self(CllmError { text: [b'x'; CLLM_ERROR_BYTES] })
    }

    fn of(&mut self, call: impl FnOnce(*mut CllmError) -> CllmStatus) -> CllmStatus {
        let status = call(&raw mut self.0);
        let end = self.0.text.iter().position(|byte| *byte == 0).expect("words have an end");
        let words = core::str::from_utf8(&self.0.text[..end]).expect("words are UTF-8");
        assert_eq!(words.is_empty(), status == CllmStatus::Ok, "{status:?}: {words}");
        assert_ne!(status, CllmStatus::Broken, "{words}");
        status
    }
}

/// A generator of the checkpoint, and some calls of it; whether it was made.
fn generate(numbers: &mut Numbers<'_>, checkpoint: &[u8]) -> bool {
    let (from, len) = (checkpoint.as_ptr(), checkpoint.len());
    let (isa, dtype, longest) = (u32::from(numbers.byte() % 8), numbers.size() & 3, numbers.size());
    let (longest, mut bytes, mut told) = (longest as usize, 0, Told::new());
    let size = told.of(|error| {
        // SAFETY: the checkpoint has as many bytes, and both results are variables of their types.
        unsafe { cllm_generator_bytes(from, len, isa, dtype, longest, &raw mut bytes, error) }
    });
    if size != CllmStatus::Ok || bytes > MOST {
        return false;
    }
    let sampler = CllmSampler {
        temperature: numbers.float(),
        top_k: numbers.size(),
        top_p: numbers.float(),
        min_p: numbers.float(),
        repetition_penalty: numbers.float(),
        seed: u64::from(numbers.word()),
    };
    let sampler = if numbers.is() { &raw const sampler } else { null() };
    let short = if numbers.byte() == 7 { bytes / 2 } else { bytes };
    let (mut memory, mut handle) = (Memory::new(short), null_mut());
    let at = memory.start().cast();
    let made = told.of(|error| {
        let to = &raw mut handle;
        // SAFETY: as above; the memory has as many bytes as are said, and nobody else looks at it until the handle
        // is destroyed.
        unsafe {
            cllm_generator_create(from, len, isa, dtype, longest, sampler, at, short, to, error)
        }
    });
    if made != CllmStatus::Ok {
        return false;
    }
    let mut length = 0_usize;
    for _ in 0..CALLS {
        match numbers.byte() % 5 {
            0 | 1 => {
                let ids = {
                    let len = numbers.byte() as usize % 40;
                    numbers.ids(len)
                };
                let added = told.of(|error| {
                    // SAFETY: the handle lives; there are as many ids.
                    unsafe { cllm_generator_add(handle, ids.as_ptr(), ids.len(), error) }
                });
                if added == CllmStatus::Ok {
                    length += ids.len();
                }
                assert!(length <= longest, "{length} tokens of at most {longest}");
            }
            2 => {
                let mut token = 0;
                let next = told.of(|error| {
                    // SAFETY: the handle lives; the result is a variable of its type.
                    unsafe { cllm_generator_next(handle, &raw mut token, error) }
                });
                length += usize::from(next == CllmStatus::Ok);
            }
            3 => {
                let mut logits = vec![0.0; numbers.size().min(4096) as usize];
                told.of(|error| {
                    // SAFETY: the handle lives; there is room for as many.
                    unsafe {
                        cllm_generator_logits(handle, logits.as_mut_ptr(), logits.len(), error)
                    }
                });
            }
            _ => {
                // SAFETY: the handle lives.
                told.of(|error| unsafe { cllm_generator_reset(handle, error) });
                length = 0;
            }
        }
    }
    // SAFETY: the handle lives, and no other call is with it.
    let ended = told.of(|error| unsafe { cllm_generator_destroy(handle, error) });
    assert_eq!(ended, CllmStatus::Ok);
    // SAFETY: there was a handle in the memory, which is still there.
    let again = told.of(|error| unsafe { cllm_generator_reset(handle, error) });
    assert_eq!(again, CllmStatus::NotAHandle);
    true
}

/// A model as the numbers have it, or the checkpoint's.
fn model(numbers: &mut Numbers<'_>, checkpoint: &[u8], told: &mut Told) -> Option<CllmModel> {
    let mut model = CllmModel {
        vocab_size: numbers.size(),
        block_size: numbers.size(),
        n_layer: numbers.size() & 3,
        n_head: numbers.size(),
        n_kv_head: numbers.size(),
        d_model: numbers.size(),
        d_ff: numbers.size(),
        head_size: numbers.size(),
        window: numbers.size(),
        previous_tokens: 0,
        bias: numbers.is(),
        qkv_bias: numbers.is(),
        qk_norm: numbers.is(),
        tied: numbers.is(),
        rms_norm: numbers.is(),
        rotary: numbers.is(),
        swiglu: numbers.is(),
        relu2: false,
        dropout: numbers.float(),
        norm_eps: numbers.float(),
        rope_theta: numbers.float(),
        logit_softcap: numbers.float(),
        embedding_scale: 1.0,
    };
    let which = numbers.byte();
    // Parts that came later than the first seeds, which have none of them.
    if which & 2 == 2 {
        model.relu2 = numbers.is();
        model.previous_tokens = numbers.size();
        model.embedding_scale = numbers.float();
    }
    if which & 1 == 1 {
        return Some(model);
    }
    let (from, len) = (checkpoint.as_ptr(), checkpoint.len());
    // SAFETY: the checkpoint has as many bytes, and the model is a variable of its type.
    let found = told.of(|error| unsafe { cllm_checkpoint_model(from, len, &raw mut model, error) });
    (found == CllmStatus::Ok).then_some(model)
}

/// A plan whose enumerations may be any numbers, as C's may.
#[repr(C)]
struct Plan([u32; 7]);

/// A trainer, and some calls of it; whether it was made.
fn train(numbers: &mut Numbers<'_>, checkpoint: &[u8]) -> bool {
    let mut told = Told::new();
    let Some(model) = model(numbers, checkpoint, &mut told) else { return false };
    let [sequences, tokens] = [numbers.size() & 7, numbers.size() & 31];
    let raw = Plan([
        sequences,
        tokens,
        numbers.size(),
        u32::from(numbers.byte() % 4),
        u32::from(numbers.byte() % 8),
        u32::from(numbers.byte() % 3),
        u32::from(numbers.byte() % 5),
    ]);
    let plan = (&raw const raw).cast::<CllmPlan>();
    let (mut bytes, model) = (0, &raw const model);
    // SAFETY: both are there; a plan is seven numbers, of which any may be any.
    let size = told.of(|error| unsafe { cllm_trainer_bytes(model, plan, &raw mut bytes, error) });
    if size != CllmStatus::Ok || bytes > MOST {
        return false;
    }
    let (mut memory, mut handle) = (Memory::new(bytes), null_mut());
    let (at, seed) = (memory.start().cast(), u64::from(numbers.word()));
    let made = told.of(|error| {
        let to = &raw mut handle;
        // SAFETY: as above; the memory has as many bytes as are said, and nobody else looks at it until the handle
        // is destroyed.
        unsafe { cllm_trainer_create(model, plan, seed, null(), at, bytes, to, error) }
    });
    if made != CllmStatus::Ok {
        return false;
    }
    for _ in 0..CALLS / 2 {
        step(numbers, handle, (sequences * tokens) as usize, checkpoint, &mut told);
    }
    // SAFETY: the handle lives.
    told.of(|error| unsafe { cllm_trainer_close(handle, error) });
    // SAFETY: the handle lives, and no thread is with it.
    let ended = told.of(|error| unsafe { cllm_trainer_destroy(handle, error) });
    assert_eq!(ended, CllmStatus::Ok);
    // SAFETY: there was a handle in the memory, which is still there.
    let again = told.of(|error| unsafe { cllm_trainer_initialise(handle, error) });
    assert_eq!(again, CllmStatus::NotAHandle);
    true
}

/// One call of a trainer.
fn step(
    numbers: &mut Numbers<'_>,
    handle: *mut CllmTrainer,
    planned: usize,
    checkpoint: &[u8],
    told: &mut Told,
) {
    match numbers.byte() % 6 {
        // SAFETY: the handle lives.
        0 => _ = told.of(|error| unsafe { cllm_trainer_initialise(handle, error) }),
        1 => {
            let (from, len) = (checkpoint.as_ptr(), checkpoint.len());
            // SAFETY: the handle lives; the checkpoint has as many bytes.
            told.of(|error| unsafe { cllm_trainer_load(handle, from, len, error) });
        }
        kind @ (2 | 3) => {
            let len = if numbers.byte() < 250 { planned } else { numbers.byte() as usize };
            let [tokens, mut targets, starts] = [0; 3].map(|_: u8| numbers.ids(len));
            if numbers.is() {
                targets.fill(CLLM_IGNORE);
            }
            let starts = if numbers.is() { starts.as_ptr() } else { null() };
            let batch =
                CllmBatch { tokens: tokens.as_ptr(), targets: targets.as_ptr(), starts, len };
            let (batch, mut loss) = (&raw const batch, CllmLoss { sum: 0.0, counted: 0 });
            let counted = if kind == 2 { numbers.size() as usize } else { 0 };
            let status = told.of(|error| {
                let loss = &raw mut loss;
                // SAFETY: the handle lives; the batch has as many of each as it says.
                unsafe {
                    match kind {
                        2 => cllm_trainer_accumulate(handle, batch, counted, loss, error),
                        _ => cllm_trainer_evaluate(handle, batch, loss, error),
                    }
                }
            });
            // Weights may have become too large to compute with: only an evaluation says what they are worth then.
            let told = status != CllmStatus::Ok || kind == 3 || loss.sum.is_finite();
            assert!(told, "{} of a batch that counts", loss.sum);
        }
        4 => {
            let optimizer = CllmOptimizer {
                beta1: numbers.float(),
                beta2: numbers.float(),
                eps: numbers.float(),
                momentum: numbers.float(),
                weight_decay: numbers.float(),
                embedding_lr_scale: numbers.float(),
                head_lr_scale: numbers.float(),
                grad_clip: numbers.float(),
            };
            let optimizer = if numbers.is() { &raw const optimizer } else { null() };
            let mut update = CllmUpdate { grad_norm: 0.0, scale: 0.0, updates: 0 };
            let (rate, update) = (numbers.float(), &raw mut update);
            // SAFETY: the handle lives; the settings and the result are variables of their types.
            told.of(|error| unsafe { cllm_trainer_update(handle, optimizer, rate, update, error) });
        }
        _ => save(handle, numbers.is(), told),
    }
}

/// Saves a trainer, loads what was saved, and saves it again.
fn save(handle: *mut CllmTrainer, moments: bool, told: &mut Told) {
    let mut need = 0;
    let known = told.of(|error| {
        // SAFETY: the handle lives; the result is a variable of its type.
        unsafe { cllm_trainer_saved_bytes(handle, moments, &raw mut need, error) }
    });
    // One that only evaluates is not saved.
    if known != CllmStatus::Ok {
        return;
    }
    let saved = |told: &mut Told| {
        let (mut bytes, mut written) = (vec![0; need], 0);
        let (to, out) = (bytes.as_mut_ptr(), &raw mut written);
        let status = told.of(|error| {
            // SAFETY: the handle lives; there is room for as many bytes.
            unsafe { cllm_trainer_save(handle, moments, to, need, out, error) }
        });
        assert_eq!((status, written), (CllmStatus::Ok, need));
        bytes
    };
    let first = saved(told);
    let (from, len) = (first.as_ptr(), first.len());
    // SAFETY: the handle lives; there are as many bytes.
    let loaded = told.of(|error| unsafe { cllm_trainer_load(handle, from, len, error) });
    assert_eq!(loaded, CllmStatus::Ok);
    assert!(saved(told) == first, "what was loaded is not what was saved");
}
