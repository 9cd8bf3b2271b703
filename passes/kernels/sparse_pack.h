/* Sparse activations: the elements of x that reach a threshold, in lists of values and positions; see sparse_activation.py.
 *
 * A tile is `rows` x `columns` pixels of SAMPLES samples, in STRIPS strips of STRIP samples. For each tile, channel, strip and class (the
 * remainders of row and column by the strides) there is a list, in this order. A position is ((strip * rows + row) * columns + column) *
 * STRIP + sample, counted in the tile. */
enum { SAMPLES = 16, STRIP = 4, STRIPS = SAMPLES / STRIP, CHUNK = 32 };

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
    UNROLL for (int i = 0; i < SAMPLES; i++) bits |= (uint32_t)(!(fabsf(line[i]) < threshold) & (line[i] != 0.0f)) << i;
    return bits;
#endif
}

typedef float four __attribute__((vector_size(16)));
typedef float loose_four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t four_lanes __attribute__((vector_size(16)));

/* For each set of the samples of a strip its members, followed by anything. */
static const uint16_t MEMBERS[16][STRIP] __attribute__((aligned(8))) = {
    {0, 0, 0, 0}, {0, 0, 0, 0}, {1, 0, 0, 0}, {0, 1, 0, 0}, {2, 0, 0, 0}, {0, 2, 0, 0}, {1, 2, 0, 0}, {0, 1, 2, 0},
    {3, 0, 0, 0}, {0, 3, 0, 0}, {1, 3, 0, 0}, {0, 1, 3, 0}, {2, 3, 0, 0}, {0, 2, 3, 0}, {1, 2, 3, 0}, {0, 1, 2, 3},
};

/* Appends the kept samples of a strip; up to STRIP elements after the list's end are overwritten. */
INLINE int put_strip(const float *line, uint32_t kept, uint32_t position, float *values, uint16_t *positions) {
    uint64_t members;
    memcpy(&members, MEMBERS[kept], sizeof members);
    members += position * UINT64_C(0x0001000100010001);
    memcpy(positions, &members, sizeof members);
    const four given = *(const loose_four *)line;
#if LANES == 16
    *(loose_four *)values = (four)_mm_maskz_compress_ps((__mmask8)kept, (__m128)given);
#elif defined(__GNUC__) && !defined(__clang__)
    const uint16_t *from = MEMBERS[kept];
    *(loose_four *)values = __builtin_shuffle(given, (four_lanes){from[0], from[1], from[2], from[3]});
#else
    const uint16_t *from = MEMBERS[kept];
    *(loose_four *)values = (four){given[from[0]], given[from[1]], given[from[2]], given[from[3]]};
#endif
    return __builtin_popcount(kept);
}

/* Appends the lists of one channel of a tile, (STRIPS, classes), to values and positions and stores their lengths. `spare`: room for the
 * values, and then the positions, of all its elements. Returns how many were appended; some elements after them are overwritten. */
INLINE int64_t pack_channel(const pack_t *p, const float *x, float threshold, int64_t sample, int64_t top, int64_t left, float *spare,
                            int32_t *lengths, float *values, uint16_t *positions) {
    const int64_t bottom = least(top + p->rows, p->in_rows), right = least(left + p->columns, p->in_columns);
    const int64_t classes = p->classes_down * p->classes_across, size = p->rows * p->columns * STRIP;
    uint16_t *places = (uint16_t *)(void *)(spare + STRIPS * (size + STRIP));
    int64_t starts[STRIPS] = {0}, ends[STRIPS] = {0}, total = 0;
    for (int64_t class = 0; class < classes; class++) {
        for (int64_t row = top + class / p->classes_across; row < bottom; row += p->classes_down)
            for (int64_t column = left + class % p->classes_across; column < right; column += p->classes_across) {
                float copied[SAMPLES];
                const float *line = samples_at(p, x, sample, row, column, p->samples - sample - column * p->lane_step, copied);
                __builtin_prefetch(line + 2 * p->x_channel); /* two channels on: the next lines are too far from each other to be foreseen */
                const uint32_t bits = kept_samples(line, threshold), pixel = (uint32_t)((row - top) * p->columns + column - left);
                UNROLL for (int strip = 0; strip < STRIPS; strip++) {
                    const int64_t at = strip * (size + STRIP) + ends[strip];
                    ends[strip] += put_strip(line + strip * STRIP, bits >> (strip * STRIP) & ((1 << STRIP) - 1),
                                             (uint32_t)(strip * size) + pixel * STRIP, spare + at, places + at);
                }
            }
        for (int strip = 0; strip < STRIPS; strip++) {
            lengths[strip * classes + class] = (int32_t)(ends[strip] - starts[strip]);
            starts[strip] = ends[strip];
        }
    }
    for (int strip = 0; strip < STRIPS; strip++) {
        memcpy(values + total, spare + strip * (size + STRIP), (size_t)ends[strip] * sizeof *values);
        memcpy(positions + total, places + strip * (size + STRIP), (size_t)ends[strip] * sizeof *positions);
        total += ends[strip];
    }
    return total;
}

