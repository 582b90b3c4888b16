/* Threads that sleep: a trainer whose caller and workers park on a condition variable, all of them on stacks of 64 KiB,
 * ends with the weights of one that is alone; and what has to go together for anybody to be woken. Ends with 0 if it is so.
 */
#include "common.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

enum { SEQUENCES = 4, TOKENS = 16, ALL = SEQUENCES * TOKENS, STEPS = 12, WORKERS = 2, STACK = 64 * 1024 };

static uint32_t tokens[ALL], targets[ALL];
static const CllmBatch BATCH = {.tokens = tokens, .targets = targets, .len = ALL};
static CllmModel model;

/* Where threads sleep. One condition is enough: who is woken for nothing looks again. */
typedef struct Lot {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    atomic_uint parked, asked;
} Lot;

static Lot lot = {.lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER};

static bool yields(void *context, uint32_t round) {
    (void)context;
    sched_yield();
    return round < 2;
}

static void parks(void *context, const uint32_t *word, uint32_t seen) {
    Lot *own = context;
    pthread_mutex_lock(&own->lock);
    /* Who changes the word wakes behind it, and cannot before this thread sleeps: it has the lock. */
    if (atomic_load((const _Atomic uint32_t *)word) == seen) {
        atomic_fetch_add(&own->parked, 1);
        pthread_cond_wait(&own->moved, &own->lock);
    }
    pthread_mutex_unlock(&own->lock);
}

static void wakes(void *context, const uint32_t *word) {
    Lot *own = context;
    (void)word;
    pthread_mutex_lock(&own->lock);
    pthread_cond_broadcast(&own->moved);
    pthread_mutex_unlock(&own->lock);
}

static bool leaves(void *context) {
    Lot *own = context;
    atomic_fetch_add(&own->asked, 1);
    return false;
}

static const CllmIdle SLEEPING = {.context = &lot, .pause = yields, .park = parks, .wake = wakes};

static CllmTrainer *trainer;

static void *created(uint32_t workers, const CllmIdle *idle) {
    const CllmPlan plan = {.sequences = SEQUENCES, .tokens = TOKENS, .workers = workers};
    size_t bytes = 0;
    DONE(cllm_trainer_bytes(&model, &plan, &bytes, &error));
    void *memory = block(bytes);
    DONE(cllm_trainer_create(&model, &plan, 5, idle, memory, bytes, &trainer, &error));
    DONE(cllm_trainer_initialise(trainer, &error));
    return memory;
}

static pthread_t on_a_small_stack(void *(*run)(void *), void *context) {
    pthread_attr_t small;
    pthread_t thread;
    if (pthread_attr_init(&small) != 0 || pthread_attr_setstacksize(&small, STACK) != 0 ||
        pthread_create(&thread, &small, run, context) != 0) {
        fprintf(stderr, "no thread with a stack of %d bytes\n", STACK);
        exit(1);
    }
    pthread_attr_destroy(&small);
    return thread;
}

static void *serve(void *status) {
    *(CllmStatus *)status = cllm_worker_run(trainer, &SLEEPING, NULL);
    return NULL;
}

static uint8_t *trained(size_t *size, bool slowly) {
    for (int step = 0; step < STEPS; step++) {
        DONE(cllm_trainer_accumulate(trainer, &BATCH, 0, NULL, &error));
        /* Time to fall asleep: on a busy machine a thread may not have begun by then. */
        for (int waited = 0; slowly && (waited < 2 || (waited < 20000 && atomic_load(&lot.parked) == 0)); waited++) {
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        }
        DONE(cllm_trainer_update(trainer, NULL, 1e-2f, NULL, &error));
    }
    DONE(cllm_trainer_saved_bytes(trainer, true, size, &error));
    uint8_t *checkpoint = malloc(*size);
    DONE(cllm_trainer_save(trainer, true, checkpoint, *size, NULL, &error));
    return checkpoint;
}

