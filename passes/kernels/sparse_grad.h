/* The gradient of a weight from a sparse activation: each entry of a list is multiplied with the gradients of all output channels, at the
 * pixels that the kernel's taps lead to. For that the gradient of a tile lies in a buffer with output channels innermost: (STRIPS, lines down,
 * lines across, STRIP, width), padded with zeros. */
typedef struct {
    int64_t groups, channels, outputs; /* of each group */
    int64_t samples, lane_step;
    int64_t g_channel, g_row, g_column, g_sample, out_rows, out_columns;
    int64_t rows, columns, down, across; /* of a tile, and tiles of the input */
    int64_t stride_rows, stride_columns;
    int64_t lines_down, lines_across;
    int64_t vectors;     /* of output channels at a time */
    int64_t part, parts; /* channels at a time */
    int64_t classes, runs, taps;
    int64_t joined; /* strips at a time: 1 or all */
    int64_t work;   /* floats of each thread */
} grad_t;

#define MOST_TAPS 9

/* Classes that have the same taps: those from `first` to `last`, and how many taps. */
typedef struct {
    int64_t first, last, taps;
} run_t;

typedef struct {
    const float *buffer, *values;
    const uint16_t *positions;
    const int32_t *starts, *table; /* of the first channel's list */
    const int64_t *taps, *leads;   /* their numbers, and where in the buffer they lead from a position's line */
    float *sums;
    int64_t channels, lists, length, all_taps; /* from one channel to the next; from a list's start to its end */
    const float **ahead;                       /* lines to be fetched meanwhile, a share for each channel */
    int64_t fetched, to_fetch, share;
} lists_t;

/* from, `lead` bytes on; the lead is read from memory each time, since there are more of them than registers. */
INLINE const float *led(const float *from, const int64_t *lead) {
#if defined(__x86_64__)
    __asm__("addq %1, %0" : "+r"(from) : "m"(*lead) : "cc");
    return from;
#else
    return (const float *)((const char *)from + *lead);
#endif
}

INLINE void add_products(const int T, const int V, lists_t *given) {
    const lists_t copy = *given, *job = &copy;
    int64_t fetched = job->fetched;
    int64_t leads[MOST_TAPS];
    for (int t = 0; t < T; t++) leads[t] = job->leads[t] * (int64_t)sizeof(float);
    for (int64_t c = 0; c < job->channels; c++) {
        const int32_t *start = job->starts + c * job->lists;
        const int64_t end = start[job->length], last = least(fetched + job->share, job->to_fetch);
        for (; fetched < last; fetched++) __builtin_prefetch(job->ahead[fetched], 0, 2);
        if (start[0] == end) continue;
        float *line = job->sums + c * job->all_taps * V * LANES;
        vec sums[ROOM];
        UNROLL for (int t = 0; t < T; t++) {
            UNROLL for (int v = 0; v < V; v++) sums[t * V + v] = load(line + (job->taps[t] * V + v) * LANES);
        }
        for (int64_t k = start[0]; k < end; k++) {
            const float *from = job->buffer + job->table[job->positions[k]];
            const vec value = splat(job->values[k]);
            UNROLL for (int t = 0; t < T; t++) {
                const float *tap = led(from, leads + t);
                UNROLL for (int v = 0; v < V; v++) sums[t * V + v] += value * load(tap + v * LANES);
            }
        }
        UNROLL for (int t = 0; t < T; t++) {
            UNROLL for (int v = 0; v < V; v++) store(line + (job->taps[t] * V + v) * LANES, sums[t * V + v]);
        }
    }
    given->fetched = fetched;
}

#define MOST_VECTORS 8
#define GRADS_1(F) F(1, 1) F(1, 2) F(1, 3) F(1, 4) F(1, 6) F(1, 8) F(2, 1) F(2, 2) F(2, 3) F(2, 4) F(2, 6) F(3, 1) F(3, 2) F(3, 3) F(3, 4)
#define GRADS_2(F) F(4, 1) F(4, 2) F(4, 3) F(5, 1) F(5, 2) F(6, 1) F(6, 2) F(7, 1) F(8, 1) F(9, 1)
#if ROOM == 28
#define GRADS_3(F) F(2, 8) F(3, 6) F(3, 8) F(4, 4) F(4, 6) F(5, 3) F(5, 4) F(6, 3) F(6, 4) F(7, 2) F(7, 3) F(7, 4) F(8, 2) F(8, 3) F(9, 2) F(9, 3)
#else
#define GRADS_3(F)
#endif
#define ALL_GRADS(F) GRADS_1(F) GRADS_2(F) GRADS_3(F)
#define GRAD_OF(T, V) static void add_products_##T##_##V(lists_t *job) { add_products(T, V, job); }
ALL_GRADS(GRAD_OF)
#define GRAD_AT(T, V) [T][V] = add_products_##T##_##V,
static void (*const ADD_PRODUCTS[MOST_TAPS + 1][MOST_VECTORS + 1])(lists_t *) = {ALL_GRADS(GRAD_AT)};

