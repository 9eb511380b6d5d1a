/* A function library in Gleaner's C ABI: state for each thread, errors, capacities. Compiled by tests with the system's cc. */
#include "gleaner_function.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int32_t make_total(struct gleaner_context *context, void **state) {
    (void)context;
    *state = calloc(1, sizeof(uint64_t));
    return *state ? 0 : 12;
}

static int32_t add(struct gleaner_context *context, const void *in, size_t in_len, void *out, size_t out_capacity,
                   size_t *out_len) {
    uint64_t *total = context->state, addend;
    if (in_len != sizeof addend) {
        snprintf(context->error, context->error_capacity, "%zu bytes are not 8", in_len);
        return 22;
    }
    memcpy(&addend, in, sizeof addend);
    *total += addend;
    *out_len = sizeof *total;
    if (out_capacity < sizeof *total) return 0;
    memcpy(out, total, sizeof *total);
    return 0;
}

static int32_t left(struct gleaner_context *context, const void *in, size_t in_len, void *out, size_t out_capacity,
                    size_t *out_len) {
    uint64_t answer[2] = {context->remaining_ns(context), (uint64_t)context->cancelled(context)};
    (void)in, (void)in_len;
    *out_len = sizeof answer;
    if (out_capacity >= sizeof answer) memcpy(out, answer, sizeof answer);
    return 0;
}

GLEANER_FUNCTION_WITH_STATE(add, add, make_total, free);
GLEANER_FUNCTION(left, left);
