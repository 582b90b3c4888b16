/* What measures and what generates, of a checkpoint: the same losses as the trainer that wrote it, texts that begin anew,
 * and what is refused. Ends with 0 if it is so.
 */
#include "common.h"

#include <float.h>
#include <math.h>

enum { SEQUENCES = 2, TOKENS = 8, ALL = SEQUENCES * TOKENS, LONGEST = 3 * TOKENS };

static uint32_t tokens[ALL], targets[ALL], starts[ALL];
static const CllmBatch batch = {.tokens = tokens, .targets = targets, .len = ALL};

static CllmTrainer *created(CllmMode mode, void **memory) {
    const CllmModel model = cllm_model_gpt2(VOCABULARY, TOKENS, 1, 2, 16);
    const CllmPlan plan = {.sequences = SEQUENCES, .tokens = TOKENS, .workers = 1, .mode = mode};
    CllmTrainer *trainer;
    size_t bytes = 0;
    DONE(cllm_trainer_bytes(&model, &plan, &bytes, &error));
    *memory = block(bytes);
    DONE(cllm_trainer_create(&model, &plan, 3, NULL, *memory, bytes, &trainer, &error));
    return trainer;
}

static uint8_t *saved(CllmTrainer *trainer, bool moments, size_t *size) {
    DONE(cllm_trainer_saved_bytes(trainer, moments, size, &error));
    uint8_t *checkpoint = malloc(*size);
    DONE(cllm_trainer_save(trainer, moments, checkpoint, *size, NULL, &error));
    return checkpoint;
}

/* What is wrong with a batch is said by what measures too. */
static void batches(CllmTrainer *trainer) {
    CllmLoss loss;
    CllmBatch bad = batch;
    bad.len = ALL + 1;
    REFUSED(cllm_trainer_evaluate(trainer, &bad, &loss, &error), BAD_BATCH, "the plan is for 16");
    tokens[1] = VOCABULARY;
    REFUSED(cllm_trainer_evaluate(trainer, &batch, &loss, &error), BAD_BATCH, "40");
    tokens[1] = 7;
    targets[1] = VOCABULARY + 1;
    REFUSED(cllm_trainer_evaluate(trainer, &batch, &loss, &error), BAD_BATCH, "41");
    targets[1] = 14;
    bad = batch;
    bad.starts = starts;
    starts[2] = 5;
    REFUSED(cllm_trainer_evaluate(trainer, &bad, &loss, &error), BAD_BATCH, "");
    starts[2] = 0;
    DONE(cllm_trainer_evaluate(trainer, &bad, &loss, &error));
    const double whole = loss.sum;
    DONE(cllm_trainer_evaluate(trainer, &batch, &loss, &error));
    HOLDS(loss.sum == whole);
    /* A document that begins in the middle does not see what is before it. */
    for (int i = 4; i < TOKENS; i++) starts[i] = 4;
    DONE(cllm_trainer_evaluate(trainer, &bad, &loss, &error));
    HOLDS(loss.sum != whole && loss.counted == ALL);
    for (int i = 4; i < TOKENS; i++) starts[i] = 0;
    /* Of no target. */
    uint32_t none[ALL];
    for (int i = 0; i < ALL; i++) none[i] = CLLM_IGNORE;
    bad = batch;
    bad.targets = none;
    DONE(cllm_trainer_evaluate(trainer, &bad, &loss, &error));
    HOLDS(loss.sum == 0 && loss.counted == 0);
}

static void evaluators(CllmTrainer *trainer) {
    void *memory;
    CllmTrainer *evaluator = created(CLLM_MODE_EVALUATE, &memory);
    size_t size = 0, less = 0;
    CllmLoss loss, same = {.sum = 0};
    DONE(cllm_trainer_evaluate(trainer, &batch, &loss, &error));
    uint8_t *whole = saved(trainer, true, &size), *weights = saved(trainer, false, &less);
    HOLDS(less < size);
    whole[size / 2] ^= 1;
    REFUSED(cllm_trainer_load(evaluator, whole, size, &error), BAD_CHECKPOINT, "");
    REFUSED(cllm_trainer_load(evaluator, weights, less - 1, &error), BAD_CHECKPOINT, "");
    whole[size / 2] ^= 1;
    DONE(cllm_trainer_load(evaluator, whole, size, &error));
    DONE(cllm_trainer_evaluate(evaluator, &batch, &same, &error));
    HOLDS(loss.sum == same.sum && loss.counted == same.counted);
    DONE(cllm_trainer_load(evaluator, weights, less, &error));
    DONE(cllm_trainer_evaluate(evaluator, &batch, &same, &error));
    HOLDS(loss.sum == same.sum && loss.counted == same.counted);
    batches(evaluator);
    REFUSED(cllm_trainer_saved_bytes(evaluator, false, &size, &error), WRONG_MODE, "evaluation alone");
    REFUSED(cllm_trainer_update(evaluator, NULL, 1e-3f, NULL, &error), WRONG_MODE, "evaluation alone");
    DONE(cllm_trainer_destroy(evaluator, &error));
    /* A trainer takes weights alone too, and begins its moments anew. */
    DONE(cllm_trainer_load(trainer, weights, less, &error));
    DONE(cllm_trainer_evaluate(trainer, &batch, &same, &error));
    HOLDS(loss.sum == same.sum);
    free(memory);
    free(whole);
    free(weights);
}

