/* Codes of a normalised value on a grid of its channel's own; see passes/ops/codes/channels.py for the grid.
 *
 * A dense tensor is (A, C, B) in memory order, B = 1 with channels last. Its code is (A, each, B) bytes, each = ceil(C / parts): byte c holds
 * the codes of channels c, c + each, c + 2 each, ... `stats` and `grid` are (rows, C). T is the element type. */

/* Codes of n elements whose channel's numbers are `grid`, `channels` apart; `step` 1 if each element has a channel of its own, else 0. */
INLINE void TYPED(codes_of)(const T *restrict x, T *restrict z, int32_t *restrict codes, int64_t n, const float *restrict grid,
                            int64_t channels, const int step, int shift, int bits, const int relu, int regular) {
    const float *inverse = grid + INVERSE * channels, *first = grid + FIRST_CODE * channels, *scale = grid + SCALE * channels;
    const float *offset = grid + SHIFT * channels, *is_regular = grid + REGULAR * channels;
    const float last = (float)((1 << bits) - 1);
    const int32_t unknown = unknown_code(bits);
    if (relu && regular) {
        for (int64_t i = 0; i < n; i++) {
            float value = LOAD(z[i]);
            codes[i] |= cut(ceilf(value * inverse[i * step]) + (first[i * step] - 1.0f), last, unknown) << shift;
            z[i] = value < 0.0f ? (T)0 : z[i];
        }
    } else if (relu) {
        for (int64_t i = 0; i < n; i++) {
            float value = LOAD(z[i]), from = first[i * step];
            float plain = ceilf(value * inverse[i * step]) + (from - 1.0f);
            float found = LOAD(x[i]) * scale[i * step] + offset[i * step], positive = value > 0.0f ? 1.0f : 0.0f;
            float held = found < last ? found : last;
            held = floorf(held > 0.0f ? held : 0.0f);
            held = held > positive * from ? held : positive * from;
            float bound = positive * (last + 1.0f - from) + (from - 1.0f);
            held = held < bound ? held : bound;
            held = found == found ? held : found;
            codes[i] |= cut(is_regular[i * step] != 0.0f ? plain : held, last, unknown) << shift;
            z[i] = value < 0.0f ? (T)0 : z[i];
        }
    } else {
        for (int64_t i = 0; i < n; i++)
            codes[i] |= cut(LOAD(x[i]) * scale[i * step] + offset[i * step], last, unknown) << shift;
    }
}

/* Stores the codes in `packed`; with `relu` they say whether z > 0, and z becomes relu(z). `irregular`: whether any channel is. */
EXPORT void KERNEL(norm_encode)(const T *x, T *z, int64_t samples, int64_t channels, int64_t pixels, int bits, int relu, int irregular,
                                const float *grid, uint8_t *packed, int threads) {
    const int parts = 8 / bits;
    const int64_t each = up(channels, parts), size = channels * pixels;
    if (pixels == 1) {
#pragma omp parallel for num_threads(team(threads, samples * size)) schedule(static)
        for (int64_t a = 0; a < samples; a++)
            for (int64_t c = 0; c < each; c += TILE) {
                int32_t codes[TILE];
                const int64_t count = least(TILE, each - c);
                memset(codes, 0, (size_t)count * sizeof *codes);
                for (int p = 0; p < parts; p++) {
                    const int64_t low = c + p * each, n = least(count, channels - low);
                    if (n <= 0) break;
                    const T *from = x + a * size + low;
                    T *at = z + a * size + low;
                    if (!relu) TYPED(codes_of)(from, at, codes, n, grid + low, channels, 1, p * bits, bits, 0, 0);
                    else if (!irregular) TYPED(codes_of)(from, at, codes, n, grid + low, channels, 1, p * bits, bits, 1, 1);
                    else TYPED(codes_of)(from, at, codes, n, grid + low, channels, 1, p * bits, bits, 1, 0);
                }
                narrow(codes, packed + a * each + c, count);
            }
        return;
    }
    const int64_t rows = pixels < TILE ? TILE / pixels : 1, length = least(pixels, TILE), tiles = up(each, rows);
#pragma omp parallel for collapse(2) num_threads(team(threads, samples * size)) schedule(static)
    for (int64_t a = 0; a < samples; a++)
        for (int64_t tile = 0; tile < tiles; tile++)
            for (int64_t b = 0; b < pixels; b += length) {
                int32_t codes[TILE];
                const int64_t c = tile * rows, count = least(rows, each - c), n = least(length, pixels - b);
                memset(codes, 0, (size_t)(count * n) * sizeof *codes);
                for (int p = 0; p < parts; p++)
                    for (int64_t row = 0; row < count && c + row + p * each < channels; row++) {
                        const int64_t channel = c + row + p * each, at = a * size + channel * pixels + b;
                        const float *own = grid + channel;
                        if (!relu) TYPED(codes_of)(x + at, z + at, codes + row * n, n, own, channels, 0, p * bits, bits, 0, 0);
                        else if (!irregular || own[REGULAR * channels] != 0.0f)
                            TYPED(codes_of)(x + at, z + at, codes + row * n, n, own, channels, 0, p * bits, bits, 1, 1);
                        else TYPED(codes_of)(x + at, z + at, codes + row * n, n, own, channels, 0, p * bits, bits, 1, 0);
                    }
                narrow(codes, packed + (a * each + c) * pixels + b, count * n);
            }
}

