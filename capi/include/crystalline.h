#ifndef CRYSTALLINE_H
#define CRYSTALLINE_H

// Made of capi/src by `UPDATE_HEADER=1 cargo test --test header`: do not change it by hand.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The core of Crystalline for C: models are trained and run in memory that the caller hands over, on threads
// that the caller owns.
//
// cllm_trainer_bytes      how much memory
// cllm_trainer_create     in that memory: a handle
// cllm_worker_run         any thread, at any time: works until the trainer is closed     (as many as there are)
// cllm_trainer_initialise or cllm_trainer_load
// for each step
//     cllm_trainer_accumulate     once for each of its batches
//     cllm_trainer_update
// cllm_trainer_evaluate, cllm_trainer_save     between steps
// cllm_trainer_close      workers come back: their threads are joined
// cllm_trainer_destroy    the memory is the caller's again
//
// cllm_generator_bytes, cllm_generator_create     of a checkpoint
// cllm_generator_add      what the text begins with
// cllm_generator_next     a token, as often as there is room; or cllm_generator_logits, and a choice of one's own
// cllm_generator_reset    the next text
// cllm_generator_destroy
//
// No thread has to serve: a step without workers is done by the thread that asks for it.
//
// Memory. Nothing is allocated. A handle lies at the beginning of the memory that it was created in. That
// memory is neither moved, copied elsewhere nor written to until the handle is destroyed: the handle points into
// itself. What other pointers point at is read or written during the call, and not kept; but for what a
// `CllmIdle`'s `context` points at, which lives as long as a thread may wait by it. None of it lies in a handle's memory,
// and what is written overlaps with nothing else. A call needs up to 64 KiB of stack, on every thread.
//
// Threads. One thread at a time calls the functions of a handle, whichever it is; a second one is sent away
// with `CLLM_STATUS_BUSY`, as is a function of the trainer's own `CllmIdle` that calls into the handle it waits for.
// `cllm_worker_run` is the exception: any thread calls it at any time between create and destroy. Destroying is
// refused while a thread is in it; one that is about to call cannot be seen, so join threads first. Different
// handles know nothing of one another. The bits of results do not depend on who works.
//
// Floating point. Threads that call have it as a program starts with it: rounding to nearest, and numbers below the
// normal ones as they are. (Linking with `-ffast-math` changes that for a whole program, and so the results.)
//
// Errors. Functions return a `CllmStatus`, and put the words for people into the `CllmError` that they get,
// unless that is null. A call that is refused has changed nothing (but for memory that a handle was to be created
// in): batches of the step that were taken before still count, and a better call can follow. After `CLLM_STATUS_NOT_FINITE` weights are as before, and the step
// begins anew. Pointers are checked for null and for alignment, and lengths against what is wanted; that a pointer
// points at as much as its length says is the caller's promise.
//
// Panics end the program (`abort`): none crosses into C. There is no input that should cause one, and so no
// call that gives `CLLM_STATUS_BROKEN` where it ends the program.
//
// Targets have pointers of 64 bits, and enumerations as large as `int`: do not compile with `-fshort-enums`.
//
// The library wants `memcpy`, `memmove`, `memset`, `memcmp` and `bcmp` of whoever links it, as compilers do, and
// `abort`.

// Bytes of the words for an error, with the zero byte behind them.
#define CLLM_ERROR_BYTES 240

// What memory of handles is aligned to, in bytes.
#define CLLM_ALIGNMENT 128

// A target that does not count.
#define CLLM_IGNORE UINT32_MAX

