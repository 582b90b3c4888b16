//! Trainers: a plan, an engine and what it trains, all in the caller's memory.
//!
//! ```text
//! handle | parameters | gradients | moments | packed | activations | scratch | ops | slots | words
//! ```
//! The engine borrows the last three, the trainer the engine and the others: the handle is written once and
//! stays where it is. Its parts are never borrowed as one, for workers look at the engine while the caller of a
//! step has the trainer.

use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;

use cllm_core::{
    Batch, Engine, EngineError, Evaluator, Line, Loss, Mode, Op, Optimizer, OptimizerKind, Plan,
    PlanError, Pool, Pools, Queue, SeatError, Slot, StepError, Trainer, Worker,
};

use crate::config::{CllmModel, CllmPlan, planned};
use crate::door::{Call, Door, Handle, Visitors, dead, living};
use crate::error::{CllmError, CllmStatus, Failed, Result, told};
use crate::idle::{CllmIdle, Waiting, waiting};
use crate::memory::{CLLM_ALIGNMENT, Pieces, checked, piece, read, slice, wanted};

/// A trainer, or what measures losses alone: a handle.
#[repr(C, align(128))]
pub struct CllmTrainer {
    door: Door,
    /// Threads within `cllm_worker_run`.
    visitors: Visitors,
    idle: Waiting,
    /// That it was created with: a checkpoint may have brought another.
    seed: u64,
    engine: MaybeUninit<Engine<'static>>,
    work: Work,
}

pub(crate) enum Work {
    Train(Trainer<'static>),
    Evaluate(Evaluator<'static>),
}

// SAFETY: so it is declared.
unsafe impl Handle for CllmTrainer {
    const MARK: u64 = 0x6372_7973_7461_6c31;
    const NAME: &'static str = "trainer";
}

/// Tokens and what should follow each, sequence after sequence.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CllmBatch {
    /// `sequences * tokens` ids.
    pub tokens: *const u32,
    /// As many targets; `CLLM_IGNORE` is none.
    pub targets: *const u32,
    /// As many places in their sequence where each token's document begins; null: each sequence is one document.
    pub starts: *const u32,
    /// How many there are of each.
    pub len: usize,
}

/// A target that does not count.
pub const CLLM_IGNORE: u32 = u32::MAX;

const _: () = assert!(CLLM_IGNORE == cllm_core::IGNORE);

/// The loss of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CllmLoss {
    /// Sum over the targets that count, in nats.
    pub sum: f64,
    /// Targets that count.
    pub counted: u64,
}

/// Settings of the plan's updater and of the clip; `cllm_optimizer_default` has nanoGPT's of AdamW.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CllmOptimizer {
    /// Decay of the first moment of AdamW.
    pub beta1: f32,
    /// Decay of its second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// What is left of the sum of gradients in a step with momentum: 0.9 by default; Muon's is 0.95, as a rule.
    pub momentum: f32,
    /// Decoupled decay of matrices.
    pub weight_decay: f32,
    /// Learning rate of the tables of tokens and positions, by that of the step: 1 by default, which 0 stands for too.
    /// Their decay goes by it as well. Adapters have the rate of the step.
    pub embedding_lr_scale: f32,
    /// That of the output projection, likewise. A tied model's is the token table, and goes by that one's.
    pub head_lr_scale: f32,
    /// Largest global norm of the gradient; 0 does not clip.
    pub grad_clip: f32,
}

impl CllmOptimizer {
    /// The core's settings.
    fn of(self, kind: OptimizerKind) -> Optimizer {
        let scale = |given: f32| if given == 0.0 { 1.0 } else { given };
        Optimizer {
            kind,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            embedding_lr_scale: scale(self.embedding_lr_scale),
            head_lr_scale: scale(self.head_lr_scale),
            grad_clip: (self.grad_clip != 0.0).then_some(self.grad_clip),
        }
    }
}

/// What an update did.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CllmUpdate {
    /// Global norm of the gradient before the clip.
    pub grad_norm: f64,
    /// Factor that the clip applied.
    pub scale: f32,
    /// Updates done so far.
    pub updates: u64,
}

/// nanoGPT's settings of AdamW, and a momentum of 0.9.
#[unsafe(no_mangle)]
pub extern "C" fn cllm_optimizer_default() -> CllmOptimizer {
    let usual = Optimizer::default();
    CllmOptimizer {
        beta1: usual.beta1,
        beta2: usual.beta2,
        eps: usual.eps,
        momentum: usual.momentum,
        weight_decay: usual.weight_decay,
        embedding_lr_scale: usual.embedding_lr_scale,
        head_lr_scale: usual.head_lr_scale,
        grad_clip: usual.grad_clip.unwrap_or(0.0),
    }
}

