/* Every setting: values that make no sense are refused, with words that name them, and numbers of enumerations are what
 * their names say. Ends with 0 if it is so.
 */
#include "common.h"

#include <math.h>

enum { SEQUENCES = 2, TOKENS = 8, ALL = SEQUENCES * TOKENS };

static uint32_t tokens[ALL], targets[ALL];
static const CllmBatch batch = {.tokens = tokens, .targets = targets, .len = ALL};
static const CllmPlan plan = {.sequences = SEQUENCES, .tokens = TOKENS, .workers = 1};

static void models(void) {
    const CllmModel model = cllm_model_gpt2(40, TOKENS, 1, 2, 16), llama = cllm_model_llama(40, TOKENS, 1, 4, 2, 16, 32);
    size_t bytes = 0;
    CllmModel odd;
#define REFUSES(of, field, value, part)                                                        \
    do {                                                                                       \
        odd = of;                                                                              \
        odd.field = value;                                                                     \
        REFUSED(cllm_trainer_bytes(&odd, &plan, &bytes, &error), BAD_SETTING, part);           \
    } while (0)
    REFUSES(model, vocab_size, 0, "vocab_size is 0");
    REFUSES(model, vocab_size, UINT32_MAX, "vocab_size");
    REFUSES(model, block_size, 0, "block_size");
    REFUSES(model, n_layer, 0, "n_layer");
    REFUSES(model, n_head, 0, "n_head");
    REFUSES(model, n_head, 3, "n_head 3");
    REFUSES(model, d_model, 0, "d_model");
    REFUSES(model, d_ff, 0, "d_ff");
    REFUSES(model, d_ff, UINT32_MAX, "");
    REFUSES(llama, n_kv_head, 3, "n_kv_head");
    REFUSES(llama, head_size, 3, "");
    REFUSES(llama, rope_theta, NAN, "theta of rotary");
    REFUSES(llama, rope_theta, -1, "theta of rotary");
    REFUSES(model, dropout, 1, "dropout");
    REFUSES(model, dropout, NAN, "dropout");
    REFUSES(model, dropout, -0.5f, "dropout");
    REFUSES(model, norm_eps, NAN, "norm_eps");
    REFUSES(model, norm_eps, -1, "norm_eps");
    REFUSES(model, logit_softcap, NAN, "softcap");
    REFUSES(model, logit_softcap, -30, "softcap");
    REFUSES(model, embedding_scale, -2, "embedding_scale");
    REFUSES(model, embedding_scale, NAN, "embedding_scale");
    REFUSES(llama, relu2, true, "swiglu and relu2");
    REFUSES(model, previous_tokens, UINT32_MAX, "previous_tokens");
    /* A boolean that is none, of each name. */
    static const char *const FLAGS[] = {"bias is the byte 2",     "qkv_bias is the byte 2", "qk_norm is the byte 2",
                                        "tied is the byte 2",     "rms_norm is the byte 2", "rotary is the byte 2",
                                        "swiglu is the byte 2",   "relu2 is the byte 2"};
    for (size_t i = 0; i < sizeof FLAGS / sizeof *FLAGS; i++) {
        odd = model;
        memset((char *)&odd.bias + i, 2, 1);
        REFUSED(cllm_trainer_bytes(&odd, &plan, &bytes, &error), BAD_SETTING, FLAGS[i]);
        memset((char *)&odd.bias + i, 255, 1);
        REFUSED(cllm_trainer_bytes(&odd, &plan, &bytes, &error), BAD_SETTING, "is the byte 255");
    }
    CllmPlan wrong = plan;
    wrong.sequences = 0;
    REFUSED(cllm_trainer_bytes(&model, &wrong, &bytes, &error), BAD_SETTING, "");
    wrong = plan;
    wrong.tokens = 0;
    REFUSED(cllm_trainer_bytes(&model, &wrong, &bytes, &error), BAD_SETTING, "");
    wrong = plan;
    wrong.workers = 0;
    REFUSED(cllm_trainer_bytes(&model, &wrong, &bytes, &error), BAD_SETTING, "worker");
    wrong = plan;
    wrong.tokens = TOKENS + 1;
    REFUSED(cllm_trainer_bytes(&model, &wrong, &bytes, &error), BAD_SETTING, "");
    wrong = plan;
    memset(&wrong.mode, 7, sizeof wrong.mode);
    REFUSED(cllm_trainer_bytes(&model, &wrong, &bytes, &error), BAD_SETTING, "mode");
    wrong = plan;
    memset(&wrong.isa, 9, sizeof wrong.isa);
    REFUSED(cllm_trainer_bytes(&model, &wrong, &bytes, &error), BAD_SETTING, "isa");
    wrong = plan;
    wrong.isa = FOREIGN_ISA;
    REFUSED(cllm_trainer_bytes(&model, &wrong, &bytes, &error), NO_SUCH_ISA, "this machine does not run");
    wrong = plan;
    memset(&wrong.dtype, 2, sizeof wrong.dtype);
    REFUSED(cllm_trainer_bytes(&model, &wrong, &bytes, &error), BAD_SETTING, "dtype");
    wrong = plan;
    memset(&wrong.updater, 4, sizeof wrong.updater);
    REFUSED(cllm_trainer_bytes(&model, &wrong, &bytes, &error), BAD_SETTING, "updater");
    /* Creation looks at them too. */
    DONE(cllm_trainer_bytes(&model, &plan, &bytes, &error));
    void *memory = block(bytes);
    CllmTrainer *trainer;
    odd = model;
    odd.n_head = 3;
    REFUSED(cllm_trainer_create(&odd, &plan, 1, NULL, memory, bytes, &trainer, &error), BAD_SETTING, "n_head 3");
    wrong = plan;
    wrong.isa = FOREIGN_ISA;
    REFUSED(cllm_trainer_create(&model, &wrong, 1, NULL, memory, bytes, &trainer, &error), NO_SUCH_ISA, "does not run");
    free(memory);
}