/* What n codes stand for. */
INLINE void TYPED(values_of)(const uint8_t *restrict bytes, T *restrict out, int64_t n, const float *restrict stats, int64_t channels,
                             const int step, int shift, int mask, const int activation, const int masked) {
    const float *slope = stats + SLOPE * channels, *offset = stats + OFFSET * channels, *first = stats + FIRST * channels;
    for (int64_t i = 0; i < n; i++) {
        float code = (float)(int32_t)((bytes[i] >> shift) & mask), value = code * slope[i * step] + offset[i * step];
        if (masked) value *= code > first[i * step] ? 1.0f : 0.0f;
        if (activation == RELU || activation == RELU6) value = value < 0.0f ? 0.0f : value;
        if (activation == RELU6) value = value > 6.0f ? 6.0f : value;
        out[i] = STORE(value);
    }
}

INLINE void TYPED(decode_row)(const uint8_t *bytes, T *out, int64_t n, const float *stats, int64_t channels, const int step, int shift,
                              int mask, int activation, int masked) {
    if (activation == RELU && masked) TYPED(values_of)(bytes, out, n, stats, channels, step, shift, mask, RELU, 1);
    else if (activation == RELU) TYPED(values_of)(bytes, out, n, stats, channels, step, shift, mask, RELU, 0);
    else if (activation == RELU6) TYPED(values_of)(bytes, out, n, stats, channels, step, shift, mask, RELU6, 0);
    else TYPED(values_of)(bytes, out, n, stats, channels, step, shift, mask, NONE, 0);
}

/* Stores what the codes stand for, after a ReLU or ReLU6 or nothing, in `out`. `masked`: some channel's code 0 must be put to 0 apart. */
EXPORT void KERNEL(norm_decode)(const uint8_t *packed, const float *stats, int64_t samples, int64_t channels, int64_t pixels, int bits,
                                int activation, int masked, T *out, int threads) {
    const int parts = 8 / bits, mask = (1 << bits) - 1;
    const int64_t each = up(channels, parts), size = channels * pixels;
    if (pixels == 1) {
#pragma omp parallel for num_threads(team(threads, samples * size)) schedule(static)
        for (int64_t a = 0; a < samples; a++)
            for (int p = 0; p < parts && p * each < channels; p++)
                TYPED(decode_row)(packed + a * each, out + a * size + p * each, least(each, channels - p * each), stats + p * each, channels, 1,
                                  p * bits, mask, activation, masked);
        return;
    }
#pragma omp parallel for collapse(2) num_threads(team(threads, samples * size)) schedule(static)
    for (int64_t a = 0; a < samples; a++)
        for (int64_t c = 0; c < each; c++)
            for (int p = 0; p < parts && c + p * each < channels; p++) {
                const int64_t channel = c + p * each;
                TYPED(decode_row)(packed + (a * each + c) * pixels, out + a * size + channel * pixels, pixels, stats + channel, channels, 0,
                                  p * bits, mask, activation, masked);
            }
}

/* n bits of a mask (see passes/ops/codes/masks.py) from element `start` on, as floats 0 and 1. */
static void TYPED(bits_from)(const uint8_t *mask, int64_t mask_bytes, int64_t start, float *restrict out, int64_t n) {
    while (n > 0) {
        const int64_t bit = start / mask_bytes, at = start % mask_bytes, run = least(n, mask_bytes - at);
        widen(mask + at, out, run, (int)bit, 1);
        start += run, out += run, n -= run;
    }
}