// What a call came to. Negative numbers are errors.
typedef enum CllmStatus {
  // It did what it was called for.
  CLLM_STATUS_OK = 0,
  // A pointer that must point at something is null.
  CLLM_STATUS_NULL = -1,
  // A pointer is not aligned as what it points at has to be; memory of handles to `CLLM_ALIGNMENT`.
  CLLM_STATUS_MISALIGNED = -2,
  // There are fewer bytes or elements than are wanted.
  CLLM_STATUS_TOO_SHORT = -3,
  // It is no handle: it was destroyed, or never created. Seen as long as nothing else was put there.
  CLLM_STATUS_NOT_A_HANDLE = -4,
  // Another thread is in a call with this handle, or workers are still with it.
  CLLM_STATUS_BUSY = -5,
  // The handle does not do that: it was created for another mode, or it is closed.
  CLLM_STATUS_WRONG_MODE = -6,
  // The model, the plan or a setting makes no sense.
  CLLM_STATUS_BAD_SETTING = -7,
  // The CPU does not run the instruction set.
  CLLM_STATUS_NO_SUCH_ISA = -8,
  // A token, a target or the start of a document is not one that the model has.
  CLLM_STATUS_BAD_BATCH = -9,
  // The loss or the gradient is not a number; weights are as before.
  CLLM_STATUS_NOT_FINITE = -10,
  // A checkpoint is damaged, or of another model.
  CLLM_STATUS_BAD_CHECKPOINT = -11,
  // All seats of the plan are taken.
  CLLM_STATUS_FULL = -12,
  // A step was not run to its end: load a checkpoint.
  CLLM_STATUS_BROKEN = -13,
} CllmStatus;

// What a trainer does.
typedef enum CllmMode {
  // Trains; each layer keeps its activations.
  CLLM_MODE_TRAIN = 0,
  // Trains to the same bits in less memory and more time.
  CLLM_MODE_RECOMPUTE = 1,
  // Measures losses alone.
  CLLM_MODE_EVALUATE = 2,
} CllmMode;

// Which instruction set computes.
typedef enum CllmIsa {
  // The best that the CPU and the system run.
  CLLM_ISA_BEST = 0,
  // None in particular: the same bits on every machine.
  CLLM_ISA_SCALAR = 1,
  // AVX.
  CLLM_ISA_AVX = 2,
  // AVX2 and FMA.
  CLLM_ISA_AVX2 = 3,
  // AVX-512.
  CLLM_ISA_AVX512 = 4,
  // AVX-512, with AMX for products of bf16.
  CLLM_ISA_AMX = 5,
  // NEON of 64-bit ARM.
  CLLM_ISA_NEON = 6,
} CllmIsa;

// What products are made of; sums, weights and moments are `f32` either way.
typedef enum CllmDtype {
  // `f32`.
  CLLM_DTYPE_F32 = 0,
  // bf16.
  CLLM_DTYPE_BF16 = 1,
} CllmDtype;

// What weights are updated by, and so what is remembered for them.
typedef enum CllmUpdater {
  // AdamW: 8 bytes for each weight.
  CLLM_UPDATER_ADAM_W = 0,
  // AdamW with moments of 8 bits: 2.125 bytes.
  CLLM_UPDATER_ADAM_W8 = 1,
  // Gradient descent with momentum: 4 bytes.
  CLLM_UPDATER_MOMENTUM = 2,
  // Gradient descent: nothing.
  CLLM_UPDATER_SGD = 3,
  // Muon for matrices of blocks, 4 bytes; AdamW for the rest.
  CLLM_UPDATER_MUON = 4,
} CllmUpdater;

// A model that continues texts: a handle.
typedef struct CllmGenerator CllmGenerator;

// A trainer, or what measures losses alone: a handle.
typedef struct CllmTrainer CllmTrainer;

// What is wrong, in words.
typedef struct CllmError {
  // UTF-8, cut to what fits, with a zero byte behind it; empty after a success.
  uint8_t text[CLLM_ERROR_BYTES];
} CllmError;