static void generators(const uint8_t *checkpoint, size_t size) {
    size_t need = 0;
    CllmGenerator *generator;
    REFUSED(cllm_generator_bytes(checkpoint, size, FOREIGN_ISA, 0, LONGEST, &need, &error), NO_SUCH_ISA, "does not run");
    DONE(cllm_generator_bytes(checkpoint, size, 0, 0, LONGEST, &need, &error));
    uint8_t *place = block(need > size ? need : size);
    uint8_t *broken = malloc(size);
    memcpy(broken, checkpoint, size);
    broken[size - 1] ^= 1;
    REFUSED(cllm_generator_create(broken, size, 0, 0, LONGEST, NULL, place, need, &generator, &error), BAD_CHECKPOINT, "");
    free(broken);
    REFUSED(cllm_generator_create(checkpoint, size, FOREIGN_ISA, 0, LONGEST, NULL, place, need, &generator, &error),
            NO_SUCH_ISA, "does not run");
    REFUSED(cllm_generator_create(checkpoint, size, 0, 2, LONGEST, NULL, place, need, &generator, &error), BAD_SETTING,
            "dtype 2");
    /* Read in place: what is being written would be what is read. */
    memcpy(place, checkpoint, size);
    REFUSED(cllm_generator_create(place, size, 0, 0, LONGEST, NULL, place, need, &generator, &error), BAD_SETTING,
            "the checkpoint lies in the memory");
    CllmSampler odd;
#define REFUSES(field, value, part)                                                                                     \
    do {                                                                                                                \
        odd = cllm_sampler_default();                                                                                   \
        odd.field = value;                                                                                              \
        REFUSED(cllm_generator_create(checkpoint, size, 0, 0, LONGEST, &odd, place, need, &generator, &error),          \
                BAD_SETTING, part);                                                                                     \
    } while (0)
    REFUSES(temperature, -1, "temperature");
    REFUSES(temperature, NAN, "temperature");
    REFUSES(top_p, 1.5f, "top_p");
    REFUSES(min_p, -0.5f, "min_p");
    REFUSES(repetition_penalty, 0, "repetition_penalty");
    odd = cllm_sampler_default();
    odd.temperature = 0;
    DONE(cllm_generator_create(checkpoint, size, 0, 0, LONGEST, &odd, place, need, &generator, &error));
    float logits[VOCABULARY];
    REFUSED(cllm_generator_logits(generator, logits, VOCABULARY, &error), BAD_BATCH, "");
    REFUSED(cllm_generator_add(generator, tokens, SIZE_MAX, &error), TOO_SHORT, "24 is the longest");
    REFUSED(cllm_generator_add(generator, tokens, LONGEST + 1, &error), TOO_SHORT, "24 is the longest");
    /* Longer than the model's sequences, and the same text again. */
    uint32_t first[LONGEST], again[LONGEST];
    for (int turn = 0; turn < 2; turn++) {
        DONE(cllm_generator_add(generator, tokens, 2, &error));
        for (int i = 2; i < LONGEST; i++) DONE(cllm_generator_next(generator, turn ? &again[i] : &first[i], &error));
        DONE(cllm_generator_reset(generator, &error));
    }
    HOLDS(memcmp(first + 2, again + 2, sizeof first - 2 * sizeof *first) == 0);
    REFUSED(cllm_generator_next(generator, first, &error), BAD_BATCH, "");
    DONE(cllm_generator_destroy(generator, &error));
    free(place);
}

/* Weights too large to compute with: an evaluation says so by its loss, and nothing is chosen by such logits. */
static void broken_weights(CllmTrainer *trainer) {
    CllmLoss loss;
    DONE(cllm_trainer_accumulate(trainer, &batch, 0, NULL, &error));
    DONE(cllm_trainer_update(trainer, NULL, FLT_MAX, NULL, &error));
    DONE(cllm_trainer_evaluate(trainer, &batch, &loss, &error));
    HOLDS(!isfinite(loss.sum) && loss.counted == ALL);
    size_t size = 0, need = 0;
    uint8_t *checkpoint = saved(trainer, false, &size);
    DONE(cllm_generator_bytes(checkpoint, size, 0, 0, LONGEST, &need, &error));
    void *place = block(need);
    CllmGenerator *generator;
    DONE(cllm_generator_create(checkpoint, size, 0, 0, LONGEST, NULL, place, need, &generator, &error));
    DONE(cllm_generator_add(generator, tokens, 2, &error));
    uint32_t token = 77;
    REFUSED(cllm_generator_next(generator, &token, &error), NOT_FINITE, "the logit of token");
    HOLDS(token == 77);
    DONE(cllm_generator_destroy(generator, &error));
    free(place);
    free(checkpoint);
}

int main(void) {
    fill_text(tokens, targets, ALL);
    void *memory;
    CllmTrainer *trainer = created(CLLM_MODE_TRAIN, &memory);
    DONE(cllm_trainer_initialise(trainer, &error));
    for (int step = 0; step < 3; step++) {
        DONE(cllm_trainer_accumulate(trainer, &batch, 0, NULL, &error));
        DONE(cllm_trainer_update(trainer, NULL, 1e-2f, NULL, &error));
    }
    evaluators(trainer);
    batches(trainer);
    size_t size = 0;
    uint8_t *checkpoint = saved(trainer, false, &size);
    generators(checkpoint, size);
    broken_weights(trainer);
    DONE(cllm_trainer_destroy(trainer, &error));
    free(checkpoint);
    free(memory);
    return verdict();
}