/// Where the pieces of a plan lie.
struct Places {
    pools: [(usize, usize); 6],
    ops: usize,
    slots: usize,
    words: usize,
    bytes: usize,
}

/// The pools of lines, in their order.
const POOLS: [Pool; 6] = [
    Pool::Parameters,
    Pool::Gradients,
    Pool::Moments,
    Pool::Packed,
    Pool::Activations,
    Pool::Scratch,
];

impl Places {
    fn of(plan: &Plan) -> Result<Self> {
        let mut pieces = Pieces { taken: 0 };
        let mut cut = || -> Option<Self> {
            pieces.take::<CllmTrainer>(1)?;
            let mut pools = [(0, 0); 6];
            for (place, pool) in pools.iter_mut().zip(POOLS) {
                // Of what only measures, these are empty.
                *place = (pieces.take::<Line>(plan.lines(pool))?, plan.lines(pool));
            }
            Some(Self {
                pools,
                ops: pieces.take::<Op>(plan.ops())?,
                slots: pieces.take::<Slot>(plan.slots())?,
                words: pieces.take::<AtomicU64>(plan.words())?,
                bytes: 0,
            })
        };
        let too_large =
            || Failed::new(CllmStatus::BadSetting, "the model is larger than memory can be");
        let places = cut().ok_or_else(too_large)?;
        Ok(Self { bytes: pieces.taken, ..places })
    }
}

/// Bytes of memory that a trainer of the plan works in, aligned to `CLLM_ALIGNMENT`: nothing else is touched but
/// stacks.
///
/// # Safety
/// Pointers are null or point at what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_trainer_bytes(
    model: *const CllmModel,
    plan: *const CllmPlan,
    bytes: *mut usize,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let bytes = checked(bytes, "bytes")?;
            let (plan, _) = planned(model, plan)?;
            bytes.write(Places::of(&plan)?.bytes);
            Ok(())
        })
    }
}

/// Makes a trainer in `memory`, whose weights are zeros until they are initialised or loaded. `seed` decides the
/// initial weights and dropout, until a checkpoint brings its own. `idle` says how the calling thread waits for
/// workers; null: awake. To measure losses alone (`CLLM_MODE_EVALUATE`) load a checkpoint then.
///
/// # Safety
/// Pointers are null or point at what their types say; `memory` has as many bytes as `bytes` says, which are the
/// handle's until it is destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_trainer_create(
    model: *const CllmModel,
    plan: *const CllmPlan,
    seed: u64,
    idle: *const CllmIdle,
    memory: *mut core::ffi::c_void,
    bytes: usize,
    trainer: *mut *mut CllmTrainer,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            checked(trainer, "trainer")?;
            let (plan, kernels) = planned(model, plan)?;
            let places = Places::of(&plan)?;
            let handle = checked(memory.cast::<CllmTrainer>(), "memory")?;
            if bytes < places.bytes {
                let (need, mode) = (places.bytes, plan.mode());
                return Err(Failed::new(
                    CllmStatus::TooShort,
                    format_args!("memory has {bytes} bytes, and the plan ({mode:?}) wants {need}"),
                ));
            }
            // Whoever calls for a step does not leave in its middle.
            let idle = waiting(idle)?.map(|idle| CllmIdle { stays: None, ..idle });
            let start = handle.cast::<u8>();
            let mut pools =
                places.pools.map(|(at, lines)| piece(start, at, lines, || Line::ZERO)).into_iter();
            let mut next = || pools.next().unwrap_or_default();
            let pools = Pools {
                parameters: next(),
                gradients: next(),
                moments: next(),
                packed: next(),
                activations: next(),
                scratch: next(),
            };
            let queue = Queue {
                ops: piece(start, places.ops, plan.ops(), || Op::EMPTY),
                slots: piece(start, places.slots, plan.slots(), Slot::new),
                words: piece(start, places.words, plan.words(), || AtomicU64::new(0)),
            };
            let bad = Failed::of::<PlanError>(CllmStatus::BadSetting);
            let this = handle.as_ptr();
            (&raw mut (*this).idle).write(Waiting(idle));
            (&raw mut (*this).engine)
                .write(MaybeUninit::new(Engine::new(&plan, queue).map_err(&bad)?));
            // Both stay where they are until the handle is destroyed.
            let engine: &'static Engine<'static> = (*this).engine.assume_init_ref();
            let idle: &'static Waiting = &(*this).idle;
            let work = match plan.mode() {
                Mode::Evaluate => {
                    let evaluator = Evaluator::new(&plan, kernels, pools, engine).map_err(&bad)?;
                    Work::Evaluate(evaluator.wait_with(idle))
                }
                Mode::Train | Mode::Recompute => {
                    let trainer =
                        Trainer::new(&plan, kernels, pools, engine, seed).map_err(&bad)?;
                    Work::Train(trainer.wait_with(idle))
                }
            };
            (&raw mut (*this).work).write(work);
            (&raw mut (*this).seed).write(seed);
            (&raw mut (*this).visitors).write(Visitors::none());
            (&raw mut (*this).door).write(Door::of::<CllmTrainer>());
            trainer.write(this);
            Ok(())
        })
    }
}

