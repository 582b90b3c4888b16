/* Every way in which a call of the C interface can be refused, but for pointers (`pointers.c`), settings (`settings.c`)
 * and other threads (`threads.c`): the status, words that say why, and that the handle still works afterwards. Ends with
 * 0 if all are as they should be.
 */
#include "common.h"

#include <float.h>
#include <math.h>

enum { SEQUENCES = 2, TOKENS = 8, ALL = SEQUENCES * TOKENS };

/* All of a file, which capi/test.sh has beside it. */
static uint8_t *file(const char *path, size_t *size) {
    FILE *from = fopen(path, "rb");
    uint8_t all[1 << 16];
    *size = from ? fread(all, 1, sizeof all, from) : 0;
    if (*size == 0) {
        fprintf(stderr, "%s: cannot be read: run capi/test.sh\n", path);
        exit(1);
    }
    fclose(from);
    uint8_t *bytes = block(*size);
    memcpy(bytes, all, *size);
    return bytes;
}

static bool leaves(void *context) {
    (void)context;
    return false;
}

int main(void) {
    const CllmModel model = cllm_model_gpt2(40, TOKENS, 1, 2, 16);
    const CllmPlan plan = {.sequences = SEQUENCES, .tokens = TOKENS, .workers = 1};
    size_t bytes = 0;

    /* Sizes. */
    REFUSED(cllm_trainer_bytes(NULL, &plan, &bytes, &error), NULL, "model is null");
    REFUSED(cllm_trainer_bytes(&model, NULL, &bytes, &error), NULL, "plan is null");
    REFUSED(cllm_trainer_bytes(&model, &plan, NULL, &error), NULL, "bytes is null");
    REFUSED(cllm_trainer_bytes((const CllmModel *)((const char *)&model + 1), &plan, &bytes, &error), MISALIGNED,
            "model is not aligned to 4");
    /* Nobody has to listen. */
    HOLDS(cllm_trainer_bytes(NULL, &plan, &bytes, NULL) == CLLM_STATUS_NULL);
    DONE(cllm_trainer_bytes(&model, &plan, &bytes, &error));

    /* Creation. */
    char *memory = block(bytes);
    CllmTrainer *trainer = NULL;
    REFUSED(cllm_trainer_create(&model, &plan, 1, NULL, NULL, bytes, &trainer, &error), NULL, "memory is null");
    REFUSED(cllm_trainer_create(&model, &plan, 1, NULL, memory + 64, bytes, &trainer, &error), MISALIGNED,
            "memory is not aligned to 128");
    REFUSED(cllm_trainer_create(&model, &plan, 1, NULL, memory, bytes - 1, &trainer, &error), TOO_SHORT, "wants");
    REFUSED(cllm_trainer_create(&model, &plan, 1, NULL, memory, bytes, NULL, &error), NULL, "trainer is null");
    memset(memory, 0, bytes);
    REFUSED(cllm_trainer_initialise((CllmTrainer *)memory, &error), NOT_A_HANDLE, "never created");
    REFUSED(cllm_trainer_initialise(NULL, &error), NULL, "trainer is null");
    DONE(cllm_trainer_create(&model, &plan, 1, NULL, memory, bytes, &trainer, &error));
    DONE(cllm_trainer_initialise(trainer, &error));

    /* Steps. */
    uint32_t tokens[ALL], targets[ALL], starts[ALL];
    fill_text(tokens, targets, ALL);
    for (int i = 0; i < ALL; i++) starts[i] = (uint32_t)(i % TOKENS);
    CllmBatch batch = {.tokens = tokens, .targets = targets, .len = ALL};
    CllmLoss loss;
    CllmUpdate update;
    REFUSED(cllm_trainer_update(trainer, NULL, 1e-3f, &update, &error), WRONG_MODE, "gradient");
    REFUSED(cllm_trainer_accumulate(trainer, NULL, 0, &loss, &error), NULL, "batch is null");
    CllmBatch bad = batch;
    bad.len = ALL - 1;
    REFUSED(cllm_trainer_accumulate(trainer, &bad, 0, &loss, &error), BAD_BATCH, "the plan is for 16");
    bad = batch;
    bad.tokens = NULL;
    REFUSED(cllm_trainer_accumulate(trainer, &bad, 0, &loss, &error), NULL, "batch.tokens is null");
    bad = batch;
    bad.targets = (const uint32_t *)((const char *)targets + 2);
    REFUSED(cllm_trainer_accumulate(trainer, &bad, 0, &loss, &error), MISALIGNED, "batch.targets");
    bad = batch;
    bad.len = SIZE_MAX;
    REFUSED(cllm_trainer_accumulate(trainer, &bad, 0, &loss, &error), TOO_SHORT, "batch.tokens");
    tokens[3] = 40;
    REFUSED(cllm_trainer_accumulate(trainer, &batch, 0, &loss, &error), BAD_BATCH, "40");
    tokens[3] = 21;
    bad = batch;
    bad.starts = starts;
    starts[5] = 1;
    REFUSED(cllm_trainer_accumulate(trainer, &bad, 0, &loss, &error), BAD_BATCH, "");
    uint32_t none[ALL];
    for (int i = 0; i < ALL; i++) none[i] = CLLM_IGNORE;
    bad = batch;
    bad.targets = none;
    REFUSED(cllm_trainer_accumulate(trainer, &bad, 0, &loss, &error), BAD_BATCH, "");
    REFUSED(cllm_trainer_evaluate(trainer, &batch, NULL, &error), NULL, "loss is null");
    DONE(cllm_trainer_accumulate(trainer, &batch, 0, &loss, &error));
    /* What is refused leaves the step as it was: its gradient is that of the one batch that was taken. */
    tokens[3] = 40;
    REFUSED(cllm_trainer_accumulate(trainer, &batch, 0, &loss, &error), BAD_BATCH, "40");
    tokens[3] = 21;
    bad = batch;
    bad.len = ALL - 1;
    REFUSED(cllm_trainer_accumulate(trainer, &bad, 0, &loss, &error), BAD_BATCH, "the plan is for 16");
    bad = batch;
    bad.targets = none;
    REFUSED(cllm_trainer_accumulate(trainer, &bad, 0, &loss, &error), BAD_BATCH, "");
    REFUSED(cllm_trainer_evaluate(trainer, &bad, NULL, &error), NULL, "loss is null");
    CllmOptimizer optimizer = cllm_optimizer_default();
    optimizer.beta1 = 1.5f;
    REFUSED(cllm_trainer_update(trainer, &optimizer, 1e-3f, &update, &error), BAD_SETTING, "beta1 is 1.5");
    REFUSED(cllm_trainer_update(trainer, NULL, NAN, &update, &error), BAD_SETTING, "learning rate");
    REFUSED(cllm_trainer_update(trainer, NULL, -1e-3f, &update, &error), BAD_SETTING, "learning rate");
    DONE(cllm_trainer_update(trainer, NULL, 1e-3f, &update, &error));
    HOLDS(update.updates == 1 && update.grad_norm > 0);
    const double norm = update.grad_norm;
    DONE(cllm_trainer_initialise(trainer, &error));
    DONE(cllm_trainer_accumulate(trainer, &batch, 0, NULL, &error));
    DONE(cllm_trainer_update(trainer, NULL, 1e-3f, &update, &error));
    HOLDS(update.grad_norm == norm);
    REFUSED(cllm_trainer_update(trainer, NULL, 1e-3f, &update, &error), WRONG_MODE, "gradient");
    /* A rate beyond all numbers makes weights that are none: the next loss says so. */
    DONE(cllm_trainer_accumulate(trainer, &batch, 0, &loss, &error));
    DONE(cllm_trainer_update(trainer, NULL, FLT_MAX, NULL, &error));
    REFUSED(cllm_trainer_accumulate(trainer, &batch, 0, &loss, &error), NOT_FINITE, "loss");
    REFUSED(cllm_trainer_update(trainer, NULL, 1e-3f, &update, &error), WRONG_MODE, "gradient");
    DONE(cllm_trainer_initialise(trainer, &error));
    DONE(cllm_trainer_accumulate(trainer, &batch, 0, &loss, &error));
    DONE(cllm_trainer_update(trainer, NULL, 1e-3f, NULL, &error));

    /* Checkpoints. */
    size_t size = 0, written = 0;
    REFUSED(cllm_trainer_saved_bytes(trainer, true, NULL, &error), NULL, "bytes is null");
    DONE(cllm_trainer_saved_bytes(trainer, true, &size, &error));
    uint8_t *checkpoint = malloc(size);
    REFUSED(cllm_trainer_save(trainer, true, NULL, size, &written, &error), NULL, "checkpoint is null");
    REFUSED(cllm_trainer_save(trainer, true, checkpoint, size - 1, &written, &error), TOO_SHORT, "are to be written");
    DONE(cllm_trainer_save(trainer, true, checkpoint, size, &written, &error));
    HOLDS(written == size);
    REFUSED(cllm_trainer_load(trainer, NULL, size, &error), NULL, "checkpoint is null");
    REFUSED(cllm_trainer_load(trainer, checkpoint, 0, &error), BAD_CHECKPOINT, "");
    CllmModel found;
    for (size_t cut = 0; cut < size; cut += 97) {
        /* As long as is said: what is read behind it is seen. */
        uint8_t *part = malloc(cut > 0 ? cut : 1);
        memcpy(part, checkpoint, cut);
        REFUSED(cllm_trainer_load(trainer, part, cut, &error), BAD_CHECKPOINT, "");
        REFUSED(cllm_checkpoint_model(part, cut, &found, &error), BAD_CHECKPOINT, "");
        free(part);
    }
    for (size_t at = 0; at < size; at += 97) {
        checkpoint[at] ^= 1;
        REFUSED(cllm_trainer_load(trainer, checkpoint, size, &error), BAD_CHECKPOINT, "");
        checkpoint[at] ^= 1;
    }
    DONE(cllm_trainer_load(trainer, checkpoint, size, &error));
    REFUSED(cllm_checkpoint_model(checkpoint, size, NULL, &error), NULL, "model is null");
    DONE(cllm_checkpoint_model(checkpoint, size, &found, &error));
    HOLDS(found.vocab_size == 40 && found.d_model == 16 && found.tied && !found.rotary);

    /* A checkpoint of another optimizer leaves the trainer as it was. */
    size_t theirs_size = 0;
    uint8_t *theirs = file("tests/momentum.cllm", &theirs_size);
    CllmModel of_theirs;
    DONE(cllm_checkpoint_model(theirs, theirs_size, &of_theirs, &error));
    size_t own_bytes, own_size;
    DONE(cllm_trainer_bytes(&of_theirs, &plan, &own_bytes, &error));
    void *own_memory = block(own_bytes);
    CllmTrainer *own;
    DONE(cllm_trainer_create(&of_theirs, &plan, 1, NULL, own_memory, own_bytes, &own, &error));
    DONE(cllm_trainer_initialise(own, &error));
    DONE(cllm_trainer_accumulate(own, &batch, 0, NULL, &error));
    DONE(cllm_trainer_update(own, NULL, 1e-3f, NULL, &error));
    DONE(cllm_trainer_saved_bytes(own, true, &own_size, &error));
    uint8_t *before = malloc(own_size), *after = malloc(own_size);
    DONE(cllm_trainer_save(own, true, before, own_size, NULL, &error));
    REFUSED(cllm_trainer_load(own, theirs, theirs_size, &error), BAD_CHECKPOINT, "optimizer state of momentum");
    DONE(cllm_trainer_save(own, true, after, own_size, NULL, &error));
    HOLDS(memcmp(before, after, own_size) == 0);
    DONE(cllm_trainer_destroy(own, &error));
    free(own_memory);
    /* One of its own takes it, goes on, and gives it back with what it has summed. */
    CllmPlan theirs_plan = plan;
    theirs_plan.updater = CLLM_UPDATER_MOMENTUM;
    size_t less_bytes = 0, same_size = 0;
    DONE(cllm_trainer_bytes(&of_theirs, &theirs_plan, &less_bytes, &error));
    HOLDS(less_bytes < own_bytes);
    own_memory = block(less_bytes);
    DONE(cllm_trainer_create(&of_theirs, &theirs_plan, 1, NULL, own_memory, less_bytes, &own, &error));
    DONE(cllm_trainer_load(own, theirs, theirs_size, &error));
    REFUSED(cllm_trainer_load(own, before, own_size, &error), BAD_CHECKPOINT, "optimizer state of adamw");
    DONE(cllm_trainer_accumulate(own, &batch, 0, NULL, &error));
    CllmOptimizer descent = cllm_optimizer_default();
    descent.momentum = 1;
    REFUSED(cllm_trainer_update(own, &descent, 0.1f, NULL, &error), BAD_SETTING, "momentum is 1");
    descent.momentum = 0.5f;
    DONE(cllm_trainer_accumulate(own, &batch, 0, NULL, &error));
    DONE(cllm_trainer_update(own, &descent, 0.1f, &update, &error));
    HOLDS(update.updates == 2);
    DONE(cllm_trainer_saved_bytes(own, true, &same_size, &error));
    HOLDS(same_size < own_size);
    DONE(cllm_trainer_destroy(own, &error));
    free(own_memory);
    free(before);
    free(after);
    free(theirs);

    /* Evaluation alone, and another model's checkpoint. */
    CllmPlan measure = plan;
    measure.mode = CLLM_MODE_EVALUATE;
    CllmModel odd = model;
    odd.d_ff = 32;
    size_t other_bytes;
    DONE(cllm_trainer_bytes(&odd, &measure, &other_bytes, &error));
    void *other_memory = block(other_bytes);
    CllmTrainer *other;
    DONE(cllm_trainer_create(&odd, &measure, 1, NULL, other_memory, other_bytes, &other, &error));
    REFUSED(cllm_trainer_load(other, checkpoint, size, &error), BAD_CHECKPOINT, "another model");
    REFUSED(cllm_trainer_initialise(other, &error), WRONG_MODE, "evaluation alone");
    REFUSED(cllm_trainer_accumulate(other, &batch, 0, &loss, &error), WRONG_MODE, "evaluation alone");
    REFUSED(cllm_trainer_save(other, true, checkpoint, size, NULL, &error), WRONG_MODE, "evaluation alone");
    DONE(cllm_trainer_evaluate(other, &batch, &loss, &error));
    DONE(cllm_trainer_destroy(other, &error));
    free(other_memory);

    /* Workers. */
    const CllmIdle leaving = {.stays = leaves};
    REFUSED(cllm_worker_run(NULL, NULL, &error), NULL, "trainer is null");
    DONE(cllm_worker_run(trainer, &leaving, &error));
    DONE(cllm_trainer_close(trainer, &error));
    REFUSED(cllm_worker_run(trainer, &leaving, &error), WRONG_MODE, "closed");
    DONE(cllm_trainer_accumulate(trainer, &batch, 0, &loss, &error));

    /* Generators. */
    size_t need;
    CllmGenerator *generator;
    REFUSED(cllm_generator_bytes(NULL, size, 0, 0, 9, &need, &error), NULL, "checkpoint is null");
    REFUSED(cllm_generator_bytes(checkpoint, size / 2, 0, 0, 9, &need, &error), BAD_CHECKPOINT, "");
    REFUSED(cllm_generator_bytes(checkpoint, size, 77, 0, 9, &need, &error), BAD_SETTING, "isa 77");
    REFUSED(cllm_generator_bytes(checkpoint, size, 0, 3, 9, &need, &error), BAD_SETTING, "dtype 3");
    REFUSED(cllm_generator_bytes(checkpoint, size, 0, 0, SIZE_MAX, &need, &error), BAD_SETTING, "larger");
    DONE(cllm_generator_bytes(checkpoint, size, 0, 0, 9, &need, &error));
    char *place = block(need);
    REFUSED(cllm_generator_create(checkpoint, size, 0, 0, 9, NULL, place, need - 1, &generator, &error), TOO_SHORT,
            "wants");
    REFUSED(cllm_generator_create(checkpoint, size, 0, 0, 9, NULL, place + 8, need, &generator, &error), MISALIGNED,
            "memory");
    CllmSampler sampler = cllm_sampler_default();
    sampler.top_p = 0;
    REFUSED(cllm_generator_create(checkpoint, size, 0, 0, 9, &sampler, place, need, &generator, &error), BAD_SETTING,
            "top_p is 0");
    DONE(cllm_generator_create(checkpoint, size, 0, 0, 9, NULL, place, need, &generator, &error));
    uint32_t token;
    float *logits = malloc(40 * sizeof *logits);
    REFUSED(cllm_generator_next(generator, &token, &error), BAD_BATCH, "");
    tokens[0] = 40;
    REFUSED(cllm_generator_add(generator, tokens, 1, &error), BAD_BATCH, "40");
    tokens[0] = 0;
    REFUSED(cllm_generator_add(generator, tokens, 10, &error), TOO_SHORT, "9 is the longest");
    REFUSED(cllm_generator_add(generator, NULL, 1, &error), NULL, "tokens is null");
    DONE(cllm_generator_add(generator, NULL, 0, &error));
    DONE(cllm_generator_add(generator, tokens, 8, &error));
    REFUSED(cllm_generator_logits(generator, logits, 39, &error), TOO_SHORT, "40 ids");
    REFUSED(cllm_generator_logits(generator, NULL, 40, &error), NULL, "logits is null");
    DONE(cllm_generator_logits(generator, logits, 40, &error));
    REFUSED(cllm_generator_next(generator, NULL, &error), NULL, "token is null");
    DONE(cllm_generator_next(generator, &token, &error));
    REFUSED(cllm_generator_next(generator, &token, &error), TOO_SHORT, "has its 9 tokens");
    DONE(cllm_generator_reset(generator, &error));
    DONE(cllm_generator_destroy(generator, &error));
    REFUSED(cllm_generator_reset(generator, &error), NOT_A_HANDLE, "destroyed");
    free(logits);
    free(place);

    DONE(cllm_trainer_destroy(trainer, &error));
    REFUSED(cllm_trainer_destroy(trainer, &error), NOT_A_HANDLE, "destroyed");
    free(memory);
    free(checkpoint);
    HOLDS(strcmp(cllm_status_text(5), "unknown status") == 0);
    return verdict();
}