// A model: the parts of GPT-2, or of the Llama family. Start from `cllm_model_gpt2` or `cllm_model_llama`. Booleans are
// 0 or 1: a byte that is neither is refused.
typedef struct CllmModel {
  // Token ids are below it.
  uint32_t vocab_size;
  // Longest sequence, in tokens.
  uint32_t block_size;
  // Blocks.
  uint32_t n_layer;
  // Heads of queries.
  uint32_t n_head;
  // Heads of keys and values; 0: as many.
  uint32_t n_kv_head;
  // Width of the residual stream.
  uint32_t d_model;
  // Width of the feed-forward layer.
  uint32_t d_ff;
  // Columns of a head; 0: `d_model / n_head`.
  uint32_t head_size;
  // The last tokens that a query sees; 0: all of its sequence.
  uint32_t window;
  // Tokens before each one whose embeddings are added to its own, by weights that are learnt; 0: none.
  uint32_t previous_tokens;
  // Biases in linear layers and norms.
  bool bias;
  // Biases of queries, keys and values in a model that has no others.
  bool qkv_bias;
  // Norms of heads of queries and keys.
  bool qk_norm;
  // The output projection is the token table.
  bool tied;
  // RMS norms in the place of layer norms.
  bool rms_norm;
  // Rotary positions in the place of a table.
  bool rotary;
  // SwiGLU in the place of GELU.
  bool swiglu;
  // Squared ReLU in the place of GELU. Not with `swiglu`.
  bool relu2;
  // Probability of dropout in training, below 1.
  float dropout;
  // Added to the variance in norms.
  float norm_eps;
  // The base of rotary angles.
  float rope_theta;
  // Logits are kept between it and its negative; 0: they are as they are.
  float logit_softcap;
  // The first block's input is so many times the sum of the embeddings; 0 or 1: the sum itself.
  float embedding_scale;
} CllmModel;

// How tokens are chosen; `cllm_sampler_default` takes them as the model has them.
typedef struct CllmSampler {
  // Logits are divided by it; 0 takes the most probable token.
  float temperature;
  // Keeps the most probable tokens; 0 keeps all.
  uint32_t top_k;
  // Keeps the fewest tokens whose probabilities reach it; 1 keeps all.
  float top_p;
  // Keeps tokens at least this share as probable as the most probable; 0 keeps all.
  float min_p;
  // Divides logits of tokens that the text has; 1 does nothing.
  float repetition_penalty;
  // Of the draws.
  uint64_t seed;
} CllmSampler;

// Settings of the plan's updater and of the clip; `cllm_optimizer_default` has nanoGPT's of AdamW.
typedef struct CllmOptimizer {
  // Decay of the first moment of AdamW.
  float beta1;
  // Decay of its second moment.
  float beta2;
  // Added to the root of the second moment.
  float eps;
  // What is left of the sum of gradients in a step with momentum: 0.9 by default; Muon's is 0.95, as a rule.
  float momentum;
  // Decoupled decay of matrices.
  float weight_decay;
  // Learning rate of the tables of tokens and positions, by that of the step: 1 by default, which 0 stands for too.
  // Their decay goes by it as well. Adapters have the rate of the step.
  float embedding_lr_scale;
  // That of the output projection, likewise. A tied model's is the token table, and goes by that one's.
  float head_lr_scale;
  // Largest global norm of the gradient; 0 does not clip.
  float grad_clip;
} CllmOptimizer;

// What a trainer is planned for.
typedef struct CllmPlan {
  // Sequences of a batch.
  uint32_t sequences;
  // Tokens of each.
  uint32_t tokens;
  // Most threads that work at a time.
  uint32_t workers;
  // What for.
  enum CllmMode mode;
  // On which instruction set.
  enum CllmIsa isa;
  // On products of what.
  enum CllmDtype dtype;
  // Updated by what.
  enum CllmUpdater updater;
} CllmPlan;

// How threads wait for work, and for one another; null in the place of one: awake, which is for cores of one's own (where
// threads share them, `pause` should yield). All functions may be called by any thread of the caller's, at the same time.
// They return: none throws, `longjmp`s or ends its thread. None may call into the handle that they wait for: of a call
// under way that is refused, of a worker it is not seen, and may wait for itself for ever. A function that is null
// does nothing, and `pause` and `stays` then say true. What they return is 0 or 1.
//
// Threads that park are woken by the others' `wake`. So either all `CllmIdle`s of a trainer have one, that with which it
// is created and each of its workers', and each wakes what any of them has parked; or none has, and none parks. Anything
// else is refused.
typedef struct CllmIdle {
  // Handed to each of them.
  void *context;
  // One round of waiting awake, such as a yield to the system; `round` counts from 0 since there was work.
  // False asks to be parked.
  bool (*pause)(void *context, uint32_t round);
  // Sleeps while `*word == seen`, until woken: looking and falling asleep are one step with regard to `wake`
  // of the same word. May return for no reason. The word is read as an atomic one, in C11 by
  // `atomic_load((const _Atomic uint32_t *)word)`. Wants `wake`.
  void (*park)(void *context, const uint32_t *word, uint32_t seen);
  // Wakes all that are parked on the word.
  void (*wake)(void *context, const uint32_t *word);
  // Asked of a worker whenever it finds nothing to do, within a step too: false has `cllm_worker_run` return. Nobody
  // asks it of who calls for a step.
  bool (*stays)(void *context);
  // Whether a thread that asks for a step works on it too, on a seat of its own: a plan for it has one worker
  // more than threads that serve. False: it only waits while there are workers.
  bool works;
} CllmIdle;

