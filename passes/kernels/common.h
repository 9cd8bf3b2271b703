/* What every kernel shares. Kernels are compiled once for each level of vector instructions, and once for each element type: LEVEL and
 * TYPED put the level and the type into a function's name. Arithmetic is float32 in the order of the reference's, without contraction
 * into fused multiply-adds, so that codes come out the same. Nothing allocates. */
#ifndef FXS_COMMON_H
#define FXS_COMMON_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#define GLUE_(a, b) a##_##b
#define GLUE(a, b) GLUE_(a, b)
#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

enum { TILE = 1024 };        /* elements that a kernel holds at a time: a few KiB for each of its buffers */
enum { SMALL = 1 << 14 };    /* elements below which one thread is faster than several */
enum { NONE = 0, RELU = 1, RELU6 = 2, HARDSWISH = 3 };

/* Rows of what tells of a norm's channels: `grid` for encoding, `stats` for decoding (passes/ops/codes/channels.py). */
enum { INVERSE = 0, FIRST_CODE = 1, SCALE = 2, SHIFT = 3, REGULAR = 4 };
enum { CENTER = 0, STEP = 1, INVSTD = 2, FIRST = 3, SLOPE = 4, OFFSET = 5, GAIN = 6, NEEDS_MASK = 7 };

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int team(int threads, int64_t elements) { return elements < SMALL || threads < 1 ? 1 : threads; }

/* A value in [0, last], cut to a whole number; what is no number becomes what torch makes of it. */
INLINE int32_t cut(float value, float last, int32_t unknown) {
    float held = value > 0.0f ? value : 0.0f;
    held = held < last ? held : last;
    int32_t code = (int32_t)held;
    return value == value ? code : unknown;
}

INLINE int32_t unknown_code(int bits) { return bits == 8 ? 128 : 0; }

INLINE void narrow(const int32_t *restrict codes, uint8_t *restrict out, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = (uint8_t)codes[i];
}

/* Code `part` of each byte, as a float. */
INLINE void widen(const uint8_t *restrict bytes, float *restrict out, int64_t n, int shift, int mask) {
    for (int64_t i = 0; i < n; i++) out[i] = (float)(int32_t)((bytes[i] >> shift) & mask);
}

/* A position in a table of 2**16 numbers: the finaliser of splitmix64. */
INLINE int64_t noise_offset(uint64_t seed, uint64_t step, uint64_t block) {
    uint64_t z = seed * 0x9E3779B97F4A7C15u + step * 0xD1B54A32D192ED03u + block * 0x8CB92BA72F3D8DD7u + 0x632BE59BD9B4E019u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (int64_t)((z ^ (z >> 31)) & 0xFFFFu);
}

INLINE float of_float(float value) { return value; }
INLINE float to_float(float value) { return value; }

typedef uint16_t bfloat16;

INLINE float of_bfloat16(bfloat16 value) {
    union { uint32_t bits; float number; } u = {(uint32_t)value << 16};
    return u.number;
}

/* To the nearest, ties to even. */
INLINE bfloat16 to_bfloat16(float value) {
    union { float number; uint32_t bits; } u = {value};
    uint32_t rounded = (u.bits + 0x7FFFu + ((u.bits >> 16) & 1u)) >> 16;
    return value == value ? (bfloat16)rounded : (bfloat16)0x7FC0;
}

#endif