/* Turns the gradients of a tile so that output channels are innermost; `outputs` are left of them. */
static void turn_gradient(const grad_t *p, const float *restrict g, int64_t sample, int64_t top, int64_t left, const int32_t *down,
                          const int32_t *across, int64_t outputs, float *restrict buffer) {
    const int64_t width = p->vectors * LANES, pixels = p->lines_down * p->lines_across;
    const int is_turned = p->g_sample != 1 && p->g_channel == 1; /* channels are innermost already */
    const int64_t outer = is_turned ? p->g_sample : p->g_channel, inner = is_turned ? p->g_channel : p->g_sample;
    for (int64_t v = 0; v < p->vectors; v++, outputs -= LANES)
        for (int64_t pixel = 0; pixel < pixels; pixel++) {
            const int64_t row = top + down[pixel / p->lines_across], column = left + across[pixel % p->lines_across];
            const int is_outside = row < 0 || row >= p->out_rows || column < 0 || column >= p->out_columns;
            for (int64_t first = 0; first < SAMPLES; first += LANES) {
                const int64_t samples = is_outside ? 0 : p->samples - sample - first - column * p->lane_step;
                const float *from = g + row * p->g_row + column * p->g_column + (sample + first) * p->g_sample + v * LANES * p->g_channel;
                const int64_t rows = is_turned ? samples : outputs, columns = is_turned ? outputs : samples;
                vec square[LANES];
                if (samples > 0 && outputs > 0) {
                    if (inner == 1 && rows >= LANES && columns >= LANES)
                        UNROLL for (int i = 0; i < LANES; i++) square[i] = load(from + i * outer);
                    else
                        for (int i = 0; i < LANES; i++) {
                            float line[LANES];
                            gather_line(from + i * outer, inner, i < rows ? columns : 0, line);
                            square[i] = load(line);
                        }
                    if (!is_turned) turn_square(square);
                } else {
                    UNROLL for (int i = 0; i < LANES; i++) square[i] = splat(0.0f);
                }
                float *to = buffer + (first / STRIP * pixels + pixel) * STRIP * width + v * LANES;
                UNROLL for (int i = 0; i < LANES; i++) store(to + (i / STRIP * pixels * STRIP + i % STRIP) * width, square[i]);
            }
        }
}

/* Lists the lines that turn_gradient is to read, and returns how many. */
static int64_t list_gradient(const grad_t *p, const float *g, int64_t sample, int64_t top, int64_t left, const int32_t *down,
                             const int32_t *across, int64_t outputs, const float **list) {
    int64_t count = 0;
    if (p->g_sample != 1) return 0;
    for (int64_t o = 0; o < least(outputs, p->vectors * LANES); o++)
        for (int64_t i = 0; i < p->lines_down; i++) {
            const int64_t row = top + down[i];
            if (row < 0 || row >= p->out_rows) continue;
            for (int64_t j = 0; j < p->lines_across; j++) {
                const int64_t column = left + across[j];
                if (column >= 0 && column < p->out_columns)
                    list[count++] = g + o * p->g_channel + row * p->g_row + column * p->g_column + sample * p->g_sample;
            }
        }
    return count;
}

/* Stores the gradient of a weight (outputs of all groups, channels, taps). `runs` and for each run its taps' numbers and leads in `taps` and
 * `leads`; `table`: for each position in a tile its line. */