// Tokens and what should follow each, sequence after sequence.
typedef struct CllmBatch {
  // `sequences * tokens` ids.
  const uint32_t *tokens;
  // As many targets; `CLLM_IGNORE` is none.
  const uint32_t *targets;
  // As many places in their sequence where each token's document begins; null: each sequence is one document.
  const uint32_t *starts;
  // How many there are of each.
  size_t len;
} CllmBatch;

// The loss of a batch.
typedef struct CllmLoss {
  // Sum over the targets that count, in nats.
  double sum;
  // Targets that count.
  uint64_t counted;
} CllmLoss;

// What an update did.
typedef struct CllmUpdate {
  // Global norm of the gradient before the clip.
  double grad_norm;
  // Factor that the clip applied.
  float scale;
  // Updates done so far.
  uint64_t updates;
} CllmUpdate;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Takes weights, and what a trainer has beside them (moments, updates done, the seed), from the bytes of a
// checkpoint, as `cllm` writes them too: on the same batches the run goes on to the same bits, with dropout too.
// Without moments they are zeros. Moments of another updater than the plan's are refused, as is what is damaged
// or of another model, and the trainer stays as it was. A model is another if it has another `block_size`, too;
// its dropout may be another, and what goes without saying may be said.
//
// # Safety
// Pointers are null or point at what their types say, `checkpoint` at as many bytes as `bytes` says.
enum CllmStatus cllm_trainer_load(struct CllmTrainer *trainer,
                                  const uint8_t *checkpoint,
                                  size_t bytes,
                                  struct CllmError *error);

// Bytes of the checkpoint of a trainer, with its moments or without.
//
// # Safety
// Pointers are null or point at what their types say.
enum CllmStatus cllm_trainer_saved_bytes(struct CllmTrainer *trainer,
                                         bool moments,
                                         size_t *bytes,
                                         struct CllmError *error);

// Writes the checkpoint of a trainer to `checkpoint`: its weights, and its moments if wanted, in the form that
// `cllm` reads too. `written` may be null.
//
// # Safety
// Pointers are null or point at what their types say, `checkpoint` at as many bytes as `bytes` says.
enum CllmStatus cllm_trainer_save(struct CllmTrainer *trainer,
                                  bool moments,
                                  uint8_t *checkpoint,
                                  size_t bytes,
                                  size_t *written,
                                  struct CllmError *error);

// A checkpoint's model, for whoever plans memory for it. Models with parts that a `CllmModel` has no words for (scaled
// rotary positions) are refused, though a generator may run them.
//
// # Safety
// Pointers are null or point at what their types say, `checkpoint` at as many bytes as `bytes` says.
enum CllmStatus cllm_checkpoint_model(const uint8_t *checkpoint,
                                      size_t bytes,
                                      struct CllmModel *model,
                                      struct CllmError *error);

// A model of GPT-2's parts, of the given sizes and `d_ff = 4 d_model`.
struct CllmModel cllm_model_gpt2(uint32_t vocab_size,
                                 uint32_t block_size,
                                 uint32_t n_layer,
                                 uint32_t n_head,
                                 uint32_t d_model);

// A model of Llama's parts, of the given sizes.
struct CllmModel cllm_model_llama(uint32_t vocab_size,
                                  uint32_t block_size,
                                  uint32_t n_layer,
                                  uint32_t n_head,
                                  uint32_t n_kv_head,
                                  uint32_t d_model,
                                  uint32_t d_ff);

