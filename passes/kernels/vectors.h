/* Vectors of the level's width, and how rows of a strided tensor get into their lanes. The sparse kernels are written once, with GCC's vector
 * types; products and sums are contracted into fused multiply-adds here (setup.py's flags), unlike in the kernels that make codes. */
#ifndef FXS_VECTORS_H
#define FXS_VECTORS_H

#include "common.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define ROOM 28 /* accumulators that stay in registers */
#elif defined(__AVX2__)
#define LANES 8
#define ROOM 12
#else
#define LANES 4
#define ROOM 12
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Keeps the compiler from computing a pointer for each line ahead, which there are no registers for. */
#define KEEP(pointer) __asm__("" : "+r"(pointer))
#define UNROLL _Pragma("GCC unroll 32")

INLINE vec load(const float *from) { return *(const loose *)from; }
INLINE void store(float *to, vec value) { *(loose *)to = value; }
INLINE vec splat(float value) { return value - (vec){0}; } /* of which the compiler makes a broadcast; value + 0 is not value for -0 */

/* LANES elements that are `step` apart; 0 in the lanes from `count` on. */
INLINE void gather_line(const float *restrict from, int64_t step, int64_t count, float *restrict to) {
    if (step == 1 && count >= LANES) {
        store(to, load(from));
        return;
    }
    for (int64_t lane = 0; lane < LANES; lane++) to[lane] = lane < count ? from[lane * step] : 0.0f;
}

INLINE void scatter_line(const float *restrict from, int64_t step, int64_t count, float *restrict to) {
    for (int64_t lane = 0; lane < count && lane < LANES; lane++) to[lane * step] = from[lane];
}

typedef int32_t lane_t __attribute__((vector_size(4 * LANES)));
#if LANES == 16
#define NUMBERS {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif LANES == 8
#define NUMBERS {0, 1, 2, 3, 4, 5, 6, 7}
#else
#define NUMBERS {0, 1, 2, 3}
#endif

/* The lanes of two vectors that `which` numbers. */
INLINE vec choose(vec a, vec b, lane_t which) {
#if defined(__GNUC__) && !defined(__clang__)
    return __builtin_shuffle(a, b, which);
#else
    vec found = a;
    for (int j = 0; j < LANES; j++) found[j] = which[j] < LANES ? a[which[j]] : b[which[j] - LANES];
    return found;
#endif
}

/* Turns a square of vectors over its diagonal, by exchanging ever larger blocks of lanes. */
INLINE void turn_square(vec square[LANES]) {
    const lane_t number = NUMBERS;
    UNROLL for (int size = 1; size < LANES; size *= 2) {
        const lane_t low = number + (((number & size) != 0) & (LANES - size)), high = low + size; /* lanes of a pair of vectors */
        UNROLL for (int i = 0; i < LANES; i++) {
            if (i & size) continue;
            const vec a = square[i], b = square[i + size];
            square[i] = choose(a, b, low);
            square[i + size] = choose(a, b, high);
        }
    }
}

/* Up to LANES samples, `step` apart, of up to LANES channels that follow each other: turned, so that samples are lanes, 0 in those that do not
 * exist, and channels are `to_step` apart. */
INLINE void turn_in(const float *restrict from, int64_t step, int64_t samples, int64_t channels, float *restrict to, int64_t to_step) {
    vec square[LANES];
    if (channels >= LANES && samples >= LANES) {
        UNROLL for (int i = 0; i < LANES; i++) square[i] = load(from + i * step);
    } else {
        for (int i = 0; i < LANES; i++) {
            float line[LANES];
            gather_line(from + (i < samples ? i * step : 0), 1, i < samples ? channels : 0, line);
            square[i] = load(line);
        }
    }
    turn_square(square);
    if (channels >= LANES) {
        UNROLL for (int i = 0; i < LANES; i++) store(to + i * to_step, square[i]);
    } else {
        for (int i = 0; i < channels; i++) store(to + i * to_step, square[i]);
    }
}

/* The other way. */
INLINE void turn_out(const float *restrict from, int64_t from_step, int64_t samples, int64_t channels, float *restrict to, int64_t step) {
    vec square[LANES];
    for (int i = 0; i < LANES; i++) square[i] = i < channels ? load(from + i * from_step) : splat(0.0f);
    turn_square(square);
    for (int i = 0; i < LANES && i < samples; i++) {
        if (channels >= LANES) {
            store(to + i * step, square[i]);
            continue;
        }
        float line[LANES];
        store(line, square[i]);
        scatter_line(line, 1, channels, to + i * step);
    }
}

#endif