/* The codes of n <= TILE elements and the gradient before the activation. */
INLINE void TYPED(gradient_of)(const T *restrict grad, const uint8_t *restrict bytes, float *restrict code, float *restrict g, int64_t n,
                               const float *restrict stats, int64_t channels, const int step, int shift, int low, int activation,
                               const uint8_t *mask, int64_t mask_bytes, int64_t start) {
    widen(bytes, code, n, shift, low);
    if (activation == RELU) {
        const float *first = stats + FIRST * channels;
        for (int64_t i = 0; i < n; i++) g[i] = code[i] > first[i * step] ? LOAD(grad[i]) : 0.0f;
    } else if (activation == RELU6) {
        TYPED(bits_from)(mask, mask_bytes, start, g, n);
        for (int64_t i = 0; i < n; i++) g[i] = g[i] > 0.0f ? LOAD(grad[i]) : 0.0f;
    } else if (activation == HARDSWISH) {
        const float *slope = stats + SLOPE * channels, *offset = stats + OFFSET * channels;
        for (int64_t i = 0; i < n; i++) {
            float value = code[i] * slope[i * step] + offset[i * step], upstream = LOAD(grad[i]);
            float inside = upstream * (value / 3.0f + 0.5f);
            g[i] = value < -3.0f ? 0.0f : value <= 3.0f ? inside : upstream;
        }
    } else {
        for (int64_t i = 0; i < n; i++) g[i] = LOAD(grad[i]);
    }
}

/* What the gradient of x is made of: (g - mean - (code - center) * slant) * gain. */
INLINE void TYPED(store_gradient)(const float *restrict code, const float *restrict g, T *restrict out, int64_t n, const float *restrict mean,
                                  const float *restrict slant, const float *restrict center, const float *restrict gain, const int step) {
    for (int64_t i = 0; i < n; i++)
        out[i] = STORE((g[i] - mean[i * step] - (code[i] - center[i * step]) * slant[i * step]) * gain[i * step]);
}

/* One channel's sums over its samples, and the gradient of x; the channels that share bytes follow each other. */
static void TYPED(channel_backward)(const T *grad, const uint8_t *packed, const float *stats, const uint8_t *mask, int64_t mask_bytes,
                                    int64_t samples, int64_t channels, int64_t pixels, int64_t each, int64_t c, int part, int bits,
                                    int training, int activation, T *out, float *grad_weight, float *grad_bias) {
    const int low = (1 << bits) - 1, shift = part * bits;
    const int64_t channel = c + part * each, size = channels * pixels;
    const float *own = stats + channel;
    const float center = own[CENTER * channels], step = own[STEP * channels], gain = own[GAIN * channels];
    float code[TILE], g[TILE];
    double total = 0.0, along = 0.0;
    for (int64_t a = 0; a < samples; a++)
        for (int64_t b = 0; b < pixels; b += TILE) {
            const int64_t n = least(TILE, pixels - b), at = a * size + channel * pixels + b;
            TYPED(gradient_of)(grad + at, packed + (a * each + c) * pixels + b, code, g, n, own, channels, 0, shift, low, activation, mask,
                               mask_bytes, at);
            float sum = 0.0f, dot = 0.0f;
#pragma omp simd reduction(+ : sum, dot)
            for (int64_t i = 0; i < n; i++) {
                sum += g[i];
                dot += g[i] * (code[i] - center);
            }
            total += (double)sum, along += (double)dot;
        }
    const double count = (double)(samples * pixels);
    const float unknown = own[INVSTD * channels] * 0.0f;
    const float mean = training ? (float)(total / count) : 0.0f;
    const float slant = training ? (float)(along / count * (double)step * (double)step) : 0.0f;
    grad_weight[channel] = (float)(along * (double)step) + unknown;
    grad_bias[channel] = (float)total + unknown;
    for (int64_t a = 0; a < samples; a++)
        for (int64_t b = 0; b < pixels; b += TILE) {
            const int64_t n = least(TILE, pixels - b), at = a * size + channel * pixels + b;
            TYPED(gradient_of)(grad + at, packed + (a * each + c) * pixels + b, code, g, n, own, channels, 0, shift, low, activation, mask,
                               mask_bytes, at);
            TYPED(store_gradient)(code, g, out + at, n, &mean, &slant, &center, &gain, 0);
        }
}

