/* Tensors of logical shape (N, C, H, W) that lie in memory as (C, H, W, N), batch innermost: a channel is one run of `length` = H W N
 * floats, and every vector holds one pixel of several images. Norms with what follows them, max pooling, and the ways in and out. */

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t places_of_four __attribute__((vector_size(16)));
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (places_of_four){i, j, k, l})
#endif

enum { STREAMED = 1 << 20 }; /* elements of a tensor whose result no cache would keep until it is read */

/* Copies n <= TILE results from the first cache; `streamed`: past the caches, which then need not read what is overwritten. */
INLINE void put(const float *restrict from, float *restrict to, int64_t n, int streamed) {
#if defined(__SSE__)
    if (streamed && (uintptr_t)to % 64 == 0) {
        int64_t i = 0;
        for (; i + 16 <= n; i += 16)
            for (int part = 0; part < 16; part += 4) _mm_stream_ps(to + i + part, _mm_load_ps(from + i + part));
        for (; i < n; i++) to[i] = from[i];
        return;
    }
#endif
    (void)streamed;
    memcpy(to, from, (size_t)n * sizeof *to);
}

/* After the last streamed store of a thread. */
INLINE void settle(int streamed) {
#if defined(__SSE__)
    if (streamed) _mm_sfence();
#endif
    (void)streamed;
}

/* Sum of n <= TILE values and of their squared distances from their mean, all in the first level of cache. */
INLINE void tile_moments(const float *restrict x, int64_t n, float *mean, float *squares) {
    float sum = 0.0f, square = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i];
    const float middle = sum / (float)n;
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < n; i++) square += (x[i] - middle) * (x[i] - middle);
    *mean = middle, *squares = square;
}

/* Mean and biased variance of a run, tile by tile (Chan, Golub & LeVeque 1979, pairwise update). */
static void run_moments(const float *x, int64_t length, double *mean, double *variance) {
    double middle = 0.0, squares = 0.0;
    for (int64_t at = 0; at < length; at += TILE) {
        const int64_t n = least(TILE, length - at);
        float own, spread;
        tile_moments(x + at, n, &own, &spread);
        const double apart = (double)own - middle, share = (double)n / (double)(at + n);
        middle += apart * share;
        squares += (double)spread + apart * apart * share * (double)at;
    }
    *mean = middle, *variance = length ? squares / (double)length : 0.0;
}

enum { PLANE = TILE / 8 }; /* bytes of a tile's mask: bit p of byte j belongs to element p * PLANE + j */

INLINE void keep_bits(const float *restrict y, uint8_t *restrict bits, int64_t n) {
    memset(bits, 0, PLANE);
    for (int p = 0; p * PLANE < n; p++) {
        const float *own = y + p * PLANE;
        const int64_t end = least(PLANE, n - p * PLANE);
        for (int64_t j = 0; j < end; j++) bits[j] |= (uint8_t)((own[j] > 0.0f ? 1 : 0) << p);
    }
}

INLINE void masked_by(const float *restrict g, const uint8_t *restrict bits, float *restrict out, int64_t n) {
    for (int p = 0; p * PLANE < n; p++) {
        const int64_t end = least(PLANE, n - p * PLANE), from = (int64_t)p * PLANE;
        for (int64_t j = 0; j < end; j++) out[from + j] = (bits[j] >> p) & 1 ? g[from + j] : 0.0f;
    }
}

/* y = relu(scale x + shift + added); one number of each table for each channel. What is no number stays none, as torch's ReLU leaves it.
 *
 * `added` may be 0, and `mask` with it. `training`: mean and 1/sigma are found and stored in `mean` and `invstd`, the running statistics
 * moved by `momentum` (`running_mean` may be 0); else they follow from the running statistics. */
