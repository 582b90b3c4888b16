/* Trains a model of bytes with POSIX threads as workers, saves it, and lets it speak.
 *
 * Everything lies in memory of this program: one block for the trainer, one for the checkpoint, one for the
 * generator. Ends with 0 only if the loss fell and the weights are those of other runs: without workers, and with
 * the calling thread in the place of one of them.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../include/crystalline.h"

#define WORKERS 2
#define SEQUENCES 4
#define TOKENS 32

static const char TEXT[] = "the quick brown fox jumps over the lazy dog, and the lazy dog sleeps on. ";

/* Says what went wrong, and ends. */
static void must(CllmStatus status, const CllmError *error) {
    if (status != CLLM_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", cllm_status_text(status), (const char *)error->text);
        exit(1);
    }
}

static void *block(size_t bytes) {
    void *memory = aligned_alloc(CLLM_ALIGNMENT, (bytes + CLLM_ALIGNMENT - 1) / CLLM_ALIGNMENT * CLLM_ALIGNMENT);
    if (memory == NULL) {
        fprintf(stderr, "no memory of %zu bytes\n", bytes);
        exit(1);
    }
    return memory;
}

/* Threads that wait let others have the core. None ever sleeps, so none is woken. */
static bool yield(void *context, uint32_t round) {
    (void)context;
    (void)round;
    sched_yield();
    return true;
}

static const CllmIdle IDLE = {.pause = yield};
/* As one who asks for steps and works on them too. */
static const CllmIdle WORKING = {.pause = yield, .works = true};

static void *work(void *trainer) {
    CllmError error;
    must(cllm_worker_run(trainer, &IDLE, &error), &error);
    return NULL;
}

static void fill(int step, uint32_t *tokens, uint32_t *targets) {
    size_t len = sizeof TEXT - 1;
    for (int i = 0; i < SEQUENCES * TOKENS; i++) {
        size_t at = (size_t)step * 61 + (size_t)(i / TOKENS) * 53 + (size_t)(i % TOKENS);
        tokens[i] = (unsigned char)TEXT[at % len];
        targets[i] = (unsigned char)TEXT[(at + 1) % len];
    }
}

/* Trains with so many threads beside the calling one, which waits as `idle` says, and gives the checkpoint, whose bytes the caller frees. */
static uint8_t *train(int workers, const CllmIdle *idle, int steps, size_t *bytes) {
    CllmError error;
    CllmModel model = cllm_model_gpt2(256, TOKENS, 2, 2, 32);
    CllmPlan plan = {.sequences = SEQUENCES, .tokens = TOKENS, .workers = WORKERS};
    size_t need;
    must(cllm_trainer_bytes(&model, &plan, &need, &error), &error);
    void *memory = block(need);
    CllmTrainer *trainer;
    must(cllm_trainer_create(&model, &plan, 42, idle, memory, need, &trainer, &error), &error);
    must(cllm_trainer_initialise(trainer, &error), &error);
    pthread_t threads[WORKERS];
    for (int i = 0; i < workers; i++) {
        if (pthread_create(&threads[i], NULL, work, trainer) != 0) {
            fprintf(stderr, "no thread\n");
            exit(1);
        }
    }
    double first = 0, last = 0;
    for (int step = 0; step < steps; step++) {
        uint32_t tokens[SEQUENCES * TOKENS], targets[SEQUENCES * TOKENS];
        fill(step, tokens, targets);
        CllmBatch batch = {.tokens = tokens, .targets = targets, .len = SEQUENCES * TOKENS};
        CllmLoss loss;
        must(cllm_trainer_accumulate(trainer, &batch, 0, &loss, &error), &error);
        must(cllm_trainer_update(trainer, NULL, 1e-2f, NULL, &error), &error);
        last = loss.sum / (double)loss.counted;
        if (step == 0) first = last;
        if (workers == WORKERS && (step + 1) % 40 == 0) printf("step %3d  loss %.3f\n", step + 1, last);
    }
    must(cllm_trainer_saved_bytes(trainer, true, bytes, &error), &error);
    uint8_t *checkpoint = block(*bytes);
    must(cllm_trainer_save(trainer, true, checkpoint, *bytes, NULL, &error), &error);
    must(cllm_trainer_close(trainer, &error), &error);
    for (int i = 0; i < workers; i++) pthread_join(threads[i], NULL);
    must(cllm_trainer_destroy(trainer, &error), &error);
    free(memory);
    if (!(last < first - (steps < 100 ? 0.1 : 1.0))) {
        fprintf(stderr, "nothing was learnt: %f to %f\n", first, last);
        exit(1);
    }
    return checkpoint;
}

int main(int argc, char **argv) {
    int steps = argc > 1 ? atoi(argv[1]) : 120;
    size_t bytes;
    uint8_t *checkpoint = train(WORKERS, &IDLE, steps, &bytes);
    for (int workers = 0; workers < WORKERS; workers++) {
        size_t other_bytes;
        uint8_t *other = train(workers, workers > 0 ? &WORKING : &IDLE, steps, &other_bytes);
        if (bytes != other_bytes || memcmp(checkpoint, other, bytes) != 0) {
            fprintf(stderr, "other weights with %d workers\n", workers);
            return 1;
        }
        free(other);
    }

    CllmError error;
    size_t need;
    must(cllm_generator_bytes(checkpoint, bytes, CLLM_ISA_BEST, CLLM_DTYPE_F32, 64, &need, &error), &error);
    void *memory = block(need);
    CllmGenerator *generator;
    CllmSampler greedy = cllm_sampler_default();
    greedy.temperature = 0;
    must(cllm_generator_create(checkpoint, bytes, CLLM_ISA_BEST, CLLM_DTYPE_F32, 64, &greedy, memory, need,
                               &generator, &error),
         &error);
    free(checkpoint);
    const uint32_t prompt[] = {'t', 'h', 'e', ' '};
    must(cllm_generator_add(generator, prompt, 4, &error), &error);
    printf("the ");
    for (int i = 0; i < 60; i++) {
        uint32_t token;
        must(cllm_generator_next(generator, &token, &error), &error);
        putchar((int)token);
    }
    putchar('\n');
    must(cllm_generator_destroy(generator, &error), &error);
    free(memory);
    return 0;
}