/* One row of channels, added to the sums, or turned into the gradient of x where `out` is given. */
INLINE void TYPED(channels_row)(const T *grad, const uint8_t *bytes, const float *stats, const uint8_t *mask, int64_t mask_bytes, int64_t start,
                                int64_t channels, int64_t each, int bits, int activation, float *total, float *along, T *out) {
    const int low = (1 << bits) - 1, parts = 8 / bits;
    float code[TILE], g[TILE];
    for (int part = 0; part < parts && part * each < channels; part++) {
        const int64_t end = least(each, channels - part * each);
        for (int64_t c = 0; c < end; c += TILE) {
            const int64_t n = least(TILE, end - c), channel = c + part * each;
            const float *own = stats + channel, *center = own + CENTER * channels;
            TYPED(gradient_of)(grad + channel, bytes + c, code, g, n, own, channels, 1, part * bits, low, activation, mask, mask_bytes,
                               start + channel);
            if (out) {
                TYPED(store_gradient)(code, g, out + channel, n, total + channel, along + channel, center, own + GAIN * channels, 1);
                continue;
            }
            float *restrict sum = total + channel, *restrict dot = along + channel;
            for (int64_t i = 0; i < n; i++) {
                sum[i] += g[i];
                dot[i] += g[i] * (code[i] - center[i]);
            }
        }
    }
}

/* Stores the gradients of x, weight and bias. `work` has room for threads * 3 * channels doubles; it is used with channels last. */
EXPORT void KERNEL(norm_backward)(const T *grad, const uint8_t *packed, const float *stats, const uint8_t *mask, int64_t mask_bytes,
                                  int64_t samples, int64_t channels, int64_t pixels, int bits, int training, int activation, T *out,
                                  float *grad_weight, float *grad_bias, double *work, int threads) {
    const int parts = 8 / bits;
    const int64_t each = up(channels, parts);
    const int workers = team(threads, samples * channels * pixels);
    if (pixels != 1) {
#pragma omp parallel for num_threads(workers) schedule(static)
        for (int64_t c = 0; c < each; c++)
            for (int part = 0; part < parts && c + part * each < channels; part++)
                TYPED(channel_backward)(grad, packed, stats, mask, mask_bytes, samples, channels, pixels, each, c, part, bits, training,
                                        activation, out, grad_weight, grad_bias);
        return;
    }
    enum { ROWS = 64 }; /* whose sums are float32 before they are added up in float64 */
#pragma omp parallel for num_threads(workers) schedule(static, 1)
    for (int worker = 0; worker < workers; worker++) {
        double *total = work + worker * 3 * channels, *along = total + channels;
        float *sum = (float *)(along + channels), *dot = sum + channels;
        memset(total, 0, (size_t)(3 * channels) * sizeof *total);
        const int64_t share = up(samples, workers), end = least(samples, (worker + 1) * share);
        for (int64_t a = worker * share; a < end; a += ROWS) {
            for (int64_t row = a; row < least(a + ROWS, end); row++)
                TYPED(channels_row)(grad + row * channels, packed + row * each, stats, mask, mask_bytes, row * channels, channels, each, bits,
                                    activation, sum, dot, 0);
            for (int64_t c = 0; c < channels; c++) {
                total[c] += (double)sum[c], along[c] += (double)dot[c];
                sum[c] = dot[c] = 0.0f;
            }
        }
    }
    const double count = (double)samples;
    float *mean = (float *)(work + 2 * channels), *slant = mean + channels; /* the first worker's float sums, of no use any more */
    for (int64_t c = 0; c < channels; c++) {
        double total = 0.0, along = 0.0;
        for (int worker = 0; worker < workers; worker++) {
            total += work[worker * 3 * channels + c];
            along += work[worker * 3 * channels + channels + c];
        }
        const float step = stats[STEP * channels + c], unknown = stats[INVSTD * channels + c] * 0.0f;
        grad_weight[c] = (float)(along * (double)step) + unknown;
        grad_bias[c] = (float)total + unknown;
        mean[c] = training ? (float)(total / count) : 0.0f;
        slant[c] = training ? (float)(along / count * (double)step * (double)step) : 0.0f;
    }
#pragma omp parallel for num_threads(workers) schedule(static)
    for (int64_t row = 0; row < samples; row++)
        TYPED(channels_row)(grad + row * channels, packed + row * each, stats, mask, mask_bytes, row * channels, channels, each, bits,
                            activation, mean, slant, out + row * channels);
}
