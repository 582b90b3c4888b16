/* What the tests share: calls that must be refused or done, and memory exactly as long as asked, so that valgrind and
 * sanitizers see a byte too many.
 */
#ifndef CRYSTALLINE_TESTS_COMMON_H
#define CRYSTALLINE_TESTS_COMMON_H

/* For posix_memalign and threads. */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../include/crystalline.h"

/* A set of instructions that this machine does not run. */
#ifdef __aarch64__
#define FOREIGN_ISA CLLM_ISA_AVX
#else
#define FOREIGN_ISA CLLM_ISA_NEON
#endif

/* Ids of the tests' models. */
enum { VOCABULARY = 40 };

/* So many tokens of a text, and what follows each. */
static inline void fill_text(uint32_t *tokens, uint32_t *targets, int count) {
    for (int i = 0; i < count; i++) {
        tokens[i] = (uint32_t)(i * 7 % VOCABULARY);
        targets[i] = (uint32_t)((i + 1) * 7 % VOCABULARY);
    }
}

static int failures;
static CllmError error;

/* The status is this one, and the words contain a part. */
static inline void refused(const char *file, int line, CllmStatus found, CllmStatus wanted, CllmError *words,
                           const char *part) {
    const char *text = (const char *)words->text;
    const bool ends = memchr(words->text, 0, CLLM_ERROR_BYTES) != NULL;
    if (!ends) words->text[CLLM_ERROR_BYTES - 1] = 0;
    /* There are words, whatever they are, for all that is not done. */
    if (found != wanted || !ends || strstr(text, part) == NULL || (wanted != CLLM_STATUS_OK && text[0] == 0)) {
        fprintf(stderr, "%s:%d: %s: \"%s\", not %s with \"%s\"\n", file, line, cllm_status_text(found), text,
                cllm_status_text(wanted), part);
        failures++;
    }
    memset(words, 'x', sizeof *words);
}

#define REFUSED(call, status, part) refused(__FILE__, __LINE__, call, CLLM_STATUS_##status, &error, part)
#define DONE(call)                                                                             \
    do {                                                                                       \
        if ((call) != CLLM_STATUS_OK || error.text[0] != 0) {                                  \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, (const char *)error.text);      \
            failures++;                                                                        \
        }                                                                                      \
    } while (0)
#define HOLDS(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);            \
            failures++;                                                                        \
        }                                                                                      \
    } while (0)

static inline void *block(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, CLLM_ALIGNMENT, bytes) != 0) {
        fprintf(stderr, "no memory of %zu bytes\n", bytes);
        exit(1);
    }
    return memory;
}

static inline int verdict(void) {
    if (failures > 0) fprintf(stderr, "%d failures\n", failures);
    return failures > 0;
}

#endif
