/* Codes of groups of elements that follow each other in memory; see passes/ops/codes/groups.py. T is the element type.
 *
 * n elements are n / size whole groups and one of the rest, padded with its last element to whole bytes. `stats` is (2, groups), lows and
 * steps, or for positive codes (1, groups), steps. */

/* The smallest and largest of n elements; both NaN if one of them is. */
INLINE void TYPED(range_of)(const T *restrict x, int64_t n, float *low, float *high) {
    enum { LANES = 16 };
    float lows[LANES], highs[LANES], unknown[LANES];
    const float first = LOAD(x[0]);
    for (int lane = 0; lane < LANES; lane++) lows[lane] = highs[lane] = first, unknown[lane] = 0.0f;
    const int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            const float value = LOAD(x[i + lane]);
            lows[lane] = value < lows[lane] ? value : lows[lane];
            highs[lane] = value > highs[lane] ? value : highs[lane];
            unknown[lane] = value == value ? unknown[lane] : value;
        }
    float least_ = first, most = first, bad = first == first ? 0.0f : first;
    for (int lane = 0; lane < LANES; lane++) {
        least_ = lows[lane] < least_ ? lows[lane] : least_;
        most = highs[lane] > most ? highs[lane] : most;
        bad += unknown[lane];
    }
    for (int64_t i = whole; i < n; i++) {
        const float value = LOAD(x[i]);
        least_ = value < least_ ? value : least_;
        most = value > most ? value : most;
        bad = value == value ? bad : value;
    }
    *low = bad == bad ? least_ : bad;
    *high = bad == bad ? most : bad;
}

/* The codes of one group: `whole` elements at x, of which `n` are real and the others repeat the last. */
INLINE void TYPED(group_codes)(const T *restrict x, int64_t n, int64_t length, int bits, int positive, const float *restrict noise,
                               float *low_out, float *step_out, uint8_t *restrict packed) {
    const int parts = 8 / bits;
    const int64_t each = length / parts;
    const float levels = (float)((1 << bits) - 1), scaled = (float)((double)((1 << bits) - 1) * (1 - 4e-7)), last = 255.0f;
    const int32_t unknown = unknown_code(bits);
    float low, high;
    TYPED(range_of)(x, n, &low, &high);
    if (positive) {
        float step = high + high * 0.0f;
        step = (step < 1e-30f ? 1e-30f : step) / levels;
        *step_out = step;
        high = 1.0f / step * (float)(1 - 1e-6);
    } else {
        float span = high - low;
        span = span < 1e-30f ? 1e-30f : span;
        *low_out = low;
        *step_out = span / scaled;
        high = 1.0f / span * scaled;
    }
    for (int64_t b = 0; b < each; b += TILE) {
        int32_t codes[TILE];
        const int64_t count = least(TILE, each - b);
        memset(codes, 0, (size_t)count * sizeof *codes);
        for (int p = 0; p < parts; p++) {
            const int64_t start = p * each + b;
            const int64_t real = n > start ? least(count, n - start) : 0;
            const T *restrict from = x + start;
            if (positive) {
                for (int64_t i = 0; i < real; i++) codes[i] |= cut(ceilf(LOAD(from[i]) * high), last, unknown) << (p * bits);
            } else if (noise) {
                const float *restrict own = noise + start;
                for (int64_t i = 0; i < real; i++) codes[i] |= cut((LOAD(from[i]) - low) * high + own[i], last, unknown) << (p * bits);
            } else {
                for (int64_t i = 0; i < real; i++) codes[i] |= cut((LOAD(from[i]) - low) * high + 0.5f, last, unknown) << (p * bits);
            }
            const float end = LOAD(x[n - 1]); /* repeated */
            for (int64_t i = real; i < count; i++) {
                const float value = positive ? ceilf(end * high) : (end - low) * high + (noise ? noise[start + i] : 0.5f);
                codes[i] |= cut(value, last, unknown) << (p * bits);
            }
        }
        narrow(codes, packed + b, count);
    }
}

INLINE int64_t TYPED(padded)(int64_t n, int bits) { return up(n, 8 / bits) * (8 / bits); }