EXPORT void KERNEL(channel_norm)(const float *x, const float *added, const float *weight, const float *bias, float *running_mean,
                                 float *running_var, int64_t channels, int64_t length, int training, int relu, double momentum, double eps,
                                 float *y, uint8_t *mask, float *mean, float *invstd, int threads) {
    const int64_t mask_bytes = up(length, TILE) * PLANE;
    const int streamed = channels * length >= STREAMED;
#pragma omp parallel for num_threads(team(threads, channels * length)) schedule(static)
    for (int64_t c = 0; c < channels; c++) {
        const float *own = x + c * length, *other = added ? added + c * length : 0;
        float *out = y + c * length;
        if (training) {
            double middle, variance;
            run_moments(own, length, &middle, &variance);
            mean[c] = (float)middle;
            invstd[c] = (float)(1.0 / sqrt(variance + eps));
            if (running_mean) {
                const double unbiased = variance * (double)length / (double)(length - 1);
                running_mean[c] = (float)(momentum * middle + (1.0 - momentum) * (double)running_mean[c]);
                running_var[c] = (float)(momentum * unbiased + (1.0 - momentum) * (double)running_var[c]);
            }
        } else {
            mean[c] = running_mean[c];
            invstd[c] = (float)(1.0 / sqrt((double)running_var[c] + eps));
        }
        const float scale = invstd[c] * (weight ? weight[c] : 1.0f), shift = (bias ? bias[c] : 0.0f) - mean[c] * scale;
        for (int64_t at = 0; at < length; at += TILE) {
            const int64_t n = least(TILE, length - at);
            const float *restrict a = own + at;
            float z[TILE] __attribute__((aligned(64)));
            if (other) {
                const float *restrict b = other + at;
                for (int64_t i = 0; i < n; i++) z[i] = a[i] * scale + shift + b[i];
            } else {
                for (int64_t i = 0; i < n; i++) z[i] = a[i] * scale + shift;
            }
            if (relu) {
                for (int64_t i = 0; i < n; i++) z[i] = z[i] < 0.0f ? 0.0f : z[i];
                if (mask) keep_bits(z, mask + c * mask_bytes + at / TILE * PLANE, n);
            }
            put(z, out + at, n, streamed);
        }
        settle(streamed);
    }
}

/* The gradient before the ReLU of n <= TILE elements: read off the mask, or from x where there is none. */
INLINE void before_relu(const float *restrict g, const float *restrict x, const uint8_t *bits, int relu, float scale, float shift,
                        float *restrict out, int64_t n) {
    if (!relu) memcpy(out, g, (size_t)n * sizeof *out);
    else if (bits) masked_by(g, bits, out, n);
    else
        for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale + shift > 0.0f ? g[i] : 0.0f;
}

/* Gradients of x, weight, bias, and of what was added (`grad_added` may be 0). */
EXPORT void KERNEL(channel_norm_backward)(const float *grad, const float *x, const uint8_t *mask, const float *weight, const float *bias,
                                          const float *mean, const float *invstd, int64_t channels, int64_t length, int training,
                                          int relu, float *out, float *grad_added, float *grad_weight, float *grad_bias, int threads) {
    const int64_t mask_bytes = up(length, TILE) * PLANE;
    const int streamed = channels * length >= STREAMED;
#pragma omp parallel for num_threads(team(threads, channels * length)) schedule(static)
    for (int64_t c = 0; c < channels; c++) {
        const int64_t first = c * length;
        const float scale = invstd[c] * (weight ? weight[c] : 1.0f), shift = (bias ? bias[c] : 0.0f) - mean[c] * scale, middle = mean[c];
        float g[TILE] __attribute__((aligned(64))), to[TILE] __attribute__((aligned(64)));
        double total = 0.0, along = 0.0;
        for (int64_t at = 0; at < length; at += TILE) {
            const int64_t n = least(TILE, length - at);
            const float *restrict a = x + first + at;
            before_relu(grad + first + at, a, mask ? mask + c * mask_bytes + at / TILE * PLANE : 0, relu, scale, shift, g, n);
            float sum = 0.0f, dot = 0.0f;
#pragma omp simd reduction(+ : sum, dot)
            for (int64_t i = 0; i < n; i++) {
                sum += g[i];
                dot += g[i] * (a[i] - middle);
            }
            total += (double)sum, along += (double)dot;
            if (grad_added) memcpy(grad_added + first + at, g, (size_t)n * sizeof *g);
        }
        grad_weight[c] = (float)(along * (double)invstd[c]);
        grad_bias[c] = (float)total;
        const double count = (double)length;
        const float level = training ? (float)(total / count) : 0.0f;
        const float slant = training ? (float)(along / count * (double)invstd[c] * (double)invstd[c]) : 0.0f;
        for (int64_t at = 0; at < length; at += TILE) {
            const int64_t n = least(TILE, length - at);
            const float *restrict a = x + first + at, *restrict from = g;
            if (grad_added) from = grad_added + first + at;
            else before_relu(grad + first + at, a, mask ? mask + c * mask_bytes + at / TILE * PLANE : 0, relu, scale, shift, g, n);
            for (int64_t i = 0; i < n; i++) to[i] = (from[i] - level - (a[i] - middle) * slant) * scale;
            put(to, out + first + at, n, streamed);
        }
        settle(streamed);
    }
}

