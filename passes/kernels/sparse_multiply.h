/* Convolutions with sparse weights: each entry of the weight is multiplied with a tile of pixels, whose sums stay in registers. */

#define MOST_ROWS 4 /* of a tile, and pixels: larger ones gain nothing */
#define MOST_PIXELS 16

typedef struct {
    const float *buffer;
    int64_t pitch; /* from one row of the buffer to the next */
    const int64_t *segments;
    const int32_t *offsets;
    const float *values, *bias; /* bias: null from the second block on */
    const float *from;          /* sums so far, null for the first block */
    float *to;
    int64_t from_output, to_output, to_row, to_column, outputs;
    const float **ahead; /* lines to be fetched meanwhile */
    int64_t to_fetch;
    int is_last;
} job_t;

/* Fetches output o's share of the lines ahead. */
INLINE void fetch_ahead(const job_t *job, int64_t o, int64_t share) {
    const int64_t last = least((o + 1) * share, job->to_fetch);
    for (int64_t i = o * share; i < last; i++) __builtin_prefetch(job->ahead[i], 0, 2);
}

INLINE void multiply(const int R, const int Q, const job_t *given) {
    const job_t copy = *given, *job = &copy;
    const int64_t pitch = job->pitch, share = up(job->to_fetch, job->outputs);
    for (int64_t o = 0; o < job->outputs; o++) {
        fetch_ahead(job, o, share);
        if (job->is_last) {
            const float *next = job->to + least(o + 3, job->outputs - 1) * job->to_output;
            UNROLL for (int r = 0; r < R; r++) {
                for (int q = 0; q < Q; q++) __builtin_prefetch(next + r * job->to_row + q * job->to_column, 1, 3);
            }
        }
        if (job->from == job->to && job->segments[o] == job->segments[o + 1]) continue;
        vec sums[MOST_PIXELS];
        if (job->from) {
            const float *from = job->from + o * job->from_output;
            UNROLL for (int i = 0; i < R * Q; i++) sums[i] = load(from + i * LANES);
        } else {
            const vec start = splat(job->bias ? job->bias[o] : 0.0f);
            UNROLL for (int i = 0; i < R * Q; i++) sums[i] = start;
        }
        for (int64_t k = job->segments[o]; k < job->segments[o + 1]; k++) {
            const float *line = job->buffer + job->offsets[k];
            const vec value = splat(job->values[k]);
            UNROLL for (int r = 0; r < R; r++) {
                UNROLL for (int q = 0; q < Q; q++) sums[r * Q + q] += value * load(line + q * LANES);
                line += pitch;
                KEEP(line);
            }
        }
        float *to = job->to + o * job->to_output;
        UNROLL for (int r = 0; r < R; r++) {
            float *next = to;
            UNROLL for (int q = 0; q < Q; q++) {
                store(next, sums[r * Q + q]);
                next += job->to_column;
                KEEP(next);
            }
            to += job->to_row;
        }
    }
}

/* All tiles whose sums fit the registers, in tables by rows and columns. */
#define SIZES_1(F) F(1, 1) F(1, 2) F(1, 3) F(1, 4) F(1, 5) F(1, 6) F(1, 7) F(1, 8) F(1, 9) F(1, 10) F(1, 11) F(1, 12)
#define SIZES_2(F) F(2, 1) F(2, 2) F(2, 3) F(2, 4) F(2, 5) F(2, 6)
#define SIZES_3(F) F(3, 1) F(3, 2) F(3, 3) F(3, 4)
#define SIZES_4(F) F(4, 1) F(4, 2) F(4, 3)
#define LARGER(F) F(1, 13) F(1, 14) F(1, 15) F(1, 16) F(2, 7) F(2, 8) F(3, 5) F(4, 4)
#if ROOM >= MOST_PIXELS
#define ALL_SIZES(F) SIZES_1(F) SIZES_2(F) SIZES_3(F) SIZES_4(F) LARGER(F)
#else
#define ALL_SIZES(F) SIZES_1(F) SIZES_2(F) SIZES_3(F) SIZES_4(F)
#endif