impl Call<CllmTrainer> {
    /// What the handle does. No worker looks at it.
    pub(crate) fn work(&mut self) -> &mut Work {
        // SAFETY: the handle lives, and no other call has it.
        unsafe { &mut (*self.0.as_ptr()).work }
    }

    pub(crate) fn trainer(&mut self) -> Result<&mut Trainer<'static>> {
        match self.work() {
            Work::Train(trainer) => Ok(trainer),
            Work::Evaluate(_) => {
                Err(Failed::new(CllmStatus::WrongMode, "the plan is for evaluation alone"))
            }
        }
    }
}

impl From<StepError> for Failed {
    fn from(error: StepError) -> Self {
        let status = match error {
            StepError::BatchSize { .. }
            | StepError::UnknownToken { .. }
            | StepError::Documents { .. }
            | StepError::LeftOut(_)
            | StepError::NothingCounts => CllmStatus::BadBatch,
            StepError::NonFiniteLoss(_) | StepError::NonFiniteGradient(_) => CllmStatus::NotFinite,
            StepError::Optimizer(_) => CllmStatus::BadSetting,
            StepError::NoGradients | StepError::NotLoaded | StepError::WrongOptimizer { .. } => {
                CllmStatus::WrongMode
            }
            StepError::Engine(EngineError::Busy | EngineError::Attended) => CllmStatus::Busy,
            StepError::HalfUpdated | StepError::Engine(EngineError::Panicked) => CllmStatus::Broken,
        };
        Self::new(status, error)
    }
}

/// # Safety
/// The pointers are null or point at what the batch says.
unsafe fn batch_of<'a>(batch: *const CllmBatch) -> Result<Batch<'a>> {
    // SAFETY: the caller's promises.
    unsafe {
        let CllmBatch { tokens, targets, starts, len } = read(batch, "batch")?;
        let starts =
            if starts.is_null() { None } else { Some(slice(starts, len, "batch.starts")?) };
        let (tokens, targets) =
            (slice(tokens, len, "batch.tokens")?, slice(targets, len, "batch.targets")?);
        Ok(Batch { tokens, targets, starts })
    }
}

impl From<Loss> for CllmLoss {
    fn from(loss: Loss) -> Self {
        Self { sum: loss.sum, counted: loss.counted as u64 }
    }
}

/// Gives all weights the starting values of the seed that the trainer was created with, and begins to count
/// updates.
///
/// # Safety
/// Pointers are null or point at what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_trainer_initialise(
    trainer: *mut CllmTrainer,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let mut call = Call::begin(trainer)?;
            let seed = (*call.0.as_ptr()).seed;
            let trainer = call.trainer()?;
            trainer.set_seed(seed);
            trainer.initialise();
            Ok(())
        })
    }
}

/// Computes the gradient of a batch of the planned shape and adds it to the step's. `counted_in_step` are the
/// targets that count in all batches of the step together, the same for each of them; 0: those of this one, which is then the
/// only one. Fewer than this one has are refused. `loss` may be null.
///
/// A batch that is refused changes nothing, and the step's earlier ones still count. After
/// `CLLM_STATUS_NOT_FINITE` the step begins anew: none of its batches counts.
///
/// # Safety
/// Pointers are null or point at what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_trainer_accumulate(
    trainer: *mut CllmTrainer,
    batch: *const CllmBatch,
    counted_in_step: usize,
    loss: *mut CllmLoss,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let mut call = Call::begin(trainer)?;
            let loss = wanted(loss, "loss")?;
            let batch = batch_of(batch)?;
            let own = batch.counted();
            if counted_in_step > 0 && counted_in_step < own {
                return Err(Failed::new(
                    CllmStatus::BadBatch,
                    format_args!(
                        "counted_in_step is {counted_in_step}, and this batch alone has {own} that count"
                    ),
                ));
            }
            let counted = if counted_in_step == 0 { own } else { counted_in_step };
            let trainer = call.trainer()?;
            // What is refused leaves the step as it was.
            trainer.check_batch(&batch, counted)?;
            let found = trainer.accumulate(&batch, counted)?;
            if let Some(loss) = loss {
                loss.write(found.into());
            }
            Ok(())
        })
    }
}

