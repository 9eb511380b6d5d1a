/* gleaner_function.h - what a function library for Gleaner exports, in C.
 *
 * A function NAME is a constant `gleaner_fn_NAME` of type struct gleaner_function; GLEANER_FUNCTION(NAME) defines one. The
 * worker calls it on one thread for each leased core, never two calls at once on the same thread. Compile with
 * `cc -shared -fPIC`. A library may instead export plain functions of rFaaS's form, which need no header:
 *
 *     uint32_t f(void *in, uint32_t size, void *out);
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef GLEANER_FUNCTION_H
#define GLEANER_FUNCTION_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GLEANER_FUNCTION_ABI 1u

/* What a call may know. Valid during the call only. */
struct gleaner_context {
    uint32_t abi_version;      /* GLEANER_FUNCTION_ABI */
    uint32_t lane;             /* this thread's number in the lease, below lanes */
    uint32_t lanes;            /* threads of the lease: one for each leased core */
    uint32_t reserved;
    uint64_t invocation;       /* the caller's number of this call */
    void *state;               /* what init stored for this thread; NULL without init */
    char *error;               /* write a message for people here, ended by 0, before returning an error */
    size_t error_capacity;     /* bytes there */
    /* Nanoseconds that the caller still leaves; UINT64_MAX without a bound, 0 when they are over. */
    uint64_t (*remaining_ns)(const struct gleaner_context *);
    /* Not 0 once the caller has given up on this call. */
    int32_t (*cancelled)(const struct gleaner_context *);
};

struct gleaner_function {
    uint32_t abi_version;      /* GLEANER_FUNCTION_ABI */
    uint32_t flags;            /* 0 */
    /* One call: reads in, writes at most out_capacity bytes to out and their number to *out_len. Returns 0, or an error code
     * of its own. With a return of 0 and *out_len above out_capacity, the caller learns that the reply was too large. */
    int32_t (*invoke)(struct gleaner_context *, const void *in, size_t in_len, void *out, size_t out_capacity,
                      size_t *out_len);
    /* Once a thread before its first call, or NULL: stores what the calls find in context->state. Not 0: an error code, and
     * the call that needed it fails with it; the next call tries again. */
    int32_t (*init)(struct gleaner_context *, void **state);
    /* Once a thread when the lease ends in order, or NULL. An evicted worker is killed without it. */
    void (*fini)(void *state);
};

#define GLEANER_FUNCTION_WITH_STATE(NAME, INVOKE, INIT, FINI)                                          \
    __attribute__((visibility("default"))) extern const struct gleaner_function gleaner_fn_##NAME;     \
    const struct gleaner_function gleaner_fn_##NAME = {GLEANER_FUNCTION_ABI, 0, INVOKE, INIT, FINI}

#define GLEANER_FUNCTION(NAME, INVOKE) GLEANER_FUNCTION_WITH_STATE(NAME, INVOKE, NULL, NULL)

#ifdef __cplusplus
}
#endif
#endif
