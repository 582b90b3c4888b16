/* Trains inside a runtime that has a scheduler of its own: cores that take jobs from a queue. Serving the trainer is one
 * of the jobs. A core that serves leaves as soon as another job waits, does it, and takes the job of serving up again;
 * so training uses what the runtime's own work leaves.
 *
 * Ends with 0 only if all jobs were done while the model was trained, and the loss fell.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../include/crystalline.h"

#define CORES 2
#define JOBS 400
#define TOKENS 32
#define SEQUENCES 4

/* ---- The runtime: jobs in a ring, cores that run them. ---- */

typedef struct Job {
    void (*run)(void *);
    void *context;
} Job;

static Job ring[1024];
static unsigned head, tail;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint waiting;
static atomic_bool over;

static void submit(void (*run)(void *), void *context) {
    pthread_mutex_lock(&lock);
    ring[tail++ % 1024] = (Job){run, context};
    atomic_fetch_add(&waiting, 1);
    pthread_mutex_unlock(&lock);
}

static bool take(Job *job) {
    pthread_mutex_lock(&lock);
    bool there = head != tail;
    if (there) {
        *job = ring[head++ % 1024];
        atomic_fetch_sub(&waiting, 1);
    }
    pthread_mutex_unlock(&lock);
    return there;
}

static void *core(void *unused) {
    (void)unused;
    Job job;
    while (!atomic_load(&over)) {
        if (take(&job))
            job.run(job.context);
        else
            sched_yield();
    }
    return NULL;
}

/* ---- Serving the trainer, as a job. ---- */

static atomic_uint visits;

static bool pause_core(void *context, uint32_t round) {
    (void)context;
    (void)round;
    sched_yield();
    return true;
}

/* Asked between steps: a core stays while no other job waits. */
static bool stays(void *context) {
    (void)context;
    return atomic_load(&waiting) == 0 && !atomic_load(&over);
}

static const CllmIdle IDLE = {.pause = pause_core, .stays = stays};

static void serve(void *trainer) {
    CllmError error;
    CllmStatus status = cllm_worker_run(trainer, &IDLE, &error);
    atomic_fetch_add(&visits, 1);
    if (status == CLLM_STATUS_OK && !atomic_load(&over)) {
        submit(serve, trainer);
    } else if (status != CLLM_STATUS_OK && status != CLLM_STATUS_WRONG_MODE && status != CLLM_STATUS_FULL) {
        fprintf(stderr, "%s\n", (const char *)error.text);
        exit(1);
    }
}

/* ---- The runtime's own work. ---- */

static atomic_uint done;

static void count(void *context) {
    volatile unsigned sum = 0;
    for (unsigned i = 0; i < 20000; i++) sum += i;
    (void)context;
    atomic_fetch_add(&done, 1);
}

static void must(CllmStatus status, const CllmError *error) {
    if (status != CLLM_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", cllm_status_text(status), (const char *)error->text);
        exit(1);
    }
}

int main(int argc, char **argv) {
    int steps = argc > 1 ? atoi(argv[1]) : 100;
    const char text[] = "the quick brown fox jumps over the lazy dog, and the lazy dog sleeps on. ";
    CllmError error;
    CllmModel model = cllm_model_llama(256, TOKENS, 2, 4, 2, 32, 64);
    CllmPlan plan = {.sequences = SEQUENCES, .tokens = TOKENS, .workers = CORES};
    size_t bytes;
    must(cllm_trainer_bytes(&model, &plan, &bytes, &error), &error);
    void *memory = aligned_alloc(CLLM_ALIGNMENT, bytes);
    CllmTrainer *trainer;
    must(cllm_trainer_create(&model, &plan, 7, NULL, memory, bytes, &trainer, &error), &error);
    must(cllm_trainer_initialise(trainer, &error), &error);

    pthread_t cores[CORES];
    for (int i = 0; i < CORES; i++) {
        if (pthread_create(&cores[i], NULL, core, NULL) != 0) return 1;
        submit(serve, trainer);
    }
    double first = 0, last = 0;
    unsigned submitted = 0;
    for (int step = 0; step < steps; step++) {
        for (; submitted < (unsigned)(step + 1) * JOBS / (unsigned)steps; submitted++) submit(count, NULL);
        uint32_t tokens[SEQUENCES * TOKENS], targets[SEQUENCES * TOKENS];
        for (int i = 0; i < SEQUENCES * TOKENS; i++) {
            size_t at = (size_t)step * 61 + (size_t)(i / TOKENS) * 53 + (size_t)(i % TOKENS);
            tokens[i] = (unsigned char)text[at % (sizeof text - 1)];
            targets[i] = (unsigned char)text[(at + 1) % (sizeof text - 1)];
        }
        CllmBatch batch = {.tokens = tokens, .targets = targets, .len = SEQUENCES * TOKENS};
        CllmLoss loss;
        must(cllm_trainer_accumulate(trainer, &batch, 0, &loss, &error), &error);
        must(cllm_trainer_update(trainer, NULL, 1e-2f, NULL, &error), &error);
        last = loss.sum / (double)loss.counted;
        if (step == 0) first = last;
    }
    while (atomic_load(&done) < JOBS) sched_yield();
    atomic_store(&over, true);
    must(cllm_trainer_close(trainer, &error), &error);
    for (int i = 0; i < CORES; i++) pthread_join(cores[i], NULL);
    must(cllm_trainer_destroy(trainer, &error), &error);
    free(memory);
    printf("loss %.3f to %.3f, %u jobs meanwhile, %u visits to the trainer\n", first, last, atomic_load(&done),
           atomic_load(&visits));
    return !(last < first && atomic_load(&done) == JOBS && atomic_load(&visits) > CORES);
}