typedef struct Result {
    size_t bytes;
    double loss;
} Result;

/* The bytes of a plan, and the loss behind three steps. */
static Result trained(CllmPlan wanted) {
    const CllmModel model = cllm_model_gpt2(40, TOKENS, 3, 2, 32);
    Result result = {.bytes = 0};
    DONE(cllm_trainer_bytes(&model, &wanted, &result.bytes, &error));
    void *memory = block(result.bytes);
    CllmTrainer *trainer;
    CllmLoss loss = {.sum = NAN};
    DONE(cllm_trainer_create(&model, &wanted, 1, NULL, memory, result.bytes, &trainer, &error));
    DONE(cllm_trainer_initialise(trainer, &error));
    for (int step = 0; step < 3; step++) {
        DONE(cllm_trainer_accumulate(trainer, &batch, 0, NULL, &error));
        DONE(cllm_trainer_update(trainer, NULL, 1e-2f, NULL, &error));
    }
    DONE(cllm_trainer_evaluate(trainer, &batch, &loss, &error));
    DONE(cllm_trainer_destroy(trainer, &error));
    free(memory);
    result.loss = loss.sum;
    return result;
}

static void enumerations(void) {
    const Result usual = trained(plan);
    HOLDS(usual.loss > 0);
    CllmPlan other = plan;
    other.mode = CLLM_MODE_RECOMPUTE;
    const Result recomputed = trained(other);
    HOLDS(recomputed.bytes < usual.bytes && recomputed.loss == usual.loss);
    other = plan;
    other.dtype = CLLM_DTYPE_BF16;
    const Result half = trained(other);
    HOLDS(half.loss != usual.loss && fabs(half.loss / usual.loss - 1) < 0.02);
    /* By what is kept for each weight. */
    static const CllmUpdater SIZES[] = {CLLM_UPDATER_SGD, CLLM_UPDATER_ADAM_W8, CLLM_UPDATER_MOMENTUM, CLLM_UPDATER_MUON,
                                        CLLM_UPDATER_ADAM_W};
    Result results[5];
    for (int i = 0; i < 5; i++) {
        other = plan;
        other.updater = SIZES[i];
        results[i] = trained(other);
        HOLDS(i == 0 || results[i].bytes > results[i - 1].bytes);
        for (int before = 0; before < i; before++) HOLDS(results[before].loss != results[i].loss);
    }
    HOLDS(results[4].loss == usual.loss);
    /* Those of this machine train, the others are refused by their names. */
    static const char *const NAMES[] = {"scalar", "avx", "avx2", "avx512", "amx", "neon"};
    int runs = 0;
    for (int isa = CLLM_ISA_SCALAR; isa <= CLLM_ISA_NEON; isa++) {
        const CllmModel model = cllm_model_gpt2(40, TOKENS, 1, 2, 16);
        size_t bytes = 0;
        other = plan;
        other.isa = (CllmIsa)isa;
        if (cllm_trainer_bytes(&model, &other, &bytes, NULL) == CLLM_STATUS_OK) {
            runs++;
            HOLDS(fabs(trained(other).loss / usual.loss - 1) < 1e-3);
        } else {
            char words[64];
            snprintf(words, sizeof words, "this machine does not run %s", NAMES[isa - 1]);
            REFUSED(cllm_trainer_bytes(&model, &other, &bytes, &error), NO_SUCH_ISA, words);
        }
    }
    HOLDS(runs > 0);
}