enum { LANES = 64 }; /* images that are pooled at a time */

/* Maxima of windows, and the place of each in its window (rows first); what is no number wins, as in torch. Sizes are height and width. */
EXPORT void KERNEL(innermost_max_pool)(const float *x, int64_t channels, int64_t height, int64_t width, int64_t batch, int64_t out_height,
                                       int64_t out_width, const int64_t *window, float *y, uint8_t *places, int threads) {
    const int64_t kh = window[0], kw = window[1], sh = window[2], sw = window[3], ph = window[4], pw = window[5], dh = window[6], dw = window[7];
#pragma omp parallel for collapse(2) num_threads(team(threads, channels * height * width * batch)) schedule(static)
    for (int64_t c = 0; c < channels; c++)
        for (int64_t oy = 0; oy < out_height; oy++)
            for (int64_t ox = 0; ox < out_width; ox++)
                for (int64_t b = 0; b < batch; b += LANES) {
                    const int64_t n = least(LANES, batch - b), at = ((c * out_height + oy) * out_width + ox) * batch + b;
                    float best[LANES];
                    int32_t place[LANES];
                    for (int64_t i = 0; i < n; i++) best[i] = -INFINITY, place[i] = -1;
                    for (int64_t ky = 0; ky < kh; ky++)
                        for (int64_t kx = 0; kx < kw; kx++) {
                            const int64_t iy = oy * sh - ph + ky * dh, ix = ox * sw - pw + kx * dw;
                            if (iy < 0 || iy >= height || ix < 0 || ix >= width) continue;
                            const float *restrict own = x + ((c * height + iy) * width + ix) * batch + b;
                            const int32_t here = (int32_t)(ky * kw + kx);
                            for (int64_t i = 0; i < n; i++) {
                                const int wins = (own[i] > best[i]) | (own[i] != own[i]) | (place[i] < 0);
                                best[i] = wins ? own[i] : best[i];
                                place[i] = wins ? here : place[i];
                            }
                        }
                    for (int64_t i = 0; i < n; i++) y[at + i] = best[i], places[at + i] = (uint8_t)place[i];
                }
}

/* The gradient of x; windows may overlap. */
EXPORT void KERNEL(innermost_max_pool_backward)(const float *grad, const uint8_t *places, int64_t channels, int64_t height, int64_t width,
                                                int64_t batch, int64_t out_height, int64_t out_width, const int64_t *window, float *out,
                                                int threads) {
    const int64_t kh = window[0], kw = window[1], sh = window[2], sw = window[3], ph = window[4], pw = window[5], dh = window[6], dw = window[7];
#pragma omp parallel for num_threads(team(threads, channels * height * width * batch)) schedule(static)
    for (int64_t c = 0; c < channels; c++) {
        memset(out + c * height * width * batch, 0, (size_t)(height * width * batch) * sizeof *out);
        for (int64_t oy = 0; oy < out_height; oy++)
            for (int64_t ox = 0; ox < out_width; ox++)
                for (int64_t b = 0; b < batch; b += LANES) {
                    const int64_t n = least(LANES, batch - b), at = ((c * out_height + oy) * out_width + ox) * batch + b;
                    float g[LANES];
                    int32_t place[LANES];
                    for (int64_t i = 0; i < n; i++) g[i] = grad[at + i], place[i] = places[at + i];
                    for (int64_t ky = 0; ky < kh; ky++)
                        for (int64_t kx = 0; kx < kw; kx++) {
                            const int64_t iy = oy * sh - ph + ky * dh, ix = ox * sw - pw + kx * dw;
                            if (iy < 0 || iy >= height || ix < 0 || ix >= width) continue;
                            float *restrict to = out + ((c * height + iy) * width + ix) * batch + b;
                            const int32_t here = (int32_t)(ky * kw + kx);
                            for (int64_t i = 0; i < n; i++) to[i] += place[i] == here ? g[i] : 0.0f;
                        }
                }
    }
}