// What a status means, in a few words: text that stays, with a zero byte behind it. For a number that is none,
// "unknown status".
const char *cllm_status_text(int32_t status);

// Plain sampling from the model's distribution.
struct CllmSampler cllm_sampler_default(void);

// Bytes of memory that a generator of a checkpoint's model works in, for texts of up to `longest` tokens (also more than
// the model's `block_size`: it then sees the last of them), aligned to `CLLM_ALIGNMENT`. `isa` and `dtype` are numbers of `CllmIsa` and `CllmDtype`.
//
// # Safety
// Pointers are null or point at what their types say, `checkpoint` at as many bytes as its length says.
enum CllmStatus cllm_generator_bytes(const uint8_t *checkpoint,
                                     size_t checkpoint_bytes,
                                     uint32_t isa,
                                     uint32_t dtype,
                                     size_t longest,
                                     size_t *bytes,
                                     struct CllmError *error);

// Makes a generator of a checkpoint's model in `memory`; the checkpoint is read, and not wanted any more then. It does not
// lie in that memory. `sampler` may be null for the default.
//
// # Safety
// Pointers are null or point at what their types say, `checkpoint` at as many bytes as its length says; `memory`
// has as many bytes as `bytes` says, which are the handle's until it is destroyed.
enum CllmStatus cllm_generator_create(const uint8_t *checkpoint,
                                      size_t checkpoint_bytes,
                                      uint32_t isa,
                                      uint32_t dtype,
                                      size_t longest,
                                      const struct CllmSampler *sampler,
                                      void *memory,
                                      size_t bytes,
                                      struct CllmGenerator **generator,
                                      struct CllmError *error);

// Adds tokens to the text.
//
// # Safety
// Pointers are null or point at what their types say, `tokens` at as many as `len` says.
enum CllmStatus cllm_generator_add(struct CllmGenerator *generator,
                                   const uint32_t *tokens,
                                   size_t len,
                                   struct CllmError *error);

// Chooses the token that follows the text, and adds it. `CLLM_STATUS_NOT_FINITE`: the weights are too large to compute
// with, and there is nothing to choose by; the text is as it was.
//
// # Safety
// Pointers are null or point at what their types say.
enum CllmStatus cllm_generator_next(struct CllmGenerator *generator,
                                    uint32_t *token,
                                    struct CllmError *error);

// Copies the logits of the token that follows the text: as many as the vocabulary has.
//
// # Safety
// Pointers are null or point at what their types say, `logits` at as many as `len` says.
enum CllmStatus cllm_generator_logits(struct CllmGenerator *generator,
                                      float *logits,
                                      size_t len,
                                      struct CllmError *error);

// Forgets the text. The sampler goes on with its draws.
//
// # Safety
// Pointers are null or point at what their types say.
enum CllmStatus cllm_generator_reset(struct CllmGenerator *generator, struct CllmError *error);

// Ends a handle: its memory is the caller's again.
//
// # Safety
// Pointers are null or point at what their types say; no other thread is about to call with the handle.
enum CllmStatus cllm_generator_destroy(struct CllmGenerator *generator,
                                       struct CllmError *error);

// nanoGPT's settings of AdamW, and a momentum of 0.9.
struct CllmOptimizer cllm_optimizer_default(void);

// Bytes of memory that a trainer of the plan works in, aligned to `CLLM_ALIGNMENT`: nothing else is touched but
// stacks.
//
// # Safety
// Pointers are null or point at what their types say.
enum CllmStatus cllm_trainer_bytes(const struct CllmModel *model,
                                   const struct CllmPlan *plan,
                                   size_t *bytes,
                                   struct CllmError *error);

