/* Sparse activations: the elements of x that reach a threshold, in lists of values and positions; see sparse_activation.py.
 *
 * A tile is `rows` x `columns` pixels of SAMPLES samples, in STRIPS strips of STRIP samples. For each tile, channel, strip and class (the
 * remainders of row and column by the strides) there is a list, in this order. A position is ((strip * rows + row) * columns + column) *
 * STRIP + sample, counted in the tile. */
enum { SAMPLES = 16, STRIP = 4, STRIPS = SAMPLES / STRIP };

typedef struct {
    int64_t channels, samples, lane_step;
    int64_t x_channel, x_row, x_column, x_sample, in_rows, in_columns;
    int64_t rows, columns, down, across; /* of a tile, and tiles of the input */
    int64_t classes_down, classes_across;
} pack_t;

/* The samples at a pixel: where they are, or copied to `line`. */
INLINE const float *samples_at(const pack_t *p, const float *x, int64_t sample, int64_t row, int64_t column, int64_t count, float *line) {
    const float *from = x + row * p->x_row + column * p->x_column + sample * p->x_sample;
    if (p->x_sample == 1 && count >= SAMPLES) return from;
    for (int64_t i = 0; i < SAMPLES; i++) line[i] = i < count ? from[i * p->x_sample] : 0.0f;
    return line;
}

/* Which samples are kept, as bits: what can be compared and is less is not, and neither is 0. */
INLINE uint32_t kept_samples(const float *line, float threshold) {
#if LANES == 16
    const __m512 value = _mm512_loadu_ps(line);
    const __mmask16 enough = _mm512_cmp_ps_mask(_mm512_abs_ps(value), _mm512_set1_ps(threshold), _CMP_NLT_UQ);
    return _mm512_mask_cmp_ps_mask(enough, value, _mm512_setzero_ps(), _CMP_NEQ_UQ);
#else
    uint32_t bits = 0;
    for (int i = 0; i < SAMPLES; i++) bits |= (uint32_t)(!(fabsf(line[i]) < threshold) & (line[i] != 0.0f)) << i;
    return bits;
#endif
}

/* Appends the samples of a strip. */
INLINE int64_t put_strip(const float *line, uint32_t bits, int strip, int64_t position, float *values, uint16_t *positions) {
    const uint32_t own = bits >> (strip * STRIP) & ((1 << STRIP) - 1);
#if LANES == 16
    const int count = __builtin_popcount(own);
    const __mmask8 room = (__mmask8)((1u << count) - 1);
    _mm_mask_storeu_ps(values, room, _mm_maskz_compress_ps((__mmask8)own, _mm_loadu_ps(line + strip * STRIP)));
    const __m128i places = _mm_maskz_compress_epi32((__mmask8)own, _mm_add_epi32(_mm_set1_epi32((int)position), _mm_setr_epi32(0, 1, 2, 3)));
    _mm_mask_storeu_epi16(positions, room, _mm_cvtepi32_epi16(places));
    return count;
#else
    int64_t count = 0;
    for (int i = 0; i < STRIP; i++)
        if (own >> i & 1) {
            values[count] = line[strip * STRIP + i];
            positions[count++] = (uint16_t)(position + i);
        }
    return count;
#endif
}

/* Counts, and with `values` stores, the entries of one channel of a tile. `next`: (STRIPS, classes), counts or where the lists go on. */
INLINE void walk_channel(const pack_t *p, const float *x, float threshold, int64_t sample, int64_t top, int64_t left, int64_t *next, float *values,
                         uint16_t *positions) {
    const int64_t bottom = least(top + p->rows, p->in_rows), right = least(left + p->columns, p->in_columns);
    const int64_t classes = p->classes_down * p->classes_across, size = p->rows * p->columns * STRIP;
    float spare[SAMPLES];
    for (int64_t class = 0; class < classes; class++)
        for (int64_t row = top + class / p->classes_across; row < bottom; row += p->classes_down)
            for (int64_t column = left + class % p->classes_across; column < right; column += p->classes_across) {
                const float *line = samples_at(p, x, sample, row, column, p->samples - sample - column * p->lane_step, spare);
                const uint32_t bits = kept_samples(line, threshold);
                const int64_t position = ((row - top) * p->columns + column - left) * STRIP;
                for (int strip = 0; strip < STRIPS; strip++) {
                    int64_t *at = next + strip * classes + class;
                    if (values)
                        *at += put_strip(line, bits, strip, strip * size + position, values + *at, positions + *at);
                    else
                        *at += __builtin_popcount(bits >> (strip * STRIP) & ((1 << STRIP) - 1));
                }
            }
}

/* Stores the entries of x, `starts` of each list (tiles, channels, STRIPS, classes) and their end, in `bases` where each tile's entries lie,
 * and in `total` how many there are; if that is more than `capacity`, the values and positions are not all stored. */
EXPORT void KERNEL(sparse_pack)(const float *x, float threshold, const pack_t *p, int64_t capacity, int64_t *bases, int32_t *starts, float *values,
                                uint16_t *positions, int64_t *total, int64_t *work, int threads) {
    const int64_t blocks = p->lane_step ? 1 : up(p->samples, SAMPLES), count = blocks * p->down * p->across;
    const int64_t lists = STRIPS * p->classes_down * p->classes_across;
    int64_t used = 0;
#pragma omp parallel num_threads(threads < 1 ? 1 : threads)
    {
        int64_t *next = work;
#if defined(_OPENMP)
        next += omp_get_thread_num() * lists;
#endif
#pragma omp for schedule(dynamic)
        for (int64_t tile = 0; tile < count; tile++) {
            const int64_t left = tile % p->across * p->columns, top = tile / p->across % p->down * p->rows;
            const int64_t sample = tile / p->across / p->down * SAMPLES;
            int32_t *own = starts + tile * (p->channels * lists + 1);
            int64_t size = 0, base;
            for (int64_t c = 0; c < p->channels; c++) {
                memset(next, 0, (size_t)lists * sizeof *next);
                walk_channel(p, x + c * p->x_channel, threshold, sample, top, left, next, 0, 0);
                for (int64_t i = 0; i < lists; i++) {
                    own[c * lists + i] = (int32_t)size;
                    size += next[i];
                }
            }
            own[p->channels * lists] = (int32_t)size;
#pragma omp atomic capture
            {
                base = used;
                used += size;
            }
            bases[tile] = base;
            if (base + size > capacity) continue;
            for (int64_t c = 0; c < p->channels; c++) {
                for (int64_t i = 0; i < lists; i++) next[i] = own[c * lists + i];
                walk_channel(p, x + c * p->x_channel, threshold, sample, top, left, next, values + base, positions + base);
            }
        }
    }
    *total = used;
}