INLINE void transpose_four(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    const four a = *(const four *)from, b = *(const four *)(from + from_stride);
    const four c = *(const four *)(from + 2 * from_stride), d = *(const four *)(from + 3 * from_stride);
    const four ab = PICK(a, b, 0, 4, 1, 5), cd = PICK(c, d, 0, 4, 1, 5);
    const four AB = PICK(a, b, 2, 6, 3, 7), CD = PICK(c, d, 2, 6, 3, 7);
    *(four *)to = PICK(ab, cd, 0, 1, 4, 5);
    *(four *)(to + to_stride) = PICK(ab, cd, 2, 3, 6, 7);
    *(four *)(to + 2 * to_stride) = PICK(AB, CD, 0, 1, 4, 5);
    *(four *)(to + 3 * to_stride) = PICK(AB, CD, 2, 3, 6, 7);
}

/* out[j][k][i] = x[i][k][j], i < rows, k < middle, j < columns: with middle = 1 a transpose. */
EXPORT void KERNEL(swap_outer)(const float *x, int64_t rows, int64_t middle, int64_t columns, float *out, int threads) {
    enum { BLOCK = 16 };
    const int64_t from_row = middle * columns, to_row = middle * rows, parts = up(columns, BLOCK);
#pragma omp parallel for collapse(2) num_threads(team(threads, rows * middle * columns)) schedule(static)
    for (int64_t k = 0; k < middle; k++)
        for (int64_t part = 0; part < parts; part++) {
            const int64_t j0 = part * BLOCK, width = least(BLOCK, columns - j0);
            for (int64_t i0 = 0; i0 < rows; i0 += BLOCK) {
                const int64_t height = least(BLOCK, rows - i0);
                const float *from = x + i0 * from_row + k * columns + j0;
                float *to = out + j0 * to_row + k * rows + i0;
                int64_t i = 0;
                for (; i + 4 <= height; i += 4) {
                    int64_t j = 0;
                    for (; j + 4 <= width; j += 4) transpose_four(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
                    for (; j < width; j++)
                        for (int64_t r = i; r < i + 4; r++) to[j * to_row + r] = from[r * from_row + j];
                }
                for (; i < height; i++)
                    for (int64_t j = 0; j < width; j++) to[j * to_row + i] = from[i * from_row + j];
            }
        }
}

/* Magnitudes between two bounds, for a selection: counts[0] of `count` values are at `upper` or more, counts[1] lie strictly between and
 * are stored in `found` as far as there is room, counts[2] are no finite numbers. Each thread has its share of the room and `counts`. */
EXPORT void KERNEL(between)(const float *x, int64_t count, float lower, float upper, float *found, int64_t room, int64_t *counts,
                            int threads) {
    enum { STEP = 32 };
    const int64_t share = up(up(count, threads), STEP) * STEP, own_room = room / threads;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++) {
        const int64_t first = thread * share, last = least(count, first + share);
        float *to = found + thread * own_room;
        int64_t above = 0, inside = 0, odd = 0;
        for (int64_t at = first; at < last; at += STEP) {
            const int64_t n = least(STEP, last - at);
            const float *restrict own = x + at;
            int32_t high = 0, middle = 0, strange = 0;
            for (int64_t i = 0; i < n; i++) {
                const float size = fabsf(own[i]);
                high += size >= upper;
                middle += (size > lower) & (size < upper);
                strange += !(size <= 3.402823466e38f);
            }
            above += high, odd += strange;
            if (!middle) continue;
            for (int64_t i = 0; i < n; i++) {
                const float size = fabsf(own[i]);
                if (size > lower && size < upper) {
                    if (inside < own_room) to[inside] = size;
                    inside++;
                }
            }
        }
        counts[3 * thread] = above, counts[3 * thread + 1] = inside, counts[3 * thread + 2] = odd;
    }
}