// Makes a trainer in `memory`, whose weights are zeros until they are initialised or loaded. `seed` decides the
// initial weights and dropout, until a checkpoint brings its own. `idle` says how the calling thread waits for
// workers; null: awake. To measure losses alone (`CLLM_MODE_EVALUATE`) load a checkpoint then.
//
// # Safety
// Pointers are null or point at what their types say; `memory` has as many bytes as `bytes` says, which are the
// handle's until it is destroyed.
enum CllmStatus cllm_trainer_create(const struct CllmModel *model,
                                    const struct CllmPlan *plan,
                                    uint64_t seed,
                                    const struct CllmIdle *idle,
                                    void *memory,
                                    size_t bytes,
                                    struct CllmTrainer **trainer,
                                    struct CllmError *error);

// Gives all weights the starting values of the seed that the trainer was created with, and begins to count
// updates.
//
// # Safety
// Pointers are null or point at what their types say.
enum CllmStatus cllm_trainer_initialise(struct CllmTrainer *trainer,
                                        struct CllmError *error);

// Computes the gradient of a batch of the planned shape and adds it to the step's. `counted_in_step` are the
// targets that count in all batches of the step together, the same for each of them; 0: those of this one, which is then the
// only one. Fewer than this one has are refused. `loss` may be null.
//
// A batch that is refused changes nothing, and the step's earlier ones still count. After
// `CLLM_STATUS_NOT_FINITE` the step begins anew: none of its batches counts.
//
// # Safety
// Pointers are null or point at what their types say.
enum CllmStatus cllm_trainer_accumulate(struct CllmTrainer *trainer,
                                        const struct CllmBatch *batch,
                                        size_t counted_in_step,
                                        struct CllmLoss *loss,
                                        struct CllmError *error);

// Ends a step: clips the gradient and updates the weights by the plan's updater. `optimizer` may be null for the
// default; `update` may be null.
//
// A setting that is refused changes nothing, and the step can be ended with another. After
// `CLLM_STATUS_NOT_FINITE` weights are as before, and the step begins anew.
//
// # Safety
// Pointers are null or point at what their types say.
enum CllmStatus cllm_trainer_update(struct CllmTrainer *trainer,
                                    const struct CllmOptimizer *optimizer,
                                    float learning_rate,
                                    struct CllmUpdate *update,
                                    struct CllmError *error);

// The loss of a batch of the planned shape; weights and gradients stay as they are. It is told as it is: of weights that
// have become too large to compute with it is infinite or no number, of a batch without a target that counts it is 0 of 0,
// and the status is `CLLM_STATUS_OK`.
//
// # Safety
// Pointers are null or point at what their types say.
enum CllmStatus cllm_trainer_evaluate(struct CllmTrainer *trainer,
                                      const struct CllmBatch *batch,
                                      struct CllmLoss *loss,
                                      struct CllmError *error);

// Serves a trainer's steps on the calling thread, until it is closed or `idle` says that it does not stay.
// `idle` may be null: then the thread waits awake. A thread in it is not cancelled.
//
// # Safety
// Pointers are null or point at what their types say; the handle is not destroyed meanwhile.
enum CllmStatus cllm_worker_run(const struct CllmTrainer *trainer,
                                const struct CllmIdle *idle,
                                struct CllmError *error);

// Sends workers away: `cllm_worker_run` returns on their threads. Later steps are done by their caller alone.
//
// # Safety
// Pointers are null or point at what their types say.
enum CllmStatus cllm_trainer_close(struct CllmTrainer *trainer,
                                   struct CllmError *error);

// Ends a handle: its memory is the caller's again. Refused while a thread is in `cllm_worker_run` with it, be it
// at work, waiting for a seat or on its way out: close the trainer, and join their threads.
//
// # Safety
// Pointers are null or point at what their types say; no other thread is about to call with the handle.
enum CllmStatus cllm_trainer_destroy(struct CllmTrainer *trainer,
                                     struct CllmError *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* CRYSTALLINE_H */

// What the library was built for, see above.
#if defined(__cplusplus) && __cplusplus >= 201103L
static_assert(sizeof(void *) == 8, "the C interface is for targets with pointers of 64 bits");
static_assert(sizeof(CllmMode) == 4, "enumerations have to be as large as int: no -fshort-enums");
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
_Static_assert(sizeof(void *) == 8, "the C interface is for targets with pointers of 64 bits");
_Static_assert(sizeof(CllmMode) == 4, "enumerations have to be as large as int: no -fshort-enums");
#endif