/* Stores codes and statistics. Groups are numbered in blocks of `rows` from `block` on, the rest has a block of its own; with a `table` of
 * twice 2**16 numbers each block takes its noise from a place that depends on seed, step and its number (passes/ops/codes/noise.py). */
EXPORT void KERNEL(groups_encode)(const T *x, int64_t elements, int64_t size, int bits, int positive, const float *table, uint64_t seed,
                                  uint64_t step, int64_t block, int64_t rows, float *stats, uint8_t *packed, int threads) {
    const int64_t whole = elements / size, rest = elements - whole * size, count = whole + (rest > 0), bytes = size / (8 / bits);
    float *lows = stats, *steps = positive ? stats : stats + count;
#pragma omp parallel for num_threads(team(threads, elements)) schedule(static)
    for (int64_t group = 0; group < count; group++) {
        const int is_rest = group == whole;
        const int64_t n = is_rest ? rest : size, length = is_rest ? TYPED(padded)(rest, bits) : size;
        const int64_t number = is_rest ? block + up(whole, rows) : block + group / rows;
        const int64_t position = is_rest ? 0 : group % rows * size;
        const float *noise = table ? table + ((noise_offset(seed, step, (uint64_t)number) + position) & 0xFFFF) : 0;
        TYPED(group_codes)(x + group * size, n, length, bits, positive, noise, lows + group, steps + group, packed + group * bytes);
    }
}

/* Stores what the codes stand for. */
EXPORT void KERNEL(groups_decode)(const uint8_t *packed, const float *stats, int64_t elements, int64_t size, int bits, int positive, T *out,
                                  int threads) {
    const int64_t whole = elements / size, rest = elements - whole * size, count = whole + (rest > 0), bytes = size / (8 / bits);
    const int parts = 8 / bits, mask = (1 << bits) - 1;
    const float *lows = stats, *steps = positive ? stats : stats + count;
#pragma omp parallel for num_threads(team(threads, elements)) schedule(static)
    for (int64_t group = 0; group < count; group++) {
        const int64_t n = group == whole ? rest : size, each = (group == whole ? TYPED(padded)(rest, bits) : size) / parts;
        const float step = steps[group], low = lows[group];
        for (int p = 0; p < parts && p * each < n; p++) {
            const uint8_t *restrict from = packed + group * bytes;
            T *restrict to = out + group * size + p * each;
            const int64_t real = least(each, n - p * each);
            const int shift = p * bits;
            if (positive)
                for (int64_t i = 0; i < real; i++) {
                    const float value = ((float)(int32_t)((from[i] >> shift) & mask) - 0.5f) * step;
                    to[i] = STORE(value < 0.0f ? 0.0f : value);
                }
            else
                for (int64_t i = 0; i < real; i++) to[i] = STORE((float)(int32_t)((from[i] >> shift) & mask) * step + low);
        }
    }
}

/* Stores `grad` where a positive code is not 0, 0 elsewhere; NaN in a group that held what is no number. */
EXPORT void KERNEL(groups_gradient)(const T *grad, const uint8_t *packed, const float *stats, int64_t elements, int64_t size, int bits, T *out,
                                    int threads) {
    const int64_t whole = elements / size, rest = elements - whole * size, count = whole + (rest > 0), bytes = size / (8 / bits);
    const int parts = 8 / bits, mask = (1 << bits) - 1;
#pragma omp parallel for num_threads(team(threads, elements)) schedule(static)
    for (int64_t group = 0; group < count; group++) {
        const int64_t n = group == whole ? rest : size, each = (group == whole ? TYPED(padded)(rest, bits) : size) / parts;
        const float unknown = stats[group] * 0.0f;
        for (int p = 0; p < parts && p * each < n; p++) {
            const uint8_t *restrict from = packed + group * bytes;
            const T *restrict g = grad + group * size + p * each;
            T *restrict to = out + group * size + p * each;
            const int64_t real = least(each, n - p * each);
            const int shift = mask << (p * bits);
            for (int64_t i = 0; i < real; i++) to[i] = from[i] & shift ? g[i] : (T)0;
            if (unknown != unknown)
                for (int64_t i = 0; i < real; i++) to[i] = STORE(unknown);
        }
    }
}
