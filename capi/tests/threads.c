/* Who is sent away while other threads are with a trainer: a second caller, a thread without a seat, and who destroys
 * it too early. Ends with 0 if all are, and the trainer goes on.
 */
#include "common.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

/* Some milliseconds of work a step, so that threads do meet. */
enum { SEQUENCES = 4, TOKENS = 32, ALL = SEQUENCES * TOKENS };

static uint32_t tokens[ALL], targets[ALL];
static const CllmBatch BATCH = {.tokens = tokens, .targets = targets, .len = ALL};
static const CllmModel *model;
static CllmTrainer *trainer;

static void *created(uint32_t workers, const CllmIdle *idle) {
    const CllmPlan plan = {.sequences = SEQUENCES, .tokens = TOKENS, .workers = workers};
    size_t bytes = 0;
    DONE(cllm_trainer_bytes(model, &plan, &bytes, &error));
    void *memory = block(bytes);
    DONE(cllm_trainer_create(model, &plan, 1, idle, memory, bytes, &trainer, &error));
    DONE(cllm_trainer_initialise(trainer, &error));
    return memory;
}

static void started(pthread_t *thread, void *(*run)(void *), void *context) {
    if (pthread_create(thread, NULL, run, context) != 0) {
        fprintf(stderr, "no thread\n");
        exit(1);
    }
}

/* A thread that serves, and what came of it. A worker that is held says in `pause` that it is there, and stays there. */
typedef struct Server {
    pthread_t thread;
    atomic_bool held, there, back;
    CllmStatus status;
} Server;

static bool waits(void *context, uint32_t round) {
    Server *server = context;
    (void)round;
    atomic_store(&server->there, true);
    do sched_yield();
    while (atomic_load(&server->held));
    return true;
}

static void *serve(void *context) {
    Server *server = context;
    const CllmIdle idle = {.context = server, .pause = waits};
    server->status = cllm_worker_run(trainer, &idle, NULL);
    atomic_store(&server->back, true);
    return NULL;
}

/* Every call with a trainer but that of workers, from a thread that must not be there now. */
static void *intrude(void *unused) {
    CllmError own;
    CllmLoss loss;
    size_t bytes;
    uint8_t byte = 0;
    (void)unused;
#define AWAY(call) refused(__FILE__, __LINE__, call, CLLM_STATUS_BUSY, &own, "in a call with this trainer")
    AWAY(cllm_trainer_initialise(trainer, &own));
    AWAY(cllm_trainer_accumulate(trainer, &BATCH, 0, &loss, &own));
    AWAY(cllm_trainer_update(trainer, NULL, 1e-3f, NULL, &own));
    AWAY(cllm_trainer_evaluate(trainer, &BATCH, &loss, &own));
    AWAY(cllm_trainer_load(trainer, &byte, 1, &own));
    AWAY(cllm_trainer_saved_bytes(trainer, true, &bytes, &own));
    AWAY(cllm_trainer_save(trainer, true, &byte, 1, NULL, &own));
    AWAY(cllm_trainer_close(trainer, &own));
    AWAY(cllm_trainer_destroy(trainer, &own));
    return NULL;
}

/* The calling thread waits for a worker that is held: others come meanwhile, it itself among them. */
static bool intruded(void *context, uint32_t round) {
    Server *server = context;
    (void)round;
    if (atomic_load(&server->held)) {
        pthread_t other;
        intrude(NULL);
        started(&other, intrude, NULL);
        pthread_join(other, NULL);
        atomic_store(&server->held, false);
    }
    sched_yield();
    return true;
}

static void busy_and_full(void) {
    Server server = {.held = true};
    const CllmIdle idle = {.context = &server, .pause = intruded};
    void *memory = created(1, &idle);
    started(&server.thread, serve, &server);
    while (!atomic_load(&server.there)) sched_yield();
    REFUSED(cllm_worker_run(trainer, NULL, &error), FULL, "all 1 seats");
    REFUSED(cllm_trainer_destroy(trainer, &error), BUSY, "threads in cllm_worker_run: 1");
    CllmLoss loss, same;
    DONE(cllm_trainer_accumulate(trainer, &BATCH, 0, &loss, &error));
    HOLDS(!atomic_load(&server.held));
    /* What was sent away has changed nothing. */
    DONE(cllm_trainer_evaluate(trainer, &BATCH, &same, &error));
    HOLDS(loss.sum == same.sum && loss.counted == same.counted);
    DONE(cllm_trainer_update(trainer, NULL, 1e-3f, NULL, &error));
    DONE(cllm_trainer_close(trainer, &error));
    pthread_join(server.thread, NULL);
    HOLDS(server.status == CLLM_STATUS_OK);
    DONE(cllm_trainer_destroy(trainer, &error));
    free(memory);
}

/* A thread that comes while the calling one, which works too, sits on the last seat: it waits for that seat. */
static Server late;
static bool has_come;

static bool joined(void *unused, uint32_t round) {
    (void)unused;
    (void)round;
    if (!has_come) {
        has_come = true;
        started(&late.thread, serve, &late);
        while (!atomic_load(&late.there) && !atomic_load(&late.back)) sched_yield();
    }
    sched_yield();
    return true;
}

static void queueing(void) {
    Server first = {.held = false};
    const CllmIdle idle = {.pause = joined, .works = true};
    void *memory = created(2, &idle);
    atomic_store(&late.held, true);
    started(&first.thread, serve, &first);
    /* Until the calling thread has once waited for a tile of the other's. */
    for (int step = 0; step < 1000000 && !has_come; step++) {
        DONE(cllm_trainer_accumulate(trainer, &BATCH, 0, NULL, &error));
        DONE(cllm_trainer_update(trainer, NULL, 1e-6f, NULL, &error));
    }
    HOLDS(has_come && atomic_load(&late.there));
    DONE(cllm_trainer_close(trainer, &error));
    pthread_join(first.thread, NULL);
    /* No seat is taken, but the thread that waited for one is still there. */
    REFUSED(cllm_trainer_destroy(trainer, &error), BUSY, "threads in cllm_worker_run: 1");
    atomic_store(&late.held, false);
    pthread_join(late.thread, NULL);
    HOLDS(late.status == CLLM_STATUS_OK || late.status == CLLM_STATUS_WRONG_MODE);
    DONE(cllm_trainer_destroy(trainer, &error));
    REFUSED(cllm_worker_run(trainer, NULL, &error), NOT_A_HANDLE, "destroyed");
    free(memory);
}

int main(void) {
    const CllmModel own = cllm_model_gpt2(40, TOKENS, 2, 4, 64);
    model = &own;
    fill_text(tokens, targets, ALL);
    busy_and_full();
    queueing();
    return verdict();
}