static void steps(void) {
    const CllmModel model = cllm_model_llama(40, TOKENS, 1, 2, 2, 16, 32);
    size_t bytes = 0;
    DONE(cllm_trainer_bytes(&model, &plan, &bytes, &error));
    void *memory = block(bytes);
    CllmTrainer *trainer;
    DONE(cllm_trainer_create(&model, &plan, 1, NULL, memory, bytes, &trainer, &error));
    DONE(cllm_trainer_initialise(trainer, &error));
    REFUSED(cllm_trainer_accumulate(trainer, &batch, ALL - 1, NULL, &error), BAD_BATCH, "counted_in_step is 15");
    REFUSED(cllm_trainer_accumulate(trainer, &batch, 1, NULL, &error), BAD_BATCH, "has 16 that count");
    DONE(cllm_trainer_accumulate(trainer, &batch, ALL, NULL, &error));
    CllmOptimizer odd;
#define REFUSES_OF(field, value, part)                                                              \
    do {                                                                                            \
        odd = cllm_optimizer_default();                                                             \
        odd.field = value;                                                                          \
        REFUSED(cllm_trainer_update(trainer, &odd, 1e-3f, NULL, &error), BAD_SETTING, part);        \
    } while (0)
    REFUSES_OF(beta1, -0.1f, "beta1");
    REFUSES_OF(beta2, 1, "beta2");
    REFUSES_OF(beta2, NAN, "beta2");
    REFUSES_OF(eps, -1, "eps");
    REFUSES_OF(weight_decay, -1, "weight_decay");
    REFUSES_OF(weight_decay, INFINITY, "weight_decay");
    REFUSES_OF(embedding_lr_scale, -1, "embedding_lr_scale");
    REFUSES_OF(embedding_lr_scale, NAN, "embedding_lr_scale");
    REFUSES_OF(head_lr_scale, INFINITY, "head_lr_scale");
    REFUSES_OF(grad_clip, -1, "grad_clip");
    REFUSES_OF(grad_clip, NAN, "grad_clip");
    REFUSED(cllm_trainer_update(trainer, NULL, INFINITY, NULL, &error), BAD_SETTING, "learning rate");
    /* A step that was refused so often is one all the same; then one so long that gradients cannot be computed. */
    DONE(cllm_trainer_update(trainer, NULL, 1e20f, NULL, &error));
    CllmLoss loss;
    size_t size = 0;
    DONE(cllm_trainer_saved_bytes(trainer, true, &size, &error));
    uint8_t *before = malloc(size), *after = malloc(size);
    DONE(cllm_trainer_save(trainer, true, before, size, NULL, &error));
    DONE(cllm_trainer_accumulate(trainer, &batch, 0, &loss, &error));
    REFUSED(cllm_trainer_update(trainer, NULL, 1e-3f, NULL, &error), NOT_FINITE, "gradient");
    DONE(cllm_trainer_save(trainer, true, after, size, NULL, &error));
    HOLDS(memcmp(before, after, size) == 0);
    REFUSED(cllm_trainer_update(trainer, NULL, 1e-3f, NULL, &error), WRONG_MODE, "gradient");
    /* A step that is begun is left by whoever takes other weights. */
    DONE(cllm_trainer_initialise(trainer, &error));
    DONE(cllm_trainer_accumulate(trainer, &batch, 0, &loss, &error));
    DONE(cllm_trainer_initialise(trainer, &error));
    REFUSED(cllm_trainer_update(trainer, NULL, 1e-3f, NULL, &error), WRONG_MODE, "gradient");
    DONE(cllm_trainer_accumulate(trainer, &batch, 0, &loss, &error));
    DONE(cllm_trainer_load(trainer, before, size, &error));
    REFUSED(cllm_trainer_update(trainer, NULL, 1e-3f, NULL, &error), WRONG_MODE, "gradient");
    DONE(cllm_trainer_destroy(trainer, &error));
    free(before);
    free(after);
    free(memory);
}

int main(void) {
    fill_text(tokens, targets, ALL);
    models();
    enumerations();
    steps();
    return verdict();
}