/// Ends a step: clips the gradient and updates the weights by the plan's updater. `optimizer` may be null for the
/// default; `update` may be null.
///
/// A setting that is refused changes nothing, and the step can be ended with another. After
/// `CLLM_STATUS_NOT_FINITE` weights are as before, and the step begins anew.
///
/// # Safety
/// Pointers are null or point at what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_trainer_update(
    trainer: *mut CllmTrainer,
    optimizer: *const CllmOptimizer,
    learning_rate: f32,
    update: *mut CllmUpdate,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let mut call = Call::begin(trainer)?;
            let update = wanted(update, "update")?;
            let given = if optimizer.is_null() {
                cllm_optimizer_default()
            } else {
                read(optimizer, "optimizer")?
            };
            let trainer = call.trainer()?;
            let settings = given.of(trainer.plan().optimizer());
            // What is refused leaves the step as it was.
            settings.validate().map_err(Failed::of(CllmStatus::BadSetting))?;
            if !(learning_rate >= 0.0 && learning_rate.is_finite()) {
                return Err(Failed::new(
                    CllmStatus::BadSetting,
                    format_args!("the learning rate {learning_rate} is negative or no number"),
                ));
            }
            let report = trainer.update(&settings, learning_rate)?;
            let (grad_norm, scale, updates) = (report.grad_norm, report.scale, trainer.updates());
            if let Some(update) = update {
                update.write(CllmUpdate { grad_norm, scale, updates });
            }
            Ok(())
        })
    }
}

/// The loss of a batch of the planned shape; weights and gradients stay as they are. It is told as it is: of weights that
/// have become too large to compute with it is infinite or no number, of a batch without a target that counts it is 0 of 0,
/// and the status is `CLLM_STATUS_OK`.
///
/// # Safety
/// Pointers are null or point at what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_trainer_evaluate(
    trainer: *mut CllmTrainer,
    batch: *const CllmBatch,
    loss: *mut CllmLoss,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let mut call = Call::begin(trainer)?;
            let loss = checked(loss, "loss")?;
            let batch = batch_of(batch)?;
            let found = match call.work() {
                Work::Train(trainer) => trainer.evaluate(&batch)?,
                Work::Evaluate(evaluator) => evaluator.evaluate(&batch)?,
            };
            loss.write(found.into());
            Ok(())
        })
    }
}

/// Serves a trainer's steps on the calling thread, until it is closed or `idle` says that it does not stay.
/// `idle` may be null: then the thread waits awake. A thread in it is not cancelled.
///
/// # Safety
/// Pointers are null or point at what their types say; the handle is not destroyed meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_worker_run(
    trainer: *const CllmTrainer,
    idle: *const CllmIdle,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let handle = living(trainer)?;
            let idle = Waiting(waiting(idle)?);
            // Also while it queues for a seat or leaves one, when the engine does not count it.
            let _visit = (*handle.as_ptr()).visitors.enter().ok_or_else(dead::<CllmTrainer>)?;
            if idle.wakes() != (*handle.as_ptr()).idle.wakes() {
                return Err(Failed::new(
                    CllmStatus::BadSetting,
                    "idle.wake: either each of a trainer's CllmIdles has one, that of its creation too, or none",
                ));
            }
            let engine: &Engine<'_> = (*handle.as_ptr()).engine.assume_init_ref();
            Worker::run(engine, &idle).map_err(|error| match error {
                SeatError::Full { .. } => Failed::new(CllmStatus::Full, error),
                SeatError::Closed => Failed::new(CllmStatus::WrongMode, error),
            })
        })
    }
}

/// Sends workers away: `cllm_worker_run` returns on their threads. Later steps are done by their caller alone.
///
/// # Safety
/// Pointers are null or point at what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_trainer_close(
    trainer: *mut CllmTrainer,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let call = Call::begin(trainer)?;
            let this = call.0.as_ptr();
            let (engine, idle) = ((*this).engine.assume_init_ref(), &(*this).idle);
            engine.close(idle);
            Ok(())
        })
    }
}

/// Ends a handle: its memory is the caller's again. Refused while a thread is in `cllm_worker_run` with it, be it
/// at work, waiting for a seat or on its way out: close the trainer, and join their threads.
///
/// # Safety
/// Pointers are null or point at what their types say; no other thread is about to call with the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cllm_trainer_destroy(
    trainer: *mut CllmTrainer,
    error: *mut CllmError,
) -> CllmStatus {
    // SAFETY: the caller's promises.
    unsafe {
        told(error, || {
            let call = Call::begin(trainer)?;
            let this = call.0.as_ptr();
            (*this).visitors.end().map_err(|threads| {
                Failed::new(
                    CllmStatus::Busy,
                    format_args!(
                        "threads in cllm_worker_run: {threads}; close the trainer, and join them"
                    ),
                )
            })?;
            // Nothing in it wants to be dropped: all memory is the caller's.
            call.door().shut();
            Ok(())
        })
    }
}

const _: () = assert!(align_of::<CllmTrainer>() == CLLM_ALIGNMENT);
