/* A checkpoint is taken by every trainer of the same model, however the model is said. Ends with 0 if it is so.
 */
#include "common.h"

enum { SEQUENCES = 2, TOKENS = 8 };

static const CllmPlan plan = {.sequences = SEQUENCES, .tokens = TOKENS, .workers = 1};

typedef struct Made {
    void *memory;
    CllmTrainer *trainer;
} Made;

static Made made(const CllmModel *model, uint64_t seed) {
    size_t bytes = 0;
    DONE(cllm_trainer_bytes(model, &plan, &bytes, &error));
    Made made = {.memory = block(bytes)};
    DONE(cllm_trainer_create(model, &plan, seed, NULL, made.memory, bytes, &made.trainer, &error));
    return made;
}

static void ended(Made made) {
    DONE(cllm_trainer_destroy(made.trainer, &error));
    free(made.memory);
}

static uint8_t *saved(CllmTrainer *trainer, bool moments, size_t *bytes) {
    DONE(cllm_trainer_saved_bytes(trainer, moments, bytes, &error));
    uint8_t *checkpoint = malloc(*bytes);
    DONE(cllm_trainer_save(trainer, moments, checkpoint, *bytes, NULL, &error));
    return checkpoint;
}

static void the_same_model(void) {
    CllmModel short_ = cllm_model_gpt2(40, TOKENS, 1, 2, 16), spelled = short_;
    spelled.n_kv_head = 2;
    spelled.head_size = 8;
    spelled.window = TOKENS;
    spelled.qkv_bias = true;
    size_t bytes, same_bytes;
    Made first = made(&short_, 7), second = made(&spelled, 7);
    DONE(cllm_trainer_initialise(first.trainer, &error));
    DONE(cllm_trainer_initialise(second.trainer, &error));
    uint8_t *checkpoint = saved(first.trainer, true, &bytes), *same = saved(second.trainer, true, &same_bytes);
    /* They say the same in the same words, as `cllm`, which compares them, wants it. */
    HOLDS(bytes == same_bytes && memcmp(checkpoint, same, bytes) == 0);
    DONE(cllm_trainer_load(second.trainer, checkpoint, bytes, &error));
    DONE(cllm_trainer_load(first.trainer, same, bytes, &error));
    /* Every one of these makes another model. */
    CllmModel others[5] = {short_, short_, short_, short_, short_};
    others[0].block_size = 2 * TOKENS;
    others[1].n_kv_head = 1;
    others[2].window = TOKENS / 2;
    others[3].head_size = 4;
    others[4].logit_softcap = 30;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        Made other = made(&others[i], 7);
        REFUSED(cllm_trainer_load(other.trainer, checkpoint, bytes, &error), BAD_CHECKPOINT, "another model");
        ended(other);
    }
    /* Dropout does not. */
    CllmModel dropping = short_;
    dropping.dropout = 0.5f;
    Made other = made(&dropping, 7);
    DONE(cllm_trainer_load(other.trainer, checkpoint, bytes, &error));
    ended(other);
    ended(first);
    ended(second);
    free(checkpoint);
    free(same);
}

int main(void) {
    the_same_model();
    return verdict();
}