EXPORT void KERNEL(sparse_grad)(const float *g, const grad_t *p, const int32_t *down, const int32_t *across, const run_t *runs, const int64_t *taps,
                                const int64_t *leads, const int32_t *table, const int32_t *starts, const float *values, const uint16_t *positions,
                                 float *out, float *work, int threads) {
    const int64_t width = p->vectors * LANES, blocks = up(p->outputs, width), units = p->groups * blocks * p->parts;
    const int64_t lists = STRIPS * p->classes, chunk = CHUNK * lists + 1, chunks = up(p->groups * p->channels, CHUNK);
    const int64_t sample_groups = p->lane_step ? 1 : up(p->samples, SAMPLES), tiles = sample_groups * p->down * p->across, row = p->channels * p->taps;
    const int64_t room = p->part * p->taps * width, most = least(MOST_TAPS, ROOM / p->vectors);
#pragma omp parallel num_threads(threads < 1 ? 1 : threads)
    {
#if defined(_OPENMP)
        float *sums = work + omp_get_thread_num() * p->work;
#else
        float *sums = work;
#endif
        float *buffer = sums + room;
        const float **ahead = (const float **)(void *)(buffer + SAMPLES * p->lines_down * p->lines_across * width);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < units; unit++) {
            const int64_t part = unit % p->parts * p->part, block = unit / p->parts % blocks * width, group = unit / p->parts / blocks;
            const int64_t channels = least(p->part, p->channels - part), outputs = least(width, p->outputs - block);
            memset(sums, 0, (size_t)(channels * p->taps * width) * sizeof *sums);
            for (int64_t tile = 0; tile < tiles; tile++) {
                const float *from = g + (group * p->outputs + block) * p->g_channel;
                int64_t sample = tile % sample_groups * SAMPLES, left = tile / sample_groups % p->across * p->columns / p->stride_columns;
                int64_t top = tile / sample_groups / p->across * p->rows / p->stride_rows;
                turn_gradient(p, from, sample, top, left, down, across, outputs, buffer);
                lists_t job = {.buffer = buffer, .values = values, .positions = positions, .table = table, .ahead = ahead};
                job.lists = lists, job.all_taps = p->taps;
                if (tile + 1 < tiles) { /* the next tile's gradient is fetched while this one is multiplied */
                    sample = (tile + 1) % sample_groups * SAMPLES;
                    left = (tile + 1) / sample_groups % p->across * p->columns / p->stride_columns;
                    top = (tile + 1) / sample_groups / p->across * p->rows / p->stride_rows;
                    job.to_fetch = list_gradient(p, from, sample, top, left, down, across, outputs, ahead);
                    job.share = up(job.to_fetch, channels * STRIPS / p->joined);
                }
                for (int64_t strip = 0; strip < STRIPS; strip += p->joined)
                    for (int64_t channel = 0; channel < channels; channel += job.channels) {
                        const int64_t number = group * p->channels + part + channel, in_chunk = number % CHUNK;
                        job.channels = least(CHUNK - in_chunk, channels - channel);
                        job.sums = sums + channel * p->taps * width;
                        const int32_t *own = starts + (tile * chunks + number / CHUNK) * chunk + in_chunk * lists + strip * p->classes;
                        int64_t tap = 0;
                        for (int64_t r = 0; r < p->runs; tap += runs[r++].taps) {
                            job.starts = own + runs[r].first;
                            job.length = (p->joined - 1) * p->classes + runs[r].last - runs[r].first;
                            for (int64_t t = 0; t < runs[r].taps; t += most) {
                                job.taps = taps + tap + t;
                                job.leads = leads + tap + t;
                                ADD_PRODUCTS[least(most, runs[r].taps - t)][p->vectors](&job);
                            }
                        }
                    }
            }
            for (int64_t first = 0; first < channels * p->taps; first += LANES) {
                const int64_t count = least(LANES, channels * p->taps - first);
                for (int64_t v = 0; v < p->vectors && v * LANES < outputs; v++) {
                    vec square[LANES];
                    for (int i = 0; i < LANES; i++) square[i] = i < count ? load(sums + (first + i) * width + v * LANES) : splat(0.0f);
                    turn_square(square);
                    float *to = out + (group * p->outputs + block + v * LANES) * row + part * p->taps + first;
                    for (int i = 0; i < LANES && v * LANES + i < outputs; i++)
                        if (count == LANES)
                            store(to + i * row, square[i]);
                        else
                            for (int64_t j = 0; j < count; j++) to[i * row + j] = square[i][j];
                }
            }
        }
    }
}