#define MULTIPLY_OF(R, Q) static void multiply_##R##_##Q(const job_t *job) { multiply(R, Q, job); }
ALL_SIZES(MULTIPLY_OF)
#define MULTIPLY_AT(R, Q) [R][Q] = multiply_##R##_##Q,
static void (*const MULTIPLY[MOST_ROWS + 1][MOST_PIXELS + 1])(const job_t *) = {ALL_SIZES(MULTIPLY_AT)};

/* Stores the sums of a tile where whole vectors would not fit. */
static void spread_tile(const plan_t *p, const tile_t *t, const float *restrict sums, float *restrict y) {
    const int64_t size = t->rows * t->columns * LANES;
    if (p->y_channel == 1 && p->y_sample != 1) { /* channels are innermost */
        for (int64_t r = 0; r < t->rows; r++)
            for (int64_t q = 0; q < t->columns; q++, sums += LANES)
                for (int64_t o = 0; o < t->outputs; o += LANES)
                    turn_out(sums + o * size, size, p->samples - t->sample - (t->column + q) * p->lane_step, t->outputs - o,
                             y + o + r * p->y_row + q * p->y_column, p->y_sample);
        return;
    }
    for (int64_t o = 0; o < t->outputs; o++)
        for (int64_t r = 0; r < t->rows; r++)
            for (int64_t q = 0; q < t->columns; q++, sums += LANES)
                scatter_line(sums, p->y_sample, p->samples - t->sample - (t->column + q) * p->lane_step,
                             y + o * p->y_channel + r * p->y_row + q * p->y_column);
}

/* Stores the convolution of x with the weight of a program. `down` and `across`: see find_lines. */
EXPORT void KERNEL(sparse_multiply)(const float *x, const float *bias, float *y, const plan_t *p, const int32_t *down, const int32_t *across,
                                    const int64_t *segments, const int32_t *offsets, const float *values, float *work, int threads) {
    const int64_t count = tiles(p), all_outputs = p->groups * p->outputs;
    const int64_t pitch = p->lines_across * LANES, room = p->block * p->lines_down * pitch;
#pragma omp parallel num_threads(threads < 1 ? 1 : threads)
    {
        lines_t lines, lines_after;
        const float **ahead;
        float *buffer = work_of(p, work, &lines, &lines_after, &ahead), *sums = buffer + room;
#pragma omp for schedule(dynamic, up(count, 16 * omp_get_num_threads()))
        for (int64_t index = 0; index < count; index++) {
            const tile_t t = tile_at(p, index);
            const int64_t output = t.group * p->outputs + t.part;
            float *out = y + output * p->y_channel + t.sample * p->y_sample + t.row * p->y_row + t.column * p->y_column;
            const int64_t last = p->samples - t.sample - (t.column + t.columns - 1) * p->lane_step;
            const int is_whole = p->y_sample == 1 && last >= LANES;
            const int64_t line = t.columns * LANES;
            job_t job = {.buffer = buffer, .pitch = pitch, .offsets = offsets, .values = values, .outputs = t.outputs};
            job.bias = bias ? bias + output : 0;
            job.from_output = t.rows * line;
            const tile_t following = tile_at(p, least(index + 1, count - 1));
            find_lines(p, &t, down, across, lines);
            find_lines(p, &following, down, across, lines_after);
            for (int64_t b = 0; b < p->blocks; b++) {
                const int64_t channel = b * p->block;
                pack_tile(p, &t, x, lines, channel, least(p->block, p->channels - channel), buffer);
                const int64_t after = b + 1 < p->blocks ? channel + p->block : 0, channels = least(p->block, p->channels - after);
                job.to_fetch = after ? list_lines(p, &t, x, lines, after, channels, ahead) : list_lines(p, &following, x, lines_after, 0, channels, ahead);
                job.ahead = ahead;
                const int to_end = is_whole && b == p->blocks - 1;
                job.segments = segments + b * all_outputs + output;
                job.from = b ? sums : 0;
                job.to = to_end ? out : sums;
                job.is_last = to_end;
                job.to_output = to_end ? p->y_channel : t.rows * line;
                job.to_row = to_end ? p->y_row : line;
                job.to_column = to_end ? p->y_column : LANES;
                MULTIPLY[t.rows][t.columns](&job);
            }
            if (!is_whole) spread_tile(p, &t, sums, out);
        }
    }
}
