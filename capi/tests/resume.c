/* A run that goes on from a checkpoint in another trainer is the same run, with dropout too; and a checkpoint is taken
 * by every trainer of the same model, however the model is said. Ends with 0 if it is so.
 */
#include "common.h"

enum { SEQUENCES = 2, TOKENS = 8, ALL = SEQUENCES * TOKENS, STEPS = 3 };

static uint32_t tokens[ALL], targets[ALL];
static const CllmBatch batch = {.tokens = tokens, .targets = targets, .len = ALL};
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

/* Steps of two batches each; gives the losses of all. */
static void stepped(CllmTrainer *trainer, double *losses) {
    for (int at = 0; at < 2 * STEPS; at++) {
        CllmLoss loss = {.sum = 0};
        DONE(cllm_trainer_accumulate(trainer, &batch, 2 * ALL, &loss, &error));
        losses[at] = loss.sum;
        if (at % 2 == 1) DONE(cllm_trainer_update(trainer, NULL, 1e-2f, NULL, &error));
    }
}

static void the_same_run(void) {
    CllmModel model = cllm_model_gpt2(40, TOKENS, 1, 2, 16);
    model.dropout = 0.5f;
    double losses[2 * STEPS], again[2 * STEPS];
    size_t bytes, same_bytes;
    Made first = made(&model, 7), second = made(&model, 99);
    DONE(cllm_trainer_initialise(first.trainer, &error));
    uint8_t *begun = saved(first.trainer, true, &bytes);
    stepped(first.trainer, losses);
    uint8_t *middle = saved(first.trainer, true, &bytes);
    stepped(first.trainer, losses);
    uint8_t *end = saved(first.trainer, true, &bytes);
    /* Of another seed until it loads. */
    DONE(cllm_trainer_initialise(second.trainer, &error));
    uint8_t *others = saved(second.trainer, true, &same_bytes);
    HOLDS(same_bytes == bytes && memcmp(begun, others, bytes) != 0);
    stepped(second.trainer, again);
    DONE(cllm_trainer_load(second.trainer, middle, bytes, &error));
    stepped(second.trainer, again);
    HOLDS(memcmp(losses, again, sizeof losses) == 0);
    uint8_t *same = saved(second.trainer, true, &same_bytes);
    HOLDS(same_bytes == bytes && memcmp(end, same, bytes) == 0);
    /* Without dropout it would be another run: the losses do depend on the seed. */
    model.dropout = 0;
    Made without = made(&model, 7);
    DONE(cllm_trainer_load(without.trainer, middle, bytes, &error));
    stepped(without.trainer, again);
    HOLDS(memcmp(losses, again, sizeof losses) != 0);
    ended(without);
    /* Who begins anew begins with the seed of the trainer's own. */
    DONE(cllm_trainer_initialise(second.trainer, &error));
    uint8_t *anew = saved(second.trainer, true, &same_bytes);
    HOLDS(same_bytes == bytes && memcmp(others, anew, bytes) == 0);
    ended(first);
    ended(second);
    free(begun);
    free(middle);
    free(end);
    free(others);
    free(same);
    free(anew);
}

/* A step of a model with an output projection of its own, by settings: the checkpoint behind it. */
static uint8_t *after_a_step(const CllmOptimizer *optimizer, size_t *bytes) {
    CllmModel untied = cllm_model_gpt2(40, TOKENS, 1, 2, 16);
    untied.tied = false;
    Made made_ = made(&untied, 7);
    DONE(cllm_trainer_initialise(made_.trainer, &error));
    DONE(cllm_trainer_accumulate(made_.trainer, &batch, 0, NULL, &error));
    DONE(cllm_trainer_update(made_.trainer, optimizer, 1e-2f, NULL, &error));
    uint8_t *checkpoint = saved(made_.trainer, true, bytes);
    ended(made_);
    return checkpoint;
}

/* Rates of tables and output projections: of 0, as who does not know of them has them, those of the rest. */
static void rates_of_their_own(void) {
    size_t bytes, same_bytes;
    CllmOptimizer optimizer = cllm_optimizer_default();
    uint8_t *usual = after_a_step(NULL, &bytes);
    for (int scale = 0; scale < 4; scale++) {
        optimizer.embedding_lr_scale = scale == 2 ? 0.5f : (float)(scale == 1);
        optimizer.head_lr_scale = scale == 3 ? 0.5f : (float)(scale == 1);
        uint8_t *other = after_a_step(&optimizer, &same_bytes);
        HOLDS(same_bytes == bytes && (memcmp(usual, other, bytes) == 0) == (scale < 2));
        free(other);
    }
    free(usual);
}

static void the_same_model(void) {
    CllmModel short_ = cllm_model_gpt2(40, TOKENS, 1, 2, 16), spelled = short_;
    spelled.n_kv_head = 2;
    spelled.head_size = 8;
    spelled.window = TOKENS;
    spelled.qkv_bias = true;
    spelled.embedding_scale = 0;
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
    CllmModel others[8] = {short_, short_, short_, short_, short_, short_, short_, short_};
    others[0].block_size = 2 * TOKENS;
    others[1].n_kv_head = 1;
    others[2].window = TOKENS / 2;
    others[3].head_size = 4;
    others[4].logit_softcap = 30;
    others[5].relu2 = true;
    others[6].previous_tokens = 2;
    others[7].embedding_scale = 2;
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

/* What a checkpoint says of its model makes a trainer that goes on with it, with every part that a run of `cllm` has. */
static void the_model_of_a_checkpoint(void) {
    CllmModel fast = cllm_model_llama(40, TOKENS, 2, 2, 1, 16, 64), told;
    fast.swiglu = false;
    fast.relu2 = true;
    fast.previous_tokens = 3;
    fast.qk_norm = true;
    fast.logit_softcap = 15;
    fast.embedding_scale = 8;
    double losses[2 * STEPS], again[2 * STEPS];
    size_t bytes, same_bytes;
    Made first = made(&fast, 7);
    DONE(cllm_trainer_initialise(first.trainer, &error));
    stepped(first.trainer, losses);
    uint8_t *middle = saved(first.trainer, true, &bytes);
    stepped(first.trainer, losses);
    DONE(cllm_checkpoint_model(middle, bytes, &told, &error));
    HOLDS(told.relu2 && !told.swiglu && told.previous_tokens == 3 && told.n_kv_head == 1);
    Made second = made(&told, 99);
    DONE(cllm_trainer_load(second.trainer, middle, bytes, &error));
    stepped(second.trainer, again);
    HOLDS(memcmp(losses, again, sizeof losses) == 0);
    uint8_t *end = saved(first.trainer, true, &bytes), *same = saved(second.trainer, true, &same_bytes);
    HOLDS(same_bytes == bytes && memcmp(end, same, bytes) == 0);
    ended(first);
    ended(second);
    free(middle);
    free(end);
    free(same);
}

int main(void) {
    fill_text(tokens, targets, ALL);
    the_same_run();
    rates_of_their_own();
    the_same_model();
    the_model_of_a_checkpoint();
    return verdict();
}
