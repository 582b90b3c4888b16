/* Every function of the header with every pointer that it takes: null where it must not be, misaligned, at something
 * that is no handle, at a handle of the other kind, at one that was destroyed. Each is refused, with words or without
 * a place for them, and has changed nothing: a trainer and a generator that all of it was tried on go on as others that
 * were left alone. (`tests/header.rs` sees to it that no pointer of the header is missing.)
 */
#include "common.h"

#include <stdint.h>

enum { SEQUENCES = 2, TOKENS = 8, ALL = SEQUENCES * TOKENS, LONGEST = 9 };

/* An address at which nothing but bytes may lie; nobody touches it. */
static void *odd(const void *there) {
    return (char *)(uintptr_t)there + 1;
}

/* The call, in which `p` is the pointer and `e` where words go. */
#define TRIED(value, status, words, call)                                                      \
    do {                                                                                       \
        void *p = (value);                                                                     \
        CllmError *e = &error;                                                                 \
        refused(__FILE__, __LINE__, call, status, e, words);                                   \
        e = NULL;                                                                              \
        HOLDS((call) == (status));                                                             \
    } while (0)

/* A pointer that has to be there. `there` is where it points in calls that are done. */
#define REQUIRED(function, pointer, there, ...)                                                \
    TRIED(NULL, CLLM_STATUS_NULL, #pointer " is null", function(__VA_ARGS__));                 \
    TRIED(odd(there), CLLM_STATUS_MISALIGNED, #pointer " is not aligned", function(__VA_ARGS__))
/* One that may be null, as it is in some of the calls that are done. */
#define OPTIONAL(function, pointer, there, ...)                                                \
    TRIED(odd(there), CLLM_STATUS_MISALIGNED, #pointer " is not aligned", function(__VA_ARGS__))
/* One at bytes, which lie anywhere. */
#define BYTES(function, pointer, ...) TRIED(NULL, CLLM_STATUS_NULL, #pointer " is null", function(__VA_ARGS__))
/* A handle. */
#define HANDLE(function, pointer, there, other, ended, ...)                                    \
    REQUIRED(function, pointer, there, __VA_ARGS__);                                           \
    TRIED(zeros, CLLM_STATUS_NOT_A_HANDLE, #pointer " is no handle", function(__VA_ARGS__));   \
    TRIED(other, CLLM_STATUS_NOT_A_HANDLE, #pointer " is no handle", function(__VA_ARGS__));   \
    TRIED(ended, CLLM_STATUS_NOT_A_HANDLE, #pointer " is no handle", function(__VA_ARGS__))
#define TRAINER(function, ...) HANDLE(function, trainer, trainer, generator, ended_trainer, __VA_ARGS__)
#define GENERATOR(function, ...) HANDLE(function, generator, generator, trainer, ended_generator, __VA_ARGS__)

static uint32_t tokens[ALL], targets[ALL], starts[ALL];
static CllmModel model;
static const CllmPlan plan = {.sequences = SEQUENCES, .tokens = TOKENS, .workers = 1};
static const CllmBatch batch = {.tokens = tokens, .targets = targets, .len = ALL};
static size_t trainer_bytes, generator_bytes, checkpoint_bytes;
static uint8_t *checkpoint;
static void *zeros, *ended_trainer, *ended_generator;

static CllmTrainer *trainer_in(void *memory) {
    CllmTrainer *trainer = NULL;
    DONE(cllm_trainer_create(&model, &plan, 1, NULL, memory, trainer_bytes, &trainer, &error));
    return trainer;
}

static CllmGenerator *generator_in(void *memory) {
    CllmGenerator *generator = NULL;
    DONE(cllm_generator_create(checkpoint, checkpoint_bytes, CLLM_ISA_BEST, CLLM_DTYPE_F32, LONGEST, NULL, memory,
                               generator_bytes, &generator, &error));
    return generator;
}

/* All of the table, on handles that are in the midst of something. */
static void disturb(CllmTrainer *trainer, CllmGenerator *generator, void *free_memory) {
    size_t bytes = 0;
    CllmModel found;
    CllmLoss loss;
    CllmUpdate update;
    CllmOptimizer optimizer = cllm_optimizer_default();
    CllmSampler sampler = cllm_sampler_default();
    CllmIdle idle = {.context = NULL};
    CllmTrainer *made = NULL;
    CllmGenerator *spoken = NULL;
    uint32_t token;
    float logits[VOCABULARY];
    uint8_t *own = block(checkpoint_bytes), *same = block(checkpoint_bytes);
    const CllmIsa isa = CLLM_ISA_BEST;
    const CllmDtype dtype = CLLM_DTYPE_F32;

    REQUIRED(cllm_trainer_bytes, model, &model, p, &plan, &bytes, e);
    REQUIRED(cllm_trainer_bytes, plan, &plan, &model, p, &bytes, e);
    REQUIRED(cllm_trainer_bytes, bytes, &bytes, &model, &plan, p, e);
    REQUIRED(cllm_trainer_create, model, &model, p, &plan, 1, NULL, free_memory, trainer_bytes, &made, e);
    REQUIRED(cllm_trainer_create, plan, &plan, &model, p, 1, NULL, free_memory, trainer_bytes, &made, e);
    OPTIONAL(cllm_trainer_create, idle, &idle, &model, &plan, 1, p, free_memory, trainer_bytes, &made, e);
    REQUIRED(cllm_trainer_create, memory, free_memory, &model, &plan, 1, NULL, p, trainer_bytes, &made, e);
    REQUIRED(cllm_trainer_create, trainer, &made, &model, &plan, 1, NULL, free_memory, trainer_bytes, p, e);
    TRAINER(cllm_trainer_initialise, p, e);
    TRAINER(cllm_trainer_accumulate, p, &batch, 0, &loss, e);
    REQUIRED(cllm_trainer_accumulate, batch, &batch, trainer, p, 0, &loss, e);
    OPTIONAL(cllm_trainer_accumulate, loss, &loss, trainer, &batch, 0, p, e);
    TRAINER(cllm_trainer_update, p, NULL, 1e-3f, NULL, e);
    OPTIONAL(cllm_trainer_update, optimizer, &optimizer, trainer, p, 1e-3f, NULL, e);
    OPTIONAL(cllm_trainer_update, update, &update, trainer, NULL, 1e-3f, p, e);
    TRAINER(cllm_trainer_evaluate, p, &batch, &loss, e);
    REQUIRED(cllm_trainer_evaluate, batch, &batch, trainer, p, &loss, e);
    REQUIRED(cllm_trainer_evaluate, loss, &loss, trainer, &batch, p, e);
    TRAINER(cllm_worker_run, p, &idle, e);
    OPTIONAL(cllm_worker_run, idle, &idle, trainer, p, e);
    TRAINER(cllm_trainer_load, p, checkpoint, checkpoint_bytes, e);
    BYTES(cllm_trainer_load, checkpoint, trainer, p, checkpoint_bytes, e);
    TRAINER(cllm_trainer_saved_bytes, p, true, &bytes, e);
    REQUIRED(cllm_trainer_saved_bytes, bytes, &bytes, trainer, true, p, e);
    memset(own, 'x', checkpoint_bytes);
    memset(same, 'x', checkpoint_bytes);
    TRAINER(cllm_trainer_save, p, true, own, checkpoint_bytes, &bytes, e);
    BYTES(cllm_trainer_save, checkpoint, trainer, true, p, checkpoint_bytes, &bytes, e);
    OPTIONAL(cllm_trainer_save, written, &bytes, trainer, true, own, checkpoint_bytes, p, e);
    HOLDS(memcmp(own, same, checkpoint_bytes) == 0);
    TRAINER(cllm_trainer_close, p, e);
    TRAINER(cllm_trainer_destroy, p, e);
    BYTES(cllm_checkpoint_model, checkpoint, p, checkpoint_bytes, &found, e);
    REQUIRED(cllm_checkpoint_model, model, &found, checkpoint, checkpoint_bytes, p, e);
    BYTES(cllm_generator_bytes, checkpoint, p, checkpoint_bytes, isa, dtype, LONGEST, &bytes, e);
    REQUIRED(cllm_generator_bytes, bytes, &bytes, checkpoint, checkpoint_bytes, isa, dtype, LONGEST, p, e);
    BYTES(cllm_generator_create, checkpoint, p, checkpoint_bytes, isa, dtype, LONGEST, NULL, free_memory,
          generator_bytes, &spoken, e);
    OPTIONAL(cllm_generator_create, sampler, &sampler, checkpoint, checkpoint_bytes, isa, dtype, LONGEST, p, free_memory,
             generator_bytes, &spoken, e);
    REQUIRED(cllm_generator_create, memory, free_memory, checkpoint, checkpoint_bytes, isa, dtype, LONGEST, NULL, p,
             generator_bytes, &spoken, e);
    REQUIRED(cllm_generator_create, generator, &spoken, checkpoint, checkpoint_bytes, isa, dtype, LONGEST, NULL,
             free_memory, generator_bytes, p, e);
    GENERATOR(cllm_generator_add, p, tokens, 1, e);
    REQUIRED(cllm_generator_add, tokens, tokens, generator, p, 1, e);
    GENERATOR(cllm_generator_next, p, &token, e);
    REQUIRED(cllm_generator_next, token, &token, generator, p, e);
    GENERATOR(cllm_generator_logits, p, logits, VOCABULARY, e);
    REQUIRED(cllm_generator_logits, logits, logits, generator, p, VOCABULARY, e);
    GENERATOR(cllm_generator_reset, p, e);
    GENERATOR(cllm_generator_destroy, p, e);

    /* The pointers in a batch. */
    CllmBatch other;
#define IN_BATCH(field, status, value, words)                                                  \
    do {                                                                                       \
        other = batch;                                                                         \
        other.field = (value);                                                                 \
        TRIED(&other, status, words, cllm_trainer_accumulate(trainer, p, 0, &loss, e));        \
        TRIED(&other, status, words, cllm_trainer_evaluate(trainer, p, &loss, e));             \
    } while (0)
    IN_BATCH(tokens, CLLM_STATUS_NULL, NULL, "batch.tokens is null");
    IN_BATCH(tokens, CLLM_STATUS_MISALIGNED, odd(tokens), "batch.tokens is not aligned");
    IN_BATCH(targets, CLLM_STATUS_NULL, NULL, "batch.targets is null");
    IN_BATCH(targets, CLLM_STATUS_MISALIGNED, odd(targets), "batch.targets is not aligned");
    IN_BATCH(starts, CLLM_STATUS_MISALIGNED, odd(starts), "batch.starts is not aligned");

    HOLDS(made == NULL && spoken == NULL);
    free(same);
    free(own);
}

/* A few steps and a few tokens, with the table in every pause if it is wanted; gives what the trainer has come to and
 * the logits behind the text. */
static uint8_t *went(bool disturbed, CllmLoss *loss, float *logits) {
    void *memory = block(trainer_bytes), *place = block(generator_bytes);
    void *free_memory = block(trainer_bytes > generator_bytes ? trainer_bytes : generator_bytes);
    CllmTrainer *trainer = trainer_in(memory);
    CllmGenerator *generator = generator_in(place);
    DONE(cllm_trainer_initialise(trainer, &error));
    for (int step = 0; step < 2; step++) {
        if (disturbed) disturb(trainer, generator, free_memory);
        DONE(cllm_trainer_accumulate(trainer, &batch, 2 * ALL, NULL, &error));
        DONE(cllm_generator_add(generator, tokens, 3, &error));
        if (disturbed) disturb(trainer, generator, free_memory);
        DONE(cllm_trainer_accumulate(trainer, &batch, 2 * ALL, loss, &error));
        uint32_t token;
        DONE(cllm_generator_next(generator, &token, &error));
        if (disturbed) disturb(trainer, generator, free_memory);
        DONE(cllm_trainer_update(trainer, NULL, 1e-2f, NULL, &error));
    }
    DONE(cllm_generator_logits(generator, logits, VOCABULARY, &error));
    uint8_t *saved = block(checkpoint_bytes);
    DONE(cllm_trainer_save(trainer, true, saved, checkpoint_bytes, NULL, &error));
    DONE(cllm_generator_destroy(generator, &error));
    DONE(cllm_trainer_destroy(trainer, &error));
    free(free_memory);
    free(place);
    free(memory);
    return saved;
}

int main(void) {
    model = cllm_model_gpt2(VOCABULARY, TOKENS, 1, 2, 16);
    model.dropout = 0.25f;
    fill_text(tokens, targets, ALL);
    DONE(cllm_trainer_bytes(&model, &plan, &trainer_bytes, &error));
    void *first = block(trainer_bytes), *second;
    CllmTrainer *trainer = trainer_in(first);
    ended_trainer = trainer;
    DONE(cllm_trainer_initialise(trainer, &error));
    DONE(cllm_trainer_saved_bytes(trainer, true, &checkpoint_bytes, &error));
    checkpoint = block(checkpoint_bytes);
    DONE(cllm_trainer_save(trainer, true, checkpoint, checkpoint_bytes, NULL, &error));
    DONE(cllm_trainer_destroy(trainer, &error));
    DONE(cllm_generator_bytes(checkpoint, checkpoint_bytes, CLLM_ISA_BEST, CLLM_DTYPE_F32, LONGEST, &generator_bytes,
                              &error));
    second = block(generator_bytes);
    CllmGenerator *generator = generator_in(second);
    ended_generator = generator;
    DONE(cllm_generator_destroy(generator, &error));
    zeros = block(4096);
    memset(zeros, 0, 4096);

    CllmLoss losses[2];
    float logits[2][VOCABULARY];
    uint8_t *alone = went(false, &losses[0], logits[0]);
    uint8_t *disturbed = went(true, &losses[1], logits[1]);
    HOLDS(losses[0].sum == losses[1].sum);
    HOLDS(memcmp(logits[0], logits[1], sizeof logits[0]) == 0);
    HOLDS(memcmp(alone, disturbed, checkpoint_bytes) == 0);

    free(alone);
    free(disturbed);
    free(zeros);
    free(first);
    free(second);
    free(checkpoint);
    return verdict();
}