static void together(void) {
    size_t size = 0, same_size = 0;
    void *memory = created(1, NULL);
    uint8_t *alone = trained(&size, false);
    DONE(cllm_trainer_destroy(trainer, &error));
    free(memory);

    /* Who asks for a step is not asked whether it stays. */
    CllmIdle own = SLEEPING;
    own.stays = leaves;
    memory = created(WORKERS, &own);
    CllmStatus status[WORKERS];
    pthread_t threads[WORKERS];
    for (int i = 0; i < WORKERS; i++) threads[i] = on_a_small_stack(serve, &status[i]);
    uint8_t *same = trained(&same_size, true);
    HOLDS(size == same_size && memcmp(alone, same, size) == 0);
    HOLDS(atomic_load(&lot.parked) > 0);
    HOLDS(atomic_load(&lot.asked) == 0);
    /* Closing wakes them. */
    DONE(cllm_trainer_close(trainer, &error));
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(threads[i], NULL);
        HOLDS(status[i] == CLLM_STATUS_OK);
    }
    DONE(cllm_trainer_close(trainer, &error));
    DONE(cllm_trainer_destroy(trainer, &error));
    free(memory);

    /* And says what it has learnt. */
    size_t bytes = 0;
    DONE(cllm_generator_bytes(same, size, CLLM_ISA_BEST, CLLM_DTYPE_F32, TOKENS, &bytes, &error));
    memory = block(bytes);
    CllmGenerator *generator;
    DONE(cllm_generator_create(same, size, CLLM_ISA_BEST, CLLM_DTYPE_F32, TOKENS, NULL, memory, bytes, &generator, &error));
    DONE(cllm_generator_add(generator, tokens, 4, &error));
    uint32_t next = UINT32_MAX;
    for (int i = 4; i < TOKENS; i++) DONE(cllm_generator_next(generator, &next, &error));
    HOLDS(next < model.vocab_size);
    DONE(cllm_generator_destroy(generator, &error));
    free(memory);
    free(alone);
    free(same);
}

static void what_goes_together(void) {
    const CllmPlan plan = {.sequences = SEQUENCES, .tokens = TOKENS, .workers = 1};
    size_t bytes = 0;
    DONE(cllm_trainer_bytes(&model, &plan, &bytes, &error));
    void *memory = block(bytes);
    CllmIdle wrong = SLEEPING;
    wrong.wake = NULL;
    REFUSED(cllm_trainer_create(&model, &plan, 1, &wrong, memory, bytes, &trainer, &error), BAD_SETTING,
            "idle.park without idle.wake");
    wrong = SLEEPING;
    memset(&wrong.works, 2, sizeof wrong.works);
    REFUSED(cllm_trainer_create(&model, &plan, 1, &wrong, memory, bytes, &trainer, &error), BAD_SETTING,
            "idle.works is the byte 2");
    /* A worker that sleeps, of a trainer that wakes nobody; and the other way round. */
    DONE(cllm_trainer_create(&model, &plan, 1, NULL, memory, bytes, &trainer, &error));
    REFUSED(cllm_worker_run(trainer, &SLEEPING, &error), BAD_SETTING, "idle.wake");
    DONE(cllm_trainer_destroy(trainer, &error));
    DONE(cllm_trainer_create(&model, &plan, 1, &SLEEPING, memory, bytes, &trainer, &error));
    REFUSED(cllm_worker_run(trainer, NULL, &error), BAD_SETTING, "idle.wake");
    wrong = SLEEPING;
    memset(&wrong.works, 255, sizeof wrong.works);
    REFUSED(cllm_worker_run(trainer, &wrong, &error), BAD_SETTING, "idle.works is the byte 255");
    DONE(cllm_trainer_destroy(trainer, &error));
    free(memory);
}

static void *all(void *unused) {
    (void)unused;
    together();
    what_goes_together();
    return NULL;
}

int main(void) {
    model = cllm_model_gpt2(40, TOKENS, 2, 2, 32);
    fill_text(tokens, targets, ALL);
    pthread_join(on_a_small_stack(all, NULL), NULL);
    return verdict();
}