/* Copies the pixels of a tile and `channels` channels to (channels, rows, columns, SAMPLES) where channels are innermost in memory, and
 * describes the copy. */
INLINE pack_t turn_chunk(const pack_t *p, const float *x, int64_t sample, int64_t top, int64_t left, int64_t channels, float *copy) {
    pack_t found = *p;
    found.samples = SAMPLES, found.lane_step = 0;
    found.in_rows = least(p->rows, p->in_rows - top), found.in_columns = least(p->columns, p->in_columns - left);
    found.x_sample = 1, found.x_column = SAMPLES, found.x_row = p->columns * SAMPLES, found.x_channel = p->rows * found.x_row;
    for (int64_t row = 0; row < found.in_rows; row++)
        for (int64_t column = 0; column < found.in_columns; column++) {
            const float *from = x + (top + row) * p->x_row + (left + column) * p->x_column + sample * p->x_sample;
            const int64_t samples = p->samples - sample - (left + column) * p->lane_step;
            for (int64_t c = 0; c < channels; c += LANES)
                for (int64_t first = 0; first < SAMPLES; first += LANES)
                    turn_in(from + (first < samples ? first * p->x_sample : 0) + c, p->x_sample, samples - first, channels - c,
                            copy + c * found.x_channel + row * found.x_row + column * SAMPLES + first, found.x_channel);
        }
    return found;
}

/* Stores the entries of x, in `starts` where each list starts (tiles, chunks of CHUNK channels, channels, STRIPS, classes; one more for each
 * chunk says where its last list ends), and in `total` how many there are; if that is more than `capacity`, not all of them are stored.
 * The lists of a chunk follow each other. Work: `room` floats for each thread. */
EXPORT void KERNEL(sparse_pack)(const float *x, float threshold, const pack_t *p, int64_t capacity, int32_t *starts, float *values,
                                uint16_t *positions, int64_t *total, float *work, int64_t room, int threads) {
    const int64_t blocks = p->lane_step ? 1 : up(p->samples, SAMPLES), chunks = up(p->channels, CHUNK);
    const int64_t lists = STRIPS * p->classes_down * p->classes_across, tiles = blocks * p->down * p->across;
    const int64_t elements = p->rows * p->columns * SAMPLES;
    int64_t used = 0;
#pragma omp parallel num_threads(threads < 1 ? 1 : threads)
    {
        float *packed = work;
#if defined(_OPENMP)
        packed += omp_get_thread_num() * room;
#endif
        float *spare = packed + CHUNK * elements;
        float *turned = spare + 2 * (elements + SAMPLES);
        uint16_t *places = (uint16_t *)(void *)(turned + CHUNK * elements);
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < tiles * chunks; index++) {
            const int64_t chunk = index / tiles, tile = index % tiles, channels = least(CHUNK, p->channels - chunk * CHUNK);
            const int64_t sample = tile % blocks * SAMPLES, left = tile / blocks % p->across * p->columns;
            const int64_t top = tile / blocks / p->across * p->rows;
            const float *from = x + chunk * CHUNK * p->x_channel;
            int32_t *own = starts + (tile * chunks + chunk) * (CHUNK * lists + 1);
            int64_t size = 0, base;
            pack_t as = *p;
            const int is_turned = p->x_channel == 1 && p->x_sample != 1;
            if (is_turned) {
                as = turn_chunk(p, from, sample, top, left, channels, turned);
                from = turned;
            }
            const int64_t first = is_turned ? 0 : sample, row = is_turned ? 0 : top, column = is_turned ? 0 : left;
            for (int64_t c = 0; c < channels; c++)
                size += pack_channel(&as, from + c * as.x_channel, threshold, first, row, column, spare, own + c * lists, packed + size, places + size);
#pragma omp atomic capture
            {
                base = used;
                used += size;
            }
            if (size && base + size <= capacity) {
                memcpy(values + base, packed, (size_t)size * sizeof *values);
                memcpy(positions + base, places, (size_t)size * sizeof *positions);
            }
            for (int64_t i = 0; i < lists * channels; i++) {
                const int64_t length = own[i];
                own[i] = (int32_t)base;
                base += length;
            }
            own[lists * channels] = (int32_t)base;
        }
    }
    *total = used;
}
